//! Columns of tables in PostgreSQL: which type stores a column of ours, and which existing columns fit.

use arrow::datatypes::DataType;

use crate::error::{Error, Result};
use crate::follow::sql_type::sql_type;
use crate::state::versions::quoted;

/// A column that is loaded.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// Its name, here and there.
    pub(super) name: String,
    /// Its type here.
    pub(super) data_type: DataType,
    /// The type of a new column there, which is also that of the stage.
    pub(super) sql_type: String,
}

/// A column of an existing table.
#[derive(Clone, Debug)]
pub(super) struct Existing {
    pub(super) name: String,
    /// The name of its type, of a domain that of the type below it.
    pub(super) base: String,
    /// Whether the type is an enum.
    pub(super) is_enum: bool,
    /// The type as SQL writes it.
    pub(super) sql_type: String,
    /// The modifier of the type, such as its precision; -1 for none.
    pub(super) modifier: i32,
    /// Whether only the same texts are equal in its collation.
    pub(super) is_deterministic: bool,
}

impl Column {
    /// A column; `table` names its table in errors.
    ///
    /// # Errors
    /// Usage, when no type of PostgreSQL stores it.
    pub(super) fn new(table: &str, name: &str, data_type: &DataType) -> Result<Self> {
        let sql_type = sql_type(data_type).ok_or_else(|| {
            Error::usage(format!(
                "{table}: the column `{name}` is {data_type}, which is not loaded into PostgreSQL"
            ))
            .hint("cast it in the query, such as to text, or select its parts")
        })?;
        Ok(Column { name: name.into(), data_type: data_type.clone(), sql_type })
    }

    /// Its name in SQL.
    pub(super) fn quoted(&self) -> String {
        quoted(&self.name)
    }

    /// The SQL that converts a column of the stage, `alias.column`, to the type of an existing one.
    pub(super) fn converted(&self, alias: &str, existing: Option<&Existing>) -> String {
        let staged = format!("{alias}.{}", self.quoted());
        match existing {
            // Other conversions are those of an assignment: explicit ones would cut texts.
            Some(existing) if self.needs_cast(existing) => {
                format!("CAST({staged} AS {})", existing.sql_type)
            }
            _ => staged,
        }
    }

    fn needs_cast(&self, existing: &Existing) -> bool {
        let is_text = self.sql_type == "text";
        is_text && (existing.is_enum || matches!(existing.base.as_str(), "uuid" | "jsonb" | "inet"))
    }

    /// Whether some texts become others in an existing column: blanks at the end, or another way to write
    /// the same value.
    pub(super) fn is_changed_by(&self, existing: &Existing) -> bool {
        let is_cut = existing.base == "varchar" && existing.modifier >= 0;
        let is_rewritten = matches!(existing.base.as_str(), "bpchar" | "uuid" | "jsonb" | "inet");
        self.sql_type == "text" && (is_cut || is_rewritten)
    }

    /// Whether every value fits an existing column, or is refused there: none may change.
    pub(super) fn fits(&self, existing: &Existing) -> bool {
        let base = existing.base.as_str();
        // Times have a precision as modifier, and are rounded to it.
        let is_exact_time = !(0..6).contains(&existing.modifier);
        match self.sql_type.as_str() {
            "boolean" => base == "bool",
            "smallint" | "integer" | "bigint" => match base {
                "int2" | "int4" | "int8" => true,
                "numeric" => scale_of(existing).is_none_or(|scale| scale >= 0),
                _ => false,
            },
            "real" => matches!(base, "float4" | "float8"),
            "double precision" => base == "float8",
            "text" => {
                existing.is_enum
                    || matches!(base, "text" | "varchar" | "bpchar" | "uuid" | "jsonb" | "inet")
            }
            "bytea" => base == "bytea",
            "date" => base == "date",
            "timestamp without time zone" => base == "timestamp" && is_exact_time,
            "timestamp with time zone" => base == "timestamptz" && is_exact_time,
            "time without time zone" => base == "time" && is_exact_time,
            numeric if numeric.starts_with("numeric") => {
                let ours = decimal_scale(&self.data_type);
                base == "numeric" && scale_of(existing).is_none_or(|scale| scale >= ours)
            }
            // Arrays: of the same elements.
            _ => self.sql_type == existing.sql_type,
        }
    }
}

