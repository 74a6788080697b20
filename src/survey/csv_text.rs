//! How CSV files are written, found out from the first lines of some of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;

use crate::config::CsvForm;
use crate::error::Result;
use crate::raw::csv::records::{Field as RecordField, Records};
use crate::survey::operations::are_operations;
use crate::types::times::parse_time;

/// The delimiters that are tried, the usual ones first.
const DELIMITERS: [u8; 7] = [b',', b'|', b'\t', b';', 1, b'^', b'~'];
/// The most lines of a file that are looked at.
const LINES_MAX: usize = 500;
/// The most characters of a column's name.
const NAME_MAX: usize = 63;
/// The texts that stand for null in tools that do not leave the field empty.
const NULLS: [&str; 4] = ["NULL", "\\N", "null", "(null)"];

/// The first bytes of a CSV file, up to the end of a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    pub(super) text: &'a [u8],
    pub(super) is_load: bool,
}

/// How CSV files are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The form of the files.
    pub(super) form: CsvForm,
    /// Without a header: the number of the columns of CDC files, or of full loads if there are no others.
    pub(super) columns: usize,
    /// Without a header: whether the first column of CDC files is an operation.
    pub(super) has_op: bool,
    /// Whether it cannot be told if the first lines are names.
    pub(super) is_header_unclear: bool,
}

/// A field: its text, and whether it is quoted.
type Field = (String, bool);
/// The lines of a file.
type Lines = Vec<Vec<Field>>;

/// Finds out how files are written; `None` if no file has a line.
///
/// # Errors
/// Data, when a line is too long.
pub(super) fn find(heads: &[Head]) -> Result<Option<Written>> {
    let mut best: Option<(f64, CsvForm, Vec<Lines>)> = None;
    for delimiter in DELIMITERS {
        for (escape, unquoted) in [(None, false), (Some(b'\\'), false), (None, true)] {
            let form = CsvForm { delimiter, escape, unquoted, ..CsvForm::default() };
            let (score, lines) = read(heads, &form)?;
            if best.as_ref().is_none_or(|(known, ..)| score > *known) {
                best = Some((score, form, lines));
            }
        }
    }
    let Some((_, form, lines)) =
        best.filter(|(.., lines)| lines.iter().any(|file| !file.is_empty()))
    else {
        return Ok(None);
    };
    let files: Vec<(bool, &[Vec<Field>])> =
        heads.iter().map(|head| head.is_load).zip(lines.iter().map(Vec::as_slice)).collect();
    let header = has_header(&files);
    let is_header_unclear = header.is_none();
    let header = header.unwrap_or(false);
    let rows = || {
        files.iter().flat_map(|(is_load, lines)| {
            let from = usize::from(header).min(lines.len());
            lines[from..].iter().map(move |line| (*is_load, line))
        })
    };
    let are_ops = |of_loads: bool| {
        let lines = rows().filter(|(is_load, _)| *is_load == of_loads).map(|(_, line)| line);
        are_operations(lines.map(|line| line.first().map(|(text, _)| text.as_str())))
    };
    let has_changes = rows().any(|(is_load, _)| !is_load);
    let has_op = are_ops(false);
    let width = |of_loads: bool| {
        let lines = rows().filter(|(is_load, _)| *is_load == of_loads);
        most_common(lines.map(|(_, line)| line.len()))
    };
    let op_in_full_load = !header
        && width(true).is_some_and(|loads| width(false).is_none_or(|changes| changes == loads))
        && are_ops(true);
    let null = null_text(rows().flat_map(|(_, line)| line));
    let columns = width(!has_changes).unwrap_or(0);
    let form = CsvForm { header, null, op_in_full_load, ..form };
    Ok(Some(Written { form, columns, has_op: has_op || op_in_full_load, is_header_unclear }))
}

/// Reads the lines of each file by a form, and says how well it fits: the share of lines with the usual number of fields, if
/// that is more than one, and which form comes first where two fit alike.
fn read(heads: &[Head], form: &CsvForm) -> Result<(f64, Vec<Lines>)> {
    let mut files = Vec::new();
    let (mut fitting, mut all, mut malformed, mut most) = (0usize, 0usize, 0usize, 1usize);
    for head in heads {
        let mut records = Records::new("", Cursor::new(head.text), form);
        let mut lines = Lines::new();
        while lines.len() < LINES_MAX && records.next_record()?.is_some() {
            if records.is_cut_off {
                break;
            }
            let is_malformed = |field: &RecordField| field.is_malformed || field.has_stray_escape;
            malformed += usize::from(records.fields.iter().any(is_malformed));
            let field = |(number, field): (usize, &RecordField)| {
                (records.text(number).unwrap_or_default().to_string(), field.is_quoted)
            };
            lines.push(records.fields.iter().enumerate().map(field).collect());
        }
        let usual = most_common(lines.iter().map(Vec::len)).unwrap_or(1);
        if usual > 1 {
            fitting += lines.iter().filter(|line| line.len() == usual).count();
            most = most.max(usual);
        }
        all += lines.len();
        files.push(lines);
    }
    let share = |part: usize| part as f64 / all.max(1) as f64;
    // Among forms that fit alike, the one that is tried first wins; more fields count a little.
    let score = share(fitting) - share(malformed) + (most as f64).ln() / 100.0;
    Ok((score, files))
}

