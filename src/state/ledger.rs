//! The ledger: a log of all committed runs, as records that are replayed in order.
//! Each commit appends records: the run, the inputs it folded for the first time, and the changed
//! files of tables and of versions. Replayed, they give a [`Ledger`]; [`Ledger::records`] compacts
//! it to the shortest list of records.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::config::Sql;
use crate::raw::discover::{RawFile, Recorded};
use crate::state::balance::BALANCE;
use crate::state::contract::TableContract;
use crate::state::floors::Floor;
use crate::state::forgotten::{Forgotten, NewlyForgotten};
use crate::state::inputs::{Inputs, InputsFile};
use crate::table::TableFile;
use crate::types::day_counts::DayCounts;
use crate::types::key_hash::KeyHash;
use crate::window::{Window, WindowSet};

/// The format of a ledger, without a balance beside it.
pub const FORMAT: u32 = 1;
/// The format of a ledger beside which a balance is kept: a version that does not know of it would
/// not keep it.
pub const BALANCED_FORMAT: u32 = 2;
/// The format of a ledger with old inputs in files of their own: an older version would not read them.
pub const DIVIDED_FORMAT: u32 = 3;
/// The format of a ledger of a table with deletion vectors: an older version would read deleted rows.
pub const VECTORS_FORMAT: u32 = 4;
/// The format of a ledger with floors: an older version would not know of them.
pub const FLOORS_FORMAT: u32 = 5;
/// The format of a ledger with truncates by hand, or runs that set one: an older version would not know of them.
pub const TRUNCATES_FORMAT: u32 = 6;
/// The format of a ledger of a table of which keys were forgotten: an older version would fold their changes.
pub const FORGOTTEN_FORMAT: u32 = 7;
/// The format of a ledger of a history whose changes make rows only if they alter them: an older version would make a
/// row of each.
pub const ALTERED_FORMAT: u32 = 8;
/// The format of a ledger of a history whose rows say what has ended them: an older version would not write it.
pub const CAUSES_FORMAT: u32 = 9;
/// The format of a ledger of a table that was made from its own rows: an older version would not know the run, nor which
/// partition columns not all versions have.
pub const FROM_TABLE_FORMAT: u32 = 10;
/// The newest format that this version reads.
pub const NEWEST_FORMAT: u32 = FROM_TABLE_FORMAT;

/// The ledger's name for the curated table.
pub const CURATED: &str = "curated";

/// The relation of versions that aggregates read.
pub const HISTORY: &str = "history";

/// A record of the ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// The format of the records that follow; each file begins with it.
    Format(u32),
    /// A committed run.
    Run(Box<Run>),
    /// The table contract from this commit on.
    #[serde(rename = "shape")]
    Contract(Box<TableContract>),
    /// An input that a run folded.
    Input(RawFile),
    /// A file of old inputs, each a record [`Record::Input`].
    #[serde(rename = "inputs")]
    InputsFile(InputsFile),
    /// An input in quarantine, as a whole or some of its rows; replaces its earlier record.
    #[serde(rename = "putaside")]
    Quarantined(Quarantined),
    /// An input released from quarantine.
    Released {
        /// Its raw location.
        location: usize,
        /// Its path.
        path: String,
    },
    /// A file added to a table; replaces a file of the same path.
    File {
        /// The table: [`CURATED`], or an aggregate's name.
        table: String,
        /// The file.
        file: TableFile,
    },
    /// A file removed from a table.
    #[serde(rename = "gone")]
    Removed {
        /// The table.
        table: String,
        /// The file's path.
        path: String,
    },
    /// A file of deletion vectors that no file of the curated table has used since a commit.
    #[serde(rename = "unused")]
    VectorsUnused {
        /// Its path in the curated table.
        path: String,
        /// The number of that commit.
        commit: u64,
    },
    /// A file of deletion vectors that is not used, and is removed.
    #[serde(rename = "unused-gone")]
    VectorsRemoved {
        /// Its path in the curated table.
        path: String,
    },
    /// A versions file.
    Versions {
        /// Its path relative to the state's table.
        path: String,
        /// Its rows per day, as days since 1970.
        days: Vec<(Option<i32>, u64)>,
    },
    /// A floor, and the number of the commit that accepted it.
    Floor {
        /// The floor.
        #[serde(flatten)]
        floor: Floor,
        /// The number of the commit.
        commit: u64,
    },
    /// Keys that a commit forgets.
    Forgotten(NewlyForgotten),
    /// Keys that are not to be forgotten any more.
    Recalled {
        /// The hashes of the keys.
        keys: Vec<KeyHash>,
    },
}

