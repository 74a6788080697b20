//! Changes: all inputs of a run as one relation.
//!
//! | column | Arrow type | nullable | meaning |
//! |---|---|---|---|
//! | the raw columns | as found, widened over all inputs | yes | matched by name; null if an input lacks it |
//! | day | Date32 | yes | the day: of the event time for I and U, of the commit time for D |
//! | position | see [`crate::changes::position`] | no | the position in the order of changes |
//! | live | Boolean | no | whether the operation is I or U |
//! | latest | Boolean | no | whether this is its key's last change (pass two only) |
//!
//! Whoever reads the relation chooses its columns and names them ([`ChangeColumn`]), so that no name of
//! a raw column is reserved. In `curated.sql` the day is `event_dt`, or has another name where that is
//! a raw column ([`Changes::day_names`]).
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

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use futures::TryStreamExt;

use crate::changes::pass_one::{FoundFloors, PassOne};
use crate::changes::position::{FILES_MAX, OrderEncoder, ROWS_MAX};
use crate::changes::row_bitmap::Winners;
use crate::config::{
    Keep, OnBad, OpValues, Pipeline, QueryColumns, Raw, TimeUnit, WindowBy, covers,
};
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::{Error, Kind, Result};
use crate::layout::{FileOrder, file_time};
use crate::parquet_io::open::ParquetFile;
use crate::raw::bad_rows::{BadRow, BadRows, with_fields};
use crate::raw::columns::{RawColumns, UsedColumns, find_column};
use crate::raw::discover::{Input, RawFile};
use crate::raw::envelope::{ENVELOPES_MEANT, look_like_envelopes};
use crate::raw::open::{Opened, Opening, Spilled};
use crate::raw::schema_changes::{KnownColumns, Newest, SchemaChange, SchemaChanges};
use crate::types::column_type::{always_fits, has_text};
use crate::types::key_hash::ForgottenKeys;
use crate::types::mask::Mask;
use crate::types::times::{instant_ns, is_time_type};

use commit_time::{CommitTime, commit_time, time_of_file};
use delete_when::DeleteWhen;
use forgotten::KeyColumns;

pub(crate) mod commit_time;
mod delete_when;
pub(crate) mod file_order;
pub(crate) mod forgotten;
pub(crate) mod key_moves;
mod load_times;
pub(crate) mod pass_one;
pub(crate) mod position;
pub(crate) mod reader;
pub(crate) mod row_bitmap;

/// The day of a change, in queries.
pub(crate) const EVENT_DT: &str = "event_dt";
/// What the day's name begins with, where `event_dt` is a raw column.
const OF_CHANGE: &str = "change_";

/// A column of the relation of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeColumn {
    /// A raw column, by its index.
    Raw(usize),
    /// The day.
    Day,
    /// The position in the order of changes.
    Position,
    /// The commit time in microseconds since 1970; [`BEFORE_ALL`] for a full load that is before all changes, and
    /// for all but deletes where only their times are kept.
    Instant,
    /// Whether the operation is I or U.
    Live,
    /// Whether a change is its key's last.
    Latest,
}

/// The instant of a change without a commit time, or of one whose commit time is not kept.
pub(crate) const BEFORE_ALL: i64 = i64::MIN;

/// The instant of a time in nanoseconds since 1970.
pub(crate) fn instant_of(time: Option<i128>) -> i64 {
    time.map_or(BEFORE_ALL, |ns| i64::try_from(ns.div_euclid(1000)).unwrap_or(i64::MAX))
}

/// From this similarity on (1 is equal) a name may be a misspelling of another.
const SIMILARITY_MIN: f64 = 0.85;
/// A larger file is split into its row groups, so that every thread has work.
const SPLIT_BYTES_MIN: u64 = 32 << 20;

/// The opened inputs of a run.
#[derive(Debug)]
pub struct Changes {
    files: Vec<OpenInput>,
    raw_schema: SchemaRef,
    /// The same before they are masked.
    source_schema: SchemaRef,
    /// Per raw column, whether it has no type of its own: it has only nulls so far, or is not used.
    untyped: Vec<bool>,
    /// Per raw column, whether the pipeline uses it.
    is_used: Vec<bool>,
    /// Per raw column, whether its types have no common type. It is not used.
    is_mixed: Vec<bool>,
    /// The raw columns that are other names of columns, with the names that the files have.
    other_names: Vec<(usize, String)>,
    /// The names of the day in `curated.sql`.
    day_names: Vec<String>,
    key: Vec<String>,
    /// Which rows the curated table holds.
    keep: Keep,
    raw: Raw,
    commit_time: CommitTime,
    delete_when: Option<DeleteWhen>,
    /// Per key column the column with its value before an update, if inputs have it.
    before_images: Vec<Option<usize>>,
    schema_changes: Vec<SchemaChange>,
    newest: Newest,
    /// The rows that were found to be bad when the inputs were opened.
    bad_rows: Arc<BadRows>,
    /// Whether pass one reads all used texts, so that bad ones are known in pass two.
    pub(crate) checks_texts: bool,
    /// Key moves without a delete, once they are known.
    key_swaps: OnceLock<KeySwaps>,
    /// The floors of full loads with a time, which the inputs begin, and of truncates by hand.
    timed_floors: Vec<FoundFloors>,
    batch_rows: usize,
    /// The number of changes of other tables in the inputs, which are none of the rows.
    other_rows: u64,
    /// What is left out, if keys were forgotten.
    left_out: Option<LeftOut>,
    /// The spilled files that stand for inputs of another format.
    _spilled: Spilled,
}

