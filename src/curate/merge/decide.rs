//! Decides for each key which winners are accepted, which rows are removed, and which versions are
//! carried over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, DictionaryArray, Int32Array, Int64Array, RecordBatch,
    StringArray, UInt32Array, UInt64Array, new_null_array,
};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{Date32Type, SchemaRef, UInt32Type};
use arrow::row::{RowConverter, SortField};
use chrono_tz::Tz;
use datafusion::common::hash_utils::RandomState;

use crate::changes::BEFORE_ALL;
use crate::changes::file_order::RankedFiles;
use crate::changes::row_bitmap::RowBitmap;
use crate::config::{DELETED_AT, ENDED_BY, IS_CURRENT, Keep, VALID_FROM, VALID_TO};
use crate::curate::copies::{CopiedColumns, Copies};
use crate::curate::merge::current::add_current;
use crate::curate::merge::deletes::add_deletes;
use crate::curate::merge::entries::{Entries, Files, column};
use crate::curate::merge::entry::{ChangeOrder, Entry, EntryColumns, Orders, Origin, of_keys};
use crate::curate::merge::floors::{Floors, SortedFloors};
use crate::curate::merge::forget::{Forgetting, KeyToForget};
use crate::curate::merge::intervals::{
    Copied, Ends, LoadCounts, Moment, RowOf, add_ends, of_instants,
};
use crate::curate::merge::rows_of_versions::KeyFloors;
use crate::curate::merge::seen_floors::SeenFloors;
use crate::curate::merge::{Counts, Output};
use crate::curate::places::Places;
use crate::curate::validity::{end_values, valid_times};
use crate::error::{Error, Result};
use crate::state::versions::{ROW_HASH, VersionsLayout};
use crate::table::partition_names::partition_folder;
use crate::table::row_end::RowEnd;
use crate::types::times::{day_in, day_of};

/// A quarter of an hour in microseconds.
const QUARTER_US: i64 = 900_000_000;

/// The shared context of the threads that decide about keys.
pub(super) struct Decider {
    pub(super) entries: Arc<Entries>,
    pub(super) files: Arc<Files>,
    pub(super) ranked: RankedFiles,
    pub(super) keep: Keep,
    /// The columns that the table has besides those of the query, its last ones.
    pub(super) own_columns: &'static [&'static str],
    pub(super) partition_by: Vec<String>,
    pub(super) key: Vec<String>,
    /// The column of the table that is the day.
    pub(super) day: Option<String>,
    pub(super) layout: Arc<VersionsLayout>,
    pub(super) table_schema: SchemaRef,
    pub(super) floors: SortedFloors,
    /// The keys that are forgotten.
    pub(super) forgetting: Option<Forgetting>,
    /// Whether ties with floors are looked for.
    pub(super) finds_floor_ties: bool,
    pub(super) places: Places,
    /// The zone of days.
    pub(super) day_zone: Tz,
    /// Whether rows with equal hashes are equal in all columns but the day.
    pub(super) compares_all: bool,
    /// The times of new full loads of which rows are counted, ascending.
    pub(super) new_loads: Vec<i64>,
}

/// The decision about the entries of one key, by their rows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decision {
    /// The accepted winners: those later than the version of their day.
    accepted: Vec<usize>,
    /// The accepted winner that is later than every version of the key.
    latest: Option<usize>,
    /// The accepted winners whose rows a floor has ended.
    ended: Vec<usize>,
    /// The versions whose rows are removed from the table.
    removed: Vec<usize>,
    /// The versions to carry over, because their file is rewritten.
    carried: Vec<usize>,
    /// The number of versions that winners replace.
    replaced: u64,
    /// The number of last changes of the run that are not later than the versions: of the key, or
    /// under `latest-per-day` of the key and day.
    stale: u64,
    /// The winners that tie with a version: only file or row decides.
    tied: Vec<usize>,
}

impl Decision {
    fn clear(&mut self) {
        self.accepted.clear();
        self.latest = None;
        self.ended.clear();
        self.removed.clear();
        self.carried.clear();
        self.replaced = 0;
        self.stale = 0;
        self.tied.clear();
    }
}

