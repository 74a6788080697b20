//! A new snapshot: tables that were captured before are read again, behind the changes that their files have.
//!
//! When a slot is lost, what changed since then is nowhere. So the tables are read as they are where a new slot
//! begins, at *P*, and written as changes: a truncation, which ends every row before it, and the rows, as inserts.
//!
//! ```text
//!  _lsn   │ commits before P │ P-7, 0     │ P-7, 1 and so on │ commits from P on
//!  is of  │ the old slot     │ truncation │ the rows         │ the new slot
//! ```
//!
//! # What holds, and why
//!
//! - **The order.** No commit has the positions between ([`crate::capture::places`]). The log must not be behind
//!   the files: of a database that went back, new rows would be older than the old ones, and it is refused.
//! - **No truncation without its rows.** The rows are written first, and the truncation last. Without it they are
//!   right too: they are rows of the table at *P*, only that others are left that were deleted.
//! - **An interrupted snapshot is repeated.** The next one has a later position, and its truncation ends whatever
//!   the first one has written.
//! - **A slot that has lost changes does not go on.** It is dropped before anything is made, the new one is
//!   temporary until all tables are durable, and only then gets the name, as a copy. In between there is
//!   no slot, and captures are refused.
//! - **A slot that has lost nothing stays.** The snapshot is that of a temporary one. What the slot still has from
//!   before *P* is left out of the files of the tables that were read: the mark says so, which is
//!   replaced behind the truncation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectMeta;
use tracing::info;

use crate::capture::catalog::{Published, Reads, Slot, Table, begin_anew, check_identities};
use crate::capture::change_files::{LAST, position_in};
use crate::capture::mark::{COMPLETE, SLOT, load_position_in};
use crate::capture::position::{Lsn, Position};
use crate::capture::replication::Replication;
use crate::capture::setup::{CONCURRENT_REQUESTS, Marks, Reading, Setup, check_names};
use crate::capture::{CapturedTable, folder_of};
use crate::error::{Error, Result};
use crate::parquet_io::open::ParquetFile;
use crate::store::Folder;

/// What is in a table's folder.
#[derive(Default)]
struct Files {
    /// The position of the newest file, with the file.
    newest: Option<(Position, ObjectMeta)>,
    /// A file that capture does not write.
    foreign: Option<String>,
}

impl Files {
    async fn list(folder: &Folder) -> Result<Self> {
        let mut files = Files::default();
        let mut listed = folder.store.list(None);
        loop {
            let object = match listed.try_next().await {
                Ok(Some(object)) => object,
                Ok(None) | Err(object_store::Error::NotFound { .. }) => return Ok(files),
                Err(error) => return Err(Error::store(format!("list {}", folder.location), error)),
            };
            let name = object.location.as_ref();
            let loaded = load_position_in(name).map(|at| Position { commit: at.0, row: 0 });
            match loaded.or_else(|| position_in(name)) {
                Some(at) if files.newest.as_ref().is_none_or(|(newest, _)| at > *newest) => {
                    files.newest = Some((at, object));
                }
                None if name != COMPLETE => files.foreign = Some(name.to_string()),
                Some(_) | None => {}
            }
        }
    }
}

