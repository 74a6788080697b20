//! Tasks: awaiting them, and distributing work among them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::runtime::SpawnedTask;

use crate::error::{Error, Result};

/// Spawns a task. It is aborted when the returned future is dropped; a panic in it becomes an
/// error.
///
/// # Errors
/// Those of the task; internal, when it panicked.
pub fn spawn<T: Send + 'static>(
    task: impl Future<Output = Result<T>> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send {
    join(SpawnedTask::spawn(task))
}

/// Spawns a task that blocks its thread; otherwise as [`spawn`]. Once it has started, it is not
/// aborted.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_blocking<T: Send + 'static>(
    task: impl FnOnce() -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send {
    join(SpawnedTask::spawn_blocking(task))
}

async fn join<T: 'static>(task: SpawnedTask<Result<T>>) -> Result<T> {
    task.await.unwrap_or_else(|error| {
        Err(Error::internal("a task of the run ended abruptly").caused_by(error))
    })
}

/// Awaits all tasks, even after a failure, so that none still writes when the error is returned.
///
/// # Errors
/// The first one of the tasks.
pub async fn join_all<T>(tasks: impl Iterator<Item: Future<Output = Result<T>>>) -> Result<Vec<T>> {
    futures::future::join_all(tasks).await.into_iter().collect()
}

/// A queue of work items that several tasks share. Once a task has failed, it returns no more
/// items.
#[derive(Debug)]
pub struct Work<P> {
    items: Mutex<std::vec::IntoIter<P>>,
    has_failed: AtomicBool,
}

impl<P> Work<P> {
    /// A queue of these items.
    pub fn new(items: Vec<P>) -> Self {
        Work { items: Mutex::new(items.into_iter()), has_failed: AtomicBool::new(false) }
    }

    /// The next item.
    pub fn next(&self) -> Option<P> {
        let mut items = self.items.lock().ok()?;
        items.next().filter(|_| !self.has_failed())
    }

    /// Whether a task has failed.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Awaits a task that takes items, and records its failure.
    ///
    /// # Errors
    /// The task's.
    pub async fn run<T>(&self, task: impl Future<Output = Result<T>>) -> Result<T> {
        let done = task.await;
        self.has_failed.fetch_or(done.is_err(), Ordering::Relaxed);
        done
    }
}
