//! Changes: all inputs of a run as one relation.
//!
//! | column | Arrow type | nullable | meaning |
//! |---|---|---|---|
//! | the raw columns | as found, widened over all inputs | yes | matched by name; null if an input lacks it |
//! | `event_dt` | Date32 | yes | the day: of the event time for I and U, of the commit time for D |
//! | `__position` | see [`crate::changes::position`] | no | the position in the order of changes |
//! | `__live` | Boolean | no | whether the operation is I or U |
//! | `__latest` | Boolean | no | whether this is its key's last change (pass two only) |
//!
//! Text is read as views. Every row is checked when it is read: a null key, an operation that is none
//! of I, U, D, a time that cannot be read and a value that does not fit its column's type stop the
//! run with file, row and column, or are quarantined ([`crate::state::quarantine`]).
//!
//! An update whose before-image columns ([`Raw::before_images`]) hold another key is two changes: a
//! delete of that key, directly followed by the row itself. In such a pipeline each row has two
//! ordinals in the order of changes.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::{Field, Schema, SchemaRef};
use chrono_tz::Tz;
use futures::TryStreamExt;

use crate::changes::pass_one::PassOne;
use crate::changes::position::{FILES_MAX, OrderEncoder, ROWS_MAX};
use crate::changes::row_bitmap::Winners;
use crate::config::{OnBad, Pipeline, Raw};
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::{Error, Kind, Result};
use crate::parquet_io::open::ParquetFile;
use crate::raw::bad_rows::{BadRow, BadRows};
use crate::raw::columns::{RawColumns, find_column};
use crate::raw::discover::{Input, RawFile};
use crate::raw::open::{Opened, Opening, Spilled};
use crate::raw::schema_changes::{KnownColumns, Newest, SchemaChange, SchemaChanges};
use crate::types::column_type::always_fits;
use crate::types::times::is_time_type;

pub(crate) mod file_order;
pub(crate) mod key_moves;
pub(crate) mod pass_one;
pub(crate) mod position;
pub(crate) mod reader;
pub(crate) mod row_bitmap;

/// The day of a change.
pub(crate) const EVENT_DT: &str = "event_dt";
/// The position in the order of changes.
pub(crate) const POSITION: &str = "__position";
/// Whether the operation is I or U.
pub(crate) const LIVE: &str = "__live";
/// Whether a change is its key's last.
pub(crate) const LATEST: &str = "__latest";

/// From this similarity on (1 is equal) a name may be a misspelling of another.
const SIMILARITY_MIN: f64 = 0.85;
/// A larger file is split into its row groups, so that every thread has work.
const SPLIT_BYTES_MIN: u64 = 32 << 20;

/// The opened inputs of a run.
#[derive(Debug)]
pub struct Changes {
    files: Vec<OpenInput>,
    raw_schema: SchemaRef,
    key: Vec<String>,
    raw: Raw,
    /// Per key column the column with its value before an update, if inputs have it.
    before_images: Vec<Option<usize>>,
    schema_changes: Vec<SchemaChange>,
    newest: Newest,
    /// The rows that were found to be bad when the inputs were opened.
    bad_rows: Arc<BadRows>,
    /// Key moves without a delete, once they are known.
    key_swaps: OnceLock<KeySwaps>,
    batch_rows: usize,
    /// The number of changes of other tables in the inputs, which are none of the rows.
    other_rows: u64,
    /// The spilled files that stand for inputs of another format.
    _spilled: Spilled,
}

/// The key moves that swap keys, and so delete no row ([`crate::changes::key_moves`]): the numbers of
/// their inputs and rows.
pub(crate) type KeySwaps = HashSet<(u32, u64)>;

/// One opened input.
#[derive(Debug)]
pub(crate) struct OpenInput {
    pub(crate) input: Input,
    pub(crate) file: ParquetFile,
    /// Per raw column: its index in the file.
    pub(crate) columns: Vec<Option<usize>>,
    /// The raw columns of which the file may have values that do not fit.
    pub(crate) to_check: Vec<usize>,
    /// The rows that are placeholders of bad rows, ascending; within `only` if the input has that.
    pub(crate) placeholders: Vec<u64>,
}

