//! Versions: the last change of every key and day, without payload.
//!
//! | column | Arrow type | nullable | meaning |
//! |---|---|---|---|
//! | `key_0`, … | canonical | no | the key columns; where rows end and stay, then the instant ([`ChangeColumn`](crate::changes::ChangeColumn)), in µs since 1970 |
//! | `event_dt` | Date32 | yes | the day |
//! | `part_0`, … | canonical | yes | the partition columns of the row; null if there is no row |
//! | `deleted` | Boolean | no | whether the last change left no row: a delete, or filtered out |
//! | `cdc` | Boolean | no | whether the change came from a CDC file, not from a full load |
//! | `time_us`, `time_ns` | Int64, Int32 | yes | the commit time: µs since 1970, and ns beyond |
//! | `order_bytes` | Binary | yes | other orders than the commit time alone ([`OrderEncoder`](crate::changes::position::OrderEncoder)) |
//! | `location`, `file`, `row` | Int32, Utf8, Int64 | no | the source of the change: raw URL, path, row |
//! | `commit` | Int64 | yes | the commit that accepted the change; null in files of older programs, where it is unknown |
//! | `row_hash` | Int64 | yes | of a history: the hash of its row ([`crate::types::row_hash`]); null if there is no row |
//! Order is stored as values, never as run-local positions. With canonical types, a key that widens
//! from int to bigint stays one key: integers are Int64, text is Utf8, and so on.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, DictionaryArray, Int32Array, Int64Array,
    RecordBatch, StringArray, UInt32Array,
};
use arrow::compute::nullif;
use arrow::datatypes::{
    DataType, Decimal128Type, Field, Int32Type, Int64Type, Schema, SchemaRef, UInt32Type,
};
use datafusion::common::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};

use crate::changes::file_order::FileNumbers;
use crate::changes::position::{
    PACKED_TYPE, Position, order_bytes, pack, packed_array, unpack_order,
};
use crate::config::IS_CURRENT;
use crate::error::{Error, Result};
use crate::layout::FileOrder;
use crate::raw::discover::Input;
use crate::types::key::canonical_column;

/// The layout of a pipeline's versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionsLayout {
    /// The key columns: name and canonical type.
    pub keys: Vec<(String, DataType)>,
    /// The partition columns: name and canonical type.
    pub partitions: Vec<(String, DataType)>,
    /// Which partition column is the day; `None` if none is.
    pub day: Option<usize>,
    /// Whether the only order column is the commit time.
    pub packed: bool,
    /// Whether the last key column is an instant, in microseconds since 1970: then a key has a version per instant
    /// and day.
    pub has_instants: bool,
    /// Whether there are hashes of rows: a change that does not alter the row has none of its own.
    pub has_row_hashes: bool,
    /// The partition columns of which versions without a row of the table do not have the values.
    pub unrecorded: Vec<String>,
}

/// The columns of changes from which versions are made.
pub struct VersionSource {
    /// The key columns.
    pub keys: Vec<ArrayRef>,
    /// The days.
    pub days: ArrayRef,
    /// Whether the change leaves a row.
    pub live: BooleanArray,
    /// The positions.
    pub positions: ArrayRef,
    /// The partition columns of the row.
    pub partitions: Vec<ArrayRef>,
    /// The hashes of the rows, where versions have them.
    pub row_hashes: Option<ArrayRef>,
}

impl VersionsLayout {
    /// Columns whose values rarely repeat.
    pub const RARELY_REPEATED: [&str; 5] = ["key_0", "time_us", ORDER_BYTES, "row", ROW_HASH];
    /// Numbers that mostly ascend from row to row, with small differences.
    pub const ASCENDING: [&str; 2] = ["time_us", "row"];

    /// The number of the pipeline's key columns.
    pub fn key_count(&self) -> usize {
        self.keys.len() - usize::from(self.has_instants)
    }

    /// The layout of the versions that are the last ones of their days.
    pub fn of_days(&self) -> Self {
        let keys = self.keys[..self.key_count()].to_vec();
        VersionsLayout { keys, has_instants: false, has_row_hashes: false, ..self.clone() }
    }

    /// The query of `sql/last_of_days.sql`, which gives them.
    pub fn last_of_days_sql(&self) -> String {
        let of_days = self.of_days();
        let (columns, keys) = (of_days.column_names(), of_days.keys.len());
        include_str!("../../sql/last_of_days.sql")
            .replace("{columns}", &columns.join(", "))
            .replace("{keys}", &columns[..keys].join(", "))
            .replace("{seq}", &Self::seq_sql())
    }