impl Record {
    /// Whether it is a rebuild, which forgets all inputs before it.
    pub fn is_rebuild(&self) -> bool {
        matches!(self, Record::Run(run) if run.command == Step::Rebuild)
    }

    /// Whether it is a floor.
    pub(crate) fn is_floor(&self) -> bool {
        matches!(self, Record::Floor { .. })
    }

    /// Whether it is a truncate by hand, or the run that set one.
    pub(crate) fn is_truncate_by_hand(&self) -> bool {
        match self {
            Record::Run(run) => run.command == Step::Truncate,
            Record::Floor { floor, .. } => floor.by_hand.is_some(),
            _ => false,
        }
    }

    /// Whether it has to do with keys that were forgotten, or is of a run that forgot some.
    pub(crate) fn is_of_forgotten_keys(&self) -> bool {
        match self {
            Record::Run(run) => run.command == Step::Forget,
            Record::Forgotten(_) | Record::Recalled { .. } => true,
            _ => false,
        }
    }

    /// Whether it is the contract of a history whose changes make rows only if they alter them.
    pub(crate) fn compares_rows(&self) -> bool {
        matches!(self, Record::Contract(contract) if contract.compares_rows())
    }

    /// Whether it is the contract of a history whose rows say what has ended them.
    pub(crate) fn says_cause(&self) -> bool {
        matches!(self, Record::Contract(contract) if contract.says_cause())
    }

    /// Whether it is of a run that made the table from its own rows.
    pub(crate) fn is_from_table(&self) -> bool {
        matches!(self, Record::Run(run) if run.command == Step::FromTable)
    }

    /// Whether it has to do with deletion vectors.
    pub(crate) fn has_deletion_vector(&self) -> bool {
        match self {
            Record::File { file, .. } => file.deleted.is_some(),
            Record::VectorsUnused { .. } | Record::VectorsRemoved { .. } => true,
            _ => false,
        }
    }
}

/// A run, as recorded in the ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The number of its commit.
    pub commit: u64,
    /// The run's id: unique, and ascending with time.
    pub run_id: String,
    /// The step that was committed.
    pub command: Step,
    /// The window's start.
    pub start: DateTime<Utc>,
    /// The window's end.
    pub end: DateTime<Utc>,
    /// The tables that this commit changes.
    pub tables: Vec<String>,
    /// The days whose rows changed, ascending.
    #[serde(flatten)]
    pub changed: ChangedDays,
    /// Whether its window selected rows by commit time, from all inputs that existed.
    #[serde(default)]
    pub by_rows: bool,
    /// The windows whose days it aggregated, changed or not, if they differ from its own window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregated: Option<WindowSet>,
    /// The run's start time.
    pub at: DateTime<Utc>,
    /// The wall time until its commit, in seconds.
    pub seconds: f64,
    /// The newest commit time among all changes folded so far, in microseconds since 1970.
    pub newest_us: Option<i64>,
    /// The counts of the report, [`Report::counts`](crate::report::Report::counts), as text: parsed
    /// only on demand, because the ledger has one per run.
    pub counts: String,
}

/// The days whose rows a commit changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChangedDays {
    /// Those of the curated table and of the history, ascending.
    pub days: Vec<NaiveDate>,
    /// Those of the history, if they are not all: a row that moves to another day leaves the day
    /// before in the curated table, and stays in the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    history_days: Option<Vec<NaiveDate>>,
    /// Those of the balance, if it was kept: the day on which a status ends depends on the days before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    balance_days: Option<Vec<NaiveDate>>,
}

impl ChangedDays {
    /// The days of the history, those that only the curated table has changed on, and those of the
    /// balance; `None` if it was not kept.
    pub fn new(
        history: &BTreeSet<NaiveDate>,
        curated: &BTreeSet<NaiveDate>,
        balance: Option<BTreeSet<NaiveDate>>,
    ) -> Self {
        let days: Vec<NaiveDate> = history.union(curated).copied().collect();
        let history_days = (days.len() > history.len()).then(|| history.iter().copied().collect());
        let balance_days = balance.map(|days| days.into_iter().collect());
        ChangedDays { days, history_days, balance_days }
    }

