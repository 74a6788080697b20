//! Reading changes: batches of one raw file become batches of the relation in [`crate::changes`].
//!
//! Pass one reads every row and checks it; pass two reads the winners' rows only, through a row
//! selection, and leaves out whole row groups without any.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, RecordBatch,
    new_null_array,
};
use arrow::compute::{BatchCoalescer, CastOptions, cast, cast_with_options, filter_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
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
use crate::error::{Error, Result};
use crate::parquet_pieces::{Piece, fetched_ahead};
use crate::position::{OrderEncoder, PACKED_TYPE, Position, pack_column};
use crate::times::{DAY_NS, day_of, days_of, nanoseconds, parse_time, times_ns};
use crate::window::Window;
use crate::winners::Winners;

/// Batches are not put together beyond so much data.
const COALESCED_BYTES: usize = 16 << 20;

/// The relation over [`Changes`], for DataFusion.
#[derive(Debug)]
pub struct ChangesTable {
    changes: Arc<Changes>,
    winners: Option<Arc<Winners>>,
    schema: SchemaRef,
    partitions: usize,
}

impl ChangesTable {
    /// All rows; with winners only their rows, and whether each is its key's last.
    pub fn new(changes: &Arc<Changes>, winners: Option<Arc<Winners>>, partitions: usize) -> Self {
        let mut fields = changes.raw_schema().fields().to_vec();
        let position = if changes.is_packed() {
            PACKED_TYPE
        } else {
            <Box<[u8]> as Position>::data_type()
        };
        fields.push(Arc::new(Field::new(EVENT_DT, DataType::Date32, true)));
        fields.push(Arc::new(Field::new(POSITION, position, false)));
        fields.push(Arc::new(Field::new(LIVE, DataType::Boolean, false)));
        if winners.is_some() {
            fields.push(Arc::new(Field::new(LATEST, DataType::Boolean, false)));
        }
        ChangesTable {
            changes: Arc::clone(changes),
            winners,
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
            self.winners.clone(),
            Arc::clone(&schema),
        ));
        let streams = self
            .changes
            .spread(self.partitions, self.winners.as_deref())
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
    winners: Option<Arc<Winners>>,
    schema: SchemaRef,
    sources: Vec<Source>,
    roles: Roles,
    /// The raw columns that are read: those asked for and those that the others are made of.
    needed: Vec<usize>,
    needs_times: bool,
}

impl ChangeReader {
    fn new(changes: Arc<Changes>, winners: Option<Arc<Winners>>, schema: SchemaRef) -> Self {
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
        needed.sort_unstable();
        needed.dedup();
        let needs_times = sources
            .iter()
            .any(|source| matches!(source, Source::EventDt | Source::Position));
        ChangeReader {
            changes,
            winners,
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
            let (fetched, file) = fetched?;
            let (reader, columns) = (Arc::clone(&self), Arc::clone(fetched.columns()));
            let batches = fetched.read(reader.changes.batch_rows())?;
            let converted = batches.map(move |batch| reader.convert(file, &columns, &batch?));
            Ok::<_, Error>(stream::iter(converted))
        });
        batches.try_flatten()
    }

    /// A unit's pieces, with the number of its file.
    fn pieces(&self, unit: &Unit) -> Vec<(Piece, usize)> {
        let open = self.changes.file(unit.file);
        let groups = self.groups_in_window(open, &unit.row_groups);
        let mut columns: Vec<usize> = self
            .needed
            .iter()
            .filter_map(|raw| open.columns[*raw])
            .collect();
        columns.sort_unstable();
        let chosen = groups.iter().map(|(group, first, rows)| {
            let winners = self.winners.as_ref();
            let mask = winners.map(|winners| winners.days(unit.file, *first, *rows));
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
        let windows = open
            .input
            .rows
            .as_ref()
            .filter(|_| self.winners.is_none())?;
        let span = |window: &Window| (instant_ns(window.start), instant_ns(window.end));
        Some(windows.iter().map(span).collect())
    }

    /// Makes the output columns of one batch as it was read: `columns`, then the row number.
    fn convert(&self, file: usize, columns: &[usize], read: &RecordBatch) -> Result<RecordBatch> {
        let batch = Batch {
            reader: self,
            file,
            columns,
            read,
        };
        let live = batch.live()?;
        let times = if self.needs_times {
            batch.commit_times()?
        } else {
            Vec::new()
        };
        let arrays = self
            .sources
            .iter()
            .map(|source| match source {
                Source::Raw(column) => batch.raw(*column),
                Source::EventDt => batch.event_days(&live, &times),
                Source::Position => {
                    batch.check_key()?;
                    batch.positions(&times)
                }
                Source::Live => Ok(Arc::new(live.clone()) as ArrayRef),
                Source::Latest => Ok(batch.latest()),
            })
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(read.num_rows()));
        let converted =
            RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)?;
        if self.winners.is_some() {
            return Ok(converted);
        }
        let inside = match self.row_windows(self.changes.file(file)) {
            None => converted,
            Some(windows) => {
                let is_inside = |time: &Option<i128>| {
                    let holds = |(low, high): &(i128, i128)| {
                        time.is_some_and(|time| (*low..*high).contains(&time))
                    };
                    windows.iter().any(holds)
                };
                let inside = times
                    .iter()
                    .map(|time| Some(is_inside(time)))
                    .collect::<BooleanArray>();
                filter_record_batch(&converted, &inside)?
            }
        };
        self.changes
            .count(inside.num_rows(), read.num_rows() - inside.num_rows());
        Ok(inside)
    }
}