    /// The names of the stored columns, quoted; those of the key are the first.
    pub fn column_names(&self) -> Vec<String> {
        self.schema().fields().iter().map(|field| quoted(field.name())).collect()
    }

    /// The order of the fold, computed from stored columns.
    pub fn seq_sql() -> String {
        format!("{SEQ}(cdc, time_us, time_ns, location, file, \"row\")")
    }

    /// The schema of the stored columns.
    pub fn schema(&self) -> SchemaRef {
        let mut fields = Vec::new();
        for (number, (_, data_type)) in self.keys.iter().enumerate() {
            fields.push(Field::new(format!("key_{number}"), data_type.clone(), true));
        }
        fields.push(Field::new("event_dt", DataType::Date32, true));
        for (number, (_, data_type)) in self.partitions.iter().enumerate() {
            fields.push(Field::new(format!("part_{number}"), data_type.clone(), true));
        }
        for (name, data_type) in [
            ("deleted", DataType::Boolean),
            ("cdc", DataType::Boolean),
            ("time_us", DataType::Int64),
            ("time_ns", DataType::Int32),
            (ORDER_BYTES, DataType::Binary),
            ("location", DataType::Int32),
            ("file", DataType::Utf8),
            ("row", DataType::Int64),
            (COMMIT, DataType::Int64),
        ] {
            fields.push(Field::new(name, data_type, true));
        }
        fields.extend(self.has_row_hashes.then(|| Field::new(ROW_HASH, DataType::Int64, true)));
        Arc::new(Schema::new(fields))
    }

