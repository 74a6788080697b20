//! Row counts and hashes of a table that do not depend on row order: two tables with the same rows
//! have the same digests, however the rows are distributed over files.
//!
//! A row's hash is SipHash over its columns in arrow's row format; a partition's is the sum of its
//! rows' hashes. The partition columns are not in the hash but in the partition's name, as Hive
//! writes it, where an empty text and a null are the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Date32Type, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;

use crate::engine::tasks::{join_all, spawn};
use crate::error::Result;
use crate::table::partition_names::partition_folder;
use crate::types::column_type::cast_values;

/// The digest of a partition's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    /// The number of rows.
    pub rows: u64,
    /// The sum of the rows' hashes.
    pub hash: u64,
}

/// The digests of a table's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    /// The digest of each partition, by relative folder; empty for an unpartitioned table.
    pub partitions: BTreeMap<String, Digest>,
    /// The number of rows of each day, as days since 1970, if the table has a day column.
    pub days: BTreeMap<Option<i32>, u64>,
    /// The columns with values that do not fit their types; such values count as nulls.
    pub unfit: BTreeSet<usize>,
}

/// The columns of a digest, as indices into the rows' schema.
#[derive(Clone, Debug)]
pub(crate) struct DigestColumns {
    /// The partition columns, outermost first.
    pub partition_by: Vec<usize>,
    /// The day column, a DATE.
    pub day: Option<usize>,
    /// The types in which values are compared.
    pub types: Vec<DataType>,
}

/// Computes the digests of streams of rows of one schema.
///
/// # Errors
/// Those of the streams; data, when a partition value is too long for a folder name.
pub(crate) async fn digest(
    streams: Vec<SendableRecordBatchStream>,
    digest_columns: &DigestColumns,
) -> Result<Digests> {
    let tasks = streams.into_iter().map(|mut rows| {
        let digest_columns = digest_columns.clone();
        spawn(async move {
            let mut digester = Digester::new(rows.schema(), digest_columns)?;
            while let Some(batch) = rows.try_next().await? {
                digester.add(&batch)?;
            }
            Ok(digester.finish())
        })
    });
    let mut all = Digests::default();
    for digests in join_all(tasks).await? {
        for (partition, digest) in digests.partitions {
            all.partitions.entry(partition).or_default().add(digest);
        }
        all.unfit.extend(digests.unfit);
        for (day, rows) in digests.days {
            *all.days.entry(day).or_default() += rows;
        }
    }
    Ok(all)
}

impl Digest {
    fn add(&mut self, other: Digest) {
        self.rows += other.rows;
        self.hash = self.hash.wrapping_add(other.hash);
    }
}

struct Digester {
    digest_columns: DigestColumns,
    names: Vec<String>,
    stored: Vec<usize>,
    rows: RowConverter,
    partitions: RowConverter,
    /// The partitions seen, by their columns in row format: name and digest.
    seen: HashMap<Box<[u8]>, (String, Digest)>,
    /// The digests, complete except for the partitions.
    digests: Digests,
}

