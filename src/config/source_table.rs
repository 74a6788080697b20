//! The keys `raw.layout` and `raw.table`: files that hold the changes of all tables of a task.

use std::fmt;

use arrow::datatypes::DataType;
use serde::Deserialize;

use crate::error::{Error, Result};

/// What the CDC files hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Layout {
    /// The changes of one table.
    #[default]
    Table,
    /// The changes of all tables of a task in commit order.
    Transactions,
}

/// The table whose changes are read from files of all tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTable {
    schema: Name,
    table: Name,
}

/// A name, and whether it is quoted, so that another case is another name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    text: String,
    is_quoted: bool,
}

/// What a line's schema and table are, compared with the pipeline's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The pipeline's table.
    Same,
    /// The pipeline's table but for the case of its letters.
    InOtherCase,
    /// Another table.
    Other,
}

/// The columns of a line that are not the table's own: operation, table and schema.
pub(crate) const LINE_COLUMNS: usize = 3;

impl SourceTable {
    /// Parses `schema.table`. A part in double quotes, in which `""` is a quote, may have dots, and
    /// another case is another name.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (schema, rest) = Name::parse(text)?;
        let (table, rest) = Name::parse(rest.strip_prefix('.')?)?;
        rest.is_empty().then_some(SourceTable { schema, table })
    }

    /// The table that a line names: in quotes where its names need these.
    pub(crate) fn of(schema: &str, table: &str) -> Self {
        let name = |text: &str| Name { text: text.into(), is_quoted: text.contains(['.', '"']) };
        SourceTable { schema: name(schema), table: name(table) }
    }

    /// Compares the names in a line.
    pub fn compare(&self, schema: &str, table: &str) -> Named {
        let names = [(&self.schema, schema), (&self.table, table)];
        if names.iter().all(|(name, found)| name.text == *found) {
            return Named::Same;
        }
        let is_close = |(name, found): &(&Name, &str)| {
            name.text == *found
                || (!name.is_quoted && name.text.to_lowercase() == found.to_lowercase())
        };
        if names.iter().all(is_close) { Named::InOtherCase } else { Named::Other }
    }
}

impl fmt::Display for SourceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_quoted {
            return f.write_str(&self.text);
        }
        write!(f, "\"{}\"", self.text.replace('"', "\"\""))
    }
}

impl Name {
    /// A name at the start of a text, and the text after it.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let Some(quoted) = text.strip_prefix('"') else {
            let end = text.find(['.', '"']).unwrap_or(text.len());
            let (name, rest) = text.split_at(end);
            let name = Name { text: name.into(), is_quoted: false };
            return (!name.text.is_empty()).then_some((name, rest));
        };
        let mut rest = quoted;
        let mut name = String::new();
        loop {
            let (before, after) = rest.split_once('"')?;
            name.push_str(before);
            rest = after;
            match rest.strip_prefix('"') {
                Some(after) => {
                    name.push('"');
                    rest = after;
                }
                None => break,
            }
        }
        (!name.is_empty()).then_some((Name { text: name, is_quoted: true }, rest))
    }
}

/// The other keys that these keys depend on.
pub(super) struct Others<'a> {
    pub(super) is_csv: bool,
    pub(super) has_header: bool,
    /// The columns of `[raw.columns]`.
    pub(super) columns: &'a [(String, DataType)],
    /// The operation column.
    pub(super) op: &'a str,
    /// The columns that identify, order and date changes.
    pub(super) used: Vec<&'a String>,
}

/// Checks both keys; the table is `None` where a file has the changes of one table.
pub(super) fn check(
    layout: Layout,
    table: Option<&str>,
    others: &Others<'_>,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<Option<SourceTable>> {
    if layout == Layout::Table {
        return match table {
            None => Ok(None),
            Some(_) => Err(wrong("raw.table", "has no effect".into())
                .hint("leave it out, or write raw.layout = \"transactions\"")),
        };
    }
    let refused = |key: &str, why: &str, hint: &str| Err(wrong(key, why.into()).hint(hint));
    if !others.is_csv {
        let hint = "write raw.format = \"csv\": DMS writes transaction files as CSV only";
        return refused("raw.layout", "is for CSV files", hint);
    }
    if others.has_header {
        let hint = "leave out raw.csv_header: DMS writes no header into transaction files";
        return refused("raw.layout", "is for files without a header", hint);
    }
    let Some(text) = table else {
        let hint = "name the table whose rows are read: raw.table = \"schema.table\"";
        return refused("raw.table", "is missing", hint);
    };
    let Some(table) = SourceTable::parse(text) else {
        return Err(wrong("raw.table", format!("is `{text}`")).hint(
            "write schema.table; put a name that has a dot in double quotes: '\"my.schema\".table'",
        ));
    };
    check_columns(others, wrong)?;
    Ok(Some(table))
}

/// Checks that the columns are those of a line: operation, table, schema, then the table's own.
fn check_columns(others: &Others<'_>, wrong: &dyn Fn(&str, String) -> Error) -> Result<()> {
    let hint = "list the columns of a line in their order: the operation, then the table and the \
                schema, both VARCHAR, then the table's own columns";
    let refused = |why: String| Err(wrong("raw.columns", why).hint(hint));
    let columns = others.columns;
    if columns.len() <= LINE_COLUMNS {
        return refused("lacks columns of transaction files".into());
    }
    if !columns[0].0.eq_ignore_ascii_case(others.op) {
        return refused(format!("does not begin with the operation column `{}`", others.op));
    }
    for (name, data_type) in &columns[1..LINE_COLUMNS] {
        let is_used = others.used.iter().any(|used| used.eq_ignore_ascii_case(name));
        if !data_type.is_string() || is_used {
            return refused(format!("has `{name}` where table and schema of a line belong"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> SourceTable {
        SourceTable::parse(text).expect(text)
    }

    #[test]
    fn a_table_is_named_with_its_schema() {
        for (text, schema, name) in [
            ("ins.policy", "ins", "policy"),
            ("\"my.schema\".policy", "my.schema", "policy"),
            ("ins.\"a \"\"b\"\"\"", "ins", "a \"b\""),
        ] {
            assert_eq!(table(text).compare(schema, name), Named::Same, "{text}");
            assert_eq!(table(text).to_string(), text);
        }
        for text in
            ["", "policy", ".policy", "ins.", "a.b.c", "\"a.b", "\"\".b", "a\"b\".c", "\"a\"b"]
        {
            assert_eq!(SourceTable::parse(text), None, "{text}");
        }
    }

    #[test]
    fn another_case_is_another_table_only_where_the_name_is_quoted() {
        let plain = table("ins.policy");
        assert_eq!(plain.compare("ins", "policy"), Named::Same);
        assert_eq!(plain.compare("INS", "Policy"), Named::InOtherCase);
        assert_eq!(plain.compare("ins", "claim"), Named::Other);
        assert_eq!(plain.compare("policy", "ins"), Named::Other);
        let quoted = table("ins.\"Policy\"");
        assert_eq!(quoted.compare("ins", "Policy"), Named::Same);
        assert_eq!(quoted.compare("INS", "Policy"), Named::InOtherCase);
        assert_eq!(quoted.compare("ins", "policy"), Named::Other);
    }
}
