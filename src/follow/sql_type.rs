//! Types of columns as SQL names them.

use arrow::datatypes::{DataType, TimeUnit};

/// The type that stores a type without loss, as SQL writes it; `None` if there is none.
pub(super) fn sql_type(data_type: &DataType) -> Option<String> {
    let fixed = match data_type {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "integer",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64 => "numeric(20,0)",
        DataType::Float16 | DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => "bytea",
        DataType::Date32 => "date",
        DataType::Date64 | DataType::Timestamp(_, None) => "timestamp without time zone",
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone",
        DataType::Time32(_) | DataType::Time64(_) => "time without time zone",
        DataType::Dictionary(_, values) => return sql_type(values),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => {
            // A negative scale is zeros before the point.
            let digits = i32::from(*precision) - i32::from(*scale).min(0);
            return Some(format!("numeric({digits},{})", (*scale).max(0)));
        }
        DataType::List(element) | DataType::LargeList(element) => {
            let element = element.data_type();
            let is_plain = matches!(
                element,
                DataType::Boolean
                    | DataType::Int16
                    | DataType::Int32
                    | DataType::Int64
                    | DataType::Float32
                    | DataType::Float64
                    | DataType::Utf8
                    | DataType::LargeUtf8
                    | DataType::Utf8View
                    | DataType::Date32
                    | DataType::Timestamp(TimeUnit::Microsecond, None)
            );
            return sql_type(element).filter(|_| is_plain).map(|element| format!("{element}[]"));
        }
        _ => return None,
    };
    Some(fixed.into())
}
