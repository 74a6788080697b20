//! Records of CSV: fields as text, with what matters of their quotes.
//!
//! The form is RFC 4180 as AWS DMS writes it: lines end in LF or CRLF, a field with a comma, a quote
//! or a line feed stands in quotes, a quote inside of these twice. What is not of that form is told
//! field by field, and the line after it is read as if nothing had been.
//! `csv_core` splits the fields; it does not tell an empty field from a quoted one, and takes quotes
//! as they come, so that they are looked at here.

use std::io::{ErrorKind, Read};

use csv_core::{ReadFieldResult, Reader, ReaderBuilder, Terminator};

use crate::error::{Error, Result};

/// A record may have so many bytes: one that has more has lost a quote.
const RECORD_BYTES_MAX: usize = 32 << 20;
/// A header may name so many columns.
const HEADER_FIELDS_MAX: usize = 1 << 16;
/// So much is read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// One field of a record.
pub struct Field {
    /// Where its text ends.
    end: usize,
    /// Whether it stands in quotes.
    pub quoted: bool,
    /// Whether its quotes are not as they should be.
    pub malformed: bool,
    /// Whether it has as many quotes that open as that close.
    closed: bool,
}

/// The records of a file, one at a time.
pub struct Records<'a, R> {
    name: &'a str,
    input: R,
    reader: Box<Reader>,
    buffer: Vec<u8>,
    /// What the reader writes to.
    output: Vec<u8>,
    /// What of the buffer was not read yet.
    start: usize,
    end: usize,
    is_begun: bool,
    /// The line that is read next, from 1.
    line: u64,
    /// Whether quotes are text as any other.
    unquoted: bool,
    /// The line that the record ends in.
    pub last_line: u64,
    /// The text of the record's fields.
    bytes: Vec<u8>,
    /// The record's fields.
    pub fields: Vec<Field>,
    /// How many fields the record has: no more than one beyond `fields_max` is kept.
    pub fields_found: usize,
    /// How many fields it should have at most.
    pub fields_max: usize,
    /// How many bytes of the file the record has.
    raw_bytes: usize,
    /// Whether the record ended with the file.
    pub is_cut_off: bool,
}

impl<'a, R: Read> Records<'a, R> {
    /// Nothing read yet of a file of this name; `unquoted` where quotes are text as any other.
    pub fn new(name: &'a str, input: R, unquoted: bool) -> Self {
        let mut reader = ReaderBuilder::new();
        // A carriage return before it is taken away here: elsewhere it is text.
        reader.terminator(Terminator::Any(b'\n')).quoting(!unquoted);
        Records {
            name,
            input,
            reader: Box::new(reader.build()),
            buffer: vec![0; BUFFER_BYTES],
            output: vec![0; 4096],
            start: 0,
            end: 0,
            is_begun: false,
            line: 1,
            unquoted,
            last_line: 1,
            bytes: Vec::new(),
            fields: Vec::new(),
            fields_found: 0,
            fields_max: HEADER_FIELDS_MAX,
            raw_bytes: 0,
            is_cut_off: false,
        }
    }

    /// The names in the first line.
    ///
    /// # Errors
    /// Data, when there is none, or none that names columns.
    pub fn header(&mut self) -> Result<Vec<String>> {
        let name = self.name;
        let wrong = |why: &str| {
            Error::data(format!("{name} {why}"))
                .hint("the first line names the columns: check `raw.csv_header` and the file")
        };
        if self.next_record()?.is_none() {
            return Err(wrong("has no header"));
        }
        if self.is_cut_off {
            return Err(wrong("has a header that is cut off"));
        }
        if self.fields_found > HEADER_FIELDS_MAX {
            return Err(wrong("has a header with too many names"));
        }
        let names = (0..self.fields.len()).map(|number| self.text(number));
        let names: Option<Vec<&str>> = names.collect();
        let names = names.ok_or_else(|| wrong("has a header that is not UTF-8"))?;
        let is_twice = |(at, one): (usize, &&str)| {
            let mut before = names[..at].iter();
            one.is_empty() || before.any(|other| other.eq_ignore_ascii_case(one))
        };
        match names.iter().enumerate().any(is_twice) {
            true => Err(wrong(
                "has a header with a name that is empty or stands twice",
            )),
            false => Ok(names.into_iter().map(String::from).collect()),
        }
    }

    /// Makes sure that there is something to read; false at the end of the file.
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
    /// Data, when it is too long or the file cannot be decompressed; storage, when that cannot be
    /// fetched.
    pub fn next_record(&mut self) -> Result<Option<u64>> {
        if !std::mem::replace(&mut self.is_begun, true) {
            self.skip_mark()?;
        }
        loop {
            self.bytes.clear();
            self.fields.clear();
            (self.fields_found, self.raw_bytes, self.is_cut_off) = (0, 0, false);
            // Lines without anything.
            loop {
                if !self.fill()? {
                    return Ok(None);
                }
                if self.buffer[self.start] != b'\n' {
                    break;
                }
                self.line += 1;
                self.start += 1;
            }
            let line = self.line;
            while !self.field(line)? {}
            // The line feed that ends it was read, but in a quote that is not closed.
            self.last_line = self.line - u64::from(!self.is_cut_off || self.is_open());
            let is_empty = self.fields_found == 1 && self.bytes.is_empty();
            if self.is_cut_off || !is_empty || self.fields[0].quoted {
                return Ok(Some(line));
            }
        }
    }

