//! Raw columns: what the inputs of a run have, brought together by name.
//!
//! Files differ: columns come and go, change their place, their case, their type. A column of the
//! union has the type that the pipeline fixes, or one that all its files, and those of earlier runs,
//! widen to without loss; where there is none, the run stops.

use arrow::compute::can_cast_types;
use arrow::datatypes::{DataType, Field, TimeUnit};

use crate::config::{Pipeline, Raw};
use crate::error::{Error, Result};
use crate::parquet_file::ParquetFile;

/// The way out where types have nothing in common.
const FIX: &str = "name its type in `[raw.columns]`, if all values can take it, or mend the files";

/// The union of the inputs' columns, by name, each with a type all its inputs widen to, or that the
/// pipeline fixes.
pub struct RawColumns<'a> {
    /// The columns, all nullable.
    pub fields: Vec<Field>,
    /// Per field: the file that has its type.
    from: Vec<String>,
    raw: &'a Raw,
    /// The names that queries know columns by.
    names: Vec<String>,
}

impl<'a> RawColumns<'a> {
    /// No columns yet. A column has the name that `curated.sql` knows it by, in whatever case the
    /// files have it.
    pub fn new(pipeline: &'a Pipeline) -> Self {
        RawColumns {
            fields: Vec::new(),
            from: Vec::new(),
            raw: &pipeline.raw,
            names: pipeline.curated.sql.names(),
        }
    }

    fn name_of(&self, column: &str) -> String {
        let names = self.names.iter().map(String::as_str);
        let known = find_column(names, column).map(|place| &self.names[place]);
        known.map_or_else(|| column.to_string(), String::clone)
    }

    /// The index of a column, by its name in any case.
    pub fn find(&self, name: &str) -> Option<usize> {
        find_column(self.fields.iter().map(|field| field.name().as_str()), name)
    }

