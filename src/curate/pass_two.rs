//! Splits the winners' rows into rows of the curated table and versions.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Date32Array, RecordBatch, UInt64Array, new_null_array,
};
use arrow::compute::{and, and_not, cast, filter, filter_record_batch};
use arrow::datatypes::{DataType, Date32Type, Schema, SchemaRef, UInt64Type};
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;

use crate::changes::row_bitmap::Winners;
use crate::config::Keep;
use crate::curate::altered::ComparedColumns;
use crate::curate::curated_sql::CuratedRows;
use crate::curate::merge::Output;
use crate::curate::merge::standing::{Standing, Unsettled};
use crate::curate::places::{ByPlace, Places};
use crate::curate::validity::{self, RowEnds};
use crate::engine::tasks::Work;
use crate::error::{Error, Result};
use crate::parquet_io::open::conform;
use crate::raw::discover::Input;
use crate::state::versions::{VersionSource, VersionsLayout};
use crate::state::versions_writer::VersionsFile;
use crate::table::sorter::{Sorter, compact};
use crate::types::key::normalize_zeros;

/// What one stream counted; sums over all streams.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Last changes that become rows of the table.
    pub rows_latest: u64,
    /// Last changes that leave no row: deletes, rows that `curated.sql` filters out, and rows that a
    /// floor has ended.
    pub rows_deleted: u64,
    /// Last changes per key and day.
    pub key_days: u64,
    /// The days of these, as days since 1970.
    pub days: BTreeSet<i32>,
}

/// When the rows of winners begin and end.
#[derive(Clone)]
pub(super) struct RowTimes {
    /// The column of the table that is the day.
    pub(super) day: Option<String>,
    /// Where rows end and stay, when those of winners do.
    pub(super) ends: Arc<RowEnds>,
    /// The days of rows that are not those of their changes.
    pub(super) begins: Arc<ByPlace>,
}

impl RowTimes {
    /// The days of rows at these places, given those of their changes.
    fn days(&self, days: &ArrayRef, places: &[u64]) -> Result<ArrayRef> {
        let of_changes = cast(days, &DataType::Date32)?;
        let mut from = 0;
        let of_rows = of_changes.as_primitive::<Date32Type>().iter().zip(places);
        let of_rows = of_rows.map(|(day, place)| match self.begins.of(*place, &mut from) {
            Some((begin, _)) => i32::try_from(begin).ok(),
            None => day,
        });
        Ok(cast(&of_rows.collect::<Date32Array>(), days.data_type())?)
    }
}

/// Splits one stream of rows.
pub(super) struct Splitter {
    pub(super) keep: Keep,
    /// The columns that the table has besides those of the query, its last ones.
    pub(super) own_columns: &'static [&'static str],
    /// The schema of the sorter's rows.
    pub(super) schema: SchemaRef,
    pub(super) key: Vec<String>,
    /// The number of columns of the query, which come before the hidden ones.
    pub(super) columns: usize,
    pub(super) layout: Arc<VersionsLayout>,
    /// Where rows are compared, the columns.
    pub(super) compared: Option<Arc<ComparedColumns>>,
    pub(super) inputs: Arc<Vec<Input>>,
    /// The number of the commit to be.
    pub(super) commit: u64,
    pub(super) places: Arc<Places>,
    /// The winners whose standing is counted at the end.
    pub(super) unsettled: Unsettled,
    /// The winners, if a floor has ended the rows of some.
    pub(super) ended: Option<Arc<Winners>>,
    pub(super) times: RowTimes,
    pub(super) sql_file: String,
}

impl Splitter {
    /// Takes the next stream, if there is one: its rows are written as versions, and live ones passed
    /// to the sorter.
    pub(super) async fn run(
        self,
        streams: &Work<SendableRecordBatchStream>,
        mut output: Output,
    ) -> Result<(Counts, Vec<VersionsFile>, Sorter, Option<Standing>)> {
        let mut counts = Counts::default();
        let columns: Vec<usize> = (0..self.columns).collect();
        if let Some(mut rows) = streams.next() {
            let failed = |error| Error::query(&self.sql_file, error);
            while let Some(batch) = rows.try_next().await.map_err(failed)? {
                if streams.has_failed() {
                    break;
                }
                let source = self.version_source(&batch)?;
                let ordinals = self.layout.ordinals(&source.positions);
                let chosen = self.count(&batch, &ordinals, &mut counts)?;
                let versions =
                    self.layout.versions(&source, &ordinals, &self.inputs, self.commit)?;
                if let Some(standing) = &mut output.standing {
                    let latest = CuratedRows::of(&batch, self.columns).latest();
                    standing.take(&versions, latest, &ordinals, &self.unsettled)?;
                }
                output.versions.write(&versions).await?;
                let table_rows = filter_record_batch(&batch.project(&columns)?, &chosen)?;
                if table_rows.num_rows() > 0 {
                    let places = filter(&self.places_of(&ordinals), &chosen)?;
                    let keys = CuratedRows::of(&batch, self.columns).keys();
                    let instants = keys.get(self.layout.key_count());
                    let instants =
                        instants.map(|instants| filter(instants, &chosen)).transpose()?;
                    output.rows.push(&self.table_rows(&table_rows, instants, places)?)?;
                }
            }
        }
        Ok((counts, output.versions.finish().await?, output.rows, output.standing))
    }

