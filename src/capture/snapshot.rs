//! Full loads: the rows of tables as of one position of the log.
//!
//! The server exports a snapshot with the slot that it makes: the tables as they are where the slot begins.
//! All rows are read in that snapshot, by several connections at once, large tables in ranges of their
//! pages. What changes meanwhile is behind the slot's position, and is captured after it. Shapes are read in
//! the snapshot too, and tables are locked then ([`crate::capture::hold`]), so that no statement rewrites them
//! until they are read. Not before: the making of a slot waits for transactions that have begun, one that
//! waits for our lock among them.
//!
//! A table's last file is its mark ([`crate::capture::mark`]): its full load is complete. A load that was
//! interrupted is done again, in a later snapshot; the files of the first try stay. Both are right
//! together: where they differ, the change that made the difference is in the log, and every change comes
//! after all full loads.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use parquet::file::metadata::KeyValue;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};
use tracing::info;

use crate::capture::Output;
use crate::capture::catalog::{Catalog, Part, Reads, Table};
use crate::capture::change_files::file_name;
use crate::capture::hold::was_changed;
use crate::capture::mark::{self, load_name};
use crate::capture::places::Places;
use crate::capture::position::{Lsn, Position};
use crate::capture::readers::{Pages, Readers, count_pieces, is_copied, pieces_of};
use crate::capture::rows::{Head, RowFile, Shape};
use crate::error::{Error, Result};
use crate::postgres::connect::Server;
use crate::postgres::refusal::failed;
use crate::postgres::{ServerName, quoted};
use crate::store::Folder;

/// How values are written, and that nothing ends the transaction or hides rows.
pub(super) const SETTINGS: &str =
    "SET DateStyle TO 'ISO, MDY'; SET IntervalStyle TO iso_8601; SET TimeZone TO 'UTC';
    SET bytea_output TO hex; SET extra_float_digits TO 3; SET row_security TO off;
    SET statement_timeout TO 0; SET idle_in_transaction_session_timeout TO 0;
    SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout'";

/// A snapshot that the server has exported.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// Its name at the server.
    pub(super) name: String,
    /// Where it stands in the log.
    pub(super) position: Lsn,
}

/// A table to load.
pub(super) struct Load {
    pub(super) table: Table,
    pub(super) shape: Arc<Shape>,
    pub(super) folder: Folder,
    /// The notes of the mark, which says that the load is complete.
    pub(super) mark: Vec<KeyValue>,
    /// The places of its rows, if they are written as changes ([`crate::capture::new_snapshot`]).
    pub(super) places: Option<Places>,
}

/// What was loaded of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) rows: u64,
    pub(super) truncates: u64,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) infinite: u64,
}

/// Rows that are read by one statement.
struct Piece<'a> {
    number: usize,
    table: usize,
    part: &'a Part,
    pages: Pages,
    /// The number of the session that reads it, if that is one alone.
    session: Option<usize>,
}

/// Reads tables.
pub(super) struct Loader<'a> {
    pub(super) server: &'a Server,
    pub(super) application: &'a str,
    pub(super) snapshot: Snapshot,
    pub(super) output: Arc<Output>,
    /// The notes of each file.
    pub(super) notes: Vec<KeyValue>,
    /// The run, whose files have names of their own.
    pub(super) run_id: &'a str,
    pub(super) reads: Reads,
    /// The most sessions that read.
    pub(super) connections: usize,
}

