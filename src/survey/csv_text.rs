//! How CSV files are written, found out from the first lines of some of them.

use std::io::Cursor;

use crate::config::CsvForm;
use crate::error::Result;
use crate::raw::csv::records::Records;

/// The delimiters that are tried, the usual ones first.
const DELIMITERS: [u8; 7] = [b',', b'|', b'\t', b';', 1, b'^', b'~'];
/// The most lines of a file that are looked at.
const LINES_MAX: usize = 500;
/// The texts that stand for null in tools that do not leave the field empty.
const NULLS: [&str; 4] = ["NULL", "\\N", "null", "(null)"];
/// The operations with which lines of CDC files begin.
const OPERATIONS: [&str; 3] = ["I", "U", "D"];

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
        for unquoted in [false, true] {
            let form = CsvForm { delimiter, unquoted, ..CsvForm::default() };
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
    let rows = || {
        files.iter().flat_map(|(is_load, lines)| {
            let from = usize::from(header).min(lines.len());
            lines[from..].iter().map(move |line| (*is_load, line))
        })
    };
    let is_op =
        |line: &[Field]| line.first().is_some_and(|(text, _)| OPERATIONS.contains(&text.as_str()));
    let has_changes = rows().any(|(is_load, _)| !is_load);
    let has_op = rows().filter(|(is_load, _)| !is_load).all(|(_, line)| is_op(line)) && has_changes;
    let width = |of_loads: bool| {
        let lines = rows().filter(|(is_load, _)| *is_load == of_loads);
        most_common(lines.map(|(_, line)| line.len()))
    };
    let op_in_full_load = !header
        && width(true).is_some_and(|loads| width(false).is_none_or(|changes| changes == loads))
        && rows().filter(|(is_load, _)| *is_load).all(|(_, line)| is_op(line));
    let null = null_text(rows().flat_map(|(_, line)| line));
    let columns = width(!has_changes).unwrap_or(0);
    let form = CsvForm { header, null, op_in_full_load, ..form };
    Ok(Some(Written { form, columns, has_op: has_op || op_in_full_load }))
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
            malformed += usize::from(records.fields.iter().any(|field| field.is_malformed));
            let field = |(number, field): (usize, &crate::raw::csv::records::Field)| {
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

/// Whether the first lines name the columns: names, which are distinct, and which are the same in all files, but for an
/// operation; or, of one file, of other kinds than the values below them.
fn has_header(files: &[(bool, &[Vec<Field>])]) -> bool {
    let firsts: Vec<&[Field]> =
        files.iter().filter_map(|(_, lines)| lines.first()).map(Vec::as_slice).collect();
    let texts =
        |line: &[Field]| line.iter().map(|(text, _)| text.to_ascii_lowercase()).collect::<Vec<_>>();
    let is_name = |text: &String| {
        let mut characters = text.chars();
        let first = characters.next();
        first.is_some_and(|first| first.is_alphabetic() || first == '_')
            && text.chars().all(|c| c.is_alphanumeric() || "_$.- ".contains(c))
    };
    let are_names = |line: &[Field]| {
        let texts = texts(line);
        let distinct: std::collections::BTreeSet<&String> = texts.iter().collect();
        texts.iter().all(is_name) && distinct.len() == texts.len()
    };
    if firsts.is_empty() || !firsts.iter().all(|line| are_names(line)) {
        return false;
    }
    let without_op = |line: &[Field]| {
        let mut texts = texts(line);
        texts.retain(|text| text != "op");
        texts
    };
    let rest = || files.iter().flat_map(|(_, lines)| lines.iter().skip(1));
    let has_op = firsts.iter().any(|line| texts(line).contains(&"op".to_string()));
    let repeats =
        firsts.len() > 1 && firsts.windows(2).all(|two| without_op(two[0]) == without_op(two[1]));
    // No column has its own name as a value, and some value is no name.
    let is_repeated_below = rest().any(|line| texts(line) == texts(firsts[0]));
    let has_other_kinds = rest().flatten().any(|(text, _)| !text.is_empty() && !is_name(text));
    (repeats || has_op || has_other_kinds) && !is_repeated_below
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
    let mut counts = std::collections::BTreeMap::new();
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
        assert_eq!(written, Written { form: CsvForm::default(), columns: 4, has_op: true });
        let written = found(&[(true, "1|a\n2|\"b|c\"\n"), (false, "U|1|NULL\n")]);
        let form = CsvForm { delimiter: b'|', null: Some("NULL".into()), ..CsvForm::default() };
        assert_eq!(written, Written { form, columns: 3, has_op: true });
        let written = found(&[(true, "I,1,a\nI,2,b\n"), (false, "U,1,c\n")]);
        let form = CsvForm { op_in_full_load: true, ..CsvForm::default() };
        assert_eq!(written, Written { form, columns: 3, has_op: true });
    }

    #[test]
    fn a_header_is_found_by_its_names() {
        let written = found(&[
            (true, "ts,id,note\n2024-01-01 00:00:00,1,a\n"),
            (false, "Op,ts,id,note\nU,2024-01-02 00:00:00,1,b\n"),
        ]);
        assert!(written.form.header);
        assert!(found(&[(false, "id,name\n1,Ann\n2,Bob\n")]).form.header);
        assert!(!found(&[(true, "Ann,Basel\nBob,Bern\n")]).form.header);
        assert!(!found(&[(true, "1,Ann\n"), (false, "I,2,Bob\n")]).form.header);
    }

    #[test]
    fn quotes_that_mean_nothing_are_found() {
        let lines = "I,1,5\" pipe\nI,2,a \"b\nU,1,6\" pipe\n";
        assert!(!found(&[(false, lines)]).form.unquoted, "such quotes are text in either form");
        let lines = "I,1,\"a\" b\nI,2,\"c\" d\nU,1,\"e\" f\n";
        assert!(found(&[(false, lines)]).form.unquoted);
    }
}
