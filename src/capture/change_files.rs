//! Files of changes of one table, each written once, whatever is repeated or raced.
//!
//! A file's name is the position of its first change, and its footer has that of its last one. A file is
//! created only if its name is free. The server sends what it was not told to be durable again, in the
//! same order; so, after an interruption, the first change that is sent is the first one of a file that is
//! there, or of none. If it is there, its footer says how far it goes, and the next file begins behind it.
//! Two processes that write the same changes at once come to the same names, and one of them finds the
//! other's file.
//!
//! ```text
//! 20260102-101500123.00000000016B3748-00000000.parquet
//! └ commit time ───┘ └ commit in the log ────┘ └ number in the transaction
//! ```
//!
//! A file has changes of one day (UTC), so that windows that are selected by names have whole days.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use tracing::{debug, info};

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;

use crate::capture::Output;
use crate::capture::mark::{SLOT, create, note, notes_of};
use crate::capture::position::{Lsn, Position};
use crate::capture::rows::{Head, LSN, RowFile, Shape};
use crate::error::{Error, Result};
use crate::store::Folder;

/// The notes in the footer of a file.
const FIRST: &str = "glueless.first";
pub(super) const LAST: &str = "glueless.last";

/// The memory that each column of an open file takes, without its values.
const COLUMN_BYTES: u64 = 10 << 10;

/// Microseconds of a day.
const DAY_US: i64 = 86_400_000_000;

/// The files of a table, one of which is open.
#[derive(Debug)]
pub(super) struct ChangeFiles {
    folder: Folder,
    output: Arc<Output>,
    shape: Arc<Shape>,
    open: Option<Open>,
    /// The last change that other files are known to have.
    covered: Option<Position>,
    pub(super) counts: Counts,
}

/// What was written for a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) inserts: u64,
    pub(super) updates: u64,
    pub(super) deletes: u64,
    pub(super) truncates: u64,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) infinite: u64,
}

impl Counts {
    /// Counts a change.
    fn count(&mut self, op: &str) {
        match op {
            "I" => self.inserts += 1,
            "U" => self.updates += 1,
            "T" => self.truncates += 1,
            _ => self.deletes += 1,
        }
    }
}

#[derive(Debug)]
struct Open {
    rows: RowFile,
    first: Position,
    last: Position,
    /// The commit time of its first change, in microseconds since 1970.
    time: i64,
    counts: Counts,
}

impl ChangeFiles {
    pub(super) fn new(folder: Folder, output: Arc<Output>, shape: Arc<Shape>) -> Self {
        let counts = Counts::default();
        ChangeFiles { folder, output, shape, open: None, covered: None, counts }
    }

    pub(super) fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    /// Gives the rows that follow another shape.
    ///
    /// # Errors
    /// Storage, when the file of the old shape cannot be written.
    pub(super) async fn reshape(&mut self, shape: Arc<Shape>) -> Result<()> {
        self.close().await?;
        self.shape = shape;
        Ok(())
    }

