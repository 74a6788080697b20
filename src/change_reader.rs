//! Reading changes: batches of one raw file become batches of the relation in [`crate::changes`].
//!
//! Pass one reads every row and checks it; pass two reads the winners' rows only, through a row
//! selection, and leaves out whole row groups without any. A row that cannot be folded is found by
//! halving its batch until it is alone, so that the others cost nothing more.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, RecordBatch,
    new_null_array,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::kernels::zip::zip;
use arrow::compute::{
    BatchCoalescer, cast, concat_batches, filter, filter_record_batch, is_not_null,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatchOptions;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
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

use crate::changes::{Changes, EVENT_DT, LATEST, LIVE, OpenInput, POSITION, Roles, Unit};
use crate::column_type::cast_values;
use crate::error::{Error, Result};
use crate::parquet_pieces::{Piece, fetched_ahead};
use crate::position::{OrderEncoder, PACKED_TYPE, Position, pack_column};
use crate::quarantine::BadRow;
use crate::times::{DAY_NS, day_of, days_of, nanoseconds, parse_time, times_ns};
use crate::versions::with_one_zero;
use crate::window::Window;
use crate::winners::Winners;

/// Batches are not put together beyond so much data.
const COALESCED_BYTES: usize = 16 << 20;

/// The relation over [`Changes`], for DataFusion.
#[derive(Debug)]
pub struct ChangesTable {
    changes: Arc<Changes>,
    pass: Pass,
    schema: SchemaRef,
    partitions: usize,
}

/// Which rows are read, and what for.
#[derive(Clone, Debug)]
enum Pass {
    /// All, which are checked and counted.
    One,
    /// Key moves only, each as a delete and as itself.
    KeyMoves,
    /// Winners.
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
    /// All rows; with winners only their rows, and whether each is its key's last.
    pub fn new(changes: &Arc<Changes>, winners: Option<Arc<Winners>>, partitions: usize) -> Self {
        let pass = winners.map_or(Pass::One, Pass::Two);
        Self::of(changes, pass, partitions)
    }

    /// The rows whose key was another before, each twice: with that key, and as it is.
    pub fn key_moves(changes: &Arc<Changes>, partitions: usize) -> Self {
        Self::of(changes, Pass::KeyMoves, partitions)
    }

    fn of(changes: &Arc<Changes>, pass: Pass, partitions: usize) -> Self {
        let mut fields = changes.raw_schema().fields().to_vec();
        let position = if changes.is_packed() {
            PACKED_TYPE
        } else {
            <Box<[u8]> as Position>::data_type()
        };
        fields.push(Arc::new(Field::new(EVENT_DT, DataType::Date32, true)));
        fields.push(Arc::new(Field::new(POSITION, position, false)));
        fields.push(Arc::new(Field::new(LIVE, DataType::Boolean, false)));
        if pass.winners().is_some() {
            fields.push(Arc::new(Field::new(LATEST, DataType::Boolean, false)));
        }
        ChangesTable {
            changes: Arc::clone(changes),
            pass,
            schema: Arc::new(Schema::new(fields)),
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
        let schema = Arc::new(self.schema.project(projection.unwrap_or(&all))?);
        let reader = Arc::new(ChangeReader::new(
            Arc::clone(&self.changes),
            self.pass.clone(),
            Arc::clone(&schema),
        ));
        let streams = self
            .changes
            .spread(self.partitions, self.pass.winners().map(AsRef::as_ref))
            .into_iter()
            .map(|units| {
                let reader = Arc::clone(&reader);
                Arc::new(ChangePartition { reader, units }) as Arc<dyn PartitionStream>
            })
            .collect();
        Ok(Arc::new(StreamingTableExec::try_new(
            schema,
            streams,
            None,
            [],
            false,
            None,
        )?))
    }
}

struct ChangePartition {
    reader: Arc<ChangeReader>,
    units: Vec<Unit>,
}

impl fmt::Debug for ChangePartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} parts of files", self.units.len())
    }
}

