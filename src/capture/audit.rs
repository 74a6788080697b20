//! Extracts: the rows of tables that have changed since the last extract, by a column with the time of a row's
//! last change. They need no slot, no publication and no right but `SELECT`.
//!
//! # What holds, and why
//!
//! - **The newest extract wins.** Extracts of a source follow one another, and each reads all tables in one
//!   snapshot, in which a key has one row. So of two rows of a key that of the later extract is newer, whatever
//!   its column says: equal times, and a clock that goes back, decide nothing. `_extract` orders them.
//! - **The next extract begins early enough.** It reads times from the newest one on, less the overlap, and less
//!   the age of the oldest transaction that was open when the snapshot was made: a transaction stamps its rows with
//!   the time at which it began. Times that are yet to come do not count as the newest one; such rows are
//!   read each time. If that is not enough to say where to begin, all rows are read.
//! - **Nothing new writes nothing.** The footer of the last file has a hash of the rows that the next extract will
//!   read again.
//! - **An extract counts when all of its files are durable.** Its last file says what it has found
//!   ([`crate::capture::extract`]); without it the next extract begins where that one did.
//!
//! What cannot be seen: deleted rows, rows that get an older time, and what a statement changes without the
//! column.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use crate::capture::catalog::{Catalog, Domains, Reads, Table};
use crate::capture::extract::{self, Extract, Known};
use crate::capture::position::{Lsn, Position};
use crate::capture::readers::Readers;
use crate::capture::rows::{Head, RowFile, Shape};
use crate::capture::setup::{CONCURRENT_REQUESTS, check_names, kinds};
use crate::capture::snapshot::{Copy, Load, Loader, SETTINGS, Snapshot};
use crate::capture::stamps::{Clock, Found, Stamps, Wanted};
use crate::capture::{Capture, CaptureMode, Captured, CapturedTable, folder_of};
use crate::config::Audit;
use crate::error::{Error, Result};
use crate::layout::fnv1a;
use crate::postgres::connect::Server;
use crate::store::Folder;

/// The time before now whose files are listed first.
const RECENT: TimeDelta = TimeDelta::days(7);
/// The pages of a table from which on an index of the column is missed: 8 MiB.
const LARGE_PAGES: u32 = 1024;

/// Extracts of a source.
pub(super) struct Extracts<'a> {
    pub(super) capture: &'a Capture<'a>,
    pub(super) audit: &'a Audit,
    pub(super) server: &'a Server,
    pub(super) to: &'a Folder,
}

/// When a snapshot was made.
#[derive(Clone, Debug)]
struct Moment {
    /// The snapshot's name at the server.
    snapshot: String,
    clock: Clock,
    /// For how many microseconds the oldest transaction had been open.
    open: i64,
}

/// A table to read.
struct Job {
    name: String,
    table: Table,
    shape: Arc<Shape>,
    stamps: Stamps,
    folder: Folder,
    last: Option<Extract>,
}