/// The key moves that swap keys, and so delete no row ([`crate::changes::key_moves`]): the numbers of
/// their inputs and rows.
pub(crate) type KeySwaps = HashSet<(u32, u64)>;

/// What is left out of changes because keys were forgotten.
#[derive(Debug)]
struct LeftOut {
    keys: Arc<ForgottenKeys>,
    columns: KeyColumns,
    /// How many of the rows that were found to be bad when the inputs were opened.
    bad_rows: u64,
}

/// One opened input.
#[derive(Debug)]
pub(crate) struct OpenInput {
    pub(crate) input: Input,
    pub(crate) file: ParquetFile,
    /// Per raw column: its index in the file.
    pub(crate) columns: Vec<Option<usize>>,
    /// The raw columns of which the file may have values that do not fit.
    pub(crate) to_check: Vec<usize>,
    /// Whether it has no values.
    pub(crate) is_blank: bool,
    /// Whether its values are masked already.
    is_masked: bool,
    /// The rows that are placeholders of bad rows, and of rows that are no changes, ascending; within
    /// `only` if the input has that.
    pub(crate) placeholders: Vec<u64>,
    /// The number of rows that are no changes, among those.
    pub(crate) ignored: u64,
    /// The raw columns that are said by where it is, and their values.
    constants: Vec<(usize, Option<String>)>,
    /// The commit time of its changes in nanoseconds since 1970, if no column has it: that of the file, or
    /// of the full load.
    pub(crate) commit_time: Option<i128>,
}

impl OpenInput {
    /// The value of a raw column that is said by where the file is; `None` for other columns.
    pub(crate) fn constant(&self, column: usize) -> Option<Option<&str>> {
        let found = self.constants.iter().find(|(constant, _)| *constant == column);
        found.map(|(_, value)| value.as_deref())
    }

