//! Floors as a history sees them: by their commit times.

use crate::curate::merge::entry::ChangeOrder;
use crate::table::row_end::{Cause, RowEnd};

/// Floors by their commit times, without those that are before an older one in the order of changes: both orders
/// agree.
pub(super) struct SeenFloors<'a> {
    /// The row of the first floor of all.
    first: usize,
    /// Commit times in microseconds since 1970, and which of all they are, in the order of changes.
    floors: &'a [(i64, usize)],
    /// Which of all are full loads.
    loads: &'a [bool],
}

impl<'a> SeenFloors<'a> {
    /// Those among some floors, given in the order of changes; `instants` are the commit times of all.
    pub(super) fn among(
        floors: impl Iterator<Item = usize>,
        instants: &[Option<i64>],
    ) -> Vec<(i64, usize)> {
        let mut by_time: Vec<_> = floors.filter_map(|at| Some((instants[at]?, at))).collect();
        by_time.sort_unstable();
        let mut last = None;
        by_time.retain(|(_, at)| {
            let is_seen = last.is_none_or(|last| *at > last);
            last = last.max(Some(*at));
            is_seen
        });
        by_time
    }

    /// Those beside so many entries; `loads` says of all whether they are full loads.
    pub(super) fn beside(entries: usize, floors: &'a [(i64, usize)], loads: &'a [bool]) -> Self {
        SeenFloors { first: entries, floors, loads }
    }

    /// When floors end the row of a change, given by its row and its commit time: `None` if it is never seen, and
    /// no end if there is none.
    pub(super) fn end_of(
        &self,
        at: usize,
        instant: i64,
        order: &impl ChangeOrder,
    ) -> Option<Option<RowEnd>> {
        let is_before = |floor: &(i64, usize)| !order.is_later(self.first + floor.1, at);
        let by_time = self.floors.partition_point(|(time, _)| *time <= instant);
        if self.floors[..by_time].last().is_some_and(|last| !is_before(last)) {
            return None;
        }
        let later = &self.floors[by_time..];
        let first = later.partition_point(is_before);
        Some(later.get(first).map(|(time, _)| {
            // Of several of one time, the last is what left no row.
            let of_time = later[first..].iter().take_while(|(other, _)| other == time);
            let is_load = of_time.last().is_some_and(|(_, floor)| self.loads[*floor]);
            RowEnd { at: *time, by: if is_load { Cause::Load } else { Cause::Truncate } }
        }))
    }
}
