//! Opening the inputs: many small files, as fast as storage gives them.
//!
//! Files on this machine are read by threads that wait for the disk themselves, because handing each
//! of many small files from thread to thread costs more than reading it. Of the others many are
//! asked for at the same time. Of several files that cannot be opened the first is told: it is taken
//! before the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::executor::block_on;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::discover::Input;
use crate::error::{Error, Result};
use crate::parquet_file::{ParquetFile, SMALL_BYTES_MAX};
use crate::session::{Work, join};
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

struct Opener {
    folders: Vec<Folder>,
    kept_bytes_max: usize,
    kept_bytes: AtomicUsize,
}

impl Opener {
    async fn open_here(self: Arc<Self>, inputs: Vec<Input>) -> Result<Vec<Opened>> {
        join(tokio::task::spawn_blocking(move || {
            let threads = inputs.len().min(OPENS);
            let work = Work::new(inputs.into_iter().enumerate().collect());
            let mut opened = std::thread::scope(|scope| {
                let started = (0..threads).map(|_| {
                    std::thread::Builder::new()
                        .spawn_scoped(scope, || block_on(self.open_some(&work)))
                });
                let mut opened = Vec::new();
                // All are started before the first is waited for.
                for thread in started.collect::<Vec<_>>() {
                    let failed = |how| Error::internal(format!("a thread that opens files {how}"));
                    let thread = thread.map_err(|error| failed("cannot start").caused_by(error))?;
                    opened.extend(thread.join().map_err(|_| failed("ended abruptly"))?);
                }
                Ok::<_, Error>(opened)
            })?;
            opened.sort_unstable_by_key(|(place, _)| *place);
            opened.into_iter().map(|(_, opened)| opened).collect()
        }))
        .await
    }

    /// Opens inputs, with their places, until there is none left or one cannot be opened.
    async fn open_some(&self, work: &Work<(usize, Input)>) -> Vec<(usize, Result<Opened>)> {
        let (mut opened, mut known) = (Vec::new(), None);
        while let Some((place, input)) = work.next() {
            let one = self.open_one(input).await;
            let one = one.map(|(input, file)| (input, file.without_footer(&mut known)));
            let is_last = one.is_err();
            opened.push((place, one));
            if is_last {
                break;
            }
        }
        opened
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::RawFile;
    use crate::error::Kind;
    use crate::store::{Location, Stores};
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use chrono::DateTime;
    use parquet::arrow::ArrowWriter;

    #[tokio::test]
    async fn inputs_keep_their_order_and_the_first_bad_one_is_told() {
        let raw = tempfile::tempdir().expect("a folder");
        let location = Location::parse(".", raw.path()).expect("a location");
        let folder = Stores::default().open(&location).expect("a folder");
        let input = |number: usize| {
            let column: ArrayRef = Arc::new(Int64Array::from(vec![0; number + 1]));
            let batch = RecordBatch::try_from_iter([("a", column)]).expect("a batch");
            let mut bytes = Vec::new();
            let writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None);
            let mut writer = writer.expect("a writer");
            writer.write(&batch).expect("written");
            writer.close().expect("written");
            let path = format!("{number:02}.parquet");
            std::fs::write(raw.path().join(&path), &bytes).expect("written");
            let file = RawFile {
                location: 0,
                path,
                size: bytes.len() as u64,
                modified: DateTime::UNIX_EPOCH,
                e_tag: None,
            };
            Input {
                file,
                full_load: false,
                late: false,
                rows: None,
            }
        };
        let inputs: Vec<Input> = (0..40).map(input).collect();
        let folders = [folder];
        let kept_bytes_max = 10_000;
        let opened = open(inputs.clone(), &folders, kept_bytes_max);
        let opened = opened.await.expect("opened");
        let rows: Vec<u64> = opened.iter().map(|(_, file)| file.row_count()).collect();
        assert_eq!(rows, (1..=40).collect::<Vec<u64>>());
        let kept: usize = opened.iter().map(|(_, file)| file.kept_bytes()).sum();
        assert!(kept > 0 && kept <= kept_bytes_max, "{kept}");
        for bad in [37, 21, 22] {
            let file = &inputs[bad].file;
            let nothing = vec![0; file.size as usize];
            std::fs::write(raw.path().join(&file.path), nothing).expect("written");
        }
        let failed = open(inputs, &folders, kept_bytes_max).await;
        let failed = failed.expect_err("three are damaged");
        assert_eq!(failed.kind, Kind::Data);
        assert!(failed.to_string().contains("21.parquet"), "{failed}");
    }
}
