//! Gathering: rows of several batches as one batch.
//!
//! Why not the engine's `interleave`: it looks at every batch for every column and block of rows, and copies row by row.
//! Here the batches are looked at once, and rows that follow one another are copied together.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, GenericByteArray,
    RecordBatch, downcast_primitive_array, make_array, new_null_array,
};
use arrow::buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer, OffsetBuffer};
use arrow::compute::interleave;
use arrow::datatypes::{BinaryType, ByteArrayType, DataType, Field, SchemaRef, Utf8Type};
use arrow::record_batch::RecordBatchOptions;

use crate::error::{Error, Result};
use crate::table::sorter::RowRef;

/// The rows of some batches of one schema, to be gathered.
pub(super) struct Gatherer<'a> {
    schema: SchemaRef,
    columns: Vec<Column<'a>>,
}

/// A column of the batches.
struct Column<'a> {
    field: &'a Field,
    /// The column of each batch.
    arrays: Vec<&'a dyn Array>,
    /// Which values are null, of each batch, if any are and it is looked for here.
    nulls: Option<Vec<Option<&'a NullBuffer>>>,
    values: Values<'a>,
}

/// The values of a column of each batch.
enum Values<'a> {
    /// All are null.
    Null,
    /// Their bytes, of types whose values have 1, 2, 4, 8 or 16.
    Fixed(usize, Vec<&'a [u8]>),
    Booleans(Vec<&'a BooleanBuffer>),
    /// Texts or bytes with offsets.
    Bytes(Vec<(&'a OffsetBuffer<i32>, &'a [u8])>),
    /// Any others: the engine gathers them.
    Others,
}

/// Rows of a batch that follow one another.
#[derive(Clone, Copy)]
struct Span {
    batch: usize,
    start: usize,
    len: usize,
}

impl<'a> Gatherer<'a> {
    /// The rows of these batches, of which there is at least one.
    pub(super) fn new(batches: &[&'a RecordBatch]) -> Self {
        let first = batches[0];
        let columns = first.schema_ref().fields().iter().enumerate().map(|(at, field)| {
            let arrays = batches.iter().map(|batch| batch.column(at).as_ref()).collect();
            Column::new(field, arrays)
        });
        Gatherer { schema: first.schema(), columns: columns.collect() }
    }

    /// Some rows, in this order.
    pub(super) fn rows(&self, rows: &[RowRef]) -> Result<RecordBatch> {
        let mut spans: Vec<Span> = Vec::new();
        for row in rows {
            let (batch, row) = (row.batch as usize, row.row as usize);
            match spans.last_mut() {
                Some(span) if span.batch == batch && span.start + span.len == row => span.len += 1,
                _ => spans.push(Span { batch, start: row, len: 1 }),
            }
        }
        let gathered = self.columns.iter().map(|column| column.gather(rows, &spans));
        let count = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let columns = gathered.collect::<Result<_>>()?;
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &count)?)
    }
}

impl<'a> Column<'a> {
    fn new(field: &'a Field, arrays: Vec<&'a dyn Array>) -> Self {
        let has_nulls = arrays.iter().any(|array| array.null_count() > 0);
        let values = match field.data_type() {
            _ if has_nulls && arrays.iter().all(|array| array.null_count() == array.len()) => {
                Values::Null
            }
            DataType::Boolean => {
                Values::Booleans(arrays.iter().map(|array| array.as_boolean().values()).collect())
            }
            DataType::Utf8 => Values::Bytes(arrays.iter().map(bytes_of::<Utf8Type>).collect()),
            DataType::Binary => Values::Bytes(arrays.iter().map(bytes_of::<BinaryType>).collect()),
            data_type => match data_type.primitive_width() {
                Some(width @ (1 | 2 | 4 | 8 | 16)) if !has_parts(data_type) => {
                    Values::Fixed(width, arrays.iter().map(|array| fixed_bytes(*array)).collect())
                }
                _ => Values::Others,
            },
        };
        let has_own = matches!(values, Values::Null | Values::Others);
        let nulls = (has_nulls && !has_own).then(|| arrays.iter().map(|it| it.nulls()).collect());
        Column { field, arrays, nulls, values }
    }

