//! Capture: the changes of a PostgreSQL database, and first its rows, become raw files.
//!
//! ```text
//!              tables, identities, publication      snapshot ─▶ LOAD-….parquet, _LOAD.parquet
//!  source ──▶  catalog ───────────────▶ slot ───┤
//!                                                   log ─▶ pgoutput ─▶ rows ─▶ <time>.<position>.parquet
//!                                          ▲                                          │
//!                                          └───────── confirmed, when durable ────────┘
//! ```
//!
//! # What holds, and why
//!
//! - **Each change is in one file.** The server sends what was not confirmed again, and files are named by
//!   positions and created once ([`change_files`]). Where capture stands is in the slot and in the files,
//!   nowhere else.
//! - **No change is missing.** A table's snapshot is exported where a slot begins, after the table is in
//!   the publication and all transactions that ran before have ended ([`snapshot`]). A table that was
//!   captured before and is not now, or is another one, or whose slot is gone, is refused ([`setup`]).
//! - **One process at a time.** A lock of the database is held from the first look to the moment the slot is
//!   read; the slot itself can be read by one.
//! - **The last change wins by its position.** Files say `_lsn`: the order of commits, and the order inside
//!   of a transaction.
//! - **What was lost is read anew.** By word only, and behind the changes that files have ([`new_snapshot`]).
//! - **Without a log.** A source with `mode = "audit"` is read by queries instead, by a column with the time of a
//!   row's last change ([`audit`]).
//! - **Nothing is guessed.** Changes that are not whole in the log stop capture, before the transaction
//!   that has them; all transactions before it are written ([`drain`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use object_store::prefix::PrefixStore;
use parquet::basic::{Compression, ZstdLevel};
use tokio_postgres::Client;
use tracing::warn;

use crate::capture::audit::Extracts;
use crate::capture::catalog::{Catalog, Slot, Table};
use crate::capture::change_files::Counts;
use crate::capture::drain::{Drain, Ended, Until};
use crate::capture::export::Reader;
use crate::capture::mark::Mark;
use crate::capture::position::Lsn;
use crate::capture::replication::Replication;
use crate::capture::setup::Setup;
use crate::capture::snapshot::{Loaded, now};
use crate::config::Source;
use crate::engine::resources::Resources;
use crate::error::{Error, Result};
use crate::layout::escape_name;
use crate::postgres::Purpose;
use crate::postgres::connect::Server;
use crate::store::{Folder, Stores};

mod audit;
mod catalog;
mod change_files;
mod column;
pub(crate) mod described;
mod drain;
pub(crate) mod export;
mod extract;
mod hold;
mod mark;
mod new_snapshot;
mod pgoutput;
mod places;
mod position;
mod readers;
mod replication;
mod rows;
mod setup;
mod snapshot;
mod stamps;

/// What the connections of capture are for.
const CAPTURE: Purpose = Purpose {
    key: "url_env",
    unchanged: "nothing is lost, and nothing is captured twice: run the command again",
    grants: "docs/capture.md",
};

/// The time between two cuts when a backlog is read.
const CUT_INTERVAL: Duration = Duration::from_secs(60);
/// The most connections that read a snapshot.
const CONNECTIONS: usize = 4;
/// The bytes of log that a slot may hold without a warning.
const HELD_BYTES: u64 = 1 << 30;
/// What to do while another process captures.
const WAIT_FOR_THE_OTHER: &str = "wait until it has ended and run the command again; the server waits for one that is gone as long as its `wal_sender_timeout`";

/// How files are written.
#[derive(Debug)]
struct Output {
    slot: String,
    file_bytes: u64,
    compression: Compression,
}

/// A capture to do.
pub(crate) struct Capture<'a> {
    pub(crate) source: &'a Source,
    /// The URL of the database.
    pub(crate) url: &'a str,
    pub(crate) stores: &'a Stores,
    pub(crate) resources: &'a Resources,
    pub(crate) run_id: &'a str,
    /// The tables to read anew, all of them if it names none.
    pub(crate) new_snapshot: Option<&'a [String]>,
    /// Gets what was captured so far, each time when it is durable, while the capture goes on.
    pub(crate) progress: &'a dyn Fn(Captured),
}