    /// Skips a byte-order mark, before anything was read.
    fn skip_mark(&mut self) -> Result<()> {
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

    /// Reads a field; whether it was the record's last.
    fn field(&mut self, line: u64) -> Result<bool> {
        let first = self.bytes.len();
        let (mut raw_bytes, mut text_bytes, mut quotes, mut tail) = (0, 0, 0, [0; 3]);
        let quoted = self.fill()? && self.buffer[self.start] == b'"' && !self.unquoted;
        let is_kept = self.fields_found <= self.fields_max;
        loop {
            let is_more = self.fill()?;
            let input = &self.buffer[self.start..self.end];
            let (result, read, written) = self.reader.read_field(input, &mut self.output);
            let input = &input[..read];
            for byte in &input[read.saturating_sub(tail.len())..] {
                tail = [tail[1], tail[2], *byte];
            }
            // Elsewhere a line feed ends the line, and a quote is text.
            if quoted {
                quotes += input.iter().filter(|byte| **byte == b'"').count();
                self.line += input.iter().filter(|byte| **byte == b'\n').count() as u64;
            } else if input.last() == Some(&b'\n') {
                self.line += 1;
            }
            raw_bytes += read;
            text_bytes += written;
            self.start += read;
            if is_kept {
                self.bytes.extend_from_slice(&self.output[..written]);
            }
            if self.raw_bytes + raw_bytes > RECORD_BYTES_MAX {
                let mega = RECORD_BYTES_MAX >> 20;
                return Err(Error::data(format!(
                    "line {line} of {} has more than {mega} MB",
                    self.name
                ))
                .hint("a quote may be missing there: take the file away, or mend it"));
            }
            let is_last = match result {
                ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull if is_more => continue,
                ReadFieldResult::Field { record_end } if is_more => record_end,
                // The file ended inside of it.
                _ => {
                    self.is_cut_off = true;
                    true
                }
            };
            self.raw_bytes += raw_bytes;
            self.fields_found += 1;
            if !is_kept {
                return Ok(is_last);
            }
            let has_return = is_last && !self.is_cut_off && tail[1] == b'\r';
            if has_return {
                self.bytes
                    .truncate(self.bytes.len().saturating_sub(1).max(first));
                (raw_bytes, text_bytes) = (raw_bytes - 1, text_bytes.saturating_sub(1));
            }
            // The outer quotes, one of each pair inside, and the comma or line end behind.
            let around = 1 + 2 + quotes.max(2).div_ceil(2) - 1;
            let before_end = tail[1 - usize::from(has_return)];
            let is_closed =
                before_end == b'"' && quotes % 2 == 0 && raw_bytes == text_bytes + around;
            self.fields.push(Field {
                end: self.bytes.len(),
                quoted,
                malformed: quoted && !self.is_cut_off && !is_closed,
                closed: quotes % 2 == 0,
            });
            return Ok(is_last);
        }
    }

    fn raw(&self, number: usize) -> &[u8] {
        let start = number
            .checked_sub(1)
            .map_or(0, |before| self.fields[before].end);
        &self.bytes[start..self.fields[number].end]
    }

    /// A field's text; `None` where it is not UTF-8.
    pub fn text(&self, number: usize) -> Option<&str> {
        std::str::from_utf8(self.raw(number)).ok()
    }

    /// Whether the file ended inside of a quoted field.
    pub fn is_open(&self) -> bool {
        let last = self.fields.last();
        self.is_cut_off && last.is_some_and(|field| field.quoted && !field.closed)
    }

    /// How much text is kept of the record, in bytes.
    pub fn text_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The text of all fields that are kept, for people.
    pub fn lossy(&self) -> Vec<Option<String>> {
        let fields = (0..self.fields.len()).map(|number| self.raw(number));
        let texts = fields.map(|raw| Some(String::from_utf8_lossy(raw).into_owned()));
        texts.collect()
    }
}

/// A file that cannot be decompressed, or fetched.
pub fn unreadable(name: &str, error: std::io::Error) -> Error {
    if let Some(ours) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
    {
        let mut told = Error::storage(format!("cannot read {name}"));
        told.hint.clone_from(&ours.hint);
        return told.caused_by(error);
    }
    Error::data(format!("{name} cannot be decompressed"))
        .hint("it may be truncated or damaged: restore it from its source, or take it away")
        .caused_by(error)
}
