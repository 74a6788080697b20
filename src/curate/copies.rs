//! Copies of rows of a history.
//!
//! Of changes that leave equal rows, one after the other, only the first has a row in the table. If a change or a floor
//! comes between them later, the first one after it gets a row of its own. The run has not read that change, and its raw
//! file may be gone; but its row is in the table: it is the one that was for both, but for the day and the times.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::{concat_batches, partition, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::runtime_env::RuntimeEnv;

use crate::curate::validity::{EndNames, end_columns};
use crate::error::{Error, Result};
use crate::table::rebuild::PublishedTable;
use crate::table::sorter::{Merge, Order, Readers, Sorted, Sorter, compact};

/// The most copies of a partition that are looked for at once, and the most bytes of what they have of their own.
const COPIES_MAX: usize = 256 << 10;
const COPIES_BYTES_MAX: usize = 16 << 20;

/// The order of copies that are read from raw: the columns of a pair of rows, then the raw location, path and row of the change, and the hash
/// of its row. They are sorted by file and row.
fn raw_order(pairs: &Schema) -> Result<Arc<Order>> {
    let sources = [
        ("location", DataType::Int32),
        ("file", DataType::Utf8),
        ("row", DataType::Int64),
        ("row_hash", DataType::Int64),
    ];
    let sources = sources.map(|(name, data_type)| Arc::new(Field::new(name, data_type, true)));
    let fields: Vec<_> = pairs.fields().iter().cloned().chain(sources).collect();
    let count = fields.len();
    let by = (count - 4..count - 1).collect();
    let schema = Arc::new(Schema::new(fields));
    Ok(Arc::new(Order::new(schema, Vec::new(), by, (0..count).collect())?))
}

/// The next copies that are made at once; `None` at the end.
pub(super) fn next_copies(merge: &mut Merge<'_>, order: &Order) -> Result<Option<RecordBatch>> {
    let mut batches = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    while count < COPIES_MAX
        && bytes < COPIES_BYTES_MAX
        && let Some(batch) = merge.next_batch()?
    {
        count += batch.num_rows();
        bytes += batch.get_array_memory_size();
        batches.push(batch);
    }
    let is_end = batches.is_empty();
    Ok((!is_end).then(|| concat_batches(order.stored_schema(), &batches)).transpose()?)
}

/// What copies have of their own: the columns of the key, the partition, the day and the times.
#[derive(Clone, Debug)]
pub(crate) struct CopiedColumns {
    /// The schema of the table's sorters.
    table: SchemaRef,
    /// The columns, as indices into it.
    own: Vec<usize>,
    /// Those of them that the query does not have, which say when a row holds.
    validity: &'static [&'static str],
    /// The order of copies: the columns of the row that is copied, then those of the copy. They are grouped by the
    /// partition of the row that is copied, and sorted by its key and times.
    order: Arc<Order>,
    /// The order of copies that are read from raw.
    pub(super) raw_order: Arc<Order>,
}

/// Copies of one thread that are to be made.
pub(crate) struct Copies {
    pub(super) columns: Arc<CopiedColumns>,
    /// Those from the published table.
    pub(super) published: Sorter,
    /// Those from raw, where not all columns are compared.
    pub(super) from_raw: Option<Sorter>,
}

impl Copies {
    /// None so far; `reads_raw` says whether any are read from raw.
    pub(super) fn new(
        columns: &Arc<CopiedColumns>,
        reads_raw: bool,
        runtime: &Arc<RuntimeEnv>,
    ) -> Self {
        let sorter = |order| Sorter::new(Arc::clone(order), Arc::clone(runtime));
        Copies {
            published: sorter(&columns.order),
            from_raw: reads_raw.then(|| sorter(&columns.raw_order)),
            columns: Arc::clone(columns),
        }
    }
}

