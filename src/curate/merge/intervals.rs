//! When the rows of a history hold (`keep = "history"`).
//!
//! At any time *t*, a key has the row of its last change, in the order of changes, among those with a commit time up to
//! *t*; none if that is a delete or a floor. So a row begins at its commit time and ends at the next one of a change or
//! floor that is later in the order, too. Where both orders agree, as they mostly do, that is the next change of the
//! key; a change that is before an older one in the order of changes is never seen, and has no row.
//!
//! A change that leaves the row as it was, in all columns but the day, makes none of its own: of changes that follow one
//! another without a gap and leave equal rows, the first has the row, which holds as long as all of theirs.
//!
//! All of this is computed from the versions, one per key and commit time, and the floors. A change that comes late
//! goes in between: the row before it ends earlier from then on, and is written again. If it goes between changes that
//! leave equal rows, the first one after it gets a row, which is copied from the one that was for both.

use std::ops::Range;

use arrow::array::Int64Array;

use crate::curate::merge::entry::{ChangeOrder, Entry, Left, Origin};
use crate::curate::merge::seen_floors::SeenFloors;
use crate::table::row_end::{Cause, RowEnd};

/// What a key has at one instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The time, in microseconds since 1970.
    pub(super) instant: i64,
    /// The last version of earlier runs, if there is one, and whether it has a row.
    pub(super) before: Option<(usize, bool)>,
    /// The last change, with those of this run.
    pub(super) after: usize,
}

/// What becomes of the rows of changes.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// When the rows of the key's changes held before, and hold now.
    pub(super) held: [Vec<Held>; 2],
    /// The number of the moment whose row was that of each change, and is it now.
    pub(super) first: [Vec<Option<usize>>; 2],
    /// Winners, and the ends of their rows.
    pub(super) winners: Vec<(usize, RowEnd)>,
    /// Winners of which the table gets no row.
    pub(super) unseen: Vec<usize>,
    /// Winners whose rows have the day of another change, and which.
    pub(super) begins: Vec<(usize, usize)>,
    /// Versions whose rows get another end, and which.
    pub(super) moved: Vec<(usize, RowEnd)>,
    /// Rows that are removed.
    pub(super) removed: Vec<RowOf>,
    /// Rows that are copied.
    pub(super) copied: Vec<Copied>,
    /// When rows that come, go or change begin and end, or did, if that is a time.
    pub(super) touched: Vec<i64>,
    /// Changes that only file or row decided about, of different times.
    pub(super) tied: Vec<(usize, usize)>,
    /// The number of keys for which only file or row decided whether the last insert or update, or a delete, is the
    /// later one, both of this run.
    pub(super) tied_keys: u64,
    /// Whether rows of a key overlap, which must not be.
    pub(super) overlap: bool,
    /// Whether there is a row that neither the run nor the table has, which must not be.
    pub(super) is_lost: bool,
    /// What is counted of new full loads.
    pub(super) loads: LoadCounts,
    /// The number of keys that had a row without an end, and of those that have none now.
    pub(super) current_before: u64,
    pub(super) ended: u64,
}

/// A row of the table, given by versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowOf {
    /// The version that has its key and its partition columns, but for the day.
    pub(super) version: usize,
    /// The one that has its day.
    pub(super) day: usize,
    /// Whether the row has no end.
    pub(super) is_current: bool,
}

impl RowOf {
    /// The row of a version.
    pub(super) fn of(version: usize, is_current: bool) -> Self {
        RowOf { version, day: version, is_current }
    }
}

/// A row that is copied from another, with other times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    /// The row that is copied.
    pub(super) from: RowOf,
    /// The copy.
    pub(super) to: RowOf,
    /// The end of the copy, if it has one.
    pub(super) end: Option<RowEnd>,
}

/// What is counted of new full loads, given by their times: the rows that there were when they came, and those that they
/// have ended and lack.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadCounts {
    /// The times, ascending.
    times: Vec<i64>,
    /// Of each, how many rows more there were than at the one before.
    more: Vec<i64>,
    lacks: Vec<u64>,
}

impl LoadCounts {
    /// Nothing is counted of these yet.
    pub(super) fn new(times: Vec<i64>) -> Self {
        let (more, lacks) = (vec![0; times.len() + 1], vec![0; times.len()]);
        LoadCounts { times, more, lacks }
    }

