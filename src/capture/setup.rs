//! What is done before the log is read: everything is checked, then the publication and the slot are made, and
//! tables without a complete full load are loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tracing::{info, warn};

use crate::capture::catalog::{
    Catalog, Domains, Published, Reads, Slot, Table, another_table, check_identities, new_snapshot,
};
use crate::capture::column::Kind;
use crate::capture::drain::kind_of;
use crate::capture::export::Reader;
use crate::capture::mark::{self, Mark, has_files, oldest_load};
use crate::capture::places::Places;
use crate::capture::position::Lsn;
use crate::capture::replication::Replication;
use crate::capture::rows::Shape;
use crate::capture::snapshot::{Load, Loaded, Loader, Snapshot, now};
use crate::capture::{Capture, CapturedTable, folder_of};
use crate::config::Source;
use crate::error::{Error, Result};
use crate::postgres::connect::Server;
use crate::postgres::quoted;
use crate::store::Folder;

/// The requests at once that look for files.
pub(super) const CONCURRENT_REQUESTS: usize = 16;
/// How many snapshots are made until one is held before a statement empties a table.
const SNAPSHOT_TRIES: usize = 20;
/// The time after which a wait for other transactions is reported.
const WAIT: Duration = Duration::from_secs(5);

/// The position from which on a table's changes belong to its files: that of its oldest full load.
async fn first_change(
    table: &str,
    folder: &Folder,
    slot: Option<&Slot>,
    position: Lsn,
) -> Result<Lsn> {
    let from = oldest_load(folder).await?.map_or(position, |oldest| oldest.min(position));
    if slot.is_some_and(|slot| from < slot.confirmed) {
        return Err(Error::data(format!(
            "the load of {table} was interrupted, and other tables were captured without it: changes since \
             then are lost"
        ))
        .hint(another_table()));
    }
    Ok(from)
}

/// Checks that the tables that are named are there, or were captured before, and the columns of
/// `text_columns` too.
///
/// # Errors
/// Usage, when one is not.
pub(super) fn check_names(
    source: &Source,
    tables: &BTreeMap<String, Table>,
    captured: &BTreeSet<&str>,
) -> Result<()> {
    for (schema, name) in source.tables.named() {
        let full = format!("{schema}.{name}");
        if tables.contains_key(&full) {
            continue;
        }
        if !captured.contains(full.as_str()) {
            return Err(Error::usage(format!("there is no table `{full}`"))
                .hint("correct `tables`: tables, not views; names are taken as they are written"));
        }
        warn!("the table {full} is no longer there");
    }
    if tables.is_empty() && captured.is_empty() {
        return Err(Error::usage("there is no table that `tables` names")
            .hint("correct `tables`: a schema does not exist, or has no tables"));
    }
    for schema in source.tables.schemas().collect::<BTreeSet<_>>() {
        let begin = format!("{schema}.");
        let mut known = tables.keys().map(String::as_str).chain(captured.iter().copied());
        if !known.any(|name| name.starts_with(&begin)) {
            warn!("`tables` names the schema {schema}, which does not exist or has no tables");
        }
    }
    for (name, table) in tables {
        let is_of = |column: &&String| column.starts_with(&format!("{name}."));
        let is_known = |column: &String| {
            let mut columns = table.columns.iter();
            columns.any(|known| *column == format!("{name}.{}", known.name))
        };
        let mut named = source.text_columns.iter().filter(is_of);
        if let Some(column) = named.find(|column| !is_known(column)) {
            return Err(Error::usage(format!("there is no column `{column}`"))
                .hint("correct `text_columns`: schema.table.column"));
        }
    }
    Ok(())
}

/// The columns of a table and their types in files.
pub(super) fn kinds(source: &Source, table: &Table, domains: &Domains) -> Vec<(String, Kind)> {
    let full = table.full_name();
    let columns = table.columns.iter().map(|column| {
        let kind = domains.kind(column.type_id, column.modifier);
        (column.name.clone(), kind_of(source, &full, &column.name, kind))
    });
    columns.collect()
}