    /// The days of some relations. Those of the balance include those of the history, where it may not
    /// have changed: so the days of an aggregate do not depend on the order of the runs.
    pub fn of(&self, relations: Relations) -> impl Iterator<Item = NaiveDate> {
        let reads_history = relations.history || relations.balance;
        let balance = self.balance_days.as_deref().unwrap_or_default();
        let of_curated = relations.curated.then_some(&*self.days);
        let of_history = reads_history.then_some(self.of_history());
        let of_balance = relations.balance.then_some(balance);
        [of_curated, of_history, of_balance].into_iter().flatten().flatten().copied()
    }

    /// The day from which on any day of some relations may have changed; `None` if the changed days
    /// are known.
    pub fn unknown_from(&self, relations: Relations) -> Option<NaiveDate> {
        let is_unknown = relations.balance && self.balance_days.is_none();
        self.of_history().first().copied().filter(|_| is_unknown)
    }

    fn of_history(&self) -> &[NaiveDate] {
        self.history_days.as_ref().unwrap_or(&self.days)
    }
}

/// The relations that a query reads.
#[derive(Clone, Copy, Debug)]
pub struct Relations {
    curated: bool,
    history: bool,
    balance: bool,
}

impl Relations {
    /// Those of a query.
    pub fn read_by(sql: &Sql) -> Self {
        Relations {
            curated: sql.reads(CURATED),
            history: sql.reads(HISTORY),
            balance: sql.reads(BALANCE),
        }
    }
}

impl Run {
    /// The run's window.
    pub fn window(&self) -> Window {
        let (start, end) = (self.start, self.end);
        Window { start, end }
    }

    /// The time of its commit, about.
    fn committed_at(&self) -> DateTime<Utc> {
        self.at + TimeDelta::milliseconds((self.seconds * 1000.0) as i64)
    }

    /// A count of the report by its name; 0 if it is not in the report.
    pub fn count(&self, name: &str) -> u64 {
        let counts: serde_json::Value = serde_json::from_str(&self.counts).unwrap_or_default();
        counts[name].as_u64().unwrap_or_default()
    }

    /// The window whose changes it folded; `None` for a rebuild or an aggregation.
    pub fn folded(&self) -> Option<Window> {
        let is_of_window = matches!(self.command, Step::Curate | Step::CatchUp);
        is_of_window.then_some(self.window())
    }
}

/// A step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Folds changes of a window into the curated table.
    Curate,
    /// Rebuilds all tables from raw.
    Rebuild,
    /// Computes aggregates.
    Aggregate,
    /// Folds what was never folded: late inputs, gaps between windows, and quarantined inputs.
    CatchUp,
    /// Sets a truncate by hand.
    Truncate,
    /// Forgets keys.
    Forget,
    /// Makes the curated table from its own rows.
    FromTable,
}

impl Step {
    /// Whether it replaces all files of the curated table, whatever they are.
    pub(crate) fn replaces_table(self) -> bool {
        matches!(self, Step::Rebuild | Step::FromTable)
    }
}

/// An input in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The input.
    pub input: RawFile,
    /// The quarantined rows, from 0; `None` for the whole input.
    pub rows: Option<Vec<u64>>,
    /// The file that describes them, in the state's `quarantine` folder.
    pub file: String,
}

/// The replayed ledger.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The runs, in commit order.
    pub runs: Vec<Run>,
    /// The table contract; `None` before the first run that folded something.
    pub contract: Option<TableContract>,
    /// The inputs folded so far, as far as they were read.
    pub inputs: Inputs,
    /// The inputs in quarantine, as a whole or some of their rows.
    pub quarantined: BTreeMap<(usize, String), Quarantined>,
    /// The versions files, and their rows per day.
    pub versions: BTreeMap<String, DayCounts>,
    /// The floors, and the numbers of the commits that accepted them.
    pub floors: Vec<(Floor, u64)>,
    /// The keys that were forgotten.
    pub forgotten: Forgotten,
    tables: BTreeMap<String, BTreeMap<String, TableFile>>,
    /// The files of deletion vectors of the curated table, and how many of its files use each.
    vectors: BTreeMap<String, u64>,
    /// Those that no file uses any more and that are kept for readers of earlier versions, and the
    /// number of the commit since when.
    vectors_unused: BTreeMap<String, u64>,
    /// The aggregate that was computed last at each location.
    newest: BTreeMap<String, String>,
    /// The aggregates whose files another one at the same location has replaced.
    replaced: BTreeSet<String>,
}

