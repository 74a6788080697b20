//! The rows of a JSON file: each line's object becomes a row of columns of text.
//!
//! The fields of an object in a field have names with dots, as `source.lsn`. An array is its JSON
//! text, and so is an object whose field `[raw.columns]` declares. The text of a number is kept as it
//! is.

use std::borrow::Cow;
use std::collections::HashMap;

use arrow::datatypes::DataType;
use serde::de::IgnoredAny;

use crate::config::BEFORE_PREFIX;
use crate::error::Error;
use crate::raw::envelope::{UNAVAILABLE, Unavailable, time_unit};
use crate::raw::json::columns::{COLUMNS_MAX, Columns, Kind, Refused};
use crate::raw::json::numbers::{is_double, is_whole, plain};

/// The most objects in each other.
const DEPTH_MAX: usize = 32;
/// The most digits of a whole number of an undeclared type.
const DIGITS_MAX: usize = 38;

/// What a line that is part of an object says.
const ENDS_INSIDE: &str = "ends inside of its object";
const ONE_LINE: &str = "each line must be one JSON object: `jq -c .` writes an object per line, and \
                        `jq -c '.[]'` each element of an array";

/// What is wrong with a line.
#[derive(Debug)]
pub(crate) struct LineFault {
    /// The faulty column, if a single column is at fault.
    pub column: Option<String>,
    /// As in [`crate::raw::bad_rows::BadRow`].
    pub reason: String,
    /// As in [`crate::raw::bad_rows::BadRow`].
    pub hint: &'static str,
}

impl LineFault {
    /// A fault of the line.
    pub(crate) fn of_line(reason: impl Into<String>, hint: &'static str) -> Self {
        LineFault { column: None, reason: reason.into(), hint }
    }

    /// The fault of a name that stands twice.
    pub(crate) fn duplicate(name: &str) -> Self {
        Self::of_column(name, "is in its object twice", "fix the file: a name may stand once")
    }

    /// A fault of one column.
    pub(crate) fn of_column(column: &str, reason: impl Into<String>, hint: &'static str) -> Self {
        LineFault { column: Some(column.into()), reason: reason.into(), hint }
    }
}

/// Reads lines to rows.
pub(crate) struct Rows<'a> {
    /// The columns of the file.
    pub(super) columns: Columns,
    /// `[raw.columns]`.
    declared: &'a [(String, DataType)],
    /// The path of the objects that are being read, with a dot after each.
    path: String,
    depth: usize,
    /// The objects by their path, with a dot after each.
    objects: HashMap<String, Object>,
    /// The number of the row, from 1.
    row: u64,
    /// The mark for a value that the source's log lacks.
    unavailable: Option<&'a Unavailable>,
    /// Whether the row of an event is read, and not its other fields.
    pub(super) reads_row: bool,
    /// Whether that is the row of a delete.
    pub(super) reads_delete: bool,
}

/// An object in a field.
#[derive(Default)]
struct Object {
    /// Whether it is one column.
    is_column: bool,
    /// The row that it was seen in last.
    seen_in: u64,
}

impl<'a> Rows<'a> {
    /// Rows of a file with these columns, of which some types are declared.
    pub(super) fn new(
        columns: Columns,
        declared: &'a [(String, DataType)],
        unavailable: Option<&'a Unavailable>,
    ) -> Self {
        Rows {
            unavailable,
            reads_row: false,
            reads_delete: false,
            columns,
            declared,
            path: String::new(),
            depth: 0,
            objects: HashMap::new(),
            row: 0,
        }
    }

