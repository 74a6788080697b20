//! Sessions of the query engine: DataFusion in UTC, with a memory limit and a spill folder.

use std::sync::Arc;

use datafusion::common::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::MemoryLimit;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::engine::memory_pool::FloorPool;
use crate::engine::resources::Resources;
use crate::engine::spill::SpillFolder;
use crate::error::{Error, Result};

/// The number of rows per batch, in all modules.
pub const BATCH_ROWS: usize = 8192;

/// Memory that the engine does not count: the program, and freed memory that the allocator retains.
const UNCOUNTED_BYTES: u64 = 64 << 20;
/// Memory per thread that the engine does not count: bytes fetched ahead, batches in flight,
/// decoders, the row group being written.
const UNCOUNTED_BYTES_PER_THREAD: u64 = 48 << 20;
/// The share of the remaining memory that the pool may reserve.
const POOL_PERCENT: u64 = 80;
/// The sorts of all threads together set one part of so many of the pool aside for merging, each at most what
/// the engine does by itself. That is 10 MiB: most of a small pool where a query sorts twice.
const MERGE_PARTS: usize = 16;

/// Creates the memory pool, spill disk and caches that all sessions of a run share.
///
/// # Errors
/// Usage, when the memory limit is too large for this machine.
pub fn runtime(resources: &Resources, spill: &SpillFolder) -> Result<Arc<RuntimeEnv>> {
    let disk = DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::Directories(vec![spill.path().to_path_buf()]))
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

/// The limit of the memory pool, in bytes.
pub fn memory_limit(runtime: &RuntimeEnv) -> usize {
    match runtime.memory_pool.memory_limit() {
        MemoryLimit::Finite(bytes) => bytes,
        _ => usize::MAX,
    }
}

/// Creates a session on a shared runtime, without any tables.
pub fn session(runtime: &Arc<RuntimeEnv>, threads: usize) -> SessionContext {
    let mut config = config()
        .with_target_partitions(threads)
        .with_batch_size(BATCH_ROWS)
        .with_information_schema(false);
    let merging = &mut config.options_mut().execution.sort_spill_reservation_bytes;
    *merging = (memory_limit(runtime) / MERGE_PARTS / threads.max(1)).min(*merging);
    SessionContext::new_with_config_rt(config, Arc::clone(runtime))
}

/// The same, which sorts to join: sorts spill, hash joins do not. The engine does so only if there are several parts.
pub fn sorting_session(runtime: &Arc<RuntimeEnv>, threads: usize) -> SessionContext {
    let context = session(runtime, threads.max(2));
    let state = context.state_ref();
    state.write().config_mut().options_mut().optimizer.prefer_hash_join = false;
    context
}

/// Creates a session that plans expressions, with the meaning that they have in a run.
pub fn planning_session() -> SessionContext {
    SessionContext::new_with_config(config())
}

/// What an SQL text means.
fn config() -> SessionConfig {
    let mut config = SessionConfig::new();
    config.options_mut().execution.time_zone = Some("+00:00".into());
    // Text literals and casts to VARCHAR are views, as text columns of changes are.
    config.options_mut().sql_parser.map_string_types_to_utf8view = true;
    config
}

/// The first line of an engine's message, without the backtrace.
pub fn first_line(error: &DataFusionError) -> String {
    error.find_root().strip_backtrace().lines().next().unwrap_or_default().to_string()
}