impl Ledger {
    /// Applies the next record.
    pub fn replay(&mut self, record: Record) {
        match record {
            Record::Format(_) => {}
            Record::Run(run) => {
                if run.command == Step::Rebuild {
                    self.inputs = Inputs::default();
                    self.quarantined.clear();
                    self.versions.clear();
                    self.floors.clear();
                }
                for table in &run.tables {
                    self.replace_others(table);
                }
                self.runs.push(*run);
            }
            Record::Contract(contract) => self.contract = Some(*contract),
            Record::Input(input) => self.inputs.insert(input),
            Record::InputsFile(file) => self.inputs.insert_file(file),
            Record::Quarantined(quarantined) => {
                let name = (quarantined.input.location, quarantined.input.path.clone());
                self.quarantined.insert(name, quarantined);
            }
            Record::Released { location, path } => {
                self.quarantined.remove(&(location, path));
            }
            // A file that the newest aggregate at its location has removed.
            Record::File { table, .. } if self.replaced.contains(&table) => {}
            Record::File { table, file } => {
                if let Some(vector) = &file.deleted {
                    *self.vectors.entry(vector.path.clone()).or_default() += 1;
                }
                let files = self.tables.entry(table).or_default();
                let replaced = files.insert(file.path.clone(), file);
                self.forget_vector(replaced);
            }
            Record::Removed { table, path } => {
                let removed = self.tables.get_mut(&table).and_then(|files| files.remove(&path));
                self.forget_vector(removed);
            }
            Record::VectorsUnused { path, commit } => {
                self.vectors_unused.insert(path, commit);
            }
            Record::VectorsRemoved { path } => {
                self.vectors_unused.remove(&path);
            }
            Record::Versions { path, days } => {
                self.versions.insert(path, days.into_iter().collect());
            }
            Record::Floor { floor, commit } => self.floors.push((floor, commit)),
            Record::Forgotten(added) => self.forgotten.add(added),
            Record::Recalled { keys } => self.forgotten.remove(&keys),
        }
    }

    /// Notes that a file is removed or replaced, with its deletion vector.
    fn forget_vector(&mut self, file: Option<TableFile>) {
        let Some(vector) = file.and_then(|file| file.deleted) else { return };
        if let Some(uses) = self.vectors.get_mut(&vector.path) {
            *uses -= 1;
            if *uses == 0 {
                self.vectors.remove(&vector.path);
                let commit = self.runs.last().map(|run| run.commit).unwrap_or_default();
                self.vectors_unused.insert(vector.path, commit);
            }
        }
    }

    /// Forgets the aggregate that another one, such as one with another query, replaces at its location:
    /// if it comes back, it is computed for all days.
    fn replace_others(&mut self, table: &str) {
        let Some(location) = location_of(table) else { return };
        let before = self.newest.insert(location.to_string(), table.to_string());
        self.replaced.remove(table);
        if let Some(before) = before.filter(|before| before != table) {
            self.tables.remove(&before);
            self.runs.iter_mut().for_each(|run| run.tables.retain(|one| *one != before));
            self.replaced.insert(before);
        }
    }

    /// A copy with other inputs.
    pub fn with_inputs(&self, inputs: Inputs) -> Self {
        Ledger {
            runs: self.runs.clone(),
            contract: self.contract.clone(),
            inputs,
            quarantined: self.quarantined.clone(),
            versions: self.versions.clone(),
            floors: self.floors.clone(),
            forgotten: self.forgotten.clone(),
            tables: self.tables.clone(),
            vectors: self.vectors.clone(),
            vectors_unused: self.vectors_unused.clone(),
            newest: self.newest.clone(),
            replaced: self.replaced.clone(),
        }
    }

