//! The standing of keys: which of a key's changes were its status, from which day to which, and what
//! that adds to the balance ([`crate::state::balance`]).
//!
//! A run changes the standing of the keys whose winners it accepts. What their versions added before
//! is subtracted. What they add now is known when the merge decides about a key, but for the rows of
//! the winners, which are read later. A winner that is the last change of its key adds one entry on
//! its own day then, whatever the others are. Any other winner needs to know the day on which the
//! next change became the status: the entries of such keys are sorted once more, at the end. Without
//! versions, before the first run, no key has been decided about: if some key has several winners,
//! the entries of all keys are sorted.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{filter, filter_record_batch};
use arrow::datatypes::Date32Type;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::TryStreamExt;

use crate::changes::file_order::RankedFiles;
use crate::changes::row_bitmap::Winners;
use crate::curate::merge::entries::{Entries, Files, LOOKED_UP, WINNER, column, hash};
use crate::curate::merge::entry::{ChangeOrder, Entry, EntryColumns, Origin, of_keys};
use crate::curate::merge::floors::{Floors, SortedFloors};
use crate::curate::merge::version_reader::open_versions;
use crate::engine::session::BATCH_ROWS;
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::{Error, Result};
use crate::layout::FileOrder;
use crate::parquet_io::open::conform;
use crate::state::balance::Balance;
use crate::state::floors::{Floor, KnownFloors};
use crate::state::versions::VersionsLayout;
use crate::store::Folder;
use crate::table::sorter::{Readers, Sorted, Sorter};

/// What one thread has found about the standing of keys.
pub(crate) struct Standing {
    entries: Arc<Entries>,
    files: Arc<Files>,
    floors: KnownFloors,
    balance: Balance,
    /// The entries of keys that are counted at the end.
    unsettled: Sorter,
}

/// Winners whose keys are counted at the end.
#[derive(Clone, Debug)]
pub(crate) enum Unsettled {
    /// All winners.
    All,
    /// Those that the merge has marked.
    Marked(Arc<Winners>),
    /// None.
    None,
}

/// A change of a key that has a day.
#[derive(Clone, Copy, Debug)]
struct Dated {
    /// The row of its entry.
    at: usize,
    day: i32,
    has_row: bool,
    is_winner: bool,
}

impl Standing {
    pub(crate) fn new(
        entries: &Arc<Entries>,
        files: &Arc<Files>,
        floors: &KnownFloors,
        runtime: &Arc<RuntimeEnv>,
    ) -> Result<Self> {
        Ok(Standing {
            floors: Arc::clone(floors),
            balance: Balance::new(&entries.layout, &runtime.memory_pool)?,
            unsettled: Sorter::new(Arc::clone(&entries.order), Arc::clone(runtime)),
            entries: Arc::clone(entries),
            files: Arc::clone(files),
        })
    }

    /// The numbers of the values in sorted entries.
    pub(super) fn numbers(&mut self, rows: &RecordBatch) -> Result<Vec<u32>> {
        self.balance.numbers(rows)
    }

    /// Counts a key about which the merge has decided; `accepted` ascends. Returns whether its winners
    /// are unsettled; then its versions, by their rows, are appended to `unsettled`.
    pub(super) fn count(
        &mut self,
        entries: &[Entry],
        (accepted, latest): (&[usize], Option<usize>),
        order: &impl ChangeOrder,
        (earlier, floors): (Floors<'_>, Floors<'_>),
        numbers: &[u32],
        unsettled: &mut Vec<u32>,
    ) -> Result<bool> {
        if accepted.is_empty() && floors.len() == earlier.len() {
            return Ok(false);
        }
        let is_version = |entry: &&Entry| entry.origin != Origin::Winner;
        let before: Vec<Entry> = entries.iter().filter(is_version).copied().collect();
        add(&mut self.balance, &held(&dated(&before, earlier, order), order), numbers, -1);
        let mut now: Vec<Entry> = Vec::new();
        for of_day in entries.chunk_by(|a, b| a.day == b.day) {
            let winner = of_day.iter().find(|entry| accepted.binary_search(&entry.at).is_ok());
            now.extend(winner.or(of_day.iter().find(is_version)));
        }
        // Whether a floor ends a winner is known when its row was read.
        let is_winner = |entry: &&Entry| entry.origin == Origin::Winner;
        let mut winners = now.iter().filter(is_winner);
        let may_end = winners.any(|winner| floors.after(winner.at, order).is_some());
        let held = held(&dated(&now, floors, order), order);
        let (last, others) = match held.split_last() {
            Some((last, others)) => (Some(last), others),
            None => (None, &held[..]),
        };
        let last_winner = last.filter(|last| last.is_winner);
        if may_end
            || last_winner.is_some_and(|last| latest != Some(last.at))
            || others.iter().any(|step| step.is_winner)
        {
            let versions = now.iter().filter(is_version);
            unsettled.extend(versions.map(|version| version.at as u32));
            return Ok(true);
        }
        add(&mut self.balance, &held, numbers, 1);
        Ok(false)
    }