/// The raw columns from which a change's system columns are computed. Order and time columns are
/// missing only in runs that read nothing but full loads.
pub(crate) struct Roles {
    pub(crate) key: Vec<usize>,
    pub(crate) op: Option<usize>,
    pub(crate) order: Vec<Option<usize>>,
    pub(crate) commit_time: Option<usize>,
    pub(crate) event_time: Option<usize>,
}

impl Changes {
    /// Opens the inputs, in their order, and unifies their columns. Returns those that cannot be read
    /// too, if the pipeline quarantines such files.
    ///
    /// # Errors
    /// Data: a damaged file, a missing key or order column, a column whose types cannot be unified,
    /// too many inputs or rows. Usage: a configured column that no file has.
    pub async fn open(
        inputs: Vec<Input>,
        opening: Opening<'_>,
        pipeline: &Pipeline,
        known: &KnownColumns,
        batch_rows: usize,
    ) -> Result<(Self, Vec<(Input, Error)>)> {
        if inputs.len() > FILES_MAX {
            return Err(Error::usage(format!(
                "the window has {} files; one run reads at most {FILES_MAX}",
                inputs.len()
            ))
            .hint("run smaller windows"));
        }
        let raw = &pipeline.raw;
        let bad_rows = Arc::clone(opening.bad_rows);
        let mut all = opening.open(inputs).await?;
        if known.all.is_empty() && all.opened.iter().all(|one| one.is_blank) {
            // Nothing is known of their columns, and they have no rows.
            all.opened.clear();
        }
        let mut bad_files = std::mem::take(&mut all.bad);
        let opened = with_required_columns(all.opened, pipeline, known, &mut bad_files)?;
        let mut union = RawColumns::new(pipeline);
        let mut schema_changes = SchemaChanges::new(known);
        let mut files = Vec::with_capacity(opened.len());
        let other_rows = opened.iter().map(|one| one.other_rows).sum();
        for (number, one) in opened.into_iter().enumerate() {
            let is_blank = one.is_blank;
            let (file, bad) = open_input(one, raw)?;
            if !is_blank {
                union.add(&file.file)?;
                schema_changes.observe(&file.file, &file.input);
            }
            bad_rows.put(number, bad);
            files.push(file);
        }
        if !files.is_empty() {
            union.add_known(&known.all)?;
            union.add_declared();
        }
        map_columns(&mut files, &union);
        let images = raw.before_images(&pipeline.key);
        let images = images.iter().map(|name| union.find(name));
        let changes = Changes {
            before_images: images.collect(),
            files,
            raw_schema: Arc::new(Schema::new(union.fields)),
            key: pipeline.key.clone(),
            raw: raw.clone(),
            newest: schema_changes.newest,
            schema_changes: schema_changes.seen,
            bad_rows,
            key_swaps: OnceLock::new(),
            batch_rows,
            other_rows,
            _spilled: all.spilled,
        };
        changes.check_columns()?;
        Ok((changes, bad_files))
    }

    /// The raw columns of all inputs.
    pub fn raw_schema(&self) -> &SchemaRef {
        &self.raw_schema
    }

