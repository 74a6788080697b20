//! Reads changes: converts batches of raw files to batches of the relation in [`crate::changes`].
//!
//! Pass one reads and checks every row. Pass two reads the winners' rows only, through a row
//! selection, and skips row groups without winners. A bad row is found by halving its batch until it
//! is alone, so that good batches need no check per row.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::BatchCoalescer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use chrono_tz::Tz;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result as DataFusionResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;

use crate::changes::delete_when::DeleteWhen;
use crate::changes::pass_one::PassOne;
use crate::changes::position::{PACKED_TYPE, Position};
use crate::changes::row_bitmap::Winners;
use crate::changes::{ChangeColumn, Changes, OpenInput, ReadUnit, Roles};
use crate::config::Operation;
use crate::error::{Error, Result};
use crate::parquet_io::fetch::{AHEAD_UNITS_MAX, FetchUnit, fetch_ahead};
use crate::parquet_io::open::first_leaf;
use crate::raw::bad_rows::{BadRow, NOT_UTF8};
use crate::types::times::{DAY_NS, instant_ns, nanoseconds, parse_time};
use crate::window::Window;

use batch::{Batch, BatchError, Converted};

mod backwards;
mod batch;
mod find_key;

pub(crate) use backwards::{Backwards, count_backwards};
pub(crate) use find_key::find_key;

/// The most data to which small batches are coalesced.
const COALESCED_BYTES: usize = 16 << 20;

/// The relation over [`Changes`], for DataFusion.
#[derive(Debug)]
pub(crate) struct ChangesTable {
    changes: Arc<Changes>,
    pass: Pass,
    schema: SchemaRef,
    /// Per field of the schema, what it is.
    columns: Vec<ChangeColumn>,
    partitions: usize,
}

/// The columns of a relation: their names, and what they are.
pub(crate) type NamedColumns = Vec<(String, ChangeColumn)>;

/// Columns that are read by their place: their names are numbers.
pub(crate) fn numbered(columns: impl IntoIterator<Item = ChangeColumn>) -> NamedColumns {
    let columns = columns.into_iter().enumerate();
    columns.map(|(number, column)| (number.to_string(), column)).collect()
}

/// The schema of some columns.
fn schema_of(changes: &Changes, columns: &NamedColumns) -> SchemaRef {
    let field = |(name, column): &(String, ChangeColumn)| {
        let (data_type, nullable) = match column {
            ChangeColumn::Raw(column) => {
                (changes.raw_schema().field(*column).data_type().clone(), true)
            }
            ChangeColumn::Day => (DataType::Date32, true),
            ChangeColumn::Position if changes.is_packed() => (PACKED_TYPE, false),
            ChangeColumn::Position => (<Box<[u8]> as Position>::data_type(), false),
            ChangeColumn::Instant => (DataType::Int64, false),
            ChangeColumn::Live | ChangeColumn::Latest => (DataType::Boolean, false),
        };
        Field::new(name, data_type, nullable)
    };
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

/// Which rows are read, and for which purpose.
#[derive(Clone, Debug)]
enum Pass {
    /// All rows, which are checked and counted.
    One(Arc<PassOne>),
    /// Key moves only, each as a delete and as itself.
    KeyMoves,
    /// The rows of one key, for [`find_key()`]: no output columns are made.
    Find,
    /// All rows again, for [`count_backwards()`].
    Order,
    /// The winners' rows.
    Two(Arc<Winners>),
}

impl Pass {
    fn winners(&self) -> Option<&Arc<Winners>> {
        match self {
            Pass::Two(winners) => Some(winners),
            _ => None,
        }
    }
}

impl ChangesTable {
    /// All rows, which a scan checks and counts: the columns to fold by, `key_0` and so on, `event_dt` and
    /// `position`.
    pub(crate) fn pass_one(
        changes: &Arc<Changes>,
        counts: &Arc<PassOne>,
        partitions: usize,
    ) -> Result<Self> {
        let keys = changes.fold_columns()?.into_iter().enumerate();
        let mut columns: NamedColumns =
            keys.map(|(number, key)| (format!("key_{number}"), key)).collect();
        columns.push(("event_dt".into(), ChangeColumn::Day));
        columns.push(("position".into(), ChangeColumn::Position));
        Ok(Self::with_pass(changes, Pass::One(Arc::clone(counts)), columns, partitions))
    }

    /// The rows of the winners.
    pub(crate) fn pass_two(
        changes: &Arc<Changes>,
        winners: Arc<Winners>,
        columns: NamedColumns,
        partitions: usize,
    ) -> Self {
        Self::with_pass(changes, Pass::Two(winners), columns, partitions)
    }

    /// A table of the rows whose key changed, each twice: with the key before, and with the new key.
    pub(crate) fn key_moves(
        changes: &Arc<Changes>,
        columns: NamedColumns,
        partitions: usize,
    ) -> Self {
        Self::with_pass(changes, Pass::KeyMoves, columns, partitions)
    }

    fn with_pass(
        changes: &Arc<Changes>,
        pass: Pass,
        columns: NamedColumns,
        partitions: usize,
    ) -> Self {
        ChangesTable {
            changes: Arc::clone(changes),
            pass,
            schema: schema_of(changes, &columns),
            columns: columns.into_iter().map(|(_, column)| column).collect(),
            partitions,
        }
    }
}

#[async_trait]
impl TableProvider for ChangesTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let projection = projection.unwrap_or(&all);
        let schema = Arc::new(self.schema.project(projection)?);
        let reader = Arc::new(ChangeReader::new(
            Arc::clone(&self.changes),
            self.pass.clone(),
            Arc::clone(&schema),
            projection.iter().map(|column| self.columns[*column]).collect(),
        ));
        let winners = self.pass.winners().map(AsRef::as_ref);
        let units = self.changes.distribute(self.partitions, winners);
        let scan = Arc::new(Scan { reader, units, executions: Mutex::default() });
        let partition = |number| {
            let (scan, executed) = (Arc::clone(&scan), AtomicUsize::new(0));
            Arc::new(ChangePartition { scan, number, executed }) as Arc<dyn PartitionStream>
        };
        let streams = (0..scan.units.len()).map(partition).collect();
        Ok(Arc::new(StreamingTableExec::try_new(schema, streams, None, [], false, None)?))
    }
}

