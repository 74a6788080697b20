//! The spill file of a shard, and its reader.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use datafusion::execution::SpillFile;

use crate::engine::spill::read_spilled;
use crate::error::{Error, Result, spilled_too_much};

/// The buffer size for reads and writes of spill files.
pub(super) const BUFFER_BYTES: usize = 256 << 10;

/// The spilled contents of a shard.
pub(super) struct Spilled {
    pub(super) file: Arc<dyn SpillFile>,
    pub(super) bytes: u64,
    pub(super) keys: u64,
    /// The number of changes of further days.
    pub(super) later: u64,
}

/// Reads the records of a spill file.
pub(super) struct Records {
    pub(super) spill_file: Arc<dyn SpillFile>,
    pub(super) file: BufReader<File>,
    pub(super) key: Vec<u8>,
    pub(super) changes: Vec<u8>,
}

impl Records {
    pub(super) fn open(file: &Arc<dyn SpillFile>) -> Result<Self> {
        Ok(Records {
            spill_file: Arc::clone(file),
            file: BufReader::with_capacity(BUFFER_BYTES, read_spilled(file)?),
            key: Vec::new(),
            changes: Vec::new(),
        })
    }

    /// Reads the next record; `false` at the end.
    pub(super) fn next(&mut self) -> Result<bool> {
        let mut length = [0; 4];
        match self.file.read_exact(&mut length) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            read => read.map_err(|error| spill_failed("read", &self.spill_file, error))?,
        }
        let mut read = || {
            self.key.resize(u32::from_le_bytes(length) as usize, 0);
            self.file.read_exact(&mut self.key)?;
            self.file.read_exact(&mut length)?;
            self.changes.resize(u32::from_le_bytes(length) as usize, 0);
            self.file.read_exact(&mut self.changes)
        };
        read().map_err(|error| spill_failed("read", &self.spill_file, error))?;
        Ok(true)
    }
}

pub(super) fn spill_failed(doing: &str, file: &Arc<dyn SpillFile>, error: std::io::Error) -> Error {
    if let Some(too_much) = spilled_too_much(&error) {
        return too_much;
    }
    let path = file.path().unwrap_or(Path::new("")).display();
    Error::storage(format!("cannot {doing} the spilled data {path}"))
        .hint("free some space, or set `limits.spill_dir` to another disk")
        .caused_by(error)
}