    /// Adds a file's columns, in the order of the run's inputs.
    ///
    /// # Errors
    /// Data, naming both files, the column and both types, when these have no common type.
    pub fn add(&mut self, file: &ParquetFile) -> Result<()> {
        let fields = file.schema().fields();
        let names = fields[..fields.len() - 1].iter().map(|field| field.name());
        for (place, name) in names.clone().enumerate() {
            let mut before = names.clone().take(place);
            if let Some(other) = before.find(|other| other.eq_ignore_ascii_case(name)) {
                return Err(Error::data(format!(
                    "columns `{other}` and `{name}` of {} differ in nothing but case",
                    file.name
                ))
                .hint("rename one of them where the changes are captured"));
            }
        }
        for field in &fields[..fields.len() - 1] {
            let (name, data_type) = (field.name(), field.data_type());
            let fixed = self.raw.fixed_type(name);
            if let Some(fixed) = fixed.filter(|fixed| !can_cast_types(data_type, fixed)) {
                return Err(Error::data(format!(
                    "column `{name}` of {} is {data_type}, which cannot become {fixed}",
                    file.name
                ))
                .hint("mend its type in `[raw.columns]`"));
            }
            match self.find(name) {
                None => {
                    let data_type = fixed.unwrap_or(data_type).clone();
                    let name = self.name_of(name);
                    self.fields.push(Field::new(name, data_type, true));
                    self.from.push(file.name.clone());
                }
                Some(_) if fixed.is_some() => {}
                Some(index) => {
                    let known = self.fields[index].data_type();
                    let widened = widen(known, data_type).ok_or_else(|| {
                        Error::data(format!(
                            "column `{name}` is {known} in {} and {data_type} in {}",
                            self.from[index], file.name
                        ))
                        .hint(FIX)
                    })?;
                    if widened != *known {
                        self.from[index] = file.name.clone();
                        self.fields[index] = Field::new(self.fields[index].name(), widened, true);
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the columns of earlier runs: one that no file has any more is null.
    ///
    /// # Errors
    /// Data, when a column's types have no common type.
    pub fn add_known(&mut self, known: &[(String, DataType)]) -> Result<()> {
        for (name, data_type) in known {
            let fixed = self.raw.fixed_type(name);
            let data_type = fixed.unwrap_or(data_type);
            let Some(index) = self.find(name) else {
                self.fields.push(Field::new(name, data_type.clone(), true));
                self.from.push(String::new());
                continue;
            };
            let found = self.fields[index].data_type();
            let widened = widen(found, data_type).ok_or_else(|| {
                Error::data(format!(
                    "column `{name}` is {found} in {}, and was {data_type} in earlier runs",
                    self.from[index]
                ))
                .hint(format!("{FIX}, or make the tables again: glueless rebuild"))
            })?;
            // Queries know it by the name it had.
            self.fields[index] = Field::new(name, widened, true);
        }
        Ok(())
    }

    /// Adds the columns that the pipeline declares and no file has: they are null.
    pub fn add_declared(&mut self) {
        for (name, data_type) in &self.raw.columns {
            if self.find(name).is_none() {
                let name = self.name_of(name);
                self.fields.push(Field::new(name, data_type.clone(), true));
                self.from.push(String::new());
            }
        }
    }

    /// Per column of the union: its index in a file.
    pub fn columns_of(&self, file: &ParquetFile) -> Vec<Option<usize>> {
        let fields = file.schema().fields();
        let names = || {
            fields[..fields.len() - 1]
                .iter()
                .map(|field| field.name().as_str())
        };
        self.fields
            .iter()
            .map(|field| find_column(names(), field.name()))
            .collect()
    }
}

/// The index of a name: as it is, else in another case.
pub fn find_column<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    wanted: &str,
) -> Option<usize> {
    names.clone().position(|name| name == wanted).or_else(|| {
        names
            .clone()
            .position(|name| name.eq_ignore_ascii_case(wanted))
    })
}

/// The narrowest type that holds both, losing nothing; `None` where there is none.
pub fn widen(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::*;
    fn integer(data_type: &DataType) -> Option<(bool, u8)> {
        Some(match data_type {
            Int8 => (true, 8),
            Int16 => (true, 16),
            Int32 => (true, 32),
            Int64 => (true, 64),
            UInt8 => (false, 8),
            UInt16 => (false, 16),
            UInt32 => (false, 32),
            UInt64 => (false, 64),
            _ => return None,
        })
    }
    fn decimal(data_type: &DataType) -> Option<(u8, i8)> {
        match data_type {
            Decimal32(p, s) | Decimal64(p, s) | Decimal128(p, s) => Some((*p, *s)),
            other => match integer(other)? {
                (_, 8) => Some((3, 0)),
                (_, 16) => Some((5, 0)),
                (_, 32) => Some((10, 0)),
                (true, _) => Some((19, 0)),
                (false, _) => Some((20, 0)),
            },
        }
    }
    if a == b {
        return Some(a.clone());
    }
    if let (Some((a_signed, a_bits)), Some((b_signed, b_bits))) = (integer(a), integer(b)) {
        if a_signed == b_signed {
            return Some(if a_bits > b_bits {
                a.clone()
            } else {
                b.clone()
            });
        }
        let (signed, unsigned) = if a_signed {
            (a_bits, b_bits)
        } else {
            (b_bits, a_bits)
        };
        return Some(match signed.max(unsigned.saturating_mul(2)) {
            16 => Int16,
            32 => Int32,
            64 => Int64,
            _ => Decimal128(20, 0),
        });
    }
    match (a, b) {
        (Float32, Float64) | (Float64, Float32) => Some(Float64),
        (Date32, Timestamp(unit, zone)) | (Timestamp(unit, zone), Date32) => {
            Some(Timestamp(*unit, zone.clone()))
        }
        (Timestamp(a_unit, a_zone), Timestamp(b_unit, b_zone)) => {
            let rank = |unit: &TimeUnit| *unit as u8;
            let unit = if rank(a_unit) > rank(b_unit) {
                a_unit
            } else {
                b_unit
            };
            (a_zone == b_zone).then(|| Timestamp(*unit, a_zone.clone()))
        }
        _ => {
            let ((a_precision, a_scale), (b_precision, b_scale)) = (decimal(a)?, decimal(b)?);
            let scale = a_scale.max(b_scale);
            let whole = (a_precision as i8 - a_scale).max(b_precision as i8 - b_scale);
            let precision = u8::try_from(whole + scale).ok()?;
            (precision <= 38).then_some(Decimal128(precision, scale))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_widen_without_loss_or_not_at_all() {
        use DataType::*;
        let utc = || Some("UTC".into());
        for (a, b, both) in [
            (Int32, Int64, Some(Int64)),
            (UInt8, Int8, Some(Int16)),
            (UInt32, Int8, Some(Int64)),
            (UInt64, Int8, Some(Decimal128(20, 0))),
            (Float32, Float64, Some(Float64)),
            (
                Decimal128(10, 2),
                Decimal128(12, 4),
                Some(Decimal128(12, 4)),
            ),
            (Decimal128(10, 2), Decimal128(9, 4), Some(Decimal128(12, 4))),
            (Decimal128(10, 2), Int64, Some(Decimal128(21, 2))),
            (Decimal128(38, 0), Decimal128(38, 10), None),
            (
                Date32,
                Timestamp(TimeUnit::Millisecond, None),
                Some(Timestamp(TimeUnit::Millisecond, None)),
            ),
            (
                Timestamp(TimeUnit::Millisecond, utc()),
                Timestamp(TimeUnit::Microsecond, utc()),
                Some(Timestamp(TimeUnit::Microsecond, utc())),
            ),
            (
                Timestamp(TimeUnit::Millisecond, utc()),
                Timestamp(TimeUnit::Millisecond, None),
                None,
            ),
            (Utf8View, Int64, None),
            (Float64, Int64, None),
        ] {
            assert_eq!(widen(&a, &b), both, "{a} and {b}");
            assert_eq!(widen(&b, &a), both, "{b} and {a}");
        }
    }
}
