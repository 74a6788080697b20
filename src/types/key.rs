//! Canonical types and values: a key that widens from int to bigint stays one key.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Float64Type, TimeUnit};

use crate::error::{Error, Result};

/// The canonical type, in which the state stores values of a type.
pub(crate) fn canonical(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(38, 0),
        DataType::Float16 | DataType::Float32 => DataType::Float64,
        DataType::Decimal32(_, scale)
        | DataType::Decimal64(_, scale)
        | DataType::Decimal128(_, scale) => DataType::Decimal128(38, *scale),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        // Delta's plain timestamps are UTC microseconds; a zone-less one is taken as UTC.
        DataType::Timestamp(_, _) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        other => other.clone(),
    }
}

/// Key values with -0.0 replaced by 0.0, which adding zero does.
pub(crate) fn normalize_zeros(values: &ArrayRef) -> ArrayRef {
    if let Some(floats) = values.as_primitive_opt::<Float64Type>() {
        return Arc::new(floats.unary::<_, Float64Type>(|float| float + 0.0));
    }
    match values.as_primitive_opt::<Float32Type>() {
        Some(floats) => Arc::new(floats.unary::<_, Float32Type>(|float| float + 0.0)),
        None => Arc::clone(values),
    }
}

/// Casts values to their canonical type.
///
/// # Errors
/// Data, when a value does not fit: a timestamp finer than a microsecond.
pub(crate) fn canonical_column(
    values: &ArrayRef,
    name: &str,
    data_type: &DataType,
) -> Result<ArrayRef> {
    let cast_values = cast(values, data_type)?;
    if let DataType::Timestamp(TimeUnit::Nanosecond, _) = values.data_type()
        && cast(&cast_values, values.data_type())?.as_ref() != values.as_ref()
    {
        return Err(Error::data(format!(
            "the column `{name}` has times finer than a microsecond, which the state cannot store"
        ))
        .hint(
            "a key or partition column must be text, a number, a date or a time in microseconds",
        ));
    }
    Ok(normalize_zeros(&cast_values))
}
