//! Positions: the total order of changes, packed into one comparable value per raw row.
//!
//! The order is (full load before CDC; the order columns, nulls first; file; row in the file).
//! Files are numbered in their own order (base name, then path) for one run, so a position is valid
//! within that run only; the state stores the values of the order instead.
//!
//! A run whose only order column is the commit time packs a position into a 127-bit integer
//! ([`pack`]), which Arrow carries as `Decimal128(38, 0)`:
//!
//! ```text
//! bit 126    1 for CDC, 0 for full load
//! bit 125    1 when there is a commit time
//! 124 … 55   commit time: nanoseconds since 1970, plus 2^69
//!  54 … 33   file
//!  32 …  1   row ordinal: the row, or 2 * row (+ 1 for the row itself) if a row can be two changes
//!        0   tie: set by the fold when another change has the same order columns
//! ```
//!
//! Any other order (several columns, text sequences) is a byte string that compares the same way
//! ([`OrderEncoder`]) and ends in file (4 bytes), row ordinal (8 bytes) and tie (1 byte).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, Decimal128Array};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, TimeUnit, UInt64Type,
};

use crate::error::{Error, Result};
use crate::types::times::nanoseconds;

/// The Arrow type of a packed position.
pub(crate) const PACKED_TYPE: DataType = DataType::Decimal128(38, 0);
/// The most inputs that one run can number.
pub(crate) const FILES_MAX: usize = 1 << 22;
/// The most row ordinals that one input can have.
pub(crate) const ROWS_MAX: u64 = 1 << 32;

const ROW_SHIFT: u32 = 1;
const FILE_SHIFT: u32 = 33;
const TIME_SHIFT: u32 = 55;
const PRESENT: i128 = 1 << 125;
const CDC: i128 = 1 << 126;
const TIME_OFFSET: i128 = 1 << 69;

/// Packs the order of one change. `time_ns` is the commit time in nanoseconds since 1970 UTC, `row`
/// the row ordinal.
///
/// Returns `None` for a time beyond ±18,000 years, or a file number beyond [`FILES_MAX`].
#[inline]
pub(crate) fn pack(cdc: bool, time_ns: Option<i128>, file: u32, row: u64) -> Option<i128> {
    if file as usize >= FILES_MAX {
        return None;
    }
    let time = match time_ns {
        None => 0,
        Some(ns) if (-TIME_OFFSET..TIME_OFFSET).contains(&ns) => {
            PRESENT | ((ns + TIME_OFFSET) << TIME_SHIFT)
        }
        Some(_) => return None,
    };
    let first = if cdc { CDC } else { 0 };
    Some(first | time | (i128::from(file) << FILE_SHIFT) | (i128::from(row) << ROW_SHIFT))
}

/// The values of the order in a packed position: whether it is CDC, and the commit time in ns.
#[inline]
pub(crate) fn unpack_order(position: i128) -> (bool, Option<i128>) {
    let time = (position >> TIME_SHIFT) & ((1 << 70) - 1);
    (position & CDC != 0, (position & PRESENT != 0).then_some(time - TIME_OFFSET))
}

/// A representation of positions; the fold is generic over both.
pub(crate) trait Position:
    Clone + Default + Send + Sync + std::fmt::Debug + 'static
{
    /// The Arrow type of a column of positions.
    fn data_type() -> DataType;
    /// Whether `self` is before `other`. Two changes are never equal: their row ordinals differ.
    fn is_before(&self, other: &Self) -> bool;
    /// Whether both have equal order columns, so that file and row decide.
    fn same_order(&self, other: &Self) -> bool;
    /// Whether the tie is set.
    fn is_tied(&self) -> bool;
    /// Sets the tie.
    fn tie(&mut self);
    /// The file and the row ordinal in it.
    fn file_and_row(&self) -> (usize, usize);
    /// The bytes that this position has on the heap, for memory accounting.
    fn heap_bytes(&self) -> usize;
    /// Reads a column of [`Position::data_type`].
    fn read(column: &dyn Array) -> Vec<Self>;
    /// Builds a column of [`Position::data_type`].
    type Builder: Default + Send;
    /// Appends it to a column.
    fn append_to(&self, column: &mut Self::Builder);
    /// The column.
    fn build(column: Self::Builder) -> ArrayRef;
    /// Appends the position to bytes, for [`Position::pull`].
    fn push(&self, bytes: &mut Vec<u8>);
    /// Reads a position from the start of bytes. Returns the rest too; `None` at the end.
    fn pull(bytes: &[u8]) -> Option<(Self, &[u8])>;
}

impl Position for i128 {
    fn data_type() -> DataType {
        PACKED_TYPE
    }

