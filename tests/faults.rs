//! A store that keeps a list of its requests, of which one may fail, get lost or sleep.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// It and all that follow are not done.
    AllDead,
    /// It alone is not done.
    OneDead,
    /// It is done, and its reply lost.
    ReplyLost,
    /// It is done, its reply lost, and a second try meets what the first one did.
    ReplyExists,
    /// It waits until it is woken.
    Sleep,
    /// Another process has always just made what a commit makes.
    AlwaysLate,
    /// No checkpoint of a Delta log can be written.
    NoCheckpoint,
    /// Nothing can be brought to its place.
    NoPublishing,
    /// None fails.
    None,
}

/// Lets the first requests through, and fails the next one.
#[derive(Clone, Debug)]
pub struct Cut {
    pub inner: Arc<dyn ObjectStore>,
    pub left: Arc<AtomicUsize>,
    pub fault: Fault,
    /// Whom to tell of the sleep, and what ends it.
    pub sleep: Option<(Sender<bool>, Shared<BoxFuture<'static, ()>>)>,
    /// What was asked for: verb and path.
    pub seen: Arc<Mutex<Vec<(&'static str, String)>>>,
}

pub const NO_LIMIT: usize = usize::MAX;

impl Cut {
    /// A store that lets everything through but what the fault itself says.
    pub fn new(inner: Arc<dyn ObjectStore>, fault: Fault) -> Self {
        Cut {
            inner,
            left: Arc::new(AtomicUsize::new(NO_LIMIT)),
            fault,
            sleep: None,
            seen: Arc::default(),
        }
    }

    /// Whether the request goes through; where it does not, and a lost reply is not asked for, it
    /// is not done.
    async fn request(&self, verb: &'static str, at: &Path) -> Result<bool> {
        let asked = (verb, at.to_string());
        self.seen.lock().expect("no panic").push(asked);
        let take = |left: usize| match left {
            NO_LIMIT => Some(NO_LIMIT),
            left => left.checked_sub(1),
        };
        let taken = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        if taken.is_ok() {
            return Ok(true);
        }
        if self.fault != Fault::AllDead {
            self.left.store(NO_LIMIT, Ordering::SeqCst);
        }
        match self.fault {
            Fault::AllDead | Fault::OneDead => Err(dead()),
            Fault::ReplyLost | Fault::ReplyExists => Ok(false),
            Fault::Sleep => {
                let (asleep, woken) = self.sleep.clone().expect("a sleep");
                asleep.send(true).expect("told");
                woken.await;
                Ok(true)
            }
            Fault::AlwaysLate | Fault::NoCheckpoint | Fault::NoPublishing | Fault::None => Ok(true),
        }
    }

    fn check_checkpoint(&self, at: &Path) -> Result<()> {
        match self.fault == Fault::NoCheckpoint && at.as_ref().contains("checkpoint") {
            true => Err(dead()),
            false => Ok(()),
        }
    }

    /// The reply of a request that was done.
    fn reply<T>(&self, through: bool, at: &Path, done: Result<T>) -> Result<T> {
        match (through, self.fault) {
            (false, Fault::ReplyExists) => Err(exists(at)),
            (false, _) => Err(dead()),
            (true, _) => done,
        }
    }
}

fn exists(at: &Path) -> Error {
    Error::AlreadyExists {
        path: at.to_string(),
        source: "a first try did it".into(),
    }
}

fn dead() -> Error {
    Error::Generic {
        store: "cut",
        source: "the line is dead".into(),
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cut {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Cut {
    async fn put_opts(&self, at: &Path, bytes: PutPayload, o: PutOptions) -> Result<PutResult> {
        let through = self.request("PUT", at).await?;
        self.check_checkpoint(at)?;
        if self.fault == Fault::AlwaysLate && at.as_ref().contains("_delta_log") {
            // An empty commit of someone else.
            let empty = r#"{"commitInfo":{"timestamp":0,"operation":"WRITE"}}"#;
            self.inner.put_opts(at, empty.into(), o).await?;
            return Err(exists(at));
        }
        let done = self.inner.put_opts(at, bytes, o).await;
        self.reply(through, at, done)
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let through = self.request("PUT", at).await?;
        self.check_checkpoint(at)?;
        let done = self.inner.put_multipart_opts(at, options).await;
        self.reply(through, at, done)
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        // Commits are read ahead: nobody may wait for one that sleeps.
        if self.fault == Fault::Sleep && at.as_ref().contains("_delta_log") {
            return self.inner.get_opts(at, options).await;
        }
        let through = self.request("GET", at).await?;
        let done = self.inner.get_opts(at, options).await;
        self.reply(through, at, done)
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let through = self.request("GET", at).await?;
        let done = self.inner.get_ranges(at, ranges).await;
        self.reply(through, at, done)
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let cut = self.clone();
        let deleted = async move {
            match cut.request("DELETE", &Path::default()).await {
                Ok(true) => cut.inner.delete_stream(paths),
                Ok(false) => {
                    let done = cut.inner.delete_stream(paths);
                    done.map(|_| Err(dead())).boxed()
                }
                Err(error) => stream::once(async { Err(error) }).boxed(),
            }
        };
        deleted.flatten_stream().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (cut, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            match cut
                .request("LIST", &prefix.clone().unwrap_or_default())
                .await
            {
                Ok(true) => cut.inner.list(prefix.as_ref()),
                _ => stream::once(async { Err(dead()) }).boxed(),
            }
        };
        listed.flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        match self
            .request("LIST", &prefix.cloned().unwrap_or_default())
            .await
        {
            Ok(true) => self.inner.list_with_delimiter(prefix).await,
            _ => Err(dead()),
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let through = self.request("COPY", from).await?;
        let done = self.inner.copy_opts(from, to, options).await;
        self.reply(through, to, done)
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let through = self.request("RENAME", from).await?;
        if self.fault == Fault::NoPublishing {
            return Err(dead());
        }
        let done = self.inner.rename_opts(from, to, options).await;
        self.reply(through, to, done)
    }
}