    /// The shortest list of records that gives this ledger when replayed.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let runs = self.runs.iter().map(|run| Record::Run(Box::new(run.clone())));
        let contract = self.contract.iter();
        let contract = contract.map(|contract| Record::Contract(Box::new(contract.clone())));
        let inputs_files = self.inputs.files().iter().cloned().map(Record::InputsFile);
        let inputs = self.inputs.recent().cloned().map(Record::Input);
        let quarantined = self.quarantined.values().cloned().map(Record::Quarantined);
        let files = self.tables.iter().flat_map(|(table, files)| {
            files.values().map(|file| Record::File { table: table.clone(), file: file.clone() })
        });
        let versions = self.versions.iter().map(|(path, days)| Record::Versions {
            path: path.clone(),
            days: days.iter().collect(),
        });
        let unused = self.vectors_unused.iter();
        let unused = unused
            .map(|(path, commit)| Record::VectorsUnused { path: path.clone(), commit: *commit });
        let inputs = inputs_files.chain(inputs);
        let files = files.chain(unused);
        let floors = self.floors.iter();
        let floors =
            floors.map(|(floor, commit)| Record::Floor { floor: floor.clone(), commit: *commit });
        let versions = versions.chain(floors).chain(self.forgotten.parts().map(Record::Forgotten));
        runs.chain(contract).chain(inputs).chain(quarantined).chain(files).chain(versions)
    }

    /// The committed files of a table, sorted by path.
    pub fn files(&self, table: &str) -> impl Iterator<Item = &TableFile> {
        self.tables.get(table).into_iter().flat_map(BTreeMap::values)
    }

    /// The inputs that are files of full loads with a time.
    pub(crate) fn timed_loads(&self) -> Vec<RawFile> {
        self.inputs.iter().filter(|input| input.load.is_some()).cloned().collect()
    }

    /// The full loads that were written over earlier ones, which runs had folded.
    pub(crate) fn replacing_loads(&self) -> Vec<&RawFile> {
        let replaces = |input: &&RawFile| input.load.as_ref().is_some_and(|load| load.replaces);
        self.inputs.iter().filter(replaces).collect()
    }

    /// The floors, without their commits.
    pub(crate) fn all_floors(&self) -> Vec<Floor> {
        self.floors.iter().map(|(floor, _)| floor.clone()).collect()
    }

    /// The times of the truncates that were set by hand.
    pub(crate) fn truncates_by_hand(&self) -> impl Iterator<Item = DateTime<Utc>> {
        self.floors.iter().filter_map(|(floor, _)| floor.by_hand)
    }

    /// Whether there are truncates by hand, or runs that set one.
    pub(crate) fn has_truncates_by_hand(&self) -> bool {
        let mut runs = self.runs.iter();
        self.truncates_by_hand().next().is_some() || runs.any(|run| run.command == Step::Truncate)
    }

    /// Whether the table was ever made from its own rows.
    pub(crate) fn is_from_table(&self) -> bool {
        self.runs.iter().any(|run| run.command == Step::FromTable)
    }

    /// Whether keys were forgotten, or there are runs that forgot some.
    pub(crate) fn has_forgotten_keys(&self) -> bool {
        let mut runs = self.runs.iter();
        !self.forgotten.is_empty() || runs.any(|run| run.command == Step::Forget)
    }

    /// Whether there are files of deletion vectors, used ones or others.
    pub(crate) fn has_vectors(&self) -> bool {
        !self.vectors.is_empty() || !self.vectors_unused.is_empty()
    }

    /// The files of deletion vectors that the curated table does not use any more, and that are kept for
    /// readers of its earlier versions.
    pub(crate) fn vectors_unused(&self) -> impl Iterator<Item = &String> {
        self.vectors_unused.keys()
    }

    /// Those of them that the table has not used since some time. Whoever finishes publishing a commit, it
    /// is done by a run that begins after the commit, if not by that of the commit: it counts from the
    /// first such run on. (A step of aggregates begins with the run whose changes it follows.)
    pub(crate) fn vectors_unused_since(
        &self,
        time: DateTime<Utc>,
    ) -> impl Iterator<Item = &String> {
        let unused = self.vectors_unused.iter().filter(move |(_, commit)| {
            let next = self.runs.partition_point(|run| run.commit <= **commit);
            let (until, later) = self.runs.split_at(next);
            let committed = until.last().map_or(DateTime::UNIX_EPOCH, Run::committed_at);
            let is_next = |run: &&Run| run.command != Step::Aggregate && run.at >= committed;
            later.iter().find(is_next).is_some_and(|next| next.at <= time)
        });
        unused.map(|(path, _)| path)
    }

    /// The committed run with this id.
    pub fn run(&self, run_id: &str) -> Option<&Run> {
        self.runs.iter().rev().find(|run| run.run_id == run_id)
    }

    /// The windows that were folded.
    pub fn folded_windows(&self) -> WindowSet {
        self.runs.iter().filter_map(Run::folded).collect()
    }
}

