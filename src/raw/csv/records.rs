//! CSV records: fields as text, and the state of their quotes.
//!
//! The format is RFC 4180 as AWS DMS writes it: lines end in LF or CRLF; a field with a comma, a
//! quote or a line feed is quoted, and a quote inside it is doubled. The pipeline may name other
//! characters, and one that escapes quotes instead ([`CsvForm`]). Violations are reported per field,
//! and reading continues normally with the next line. `csv_core` splits the fields; it does not
//! distinguish an empty field from a quoted one, accepts misplaced quotes and drops every escape
//! character, so quotes and escapes are checked here.
//!
//! A line is what ends in the row delimiter, which need not be a line feed.
//!
//! Why not the `csv` crate or Arrow's reader: both are built on `csv_core`, and return a quoted empty
//! field and an empty one as the same text. A CDC file means an empty text by the one and null by the
//! other. Neither reports a misplaced quote, after which a file is read wrongly without an error.

use std::io::{ErrorKind, Read};

use csv_core::{ReadFieldResult, Reader, ReaderBuilder, Terminator};

use crate::config::CsvForm;
use crate::error::{Error, Result};
use crate::raw::csv::other_delimiter;

/// The size limit of a record: a larger one most likely lacks a quote.
const RECORD_BYTES_MAX: usize = 32 << 20;
/// The largest number of columns in a header.
pub(super) const HEADER_FIELDS_MAX: usize = 1 << 16;
/// The size of the read buffer.
const BUFFER_BYTES: usize = 256 << 10;

/// One field of a record.
pub(crate) struct Field {
    /// The end of its text in [`Records::bytes`].
    end: usize,
    /// Whether it is quoted.
    pub is_quoted: bool,
    /// Whether its quotes violate the format.
    pub is_malformed: bool,
    /// Whether it has an escape character before neither a quote nor another escape character.
    pub has_stray_escape: bool,
    /// Whether each opening quote has a closing one.
    is_closed: bool,
}

/// The quotes and escapes of a field, counted in its bytes as they are in the file.
#[derive(Default)]
struct Quotes {
    /// The quotes, those that are escaped left out.
    count: usize,
    /// The escape characters, those that are escaped left out.
    escapes: usize,
    is_after_escape: bool,
    has_stray_escape: bool,
}

impl Quotes {
    fn add(&mut self, bytes: &[u8], form: &CsvForm) {
        let Some(escape) = form.escape else {
            self.count += bytes.iter().filter(|byte| **byte == form.quote).count();
            return;
        };
        for byte in bytes {
            if self.is_after_escape {
                self.is_after_escape = false;
                self.has_stray_escape |= *byte != form.quote && *byte != escape;
            } else if *byte == escape {
                self.is_after_escape = true;
                self.escapes += 1;
            } else if *byte == form.quote {
                self.count += 1;
            }
        }
    }

    /// Whether each opening quote has a closing one.
    fn are_closed(&self) -> bool {
        self.count.is_multiple_of(2)
    }

    /// The bytes of a well-formed quoted field that are not its text: the outer quotes, those that
    /// double or escape inner quotes, and the delimiter after the field. `None` if the quotes cannot
    /// be those of a well-formed field.
    fn overhead_bytes(&self, form: &CsvForm) -> Option<usize> {
        let inner = match form.escape {
            Some(_) if self.count != 2 || self.has_stray_escape => return None,
            Some(_) => self.escapes,
            None => self.count.max(2).div_ceil(2) - 1,
        };
        Some(1 + 2 + inner)
    }
}

/// The records of a file, one at a time.
pub(crate) struct Records<'a, R> {
    name: &'a str,
    input: R,
    reader: Box<Reader>,
    buffer: Vec<u8>,
    /// The output buffer of `reader`.
    output: Vec<u8>,
    /// The unread part of the buffer is `start..end`.
    start: usize,
    end: usize,
    is_started: bool,
    /// The number of the line that is read next, from 1.
    line: u64,
    form: &'a CsvForm,
    /// The line that the current record ends in.
    pub last_line: u64,
    /// The text of the current record's fields.
    bytes: Vec<u8>,
    /// The current record's fields.
    pub fields: Vec<Field>,
    /// The number of fields of the current record; at most `fields_max` + 1 are buffered.
    pub fields_found: usize,
    /// The number of fields that a record should have at most.
    pub fields_max: usize,
    /// The size of the current record in the file, in bytes.
    raw_bytes: usize,
    /// Whether the file ended inside the current record.
    pub is_cut_off: bool,
}

