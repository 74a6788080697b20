//! Changes: all inputs of a run as one relation.
//!
//! | column | Arrow type | nullable | meaning |
//! |---|---|---|---|
//! | the raw columns | as found, widened over all inputs | yes | found by name; null where an input lacks it |
//! | `event_dt` | Date32 | yes | the day: of the event time for I and U, of the commit time for D |
//! | `__position` | see [`crate::position`] | no | the place in the order of changes |
//! | `__live` | Boolean | no | whether the operation is I or U |
//! | `__latest` | Boolean | no | whether this is its key's last change (pass two only) |
//!
//! Text is read as views. Every row is checked on the way: a null key, an operation that is none
//! of I, U, D and a commit time that cannot be read stop the run with file, row and column.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::{Schema, SchemaRef};
use chrono_tz::Tz;

use crate::config::{Pipeline, Raw};
use crate::discover::Input;
use crate::error::{Error, Result};
use crate::opening;
use crate::parquet_file::ParquetFile;
use crate::position::{FILES_MAX, OrderEncoder, ROWS_MAX};
use crate::raw_columns::{RawColumns, find_column};
use crate::store::Folder;
use crate::times::is_time_type;
use crate::winners::Winners;

/// The day of a change.
pub const EVENT_DT: &str = "event_dt";
/// The place in the order of changes.
pub const POSITION: &str = "__position";
/// Whether the operation is I or U.
pub const LIVE: &str = "__live";
/// Whether a change is its key's last.
pub const LATEST: &str = "__latest";

/// From this likeness on (1 is the same) a name may be a slip for another.
const LIKE: f64 = 0.85;
/// A larger file is split into its row groups, so that every thread has work.
const SPLIT_BYTES_MIN: u64 = 32 << 20;

/// The opened inputs of a run.
#[derive(Debug)]
pub struct Changes {
    files: Vec<OpenInput>,
    raw_schema: SchemaRef,
    key: Vec<String>,
    raw: Raw,
    rows_outside: AtomicU64,
    rows_folded: AtomicU64,
    batch_rows: usize,
}

/// One opened input.
#[derive(Debug)]
pub(crate) struct OpenInput {
    pub(crate) input: Input,
    pub(crate) file: ParquetFile,
    /// Per raw column: its index in the file.
    pub(crate) columns: Vec<Option<usize>>,
}

/// The raw columns that a change's system columns are made of. Only a run of full loads alone can
/// lack order and time columns.
pub(crate) struct Roles {
    pub(crate) key: Vec<usize>,
    pub(crate) op: Option<usize>,
    pub(crate) order: Vec<Option<usize>>,
    pub(crate) commit_time: Option<usize>,
    pub(crate) event_time: Option<usize>,
}

impl Changes {
    /// Opens the inputs, in their order, and brings their columns together.
    ///
    /// `kept_bytes_max` bounds what is kept of small files between the two passes.
    ///
    /// # Errors
    /// Data: a damaged file, a key or order column that is missing, a column whose types cannot
    /// be brought together, too many inputs or rows. Usage: a configured column no file has.
    pub async fn open(
        inputs: Vec<Input>,
        folders: &[Folder],
        pipeline: &Pipeline,
        kept_bytes_max: usize,
        batch_rows: usize,
    ) -> Result<Self> {
        if inputs.len() > FILES_MAX {
            return Err(Error::usage(format!(
                "the window has {} files; one run reads at most {FILES_MAX}",
                inputs.len()
            ))
            .hint("run smaller windows"));
        }
        let mut files = Vec::with_capacity(inputs.len());
        let mut union = RawColumns::default();
        for (input, file) in opening::open(inputs, folders, kept_bytes_max).await? {
            if file.row_count() >= ROWS_MAX {
                return Err(Error::data(format!(
                    "{} has more than {ROWS_MAX} rows",
                    file.name
                )));
            }
            union.add(&file)?;
            files.push(OpenInput {
                input,
                file,
                columns: Vec::new(),
            });
        }
        for file in &mut files {
            file.columns = union.columns_of(&file.file);
        }
        let changes = Changes {
            files,
            raw_schema: Arc::new(Schema::new(union.fields)),
            key: pipeline.key.clone(),
            raw: pipeline.raw.clone(),
            rows_outside: AtomicU64::new(0),
            rows_folded: AtomicU64::new(0),
            batch_rows,
        };
        changes.check_columns()?;
        Ok(changes)
    }

