//! Pass two: the payload of the last changes, through `curated.sql`, into staging.
//!
//! ```text
//! winners ─▶ merge with versions ─▶ winners that hold ─▶ curated.sql, made total ─┬─▶ versions
//!                  │                    (one stream per thread)                   └─▶ rows ─┐
//!                  └─▶ rows that go (tombstones) ─────────────────────────────────▶ sorter ─┤
//!                                                                                           ▼
//!                                                published partitions ─▶ rebuild ─▶ files in staging
//! ```
//!
//! Each thread has a sorter of its own, which spills when it must, so memory stays under the
//! limit whatever the number of rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{and, filter_record_batch};
use arrow::datatypes::{DataType, Date32Type, Field, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::change_reader::ChangesTable;
use crate::changes::{Changes, EVENT_DT, LATEST, LIVE};
use crate::column_type::widen;
use crate::config::{Format, Keep, OnTie, Pipeline};
use crate::curated_sql::{self, CuratedQuery, DAY};
use crate::discover::Input;
use crate::error::{Error, Result};
use crate::fold::{Fold, tied};
use crate::ledger::{CURATED, Ledger, Shape, read_types};
use crate::merge::{Merge, Merged, Outputs, PRESENT, StoredVersions};
use crate::parquet_file::conform;
use crate::rebuild::Earlier;
use crate::session::{Work, join, join_all};
use crate::sorter::{Order, Sorted, Sorter, compact};
use crate::state::State;
use crate::store::Folder;
use crate::table_writer::{StagedFile, TableWriter, Written};
use crate::versions::{VersionsLayout, canonical, with_one_zero};
use crate::versions_writer::{DayCounts, VersionsFile, VersionsWriter, day_ranges};

/// A file with versions that has fewer rows is put together with others once there are many.
const SMALL_ROWS: u64 = 50_000;
/// So many small files with versions may stand.
const SMALL_FILES_MAX: usize = 16;
/// More of them may stand where each run makes more: one per thread.
const SMALL_RUNS_MAX: usize = 4;

/// The way out where a column that is remembered has become something else.
const ONE_TYPE: &str = "give it one type in `[raw.columns]`, if all values can take it, and make the \
                        tables again: glueless rebuild";

/// What pass two made.
#[derive(Debug)]
pub struct Curated {
    /// The table's files, in staging.
    pub staged: Vec<StagedFile>,
    /// The partitions that were written, or left without rows.
    pub partitions: BTreeSet<String>,
    /// The versions' files, in the state folder and not yet committed.
    pub versions: Vec<VersionsFile>,
    /// The files with versions that these replace.
    pub replaced_versions: Vec<String>,
    /// The versions' layout.
    pub layout: Arc<VersionsLayout>,
    /// The table's columns.
    pub columns: Vec<Field>,
    /// What was counted on the way.
    pub counts: Counts,
    /// Last changes of the window not later than what versions hold.
    pub stale: u64,
    /// Of the bytes of the table's files the part of the new rows, by their number.
    pub bytes_changed: u64,
}

/// What one stream counted; sums over all streams.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Last changes that are rows of the table.
    pub rows_latest: u64,
    /// Last changes that leave no row: deletes, and rows that `curated.sql` filters out.
    pub rows_deleted: u64,
    /// Last changes per key and day.
    pub key_days: u64,
    /// The days whose rows change, as days since 1970.
    pub days: BTreeSet<i32>,
}

/// What pass two is made of.
#[derive(Debug)]
pub struct Curate<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The inputs.
    pub changes: &'a Arc<Changes>,
    /// Pass one's result.
    pub folded: &'a Fold,
    /// What earlier runs left; `None` to begin anew, and to replace all versions.
    pub earlier: Option<&'a Ledger>,
    /// The curated table.
    pub table: &'a Folder,
    /// The staging folder of the curated table.
    pub staging: &'a Folder,
    /// The folder of the state's Delta table.
    pub state: &'a Folder,
    /// The committed files with versions, and their sizes.
    pub stored: Vec<(String, u64)>,
    /// The folder that new files with versions are written to.
    pub versions: &'a Folder,
    /// The attempt's name, part of every path.
    pub attempt: &'a str,
    /// How many threads.
    pub threads: usize,
}

