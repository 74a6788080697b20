//! Reach and rights of the locations of a pipeline.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use crate::commands::open_pipeline::RunContext;
use crate::error::{Error, Result};
use crate::layout::{before_probes, is_probe, probe_name};
use crate::raw::discover::is_raw_file;
use crate::report::examined::Examined;
use crate::store::{Folder, Location};

/// The objects of a raw location that are looked at to find one that can be read.
const LOOKED_AT: usize = 1_000;
/// From this difference of clocks on something is wrong; S3 refuses requests from 15 minutes on.
const CLOCK_SECONDS_MAX: i64 = 60;

/// The age from which an object that was written to try is one of a command that was killed.
const LEFT_BEHIND: TimeDelta = TimeDelta::hours(1);

/// How long the checks of a location wait for answers.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// What is written to a place, and removed again.
const PROBE: &[u8] = b"written by glueless doctor, and removed again";

/// Examines all locations of a pipeline.
pub(super) async fn examine(run_context: &RunContext<'_>, examined: &mut Examined) {
    let pipeline = run_context.pipeline;
    for url in &pipeline.raw.urls {
        match answered(url, raw(run_context, url)).await {
            Ok(Some(path)) => examined.ok("raw", format!("{url} can be listed, and {path} read")),
            Ok(None) => {
                let format = pipeline.raw.format.name();
                let message = format!(
                    "none of the first {LOOKED_AT} objects in {url} is a file of the format `{format}`"
                );
                examined.warning(
                    "raw",
                    message,
                    "check `raw.url` and `raw.format`, if there should be some",
                );
            }
            Err(error) => examined.failed("raw", &error),
        }
    }
    let mut clock = None;
    for (setting, location) in pipeline.outputs() {
        let check = setting.strip_suffix(".url").unwrap_or(&setting);
        match written(run_context, location).await {
            Ok(modified) => {
                let is_local = location.file_path().is_some();
                let rights = if is_local {
                    "can be written to, or made"
                } else {
                    "can be listed, read, written if a name is free, and removed from"
                };
                examined.ok(check, format!("{location} {rights}"));
                clock = clock.or(Some(modified).filter(|_| !is_local));
            }
            Err(error) => examined.failed(check, &error),
        }
    }
    if let Some((before, modified)) = clock {
        let ahead = (before - modified).num_seconds();
        if ahead.abs() > CLOCK_SECONDS_MAX {
            let message = format!(
                "the clock of this machine and that of the store differ by {} s",
                ahead.abs()
            );
            examined.error(
                "clock",
                message,
                "set the clock, such as by NTP: windows and signatures depend on it",
            );
        } else {
            examined.ok("clock", "it is that of the store");
        }
    }
}

/// Waits for the answer of a store, and not as long as a run would.
async fn answered<T>(location: &Location, check: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(ANSWER_MAX, check).await.unwrap_or_else(|_| {
        let seconds = ANSWER_MAX.as_secs();
        Err(Error::storage(format!("{location} has not answered within {seconds} s"))
            .hint("check the network and AWS_ENDPOINT_URL, and that the store is up"))
    })
}

/// Lists a raw location and reads a byte of one of its files. Returns its path; `None` if there is none.
async fn raw(run_context: &RunContext<'_>, url: &Location) -> Result<Option<String>> {
    let folder = run_context.stores.open(url)?;
    if url.file_path().is_some_and(|path| !path.is_dir()) {
        return Err(Error::usage(format!("the raw location {url} is not an existing folder"))
            .hint("check `raw.url`"));
    }
    let mut listed = folder.store.list(None).take(LOOKED_AT);
    while let Some(object) = listed.next().await {
        let object = object.map_err(|error| Error::store(format!("list {url}"), error))?;
        let path = object.location.to_string();
        if object.size > 0 && is_raw_file(&path, &run_context.pipeline.raw) {
            let read = folder.store.get_range(&object.location, 0..1).await;
            let doing = || format!("read {}", folder.describe(&path));
            return read.map(|_| Some(path.clone())).map_err(|error| Error::store(doing(), error));
        }
    }
    Ok(None)
}