/// How long to capture.
#[derive(Clone, Debug)]
pub enum CaptureMode {
    /// Up to where the log of the database ends at the beginning.
    CatchUp,
    /// Until it is stopped; files are written at least so often.
    Follow(Duration, tokio::sync::watch::Receiver<bool>),
}

/// Where a capture ends.
enum End {
    /// Where the mode says.
    Mode(CaptureMode),
    /// At a position that is known; other processes stay locked out.
    Held(Lsn),
}

/// A snapshot up to which a source was captured. While it is held, nobody else captures it.
pub(crate) struct Held<'a> {
    /// Sees the snapshot.
    pub(crate) reader: Reader<'a>,
    /// Where it stands in the log: all changes that are before it, and no other ones, were captured.
    pub(crate) position: String,
    /// When the capture had ended, by the server's clock.
    pub(crate) time: DateTime<Utc>,
    /// The session that has the lock of the slot, and the one that has made the snapshot.
    _sessions: (Client, Replication),
}

/// What was captured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Captured {
    pub(crate) tables: BTreeMap<String, CapturedTable>,
    /// Everything before this position is durable.
    pub(crate) position: String,
    /// The bytes of log that the slot held when it was last looked at.
    pub(crate) held_bytes: u64,
    pub(crate) transactions: u64,
    pub(crate) newest_commit: Option<DateTime<Utc>>,
}

/// What was captured of a table.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CapturedTable {
    pub(crate) rows_loaded: u64,
    pub(crate) inserts: u64,
    pub(crate) updates: u64,
    pub(crate) deletes: u64,
    pub(crate) truncates: u64,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Infinite dates and times that were written as the last or the first one.
    pub(crate) infinite: u64,
    /// Rows without a time in the column of extracts.
    pub(crate) rows_without_time: u64,
}

/// The folder of a table's files.
fn folder_of(to: &Folder, schema: &str, table: &str) -> Result<Folder> {
    let path = format!("{}/{}", escape_name(schema), escape_name(table));
    let prefix = to.root_path(&path)?;
    let location = to.location.join(&path);
    let store = Arc::new(PrefixStore::new(Arc::clone(&to.root_store), prefix.clone()));
    Ok(Folder { location, store, root_store: Arc::clone(&to.root_store), prefix })
}

