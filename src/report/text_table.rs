//! Small tables of text for a terminal.

use chrono::{DateTime, NaiveTime, SecondsFormat, Utc};

/// A header and rows; columns of numbers are aligned to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a header and no rows.
    pub fn new(header: &[&str]) -> Self {
        Table {
            rows: vec![header.iter().map(ToString::to_string).collect()],
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text, with two spaces between columns.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let is_number = |cell: &String| {
            !cell.is_empty() && cell.chars().all(|c| c.is_ascii_digit() || c == '.')
        };
        let is_right_aligned: Vec<bool> = (0..columns)
            .map(|column| {
                let mut cells = self.rows[1..].iter().filter_map(|row| row.get(column));
                self.rows.len() > 1 && cells.all(|cell| is_number(cell) || cell.is_empty())
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = widths[column];
                if is_right_aligned[column] {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
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
