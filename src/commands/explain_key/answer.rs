//! The text form of an explained key.

use std::fmt::Write;

use chrono::{DateTime, Utc};

use super::Explained;
use crate::layout::parent;
use crate::report::Answer;
use crate::report::text_table::Table;

/// A value with its control characters escaped, safe to print on a terminal.
fn printable(value: &str) -> String {
    let escape = |c: char| {
        if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
    };
    value.chars().map(escape).collect()
}

impl Answer for Explained {
    fn text(&self) -> String {
        let key = self.key.iter().map(|(name, value)| format!("{name} {}", printable(value)));
        let mut text = format!(
            "{}  {}: {} changes among {} rows of {} files\n",
            self.pipeline,
            key.collect::<Vec<_>>().join(", "),
            self.changes.len(),
            self.rows,
            self.files
        );
        // A folder common to all files is printed once.
        let mut folders = self.changes.iter().map(|change| parent(&change.file));
        let first = folders.next().unwrap_or_default();
        let folder = if folders.all(|other| other == first) && !first.is_empty() {
            format!("{first}/")
        } else {
            String::new()
        };
        let name = |file: &str| file.strip_prefix(&folder).unwrap_or(file).to_string();
        if !folder.is_empty() {
            let _ = writeln!(text, "in {folder}");
        }
        if let Some(first) = self.changes.first() {
            let mut header = vec!["", "op"];
            header.extend(first.order.iter().map(|(name, _)| name.as_str()));
            header.extend(["day", "row", "file", "run"]);
            let mut table = Table::new(&header);
            for change in &self.changes {
                let mut cells = vec![
                    if change.wins { "wins".into() } else { String::new() },
                    change.op.clone(),
                ];
                cells.extend(change.order.iter().map(|(_, value)| printable(value)));
                cells.push(change.day.map_or(String::new(), |day| day.to_string()));
                cells.push(change.row.to_string());
                cells.push(name(&change.file));
                cells.push(change.run_id.clone().unwrap_or_else(|| "not folded".into()));
                table.row(cells);
            }
            text.push_str(&table.text());
        }
        for change in self.changes.iter().filter(|change| change.wins) {
            let why = change.why.as_deref().unwrap_or_default();
            let _ = writeln!(text, "wins: row {} of {}: {why}", change.row, name(&change.file));
        }
        for row in &self.rows_now {
            let place = match &row.place {
                Some((path, at)) => format!("row {at} of {path}"),
                None => format!("not found in {}", row.partition),
            };
            let time = |time: DateTime<Utc>| time.format("%Y-%m-%d %H:%M:%S%.f").to_string();
            let held = match (row.valid_from, row.valid_to) {
                (None, None) => String::new(),
                (from, to) => format!(
                    ", holds from {} up to {}",
                    from.map_or("ever".into(), time),
                    to.map_or("now".into(), time)
                ),
            };
            let by = row.ended_by.map_or(String::new(), |by| format!(", ended by: {by}"));
            let deleted = row.deleted_at.zip(row.deleted_by.as_ref());
            let deleted = deleted.map(|(at, by)| format!(", deleted at {} by {by}", time(at)));
            let _ = writeln!(text, "now: {place}{held}{by}{}", deleted.unwrap_or_default());
        }
        for row in &self.ended {
            let day = row.day.map_or(String::new(), |day| format!(" of {day}"));
            let file = name(&row.truncate_file);
            let later = match (row.truncate_at, row.truncate_row) {
                (Some(at), _) => format!("a truncate is later, which was set by hand at {at}"),
                (None, Some(at)) => format!("a truncate is later, row {at} of {file}"),
                (None, None) => format!("a full load is later, {file}"),
            };
            let _ = writeln!(text, "no row{day}: {later}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }
}