impl Curate<'_> {
    /// Runs pass two.
    ///
    /// # Errors
    /// Usage, when `curated.sql` is refused; data, when a row cannot be cast, or the table or the
    /// versions are not as they were left; storage, when staging or state cannot be written.
    pub async fn run(&self, context: &SessionContext) -> Result<Curated> {
        let winners = Arc::clone(&self.folded.winners);
        let table = ChangesTable::new(self.changes, Some(winners), self.threads);
        let query = curated_sql::plan(context, self.pipeline, self.changes, table).await?;
        let shape = self.earlier.and_then(|ledger| ledger.shape.as_ref());
        let columns = self.columns(&query, shape)?;
        let layout = Arc::new(self.versions_layout(&columns, shape)?);
        let (order, schema) = self.order(&columns)?;

        let stored = self.stored_versions();
        let mut days = self.folded.days.clone();
        for file in stored.iter().filter(|file| file.rewritten) {
            if let Some(counts) = self
                .earlier
                .and_then(|ledger| ledger.versions.get(&file.path))
            {
                days.add_all(counts);
            }
        }
        let starts = Arc::new(day_ranges(&days));
        let outputs: Outputs = (0..self.threads)
            .map(|thread| {
                let prefix = format!("{}-{thread:02}", State::versions_prefix(self.attempt));
                let sorter = Sorter::new(Arc::clone(&order), context.runtime_env());
                let versions = VersionsWriter::new(self.versions, &layout, prefix, &starts);
                (sorter, versions)
            })
            .collect();
        let replaced_versions = match self.earlier {
            Some(_) => {
                let rewritten = stored.iter().filter(|file| file.rewritten);
                rewritten.map(|file| file.path.clone()).collect()
            }
            None => self.stored.iter().map(|(path, _)| path.clone()).collect(),
        };
        let (query, merged, outputs) = match (stored.is_empty(), self.earlier) {
            (false, Some(ledger)) => {
                let merge = Merge {
                    pipeline: self.pipeline,
                    changes: self.changes,
                    folded: self.folded,
                    layout: &layout,
                    state: self.state,
                    stored,
                    folded_inputs: ledger.inputs.keys().cloned().collect(),
                    table_schema: Arc::clone(&schema),
                };
                let (merged, outputs) = merge.run(context, outputs).await?;
                let fails = self.pipeline.raw.on_tie == OnTie::Fail;
                if let Some((file, place)) = merged.counts.tie.filter(|_| fails) {
                    return Err(tied(&self.changes.place_name(file, place)));
                }
                let winners = Some(Arc::clone(&merged.winners));
                let table = ChangesTable::new(self.changes, winners, self.threads);
                let query = curated_sql::plan(context, self.pipeline, self.changes, table).await?;
                (query, Some(merged), outputs)
            }
            // Nothing that was there is touched.
            _ => (query, None, outputs),
        };

        let inputs: Arc<Vec<Input>> = Arc::new(self.changes.inputs().cloned().collect());
        let plan = context.state().create_physical_plan(&query.plan).await?;
        let streams = execute_stream_partitioned(plan, context.task_ctx())?;
        if streams.len() > self.threads {
            return Err(Error::internal("there are more streams than threads"));
        }
        let streams = Arc::new(Work::new(streams));
        let halves = outputs.into_iter().map(|outputs| {
            let half = FirstHalf {
                keep: self.pipeline.keep,
                schema: Arc::clone(&schema),
                key: self.pipeline.key.clone(),
                layout: Arc::clone(&layout),
                inputs: Arc::clone(&inputs),
                sql_file: self.pipeline.curated.sql.file.clone(),
            };
            let streams = Arc::clone(&streams);
            join(tokio::spawn(async move {
                streams.part(half.run(&streams, outputs)).await
            }))
        });
        let halves = join_all(halves).await?;

        let mut counts = Counts::default();
        let mut versions = Vec::new();
        let mut sorters = Vec::new();
        for (counted, files, sorter) in halves {
            sorters.push(sorter);
            counts.rows_latest += counted.rows_latest;
            counts.rows_deleted += counted.rows_deleted;
            counts.key_days += counted.key_days;
            counts.days.extend(counted.days);
            versions.extend(files);
        }
        let writer = TableWriter {
            staging: self.staging.clone(),
            prefix: format!("{}/curated", self.attempt),
            file_bytes: self.pipeline.curated.file_bytes,
        };
        let files = self
            .earlier
            .into_iter()
            .flat_map(|ledger| ledger.files(CURATED));
        let is_keyless = self.changes.is_keyless();
        let earlier = Arc::new(Earlier::new(self.table, files, &order, is_keyless)?);
        let sorted = Sorted::new(&order, sorters);
        let given = sorted.counts().clone();
        let written = writer.write(sorted, Some(earlier), self.threads).await?;

        let merged = merged.as_ref();
        counts
            .days
            .extend(merged.iter().flat_map(|merged| &merged.counts.days));
        let bytes_changed = check_written(&written, &given, merged)?;
        check_versions(&versions, &counts, merged)?;
        if let Some(merged) = merged
            && merged.counts.key_days != counts.key_days
        {
            return Err(adds_up(
                "winners that hold",
                merged.counts.key_days,
                counts.key_days,
            ));
        }
        Ok(Curated {
            partitions: written.iter().map(|one| one.partition.clone()).collect(),
            staged: written.into_iter().flat_map(|one| one.files).collect(),
            versions,
            replaced_versions,
            layout,
            columns,
            stale: merged.map_or(0, |merged| merged.counts.stale),
            bytes_changed,
            counts,
        })
    }

    /// The table's columns: those of the query, in types that what was published widens to.
    fn columns(&self, query: &CuratedQuery, shape: Option<&Shape>) -> Result<Vec<Field>> {
        let Some(shape) = shape else {
            return Ok(query.columns.clone());
        };
        let file = &self.pipeline.curated.sql.file;
        let mut columns = Vec::new();
        for (name, published) in read_types(&shape.columns)? {
            let column = query.columns.iter().find(|column| *column.name() == name);
            let data_type = match column {
                // A raw column that no file of the window has.
                None => published,
                Some(column) if *column.data_type() == published => published,
                Some(column) => {
                    let found = column.data_type();
                    let is_partition = self.pipeline.curated.partition_by.contains(&name);
                    // Files of a Delta table that stay would have another type than the table.
                    let is_delta = self.pipeline.curated.format == Format::Delta;
                    let widened = widen(&published, found);
                    let widened = widened.filter(|_| !is_partition && !is_delta);
                    widened.ok_or_else(|| {
                        Error::data(format!(
                            "{file}: the column `{name}` was published as {published} and is {found} now"
                        ))
                        .hint("cast it in the query, or make the tables again: glueless rebuild")
                    })?
                }
            };
            columns.push(Field::new(name, data_type, true));
        }
        for column in &query.columns {
            if !columns.iter().any(|known| known.name() == column.name()) {
                columns.push(column.clone());
            }
        }
        Ok(columns)
    }

    fn versions_layout(&self, columns: &[Field], shape: Option<&Shape>) -> Result<VersionsLayout> {
        let lost = |name: &String| Error::internal(format!("the column `{name}` was lost"));
        let raw = self.changes.raw_schema();
        let keys = self.pipeline.key.iter().map(|name| {
            let column = self.changes.raw_column(name).ok_or_else(|| lost(name))?;
            let data_type = raw.field(column).data_type();
            if data_type.is_nested()
                || matches!(data_type, DataType::Time32(_) | DataType::Time64(_))
            {
                return Err(Error::usage(format!(
                    "the key column `{name}` is {data_type}, which cannot be a key"
                ))
                .hint("a key is text, binary, a number, a boolean, a date or a timestamp"));
            }
            Ok((name.clone(), canonical(data_type)))
        });
        let partitions = self.pipeline.curated.partition_by.iter().map(|name| {
            let field = columns.iter().find(|field| field.name() == name);
            let data_type = canonical(field.ok_or_else(|| lost(name))?.data_type());
            Ok((name.clone(), data_type))
        });
        let layout = VersionsLayout {
            keys: keys.collect::<Result<_>>()?,
            partitions: partitions.collect::<Result<_>>()?,
            packed: self.changes.is_packed(),
        };
        let Some(shape) = shape else {
            return Ok(layout);
        };
        let known = shape.layout()?;
        let orders = self.changes.order_kinds();
        let is_other = |(name, kind): &&(String, String)| {
            let mut known = shape.orders.iter();
            known.any(|(known, before)| known == name && before != kind)
        };
        if let Some((name, kind)) = orders.iter().find(is_other) {
            return Err(Error::data(format!(
                "the order column `{name}` is a {kind} now, and was something else in earlier runs"
            ))
            .hint(ONE_TYPE));
        }
        if let Some(((name, found), (_, before))) = layout
            .keys
            .iter()
            .zip(&known.keys)
            .find(|(found, before)| found != before)
        {
            return Err(Error::data(format!(
                "the key column `{name}` is {found} now, and was {before} in earlier runs"
            ))
            .hint(ONE_TYPE));
        }
        match known == layout {
            true => Ok(layout),
            false => Err(Error::data("the versions are of another layout")
                .hint("make the tables again from raw: glueless rebuild")),
        }
    }

    /// The table's rows by partition and key, under `latest-per-day` also by day, without a key by
    /// all columns; last the flag of a row that is there. Returns the order and the columns it takes.
    fn order(&self, columns: &[Field]) -> Result<(Arc<Order>, SchemaRef)> {
        let mut fields = columns.to_vec();
        fields.push(Field::new(PRESENT, DataType::Boolean, false));
        let schema = Arc::new(Schema::new(fields));
        let place = |name: &str| Ok(schema.index_of(name)?);
        let parts = &self.pipeline.curated.partition_by;
        let is_stored = |name: &&str| !parts.iter().any(|part| part == name);
        let keys = self.pipeline.key.iter().map(String::as_str);
        let day = (self.pipeline.keep == Keep::LatestPerDay).then_some(EVENT_DT);
        let mut sort_by = match self.changes.is_keyless() {
            // Rows that are equal in all columns can stand for each other.
            true => {
                let names = columns.iter().map(|column| column.name().as_str());
                names
                    .filter(is_stored)
                    .map(place)
                    .collect::<Result<Vec<_>>>()?
            }
            false => keys
                .filter(is_stored)
                .chain(day.filter(is_stored))
                .map(place)
                .collect::<Result<Vec<_>>>()?,
        };
        sort_by.push(columns.len());
        let partition_by = parts
            .iter()
            .map(|part| place(part))
            .collect::<Result<Vec<_>>>()?;
        let stored = (0..schema.fields().len())
            .filter(|column| !partition_by.contains(column))
            .collect();
        let order = Order::new(Arc::clone(&schema), partition_by, sort_by, stored)?;
        Ok((Arc::new(order), schema))
    }

    /// The versions that the winners must meet. Files of their days are written again, and so are
    /// small ones once there are too many.
    fn stored_versions(&self) -> Vec<StoredVersions> {
        let Some(ledger) = self.earlier else {
            return Vec::new();
        };
        let is_keyless = self.changes.is_keyless();
        let none = DayCounts::default();
        let days = |path: &String| ledger.versions.get(path).unwrap_or(&none);
        let is_small = |path: &String| days(path).rows() < SMALL_ROWS;
        let small = self.stored.iter().filter(|(path, _)| is_small(path));
        let too_many = small.count() > SMALL_FILES_MAX.max(SMALL_RUNS_MAX * self.threads);
        let stored = self.stored.iter().map(|(path, bytes)| {
            // Without a key no version meets another.
            let touched = !is_keyless && days(path).meets(&self.folded.days);
            StoredVersions {
                rewritten: touched || (too_many && is_small(path)),
                rows: days(path).rows(),
                path: path.clone(),
                bytes: *bytes,
            }
        });
        let is_looked_up = self.pipeline.keep == Keep::Latest && !is_keyless;
        let is_met = |file: &StoredVersions| file.rewritten || is_looked_up;
        stored.filter(is_met).collect()
    }
}

