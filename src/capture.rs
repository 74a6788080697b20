//! Capture: the changes of a PostgreSQL database, and first its rows, become raw files.
//!
//! ```text
//!              tables, identities, publication      snapshot ─▶ LOAD-….parquet, LOAD.parquet
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
//!   captured before and is not now, or whose slot is gone, is refused.
//! - **The last change wins by its position.** Files say `_lsn`: the order of commits, and the order inside
//!   of a transaction.
//! - **Nothing is guessed.** Changes that are not whole in the log stop capture, before the transaction
//!   that has them; all transactions before it are written ([`drain`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::prefix::PrefixStore;
use parquet::basic::{Compression, ZstdLevel};
use tracing::{info, warn};

use crate::capture::catalog::{
    Catalog, Domains, Published, Slot, Table, check_identities, new_snapshot,
};
use crate::capture::change_files::Counts;
use crate::capture::drain::{Drain, Ended, Until, kind_of};
use crate::capture::position::Lsn;
use crate::capture::replication::Replication;
use crate::capture::rows::Shape;
use crate::capture::snapshot::{COMPLETE, Load, Loaded, Loader, Snapshot};
use crate::config::Source;
use crate::engine::resources::Resources;
use crate::error::{Error, Result};
use crate::layout::escape_name;
use crate::postgres::connect::Server;
use crate::postgres::{Purpose, quoted};
use crate::store::{Folder, Stores, parse_path};

mod catalog;
mod change_files;
mod column;
mod drain;
mod pgoutput;
mod position;
mod replication;
mod rows;
mod snapshot;

/// What the connections of capture are for.
const CAPTURE: Purpose = Purpose {
    key: "url_env",
    unchanged: "nothing is lost, and nothing is captured twice: run the command again",
    grants: "docs/capture.md",
};

/// The time between two cuts when a backlog is read.
const CUT_INTERVAL: Duration = Duration::from_secs(60);
/// The bytes of log that a slot may hold without a warning.
const HELD_BYTES: u64 = 1 << 30;
/// The most connections that read a snapshot.
const CONNECTIONS: usize = 4;
/// The requests at once that look for files.
const CONCURRENT_REQUESTS: usize = 16;
/// The time after which a wait for other transactions is reported.
const WAIT: Duration = Duration::from_secs(5);

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
}

/// How long to capture.
pub(crate) enum Mode {
    /// Up to where the log ends now.
    CatchUp,
    /// Until it is stopped, with files at least so often.
    Follow(Duration, tokio::sync::watch::Receiver<bool>),
}