impl CopiedColumns {
    /// Those of a table, given by the schema of its sorters, its key and partition columns, and its day.
    pub(super) fn new(
        table: &SchemaRef,
        validity: &'static [&'static str],
        (key, partition_by, day): (&[String], &[String], Option<&str>),
    ) -> Result<Self> {
        let fields = table.fields();
        let is_own = |name: &String| {
            let is_of_row = key.contains(name) || partition_by.contains(name);
            is_of_row || Some(name.as_str()) == day || validity.contains(&name.as_str())
        };
        // The last two are not of the table.
        let own: Vec<usize> =
            (0..fields.len() - 2).filter(|at| is_own(fields[*at].name())).collect();
        let one = table.project(&own)?;
        let both: Vec<_> = [&one, &one].into_iter().flat_map(|one| one.fields().to_vec()).collect();
        let groups = partition_by.iter().map(|name| one.index_of(name));
        let groups = groups.collect::<Result<Vec<_>, _>>()?;
        let sort_by = (0..own.len()).filter(|at| !groups.contains(at)).collect();
        let stored = (0..both.len()).collect();
        let both = Arc::new(Schema::new(both));
        let raw_order = raw_order(&both)?;
        let order = Arc::new(Order::new(both, groups, sort_by, stored)?);
        Ok(CopiedColumns { table: Arc::clone(table), own, validity, order, raw_order })
    }

    /// Copies to be made: the rows that are copied, and the copies, given by rows of the table that have the own
    /// columns.
    pub(super) fn pair(&self, from: &RecordBatch, to: &RecordBatch) -> Result<RecordBatch> {
        let columns = [from, to]
            .into_iter()
            .flat_map(|rows| self.own.iter().map(|at| Arc::clone(rows.column(*at))));
        Ok(RecordBatch::try_new(Arc::clone(self.order.stored_schema()), columns.collect())?)
    }

    /// The own columns of the copies among pairs, which can have more columns.
    pub(super) fn copies_of(&self, pairs: &RecordBatch) -> Result<RecordBatch> {
        let schema = Arc::new(self.table.project(&self.own)?);
        let columns = &pairs.columns()[self.own.len()..2 * self.own.len()];
        Ok(RecordBatch::try_new(schema, columns.to_vec())?)
    }

    /// The columns of the table that copies do not have of their own.
    pub(super) fn other_columns(&self) -> SchemaRef {
        let fields = self.table.fields().iter().enumerate().take(self.table.fields().len() - 2);
        let others = fields.filter(|(at, _)| !self.own.contains(at));
        Arc::new(Schema::new(others.map(|(_, field)| Arc::clone(field)).collect::<Vec<_>>()))
    }

    /// Makes copies of rows of the published table, and adds them to the sorter of new rows.
    ///
    /// # Errors
    /// Data, when the table is not as it was published; storage, when it cannot be read.
    pub(super) async fn make(
        &self,
        copies: Vec<Sorter>,
        table: &PublishedTable,
        rows: &mut Sorter,
    ) -> Result<()> {
        let sorted = Sorted::new(&self.order, copies)?;
        let mut readers = Readers::new();
        for folder in sorted.partitions() {
            let mut merge = sorted.rows(&folder, &mut readers)?;
            while let Some(wanted) = next_copies(&mut merge, &self.order)? {
                self.make_some(&folder, &wanted, table, rows).await?;
            }
        }
        Ok(())
    }

    /// Makes copies of rows of one partition.
    async fn make_some(
        &self,
        folder: &str,
        wanted: &RecordBatch,
        table: &PublishedTable,
        rows: &mut Sorter,
    ) -> Result<()> {
        let to = self.copies_of(wanted)?;
        let schema = to.schema();
        let key = table.key_names();
        let key = key.map(|name| Ok(Arc::clone(wanted.column(schema.index_of(name)?))));
        let key = key.collect::<Result<Vec<ArrayRef>>>()?;
        // A row can have several copies, one after the other.
        let of_rows = partition(&key)?.ranges();
        let firsts =
            UInt32Array::from_iter_values(of_rows.iter().map(|of_row| of_row.start as u32));
        let firsts = key.iter().map(|column| arrow::compute::take(column, &firsts, None));
        let mut found = table.find_rows(folder, &firsts.collect::<Result<Vec<_>, _>>()?)?;
        while let Some((existing, numbers)) = found.next().await? {
            let copies = numbers.iter().enumerate().flat_map(|(row, number)| {
                of_rows[*number].clone().map(move |copy| (row as u32, copy as u32))
            });
            let (existing_rows, copies): (Vec<u32>, Vec<u32>) = copies.unzip();
            let existing = take_record_batch(&existing, &UInt32Array::from(existing_rows))?;
            let to = take_record_batch(&to, &UInt32Array::from(copies))?;
            rows.push(&compact(&self.copies(&existing, &to)?)?)?;
        }
        Ok(())
    }

    /// Copies of existing rows, with the own columns of `to`.
    pub(super) fn copies(&self, existing: &RecordBatch, to: &RecordBatch) -> Result<RecordBatch> {
        let lost = |name: &str| Error::internal(format!("a copied row lacks the column `{name}`"));
        let ends = end_columns(self.validity);
        let fields = self.table.fields();
        let columns = fields[..fields.len() - 2].iter().map(|field| -> Result<ArrayRef> {
            let name = field.name();
            if let Some(EndNames { end, flag, flag_of_ended, .. }) = ends
                && name == flag
            {
                let ends = to.column_by_name(end).ok_or_else(|| lost(end))?;
                let flags = (0..ends.len()).map(|row| Some(ends.is_valid(row) == flag_of_ended));
                return Ok(Arc::new(flags.collect::<BooleanArray>()));
            }
            let own = to.column_by_name(name).or_else(|| existing.column_by_name(name));
            own.cloned().ok_or_else(|| lost(name))
        });
        let mut columns = columns.collect::<Result<Vec<_>>>()?;
        columns.push(Arc::new(BooleanArray::from(vec![true; to.num_rows()])));
        // After the rows of changes that the run has read.
        columns.push(Arc::new(UInt64Array::from(vec![u64::MAX; to.num_rows()])));
        Ok(RecordBatch::try_new(Arc::clone(&self.table), columns)?)
    }
}
