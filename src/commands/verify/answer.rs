//! The text form of a comparison.

use std::fmt::Write;

use super::{KeyDifference, TruncateDifference, Verified, VerifiedAggregate};
use crate::report::text_table::{Table, day_or_instant};
use crate::report::{Answer, size};

/// How many differences of a kind are shown.
const SHOWN: usize = 10;

impl Answer for Verified {
    fn text(&self) -> String {
        let verdict = if self.is_equal { "no difference" } else { "DIFFERENT" };
        let mut text = format!("{}: {verdict} from {}\n", self.pipeline, self.against);
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<10} {value}");
        };
        if let Some(days) = &self.days {
            line("days", format!("{} to {}", day_or_instant(days.start), day_or_instant(days.end)));
        }
        if self.files > 0 {
            line("folded", format!("{} files, {} rows", self.files, self.rows_read));
        }
        line("rows", format!("{} expected, {} found", self.rows_expected, self.rows_found));
        let differ = self.partitions_different.len();
        line("partitions", format!("{}, {differ} of them differ", self.partitions));
        for (name, paths) in [
            ("missing", &self.files_missing),
            ("damaged", &self.files_damaged),
            ("state", &self.state_files_damaged),
            ("unknown", &self.files_unknown),
            ("no column", &self.columns_missing),
            ("unfit", &self.columns_unfit),
        ] {
            for path in paths.iter().take(SHOWN) {
                line(name, path.clone());
            }
            if paths.len() > SHOWN {
                line(name, format!("and {} more", paths.len() - SHOWN));
            }
        }
        if let Some(first) = self.balance_days_different.first() {
            let days = self.balance_days_different.len();
            line("balance", format!("{days} days differ, such as {first}"));
        }
        for TruncateDifference { file, row, why } in self.truncates_different.iter().take(SHOWN) {
            let row = if *row == 0 { String::new() } else { format!("row {row} of ") };
            line("truncate", format!("{row}{file} {why}"));
        }
        if self.truncates_different.len() > SHOWN {
            line("truncate", format!("and {} more", self.truncates_different.len() - SHOWN));
        }
        if let Some(first) = &self.first_difference {
            line("first key", first.text());
        }
        if self.keys_different > 0 {
            line("keys", format!("{} differ, such as:", self.keys_different));
        }
        for difference in self.key_differences.iter().take(SHOWN) {
            line("key", difference.text());
        }
        for aggregate in &self.aggregates {
            line("aggregate", aggregate.text());
        }
        for note in &self.notes {
            line("note", note.clone());
        }
        line("took", format!("{:.2} s, {} peak", self.seconds, size(self.peak_memory_bytes)));
        self.write_differences(&mut text);
        text
    }

    fn exit_code(&self) -> u8 {
        u8::from(!self.is_equal)
    }
}

impl Verified {
    /// Tables of the partitions and days that differ.
    fn write_differences(&self, text: &mut String) {
        let differ = self.partitions_different.len();
        if differ > 0 {
            let mut table =
                Table::new(&["partition", "expected", "found", "hash expected", "hash found"]);
            for one in self.partitions_different.iter().take(SHOWN) {
                table.row([
                    one.partition.clone(),
                    one.rows_expected.to_string(),
                    one.rows_found.to_string(),
                    one.hash_expected.clone(),
                    one.hash_found.clone(),
                ]);
            }
            text.push_str(&table.text());
            if differ > SHOWN {
                let _ = writeln!(text, "and {} more", differ - SHOWN);
            }
        }
        for (what, days) in [("rows", &self.days_different), ("state", &self.state_days_different)]
        {
            if days.is_empty() {
                continue;
            }
            let mut table =
                Table::new(&["day", &format!("{what} expected"), &format!("{what} found")]);
            for day in days.iter().take(SHOWN) {
                table.row([
                    day.day.map_or("none".into(), |day| day.to_string()),
                    day.rows_expected.to_string(),
                    day.rows_found.to_string(),
                ]);
            }
            text.push_str(&table.text());
        }
    }
}

impl KeyDifference {
    /// The key, where it is, and how its row differs, in one line.
    fn text(&self) -> String {
        let key = self.key.iter().map(|(name, value)| format!("{name} {value}"));
        let key = key.collect::<Vec<_>>().join(", ");
        let place = if self.partition.is_empty() {
            String::new()
        } else {
            format!(" in {}", self.partition)
        };
        format!("{key}{place}: {}", self.why)
    }
}

impl VerifiedAggregate {
    /// What the comparison of an aggregate found, in one line.
    fn text(&self) -> String {
        let differ = self.days_different.len();
        let mut text = format!("{}: {} days, {differ} of them differ", self.name, self.days);
        if let Some(first) = self.days_different.first() {
            let _ = write!(text, ", such as {}", first.partition);
        }
        for path in &self.files_missing {
            let _ = write!(text, "; {path} is missing");
        }
        for path in &self.files_damaged {
            let _ = write!(text, "; {path} is damaged");
        }
        for path in &self.files_unknown {
            let _ = write!(text, "; {path} is unknown");
        }
        if let Some(note) = &self.note {
            let _ = write!(text, "; {note}");
        }
        text
    }
}