/// Decides about the entries of one key, sorted by day, with at most one winner and one version per
/// day. `earlier` are the floors that have ended rows of versions, `floors` all of them.
///
/// # Errors
/// Data, when the versions have a key and day twice.
fn decide(
    keep: Keep,
    entries: &[Entry],
    order: &impl ChangeOrder,
    (earlier, floors): (Floors<'_>, Floors<'_>),
    decision: &mut Decision,
) -> Result<()> {
    decision.clear();
    let (mut last_version, mut last_winner, mut last_accepted) = (None, None, None);
    let mut last_version_has_row = false;
    let is_in_table =
        |version: &Entry| version.has_row && !earlier.end(keep, (version.at, version.day), order);
    let ends = |entry: &Entry| floors.end(keep, (entry.at, entry.day), order);
    for of_day in entries.chunk_by(|a, b| a.day == b.day) {
        let (winner, version) = winner_and_version(of_day)?;
        if let Some(version) = version
            && last_version.is_none_or(|last| order.is_later(version.at, last))
        {
            last_version = Some(version.at);
            last_version_has_row = is_in_table(&version);
        }
        let is_replaced = |winner: Entry| version.is_none_or(|it| order.is_later(winner.at, it.at));
        let accepted = winner.filter(|winner| is_replaced(*winner));
        decision.ended.extend(accepted.filter(&ends).map(|winner| winner.at));
        if keep == Keep::LatestPerDay {
            let is_removed = |it: &Entry| is_in_table(it) && (accepted.is_some() || ends(it));
            decision.removed.extend(version.filter(is_removed).map(|version| version.at));
        }
        let Some(winner) = winner else {
            let carried = version.filter(|version| version.origin == Origin::Rewritten);
            decision.carried.extend(carried.map(|version| version.at));
            continue;
        };
        last_winner = order.later(last_winner, winner.at);
        let Some(version) = version else {
            decision.accepted.push(winner.at);
            last_accepted = order.later(last_accepted, winner.at);
            continue;
        };
        if keep == Keep::LatestPerDay && order.is_tie(winner.at, version.at) {
            decision.tied.push(winner.at);
        }
        if order.is_later(winner.at, version.at) {
            decision.accepted.push(winner.at);
            last_accepted = order.later(last_accepted, winner.at);
            decision.replaced += 1;
        } else {
            decision.stale += u64::from(keep == Keep::LatestPerDay);
            if version.origin == Origin::Rewritten {
                decision.carried.push(version.at);
            }
        }
    }
    decision.latest = last_accepted
        .filter(|accepted| last_version.is_none_or(|version| order.is_later(*accepted, version)));
    if keep == Keep::LatestPerDay {
        return Ok(());
    }
    if let (Some(winner), Some(version)) = (last_winner, last_version)
        && order.is_tie(winner, version)
    {
        decision.tied.push(winner);
    }
    let ends_last = |last: usize| floors.end(keep, (last, None), order);
    let is_removed =
        |last: &usize| last_version_has_row && (decision.latest.is_some() || ends_last(*last));
    decision.removed.extend(last_version.filter(is_removed));
    if decision.latest.is_none() && last_winner.is_some() {
        decision.stale += 1;
    }
    Ok(())
}

/// The winner and the version among the entries of one key and day.
fn winner_and_version(entries: &[Entry]) -> Result<(Option<Entry>, Option<Entry>)> {
    let (mut winner, mut version) = (None, None);
    for entry in entries {
        let slot = if entry.origin == Origin::Winner { &mut winner } else { &mut version };
        if slot.replace(*entry).is_some() {
            return Err(Error::data("the versions have a key and day twice")
                .hint("the state is damaged: rebuild it with `glueless rebuild`"));
        }
    }
    Ok((winner, version))
}

/// Adds the days of floors that may end another change of a key than before: those of the first floor
/// after an accepted winner, and after the version in whose place it comes.
fn add_floor_days(
    entries: &[Entry],
    accepted: &[usize],
    floors: Floors<'_>,
    order: &impl ChangeOrder,
    days: &mut BTreeSet<i32>,
) {
    for of_day in entries.chunk_by(|a, b| a.day == b.day) {
        if of_day.iter().any(|entry| accepted.binary_search(&entry.at).is_ok()) {
            let next = of_day.iter().filter_map(|entry| floors.after(entry.at, order));
            days.extend(next.filter_map(|(_, day)| day));
        }
    }
}

/// A slice of the sorted entries, about whose keys is decided.
struct Deciding<'a> {
    columns: &'a EntryColumns<'a>,
    /// The floors of before, and all of them.
    floors: (Floors<'a>, Floors<'a>),
    /// The same, as a history sees them.
    seen: &'a [SeenFloors<'a>; 2],
    /// Those that take rows away: none where rows end and stay.
    taking: (Floors<'a>, Floors<'a>),
    /// Where rows end, the instants of the entries.
    instants: Option<&'a Int64Array>,
    winners: &'a RowBitmap,
    numbers: Vec<u32>,
}

/// What was decided about a slice, by the rows of the entries.
#[derive(Default)]
struct Decided {
    entries: Vec<Entry>,
    decision: Decision,
    /// The accepted winners of the key, ascending.
    accepted: Vec<usize>,
    carried: Vec<u32>,
    removed: Vec<RowOf>,
    unsettled: Vec<u32>,
    /// Where rows end, the moments of the key.
    moments: Vec<Moment>,
    ends: Ends,
}

