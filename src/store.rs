//! Locations: a URL or path of the pipeline becomes an object store and a prefix in it.
//!
//! Local folders and S3 (any S3-compatible endpoint) are supported. The S3 client and its
//! credentials (environment, profiles, web identity, instance roles) are those of `deltalake`, so
//! that curated tables and the state beside them are accessed in the same way.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Component, Path as FilePath, PathBuf};
use std::sync::Arc;

use deltalake::aws::storage::S3ObjectStoreFactory;
use deltalake::logstore::{ObjectStoreFactory, StorageConfig};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::Semaphore;
use url::Url;

use crate::error::{Error, Result};
use crate::store::limited::Limited;

mod limited;
pub mod listing;
pub mod remove;

/// The number of paths that are synced at once.
const CONCURRENT_SYNCS: usize = 16;

/// A location named in a pipeline, checked but not opened: an absolute local path or an S3 prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    url: Url,
}

impl Location {
    /// Parses a path, relative to `folder`, or a `file://` or `s3://` URL.
    ///
    /// # Errors
    /// Usage, when the URL cannot be parsed or its scheme is neither `file` nor `s3`.
    pub fn parse(text: &str, folder: &FilePath) -> Result<Self> {
        let url = match text.split_once("://") {
            None => folder_url(&folder.join(text))?,
            Some(("file", _)) => {
                let url = Url::parse(text).map_err(|error| {
                    Error::usage(format!("`{text}` is not a URL")).caused_by(error)
                })?;
                let path = url.to_file_path().map_err(|()| {
                    Error::usage(format!("`{text}` does not name a folder on this machine"))
                        .hint("write file:///absolute/path")
                })?;
                folder_url(&path)?
            }
            Some(("s3", rest)) => {
                let rest = rest.trim_matches('/');
                if rest.is_empty() {
                    return Err(Error::usage(format!("`{text}` names no bucket")));
                }
                if rest.split('/').next().is_some_and(|bucket| bucket.contains('@')) {
                    return Err(Error::usage("an s3:// URL holds credentials")
                        .hint("leave them out: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
                }
                // The prefix is percent-encoded once here; `prefix` undoes it.
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let mut url = Url::parse(&format!("s3://{bucket}/")).map_err(|error| {
                    Error::usage(format!("`{text}` is not a URL")).caused_by(error)
                })?;
                url.set_path(&encode(prefix));
                url
            }
            Some((scheme, _)) => {
                return Err(Error::usage(format!("`{text}`: unknown scheme `{scheme}`"))
                    .hint("use a path, file:// or s3://"));
            }
        };
        Ok(Location { url })
    }

    /// The location that was written as a text by [`Location`]'s `Display`.
    ///
    /// # Errors
    /// As [`Location::parse`].
    pub fn of_text(text: &str) -> Result<Self> {
        if !text.starts_with("s3://") {
            return Location::parse(text, FilePath::new("/"));
        }
        let url = Url::parse(text)
            .map_err(|error| Error::usage(format!("`{text}` is not a URL")).caused_by(error))?;
        Ok(Location { url })
    }

    /// The location as a URL without a trailing slash.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The sibling folder `../<name>`. None at the root of a bucket or file system.
    pub fn sibling(&self, name: &str) -> Option<Self> {
        let path = self.url.path().trim_end_matches('/');
        let (parent, _) = path.rsplit_once('/')?;
        if path.is_empty() {
            return None;
        }
        let mut url = self.url.clone();
        url.set_path(&format!("{parent}/{}", encode(name)));
        Some(Location { url })
    }

    /// The folder `name` under this one.
    pub fn join(&self, name: &str) -> Self {
        let mut url = self.url.clone();
        url.set_path(&format!("{}/{}", self.url.path().trim_end_matches('/'), encode(name)));
        Location { url }
    }

    /// Whether one location contains the other, or they are the same.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (slashed(&self.url), slashed(&other.url));
        a.starts_with(&b) || b.starts_with(&a)
    }

    /// Whether renames and server-side copies between the two are possible.
    pub fn same_store(&self, other: &Self) -> bool {
        self.url.scheme() == other.url.scheme() && self.url.host_str() == other.url.host_str()
    }

    /// The local path, if the location is local.
    pub fn file_path(&self) -> Option<PathBuf> {
        (self.url.scheme() == "file").then(|| self.url.to_file_path().ok()).flatten()
    }

    /// The location as others write it, with a slash at its end: a path, or `s3://bucket/prefix/` with the
    /// prefix that objects have, not encoded.
    pub fn folder(&self) -> String {
        if self.file_path().is_some() {
            return format!("{}/", self.to_string().trim_end_matches('/'));
        }
        let prefix = self.prefix().map(|prefix| prefix.to_string()).unwrap_or_default();
        let bucket = self.url.host_str().unwrap_or_default();
        let folder = format!("{}://{bucket}/{prefix}", self.url.scheme());
        format!("{}/", folder.trim_end_matches('/'))
    }

    /// The path inside the store.
    fn prefix(&self) -> Result<Path> {
        Path::from_url_path(self.url.path()).map_err(|error| {
            Error::usage(format!("cannot use the location {self}")).caused_by(error)
        })
    }
}

impl fmt::Display for Location {
    /// The path of a local location, else the URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file_path() {
            Some(path) => write!(f, "{}", path.display()),
            None => write!(f, "{}", self.url.as_str().trim_end_matches('/')),
        }
    }
}

