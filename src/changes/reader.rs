//! Reading changes: batches of one raw file become batches of the relation in [`crate::changes`].
//!
//! Pass one reads every row and checks it; pass two reads the winners' rows only, through a row
//! selection, and leaves out whole row groups without any. A row that cannot be folded is found by
//! halving its batch until it is alone, so that the others cost nothing more.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::BatchCoalescer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
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

use crate::changes::pass_one::PassOne;
use crate::changes::position::{PACKED_TYPE, Position};
use crate::changes::row_bitmap::Winners;
use crate::changes::{Changes, EVENT_DT, LATEST, LIVE, OpenInput, POSITION, Roles, Unit};
use crate::error::{Error, Result};
use crate::parquet_io::fetch::{FetchUnit, fetch_ahead};
use crate::raw::bad_rows::BadRow;
use crate::types::times::{DAY_NS, nanoseconds, parse_time};
use crate::window::Window;

use batch::{Batch, Refused};

mod batch;
mod find_key;

pub use find_key::find_key;

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
    One(Arc<PassOne>),
    /// Key moves only, each as a delete and as itself.
    KeyMoves,
    /// Those of one key: nothing is made of them.
    Find,
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
    /// All rows, which a scan checks and counts.
    pub fn pass_one(changes: &Arc<Changes>, counts: &Arc<PassOne>, partitions: usize) -> Self {
        Self::of(changes, Pass::One(Arc::clone(counts)), partitions)
    }

    /// The rows of the winners, and whether each is its key's last.
    pub fn pass_two(changes: &Arc<Changes>, winners: Arc<Winners>, partitions: usize) -> Self {
        Self::of(changes, Pass::Two(winners), partitions)
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
                    // That no key is null is checked along with it.
                    needed.extend(&roles.key);
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
        if let Pass::One(_) = pass {
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
        let pieces = units
            .into_iter()
            .flat_map(move |unit| reader.fetch_units(&unit));
        let batches = fetch_ahead(pieces).map(move |fetched| {
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
    fn fetch_units(&self, unit: &Unit) -> Vec<(FetchUnit, usize)> {
        let open = self.changes.file(unit.file);
        let groups = self.groups_in_window(open, &unit.row_groups);
        let unsure = match self.pass {
            Pass::One(_) => &open.unsure[..],
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
        let places = self.changes.ordinals_per_row();
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
        let pieces = open.file.fetch_units(&columns, chosen).into_iter();
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
                if let Pass::One(counts) = &self.pass {
                    counts.count_rows(0, group.2);
                }
            } else {
                kept.push(*group);
            }
        }
        kept
    }

    /// The windows that select rows of a file in pass one, in nanoseconds.
    fn row_windows(&self, open: &OpenInput) -> Option<Vec<(i128, i128)>> {
        let windows = open.input.rows.as_ref();
        let windows = windows.filter(|_| matches!(self.pass, Pass::One(_)))?;
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
                    return Err(first.row.to_error(&batch.open().file.name));
                }
                let mut good = vec![true; batch.read.num_rows()];
                bad.iter().for_each(|bad| good[bad.at] = false);
                if let Pass::One(counts) = &self.pass {
                    let rows: Vec<BadRow> = bad.into_iter().map(|bad| bad.row).collect();
                    let (bad_rows, name) = (counts.bad_rows(), &batch.open().file.name);
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
        if let Pass::One(counts) = &self.pass {
            counts.count_rows(made.inside, made.outside + not_chosen);
            counts.count_key_moves(made.key_moves);
            counts.observe_commit_time(made.newest);
        }
        Ok(made.rows)
    }
}

fn instant_ns(instant: DateTime<Utc>) -> i128 {
    i128::from(instant.timestamp()) * 1_000_000_000 + i128::from(instant.timestamp_subsec_nanos())
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
