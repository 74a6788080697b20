//! What is wrong with a record before its values are cast.

use std::io::Read;

use crate::config::CsvForm;
use crate::raw::csv::records::Records;

/// The fault of a record.
pub(super) struct Fault {
    /// The number of the faulty column, if a single column is at fault.
    pub(super) column: Option<usize>,
    /// What is wrong, as the rest of a sentence that begins with the column or the line.
    pub(super) reason: String,
    pub(super) hint: &'static str,
}

impl Fault {
    pub(super) fn of_line(reason: impl Into<String>, hint: &'static str) -> Self {
        Fault { column: None, reason: reason.into(), hint }
    }

    fn of_column(column: usize, reason: &str, hint: &'static str) -> Self {
        Fault { column: Some(column), reason: reason.into(), hint }
    }
}

/// The fault of a record that should have between `least` and `expected` fields.
pub(super) fn of_record(
    record: &Records<'_, impl Read>,
    csv: &CsvForm,
    least: usize,
    expected: usize,
) -> Option<Fault> {
    let found = record.fields_found;
    if record.is_cut_off && record.is_open() {
        return Some(Fault::of_line(
            "has a quote that is not closed",
            "fix the file; if quotes are ordinary text, set raw.csv_quoted = false",
        ));
    }
    if record.is_cut_off && csv.row_delimiter != b'\n' {
        return Some(Fault::of_line(
            "is cut off: the file does not end with the row delimiter",
            "restore the file from its source; check `raw.csv_row_delimiter`",
        ));
    }
    if record.is_cut_off {
        return Some(Fault::of_line(
            "is cut off: the file does not end with a line feed",
            "restore the file from its source; if it is complete, end its last line with a line feed",
        ));
    }
    if let Some(number) = record.fields.iter().position(|field| field.is_malformed) {
        let column = number.min(expected.saturating_sub(1));
        if record.fields[number].has_stray_escape {
            return Some(Fault::of_column(
                column,
                "has an escape character before neither a quote nor an escape character",
                "write the escape character twice where it is text; check `raw.csv_escape`",
            ));
        }
        let hint = match csv.escape {
            None => "write a quote inside a quoted field twice: \"a \"\"b\"\" c\"",
            Some(_) => {
                "write the escape character before a quote inside a quoted field; check \
                 `raw.csv_quote` and `raw.csv_escape`"
            }
        };
        return Some(Fault::of_column(column, "has an unexpected quote", hint));
    }
    if found > expected || found < least {
        let wanted =
            if least < expected { format!("{least} to {expected}") } else { expected.to_string() };
        let reason = format!("has {found} fields where {wanted} are expected");
        let is_transaction = matches!(record.text(0), Some("B" | "C" | "b" | "c"));
        let usual = if is_transaction && !csv.header {
            "the line looks like the begin or end of a transaction: for files of all tables of a \
             task (PreserveTransactions), set raw.layout = \"transactions\" and raw.table"
        } else if found < expected && !csv.null_in_short_lines && !csv.header {
            "check `raw.columns`, `raw.csv_op_in_full_load` and the file; if the last columns were \
             added later, set raw.csv_short_lines = \"null\""
        } else if found > expected && !csv.header {
            "check `raw.columns`, `raw.csv_op_in_full_load` and the file; if columns were added to the \
             table, add them at the end of `raw.columns`, and set raw.csv_short_lines = \"null\""
        } else {
            "check `raw.columns`, `raw.csv_op_in_full_load` and the file"
        };
        return Some(Fault::of_line(reason, record.other_delimiter(expected).unwrap_or(usual)));
    }
    let number = (0..found).find(|number| record.text(*number).is_none())?;
    Some(Fault::of_column(number, "is not UTF-8", "fix the file: text must be UTF-8"))
}

/// The fault of a record with a value that the source's log lacks, marked by `raw.csv_no_sup_value`.
/// `lacks` says for which columns that is a fault.
pub(super) fn of_missing_values(
    record: &Records<'_, impl Read>,
    csv: &CsvForm,
    lacks: impl Fn(usize) -> bool,
) -> Option<Fault> {
    let mark = csv.no_sup_value.as_deref()?;
    let mut numbers = 0..record.fields.len();
    let number = numbers.find(|number| record.text(*number) == Some(mark) && lacks(*number))?;
    Some(Fault::of_column(
        number,
        "has a value that the source's log lacks (`raw.csv_no_sup_value`)",
        "let the source log all columns (supplemental logging), and load the row again",
    ))
}