/// One batch of a file, as it was read.
struct Batch<'a> {
    reader: &'a ChangeReader,
    file: usize,
    columns: &'a [usize],
    read: &'a RecordBatch,
}

impl Batch<'_> {
    fn open(&self) -> &OpenInput {
        self.reader.changes.file(self.file)
    }

    fn row_numbers(&self) -> &[i64] {
        self.read
            .column(self.columns.len())
            .as_primitive::<Int64Type>()
            .values()
    }

    /// A raw column in the type it has over all inputs; null where the file lacks it.
    fn raw(&self, column: usize) -> Result<ArrayRef> {
        let wanted = self.reader.changes.raw_schema().field(column);
        let open = self.open();
        let place = open.columns[column].and_then(|index| self.columns.binary_search(&index).ok());
        let Some(place) = place else {
            return Ok(new_null_array(wanted.data_type(), self.read.num_rows()));
        };
        let array = self.read.column(place);
        if array.data_type() == wanted.data_type() {
            return Ok(Arc::clone(array));
        }
        let checked = CastOptions {
            safe: false,
            ..Default::default()
        };
        cast_with_options(array, wanted.data_type(), &checked).map_err(|_| {
            Error::data(format!(
                "column `{}` of {} does not fit {}, its type in other files",
                wanted.name(),
                open.file.name,
                wanted.data_type()
            ))
        })
    }

    fn bad(&self, row: usize, column: Option<usize>, why: &str, hint: &str) -> Error {
        let schema = self.reader.changes.raw_schema();
        let name = column.map_or("", |column| schema.field(column).name().as_str());
        Error::data(format!(
            "row {} of {}: column `{name}` {why}",
            self.row_numbers()[row] + 1,
            self.open().file.name
        ))
        .hint(hint)
    }

    fn live(&self) -> Result<BooleanArray> {
        let Some(op) = self.reader.roles.op else {
            return Ok(BooleanArray::from(vec![true; self.read.num_rows()]));
        };
        live_rows(&self.raw(op)?).map_err(|row| {
            self.bad(
                row,
                Some(op),
                "is none of I, U, D",
                "check `raw.op` and the file",
            )
        })
    }

    /// The commit times in nanoseconds: none of a CDC row is null.
    fn commit_times(&self) -> Result<Vec<Option<i128>>> {
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

    fn event_days(&self, live: &BooleanArray, commit_times: &[Option<i128>]) -> Result<ArrayRef> {
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

    fn positions(&self, commit_times: &[Option<i128>]) -> Result<ArrayRef> {
        let roles = &self.reader.roles;
        let cdc = !self.open().input.full_load;
        let file = self.file as u32;
        let rows = self.row_numbers().iter().map(|row| *row as u64);
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
            .collect::<Result<Vec<_>>>()?;
        OrderEncoder::encode(cdc, &columns, file, rows)
    }

    fn check_key(&self) -> Result<()> {
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

    fn latest(&self) -> ArrayRef {
        let winners = self.reader.winners.as_ref();
        let is_latest =
            |row: &i64| winners.is_some_and(|winners| winners.is_latest(self.file, *row as usize));
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
