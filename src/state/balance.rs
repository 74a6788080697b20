//! The balance: how many keys took up and gave up a status on each day, kept with the versions.
//!
//! A key's status at the end of a day is the version that is last in the order of changes among its
//! versions up to that day. It holds from the day of the version until the day of the next version
//! that becomes the status.
//!
//! | column | Arrow type | meaning |
//! |---|---|---|
//! | `event_dt` | Date32 | the day |
//! | `part_0`, … | canonical | the partition columns, without the one that is the day |
//! | `entered` | Int64 | keys that have a row with these values from this day on |
//! | `exited` | Int64 | keys that had a row with these values until this day |
//!
//! So `entered - exited`, summed over the days up to d, is the number of keys that have a row with
//! these values at the end of d. A key that has the same values before and after a day on which it
//! changed counts in both. Versions without a day count nowhere.
//!
//! The balance is a function of the versions, a sum over the keys. So a run adds the differences of
//! the keys that it changed. Each committed file has such differences, and all files together are
//! the balance; no file means that it is not kept.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Date32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Date32Type, Field, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use futures::TryStreamExt;

use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Kind, Result, missing_object};
use crate::parquet_io::open::{ParquetFile, conform};
use crate::state::versions::{VersionsLayout, beside_words, quoted};
use crate::store::{Folder, parse_path};
use crate::table::writer::{parquet_properties, parquet_writer, write_error};

/// The name of the relation, and the kind of its files in the state.
pub const BALANCE: &str = "balance";
/// The column of keys that take up a status.
pub const ENTERED: &str = "entered";
/// The column of keys that give up a status.
pub const EXITED: &str = "exited";

/// The memory of one pair of day and values, or of one list of values, about, in bytes.
const ENTRY_BYTES: usize = 64;

/// What becomes of the files of the balance in a commit. All paths are relative to the state's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewBalance {
    /// The new file, and its size in bytes.
    pub file: Option<(String, u64)>,
    /// The committed files that are removed.
    pub replaced: Vec<String>,
}

impl NewBalance {
    /// Removes these files.
    pub fn replaces_all(&mut self, committed: &[(String, u64)]) {
        self.replaced = committed.iter().map(|(path, _)| path.clone()).collect();
    }
}

impl VersionsLayout {
    /// The schema of the balance.
    pub fn balance_schema(&self) -> SchemaRef {
        let mut fields = vec![Field::new("event_dt", DataType::Date32, true)];
        let partitions = self.partitions_but_day();
        fields.extend(partitions.map(|(stored, _, kind)| Field::new(stored, kind.clone(), true)));
        fields.push(Field::new(ENTERED, DataType::Int64, true));
        fields.push(Field::new(EXITED, DataType::Int64, true));
        Arc::new(Schema::new(fields))
    }

    /// `sql/balance.sql` with its placeholders replaced.
    pub fn balance_sql(&self) -> String {
        let partitions = self.partitions_but_day();
        let partitions = partitions.map(|(stored, name, _)| (stored, "partition_", name));
        let (mut columns, mut groups) = (String::new(), String::new());
        for (stored, name) in beside_words(&["event_dt", ENTERED, EXITED], partitions.collect()) {
            columns.push_str(&format!("\n    files.{stored} AS {},", quoted(&name)));
            groups.push_str(&format!(", files.{stored}"));
        }
        include_str!("../../sql/balance.sql")
            .replace("{columns}", &columns)
            .replace("{groups}", &groups)
    }
}

/// A balance, or differences of one.
#[derive(Debug)]
pub struct Balance {
    schema: SchemaRef,
    /// Converts the values of the partition columns.
    converter: RowConverter,
    values: Vec<Box<[u8]>>,
    /// The index of each in `values`.
    numbers: HashMap<Box<[u8]>, u32>,
    /// By day, as days since 1970, and number of the values: entered and exited.
    counts: HashMap<(i32, u32), [i64; 2]>,
    memory: MemoryReservation,
    /// Whether memory has ended: then it has no counts, and takes none.
    is_too_large: bool,
}

impl Balance {
    /// An empty balance.
    ///
    /// # Errors
    /// Internal, when a partition column has a type that is not compared.
    pub fn new(layout: &VersionsLayout, pool: &Arc<dyn MemoryPool>) -> Result<Self> {
        let fields = layout.partitions_but_day();
        let fields = fields.map(|(_, _, data_type)| SortField::new(data_type.clone()));
        Ok(Balance {
            schema: layout.balance_schema(),
            converter: RowConverter::new(fields.collect())?,
            values: Vec::new(),
            numbers: HashMap::new(),
            counts: HashMap::new(),
            memory: MemoryConsumer::new(BALANCE).register(pool),
            is_too_large: false,
        })
    }