/// Whether the first lines name the columns; `None` if that cannot be told. Of several files they are the same in all, but for an
/// operation. Of one file, some column has only numbers or times below it.
fn has_header(files: &[(bool, &[Vec<Field>])]) -> Option<bool> {
    let firsts: Vec<&[Field]> =
        files.iter().filter_map(|(_, lines)| lines.first()).map(Vec::as_slice).collect();
    let texts = |line: &[Field]| {
        line.iter().map(|(text, _)| text.trim().to_ascii_lowercase()).collect::<Vec<_>>()
    };
    let is_value =
        |text: &str| text.parse::<f64>().is_ok() || parse_time(text, chrono_tz::UTC).is_some();
    let is_name = |text: &String| {
        let is_long = text.chars().count() > NAME_MAX;
        !text.is_empty() && !is_long && !is_value(text) && !text.contains(char::is_control)
    };
    let are_names = |line: &[Field]| {
        let texts = texts(line);
        let distinct: BTreeSet<&String> = texts.iter().collect();
        texts.iter().all(is_name) && distinct.len() == texts.len()
    };
    if firsts.is_empty() || !firsts.iter().all(|line| are_names(line)) {
        return Some(false);
    }
    let without_op = |line: &[Field]| {
        let mut texts = texts(line);
        texts.retain(|text| text != "op");
        texts
    };
    if firsts.iter().any(|line| texts(line).contains(&"op".to_string())) {
        return Some(true);
    }
    if firsts.len() > 1 {
        return Some(firsts.windows(2).all(|two| without_op(two[0]) == without_op(two[1])));
    }
    let below = || files.iter().flat_map(|(_, lines)| lines.iter().skip(1));
    let has_values = |number: usize| {
        let mut values = below()
            .filter_map(|line| line.get(number))
            .map(|(text, _)| text.as_str())
            .filter(|text| !text.is_empty() && !NULLS.contains(text))
            .peekable();
        values.peek().is_some() && values.all(is_value)
    };
    let first_fields = files.iter().flat_map(|(_, lines)| lines.iter().map(|line| line.first()));
    if are_operations(first_fields.map(|first| first.map(|(text, _)| text.as_str()))) {
        // The first line is one of them.
        return Some(false);
    }
    (0..firsts[0].len()).any(has_values).then_some(true)
}

/// The text that stands for null, if one of the usual ones stands without quotes, and an empty field does not.
fn null_text<'a>(fields: impl Iterator<Item = &'a Field>) -> Option<String> {
    let (mut found, mut has_empty) = (None, false);
    for (text, is_quoted) in fields {
        if *is_quoted {
            continue;
        }
        has_empty |= text.is_empty();
        found = found.or_else(|| NULLS.into_iter().find(|null| null == text));
    }
    found.filter(|_| !has_empty).map(String::from)
}

/// The most common of some numbers; of several the greatest.
fn most_common(numbers: impl Iterator<Item = usize>) -> Option<usize> {
    let mut counts = BTreeMap::new();
    for number in numbers {
        *counts.entry(number).or_insert(0usize) += 1;
    }
    counts.into_iter().max_by_key(|(number, count)| (*count, *number)).map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(bool, &str)]) -> Written {
        let heads: Vec<Head> = files
            .iter()
            .map(|(is_load, text)| Head { text: text.as_bytes(), is_load: *is_load })
            .collect();
        find(&heads).expect("read").expect("lines")
    }

    #[test]
    fn the_form_of_dms_is_found() {
        let written = found(&[(true, "1,a,\n2,\"b, c\",x\n"), (false, "U,1,a,y\nD,2,,\n")]);
        assert_eq!(
            written,
            Written {
                form: CsvForm::default(),
                columns: 4,
                has_op: true,
                is_header_unclear: false
            }
        );
        let written = found(&[(true, "1|a\n2|\"b|c\"\n"), (false, "U|1|NULL\n")]);
        let form = CsvForm { delimiter: b'|', null: Some("NULL".into()), ..CsvForm::default() };
        assert_eq!(written, Written { form, columns: 3, has_op: true, is_header_unclear: false });
        let written = found(&[(true, "I,1,a\nI,2,b\n"), (false, "U,1,c\n")]);
        let form = CsvForm { op_in_full_load: true, ..CsvForm::default() };
        assert_eq!(written, Written { form, columns: 3, has_op: true, is_header_unclear: false });
    }

    #[test]
    fn a_header_is_found_by_its_names() {
        let written = found(&[
            (true, "ts,id,note\n2024-01-01 00:00:00,1,a\n"),
            (false, "Op,ts,id,note\nU,2024-01-02 00:00:00,1,b\n"),
        ]);
        assert!(written.form.header);
        assert!(found(&[(false, "id,name\n1,Ann\n2,Bob\n")]).form.header);
        let texts = found(&[(true, "Ann,Basel\nBob,Bern\n")]);
        assert!(!texts.form.header && texts.is_header_unclear);
        assert!(!found(&[(true, "Ann,Basel\nBob,Bern\n"), (false, "Eve,Zug\n")]).form.header);
        assert!(found(&[(true, "id,price (EUR)\n1,2.50\n")]).form.header);
        assert!(!found(&[(false, "insert,ann\nupdate,bob\n")]).form.header);
        assert!(!found(&[(true, "1,Ann\n"), (false, "I,2,Bob\n")]).form.header);
    }

    #[test]
    fn quotes_that_mean_nothing_are_found() {
        let lines = "I,1,5\" pipe\nI,2,a \"b\nU,1,6\" pipe\n";
        assert!(!found(&[(false, lines)]).form.unquoted, "such quotes are text in either form");
        let lines = "I,1,\"a \\\"b\\\", c\"\nI,2,\"d\"\nU,1,\"e\"\n";
        assert_eq!(found(&[(false, lines)]).form.escape, Some(b'\\'));
        let lines = "I,1,\"a\" b\nI,2,\"c\" d\nU,1,\"e\" f\n";
        assert!(found(&[(false, lines)]).form.unquoted);
    }
}
