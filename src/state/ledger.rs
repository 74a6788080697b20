//! The ledger: what all committed runs did, as records that are replayed in order.
//!
//! Each commit appends records: the run, the inputs it folded for the first time, and how the
//! files of tables and of versions changed. Replayed, they give a [`Ledger`]; written out again
//! ([`Ledger::records`]), a ledger is as short as what it says.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};

use crate::raw::discover::{RawFile, Recorded};
use crate::state::contract::TableContract;
use crate::table::TableFile;
use crate::types::day_counts::DayCounts;
use crate::window::Window;

/// The number of the ledger's form. A version of this program reads those up to its own.
pub const FORMAT: u32 = 1;

/// The ledger's name for the curated table.
pub const CURATED: &str = "curated";

/// A row of the ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// The form of the records that follow; each file begins with it.
    Format(u32),
    /// A run that was committed.
    Run(Box<Run>),
    /// What the pipeline's tables look like from here on.
    #[serde(rename = "shape")]
    Contract(Box<TableContract>),
    /// An input that a run folded.
    Input(RawFile),
    /// An input of which something was put aside, in the place of what was before.
    #[serde(rename = "putaside")]
    Quarantined(Quarantined),
    /// An input of which nothing is put aside any more.
    Released {
        /// Its raw location.
        location: usize,
        /// Its path.
        path: String,
    },
    /// A file that a table has from here on, in the place of one of its path.
    File {
        /// The table: [`CURATED`], or an aggregate's name.
        table: String,
        /// The file.
        file: TableFile,
    },
    /// A file that a table had.
    #[serde(rename = "gone")]
    Removed {
        /// The table.
        table: String,
        /// The file's path.
        path: String,
    },
    /// A file with versions.
    Versions {
        /// Its path relative to the state's table.
        path: String,
        /// Its rows per day, as days since 1970.
        days: Vec<(Option<i32>, u64)>,
    },
}

/// A run, as the ledger keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The number of its commit.
    pub commit: u64,
    /// Unique, and growing with time.
    pub run_id: String,
    /// What was done.
    pub command: Step,
    /// The window's start.
    pub start: DateTime<Utc>,
    /// The window's end.
    pub end: DateTime<Utc>,
    /// The tables that this commit changes.
    pub tables: Vec<String>,
    /// The days whose rows changed, ascending.
    pub days: Vec<NaiveDate>,
    /// Whether its window selected rows, of all inputs that were there.
    #[serde(default)]
    pub by_rows: bool,
    /// The windows whose days it aggregated, changed or not, where it is not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregated: Option<Vec<Window>>,
    /// When it began.
    pub at: DateTime<Utc>,
    /// How long it took until its commit, in seconds.
    pub seconds: f64,
    /// The newest commit time among all changes folded so far, in microseconds since 1970.
    pub newest_us: Option<i64>,
    /// What was counted: [`Report::counts`](crate::report::Report::counts), not read until asked for,
    /// because there are as many as there were runs.
    pub counts: String,
}

impl Run {
    /// Its window.
    pub fn window(&self) -> Window {
        let (start, end) = (self.start, self.end);
        Window { start, end }
    }

    /// What it counted under a name of the report.
    pub fn count(&self, name: &str) -> u64 {
        let counts: serde_json::Value = serde_json::from_str(&self.counts).unwrap_or_default();
        counts[name].as_u64().unwrap_or_default()
    }

    /// The window whose changes it folded, if it is one that folds a window's.
    pub fn folded(&self) -> Option<Window> {
        let is_of_window = matches!(self.command, Step::Curate | Step::CatchUp);
        is_of_window.then_some(self.window())
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// It folded changes into the curated table.
    Curate,
    /// It made everything again from raw.
    Rebuild,
    /// It computed aggregates.
    Aggregate,
    /// It folded what had never been folded: what was late, between windows, or put aside.
    CatchUp,
}

/// What was put aside of an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The input.
    pub input: RawFile,
    /// The rows, from 0; `None` for the whole input.
    pub rows: Option<Vec<u64>>,
    /// The file that tells of them, in the state's folder for these.
    pub file: String,
}

/// What all committed runs left.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The runs, in the order of their commits.
    pub runs: Vec<Run>,
    /// What the tables look like; `None` before the first run.
    pub contract: Option<TableContract>,
    /// The inputs folded so far.
    pub inputs: BTreeMap<(usize, String), RawFile>,
    /// The inputs of which something is put aside.
    pub quarantined: BTreeMap<(usize, String), Quarantined>,
    /// The files of versions, and their rows per day.
    pub versions: BTreeMap<String, DayCounts>,
    tables: BTreeMap<String, BTreeMap<String, TableFile>>,
}

impl Ledger {
    /// Takes the next record.
    pub fn replay(&mut self, record: Record) {
        match record {
            Record::Format(_) => {}
            Record::Run(run) => {
                if run.command == Step::Rebuild {
                    self.inputs.clear();
                    self.quarantined.clear();
                    self.versions.clear();
                }
                self.runs.push(*run);
            }
            Record::Contract(contract) => self.contract = Some(*contract),
            Record::Input(input) => {
                let name = (input.location, input.path.clone());
                self.inputs.insert(name, input);
            }
            Record::Quarantined(aside) => {
                let name = (aside.input.location, aside.input.path.clone());
                self.quarantined.insert(name, aside);
            }
            Record::Released { location, path } => {
                self.quarantined.remove(&(location, path));
            }
            Record::File { table, file } => {
                let files = self.tables.entry(table).or_default();
                files.insert(file.path.clone(), file);
            }
            Record::Removed { table, path } => {
                if let Some(files) = self.tables.get_mut(&table) {
                    files.remove(&path);
                }
            }
            Record::Versions { path, days } => {
                self.versions.insert(path, days.into_iter().collect());
            }
        }
    }