impl PartitionStream for ChangePartition {
    fn schema(&self) -> &SchemaRef {
        &self.reader.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let reader = Arc::clone(&self.reader);
        let batches = ChangeReader::read(reader, self.units.clone());
        let schema = &self.reader.schema;
        let batches = coalesced(batches, schema, self.reader.changes.batch_rows());
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(schema),
            batches.map_err(Into::into),
        ))
    }
}

/// Puts small batches together, in their order: small files, and files with few winners, would
/// otherwise cost more in what follows than their rows do.
fn coalesced(
    batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    schema: &SchemaRef,
    rows: usize,
) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
    let coalescer = BatchCoalescer::new(Arc::clone(schema), rows)
        .with_biggest_coalesce_batch_size(Some(rows / 2));
    let state = (batches.boxed().fuse(), coalescer, 0);
    stream::try_unfold(
        state,
        |(mut batches, mut coalescer, mut bytes)| async move {
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
        },
    )
}

/// What a batch's rows hold, without what they share with other rows.
fn data_bytes(batch: &RecordBatch) -> usize {
    let viewed = |views: &[u128]| views.iter().map(|view| 16 + *view as u32 as usize).sum();
    let columns = batch.columns().iter().map(|column| {
        let texts = column.as_string_view_opt().map(|texts| texts.views());
        let views = texts.or(column.as_binary_view_opt().map(|binaries| binaries.views()));
        views.map_or_else(|| column.get_array_memory_size(), |views| viewed(views))
    });
    columns.sum()
}

/// Where an output column comes from.
enum Source {
    Raw(usize),
    EventDt,
    Position,
    Live,
    Latest,
}

struct ChangeReader {
    changes: Arc<Changes>,
    pass: Pass,
    schema: SchemaRef,
    sources: Vec<Source>,
    roles: Roles,
    /// The raw columns that are read: those asked for and those that the others are made of.
    needed: Vec<usize>,
    needs_times: bool,
}

impl ChangeReader {
    fn new(changes: Arc<Changes>, pass: Pass, schema: SchemaRef) -> Self {
        let source = |name: &str| match name {
            EVENT_DT => Source::EventDt,
            POSITION => Source::Position,
            LIVE => Source::Live,
            LATEST => Source::Latest,
            name => Source::Raw(changes.raw_schema().index_of(name).unwrap_or_default()),
        };
        let sources: Vec<Source> = schema
            .fields()
            .iter()
            .map(|field| source(field.name()))
            .collect();
        let roles = changes.roles();
        let mut needed = Vec::new();
        for source in &sources {
            match source {
                Source::Raw(column) => needed.push(*column),
                Source::EventDt => {
                    needed.extend(
                        [roles.op, roles.commit_time, roles.event_time]
                            .iter()
                            .flatten(),
                    );
                }
                Source::Position => {
                    needed.extend(roles.order.iter().flatten());
                    needed.extend(roles.commit_time);
                }
                Source::Live => needed.extend(roles.op),
                Source::Latest => {}
            }
        }
        if !changes.before_images().is_empty() {
            // The days of deletes are those of their commit times.
            needed.extend(changes.before_images().iter().flatten());
            needed.extend(&roles.key);
            needed.extend([roles.op, roles.commit_time].iter().flatten());
        }
        if let Pass::One = pass {
            // Whether an operation is one, and allowed, is seen in this pass.
            needed.extend(roles.op);
        }
        needed.sort_unstable();
        needed.dedup();
        let needs_times = !changes.before_images().is_empty()
            || sources
                .iter()
                .any(|source| matches!(source, Source::EventDt | Source::Position));
        ChangeReader {
            changes,
            pass,
            schema,
            sources,
            roles,
            needed,
            needs_times,
        }
    }

