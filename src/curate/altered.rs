//! Which columns of a history a change must alter to make a row: those that `history_columns` names, or all but the key,
//! which is the same in all rows of a key, and the day, which says when the change was and not what it left.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Field, Schema, SchemaRef};

use crate::curate::curated_sql::CuratedRows;
use crate::error::Result;
use crate::parquet_io::open::conform;
use crate::types::row_hash::row_hashes;

/// The columns by which rows are compared.
#[derive(Clone, Debug)]
pub(crate) struct ComparedColumns {
    /// Their names, and their types in the table.
    schema: SchemaRef,
    /// The number of columns of the query.
    count: usize,
}

impl ComparedColumns {
    /// Those among the columns of a table, which are not its own, whose query has `count` columns; of `named` ones, these.
    pub(super) fn new(
        columns: &[Field],
        (key, day, named): (&[String], Option<&str>, &[String]),
        count: usize,
    ) -> Self {
        let is_compared = |field: &&Field| match named {
            [] => !key.contains(field.name()) && Some(field.name().as_str()) != day,
            named => named.contains(field.name()),
        };
        let compared: Vec<Field> = columns.iter().filter(is_compared).cloned().collect();
        ComparedColumns { schema: Arc::new(Schema::new(compared)), count }
    }

    /// The same, of a query with so many columns.
    pub(super) fn with_count(&self, count: usize) -> Self {
        ComparedColumns { schema: Arc::clone(&self.schema), count }
    }

    /// The hashes of the rows that a batch of the query has, as the table has them; null of those that it may not have,
    /// whose values need not fit.
    ///
    /// # Errors
    /// Data, when a value does not fit its type in the table.
    pub(super) fn hashes(&self, batch: &RecordBatch) -> Result<ArrayRef> {
        let live = CuratedRows::of(batch, self.count).live();
        if self.schema.fields().is_empty() {
            // All rows of a key are equal.
            return Ok(Arc::new(live.iter().map(|live| live.map(|_| 0)).collect::<Int64Array>()));
        }
        let rows = batch.project(&(0..self.count).collect::<Vec<_>>())?;
        let rows = conform(&filter_record_batch(&rows, live)?, &self.schema)?;
        let names = self.schema.fields().iter().map(|field| field.name().as_str());
        let hashes = row_hashes(names.zip(rows.columns()), rows.num_rows())?;
        if hashes.len() == batch.num_rows() {
            return Ok(Arc::new(hashes));
        }
        let mut hashes = hashes.values().iter().copied();
        let of_rows = live.iter().map(|live| live.filter(|live| *live).and_then(|_| hashes.next()));
        Ok(Arc::new(of_rows.collect::<Int64Array>()))
    }

    /// What a merge reads of a batch of the query: the key columns, the day, the position, whether the change leaves a
    /// row, and its hash.
    ///
    /// # Errors
    /// As [`ComparedColumns::hashes`].
    pub(super) fn winners(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = CuratedRows::of(batch, self.count);
        let mut columns: Vec<ArrayRef> = rows.keys().to_vec();
        columns.extend([rows.days(), rows.positions()].map(Arc::clone));
        columns.push(Arc::new(rows.live().clone()));
        columns.push(self.hashes(batch)?);
        let fields = columns.iter().enumerate();
        let fields =
            fields.map(|(at, values)| Field::new(at.to_string(), values.data_type().clone(), true));
        let schema = Schema::new(fields.collect::<Vec<_>>());
        Ok(RecordBatch::try_new(Arc::new(schema), columns)?)
    }
}
