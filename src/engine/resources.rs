//! The resources that a run may use.

use std::path::PathBuf;

/// The limits of one run; see [`crate::config::Limits`].
#[derive(Clone, Debug)]
pub struct Resources {
    /// The memory limit.
    pub memory_bytes: u64,
    /// The folder for spilled data.
    pub spill_dir: PathBuf,
    /// The limit of spilled data at any time.
    pub spill_bytes_max: u64,
    /// The number of threads.
    pub threads: usize,
}