impl Extracts<'_> {
    /// Makes an extract, or one after each length of time until it is stopped.
    ///
    /// # Errors
    /// Those of [`Capture::run`].
    pub(super) async fn run(&self, mode: CaptureMode) -> Result<Captured> {
        if !self.capture.source.tables.excluded().is_empty() {
            let client = self.server.connect(&self.capture.application()).await?;
            let catalog = Catalog { client: &client, server: &self.server.name };
            catalog.check_excluded(&self.capture.source.tables).await?;
        }
        let CaptureMode::Follow(every, mut stop) = mode else {
            return self.one().await;
        };
        let mut captured = Captured::default();
        loop {
            for (name, table) in self.one().await?.tables {
                captured.tables.entry(name).or_default().add(table);
            }
            (self.capture.progress)(captured.clone());
            // The sender lives as long as the program.
            let stopped = tokio::time::timeout(
                every.max(Duration::from_millis(1)),
                stop.wait_for(|stop| *stop),
            );
            if stopped.await.is_ok() {
                return Ok(captured);
            }
        }
    }

    async fn one(&self) -> Result<Captured> {
        let name = &self.capture.source.name;
        let client = self.server.connect(&self.capture.application()).await?;
        let catalog = Catalog { client: &client, server: &self.server.name };
        catalog.check_version().await?;
        if !catalog.lock(&format!("audit {name}")).await? {
            return Err(Error::busy(format!(
                "another process makes an extract of the source `{name}`"
            ))
            .hint("wait until it has ended and run the command again"));
        }
        let captured = self.extract(&catalog).await;
        // The server would keep the lock until it sees that the session has ended.
        let _ = catalog.execute("ROLLBACK", "end the snapshot").await;
        let _ = catalog.unlock().await;
        captured
    }

    async fn extract(&self, catalog: &Catalog<'_>) -> Result<Captured> {
        let moment = begin(catalog).await?;
        let tables = catalog.tables(&self.capture.source.tables, Reads::Rows).await?;
        let since = time_of(moment.clock.utc)? - RECENT;
        let known = self.known(&tables, since).await?;
        let has_files = |(_, known): &(&String, &Known)| known.newest.is_some();
        let captured = known.iter().filter(has_files).map(|(name, _)| name.as_str());
        check_names(self.capture.source, &tables, &captured.collect())?;
        let newest = known.values().filter_map(|known| known.newest).max();
        let clock = u64::try_from(moment.clock.utc).unwrap_or(0);
        let number = newest.map_or(clock, |newest| clock.max(newest + 1));
        let domains = catalog.domains().await?;
        let jobs = self.jobs(tables.clone(), known, &domains)?;
        self.warn_of_missing_indexes(catalog, &tables).await?;
        let loader = Loader {
            server: self.server,
            application: &self.capture.application(),
            snapshot: Snapshot { name: moment.snapshot.clone(), position: Lsn(number) },
            output: self.capture.output(),
            notes: extract::notes_of_files(&self.capture.source.name),
            run_id: self.capture.run_id,
            reads: Reads::Rows,
            connections: self.capture.connections(),
        };
        let readers = loader.hold(catalog.client, &tables).await?;
        let (later, first): (Vec<Job>, Vec<Job>) =
            jobs.into_iter().partition(|job| job.last.is_some());
        let step = Step { extracts: self, loader, moment };
        let mut tables = step.load(&readers, first).await?;
        tables.extend(step.follow(&readers, &later).await?);
        Ok(Captured { tables, ..Captured::default() })
    }

    /// What is in the folders of tables that are there, or named.
    async fn known(
        &self,
        tables: &BTreeMap<String, Table>,
        since: DateTime<Utc>,
    ) -> Result<BTreeMap<String, Known>> {
        let source = self.capture.source;
        let there = tables.values().map(|table| (table.schema.as_str(), table.name.as_str()));
        let wanted: BTreeSet<(&str, &str)> = there.chain(source.tables.named()).collect();
        let looked = stream::iter(wanted).map(|(schema, table)| async move {
            let folder = folder_of(self.to, schema, table)?;
            let known = Known::read(&folder, &source.name, since).await?;
            Ok::<_, Error>((format!("{schema}.{table}"), known))
        });
        looked.buffered(CONCURRENT_REQUESTS).try_collect().await
    }

    fn jobs(
        &self,
        tables: BTreeMap<String, Table>,
        mut known: BTreeMap<String, Known>,
        domains: &Domains,
    ) -> Result<Vec<Job>> {
        let source = self.capture.source;
        let job = |(name, table): (String, Table)| {
            let kind = |type_id, modifier| domains.kind(type_id, modifier);
            let shape = Shape::of_extracts(name.clone(), kinds(source, &table, domains))?;
            Ok(Job {
                stamps: Stamps::new(&table, &self.audit.column, kind)?,
                shape: Arc::new(shape),
                folder: folder_of(self.to, &table.schema, &table.name)?,
                last: known.remove(&name).and_then(|known| known.last),
                name,
                table,
            })
        };
        tables.into_iter().map(job).collect()
    }

    async fn warn_of_missing_indexes(
        &self,
        catalog: &Catalog<'_>,
        tables: &BTreeMap<String, Table>,
    ) -> Result<()> {
        let is_large = |table: &&Table| {
            let pages = table.parts_with_rows().map(|part| u64::from(part.pages)).sum::<u64>();
            pages > LARGE_PAGES.into()
        };
        let large: Vec<u32> = tables.values().filter(is_large).map(|table| table.oid).collect();
        if large.is_empty() {
            return Ok(());
        }
        let statement = "SELECT r::regclass::text FROM unnest($1::oid[]) r
            WHERE NOT EXISTS (SELECT FROM pg_index i
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                WHERE i.indrelid = r AND i.indisvalid AND a.attname = $2)";
        let column = &self.audit.column;
        for row in catalog.rows(statement, &[&large, column], "look for indexes").await? {
            let table: String = row.get(0);
            warn!(
                "{table} has no index that begins with `{column}`: each extract reads the whole table"
            );
        }
        Ok(())
    }
}