    /// Subtracts what the versions of a key added.
    pub(super) fn forget(
        &mut self,
        versions: &[Entry],
        order: &impl ChangeOrder,
        floors: Floors<'_>,
        numbers: &[u32],
    ) {
        add(&mut self.balance, &held(&dated(versions, floors, order), order), numbers, -1);
    }

    /// Takes sorted entries of unsettled keys.
    pub(super) fn push(&mut self, entries: &RecordBatch) -> Result<()> {
        if entries.num_rows() == 0 {
            return Ok(());
        }
        // The part is not stored with sorted entries.
        let hashes = hash(&entries.columns()[..self.entries.keys])?;
        let mut columns = entries.columns().to_vec();
        columns.push(self.entries.parts_of(&hashes));
        self.unsettled.push(&RecordBatch::try_new(Arc::clone(&self.entries.schema), columns)?)
    }

    /// Takes winners whose rows have been read: their versions, in the schema for writing, which of
    /// them are their keys' last changes, and by input and row where they are from.
    pub(crate) fn take(
        &mut self,
        versions: &RecordBatch,
        latest: &BooleanArray,
        ordinals: &[(usize, usize)],
        unsettled: &Unsettled,
    ) -> Result<()> {
        let is_unsettled: BooleanArray = match unsettled {
            Unsettled::None => return self.enter(versions, latest),
            Unsettled::All => return self.push_winners(versions, ordinals),
            Unsettled::Marked(winners) => {
                let marks = ordinals.iter().map(|(file, row)| winners.is_unsettled(*file, *row));
                marks.map(Some).collect()
            }
        };
        let is_settled = arrow::compute::not(&is_unsettled)?;
        let settled = filter_record_batch(versions, &is_settled)?;
        self.enter(&settled, filter(latest, &is_settled)?.as_boolean())?;
        if is_unsettled.has_true() {
            let marks = ordinals.iter().zip(is_unsettled.values());
            let ordinals: Vec<_> =
                marks.filter_map(|(ordinal, is_marked)| is_marked.then_some(*ordinal)).collect();
            self.push_winners(&filter_record_batch(versions, &is_unsettled)?, &ordinals)?;
        }
        Ok(())
    }

    /// Adds the entries of winners that are their keys' last changes.
    fn enter(&mut self, versions: &RecordBatch, latest: &BooleanArray) -> Result<()> {
        let days = column(versions, "event_dt")?.as_primitive::<Date32Type>();
        let deleted = column(versions, "deleted")?.as_boolean();
        let numbers = self.balance.numbers(versions)?;
        for (row, number) in numbers.into_iter().enumerate() {
            if latest.value(row) && !deleted.value(row) && days.is_valid(row) {
                self.balance.add(days.value(row), number, [1, 0]);
            }
        }
        Ok(())
    }

    fn push_winners(&mut self, versions: &RecordBatch, ordinals: &[(usize, usize)]) -> Result<()> {
        if versions.num_rows() == 0 {
            return Ok(());
        }
        let hashes = hash(&versions.columns()[..self.entries.keys])?;
        let numbers = ordinals.iter().map(|(file, _)| self.files.of_run[*file]);
        let numbers = UInt32Array::from_iter_values(numbers);
        let winners = self.entries.of_versions(versions, &hashes, WINNER, &numbers)?;
        self.unsettled.push(&winners)
    }