    /// About the memory that the open file takes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let columns = self.shape.columns.len() as u64;
        self.open.as_ref().map_or(0, |open| open.rows.bytes() + columns * COLUMN_BYTES)
    }

    /// Appends a change.
    ///
    /// # Errors
    /// Data, for a value that its column cannot have in files; storage, when a file that is complete
    /// cannot be written.
    pub(super) async fn append<'v>(
        &mut self,
        head: Head,
        old: impl Iterator<Item = Option<&'v [u8]>>,
        row: impl Iterator<Item = Option<&'v [u8]>>,
    ) -> Result<()> {
        if self.covered.is_some_and(|covered| head.position <= covered) {
            return Ok(());
        }
        let day = |time: i64| time.div_euclid(DAY_US);
        let is_other_day =
            self.open.as_ref().is_some_and(|open| day(open.time) != day(head.commit_time));
        if is_other_day {
            self.close().await?;
            // Another process can have written a file that goes further.
            if self.covered.is_some_and(|covered| head.position <= covered) {
                return Ok(());
            }
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(Open {
                rows: RowFile::new(&self.shape, self.output.compression)?,
                first: head.position,
                last: head.position,
                time: head.commit_time,
                counts: Counts::default(),
            }),
        };
        open.rows.append(head, old, row)?;
        open.last = head.position;
        open.counts.count(head.op);
        if open.rows.bytes() >= self.output.file_bytes {
            self.close().await?;
        }
        Ok(())
    }

    /// Whether other files have changes from a position on. It must not be confirmed then: reading would
    /// begin there, inside of a file, whose name says where it begins.
    pub(super) fn reach_beyond(&self, position: Lsn) -> bool {
        self.covered.is_some_and(|covered| covered.commit >= position.0)
    }

    /// Writes the open file, if there is one. After it, all changes so far are durable.
    ///
    /// # Errors
    /// Storage, when it cannot be written; usage, when a file of another slot has its name.
    pub(super) async fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        loop {
            let name = file_name(open.time, open.first);
            let (rows, infinite, last) = (open.rows.rows, open.rows.infinite, open.last);
            let bytes = Bytes::from(open.rows.finish(self.notes(open.first, last))?);
            if create(&self.folder, &name, bytes.clone()).await? {
                debug!("{}: wrote {name}, {rows} rows", self.shape.table);
                self.counts.inserts += open.counts.inserts;
                self.counts.updates += open.counts.updates;
                self.counts.deletes += open.counts.deletes;
                self.counts.truncates += open.counts.truncates;
                self.counts.files += 1;
                self.counts.bytes += bytes.len() as u64;
                self.counts.infinite += infinite;
                return Ok(());
            }
            let end = self.last_of(&name).await?;
            info!("{}: {name} is there already, up to {end}", self.shape.table);
            self.covered = self.covered.max(Some(end));
            if end >= last {
                return Ok(());
            }
            open = self.behind(bytes, end, last)?;
        }
    }

    fn notes(&self, first: Position, last: Position) -> Vec<KeyValue> {
        vec![note(SLOT, &self.output.slot), note(FIRST, first), note(LAST, last)]
    }

    /// The position of a file's last change, from its footer.
    async fn last_of(&self, name: &str) -> Result<Position> {
        let bytes = self.folder.read(name).await?.ok_or_else(|| {
            Error::storage(format!("{} was removed meanwhile", self.folder.describe(name)))
                .hint("run the command again")
        })?;
        // It can have been created and not synced.
        self.folder.sync(&[name.to_string()])?;
        let foreign = || {
            Error::usage(format!(
                "{} is no file of the slot `{}`, and has the name of its next file",
                self.folder.describe(name),
                self.output.slot
            ))
            .hint("let each slot write into a folder of its own: `to`")
        };
        let notes = notes_of(bytes).ok_or_else(|| {
            Error::usage(format!("{} is not a whole file", self.folder.describe(name))).hint(
                "if the machine was switched off while it was written, remove it and run the command \
                 again: its changes are sent again",
            )
        })?;
        if notes(SLOT).as_deref() != Some(&self.output.slot) {
            return Err(foreign());
        }
        notes(LAST).as_deref().and_then(Position::parse).ok_or_else(foreign)
    }

    /// The changes of an encoded file that are behind a position, as a file of their own.
    fn behind(&self, bytes: Bytes, end: Position, last: Position) -> Result<Open> {
        let mut rows = RowFile::new(&self.shape, self.output.compression)?;
        let (end, mut counts, mut begin) = (end.to_string(), Counts::default(), None);
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()? {
            let batch = batch?;
            let lost = || Error::internal("a file lacks its positions");
            let positions = batch.column_by_name(LSN).ok_or_else(lost)?.as_string::<i32>();
            let is_behind: Vec<bool> =
                positions.iter().map(|at| at.is_some_and(|at| at > end.as_str())).collect();
            let batch = filter_record_batch(&batch, &BooleanArray::from(is_behind))?;
            if batch.num_rows() == 0 {
                continue;
            }
            let lsn = batch.column_by_name(LSN).ok_or_else(lost)?.as_string::<i32>().value(0);
            let time = batch
                .column(1)
                .as_primitive::<arrow::datatypes::TimestampMicrosecondType>()
                .value(0);
            begin = begin.or_else(|| Position::parse(lsn).map(|first| (first, time)));
            for op in batch.column(0).as_string::<i32>().iter().flatten() {
                counts.count(op);
            }
            rows.append_batch(&batch)?;
        }
        let (first, time) =
            begin.ok_or_else(|| Error::internal("a file has no changes behind its end"))?;
        Ok(Open { rows, first, last, time, counts })
    }
}

