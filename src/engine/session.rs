//! The query engine: DataFusion, set to UTC, a memory limit and a folder to spill to.

use std::sync::Arc;

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::engine::memory_pool::FloorPool;
use crate::engine::resources::Resources;
use crate::engine::spill::SpillFolder;
use crate::error::{Error, Result};

/// Rows per batch, everywhere.
pub const BATCH_ROWS: usize = 8192;

/// What a run needs beside what the engine counts: the program, and what it hardly gives back.
const UNCOUNTED_BYTES: u64 = 64 << 20;
/// The same for each thread: what is fetched ahead, batches in flight, decoders, a row group that is
/// being written.
const UNCOUNTED_BYTES_PER_THREAD: u64 = 48 << 20;
/// The part of the rest of the memory limit that may be reserved.
const POOL_PERCENT: u64 = 80;

/// The memory, disk and caches that all sessions of a run share.
///
/// # Errors
/// Usage, when the memory limit is none for this machine.
pub fn runtime(resources: &Resources, spill: &SpillFolder) -> Result<Arc<RuntimeEnv>> {
    let disk = DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::Directories(vec![
            spill.path().to_path_buf(),
        ]))
        .with_max_temp_directory_size(resources.spill_bytes_max);
    let limit = resources.memory_bytes;
    let threads = resources.threads as u64;
    let per_thread = UNCOUNTED_BYTES_PER_THREAD.saturating_mul(threads);
    let uncounted = UNCOUNTED_BYTES.saturating_add(per_thread);
    let counted = limit.saturating_sub(uncounted).max(limit / 4);
    let pool_bytes = usize::try_from(counted / 100 * POOL_PERCENT)
        .map_err(|_| Error::usage("`limits.memory` is too large for this machine"))?;
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FloorPool::new(pool_bytes)))
        .with_disk_manager_builder(disk)
        .build_arc()?;
    Ok(runtime)
}

/// A session on a shared runtime: nothing registered yet.
pub fn session(runtime: &Arc<RuntimeEnv>, threads: usize) -> SessionContext {
    let mut config = SessionConfig::new()
        .with_target_partitions(threads)
        .with_batch_size(BATCH_ROWS)
        .with_information_schema(false);
    config.options_mut().execution.time_zone = Some("+00:00".into());
    // Text literals and casts to VARCHAR give views, as the changes do.
    config.options_mut().sql_parser.map_string_types_to_utf8view = true;
    SessionContext::new_with_config_rt(config, Arc::clone(runtime))
}
