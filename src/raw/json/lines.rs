//! The lines of a JSON file: one at a time, without a byte-order mark and without blank lines.

use std::io::{BufRead, BufReader, Read};

use crate::error::{Error, Result};
use crate::raw::csv::records::unreadable;

/// The size limit of a line.
const LINE_BYTES_MAX: usize = 32 << 20;
/// The size of the read buffer.
const BUFFER_BYTES: usize = 256 << 10;

/// The lines of a file.
pub(super) struct Lines<'a, R> {
    name: &'a str,
    input: BufReader<R>,
    bytes: Vec<u8>,
    number: u64,
    /// Whether the file ended inside the current line.
    pub(super) is_cut_off: bool,
}

impl<'a, R: Read> Lines<'a, R> {
    /// A reader at the start of the file `name`.
    pub(super) fn new(name: &'a str, input: R) -> Self {
        let input = BufReader::with_capacity(BUFFER_BYTES, input);
        Lines { name, input, bytes: Vec::new(), number: 0, is_cut_off: false }
    }

    /// Reads the next line that is not blank; returns its number, from 1.
    ///
    /// # Errors
    /// Data, when the line is too long or the file cannot be decompressed; storage, when the file
    /// cannot be fetched.
    pub(super) fn next_line(&mut self) -> Result<Option<u64>> {
        loop {
            self.bytes.clear();
            let mut input = self.input.by_ref().take(LINE_BYTES_MAX as u64 + 1);
            let read = input.read_until(b'\n', &mut self.bytes);
            if read.map_err(|error| unreadable(self.name, error))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.bytes.len() > LINE_BYTES_MAX {
                let mega = LINE_BYTES_MAX >> 20;
                let message =
                    format!("line {} of {} has more than {mega} MB", self.number, self.name);
                return Err(Error::data(message).hint(
                    "each line must be one object: fix the file, or put it in quarantine with \
                     `raw.on_bad_file`: its changes are then missing",
                ));
            }
            if self.number == 1 && self.bytes.starts_with(b"\xEF\xBB\xBF") {
                self.bytes.drain(..3);
            }
            self.is_cut_off = self.bytes.last() != Some(&b'\n');
            if !self.line().is_empty() {
                return Ok(Some(self.number));
            }
        }
    }

    /// The current line, without white space around it.
    pub(super) fn line(&self) -> &[u8] {
        self.bytes.trim_ascii()
    }
}