    /// Reads a line as the next row, which [`Rows::columns`] then has to keep or to drop.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub(super) fn read(&mut self, line: &str) -> Result<(), LineFault> {
        self.begin();
        check_is_object(line)?;
        self.fields(line)
    }

    /// Begins the next row.
    pub(super) fn begin(&mut self) {
        self.columns.begin();
        self.row += 1;
        self.path.clear();
        self.depth = 0;
        self.reads_row = false;
    }

    /// Reads fields whose columns have names with a prefix.
    pub(super) fn with_prefix<T>(
        &mut self,
        prefix: &str,
        read: impl FnOnce(&mut Self) -> Result<T, LineFault>,
    ) -> Result<T, LineFault> {
        self.path.clear();
        self.path.push_str(prefix);
        let read = read(self);
        self.path.clear();
        read
    }

    /// The types of the columns: see [`Columns::types`].
    ///
    /// # Errors
    /// Data, for a column whose values have no common type; `file` is named.
    pub(super) fn types(&self, file: &str) -> Result<Vec<Option<DataType>>, Error> {
        let types = self.columns.types(file)?;
        let objects = self.objects.iter().filter(|(_, object)| !object.is_column);
        let mut mixed: Vec<(u64, &str)> = objects
            .filter_map(|(name, _)| Some((self.columns.first_line(name)?, name.as_str())))
            .collect();
        mixed.sort_unstable();
        match mixed.first() {
            None => Ok(types),
            Some((line, name)) => Err(Error::data(format!(
                "column `{name}` is an object in a line of {file}, and another value in line {line}"
            ))
            .hint("declare it as VARCHAR in `[raw.columns]`: then it is JSON text")),
        }
    }

    /// Sets columns to the fields of an object.
    pub(super) fn fields(&mut self, object: &str) -> Result<(), LineFault> {
        each_field(object, &mut |key, value| self.field(key, value))
    }

    /// Sets a column, or those of an object, to the JSON text of a value.
    pub(super) fn field(&mut self, key: &str, value: &str) -> Result<(), LineFault> {
        if key.is_empty() {
            return Err(LineFault::of_line(
                "has a field without a name",
                "give every field a name",
            ));
        }
        if value.starts_with('{') && self.object(key, value)? {
            return Ok(());
        }
        self.column(key, value).map(|_| ())
    }

    /// Sets a column to the JSON text of a value; returns the column.
    pub(super) fn column(&mut self, key: &str, value: &str) -> Result<usize, LineFault> {
        let declared = self.declared;
        let of_name = |name: &str| {
            // The key before an update has the type of the key.
            let name = name.strip_prefix(BEFORE_PREFIX).unwrap_or(name);
            let mut declared = declared.iter();
            let found = declared.find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.map(|(_, data_type)| data_type.clone())
        };
        let column = self.columns.find(&self.path, key, &of_name);
        let column = column.map_err(|refused| self.refused(key, &refused))?;
        if self.unavailable.is_some()
            && time_unit(self.columns.name(column)).is_some()
            && self.columns.declared(column).is_none()
            && value != "null"
            && value.parse::<i64>().is_err()
        {
            let hint = "the times of envelopes are whole numbers since 1970: check the connector";
            return Err(LineFault::of_column(self.columns.name(column), "is not a time", hint));
        }
        match value.as_bytes().first() {
            Some(b't' | b'f') => self.columns.set(column, value, Kind::Boolean),
            Some(b'"') => self.text(column, value)?,
            Some(b'[' | b'{') if self.is_unavailable(|mark| mark.is_json(value)) => {
                self.set_unavailable(column)?;
            }
            Some(b'[' | b'{') => self.columns.set(column, value, Kind::Array),
            Some(b'-' | b'0'..=b'9') => self.number(column, value)?,
            _ => self.columns.set_null(column),
        }
        Ok(column)
    }

    /// Whether a value of an event's row is the mark for a value that the source's log lacks.
    fn is_unavailable(&self, is_mark: impl FnOnce(&Unavailable) -> bool) -> bool {
        self.reads_row && self.unavailable.is_some_and(is_mark)
    }

    /// Sets a column whose value the source's log lacks. A delete needs no value, and neither does a
    /// column that is not used.
    fn set_unavailable(&mut self, column: usize) -> Result<(), LineFault> {
        let matters = |mark: &Unavailable| mark.matters_in(self.columns.name(column));
        if self.reads_delete || !self.unavailable.is_some_and(matters) {
            self.columns.set_null(column);
            return Ok(());
        }
        let (reason, hint) = UNAVAILABLE;
        Err(LineFault::of_column(self.columns.name(column), reason, hint))
    }

    /// Sets the columns of an object in a field; false if it is one column.
    fn object(&mut self, key: &str, value: &str) -> Result<bool, LineFault> {
        let length = self.path.len();
        self.path.push_str(key);
        let declared = self.declared.iter();
        if !self.objects.contains_key(&self.path) {
            let mut names = declared.map(|(name, _)| name);
            let is_column = names.any(|name| name.eq_ignore_ascii_case(&self.path));
            self.objects.insert(self.path.clone(), Object { is_column, seen_in: 0 });
        }
        if let Some(object) = self.objects.get_mut(&self.path) {
            if object.is_column {
                self.path.truncate(length);
                return Ok(false);
            }
            if object.seen_in == self.row {
                return Err(LineFault::duplicate(&self.path));
            }
            object.seen_in = self.row;
        }
        if self.depth == DEPTH_MAX {
            return Err(LineFault::of_column(
                &self.path,
                format!("has more than {DEPTH_MAX} objects in each other"),
                "declare it as VARCHAR in `[raw.columns]`: then it is JSON text",
            ));
        }
        self.path.push('.');
        self.depth += 1;
        self.fields(value)?;
        self.depth -= 1;
        self.path.truncate(length);
        Ok(true)
    }

    fn refused(&self, key: &str, refused: &Refused) -> LineFault {
        let name = format!("{}{key}", self.path);
        match refused {
            Refused::Duplicate => LineFault::duplicate(&name),
            Refused::TooMany => LineFault::of_line(
                format!("has more columns than the {COLUMNS_MAX} that a file may have"),
                "an object whose field is declared as VARCHAR in `[raw.columns]` is one column",
            ),
        }
    }

    fn text(&mut self, column: usize, value: &str) -> Result<(), LineFault> {
        let inner = value.get(1..value.len() - 1).unwrap_or_default();
        let text = if inner.contains('\\') {
            Cow::Owned(unescaped(value).map_err(|error| {
                let reason = format!("is not valid JSON: {}", what(&error));
                LineFault::of_column(self.columns.name(column), reason, "fix the file")
            })?)
        } else {
            Cow::Borrowed(inner)
        };
        if self.is_unavailable(|mark| mark.is_text(&text)) {
            return self.set_unavailable(column);
        }
        self.columns.set(column, &text, Kind::Text);
        Ok(())
    }

    fn number(&mut self, column: usize, value: &str) -> Result<(), LineFault> {
        match self.columns.declared(column) {
            Some(DataType::Decimal128(_, _)) => {
                self.columns.set(column, &plain(value), Kind::Number);
            }
            Some(declared) if declared.is_integer() => {
                self.columns.set(column, &plain(value), Kind::Number);
            }
            Some(_) => self.columns.set(column, value, Kind::Number),
            None => {
                let kind = kind_of(value).map_err(|reason| {
                    let hint = "set the column's type in `[raw.columns]`: VARCHAR, or a DECIMAL that is \
                                wide enough, keeps all digits";
                    LineFault::of_column(self.columns.name(column), reason, hint)
                })?;
                self.columns.set(column, value, kind);
            }
        }
        Ok(())
    }
}