    /// The number of the values of the partition columns in each row of a batch that has the columns
    /// of versions.
    ///
    /// # Errors
    /// Internal, when a column is missing.
    pub fn numbers(&mut self, batch: &RecordBatch) -> Result<Vec<u32>> {
        let fields = self.schema.fields();
        let parts = fields[1..fields.len() - 2].iter().map(|field| {
            let lost = || Error::internal(format!("a batch lacks the column `{}`", field.name()));
            batch.column_by_name(field.name()).cloned().ok_or_else(lost)
        });
        let parts = parts.collect::<Result<Vec<ArrayRef>>>()?;
        if parts.is_empty() {
            return Ok(vec![self.number(&[]); batch.num_rows()]);
        }
        let rows = self.converter.convert_columns(&parts)?;
        Ok(rows.iter().map(|row| self.number(row.data())).collect())
    }

    /// The number of a list of values.
    fn number(&mut self, values: &[u8]) -> u32 {
        if let Some(number) = self.numbers.get(values) {
            return *number;
        }
        if !self.has_memory(2 * (values.len() + ENTRY_BYTES)) {
            return 0;
        }
        let number = self.values.len() as u32;
        self.values.push(values.into());
        self.numbers.insert(values.into(), number);
        number
    }

    /// Adds keys that take up and give up a status on a day.
    pub fn add(&mut self, day: i32, number: u32, [entered, exited]: [i64; 2]) {
        if !self.counts.contains_key(&(day, number)) && !self.has_memory(ENTRY_BYTES) {
            return;
        }
        let count = self.counts.entry((day, number)).or_default();
        count[0] += entered;
        count[1] += exited;
    }

    /// Reserves memory. Without it, the balance gives up what it has.
    fn has_memory(&mut self, bytes: usize) -> bool {
        if self.is_too_large || self.memory.try_grow(bytes).is_err() {
            self.is_too_large = true;
            self.values = Vec::new();
            self.numbers = HashMap::new();
            self.counts = HashMap::new();
            self.memory.free();
        }
        !self.is_too_large
    }

