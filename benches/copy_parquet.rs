//! A lower bound for any job on Parquet files: reads files and writes the same rows as glueless would
//! write them, on all processors, without comparing or merging anything. With `--read`, it first reads
//! all files of another folder and drops their rows.
//!
//! ```text
//! cargo run --release --example copy_parquet -- [--read DIR] DIR FILE…
//! ```

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use arrow::record_batch::RecordBatchReader;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from).peekable();
    if arguments.next_if(|argument| argument.as_os_str() == "--read").is_some() {
        let entries = fs::read_dir(arguments.next().ok_or("name a folder to read")?)?;
        let mut files =
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "parquet"));
        each(&files, |_, file| {
            reader(file)?.try_for_each(|batch| batch.map(drop))?;
            Ok(())
        })?;
    }
    let folder = arguments.next().ok_or("name a folder and files")?;
    let files: Vec<PathBuf> = arguments.collect();
    fs::create_dir_all(&folder)?;
    each(&files, |number, file| copy(file, &folder.join(format!("{number:06}.parquet"))))
}

/// Applies `work` to each file, on all processors.
fn each(
    files: &[PathBuf],
    work: impl Fn(usize, &Path) -> Result<(), Box<dyn Error>> + Sync,
) -> Result<(), Box<dyn Error>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Result<(), String> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(file) = files.get(number) else {
                            return Ok(());
                        };
                        work(number, file)
                            .map_err(|error| format!("{}: {error}", file.display()))?;
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("a worker does not panic")?;
        }
        Ok::<_, Box<dyn Error>>(())
    })
}

fn reader(file: &Path) -> Result<ParquetRecordBatchReader, Box<dyn Error>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file)?)?;
    Ok(reader.with_batch_size(8192).build()?)
}

fn copy(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let reader = reader(from)?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(File::create(to)?, reader.schema(), Some(properties))?;
    for batch in reader {
        writer.write(&batch?)?;
    }
    writer.close()?;
    Ok(())
}
