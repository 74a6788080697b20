//! A store that keeps a list of its requests, of which one may fail, lose its reply or sleep.

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

use super::lab::Lab;

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// It is not done, nor is any later one.
    AllDead,
    /// It is not done; later ones are.
    OneDead,
    /// It is done, and its reply is lost.
    ReplyLost,
    /// It is done and its reply is lost; a second try finds what the first one wrote.
    ReplyExists,
    /// It waits until it is woken.
    Sleep,
    /// No commit succeeds: another process has always written that commit just before.
    AlwaysLate,
    /// No checkpoint of a Delta log can be written.
    NoCheckpoint,
    /// No file can be moved into its table.
    NoPublishing,
    /// None fails.
    None,
}

/// Where the start of a sleep is reported, and what ends it.
pub type Sleep = (Sender<bool>, Shared<BoxFuture<'static, ()>>);

/// What a faulty store was asked to do.
#[derive(Clone, Debug)]
pub struct Requests {
    left: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<(&'static str, String)>>>,
}

/// The limit of a store that lets every request through.
const NO_LIMIT: usize = usize::MAX;

impl Requests {
    fn new(limit: usize) -> Self {
        Requests { left: Arc::new(AtomicUsize::new(limit)), seen: Arc::default() }
    }

    /// How many more requests go through before one fails; none once requests go through again.
    pub fn left(&self) -> Option<usize> {
        let left = self.left.load(Ordering::SeqCst);
        (left != NO_LIMIT).then_some(left)
    }

    /// The requests so far: their verbs and paths.
    pub fn seen(&self) -> Vec<(&'static str, String)> {
        self.seen.lock().expect("no panic").clone()
    }
}

impl Lab {
    /// The same lab, where requests fail as the fault itself says, at any time.
    pub fn with_fault(&self, fault: Fault) -> Self {
        self.faulty(fault, NO_LIMIT, None).0
    }

    /// The same lab, where so many requests go through, and the next one fails.
    pub fn failing_after(&self, requests: usize, fault: Fault) -> (Self, Requests) {
        self.faulty(fault, requests, None)
    }

    /// The same lab, where so many requests go through, and the next one sleeps.
    pub fn sleeping_after(&self, requests: usize, sleep: Sleep) -> (Self, Requests) {
        self.faulty(Fault::Sleep, requests, Some(sleep))
    }

    /// The same lab, with a list of its requests.
    pub fn recorded(&self) -> (Self, Requests) {
        self.faulty(Fault::None, NO_LIMIT, None)
    }

    fn faulty(&self, fault: Fault, limit: usize, sleep: Option<Sleep>) -> (Self, Requests) {
        let requests = Requests::new(limit);
        let shared = requests.clone();
        let lab = self.through(move |inner| {
            Arc::new(FaultyStore { inner, requests: shared.clone(), fault, sleep: sleep.clone() })
        });
        (lab, requests)
    }
}

/// A store some of whose requests fail.
#[derive(Clone, Debug)]
struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    requests: Requests,
    fault: Fault,
    sleep: Option<Sleep>,
}

impl FaultyStore {
    /// Counts a request, and fails where it is not done. Otherwise: whether its reply arrives.
    async fn request(&self, verb: &'static str, at: &Path) -> Result<bool> {
        let Requests { left, seen } = &self.requests;
        let request = (verb, at.to_string());
        seen.lock().expect("no panic").push(request);
        let take = |left: usize| match left {
            NO_LIMIT => Some(NO_LIMIT),
            left => left.checked_sub(1),
        };
        let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        if taken.is_ok() {
            return Ok(true);
        }
        if self.fault != Fault::AllDead {
            left.store(NO_LIMIT, Ordering::SeqCst);
        }
        match self.fault {
            Fault::AllDead | Fault::OneDead => Err(dead()),
            Fault::ReplyLost | Fault::ReplyExists => Ok(false),
            Fault::Sleep => {
                let (asleep, woken) = self.sleep.clone().expect("a sleep");
                asleep.send(true).expect("received");
                woken.await;
                Ok(true)
            }
            Fault::AlwaysLate | Fault::NoCheckpoint | Fault::NoPublishing | Fault::None => Ok(true),
        }
    }

    fn check_checkpoint(&self, at: &Path) -> Result<()> {
        if self.fault == Fault::NoCheckpoint && at.as_ref().contains("checkpoint") {
            return Err(dead());
        }
        Ok(())
    }

    /// The reply to a request that was done.
    fn reply<T>(&self, through: bool, at: &Path, done: Result<T>) -> Result<T> {
        match (through, self.fault) {
            (false, Fault::ReplyExists) => Err(exists(at)),
            (false, _) => Err(dead()),
            (true, _) => done,
        }
    }
}

fn exists(at: &Path) -> Error {
    Error::AlreadyExists { path: at.to_string(), source: "a first try did it".into() }
}

fn dead() -> Error {
    Error::Generic { store: "faulty", source: "the line is dead".into() }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
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
        // Commits are read ahead, and nobody may wait for a request that sleeps.
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
        let faulty = self.clone();
        let deleted = async move {
            match faulty.request("DELETE", &Path::default()).await {
                Ok(true) => faulty.inner.delete_stream(paths),
                Ok(false) => {
                    let done = faulty.inner.delete_stream(paths);
                    done.map(|_| Err(dead())).boxed()
                }
                Err(error) => stream::once(async { Err(error) }).boxed(),
            }
        };
        deleted.flatten_stream().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (faulty, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            match faulty.request("LIST", &prefix.clone().unwrap_or_default()).await {
                Ok(true) => faulty.inner.list(prefix.as_ref()),
                _ => stream::once(async { Err(dead()) }).boxed(),
            }
        };
        listed.flatten_stream().boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (faulty, prefix, offset) = (self.clone(), prefix.cloned(), offset.clone());
        let listed = async move {
            match faulty.request("LIST", &offset).await {
                Ok(true) => faulty.inner.list_with_offset(prefix.as_ref(), &offset),
                _ => stream::once(async { Err(dead()) }).boxed(),
            }
        };
        listed.flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        match self.request("LIST", &prefix.cloned().unwrap_or_default()).await {
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
