//! Small tables of text for a terminal.

use chrono::{DateTime, NaiveTime, SecondsFormat, Utc};
use comfy_table::CellAlignment;
use comfy_table::presets::NOTHING;

/// A header and rows; columns of numbers are aligned to the right.
#[derive(Debug)]
pub struct Table {
    table: comfy_table::Table,
}

impl Table {
    /// A table with a header and no rows.
    pub fn new(header: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_preset(NOTHING).set_header(header);
        Table { table }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.table.add_row(cells.into_iter().collect::<Vec<_>>());
    }

    /// The table as text, with two spaces between columns.
    pub fn text(&self) -> String {
        let mut table = self.table.clone();
        let is_number = |cell: &str| cell.chars().all(|c| c.is_ascii_digit() || c == '.');
        for at in 0..table.column_count() {
            let mut cells = table.row_iter().filter_map(|row| row.cell_iter().nth(at));
            if !table.is_empty() && cells.all(|cell| is_number(&cell.content())) {
                table.column_mut(at).into_iter().for_each(|column| {
                    column.set_cell_alignment(CellAlignment::Right);
                });
            }
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table.trim_fmt() + "\n"
    }
}

/// An instant in short form: a midnight as its date.
pub fn day_or_instant(instant: DateTime<Utc>) -> String {
    if instant.time() == NaiveTime::MIN {
        instant.date_naive().to_string()
    } else {
        instant.to_rfc3339_opts(SecondsFormat::AutoSi, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_right_and_text_left() {
        let mut table = Table::new(&["name", "rows"]);
        table.row(["a".into(), "7".into()]);
        table.row(["longer".into(), "1000".into()]);
        assert_eq!(table.text(), "name    rows\na          7\nlonger  1000\n");
        assert_eq!(Table::new(&["a"]).text(), "a\n");
    }
}