    /// The schema for writing: [`VersionsLayout::schema`] with file names as a dictionary.
    pub fn written_schema(&self) -> SchemaRef {
        let fields = self
            .schema()
            .fields()
            .iter()
            .map(|field| match field.name().as_str() {
                "file" => {
                    let names =
                        DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8));
                    Arc::new(Field::new("file", names, true))
                }
                _ => Arc::clone(field),
            })
            .collect::<Vec<_>>();
        Arc::new(Schema::new(fields))
    }

    /// Makes versions of changes, for a commit. `ordinals` are the files and rows of their positions.
    ///
    /// # Errors
    /// Data, when a value does not fit its canonical type.
    pub fn versions(
        &self,
        source: &VersionSource,
        ordinals: &[(usize, usize)],
        inputs: &[Input],
        commit: u64,
    ) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = Vec::new();
        for ((name, data_type), values) in self.keys.iter().zip(&source.keys) {
            columns.push(canonical_column(values, name, data_type)?);
        }
        columns.push(Arc::clone(&source.days));
        let deleted = arrow::compute::not(&source.live)?;
        for ((name, data_type), values) in self.partitions.iter().zip(&source.partitions) {
            let values = canonical_column(values, name, data_type)?;
            columns.push(nullif(&values, &deleted)?);
        }
        let hashes = source.row_hashes.as_ref().map(|hashes| nullif(hashes, &deleted));
        columns.push(Arc::new(deleted));
        columns.extend(self.order_columns(&source.positions));
        source_columns(ordinals, inputs, &mut columns)?;
        columns.push(Arc::new(Int64Array::from_value(commit as i64, ordinals.len())));
        columns.extend(hashes.transpose()?);
        Ok(RecordBatch::try_new(self.written_schema(), columns)?)
    }

    /// The order of positions as values: the columns `cdc`, `time_us`, `time_ns`, `order_bytes`.
    pub fn order_columns(&self, positions: &ArrayRef) -> [ArrayRef; 4] {
        let rows = positions.len();
        if !self.packed {
            let positions = positions.as_binary::<i32>();
            let cdc =
                positions.iter().map(|position| position.map(|bytes| bytes.first() == Some(&1)));
            let bytes = positions.iter().map(|position| position.map(order_bytes));
            return [
                Arc::new(cdc.collect::<BooleanArray>()),
                Arc::new(Int64Array::new_null(rows)),
                Arc::new(Int32Array::new_null(rows)),
                Arc::new(BinaryArray::from_iter(bytes)),
            ];
        }
        let positions = positions.as_primitive::<Decimal128Type>().values();
        let orders: Vec<(bool, Option<i128>)> =
            positions.iter().map(|position| unpack_order(*position)).collect();
        let cdc = orders.iter().map(|order| Some(order.0));
        let us = orders.iter().map(|order| order.1.map(|ns| microseconds(ns).0));
        let ns = orders.iter().map(|order| order.1.map(|ns| microseconds(ns).1));
        [
            Arc::new(cdc.collect::<BooleanArray>()),
            Arc::new(us.collect::<Int64Array>()),
            Arc::new(ns.collect::<Int32Array>()),
            Arc::new(BinaryArray::new_null(rows)),
        ]
    }

    /// The files, by their number in the run, and rows of positions.
    pub fn ordinals(&self, positions: &ArrayRef) -> Vec<(usize, usize)> {
        if self.packed {
            let positions = positions.as_primitive::<Decimal128Type>().values();
            return positions.iter().map(Position::file_and_row).collect();
        }
        let positions = <Box<[u8]>>::read(positions);
        positions.iter().map(Position::file_and_row).collect()
    }

    /// `sql/history.sql` with its placeholders replaced. Its last column is `seq`. Where positions are
    /// bytes, the order bytes come before it, under a name that no other column has.
    pub fn history_sql(&self) -> String {
        let named = self.history_columns();
        let columns = named.iter().map(|(stored, name)| format!("{stored} AS {},", quoted(name)));
        let columns: Vec<String> = columns.collect();
        let seq = format!("{} AS {SEQ}", Self::seq_sql());
        // `order_bytes` is the first order column, and is converted to a number after the query.
        let mut bytes = ORDER_BYTES.to_string();
        while named.iter().any(|(_, name)| *name == bytes) {
            bytes.push('_');
        }
        let order = if self.packed { seq } else { format!("{ORDER_BYTES} AS {bytes},\n    {seq}") };
        include_str!("../../sql/history.sql")
            .replace("{columns}", &columns.join("\n    "))
            .replace("{order}", &order)
    }

    /// The name of the partition column that is the day.
    pub fn day_name(&self) -> Option<&str> {
        self.day.map(|day| self.partitions[day].0.as_str())
    }

    /// The partition columns of which all versions have the values, but for the one that is the day, and the one that says
    /// whether a row has ended: the column of versions, name and type.
    pub(super) fn partitions_but_day(&self) -> impl Iterator<Item = (String, &String, &DataType)> {
        let partitions = self.partitions.iter().enumerate();
        // Only tables whose rows are compared can be divided by it.
        let says_ended = |name: &str| self.has_row_hashes && name == IS_CURRENT;
        let is_known = move |name: &String| !says_ended(name) && !self.unrecorded.contains(name);
        let others = partitions
            .filter(move |(number, (name, _))| self.day != Some(*number) && is_known(name));
        others.map(|(number, (name, data_type))| (format!("part_{number}"), name, data_type))
    }

    /// The key and partition columns of `history`: the column of versions, and the name. A column with
    /// the name of a word of `history` has a prefix, `key_` or `partition_`, as often as it takes to
    /// make the name unique.
    fn history_columns(&self) -> Vec<(String, String)> {
        let keys = self
            .keys
            .iter()
            .enumerate()
            .map(|(number, (name, _))| (format!("key_{number}"), "key_", name));
        // The day is there for every change.
        let partitions = self.partitions_but_day();
        let partitions = partitions.map(|(stored, name, _)| (stored, "partition_", name));
        let mut all: Vec<(String, &str, &String)> = Vec::new();
        for column in keys.chain(partitions) {
            if !all.iter().any(|(_, _, name)| *name == column.2) {
                all.push(column);
            }
        }
        beside_words(&HISTORY_WORDS, all)
    }
}

/// A time in nanoseconds as microseconds, and nanoseconds beyond.
#[inline]
fn microseconds(ns: i128) -> (i64, i32) {
    // Nearly all times fit 64 bits, which are divided much faster.
    match i64::try_from(ns) {
        Ok(ns) => (ns.div_euclid(1000), ns.rem_euclid(1000) as i32),
        Err(_) => (ns.div_euclid(1000) as i64, ns.rem_euclid(1000) as i32),
    }
}

