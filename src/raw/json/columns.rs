//! The columns of a JSON file while it is read: the text of their values, and the kinds of JSON
//! values that they have, from which the type of a column follows.
//!
//! | kinds of a column's values in the whole file | type |
//! |---|---|
//! | none but null | Null |
//! | true, false | Boolean |
//! | whole numbers | Int64; Decimal128(38, 0) if one is larger |
//! | numbers, some with a fraction or an exponent | Float64 |
//! | text, arrays | Utf8View |
//!
//! Any other mixture has no type. A type depends on the file alone, and the types of several files
//! widen as those of Parquet files do.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanBufferBuilder, StringArray};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::DataType;

use crate::error::{Error, Result};

/// The most columns that a file can have.
pub(super) const COLUMNS_MAX: usize = 10_000;

/// A kind of JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// true and false.
    Boolean,
    /// A whole number of 64 bits.
    Integer,
    /// A whole number of up to 38 digits.
    Large,
    /// A number with a fraction or an exponent.
    Number,
    /// A text.
    Text,
    /// An array, as JSON text.
    Array,
}

const KINDS: [Kind; 6] =
    [Kind::Boolean, Kind::Integer, Kind::Large, Kind::Number, Kind::Text, Kind::Array];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Boolean => "true or false",
            Kind::Integer | Kind::Large | Kind::Number => "a number",
            Kind::Text => "a text",
            Kind::Array => "an array",
        }
    }
}

/// One column.
struct Column {
    name: String,
    /// Its type in `[raw.columns]`.
    declared: Option<DataType>,
    /// Whether a row that was kept has it.
    is_kept: bool,
    /// Per kind, the first line of the file that has it; 0 where none has.
    lines: [u64; KINDS.len()],
    /// The text of its values so far in this batch; it may be shorter than the batch.
    texts: Texts,
    /// The number of the row that set it last, plus one.
    set_in: u64,
}

#[derive(Default)]
struct Texts {
    bytes: Vec<u8>,
    ends: Vec<i32>,
    valid: Vec<bool>,
}

impl Texts {
    /// Adds nulls up to a number of values.
    fn fill(&mut self, rows: usize) {
        let end = self.bytes.len() as i32;
        self.ends.resize(rows, end);
        self.valid.resize(rows, false);
    }

    /// Drops the values after a number of them.
    fn truncate(&mut self, rows: usize) {
        if self.ends.len() > rows {
            self.ends.truncate(rows);
            self.valid.truncate(rows);
            self.bytes.truncate(self.ends.last().map_or(0, |end| *end as usize));
        }
    }

    fn finish(&mut self, rows: usize) -> ArrayRef {
        self.fill(rows);
        let Texts { bytes, ends, valid } = std::mem::take(self);
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        offsets.extend(ends);
        let mut nulls = BooleanBufferBuilder::new(rows);
        nulls.append_slice(&valid);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let nulls = Some(NullBuffer::new(nulls.finish())).filter(|nulls| nulls.null_count() > 0);
        Arc::new(StringArray::new(offsets, Buffer::from_vec(bytes), nulls))
    }
}

/// The columns of a file.
#[derive(Default)]
pub(super) struct Columns {
    columns: Vec<Column>,
    indexes: HashMap<String, usize>,
    /// The column that most likely comes next: objects of a file mostly have the same order.
    next: usize,
    /// The columns that the current row has, and the kinds of their values; `None` for null.
    row: Vec<(usize, Option<Kind>)>,
    /// The number of rows of the batch.
    pub(super) rows: usize,
    /// All rows of the file so far, plus one.
    row_number: u64,
    /// The size of the batch's text.
    bytes: usize,
}

/// Why a value cannot be added to a row.
pub(super) enum Refused {
    /// The row has a value in this column.
    Duplicate,
    /// There are too many columns.
    TooMany,
}

impl Columns {
    /// Starts a row.
    pub(super) fn begin(&mut self) {
        self.row.clear();
        self.next = 0;
        self.row_number += 1;
    }

    /// Keeps the values of the row; `line` is its line.
    pub(super) fn keep(&mut self, line: u64) {
        for (column, kind) in &self.row {
            let column = &mut self.columns[*column];
            column.is_kept = true;
            if let Some(kind) = kind {
                let first = &mut column.lines[*kind as usize];
                if *first == 0 {
                    *first = line;
                }
            }
        }
        self.rows += 1;
    }

    /// Replaces the row by a row of nulls.
    pub(super) fn drop_row(&mut self) {
        for (column, _) in &self.row {
            self.columns[*column].texts.truncate(self.rows);
        }
        self.rows += 1;
    }

    /// The column of a name, which is a prefix and a key; adds it if there is none.
    pub(super) fn find(
        &mut self,
        prefix: &str,
        key: &str,
        declared: &dyn Fn(&str) -> Option<DataType>,
    ) -> Result<usize, Refused> {
        let is_next = self.columns.get(self.next).is_some_and(|column| {
            let name = &column.name;
            name.len() == prefix.len() + key.len()
                && name.starts_with(prefix)
                && name.ends_with(key)
        });
        let column = if is_next {
            self.next
        } else {
            let name = format!("{prefix}{key}");
            match self.indexes.get(&name) {
                Some(known) => *known,
                None if self.columns.len() >= COLUMNS_MAX => return Err(Refused::TooMany),
                None => {
                    let declared = declared(&name);
                    self.indexes.insert(name.clone(), self.columns.len());
                    self.columns.push(Column {
                        name,
                        declared,
                        is_kept: false,
                        lines: [0; KINDS.len()],
                        texts: Texts::default(),
                        set_in: 0,
                    });
                    self.columns.len() - 1
                }
            }
        };
        self.next = column + 1;
        let set_in = &mut self.columns[column].set_in;
        if *set_in == self.row_number {
            return Err(Refused::Duplicate);
        }
        *set_in = self.row_number;
        Ok(column)
    }

