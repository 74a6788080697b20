//! What a run does with the balance: [`crate::state::balance`].

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::{debug, warn};

use crate::curate::Curate;
use crate::curate::merge::Merged;
use crate::curate::merge::standing::Unsettled;
use crate::error::{Kind, Result};
use crate::state::balance::{BALANCE, Balance, NewBalance};

/// The number of files of the balance from which they are combined into one.
const BALANCE_FILES_MAX: usize = 8;

impl Curate<'_> {
    /// The winners whose standing is counted after their rows were read.
    pub(super) fn unsettled(&self, merged: Option<&Merged>) -> Unsettled {
        let has_several = self.folded.key_days > self.folded.keys && !self.changes.is_keyless();
        match merged {
            Some(merged) => Unsettled::Marked(Arc::clone(&merged.winners)),
            None if has_several => Unsettled::All,
            None => Unsettled::None,
        }
    }

    /// Whether the balance is kept: an aggregate reads it, and it is known of all versions so far.
    pub(super) fn keeps_balance(&self) -> bool {
        let is_known = self.earlier.is_none()
            || self.committed_versions.is_empty()
            || !self.committed_balance.is_empty();
        is_known && self.pipeline.aggregates_read(BALANCE)
    }

    /// Writes the balance, or its differences. Returns what becomes of its files, and the days on which
    /// it changed; `None` if it is not kept any more. It can be made again from the versions, so that
    /// nothing that is wrong with it stops a run.
    pub(super) async fn write_balance(
        &self,
        added: Option<Balance>,
    ) -> Result<(NewBalance, Option<BTreeSet<i32>>)> {
        let committed = &self.committed_balance;
        let mut new = NewBalance::default();
        let mut is_whole = self.earlier.is_none();
        let Some(mut added) = added else {
            // It would not be the balance of the new versions.
            new.replaces_all(committed);
            if !committed.is_empty() {
                debug!("no aggregate reads the balance: it is given up");
            }
            return Ok((new, None));
        };
        let days = added.days();
        if !is_whole && committed.len() >= BALANCE_FILES_MAX {
            is_whole = true;
            if let Err(error) = added.read(self.state, committed).await {
                if error.kind != Kind::Data {
                    return Err(error);
                }
                return Ok(self.without(&error.to_string()));
            }
        }
        if let Some(why) = added.fault(is_whole) {
            return Ok(self.without(why));
        }
        if is_whole {
            new.replaces_all(committed);
        } else if days.is_empty() && !committed.is_empty() {
            return Ok((new, Some(days)));
        }
        new.file = Some(added.write(self.versions, self.attempt).await?);
        debug!("the balance changes on {} days", days.len());
        Ok((new, Some(days)))
    }

    /// Gives the balance up; the next computing of the aggregates begins it anew.
    fn without(&self, why: &str) -> (NewBalance, Option<BTreeSet<i32>>) {
        warn!("the balance is computed anew with the aggregates: {why}");
        let mut new = NewBalance::default();
        new.replaces_all(&self.committed_balance);
        (new, None)
    }
}