    fn gather(&self, rows: &[RowRef], spans: &[Span]) -> Result<ArrayRef> {
        let data_type = self.field.data_type();
        Ok(match &self.values {
            Values::Null => new_null_array(data_type, rows.len()),
            Values::Fixed(width, values) => {
                let values = match width {
                    1 => fixed::<1>(values, rows.len(), spans),
                    2 => fixed::<2>(values, rows.len(), spans),
                    4 => fixed::<4>(values, rows.len(), spans),
                    8 => fixed::<8>(values, rows.len(), spans),
                    _ => fixed::<16>(values, rows.len(), spans),
                };
                let array = ArrayData::builder(data_type.clone()).len(rows.len());
                make_array(array.add_buffer(values).nulls(self.nulls(rows.len(), spans)).build()?)
            }
            Values::Booleans(values) => {
                let values = bits(values, rows.len(), spans);
                Arc::new(BooleanArray::new(values, self.nulls(rows.len(), spans)))
            }
            Values::Bytes(values) => {
                let (offsets, bytes) = of_offsets(values, rows.len(), spans)?;
                let nulls = self.nulls(rows.len(), spans);
                match data_type {
                    DataType::Utf8 => {
                        Arc::new(GenericByteArray::<Utf8Type>::try_new(offsets, bytes, nulls)?)
                    }
                    _ => Arc::new(GenericByteArray::<BinaryType>::try_new(offsets, bytes, nulls)?),
                }
            }
            Values::Others => {
                let rows: Vec<(usize, usize)> =
                    rows.iter().map(|row| (row.batch as usize, row.row as usize)).collect();
                interleave(&self.arrays, &rows)?
            }
        })
    }

    /// Which of the gathered values are null, if any may be.
    fn nulls(&self, count: usize, spans: &[Span]) -> Option<NullBuffer> {
        let nulls = self.nulls.as_ref()?;
        let mut valid = BooleanBufferBuilder::new(count);
        for Span { batch, start, len } in spans {
            match nulls[*batch] {
                None => valid.append_n(*len, true),
                Some(nulls) if *len == 1 => valid.append(nulls.is_valid(*start)),
                Some(nulls) => valid.append_buffer(&nulls.inner().slice(*start, *len)),
            }
        }
        Some(NullBuffer::new(valid.finish()))
    }
}

/// Whether values of a type are structures of several numbers.
fn has_parts(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Interval(_) | DataType::Decimal256(..))
}

/// The bytes of the values of a column.
fn fixed_bytes(array: &dyn Array) -> &[u8] {
    downcast_primitive_array!(
        array => array.values().inner().as_slice(),
        _ => &[]
    )
}

fn bytes_of<'a, T: ByteArrayType<Offset = i32>>(
    array: &&'a dyn Array,
) -> (&'a OffsetBuffer<i32>, &'a [u8]) {
    let array = array.as_bytes::<T>();
    (array.offsets(), array.value_data())
}

/// Values of this number of bytes.
fn fixed<const WIDTH: usize>(values: &[&[u8]], count: usize, spans: &[Span]) -> Buffer {
    let mut gathered = MutableBuffer::with_capacity(count * WIDTH);
    for Span { batch, start, len } in spans {
        let of_batch = &values[*batch][start * WIDTH..];
        match of_batch.first_chunk::<WIDTH>() {
            Some(value) if *len == 1 => gathered.extend_from_slice(value),
            _ => gathered.extend_from_slice(&of_batch[..len * WIDTH]),
        }
    }
    gathered.into()
}

fn bits(values: &[&BooleanBuffer], count: usize, spans: &[Span]) -> BooleanBuffer {
    let mut gathered = BooleanBufferBuilder::new(count);
    for Span { batch, start, len } in spans {
        match len {
            1 => gathered.append(values[*batch].value(*start)),
            _ => gathered.append_buffer(&values[*batch].slice(*start, *len)),
        }
    }
    gathered.finish()
}

