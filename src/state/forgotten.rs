//! The keys that were forgotten by `glueless forget`: their hashes ([`crate::types::key_hash`]).
//!
//! The table is what a fold of all changes but those of forgotten keys gives, whenever the keys were forgotten: runs,
//! rebuilds and verifications leave these changes out when they read raw. The hashes are in the ledger, and stay there
//! when the tables are rebuilt.

use std::collections::BTreeMap;

use crate::state::ledger::Record;
use crate::types::key_hash::{ForgottenKeys, KeyHash};

/// The keys that were forgotten.
#[derive(Clone, Debug, Default)]
pub struct Forgotten {
    salt: String,
    /// Per key the number of the commit that forgot it.
    keys: BTreeMap<KeyHash, u64>,
}

impl Forgotten {
    /// The salt of the hashes; `new` if no key was forgotten so far.
    pub(crate) fn salt_or<'a>(&'a self, new: &'a str) -> &'a str {
        if self.salt.is_empty() { new } else { &self.salt }
    }

    /// Whether no key is forgotten.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The number of the commit that forgot a key; `None` if it is not forgotten.
    pub(crate) fn commit_of(&self, key: &KeyHash) -> Option<u64> {
        self.keys.get(key).copied()
    }

    /// The keys, as changes are compared with them.
    pub(crate) fn keys(&self) -> ForgottenKeys {
        ForgottenKeys::new(&self.salt, self.keys.keys().copied())
    }

    /// Adds keys that a commit forgets.
    pub(crate) fn add(&mut self, salt: String, keys: Vec<KeyHash>, commit: u64) {
        self.salt = salt;
        self.keys.extend(keys.into_iter().map(|key| (key, commit)));
    }

    /// Removes keys that are not to be forgotten any more.
    pub(crate) fn remove(&mut self, keys: &[KeyHash]) {
        for key in keys {
            self.keys.remove(key);
        }
    }

    /// The records that give the same keys.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> {
        let mut of_commits: BTreeMap<u64, Vec<KeyHash>> = BTreeMap::new();
        for (key, commit) in &self.keys {
            of_commits.entry(*commit).or_default().push(*key);
        }
        let record = |(commit, keys)| Record::Forgotten { salt: self.salt.clone(), keys, commit };
        of_commits.into_iter().map(record)
    }
}
