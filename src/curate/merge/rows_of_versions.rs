//! Which versions of a key have a row, and what has ended it: for questions.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;

use crate::config::Keep;
use crate::curate::merge::deletes::last_row;
use crate::curate::merge::entries::{Entries, Files, LOOKED_UP, column, hash};
use crate::curate::merge::entry::{ChangeOrder, EntryColumns};
use crate::curate::merge::floors::SortedFloors;
use crate::curate::merge::intervals::{Held, hold};
use crate::error::Result;
use crate::layout::FileOrder;
use crate::parquet_io::open::conform;
use crate::state::floors::Floor;
use crate::state::versions::VersionsLayout;

/// Per version, given in the columns of its layout, the floor that has ended its row, if it is the last
/// of its key, or under `latest-per-day` in any case.
///
/// # Errors
/// Data, when the floors are damaged.
pub(crate) fn ends_of_versions(
    versions: &RecordBatch,
    layout: &Arc<VersionsLayout>,
    floors: &[Floor],
    order: FileOrder,
    keep: Keep,
) -> Result<Vec<Option<Floor>>> {
    let count = versions.num_rows();
    beside_floors(versions, layout, floors, order, |columns, sorted| {
        let all = sorted.all(count);
        let ends = (0..count).map(|at| {
            let end = all.end_of(keep, (at, columns.entry(at).day), &columns.orders)?;
            Some(floors[sorted.given[end - count]].clone())
        });
        ends.collect()
    })
}

/// Per version of a key, given in the columns of its layout, when its row ends, if it has one; for a table whose rows
/// end and stay.
///
/// # Errors
/// Data, when the floors are damaged.
pub(crate) fn seen_versions(
    versions: &RecordBatch,
    layout: &Arc<VersionsLayout>,
    floors: &[Floor],
    order: FileOrder,
    keep: Keep,
) -> Result<Vec<Held>> {
    let count = versions.num_rows();
    let instants = column(versions, &format!("key_{}", layout.key_count()))?;
    let instants = instants.as_primitive::<Int64Type>();
    beside_floors(versions, layout, floors, order, |columns, sorted| {
        let mut seen = vec![None; count];
        let mut by_time: Vec<usize> = (0..count).collect();
        by_time.sort_by(|a, b| {
            let times = instants.value(*a).cmp(&instants.value(*b));
            times.then_with(|| columns.orders.compare(*a, *b))
        });
        // The last one of each time.
        let moments = by_time.chunk_by(|a, b| instants.value(*a) == instants.value(*b));
        let moments: Vec<usize> = moments.filter_map(|moment| moment.last().copied()).collect();
        if keep == Keep::LatestAndDeleted {
            let moments = moments.into_iter().map(|at| (instants.value(at), at));
            if let Some((at, end)) = last_row(moments, sorted.all(count), &columns.orders) {
                seen[at] = columns.entry(at).has_row.then_some(end);
            }
            return seen;
        }
        let changes = moments.iter().map(|at| (instants.value(*at), Some(*at)));
        let [_, floors] = sorted.seen(count);
        let mut held = Vec::new();
        hold(changes, &floors, &columns.orders, &mut held, |_, _| ());
        for (at, held) in moments.iter().zip(held) {
            seen[*at] = held.filter(|_| columns.entry(*at).has_row);
        }
        seen
    })
}

/// Reads versions, given in the columns of their layout, beside floors.
fn beside_floors<T>(
    versions: &RecordBatch,
    layout: &Arc<VersionsLayout>,
    floors: &[Floor],
    order: FileOrder,
    read: impl FnOnce(&EntryColumns<'_>, &SortedFloors) -> T,
) -> Result<T> {
    let floors = Floor::of_earlier(floors.iter().cloned());
    let entries = Entries::new(layout, versions.num_rows() as u64)?;
    let files = Files::of_earlier(order).with_floors(&floors);
    let versions = conform(versions, &layout.schema())?;
    let numbers = files.of_versions(&versions)?;
    let ranked = files.ranked();
    let sorted = SortedFloors::new(&floors, &entries, &files, &ranked)?;
    let hashes = hash(&versions.columns()[..layout.key_count()])?;
    let rows = entries.of_versions(&versions, &hashes, LOOKED_UP, &numbers)?;
    let rows = rows.project(&(0..rows.num_columns() - 1).collect::<Vec<_>>())?;
    let beside = sorted.beside(&rows)?;
    Ok(read(&EntryColumns::of(&beside, &ranked)?, &sorted))
}