impl Digester {
    fn new(schema: SchemaRef, digest_columns: DigestColumns) -> Result<Self> {
        let columns = 0..schema.fields().len();
        let stored: Vec<usize> =
            columns.filter(|at| !digest_columns.partition_by.contains(at)).collect();
        let converter = |columns: &[usize]| {
            let types = columns.iter().map(|column| digest_columns.types[*column].clone());
            RowConverter::new(types.map(SortField::new).collect())
        };
        let names = digest_columns.partition_by.iter();
        Ok(Digester {
            rows: converter(&stored)?,
            partitions: converter(&digest_columns.partition_by)?,
            names: names.map(|column| schema.field(*column).name().clone()).collect(),
            stored,
            digest_columns,
            seen: HashMap::new(),
            digests: Digests::default(),
        })
    }

    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut fitting: Vec<ArrayRef> = Vec::new();
        for (at, (column, kind)) in
            batch.columns().iter().zip(&self.digest_columns.types).enumerate()
        {
            fitting.push(cast_values(column, kind).unwrap_or_else(|_| {
                self.digests.unfit.insert(at);
                new_null_array(kind, batch.num_rows())
            }));
        }
        let columns = |indices: &[usize]| -> Vec<ArrayRef> {
            let selected = indices.iter().map(|index| Arc::clone(&fitting[*index]));
            selected.collect()
        };
        let count = batch.num_rows();
        let stored = columns(&self.stored);
        let rows = if stored.is_empty() {
            self.rows.empty_rows(0, 0)
        } else {
            self.rows.convert_columns(&stored)?
        };
        let values = columns(&self.digest_columns.partition_by);
        let partitions = if values.is_empty() {
            self.partitions.empty_rows(0, 0)
        } else {
            self.partitions.convert_columns(&values)?
        };
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        // Rows of a partition are mostly adjacent.
        let mut current = None;
        for row in 0..count {
            let is_same =
                |other: usize| values.is_empty() || partitions.row(other) == partitions.row(row);
            if row == 0 || !is_same(row - 1) {
                let key = if values.is_empty() { &[] } else { partitions.row(row).data() };
                if !self.seen.contains_key(key) {
                    let name = partition_folder(&names, &values, row)?;
                    self.seen.insert(key.into(), (name, Digest::default()));
                }
                current = self.seen.get_mut(key);
            }
            let mut hasher = DefaultHasher::new();
            if !stored.is_empty() {
                hasher.write(rows.row(row).data());
            }
            let hash = hasher.finish();
            if let Some((_, digest)) = &mut current {
                digest.add(Digest { rows: 1, hash });
            }
        }
        if let Some(day) = self.digest_columns.day {
            for day in fitting[day].as_primitive::<Date32Type>().iter() {
                *self.digests.days.entry(day).or_default() += 1;
            }
        }
        Ok(())
    }

    /// The digests of all rows.
    fn finish(mut self) -> Digests {
        for (name, digest) in self.seen.into_values() {
            // An empty text and a null have the same name.
            self.digests.partitions.entry(name).or_default().add(digest);
        }
        self.digests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Date32Array, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    fn digests(rows: &[(i64, &str, Option<i32>)]) -> Digests {
        let schema = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("cat", DataType::Utf8, true),
            Field::new("day", DataType::Date32, true),
        ]));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(rows.iter().map(|row| Some(row.0)).collect::<Int64Array>()),
            Arc::new(rows.iter().map(|row| Some(row.1)).collect::<StringArray>()),
            Arc::new(rows.iter().map(|row| row.2).collect::<Date32Array>()),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("a batch");
        let digest_columns = DigestColumns {
            partition_by: vec![1],
            day: Some(2),
            types: schema.fields().iter().map(|field| field.data_type().clone()).collect(),
        };
        let mut digester = Digester::new(schema, digest_columns).expect("a digester");
        // In two batches, so that partitions occur in both.
        let half = rows.len() / 2;
        digester.add(&batch.slice(0, half)).expect("added");
        digester.add(&batch.slice(half, rows.len() - half)).expect("added");
        digester.finish()
    }

    #[test]
    fn columns_with_values_that_do_not_fit_are_reported() {
        let values: ArrayRef = Arc::new(arrow::array::Float64Array::from(vec![1.0, 1.5]));
        let schema = Arc::new(Schema::new(vec![Field::new("v", DataType::Float64, true)]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![values]).expect("a batch");
        let digest_columns =
            DigestColumns { partition_by: vec![], day: None, types: vec![DataType::Int64] };
        let mut digester = Digester::new(schema, digest_columns).expect("a digester");
        digester.add(&batch.slice(0, 1)).expect("added");
        assert!(digester.digests.unfit.is_empty());
        digester.add(&batch).expect("added");
        assert_eq!(digester.digests.unfit, BTreeSet::from([0]));
    }

    #[test]
    fn the_order_of_rows_does_not_matter_and_their_values_do() {
        let rows = [(1, "a", Some(0)), (2, "b", Some(1)), (3, "a", None), (4, "a", Some(0))];
        let mut turned = rows;
        turned.reverse();
        let one = digests(&rows);
        assert_eq!(one, digests(&turned));
        assert_eq!(one.partitions["cat=a"].rows, 3);
        assert_eq!(one.days, BTreeMap::from([(None, 1), (Some(0), 2), (Some(1), 1)]));
        let mut changed = rows;
        changed[0].0 = 9;
        let other = digests(&changed);
        assert_ne!(one.partitions["cat=a"].hash, other.partitions["cat=a"].hash);
        assert_eq!(one.partitions["cat=b"], other.partitions["cat=b"]);
        let mut twice = rows.to_vec();
        twice.extend([rows[1], rows[1]]);
        assert_ne!(one.partitions["cat=b"], digests(&twice).partitions["cat=b"]);
    }
}