impl<'a, R: Read> Records<'a, R> {
    /// A reader at the start of the file `name`.
    pub(crate) fn new(name: &'a str, input: R, form: &'a CsvForm) -> Self {
        let mut reader = ReaderBuilder::new();
        // A carriage return before the line feed is removed here: elsewhere it is text.
        reader
            .delimiter(form.delimiter)
            .terminator(Terminator::Any(form.row_delimiter))
            .quoting(!form.unquoted)
            .quote(form.quote)
            .escape(form.escape)
            .double_quote(form.escape.is_none());
        Records {
            name,
            input,
            reader: Box::new(reader.build()),
            buffer: vec![0; BUFFER_BYTES],
            output: vec![0; 4096],
            start: 0,
            end: 0,
            is_started: false,
            line: 1,
            form,
            last_line: 1,
            bytes: Vec::new(),
            fields: Vec::new(),
            fields_found: 0,
            fields_max: HEADER_FIELDS_MAX,
            raw_bytes: 0,
            is_cut_off: false,
        }
    }

    /// Reads the column names from the first line; `None` if the file has no line.
    ///
    /// # Errors
    /// Data, when the line is not a list of distinct names.
    pub(crate) fn header(&mut self) -> Result<Option<Vec<String>>> {
        let name = self.name;
        let wrong = |why: &str| {
            Error::data(format!("{name} {why}"))
                .hint("the first line names the columns: check `raw.csv_header` and the file")
        };
        if self.next_record()?.is_none() {
            return Ok(None);
        }
        if self.is_cut_off {
            return Err(wrong("has a header that is cut off"));
        }
        if self.fields_found > HEADER_FIELDS_MAX {
            return Err(wrong("has a header with too many names"));
        }
        if self.fields_found == 1
            && let Some(hint) = self.other_delimiter(2)
        {
            return Err(wrong("has a header of one name").hint(hint));
        }
        let texts = (0..self.fields.len()).map(|number| self.text(number));
        let names: Vec<&str> =
            texts.collect::<Option<_>>().ok_or_else(|| wrong("has a header that is not UTF-8"))?;
        let is_invalid = |(index, name): (usize, &&str)| {
            let mut before = names[..index].iter();
            name.is_empty() || before.any(|other| other.eq_ignore_ascii_case(name))
        };
        if names.iter().enumerate().any(is_invalid) {
            return Err(wrong("has a header with an empty or duplicate name"));
        }
        Ok(Some(names.into_iter().map(String::from).collect()))
    }