/// Makes a snapshot, after a look at the transactions that are open: what begins later has a later time.
async fn begin(catalog: &Catalog<'_>) -> Result<Moment> {
    catalog.execute(SETTINGS, "set up the session").await?;
    let open = "SELECT (extract(epoch FROM least(min(xact_start), clock_timestamp())) * 1000000)::bigint,
            count(*) FILTER (WHERE backend_xid IS NOT NULL AND xact_start IS NULL)
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND coalesce(backend_type, '') NOT IN ('autovacuum worker', 'walsender', 'parallel worker')";
    let row = catalog.one(open, &[], "look for open transactions").await?;
    let (oldest, hidden): (i64, i64) = (row.get(0), row.get(1));
    if hidden > 0 {
        info!(
            "{hidden} transactions are writing, and this user must not see since when: `overlap` must be longer \
             than they last, or GRANT pg_read_all_stats"
        );
    }
    let begin = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY";
    catalog.execute(begin, "begin a snapshot").await?;
    let export =
        "SELECT pg_export_snapshot(), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
            (extract(epoch FROM clock_timestamp() AT TIME ZONE
                (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone')) * 1000000)::bigint";
    let row = catalog.one(export, &[], "make a snapshot").await?;
    let clock = Clock { utc: row.get(1), local: row.get(2) };
    Ok(Moment { snapshot: row.get(0), open: (clock.utc - oldest).max(0), clock })
}

fn time_of(microseconds: i64) -> Result<DateTime<Utc>> {
    let time = DateTime::from_timestamp_micros(microseconds);
    time.ok_or_else(|| Error::internal("the server has no time"))
}

/// One extract of all tables.
struct Step<'a> {
    extracts: &'a Extracts<'a>,
    loader: Loader<'a>,
    moment: Moment,
}

impl Step<'_> {
    /// Loads tables that have no extract yet.
    async fn load(
        &self,
        readers: &Readers<'_>,
        jobs: Vec<Job>,
    ) -> Result<BTreeMap<String, CapturedTable>> {
        if jobs.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (mut loads, mut names) = (Vec::new(), Vec::new());
        for job in jobs {
            let found = self.found(&self.catalog(readers.of(&job.table)), &job).await?;
            names.push((job.name, found.rows_without_time.count));
            let mark = found.notes(&self.extracts.capture.source.name)?;
            let Job { table, shape, folder, .. } = job;
            loads.push(Load { table, shape, folder, mark, places: None });
        }
        info!("{} tables are loaded", loads.len());
        let loaded = self.loader.load(readers, &loads).await?;
        let counts = names.into_iter().zip(loaded).map(|((name, without_time), loaded)| {
            let rows_without_time = u64::try_from(without_time).unwrap_or(0);
            (name, CapturedTable { rows_without_time, ..CapturedTable::from(loaded) })
        });
        Ok(counts.collect())
    }

    /// Reads what has changed in tables that have an extract, by several sessions.
    async fn follow(
        &self,
        readers: &Readers<'_>,
        jobs: &[Job],
    ) -> Result<BTreeMap<String, CapturedTable>> {
        let queues = readers.queues(jobs, |job| readers.alone(&job.table.sql_name()));
        let workers = queues.into_iter().map(|(client, jobs)| async {
            let catalog = self.catalog(client);
            let mut read = Vec::new();
            for job in jobs {
                read.push((job.name.clone(), self.read(&catalog, job).await?));
            }
            Ok::<_, Error>(read)
        });
        let read: Vec<Vec<_>> =
            stream::iter(workers).buffer_unordered(usize::MAX).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }

    fn catalog<'c>(&'c self, client: &'c Client) -> Catalog<'c> {
        Catalog { client, server: &self.loader.server.name }
    }

    /// Reads what has changed in a table.
    async fn read(&self, catalog: &Catalog<'_>, job: &Job) -> Result<CapturedTable> {
        let Some(last) = &job.last else {
            return Ok(CapturedTable::default());
        };
        let now = job.stamps.now(self.moment.clock);
        let why_all = self.why_all(job, last, now);
        if let Some(why) = why_all {
            warn!("{}: {why}: all of its rows are read", job.name);
        }
        let from = match why_all {
            Some(_) => None,
            None => last.mark.map(|mark| self.begin_of(mark, last.open)),
        };
        let found = job.stamps.rows(catalog, from, now).await?;
        self.warn_of_times(job, &found);
        let columns = columns_of(&job.shape);
        if columns != last.columns {
            warn!(
                "{}: its columns have changed: what that has changed in rows without changing `{}` is not read",
                job.name, self.extracts.audit.column
            );
        }
        let is_other = why_all.is_some() || columns != last.columns;
        let is_new = is_other || from != last.from || found.rows != last.rows;
        let is_new_without_time = is_other || found.rows_without_time != last.rows_without_time;
        let wanted = Wanted {
            rows: (is_new && found.rows.count > 0).then_some(from),
            rows_without_time: is_new_without_time && found.rows_without_time.count > 0,
        };
        if wanted == (Wanted { rows: None, rows_without_time: false }) {
            debug!("{}: nothing is new", job.name);
            return Ok(CapturedTable::default());
        }
        self.write(catalog, job, wanted).await
    }

    /// Why all rows of a table are to be read.
    fn why_all(&self, job: &Job, last: &Extract, now: i64) -> Option<&'static str> {
        let audit = self.extracts.audit;
        if last.table != job.table.oid {
            Some("it is another table than that of the last extract")
        } else if last.column != audit.column || last.column_type != job.stamps.column_type {
            Some("`column` is another one than that of the last extract")
        } else if last.mark.is_some_and(|mark| mark > now) {
            Some("the clock of the server went back")
        } else {
            None
        }
    }

    /// Where the extract after one begins.
    fn begin_of(&self, mark: i64, open: i64) -> i64 {
        let overlap = self.extracts.audit.overlap.num_microseconds().unwrap_or(i64::MAX);
        mark.saturating_sub(overlap).saturating_sub(open)
    }

    /// What the snapshot has of a table, for the extract after this one.
    async fn found(&self, catalog: &Catalog<'_>, job: &Job) -> Result<Extract> {
        let now = job.stamps.now(self.moment.clock);
        let mark = job.stamps.newest(catalog, now).await?;
        let from = mark.map(|mark| self.begin_of(mark, self.moment.open));
        let found = job.stamps.rows(catalog, from, now).await?;
        if job.last.is_none() {
            self.warn_of_times(job, &found);
        }
        Ok(Extract {
            table: job.table.oid,
            column: self.extracts.audit.column.clone(),
            column_type: job.stamps.column_type.into(),
            columns: columns_of(&job.shape),
            mark,
            open: self.moment.open,
            from,
            rows: found.rows,
            rows_without_time: found.rows_without_time,
        })
    }

    fn warn_of_times(&self, job: &Job, found: &Found) {
        let (name, column) = (&job.name, &self.extracts.audit.column);
        let without = found.rows_without_time.count;
        if without > 0 {
            warn!(
                "{name}: {without} rows have no `{column}`: each extract reads them all, and writes them all when \
                 one of them has changed; fill the column to make extracts small"
            );
        }
        if found.ahead > 0 {
            warn!(
                "{name}: {} rows have a `{column}` that is yet to come: each extract reads them",
                found.ahead
            );
        }
    }

    /// Writes rows of a table; what was found is in the last file, when all others are durable.
    async fn write(
        &self,
        catalog: &Catalog<'_>,
        job: &Job,
        wanted: Wanted,
    ) -> Result<CapturedTable> {
        let found = self.found(catalog, job).await?;
        let (loader, number) = (&self.loader, self.loader.snapshot.position.0);
        let time = time_of(self.moment.clock.utc)?;
        let copy = Copy {
            client: catalog.client,
            server: catalog.server,
            statement: job.stamps.copy_statement(wanted),
            doing: format!("read {}", job.name),
            shape: &job.shape,
            output: &loader.output,
        };
        let head = Head {
            op: "I",
            commit_time: self.moment.clock.utc,
            position: Position { commit: number, row: 0 },
            xid: None,
        };
        let mut counts = CapturedTable::default();
        let mut write = async |file: RowFile, notes, is_last| {
            counts.files += 1;
            counts.inserts += file.rows;
            counts.infinite += file.infinite;
            let name = extract::file_name(time, number, loader.run_id, (counts.files, is_last));
            counts.bytes += loader.create(&job.folder, &name, file, notes).await?;
            Ok::<_, Error>(())
        };
        let mut open = None;
        copy.read(
            || head,
            async |file| match open.replace(file) {
                Some(full) => write(full, loader.notes.clone(), false).await,
                None => Ok(()),
            },
        )
        .await?;
        if let Some(last) = open {
            write(last, found.notes(&self.extracts.capture.source.name)?, true).await?;
        }
        counts.rows_without_time = u64::try_from(found.rows_without_time.count).unwrap_or(0);
        info!("{}: read {} rows", job.name, counts.inserts);
        Ok(counts)
    }
}

/// A hash of a table's columns.
fn columns_of(shape: &Shape) -> u64 {
    let columns = shape.columns.iter().map(|(name, kind)| format!("{name} {kind:?}\n"));
    fnv1a(columns.collect::<String>().bytes())
}