    /// The records that, replayed, give this ledger.
    pub fn records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        records.extend(
            self.runs
                .iter()
                .cloned()
                .map(|run| Record::Run(Box::new(run))),
        );
        let contract = self.contract.iter().cloned();
        records.extend(contract.map(|contract| Record::Contract(Box::new(contract))));
        records.extend(self.inputs.values().cloned().map(Record::Input));
        records.extend(self.quarantined.values().cloned().map(Record::Quarantined));
        for (table, files) in &self.tables {
            records.extend(files.values().map(|file| Record::File {
                table: table.clone(),
                file: file.clone(),
            }));
        }
        records.extend(self.versions.iter().map(|(path, days)| Record::Versions {
            path: path.clone(),
            days: days.iter().collect(),
        }));
        records
    }

    /// A table's files, as last committed, sorted by path.
    pub fn files(&self, table: &str) -> impl Iterator<Item = &TableFile> {
        self.tables
            .get(table)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// The run of an id, if it was committed.
    pub fn run(&self, run_id: &str) -> Option<&Run> {
        self.runs.iter().rev().find(|run| run.run_id == run_id)
    }

    /// The spans whose changes were folded, ascending; windows that touch are one.
    pub fn folded_windows(&self) -> Vec<Window> {
        Window::union(self.runs.iter().filter_map(Run::folded).collect())
    }
}

impl Ledger {
    /// The newest commit time among the changes that were folded.
    pub fn newest_commit_time(&self) -> Option<DateTime<Utc>> {
        let last = self.runs.last()?.newest_us?;
        DateTime::from_timestamp_micros(last)
    }

    /// The windows for whose days an aggregate was computed, by its table.
    pub fn windows_aggregated(&self, table: &String) -> Vec<Window> {
        let runs = self.runs.iter().filter(|run| run.tables.contains(table));
        let windows = runs.flat_map(|run| match &run.aggregated {
            Some(windows) => windows.clone(),
            None => vec![run.window()],
        });
        windows.collect()
    }

    /// Whether an aggregate was computed since the last change, by its table.
    pub fn is_aggregated(&self, table: &String) -> bool {
        let mut runs = self.runs.iter().rev();
        let last = runs.find(|run| run.tables.contains(table) || !run.days.is_empty());
        last.is_some_and(|run| run.tables.contains(table))
    }

    /// What lies between the spans whose changes were folded, ascending.
    pub fn gaps(&self) -> Vec<Window> {
        Window::gaps(&self.folded_windows())
    }
}

impl Recorded for Ledger {
    fn folded(&self, location: usize, path: &str) -> Option<&RawFile> {
        self.inputs.get(&(location, path.to_string()))
    }

    fn inputs(&self) -> Vec<&RawFile> {
        let whole = self
            .quarantined
            .values()
            .filter(|aside| aside.rows.is_none());
        let whole = whole.map(|aside| &aside.input);
        self.inputs.values().chain(whole).collect()
    }

    fn quarantined(&self, location: usize, path: &str) -> Option<&RawFile> {
        let aside = self.quarantined.get(&(location, path.to_string()))?;
        aside.rows.is_none().then_some(&aside.input)
    }

    fn is_quarantined(&self, location: usize, path: &str) -> bool {
        self.quarantined.contains_key(&(location, path.to_string()))
    }

    fn windows(&self) -> Vec<Window> {
        self.folded_windows()
    }

    fn rows_read(&self, location: usize, path: &str) -> Option<Vec<Window>> {
        let file = self.folded(location, path)?;
        let first = file.rows.as_ref()?;
        let later = self.runs.iter().filter(|run| run.commit > file.commit);
        let later = later.filter(|run| run.by_rows && !file.is_absent);
        let later = later.filter_map(Run::folded);
        Some(Window::union(first.iter().copied().chain(later).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_written_out_again_says_the_same() {
        let file = |path: &str, rows| TableFile {
            path: path.into(),
            rows,
            bytes: 1,
            staged: None,
        };
        let in_table = |path, rows| Record::File {
            table: CURATED.into(),
            file: file(path, rows),
        };
        let mut ledger = Ledger::default();
        for record in [
            in_table("a", 1),
            in_table("b", 2),
            in_table("a", 3),
            Record::Removed {
                table: CURATED.into(),
                path: "b".into(),
            },
            Record::Versions {
                path: "v".into(),
                days: vec![(None, 1), (Some(2), 3)],
            },
        ] {
            ledger.replay(record);
        }
        let mut again = Ledger::default();
        for record in ledger.records() {
            let text = serde_json::to_string(&record).expect("written");
            again.replay(serde_json::from_str(&text).expect("read"));
        }
        let files: Vec<&TableFile> = again.files(CURATED).collect();
        assert_eq!(files, [&file("a", 3)]);
        assert_eq!(again.versions, ledger.versions);
        assert_eq!(again.files("other").count(), 0);
    }
}