/// A scan, shared by its partitions.
struct Scan {
    reader: Arc<ChangeReader>,
    /// The units of each partition.
    units: Vec<Vec<ReadUnit>>,
    /// Per execution of the plan, each of which executes all partitions, the units that are left.
    executions: Mutex<Vec<Arc<Shares<ReadUnit>>>>,
}

impl Scan {
    fn shares(&self, execution: usize) -> Arc<Shares<ReadUnit>> {
        let mut executions = self.executions.lock().unwrap_or_else(PoisonError::into_inner);
        while executions.len() <= execution {
            executions.push(Arc::new(Shares::new(self.units.clone())));
        }
        Arc::clone(&executions[execution])
    }
}

/// Units of several partitions. Each has its own share, and helps others when it has read it: how long
/// units take depends on how many of their rows are read, and is not known before.
struct Shares<U>(Mutex<Vec<VecDeque<U>>>);

impl<U> Shares<U> {
    fn new(units: Vec<Vec<U>>) -> Self {
        Shares(Mutex::new(units.into_iter().map(VecDeque::from).collect()))
    }

    /// The next unit of a partition's own share.
    fn own(&self, partition: usize) -> Option<U> {
        self.lock().get_mut(partition)?.pop_front()
    }

    /// The last unit of the share with the most that are left.
    fn of_others(&self) -> Option<U> {
        self.lock().iter_mut().max_by_key(|units| units.len())?.pop_back()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<VecDeque<U>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ChangePartition {
    scan: Arc<Scan>,
    number: usize,
    /// How often it was executed.
    executed: AtomicUsize,
}

impl fmt::Debug for ChangePartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} units of files", self.scan.units[self.number].len())
    }
}

impl PartitionStream for ChangePartition {
    fn schema(&self) -> &SchemaRef {
        &self.scan.reader.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let reader = &self.scan.reader;
        let schema = &reader.schema;
        let shares = self.scan.shares(self.executed.fetch_add(1, Ordering::Relaxed));
        let (of_others, number) = (Arc::clone(&shares), self.number);
        let own = std::iter::from_fn(move || shares.own(number));
        let of_others = std::iter::from_fn(move || of_others.of_others());
        // What is fetched ahead is taken from the others, who could read it at the same time.
        let batches = ChangeReader::read(Arc::clone(reader), own, AHEAD_UNITS_MAX)
            .chain(ChangeReader::read(Arc::clone(reader), of_others, 1));
        let batches = coalesced(batches, schema, reader.changes.batch_rows());
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), batches.map_err(Into::into)))
    }
}

