//! Dialects: what the columns of a CDC tool's files are called and mean, as defaults of other keys.

use serde::Deserialize;

use crate::config::operations::OpValues;
use crate::config::time_unit::TimeUnit;

/// `raw.dialect`: the tool that wrote the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// AWS DMS.
    #[default]
    Dms,
    /// Debezium, with its envelopes ([`crate::config::envelope`]).
    Debezium,
    /// Qlik Replicate.
    Qlik,
    /// The change tables of SQL Server's change data capture, exported to files.
    SqlServerCdc,
    /// Rows without operations: each is the row as it is from then on.
    Flat,
}

/// The keys that a dialect sets where the pipeline does not.
#[derive(Debug)]
pub(super) struct Defaults {
    /// `raw.op`; CDC files must have the column.
    pub(super) op: Option<&'static str>,
    /// `[raw.op_values]`.
    pub(super) op_values: OpValues,
    /// `raw.order_by`.
    pub(super) order_by: &'static [&'static str],
    /// `raw.commit_time`.
    pub(super) commit_time: Option<&'static str>,
    /// `raw.commit_time_unit`.
    pub(super) commit_time_unit: Option<TimeUnit>,
}

impl Defaults {
    /// `raw.order_by`.
    pub(super) fn order(&self) -> Vec<String> {
        self.order_by.iter().map(ToString::to_string).collect()
    }
}

impl Dialect {
    /// The name in `raw.dialect`.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Dms => "dms",
            Dialect::Debezium => "debezium",
            Dialect::Qlik => "qlik",
            Dialect::SqlServerCdc => "sql-server-cdc",
            Dialect::Flat => "flat",
        }
    }

    /// Whether changes have an operation, in a column of the tool's name.
    pub(super) fn has_operations(self) -> bool {
        self != Dialect::Flat
    }

    /// The keys that it sets.
    pub(super) fn defaults(self) -> Defaults {
        let none = Defaults {
            op: None,
            op_values: OpValues::default(),
            order_by: &[],
            commit_time: None,
            commit_time_unit: None,
        };
        match self {
            // The column `Op` is optional: `OpColumn::required` is not set by a default name.
            Dialect::Dms | Dialect::Flat => none,
            // Debezium, "Data change events": r is a row of a snapshot, m a message. `ts_ms` is when
            // the connector processed the event.
            Dialect::Debezium => Defaults {
                op: Some("op"),
                op_values: OpValues::new([&["c", "r"], &["u"], &["d"], &["m"], &["t"]]),
                order_by: &["ts_ms"],
                commit_time: Some("ts_ms"),
                ..none
            },
            // Qlik Replicate, "Setting general properties > change data columns": the header
            // columns of a change table. B is the row before an update.
            Dialect::Qlik => Defaults {
                op: Some("header__change_oper"),
                op_values: OpValues::new([&["I"], &["U"], &["D"], &["B"], &[]]),
                order_by: &["header__change_seq"],
                commit_time: Some("header__timestamp"),
                ..none
            },
            // SQL Server, "cdc.<capture_instance>_CT": 1 delete, 2 insert, 3 the row before an
            // update, 4 the row after it. The time of the transaction is in another table.
            Dialect::SqlServerCdc => Defaults {
                op: Some("__$operation"),
                op_values: OpValues::new([&["2"], &["4"], &["1"], &["3"], &[]]),
                order_by: &["__$start_lsn", "__$seqval", "__$operation"],
                ..none
            },
        }
    }

    /// The keys that it sets, as in a toml file, for a log.
    pub fn described(self) -> String {
        let settings = self.settings().into_iter();
        let settings: Vec<String> =
            settings.map(|(key, value)| format!("{key} = {value}")).collect();
        if settings.is_empty() { "nothing".into() } else { settings.join(", ") }
    }

    /// The keys that it sets, and their values as in a toml file.
    fn settings(self) -> Vec<(String, String)> {
        let defaults = self.defaults();
        let quoted = |text: &str| format!("\"{text}\"");
        let mut settings = Vec::new();
        let mut set = |key: &str, value: String| settings.push((key.to_string(), value));
        match defaults.op {
            Some(op) => set("raw.op", quoted(op)),
            None if self.has_operations() => set("raw.op", quoted("Op")),
            None => {}
        }
        if !defaults.order_by.is_empty() {
            let columns: Vec<String> = defaults.order_by.iter().map(|name| quoted(name)).collect();
            set("raw.order_by", format!("[{}]", columns.join(", ")));
        }
        if let Some(column) = defaults.commit_time {
            set("raw.commit_time", quoted(column));
        }
        if let Some(unit) = defaults.commit_time_unit {
            set("raw.commit_time_unit", quoted(unit.name()));
        }
        if self.has_operations() {
            settings.extend(defaults.op_values.settings());
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_dialects_is_what_they_set() {
        let guide = include_str!("../../docs/raw.md");
        for dialect in
            [Dialect::Dms, Dialect::Debezium, Dialect::Qlik, Dialect::SqlServerCdc, Dialect::Flat]
        {
            let name = format!("`{}`", dialect.name());
            let mut rows = guide.lines().filter(|line| line.starts_with('|'));
            let row =
                rows.find(|line| line.split('|').nth(2).is_some_and(|cell| cell.trim() == name));
            let described = row.unwrap_or_else(|| panic!("{name} is not described"));
            let settings = dialect.settings().into_iter();
            let settings: Vec<String> =
                settings.map(|(key, value)| format!("`{key} = {value}`")).collect();
            let expected =
                if settings.is_empty() { "no operations".into() } else { settings.join(", ") };
            assert_eq!(described.split('|').nth(3).map(str::trim), Some(expected.as_str()));
        }
    }
}