    /// The raw columns, as found.
    pub fn raw_schema(&self) -> &SchemaRef {
        &self.raw_schema
    }

    /// How many rows each input has, in input order.
    pub fn row_counts(&self) -> impl Iterator<Item = u64> + '_ {
        self.files.iter().map(|file| file.file.row_count())
    }

    /// The inputs, in their order.
    pub fn inputs(&self) -> impl Iterator<Item = &Input> + '_ {
        self.files.iter().map(|file| &file.input)
    }

    /// How much memory the inputs keep until the run ends: small files, and two bits per row for
    /// the winners.
    pub fn kept_bytes(&self) -> usize {
        let files = self.files.iter().map(|file| file.file.kept_bytes());
        files.sum::<usize>() + self.row_counts().sum::<u64>() as usize / 4
    }

    /// How many rows pass one met that lie outside of a window of rows.
    pub fn rows_outside(&self) -> u64 {
        self.rows_outside.load(Ordering::Relaxed)
    }

    /// How many rows pass one handed to the fold.
    pub fn rows_folded(&self) -> u64 {
        self.rows_folded.load(Ordering::Relaxed)
    }

    pub(crate) fn roles(&self) -> Roles {
        Roles {
            key: self
                .key
                .iter()
                .filter_map(|name| self.raw_column(name))
                .collect(),
            op: self.raw_column(&self.raw.op.name),
            order: self
                .raw
                .order_by
                .iter()
                .map(|name| self.raw_column(name))
                .collect(),
            commit_time: self.raw_column(&self.raw.commit_time),
            event_time: self.raw_column(&self.raw.event_time),
        }
    }

    pub(crate) fn file(&self, file: usize) -> &OpenInput {
        &self.files[file]
    }

    pub(crate) fn batch_rows(&self) -> usize {
        self.batch_rows
    }

    pub(crate) fn time_zone(&self) -> Tz {
        self.raw.time_zone
    }

    /// Counts rows of pass one: inside and outside of a window of rows.
    pub(crate) fn count(&self, inside: usize, outside: usize) {
        self.rows_folded.fetch_add(inside as u64, Ordering::Relaxed);
        self.rows_outside
            .fetch_add(outside as u64, Ordering::Relaxed);
    }

    /// The kinds of the order columns, for those that the inputs have.
    pub fn order_kinds(&self) -> Vec<(String, String)> {
        let columns = self.raw.order_by.iter();
        let kinds = columns.filter_map(|name| {
            let data_type = self.raw_schema.field(self.raw_column(name)?).data_type();
            let kind = OrderEncoder::kind(data_type, *name == self.raw.commit_time);
            Some((name.clone(), kind))
        });
        kinds.collect()
    }

    /// Whether positions are packed integers: the only order column is the commit time.
    pub fn is_packed(&self) -> bool {
        self.raw.order_by.len() == 1 && self.raw.order_by[0] == self.raw.commit_time
    }

    fn check_columns(&self) -> Result<()> {
        let reserved = [EVENT_DT, POSITION, LIVE, LATEST];
        let is_there = |name: &&str| self.raw_schema.index_of(name).is_ok();
        if let Some(name) = reserved.into_iter().find(is_there) {
            return Err(Error::data(format!(
                "the raw column `{name}` has a name that is reserved"
            ))
            .hint("rename the column where the changes are captured"));
        }
        for file in &self.files {
            let mut needed: Vec<(&str, &String)> =
                self.key.iter().map(|name| ("key", name)).collect();
            if !file.input.full_load {
                needed.extend(self.raw.order_by.iter().map(|name| ("raw.order_by", name)));
                needed.push(("raw.commit_time", &self.raw.commit_time));
                if self.raw.op.required {
                    needed.push(("raw.op", &self.raw.op.name));
                }
                // One file may lack it, not all of them.
                if self.raw_column(&self.raw.event_time).is_none() {
                    needed.push(("raw.event_time", &self.raw.event_time));
                }
            }
            let is_in_file = |name: &str| {
                self.raw_column(name)
                    .is_some_and(|column| file.columns[column].is_some())
            };
            if let Some((setting, name)) = needed.into_iter().find(|(_, name)| !is_in_file(name)) {
                if self.raw_column(name).is_none() {
                    return Err(self.unknown_column(setting, name));
                }
                let fields = file.file.schema().fields();
                let names = fields[..fields.len() - 1]
                    .iter()
                    .map(|field| field.name().as_str());
                let found = names.collect::<Vec<_>>().join(", ");
                return Err(
                    Error::data(format!("column `{name}` missing in {}", file.file.name))
                        .hint(format!("other files have it; found: {found}")),
                );
            }
        }
        for name in [&self.raw.commit_time, &self.raw.event_time] {
            let Some(column) = self.raw_column(name) else {
                continue;
            };
            let data_type = self.raw_schema.field(column).data_type();
            if !is_time_type(data_type) {
                let file = self
                    .files
                    .iter()
                    .find(|file| file.columns[column].is_some());
                let file = file.map_or("the raw files", |file| &file.file.name);
                return Err(Error::data(format!(
                    "column `{name}` of {file} is {data_type}, which is not a time"
                ))
                .hint("name a timestamp, date or text column"));
            }
        }
        Ok(())
    }

    fn unknown_column(&self, setting: &str, name: &str) -> Error {
        let fields = self.raw_schema.fields().iter();
        let names: Vec<&str> = fields.map(|field| field.name().as_str()).collect();
        let like = |known: &&&str| strsim::jaro_winkler(known, name) > LIKE;
        let meant = names.iter().find(like);
        let meant = meant.map_or(String::new(), |known| format!("did you mean `{known}`? "));
        Error::usage(format!(
            "no raw file has the column `{name}`, which `{setting}` names"
        ))
        .hint(format!("{meant}found: {}", names.join(", ")))
    }

    /// The index of a raw column: by its name, or by its name in another case.
    pub fn raw_column(&self, name: &str) -> Option<usize> {
        find_column(
            self.raw_schema
                .fields()
                .iter()
                .map(|field| field.name().as_str()),
            name,
        )
    }

    /// What each of the partitions reads: whole files, or row groups of large ones, spread by
    /// size. Depends on nothing but the inputs, so that a plan can be run twice.
    pub(crate) fn spread(&self, partitions: usize, winners: Option<&Winners>) -> Vec<Vec<Unit>> {
        let mut units: Vec<(u64, Unit)> = Vec::new();
        for (index, file) in self.files.iter().enumerate() {
            let mut kept = Vec::new();
            let mut first_row = 0;
            for (group, metadata) in file.file.row_groups().iter().enumerate() {
                let rows = metadata.rows;
                let chosen = match winners {
                    Some(winners) => winners.any(index, first_row..first_row + rows),
                    None => true,
                };
                if chosen {
                    kept.push((group, first_row, rows, metadata.bytes));
                }
                first_row += rows;
            }
            let bytes: u64 = kept.iter().map(|group| group.3).sum();
            let parts = if bytes >= SPLIT_BYTES_MIN {
                kept.chunks(1)
            } else {
                kept.chunks(kept.len().max(1))
            };
            for part in parts {
                units.push((
                    part.iter().map(|group| group.3).sum(),
                    Unit {
                        file: index,
                        row_groups: part
                            .iter()
                            .map(|group| (group.0, group.1, group.2))
                            .collect(),
                    },
                ));
            }
        }
        units.sort_by_key(|(bytes, unit)| (std::cmp::Reverse(*bytes), unit.file));
        let mut spread: Vec<(u64, Vec<Unit>)> = vec![(0, Vec::new()); partitions.max(1)];
        for (bytes, unit) in units {
            if let Some(least) = spread.iter_mut().min_by_key(|(load, _)| *load) {
                least.0 += bytes;
                least.1.push(unit);
            }
        }
        spread
            .into_iter()
            .map(|(_, mut units)| {
                units.sort_by_key(|unit| (unit.file, unit.row_groups.first().map(|group| group.1)));
                units
            })
            .collect()
    }
}

/// Part of one input: its index, and row groups as (number, first row, rows).
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) file: usize,
    pub(crate) row_groups: Vec<(usize, usize, usize)>,
}