    #[inline]
    fn is_before(&self, other: &Self) -> bool {
        self >> ROW_SHIFT < other >> ROW_SHIFT
    }

    #[inline]
    fn same_order(&self, other: &Self) -> bool {
        self >> TIME_SHIFT == other >> TIME_SHIFT
    }

    #[inline]
    fn is_tied(&self) -> bool {
        self & 1 == 1
    }

    #[inline]
    fn tie(&mut self) {
        *self |= 1;
    }

    #[inline]
    fn file_and_row(&self) -> (usize, usize) {
        let file = (self >> FILE_SHIFT) & ((1 << 22) - 1);
        let row = (self >> ROW_SHIFT) & ((1 << 32) - 1);
        (file as usize, row as usize)
    }

    #[inline]
    fn heap_bytes(&self) -> usize {
        0
    }

    fn read(column: &dyn Array) -> Vec<Self> {
        column.as_primitive::<Decimal128Type>().values().to_vec()
    }

    type Builder = Vec<i128>;

    #[inline]
    fn append_to(&self, column: &mut Vec<i128>) {
        column.push(*self);
    }

    fn build(column: Vec<i128>) -> ArrayRef {
        packed_array(column)
    }

    #[inline]
    fn push(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_le_bytes());
    }

    #[inline]
    fn pull(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (position, rest) = bytes.split_first_chunk()?;
        Some((i128::from_le_bytes(*position), rest))
    }
}

const TAIL: usize = 4 + 8 + 1;

impl Position for Box<[u8]> {
    fn data_type() -> DataType {
        DataType::Binary
    }

    fn is_before(&self, other: &Self) -> bool {
        self[..self.len() - 1] < other[..other.len() - 1]
    }

    fn same_order(&self, other: &Self) -> bool {
        self[..self.len() - TAIL] == other[..other.len() - TAIL]
    }

    fn is_tied(&self) -> bool {
        self.last() == Some(&1)
    }

    fn tie(&mut self) {
        if let Some(tie) = self.last_mut() {
            *tie = 1;
        }
    }

    fn file_and_row(&self) -> (usize, usize) {
        let tail = &self[self.len() - TAIL..];
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | *byte as usize);
        (number(&tail[..4]), number(&tail[4..12]))
    }

    fn heap_bytes(&self) -> usize {
        self.len()
    }

    fn read(column: &dyn Array) -> Vec<Self> {
        let positions = column.as_binary::<i32>().iter().flatten();
        positions.map(Into::into).collect()
    }

    type Builder = BinaryBuilder;

    fn append_to(&self, column: &mut BinaryBuilder) {
        column.append_value(self);
    }

    fn build(mut column: BinaryBuilder) -> ArrayRef {
        Arc::new(column.finish())
    }

    fn push(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&(self.len() as u32).to_le_bytes());
        bytes.extend_from_slice(self);
    }

    fn pull(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (position, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        Some((position.into(), rest))
    }
}

/// The values of the order in a byte position, without file, row and tie.
pub(crate) fn order_bytes(position: &[u8]) -> &[u8] {
    &position[..position.len() - TAIL]
}

/// The order of each position of a column without file and row, as bytes that compare alike.
pub(crate) fn order_keys(positions: &dyn Array) -> Box<dyn Iterator<Item = Box<[u8]>> + '_> {
    match positions.as_primitive_opt::<Decimal128Type>() {
        Some(packed) => Box::new(packed.values().iter().map(|position| order_key(*position))),
        None => {
            let positions = positions.as_binary::<i32>().iter().flatten();
            Box::new(positions.map(|position| order_bytes(position).into()))
        }
    }
}

/// The least and the greatest order of some changes, as [`order_keys`] makes them.
pub(crate) type OrderSpan = (Box<[u8]>, Box<[u8]>);

/// The least and the greatest of [`order_keys`]; `None` if there is no position.
pub(crate) fn order_span(positions: &dyn Array) -> Option<OrderSpan> {
    match positions.as_primitive_opt::<Decimal128Type>() {
        Some(packed) => {
            let first = *packed.values().first()?;
            let widened = |(least, greatest): (i128, i128), value: &i128| {
                (least.min(*value), greatest.max(*value))
            };
            let (least, greatest) = packed.values().iter().fold((first, first), widened);
            Some((order_key(least), order_key(greatest)))
        }
        None => {
            let orders = || positions.as_binary::<i32>().iter().flatten().map(order_bytes);
            Some((orders().min()?.into(), orders().max()?.into()))
        }
    }
}

/// The order in a packed position. Positions are not negative.
fn order_key(position: i128) -> Box<[u8]> {
    Box::new((position >> TIME_SHIFT).to_be_bytes())
}