    /// The name of a column.
    pub(super) fn name(&self, column: usize) -> &str {
        &self.columns[column].name
    }

    /// The type of a column in `[raw.columns]`.
    pub(super) fn declared(&self, column: usize) -> Option<&DataType> {
        self.columns[column].declared.as_ref()
    }

    /// Sets a column of the row.
    pub(super) fn set(&mut self, column: usize, text: &str, kind: Kind) {
        let texts = &mut self.columns[column].texts;
        texts.fill(self.rows);
        texts.bytes.extend_from_slice(text.as_bytes());
        texts.ends.push(texts.bytes.len() as i32);
        texts.valid.push(true);
        self.bytes += text.len();
        self.row.push((column, Some(kind)));
    }

    /// Sets a column of the row to null.
    pub(super) fn set_null(&mut self, column: usize) {
        self.row.push((column, None));
    }

    /// Takes back what the row has set in a column.
    pub(super) fn unset(&mut self, column: usize) {
        self.row.retain(|(set, _)| *set != column);
        self.columns[column].texts.truncate(self.rows);
    }

    /// A column, by its name in any case.
    pub(super) fn in_any_case(&self, name: &str) -> Option<usize> {
        let is_it = |column: &Column| column.name.eq_ignore_ascii_case(name);
        self.indexes.get(name).copied().or_else(|| self.columns.iter().position(is_it))
    }

    /// The first line in which a column has a value; `None` if it has none.
    pub(super) fn first_line(&self, name: &str) -> Option<u64> {
        let column = &self.columns[*self.indexes.get(name)?];
        column.lines.iter().copied().filter(|line| *line > 0).min()
    }

    /// The text that the row has set in a column.
    pub(super) fn text(&self, column: usize) -> Option<&str> {
        let texts = &self.columns[column].texts;
        if texts.ends.len() <= self.rows {
            return None;
        }
        let start = self.rows.checked_sub(1).map_or(0, |before| texts.ends[before] as usize);
        std::str::from_utf8(&texts.bytes[start..]).ok()
    }

    /// The size of the batch in memory, in bytes.
    pub(super) fn batch_bytes(&self) -> usize {
        self.bytes + self.rows * self.columns.len() * 5
    }

    /// Ends the batch: its columns of text, in the order in which they were found.
    pub(super) fn finish(&mut self) -> Vec<ArrayRef> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        self.columns.iter_mut().map(|column| column.texts.finish(rows)).collect()
    }

    /// The types of the columns; `None` for a column that only bad rows have, and for one of nulls that
    /// elsewhere is an object.
    ///
    /// # Errors
    /// Data, for a column whose values have no common type; `file` is named.
    pub(super) fn types(&self, file: &str) -> Result<Vec<Option<DataType>>> {
        let is_object = |name: &str| {
            let mut others = self.columns.iter();
            others.any(|other| {
                other.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
            })
        };
        let types = self.columns.iter().map(|column| {
            if !column.is_kept {
                return Ok(None);
            }
            let found = match &column.declared {
                Some(declared) => declared.clone(),
                None => column.found(file)?,
            };
            Ok(Some(found).filter(|found| *found != DataType::Null || !is_object(&column.name)))
        });
        types.collect()
    }

    /// The columns by name: name, index.
    pub(super) fn sorted(&self) -> Vec<(&str, usize)> {
        let names = self.columns.iter().map(|column| column.name.as_str());
        let mut sorted: Vec<(&str, usize)> = names.zip(0..).collect();
        sorted.sort_unstable();
        sorted
    }

    /// Goes back to the start of the file; keeps what is known of the columns.
    pub(super) fn restart(&mut self) {
        for column in &mut self.columns {
            column.texts = Texts::default();
            column.set_in = 0;
        }
        (self.rows, self.row_number, self.bytes) = (0, 0, 0);
    }
}

impl Column {
    /// The type that all its values in the file have.
    fn found(&self, file: &str) -> Result<DataType> {
        let has = |kind: Kind| self.lines[kind as usize] > 0;
        let is_number = has(Kind::Integer) || has(Kind::Large) || has(Kind::Number);
        let is_text = has(Kind::Text) || has(Kind::Array);
        Ok(match (has(Kind::Boolean), is_number, is_text) {
            (false, false, false) => DataType::Null,
            (true, false, false) => DataType::Boolean,
            (false, true, false) if has(Kind::Number) => DataType::Float64,
            (false, true, false) if has(Kind::Large) => DataType::Decimal128(38, 0),
            (false, true, false) => DataType::Int64,
            (false, false, true) => DataType::Utf8View,
            _ => {
                let mut lines: Vec<(u64, Kind)> = self.lines.into_iter().zip(KINDS).collect();
                lines.retain(|(line, _)| *line > 0);
                lines.sort_unstable_by_key(|(line, _)| *line);
                let (first, kind) = lines[0];
                let other = lines.iter().find(|(_, other)| other.name() != kind.name());
                let (line, other) = other.copied().unwrap_or(lines[0]);
                let (kind, other, name) = (kind.name(), other.name(), &self.name);
                let message = format!(
                    "column `{name}` is {kind} in line {first} of {file}, and {other} in line {line}"
                );
                return Err(Error::data(message).hint(
                    "set its type in `[raw.columns]`, such as VARCHAR, if all values fit it",
                ));
            }
        })
    }
}