/// Coalesces small batches, in their order: batches of small files, and of files with few winners,
/// would otherwise cost the following operators more than their rows.
fn coalesced(
    batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    schema: &SchemaRef,
    rows: usize,
) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
    let coalescer = BatchCoalescer::new(Arc::clone(schema), rows)
        .with_biggest_coalesce_batch_size(Some(rows / 2));
    let state = (batches.boxed().fuse(), coalescer, 0);
    stream::try_unfold(state, |(mut batches, mut coalescer, mut bytes)| async move {
        loop {
            if let Some(whole) = coalescer.next_completed_batch() {
                return Ok(Some((whole, (batches, coalescer, 0))));
            }
            match batches.try_next().await? {
                Some(batch) => {
                    bytes += data_bytes(&batch);
                    coalescer.push_batch(batch)?;
                    if bytes >= COALESCED_BYTES {
                        coalescer.finish_buffered_batch()?;
                    }
                }
                None => {
                    coalescer.finish_buffered_batch()?;
                    let last = coalescer.next_completed_batch();
                    return Ok(last.map(|last| (last, (batches, coalescer, 0))));
                }
            }
        }
    })
}

/// The size of a batch's data, without buffers that it shares with other batches.
fn data_bytes(batch: &RecordBatch) -> usize {
    let viewed = |views: &[u128]| views.iter().map(|view| 16 + *view as u32 as usize).sum();
    let columns = batch.columns().iter().map(|column| {
        let texts = column.as_string_view_opt().map(|texts| texts.views());
        let views = texts.or(column.as_binary_view_opt().map(|binaries| binaries.views()));
        views.map_or_else(|| column.get_array_memory_size(), |views| viewed(views))
    });
    columns.sum()
}

struct ChangeReader {
    changes: Arc<Changes>,
    pass: Pass,
    schema: SchemaRef,
    /// Per field of the schema, what it is.
    sources: Vec<ChangeColumn>,
    roles: Roles,
    /// The raw columns to read: projected columns, and those from which the others are computed.
    needed: Vec<usize>,
    needs_times: bool,
    /// Whether some rows are no change.
    ignores_rows: bool,
}

impl ChangeReader {
    fn new(
        changes: Arc<Changes>,
        pass: Pass,
        schema: SchemaRef,
        sources: Vec<ChangeColumn>,
    ) -> Self {
        let roles = changes.roles();
        let delete_when = changes.delete_when().map_or(&[][..], DeleteWhen::columns);
        let mut needed = Vec::new();
        for source in &sources {
            match source {
                ChangeColumn::Raw(column) => needed.push(*column),
                ChangeColumn::Day => {
                    needed.extend([roles.op, roles.commit_time, roles.event_time].iter().flatten());
                    needed.extend(delete_when);
                }
                ChangeColumn::Position => {
                    // Keys are checked for null with the position.
                    needed.extend(&roles.key);
                    needed.extend(roles.order.iter().flatten());
                    needed.extend(roles.commit_time);
                }
                ChangeColumn::Live => {
                    needed.extend(roles.op);
                    needed.extend(delete_when);
                }
                ChangeColumn::Instant => needed.extend(roles.commit_time),
                ChangeColumn::Latest => {}
            }
        }
        if !changes.before_images().is_empty() {
            // The day of a delete is that of its commit time.
            needed.extend(changes.before_images().iter().flatten());
            needed.extend(&roles.key);
            needed.extend([roles.op, roles.commit_time].iter().flatten());
        }
        if let Pass::One(_) = pass {
            // This pass checks that operations are valid and allowed.
            needed.extend(roles.op);
            needed.extend(delete_when);
        }
        // Rows to ignore in envelopes are found when the file is opened.
        let ignores_rows = roles.op.is_some()
            && changes.op_values().has(Operation::Ignore)
            && !changes.has_envelopes();
        let has_truncates = changes.op_values().has(Operation::Truncate);
        if (ignores_rows || has_truncates) && pass.winners().is_none() {
            needed.extend(roles.op);
        }
        needed.sort_unstable();
        needed.dedup();
        let needs_times = !changes.before_images().is_empty()
            || sources.iter().any(|source| {
                use ChangeColumn::{Day, Instant, Position};
                matches!(source, Day | Position | Instant)
            });
        ChangeReader { changes, pass, schema, sources, roles, needed, needs_times, ignores_rows }
    }