impl Setup<'_> {
    /// Reads tables anew: all of them if none is named. Returns what [`Setup::tables`] returns.
    ///
    /// # Errors
    /// Those of [`Setup::tables`]; data, when the log is behind the files.
    pub(super) async fn tables_anew(
        &self,
        named: &[String],
        slot: Option<&Slot>,
        mut replication: Replication,
    ) -> Result<(BTreeMap<String, Table>, Marks, BTreeMap<String, CapturedTable>)> {
        let source = self.capture.source;
        let tables = self.catalog.tables(&source.tables, Reads::Log).await?;
        check_identities(&tables)?;
        let mut marks = self.marks(&tables).await?;
        check_names(source, &tables, &marks.keys().map(String::as_str).collect())?;
        let wanted = wanted(named, &tables)?;
        let domains = self.catalog.domains().await?;
        for table in tables.values() {
            self.shape(table, &domains)?;
        }
        let is_read = |name: &String| wanted.contains(name);
        self.check_folders(tables.iter().filter(|(name, _)| is_read(name)), &marks).await?;
        let published = self.catalog.published(source, &tables, slot.is_some()).await?;
        self.check_others(&published).await?;
        let is_whole = slot.is_some_and(|slot| !slot.is_lost)
            && !published.is_new
            && self.check_places(&published, &marks).is_ok();
        let replaces = !is_whole && wanted.len() == tables.len();
        if replaces {
            info!("all tables are read anew, and the slot `{}` is made anew", source.slot);
            if slot.is_some() {
                self.catalog.drop_slot(&source.slot).await?;
            }
        } else {
            self.check_those_that_stay(slot, &published, (&tables, &wanted, &marks))?;
        }
        self.catalog.publish(&published).await?;
        let places = self.catalog.published(source, &tables, !replaces).await?.places;
        let loads = self.load(Reading::Anew, &mut replication, &wanted, &places).await?;
        if replaces {
            // The temporary slot lives as long as the connection that has made it.
            self.catalog.copy_slot(&self.temporary_slot(), &source.slot).await?;
        }
        let mut loaded = BTreeMap::new();
        for (table, mark, counts) in loads {
            marks.insert(table.clone(), mark);
            loaded.insert(table, CapturedTable::from(counts));
        }
        Ok((tables, marks, loaded))
    }

    /// Checks that tables that are not read anew have all of their changes.
    fn check_those_that_stay(
        &self,
        slot: Option<&Slot>,
        published: &Published,
        (tables, wanted, marks): (&BTreeMap<String, Table>, &BTreeSet<String>, &Marks),
    ) -> Result<()> {
        let source = self.capture.source;
        let slot_name = &source.slot;
        let all = "run the command with `--new-snapshot` and without the names of tables";
        match slot {
            None => {
                let gone =
                    format!("the slot `{slot_name}` is gone: changes of all tables are lost");
                return Err(Error::data(gone).hint(all));
            }
            Some(slot) if slot.is_lost => {
                return Err(slot.lost(slot_name, self.catalog.server).hint(all));
            }
            Some(_) if published.is_new => {
                let dropped = format!(
                    "the publication `{}` was dropped: changes of all tables are lost",
                    source.publication
                );
                return Err(Error::data(dropped).hint(all));
            }
            Some(_) => {}
        }
        let stays = |name: &&String| !wanted.contains(*name);
        if let Some(table) = tables.keys().filter(stays).find(|name| !marks.contains_key(*name)) {
            return Err(Error::usage(format!("{table} was not captured yet"))
                .hint("name it too, or run the command without `--new-snapshot` first"));
        }
        let staying: Marks = marks
            .iter()
            .filter(|(name, _)| stays(name))
            .map(|(name, mark)| (name.clone(), *mark))
            .collect();
        self.check_tables(tables, &staying)?;
        self.check_places(published, &staying)
    }

    /// Checks that the files of tables are those of the slot, and not before the log.
    async fn check_folders(
        &self,
        tables: impl Iterator<Item = (&String, &Table)>,
        marks: &Marks,
    ) -> Result<()> {
        let end = self.catalog.log_end().await?;
        let end = Lsn::parse(&end).ok_or_else(|| Error::internal("the log has no end"))?;
        let looked = stream::iter(tables).map(|(name, table)| async move {
            let folder = folder_of(self.to, &table.schema, &table.name)?;
            let mark = marks.get(name);
            let newest = self.newest_of(name, &folder, mark.is_some()).await?;
            let newest = newest.max(mark.map(|mark| mark.from));
            Ok::<_, Error>(newest.map(|newest| (newest, name)))
        });
        let newest = looked.buffered(CONCURRENT_REQUESTS).try_collect::<Vec<_>>().await?;
        match newest.into_iter().flatten().max() {
            Some((newest, table)) if newest > end => Err(Error::data(format!(
                "the log of {} ends at {end}, and {table} was captured up to {newest}: the database went back, \
                 or is another one",
                self.server.name
            ))
            .hint(begin_anew(&self.capture.source.slot))),
            Some(_) | None => Ok(()),
        }
    }

    /// Up to where a table was captured, by its files.
    async fn newest_of(&self, table: &str, folder: &Folder, is_ours: bool) -> Result<Option<Lsn>> {
        let files = Files::list(folder).await?;
        let foreign = |name: &str| {
            Error::usage(format!(
                "{table} was not captured yet, and {} is no file of the slot `{}`",
                folder.describe(name),
                self.capture.source.slot
            ))
            .hint("set `to` to a new folder, or move that one away: old files and new ones would be mixed")
        };
        if let Some(name) = files.foreign.filter(|_| !is_ours) {
            return Err(foreign(&name));
        }
        let Some((first, object)) = files.newest else {
            return Ok(None);
        };
        let name = object.location.to_string();
        let (store, shown) = (Arc::clone(&folder.store), folder.describe(&name));
        let file = ParquetFile::open(store, object.location, object.size, shown).await?;
        let notes = file.metadata().and_then(|it| it.file_metadata().key_value_metadata());
        let note = |key: &str| notes?.iter().find(|note| note.key == key)?.value.clone();
        if note(SLOT).as_deref() != Some(&self.capture.source.slot) {
            return Err(foreign(&name));
        }
        let last = note(LAST).and_then(|text| Position::parse(&text));
        Ok(last.max(Some(first)).map(|newest| Lsn(newest.commit)))
    }
}

/// The tables that are to be read anew.
fn wanted(named: &[String], tables: &BTreeMap<String, Table>) -> Result<BTreeSet<String>> {
    if tables.is_empty() {
        return Err(Error::usage("there is no table to read anew").hint("correct `tables`"));
    }
    if named.is_empty() {
        return Ok(tables.keys().cloned().collect());
    }
    match named.iter().find(|name| !tables.contains_key(*name)) {
        Some(name) => Err(Error::usage(format!("the source has no table `{name}`"))
            .hint("name one of `tables` that is not in `exclude`: schema.table")),
        None => Ok(named.iter().cloned().collect()),
    }
}