/// The position in the name of a file of changes.
pub(super) fn position_in(name: &str) -> Option<Position> {
    Position::parse(name.strip_suffix(".parquet")?.split_once('.')?.1)
}

/// The name of the file that begins with a change.
pub(super) fn file_name(time: i64, first: Position) -> String {
    let time = DateTime::<Utc>::from_timestamp_micros(time).unwrap_or_default();
    format!("{}.{first}.parquet", time.format("%Y%m%d-%H%M%S%3f"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;
    use parquet::basic::Compression;
    use proptest::prelude::*;

    use super::*;
    use crate::capture::column::Kind;
    use crate::layout::cdc_file_time;
    use crate::store::{Location, parse_path};

    fn folder() -> Folder {
        let location = Location::parse("s3://bucket/raw", Path::new("/")).expect("a location");
        let store = Arc::new(InMemory::new());
        Folder { location, root_store: store.clone(), store, prefix: "".into() }
    }

    fn files(folder: &Folder) -> ChangeFiles {
        let (slot, compression) = ("shop".into(), Compression::SNAPPY);
        let output = Output { slot, file_bytes: 1 << 20, compression };
        let shape = Shape::new("s.t".into(), vec![("id".into(), Kind::Int32)], vec![0]);
        ChangeFiles::new(folder.clone(), Arc::new(output), Arc::new(shape.expect("a shape")))
    }

    /// The positions in each file, in the order of their names.
    async fn positions(folder: &Folder) -> Vec<Vec<String>> {
        let objects: Vec<_> = folder.store.list(None).try_collect().await.expect("listed");
        let mut names: Vec<String> = objects.iter().map(|it| it.location.to_string()).collect();
        names.sort();
        let mut all = Vec::new();
        for name in names {
            let bytes = folder.read(&name).await.expect("read").expect("a file");
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("a file");
            let mut of_file = Vec::new();
            for batch in reader.build().expect("a reader") {
                let batch = batch.expect("rows");
                let lsn = batch.column_by_name(LSN).expect("positions").as_string::<i32>();
                of_file.extend(lsn.iter().flatten().map(String::from));
            }
            all.push(of_file);
        }
        all
    }

    /// Writes the changes of a log from one of them on, and closes the file behind some of them. Returns
    /// the changes before which everything was confirmed.
    async fn write(
        folder: &Folder,
        log: &[(Position, i64)],
        from: usize,
        cuts: &[bool],
    ) -> Vec<usize> {
        let (mut files, mut confirmed) = (files(folder), Vec::new());
        for (number, (position, time)) in log.iter().enumerate().skip(from) {
            let head = Head { op: "I", commit_time: *time, position: *position, xid: Some(1) };
            let id = number.to_string();
            let row = std::iter::once(Some(id.as_bytes()));
            files.append(head, std::iter::repeat(None), row).await.expect("appended");
            if cuts[number % cuts.len()] {
                files.close().await.expect("closed");
                let is_between = log.get(number + 1).is_some_and(|(next, _)| next.row == 0);
                if is_between && !files.reach_beyond(Lsn(position.commit + 1)) {
                    confirmed.push(number + 1);
                }
            }
        }
        // The last file of a capture that is interrupted is not written.
        confirmed
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// A log is written by several captures, each of which begins where an earlier one has confirmed,
        /// cuts elsewhere, and is interrupted. Files have every change once.
        #[test]
        fn each_change_is_in_one_file_whatever_is_repeated(
            transactions in prop::collection::vec(1_u32..5, 1..12),
            captures in prop::collection::vec(
                (0_usize..40, 1_usize..40, prop::collection::vec(any::<bool>(), 1..9)),
                1..9,
            ),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let folder = folder();
                let mut log = Vec::new();
                for (commit, rows) in (1_u64..).zip(&transactions) {
                    for row in 0..*rows {
                        // Some hours are between two transactions: days end in between.
                        let time = 1_700_000_000_000_000 + commit as i64 * 7 * 3_600_000_000;
                        log.push((Position { commit: commit * 100, row }, time));
                    }
                }
                let mut confirmed = vec![0];
                for (from, length, cuts) in &captures {
                    // Positions that the server has not written down are forgotten when it is killed.
                    let from = confirmed[from % confirmed.len()];
                    let end = log.len().min(from + length);
                    confirmed.extend(write(&folder, &log[..end], from, cuts).await);
                }
                write(&folder, &log, confirmed[confirmed.len() - 1], &[true]).await;
                let files = positions(&folder).await;
                let written: Vec<String> = files.iter().flatten().cloned().collect();
                let expected: Vec<String> = log.iter().map(|(at, _)| at.to_string()).collect();
                assert_eq!(written, expected);
            });
        }
    }

    #[tokio::test]
    async fn a_file_that_goes_less_far_is_continued() {
        let folder = folder();
        let time = 1_700_000_000_000_000;
        let log: Vec<(Position, i64)> =
            (0..6).map(|row| (Position { commit: 7, row }, time)).collect();
        let behind = |count: usize| (1..=6).map(|number| number == count).collect::<Vec<bool>>();
        write(&folder, &log, 0, &behind(2)).await;
        write(&folder, &log, 0, &behind(6)).await;
        assert_eq!(positions(&folder).await.iter().map(Vec::len).collect::<Vec<_>>(), [2, 4]);
        // One that goes further is left as it is.
        write(&folder, &log, 0, &behind(1)).await;
        assert_eq!(positions(&folder).await.iter().map(Vec::len).collect::<Vec<_>>(), [2, 4]);
    }

    #[tokio::test]
    async fn a_file_has_changes_of_one_day() {
        let folder = folder();
        let midnight = 1_700_006_400_000_000;
        let log = [
            (Position { commit: 1, row: 0 }, midnight - 1),
            (Position { commit: 2, row: 0 }, midnight),
        ];
        write(&folder, &log, 0, &[false, true]).await;
        assert_eq!(positions(&folder).await.len(), 2);
    }

    #[tokio::test]
    async fn a_file_of_something_else_is_not_taken_for_ours() {
        let folder = folder();
        let first = Position { commit: 7, row: 0 };
        let name = file_name(1_700_000_000_000_000, first);
        let path = parse_path(&name).expect("a path");
        folder.store.put(&path, "no Parquet".into()).await.expect("written");
        let mut files = files(&folder);
        let head =
            Head { op: "I", commit_time: 1_700_000_000_000_000, position: first, xid: Some(1) };
        let row = std::iter::once(Some(b"1".as_slice()));
        files.append(head, std::iter::repeat(None), row).await.expect("appended");
        let error = files.close().await.expect_err("refused");
        assert!(error.to_string().ends_with("is not a whole file"), "{error}");
    }

    #[test]
    fn names_have_the_commit_time_that_windows_select_by() {
        let first = Position { commit: 0x16B_3748, row: 1 };
        let name = file_name(1_767_348_900_123_456, first);
        assert_eq!(name, "20260102-101500123.00000000016B3748-00000001.parquet");
        let time = cdc_file_time(&name, chrono_tz::UTC).expect("a time");
        assert_eq!(time.timestamp_millis(), 1_767_348_900_123);
    }
}