    fn read(
        self: Arc<Self>,
        units: impl Iterator<Item = ReadUnit> + Send + 'static,
        ahead: usize,
    ) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
        let reader = Arc::clone(&self);
        let fetch_units = units.flat_map(move |unit| reader.fetch_units(&unit));
        let batches = fetch_ahead(fetch_units, ahead).map(move |fetched| {
            let (fetched, file) = fetched.map_err(|(error, file)| self.of_input(file, error))?;
            let (reader, columns) = (Arc::clone(&self), Arc::clone(fetched.columns()));
            let batches = fetched
                .read_raw(reader.changes.batch_rows())
                .map_err(|error| self.of_input(file, error))?;
            let converted = batches.map(move |batch| {
                let batch = batch.map_err(|error| reader.of_input(file, error))?;
                reader.convert(file, &columns, batch)
            });
            Ok::<_, Error>(stream::iter(converted))
        });
        batches.try_flatten()
    }

    /// Adds the input to the error of a file that cannot be read.
    fn of_input(&self, file: usize, error: Error) -> Error {
        let input = &self.changes.file(file).input.file;
        error.of_input(input.location, &input.path)
    }

    /// The fetch units of a unit, with the number of its file.
    fn fetch_units(&self, unit: &ReadUnit) -> Vec<(FetchUnit, usize)> {
        let open = self.changes.file(unit.file);
        let groups = self.groups_in_window(open, &unit.row_groups);
        let to_check = match self.pass {
            Pass::One(_) => &open.to_check[..],
            _ => &[],
        };
        let mut columns: Vec<usize> =
            self.needed.iter().chain(to_check).filter_map(|raw| open.columns[*raw]).collect();
        columns.sort_unstable();
        columns.dedup();
        let per_row = self.changes.ordinals_per_row();
        let selected = groups.iter().map(|(group, first, rows)| {
            let mask = self.pass.winners().map(|winners| {
                let won = winners.days(unit.file, first * per_row, rows * per_row);
                match per_row {
                    1 => won,
                    _ => BooleanBuffer::collect_bool(*rows, |row| {
                        won.value(2 * row) || won.value(2 * row + 1)
                    }),
                }
            });
            (*group, mask)
        });
        let fetch_units = open.file.fetch_units(&columns, selected).into_iter();
        fetch_units.map(|fetch| (fetch, unit.file)).collect()
    }

    /// Skips the row groups that, by their statistics, are outside of a window of rows.
    fn groups_in_window(
        &self,
        open: &OpenInput,
        groups: &[(usize, usize, usize)],
    ) -> Vec<(usize, usize, usize)> {
        let Some(windows) = self.row_windows(open) else {
            return groups.to_vec();
        };
        if !open.placeholders.is_empty() {
            return groups.to_vec();
        }
        let column = self.roles.commit_time.and_then(|raw| open.columns[raw]);
        let metadata = open.file.decoded_metadata();
        let mut selected = Vec::new();
        for group in groups {
            let span = column.zip(metadata.as_ref()).and_then(|(column, metadata)| {
                let data_type = open.file.schema().field(column).data_type();
                commit_span(metadata, group.0, column, data_type)
            });
            let is_outside = |(first, last): (i128, i128)| {
                let mut windows = windows.iter();
                windows.all(|(low, high)| last < *low || first >= *high)
            };
            if span.is_some_and(is_outside) {
                if let Pass::One(counts) = &self.pass {
                    counts.count_rows(0, group.2);
                }
            } else {
                selected.push(*group);
            }
        }
        selected
    }

    /// The windows that select rows of a file in pass one, in nanoseconds.
    fn row_windows(&self, open: &OpenInput) -> Option<Vec<(i128, i128)>> {
        let windows = open.input.rows.as_ref().filter(|_| matches!(self.pass, Pass::One(_)))?;
        let span = |window: &Window| (instant_ns(window.start), instant_ns(window.end));
        Some(windows.iter().map(span).collect())
    }

    /// Converts one batch as it was read (`columns`, then the row number) to the output columns. Bad
    /// rows stop the run, or are quarantined.
    fn convert(&self, file: usize, columns: &[usize], read: RecordBatch) -> Result<RecordBatch> {
        let batch = Batch::new(self, file, columns, read);
        let all = batch.read.num_rows();
        let batch = batch.only_selected()?;
        let not_selected = all - batch.read.num_rows();
        let batch = batch.without_placeholders()?;
        let readable = batch.read.num_rows();
        let batch = batch.without_ignored()?;
        let ignored = readable - batch.read.num_rows();
        let batch = batch.without_forgotten()?;
        let forgotten = readable - ignored - batch.read.num_rows();
        let converted = match batch.convert() {
            Err(BatchError::Truncates) => self.without_truncates(batch)?,
            Err(BatchError::Row(_)) => {
                let batch = self.without_bad_rows(batch)?;
                match batch.convert() {
                    Err(BatchError::Truncates) => self.without_truncates(batch)?,
                    converted => converted.map_err(|error| batch.error_of(error))?,
                }
            }
            converted => converted.map_err(|error| batch.error_of(error))?,
        };
        if let Pass::One(counts) = &self.pass {
            counts.count_rows(converted.inside, converted.outside + not_selected);
            counts.count_ignored(ignored);
            counts.count_forgotten(forgotten + converted.forgotten);
            counts.count_key_moves(converted.key_moves);
            counts.observe_commit_time(converted.newest);
            if let Some(span) = converted.orders {
                counts.observe_orders(file, span);
            }
        }
        Ok(converted.rows)
    }

    /// The good rows of a batch with bad ones, which stop the run, or are quarantined.
    fn without_bad_rows<'a>(&self, batch: Batch<'a>) -> Result<Batch<'a>> {
        let mut bad = Vec::new();
        batch.find_bad(0..batch.read.num_rows(), &mut bad)?;
        if let (false, Some(first)) = (self.changes.quarantines_rows(), bad.first()) {
            return Err(first.row.to_error(&batch.open().file.name));
        }
        if let (Pass::Two(_), false) = (&self.pass, self.changes.checks_texts)
            && let Some(text) = bad.iter().find(|bad| bad.row.reason == NOT_UTF8)
        {
            // Pass one has not read this column, and its rows were not reported.
            let name = &batch.open().file.name;
            return Err(text.row.to_error(name).of_unchecked_text());
        }
        let mut good = vec![true; batch.read.num_rows()];
        bad.iter().for_each(|bad| good[bad.at] = false);
        if let Pass::One(counts) = &self.pass {
            let rows: Vec<BadRow> = bad.into_iter().map(|bad| bad.row).collect();
            let (bad_rows, name) = (counts.bad_rows(), &batch.open().file.name);
            rows.iter().try_for_each(|bad| bad_rows.admit(name, bad))?;
            bad_rows.put(batch.file, rows);
        }
        batch.filtered(&BooleanArray::from(good))
    }

    /// Converts a batch with truncates, which are floors and no changes of keys.
    fn without_truncates(&self, batch: Batch<'_>) -> Result<Converted> {
        let (truncates, changes) = batch.divided_by_truncates()?;
        if let Pass::One(counts) = &self.pass {
            // One that cannot be read stops the run in any case: without it, rows would stay.
            let (floors, outside, newest) =
                truncates.floors().map_err(|error| batch.error_of(error))?;
            counts.observe_floors(floors);
            counts.count_rows(0, outside);
            counts.observe_commit_time(newest);
        }
        match changes.convert() {
            // One of the other rows is bad.
            Err(BatchError::Row(_)) => {
                let changes = self.without_bad_rows(changes)?;
                changes.convert().map_err(|error| changes.error_of(error))
            }
            converted => converted.map_err(|error| changes.error_of(error)),
        }
    }
}

