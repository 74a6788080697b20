//! Publish: exactly the planned partitions of a Hive-partitioned Parquet table are replaced.
//!
//! A plan is made from what was staged and from the table's files before (the ledger's list,
//! never a listing). Once it is committed, every new file is brought to its place, then the old
//! ones are removed. Emptied partitions lose their folder.
//!
//! Anyone may publish a commit, any number of times, at the same time: the next command finishes
//! one that was interrupted ([`announce`]d runs have their files in the ledger, with their places
//! in staging). What a process does that slept while others went on harms nothing:
//!
//! * A partition with one file before and after keeps the file's name, and the file is swapped in
//!   one step, so that a reader sees the old or the new one. The step needs the file in staging,
//!   which goes before anything newer is published: locally a rename takes it away, and on S3,
//!   where a copy could not be made to depend on what it replaces, the tag of the file to be
//!   replaced is read first, the staged file next, and the write holds only while the tag does.
//!   (Every file names its attempt in its footer, so that no two have one tag.)
//! * Every other file carries its commit's number, and a name that went does not come again, so
//!   that a removal hits what it was meant for or nothing.
//! * Only files of the same or an earlier commit are swept away.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::error::{Error, Result};
use crate::layout::{
    OWNER_MARKER, attempt_commit, base_name, is_leftover, parent, part_file_commit, part_file_name,
};
use crate::store::{Folder, parse_path};
use crate::table_writer::StagedFile;

/// How many files are moved or removed at once.
const MOVES: usize = 16;
/// A larger file is swapped in alone.
const LARGE_BYTES: u64 = 16 << 20;
/// How often a swap is tried again that met another process's.
const SWAPS: usize = 20;

/// A published file, as the ledger lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFile {
    /// Its path relative to the table's URL.
    pub path: String,
    /// Its rows.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Where it waits in staging until the commit that made it is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<String>,
}

/// Whether a partition with one file before and after keeps the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// It does, and the file is swapped in one step.
    Kept,
    /// Every file has a new name.
    New,
}

/// How one table changes.
#[derive(Debug, Default)]
pub struct Plan {
    /// The paths of published files that go.
    pub removes: Vec<String>,
    /// The table's files afterwards, sorted by path; the new ones are still staged.
    pub files: Vec<TableFile>,
    /// What changes, for the report.
    pub counts: Counts,
}

/// How much a plan changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows that are written.
    pub rows_written: u64,
    /// Bytes that are written.
    pub bytes_written: u64,
    /// Partitions that are written.
    pub partitions_written: u64,
    /// Partitions that are left without rows.
    pub partitions_removed: u64,
    /// Rows of the replaced partitions before.
    pub rows_removed: u64,
}

/// Plans the replacement of some partitions: `replaced` tells of each partition's folder whether
/// it is. Staged files belong to replaced partitions.
pub fn plan(
    staged: Vec<StagedFile>,
    before: &[TableFile],
    replaced: impl Fn(&str) -> bool,
    commit: u64,
    names: Names,
) -> Plan {
    let mut plan = Plan::default();
    let mut by_partition: BTreeMap<String, Vec<StagedFile>> = BTreeMap::new();
    for file in staged {
        by_partition
            .entry(file.partition.clone())
            .or_default()
            .push(file);
    }
    let mut old: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in before {
        if replaced(parent(&file.path)) {
            old.entry(parent(&file.path)).or_default().push(&file.path);
            plan.counts.rows_removed += file.rows;
        } else {
            plan.files.push(TableFile {
                staged: None,
                ..file.clone()
            });
        }
    }
    plan.counts.partitions_written = by_partition.len() as u64;
    for (partition, files) in &by_partition {
        let replaced = old.get(partition.as_str()).map_or(&[][..], Vec::as_slice);
        for (number, file) in files.iter().enumerate() {
            let name = part_file_name(commit, number);
            let path = match replaced {
                [only] if files.len() == 1 && names == Names::Kept => only.to_string(),
                _ if partition.is_empty() => name,
                _ => format!("{partition}/{name}"),
            };
            plan.counts.rows_written += file.rows;
            plan.counts.bytes_written += file.bytes;
            plan.files.push(TableFile {
                path,
                rows: file.rows,
                bytes: file.bytes,
                staged: Some(file.staged.clone()),
            });
        }
    }
    plan.files.sort_by(|a, b| a.path.cmp(&b.path));
    let after: BTreeSet<&str> = plan.files.iter().map(|file| file.path.as_str()).collect();
    plan.removes = before
        .iter()
        .map(|file| file.path.clone())
        .filter(|path| !after.contains(path.as_str()))
        .collect();
    let emptied: BTreeSet<&str> = before
        .iter()
        .map(|file| parent(&file.path))
        .filter(|partition| replaced(partition) && !by_partition.contains_key(*partition))
        .collect();
    plan.counts.partitions_removed = emptied.len() as u64;
    plan
}

