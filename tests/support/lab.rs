//! A pipeline with its own raw folder and lake.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use glueless::error::Error;
use glueless::store::{Folder, Location, Stores, parse_path};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tempfile::TempDir;

use super::RUNTIME;
use super::s3::environment_of;

/// Where a test's raw files and tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Local,
    S3,
}

pub const PLACES: [Place; 2] = [Place::Local, Place::S3];

/// The folder of the default pipeline's state.
pub const STATE: &str = "lake/_glueless/lab";

/// A pipeline of a test, with its own raw folder and lake.
pub struct Lab {
    pub folder: TempDir,
    /// The URL of the folder that holds `raw` and `lake`.
    pub base: String,
    pub stores: Stores,
    /// The folder with `pipeline.toml` and the queries.
    pub pipeline: PathBuf,
    /// The time that commands in this process get.
    pub now: DateTime<Utc>,
    /// The environment variables that a pipeline can name.
    pub environment: BTreeMap<String, String>,
}

impl Lab {
    /// A lab with a whole `pipeline.toml` and SQL files; `{base}` in the toml is the lab's URL.
    /// [`Lab::builder`] needs less.
    pub fn new(place: Place, toml: &str, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let base = match place {
            Place::Local => folder.path().display().to_string(),
            Place::S3 => {
                let name = folder.path().file_name().expect("a name").to_string_lossy();
                format!("s3://lab/{}", name.trim_start_matches('.'))
            }
        };
        let lab = Lab {
            stores: Stores::new(environment_of(&base)),
            pipeline: folder.path().join("pipeline"),
            now: DateTime::UNIX_EPOCH,
            environment: BTreeMap::new(),
            folder,
            base,
        };
        for name in ["pipeline", "raw"] {
            std::fs::create_dir(lab.folder.path().join(name)).expect("a folder");
        }
        lab.write_file("pipeline.toml", &toml.replace("{base}", &lab.base));
        for (name, text) in files {
            lab.write_file(name, text);
        }
        lab
    }

    /// The same lab, whose objects are reached through another store.
    pub fn through(
        &self,
        wrap: impl Fn(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> + Send + Sync + 'static,
    ) -> Self {
        Lab {
            folder: tempfile::tempdir().expect("a folder"),
            base: self.base.clone(),
            stores: self.stores.clone().wrapped(Arc::new(wrap)),
            pipeline: self.pipeline.clone(),
            now: self.now,
            environment: self.environment.clone(),
        }
    }

    /// Writes a file of the pipeline, such as `curated.sql`.
    pub fn write_file(&self, name: &str, text: &str) {
        std::fs::write(self.pipeline.join(name), text).expect("written");
    }

    /// Replaces a text in `pipeline.toml`, where it must be.
    pub fn edit_pipeline(&self, from: &str, to: &str) {
        let file = self.pipeline.join("pipeline.toml");
        let text = std::fs::read_to_string(&file).expect("a file");
        assert!(text.contains(from), "{text}");
        self.write_file("pipeline.toml", &text.replace(from, to));
    }

    /// A folder below the lab's base.
    pub fn open(&self, name: &str) -> Folder {
        let location = Location::parse(&format!("{}/{name}", self.base), self.folder.path());
        self.stores.open(&location.expect("a location")).expect("a folder")
    }

    /// Writes one object.
    pub fn put(&self, path: &str, bytes: impl Into<Bytes>) {
        self.put_all(vec![(path.to_string(), bytes.into())]);
    }

    /// Writes many objects at once.
    pub fn put_all(&self, objects: Vec<(String, Bytes)>) {
        let base = self.open("");
        let puts = objects.into_iter().map(|(path, bytes)| {
            let store = Arc::clone(&base.store);
            async move { store.put(&parse_path(&path).expect("a path"), bytes.into()).await }
        });
        let written = stream::iter(puts).buffer_unordered(16).try_for_each(|_| async { Ok(()) });
        RUNTIME.block_on(written).expect("written");
    }

    /// Writes one object in parts, as a tool may copy it: on S3, its ETag is another one.
    pub fn put_in_parts(&self, path: &str, bytes: impl Into<Bytes>) {
        let base = self.open("");
        let written = async {
            let path = parse_path(path)?;
            let mut upload = base.store.put_multipart(&path).await.expect("begun");
            upload.put_part(bytes.into().into()).await.expect("a part");
            upload.complete().await.expect("written");
            Ok::<_, Error>(())
        };
        RUNTIME.block_on(written).expect("written");
    }

    /// Removes one object.
    pub fn remove(&self, path: &str) {
        let base = self.open("");
        let removed = async { base.store.delete(&parse_path(path).expect("a path")).await };
        RUNTIME.block_on(removed).expect("removed");
    }

    /// Removes all objects below a folder.
    pub fn remove_all(&self, folder: &str) {
        for path in self.list_all(folder) {
            self.remove(&format!("{folder}/{path}"));
        }
    }

    /// Gives an object another path.
    pub fn rename(&self, from: &str, to: &str) {
        self.copy(from, to);
        self.remove(from);
    }

    /// Writes an object once more, to another path.
    pub fn copy(&self, from: &str, to: &str) {
        self.put(to, self.get(from));
    }

    /// Writes the raw files of another lab to this one.
    pub fn copy_raw(&self, other: &Lab) {
        for path in other.list_all("raw") {
            let path = format!("raw/{path}");
            self.put(&path, other.get(&path));
        }
    }

    /// Sets when an object of a local lab was last written, in seconds since 1970.
    pub fn set_modified(&self, path: &str, seconds: i64) {
        let at = DateTime::from_timestamp_secs(seconds).expect("a time");
        self.set_modified_at(path, at);
    }

    /// Sets when an object of a local lab was last written.
    pub fn set_modified_at(&self, path: &str, at: DateTime<Utc>) {
        let file = std::fs::File::options()
            .write(true)
            .open(format!("{}/{path}", self.base))
            .expect("a file");
        file.set_modified(at.into()).expect("set");
    }

    /// The objects below a folder, in any order.
    pub fn objects(&self, folder: &str) -> Vec<ObjectMeta> {
        let folder = self.open(folder);
        let listed = async { folder.store.list(None).try_collect().await };
        RUNTIME.block_on(listed).expect("listed")
    }

    /// The names of all objects below a folder, sorted.
    pub fn list_all(&self, folder: &str) -> Vec<String> {
        let objects = self.objects(folder).into_iter();
        let mut names: Vec<String> = objects.map(|object| object.location.to_string()).collect();
        names.sort();
        names
    }

    /// Reads one object.
    pub fn get(&self, path: &str) -> Bytes {
        let base = self.open("");
        let read = async {
            let found = base.store.get(&parse_path(path).expect("a path")).await?;
            found.bytes().await
        };
        RUNTIME.block_on(read).expect("read")
    }

    /// Reads one object as text.
    pub fn get_text(&self, path: &str) -> String {
        String::from_utf8(self.get(path).to_vec()).expect("text")
    }
}