fn slashed(url: &Url) -> String {
    format!("{}/", url.as_str().trim_end_matches('/'))
}

/// Percent-encodes the characters that a URL path treats specially; the `url` crate encodes the
/// rest.
fn encode(path: &str) -> String {
    path.replace('%', "%25").replace('?', "%3F").replace('#', "%23")
}

/// A path without `.` and `..`.
pub fn clean(path: &FilePath) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

fn folder_url(path: &FilePath) -> Result<Url> {
    Url::from_file_path(clean(path))
        .map_err(|()| Error::usage(format!("`{}` is not an absolute path", path.display())))
}

/// An opened [`Location`]: object names are relative to it.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The location.
    pub location: Location,
    /// The store, rooted at the location.
    pub store: Arc<dyn ObjectStore>,
    /// The store, rooted at the bucket or filesystem.
    pub root_store: Arc<dyn ObjectStore>,
    /// The location's path below `root_store`.
    pub prefix: Path,
}

impl Folder {
    /// The full name of an object, for messages.
    pub fn describe(&self, path: &str) -> String {
        format!("{}/{path}", self.location)
    }

    /// The path below [`Folder::root_store`] of an object named relative to this folder.
    ///
    /// # Errors
    /// Internal, when the name cannot be a path.
    pub fn root_path(&self, path: &str) -> Result<Path> {
        let joined = match self.prefix.as_ref() {
            "" => path.to_string(),
            prefix => format!("{prefix}/{path}"),
        };
        parse_path(&joined)
    }

    /// Syncs objects of a local folder, and their folders, to the disk, so that they survive a
    /// power failure. Missing and remote objects are skipped.
    ///
    /// # Errors
    /// Storage, when the disk fails.
    pub fn sync(&self, paths: &[String]) -> Result<()> {
        let Some(root) = self.location.file_path() else {
            return Ok(());
        };
        let sync =
            |path: &FilePath| match std::fs::File::open(path).and_then(|file| file.sync_all()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::storage(format!("cannot sync {}", path.display())).caused_by(error))
                }
                _ => Ok(()),
            };
        let files: Vec<PathBuf> = paths.iter().map(|path| root.join(path)).collect();
        let mut folders = BTreeSet::new();
        for file in &files {
            let above = file.ancestors().skip(1).take_while(|folder| folder.starts_with(&root));
            folders.extend(above.map(FilePath::to_path_buf));
        }
        concurrently(&files, sync)?;
        concurrently(&folders.into_iter().collect::<Vec<_>>(), sync)
    }

    /// Reads a whole object; `None` if it does not exist.
    ///
    /// # Errors
    /// Storage, when it cannot be read.
    pub async fn read(&self, path: &str) -> Result<Option<bytes::Bytes>> {
        let doing = || format!("read {}", self.describe(path));
        match self.store.get(&parse_path(path)?).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(|e| Error::store(doing(), e))?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Error::store(doing(), error)),
        }
    }
}