    /// Takes all versions of a file.
    async fn take_file(&mut self, state: &Folder, path: &str, bytes: u64) -> Result<()> {
        let layout = Arc::clone(&self.entries.layout);
        let (file, columns) = open_versions(state, &layout, path, bytes).await?;
        let mut batches = file.read(&columns, BATCH_ROWS);
        while let Some(read) = batches.try_next().await? {
            let versions = conform(&read, &layout.schema())?;
            if self.entries.keys == 0 {
                // Without a key every change is the last of its own.
                self.enter(&versions, &BooleanArray::from(vec![true; versions.num_rows()]))?;
                continue;
            }
            let hashes = hash(&versions.columns()[..self.entries.keys])?;
            let numbers = self.files.of_versions(&versions)?;
            let entries = self.entries.of_versions(&versions, &hashes, LOOKED_UP, &numbers)?;
            self.unsettled.push(&entries)?;
        }
        Ok(())
    }

    /// Counts the keys of sorted entries, each of which has all entries of its keys.
    fn count_all(
        balance: &mut Balance,
        rows: &RecordBatch,
        keys: usize,
        (floors, files): (&SortedFloors, &RankedFiles),
    ) -> Result<()> {
        let beside = floors.beside(rows)?;
        let (floors, columns) = (floors.all(rows.num_rows()), EntryColumns::of(&beside, files)?);
        let numbers = balance.numbers(rows)?;
        let mut entries = Vec::new();
        for of_key in of_keys(rows, keys)? {
            entries.clear();
            entries.extend(of_key.map(|at| columns.entry(at)));
            let steps = dated(&entries, floors, &columns.orders);
            add(balance, &held(&steps, &columns.orders), &numbers, 1);
        }
        Ok(())
    }
}

impl Dated {
    /// An entry; `None` if it has no day.
    fn of(entry: &Entry) -> Option<Self> {
        Some(Dated {
            at: entry.at,
            day: entry.day?,
            has_row: entry.has_row,
            is_winner: entry.origin == Origin::Winner,
        })
    }
}

/// The entries of a key that have a day, one for each; `entries` are sorted by day. Floors are deletes of
/// the day on which they end an entry's row ([`crate::state::floors`]).
fn dated(entries: &[Entry], floors: Floors<'_>, order: &impl ChangeOrder) -> Vec<Dated> {
    let mut steps: Vec<Dated> = entries.iter().filter_map(Dated::of).collect();
    if floors.is_empty() {
        return steps;
    }
    let mut by_order: Vec<&Entry> = entries.iter().collect();
    by_order.sort_by(|a, b| order.compare(a.at, b.at));
    let mut end = |at: usize, day: Option<i32>| {
        let step = day.map(|day| Dated { at, day, has_row: false, is_winner: false });
        steps.extend(step);
    };
    for (index, entry) in by_order.iter().enumerate().filter(|(_, entry)| entry.has_row) {
        let Some((floor, day)) = floors.after(entry.at, order) else { continue };
        if by_order.get(index + 1).is_none_or(|next| order.is_later(next.at, floor)) {
            end(floor, day);
        }
        if let Some(floor) = floors.of_day_after(entry.at, entry.day, order) {
            end(floor, entry.day);
        }
    }
    // Of a day the last.
    steps.sort_by(|a, b| a.day.cmp(&b.day).then(order.compare(b.at, a.at)));
    steps.dedup_by_key(|step| step.day);
    steps
}

/// The changes of a key that became its status: those later in the order of changes than all of the
/// days before.
fn held(steps: &[Dated], order: &impl ChangeOrder) -> Vec<Dated> {
    let mut held: Vec<Dated> = Vec::new();
    for step in steps {
        if held.last().is_none_or(|last| order.is_later(step.at, last.at)) {
            held.push(*step);
        }
    }
    held
}

