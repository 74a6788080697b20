//! Spill folders: each run has its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::execution::SpillFile;

use crate::error::{Error, Result};

/// A run's folder for spilled data. It is removed when the run ends. The folder of a killed run is
/// removed when the next run starts: its lock was released with its process.
#[derive(Debug)]
pub struct SpillFolder {
    folder: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

const SPILL_PREFIX: &str = "glueless-";

impl SpillFolder {
    /// Creates the folder in `spill_dir`, which is created if missing, and removes those of killed
    /// runs.
    ///
    /// # Errors
    /// Usage, when `spill_dir` cannot be used.
    pub fn create(spill_dir: &Path, run_id: &str) -> Result<Self> {
        Self::try_create(spill_dir, run_id).map_err(|error| {
            Error::usage(format!("cannot spill to {}", spill_dir.display()))
                .hint("set `limits.spill_dir` to a writable folder")
                .caused_by(error)
        })
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    fn try_create(spill_dir: &Path, run_id: &str) -> std::io::Result<Self> {
        std::fs::create_dir_all(spill_dir)?;
        for entry in std::fs::read_dir(spill_dir)?.flatten() {
            let path = entry.path();
            let is_ours = entry.file_name().to_string_lossy().starts_with(SPILL_PREFIX);
            if is_ours && path.extension().is_some_and(|extension| extension == "lock") {
                remove_if_unlocked(&path);
            }
        }
        let folder = spill_dir.join(format!("{SPILL_PREFIX}{run_id}"));
        let lock_path = folder.with_extension("lock");
        let lock = File::create(&lock_path)?;
        lock.lock()?;
        std::fs::create_dir(&folder)?;
        Ok(SpillFolder { folder, lock_path, _lock: lock })
    }
}

/// Removes a spill folder and its lock file, unless a process holds the lock. Folders that cannot
/// be removed belong to another user and stay.
fn remove_if_unlocked(lock_path: &Path) {
    // A run that is about to lock it waits until both are removed.
    if let Ok(lock) = File::open(lock_path)
        && lock.try_lock().is_ok()
    {
        let _ = std::fs::remove_dir_all(lock_path.with_extension(""));
        let _ = std::fs::remove_file(lock_path);
    }
}

impl Drop for SpillFolder {
    fn drop(&mut self) {
        // The next run removes what could not be removed here.
        let _ = std::fs::remove_dir_all(&self.folder);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// Opens spilled data for reading from its start. The engine's [`SpillFile::open_writer`] writes
/// and counts it.
///
/// # Errors
/// Storage, when it cannot be opened.
pub fn read_spilled(file: &Arc<dyn SpillFile>) -> Result<File> {
    let path = file.path().ok_or_else(|| Error::internal("spilled data is not on a local disk"))?;
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
    fn the_folder_of_a_killed_run_is_removed_and_that_of_a_running_one_stays() {
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
        let left: Vec<_> = std::fs::read_dir(spill_dir.path())
            .expect("listed")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(left, ["another's.lock"]);
    }
}
