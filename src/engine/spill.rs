//! The disk to spill to: a folder of its own for each run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::execution::SpillFile;

use crate::error::{Error, Result};

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