    /// Counts a row from when it begins up to its end.
    fn count(&mut self, begin: i64, end: Option<RowEnd>) {
        let up_to = |time: i64| self.times.partition_point(|load| *load <= time);
        let (from, until) = (up_to(begin), end.map_or(self.times.len(), |end| up_to(end.at)));
        if from >= until {
            return;
        }
        self.more[from] += 1;
        self.more[until] -= 1;
        let is_last = end.is_some_and(|end| end.at == self.times[until - 1]);
        if is_last && end.is_some_and(|end| end.by == Cause::Load) {
            self.lacks[until - 1] += 1;
        }
    }

    pub(super) fn add(&mut self, other: &LoadCounts) {
        if self.times.is_empty() {
            *self = other.clone();
            return;
        }
        self.more.iter_mut().zip(&other.more).for_each(|(sum, more)| *sum += more);
        self.lacks.iter_mut().zip(&other.lacks).for_each(|(sum, lacks)| *sum += lacks);
    }

    /// Of each full load its time, the rows that there were, and those that it has ended and lacks.
    pub(crate) fn of_loads(&self) -> impl Iterator<Item = (i64, u64, u64)> {
        let rows = self.more.iter().scan(0, |rows, more| {
            *rows += more;
            u64::try_from(*rows).ok()
        });
        self.times
            .iter()
            .zip(rows)
            .zip(&self.lacks)
            .map(|((time, rows), lacks)| (*time, rows, *lacks))
    }
}

/// When a row holds: up to its end, if it has one; `None` if it is never seen.
pub(crate) type Held = Option<Option<RowEnd>>;

impl Moment {
    /// Whether its last change is one of this run.
    pub(super) fn is_new(&self) -> bool {
        self.before.is_none_or(|(version, _)| version != self.after)
    }

    /// The moment of some entries, all of one time; `latest` is the winner that is the last of them.
    pub(super) fn of(
        instant: i64,
        entries: &[Entry],
        latest: Option<usize>,
        order: &impl ChangeOrder,
    ) -> Option<Self> {
        let mut before: Option<Entry> = None;
        for version in entries.iter().filter(|entry| entry.origin != Origin::Winner) {
            if before.is_none_or(|before| order.is_later(version.at, before.at)) {
                before = Some(*version);
            }
        }
        let after = latest.or(before.map(|before| before.at))?;
        Some(Moment { instant, before: before.map(|before| (before.at, before.has_row)), after })
    }
}

/// The rows of a key's sorted entries, where rows end those of each instant.
pub(super) fn of_instants(
    of_key: Range<usize>,
    instants: Option<&Int64Array>,
) -> impl Iterator<Item = Range<usize>> {
    let mut at = of_key.start;
    std::iter::from_fn(move || {
        let first = at;
        let is_of =
            |at: usize| instants.is_none_or(|instants| instants.value(at) == instants.value(first));
        at += (at..of_key.end).take_while(|at| is_of(*at)).count();
        (at > first).then_some(first..at)
    })
}

/// Computes when the rows of changes hold, given in the order of time; there is nothing for those without a change. `left`
/// says what a change leaves. `tied` gets changes that only file or row put before or after the last one so far.
///
/// Where a change and a floor end a row at one time, it is the change, if that is seen.
pub(super) fn hold(
    changes: impl Iterator<Item = (i64, Option<usize>)>,
    left: impl Fn(usize) -> Left,
    floors: &SeenFloors<'_>,
    order: &impl ChangeOrder,
    all: &mut Vec<Held>,
    mut tied: impl FnMut(usize, usize),
) {
    all.clear();
    // The last change so far in the order of changes, and its number.
    let mut last: Option<(usize, usize)> = None;
    for (number, (instant, change)) in changes.enumerate() {
        all.push(None);
        let Some(change) = change else { continue };
        if let Some((last, _)) = last {
            if order.is_tie(change, last) {
                tied(change, last);
            }
            if !order.is_later(change, last) {
                continue;
            }
        }
        all[number] = floors.end_of(change, instant, order);
        let is_seen = all[number].is_some();
        if let Some((_, before)) = last
            && let Some(end) = &mut all[before]
            && end.is_none_or(|end| instant < end.at || (instant == end.at && is_seen))
        {
            let by = if left(change) == Left::Nothing { Cause::Delete } else { Cause::Update };
            *end = Some(RowEnd { at: instant, by });
        }
        last = Some((change, number));
    }
}

