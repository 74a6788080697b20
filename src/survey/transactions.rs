//! Files with the changes of all tables of a task, by the tables that their lines name.

use std::collections::BTreeMap;
use std::io::Cursor;

use crate::config::{CsvForm, LINE_COLUMNS, RawFormat, SourceTable};
use crate::error::Result;
use crate::layout::parent;
use crate::raw::csv::records::Records;
use crate::survey::sample::Reading;
use crate::survey::tables::{FoundTable, LeftOut};

/// A table to look at.
#[derive(Clone, Debug)]
pub(super) struct TableToRead {
    pub(super) found: FoundTable,
    /// Its name in the lines of files of all tables, and the number of its own columns there, if it has any.
    pub(super) in_lines: Option<(String, usize)>,
}

impl TableToRead {
    /// Adds the files of a task, which have its changes.
    fn add(&mut self, task: &FoundTable, in_lines: Option<(String, usize)>) {
        self.found.raw.extend(task.raw.iter().cloned());
        self.found.files.merge(task.files.clone());
        self.in_lines = in_lines;
    }
}

const NOT_CSV: &str =
    "files of transactions are CSV files: operation, table and schema begin each line";

/// Makes one table of each that the lines of files of all tables name, with the full loads in the folder of its name.
///
/// # Errors
/// Storage, when a file cannot be read.
pub(super) async fn split(
    reading: &Reading<'_>,
    found: Vec<FoundTable>,
    left_out: &mut Vec<LeftOut>,
) -> Result<Vec<TableToRead>> {
    let (of_all, of_one): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|table| table.files.of_transactions > 0);
    let plain = |found| TableToRead { found, in_lines: None };
    let mut tables: Vec<TableToRead> = of_one.into_iter().map(plain).collect();
    for task in of_all {
        let mut names: BTreeMap<(String, String), usize> = BTreeMap::new();
        for sampled in task.files.changes.sampled() {
            if let Some(head) = reading.head(sampled).await? {
                names.append(&mut tables_of(&head.text)?);
            }
        }
        if names.is_empty() {
            let files = task.files.changes.files;
            left_out.push(LeftOut { folder: task.folder.clone(), files, why: NOT_CSV });
        }
        let around = parent(&task.folder).to_string();
        let below = |folder: &str| {
            if around.is_empty() { folder.to_string() } else { format!("{around}/{folder}") }
        };
        for ((schema, table), columns) in &names {
            let folder = below(&format!("{schema}/{table}"));
            let in_lines = Some((SourceTable::of(schema, table).to_string(), *columns));
            match tables.iter_mut().find(|table| table.found.folder == folder) {
                Some(known) => known.add(&task, in_lines),
                None => {
                    let found = FoundTable { folder, ..task.clone() };
                    tables.push(TableToRead { found, in_lines });
                }
            }
        }
        // The sample may not have the changes of all tables that have full loads.
        let has_loads_alone = |table: &&mut TableToRead| {
            let files = &table.found.files;
            table.in_lines.is_none() && files.changes.files == 0 && files.format() == RawFormat::Csv
        };
        for table in tables.iter_mut().filter(has_loads_alone) {
            let rest = if around.is_empty() {
                Some(table.found.folder.as_str())
            } else {
                table.found.folder.strip_prefix(&format!("{around}/"))
            };
            let names =
                rest.and_then(|rest| rest.split_once('/')).filter(|(_, name)| !name.contains('/'));
            let in_lines =
                names.map(|(schema, name)| (SourceTable::of(schema, name).to_string(), 0));
            if in_lines.is_some() {
                table.add(&task, in_lines);
            }
        }
    }
    tables.sort_by(|a, b| a.found.folder.cmp(&b.found.folder));
    Ok(tables)
}

/// The tables that lines name, by schema and name, and the most fields of their own that a line has.
fn tables_of(text: &[u8]) -> Result<BTreeMap<(String, String), usize>> {
    let form = CsvForm::default();
    let mut records = Records::new("", Cursor::new(text), &form);
    let mut tables = BTreeMap::new();
    while records.next_record()?.is_some() {
        let field = |number: usize| records.fields.get(number).and_then(|_| records.text(number));
        let is_change = field(0).is_some_and(|op| ["I", "U", "D"].contains(&op));
        let (Some(table), Some(schema)) = (field(1), field(2)) else { continue };
        let columns = records.fields.len();
        if is_change && !records.is_cut_off && !table.is_empty() && !schema.is_empty() {
            let most = tables.entry((schema.to_string(), table.to_string())).or_insert(0);
            *most = columns.saturating_sub(LINE_COLUMNS).max(*most);
        }
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_those_that_changes_name() {
        let text =
            "B,7001,1,x\nI,policy,ins,t,1,Gold\nU,policy,ins,t,1\nD,claim,ins,t,10,,\nC,7001,1,x\n";
        let found = tables_of(text.as_bytes()).expect("read");
        let names: Vec<String> = found
            .iter()
            .map(|((schema, table), columns)| format!("{schema}.{table} {columns}"))
            .collect();
        assert_eq!(names, ["ins.claim 4", "ins.policy 3"]);
        assert_eq!(SourceTable::of("a.b", "c").to_string(), "\"a.b\".c");
    }
}