/// A run that does not add up.
pub fn adds_up(what: &str, one: u64, other: u64) -> Error {
    Error::internal(format!(
        "the run does not add up: {what} {one}, but {other}"
    ))
    .hint("nothing was published; did an input change during the run?")
}

/// For every partition: rows staged (by the footers) = rows before (by the footers) - rows that
/// go (by the versions) + winners. Returns the winners' part of the bytes.
fn check_written(
    written: &[Written],
    given: &BTreeMap<String, u64>,
    merged: Option<&Merged>,
) -> Result<u64> {
    let mut bytes_changed = 0;
    for one in written {
        let gone = merged.and_then(|merged| merged.counts.gone.get(&one.partition));
        let gone = gone.copied().unwrap_or_default();
        let given = given.get(&one.partition).copied().unwrap_or_default();
        let staged: u64 = one.files.iter().map(|file| file.rows).sum();
        // Tombstones were given to the sorter as well.
        if staged + 2 * gone != one.rows_before + given {
            let expected = (one.rows_before + given).saturating_sub(2 * gone);
            let what = format!("rows of the partition `{}`", one.partition);
            return Err(adds_up(&what, staged, expected));
        }
        let bytes: u64 = one.files.iter().map(|file| file.bytes).sum();
        let part = u128::from(bytes) * u128::from(given - gone) / u128::from(staged.max(1));
        bytes_changed += part as u64;
    }
    let written: BTreeSet<&String> = written.iter().map(|one| &one.partition).collect();
    let gone = merged
        .into_iter()
        .flat_map(|merged| merged.counts.gone.keys());
    match gone
        .into_iter()
        .find(|partition| !written.contains(partition))
    {
        Some(partition) => Err(adds_up(&format!("rows that go from `{partition}`"), 1, 0)),
        None => Ok(bytes_changed),
    }
}