impl Decider {
    /// Decides about all keys of a slice of the sorted entries; returns the versions to carry over.
    pub(super) fn decide_all(
        &self,
        rows: &RecordBatch,
        winners: &RowBitmap,
        output: &mut Output,
        counts: &mut Counts,
    ) -> Result<RecordBatch> {
        let beside = self.floors.beside(rows)?;
        let columns = EntryColumns::of(&beside, &self.ranked)?;
        let count = rows.num_rows();
        let floors = (self.floors.earlier(count), self.floors.all(count));
        let none = || (self.floors.none(count), self.floors.none(count));
        let seen = &self.floors.seen(count);
        let instants = rows.columns()[self.layout.key_count()..self.entries.keys].first();
        let deciding = Deciding {
            columns: &columns,
            floors,
            seen,
            taking: if instants.is_some() { none() } else { floors },
            instants: instants.map(|instants| instants.as_primitive()),
            winners,
            numbers: match &mut output.standing {
                Some(standing) => standing.numbers(rows)?,
                None => Vec::new(),
            },
        };
        let mut decided = Decided::default();
        decided.ends.loads = LoadCounts::new(self.new_loads.clone());
        let forgotten = self.forgetting.as_ref();
        let moves =
            self.keep == Keep::History && self.partition_by.iter().any(|name| name == IS_CURRENT);
        let says_cause = self.own_columns.contains(&ENDED_BY);
        let forgotten = forgotten.map(|forgetting| forgetting.among(rows)).transpose()?;
        for of_key in of_keys(rows, self.layout.key_count())? {
            if forgotten.as_ref().is_some_and(|forgotten| forgotten.value(of_key.start)) {
                self.forget(&deciding, of_key, &mut decided, output, counts);
                continue;
            }
            decided.accepted.clear();
            for of_row in of_instants(of_key.clone(), deciding.instants) {
                self.decide_key(&deciding, of_row, &mut decided, output, counts)?;
            }
            let all = floors.1;
            if !all.is_empty() && !decided.accepted.is_empty() {
                let Decided { entries, accepted, .. } = &mut decided;
                entries.clear();
                entries.extend(of_key.map(|at| columns.entry(at)));
                // The changes of a day can be of several instants.
                entries.sort_by_key(|entry| entry.day);
                add_floor_days(entries, accepted, all, &columns.orders, &mut counts.floor_days);
            }
            let Decided { moments, ends, .. } = &mut decided;
            match self.keep {
                Keep::Latest | Keep::LatestPerDay => {}
                Keep::LatestAndDeleted => add_deletes(moments, floors, &columns.orders, ends),
                Keep::LatestAltered => {
                    add_current(moments, seen, &columns.orders, |at| columns.left(at), ends);
                }
                Keep::History => {
                    let day = |at: usize| columns.entry(at).day;
                    let is_same =
                        |one: usize, other: usize| self.compares_all && day(one) == day(other);
                    let of_rows = (|at| columns.left(at), is_same);
                    add_ends(moments, seen, &columns.orders, of_rows, (moves, says_cause), ends);
                }
            }
            moments.clear();
        }
        self.note_ends(&decided.ends, &deciding, counts)?;
        let carried = std::mem::take(&mut decided.carried);
        self.push_decided(rows, decided, output, counts)?;
        self.carried(&take_record_batch(rows, &UInt32Array::from(carried))?)
    }

    /// Passes on what becomes of the rows of the table: those that are removed, get another end, or are copied; and entries
    /// whose standing is counted later.
    fn push_decided(
        &self,
        rows: &RecordBatch,
        mut decided: Decided,
        output: &mut Output,
        counts: &mut Counts,
    ) -> Result<()> {
        let taken = |at: Vec<u32>| take_record_batch(rows, &UInt32Array::from(at));
        decided.removed.append(&mut decided.ends.removed);
        if !decided.removed.is_empty() {
            let (removed, current) = self.rows_of(rows, decided.removed.iter())?;
            let removed = self.tombstones(&removed, (&current, None), counts)?;
            output.rows.push(&removed)?;
        }
        if !decided.ends.moved.is_empty() {
            let (moved, ends): (Vec<u32>, Vec<Option<RowEnd>>) =
                decided.ends.moved.iter().map(|(at, end)| (*at as u32, Some(*end))).unzip();
            let current = BooleanArray::from(vec![false; ends.len()]);
            let ends = (&current, Some(&ends[..]));
            output.rows.push(&self.tombstones(&taken(moved)?, ends, counts)?)?;
        }
        if let Some(copies) = &mut output.copies
            && !decided.ends.copied.is_empty()
        {
            self.push_copies(rows, &decided.ends.copied, copies, counts)?;
        }
        if let Some(standing) = &mut output.standing {
            standing.push(&taken(decided.unsettled)?)?;
        }
        Ok(())
    }