impl Loader<'_> {
    /// Locks tables by a session that sees the snapshot, and by others that are opened, as many as the tables
    /// need.
    ///
    /// # Errors
    /// Those of the server; storage, when a table was written anew since the snapshot.
    pub(super) async fn hold<'a>(
        &self,
        first: &'a Client,
        tables: &BTreeMap<String, Table>,
    ) -> Result<Readers<'a>> {
        let mut others = Vec::new();
        while others.len() + 1 < self.connections.min(count_pieces(tables)) {
            others.push(self.begin().await?);
        }
        let server = &self.server.name;
        let readers = Readers::hold((first, others), server, tables, self.reads).await?;
        match (Catalog { client: first, server }).rewritten(tables).await? {
            Some(table) => Err(was_changed(&table, server)),
            None => Ok(readers),
        }
    }

    /// Loads tables by the sessions that hold them; returns what was loaded of each, in their order.
    ///
    /// # Errors
    /// Those of the server; data, for a value that its column cannot have in files; storage, when files
    /// cannot be written.
    pub(super) async fn load(&self, readers: &Readers<'_>, loads: &[Load]) -> Result<Vec<Loaded>> {
        let pieces = pieces(loads, readers);
        let mut left = BTreeMap::new();
        for piece in &pieces {
            left.entry(piece.table)
                .or_insert_with(|| AtomicUsize::new(0))
                .fetch_add(1, Ordering::Relaxed);
        }
        let queues = readers.queues(&pieces, |piece| piece.session);
        let workers = queues.into_iter().map(|(client, pieces)| async {
            let reader = Reader { loader: self, client };
            let mut loaded = vec![Loaded::default(); loads.len()];
            for piece in pieces {
                let load = &loads[piece.table];
                let read = reader.read(load, piece).await?;
                loaded[piece.table].add(read);
                // The last piece of the table that ends.
                if left[&piece.table].fetch_sub(1, Ordering::AcqRel) == 1 {
                    loaded[piece.table].add(self.complete(load).await?);
                }
            }
            Ok::<_, Error>(loaded)
        });
        let all: Vec<Vec<Loaded>> =
            stream::iter(workers).buffer_unordered(usize::MAX).try_collect().await?;
        let mut sums = vec![Loaded::default(); loads.len()];
        // A partitioned table without partitions has nothing to read.
        for (number, load) in loads.iter().enumerate() {
            if !left.contains_key(&number) {
                sums[number].add(self.complete(load).await?);
            }
        }
        for loaded in all {
            sums.iter_mut().zip(loaded).for_each(|(sum, one)| sum.add(one));
        }
        Ok(sums)
    }

    /// Opens a connection that sees the snapshot.
    pub(super) async fn begin(&self) -> Result<Client> {
        let client = self.server.connect(self.application).await?;
        enter(&client, &self.server.name, &self.snapshot.name).await?;
        Ok(client)
    }

    /// Marks a table's load as complete, after the truncation that ends what was before it, if there is one.
    async fn complete(&self, load: &Load) -> Result<Loaded> {
        let new = || RowFile::new(&load.shape, self.output.compression);
        let mark = new()?.finish(load.mark.clone())?;
        let Some(places) = &load.places else {
            mark::complete(&load.folder, mark.into()).await?;
            return Ok(Loaded::default());
        };
        let (mut file, head) = (new()?, places.truncation()?);
        file.append(head, std::iter::repeat(None), load.shape.columns.iter().map(|_| None))?;
        let name = file_name(head.commit_time, head.position);
        let bytes = self.create(&load.folder, &name, file, self.notes.clone()).await?;
        mark::replace(&load.folder, mark.into()).await?;
        Ok(Loaded { truncates: 1, files: 1, bytes, ..Loaded::default() })
    }

    async fn write(&self, load: &Load, name: &str, file: RowFile) -> Result<Loaded> {
        let (rows, infinite) = (file.rows, file.infinite);
        let bytes = self.create(&load.folder, name, file, self.notes.clone()).await?;
        Ok(Loaded { rows, files: 1, bytes, infinite, truncates: 0 })
    }

    /// Creates a file with notes in its footer; returns its size.
    pub(super) async fn create(
        &self,
        folder: &Folder,
        name: &str,
        file: RowFile,
        notes: Vec<KeyValue>,
    ) -> Result<u64> {
        let bytes = Bytes::from(file.finish(notes)?);
        let size = bytes.len() as u64;
        // A reply can be lost, and the second try finds what the first one wrote: names are this run's.
        mark::create(folder, name, bytes).await?;
        Ok(size)
    }
}

