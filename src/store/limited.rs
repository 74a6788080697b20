//! A store of whose requests only so many are in flight at once, together with those of other stores.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// A store with a limit. A request waits until one of the others has its answer, but not for ever: one that nobody is waiting for
/// just then, because its answer is needed later, may hold up those that are needed now. Listings, deletions and the parts of
/// large files do not wait.
///
/// Why not the `LimitStore` of `object_store`: each has a limit of its own.
#[derive(Debug)]
pub(super) struct Limited {
    /// The store.
    pub(super) store: Arc<dyn ObjectStore>,
    /// The requests that may still begin.
    pub(super) requests: Arc<Semaphore>,
}

/// The longest time that a request waits for others.
const WAIT_MAX: Duration = Duration::from_secs(1);

impl Limited {
    /// Waits until a request may begin.
    async fn wait(&self) -> Option<SemaphorePermit<'_>> {
        tokio::time::timeout(WAIT_MAX, self.requests.acquire()).await.ok()?.ok()
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Limited {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let _request = self.wait().await;
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let _request = self.wait().await;
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let _request = self.wait().await;
        self.store.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let _request = self.wait().await;
        self.store.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let _request = self.wait().await;
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let _request = self.wait().await;
        self.store.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let _request = self.wait().await;
        self.store.rename_opts(from, to, options).await
    }
}