/// A column of packed positions.
pub(crate) fn packed_array(positions: Vec<i128>) -> ArrayRef {
    Arc::new(Decimal128Array::from(positions).with_data_type(PACKED_TYPE))
}

/// A column of packed positions for row ordinals `rows` of one file.
///
/// # Errors
/// The index of the first row whose time is out of range.
pub(crate) fn pack_column(
    cdc: bool,
    times_ns: impl Iterator<Item = Option<i128>>,
    file: u32,
    rows: impl ExactSizeIterator<Item = u64>,
) -> Result<ArrayRef, usize> {
    let mut values = Vec::with_capacity(rows.len());
    for (index, (time, row)) in times_ns.zip(rows).enumerate() {
        values.push(pack(cdc, time, file, row).ok_or(index)?);
    }
    Ok(packed_array(values))
}

/// The kind of an order column whose values are times.
pub(crate) const TIME_KIND: &str = "time";

/// Encodes order columns into bytes that compare like the columns: ascending, nulls first.
///
/// Per column: 0 for null, otherwise 1 and the value. Integers, decimals, dates and timestamps (in
/// nanoseconds) are 16 bytes big-endian with the sign bit flipped; floats are 8 bytes in IEEE 754
/// total order; text and binary are escaped (`00` becomes `00 FF`) and end in `00 00`.
pub(crate) struct OrderEncoder;

impl OrderEncoder {
    /// A column of byte positions for row ordinals `rows` of one file.
    ///
    /// # Errors
    /// Data, when a column's type has no order.
    pub(crate) fn encode(
        cdc: bool,
        columns: &[ArrayRef],
        file: u32,
        rows: impl Iterator<Item = u64>,
    ) -> Result<ArrayRef> {
        let columns = columns.iter().map(Self::prepare).collect::<Result<Vec<_>>>()?;
        let mut built = BinaryBuilder::new();
        let mut bytes = Vec::new();
        for (index, row) in rows.enumerate() {
            bytes.clear();
            bytes.push(u8::from(cdc));
            for column in &columns {
                Self::push(column, index, &mut bytes);
            }
            bytes.extend_from_slice(&file.to_be_bytes());
            bytes.extend_from_slice(&row.to_be_bytes());
            bytes.push(0);
            built.append_value(&bytes);
        }
        Ok(Arc::new(built.finish()))
    }

    /// The kind of a column's values, and for decimals the scale. Encoded values of two columns compare
    /// like the values if the kinds are equal. `is_time`: the column is read as a time.
    pub(crate) fn kind(data_type: &DataType, is_time: bool) -> String {
        match data_type {
            _ if is_time => TIME_KIND.into(),
            DataType::Float16 | DataType::Float32 | DataType::Float64 => "float".into(),
            DataType::Decimal32(_, scale)
            | DataType::Decimal64(_, scale)
            | DataType::Decimal128(_, scale)
                if *scale != 0 =>
            {
                format!("decimal of scale {scale}")
            }
            DataType::Date32 => "date".into(),
            DataType::Timestamp(_, _) => TIME_KIND.into(),
            other if other.is_numeric() || *other == DataType::Boolean => "integer".into(),
            _ => "text".into(),
        }
    }

    /// Casts a column to one of the types that [`OrderEncoder::push`] writes.
    fn prepare(column: &ArrayRef) -> Result<ArrayRef> {
        let target = match column.data_type() {
            DataType::Boolean
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt8
            | DataType::UInt16
            | DataType::UInt32 => DataType::Int64,
            DataType::UInt64 => DataType::UInt64,
            DataType::Float16 | DataType::Float32 | DataType::Float64 => DataType::Float64,
            DataType::Decimal32(_, scale)
            | DataType::Decimal64(_, scale)
            | DataType::Decimal128(_, scale) => DataType::Decimal128(38, *scale),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Binary,
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => DataType::Binary,
            DataType::Date32 => DataType::Date32,
            DataType::Timestamp(_, _) => return Ok(Arc::clone(column)),
            other => {
                return Err(Error::data(format!(
                    "an order column cannot have the type {other}: its values have no order"
                )));
            }
        };
        cast(column, &target).map_err(Error::from)
    }

