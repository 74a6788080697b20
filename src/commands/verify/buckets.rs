//! Compares rows with those of a database by hashes that the server computes, bucket by bucket, so that only rows
//! of buckets that differ are read.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf, ident};
use datafusion::prelude::DataFrame;
use futures::TryStreamExt;

use crate::engine::tasks::{join_all, spawn};
use crate::error::Result;
use crate::postgres::row_hash::{BUCKETS, Bucket, bucket_of, hashes};

/// The buckets of rows, by all of their columns.
///
/// # Errors
/// Those of the engine.
pub(super) async fn buckets_of(rows: &DataFrame) -> Result<Vec<Bucket>> {
    let streams = rows.clone().execute_stream_partitioned().await?;
    let tasks = streams.into_iter().map(|mut rows| {
        spawn(async move {
            let mut buckets = vec![Bucket::default(); BUCKETS];
            while let Some(batch) = rows.try_next().await? {
                for hash in hashes(batch.columns())? {
                    let bucket = &mut buckets[bucket_of(hash)];
                    bucket.rows += 1;
                    bucket.sum += i128::from(hash);
                }
            }
            Ok(buckets)
        })
    });
    let mut sums = vec![Bucket::default(); BUCKETS];
    for buckets in join_all(tasks).await? {
        for (sum, bucket) in sums.iter_mut().zip(buckets) {
            sum.rows += bucket.rows;
            sum.sum += bucket.sum;
        }
    }
    Ok(sums)
}

/// The rows of some buckets, by all of their columns.
///
/// # Errors
/// Those of the engine.
pub(super) fn rows_of(rows: DataFrame, buckets: &[usize]) -> Result<DataFrame> {
    let mut is_wanted = vec![false; BUCKETS];
    buckets.iter().for_each(|bucket| is_wanted[*bucket] = true);
    let fields = rows.schema().fields().clone();
    let types: Vec<DataType> = fields.iter().map(|field| field.data_type().clone()).collect();
    let in_buckets = move |arguments: &[ColumnarValue]| {
        let columns: Vec<ArrayRef> = ColumnarValue::values_to_arrays(arguments)?;
        let hashes = hashes(&columns).map_err(|error| DataFusionError::External(error.into()))?;
        let wanted = hashes.into_iter().map(|hash| Some(is_wanted[bucket_of(hash)]));
        Ok(ColumnarValue::Array(Arc::new(wanted.collect::<BooleanArray>())))
    };
    let in_buckets = create_udf(
        "in_buckets",
        types,
        DataType::Boolean,
        Volatility::Immutable,
        Arc::new(in_buckets),
    );
    let columns = fields.iter().map(|field| ident(field.name())).collect();
    Ok(rows.filter(in_buckets.call(columns))?)
}