/// What was captured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Captured {
    pub(crate) tables: BTreeMap<String, CapturedTable>,
    /// Everything before this position is durable.
    pub(crate) position: String,
    /// The bytes of log that the slot held at the beginning.
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
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Infinite dates and times that were written as the last or the first one.
    pub(crate) infinite: u64,
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
    pub(crate) async fn run(&self, mode: Mode) -> Result<Captured> {
        let source = self.source;
        let server = Server::parse(self.url, &source.url_env, CAPTURE)?;
        let to = self.stores.open(&source.to)?;
        let client = server.connect(&self.application()).await?;
        let catalog = Catalog { client: &client, server: &server.name };
        catalog.check_server().await?;
        let tables = catalog.tables(&source.tables).await?;
        check_identities(&tables)?;
        let slot = catalog.slot(&source.slot).await?;
        self.warn_of_held_log(slot.as_ref());
        let complete = self.complete_tables(&to, &tables).await?;
        self.check_names(&tables, &complete)?;
        let published = match &slot {
            None if !complete.is_empty() => return Err(self.slot_is_gone(&complete)),
            _ => catalog.published(source, &tables).await?,
        };
        self.check_published(&to, &published, (slot.is_some(), &complete)).await?;
        catalog.publish(&published).await?;
        let domains = catalog.domains().await?;
        let to_load: Vec<Table> = tables
            .iter()
            .filter(|(name, _)| !complete.contains(*name))
            .map(|(_, table)| table.clone())
            .collect();
        let mut captured = Captured {
            held_bytes: slot.as_ref().map_or(0, |slot| slot.held_bytes),
            ..Captured::default()
        };
        if slot.is_none() || !to_load.is_empty() {
            let loads = self.loads(&to, to_load, &domains)?;
            self.load(&server, (slot.is_none(), &loads), &mut captured).await?;
        }
        self.drain((&server, &catalog), &to, (tables, domains), mode, &mut captured).await?;
        Ok(captured)
    }

    fn application(&self) -> String {
        format!("glueless capture {}", self.source.name)
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

    /// Checks that the tables that are named are there.
    fn check_names(
        &self,
        tables: &BTreeMap<String, Table>,
        complete: &BTreeSet<String>,
    ) -> Result<()> {
        for (schema, name) in self.source.tables.named() {
            let full = format!("{schema}.{name}");
            if tables.contains_key(&full) {
                continue;
            }
            if !complete.contains(&full) {
                return Err(Error::usage(format!("there is no table `{full}`"))
                    .hint("correct `tables`; names are taken as they are written"));
            }
            warn!("the table {full} is no longer there");
        }
        if tables.is_empty() {
            return Err(Error::usage("there is no table that `tables` names")
                .hint("correct `tables`; a schema.* has at least one table"));
        }
        Ok(())
    }

    /// The tables whose full load is complete, of those that are there or named.
    async fn complete_tables(
        &self,
        to: &Folder,
        tables: &BTreeMap<String, Table>,
    ) -> Result<BTreeSet<String>> {
        let there = tables.values().map(|table| (table.schema.as_str(), table.name.as_str()));
        let wanted: BTreeSet<(&str, &str)> = there.chain(self.source.tables.named()).collect();
        complete_of(to, wanted.into_iter()).await
    }

    fn slot_is_gone(&self, complete: &BTreeSet<String>) -> Error {
        let table = complete.first().map_or("", String::as_str);
        Error::data(format!(
            "the slot `{}` is gone, and {table} was captured with it: changes since then are lost",
            self.source.slot
        ))
        .hint(new_snapshot(&self.source.slot))
    }

    /// Checks that no table has changes that are not captured, between others that are.
    async fn check_published(
        &self,
        to: &Folder,
        published: &Published,
        (has_slot, complete): (bool, &BTreeSet<String>),
    ) -> Result<()> {
        if published.is_new && has_slot {
            return Err(Error::data(format!(
                "the publication `{}` was missing: changes since it was dropped are lost",
                self.source.publication
            ))
            .hint(new_snapshot(&self.source.slot)));
        }
        if let Some(table) = published.added.iter().find(|table| complete.contains(*table)) {
            return Err(Error::data(format!(
                "{table} was captured before, and is not in the publication `{}`: changes since then are \
                 lost",
                self.source.publication
            ))
            .hint(
                "move its folder below `to` away, and run the command again: the table is loaded anew; then \
                 rebuild its pipelines",
            ));
        }
        let others =
            published.others.iter().map(|(schema, table)| (schema.as_str(), table.as_str()));
        if let Some(table) = complete_of(to, others).await?.first() {
            return Err(Error::usage(format!(
                "{table} was captured before, is in the publication, and `tables` does not name it: its \
                 changes would be skipped"
            ))
            .hint(
                "name it in `tables`; or, to end its capture, take it out of the publication (ALTER \
                 PUBLICATION … DROP TABLE …), or move its folder below `to` away",
            ));
        }
        Ok(())
    }

    fn loads(&self, to: &Folder, tables: Vec<Table>, domains: &Domains) -> Result<Vec<Load>> {
        let loads = tables.into_iter().map(|table| {
            let full = table.full_name();
            let columns = table.columns.iter().map(|column| {
                let kind = domains.kind(column.type_id, column.modifier);
                (column.name.clone(), kind_of(self.source, &full, &column.name, kind))
            });
            let columns: Vec<_> = columns.collect();
            let number = |name: &String| columns.iter().position(|(column, _)| column == name);
            let key = table.key.iter().filter_map(number).collect();
            let shape = Arc::new(Shape::new(full, columns, key)?);
            let folder = folder_of(to, &table.schema, &table.name)?;
            Ok(Load { table, shape, folder })
        });
        loads.collect()
    }

    /// Makes the slot, or a temporary one, and loads tables in its snapshot.
    async fn load(
        &self,
        server: &Server,
        (makes_slot, loads): (bool, &[Load]),
        captured: &mut Captured,
    ) -> Result<()> {
        // The snapshot lives as long as this connection does nothing else.
        let mut replication = Replication::connect(server, &self.application()).await?;
        let snapshot = self.export(&mut replication, makes_slot).await?;
        info!("{} tables are loaded as of {}", loads.len(), snapshot.position);
        let loader = Loader {
            server,
            application: &self.application(),
            snapshot,
            output: self.output(),
            run_id: self.run_id,
            connections: CONNECTIONS.min(self.resources.threads.max(1)),
        };
        let loaded = loader.load(loads).await?;
        for (load, Loaded { rows, files, bytes, infinite }) in loads.iter().zip(loaded) {
            let table = captured.tables.entry(load.table.full_name()).or_default();
            *table = CapturedTable { rows_loaded: rows, files, bytes, infinite, ..*table };
        }
        Ok(())
    }

    /// Makes the slot, or a temporary one, whose snapshot is exported.
    async fn export(&self, replication: &mut Replication, makes_slot: bool) -> Result<Snapshot> {
        let slot = &self.source.slot;
        let statement = if makes_slot {
            format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput EXPORT_SNAPSHOT", quoted(slot))
        } else {
            // Names of slots are those of the whole server.
            let name = format!("{slot}_{}", &self.run_id.replace('-', "")[24..]);
            let name = &name[..name.len().min(63)];
            format!(
                "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT",
                quoted(name)
            )
        };
        let rows = {
            let mut made = Box::pin(replication.query(&statement, "make a slot"));
            tokio::select! {
                rows = &mut made => rows?,
                () = tokio::time::sleep(WAIT) => {
                    warn!("waiting until all transactions of the server that have begun have ended");
                    made.await?
                }
            }
        };
        let text = |column: usize| rows.first().and_then(|row| row.get(column)?.clone());
        let position = text(1).and_then(|text| Lsn::parse(&text));
        match (position, text(2)) {
            (Some(position), Some(name)) => Ok(Snapshot { name, position }),
            _ => Err(Error::internal("the server exported no snapshot")),
        }
    }

    async fn drain(
        &self,
        (server, catalog): (&Server, &Catalog<'_>),
        to: &Folder,
        (tables, domains): (BTreeMap<String, Table>, Domains),
        mode: Mode,
        captured: &mut Captured,
    ) -> Result<()> {
        let end = catalog.log_end().await?;
        let end = Lsn::parse(&end).ok_or_else(|| Error::internal("the log has no end"))?;
        let (mut until, every) = match mode {
            Mode::CatchUp => (Until::Position(end), CUT_INTERVAL),
            Mode::Follow(every, stop) => (Until::Stopped(stop), every),
        };
        let mut refusal = None;
        loop {
            let mut drain = Drain::new(
                catalog,
                (self.source, to),
                self.output(),
                self.resources.memory_bytes / 2,
                (tables.clone(), domains.clone()),
            );
            let replication = Replication::connect(server, &self.application()).await?;
            let mut stream = replication.start(&self.source.slot, &self.source.publication).await?;
            match drain.read(&mut stream, until, every).await? {
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
            let Counts { inserts, updates, deletes, files, bytes, infinite } = counts;
            let table = self.tables.entry(name.to_string()).or_default();
            table.inserts += inserts;
            table.updates += updates;
            table.deletes += deletes;
            table.files += files;
            table.bytes += bytes;
            table.infinite += infinite;
        }
        self.position = drain.confirmed.to_string();
        self.transactions = drain.transactions;
        self.newest_commit = drain.newest_commit.and_then(DateTime::from_timestamp_micros);
    }
}

/// Those of some tables whose full load is complete.
async fn complete_of(
    to: &Folder,
    tables: impl Iterator<Item = (&str, &str)>,
) -> Result<BTreeSet<String>> {
    let looked = stream::iter(tables).map(|(schema, table)| async move {
        let folder = folder_of(to, schema, table)?;
        Ok::<_, Error>(is_complete(&folder).await?.then(|| format!("{schema}.{table}")))
    });
    let looked = looked.buffered(CONCURRENT_REQUESTS).try_collect::<Vec<_>>().await?;
    Ok(looked.into_iter().flatten().collect())
}

/// Whether a table's full load is complete.
async fn is_complete(folder: &Folder) -> Result<bool> {
    match folder.store.head(&parse_path(COMPLETE)?).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(Error::store(format!("look for {}", folder.describe(COMPLETE)), error)),
    }
}