/// A capture that is set up.
pub(super) struct Setup<'a> {
    pub(super) capture: &'a Capture<'a>,
    pub(super) server: &'a Server,
    pub(super) catalog: &'a Catalog<'a>,
    pub(super) to: &'a Folder,
}

/// The marks of tables, by their names.
pub(super) type Marks = BTreeMap<String, Mark>;

/// How tables are read.
#[derive(Clone, Copy)]
pub(super) enum Reading<'a> {
    /// Into full loads; with the slot, if there is one already.
    First(Option<&'a Slot>),
    /// Behind the changes that their files have.
    Anew,
}

impl Setup<'_> {
    /// The tables to capture, their marks, and what was loaded of them now.
    ///
    /// # Errors
    /// Usage, when something cannot be captured as it is; data, when changes are lost; storage, when the
    /// server or the store cannot be reached.
    pub(super) async fn tables(
        &self,
        slot: Option<&Slot>,
        mut replication: Replication,
    ) -> Result<(BTreeMap<String, Table>, Marks, BTreeMap<String, CapturedTable>)> {
        let source = self.capture.source;
        let tables = self.catalog.tables(&source.tables, Reads::Log).await?;
        check_identities(&tables)?;
        let mut marks = self.marks(&tables).await?;
        check_names(source, &tables, &marks.keys().map(String::as_str).collect())?;
        self.check_tables(&tables, &marks)?;
        if slot.is_none() {
            self.check_that_all_is_new(&tables, &marks).await?;
        }
        let domains = self.catalog.domains().await?;
        for table in tables.values() {
            self.shape(table, &domains)?;
        }
        let published = self.catalog.published(source, &tables, slot.is_some()).await?;
        self.check_published(&published, (slot.is_some(), &marks)).await?;
        let added = tables.iter().filter(|(name, _)| published.added.contains(*name));
        self.check_no_files(added.map(|(_, table)| table)).await?;
        self.catalog.publish(&published).await?;
        let to_load = tables.keys().filter(|name| !marks.contains_key(*name));
        let to_load: BTreeSet<String> = to_load.cloned().collect();
        let mut loaded = BTreeMap::new();
        if slot.is_none() || !to_load.is_empty() {
            let places = self.catalog.published(source, &tables, slot.is_some()).await?.places;
            let reading = Reading::First(slot);
            let loads = self.load(reading, &mut replication, &to_load, &places).await?;
            for (table, mark, counts) in loads {
                marks.insert(table.clone(), mark);
                loaded.insert(table, CapturedTable::from(counts));
            }
        }
        Ok((tables, marks, loaded))
    }

    /// The marks of tables that are there, or named.
    pub(super) async fn marks(&self, tables: &BTreeMap<String, Table>) -> Result<Marks> {
        let there = tables.values().map(|table| (table.schema.as_str(), table.name.as_str()));
        let wanted: BTreeSet<(&str, &str)> =
            there.chain(self.capture.source.tables.named()).collect();
        self.marks_of(wanted.into_iter()).await
    }

    async fn marks_of(&self, tables: impl Iterator<Item = (&str, &str)>) -> Result<Marks> {
        let looked = stream::iter(tables).map(|(schema, table)| async move {
            let folder = folder_of(self.to, schema, table)?;
            let mark = Mark::read(&folder, &self.capture.source.slot).await?;
            Ok::<_, Error>(mark.map(|mark| (format!("{schema}.{table}"), mark)))
        });
        let looked = looked.buffered(CONCURRENT_REQUESTS).try_collect::<Vec<_>>().await?;
        Ok(looked.into_iter().flatten().collect())
    }

    /// Checks that tables are the ones that were captured.
    pub(super) fn check_tables(
        &self,
        tables: &BTreeMap<String, Table>,
        marks: &Marks,
    ) -> Result<()> {
        for (name, table) in tables {
            if marks.get(name).is_some_and(|mark| mark.table != table.oid) {
                let message = format!("{name} is another table than the one that was captured");
                return Err(Error::data(message).hint(another_table()));
            }
        }
        Ok(())
    }

    /// Checks that nothing was captured before, because there is no slot.
    async fn check_that_all_is_new(
        &self,
        tables: &BTreeMap<String, Table>,
        marks: &Marks,
    ) -> Result<()> {
        let slot = &self.capture.source.slot;
        if let Some(table) = marks.keys().next() {
            return Err(Error::data(format!(
                "the slot `{slot}` is gone, and {table} was captured with it: changes since then are lost"
            ))
            .hint(new_snapshot()));
        }
        self.check_no_files(tables.values()).await
    }

    /// Checks that tables have no files yet.
    async fn check_no_files(&self, tables: impl Iterator<Item = &Table>) -> Result<()> {
        let looked = stream::iter(tables).map(|table| async move {
            let folder = folder_of(self.to, &table.schema, &table.name)?;
            Ok::<_, Error>(
                has_files(&folder).await?.then_some((table.full_name(), folder.location)),
            )
        });
        let looked = looked.buffered(CONCURRENT_REQUESTS).try_collect::<Vec<_>>().await?;
        match looked.into_iter().flatten().next() {
            None => Ok(()),
            Some((table, folder)) => {
                Err(Error::usage(format!("{table} was not captured yet, and {folder} has files")).hint(
                    "set `to` to a new folder, or move that one away: old files and new ones would be mixed",
                ))
            }
        }
    }

    /// Checks that no table has changes that are not captured, between others that are.
    async fn check_published(
        &self,
        published: &Published,
        (has_slot, marks): (bool, &Marks),
    ) -> Result<()> {
        if published.is_new && has_slot {
            let name = &self.capture.source.publication;
            let dropped =
                format!("the publication `{name}` was dropped: changes since then are lost");
            return Err(Error::data(dropped).hint(new_snapshot()));
        }
        self.check_places(published, marks)?;
        self.check_others(published).await
    }

    /// Checks that tables are where they were in the publication.
    pub(super) fn check_places(&self, published: &Published, marks: &Marks) -> Result<()> {
        let name = &self.capture.source.publication;
        let lost = |why: String| {
            Err(Error::data(format!("{why}: changes since then are lost")).hint(another_table()))
        };
        for (table, mark) in marks {
            if published.added.contains(table) {
                let why =
                    format!("{table} was captured before, and is not in the publication `{name}`");
                return lost(why);
            }
            if published.places.get(table).is_some_and(|place| *place != mark.place) {
                let why = format!(
                    "{table} was taken out of the publication `{name}`, or that is another one"
                );
                return lost(why);
            }
        }
        Ok(())
    }

    /// Checks that no other table of the publication was captured before.
    pub(super) async fn check_others(&self, published: &Published) -> Result<()> {
        let others =
            published.others.iter().map(|(schema, table)| (schema.as_str(), table.as_str()));
        if let Some(table) = self.marks_of(others).await?.keys().next() {
            return Err(Error::usage(format!(
                "{table} was captured before, is in the publication, and is not among the tables of the \
                 source: its changes would be skipped"
            ))
            .hint(
                "name it in `tables`, or take it out of `exclude`; or, to end its capture, take it out of the \
                 publication (ALTER PUBLICATION … DROP TABLE …), or move its folder below `to` away",
            ));
        }
        Ok(())
    }

    pub(super) fn shape(&self, table: &Table, domains: &Domains) -> Result<Arc<Shape>> {
        let columns = kinds(self.capture.source, table, domains);
        Ok(Arc::new(Shape::new(table.full_name(), columns, table.key_numbers()?)?))
    }

    /// Makes the slot, or a temporary one, and loads tables in its snapshot, in which their shapes are read
    /// again.
    pub(super) async fn load(
        &self,
        reading: Reading<'_>,
        replication: &mut Replication,
        to_load: &BTreeSet<String>,
        places: &BTreeMap<String, u32>,
    ) -> Result<Vec<(String, Mark, Loaded)>> {
        let makes_slot = matches!(reading, Reading::First(None));
        let snapshot = self.export(replication, makes_slot).await?;
        let position = snapshot.position;
        let loader = Loader {
            server: self.server,
            application: &self.capture.application(),
            snapshot,
            output: self.capture.output(),
            notes: vec![
                mark::note(mark::SLOT, &self.capture.source.slot),
                mark::note("glueless.snapshot", position),
            ],
            run_id: self.capture.run_id,
            reads: Reads::Log,
            connections: self.capture.connections(),
        };
        let client = loader.begin().await?;
        let then = Catalog { client: &client, server: &self.server.name };
        let mut tables = then.tables(&self.capture.source.tables, Reads::Log).await?;
        tables.retain(|name, _| to_load.contains(name));
        check_identities(&tables)?;
        let domains = then.domains().await?;
        let time = now(&client, &self.server.name, "read the time").await?;
        let readers = loader.hold(&client, &tables).await?;
        let (mut loads, mut marks) = (Vec::new(), Vec::new());
        for (name, table) in tables {
            let folder = folder_of(self.to, &table.schema, &table.name)?;
            let (from, row_places) = match reading {
                Reading::First(slot) => (first_change(&name, &folder, slot, position).await?, None),
                Reading::Anew => (position, Some(Places::new(position, time))),
            };
            let place = places.get(&name).copied().ok_or_else(|| {
                Error::storage(format!("{name} was taken out of the publication meanwhile"))
                    .hint("run the command again")
            })?;
            let (shape, oid) = (self.shape(&table, &domains)?, table.oid);
            let mark = Mark { from, table: oid, place };
            marks.push((name, mark));
            let mark = mark.notes(&self.capture.source.slot);
            loads.push(Load { table, shape, folder, mark, places: row_places });
        }
        info!("{} tables are loaded as of {position}", loads.len());
        let loaded = loader.load(&readers, &loads).await?;
        let loaded = marks.into_iter().zip(loaded);
        Ok(loaded.map(|((name, mark), loaded)| (name, mark, loaded)).collect())
    }

    /// The name of the run's temporary slot. Names of slots are those of the whole server.
    pub(super) fn temporary_slot(&self) -> String {
        let id = self.capture.run_id.chars().rev();
        let own: String = id.filter(|c| *c != '-').take(8).collect();
        format!("{}_{own}", self.capture.source.slot)
    }

    /// Makes the slot, or a temporary one, whose snapshot is exported. It lives as long as the connection
    /// does nothing else.
    pub(super) async fn export(
        &self,
        replication: &mut Replication,
        makes_slot: bool,
    ) -> Result<Snapshot> {
        let slot = &self.capture.source.slot;
        let (name, temporary) =
            if makes_slot { (slot.clone(), "") } else { (self.temporary_slot(), "TEMPORARY ") };
        let statement = format!(
            "CREATE_REPLICATION_SLOT {} {temporary}LOGICAL pgoutput EXPORT_SNAPSHOT",
            quoted(&name)
        );
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

    /// Exports a snapshot that a reader enters, in which no table was written anew before the reader held it.
    pub(super) async fn export_for(
        &self,
        reader: &Reader<'_>,
        tables: &BTreeMap<String, Table>,
        replication: &mut Replication,
    ) -> Result<Snapshot> {
        for _ in 0..SNAPSHOT_TRIES {
            let snapshot = self.export(replication, false).await?;
            reader.enter(&snapshot.name).await?;
            let Some(table) = reader.rewritten(tables).await? else {
                return Ok(snapshot);
            };
            info!("{table} was written anew when the snapshot was made: another one is made");
            let drop = format!("DROP_REPLICATION_SLOT {}", quoted(&self.temporary_slot()));
            replication.query(&drop, "drop a slot").await?;
        }
        Err(Error::storage("a table was written anew each time when a snapshot was made")
            .hint(self.server.name.purpose.unchanged))
    }
}