/// Appends the columns `location`, `file` and `row`.
fn source_columns(
    sources: &[(usize, usize)],
    inputs: &[Input],
    columns: &mut Vec<ArrayRef>,
) -> Result<()> {
    let (mut locations, mut names, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut distinct: Vec<usize> = Vec::new();
    for &(file, row) in sources {
        // The rows of a batch mostly come from one file.
        let name = match distinct.iter().rposition(|known| *known == file) {
            Some(name) => name,
            None => {
                distinct.push(file);
                distinct.len() - 1
            }
        };
        names.push(name as u32);
        locations.push(inputs[file].file.location as i32);
        rows.push(row as i64);
    }
    let paths =
        StringArray::from_iter_values(distinct.iter().map(|file| inputs[*file].file.path.as_str()));
    columns.push(Arc::new(Int32Array::from(locations)));
    columns.push(Arc::new(DictionaryArray::<UInt32Type>::try_new(
        UInt32Array::from(names),
        Arc::new(paths),
    )?));
    columns.push(Arc::new(Int64Array::from(rows)));
    Ok(())
}

/// The column of versions for the commit that accepted the change.
pub const COMMIT: &str = "commit";
/// The column of versions for the hash of the row.
pub const ROW_HASH: &str = "row_hash";
/// The column of versions for orders other than the commit time alone.
pub const ORDER_BYTES: &str = "order_bytes";
/// The order of the fold as an integer: a column of `history`, and the function that computes it.
pub const SEQ: &str = "seq";

/// The SQL function `seq(cdc, time_us, time_ns, location, file, row)`: an integer in the fold's
/// order, which takes the order of files from `order`. `files` are those that versions can name.
pub fn seq_function(files: FileNumbers, order: FileOrder) -> ScalarUDF {
    let ranked = files.ranked(order);
    let arguments = vec![
        DataType::Boolean,
        DataType::Int64,
        DataType::Int32,
        DataType::Int32,
        DataType::Utf8,
        DataType::Int64,
    ];
    let compute = move |values: &[ColumnarValue]| {
        let columns = ColumnarValue::values_to_arrays(values)?;
        let cdc = columns[0].as_boolean();
        let time_us = columns[1].as_primitive::<Int64Type>();
        let time_ns = columns[2].as_primitive::<Int32Type>();
        let paths = columns[4].as_string();
        let files = files.numbers(columns[3].as_primitive(), paths);
        let row = columns[5].as_primitive::<Int64Type>();
        let mut packed = Vec::with_capacity(row.len());
        for (index, file) in files.values().iter().enumerate() {
            let ns = time_us.is_valid(index).then(|| {
                i128::from(time_us.value(index)) * 1000 + i128::from(time_ns.value(index))
            });
            let file = ranked.rank(*file).ok_or_else(|| unknown_file(paths.value(index)))?;
            let seq =
                pack(cdc.value(index), ns, file, row.value(index) as u64).ok_or_else(|| {
                    DataFusionError::from(Error::internal(
                        "versions have a time out of range, or too many files",
                    ))
                })?;
            // Without the tie bit, which is 0 here, it has at most 38 digits.
            packed.push(seq >> 1);
        }
        Ok(ColumnarValue::Array(packed_array(packed)))
    };
    create_udf(SEQ, arguments, PACKED_TYPE, Volatility::Immutable, Arc::new(compute))
}

/// The error of versions that name a file that is no input.
fn unknown_file(path: &str) -> DataFusionError {
    let text = format!("versions refer to the input {path}, which is not in the ledger");
    let hint = "the state is damaged: rebuild it with `glueless rebuild`";
    DataFusionError::from(Error::data(text).hint(hint))
}

/// The columns of a relation that has words of its own: the column of versions, and the name. Given are
/// the column, a prefix and the name: a name that is one of the words has the prefix, as often as it
/// takes to make it unique.
pub(super) fn beside_words(
    words: &[&str],
    columns: Vec<(String, &str, &String)>,
) -> Vec<(String, String)> {
    let mut taken: Vec<String> = words.iter().map(ToString::to_string).collect();
    taken.extend(columns.iter().map(|(_, _, name)| name.to_string()));
    let columns = columns.into_iter().map(|(stored, prefix, name)| {
        let mut name = name.clone();
        if words.contains(&name.as_str()) {
            while taken.contains(&name) {
                name.insert_str(0, prefix);
            }
            taken.push(name.clone());
        }
        (stored, name)
    });
    columns.collect()
}

/// A name in double quotes, as SQL reads it unchanged.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The columns of `history` besides the key and partition columns.
const HISTORY_WORDS: [&str; 3] = ["event_dt", "deleted", SEQ];