    /// What is wrong with it, if anything: memory has ended; or, if it is whole, more keys have given up
    /// some values than have taken them up.
    pub fn fault(&self, is_whole: bool) -> Option<&'static str> {
        if self.is_too_large {
            return Some("there is not enough memory for its days and values");
        }
        let is_negative = |count: &[i64; 2]| count.iter().any(|side| *side < 0);
        if !is_whole {
            return None;
        }
        let mut standing: HashMap<u32, i64> = HashMap::new();
        for ((_, number), [entered, exited]) in &self.counts {
            *standing.entry(*number).or_default() += entered - exited;
        }
        (self.counts.values().any(is_negative) || standing.values().any(|keys| *keys < 0))
            .then_some("it is not the balance of the versions")
    }

    /// Adds another balance of this layout, once or, to subtract it, -1 times.
    pub fn add_all(&mut self, other: &Balance, times: i64) {
        if other.is_too_large {
            self.is_too_large = true;
            return;
        }
        let numbers: Vec<u32> = other.values.iter().map(|values| self.number(values)).collect();
        for ((day, number), count) in &other.counts {
            self.add(*day, numbers[*number as usize], count.map(|count| times * count));
        }
    }

    /// The days on which it is not zero.
    pub fn days(&self) -> BTreeSet<i32> {
        let counts = self.counts.iter().filter(|(_, count)| **count != [0, 0]);
        counts.map(|((day, _), _)| *day).collect()
    }

    /// Its rows, ordered by day and values, without those that are zero.
    ///
    /// # Errors
    /// Internal, when the values cannot be converted.
    pub fn rows(&self) -> Result<RecordBatch> {
        let counts = self.counts.iter().filter(|(_, count)| **count != [0, 0]);
        let mut counts: Vec<(i32, &[u8], &[i64; 2])> = counts
            .map(|((day, number), count)| (*day, &*self.values[*number as usize], count))
            .collect();
        counts.sort_unstable();
        let days = counts.iter().map(|(day, ..)| *day);
        let mut columns: Vec<ArrayRef> = vec![Arc::new(Date32Array::from_iter_values(days))];
        if self.schema.fields().len() > 3 {
            let parser = self.converter.parser();
            let values = counts.iter().map(|(_, values, _)| parser.parse(values));
            columns.extend(self.converter.convert_rows(values)?);
        }
        for side in 0..2 {
            let side = counts.iter().map(|(_, _, count)| count[side]);
            columns.push(Arc::new(Int64Array::from_iter_values(side)));
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    /// Checks that files, given by path relative to the state's table and size, can be opened.
    ///
    /// # Errors
    /// As [`Balance::read`].
    pub async fn check(state: &Folder, files: &[(String, u64)]) -> Result<()> {
        for file in files {
            open(state, file).await?;
        }
        Ok(())
    }

    /// Adds the rows of files: paths relative to the state's table, and sizes.
    ///
    /// # Errors
    /// Data, when a file is missing or damaged; storage, when it cannot be read.
    pub async fn read(&mut self, state: &Folder, files: &[(String, u64)]) -> Result<()> {
        for file in files {
            let file = open(state, file).await?;
            // The row number is the last column.
            let columns: Vec<usize> = (0..file.schema().fields().len() - 1).collect();
            let mut batches = file.read(&columns, BATCH_ROWS);
            while let Some(batch) = batches.try_next().await? {
                self.add_rows(&conform(&batch, &self.schema)?)?;
            }
        }
        Ok(())
    }

    fn add_rows(&mut self, rows: &RecordBatch) -> Result<()> {
        let numbers = self.numbers(rows)?;
        let count = rows.num_columns();
        let days = rows.column(0).as_primitive::<Date32Type>();
        let entered = rows.column(count - 2).as_primitive::<Int64Type>();
        let exited = rows.column(count - 1).as_primitive::<Int64Type>();
        for (row, number) in numbers.into_iter().enumerate() {
            self.add(days.value(row), number, [entered.value(row), exited.value(row)]);
        }
        Ok(())
    }

    /// Writes its rows to the file of an attempt. Returns the path and the size.
    ///
    /// # Errors
    /// Storage, when the file cannot be written.
    pub async fn write(&self, folder: &Folder, attempt: &str) -> Result<(String, u64)> {
        let path = format!("kind={BALANCE}/{attempt}.parquet");
        let properties = parquet_properties(&path, &[ENTERED, EXITED]);
        let mut writer = parquet_writer(folder, &path, Arc::clone(&self.schema), properties)?;
        let rows = self.rows()?;
        let written = async {
            writer.write(&rows).await?;
            writer.finish().await
        };
        written.await.map_err(|error| write_error(folder, &path, error))?;
        Ok((path, writer.bytes_written() as u64))
    }
}

/// Opens a file of the balance.
async fn open(state: &Folder, (path, bytes): &(String, u64)) -> Result<ParquetFile> {
    let (name, store) = (state.describe(path), Arc::clone(&state.store));
    let opened = ParquetFile::open(store, parse_path(path)?, *bytes, name).await;
    opened.map_err(|error| match error.kind {
        Kind::Data => error,
        _ if missing_object(&error).is_some() => {
            Error::data("a file of the balance is missing").caused_by(error)
        }
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::GreedyMemoryPool;

    use super::*;

    fn balance(bytes: usize) -> Balance {
        let layout = VersionsLayout {
            partitions: vec![("cat".into(), DataType::Utf8)],
            ..VersionsLayout::default()
        };
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(bytes));
        Balance::new(&layout, &pool).expect("a balance")
    }

    #[test]
    fn a_balance_without_memory_has_a_fault_and_gives_its_memory_back() {
        let mut one = balance(10_000);
        for day in 0..10 {
            one.add(day, 0, [1, 0]);
        }
        assert_eq!((one.fault(true), one.days().len()), (None, 10));
        for day in 0..1000 {
            one.add(day, 0, [1, 0]);
        }
        assert!(one.fault(false).is_some());
        assert_eq!((one.days().len(), one.memory.size()), (0, 0));
        let mut other = balance(1 << 20);
        other.add_all(&one, 1);
        assert!(other.fault(false).is_some(), "with it the sum is unknown");
    }

    #[test]
    fn a_balance_by_which_more_keys_left_than_came_has_a_fault() {
        let mut one = balance(10_000);
        one.add(5, 0, [0, 1]);
        assert_eq!(one.fault(false), None, "a difference");
        assert!(one.fault(true).is_some());
        one.add(4, 0, [1, 0]);
        assert_eq!(one.fault(true), None);
        one.add(4, 0, [-1, -1]);
        assert!(one.fault(true).is_some());
    }
}