/// Syncs paths on several threads: the disk then writes the journal once for many of them.
fn concurrently(
    paths: &[PathBuf],
    sync: impl Fn(&FilePath) -> Result<()> + Copy + Send + Sync,
) -> Result<()> {
    let threads = CONCURRENT_SYNCS.min(paths.len()).max(1);
    std::thread::scope(|scope| {
        let of_thread = move |thread: usize| paths.iter().skip(thread).step_by(threads);
        let workers: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || of_thread(thread).try_for_each(|path| sync(path))))
            .collect();
        let results = workers.into_iter().map(|worker| worker.join());
        results
            .into_iter()
            .try_for_each(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Parses a path inside a store literally: percent signs and spaces are not decoded.
///
/// # Errors
/// Internal, when the name cannot be a path.
pub fn parse_path(path: &str) -> Result<Path> {
    Path::parse(path)
        .map_err(|error| Error::internal(format!("cannot use the name `{path}`")).caused_by(error))
}

/// A function that wraps a store.
pub type Wrap = dyn Fn(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> + Send + Sync;

/// Opens locations, with settings from a given environment.
#[derive(Clone, Default)]
pub struct Stores {
    environment: HashMap<String, String>,
    wrap: Option<Arc<Wrap>>,
    /// The requests to S3 that may still begin, if they are limited.
    requests: Option<Arc<Semaphore>>,
}

impl fmt::Debug for Stores {
    /// Omits the environment, which contains secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stores")
    }
}

impl Stores {
    /// Uses the `AWS_*` variables in `environment`.
    pub fn new(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let environment =
            environment.into_iter().filter(|(name, _)| name.starts_with("AWS_")).collect();
        Stores { environment, wrap: None, requests: None }
    }

    /// Limits the requests to S3 that are in flight at once.
    pub fn limited(mut self, requests: usize) -> Self {
        self.requests = Some(Arc::new(Semaphore::new(requests)));
        self
    }

    /// Wraps every store, so that tests can count requests and inject failures.
    pub fn wrapped(mut self, wrap: Arc<Wrap>) -> Self {
        self.wrap = Some(wrap);
        self
    }

    /// Opens a location, without any request and without creating a folder.
    ///
    /// # Errors
    /// Usage or storage, when the store cannot be set up (for example without credentials).
    pub fn open(&self, location: &Location) -> Result<Folder> {
        let root_store: Arc<dyn ObjectStore> = match location.url.scheme() {
            "file" => Arc::new(LocalFileSystem::new().with_automatic_cleanup(false)),
            _ => {
                let mut options = self.environment.clone();
                let endpoint =
                    options.get("AWS_ENDPOINT_URL_S3").or(options.get("AWS_ENDPOINT_URL"));
                let parsed = endpoint.and_then(|endpoint| Url::parse(endpoint).ok());
                if parsed.is_some_and(|url| !url.username().is_empty() || url.password().is_some())
                {
                    return Err(Error::usage("AWS_ENDPOINT_URL holds credentials")
                        .hint("leave them out: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
                }
                if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
                    options.insert("AWS_ALLOW_HTTP".into(), "true".into());
                }
                let config = StorageConfig::parse_options(options)
                    .map_err(|e| Error::usage("cannot read the AWS settings").caused_by(e))?;
                let (store, _) = S3ObjectStoreFactory {}
                    .parse_url_opts(&location.url, &config)
                    .map_err(|e| Error::storage(format!("cannot open {location}")).caused_by(e))?;
                match &self.requests {
                    Some(requests) => Arc::new(Limited { store, requests: Arc::clone(requests) }),
                    None => store,
                }
            }
        };
        let root_store = match &self.wrap {
            Some(wrap) => wrap(root_store),
            None => root_store,
        };
        let prefix = location.prefix()?;
        let store: Arc<dyn ObjectStore> =
            Arc::new(PrefixStore::new(Arc::clone(&root_store), prefix.clone()));
        Ok(Folder { location: location.clone(), store, root_store, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Location {
        Location::parse(text, FilePath::new("/base/sql")).expect("a location")
    }

    #[test]
    fn a_relative_path_is_resolved_in_the_pipelines_folder() {
        assert_eq!(at("../lake/a b%20c").to_string(), "/base/lake/a b%20c");
        assert_eq!(at("../lake/a b%20c").prefix().expect("a prefix").as_ref(), "base/lake/a b%20c");
    }

    #[test]
    fn an_s3_prefix_keeps_percent_signs_and_spaces() {
        let location = at("s3://bucket/raw/ä b%20c/");
        assert_eq!(location.folder(), "s3://bucket/raw/ä b%20c/");
        assert_eq!(at("s3://bucket").folder(), "s3://bucket/");
        assert_eq!(location.prefix().expect("a prefix").as_ref(), "raw/ä b%20c");
    }

    #[test]
    fn overlapping_is_by_whole_names() {
        assert!(at("s3://b/a").overlaps(&at("s3://b/a/c/")));
        assert!(at("s3://b/a").overlaps(&at("s3://b/a")));
        assert!(!at("s3://b/a").overlaps(&at("s3://b/ab")));
        assert!(!at("s3://b/a").overlaps(&at("s3://c/a")));
    }

    #[test]
    fn a_bucket_has_no_sibling() {
        assert_eq!(at("s3://bucket").sibling("x"), None);
        assert_eq!(
            at("s3://bucket/a").sibling("x").map(|l| l.to_string()),
            Some("s3://bucket/x".into())
        );
        assert_eq!(at("/lake/a").sibling("x").map(|l| l.to_string()), Some("/lake/x".into()));
    }

    #[test]
    fn other_schemes_are_refused() {
        let error = Location::parse("gs://b/a", FilePath::new("/")).expect_err("unknown");
        assert_eq!(error.to_string(), "`gs://b/a`: unknown scheme `gs`");
    }
}
