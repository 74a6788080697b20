//! The query engine: DataFusion, set to UTC, a memory limit and a folder to spill to.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use datafusion::execution::SpillFile;
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
    /// How many bytes of it there may be at a time.
    pub spill_bytes_max: u64,
    /// How many threads.
    pub threads: usize,
}

/// Rows per batch, everywhere.
pub const BATCH_ROWS: usize = 8192;

/// What a run needs beside what the engine counts: the program, and what it hardly gives back.
const UNCOUNTED_BYTES: u64 = 64 << 20;
/// The same for each thread: what is fetched ahead, batches in flight, decoders, a row group that is
/// being written.
const UNCOUNTED_BYTES_PER_THREAD: u64 = 48 << 20;
/// The part of the rest of the memory limit that may be reserved.
const POOL_PERCENT: u64 = 80;

/// A run's own folder for spilled data. It goes when the run ends; what a killed run left goes
/// when the next one starts, told by a lock that ended with its process.
#[derive(Debug)]
pub struct SpillFolder {
    folder: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

const SPILL_PREFIX: &str = "glueless-";

impl SpillFolder {
    /// Makes the folder in `spill_dir`, which is made if it is missing, and clears up there.
    ///
    /// # Errors
    /// Usage, when `spill_dir` cannot be used.
    pub fn create(spill_dir: &Path, run_id: &str) -> Result<Self> {
        Self::try_create(spill_dir, run_id).map_err(|error| {
            Error::usage(format!("cannot spill to {}", spill_dir.display()))
                .hint("set `limits.spill_dir` to a folder that can be written")
                .caused_by(error)
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    fn try_create(spill_dir: &Path, run_id: &str) -> std::io::Result<Self> {
        std::fs::create_dir_all(spill_dir)?;
        for entry in std::fs::read_dir(spill_dir)?.flatten() {
            let path = entry.path();
            let is_ours = entry
                .file_name()
                .to_string_lossy()
                .starts_with(SPILL_PREFIX);
            if is_ours
                && path
                    .extension()
                    .is_some_and(|extension| extension == "lock")
            {
                remove_if_left(&path);
            }
        }
        let folder = spill_dir.join(format!("{SPILL_PREFIX}{run_id}"));
        let lock_path = folder.with_extension("lock");
        let lock = File::create(&lock_path)?;
        lock.lock()?;
        std::fs::create_dir(&folder)?;
        Ok(SpillFolder {
            folder,
            lock_path,
            _lock: lock,
        })
    }
}

/// Removes a spill folder and its lock, if no process holds it. What cannot be removed is another
/// user's, and stays.
fn remove_if_left(lock_path: &Path) {
    // A run that is just about to lock it waits until both are gone.
    if let Ok(lock) = File::open(lock_path)
        && lock.try_lock().is_ok()
    {
        let _ = std::fs::remove_dir_all(lock_path.with_extension(""));
        let _ = std::fs::remove_file(lock_path);
    }
}

impl Drop for SpillFolder {
    fn drop(&mut self) {
        // What stays is removed by the next run.
        let _ = std::fs::remove_dir_all(&self.folder);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// The memory, disk and caches that all sessions of a run share.
///
/// # Errors
/// Usage, when the memory limit is none for this machine.
pub fn runtime(resources: &Resources, spill: &SpillFolder) -> Result<Arc<RuntimeEnv>> {
    let disk = DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::Directories(vec![spill.folder.clone()]))
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

/// Opens spilled data, to be read from its start. It is written, and counted, by the engine's
/// [`SpillFile::open_writer`].
///
/// # Errors
/// Storage, when it cannot be opened.
pub fn read_spilled(file: &Arc<dyn SpillFile>) -> Result<File> {
    let path = file
        .path()
        .ok_or_else(|| Error::internal("spilled data is not on a local disk"))?;
    File::open(path).map_err(|error| {
        Error::storage(format!("cannot open the spilled data {}", path.display()))
            .hint("check `limits.spill_dir` and its free space")
            .caused_by(error)
    })
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

/// Waits for all tasks: when the first failure is told, none of them writes any more.
///
/// # Errors
/// The first one of the tasks.
pub async fn join_all<T>(tasks: impl Iterator<Item: Future<Output = Result<T>>>) -> Result<Vec<T>> {
    futures::future::join_all(tasks).await.into_iter().collect()
}

/// Work that several tasks share, piece by piece. Once one of them has failed, there is no more.
#[derive(Debug)]
pub struct Work<P> {
    pieces: Mutex<std::vec::IntoIter<P>>,
    has_failed: AtomicBool,
}

impl<P> Work<P> {
    /// Work to be shared.
    pub fn new(pieces: Vec<P>) -> Self {
        Work {
            pieces: Mutex::new(pieces.into_iter()),
            has_failed: AtomicBool::new(false),
        }
    }

    /// The next piece.
    pub fn next(&self) -> Option<P> {
        let mut pieces = self.pieces.lock().ok()?;
        pieces.next().filter(|_| !self.has_failed())
    }

    /// Whether a task has failed.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// A task that does a part of the work.
    ///
    /// # Errors
    /// The task's.
    pub async fn part<T>(&self, task: impl Future<Output = Result<T>>) -> Result<T> {
        let done = task.await;
        self.has_failed.fetch_or(done.is_err(), Ordering::Relaxed);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_spilled_goes_and_what_a_living_one_spilled_stays() {
        let spill_dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| spill_dir.path().join(name);
        let living = SpillFolder::create(spill_dir.path(), "living").expect("made");
        std::fs::write(at("glueless-living/rows"), "rows").expect("written");
        std::fs::create_dir(at("glueless-killed")).expect("made");
        std::fs::write(at("glueless-killed/rows"), "rows").expect("written");
        std::fs::write(at("glueless-killed.lock"), "").expect("written");
        std::fs::write(at("another's.lock"), "").expect("written");
        let next = SpillFolder::create(spill_dir.path(), "next").expect("made");
        assert!(at("glueless-living/rows").exists());
        assert!(!at("glueless-killed").exists() && !at("glueless-killed.lock").exists());
        drop((living, next));
        let left = std::fs::read_dir(spill_dir.path()).expect("listed");
        let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["another's.lock"]);
    }
}
