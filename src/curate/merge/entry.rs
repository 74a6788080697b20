//! One entry of a key, as it is read from sorted entries, and the order of changes among entries.

use std::cmp::Ordering;
use std::ops::Range;

use arrow::array::{
    Array, AsArray, BinaryArray, BooleanArray, Date32Array, Int8Array, Int32Array, Int64Array,
    RecordBatch, UInt32Array,
};
use arrow::compute::partition;

use crate::changes::file_order::RankedFiles;
use crate::curate::merge::entries::{REWRITTEN, WINNER, column};
use crate::error::Result;
use crate::state::versions::{ORDER_BYTES, ROW_HASH};

/// One entry of a key: a winner, or a version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The row of the entry.
    pub(super) at: usize,
    pub(super) day: Option<i32>,
    pub(super) origin: Origin,
    /// Whether its change leaves a row; false for a winner, of which it is not known before pass two, but where
    /// entries have hashes of rows.
    pub(super) has_row: bool,
}

/// What a change leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// No row.
    Nothing,
    /// A row that is not compared with others.
    Row,
    /// A row with this hash.
    Hashed(i64),
}

impl Left {
    /// Whether rows are compared, and equal.
    pub(super) fn is_equal_row(self, other: Self) -> bool {
        matches!(self, Left::Hashed(_)) && self == other
    }
}

/// Where an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Winner,
    /// A version that is only looked up: its file is unchanged.
    LookedUp,
    /// A version whose file is rewritten.
    Rewritten,
}

/// The order of the changes of entries.
pub(super) trait ChangeOrder {
    /// Compares two changes; equal only for the same change.
    fn compare(&self, a: usize, b: usize) -> Ordering;
    /// Whether two changes differ only in file or row.
    fn is_tie(&self, a: usize, b: usize) -> bool;

    fn is_later(&self, a: usize, b: usize) -> bool {
        self.compare(a, b).is_gt()
    }

    fn later(&self, a: Option<usize>, b: usize) -> Option<usize> {
        Some(a.filter(|a| !self.is_later(b, *a)).unwrap_or(b))
    }
}

/// The columns of entries that the order is compared by.
pub(super) struct Orders<'a> {
    pub(super) cdc: &'a BooleanArray,
    pub(super) time_us: &'a Int64Array,
    pub(super) time_ns: &'a Int32Array,
    pub(super) bytes: &'a BinaryArray,
    pub(super) file: &'a UInt32Array,
    pub(super) row: &'a Int64Array,
    pub(super) files: &'a RankedFiles,
}

impl Orders<'_> {
    /// The values of the order columns.
    pub(super) fn order(&self, at: usize) -> (bool, Option<i128>, Option<&[u8]>) {
        let ns = |at: usize| {
            i128::from(self.time_us.value(at)) * 1000 + i128::from(self.time_ns.value(at))
        };
        let time = self.time_us.is_valid(at).then(|| ns(at));
        let bytes = self.bytes.is_valid(at).then(|| self.bytes.value(at));
        // A full load without order columns: all of them are null, or no column was known yet.
        let bytes = bytes.filter(|bytes| bytes.iter().any(|byte| *byte != 0));
        (self.cdc.value(at), time, bytes)
    }

    /// The place of the change's file in the order of files, and its row.
    fn file_and_row(&self, at: usize) -> (Option<u32>, i64) {
        (self.files.rank(self.file.value(at)), self.row.value(at))
    }
}

impl ChangeOrder for Orders<'_> {
    fn compare(&self, a: usize, b: usize) -> Ordering {
        let key = |at: usize| (self.order(at), self.file_and_row(at));
        key(a).cmp(&key(b))
    }

    fn is_tie(&self, a: usize, b: usize) -> bool {
        self.order(a) == self.order(b) && self.file_and_row(a) != self.file_and_row(b)
    }
}

/// The columns of sorted entries.
pub(super) struct EntryColumns<'a> {
    pub(super) orders: Orders<'a>,
    origin: &'a Int8Array,
    deleted: &'a BooleanArray,
    days: &'a Date32Array,
    row_hashes: Option<&'a Int64Array>,
}

impl<'a> EntryColumns<'a> {
    /// Their names, but for that of the hashes of rows, which not all entries have.
    pub(super) const NAMES: [&'static str; 9] =
        ["cdc", "time_us", "time_ns", ORDER_BYTES, "file", "row", "origin", "deleted", "event_dt"];

    pub(super) fn of(rows: &'a RecordBatch, files: &'a RankedFiles) -> Result<Self> {
        Ok(EntryColumns {
            orders: Orders {
                cdc: column(rows, "cdc")?.as_boolean(),
                time_us: column(rows, "time_us")?.as_primitive(),
                time_ns: column(rows, "time_ns")?.as_primitive(),
                bytes: column(rows, ORDER_BYTES)?.as_binary(),
                file: column(rows, "file")?.as_primitive(),
                row: column(rows, "row")?.as_primitive(),
                files,
            },
            origin: column(rows, "origin")?.as_primitive(),
            deleted: column(rows, "deleted")?.as_boolean(),
            days: column(rows, "event_dt")?.as_primitive(),
            row_hashes: rows.column_by_name(ROW_HASH).map(AsArray::as_primitive),
        })
    }

    /// What the change in a row leaves; of a winner without a hash of its row, a row that is not compared.
    pub(super) fn left(&self, at: usize) -> Left {
        let hash = self.row_hashes.filter(|hashes| hashes.is_valid(at));
        match hash {
            _ if self.deleted.is_valid(at) && self.deleted.value(at) => Left::Nothing,
            Some(hashes) => Left::Hashed(hashes.value(at)),
            None => Left::Row,
        }
    }

    /// The entry in a row.
    pub(super) fn entry(&self, at: usize) -> Entry {
        Entry {
            at,
            day: self.days.is_valid(at).then(|| self.days.value(at)),
            origin: match self.origin.value(at) {
                WINNER => Origin::Winner,
                REWRITTEN => Origin::Rewritten,
                _ => Origin::LookedUp,
            },
            has_row: self.deleted.is_valid(at) && !self.deleted.value(at),
        }
    }
}

/// The rows of each key of sorted entries, which begin with `keys` key columns.
pub(super) fn of_keys(
    rows: &RecordBatch,
    keys: usize,
) -> Result<impl Iterator<Item = Range<usize>>> {
    Ok(partition(&rows.columns()[..keys])?.ranges().into_iter())
}

#[cfg(test)]
pub(super) mod places {
    use std::cmp::Ordering;

    use super::ChangeOrder;

    /// The place of each entry, and then of each floor, in the order of changes: for tests.
    pub(in crate::curate::merge) struct Places(pub Vec<i64>);

    impl ChangeOrder for Places {
        fn compare(&self, a: usize, b: usize) -> Ordering {
            self.0[a].cmp(&self.0[b])
        }

        fn is_tie(&self, _: usize, _: usize) -> bool {
            false
        }
    }
}