/// Lets a session see a snapshot from now on.
///
/// # Errors
/// Storage, when the snapshot is gone.
pub(super) async fn enter(client: &Client, server: &ServerName, snapshot: &str) -> Result<()> {
    let begin = format!(
        "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT '{snapshot}'"
    );
    let begun = async {
        client.batch_execute(SETTINGS).await?;
        client.batch_execute(&begin).await
    };
    begun.await.map_err(|error| match error.code() {
        // The session that exported it has ended.
        Some(code) if *code == SqlState::INVALID_PARAMETER_VALUE => {
            Error::storage(format!("the snapshot in {server} is gone"))
                .hint(server.purpose.unchanged)
        }
        _ => failed(server, "read in a snapshot", &error),
    })
}

impl Loaded {
    fn add(&mut self, other: Loaded) {
        self.rows += other.rows;
        self.truncates += other.truncates;
        self.files += other.files;
        self.bytes += other.bytes;
        self.infinite += other.infinite;
    }
}

/// The pieces of all tables.
fn pieces<'a>(loads: &'a [Load], readers: &Readers<'_>) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    for (table, load) in loads.iter().enumerate() {
        for part in load.table.parts_with_rows() {
            let session = readers.alone(&part.sql_name());
            for pages in pieces_of(part) {
                pieces.push(Piece { number: pieces.len(), table, part, pages, session });
            }
        }
    }
    pieces
}

/// A connection that reads pieces.
struct Reader<'a> {
    loader: &'a Loader<'a>,
    client: &'a Client,
}

impl Reader<'_> {
    async fn read(&self, load: &Load, piece: &Piece<'_>) -> Result<Loaded> {
        let (loader, table) = (self.loader, load.table.full_name());
        let doing = format!("read {table}");
        let head = Head {
            op: "I",
            commit_time: now(self.client, &loader.server.name, &doing).await?,
            position: Position { commit: loader.snapshot.position.0, row: 0 },
            xid: None,
        };
        let mut loaded = Loaded::default();
        let mut files = 0;
        let copy = Copy {
            client: self.client,
            server: &loader.server.name,
            statement: copy_statement(&load.table, piece, loader.reads),
            doing,
            shape: &load.shape,
            output: &loader.output,
        };
        let next = || load.places.as_ref().map_or(head, Places::row);
        copy.read(next, async |file| {
            files += 1;
            let name = match (&load.places, file.first) {
                (Some(_), Some(first)) => file_name(first.commit_time, first.position),
                _ => load_name(loader.snapshot.position, loader.run_id, piece.number, files),
            };
            loaded.add(loader.write(load, &name, file).await?);
            Ok(())
        })
        .await?;
        info!("{table}: loaded {} rows of {}", loaded.rows, piece.part.sql_name());
        Ok(loaded)
    }
}