impl Ledger {
    /// The newest commit time among all folded changes.
    pub fn newest_commit_time(&self) -> Option<DateTime<Utc>> {
        let last = self.runs.last()?.newest_us?;
        DateTime::from_timestamp_micros(last)
    }

    /// The zone of the days of changes.
    pub fn day_zone(&self) -> Tz {
        self.contract.as_ref().map_or(Tz::UTC, |contract| contract.identity.day_zone())
    }

    /// The windows for whose days the aggregate `table` was computed.
    pub fn windows_aggregated(&self, table: &String) -> WindowSet {
        let runs = self.runs.iter().filter(|run| run.tables.contains(table));
        let windows = runs.map(|run| match &run.aggregated {
            Some(windows) => windows.clone(),
            None => run.window().into(),
        });
        windows.flat_map(Vec::from).collect()
    }

    /// Whether the aggregate `table` was computed since the last change.
    pub fn is_aggregated(&self, table: &String) -> bool {
        let mut runs = self.runs.iter().rev();
        let last = runs.find(|run| run.tables.contains(table) || !run.changed.days.is_empty());
        last.is_some_and(|run| run.tables.contains(table))
    }

    /// The gaps between the folded windows.
    pub fn gaps(&self) -> WindowSet {
        self.folded_windows().gaps()
    }
}

/// The location of an aggregate, by its name in the ledger
/// ([`Aggregate::table`](crate::config::Aggregate::table)); `None` for the curated table.
fn location_of(table: &str) -> Option<&str> {
    let (described, _) = table.rsplit_once(", ")?;
    let begins = [" in /", " in s3://"].into_iter().filter_map(|begin| described.find(begin));
    Some(&described[begins.min()? + " in ".len()..])
}

impl Recorded for Ledger {
    fn folded(&self, location: usize, path: &str) -> Option<&RawFile> {
        self.inputs.get(location, path)
    }

    fn inputs(&self) -> Vec<&RawFile> {
        let whole = self
            .quarantined
            .values()
            .filter(|quarantined| quarantined.rows.is_none())
            .map(|quarantined| &quarantined.input);
        self.inputs.iter().chain(whole).collect()
    }

    fn is_unread(&self, path: &str) -> bool {
        self.inputs.is_unread(path)
    }

    fn folders(&self, location: usize) -> BTreeMap<&str, u64> {
        self.inputs.folders(location)
    }

    fn has_unread(&self, location: usize) -> bool {
        self.inputs.has_unread_of(location)
    }

    fn quarantined(&self, location: usize, path: &str) -> Option<&RawFile> {
        let quarantined = self.quarantined.get(&(location, path.to_string()))?;
        quarantined.rows.is_none().then_some(&quarantined.input)
    }

    fn is_quarantined(&self, location: usize, path: &str) -> bool {
        self.quarantined.contains_key(&(location, path.to_string()))
    }

    fn windows(&self) -> WindowSet {
        self.folded_windows()
    }

    fn rows_read(&self, location: usize, path: &str) -> Option<WindowSet> {
        let file = self.folded(location, path)?;
        let first = file.rows.as_ref()?;
        let is_later = |run: &&Run| run.commit > file.commit && run.by_rows && !file.is_absent;
        let later = self.runs.iter().filter(is_later).filter_map(Run::folded);
        Some(first.iter().copied().chain(later).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compacted_ledger_is_the_same_when_replayed() {
        let file = |path: &str, rows| TableFile {
            path: path.into(),
            rows,
            bytes: 1,
            staged: None,
            deleted: None,
        };
        let in_table = |path, rows| Record::File { table: CURATED.into(), file: file(path, rows) };
        let mut ledger = Ledger::default();
        for record in [
            in_table("a", 1),
            in_table("b", 2),
            in_table("a", 3),
            Record::Removed { table: CURATED.into(), path: "b".into() },
            Record::Versions { path: "v".into(), days: vec![(None, 1), (Some(2), 3)] },
        ] {
            ledger.replay(record);
        }
        let mut replayed = Ledger::default();
        for record in ledger.records() {
            let text = serde_json::to_string(&record).expect("written");
            replayed.replay(serde_json::from_str(&text).expect("read"));
        }
        let files: Vec<&TableFile> = replayed.files(CURATED).collect();
        assert_eq!(files, [&file("a", 3)]);
        assert_eq!(replayed.versions, ledger.versions);
        assert_eq!(replayed.files("other").count(), 0);
    }
}
