//! The row that a key has in a table of the newest state whose rows keep the day on which they became as they are
//! (`keep = "latest"` of snapshots).
//!
//! It is the row without an end of the key's history ([`crate::curate::merge::intervals`]): that of the last change, with
//! the day of the first one of those that follow one another without a gap and leave equal rows. All of these have the
//! row, but for the day: so it can come from any of them that the run has read, or be copied from the table.
//!
//! Its partition is that of the last one of them, but for the day: of a table that was made from its own rows, versions
//! before have none ([`crate::curate::from_table`]).
//!
//! The order of snapshots is that of their times. So if no change of the row is of this run, its last one had the row before,
//! too, and the table has it.

use crate::curate::merge::entry::{ChangeOrder, Left};
use crate::curate::merge::intervals::{Copied, Ends, Moment, RowOf};
use crate::curate::merge::seen_floors::SeenFloors;

/// Computes what becomes of the row of a key, of all of its moments, in the order of time. `earlier` are the floors of before,
/// `floors` all of them; `left` says what a change leaves.
pub(super) fn add_current(
    moments: &[Moment],
    [earlier, floors]: &[SeenFloors<'_>; 2],
    order: &impl ChangeOrder,
    left: impl Fn(usize) -> Left,
    ends: &mut Ends,
) {
    ends.hold(moments, [earlier, floors], order, &left);
    ends.count_loads(moments, &left);
    let has_none = |number: &usize, held: usize| ends.held[held][*number] == Some(None);
    let numbers = || 0..moments.len();
    let then = numbers().rev().find(|number| has_none(number, 0)).and_then(|number| {
        let (version, has_row) = moments[number].before?;
        has_row.then_some((number, version))
    });
    let now = numbers().rev().find(|number| has_none(number, 1));
    let now = now.filter(|number| left(moments[*number].after) != Left::Nothing);
    ends.current_before += u64::from(then.is_some());
    ends.ended += u64::from(then.is_some() && now.is_none());

    let stays = then.zip(now).is_some_and(|((number, version), now)| {
        number == now && left(version).is_equal_row(left(moments[now].after))
    });
    // The change of this run whose row the table gets.
    let source = now.filter(|_| !stays).and_then(|now| {
        let is_of_row =
            |number: &usize| ends.first[1][*number] == Some(now) && moments[*number].is_new();
        let first = Some(now).filter(is_of_row);
        first.or_else(|| numbers().rev().find(is_of_row))
    });
    let others = numbers().filter(|number| moments[*number].is_new() && Some(*number) != source);
    ends.unseen.extend(others.map(|number| moments[number].after));
    if stays {
        return;
    }
    let last = |held: usize, first: usize| {
        numbers().rev().find(|number| ends.first[held][*number] == Some(first)).unwrap_or(first)
    };
    let was = then.map(|(number, day)| {
        let version = moments[last(0, number)].before.map_or(day, |(version, _)| version);
        RowOf { version, day, is_current: true }
    });
    let to = now.map(|now| RowOf {
        version: moments[last(1, now)].after,
        day: moments[now].after,
        is_current: true,
    });
    ends.removed.extend(was);
    let touched = then.map(|(number, _)| number).into_iter().chain(now);
    ends.touched.extend(touched.map(|number| moments[number].instant));
    let (Some(now), Some(to)) = (now, to) else { return };
    match (source, was) {
        (Some(source), _) if source == now => {}
        (Some(source), _) => ends.begins.push((moments[source].after, to.day)),
        (None, Some(from)) => ends.copied.push(Copied { from, to, end: None }),
        (None, None) => ends.is_lost = true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::merge::entry::places::Places;

    /// What is decided about a key, given by its moments: time, and the rows of the version before and of the winner, of
    /// which 0 is none. A number is that of a moment: a version has it, and a winner 10 more.
    fn decided(cases: &[(i64, Option<i64>, Option<i64>)]) -> Ends {
        let row = |at: usize| {
            let (_, version, winner) = cases[at % 10];
            if at < 10 { version } else { winner }
        };
        let left = |at: usize| match row(at).expect("a row") {
            0 => Left::Nothing,
            hash => Left::Hashed(hash),
        };
        let places =
            (0..20).map(|at| cases.get(at % 10).map_or(0, |case| case.0 * 2) + at as i64 / 10);
        let moments = cases.iter().enumerate().map(|(number, (instant, version, winner))| Moment {
            instant: *instant,
            before: version.map(|row| (number, row != 0)),
            after: winner.map_or(number, |_| number + 10),
        });
        let none = || SeenFloors::among(0..0, &[]);
        let (one, other) = (none(), none());
        let seen = [SeenFloors::beside(20, &one, &[]), SeenFloors::beside(20, &other, &[])];
        let mut ends = Ends::default();
        let moments: Vec<Moment> = moments.collect();
        add_current(&moments, &seen, &Places(places.collect()), left, &mut ends);
        assert!(!ends.is_lost);
        ends
    }

    #[test]
    fn each_case_of_a_row_has_its_decision() {
        let (a, b) = (Some(1), Some(2));
        let of = |cases: &[(i64, Option<i64>, Option<i64>)]| {
            let ends = decided(cases);
            let removed: Vec<usize> = ends.removed.iter().map(|row| row.day).collect();
            let copied: Vec<_> = ends.copied.iter().map(|one| (one.from.day, one.to.day)).collect();
            (removed, ends.unseen, ends.begins, copied)
        };
        let none = (vec![], vec![], vec![], vec![]);
        // The first row; one that does not change; another one.
        assert_eq!(of(&[(1, None, a)]), none);
        assert_eq!(of(&[(1, a, None), (2, None, a)]), (vec![], vec![11], vec![], vec![]));
        assert_eq!(of(&[(1, a, None), (2, None, b)]), (vec![0], vec![], vec![], vec![]));
        // Several new ones at once.
        assert_eq!(
            of(&[(1, None, a), (2, None, b), (3, None, b)]),
            (vec![], vec![10, 12], vec![], vec![])
        );
        // A late one that is equal, before the row; and another one between two.
        assert_eq!(of(&[(1, None, a), (2, a, None)]), (vec![1], vec![], vec![], vec![]));
        assert_eq!(
            of(&[(1, a, None), (2, None, b), (3, a, None)]),
            (vec![0], vec![11], vec![], vec![(0, 2)])
        );
        // A late one that is not the last.
        assert_eq!(of(&[(1, None, b), (2, a, None)]), (vec![], vec![10], vec![], vec![]));
        // Written over: by the row that was there before, by an equal one, and by none.
        assert_eq!(of(&[(1, a, None), (2, b, a)]), (vec![1], vec![], vec![(11, 0)], vec![]));
        assert_eq!(of(&[(1, a, None), (2, b, b)]), (vec![], vec![11], vec![], vec![]));
        assert_eq!(of(&[(1, a, None), (2, b, Some(0))]), (vec![1], vec![11], vec![], vec![]));
        // Between equal ones: the one after it has the row.
        assert_eq!(
            of(&[(1, a, None), (2, b, a), (3, a, None)]),
            (vec![2], vec![], vec![(11, 0)], vec![])
        );
    }

    #[test]
    fn a_row_has_the_partition_of_the_last_of_equal_changes_and_the_day_of_the_first() {
        let (a, b) = (Some(1), Some(2));
        let removed = decided(&[(1, a, None), (2, a, None), (3, None, b)]).removed;
        assert_eq!(removed, [RowOf { version: 1, day: 0, is_current: true }]);
        let copied = decided(&[(1, a, None), (2, None, b), (3, a, None), (4, a, None)]).copied;
        let from = RowOf { version: 3, day: 0, is_current: true };
        assert_eq!(copied, [Copied { from, to: RowOf { day: 2, ..from }, end: None }]);
    }
}