impl Plan {
    /// The files that are new, or new under an old name.
    pub fn added(&self) -> impl Iterator<Item = &TableFile> {
        self.files.iter().filter(|file| file.staged.is_some())
    }
}

/// Publishes a commit's new files, and removes those that the table has no longer: `files` are all
/// that it has. `found` is what the folder held before, as [`list_tidied`] tells it.
///
/// # Errors
/// Storage, when a file cannot be moved or removed. It is safe to publish again.
pub async fn publish(
    table: &Folder,
    staging: &Folder,
    added: &[&TableFile],
    files: &[&TableFile],
    commit: u64,
    found: Vec<String>,
) -> Result<()> {
    move_staged(table, staging, added).await?;
    let known: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    sweep(table, found, |path| known.contains(path), commit).await
}

/// Moves files from staging to their places; those already there stay.
///
/// # Errors
/// Storage, when a file cannot be moved.
pub async fn move_staged(table: &Folder, staging: &Folder, files: &[&TableFile]) -> Result<()> {
    // Files that are swapped in go through memory: large ones one at a time.
    let (large, small): (Vec<&TableFile>, Vec<&TableFile>) =
        files.iter().partition(|file| file.bytes > LARGE_BYTES);
    for (files, at_once) in [(small, MOVES), (large, 1)] {
        let moves = files.into_iter().map(|file| async move {
            let Some(from) = &file.staged else {
                return Ok(());
            };
            let to = table.root_path(&file.path)?;
            let moved = move_one(table, staging.root_path(from)?, to, file.bytes).await;
            moved.map_err(|error| {
                let (from, to) = (staging.describe(from), table.describe(&file.path));
                Error::store(format!("move {from} to {to}"), error)
            })
        });
        stream::iter(moves)
            .buffer_unordered(at_once)
            .try_collect::<()>()
            .await?;
    }
    let moved: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
    table.sync(&moved)
}

/// Moves a file of so many bytes.
async fn move_one(table: &Folder, from: Path, to: Path, bytes: u64) -> object_store::Result<()> {
    let store = &table.root_store;
    let mut tries = 0;
    loop {
        // A local rename is one step by itself.
        let replaced = match table.location.file_path() {
            Some(_) => None,
            None => match store.head(&to).await {
                Err(object_store::Error::NotFound { .. }) => None,
                found => Some(found?),
            },
        };
        let moved = match replaced {
            None => store.rename(&from, &to).await,
            Some(replaced) => swap(table, &from, &to, replaced).await,
        };
        match moved {
            // It was moved before an interruption, or by another process.
            Err(object_store::Error::NotFound { .. })
                if store.head(&to).await.is_ok_and(|there| there.size == bytes) =>
            {
                return Ok(());
            }
            Err(object_store::Error::Precondition { .. }) if tries < SWAPS => tries += 1,
            moved => return moved,
        }
    }
}

