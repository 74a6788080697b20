//! Tasks: awaiting them, and distributing work among them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use crate::error::{Error, Result};

/// Awaits a task. A panic in the task becomes an [`Error`]; the task is aborted when this future is
/// dropped.
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
        Work {
            items: Mutex::new(items.into_iter()),
            has_failed: AtomicBool::new(false),
        }
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