    /// The time of the full load that it is a file of, in nanoseconds since 1970, if loads have a time.
    pub(crate) fn load_at(&self) -> Option<i128> {
        self.input.file.load.as_ref().map(|load| instant_ns(load.at))
    }
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
        check_count(&inputs)?;
        let raw = &pipeline.raw;
        let bad_rows = Arc::clone(opening.bad_rows);
        let (checks_texts, threads, loads) = (opening.checks_texts, opening.threads, opening.loads);
        let used = UsedColumns::of(pipeline);
        let mut all = opening.open(inputs, &key_in_files(pipeline), &used).await?;
        let mut bad_files = std::mem::take(&mut all.bad);
        let opened = with_required_columns(all.opened, pipeline, known, &mut bad_files)?;
        let mut union = RawColumns::new(raw, &used);
        let mut schema_changes = SchemaChanges::new(known, raw);
        let mut files = Vec::with_capacity(opened.len());
        let other_rows = opened.iter().map(|one| one.other_rows).sum();
        for (number, mut one) in opened.into_iter().enumerate() {
            let (source, has_columns) = (one.source.take(), !one.is_blank);
            let (mut file, bad) = open_input(one, raw)?;
            file.is_masked = source.is_some();
            if has_columns {
                union.add(&file.file, source.as_ref())?;
            }
            if !file.is_blank {
                schema_changes.observe(&file.file, &file.input);
            }
            bad_rows.put(number, bad);
            files.push(file);
        }
        union.add_others(&known.all, !files.is_empty())?;
        check_names_of_masks(&union, raw, !files.is_empty())?;
        let untyped = union.settle(&pipeline.key);
        map_columns(&mut files, &union, raw, checks_texts);
        set_constants(&mut files, &union, raw);
        let is_raw = |name: &str| union.fields.iter().any(|field| field.name() == name);
        let day_names = day_names(is_raw, used.query());
        check_meaning_of_day(&union, known, pipeline, &day_names[0])?;
        let columns = union.types();
        let commit_time =
            commit_time(raw, &files, &columns, &known.orders, &|name| union.find(name));
        commit_time.check(raw, &files, &columns)?;
        set_times_of_files(&mut files, commit_time, raw)?;
        let images = raw.before_images(&pipeline.key);
        let before_images = images.iter().map(|name| union.find(name)).collect();
        let raw_schema = Arc::new(Schema::new(union.masked()));
        let source_schema = Arc::new(Schema::new(union.fields));
        let has_values = |_: &_| files.iter().any(|file| !file.is_blank);
        let delete_when = match raw.delete_when.as_ref().filter(has_values) {
            Some(condition) => Some(DeleteWhen::new(condition, &raw_schema)?),
            None => None,
        };
        let mut changes = Changes {
            commit_time,
            delete_when,
            day_names,
            before_images,
            files,
            raw_schema,
            source_schema,
            untyped,
            is_used: union.is_used,
            is_mixed: union.is_mixed,
            other_names: union.other_names,
            key: pipeline.key.clone(),
            keep: pipeline.keep,
            raw: raw.clone(),
            newest: schema_changes.newest,
            schema_changes: schema_changes.seen,
            bad_rows,
            checks_texts,
            key_swaps: OnceLock::new(),
            timed_floors: Vec::new(),
            batch_rows,
            other_rows,
            left_out: None,
            _spilled: all.spilled,
        };
        if !changes.is_blank() {
            changes.check_columns()?;
            changes.time_full_loads(loads, threads).await?;
        }
        Ok((changes, bad_files))
    }

    /// The raw columns of all inputs. A column has the type Null if it has only nulls so far and the
    /// pipeline does not say what it is.
    pub fn raw_schema(&self) -> &SchemaRef {
        &self.raw_schema
    }

    /// The raw columns whose types have no common type. None of them is used.
    pub(crate) fn mixed_columns(&self) -> impl Iterator<Item = &FieldRef> + '_ {
        let columns = self.raw_schema.fields().iter().zip(&self.is_mixed);
        columns.filter(|(_, is_mixed)| **is_mixed).map(|(field, _)| field)
    }

    /// The names of the day in `curated.sql`: `event_dt`. If raw has a column of that name, this is
    /// the raw column, and the day is `change_event_dt` (if raw has that too, with one more `change_`).
    /// Where the query writes that name, it is a name of the day in any case.
    pub(crate) fn day_names(&self) -> &[String] {
        &self.day_names
    }

    /// The name that the files have for a column that the query may give another name.
    pub(crate) fn first_name(&self, name: String) -> String {
        let is_other =
            |(other, _): &&(usize, String)| *self.raw_schema.field(*other).name() == name;
        let other = self.other_names.iter().find(is_other);
        other.map_or(name, |(_, first)| first.clone())
    }

    /// The columns by which changes are folded: the key columns, and the instant if the table keeps times.
    pub(crate) fn fold_columns(&self) -> Result<Vec<ChangeColumn>> {
        let mut columns = self.key_columns()?;
        columns.extend(self.keep.keeps_times().then_some(ChangeColumn::Instant));
        Ok(columns)
    }

    /// Whether changes of a history are told apart by the times of their files alone.
    pub(crate) fn has_times_of_files(&self) -> bool {
        let mut cdc = self.files.iter().filter(|file| !file.input.full_load);
        self.keep == Keep::History && self.commit_time_column().is_none() && cdc.next().is_some()
    }

    /// Whether only deletes are folded by their instants.
    pub(crate) fn keeps_times_of_deletes(&self) -> bool {
        self.keep == Keep::LatestAndDeleted
    }

    /// The number of columns by which changes are folded.
    pub(crate) fn fold_count(&self) -> usize {
        self.key.len() + usize::from(self.keep.keeps_times())
    }

    /// The key columns.
    pub(crate) fn key_columns(&self) -> Result<Vec<ChangeColumn>> {
        let column = |name: &String| {
            let lost = || Error::internal(format!("the key column `{name}` is missing"));
            self.raw_column(name).map(ChangeColumn::Raw).ok_or_else(lost)
        };
        self.key.iter().map(column).collect()
    }

    /// Whether a raw column has only nulls so far, so that its type is unknown.
    pub(crate) fn is_untyped(&self, name: &str) -> bool {
        self.raw_column(name).is_some_and(|column| self.untyped[column])
    }

    /// Whether the pipeline uses a column that has only nulls so far, so that its type is unknown.
    pub(crate) fn has_untyped(&self) -> bool {
        self.untyped.iter().zip(&self.is_used).any(|(untyped, is_used)| *untyped && *is_used)
    }

    /// The number of rows of each input, in input order.
    pub fn row_counts(&self) -> impl Iterator<Item = u64> + '_ {
        self.files.iter().map(|file| file.file.row_count())
    }

    /// Whether changes of equal commit times are a transaction, whose updates of keys happen at once.
    /// Without commit times they follow one another; so they do in envelopes, whose times are when a
    /// connector saw the changes.
    pub(crate) fn has_transactions(&self) -> bool {
        !self.before_images.is_empty()
            && self.commit_time_column().is_some()
            && !self.has_envelopes()
    }

    /// The columns of an input that are said by where it is, with their values.
    pub(crate) fn constants_of(
        &self,
        file: usize,
    ) -> impl Iterator<Item = (Option<&str>, Option<String>)> {
        let constants = self.files[file].constants.iter();
        constants.map(|(column, value)| {
            (Some(self.raw_schema.field(*column).name().as_str()), value.clone())
        })
    }

    /// Whether columns are said by where files are.
    pub(crate) fn has_constants(&self) -> bool {
        !self.raw.constants.is_empty()
    }

    /// Whether the rows come out of envelopes.
    pub(crate) fn has_envelopes(&self) -> bool {
        self.raw.envelope.is_some()
    }

    /// The number of rows that are no changes, by their envelopes.
    pub(crate) fn rows_ignored(&self) -> u64 {
        self.files.iter().map(|file| file.ignored).sum()
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

    /// Whether there are inputs, and none has any values.
    pub fn is_blank(&self) -> bool {
        !self.files.is_empty() && self.files.iter().all(|file| file.is_blank)
    }

    /// The counts of a scan of all rows that begins now.
    pub(crate) fn pass_one(&self) -> Arc<PassOne> {
        let (bad_rows, floors) = (self.bad_rows.copied(), self.timed_floors.clone());
        Arc::new(PassOne::new(bad_rows, self.bad_rows_forgotten(), floors))
    }

    /// Leaves the changes of forgotten keys out from now on.
    ///
    /// # Errors
    /// Usage, when the key is another one than that by which they were forgotten.
    pub(crate) fn leave_out(
        &mut self,
        forgotten: &Arc<ForgottenKeys>,
        pipeline: &Pipeline,
    ) -> Result<()> {
        if forgotten.is_empty() {
            return Ok(());
        }
        let columns = self.keys_in_texts(pipeline);
        columns.check(forgotten)?;
        let is_of_other = |bad: &BadRow| {
            let found = columns.in_text(forgotten, &bad.change);
            bad.column.is_none() || !found.has_forgotten || found.has_other
        };
        let bad_rows = self.bad_rows.retain(is_of_other);
        self.left_out = Some(LeftOut { keys: Arc::clone(forgotten), columns, bad_rows });
        Ok(())
    }

    /// How many bad rows were left out because their keys were forgotten.
    pub(crate) fn bad_rows_forgotten(&self) -> u64 {
        self.left_out.as_ref().map_or(0, |left_out| left_out.bad_rows)
    }

    /// The keys whose changes are left out, if there are any.
    fn forgotten_keys(&self) -> Option<&ForgottenKeys> {
        self.left_out.as_ref().map(|left_out| &*left_out.keys)
    }

    /// Whether a bad row, which has been read, may have a key that was forgotten.
    pub(crate) fn may_be_forgotten(&self, bad: &BadRow) -> bool {
        self.left_out.as_ref().is_some_and(|LeftOut { keys, columns, .. }| {
            columns.in_bad_row(keys, &bad.change, bad.column.is_some()).has_forgotten
        })
    }

    /// The rows that were found to be bad when the inputs were opened.
    pub(crate) fn bad_rows(&self) -> Arc<BadRows> {
        Arc::new(self.bad_rows.copied())
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
        let columns = self.source_schema.fields().iter().zip(&self.untyped).enumerate();
        let columns =
            columns.filter(|(index, _)| self.other_names.iter().all(|(other, _)| other != index));
        let columns = columns.map(|(_, (field, untyped))| {
            let data_type = if *untyped { &DataType::Null } else { field.data_type() };
            (field.name().clone(), data_type.clone())
        });
        let (orders, newest) = (self.order_kinds(), self.newest.clone());
        KnownColumns { all: columns.collect(), orders, newest }
    }

    /// The mask of a column of an input, by its name in the file; `None` if it has none, or the file has masked values
    /// already.
    pub(crate) fn mask_of(&self, file: usize, column: &str) -> Option<&Mask> {
        self.raw.masks.of(column).filter(|_| !self.files[file].is_masked)
    }

    /// The type of a raw column before it is masked.
    pub(crate) fn source_type(&self, column: usize) -> &DataType {
        self.source_schema.field(column).data_type()
    }

    /// The columns of raw by which keys are read from texts.
    fn keys_in_texts(&self, pipeline: &Pipeline) -> KeyColumns {
        let fields = self.source_schema.fields().iter();
        KeyColumns::new(pipeline, fields.map(|field| (field.name().as_str(), field.data_type())))
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
        let constants = &self.raw.constants;
        let is_in_key = |name: &str| self.key.iter().any(|key| key.eq_ignore_ascii_case(name));
        if !constants.is_empty() && !self.key.is_empty() && !constants.names().any(is_in_key) {
            let names: Vec<&str> = constants.names().collect();
            warnings.push(format!(
                "the key has none of the columns of sources and folders (`{}`): rows of two of them with one key are one row",
                names.join("`, `")
            ));
        }
        let op = self.raw.op.name.as_ref();
        if let Some(op) = op.filter(|op| self.is_missing_everywhere(op, true)) {
            warnings.push(format!(
                "no CDC file has the column `{op}`: all changes are read as inserts; set `raw.op` if the column has another name"
            ));
        }
        let names = self.raw_schema.fields().iter().map(|field| field.name().as_str());
        for (masked, is_own) in self.raw.masks.names().filter(|_| !self.is_empty()) {
            let is_missing = !names.clone().any(|name| covers(masked, name));
            if let Some(similar) = similar_without_mask(masked, names.clone(), &self.raw) {
                let missing = if is_missing { ", which no file has" } else { "" };
                warnings.push(format!(
                    "`{similar}` has no mask, and its name is similar to `{masked}`{missing}, which has one: if it needs none, \
                     write mask.{similar} = \"none\""
                ));
            } else if is_missing && is_own {
                warnings.push(format!("no file has the column `{masked}`, which `[mask]` names"));
            }
        }
        for (number, (name, _)) in self.raw.columns.iter().enumerate() {
            if self.raw.is_of_transactions(number) {
                continue;
            }
            if self.is_missing_everywhere(name, false) && !self.raw.op.is(name) {
                warnings.push(format!(
                    "no file has the column `{name}`, which `[raw.columns]` declares: its values are null"
                ));
            }
        }
        warnings
    }

    /// The first column with the key before an update, if no CDC file has any of them. A tool may
    /// write them only for the key columns that can change.
    pub fn missing_before_image(&self) -> Option<String> {
        if self.has_envelopes() {
            // An envelope has the row before an update, or has no need of it.
            return None;
        }
        let names = self.raw.before_images(&self.key);
        let are_missing = names.iter().all(|name| self.is_missing_everywhere(name, true));
        names.into_iter().next().filter(|_| are_missing)
    }

    /// Whether there are inputs, or CDC files with `cdc`, and none of them has a column.
    fn is_missing_everywhere(&self, name: &str, cdc: bool) -> bool {
        if self.raw.constants.has(name) {
            return false;
        }
        let column = self.raw_column(name);
        let mut files = self.files.iter().filter(|file| !cdc || !file.input.full_load).peekable();
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
        let files = self
            .files
            .iter()
            .map(|file| file.file.cached_bytes() + file.placeholders.len() * size_of::<u64>());
        files.sum::<usize>() + self.ordinal_counts().sum::<u64>() as usize / 4
    }

    pub(crate) fn roles(&self) -> Roles {
        Roles {
            key: self.key.iter().filter_map(|name| self.raw_column(name)).collect(),
            op: self.raw.op.name.as_ref().and_then(|name| self.raw_column(name)),
            order: self.raw.order_by.iter().map(|name| self.raw_column(name)).collect(),
            commit_time: self.commit_time_column(),
            event_time: match &self.raw.event_time {
                Some(name) => self.raw_column(name),
                None => self.commit_time_column(),
            },
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

    /// The zone whose days are the days of the changes.
    pub(crate) fn day_zone(&self) -> Tz {
        self.raw.day_zone
    }

    /// The columns of an input that the pipeline uses, as indices into the file, ascending.
    pub(crate) fn used_of(&self, file: usize) -> Vec<usize> {
        let columns = self.files[file].columns.iter().zip(&self.is_used);
        let used = columns.filter(|(_, is_used)| **is_used);
        let mut used: Vec<usize> = used.filter_map(|(column, _)| *column).collect();
        used.sort_unstable();
        used.dedup();
        used
    }

    /// Finds the inputs whose rows cannot be read, and why. Decodes all used columns of all inputs.
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
                    let groups = (0..file.row_groups().len()).map(|number| (number, None));
                    let columns = changes.used_of(number);
                    let mut rows = file.read_selected_raw(&columns, groups, changes.batch_rows);
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
            // A column that has only nulls so far may become of any kind.
            let column = self.raw_column(name).filter(|column| !self.untyped[*column])?;
            let data_type = self.raw_schema.field(column).data_type();
            let kind = OrderEncoder::kind(data_type, self.commit_time_column() == Some(column));
            Some((name.clone(), kind))
        });
        kinds.collect()
    }

    /// Whether positions are packed integers, because the only order column is the commit time, or
    /// there is no order column.
    pub fn is_packed(&self) -> bool {
        let names = &self.raw.order_by;
        match (&names[..], self.commit_time) {
            ([], _) => true,
            ([only], CommitTime::Column(column)) => match &self.raw.commit_time {
                Some(name) => only == name,
                None => column.is_none() || column == self.raw_column(only),
            },
            _ => false,
        }
    }

    /// The raw column with the commit time, if there is one.
    pub(crate) fn commit_time_column(&self) -> Option<usize> {
        match self.commit_time {
            CommitTime::Column(column) => column,
            CommitTime::File { .. } => None,
        }
    }

    /// Whether changes are ordered by their files and rows alone.
    pub(crate) fn is_ordered_by_files(&self) -> bool {
        self.raw.is_ordered_by_files()
    }

    /// The order of files.
    pub(crate) fn file_order(&self) -> FileOrder {
        self.raw.file_order()
    }

    /// The time in the name or folder of a file, if there is one.
    pub(crate) fn time_in_path(&self, file: usize) -> Option<DateTime<Utc>> {
        file_time(&self.files[file].input.file.path, self.raw.time_zone)
    }

    /// The unit of commit times that are numbers, in nanoseconds.
    pub(crate) fn commit_unit_ns(&self) -> Option<i128> {
        self.raw.commit_time_unit.map(TimeUnit::nanoseconds)
    }

    /// What the values of the operation column mean.
    pub(crate) fn op_values(&self) -> &OpValues {
        &self.raw.op.values
    }

    /// The condition under which a change is a delete.
    pub(crate) fn delete_when(&self) -> Option<&DeleteWhen> {
        self.delete_when.as_ref()
    }

    fn check_columns(&self) -> Result<()> {
        let roles = self.roles();
        for column in [roles.commit_time, roles.event_time].into_iter().flatten() {
            let field = self.raw_schema.field(column);
            let (name, data_type) = (field.name(), field.data_type());
            let has_unit = roles.commit_time == Some(column) && self.raw.commit_time_unit.is_some();
            if !is_time_type(data_type) && !has_unit {
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

/// The names of the day in `curated.sql`: see [`Changes::day_names`]. `is_raw` says which names are
/// raw columns.
fn day_names(is_raw: impl Fn(&str) -> bool, query: &QueryColumns) -> Vec<String> {
    let mut other = format!("{OF_CHANGE}{EVENT_DT}");
    while is_raw(&other) {
        other.insert_str(0, OF_CHANGE);
    }
    if is_raw(EVENT_DT) {
        return vec![other];
    }
    let is_written = query.spells(&other);
    std::iter::once(EVENT_DT.to_string()).chain(is_written.then_some(other)).collect()
}

/// Refuses a mask of the pipeline of a column that no file has, if a column of a similar name has none; and one of a part of a column
/// that has no mask as a whole: their values would be stored.
fn check_names_of_masks(union: &RawColumns<'_>, raw: &Raw, has_files: bool) -> Result<()> {
    let names = || union.fields.iter().map(|field| field.name().as_str());
    for (masked, is_own) in raw.masks.names().filter(|_| has_files) {
        let is_around = |name: &&str| name.len() < masked.len() && covers(name, masked);
        if let Some(around) = names().find(|name| is_around(name) && !raw.masks.decides(name)) {
            return Err(Error::usage(format!(
                "`[mask]` names `{masked}`, a part of the column `{around}`, which has no mask"
            ))
            .hint(format!(
                "a part of a column cannot be masked by itself: mask `{around}`, or write mask.{around} = \"none\""
            )));
        }
        let is_missing = is_own && !names().any(|name| covers(masked, name));
        let similar = similar_without_mask(masked, names(), raw).filter(|_| is_missing);
        if let Some(similar) = similar {
            return Err(Error::usage(format!(
                "no raw file has the column `{masked}`, which `[mask]` names, and `{similar}` has no mask"
            ))
            .hint(format!(
                "did you mean `{similar}`? If it needs none, write mask.{similar} = \"none\""
            )));
        }
    }
    Ok(())
}

/// A column whose name is similar to another one, and of which `[mask]` does not say that it has none.
fn similar_without_mask<'a>(
    wanted: &str,
    mut names: impl Iterator<Item = &'a str>,
    raw: &Raw,
) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    names.find(|name| {
        let similarity = strsim::jaro_winkler(&name.to_lowercase(), &wanted);
        !raw.masks.decides(name) && similarity > SIMILARITY_MIN
    })
}

/// Refuses a new raw column whose name the query has used for the day, such as `event_dt`: the rows of
/// earlier runs have the day in it. `day` is the name of the day from now on.
fn check_meaning_of_day(
    union: &RawColumns<'_>,
    known: &KnownColumns,
    pipeline: &Pipeline,
    day: &str,
) -> Result<()> {
    if known.all.is_empty() {
        return Ok(());
    }
    let was_raw = |wanted: &str| known.all.iter().any(|(name, _)| name == wanted);
    let query = union.used.query();
    for name in day_names(was_raw, query) {
        let Some(file) = union.source_of(&name).filter(|_| query.uses(&name)) else {
            continue;
        };
        return Err(Error::data(format!(
            "{file} has a column `{name}`: in earlier runs this name was the change's day in {}",
            pipeline.curated.sql.file
        ))
        .hint(format!(
            "from now on it is that column, and the day is `{day}`: write what the table is to \
             have, and rebuild it: glueless rebuild"
        )));
    }
    Ok(())
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

/// The columns of the key that are in raw files.
fn key_in_files(pipeline: &Pipeline) -> Vec<String> {
    let constants = &pipeline.raw.constants;
    pipeline.key.iter().filter(|name| !constants.has(name)).cloned().collect()
}

/// Checks that one run can read the inputs.
fn check_count(inputs: &[Input]) -> Result<()> {
    if inputs.len() > FILES_MAX {
        return Err(Error::usage(format!(
            "the window has {} files; one run reads at most {FILES_MAX}",
            inputs.len()
        ))
        .hint("run smaller windows"));
    }
    Ok(())
}

/// Sets the commit time of the files of which no column has it.
fn set_times_of_files(files: &mut [OpenInput], commit_time: CommitTime, raw: &Raw) -> Result<()> {
    let CommitTime::File { full_loads } = commit_time else { return Ok(()) };
    if raw.window_by == WindowBy::Commit {
        return Err(no_commit_times());
    }
    for file in files.iter_mut().filter(|file| full_loads || !file.input.full_load) {
        file.commit_time = Some(time_of_file(&file.input.file, raw.time_zone));
    }
    Ok(())
}

/// One input, whose columns are mapped later, and its bad rows that were found when it was opened.
fn open_input(opened: Opened, raw: &Raw) -> Result<(OpenInput, Vec<BadRow>)> {
    let (input, file, mut bad_rows) = (opened.input, opened.file, opened.bad_rows);
    for bad in bad_rows.iter_mut().filter(|bad| !bad.change.is_empty()) {
        let values = raw.constants.of(input.file.location, &input.file.path);
        let named = raw.constants.names().map(Some).zip(values);
        bad.change = with_fields(&bad.change, named);
    }
    let mut ignored = opened.ignored;
    if let Some(only) = &input.only {
        bad_rows.retain(|bad| only.binary_search(&bad.row).is_ok());
        ignored.retain(|row| only.binary_search(row).is_ok());
    }
    let rows_max = ROWS_MAX / ordinals_per_row(raw);
    if file.row_count() >= rows_max {
        return Err(Error::data(format!("{} has more than {rows_max} rows", file.name)));
    }
    let mut placeholders: Vec<u64> = bad_rows.iter().map(|bad| bad.row).collect();
    placeholders.extend_from_slice(&ignored);
    placeholders.sort_unstable();
    let input = OpenInput {
        input,
        is_blank: opened.is_blank || has_no_values(&file),
        is_masked: false,
        file,
        columns: Vec::new(),
        to_check: Vec::new(),
        placeholders,
        ignored: ignored.len() as u64,
        constants: Vec::new(),
        commit_time: None,
    };
    Ok((input, bad_rows))
}

/// Sets the values of columns that are said by where files are.
fn set_constants(files: &mut [OpenInput], union: &RawColumns<'_>, raw: &Raw) {
    if raw.constants.is_empty() {
        return;
    }
    let columns: Vec<Option<usize>> = raw.constants.names().map(|name| union.find(name)).collect();
    for file in files {
        let values = raw.constants.of(file.input.file.location, &file.input.file.path);
        let each = columns.iter().zip(values);
        file.constants = each.filter_map(|(column, value)| Some(((*column)?, value))).collect();
    }
}

/// Maps the raw columns to each file's own. Files that share a schema are mapped once.
fn map_columns(files: &mut [OpenInput], union: &RawColumns<'_>, raw: &Raw, checks_texts: bool) {
    let mut last: Option<(SchemaRef, Vec<Option<usize>>, Vec<usize>)> = None;
    for file in files {
        let schema = file.file.schema();
        let is_last = |(last, ..): &(SchemaRef, _, _)| Arc::ptr_eq(last, schema);
        let (_, columns, to_check) = last.take_if(|last| is_last(last)).unwrap_or_else(|| {
            let columns = union.columns_of(&file.file);
            let fits = |index: usize, field: &Field| {
                let data_type = schema.field(index).data_type();
                let mask = raw.masks.of(field.name());
                if mask.is_some() && file.is_masked {
                    return true;
                }
                always_fits(data_type, field.data_type())
                    && !mask.is_some_and(|mask| mask.may_fail(field.data_type()))
                    && !(checks_texts && has_text(data_type))
            };
            let each = columns.iter().zip(&union.fields).enumerate();
            let to_check = each
                .filter(|(column, (index, field))| {
                    union.is_used[*column] && index.is_some_and(|index| !fits(index, field))
                })
                .map(|(column, _)| column)
                .collect();
            (Arc::clone(schema), columns, to_check)
        });
        file.columns.clone_from(&columns);
        file.to_check.clone_from(&to_check);
        last = Some((Arc::clone(schema), columns, to_check));
    }
}

/// Whether a file has no values: a JSON file without values has no columns.
fn has_no_values(file: &ParquetFile) -> bool {
    let fields = file.schema().fields();
    fields[..fields.len() - 1].iter().all(|field| *field.data_type() == DataType::Null)
}

/// The number of ordinals per row: two if a row can be a delete of another key first.
fn ordinals_per_row(raw: &Raw) -> u64 {
    1 + u64::from(raw.before_image_prefix.is_some())
}

/// The names of a file's columns.
fn names(file: &ParquetFile) -> impl Iterator<Item = &str> + Clone {
    let fields = file.schema().fields();
    fields[..fields.len() - 1].iter().map(|field| field.name().as_str())
}

/// The columns that the pipeline requires in full loads and in CDC files, with the setting that names
/// each.
struct RequiredColumns<'a> {
    full_load: Vec<(&'static str, &'a str)>,
    cdc: Vec<(&'static str, &'a str)>,
    /// Whether the columns of files are named by their first line.
    has_header: bool,
}

impl<'a> RequiredColumns<'a> {
    fn new(pipeline: &'a Pipeline, opened: &[Opened], known: &KnownColumns) -> Result<Self> {
        let raw = &pipeline.raw;
        // Where a file is says the others.
        let is_in_rows = |name: &&String| !raw.constants.has(name);
        let full_load: Vec<(&str, &str)> =
            pipeline.key.iter().filter(is_in_rows).map(|name| ("key", name.as_str())).collect();
        let mut cdc = full_load.clone();
        let order = raw.order_by.iter().filter(is_in_rows);
        cdc.extend(order.map(|name| ("raw.order_by", name.as_str())));
        cdc.extend(raw.commit_time.iter().map(|name| ("raw.commit_time", name.as_str())));
        let op = raw.op.name.as_ref().filter(|_| raw.op.required);
        cdc.extend(op.map(|name| ("raw.op", name.as_str())));
        let has_cdc = opened.iter().any(|one| !one.input.full_load && !one.is_blank);
        let exists = |name: &str| {
            let mut files = opened.iter();
            let mut known = known.all.iter();
            files.any(|one| !one.is_blank && find_column(names(&one.file), name).is_some())
                || known.any(|(known, _)| known.eq_ignore_ascii_case(name))
        };
        // Single files may lack the event time.
        let event_time = raw.event_time.iter().filter(is_in_rows);
        let event_time = event_time.map(|name| ("raw.event_time", name.as_str()));
        let of_cdc = cdc.iter().copied().chain(event_time);
        let of_cdc = of_cdc.filter(|_| has_cdc);
        let wanted = full_load.iter().copied().chain(of_cdc);
        let has_values = opened.iter().any(|one| !one.is_blank && !has_no_values(&one.file));
        let mut missing = wanted.clone().filter(|_| has_values);
        if let Some((setting, name)) = missing.find(|(_, name)| !exists(name)) {
            if raw.csv.header && !wanted.clone().any(|(_, name)| exists(name)) {
                return Err(no_header(setting, name));
            }
            return Err(unknown_column(setting, name, opened));
        }
        Ok(RequiredColumns { full_load, cdc, has_header: raw.csv.header })
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
        // A file without rows, or with bad ones or no changes only, needs no columns.
        let has_values = !has_no_values(&opened.file) && opened.ignored.is_empty();
        if !has_values
            && opened.file.row_count() == (opened.bad_rows.len() + opened.ignored.len()) as u64
        {
            return Ok(());
        }
        let hint = if self.has_header {
            // The first line may be a row, whose values are not shown.
            "other files have it; check the first line of the file".to_string()
        } else {
            let found = names(&opened.file).collect::<Vec<_>>().join(", ");
            format!("other files have it; found: {found}")
        };
        Err(Error::data(format!("column `{name}` missing in {}", opened.file.name)).hint(hint))
    }
}

/// The error for a window of rows without commit times.
fn no_commit_times() -> Error {
    Error::usage("`raw.window_by` is `commit`, and no column of `raw.order_by` is a time")
        .hint("set `raw.commit_time`, or use `modified`, `name` or `path`")
}

/// The error where no column of CSV files has a known name: the first line may be a row, whose values
/// are not shown.
fn no_header(setting: &str, name: &str) -> Error {
    Error::usage(format!("no raw file has the column `{name}`, which `{setting}` names")).hint(
        "the first line of the files has none of the pipeline's columns: if it is a row, leave \
         raw.csv_header out, and list the columns in `[raw.columns]`",
    )
}

fn unknown_column(setting: &str, name: &str, opened: &[Opened]) -> Error {
    let mut found: Vec<&str> = Vec::new();
    for column in opened.iter().flat_map(|one| names(&one.file)) {
        if !found.contains(&column) {
            found.push(column);
        }
    }
    let is_similar = |known: &&&str| strsim::jaro_winkler(known, name) > SIMILARITY_MIN;
    let of_row = name.strip_prefix("after.").filter(|of_row| found.contains(of_row));
    let meant = of_row.or_else(|| found.iter().find(is_similar).copied());
    let mut hint = meant.map_or(String::new(), |meant| format!("did you mean `{meant}`? "));
    if look_like_envelopes(found.iter().copied()) {
        hint = format!("{ENVELOPES_MEANT}; ");
    }
    Error::usage(format!("no raw file has the column `{name}`, which `{setting}` names"))
        .hint(format!("{hint}found: {}", found.join(", ")))
}

/// Part of one input: its index, and row groups as (number, first row, rows).
#[derive(Clone, Debug)]
pub(crate) struct ReadUnit {
    pub(crate) file: usize,
    pub(crate) row_groups: Vec<(usize, usize, usize)>,
}
