//! Which versions of a key have a row, and what has ended it: for questions.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;

use crate::config::Keep;
use crate::curate::merge::deletes::last_row;
use crate::curate::merge::entries::{Entries, Files, LOOKED_UP, column, hash};
use crate::curate::merge::entry::{ChangeOrder, EntryColumns};
use crate::curate::merge::floors::SortedFloors;
use crate::curate::merge::intervals::hold;
use crate::error::Result;
use crate::layout::FileOrder;
use crate::parquet_io::open::conform;
use crate::state::floors::Floor;
use crate::state::versions::VersionsLayout;

/// The row of a version.
#[derive(Clone, Debug, Default)]
pub(crate) struct VersionRow {
    /// When it ended, in microseconds since 1970, if it has ended and stays in the table.
    pub end: Option<i64>,
    /// What deleted its key, where deleted rows are kept; or what took the row out of the table.
    pub ended_by: Option<EndedBy>,
}

/// What ended a row.
#[derive(Clone, Debug)]
pub(crate) enum EndedBy {
    /// The delete of this version.
    Delete(usize),
    /// A truncate or a full load.
    Floor(Floor),
}

/// Per version of a key, given in the columns of its layout, its row, if it has or had one that no later change has
/// replaced.
///
/// # Errors
/// Data, when the floors are damaged.
pub(crate) fn rows_of_versions(
    versions: &RecordBatch,
    layout: &Arc<VersionsLayout>,
    floors: &[Floor],
    order: FileOrder,
    keep: Keep,
) -> Result<Vec<Option<VersionRow>>> {
    let count = versions.num_rows();
    let instants = layout.has_instants.then(|| format!("key_{}", layout.key_count()));
    let instants = instants.map(|name| column(versions, &name)).transpose()?;
    let instants = instants.map(|instants| instants.as_primitive::<Int64Type>().values());
    beside_floors(versions, layout, floors, order, |columns, sorted| {
        let mut rows = vec![None; count];
        let all = sorted.all(count);
        let floor_of = |at: usize| EndedBy::Floor(floors[sorted.given[at - count]].clone());
        // A row of a table whose rows do not end and stay.
        let plain = |at: usize| {
            let end = all.end_of(keep, (at, columns.entry(at).day), &columns.orders);
            VersionRow { end: None, ended_by: end.map(floor_of) }
        };
        match (keep, instants) {
            (Keep::LatestPerDay, _) => (0..count).for_each(|at| rows[at] = Some(plain(at))),
            (Keep::LatestAndDeleted, Some(instants)) => {
                let last = last_of_instants(instants, &columns.orders).into_iter();
                let last = last.map(|at| (instants[at], at));
                if let Some((at, deleted)) = last_row(last, all, &columns.orders) {
                    rows[at] = Some(VersionRow {
                        end: deleted.map(|(instant, _)| instant),
                        ended_by: deleted.map(|(_, by)| {
                            if by < count { EndedBy::Delete(by) } else { floor_of(by) }
                        }),
                    });
                }
            }
            (Keep::History, Some(instants)) => {
                let moments = last_of_instants(instants, &columns.orders);
                let changes = moments.iter().map(|at| (instants[*at], Some(*at)));
                let [_, floors] = sorted.seen(count);
                let mut held = Vec::new();
                hold(changes, &floors, &columns.orders, &mut held, |_, _| ());
                for (at, held) in moments.iter().zip(held) {
                    rows[*at] = held.map(|end| VersionRow { end, ended_by: None });
                }
            }
            _ => {
                let last = (0..count).fold(None, |last, at| columns.orders.later(last, at));
                last.into_iter().for_each(|at| rows[at] = Some(plain(at)));
            }
        }
        for (at, row) in rows.iter_mut().enumerate() {
            *row = row.take().filter(|_| columns.entry(at).has_row);
        }
        rows
    })
}

/// The last version of each instant, in the order of time.
fn last_of_instants(instants: &[i64], order: &impl ChangeOrder) -> Vec<usize> {
    let mut by_time: Vec<usize> = (0..instants.len()).collect();
    by_time.sort_by(|a, b| instants[*a].cmp(&instants[*b]).then_with(|| order.compare(*a, *b)));
    let moments = by_time.chunk_by(|a, b| instants[*a] == instants[*b]);
    moments.filter_map(|moment| moment.last().copied()).collect()
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