    fn read(
        self: Arc<Self>,
        units: Vec<Unit>,
    ) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
        let reader = Arc::clone(&self);
        let pieces = units.into_iter().flat_map(move |unit| reader.pieces(&unit));
        let batches = fetched_ahead(pieces).map(move |fetched| {
            let (fetched, file) = fetched.map_err(|(error, file)| self.of_input(file, error))?;
            let (reader, columns) = (Arc::clone(&self), Arc::clone(fetched.columns()));
            let batches = fetched.read(reader.changes.batch_rows());
            let batches = batches.map_err(|error| self.of_input(file, error))?;
            let converted = batches.map(move |batch| {
                let batch = batch.map_err(|error| reader.of_input(file, error))?;
                reader.convert(file, &columns, batch)
            });
            Ok::<_, Error>(stream::iter(converted))
        });
        batches.try_flatten()
    }

    /// A file that cannot be read, by its number.
    fn of_input(&self, file: usize, error: Error) -> Error {
        let input = &self.changes.file(file).input.file;
        error.of_input(input.location, &input.path)
    }

    /// A unit's pieces, with the number of its file.
    fn pieces(&self, unit: &Unit) -> Vec<(Piece, usize)> {
        let open = self.changes.file(unit.file);
        let groups = self.groups_in_window(open, &unit.row_groups);
        let unsure = match self.pass {
            Pass::One => &open.unsure[..],
            _ => &[],
        };
        let mut columns: Vec<usize> = self
            .needed
            .iter()
            .chain(unsure)
            .filter_map(|raw| open.columns[*raw])
            .collect();
        columns.sort_unstable();
        columns.dedup();
        let places = self.changes.places_per_row();
        let chosen = groups.iter().map(|(group, first, rows)| {
            let mask = self.pass.winners().map(|winners| {
                let won = winners.days(unit.file, first * places, rows * places);
                match places {
                    1 => won,
                    _ => BooleanBuffer::collect_bool(*rows, |row| {
                        won.value(2 * row) || won.value(2 * row + 1)
                    }),
                }
            });
            (*group, mask)
        });
        let pieces = open.file.pieces(&columns, chosen).into_iter();
        pieces.map(|piece| (piece, unit.file)).collect()
    }

    /// Leaves out the row groups that, by their statistics, lie outside of a window of rows.
    fn groups_in_window(
        &self,
        open: &OpenInput,
        groups: &[(usize, usize, usize)],
    ) -> Vec<(usize, usize, usize)> {
        let Some(windows) = self.row_windows(open) else {
            return groups.to_vec();
        };
        if !open.unread.is_empty() {
            return groups.to_vec();
        }
        let column = self.roles.commit_time.and_then(|raw| open.columns[raw]);
        let metadata = open.file.decoded_metadata();
        let mut kept = Vec::new();
        for group in groups {
            let span = column
                .zip(metadata.as_ref())
                .and_then(|(column, metadata)| {
                    let data_type = open.file.schema().field(column).data_type();
                    commit_span(metadata, group.0, column, data_type)
                });
            let is_outside = |(first, last): (i128, i128)| {
                let mut windows = windows.iter();
                windows.all(|(low, high)| last < *low || first >= *high)
            };
            if span.is_some_and(is_outside) {
                self.changes.count(0, group.2);
            } else {
                kept.push(*group);
            }
        }
        kept
    }

    /// The windows that select rows of a file in pass one, in nanoseconds.
    fn row_windows(&self, open: &OpenInput) -> Option<Vec<(i128, i128)>> {
        let windows = open.input.rows.as_ref();
        let windows = windows.filter(|_| matches!(self.pass, Pass::One))?;
        let span = |window: &Window| (instant_ns(window.start), instant_ns(window.end));
        Some(windows.iter().map(span).collect())
    }

    /// Makes the output columns of one batch as it was read: `columns`, then the row number. Rows
    /// that cannot be folded stop the run, or are put aside.
    fn convert(&self, file: usize, columns: &[usize], read: RecordBatch) -> Result<RecordBatch> {
        let batch = Batch {
            reader: self,
            file,
            columns,
            read,
        };
        let all = batch.read.num_rows();
        let batch = batch.chosen()?;
        let not_chosen = all - batch.read.num_rows();
        let batch = batch.without_unread()?;
        let made = match batch.make() {
            Ok(made) => made,
            Err(Refused::Row(_)) => {
                let mut bad = Vec::new();
                batch.find_bad(0..batch.read.num_rows(), &mut bad)?;
                if let (false, Some(first)) = (self.changes.puts_aside(), bad.first()) {
                    return Err(first.row.told(&batch.open().file.name));
                }
                let mut good = vec![true; batch.read.num_rows()];
                bad.iter().for_each(|bad| good[bad.at] = false);
                if matches!(self.pass, Pass::One) {
                    let rows: Vec<BadRow> = bad.into_iter().map(|bad| bad.row).collect();
                    let (bad_rows, name) = (self.changes.bad_rows(), &batch.open().file.name);
                    rows.iter().try_for_each(|bad| bad_rows.admit(name, bad))?;
                    bad_rows.put(file, rows);
                }
                let batch = batch.filtered(&BooleanArray::from(good))?;
                batch
                    .make()
                    .map_err(|refused| refused.error(&batch.open().file.name))?
            }
            Err(Refused::All(error)) => return Err(error),
        };
        if let Pass::One = self.pass {
            self.changes.count(made.inside, made.outside + not_chosen);
            self.changes.count_moves(made.key_moves);
        }
        Ok(made.rows)
    }
}