/// Replaces an object by a staged one, if it still is what it was.
async fn swap(
    table: &Folder,
    from: &Path,
    to: &Path,
    replaced: ObjectMeta,
) -> object_store::Result<()> {
    let store = &table.root_store;
    let staged = store.get(from).await?.bytes().await?;
    let condition = PutMode::Update(UpdateVersion {
        e_tag: replaced.e_tag,
        version: replaced.version,
    });
    store
        .put_opts(to, PutPayload::from(staged), condition.into())
        .await?;
    match store.delete(from).await {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        deleted => deleted,
    }
}

/// Removes objects of a folder, those already gone included, and folders left empty.
///
/// # Errors
/// Storage, when an object cannot be removed.
pub async fn remove(folder: &Folder, paths: Vec<String>) -> Result<()> {
    let removals = paths.iter().map(|path| async move {
        // The local store hides the leftovers of a crash from deletes as well.
        let hidden = folder.location.file_path();
        if let Some(root) = hidden.filter(|_| is_leftover(base_name(path))) {
            let removed = std::fs::remove_file(root.join(path));
            return removed.or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(
                    Error::storage(format!("cannot remove {}", folder.describe(path)))
                        .caused_by(error),
                ),
            });
        }
        match folder.store.delete(&parse_path(path)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::store(
                format!("remove {}", folder.describe(path)),
                error,
            )),
        }
    });
    stream::iter(removals)
        .buffer_unordered(MOVES)
        .try_collect::<()>()
        .await?;
    if let Some(root) = folder.location.file_path() {
        for path in &paths {
            let mut emptied = root.join(parent(path));
            // Removing fails, as it should, at the first folder that holds something.
            while emptied != root
                && emptied.starts_with(&root)
                && std::fs::remove_dir(&emptied).is_ok()
            {
                debug!("removed an empty folder");
                emptied.pop();
            }
        }
    }
    Ok(())
}

/// Of what a folder held before a commit was published, removes files of ours that are not used,
/// nor made by a later commit than this one, and what a crashed writer left. Files that are not
/// ours are reported and left alone.
///
/// # Errors
/// Storage, when a file cannot be removed.
pub async fn sweep(
    table: &Folder,
    found: Vec<String>,
    is_used: impl Fn(&str) -> bool,
    commit: u64,
) -> Result<()> {
    let is_stray = |path: &String| {
        let name = base_name(path);
        if is_used(path) || name == OWNER_MARKER {
            return false;
        }
        let whole = name.split('#').next().unwrap_or_default();
        if whole == OWNER_MARKER && is_leftover(name) {
            return true;
        }
        let made_by = part_file_commit(whole).filter(|_| whole == name || is_leftover(name));
        let shown = table.describe(path);
        match made_by {
            Some(of) if of <= commit => debug!("removing the leftover {name}"),
            Some(_) => {}
            None => warn!("not a file of this pipeline, left alone: {shown}"),
        }
        made_by.is_some_and(|of| of <= commit)
    };
    remove(table, found.into_iter().filter(is_stray).collect()).await
}