/// Adds the standing of a key, once or, to subtract it, -1 times.
fn add(balance: &mut Balance, held: &[Dated], numbers: &[u32], times: i64) {
    for (index, step) in held.iter().enumerate().filter(|(_, step)| step.has_row) {
        balance.add(step.day, numbers[step.at], [times, 0]);
        if let Some(next) = held.get(index + 1) {
            balance.add(next.day, numbers[step.at], [0, times]);
        }
    }
}

/// What the standing of all keys adds to the balance.
///
/// # Errors
/// Storage, when spilled entries cannot be read.
pub(crate) async fn settle(standings: Vec<Standing>) -> Result<Option<Balance>> {
    let Some(first) = standings.first() else {
        return Ok(None);
    };
    let (entries, files) = (Arc::clone(&first.entries), first.files.ranked());
    let floors = SortedFloors::new(&first.floors, &entries, &first.files, &files)?;
    let (mut balances, mut sorters) = (Vec::new(), Vec::new());
    for standing in standings {
        balances.push(standing.balance);
        sorters.push(standing.unsettled);
    }
    let sorted = Sorted::new(&entries.order, sorters)?;
    let parts = Work::new(sorted.partitions());
    let work = Arc::new((sorted, parts, (floors, files)));
    let tasks = balances.into_iter().map(|mut balance| {
        let (work, entries) = (Arc::clone(&work), Arc::clone(&entries));
        spawn(async move {
            let (sorted, parts, (floors, files)) = &*work;
            let count = async {
                let mut readers = Readers::new();
                while let Some(part) = parts.next() {
                    let rows = entries.sorted_part(sorted, &part, &mut readers)?;
                    Standing::count_all(&mut balance, &rows, entries.keys, (floors, files))?;
                }
                Ok(balance)
            };
            parts.run(count).await
        })
    });
    let mut balances = join_all(tasks).await?.into_iter();
    let Some(mut all) = balances.next() else { return Ok(None) };
    for balance in balances {
        all.add_all(&balance, 1);
    }
    Ok(Some(all))
}

/// The committed versions.
pub(crate) struct CommittedState<'a> {
    /// The folder of the state's Delta table.
    pub folder: &'a Folder,
    /// The layout of versions.
    pub layout: &'a Arc<VersionsLayout>,
    /// The files of versions: paths in the folder, and sizes.
    pub files: Vec<(String, u64)>,
    /// The number of versions.
    pub rows: u64,
    /// The order of raw files.
    pub order: FileOrder,
    /// The floors.
    pub floors: Vec<Floor>,
}

impl CommittedState<'_> {
    /// The balance of the versions.
    ///
    /// # Errors
    /// Data, when versions are missing or damaged; usage, when memory ends; storage, when versions or
    /// spilled entries cannot be read.
    pub(crate) async fn balance(
        self,
        runtime: &Arc<RuntimeEnv>,
        threads: usize,
    ) -> Result<Balance> {
        let entries = Arc::new(Entries::new(self.layout, self.rows)?);
        let floors = Floor::of_earlier(self.floors);
        let files = Arc::new(Files::of_earlier(self.order).with_floors(&floors));
        let queue = Arc::new(Work::new(self.files));
        let standings = (0..threads).map(|_| Standing::new(&entries, &files, &floors, runtime));
        let standings = standings.collect::<Result<Vec<_>>>()?;
        let tasks = standings.into_iter().map(|mut standing| {
            let (queue, state) = (Arc::clone(&queue), self.folder.clone());
            spawn(async move {
                let read = async {
                    while let Some((path, bytes)) = queue.next() {
                        standing.take_file(&state, &path, bytes).await?;
                    }
                    Ok(standing)
                };
                queue.run(read).await
            })
        });
        let balance = settle(join_all(tasks).await?).await?;
        let balance =
            balance.ok_or_else(|| Error::internal("no thread has counted the versions"))?;
        match balance.fault(true) {
            Some(why) => Err(Error::usage(format!("the balance cannot be computed: {why}")).hint(
                "raise `limits.memory`, or partition the table by columns with fewer values",
            )),
            None => Ok(balance),
        }
    }
}
