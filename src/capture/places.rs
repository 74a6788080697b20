//! The places of a new snapshot's rows in the order of changes.
//!
//! A record of a commit is longer than 8 bytes and ends before the snapshot's position, so that no commit has one
//! of the 7 positions before it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::capture::position::{Lsn, Position};
use crate::capture::rows::Head;
use crate::error::{Error, Result};

/// The positions before that of a snapshot at which no commit begins.
const FREE: u64 = 7;

/// The places of a table's rows in the order of changes.
#[derive(Debug)]
pub(super) struct Places {
    /// Where the snapshot stands in the log.
    snapshot: Lsn,
    /// When it was made, in microseconds since 1970.
    time: i64,
    /// The places that were given away; the first one is that of the truncation.
    given: AtomicU64,
}

impl Places {
    pub(super) fn new(snapshot: Lsn, time: i64) -> Self {
        Places { snapshot, time, given: AtomicU64::new(1) }
    }

    /// The truncation.
    ///
    /// # Errors
    /// Usage, when there were more rows than places.
    pub(super) fn truncation(&self) -> Result<Head> {
        if self.given.load(Ordering::Relaxed) > FREE << 32 {
            return Err(Error::usage("a table has more rows than a new snapshot can have")
                .hint("set `to` to a new folder: full loads have no limit"));
        }
        Ok(self.head("T", 0))
    }

    /// The next row.
    pub(super) fn row(&self) -> Head {
        self.head("I", self.given.fetch_add(1, Ordering::Relaxed))
    }

    fn head(&self, op: &'static str, number: u64) -> Head {
        let commit = self.snapshot.0.saturating_sub(FREE) + (number >> 32);
        let position = Position { commit, row: (number & 0xFFFF_FFFF) as u32 };
        Head { op, commit_time: self.time, position, xid: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_behind_the_truncation_and_before_what_follows_the_snapshot() {
        let places = Places::new(Lsn(0x100), 5);
        let truncation = places.truncation().expect("a place");
        assert_eq!((truncation.op, truncation.commit_time), ("T", 5));
        // The last commit before the snapshot begins at least 24 bytes before it.
        assert!(truncation.position > Position { commit: 0xE8, row: u32::MAX });
        let mut before = truncation.position;
        for given in [1, 2, u64::from(u32::MAX), 1 << 32, (FREE << 32) - 1] {
            places.given.store(given, Ordering::Relaxed);
            let row = places.row();
            assert!(row.op == "I" && row.position > before, "{given}");
            before = row.position;
        }
        assert!(before < Position { commit: 0x100, row: 0 });
        assert!(places.truncation().is_ok());
        places.row();
        assert!(places.truncation().is_err());
    }
}