/// Checks that objects can be made below a location where the name is free, read, listed and removed. Returns the time of this
/// machine before an object was made, and that of the store.
async fn written(
    run_context: &RunContext<'_>,
    location: &Location,
) -> Result<(DateTime<Utc>, DateTime<Utc>)> {
    let folder = nearest(run_context, location)?;
    let name = probe_name(&run_context.run_id);
    let path = Path::from(name.as_str());
    let store = &folder.store;
    let failed =
        |doing: &str, error| Error::store(format!("{doing} {}", folder.describe(&name)), error);
    let before = run_context.now
        + TimeDelta::from_std(run_context.meter.started.elapsed()).unwrap_or_default();
    let probed = answered(location, probe(&folder, &path)).await;
    // Whatever was found, nothing stays: a request without an answer may have been done.
    let removed = async {
        match store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("remove", error)),
        }
    };
    let removed = answered(location, removed).await;
    let object = probed?;
    removed?;
    let gone = async { Ok(store.head(&path).await) };
    match answered(location, gone).await? {
        Err(object_store::Error::NotFound { .. }) => Ok((before, object.last_modified)),
        Err(error) => Err(failed("look for", error)),
        Ok(_) => Err(Error::storage(format!(
            "{} is still there after it was removed",
            folder.describe(&name)
        ))
        .hint("the store must show each object as it is: see docs/operating.md")),
    }
}

/// Makes an object, and looks at it.
async fn probe(folder: &Folder, path: &Path) -> Result<ObjectMeta> {
    let name = folder.describe(path.as_ref());
    let store: &Arc<dyn ObjectStore> = &folder.store;
    let put = || store.put_opts(path, PutPayload::from_static(PROBE), PutMode::Create.into());
    match put().await {
        // No other run has this name: a request that was repeated had been done.
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
        Err(error) => return Err(Error::store(format!("write {name}"), error)),
    }
    match put().await {
        Err(object_store::Error::AlreadyExists { .. }) => {}
        Err(error) => {
            return Err(Error::store(format!("write {name} only if it is not there"), error));
        }
        Ok(_) => {
            let message = format!(
                "the store wrote {name} a second time, although it was to be written only if it is not there"
            );
            return Err(Error::storage(message).hint(
                "use a store with conditional writes (If-None-Match): without them two runs at once could undo each other",
            ));
        }
    }
    let found =
        store.get(path).await.map_err(|error| Error::store(format!("read {name}"), error))?;
    let object = found.meta.clone();
    let bytes = found.bytes().await.map_err(|error| Error::store(format!("read {name}"), error))?;
    if bytes != Bytes::from_static(PROBE) || !is_listed(folder, path, object.last_modified).await? {
        return Err(Error::storage(format!(
            "{name} was written, and is not there as it was written"
        ))
        .hint("the store must show each object as soon as it is written"));
    }
    Ok(object)
}

/// Whether a listing has an object. Removes those that earlier commands have left, which were killed. A local folder, which may be
/// any that exists above the location, is not listed.
async fn is_listed(folder: &Folder, path: &Path, now: DateTime<Utc>) -> Result<bool> {
    if folder.location.file_path().is_some() {
        return Ok(true);
    }
    let failed = |error| Error::store(format!("list {}", folder.location), error);
    let mut listed =
        folder.store.list_with_offset(None, &Path::from(before_probes())).take(LOOKED_AT);
    let mut is_listed = false;
    while let Some(object) = listed.next().await {
        let object = object.map_err(failed)?;
        if !is_probe(object.location.as_ref()) {
            break;
        }
        is_listed |= object.location == *path;
        if object.location != *path && now - object.last_modified > LEFT_BEHIND {
            let removed = folder.store.delete(&object.location).await;
            removed.map_err(|error| {
                Error::store(format!("remove {}", folder.describe(object.location.as_ref())), error)
            })?;
        }
    }
    Ok(is_listed)
}

/// The folder of a location; of a local one that does not exist yet, the nearest above that does.
fn nearest(run_context: &RunContext<'_>, location: &Location) -> Result<Folder> {
    let Some(path) = location.file_path() else { return run_context.stores.open(location) };
    let existing = path.ancestors().find(|folder| folder.is_dir());
    match existing.and_then(std::path::Path::to_str) {
        Some(existing) => {
            run_context.stores.open(&Location::parse(existing, std::path::Path::new("/"))?)
        }
        None => run_context.stores.open(location),
    }
}