/// Texts or bytes, and where each begins.
///
/// # Errors
/// Internal, when they have more than 2 GiB.
fn of_offsets(
    values: &[(&OffsetBuffer<i32>, &[u8])],
    count: usize,
    spans: &[Span],
) -> Result<(OffsetBuffer<i32>, Buffer)> {
    let too_many = || Error::internal("rows of a table have more than 2 GiB in one column");
    let mut offsets: Vec<i32> = Vec::with_capacity(count + 1);
    offsets.push(0);
    let mut bytes: Vec<u8> = Vec::new();
    for Span { batch, start, len } in spans {
        let (of_batch, data) = values[*batch];
        let of_span = &of_batch[*start..=start + len];
        let (first, last) = (of_span[0], of_span[*len]);
        let end = i32::try_from(bytes.len()).ok();
        let end = end.filter(|end| end.checked_add(last - first).is_some()).ok_or_else(too_many)?;
        offsets.extend(of_span[1..].iter().map(|offset| end + (offset - first)));
        bytes.extend_from_slice(&data[first as usize..last as usize]);
    }
    Ok((OffsetBuffer::new(offsets.into()), bytes.into()))
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BinaryArray, Decimal128Array, Decimal256Array, Int8Array, Int64Array, StringArray,
        StringViewArray, TimestampMicrosecondArray, UInt16Array,
    };
    use arrow::datatypes::i256;
    use proptest::prelude::*;

    use super::*;

    /// A batch of columns of all kinds; numbers below 0 are null.
    fn batch(numbers: &[i8], offset: usize) -> RecordBatch {
        let value = |number: &i8| Some(*number).filter(|number| *number >= 0);
        let some = || numbers.iter().map(value);
        let texts = || some().map(|some| some.map(|some| "x".repeat(some as usize / 4)));
        let whole = numbers.iter().map(|number| i64::from(*number));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(some().map(|some| some.map(|some| some > 60)).collect::<BooleanArray>()),
            Arc::new(some().collect::<Int8Array>()),
            Arc::new(some().map(|some| some.map(|some| some as u16)).collect::<UInt16Array>()),
            Arc::new(Int64Array::from_iter_values(whole)),
            Arc::new(some().map(|some| some.map(i64::from)).collect::<TimestampMicrosecondArray>()),
            Arc::new(some().map(|some| some.map(i128::from)).collect::<Decimal128Array>()),
            Arc::new(
                some()
                    .map(|some| some.map(|some| i256::from_i128(some.into())))
                    .collect::<Decimal256Array>(),
            ),
            Arc::new(texts().collect::<StringArray>()),
            Arc::new(texts().collect::<StringViewArray>()),
            Arc::new(texts().map(|text| text.map(String::into_bytes)).collect::<BinaryArray>()),
        ];
        let names = (0..columns.len()).map(|at| format!("c{at}"));
        let columns = names.zip(columns).map(|(name, column)| (name, column, true));
        let all = RecordBatch::try_from_iter_with_nullable(columns).expect("a batch");
        all.slice(offset, all.num_rows() - offset)
    }

    proptest! {
        #[test]
        fn rows_are_gathered_as_the_engine_does_it(
            batches in prop::collection::vec(
                (prop::collection::vec(-20..100i8, 1..40), 0..40usize), 1..5),
            has_only_nulls in any::<bool>(),
            picked in prop::collection::vec((0..5usize, 0..40usize, 1..6usize), 0..40),
        ) {
            let of = |(numbers, offset): &(Vec<i8>, usize)| {
                let numbers: Vec<i8> =
                    numbers.iter().map(|one| if has_only_nulls { -1 } else { *one }).collect();
                batch(&numbers, offset % numbers.len())
            };
            let batches: Vec<RecordBatch> = batches.iter().map(of).collect();
            let batches: Vec<&RecordBatch> = batches.iter().collect();
            let mut rows = Vec::new();
            for (batch, start, len) in picked {
                let batch = batch % batches.len();
                let count = batches[batch].num_rows();
                let start = start % count;
                rows.extend((start..count.min(start + len)).map(|row| (batch, row)));
            }
            let row_refs: Vec<RowRef> = rows
                .iter()
                .map(|(batch, row)| RowRef { batch: *batch as u32, row: *row as u32 })
                .collect();
            let gathered = Gatherer::new(&batches).rows(&row_refs).expect("rows");
            if rows.is_empty() {
                prop_assert_eq!(gathered.num_rows(), 0);
            } else {
                let expected = arrow::compute::interleave_record_batch(&batches, &rows);
                prop_assert_eq!(gathered, expected.expect("rows"));
            }
        }
    }
}