/// What became of a batch.
struct Made {
    rows: RecordBatch,
    inside: usize,
    outside: usize,
    key_moves: usize,
}

/// Why a batch cannot be folded.
enum Refused {
    /// For one row.
    Row(Box<BadAt>),
    All(Error),
}

impl Refused {
    fn error(self, file: &str) -> Error {
        match self {
            Refused::Row(bad) => bad.row.told(file),
            Refused::All(error) => error,
        }
    }
}

/// A bad row, and its place in the batch.
struct BadAt {
    at: usize,
    row: BadRow,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::All(error)
    }
}

impl From<ArrowError> for Refused {
    fn from(error: ArrowError) -> Self {
        Refused::All(error.into())
    }
}

/// One batch of a file, as it was read.
struct Batch<'a> {
    reader: &'a ChangeReader,
    file: usize,
    columns: &'a [usize],
    read: RecordBatch,
}

impl Batch<'_> {
    fn open(&self) -> &OpenInput {
        self.reader.changes.file(self.file)
    }

    /// A part of it.
    fn with(&self, read: RecordBatch) -> Self {
        Batch { read, ..*self }
    }

    fn filtered(&self, kept: &BooleanArray) -> Result<Self> {
        Ok(self.with(filter_record_batch(&self.read, kept)?))
    }

    /// Leaves out what the run has not chosen.
    fn chosen(self) -> Result<Self> {
        let Some(only) = &self.open().input.only else {
            return Ok(self);
        };
        let rows = self.row_numbers().iter();
        let is_chosen = |row: &i64| Some(only.binary_search(&(*row as u64)).is_ok());
        let chosen: BooleanArray = rows.map(is_chosen).collect();
        self.filtered(&chosen)
    }

    /// Leaves out placeholders, which were put aside when the file was opened.
    fn without_unread(self) -> Result<Self> {
        let unread = &self.open().unread;
        if unread.is_empty() {
            return Ok(self);
        }
        let is_read = |row: &i64| Some(unread.binary_search(&(*row as u64)).is_err());
        let read: BooleanArray = self.row_numbers().iter().map(is_read).collect();
        self.filtered(&read)
    }

    /// Finds the bad rows among some that hold at least one, in their order.
    fn find_bad(&self, rows: Range<usize>, bad: &mut Vec<BadAt>) -> Result<()> {
        let part = self.with(self.read.slice(rows.start, rows.len()));
        match part.make() {
            Ok(_) => Ok(()),
            Err(Refused::All(error)) => Err(error),
            Err(Refused::Row(mut found)) if rows.len() == 1 => {
                found.at = rows.start;
                bad.push(*found);
                Ok(())
            }
            Err(Refused::Row(_)) => {
                let middle = rows.start + rows.len() / 2;
                self.find_bad(rows.start..middle, bad)?;
                self.find_bad(middle..rows.end, bad)
            }
        }
    }

    fn row_numbers(&self) -> &[i64] {
        self.read
            .column(self.columns.len())
            .as_primitive::<Int64Type>()
            .values()
    }

    /// Makes the output columns.
    fn make(&self) -> Result<Made, Refused> {
        let reader = self.reader;
        let live = self.live()?;
        let times = if reader.needs_times {
            self.commit_times()?
        } else {
            Vec::new()
        };
        if let Pass::One = reader.pass {
            for column in &self.open().unsure {
                self.raw(*column)?;
            }
        }
        let places = reader.changes.places_per_row() as u64;
        let arrays = reader
            .sources
            .iter()
            .map(|source| match source {
                Source::Raw(column) => self.raw(*column),
                Source::EventDt => self.event_days(&live, &times),
                Source::Position => {
                    self.check_key()?;
                    self.positions(&times, places - 1)
                }
                Source::Live => Ok(Arc::new(live.clone()) as ArrayRef),
                Source::Latest => Ok(self.latest(places - 1)),
            })
            .collect::<Result<Vec<_>, Refused>>()?;
        let count = self.read.num_rows();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&reader.schema), arrays, &options)?;
        let moved = match reader.changes.before_images() {
            [] => None,
            images => Some(self.moved(images)?),
        };
        let inside = self.inside(&times);
        let inside_count = inside.as_ref().map_or(count, BooleanArray::true_count);
        let made = |rows, key_moves| Made {
            rows,
            inside: inside_count,
            outside: count - inside_count,
            key_moves,
        };
        let Some((moved, before)) = moved else {
            let rows = match inside {
                None => rows,
                Some(inside) => filter_record_batch(&rows, &inside)?,
            };
            return Ok(made(rows, 0));
        };
        // Which rows are handed on as themselves, and which as deletes of the key before.
        let numbers = self.row_numbers();
        let is_inside = |at: usize| inside.as_ref().is_none_or(|inside| inside.value(at));
        let all = 0..count;
        let (as_rows, as_deletes): (BooleanArray, BooleanArray) = match &reader.pass {
            Pass::One => {
                let deletes = all.clone().map(|at| {
                    let row = numbers[at] as u64;
                    moved[at] && is_inside(at) && !reader.changes.is_exchange(self.file, row)
                });
                let deletes = deletes.map(Some).collect();
                (all.map(|at| Some(is_inside(at))).collect(), deletes)
            }
            Pass::KeyMoves => {
                let moved: BooleanArray = moved.iter().map(|moved| Some(*moved)).collect();
                (moved.clone(), moved)
            }
            Pass::Two(winners) => {
                let won = |at: usize, half: usize| {
                    Some(winners.is_day(self.file, numbers[at] as usize * 2 + half))
                };
                let deletes = all.clone().map(|at| won(at, 0)).collect();
                (all.map(|at| won(at, 1)).collect(), deletes)
            }
        };
        let moves = match reader.pass {
            Pass::One => (0..count).filter(|at| moved[*at] && is_inside(*at)).count(),
            _ => 0,
        };
        let rows = filter_record_batch(&rows, &as_rows)?;
        if as_deletes.true_count() == 0 {
            return Ok(made(rows, moves));
        }
        let deletes = self.filtered(&as_deletes)?;
        let before = before
            .iter()
            .map(|column| filter(column, &as_deletes))
            .collect::<Result<Vec<_>, _>>()?;
        let deletes = deletes.as_deletes(&before)?;
        Ok(made(
            concat_batches(&reader.schema, &[deletes, rows])?,
            moves,
        ))
    }

    /// Which rows lie in a window of rows; `None` for all.
    fn inside(&self, times: &[Option<i128>]) -> Option<BooleanArray> {
        let open = self.open();
        let windows = self.reader.row_windows(open)?;
        let is_inside = |time: &Option<i128>| {
            let holds =
                |(low, high): &(i128, i128)| time.is_some_and(|time| (*low..*high).contains(&time));
            Some(windows.iter().any(holds))
        };
        Some(times.iter().map(is_inside).collect())
    }

    /// Which rows are updates of a row that had another key before, and these keys.
    fn moved(&self, images: &[Option<usize>]) -> Result<(Vec<bool>, Vec<ArrayRef>), Refused> {
        let mut moved = vec![false; self.read.num_rows()];
        let mut before = Vec::new();
        for (key, image) in self.reader.roles.key.iter().zip(images) {
            let now = self.raw(*key)?;
            let image = match image {
                None => Arc::clone(&now),
                Some(image) => {
                    let found = self.raw(*image)?;
                    let cast = cast_values(&found, now.data_type());
                    cast.map_err(|at| {
                        let why = format!("does not fit {}, the key's type", now.data_type());
                        self.bad(at, Some(*image), &why, "check `raw.before_image_prefix`")
                    })?
                }
            };
            // Null stands for: as it is.
            let image = zip(&is_not_null(&image)?, &image, &now)?;
            let differs = distinct(&with_one_zero(&image), &with_one_zero(&now))?;
            let differs = moved.iter_mut().zip(differs.values());
            differs.for_each(|(moved, differs)| *moved |= differs);
            before.push(image);
        }
        let updates = match self.reader.roles.op {
            Some(op) => update_rows(&self.raw(op)?),
            None => vec![false; moved.len()],
        };
        let each = moved.iter_mut().zip(updates);
        each.for_each(|(moved, is_update)| *moved &= is_update);
        Ok((moved, before))
    }

    /// The rows as deletes of other keys, at the places before their own.
    fn as_deletes(&self, before: &[ArrayRef]) -> Result<RecordBatch, Refused> {
        let reader = self.reader;
        let count = self.read.num_rows();
        let times = self.commit_times()?;
        let arrays = reader.sources.iter().map(|source| {
            Ok(match source {
                Source::Raw(column) => {
                    match reader.roles.key.iter().position(|key| key == column) {
                        Some(key) => Arc::clone(&before[key]),
                        None => self.raw(*column)?,
                    }
                }
                Source::EventDt => {
                    let days = times.iter().map(|time| time.map(day_of));
                    Arc::new(days.collect::<Date32Array>())
                }
                Source::Position => self.positions(&times, 0)?,
                Source::Live => Arc::new(BooleanArray::from(vec![false; count])),
                Source::Latest => self.latest(0),
            })
        });
        let arrays = arrays.collect::<Result<Vec<ArrayRef>, Refused>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let schema = Arc::clone(&reader.schema);
        Ok(RecordBatch::try_new_with_options(schema, arrays, &options)?)
    }

    /// A raw column in the type it has over all inputs; null where the file lacks it.
    fn raw(&self, column: usize) -> Result<ArrayRef, Refused> {
        let wanted = self.reader.changes.raw_schema().field(column).data_type();
        let open = self.open();
        let place = open.columns[column].and_then(|index| self.columns.binary_search(&index).ok());
        let Some(place) = place else {
            return Ok(new_null_array(wanted, self.read.num_rows()));
        };
        let array = self.read.column(place);
        cast_values(array, wanted).map_err(|at| {
            let why = format!("does not fit {wanted}, its type");
            let hint = "mend the value, or the column's type in `[raw.columns]`";
            self.bad(at, Some(column), &why, hint)
        })
    }

    fn bad(&self, at: usize, column: Option<usize>, why: &str, hint: &'static str) -> Refused {
        let schema = self.reader.changes.raw_schema();
        Refused::Row(Box::new(BadAt {
            at,
            row: BadRow {
                row: self.row_numbers()[at] as u64,
                line: None,
                column: column.map(|column| schema.field(column).name().clone()),
                reason: why.into(),
                hint,
                change: String::new(),
            },
        }))
    }

    fn live(&self) -> Result<BooleanArray, Refused> {
        let Some(op) = self.reader.roles.op else {
            return Ok(BooleanArray::from(vec![true; self.read.num_rows()]));
        };
        let ops = self.raw(op)?;
        let live = live_rows(&ops).map_err(|at| {
            self.bad(
                at,
                Some(op),
                "is none of I, U, D",
                "check `raw.op` and the file",
            )
        })?;
        if self.reader.changes.is_keyless() && matches!(self.reader.pass, Pass::One) {
            let updates = update_rows(&ops);
            if let Some(at) = (0..live.len()).find(|at| updates[*at] || !live.value(*at)) {
                let why = "is not I, in a table without a key";
                let hint = "name the primary key in `key`: without it rows are only added";
                return Err(self.bad(at, Some(op), why, hint));
            }
        }
        Ok(live)
    }

    /// The commit times in nanoseconds: none of a CDC row is null.
    fn commit_times(&self) -> Result<Vec<Option<i128>>, Refused> {
        let role = self.reader.roles.commit_time;
        let times = match role {
            None => vec![None; self.read.num_rows()],
            Some(column) => times_ns(&self.raw(column)?, Tz::UTC).map_err(|row| {
                let hint = "a commit time is yyyy-MM-dd HH:mm:ss[.ffffff] or a timestamp";
                self.bad(row, role, "is not a time", hint)
            })?,
        };
        match times.iter().position(Option::is_none) {
            Some(row) if !self.open().input.full_load => {
                let hint = "every change needs a commit time: check `raw.order_by`";
                Err(self.bad(row, role, "is null", hint))
            }
            _ => Ok(times),
        }
    }

    fn event_days(
        &self,
        live: &BooleanArray,
        commit_times: &[Option<i128>],
    ) -> Result<ArrayRef, Refused> {
        let roles = &self.reader.roles;
        let Some(column) = roles
            .event_time
            .filter(|_| roles.event_time != roles.commit_time)
        else {
            let days = commit_times.iter().map(|time| time.map(day_of));
            return Ok(Arc::new(days.collect::<Date32Array>()));
        };
        let zone = self.reader.changes.time_zone();
        let events = days_of(&self.raw(column)?, zone).map_err(|row| {
            let hint = "an event time is yyyy-MM-dd HH:mm:ss[.ffffff], a date or a timestamp";
            self.bad(row, Some(column), "is not a time", hint)
        })?;
        if live.true_count() == live.len() {
            return Ok(Arc::new(events));
        }
        let each = events.iter().zip(commit_times).zip(live.values());
        let days = each.map(|((event, commit), live)| match live {
            true => event,
            false => commit.map(day_of),
        });
        Ok(Arc::new(days.collect::<Date32Array>()))
    }

    /// The rows' places in the order of changes: of the places of a row the first, or the second.
    fn positions(&self, commit_times: &[Option<i128>], place: u64) -> Result<ArrayRef, Refused> {
        let roles = &self.reader.roles;
        let cdc = !self.open().input.full_load;
        let file = self.file as u32;
        let places = self.reader.changes.places_per_row() as u64;
        let rows = self.row_numbers().iter();
        let rows = rows.map(|row| *row as u64 * places + place);
        if self.reader.changes.is_packed() {
            let times = commit_times.iter().copied();
            return pack_column(cdc, times, file, rows).map_err(|row| {
                self.bad(
                    row,
                    roles.commit_time,
                    "is a time out of range",
                    "check the file",
                )
            });
        }
        let columns = roles
            .order
            .iter()
            .flatten()
            .map(|column| match Some(*column) == roles.commit_time {
                // Times are equal when they are, however they are written.
                true => Ok(Arc::new(Decimal128Array::from(commit_times.to_vec())) as ArrayRef),
                false => self.raw(*column),
            })
            .collect::<Result<Vec<_>, Refused>>()?;
        Ok(OrderEncoder::encode(cdc, &columns, file, rows)?)
    }

    fn check_key(&self) -> Result<(), Refused> {
        for column in &self.reader.roles.key {
            let array = self.raw(*column)?;
            if let Some(row) =
                (0..array.len()).find(|row| array.null_count() > 0 && array.is_null(*row))
            {
                let hint = "a key column must not be null: check `key` and the file";
                return Err(self.bad(row, Some(*column), "is null", hint));
            }
        }
        Ok(())
    }

    fn latest(&self, place: u64) -> ArrayRef {
        let winners = self.reader.pass.winners();
        let places = self.reader.changes.places_per_row();
        let is_latest = |row: &i64| {
            let place = *row as usize * places + place as usize;
            winners.is_some_and(|winners| winners.is_latest(self.file, place))
        };
        let latest = self.row_numbers().iter().map(|row| Some(is_latest(row)));
        Arc::new(latest.collect::<BooleanArray>())
    }
}