/// Bounds of the commit times of a row group, by its statistics. Text sorts like the times in it,
/// except for zones, which shift a time by less than a day.
fn commit_span(
    metadata: &ParquetMetaData,
    group: usize,
    column: usize,
    data_type: &DataType,
) -> Option<(i128, i128)> {
    let leaf = first_leaf(metadata, column)?;
    let statistics = metadata.row_group(group).column(leaf).statistics()?;
    if statistics.null_count_opt() != Some(0) {
        return None;
    }
    match (statistics, data_type) {
        (Statistics::Int64(values), DataType::Timestamp(unit, _)) => {
            Some((nanoseconds(*values.min_opt()?, *unit), nanoseconds(*values.max_opt()?, *unit)))
        }
        (Statistics::ByteArray(values), DataType::Utf8View) => {
            // A truncated bound still has its date, or is not used.
            let date =
                |bytes: &[u8]| parse_time(std::str::from_utf8(bytes.get(..10)?).ok()?, Tz::UTC);
            let (first, last) = (date(values.min_opt()?.data())?, date(values.max_opt()?.data())?);
            Some((first - DAY_NS, last + 2 * DAY_NS))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Shares;

    #[test]
    fn each_partition_reads_its_share_in_order_and_then_helps_the_one_with_the_most() {
        let shares = Shares::new(vec![vec![1, 2], vec![3, 4, 5, 6], vec![7]]);
        assert_eq!([shares.own(2), shares.own(2), shares.of_others()], [Some(7), None, Some(6)]);
        assert_eq!([shares.own(1), shares.own(0), shares.own(0)], [Some(3), Some(1), Some(2)]);
        assert_eq!([shares.of_others(), shares.own(1)], [Some(5), Some(4)]);
        assert_eq!([shares.of_others(), shares.own(0), shares.own(1)], [None, None, None]);
    }
}
