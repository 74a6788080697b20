//! Types of columns as Hive names them, which Glue, Athena and Spark read.

use arrow::datatypes::DataType;

/// The Hive type of a column; `None` if it has none.
pub(super) fn hive_type(data_type: &DataType) -> Option<String> {
    let fixed = match data_type {
        DataType::Boolean => "boolean",
        DataType::Int8 => "tinyint",
        DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "int",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64 => "decimal(20,0)",
        DataType::Float32 => "float",
        DataType::Float64 => "double",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string",
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => "binary",
        DataType::Date32 => "date",
        DataType::Timestamp(_, _) => "timestamp",
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale) => {
            return (*scale >= 0).then(|| format!("decimal({precision},{scale})"));
        }
        DataType::Dictionary(_, values) => return hive_type(values),
        DataType::List(element) | DataType::LargeList(element) => {
            return Some(format!("array<{}>", hive_type(element.data_type())?));
        }
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|field| {
                Some(format!("{}:{}", field.name().to_lowercase(), hive_type(field.data_type())?))
            });
            return Some(format!("struct<{}>", fields.collect::<Option<Vec<_>>>()?.join(",")));
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(fields) = entries.data_type() else { return None };
            let [key, value] = &fields[..] else { return None };
            let (key, value) = (hive_type(key.data_type())?, hive_type(value.data_type())?);
            return Some(format!("map<{key},{value}>"));
        }
        _ => return None,
    };
    Some(fixed.into())
}