/// Joins rows that follow one another without a gap and are equal: the first holds as long as all, and the others are
/// not seen. Given are the changes and when they hold, as by [`hold`], and what a change leaves. `first` gets the number
/// of the change whose row is that of each, if it has one.
pub(super) fn join(
    changes: impl Iterator<Item = (i64, Option<usize>)>,
    left: impl Fn(usize) -> Left,
    held: &mut [Held],
    first: &mut Vec<Option<usize>>,
) {
    first.clear();
    // The last row so far: the number of its first change, what that leaves, and when it ends.
    let mut last: Option<(usize, Left, Option<RowEnd>)> = None;
    for (number, (instant, change)) in changes.enumerate() {
        first.push(None);
        let (Some(change), Some(end)) = (change, held[number]) else { continue };
        let row = left(change);
        let joined = last.filter(|(_, of, until)| {
            until.is_some_and(|until| until.at == instant) && row.is_equal_row(*of)
        });
        let of = joined.map_or(number, |(of, ..)| of);
        if joined.is_some() {
            held[of] = Some(end);
            held[number] = None;
        }
        first[number] = Some(of);
        last = Some((of, row, end));
    }
}

/// Computes what becomes of the rows of a key, of all of its moments, in the order of time. `earlier` are the floors
/// of before, `floors` all of them; `left` says what a change leaves, and `is_same` whether two with equal hashes
/// leave the same row. Where `moves` holds, a row that ends moves to another
/// partition; where `says_cause` does, the table says what has ended a row.
pub(super) fn add_ends(
    moments: &[Moment],
    [earlier, floors]: &[SeenFloors<'_>; 2],
    order: &impl ChangeOrder,
    (left, is_same): (impl Fn(usize) -> Left, impl Fn(usize, usize) -> bool),
    (moves, says_cause): (bool, bool),
    ends: &mut Ends,
) {
    ends.hold(moments, [earlier, floors], order, &left);
    ends.count_loads(moments, &left);
    if !says_cause {
        // Ends of one time are equal then.
        let both = ends.held.iter_mut().flatten().flatten().flatten();
        both.for_each(|end| end.by = Cause::Update);
    }
    let (mut was_current, mut is_current) = (false, false);
    for (number, Moment { before, after, .. }) in moments.iter().enumerate() {
        let row = left(*after);
        let is_same = before.is_some_and(|(version, _)| {
            left(version).is_equal_row(row) && is_same(version, *after)
        });
        let (was, is) = ends.add(number, moments, (row != Left::Nothing, is_same), moves);
        was_current |= was;
        is_current |= is;
    }
    ends.current_before += u64::from(was_current);
    ends.ended += u64::from(was_current && !is_current);
}

/// Whether a row begins before the one before it has ended.
fn overlap(moments: &[Moment], held: &[Held]) -> bool {
    let mut free_from = Some(i64::MIN);
    moments.iter().zip(held).any(|(moment, held)| {
        let Some(end) = held else { return false };
        let before = std::mem::replace(&mut free_from, end.map(|end| end.at));
        before.is_none_or(|from| moment.instant < from)
    })
}

impl Ends {
    /// Computes when the rows of a key's moments held, and hold now.
    pub(super) fn hold(
        &mut self,
        moments: &[Moment],
        [earlier, floors]: [&SeenFloors<'_>; 2],
        order: &impl ChangeOrder,
        left: &impl Fn(usize) -> Left,
    ) {
        let Ends { held: [then, now], first: [before, first], tied, .. } = self;
        let changes = || moments.iter().map(|one| (one.instant, Some(one.after)));
        hold(changes(), left, floors, order, now, |one, other| tied.push((one, other)));
        join(changes(), left, now, first);
        let versions =
            || moments.iter().map(|one| (one.instant, one.before.map(|before| before.0)));
        hold(versions(), left, earlier, order, then, |_, _| ());
        join(versions(), left, then, before);
        self.overlap |= overlap(moments, &self.held[1]);
    }

    /// Counts the rows of a key's moments at new full loads.
    pub(super) fn count_loads(&mut self, moments: &[Moment], left: &impl Fn(usize) -> Left) {
        if self.loads.times.is_empty() {
            return;
        }
        let rows = moments.iter().zip(&self.held[1]);
        let rows = rows.filter(|(moment, _)| left(moment.after) != Left::Nothing);
        let rows = rows.filter_map(|(moment, held)| Some((moment.instant, (*held)?)));
        rows.for_each(|(begin, end)| self.loads.count(begin, end));
    }

    /// Adds what becomes of the row of a moment, given by its number; `leaves_row` says whether its change leaves one, or
    /// may, and `is_same` whether it is that of the version before, also if the change is another. Returns whether it had a row without an end, and has one now.
    fn add(
        &mut self,
        number: usize,
        moments: &[Moment],
        (leaves_row, is_same): (bool, bool),
        moves: bool,
    ) -> (bool, bool) {
        let (then, now) = (self.held[0][number], self.held[1][number]);
        let Moment { instant, before, after } = moments[number];
        let is_new = moments[number].is_new();
        if then != now || (is_new && now.is_some() && !is_same) {
            self.touched.push(instant);
            self.touched.extend([then, now].into_iter().flatten().flatten().map(|end| end.at));
        }
        let had_row = then.zip(before).filter(|(_, (_, has_row))| *has_row);
        let is_new = if is_new && is_same && had_row.is_some() && now.is_some() {
            self.unseen.push(after);
            false
        } else {
            is_new
        };
        match now {
            Some(end) if is_new => self.winners.extend(end.map(|end| (after, end))),
            None if is_new => self.unseen.push(after),
            _ => {}
        }
        match (had_row, now.filter(|_| !is_new && leaves_row)) {
            (None, None) => {}
            (Some((was, _)), Some(end)) if was == end => {}
            (Some((was, (version, _))), Some(Some(end))) if was.is_some() || !moves => {
                self.moved.push((version, end));
            }
            (Some((was, (version, _))), end) => {
                let from = RowOf::of(version, was.is_none());
                self.removed.push(from);
                // It has no end any more, or moves because it ends.
                let to = |end: Option<RowEnd>| RowOf::of(version, end.is_none());
                self.copied.extend(end.map(|end| Copied { from, to: to(end), end }));
            }
            (None, Some(end)) => {
                let first = self.first[0][number]
                    .and_then(|first| moments[first].before.zip(self.held[0][first]));
                let copied = first.map(|((version, _), was)| {
                    let from = RowOf::of(version, was.is_none());
                    Copied { from, to: RowOf::of(after, end.is_none()), end }
                });
                self.copied.extend(copied);
            }
        }
        let was_current = had_row.is_some_and(|(was, _)| was.is_none());
        (was_current, now == Some(None) && leaves_row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::merge::entry::places::Places;

    /// When changes hold, given by time, place and whether they leave no row, with floors, given by time, place and whether
    /// they are full loads.
    fn held_with_causes(changes: &[(i64, i64, bool)], floors: &[(i64, i64, bool)]) -> Vec<Held> {
        let mut floors = floors.to_vec();
        floors.sort_by_key(|(_, place, _)| *place);
        let places = changes.iter().chain(&floors).map(|(_, place, _)| *place);
        let order = Places(places.collect());
        let times: Vec<Option<i64>> = floors.iter().map(|(time, ..)| Some(*time)).collect();
        let loads: Vec<bool> = floors.iter().map(|(_, _, is_load)| *is_load).collect();
        let seen = SeenFloors::among(0..floors.len(), &times);
        let seen = SeenFloors::beside(changes.len(), &seen, &loads);
        let left = |at: usize| if changes[at].2 { Left::Nothing } else { Left::Row };
        let moments = changes.iter().enumerate().map(|(at, (time, ..))| (*time, Some(at)));
        let mut all = Vec::new();
        hold(moments, left, &seen, &order, &mut all, |_, _| ());
        all
    }

    /// When changes hold that all leave rows, given by time and place, with floors, given the same way.
    fn held_of(changes: &[(i64, i64)], floors: &[(i64, i64)]) -> Vec<Option<Option<i64>>> {
        let of = |given: &[(i64, i64)]| given.iter().map(|(t, p)| (*t, *p, false)).collect();
        let (changes, floors): (Vec<_>, Vec<_>) = (of(changes), of(floors));
        let held = held_with_causes(&changes, &floors).into_iter();
        held.map(|held| held.map(|end| end.map(|end| end.at))).collect()
    }

    #[test]
    fn a_row_says_what_has_ended_it() {
        let first = |changes: &[(i64, i64, bool)], floors: &[(i64, i64, bool)]| {
            held_with_causes(changes, floors)[0].flatten().map(|end| (end.at, end.by))
        };
        let insert = (1, 10, false);
        assert_eq!(first(&[insert], &[]), None);
        assert_eq!(first(&[insert, (5, 20, false)], &[]), Some((5, Cause::Update)));
        assert_eq!(first(&[insert, (5, 20, true)], &[]), Some((5, Cause::Delete)));
        assert_eq!(first(&[insert], &[(5, 15, false)]), Some((5, Cause::Truncate)));
        assert_eq!(first(&[insert], &[(5, 15, true)]), Some((5, Cause::Load)));
        // What comes first.
        let both = [insert, (5, 20, true)];
        assert_eq!(first(&both, &[(4, 15, true)]), Some((4, Cause::Load)));
        assert_eq!(first(&both, &[(6, 25, true)]), Some((5, Cause::Delete)));
        // Of two floors of one time, the last.
        let two = [(5, 15, true), (5, 16, false)];
        assert_eq!(first(&[insert], &two), Some((5, Cause::Truncate)));
        // At one time: the row of a load ends the one before, and a delete that a truncate follows is never seen.
        assert_eq!(first(&[insert, (5, 20, false)], &[(5, 15, true)]), Some((5, Cause::Update)));
        assert_eq!(first(&both, &[(5, 25, false)]), Some((5, Cause::Truncate)));
    }

    #[test]
    fn rows_are_counted_at_full_loads_that_may_lack_them() {
        let end = |at, by| Some(RowEnd { at, by });
        let mut counts = LoadCounts::new(vec![10, 20, 30]);
        let mut other = counts.clone();
        counts.count(i64::MIN, None);
        counts.count(5, end(20, Cause::Load));
        counts.count(10, end(30, Cause::Update));
        other.count(20, end(25, Cause::Load));
        other.count(15, end(30, Cause::Load));
        other.count(31, None);
        let mut all = LoadCounts::default();
        all.add(&counts);
        all.add(&other);
        assert_eq!(all.of_loads().collect::<Vec<_>>(), [(10, 2, 0), (20, 4, 1), (30, 3, 1)]);
        assert_eq!(LoadCounts::default().of_loads().count(), 0);
    }

    #[test]
    fn rows_that_overlap_are_found() {
        let moment = |instant| Moment { instant, before: None, after: 0 };
        let moments: Vec<Moment> = [1, 5, 9].map(moment).to_vec();
        let end = |end: Option<i64>| end.map(|at| RowEnd { at, by: Cause::Update });
        let of =
            |held: [Option<Option<i64>>; 3]| overlap(&moments, &held.map(|held| held.map(end)));
        assert!(!of([Some(Some(5)), Some(Some(7)), Some(None)]));
        assert!(!of([Some(Some(9)), None, Some(None)]));
        assert!(!of([None, None, None]));
        assert!(of([Some(Some(6)), Some(Some(9)), Some(None)]));
        assert!(of([Some(None), None, Some(None)]));
    }

    #[test]
    fn a_row_holds_up_to_the_next_change_or_floor_that_is_later_in_both_orders() {
        let ends = |ends: &[i64]| -> Vec<_> { ends.iter().map(|end| Some(Some(*end))).collect() };
        let open = vec![Some(None)];
        assert_eq!(held_of(&[(1, 1), (5, 2), (9, 3)], &[]), [ends(&[5, 9]), open.clone()].concat());
        // What is before an older change in the order of changes is never seen.
        assert_eq!(
            held_of(&[(1, 1), (5, 7), (6, 2), (9, 8)], &[]),
            [ends(&[5, 9]), vec![None], open.clone()].concat()
        );
        // A floor between two changes; one after the last; one at the time of a change, before and after it.
        assert_eq!(held_of(&[(1, 10), (9, 30)], &[(4, 20)]), [ends(&[4]), open.clone()].concat());
        assert_eq!(held_of(&[(1, 10)], &[(4, 20), (3, 15)]), ends(&[3]));
        assert_eq!(held_of(&[(1, 10)], &[(1, 9)]), open);
        assert_eq!(held_of(&[(1, 10)], &[(1, 11)]), [None]);
        // A floor that is before an older change in the order of changes ends nothing of it.
        assert_eq!(held_of(&[(1, 10)], &[(5, 3)]), open);
        // A floor that is before an older one in the order of changes.
        assert_eq!(
            held_of(&[(1, 10), (6, 25)], &[(3, 30), (5, 20)]),
            [ends(&[3]), vec![None]].concat()
        );
    }
}