fn instant_ns(instant: DateTime<Utc>) -> i128 {
    i128::from(instant.timestamp()) * 1_000_000_000 + i128::from(instant.timestamp_subsec_nanos())
}

/// Whether each operation leaves its key alive: I, U and null do, D does not, in either case.
///
/// # Errors
/// The index of the first that is none of these.
fn live_rows(ops: &ArrayRef) -> Result<BooleanArray, usize> {
    let ops = match ops.data_type() {
        DataType::Utf8View => Arc::clone(ops),
        _ => cast(ops, &DataType::Utf8View).map_err(|_| 0usize)?,
    };
    let mut live = Vec::with_capacity(ops.len());
    for (index, op) in ops.as_string_view().iter().enumerate() {
        live.push(match op {
            None | Some("I" | "U" | "i" | "u") => true,
            Some("D" | "d") => false,
            Some(_) => return Err(index),
        });
    }
    Ok(BooleanArray::from(live))
}

/// Whether each operation is U, in either case.
fn update_rows(ops: &ArrayRef) -> Vec<bool> {
    let Ok(ops) = cast(ops, &DataType::Utf8View) else {
        return vec![false; ops.len()];
    };
    let ops = ops.as_string_view().iter();
    ops.map(|op| matches!(op, Some("U" | "u"))).collect()
}