    fn push(column: &ArrayRef, index: usize, bytes: &mut Vec<u8>) {
        if column.is_null(index) {
            bytes.push(0);
            return;
        }
        bytes.push(1);
        let mut integer =
            |value: i128| bytes.extend_from_slice(&(value as u128 ^ 1 << 127).to_be_bytes());
        match column.data_type() {
            DataType::Int64 => integer(column.as_primitive::<Int64Type>().value(index).into()),
            DataType::UInt64 => integer(column.as_primitive::<UInt64Type>().value(index).into()),
            DataType::Date32 => integer(column.as_primitive::<Date32Type>().value(index).into()),
            DataType::Decimal128(_, _) => {
                integer(column.as_primitive::<Decimal128Type>().value(index));
            }
            DataType::Timestamp(unit, _) => integer(timestamp_ns(column, *unit, index)),
            DataType::Float64 => {
                let bits = column.as_primitive::<Float64Type>().value(index).to_bits();
                let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
                bytes.extend_from_slice(&ordered.to_be_bytes());
            }
            _ => {
                for byte in column.as_binary::<i32>().value(index) {
                    bytes.push(*byte);
                    if *byte == 0 {
                        bytes.push(0xFF);
                    }
                }
                bytes.extend_from_slice(&[0, 0]);
            }
        }
    }
}

fn timestamp_ns(column: &ArrayRef, unit: TimeUnit, index: usize) -> i128 {
    use arrow::datatypes::{
        TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType,
    };
    let value = match unit {
        TimeUnit::Second => column.as_primitive::<TimestampSecondType>().value(index),
        TimeUnit::Millisecond => column.as_primitive::<TimestampMillisecondType>().value(index),
        TimeUnit::Microsecond => column.as_primitive::<TimestampMicrosecondType>().value(index),
        TimeUnit::Nanosecond => column.as_primitive::<TimestampNanosecondType>().value(index),
    };
    nanoseconds(value, unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int32Array, StringArray};
    use proptest::prelude::*;
    use std::sync::Arc;

    type Change = (bool, Option<i64>, u32, u32);

    fn changes() -> impl Strategy<Value = Change> {
        (any::<bool>(), prop::option::of(any::<i64>()), 0..1u32 << 22, any::<u32>())
    }

    proptest! {
        #[test]
        fn packed_positions_compare_as_the_order_does(a in changes(), b in changes()) {
            let packed = |(cdc, time, file, row): Change| {
                // µs, so that times beyond the range of i64 nanoseconds are tried as well
                pack(cdc, time.map(|us| i128::from(us) / 32 * 1000), file, row.into())
            };
            let key = |(cdc, time, file, row): Change| (cdc, time.map(|us| us / 32), file, row);
            let (x, y) = (packed(a).expect("in range"), packed(b).expect("in range"));
            prop_assert_eq!(x.is_before(&y), key(a) < key(b));
            prop_assert_eq!(x.same_order(&y), (key(a).0, key(a).1) == (key(b).0, key(b).1));
            prop_assert_eq!(x.file_and_row(), (a.2 as usize, a.3 as usize));
            prop_assert_eq!(unpack_order(x), (a.0, a.1.map(|us| i128::from(us) / 32 * 1000)));
        }

        #[test]
        fn encoded_orders_compare_as_the_columns_do(
            rows in prop::collection::vec(
                (any::<bool>(), prop::option::of("[\\x00ab]{0,3}"), prop::option::of(any::<i32>()),
                 prop::option::of(-2i8..3)), 2..6)
        ) {
            let text = StringArray::from_iter(rows.iter().map(|row| row.1.clone()));
            let number = Int32Array::from_iter(rows.iter().map(|row| row.2));
            let float = Float64Array::from_iter(rows.iter().map(|row| row.3.map(f64::from)));
            let columns: Vec<ArrayRef> = vec![Arc::new(text), Arc::new(number), Arc::new(float)];
            let encoded = |cdc| OrderEncoder::encode(cdc, &columns, 7, 0..rows.len() as u64);
            let (load, cdc) = (encoded(false).expect("encoded"), encoded(true).expect("encoded"));
            let (cdc, load) = (<Box<[u8]>>::read(&cdc), <Box<[u8]>>::read(&load));
            let at = |i: usize| if rows[i].0 { &cdc[i] } else { &load[i] };
            for i in 0..rows.len() {
                prop_assert_eq!(at(i).file_and_row(), (7, i));
                for j in 0..rows.len() {
                    prop_assert_eq!(at(i).is_before(at(j)), (&rows[i], i) < (&rows[j], j));
                    prop_assert_eq!(at(i).same_order(at(j)), rows[i] == rows[j]);
                }
            }
        }
    }

    #[test]
    fn the_tie_does_not_change_the_order() {
        let mut early = pack(true, Some(5), 1, 1).expect("in range");
        let late = pack(true, Some(5), 1, 2).expect("in range");
        early.tie();
        assert!(early.is_tied() && !late.is_tied());
        assert!(early.is_before(&late) && !late.is_before(&early));
    }

    #[test]
    fn a_time_out_of_range_is_refused() {
        assert_eq!(pack(true, Some(1 << 69), 0, 0), None);
        assert!(pack(true, Some(253_402_300_799_999_999_999), 0, 0).is_some(), "the year 9999");
    }
}
