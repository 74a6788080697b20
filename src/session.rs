//! The query engine: DataFusion, set to UTC, a memory limit and a folder to spill to.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::memory::FloorPool;

/// What one run may use; see [`crate::config::Limits`].
#[derive(Clone, Debug)]
pub struct Resources {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Where spilled data goes.
    pub spill_dir: PathBuf,
    /// How many threads.
    pub threads: usize,
}

/// Rows per batch, everywhere.
pub const BATCH_ROWS: usize = 8192;

/// What a run needs beside what the engine counts: the program, batches in flight, decoders,
/// encoders.
const UNCOUNTED_BYTES: u64 = 64 << 20;
/// The part of the rest of the memory limit that may be reserved.
const POOL_PERCENT: u64 = 80;

/// The memory, disk and caches that all sessions of a run share.
///
/// # Errors
/// Usage, when the spill folder cannot be used.
pub fn runtime(resources: &Resources) -> Result<Arc<RuntimeEnv>> {
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![
        resources.spill_dir.clone(),
    ]));
    let limit = resources.memory_bytes;
    let counted = limit.saturating_sub(UNCOUNTED_BYTES).max(limit / 4);
    let pool_bytes = usize::try_from(counted / 100 * POOL_PERCENT)
        .map_err(|_| Error::usage("`limits.memory` is too large for this machine"))?;
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FloorPool::new(pool_bytes)))
        .with_disk_manager_builder(disk)
        .build_arc()
        .map_err(|error| {
            Error::usage(format!("cannot spill to {}", resources.spill_dir.display()))
                .hint("set `limits.spill_dir` to a folder that can be written")
                .caused_by(error)
        })?;
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

/// Waits for a task; a panic in it becomes an error of ours, and it ends when nobody waits.
///
/// # Errors
/// Those of the task; internal, when it panicked.
pub async fn join<T>(task: JoinHandle<Result<T>>) -> Result<T> {
    struct AbortOnDrop<T>(JoinHandle<T>);
    impl<T> Drop for AbortOnDrop<T> {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let mut task = AbortOnDrop(task);
    match (&mut task.0).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal("a task of the run ended abruptly").caused_by(error)),
    }
}