/// Versions written (by the footers) = those of rewritten files (by the footers) - replaced ones
/// + winners.
fn check_versions(
    versions: &[VersionsFile],
    counts: &Counts,
    merged: Option<&Merged>,
) -> Result<()> {
    let written: u64 = versions.iter().map(|file| file.rows).sum();
    let (before, replaced) = merged.map_or((0, 0), |merged| {
        (merged.versions_before, merged.counts.replaced)
    });
    match written + replaced == before + counts.key_days {
        true => Ok(()),
        false => {
            let expected = (before + counts.key_days).saturating_sub(replaced);
            Err(adds_up("versions written", written, expected))
        }
    }
}

/// One stream of the first half.
struct FirstHalf {
    keep: Keep,
    /// The rows that the sorter takes.
    schema: SchemaRef,
    key: Vec<String>,
    layout: Arc<VersionsLayout>,
    inputs: Arc<Vec<Input>>,
    sql_file: String,
}

impl FirstHalf {
    async fn run(
        self,
        streams: &Work<SendableRecordBatchStream>,
        (mut sorter, mut versions): (Sorter, VersionsWriter),
    ) -> Result<(Counts, Vec<VersionsFile>, Sorter)> {
        let mut counts = Counts::default();
        if let Some(mut rows) = streams.next() {
            let failed = |error| Error::query(&self.sql_file, error);
            while let Some(batch) = rows.try_next().await.map_err(failed)? {
                if streams.has_failed() {
                    break;
                }
                let chosen = self.count(&batch, &mut counts)?;
                versions
                    .write(&self.layout.versions(&batch, &self.inputs)?)
                    .await?;
                let table_rows = filter_record_batch(&batch, &chosen)?;
                if table_rows.num_rows() > 0 {
                    sorter.push(&self.table_rows(&table_rows)?)?;
                }
            }
        }
        Ok((counts, versions.finish().await?, sorter))
    }