    /// Entries with the keys, days and partitions of rows, and which of these have no end.
    fn rows_of<'a>(
        &self,
        rows: &RecordBatch,
        of: impl Iterator<Item = &'a RowOf> + Clone,
    ) -> Result<(RecordBatch, BooleanArray)> {
        let taken = |at: Vec<u32>| take_record_batch(rows, &UInt32Array::from(at));
        let found = taken(of.clone().map(|row| row.version as u32).collect())?;
        let current = of.clone().map(|row| Some(row.is_current)).collect();
        if of.clone().all(|row| row.day == row.version) {
            return Ok((found, current));
        }
        let of_days = taken(of.map(|row| row.day as u32).collect())?;
        let day = self.entries.keys;
        let mut columns = found.columns().to_vec();
        for at in [Some(day), self.layout.day.map(|part| day + 1 + part)].into_iter().flatten() {
            columns[at] = Arc::clone(of_days.column(at));
        }
        Ok((RecordBatch::try_new(found.schema(), columns)?, current))
    }

    /// Passes on rows that are copied. Where not all columns are compared, the row of another change is read from raw.
    fn push_copies(
        &self,
        rows: &RecordBatch,
        copied: &[Copied],
        copies: &mut Copies,
        counts: &mut Counts,
    ) -> Result<()> {
        let (of_other, of_same): (Vec<Copied>, Vec<Copied>) = copied
            .iter()
            .partition(|one| copies.from_raw.is_some() && one.from.version != one.to.version);
        if !of_same.is_empty() {
            let (pairs, _) = self.pairs(rows, &of_same, &copies.columns, counts)?;
            copies.published.push(&pairs)?;
        }
        if let Some(from_raw) = copies.from_raw.as_mut().filter(|_| !of_other.is_empty()) {
            let (pairs, to) = self.pairs(rows, &of_other, &copies.columns, counts)?;
            let files = column(&to, "file")?.as_primitive::<UInt32Type>().values().iter();
            let files = files.map(|number| self.ranked.file(*number));
            let (locations, paths): (Vec<i32>, Vec<&str>) =
                files.map(|(location, path)| (location as i32, path)).unzip();
            let mut columns = pairs.columns().to_vec();
            columns.push(Arc::new(Int32Array::from(locations)));
            columns.push(Arc::new(StringArray::from(paths)));
            columns.push(Arc::clone(column(&to, "row")?));
            columns.push(Arc::clone(column(&to, ROW_HASH)?));
            let schema = Arc::clone(copies.columns.raw_order.stored_schema());
            from_raw.push(&RecordBatch::try_new(schema, columns)?)?;
        }
        Ok(())
    }

    /// Copied rows as pairs, and the entries of the copies.
    fn pairs(
        &self,
        rows: &RecordBatch,
        copied: &[Copied],
        columns: &CopiedColumns,
        counts: &mut Counts,
    ) -> Result<(RecordBatch, RecordBatch)> {
        let (from, current) = self.rows_of(rows, copied.iter().map(|one| &one.from))?;
        let (to, is_current) = self.rows_of(rows, copied.iter().map(|one| &one.to))?;
        let days = to.column(self.entries.keys).as_primitive::<Date32Type>();
        counts.days.extend(days.iter().flatten());
        let ends: Vec<Option<RowEnd>> = copied.iter().map(|one| one.end).collect();
        let from = self.marks(&from, (&current, None))?;
        let marked = self.marks(&to, (&is_current, Some(&ends)))?;
        Ok((columns.pair(&from, &marked)?, to))
    }

    /// Removes the rows and versions of a key that is forgotten.
    fn forget(
        &self,
        deciding: &Deciding<'_>,
        of_key: Range<usize>,
        decided: &mut Decided,
        output: &mut Output,
        counts: &mut Counts,
    ) {
        let Deciding { columns, floors: (_, floors), ref numbers, .. } = *deciding;
        let instants = deciding.instants.map(|instants| &instants.values()[..]);
        let key_floors = KeyFloors { all: floors, seen: &deciding.seen[1] };
        let key = KeyToForget::new(self.keep, columns, of_key, instants, key_floors);
        if let Some(standing) = &mut output.standing {
            standing.forget(&key.versions, &columns.orders, floors, numbers);
        }
        counts.replaced += key.versions.len() as u64;
        counts.forgotten.0 += 1;
        counts.forgotten.1 += key.rows.len() as u64;
        counts.floor_days.extend(key.days);
        decided.removed.extend(key.rows);
        decided.ends.touched.extend(key.times);
    }

    /// Decides about one key; where rows end, about its changes of one instant.
    fn decide_key(
        &self,
        deciding: &Deciding<'_>,
        of_key: Range<usize>,
        decided: &mut Decided,
        output: &mut Output,
        counts: &mut Counts,
    ) -> Result<()> {
        let Deciding { columns, floors: (earlier, floors), winners, .. } = *deciding;
        let (orders, first) = (&columns.orders, of_key.start);
        let ordinal = |at: usize| self.ordinal(at, orders);
        let Decided { entries, decision, accepted, carried, removed, unsettled, moments, .. } =
            decided;
        entries.clear();
        entries.extend(of_key.map(|at| columns.entry(at)));
        if self.keep.keeps_changes() {
            self.leave_last_winners(entries, orders, winners, counts)?;
        }
        decide(self.keep, entries, orders, deciding.taking, decision)?;
        if let Some(instants) = deciding.instants {
            moments.extend(Moment::of(instants.value(first), entries, decision.latest, orders));
        }
        accepted.extend(&decision.accepted);
        if self.keep.keeps_changes() {
            self.leave_accepted(entries, decision, orders, winners)?;
        } else {
            for accepted in &decision.accepted {
                let (file, row) = ordinal(*accepted)?;
                winners.set_day(file, row);
            }
            if let Some(latest) = decision.latest {
                let (file, row) = ordinal(latest)?;
                winners.set_latest(file, row);
            }
        }
        for ended in &decision.ended {
            let (file, row) = ordinal(*ended)?;
            winners.set_ended(file, row);
        }
        for tied in &decision.tied {
            counts.tie(ordinal(*tied)?);
        }
        // Whether a delete or a floor is later makes no difference to a row that is kept.
        let is_of_deletes = self.keep == Keep::LatestAndDeleted
            && deciding.instants.is_some_and(|instants| instants.value(first) != BEFORE_ALL);
        if self.finds_floor_ties && !is_of_deletes {
            let ties = entries.iter().filter_map(|entry| self.floor_tie(entry, floors, orders));
            ties.for_each(|tied| counts.floor_tie(tied));
        }
        if let Some(standing) = &mut output.standing
            && standing.count(
                entries,
                (&decision.accepted, decision.latest),
                orders,
                (earlier, floors),
                &deciding.numbers,
                unsettled,
            )?
        {
            for accepted in &decision.accepted {
                let (file, row) = ordinal(*accepted)?;
                winners.set_unsettled(file, row);
            }
        }
        counts.key_days += decision.accepted.len() as u64;
        let replacing = decision.accepted.len() - decision.ended.len();
        counts.replaced += decision.replaced;
        counts.stale += decision.stale;
        carried.extend(decision.carried.iter().map(|at| *at as u32));
        // Where rows end, it depends on the key's other changes.
        if deciding.instants.is_none() {
            counts.ended += decision.removed.len().saturating_sub(replacing) as u64;
            removed.extend(decision.removed.iter().map(|at| RowOf::of(*at, true)));
        }
        Ok(())
    }

    /// Takes the marks of winners away that are not accepted. Mostly there is one, which is.
    fn leave_accepted(
        &self,
        entries: &[Entry],
        decision: &Decision,
        orders: &Orders<'_>,
        winners: &RowBitmap,
    ) -> Result<()> {
        let all = entries.iter().filter(|entry| entry.origin == Origin::Winner);
        for winner in all.filter(|winner| decision.latest != Some(winner.at)) {
            let (file, row) = self.ordinal(winner.at, orders)?;
            winners.unset_latest(file, row);
            if !decision.accepted.contains(&winner.at) {
                winners.unset_day(file, row);
            }
        }
        Ok(())
    }

    /// Leaves the last winner of each day among the entries of a key and instant, which are sorted by day; the fold has
    /// left them all.
    fn leave_last_winners(
        &self,
        entries: &mut Vec<Entry>,
        orders: &Orders<'_>,
        winners: &RowBitmap,
        counts: &mut Counts,
    ) -> Result<()> {
        let mut all = entries.iter().filter(|entry| entry.origin == Origin::Winner);
        let Some(first) = all.next().map(|winner| winner.at) else { return Ok(()) };
        let others: Vec<usize> = all.map(|winner| winner.at).collect();
        if others.is_empty() {
            return Ok(());
        }
        counts.superseded += others.len() as u64;
        let last =
            others.iter().fold(first, |last, at| orders.later(Some(last), *at).unwrap_or(last));
        let mut all = others.iter().chain([&first]);
        if all.any(|at| *at != last && orders.is_tie(*at, last)) {
            counts.ties += 1;
            counts.tie(self.ordinal(last, orders)?);
        }
        let is_winner = |entry: &&Entry| entry.origin == Origin::Winner;
        let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
        for of_day in entries.chunk_by(|one, other| one.day == other.day) {
            let of_run = || of_day.iter().filter(is_winner);
            let last = of_run().fold(None, |last, winner| orders.later(last, winner.at));
            let stays = |entry: &&Entry| !is_winner(entry) || Some(entry.at) == last;
            for left in of_run().filter(|winner| !stays(winner)) {
                let (file, row) = self.ordinal(left.at, orders)?;
                winners.unset_day(file, row);
                winners.unset_latest(file, row);
            }
            kept.extend(of_day.iter().filter(stays));
        }
        *entries = kept;
        Ok(())
    }

    /// Notes when the rows of winners end, by their places, and which have none; and the days of the times of rows that
    /// come, go or change.
    fn note_ends(&self, ends: &Ends, deciding: &Deciding<'_>, counts: &mut Counts) -> Result<()> {
        let orders = &deciding.columns.orders;
        let wrong = [
            (ends.overlap, "two rows of a key overlap"),
            (ends.is_lost, "a row is neither in the table nor in the inputs"),
        ];
        if let Some((_, why)) = wrong.into_iter().find(|(is_wrong, _)| *is_wrong) {
            return Err(Error::internal(format!("the run does not add up: {why}"))
                .hint("nothing was published"));
        }
        counts.ended += ends.ended;
        counts.current_before += ends.current_before;
        counts.ties += ends.tied_keys;
        counts.loads.add(&ends.loads);
        for (one, other) in &ends.tied {
            // One of them is of this run; or both are not, and were told then.
            let tied = [*one, *other].into_iter().find_map(|at| self.ordinal(at, orders).ok());
            tied.into_iter().for_each(|tied| counts.tie(tied));
        }
        for (at, end) in &ends.winners {
            let (file, row) = self.ordinal(*at, orders)?;
            counts.ends.push(self.places.of(file, row), *end);
        }
        for at in &ends.unseen {
            let (file, row) = self.ordinal(*at, orders)?;
            deciding.winners.set_ended(file, row);
        }
        for (at, of) in &ends.begins {
            let (file, row) = self.ordinal(*at, orders)?;
            let day = deciding.columns.entry(*of).day;
            let lost = || Error::internal("a full load at its time has no day");
            counts.begins.push(self.places.of(file, row), (day.ok_or_else(lost)?.into(), 0));
        }
        let mut before = None;
        for instant in ends.touched.iter().filter(|instant| **instant != BEFORE_ALL) {
            // In any zone, days begin at a quarter of an hour.
            let quarter = instant.div_euclid(QUARTER_US);
            if before.replace(quarter) != Some(quarter) {
                let ns = i128::from(*instant) * 1000;
                counts.days.extend([day_of(ns), day_in(ns, self.day_zone)]);
            }
        }
        Ok(())
    }

    /// The input and row ordinal of an entry or floor that the run has read.
    fn ordinal(&self, at: usize, orders: &Orders<'_>) -> Result<(usize, usize)> {
        let file = self.files.in_run(orders.file.value(at));
        let lost = || Error::internal("a winner has no input");
        Ok((file.ok_or_else(lost)?, orders.row.value(at) as usize))
    }

    /// The input and row ordinal of an entry that ties with a floor; of a version, which an earlier run
    /// has read, those of the floor, if this run has read that.
    fn floor_tie(
        &self,
        entry: &Entry,
        floors: Floors<'_>,
        orders: &Orders<'_>,
    ) -> Option<(usize, usize)> {
        let floor = floors.tie_of(entry.at, orders)?;
        let read = if entry.origin == Origin::Winner { entry.at } else { floor };
        self.ordinal(read, orders).ok()
    }

    /// Tombstones of rows, which are counted. With `ends`, the rows stay, and end then.
    fn tombstones(
        &self,
        removed: &RecordBatch,
        (current, ends): (&BooleanArray, Option<&[Option<RowEnd>]>),
        counts: &mut Counts,
    ) -> Result<RecordBatch> {
        let batch = self.marks(removed, (current, ends))?;
        let names: Vec<&str> = self.partition_by.iter().map(String::as_str).collect();
        let parts = names
            .iter()
            .map(|name| Ok(Arc::clone(batch.column(self.table_schema.index_of(name)?))))
            .collect::<Result<Vec<_>>>()?;
        let of = if ends.is_some() { &mut counts.ended_rows } else { &mut counts.removed };
        Self::count_removed(&names, &parts, batch.num_rows(), of)?;
        let days = removed.column(self.entries.keys).as_primitive::<Date32Type>();
        counts.days.extend(days.iter().flatten());
        Ok(batch)
    }

    /// Rows of the table that have their key, day, partition and begin, whether they have no end, and `ends`; and null in
    /// all other columns.
    fn marks(
        &self,
        removed: &RecordBatch,
        (current, ends): (&BooleanArray, Option<&[Option<RowEnd>]>),
    ) -> Result<RecordBatch> {
        let (keys, key_count) = (self.entries.keys, self.layout.key_count());
        let mut columns = Vec::new();
        let fields = self.table_schema.fields();
        let own = self.own_columns;
        let ends = ends.map(end_values);
        for (at, field) in fields[..fields.len() - 2].iter().enumerate() {
            let is = |name: &String| name == field.name();
            let source = match (self.key.iter().position(is), self.partition_by.iter().position(is))
            {
                (Some(key), _) => Some(key),
                (None, Some(partition)) => Some(keys + 1 + partition),
                (None, None) if self.day.as_ref() == Some(field.name()) => Some(keys),
                (None, None) => None,
            };
            // The table's own columns are the last ones.
            let own = (at + 2 + own.len()).checked_sub(fields.len()).map(|at| own[at]);
            columns.push(match (own, source, &ends) {
                (Some(VALID_FROM), ..) => valid_times(removed.column(key_count).as_primitive()),
                (Some(VALID_TO | DELETED_AT), _, Some((times, _))) => Arc::clone(times),
                (Some(ENDED_BY), _, Some((_, causes))) => Arc::clone(causes),
                (Some(IS_CURRENT), ..) => Arc::new(current.clone()),
                (_, Some(source), _) => cast(removed.column(source), field.data_type())?,
                (_, None, _) => new_null_array(field.data_type(), removed.num_rows()),
            });
        }
        columns.push(Arc::new(BooleanArray::from(vec![false; removed.num_rows()])));
        columns.push(Arc::new(UInt64Array::from(vec![0; removed.num_rows()])));
        Ok(RecordBatch::try_new(Arc::clone(&self.table_schema), columns)?)
    }

    /// Counts rows per partition. The name of a partition is made once.
    fn count_removed(
        names: &[&str],
        parts: &[ArrayRef],
        rows: usize,
        counts: &mut BTreeMap<String, u64>,
    ) -> Result<()> {
        if names.is_empty() {
            *counts.entry(String::new()).or_default() += rows as u64;
            return Ok(());
        }
        let fields = parts.iter().map(|part| SortField::new(part.data_type().clone()));
        let values = RowConverter::new(fields.collect())?.convert_columns(parts)?;
        let mut count_of: HashMap<&[u8], (usize, u64), RandomState> = HashMap::default();
        for row in 0..rows {
            count_of.entry(values.row(row).data()).or_insert((row, 0)).1 += 1;
        }
        for (row, count) in count_of.into_values() {
            let folder = partition_folder(names, parts, row)?;
            *counts.entry(folder).or_default() += count;
        }
        Ok(())
    }

    /// The versions to carry over, in the schema for writing.
    pub(super) fn carried(&self, carried: &RecordBatch) -> Result<RecordBatch> {
        let schema = self.layout.written_schema();
        let numbers = carried
            .column_by_name("file")
            .ok_or_else(|| Error::internal("entries lack the column `file`"))?
            .as_primitive::<UInt32Type>();
        let mut distinct: BTreeMap<u32, u32> = BTreeMap::new();
        for number in numbers.values() {
            let next = distinct.len() as u32;
            distinct.entry(*number).or_insert(next);
        }
        let mut names = vec![""; distinct.len()];
        for (number, index) in &distinct {
            names[*index as usize] = self.ranked.file(*number).1;
        }
        let mut columns: Vec<ArrayRef> = Vec::new();
        for field in schema.fields() {
            columns.push(match field.name().as_str() {
                "file" => {
                    let indices = numbers.values().iter().map(|number| distinct[number]);
                    Arc::new(DictionaryArray::<UInt32Type>::try_new(
                        UInt32Array::from_iter_values(indices),
                        Arc::new(StringArray::from(names.clone())),
                    )?)
                }
                "location" => {
                    let locations =
                        numbers.values().iter().map(|number| self.ranked.file(*number).0 as i32);
                    Arc::new(Int32Array::from_iter_values(locations))
                }
                name => {
                    Arc::clone(carried.column_by_name(name).ok_or_else(|| {
                        Error::internal(format!("entries lack the column `{name}`"))
                    })?)
                }
            });
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;
    use crate::curate::merge::floors::FloorIndex;

    use Origin::{LookedUp, Rewritten, Winner};

    /// Orders of entries: the order columns, and the row.
    struct Given(Vec<(i32, i32)>);

    impl ChangeOrder for Given {
        fn compare(&self, a: usize, b: usize) -> Ordering {
            self.0[a].cmp(&self.0[b])
        }

        fn is_tie(&self, a: usize, b: usize) -> bool {
            self.0[a].0 == self.0[b].0 && self.0[a].1 != self.0[b].1
        }
    }

    /// Per entry: day, origin, whether it has a row, order columns, row.
    type Case = (i32, Origin, bool, i32, i32);

    /// Per floor: day, order, whether it is new.
    type FloorCase = (i32, i32, bool);

    /// The decision about entries beside floors in the order of changes.
    fn decided(keep: Keep, cases: &[Case], floors: &[FloorCase]) -> Result<Decision> {
        let places = floors.iter().map(|floor| (floor.1, 0));
        let entries = cases.iter().map(|case| (case.3, case.4));
        let order = Given(entries.chain(places).collect());
        let days: Vec<Option<i32>> = floors.iter().map(|floor| Some(floor.0)).collect();
        let all = FloorIndex::new((0..floors.len()).collect(), &days, &[]);
        let is_earlier = |at: &usize| !floors[*at].2;
        let earlier = (0..floors.len()).filter(is_earlier).collect();
        let earlier = FloorIndex::new(earlier, &days, &[]);
        let by_hand = vec![false; floors.len()];
        let beside = |index| Floors { first: cases.len(), days: &days, by_hand: &by_hand, index };
        let entries: Vec<Entry> = cases
            .iter()
            .enumerate()
            .map(|(at, (day, origin, has_row, ..))| Entry {
                at,
                day: (*day > 0).then_some(*day),
                origin: *origin,
                has_row: *has_row,
            })
            .collect();
        let mut decision = Decision::default();
        decide(keep, &entries, &order, (beside(&earlier), beside(&all)), &mut decision)?;
        Ok(decision)
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table with a row per case")]
    fn each_case_of_a_key_has_its_decision() {
        const NEW: Case = (1, Winner, true, 5, 1);
        let none = Decision::default;
        let cases: Vec<(&str, &[Case], Decision, Decision)> = vec![
            (
                "a new key",
                &[NEW],
                Decision { accepted: vec![0], latest: Some(0), ..none() },
                Decision { accepted: vec![0], latest: Some(0), ..none() },
            ),
            (
                "a later change of the same day",
                &[NEW, (1, Rewritten, true, 4, 1)],
                Decision {
                    accepted: vec![0],
                    latest: Some(0),
                    removed: vec![1],
                    replaced: 1,
                    ..none()
                },
                Decision {
                    accepted: vec![0],
                    latest: Some(0),
                    removed: vec![1],
                    replaced: 1,
                    ..none()
                },
            ),
            (
                "a later change after a delete",
                &[NEW, (1, Rewritten, false, 4, 1)],
                Decision { accepted: vec![0], latest: Some(0), replaced: 1, ..none() },
                Decision { accepted: vec![0], latest: Some(0), replaced: 1, ..none() },
            ),
            (
                "the same change again",
                &[NEW, (1, Rewritten, true, 5, 1)],
                Decision { carried: vec![1], stale: 1, ..none() },
                Decision { carried: vec![1], stale: 1, ..none() },
            ),
            (
                "a tie that the row decides for the winner",
                &[(1, Winner, true, 5, 2), (1, Rewritten, true, 5, 1)],
                Decision {
                    accepted: vec![0],
                    latest: Some(0),
                    removed: vec![1],
                    replaced: 1,
                    tied: vec![0],
                    ..none()
                },
                Decision {
                    accepted: vec![0],
                    latest: Some(0),
                    removed: vec![1],
                    replaced: 1,
                    tied: vec![0],
                    ..none()
                },
            ),
            (
                "a late change of an old day",
                &[NEW, (2, LookedUp, true, 9, 1)],
                Decision { accepted: vec![0], stale: 1, ..none() },
                Decision { accepted: vec![0], ..none() },
            ),
            (
                "a row that moves to a later day",
                &[(1, LookedUp, true, 4, 1), (2, Winner, true, 5, 1)],
                Decision { accepted: vec![1], latest: Some(1), removed: vec![0], ..none() },
                Decision { accepted: vec![1], latest: Some(1), ..none() },
            ),
            (
                "a day without a winner, in a file that is rewritten",
                &[(0, Rewritten, true, 4, 1), (1, LookedUp, true, 3, 1), (2, Winner, false, 5, 1)],
                Decision {
                    accepted: vec![2],
                    latest: Some(2),
                    removed: vec![0],
                    carried: vec![0],
                    ..none()
                },
                Decision { accepted: vec![2], latest: Some(2), carried: vec![0], ..none() },
            ),
            (
                "versions of a key that has no winner",
                &[(1, Rewritten, true, 4, 1), (2, LookedUp, true, 5, 1)],
                Decision { carried: vec![0], ..none() },
                Decision { carried: vec![0], ..none() },
            ),
        ];
        for (name, entries, latest, per_day) in cases {
            assert_eq!(decided(Keep::Latest, entries, &[]).expect(name), latest, "{name}");
            assert_eq!(decided(Keep::LatestPerDay, entries, &[]).expect(name), per_day, "{name}");
        }
        let twice = [(1, LookedUp, true, 4, 1), (1, Rewritten, true, 5, 1)];
        assert!(decided(Keep::Latest, &twice, &[]).is_err());
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table with a row per case")]
    fn each_case_of_a_key_beside_floors_has_its_decision() {
        const NEW: Case = (1, Winner, true, 5, 1);
        let none = Decision::default;
        let accepted = || Decision { accepted: vec![0], latest: Some(0), ..none() };
        type Beside<'a> = (&'a str, &'a [Case], &'a [FloorCase], Decision, Decision);
        let cases: Vec<Beside<'_>> = vec![
            (
                "a row of another day than that of a new floor",
                &[(1, LookedUp, true, 4, 1)],
                &[(2, 6, true)],
                Decision { removed: vec![0], ..none() },
                none(),
            ),
            (
                "a row of the day of a new floor, in a file that is rewritten",
                &[(1, Rewritten, true, 4, 1)],
                &[(1, 6, true)],
                Decision { removed: vec![0], carried: vec![0], ..none() },
                Decision { removed: vec![0], carried: vec![0], ..none() },
            ),
            (
                "a row later than a new floor",
                &[(1, LookedUp, true, 7, 1)],
                &[(1, 6, true)],
                none(),
                none(),
            ),
            ("a deleted key", &[(1, LookedUp, false, 4, 1)], &[(1, 6, true)], none(), none()),
            (
                "a row that an earlier floor has ended",
                &[(1, LookedUp, true, 4, 1)],
                &[(1, 6, false)],
                none(),
                none(),
            ),
            (
                "a row that an earlier floor has ended, and a new floor after it",
                &[(1, LookedUp, true, 4, 1)],
                &[(1, 6, false), (1, 8, true)],
                none(),
                none(),
            ),
            (
                "a row that an earlier floor has ended, and a new floor before that",
                &[(1, LookedUp, true, 4, 1)],
                &[(1, 5, true), (1, 6, false)],
                none(),
                none(),
            ),
            (
                "a row of the day of a new floor, ended by an earlier one of another day",
                &[(1, LookedUp, true, 4, 1)],
                &[(1, 5, true), (2, 6, false)],
                none(),
                Decision { removed: vec![0], ..none() },
            ),
            (
                "a late change before an earlier floor of its day",
                &[NEW],
                &[(1, 6, false)],
                Decision { ended: vec![0], ..accepted() },
                Decision { ended: vec![0], ..accepted() },
            ),
            (
                "a late change before an earlier floor of another day",
                &[NEW],
                &[(2, 6, false)],
                Decision { ended: vec![0], ..accepted() },
                accepted(),
            ),
            (
                "a change before a new floor, of a key that has a row",
                &[NEW, (1, Rewritten, true, 4, 1)],
                &[(1, 6, true)],
                Decision { ended: vec![0], removed: vec![1], replaced: 1, ..accepted() },
                Decision { ended: vec![0], removed: vec![1], replaced: 1, ..accepted() },
            ),
            (
                "a change after an earlier floor, of a key that it has ended",
                &[NEW, (1, Rewritten, true, 2, 1)],
                &[(1, 3, false)],
                Decision { replaced: 1, ..accepted() },
                Decision { replaced: 1, ..accepted() },
            ),
            (
                "a change after a new floor, of a key that it ends",
                &[NEW, (1, Rewritten, true, 2, 1)],
                &[(1, 3, true)],
                Decision { removed: vec![1], replaced: 1, ..accepted() },
                Decision { removed: vec![1], replaced: 1, ..accepted() },
            ),
            (
                "a late change before a new floor, and a row after it",
                &[NEW, (2, LookedUp, true, 9, 1)],
                &[(1, 7, true)],
                Decision { accepted: vec![0], ended: vec![0], stale: 1, ..none() },
                Decision { accepted: vec![0], ended: vec![0], ..none() },
            ),
            (
                "rows before and after an earlier floor, and a new floor after both",
                &[(1, LookedUp, true, 2, 1), (2, LookedUp, true, 5, 1)],
                &[(1, 3, false), (2, 6, true)],
                Decision { removed: vec![1], ..none() },
                Decision { removed: vec![1], ..none() },
            ),
        ];
        for (name, entries, floors, latest, per_day) in cases {
            assert_eq!(decided(Keep::Latest, entries, floors).expect(name), latest, "{name}");
            assert_eq!(
                decided(Keep::LatestPerDay, entries, floors).expect(name),
                per_day,
                "{name}"
            );
        }
    }
}
