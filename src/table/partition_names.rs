//! Partition names: the values of partition columns as Hive folders.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::error::{Error, Result};
use crate::layout::partition_segment;

/// The longest name that file systems allow.
const SEGMENT_BYTES_MAX: usize = 255;

/// The Hive folder of a row: `event_dt=2019-04-01/cust_loyalty_category=Basic`.
///
/// # Errors
/// Data, when a value is too long for a folder name; internal, when it cannot be formatted.
pub(crate) fn partition_folder(names: &[&str], columns: &[ArrayRef], row: usize) -> Result<String> {
    let segments = names
        .iter()
        .zip(columns)
        .map(|(name, column)| {
            let segment = partition_segment(name, partition_value(column, row)?.as_deref());
            if segment.len() > SEGMENT_BYTES_MAX {
                return Err(Error::data(format!(
                    "a value of the partition column `{name}` makes a folder name of {} bytes; the maximum is {SEGMENT_BYTES_MAX}",
                    segment.len()
                ))
                .hint("shorten it in curated.sql, or exclude such rows"));
            }
            Ok(segment)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(segments.join("/"))
}

/// A partition value as in Hive's folder names, before escaping: timestamps in UTC, with a space
/// between date and time and without a zone.
fn partition_value(column: &ArrayRef, row: usize) -> Result<Option<String>> {
    if column.is_null(row) {
        return Ok(None);
    }
    let column = match column.data_type() {
        DataType::Timestamp(unit, Some(_)) => {
            arrow::compute::cast(column, &DataType::Timestamp(*unit, None))?
        }
        _ => Arc::clone(column),
    };
    let format = FormatOptions::new().with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"));
    Ok(Some(ArrayFormatter::try_new(&column, &format)?.value(row).try_to_string()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        BooleanArray, Date32Array, Decimal128Array, Int64Array, StringViewArray,
        TimestampMicrosecondArray,
    };

    #[test]
    fn every_partition_type_has_its_hive_folder_and_null_has_the_default_one() {
        let decimals = Decimal128Array::from(vec![Some(-150), None]).with_precision_and_scale(9, 2);
        let columns: Vec<(ArrayRef, &str)> = vec![
            (Arc::new(StringViewArray::from(vec![Some("A/B: c%d="), None])), "A%2FB%3A c%25d%3D"),
            (Arc::new(Int64Array::from(vec![Some(-7), None])), "-7"),
            (Arc::new(BooleanArray::from(vec![Some(true), None])), "true"),
            (Arc::new(decimals.expect("decimals")), "-1.50"),
            (Arc::new(Date32Array::from(vec![Some(-1), None])), "1969-12-31"),
            (
                Arc::new(TimestampMicrosecondArray::from(vec![Some(1_500_000), None])),
                "1970-01-01 00%3A00%3A01.500",
            ),
            (
                Arc::new(TimestampMicrosecondArray::from(vec![Some(0), None]).with_timezone("UTC")),
                "1970-01-01 00%3A00%3A00",
            ),
        ];
        for (column, folder) in columns {
            let folder_of =
                |row| partition_folder(&["p"], &[Arc::clone(&column)], row).expect("named");
            assert_eq!(folder_of(0), format!("p={folder}"));
            assert_eq!(folder_of(1), "p=__HIVE_DEFAULT_PARTITION__");
        }
    }
}