/// Bounds of the commit times of a row group, by its statistics. Text sorts as its times do up to
/// the zones that some of it may have, which shift it by less than a day.
fn commit_span(
    metadata: &ParquetMetaData,
    group: usize,
    column: usize,
    data_type: &DataType,
) -> Option<(i128, i128)> {
    let descriptor = metadata.file_metadata().schema_descr();
    let leaf = (0..descriptor.num_columns())
        .find(|leaf| descriptor.get_column_root_idx(*leaf) == column)?;
    let statistics = metadata.row_group(group).column(leaf).statistics()?;
    if statistics.null_count_opt() != Some(0) {
        return None;
    }
    match (statistics, data_type) {
        (Statistics::Int64(values), DataType::Timestamp(unit, _)) => Some((
            nanoseconds(*values.min_opt()?, *unit),
            nanoseconds(*values.max_opt()?, *unit),
        )),
        (Statistics::ByteArray(values), DataType::Utf8View) => {
            // A bound that was cut short still has its date, or is of no use.
            let date =
                |bytes: &[u8]| parse_time(std::str::from_utf8(bytes.get(..10)?).ok()?, Tz::UTC);
            let (first, last) = (
                date(values.min_opt()?.data())?,
                date(values.max_opt()?.data())?,
            );
            Some((first - DAY_NS, last + 2 * DAY_NS))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;

    #[test]
    fn operations_are_read_in_either_case_and_null_is_an_insert() {
        let ops: ArrayRef = Arc::new(StringArray::from(vec![
            Some("I"),
            Some("u"),
            Some("D"),
            Some("d"),
            None,
        ]));
        let live = live_rows(&ops).expect("operations");
        assert_eq!(
            live,
            BooleanArray::from(vec![true, true, false, false, true])
        );
        let ops: ArrayRef = Arc::new(StringArray::from(vec!["I", "X"]));
        assert_eq!(live_rows(&ops), Err(1));
    }
}
