//! What pass one counts while it reads: one for each scan, so that the relation can be scanned again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{ArrayRef, Date32Array, Int64Array};
use chrono::{DateTime, Utc};

use crate::changes::position::OrderSpan;
use crate::raw::bad_rows::BadRows;

/// The floors of some truncates, of full loads, or of truncates by hand: their positions in the order of changes, and their
/// days.
#[derive(Clone, Debug)]
pub(crate) struct FoundFloors {
    /// The positions ([`crate::changes::position`]).
    pub positions: ArrayRef,
    /// The days of the commit times.
    pub days: Date32Array,
    /// The commit times, as [`ChangeColumn::Instant`](crate::changes::ChangeColumn::Instant).
    pub instants: Int64Array,
    /// What they are.
    pub of: FloorOf,
}

/// What a floor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloorOf {
    /// A truncate among the changes.
    Truncate,
    /// The begin of a full load that has a time.
    Load,
    /// A truncate that was set by hand, at this time.
    Hand(DateTime<Utc>),
}

/// The counts of one scan of all changes. They are complete when the scan has ended.
#[derive(Debug)]
pub(crate) struct PassOne {
    rows_outside: AtomicU64,
    rows_folded: AtomicU64,
    rows_ignored: AtomicU64,
    rows_forgotten: AtomicU64,
    key_moves: AtomicU64,
    /// In microseconds since 1970.
    newest_commit_time_us: AtomicI64,
    order_spans: Mutex<BTreeMap<usize, OrderSpan>>,
    bad_rows: Arc<BadRows>,
    truncates: AtomicU64,
    floors: Mutex<Vec<FoundFloors>>,
}

impl PassOne {
    /// Nothing counted yet but what was found before the scan: bad rows, how many of forgotten keys were left out, and
    /// floors that have a time but no row.
    pub(super) fn new(bad_rows: BadRows, forgotten: u64, floors: Vec<FoundFloors>) -> Self {
        PassOne {
            rows_outside: AtomicU64::new(0),
            rows_folded: AtomicU64::new(0),
            rows_ignored: AtomicU64::new(0),
            rows_forgotten: AtomicU64::new(forgotten),
            key_moves: AtomicU64::new(0),
            newest_commit_time_us: AtomicI64::new(i64::MIN),
            order_spans: Mutex::default(),
            bad_rows: Arc::new(bad_rows),
            truncates: AtomicU64::new(0),
            floors: Mutex::new(floors),
        }
    }

    /// How many rows lie outside of a window of rows.
    pub(crate) fn rows_outside(&self) -> u64 {
        self.rows_outside.load(Ordering::Relaxed)
    }

    /// How many changes were handed to the fold.
    pub(crate) fn rows_folded(&self) -> u64 {
        self.rows_folded.load(Ordering::Relaxed)
    }

    /// How many rows are no change.
    pub(crate) fn rows_ignored(&self) -> u64 {
        self.rows_ignored.load(Ordering::Relaxed)
    }

    /// How many rows are changes of forgotten keys.
    pub(crate) fn rows_forgotten(&self) -> u64 {
        self.rows_forgotten.load(Ordering::Relaxed)
    }

    /// How many rows are truncates.
    pub(crate) fn truncates(&self) -> u64 {
        self.truncates.load(Ordering::Relaxed)
    }

    /// The floors that these and full loads make.
    pub(crate) fn floors(&self) -> MutexGuard<'_, Vec<FoundFloors>> {
        self.floors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many updates moved a row to another key, each of which is one more change.
    pub(crate) fn key_moves(&self) -> u64 {
        self.key_moves.load(Ordering::Relaxed)
    }

    /// The newest commit time of the CDC changes that were handed to the fold.
    pub(crate) fn newest_commit_time(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.newest_commit_time_us.load(Ordering::Relaxed))
    }

    /// Per CDC file the span of the order of its changes; empty where file and row are the order.
    pub(crate) fn order_spans(&self) -> MutexGuard<'_, BTreeMap<usize, OrderSpan>> {
        self.order_spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Observes the order of some changes of a file.
    pub(super) fn observe_orders(&self, file: usize, (least, greatest): OrderSpan) {
        match self.order_spans().entry(file) {
            Entry::Vacant(first) => {
                first.insert((least, greatest));
            }
            Entry::Occupied(mut span) => {
                let (known_least, known_greatest) = span.get_mut();
                if least < *known_least {
                    *known_least = least;
                }
                if greatest > *known_greatest {
                    *known_greatest = greatest;
                }
            }
        }
    }

    /// The rows that cannot be folded.
    pub(crate) fn bad_rows(&self) -> &Arc<BadRows> {
        &self.bad_rows
    }

    /// Counts the rows of a batch, inside and outside of a window of rows.
    pub(super) fn count_rows(&self, inside: usize, outside: usize) {
        self.rows_folded.fetch_add(inside as u64, Ordering::Relaxed);
        self.rows_outside.fetch_add(outside as u64, Ordering::Relaxed);
    }

    /// Counts rows that are no change.
    pub(super) fn count_ignored(&self, rows: usize) {
        self.rows_ignored.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Counts rows that are changes of forgotten keys.
    pub(super) fn count_forgotten(&self, rows: usize) {
        self.rows_forgotten.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Observes truncates.
    pub(super) fn observe_floors(&self, found: FoundFloors) {
        self.truncates.fetch_add(found.days.len() as u64, Ordering::Relaxed);
        self.floors().push(found);
    }

    /// Counts key moves.
    pub(super) fn count_key_moves(&self, moves: usize) {
        self.key_moves.fetch_add(moves as u64, Ordering::Relaxed);
        self.rows_folded.fetch_add(moves as u64, Ordering::Relaxed);
    }

    /// Observes a commit time, in nanoseconds since 1970.
    pub(super) fn observe_commit_time(&self, ns: Option<i128>) {
        if let Some(us) = ns.and_then(|ns| i64::try_from(ns.div_euclid(1000)).ok()) {
            self.newest_commit_time_us.fetch_max(us, Ordering::Relaxed);
        }
    }
}