    /// The number of rows of each input, in input order.
    pub fn row_counts(&self) -> impl Iterator<Item = u64> + '_ {
        self.files.iter().map(|file| file.file.row_count())
    }

    /// The number of ordinals per row, 1 or 2.
    pub(crate) fn ordinals_per_row(&self) -> usize {
        ordinals_per_row(&self.raw) as usize
    }

    /// The number of row ordinals of each input, in input order.
    pub fn ordinal_counts(&self) -> impl Iterator<Item = u64> + '_ {
        let per_row = self.ordinals_per_row() as u64;
        self.row_counts().map(move |rows| rows * per_row)
    }

    /// The row and file of a row ordinal, for messages.
    pub fn ordinal_name(&self, file: usize, ordinal: usize) -> String {
        let row = ordinal / self.ordinals_per_row() + 1;
        format!("row {row} of {}", self.files[file].file.name)
    }

    /// Whether there is no input.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The counts of a scan of all rows that begins now.
    pub(crate) fn pass_one(&self) -> Arc<PassOne> {
        Arc::new(PassOne::new(self.bad_rows.copied()))
    }

    /// Whether bad rows are quarantined.
    pub(crate) fn quarantines_rows(&self) -> bool {
        self.raw.on_bad_row == OnBad::Quarantine
    }

    /// How the raw columns changed: from file to file, and since earlier runs.
    pub fn schema_changes(&self) -> &[SchemaChange] {
        &self.schema_changes
    }

    /// The raw columns in the form that the state stores for later runs.
    pub fn known_columns(&self) -> KnownColumns {
        let fields = self.raw_schema.fields().iter();
        KnownColumns {
            all: fields.map(|field| (field.name().clone(), field.data_type().clone())).collect(),
            newest: self.newest.clone(),
        }
    }

    /// Whether the table has no key, so that every raw row is a row of the table.
    pub fn is_keyless(&self) -> bool {
        self.key.is_empty()
    }

    /// The columns with the key before an update, in the key's order; empty if no input has any.
    pub(crate) fn before_images(&self) -> &[Option<usize>] {
        if self.before_images.iter().any(Option::is_some) { &self.before_images } else { &[] }
    }

    /// The number of changes of other tables in the inputs, which are none of the rows.
    pub(crate) fn other_rows(&self) -> u64 {
        self.other_rows
    }

    /// A remark, if CDC files have changes of other tables and none of the pipeline's.
    pub(crate) fn missing_table(&self) -> Option<String> {
        let table = self.raw.table.as_ref().filter(|_| self.other_rows > 0)?;
        let mut cdc = self.files.iter().filter(|file| !file.input.full_load);
        let is_missing = cdc.all(|file| file.file.row_count() == 0);
        is_missing.then(|| {
            format!(
                "no change is of the table `{table}`: all {} changes of the files are of other \
                 tables; is `raw.table` written as in the files?",
                self.other_rows
            )
        })
    }

    /// Warnings about columns that the pipeline names and no input has, if that may be a mistake.
    pub fn missing_columns(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.is_missing_everywhere(&self.raw.op.name, true) {
            let op = &self.raw.op.name;
            warnings.push(format!(
                "no CDC file has the column `{op}`: all changes are read as inserts; set `raw.op` if the column has another name"
            ));
        }
        for (number, (name, _)) in self.raw.columns.iter().enumerate() {
            if self.raw.is_of_transactions(number) {
                continue;
            }
            if self.is_missing_everywhere(name, false) && *name != self.raw.op.name {
                warnings.push(format!(
                    "no file has the column `{name}`, which `[raw.columns]` declares: its values are null"
                ));
            }
        }
        warnings
    }

    /// The first column with the key before an update that no CDC file has.
    pub fn missing_before_image(&self) -> Option<String> {
        let mut names = self.raw.before_images(&self.key).into_iter();
        names.find(|name| self.is_missing_everywhere(name, true))
    }

    /// Whether there are inputs, or CDC files with `cdc`, and none of them has a column.
    fn is_missing_everywhere(&self, name: &str, cdc: bool) -> bool {
        let column = self.raw_column(name);
        let files = self.files.iter();
        let mut files = files.filter(|file| !cdc || !file.input.full_load).peekable();
        let lacks = |file: &OpenInput| column.is_none_or(|column| file.columns[column].is_none());
        files.peek().is_some() && files.all(lacks)
    }

    /// Whether a key move swaps keys, and so deletes no row.
    pub(crate) fn is_key_swap(&self, file: usize, row: u64) -> bool {
        let key_swaps = self.key_swaps.get();
        key_swaps.is_some_and(|key_swaps| key_swaps.contains(&(file as u32, row)))
    }

    /// Sets the key moves that swap keys.
    pub fn set_key_swaps(&self, key_swaps: KeySwaps) {
        let _ = self.key_swaps.set(key_swaps);
    }

    /// The inputs, in their order.
    pub fn inputs(&self) -> impl Iterator<Item = &Input> + '_ {
        self.files.iter().map(|file| &file.input)
    }

    /// The memory that the inputs take until the run ends: cached small files, and two bits per
    /// ordinal for the winners.
    pub fn cached_bytes(&self) -> usize {
        let files = self.files.iter().map(|file| file.file.cached_bytes());
        files.sum::<usize>() + self.ordinal_counts().sum::<u64>() as usize / 4
    }

    pub(crate) fn roles(&self) -> Roles {
        Roles {
            key: self.key.iter().filter_map(|name| self.raw_column(name)).collect(),
            op: self.raw_column(&self.raw.op.name),
            order: self.raw.order_by.iter().map(|name| self.raw_column(name)).collect(),
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

    /// Finds the inputs whose rows cannot be read, and why. Decodes all columns of all inputs.
    ///
    /// # Errors
    /// Storage, when an input cannot be fetched.
    pub async fn find_damaged(self: &Arc<Self>, threads: usize) -> Result<Vec<(RawFile, Error)>> {
        let files = Arc::new(Work::new((0..self.files.len()).collect()));
        let tasks = (0..threads.max(1)).map(|_| {
            let (changes, files) = (Arc::clone(self), Arc::clone(&files));
            spawn(async move {
                let mut damaged = Vec::new();
                while let Some(number) = files.next() {
                    let OpenInput { input, file, .. } = &changes.files[number];
                    let columns: Vec<usize> = (0..file.schema().fields().len() - 1).collect();
                    let mut rows = file.read(&columns, changes.batch_rows);
                    loop {
                        match rows.try_next().await {
                            Ok(Some(_)) => {}
                            Ok(None) => break,
                            Err(error) if error.kind == Kind::Data => {
                                damaged.push((input.file.clone(), error));
                                break;
                            }
                            Err(error) => return Err(error),
                        }
                    }
                }
                Ok(damaged)
            })
        });
        Ok(join_all(tasks).await?.into_iter().flatten().collect())
    }

    /// The order columns that the inputs have, and the kinds of their values.
    pub fn order_kinds(&self) -> Vec<(String, String)> {
        let columns = self.raw.order_by.iter();
        let kinds = columns.filter_map(|name| {
            let data_type = self.raw_schema.field(self.raw_column(name)?).data_type();
            let kind = OrderEncoder::kind(data_type, *name == self.raw.commit_time);
            Some((name.clone(), kind))
        });
        kinds.collect()
    }

    /// Whether positions are packed integers, because the only order column is the commit time.
    pub fn is_packed(&self) -> bool {
        self.raw.order_by.len() == 1 && self.raw.order_by[0] == self.raw.commit_time
    }

    fn check_columns(&self) -> Result<()> {
        let reserved = [EVENT_DT, POSITION, LIVE, LATEST];
        let is_used = |name: &&str| self.raw_schema.index_of(name).is_ok();
        if let Some(name) = reserved.into_iter().find(is_used) {
            return Err(Error::data(format!(
                "the raw column `{name}` has a name that is reserved"
            ))
            .hint("rename the column where the changes are captured"));
        }
        for name in [&self.raw.commit_time, &self.raw.event_time] {
            let Some(column) = self.raw_column(name) else {
                continue;
            };
            let data_type = self.raw_schema.field(column).data_type();
            if !is_time_type(data_type) {
                let file = self.files.iter().find(|file| file.columns[column].is_some());
                let file = file.map_or("the raw files", |file| &file.file.name);
                return Err(Error::data(format!(
                    "column `{name}` of {file} is {data_type}, which is not a time"
                ))
                .hint("name a timestamp, date or text column"));
            }
        }
        Ok(())
    }

    /// The index of a raw column, by its name; if there is none, by its name in another case.
    pub fn raw_column(&self, name: &str) -> Option<usize> {
        find_column(self.raw_schema.fields().iter().map(|field| field.name().as_str()), name)
    }

    /// Distributes whole files, and row groups of large files, to partitions by size. Depends on the
    /// inputs only, so that a plan can be executed twice.
    pub(crate) fn distribute(
        &self,
        partitions: usize,
        winners: Option<&Winners>,
    ) -> Vec<Vec<ReadUnit>> {
        let mut units: Vec<(u64, ReadUnit)> = Vec::new();
        for (index, file) in self.files.iter().enumerate() {
            let mut selected = Vec::new();
            let mut first_row = 0;
            for (group, metadata) in file.file.row_groups().iter().enumerate() {
                let rows = metadata.rows;
                let per_row = self.ordinals_per_row();
                let is_selected = winners.is_none_or(|winners| {
                    winners.has_any(index, first_row * per_row..(first_row + rows) * per_row)
                });
                if is_selected {
                    selected.push((group, first_row, rows, metadata.bytes));
                }
                first_row += rows;
            }
            let bytes: u64 = selected.iter().map(|group| group.3).sum();
            let parts = if bytes >= SPLIT_BYTES_MIN {
                selected.chunks(1)
            } else {
                selected.chunks(selected.len().max(1))
            };
            for part in parts {
                units.push((
                    part.iter().map(|group| group.3).sum(),
                    ReadUnit {
                        file: index,
                        row_groups: part.iter().map(|group| (group.0, group.1, group.2)).collect(),
                    },
                ));
            }
        }
        units.sort_by_key(|(bytes, unit)| (std::cmp::Reverse(*bytes), unit.file));
        let mut partitioned: Vec<(u64, Vec<ReadUnit>)> = vec![(0, Vec::new()); partitions.max(1)];
        for (bytes, unit) in units {
            if let Some(least) = partitioned.iter_mut().min_by_key(|(load, _)| *load) {
                least.0 += bytes;
                least.1.push(unit);
            }
        }
        partitioned
            .into_iter()
            .map(|(_, mut units)| {
                units.sort_by_key(|unit| (unit.file, unit.row_groups.first().map(|group| group.1)));
                units
            })
            .collect()
    }
}

/// Keeps the inputs that have all required columns. The others are added to `bad_files`, or are an
/// error, as the pipeline says.
fn with_required_columns(
    opened: Vec<Opened>,
    pipeline: &Pipeline,
    known: &KnownColumns,
    bad_files: &mut Vec<(Input, Error)>,
) -> Result<Vec<Opened>> {
    let required = RequiredColumns::new(pipeline, &opened, known)?;
    let mut complete = Vec::new();
    for one in opened {
        match required.check(&one) {
            Err(error) if pipeline.raw.on_bad_file == OnBad::Quarantine => {
                bad_files.push((one.input, error));
            }
            Err(error) => return Err(error),
            Ok(()) => complete.push(one),
        }
    }
    Ok(complete)
}

/// One input, whose columns are mapped later, and its bad rows that were found when it was opened.
fn open_input(opened: Opened, raw: &Raw) -> Result<(OpenInput, Vec<BadRow>)> {
    let (input, file, mut bad_rows) = (opened.input, opened.file, opened.bad_rows);
    if let Some(only) = &input.only {
        bad_rows.retain(|bad| only.binary_search(&bad.row).is_ok());
    }
    let rows_max = ROWS_MAX / ordinals_per_row(raw);
    if file.row_count() >= rows_max {
        return Err(Error::data(format!("{} has more than {rows_max} rows", file.name)));
    }
    let mut placeholders: Vec<u64> = bad_rows.iter().map(|bad| bad.row).collect();
    placeholders.sort_unstable();
    let input = OpenInput { input, file, columns: Vec::new(), to_check: Vec::new(), placeholders };
    Ok((input, bad_rows))
}

/// Maps the raw columns to each file's own. Files that share a schema are mapped once.
fn map_columns(files: &mut [OpenInput], union: &RawColumns<'_>) {
    let mut last: Option<(SchemaRef, Vec<Option<usize>>, Vec<usize>)> = None;
    for file in files {
        let schema = file.file.schema();
        let is_last = |(last, ..): &(SchemaRef, _, _)| Arc::ptr_eq(last, schema);
        let (_, columns, to_check) = last.take_if(|last| is_last(last)).unwrap_or_else(|| {
            let columns = union.columns_of(&file.file);
            let fits = |index: usize, field: &Field| {
                always_fits(schema.field(index).data_type(), field.data_type())
            };
            let each = columns.iter().zip(&union.fields).enumerate();
            let to_check =
                each.filter(|(_, (index, field))| index.is_some_and(|index| !fits(index, field)));
            let to_check = to_check.map(|(column, _)| column).collect();
            (Arc::clone(schema), columns, to_check)
        });
        let schema = Arc::clone(schema);
        file.columns.clone_from(&columns);
        file.to_check.clone_from(&to_check);
        last = Some((schema, columns, to_check));
    }
}

/// The number of ordinals per row: two if a row can be a delete of another key first.
fn ordinals_per_row(raw: &Raw) -> u64 {
    1 + u64::from(raw.before_image_prefix.is_some())
}

/// The names of a file's columns.
fn names(file: &ParquetFile) -> impl Iterator<Item = &str> + Clone {
    let fields = file.schema().fields();
    let fields = fields[..fields.len() - 1].iter();
    fields.map(|field| field.name().as_str())
}

/// The columns that the pipeline requires in full loads and in CDC files, with the setting that names
/// each.
struct RequiredColumns<'a> {
    full_load: Vec<(&'static str, &'a str)>,
    cdc: Vec<(&'static str, &'a str)>,
}