    /// Fills the buffer if it is empty; false at the end of the file.
    fn fill(&mut self) -> Result<bool> {
        while self.start == self.end {
            self.start = 0;
            self.end = match self.input.read(&mut self.buffer) {
                Ok(0) => {
                    self.end = 0;
                    return Ok(false);
                }
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(self.name, error)),
            };
        }
        Ok(true)
    }

    /// Reads the next record; returns the line that it begins in, from 1.
    ///
    /// # Errors
    /// Data, when the record is too long or the file cannot be decompressed; storage, when the file
    /// cannot be fetched.
    pub(crate) fn next_record(&mut self) -> Result<Option<u64>> {
        if !std::mem::replace(&mut self.is_started, true) {
            self.skip_byte_order_mark()?;
        }
        loop {
            self.bytes.clear();
            self.fields.clear();
            (self.fields_found, self.raw_bytes, self.is_cut_off) = (0, 0, false);
            // Skip empty lines.
            loop {
                if !self.fill()? {
                    return Ok(None);
                }
                if self.buffer[self.start] != self.form.row_delimiter {
                    break;
                }
                self.line += 1;
                self.start += 1;
            }
            let line = self.line;
            while !self.read_field(line)? {}
            // The line feed that ends the record was read, unless the file ended or a quote is
            // open.
            self.last_line = self.line - u64::from(!self.is_cut_off || self.is_open());
            let is_empty = self.fields_found == 1 && self.bytes.is_empty();
            if self.is_cut_off || !is_empty || self.fields[0].is_quoted {
                return Ok(Some(line));
            }
        }
    }

    /// Skips a byte-order mark at the start of the file.
    fn skip_byte_order_mark(&mut self) -> Result<()> {
        const MARK: &[u8] = b"\xEF\xBB\xBF";
        while self.end < MARK.len() {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(bytes) => self.end += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(self.name, error)),
            }
        }
        if self.buffer[..self.end].starts_with(MARK) {
            self.start = MARK.len();
        }
        Ok(())
    }

    /// Reads a field; returns whether it was the record's last.
    fn read_field(&mut self, line: u64) -> Result<bool> {
        let first = self.bytes.len();
        let form = self.form;
        let (mut raw_bytes, mut text_bytes, mut tail) = (0, 0, [0; 3]);
        let mut quotes = Quotes::default();
        let is_quoted = self.fill()? && self.buffer[self.start] == form.quote && !form.unquoted;
        let is_buffered = self.fields_found <= self.fields_max;
        loop {
            let is_more = self.fill()?;
            let input = &self.buffer[self.start..self.end];
            let (result, read, written) = self.reader.read_field(input, &mut self.output);
            let input = &input[..read];
            for byte in &input[read.saturating_sub(tail.len())..] {
                tail = [tail[1], tail[2], *byte];
            }
            // Outside quotes a line feed ends the line, and a quote is text.
            if is_quoted {
                quotes.add(input, form);
                let line_ends = input.iter().filter(|byte| **byte == form.row_delimiter);
                self.line += line_ends.count() as u64;
            } else if input.last() == Some(&form.row_delimiter) {
                self.line += 1;
            }
            raw_bytes += read;
            text_bytes += written;
            self.start += read;
            if is_buffered {
                self.bytes.extend_from_slice(&self.output[..written]);
            }
            if self.raw_bytes + raw_bytes > RECORD_BYTES_MAX {
                let mega = RECORD_BYTES_MAX >> 20;
                return Err(Error::data(format!(
                    "line {line} of {} has more than {mega} MB",
                    self.name
                ))
                .hint(
                    "a quote may be missing there: fix the file, or put it in quarantine with \
                     `raw.on_bad_file`: its changes are then missing",
                ));
            }
            let is_last = match result {
                ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull if is_more => continue,
                ReadFieldResult::Field { record_end } if is_more => record_end,
                // The file ended inside the field.
                _ => {
                    self.is_cut_off = true;
                    true
                }
            };
            self.raw_bytes += raw_bytes;
            self.fields_found += 1;
            if !is_buffered {
                return Ok(is_last);
            }
            let is_line_feed = form.row_delimiter == b'\n';
            let has_return = is_last && !self.is_cut_off && is_line_feed && tail[1] == b'\r';
            if has_return {
                self.bytes.truncate(self.bytes.len().saturating_sub(1).max(first));
                (raw_bytes, text_bytes) = (raw_bytes - 1, text_bytes.saturating_sub(1));
            }
            let before_end = tail[1 - usize::from(has_return)];
            let overhead_bytes = quotes.overhead_bytes(form);
            let is_whole = |overhead: usize| raw_bytes == text_bytes + overhead;
            let is_closed = before_end == form.quote
                && quotes.are_closed()
                && overhead_bytes.is_some_and(is_whole);
            self.fields.push(Field {
                end: self.bytes.len(),
                is_quoted,
                is_malformed: is_quoted && !self.is_cut_off && !is_closed,
                has_stray_escape: is_quoted && quotes.has_stray_escape,
                is_closed: quotes.are_closed(),
            });
            return Ok(is_last);
        }
    }

    fn raw(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |before| self.fields[before].end);
        &self.bytes[start..self.fields[number].end]
    }

    /// A field's text; `None` where it is not UTF-8.
    pub(crate) fn text(&self, number: usize) -> Option<&str> {
        std::str::from_utf8(self.raw(number)).ok()
    }

    /// The hint for a record with too few fields, if it has another delimiter.
    pub(crate) fn other_delimiter(&self, expected: usize) -> Option<&'static str> {
        let fields = (0..self.fields.len()).map(|number| self.raw(number));
        other_delimiter::hint(fields, self.form.delimiter, expected)
    }

    /// Whether the file ended inside a quoted field.
    pub(crate) fn is_open(&self) -> bool {
        let last = self.fields.last();
        self.is_cut_off && last.is_some_and(|field| field.is_quoted && !field.is_closed)
    }

    /// The size of the buffered text of the current record, in bytes.
    pub(crate) fn text_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The text of all buffered fields, with U+FFFD for bytes that are not UTF-8.
    pub(crate) fn lossy_texts(&self) -> Vec<Option<String>> {
        let fields = (0..self.fields.len()).map(|number| self.raw(number));
        let texts = fields.map(|raw| Some(String::from_utf8_lossy(raw).into_owned()));
        texts.collect()
    }
}

/// The error for a file that cannot be decompressed or fetched.
pub(crate) fn unreadable(name: &str, error: std::io::Error) -> Error {
    if let Some(ours) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        let mut failed = Error::storage(format!("cannot read {name}"));
        failed.hint.clone_from(&ours.hint);
        return failed.caused_by(error);
    }
    Error::data(format!("{name} cannot be decompressed"))
        .hint(
            "it may be truncated or damaged: restore it from its source, or, if it is a raw file that \
             cannot be restored, put it in quarantine with `raw.on_bad_file`: its changes are then \
             missing",
        )
        .caused_by(error)
}
