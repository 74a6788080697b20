//! Opening the inputs: many small files, as fast as storage gives them.
//!
//! Files on this machine are read by threads that wait for the disk themselves, because handing each
//! of many small files from thread to thread costs more than reading it. Of the others many are
//! asked for at the same time. Of several files that cannot be opened the first is told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::channel::oneshot;
use futures::executor::block_on;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::discover::Input;
use crate::error::{Error, Result};
use crate::parquet_file::{ParquetFile, SMALL_BYTES_MAX};
use crate::session::{Work, join, join_all};
use crate::store::{Folder, parse_path};

/// How many files are opened at once ...
const OPENS: usize = 16;
/// ... and how many that are not on this machine, as far as memory goes.
const FAR_OPENS: usize = 64;

/// An input and its file.
pub type Opened = (Input, ParquetFile);

/// Opens inputs. Of small files as many bytes are kept as `kept_bytes_max` allows.
///
/// # Errors
/// Data, for a file that is none; storage, when one cannot be read.
pub async fn open(
    inputs: Vec<Input>,
    folders: &[Folder],
    kept_bytes_max: usize,
) -> Result<Vec<Opened>> {
    let opener = Arc::new(Opener {
        folders: folders.to_vec(),
        kept_bytes_max,
        kept_bytes: AtomicUsize::new(0),
    });
    let is_here = |folder: &Folder| folder.location.file_path().is_some();
    match folders.iter().all(is_here) {
        true => opener.open_here(inputs).await,
        false => opener.open_far(inputs).await,
    }
}

/// Keeps the failure of the input that comes first.
fn keep_first(kept: &Mutex<Option<(usize, Error)>>, place: usize, error: Error) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.as_ref().is_none_or(|(first, _)| place < *first) {
        *kept = Some((place, error));
    }
}

struct Opener {
    folders: Vec<Folder>,
    kept_bytes_max: usize,
    kept_bytes: AtomicUsize,
}

impl Opener {
    async fn open_here(self: Arc<Self>, inputs: Vec<Input>) -> Result<Vec<Opened>> {
        let threads = inputs.len().min(OPENS);
        let work = Arc::new(Work::new(inputs.into_iter().enumerate().collect()));
        let failed: Arc<Mutex<Option<(usize, Error)>>> = Arc::default();
        let tasks = (0..threads).map(|_| {
            let (opener, work, failed) = (self.clone(), Arc::clone(&work), Arc::clone(&failed));
            let (tell, told) = oneshot::channel();
            let open = move || {
                let open = async {
                    let mut opened = Vec::new();
                    let mut known = None;
                    while let Some((place, input)) = work.next() {
                        let (input, file) = match opener.open_one(input).await {
                            Ok(opened) => opened,
                            Err(error) => {
                                keep_first(&failed, place, error);
                                return Err(Error::internal("a file cannot be opened"));
                            }
                        };
                        opened.push((place, (input, file.without_footer(&mut known))));
                    }
                    Ok(opened)
                };
                // Nobody may be waiting any more.
                let _ = tell.send(block_on(work.part(open)));
            };
            let started = std::thread::Builder::new().spawn(open);
            async {
                let failed =
                    |why: &str| Error::internal(format!("a thread that opens files {why}"));
                started.map_err(|error| failed("cannot be started").caused_by(error))?;
                told.await.map_err(|_| failed("ended abruptly"))?
            }
        });
        let opened = join_all(tasks).await;
        let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((_, error)) = failed {
            return Err(error);
        }
        let mut opened: Vec<_> = opened?.into_iter().flatten().collect();
        opened.sort_unstable_by_key(|(place, _)| *place);
        Ok(opened.into_iter().map(|(_, opened)| opened).collect())
    }

    async fn open_far(self: Arc<Self>, inputs: Vec<Input>) -> Result<Vec<Opened>> {
        let in_memory = self.kept_bytes_max / SMALL_BYTES_MAX as usize;
        let tasks = stream::iter(inputs).map(|input| {
            let opener = Arc::clone(&self);
            join(tokio::spawn(async move { opener.open_one(input).await }))
        });
        let mut tasks = tasks.buffered(in_memory.clamp(OPENS, FAR_OPENS));
        let (mut opened, mut known) = (Vec::new(), None);
        while let Some((input, file)) = tasks.try_next().await? {
            opened.push((input, file.without_footer(&mut known)));
        }
        Ok(opened)
    }

    async fn open_one(&self, input: Input) -> Result<Opened> {
        let folder = &self.folders[input.file.location];
        let path = parse_path(&input.file.path)?;
        let name = folder.describe(&input.file.path);
        let store = Arc::clone(&folder.store);
        let file = ParquetFile::open(store, path, input.file.size, name).await?;
        let bytes = file.kept_bytes();
        if self.kept_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.kept_bytes_max {
            return Ok((input, file));
        }
        self.kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Ok((input, file.without_bytes()))
    }
}