impl<'a> RequiredColumns<'a> {
    fn new(pipeline: &'a Pipeline, opened: &[Opened], known: &KnownColumns) -> Result<Self> {
        let raw = &pipeline.raw;
        let full_load: Vec<(&str, &str)> =
            pipeline.key.iter().map(|name| ("key", name.as_str())).collect();
        let mut cdc = full_load.clone();
        let order = raw.order_by.iter();
        cdc.extend(order.map(|name| ("raw.order_by", name.as_str())));
        cdc.push(("raw.commit_time", &raw.commit_time));
        if raw.op.required {
            cdc.push(("raw.op", &raw.op.name));
        }
        let has_cdc = opened.iter().any(|one| !one.input.full_load && !one.is_blank);
        let exists = |name: &str| {
            let mut files = opened.iter();
            let mut known = known.all.iter();
            files.any(|one| !one.is_blank && find_column(names(&one.file), name).is_some())
                || known.any(|(known, _)| known.eq_ignore_ascii_case(name))
        };
        // Single files may lack the event time.
        let event_time = ("raw.event_time", raw.event_time.as_str());
        let of_cdc = cdc.iter().copied().chain([event_time]);
        let of_cdc = of_cdc.filter(|_| has_cdc);
        let wanted = full_load.iter().copied().chain(of_cdc);
        let all_blank = opened.iter().all(|one| one.is_blank);
        let missing = wanted.filter(|_| !all_blank).find(|(_, name)| !exists(name));
        if let Some((setting, name)) = missing {
            return Err(unknown_column(setting, name, opened));
        }
        Ok(RequiredColumns { full_load, cdc })
    }

