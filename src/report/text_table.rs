//! Small tables of text for people at a terminal.

use chrono::{DateTime, NaiveTime, SecondsFormat, Utc};

/// Rows under a header; numbers stand to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(header: &[&str]) -> Self {
        Table {
            rows: vec![header.iter().map(ToString::to_string).collect()],
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table, two spaces between its columns.
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
        let right: Vec<bool> = (0..columns)
            .map(|column| {
                let mut cells = self.rows[1..].iter().filter_map(|row| row.get(column));
                self.rows.len() > 1 && cells.all(|cell| is_number(cell) || cell.is_empty())
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = widths[column];
                match right[column] {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// An instant as people write it: a midnight as its date.
pub fn day_or_instant(instant: DateTime<Utc>) -> String {
    match instant.time() == NaiveTime::MIN {
        true => instant.date_naive().to_string(),
        false => instant.to_rfc3339_opts(SecondsFormat::AutoSi, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_text_to_the_left() {
        let mut table = Table::new(&["name", "rows"]);
        table.row(["a".into(), "7".into()]);
        table.row(["longer".into(), "1000".into()]);
        assert_eq!(table.text(), "name    rows\na          7\nlonger  1000\n");
        assert_eq!(Table::new(&["a"]).text(), "a\n");
    }
}
