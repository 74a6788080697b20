//! Counts the changes that go backwards: those whose order columns are before those of an older file.
//!
//! A log's sequence never goes back from file to file. A commit time goes back by little, where changes
//! are delivered again, and is close to the time of its file. A business date goes back by any time,
//! and a run that is ordered by it keeps the wrong rows.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use futures::TryStreamExt;

use super::{ChangeReader, Pass, numbered, schema_of};
use crate::changes::pass_one::PassOne;
use crate::changes::position::{order_keys, pack, packed_array};
use crate::changes::{ChangeColumn, Changes};
use crate::engine::tasks::{join_all, spawn};
use crate::error::Result;
use crate::parquet_io::fetch::AHEAD_UNITS_MAX;
use crate::types::times::instant_ns;

/// Changes that go backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backwards {
    /// Rows.
    pub(crate) rows: u64,
    /// Files with such rows.
    pub(crate) files: usize,
}

/// Counts the changes that go backwards. Only files that have some, by what pass one saw, are read.
///
/// # Errors
/// As reading changes.
pub(crate) async fn count_backwards(
    changes: &Arc<Changes>,
    pass_one: &PassOne,
    threads: usize,
) -> Result<Backwards> {
    let limits: Arc<HashMap<usize, Box<[u8]>>> = Arc::new(limits(changes, pass_one));
    if limits.is_empty() {
        return Ok(Backwards { rows: 0, files: 0 });
    }
    let columns = vec![ChangeColumn::Position];
    let schema = schema_of(changes, &numbered(columns.clone()));
    let reader = Arc::new(ChangeReader::new(Arc::clone(changes), Pass::Order, schema, columns));
    let tasks = changes.distribute(threads, None).into_iter().map(|units| {
        let (reader, limits) = (Arc::clone(&reader), Arc::clone(&limits));
        spawn(async move {
            let mut count = 0;
            for unit in units {
                let Some(limit) = limits.get(&unit.file) else {
                    continue;
                };
                let mut batches = Box::pin(ChangeReader::read(
                    Arc::clone(&reader),
                    std::iter::once(unit),
                    AHEAD_UNITS_MAX,
                ));
                while let Some(batch) = batches.try_next().await? {
                    let keys = order_keys(batch.column(0));
                    count += keys.filter(|key| key < limit).count() as u64;
                }
            }
            Ok(count)
        })
    });
    let rows = join_all(tasks).await?.into_iter().sum();
    Ok(Backwards { rows, files: limits.len() })
}

/// How far a commit time may go back before the time of its file.
const REDELIVERED: Duration = Duration::days(2);

/// The files with changes that go backwards, each with the greatest order of all older files; or, if
/// the order is a time, with the time before which it can hardly be the commit time.
fn limits(changes: &Changes, pass_one: &PassOne) -> HashMap<usize, Box<[u8]>> {
    let spans = pass_one.order_spans();
    let mut files: Vec<_> = spans
        .iter()
        .filter_map(|(file, span)| Some((changes.time_in_path(*file)?, *file, span)))
        .collect();
    files.sort();
    let mut limits = HashMap::new();
    let mut greatest: Option<&Box<[u8]>> = None;
    for same_time in files.chunk_by(|a, b| a.0 == b.0) {
        for (time, file, (least, _)) in same_time {
            let Some(greatest) = greatest.filter(|greatest| least < *greatest) else {
                continue;
            };
            let limit = match least_commit_time(changes, *time) {
                Some(earliest) => earliest.min(greatest.clone()),
                None => greatest.clone(),
            };
            if *least < limit {
                limits.insert(*file, limit);
            }
        }
        let of_these = same_time.iter().map(|(_, _, (_, last))| last).max();
        greatest = greatest.into_iter().chain(of_these).max();
    }
    limits
}

/// The order of the earliest commit time that a file of this time usually has; `None` if the order is
/// no time.
fn least_commit_time(changes: &Changes, time: DateTime<Utc>) -> Option<Box<[u8]>> {
    let least = time.checked_sub_signed(REDELIVERED)?;
    let position = pack(true, Some(instant_ns(least)), 0, 0).filter(|_| changes.is_packed())?;
    order_keys(&packed_array(vec![position])).next()
}