/// Removes what attempts at commits up to this one left: none of them can land any more, and
/// what landed was published.
///
/// # Errors
/// Storage, when the folder cannot be listed or a file not be removed.
pub async fn clear(staging: &Folder, commit: u64) -> Result<()> {
    let left = list_tidied(staging).await?.into_iter();
    let is_dead = |path: &String| attempt_commit(path).is_some_and(|of| of <= commit);
    remove(staging, left.filter(is_dead).collect()).await?;
    if let Some(root) = staging.location.file_path() {
        // The folder and those it may be alone in, `_glueless/<name>/staging`.
        for folder in root.ancestors().take(4) {
            // Fails, as it should, at the first that holds something.
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// Removes what one attempt left in a folder.
///
/// # Errors
/// Storage, when the folder cannot be listed or a file not be removed.
pub async fn discard(folder: &Folder, attempt: &str) -> Result<()> {
    let left = list(folder).await?.into_iter();
    remove(
        folder,
        left.filter(|path| path.starts_with(attempt)).collect(),
    )
    .await
}

/// Every object of a folder, relative to it, crash leftovers of the local store included, sorted.
///
/// # Errors
/// Storage, when the listing fails.
pub async fn list(folder: &Folder) -> Result<Vec<String>> {
    list_in(folder, false).await
}

/// The objects of a folder, relative to it, and their sizes.
///
/// # Errors
/// Storage, when the listing fails.
pub async fn sizes(folder: &Folder) -> Result<BTreeMap<String, u64>> {
    let objects = folder.store.list(None);
    let sizes = objects.map_ok(|object| (object.location.to_string(), object.size));
    let sizes = sizes.try_collect().await;
    sizes.map_err(|error| Error::store(format!("list {}", folder.location), error))
}

/// As [`list`]; empty folders are removed on the way.
///
/// # Errors
/// Storage, when the listing fails.
pub async fn list_tidied(folder: &Folder) -> Result<Vec<String>> {
    list_in(folder, true).await
}

async fn list_in(folder: &Folder, is_tidied: bool) -> Result<Vec<String>> {
    // The store hides the local leftovers `name#1`, so a local folder is walked itself.
    if let Some(root) = folder.location.file_path() {
        let mut found = Vec::new();
        walk(&root, "", &mut found, is_tidied).map_err(|error| {
            Error::storage(format!("cannot list {}", folder.location)).caused_by(error)
        })?;
        found.sort();
        return Ok(found);
    }
    let mut found: Vec<String> = folder
        .store
        .list(None)
        .map_ok(|object| object.location.to_string())
        .try_collect()
        .await
        .map_err(|error| Error::store(format!("list {}", folder.location), error))?;
    found.sort();
    Ok(found)
}

fn walk(
    folder: &std::path::Path,
    prefix: &str,
    found: &mut Vec<String>,
    is_tidied: bool,
) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if !entry.file_type()?.is_dir() {
            found.push(name);
            continue;
        }
        let before = found.len();
        walk(&entry.path(), &format!("{name}/"), found, is_tidied)?;
        if is_tidied && found.len() == before {
            // Fails, as it should, when another process has put something into it.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
    Ok(())
}

/// Says, before its commit, that an attempt is going to publish.
///
/// # Errors
/// Storage, when that cannot be written.
pub async fn announce(announced: &Folder, attempt: &str) -> Result<()> {
    let path = parse_path(attempt)?;
    match announced.store.put(&path, PutPayload::new()).await {
        Ok(_) => announced.sync(&[attempt.to_string()]),
        Err(error) => Err(Error::store(
            format!("write {}", announced.describe(attempt)),
            error,
        )),
    }
}

/// Who writes a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The pipeline's name.
    pub pipeline: String,
    /// `curated`, `state` or the aggregate's name.
    pub table: String,
    /// The pipeline's state folder.
    pub state: String,
}

impl Owner {
    /// Checks that a folder is this owner's, or free; changes nothing. Returns whether the
    /// folder is already marked.
    ///
    /// # Errors
    /// Usage, when the folder is another owner's, or holds files and has no owner.
    pub async fn check(&self, folder: &Folder, setting: &str) -> Result<bool> {
        if self.check_marker(folder, setting).await? {
            return Ok(true);
        }
        // Another run may be making the marker.
        let files = list(folder).await?.into_iter();
        let is_marker = |path: &String| path.split('#').next() == Some(OWNER_MARKER);
        let mut strangers = files.filter(|path| !is_marker(path));
        if self.check_marker(folder, setting).await? {
            return Ok(true);
        }
        match strangers.next() {
            None => Ok(false),
            Some(stranger) => Err(Error::usage(format!(
                "{} holds files that no run of this pipeline wrote, such as {stranger}",
                folder.location
            ))
            .hint(format!(
                "point `{setting}` at an empty folder, or take the files away"
            ))),
        }
    }

    /// Checks that a folder's marker, if it has one, is this owner's. Returns whether it has one.
    ///
    /// # Errors
    /// Usage, when the folder is another owner's.
    pub async fn check_marker(&self, folder: &Folder, setting: &str) -> Result<bool> {
        match folder.read(OWNER_MARKER).await? {
            Some(marker) => self.compare(folder, setting, &marker).map(|()| true),
            None => Ok(false),
        }
    }

    /// Marks a folder as this owner's.
    ///
    /// # Errors
    /// Usage, when another owner was faster; storage, when the marker cannot be written.
    pub async fn claim(&self, folder: &Folder, setting: &str) -> Result<()> {
        let marker =
            Bytes::from(serde_json::to_vec(self).map_err(|error| {
                Error::internal("cannot write an owner marker").caused_by(error)
            })?);
        let path = parse_path(OWNER_MARKER)?;
        match folder
            .store
            .put_opts(&path, PutPayload::from(marker), PutMode::Create.into())
            .await
        {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {
                self.check(folder, setting).await.map(|_| ())
            }
            Err(error) => Err(Error::store(
                format!("write {}", folder.describe(OWNER_MARKER)),
                error,
            )),
        }
    }

    fn compare(&self, folder: &Folder, setting: &str, marker: &[u8]) -> Result<()> {
        let found: Owner = serde_json::from_slice(marker).map_err(|error| {
            Error::usage(format!(
                "{} is not an owner marker",
                folder.describe(OWNER_MARKER)
            ))
            .caused_by(error)
        })?;
        if found == *self {
            return Ok(());
        }
        let text = if found.pipeline == self.pipeline && found.table == self.table {
            format!(
                "{} belongs to a pipeline of the same name whose state is {}",
                folder.location, found.state
            )
        } else {
            format!(
                "{} belongs to `{}` of the pipeline `{}`",
                folder.location, found.table, found.pipeline
            )
        };
        Err(Error::usage(text).hint(format!("give each its own `{setting}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(partition: &str, rows: u64) -> StagedFile {
        StagedFile {
            partition: partition.into(),
            staged: format!("s/{rows}"),
            rows,
            bytes: rows * 10,
        }
    }

    fn file(path: &str, rows: u64) -> TableFile {
        TableFile {
            path: path.into(),
            rows,
            bytes: rows * 10,
            staged: None,
        }
    }

    #[test]
    fn a_partition_of_one_file_keeps_its_name_and_others_carry_the_commit() {
        let plan = plan(
            vec![staged("d=1", 1), staged("d=2", 2), staged("d=2", 3)],
            &[file("d=1/part-c00000003-00000.snappy.parquet", 5)],
            |_| true,
            7,
            Names::Kept,
        );
        let paths: Vec<&str> = plan.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "d=1/part-c00000003-00000.snappy.parquet",
                "d=2/part-c00000007-00000.snappy.parquet",
                "d=2/part-c00000007-00001.snappy.parquet"
            ]
        );
    }

    #[test]
    fn exactly_the_replaced_partitions_change_and_emptied_ones_go() {
        let before = [
            file("d=1/part-c00000003-00000.snappy.parquet", 5),
            file("d=2/part-c00000003-00000.snappy.parquet", 6),
            file("d=3/part-c00000003-00000.snappy.parquet", 7),
        ];
        let plan = plan(
            vec![staged("d=1", 1)],
            &before,
            |partition| partition != "d=3",
            7,
            Names::Kept,
        );
        assert_eq!(plan.removes, ["d=2/part-c00000003-00000.snappy.parquet"]);
        let new = TableFile {
            staged: Some("s/1".into()),
            ..file("d=1/part-c00000003-00000.snappy.parquet", 1)
        };
        assert_eq!(plan.files, [new, before[2].clone()]);
        assert_eq!(
            plan.counts,
            Counts {
                rows_written: 1,
                bytes_written: 10,
                partitions_written: 1,
                partitions_removed: 1,
                rows_removed: 11
            }
        );
    }
}