    fn check(&self, opened: &Opened) -> Result<()> {
        let required = if opened.input.full_load { &self.full_load } else { &self.cdc };
        if opened.is_blank {
            return Ok(());
        }
        let is_missing = |(_, name): &&(_, &str)| find_column(names(&opened.file), name).is_none();
        let Some((_, name)) = required.iter().find(is_missing) else {
            return Ok(());
        };
        let found = names(&opened.file).collect::<Vec<_>>().join(", ");
        Err(Error::data(format!("column `{name}` missing in {}", opened.file.name))
            .hint(format!("other files have it; found: {found}")))
    }
}

fn unknown_column(setting: &str, name: &str, opened: &[Opened]) -> Error {
    let mut found: Vec<&str> = Vec::new();
    for column in opened.iter().flat_map(|one| names(&one.file)) {
        if !found.contains(&column) {
            found.push(column);
        }
    }
    let is_similar = |known: &&&str| strsim::jaro_winkler(known, name) > SIMILARITY_MIN;
    let similar = found.iter().find(is_similar);
    let meant = similar.map_or(String::new(), |known| format!("did you mean `{known}`? "));
    Error::usage(format!("no raw file has the column `{name}`, which `{setting}` names"))
        .hint(format!("{meant}found: {}", found.join(", ")))
}

/// Part of one input: its index, and row groups as (number, first row, rows).
#[derive(Clone, Debug)]
pub(crate) struct ReadUnit {
    pub(crate) file: usize,
    pub(crate) row_groups: Vec<(usize, usize, usize)>,
}
