//! Which keys are deleted, and since when, in a table that keeps the rows of deleted keys (`keep_deleted`).
//!
//! The row of a key is that of its last insert or update, in the order of changes, whether it is deleted or not. It is
//! deleted if a delete or a floor is later, and was deleted at the least commit time of these. Both are computed
//! from the versions, one per key and day of inserts and updates and one per key and commit time of deletes, and the
//! floors: so they do not depend on which came first. A change that `curated.sql` filters out leaves no row.

use crate::changes::BEFORE_ALL;
use crate::curate::merge::entry::ChangeOrder;
use crate::curate::merge::floors::Floors;
use crate::curate::merge::intervals::{Ends, Moment, RowOf};
use crate::table::row_end::{Cause, RowEnd};

/// When a key was deleted, in microseconds since 1970, and the row of the delete or floor.
pub(super) type Deleted = (i64, usize);

/// The last insert or update of a key, and when the key was deleted after it, if it was; `None` if there is no insert or
/// update. `last` are the last changes of each instant, in the order of time; that of inserts and updates is the first.
pub(super) fn last_row(
    mut last: impl Iterator<Item = (i64, usize)>,
    floors: Floors<'_>,
    order: &impl ChangeOrder,
) -> Option<(usize, Option<Deleted>)> {
    let (_, row) = last.next().filter(|(instant, _)| *instant == BEFORE_ALL)?;
    // If any delete of a time is later, the last one of that time is.
    let deletes = last.filter(|(_, delete)| order.is_later(*delete, row));
    Some((row, deletes.chain(floors.least_after(row, order)).min_by_key(|(instant, _)| *instant)))
}

/// Computes what becomes of the row of a key. `earlier` are the floors of before, `floors` all of them.
pub(super) fn add_deletes(
    moments: &[Moment],
    (earlier, floors): (Floors<'_>, Floors<'_>),
    order: &impl ChangeOrder,
    ends: &mut Ends,
) {
    let versions = moments.iter().filter_map(|one| Some((one.instant, one.before?.0)));
    let then = last_row(versions, earlier, order);
    let changes = moments.iter().map(|one| (one.instant, one.after));
    let Some((row, deleted)) = last_row(changes, floors, order) else { return };
    let [of_rows, of_deletes @ ..] = moments else { return };
    let ties = of_deletes.iter().filter(|delete| order.is_tie(delete.after, row));
    ends.tied.extend(ties.clone().map(|delete| (row, delete.after)));
    ends.tied_keys += u64::from(of_rows.is_new() && ties.clone().any(Moment::is_new));

    // The table does not say what has deleted a key: any cause will do.
    let end_at = |(at, _): Deleted| RowEnd { at, by: Cause::Delete };
    let end = deleted.map(end_at);
    let before = then.zip(of_rows.before).filter(|(_, (_, has_row))| *has_row);
    let before = before.map(|((version, was), _)| (version, was.map(end_at)));
    let was_current = before.is_some_and(|(_, was)| was.is_none());
    match before {
        Some((version, _)) if of_rows.is_new() => {
            ends.removed.push(RowOf::of(version, was_current))
        }
        Some((version, was)) if was != end => ends.moved.extend(end.map(|end| (version, end))),
        _ => {}
    }
    if of_rows.is_new() {
        ends.winners.extend(end.map(|end| (row, end)));
    }
    if of_rows.is_new() || before.is_some_and(|(_, was)| was != end) {
        let both = end.into_iter().chain(before.and_then(|(_, was)| was));
        ends.touched.extend(both.map(|end| end.at));
    }
    ends.current_before += u64::from(was_current);
    ends.ended += u64::from(was_current && deleted.is_some_and(|(_, by)| by >= floors.first));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::merge::entry::places::Places;
    use crate::curate::merge::floors::FloorIndex;

    /// The place of the last row and when it was deleted. Given are the place of the last insert or update, times and
    /// places of deletes, and those of floors, in the order of changes.
    fn last(
        row: Option<i64>,
        deletes: &[(i64, i64)],
        floors: &[(i64, i64)],
    ) -> Option<(i64, Option<i64>)> {
        let changes: Vec<(i64, i64)> =
            row.map(|row| (BEFORE_ALL, row)).into_iter().chain(deletes.iter().copied()).collect();
        let order = Places(changes.iter().chain(floors).map(|(_, place)| *place).collect());
        let days = vec![None; floors.len()];
        let instants: Vec<Option<i64>> = floors.iter().map(|(time, _)| Some(*time)).collect();
        let index = FloorIndex::new((0..floors.len()).collect(), &days, &instants);
        let by_hand = vec![false; floors.len()];
        let first = changes.len();
        let floors = Floors { first, days: &days, by_hand: &by_hand, index: &index };
        let entries = changes.iter().enumerate().map(|(at, (time, _))| (*time, at));
        let found = last_row(entries, floors, &order);
        found.map(|(at, deleted)| (order.0[at], deleted.map(|(time, _)| time)))
    }

    #[test]
    fn a_key_is_deleted_at_the_least_time_of_a_delete_or_floor_after_its_last_row() {
        assert_eq!(last(None, &[(5, 1)], &[(7, 2)]), None);
        assert_eq!(last(Some(10), &[], &[]), Some((10, None)));
        assert_eq!(last(Some(10), &[(5, 9)], &[(4, 8)]), Some((10, None)));
        assert_eq!(last(Some(10), &[(5, 9), (6, 11), (7, 12)], &[]), Some((10, Some(6))));
        assert_eq!(last(Some(10), &[(7, 12)], &[(4, 8), (6, 11), (8, 13)]), Some((10, Some(6))));
        assert_eq!(last(Some(10), &[(7, 12)], &[(8, 13)]), Some((10, Some(7))));
        // The clock can go back.
        assert_eq!(last(Some(10), &[(3, 12), (9, 11)], &[]), Some((10, Some(3))));
        assert_eq!(last(Some(10), &[], &[(9, 11), (3, 12), (5, 13)]), Some((10, Some(3))));
        assert_eq!(last(Some(10), &[], &[(3, 9), (9, 11), (5, 13)]), Some((10, Some(5))));
    }
}