    /// Rows as the sorter takes them.
    fn table_rows(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let present: ArrayRef = Arc::new(BooleanArray::from(vec![true; rows.num_rows()]));
        let mut columns = Vec::new();
        let mut fields = Vec::new();
        for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
            let is_key = self.key.contains(field.name());
            let column = match is_key {
                true => with_one_zero(column),
                false => Arc::clone(column),
            };
            fields.push(Arc::clone(field));
            columns.push(column);
        }
        fields.push(Arc::new(Field::new(PRESENT, DataType::Boolean, false)));
        columns.push(present);
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        compact(&conform(&rows, &self.schema)?)
    }

    /// Counts a batch; returns which of its rows the table holds.
    fn count(&self, batch: &RecordBatch, counts: &mut Counts) -> Result<BooleanArray> {
        let lost = |name: &str| Error::internal(format!("the column `{name}` was lost"));
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| lost(name));
        let live = column(LIVE)?.as_boolean();
        let latest = column(LATEST)?.as_boolean();
        let days = column(DAY)?.as_primitive::<Date32Type>();
        let mut before = None;
        for day in days.iter().flatten() {
            if before != Some(day) {
                counts.days.insert(day);
                before = Some(day);
            }
        }
        counts.key_days += batch.num_rows() as u64;
        let (chosen, candidates) = match self.keep {
            Keep::Latest => (and(live, latest)?, latest.true_count()),
            Keep::LatestPerDay => (live.clone(), batch.num_rows()),
        };
        counts.rows_latest += chosen.true_count() as u64;
        counts.rows_deleted += (candidates - chosen.true_count()) as u64;
        Ok(chosen)
    }
}
