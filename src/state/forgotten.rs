//! The keys that were forgotten by `glueless forget`: their hashes ([`crate::types::key_hash`]).
//!
//! The table is what a fold of all changes but those of forgotten keys gives, whenever the keys were forgotten: runs,
//! rebuilds and verifications leave these changes out when they read raw. The hashes are in the ledger, and stay there
//! when the tables are rebuilt.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::key_hash::{ForgottenKeys, KeyHash, KeyKind};

/// The most keys of a part.
const KEYS_PER_PART: usize = 1000;

/// The keys that were forgotten.
#[derive(Clone, Debug, Default)]
pub struct Forgotten {
    salt: String,
    /// The key columns: their names and kinds.
    columns: Vec<(String, KeyKind)>,
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
        ForgottenKeys::new(&self.salt, &self.columns, self.keys.keys().copied())
    }

    /// Adds keys that a commit forgets.
    pub(crate) fn add(&mut self, added: NewlyForgotten) {
        self.salt = added.salt;
        if self.keys.is_empty() {
            self.columns = added.columns;
        }
        self.keys.extend(added.keys.into_iter().map(|key| (key, added.commit)));
    }

    /// Removes keys that are not to be forgotten any more.
    pub(crate) fn remove(&mut self, keys: &[KeyHash]) {
        for key in keys {
            self.keys.remove(key);
        }
    }

    /// What gives the same keys when it is added, in parts none of which is large.
    pub(super) fn parts(&self) -> impl Iterator<Item = NewlyForgotten> {
        let mut of_commits: BTreeMap<u64, Vec<KeyHash>> = BTreeMap::new();
        for (key, commit) in &self.keys {
            of_commits.entry(*commit).or_default().push(*key);
        }
        of_commits.into_iter().flat_map(|(commit, keys)| {
            let (salt, columns) = (self.salt.clone(), self.columns.clone());
            NewlyForgotten { salt, columns, keys, commit }.parts()
        })
    }
}

/// Keys that a commit forgets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewlyForgotten {
    /// The salt of all hashes of the ledger.
    pub salt: String,
    /// The key columns: their names and kinds.
    pub columns: Vec<(String, KeyKind)>,
    /// The hashes of the keys.
    pub keys: Vec<KeyHash>,
    /// The number of the commit.
    pub commit: u64,
}

impl NewlyForgotten {
    /// The same in parts, none of which is large.
    pub(crate) fn parts(self) -> Vec<NewlyForgotten> {
        let part = |keys: &[KeyHash]| {
            let (salt, columns) = (self.salt.clone(), self.columns.clone());
            NewlyForgotten { salt, columns, keys: keys.to_vec(), commit: self.commit }
        };
        self.keys.chunks(KEYS_PER_PART).map(part).collect()
    }
}