impl Capture<'_> {
    /// Captures.
    ///
    /// # Errors
    /// Usage, when the server or a table cannot be captured as it is; data, when changes are not whole in
    /// the log, or log was removed; storage, when the server or the store cannot be reached; busy, when
    /// another process captures.
    pub(crate) async fn run(&self, mode: CaptureMode) -> Result<Captured> {
        let source = self.source;
        let server = Server::parse(self.url, &source.url_env, CAPTURE)?;
        let to = self.stores.open(&source.to)?;
        if let Some(audit) = &source.audit {
            if self.new_snapshot.is_some() {
                return Err(Error::usage("--new-snapshot is for sources whose log is read")
                    .hint("to load a table anew, move its folder below `to` away"));
            }
            let extracts = Extracts { capture: self, audit, server: &server, to: &to };
            return extracts.run(mode).await;
        }
        let client = server.connect(&self.application()).await?;
        let catalog = Catalog { client: &client, server: &server.name };
        self.lock(&catalog).await?;
        let captured = self.captured((&server, &catalog), &to, mode).await;
        if captured.is_err() {
            // The server would keep the lock until it sees that the session has ended.
            let _ = catalog.unlock().await;
        }
        captured
    }

    /// Captures up to a snapshot, in which a reader holds its table.
    ///
    /// # Errors
    /// Those of [`Capture::run`].
    pub(crate) async fn run_to_snapshot<'r>(&self, reader: Reader<'r>) -> Result<Held<'r>> {
        let source = self.source;
        if source.audit.is_some() {
            return Err(Error::usage(format!(
                "the log of the source `{}` is not read",
                source.name
            ))
            .hint(
                "an extract is of no position of the log: stop the writers, and compare without it",
            ));
        }
        let server = Server::parse(self.url, &source.url_env, CAPTURE)?;
        let to = self.stores.open(&source.to)?;
        let client = server.connect(&self.application()).await?;
        let catalog = Catalog { client: &client, server: &server.name };
        self.lock(&catalog).await?;
        let (read, _) = self.set_up((&server, &catalog), &to).await?;
        let mut replication = Replication::connect(&server, &self.application()).await?;
        let setup = Setup { capture: self, server: &server, catalog: &catalog, to: &to };
        let snapshot = setup.export_for(&reader, &read.0, &mut replication).await?;
        let (end, mut captured) = (End::Held(snapshot.position), Captured::default());
        self.drain((&server, &catalog), &to, read, end, &mut captured).await?;
        // Beyond the snapshot, the log can have been read as far as it has no change of the tables.
        if Lsn::parse(&captured.position) < Some(snapshot.position) {
            let message = format!("the capture ended at {}, before its end", captured.position);
            return Err(Error::internal(message));
        }
        let time = now(&client, &server.name, "read the time").await?;
        let time = DateTime::from_timestamp_micros(time).unwrap_or_default();
        let position = snapshot.position.to_string();
        Ok(Held { reader, position, time, _sessions: (client, replication) })
    }

    /// Checks the server, and locks the slot for others. The slot itself is the lock once it is read.
    async fn lock(&self, catalog: &Catalog<'_>) -> Result<()> {
        catalog.check_version().await?;
        catalog.check_log().await?;
        if catalog.lock(&self.source.slot).await? { Ok(()) } else { Err(self.is_busy()) }
    }

    /// Captures, while the slot is locked for others until it is read.
    async fn captured(
        &self,
        (server, catalog): (&Server, &Catalog<'_>),
        to: &Folder,
        mode: CaptureMode,
    ) -> Result<Captured> {
        let (read, mut captured) = self.set_up((server, catalog), to).await?;
        self.drain((server, catalog), to, read, End::Mode(mode), &mut captured).await?;
        Ok(captured)
    }

    /// The tables whose log is to be read, with their marks; and what was loaded of them.
    async fn set_up(
        &self,
        (server, catalog): (&Server, &Catalog<'_>),
        to: &Folder,
    ) -> Result<((BTreeMap<String, Table>, BTreeMap<String, Mark>), Captured)> {
        catalog.check_excluded(&self.source.tables).await?;
        let slot = catalog.slot(&self.source.slot).await?;
        if slot.as_ref().is_some_and(|slot| slot.is_active) {
            return Err(self.is_busy());
        }
        if let Some(lost) = slot.as_ref().filter(|slot| slot.is_lost && self.new_snapshot.is_none())
        {
            let name = &self.source.slot;
            return Err(lost.lost(name, catalog.server).hint(catalog::new_snapshot()));
        }
        // The right to replicate is seen before anything is made.
        let replication = Replication::connect(server, &self.application()).await?;
        self.warn_of_held_log(slot.as_ref());
        let setup = Setup { capture: self, server, catalog, to };
        let (tables, marks, loaded) = match self.new_snapshot {
            Some(named) => setup.tables_anew(named, slot.as_ref(), replication).await?,
            None => setup.tables(slot.as_ref(), replication).await?,
        };
        let captured = Captured {
            tables: loaded,
            held_bytes: slot.as_ref().map_or(0, |slot| slot.held_bytes),
            ..Captured::default()
        };
        Ok(((tables, marks), captured))
    }

    fn is_busy(&self) -> Error {
        Error::busy(format!("another process captures with the slot `{}`", self.source.slot))
            .hint(WAIT_FOR_THE_OTHER)
    }

    fn application(&self) -> String {
        format!("glueless capture {}", self.source.name)
    }

    /// The connections that read a snapshot.
    fn connections(&self) -> usize {
        CONNECTIONS.min(self.resources.threads.max(1))
    }

    fn output(&self) -> Arc<Output> {
        let files = self.source.files;
        let zstd = Compression::ZSTD(ZstdLevel::default());
        Arc::new(Output {
            slot: self.source.slot.clone(),
            file_bytes: files.file_bytes,
            compression: if files.is_zstd { zstd } else { Compression::SNAPPY },
        })
    }

    fn warn_of_held_log(&self, slot: Option<&Slot>) {
        let held = slot.map_or(0, |slot| slot.held_bytes);
        if held > HELD_BYTES {
            warn!(
                "the slot `{}` holds {} MB of log at the server, because it was not captured for long, or \
                 a transaction is open",
                self.source.slot,
                held / 1_000_000
            );
        }
    }

    async fn drain(
        &self,
        (server, catalog): (&Server, &Catalog<'_>),
        to: &Folder,
        (tables, marks): (BTreeMap<String, Table>, BTreeMap<String, Mark>),
        end: End,
        captured: &mut Captured,
    ) -> Result<()> {
        let (mut until, every, is_held) = match end {
            End::Held(position) => (Until::Position(position), CUT_INTERVAL, true),
            End::Mode(CaptureMode::Follow(every, stop)) => (Until::Stopped(stop), every, false),
            End::Mode(CaptureMode::CatchUp) => {
                let end = catalog.log_end().await?;
                let end = Lsn::parse(&end).ok_or_else(|| Error::internal("the log has no end"))?;
                (Until::Position(end), CUT_INTERVAL, false)
            }
        };
        let domains = catalog.domains().await?;
        let mut refusal = None;
        loop {
            let mut drain = Drain::new(
                catalog,
                (self.source, to),
                self.output(),
                self.resources.memory_bytes / 2,
                (tables.clone(), domains.clone()),
                marks.clone(),
            );
            let replication = Replication::connect(server, &self.application()).await?;
            let mut stream = replication.start(&self.source.slot, &self.source.publication).await?;
            if !is_held {
                catalog.unlock().await?;
            }
            let mut after_cut = |drain: &Drain<'_>, held_bytes: Option<u64>| {
                captured.held_bytes = held_bytes.unwrap_or(captured.held_bytes);
                let mut so_far = captured.clone();
                so_far.add(drain);
                (self.progress)(so_far);
            };
            match drain.read(&mut stream, until, (every, &mut after_cut)).await? {
                // All before it is written by another try, which ends there.
                Ended::Before(position, error)
                    if refusal.is_none() && position > drain.confirmed =>
                {
                    stream.end().await?;
                    until = Until::Position(position);
                    refusal = Some(error);
                }
                Ended::Before(_, error) => return Err(refusal.unwrap_or(error)),
                Ended::Done => {
                    stream.end().await?;
                    captured.add(&drain);
                    return refusal.map_or(Ok(()), Err);
                }
            }
        }
    }
}

impl Captured {
    fn add(&mut self, drain: &Drain<'_>) {
        for (name, counts) in drain.counts() {
            let Counts { inserts, updates, deletes, truncates, files, bytes, infinite } = counts;
            let read = CapturedTable {
                inserts,
                updates,
                deletes,
                truncates,
                files,
                bytes,
                infinite,
                ..Default::default()
            };
            self.tables.entry(name.to_string()).or_default().add(read);
        }
        self.position = drain.confirmed.to_string();
        self.transactions = drain.transactions;
        self.newest_commit = drain.newest_commit.and_then(DateTime::from_timestamp_micros);
    }
}

impl CapturedTable {
    fn add(&mut self, other: CapturedTable) {
        self.rows_loaded += other.rows_loaded;
        self.inserts += other.inserts;
        self.updates += other.updates;
        self.deletes += other.deletes;
        self.truncates += other.truncates;
        self.files += other.files;
        self.bytes += other.bytes;
        self.infinite += other.infinite;
        self.rows_without_time = other.rows_without_time;
    }
}

impl From<Loaded> for CapturedTable {
    fn from(Loaded { rows, truncates, files, bytes, infinite }: Loaded) -> Self {
        CapturedTable { rows_loaded: rows, truncates, files, bytes, infinite, ..Default::default() }
    }
}