/// The kind of a number.
fn kind_of(number: &str) -> Result<Kind, String> {
    if !is_whole(number) {
        let why = || "has a number with more digits than a DOUBLE".to_string();
        return is_double(number).then_some(Kind::Number).ok_or_else(why);
    }
    let digits = number.trim_start_matches('-').len();
    if digits < 19 || number.parse::<i64>().is_ok() {
        Ok(Kind::Integer)
    } else if digits <= DIGITS_MAX {
        Ok(Kind::Large)
    } else {
        Err(format!("has a whole number with more than {DIGITS_MAX} digits"))
    }
}

/// Checks the start of a line.
pub(super) fn check_is_object(line: &str) -> Result<(), LineFault> {
    match line.trim_ascii_start().as_bytes().first() {
        Some(b'{') => Ok(()),
        Some(b'[') => Err(LineFault::of_line("is an array, not an object", ONE_LINE)),
        _ => Err(LineFault::of_line("is not a JSON object", ONE_LINE)),
    }
}

/// Passes each field of an object on: its name, and the JSON text of its value.
///
/// # Errors
/// What is wrong with the object; the first error of `take`.
pub(crate) fn each_field<'t>(
    object: &'t str,
    take: &mut dyn FnMut(&str, &'t str) -> Result<(), LineFault>,
) -> Result<(), LineFault> {
    let mut text = Scanner { text: object, at: 0 };
    text.expect(b'{', "an object")?;
    if text.next_is(b'}') {
        return text.end();
    }
    loop {
        if text.peek().is_some_and(|byte| byte != b'"') {
            return Err(text.malformed("expected a name in quotes"));
        }
        let name = text.value()?;
        let name = if name.contains('\\') {
            Cow::Owned(unescaped(name).map_err(|_| text.malformed("invalid name"))?)
        } else {
            Cow::Borrowed(&name[1..name.len() - 1])
        };
        text.expect(b':', "`:`")?;
        let value = text.value().map_err(|mut fault| {
            // A line that ends inside of its object has no faulty column.
            let is_whole = fault.reason != ENDS_INSIDE && !name.is_empty();
            fault.column = is_whole.then(|| name.to_string());
            fault
        })?;
        take(&name, value)?;
        if text.next_is(b'}') {
            return text.end();
        }
        text.expect(b',', "`,` or `}`")?;
    }
}