    /// The columns from which the versions of a batch are made.
    fn version_source(&self, batch: &RecordBatch) -> Result<VersionSource> {
        let rows = CuratedRows::of(batch, self.columns);
        let schema = batch.schema();
        let partitions = self.layout.partitions.iter().map(|(name, data_type)| {
            let lost = || Error::internal(format!("the column `{name}` was lost"));
            let fields = &schema.fields()[..self.columns];
            if self.own_columns.contains(&name.as_str()) {
                // It changes when the row ends.
                return Ok(new_null_array(data_type, batch.num_rows()));
            }
            let at = fields.iter().position(|field| field.name() == name).ok_or_else(lost)?;
            Ok(Arc::clone(&rows.columns[at]))
        });
        Ok(VersionSource {
            keys: rows.keys().to_vec(),
            days: Arc::clone(rows.days()),
            live: rows.live().clone(),
            positions: Arc::clone(rows.positions()),
            partitions: partitions.collect::<Result<_>>()?,
            row_hashes: self
                .compared
                .as_ref()
                .map(|compared| compared.hashes(batch))
                .transpose()?,
        })
    }

    /// The places of rows, given by input and row ordinal.
    fn places_of(&self, ordinals: &[(usize, usize)]) -> UInt64Array {
        let places = ordinals.iter().map(|(file, row)| self.places.of(*file, *row));
        places.collect()
    }

    /// Converts rows of the query's columns to the sorter's schema; `instants` are those by which they
    /// were folded, if the table keeps times.
    fn table_rows(
        &self,
        rows: &RecordBatch,
        instants: Option<ArrayRef>,
        places: ArrayRef,
    ) -> Result<RecordBatch> {
        let schema = rows.schema();
        let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| {
            let is_key = self.key.contains(field.name());
            if is_key { normalize_zeros(column) } else { Arc::clone(column) }
        });
        let mut columns: Vec<ArrayRef> = columns.collect();
        let mut named = schema.fields().to_vec();
        let of_rows = places.as_primitive::<UInt64Type>().values();
        if let Some(day) = self.times.day.as_ref().filter(|_| !self.times.begins.is_empty()) {
            let day = schema.index_of(day)?;
            columns[day] = self.times.days(&columns[day], of_rows)?;
        }
        if let Some(instants) = instants {
            let ends = &self.times.ends;
            let own = validity::columns(self.own_columns, instants.as_primitive(), of_rows, ends);
            columns.extend(own);
            named.extend(validity::fields(self.own_columns).into_iter().map(Arc::new));
        }
        let rows = RecordBatch::try_new(Arc::new(Schema::new(named)), columns)?;
        let fields = self.schema.fields();
        let stored = Arc::new(Schema::new(fields[..fields.len() - 2].to_vec()));
        let mut columns = conform(&rows, &stored)?.columns().to_vec();
        columns.push(Arc::new(BooleanArray::from(vec![true; rows.num_rows()])));
        columns.push(places);
        compact(&RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    /// Counts the rows of a batch, which are these inputs and row ordinals. Returns which of them become
    /// rows of the table.
    pub(super) fn count(
        &self,
        batch: &RecordBatch,
        ordinals: &[(usize, usize)],
        counts: &mut Counts,
    ) -> Result<BooleanArray> {
        let rows = CuratedRows::of(batch, self.columns);
        let (live, latest) = (rows.live(), rows.latest());
        let days = rows.days().as_primitive::<Date32Type>();
        let mut before = None;
        for day in days.iter().flatten() {
            if before != Some(day) {
                counts.days.insert(day);
                before = Some(day);
            }
        }
        counts.key_days += batch.num_rows() as u64;
        let (mut chosen, candidates) = match self.keep {
            Keep::LatestPerDay => (live.clone(), batch.num_rows()),
            Keep::Latest | Keep::LatestAndDeleted | Keep::LatestAltered | Keep::History => {
                (and(live, latest)?, latest.true_count())
            }
        };
        if let Some(winners) = &self.ended {
            let ended = ordinals.iter().map(|(file, row)| Some(winners.is_ended(*file, *row)));
            chosen = and_not(&chosen, &ended.collect())?;
        }
        counts.rows_latest += chosen.true_count() as u64;
        counts.rows_deleted += (candidates - chosen.true_count()) as u64;
        Ok(chosen)
    }
}