impl Existing {
    /// A new column.
    pub(super) fn new(column: &Column) -> Self {
        Existing {
            name: column.name.clone(),
            base: Self::of_new(column).unwrap_or_default().into(),
            is_enum: false,
            sql_type: column.sql_type.clone(),
            modifier: -1,
            is_deterministic: true,
        }
    }

    /// The SQL that makes a text of a value of its type, as it is written.
    pub(super) fn as_text(&self, value: &str) -> String {
        // A cast adds the length of the network to every address.
        if self.base == "inet" {
            return format!("format('%s', {value})");
        }
        format!("CAST({value} AS text)")
    }

    /// The name of the type of a new column, in the server's catalog; `None` for arrays.
    pub(super) fn of_new(column: &Column) -> Option<&'static str> {
        Some(match column.sql_type.as_str() {
            "boolean" => "bool",
            "smallint" => "int2",
            "integer" => "int4",
            "bigint" => "int8",
            "real" => "float4",
            "double precision" => "float8",
            "text" => "text",
            "bytea" => "bytea",
            "date" => "date",
            "timestamp without time zone" => "timestamp",
            "timestamp with time zone" => "timestamptz",
            "time without time zone" => "time",
            numeric if numeric.starts_with("numeric") => "numeric",
            _ => return None,
        })
    }
}

/// The scale of an existing numeric column; `None` if it stores any.
fn scale_of(existing: &Existing) -> Option<i32> {
    // The modifier is 4 more than precision and scale, the scale in 11 bits with a sign.
    let scale = (existing.modifier.checked_sub(4)?) & 0x7ff;
    (existing.modifier >= 4).then_some((scale ^ 1024) - 1024)
}

fn decimal_scale(data_type: &DataType) -> i32 {
    match data_type {
        DataType::Decimal32(_, scale)
        | DataType::Decimal64(_, scale)
        | DataType::Decimal128(_, scale)
        | DataType::Decimal256(_, scale) => i32::from(*scale),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;

    fn existing(base: &str, sql_type: &str, modifier: i32) -> Existing {
        let (base, sql_type) = (base.into(), sql_type.into());
        let name = "c".into();
        Existing { name, base, is_enum: false, sql_type, modifier, is_deterministic: true }
    }

    #[test]
    fn a_column_fits_if_its_values_stay_the_same_or_are_refused() {
        let column = |data_type| Column::new("t", "c", &data_type).expect("a type");
        let numeric = |precision: i32, scale: i32| {
            existing("numeric", "numeric", ((precision << 16) | (scale & 0x7ff)) + 4)
        };
        let any = existing("numeric", "numeric", -1);
        let decimal = column(DataType::Decimal128(10, 2));
        assert_eq!(decimal.sql_type, "numeric(10,2)");
        assert!(
            decimal.fits(&any) && decimal.fits(&numeric(5, 2)) && decimal.fits(&numeric(12, 4))
        );
        assert!(!decimal.fits(&numeric(12, 1)) && !decimal.fits(&numeric(12, -2)));
        assert!(column(DataType::Int64).fits(&numeric(10, 0)));
        assert!(!column(DataType::Int64).fits(&numeric(10, -3)));
        assert!(column(DataType::Int64).fits(&existing("int2", "smallint", -1)));
        assert!(!column(DataType::Float64).fits(&existing("float4", "real", -1)));
        let time = column(DataType::Timestamp(TimeUnit::Microsecond, None));
        assert!(time.fits(&existing("timestamp", "timestamp without time zone", -1)));
        assert!(!time.fits(&existing("timestamp", "timestamp(3) without time zone", 3)));
        assert!(!time.fits(&existing("timestamptz", "timestamp with time zone", -1)));
        assert!(column(DataType::Utf8View).fits(&existing("varchar", "varchar(3)", 7)));
        assert!(!column(DataType::Utf8View).fits(&existing("json", "json", -1)));
        assert_eq!(column(DataType::Decimal128(4, -2)).sql_type, "numeric(6,0)");
    }
}