/// The text of a JSON string.
fn unescaped(string: &str) -> serde_json::Result<String> {
    serde_json::from_str(string)
}

/// Splits an object into the texts of its names and values. `serde_json` finds the end of each, and
/// checks it.
struct Scanner<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Scanner<'t> {
    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Skips a byte, if it is the next one.
    fn next_is(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, byte: u8, expected: &str) -> Result<(), LineFault> {
        match self.peek() {
            Some(next) if next == byte => {
                self.at += 1;
                Ok(())
            }
            Some(_) => Err(self.malformed(&format!("expected {expected}"))),
            None => Err(LineFault::of_line(ENDS_INSIDE, ONE_LINE)),
        }
    }

    fn value(&mut self) -> Result<&'t str, LineFault> {
        self.peek();
        let rest = &self.text[self.at..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => {
                let value = &rest[..values.byte_offset()];
                self.at += value.len();
                Ok(value)
            }
            Some(Err(error)) if !error.is_eof() => {
                self.at += error.column().saturating_sub(1);
                Err(self.malformed(&what(&error)))
            }
            _ => Err(LineFault::of_line(ENDS_INSIDE, ONE_LINE)),
        }
    }

    fn end(&mut self) -> Result<(), LineFault> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(LineFault::of_line("has more than its object", ONE_LINE)),
        }
    }

    /// The fault of text that is not JSON.
    fn malformed(&self, what: &str) -> LineFault {
        let before = self.text.get(..self.at);
        let (character, rest) = match before {
            Some(before) => (before.chars().count() + 1, &self.text[before.len()..]),
            None => (self.at + 1, ""),
        };
        let is_no_number =
            ["NaN", "nan", "Infinity", "inf"].iter().any(|word| rest.starts_with(word));
        LineFault::of_line(
            format!("is not valid JSON at character {character}: {what}"),
            if is_no_number {
                "JSON has no NaN and no Infinity: have them written as null or as text"
            } else {
                "fix the file: each line must be one valid JSON object"
            },
        )
    }
}

/// What an error of `serde_json` says, without the position; it has no value of the file.
fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.to_string())
}

/// The fault of the last line of a file that does not end with a line feed.
pub(super) fn cut_off(fault: LineFault) -> LineFault {
    if fault.reason != ENDS_INSIDE {
        return fault;
    }
    LineFault::of_line(
        "is cut off: the file ends inside of an object",
        "restore the file from its source",
    )
}