/// When a session's transaction began, in microseconds since 1970.
pub(super) async fn now(client: &Client, server: &ServerName, doing: &str) -> Result<i64> {
    let statement = "SELECT (extract(epoch FROM now()) * 1000000)::bigint";
    let rows = client.simple_query(statement).await;
    let rows = rows.map_err(|error| failed(server, doing, &error))?;
    let time = rows.iter().find_map(|row| match row {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    time.filter(|time| DateTime::<Utc>::from_timestamp_micros(*time).is_some())
        .ok_or_else(|| Error::internal("the server has no time"))
}

/// A `COPY` in text form that is read into files.
pub(super) struct Copy<'a> {
    pub(super) client: &'a Client,
    pub(super) server: &'a ServerName,
    pub(super) statement: String,
    /// What it does, for messages.
    pub(super) doing: String,
    pub(super) shape: &'a Arc<Shape>,
    pub(super) output: &'a Output,
}

impl Copy<'_> {
    /// Reads all rows, each with the next head; `full` gets each file that is complete.
    ///
    /// # Errors
    /// Those of the server and of `full`; data, for a value that its column cannot have in files.
    pub(super) async fn read(
        &self,
        mut head: impl FnMut() -> Head,
        mut full: impl AsyncFnMut(RowFile) -> Result<()>,
    ) -> Result<()> {
        let refused = |error| failed(self.server, &self.doing, &error);
        let mut copied = pin!(self.client.copy_out(&self.statement).await.map_err(refused)?);
        let new = || RowFile::new(self.shape, self.output.compression);
        let (mut file, mut line, mut decoded) = (new()?, Vec::new(), Vec::new());
        while let Some(chunk) = copied.next().await {
            let chunk = chunk.map_err(refused)?;
            // The server sends a row at a time, which its protocol does not promise.
            for part in chunk.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                let Some(row) = line.strip_suffix(b"\n") else {
                    continue;
                };
                let has_columns = !self.shape.columns.is_empty();
                let fields = if has_columns { fields(row, &mut decoded) } else { Vec::new() };
                if fields.len() != self.shape.columns.len() {
                    let message = format!("a row of {} has other columns", self.shape.table);
                    return Err(Error::internal(message));
                }
                let values = fields.iter().map(|range| range.clone().map(|range| &decoded[range]));
                file.append(head(), std::iter::repeat(None), values)?;
                line.clear();
            }
            if file.bytes() >= self.output.file_bytes {
                full(std::mem::replace(&mut file, new()?)).await?;
            }
        }
        if file.rows > 0 {
            full(file).await?;
        }
        Ok(())
    }
}

/// The statement that reads a piece. Columns are named, because partitions can have them in another order.
fn copy_statement(table: &Table, piece: &Piece<'_>, reads: Reads) -> String {
    let columns: Vec<String> = table.columns.iter().map(|column| quoted(&column.name)).collect();
    let (columns, part) = (columns.join(", "), piece.part.sql_name());
    if is_copied(table, piece.pages, reads) {
        return format!("COPY {part} ({columns}) TO STDOUT");
    }
    let range = match piece.pages {
        (0, None) => String::new(),
        (first, None) => format!(" WHERE ctid >= '({first},0)'"),
        (first, Some(end)) => format!(" WHERE ctid >= '({first},0)' AND ctid < '({end},0)'"),
    };
    format!("COPY (SELECT {columns} FROM ONLY {part}{range}) TO STDOUT")
}

/// The fields of a line of `COPY` in its text format, as ranges of `decoded`; `None` for null.
fn fields(line: &[u8], decoded: &mut Vec<u8>) -> Vec<Option<std::ops::Range<usize>>> {
    decoded.clear();
    let field = |text: &[u8]| {
        if text == b"\\N" {
            return None;
        }
        let start = decoded.len();
        let mut rest = text;
        while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
            decoded.extend_from_slice(&rest[..at]);
            let escaped = rest.get(at + 1).copied().unwrap_or(b'\\');
            decoded.push(match escaped {
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 11,
                other => other,
            });
            rest = rest.get(at + 2..).unwrap_or_default();
        }
        decoded.extend_from_slice(rest);
        Some(start..decoded.len())
    };
    line.split(|byte| *byte == b'\t').map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_line_are_decoded() {
        let mut decoded = Vec::new();
        let line = b"1\t\\N\t\ta\\tb\\\\c\\nd\t\\\\N";
        let ranges = fields(line, &mut decoded);
        let texts: Vec<Option<&[u8]>> =
            ranges.into_iter().map(|range| range.map(|range| &decoded[range])).collect();
        let expected: [Option<&[u8]>; 5] =
            [Some(b"1"), None, Some(b""), Some(b"a\tb\\c\nd"), Some(b"\\N")];
        assert_eq!(texts, expected);
    }
}
