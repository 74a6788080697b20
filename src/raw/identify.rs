//! Identifies raw files with those that earlier runs read: the same bytes are the same input.
//!
//! A copy, a restored archive or another bucket gives a file another time or ETag. A file of the
//! same size is then looked at ([`crate::raw::fingerprint`]), and if its bytes are those that were
//! read, it is the file that was read: windows still select it by the time that it had then. Its
//! new time and ETag are recorded by the next commit, so that it is looked at once.

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::raw::fingerprint;
use crate::raw::input::{RawFile, Recorded};
use crate::store::Folder;

/// The number of files looked at concurrently.
const CONCURRENT_LOOKS: usize = 32;

/// Takes over what earlier runs knew of the files of one folder, and returns the ones with the same
/// bytes and another time or ETag.
///
/// # Errors
/// Storage, when a file cannot be read.
pub(crate) async fn identify(
    folder: &Folder,
    recorded: &dyn Recorded,
    files: &mut [RawFile],
) -> Result<Vec<RawFile>> {
    let is_local = folder.location.file_path().is_some();
    let mut looks = Vec::new();
    for file in files {
        let (location, path) = (file.location, &file.path);
        let before = recorded.folded(location, path).or(recorded.quarantined(location, path));
        let Some(before) = before else {
            continue;
        };
        if before.has_same_stamp(file, is_local) {
            file.adopt(before, is_local);
        } else if before.size == file.size && before.fingerprint.is_some() {
            looks.push((file, before));
        }
    }
    let looks = looks.into_iter().map(async |(file, before): (&mut RawFile, &RawFile)| {
        file.fingerprint = Some(fingerprint::read(folder, &file.path, file.size).await?);
        file.adopt(before, is_local);
        Ok::<_, Error>((before.fingerprint == file.fingerprint).then(|| file.clone()))
    });
    let looked: Vec<Option<RawFile>> =
        stream::iter(looks).buffered(CONCURRENT_LOOKS).try_collect().await?;
    Ok(looked.into_iter().flatten().collect())
}
