//! What a run may use of the machine.

use std::path::PathBuf;

/// What one run may use; see [`crate::config::Limits`].
#[derive(Clone, Debug)]
pub struct Resources {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Where spilled data goes.
    pub spill_dir: PathBuf,
    /// How many bytes of it there may be at a time.
    pub spill_bytes_max: u64,
    /// How many threads.
    pub threads: usize,
}
