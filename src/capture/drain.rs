//! Reads the log from where the slot stands, and writes the changes of tables into files.
//!
//! A position is confirmed to the server at a *cut*: all files are closed and durable, between two
//! transactions. What was not confirmed is sent again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::capture::catalog::{Catalog, Domains, Table, another_table};
use crate::capture::change_files::{ChangeFiles, Counts};
use crate::capture::column::Kind;
use crate::capture::mark::Mark;
use crate::capture::pgoutput::{Message, Old, Relation, Tuple, Value};
use crate::capture::position::{Lsn, Position};
use crate::capture::replication::{LogStream, Received};
use crate::capture::rows::{Head, Shape};
use crate::capture::{Output, folder_of};
use crate::config::Source;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::store::Folder;

/// Microseconds from 1970 to 2000, where the server's times begin.
const SERVER_EPOCH_US: i64 = 946_684_800_000_000;
/// The changes of a transaction after which memory is looked at.
const ROWS_BETWEEN_LIMITS: u32 = 1024;
/// The files that are written at once.
const CONCURRENT_FILES: usize = 8;
/// How long the server is waited for to say how much log a slot holds.
const HELD_WAIT: Duration = Duration::from_secs(5);
/// The first number of a type that is not built in.
const FIRST_OWN_TYPE: u32 = 16_384;

/// Until when the log is read.
#[derive(Clone, Debug)]
pub(super) enum Until {
    /// Up to a position.
    Position(Lsn),
    /// Until the receiver says so.
    Stopped(tokio::sync::watch::Receiver<bool>),
}

/// Reads the log.
pub(super) struct Drain<'a> {
    catalog: &'a Catalog<'a>,
    source: &'a Source,
    to: &'a Folder,
    output: Arc<Output>,
    /// The open files may take this much memory.
    memory_bytes: u64,
    tables: BTreeMap<String, Table>,
    domains: Domains,
    /// The marks of tables: where their changes begin, and their numbers.
    marks: BTreeMap<String, Mark>,
    /// The tables by their numbers in the log.
    relations: HashMap<u32, Known>,
    files: BTreeMap<String, ChangeFiles>,
    transaction: Option<Transaction>,
    /// Everything before this position was read.
    read_up_to: Lsn,
    /// The end of the last transaction that was read.
    last_commit: Lsn,
    pub(super) confirmed: Lsn,
    /// The newest commit that was read, in microseconds since 1970.
    pub(super) newest_commit: Option<i64>,
    pub(super) transactions: u64,
}

/// Gets what was read so far when it is durable, and the bytes of log that the slot holds then, if they are
/// known.
pub(super) type AfterCut<'a> = &'a mut dyn FnMut(&Drain<'_>, Option<u64>);

/// What is known of a table of the log.
#[derive(Debug)]
enum Known {
    /// It is not captured.
    Other,
    /// Its name.
    Captured(String),
    /// The name of a table whose changes cannot be captured, and why. Those that its snapshot has are left out.
    Refused(String, Error),
}

#[derive(Clone, Copy, Debug)]
struct Transaction {
    commit: u64,
    /// Microseconds since 1970.
    time: i64,
    xid: u32,
    /// The changes so far, of tables that are not captured too.
    rows: u32,
}

/// Why reading has ended.
pub(super) enum Ended {
    Done,
    /// A transaction cannot be captured. All before it can: up to the position.
    Before(Lsn, Error),
}

impl<'a> Drain<'a> {
    pub(super) fn new(
        catalog: &'a Catalog<'a>,
        (source, to): (&'a Source, &'a Folder),
        output: Arc<Output>,
        memory_bytes: u64,
        (tables, domains): (BTreeMap<String, Table>, Domains),
        marks: BTreeMap<String, Mark>,
    ) -> Self {
        Drain {
            catalog,
            source,
            to,
            output,
            memory_bytes,
            tables,
            domains,
            marks,
            relations: HashMap::new(),
            files: BTreeMap::new(),
            transaction: None,
            read_up_to: Lsn(0),
            last_commit: Lsn(0),
            confirmed: Lsn(0),
            newest_commit: None,
            transactions: 0,
        }
    }

    /// What was written of each table.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&str, Counts)> {
        self.files.iter().map(|(table, files)| (table.as_str(), files.counts))
    }

    /// Reads the log, and cuts at its end, and at least after each `every`.
    ///
    /// # Errors
    /// Those of the server, and of storage.
    pub(super) async fn read(
        &mut self,
        stream: &mut LogStream,
        mut until: Until,
        (every, after_cut): (Duration, AfterCut<'_>),
    ) -> Result<Ended> {
        let mut last_cut = Instant::now();
        loop {
            let received = match &mut until {
                Until::Position(_) => Some(stream.next().await?),
                // The transaction that has begun is read to its end.
                Until::Stopped(stop) if *stop.borrow() => Some(stream.next().await?),
                Until::Stopped(stop) => {
                    let next = every.saturating_sub(last_cut.elapsed());
                    tokio::select! {
                        received = timeout(next.max(Duration::from_millis(1)), stream.next()) => {
                            received.ok().transpose()?
                        }
                        _ = stop.wait_for(|stop| *stop) => None,
                    }
                }
            };
            match received {
                Some(Received::Messages(messages)) => {
                    for message in messages {
                        if let Err(error) = self.message(&message).await {
                            return self.ended_by(error);
                        }
                        self.leave_what_is_behind(&until);
                        if self.is_done(&until) {
                            self.cut(stream).await?;
                            return Ok(Ended::Done);
                        }
                    }
                }
                // Between transactions all of them that committed before were sent.
                Some(Received::SentUpTo(position)) if self.transaction.is_none() => {
                    self.read_up_to = self.read_up_to.max(position);
                }
                Some(Received::SentUpTo(_)) | None => {}
            }
            let is_between = self.transaction.is_none();
            if is_between && self.is_done(&until) {
                self.cut(stream).await?;
                return Ok(Ended::Done);
            }
            if is_between && last_cut.elapsed() >= every {
                self.cut(stream).await?;
                after_cut(self, self.held_bytes().await);
                last_cut = Instant::now();
            }
        }
    }

    /// Leaves a transaction that has just begun, if it is behind the end.
    fn leave_what_is_behind(&mut self, until: &Until) {
        if let (Until::Position(end), Some(begun)) = (until, self.transaction)
            && begun.rows == 0
            && begun.commit >= end.0
        {
            self.transaction = None;
            // Transactions are sent in the order of their commits.
            self.read_up_to = self.read_up_to.max(*end);
        }
    }

    fn is_done(&self, until: &Until) -> bool {
        self.transaction.is_none()
            && match until {
                Until::Position(end) => self.read_up_to >= *end,
                Until::Stopped(stop) => *stop.borrow(),
            }
    }

    /// A transaction that cannot be captured is the end; any other error stays one.
    fn ended_by(&self, error: Error) -> Result<Ended> {
        match error.kind {
            ErrorKind::Data | ErrorKind::Usage if self.transaction.is_some() => {
                Ok(Ended::Before(self.last_commit, error))
            }
            _ => Err(error),
        }
    }

    /// Makes everything that was read durable, and confirms it.
    async fn cut(&mut self, stream: &LogStream) -> Result<()> {
        let closing = self.files.values_mut().map(ChangeFiles::close);
        stream::iter(closing).buffer_unordered(CONCURRENT_FILES).try_collect::<()>().await?;
        let are_ahead = self.files.values().any(|files| files.reach_beyond(self.read_up_to));
        if self.read_up_to > self.confirmed && !are_ahead {
            debug!("everything before {} is durable", self.read_up_to);
            stream.confirm(self.read_up_to);
            self.confirmed = self.read_up_to;
        }
        Ok(())
    }

    /// The bytes of log that the slot holds at the server, if it says so soon.
    async fn held_bytes(&self) -> Option<u64> {
        let slot = timeout(HELD_WAIT, self.catalog.slot(&self.source.slot)).await;
        Some(slot.ok()?.ok()??.held_bytes)
    }

    async fn message(&mut self, bytes: &[u8]) -> Result<()> {
        let message = Message::decode(bytes).map_err(|why| {
            Error::internal(format!("a message of the log cannot be read: {why}"))
        })?;
        match message {
            Message::Begin { commit, time, xid } => {
                let time = time + SERVER_EPOCH_US;
                self.transaction = Some(Transaction { commit, time, xid, rows: 0 });
            }
            Message::Commit { end } => {
                let ended = self.transaction.take();
                self.newest_commit = self.newest_commit.max(ended.map(|it| it.time));
                self.last_commit = Lsn(end);
                self.read_up_to = self.read_up_to.max(Lsn(end));
                self.transactions += 1;
                self.limit_memory().await?;
            }
            Message::Relation(relation) => self.relation(&relation).await?,
            Message::Insert { relation, new } => {
                self.change("I", relation, None, Some(&new)).await?;
            }
            Message::Update { relation, old, new } => {
                self.change("U", relation, old.as_ref(), Some(&new)).await?;
            }
            Message::Delete { relation, old } => {
                self.change("D", relation, Some(&old), None).await?;
            }
            Message::Truncate { relations } => {
                for relation in relations {
                    self.truncate(relation).await?;
                }
            }
            Message::Other => {}
        }
        Ok(())
    }

    /// Writes the largest file while all of them take too much memory.
    async fn limit_memory(&mut self) -> Result<()> {
        while self.files.values().map(ChangeFiles::memory_bytes).sum::<u64>() > self.memory_bytes {
            match self.files.values_mut().max_by_key(|files| files.memory_bytes()) {
                Some(largest) => largest.close().await?,
                None => break,
            }
        }
        Ok(())
    }

    /// Notes the shape of a table.
    async fn relation(&mut self, relation: &Relation<'_>) -> Result<()> {
        let (schema, name) = (&*relation.schema, &*relation.name);
        let table = format!("{schema}.{name}");
        let mut marks = self.marks.iter();
        if let Some((before, _)) =
            marks.find(|(it, mark)| mark.table == relation.id && **it != table)
        {
            let before = before.clone();
            let renamed = Error::data(format!("the table {before} was renamed to {table}")).hint(
                "give it its name back, and run the command with `--new-snapshot` and the name; or, to end its \
                 capture, move its folder below `to` away and take its old name out of `tables`",
            );
            return self.refuse(relation.id, before, renamed);
        }
        let is_captured = self.source.tables.include(schema, name)
            && self.has_mark(&table, (schema, name), relation.id).await?;
        if !is_captured {
            // A table that is made while capture runs has all changes until its load in that.
            self.relations.insert(relation.id, Known::Other);
            return Ok(());
        }
        if relation.columns.iter().any(|column| column.type_id >= FIRST_OWN_TYPE) {
            self.domains = self.catalog.domains().await?;
        }
        let columns = relation.columns.iter().map(|column| {
            let kind = self.domains.kind(column.type_id, column.modifier);
            (column.name.to_string(), kind_of(self.source, &table, &column.name, kind))
        });
        let columns: Vec<(String, Kind)> = columns.collect();
        let shape = self.key(&table, relation);
        let shape = shape.and_then(|key| Shape::new(table.clone(), columns, key));
        let shape = match shape {
            Ok(shape) => shape,
            Err(error) => return self.refuse(relation.id, table, error),
        };
        self.relations.insert(relation.id, Known::Captured(table.clone()));
        match self.files.get_mut(&table) {
            Some(files) if **files.shape() == shape => {}
            Some(files) => {
                info!("{table}: its columns have changed");
                files.reshape(Arc::new(shape)).await?;
            }
            None => {
                let folder = folder_of(self.to, schema, name)?;
                let files = ChangeFiles::new(folder, Arc::clone(&self.output), Arc::new(shape));
                self.files.insert(table, files);
            }
        }
        Ok(())
    }

    /// Notes that a table's changes cannot be captured, which is an error unless its snapshot has them.
    fn refuse(&mut self, number: u32, table: String, error: Error) -> Result<()> {
        if !self.is_loaded(&table) {
            return Err(error);
        }
        self.relations.insert(number, Known::Refused(table, error));
        Ok(())
    }

    /// Whether a table's full load is complete; of one that is no longer there, by its file.
    async fn has_mark(
        &mut self,
        table: &str,
        (schema, name): (&str, &str),
        number: u32,
    ) -> Result<bool> {
        if !self.marks.contains_key(table) && !self.tables.contains_key(table) {
            let folder = folder_of(self.to, schema, name)?;
            let mark = Mark::read(&folder, &self.source.slot).await?;
            let mark = mark.filter(|mark| mark.table == number);
            self.marks.extend(mark.map(|mark| (table.to_string(), mark)));
        }
        Ok(self.marks.contains_key(table))
    }

    /// The numbers of the columns of a table's key; of one that is no longer there, of its replica identity.
    fn key(&self, table: &str, relation: &Relation<'_>) -> Result<Vec<usize>> {
        let is_whole = relation.columns.iter().all(|column| column.is_identity);
        let known = self.tables.get(table);
        if known.is_some_and(|known| known.oid != relation.id) {
            return Err(Error::data(format!(
                "{table} is another table than the one that was captured"
            ))
            .hint(another_table()));
        }
        let number = |name: &String| relation.columns.iter().position(|it| it.name == *name);
        let key = known.map(|known| &known.key).filter(|key| !key.is_empty());
        let numbers: Option<Vec<usize>> = key.and_then(|key| key.iter().map(number).collect());
        let identity = || {
            let numbered = relation.columns.iter().enumerate();
            numbered.filter(|(_, column)| column.is_identity).map(|(number, _)| number).collect()
        };
        let numbers = numbers.unwrap_or_else(identity);
        if let Some(at) = numbers.iter().find(|at| !is_whole && !relation.columns[**at].is_identity)
        {
            let name = &relation.columns[*at].name;
            return Err(Error::data(format!(
                "{table}: its replica identity was changed, and changes were logged without `{name}`, \
                 which is in its key now"
            ))
            .hint(another_table()));
        }
        Ok(numbers)
    }

    /// Whether a table's snapshot has the transaction that is read.
    fn is_loaded(&self, table: &str) -> bool {
        let mark = self.marks.get(table);
        let commit = self.transaction.map_or(0, |transaction| transaction.commit);
        mark.is_some_and(|mark| commit < mark.from.0)
    }

    /// The next change of a table: its place, and the table's files; `None` if it is not written.
    async fn next(
        &mut self,
        op: &'static str,
        relation: u32,
    ) -> Result<Option<(Head, &mut ChangeFiles)>> {
        let lost = || Error::internal("a change stands outside of a transaction");
        let transaction = self.transaction.as_mut().ok_or_else(lost)?;
        let position = Position { commit: transaction.commit, row: transaction.rows };
        transaction.rows += 1;
        let head = Head { op, commit_time: transaction.time, position, xid: Some(transaction.xid) };
        let table = match self.relations.get(&relation) {
            Some(Known::Other) => return Ok(None),
            Some(Known::Captured(table) | Known::Refused(table, _)) if self.is_loaded(table) => {
                return Ok(None);
            }
            Some(Known::Captured(table)) => table.clone(),
            Some(Known::Refused(..)) | None => {
                return Err(match self.relations.remove(&relation) {
                    Some(Known::Refused(_, error)) => error,
                    _ => Error::internal("a change is of an unknown table"),
                });
            }
        };
        if position.row.is_multiple_of(ROWS_BETWEEN_LIMITS) {
            self.limit_memory().await?;
        }
        match self.files.get_mut(&table) {
            Some(files) => Ok(Some((head, files))),
            None => Err(Error::internal("a table has no files")),
        }
    }

    /// Writes the truncation of a table: a row that has nothing but its place.
    async fn truncate(&mut self, relation: u32) -> Result<()> {
        let Some((head, files)) = self.next("T", relation).await? else {
            return Ok(());
        };
        let shape = Arc::clone(files.shape());
        let (key, row) = (shape.key.iter().map(|_| None), shape.columns.iter().map(|_| None));
        files.append(head, key, row).await
    }

    /// Writes a change.
    async fn change(
        &mut self,
        op: &'static str,
        relation: u32,
        old: Option<&Old<'_>>,
        new: Option<&Tuple<'_>>,
    ) -> Result<()> {
        let Some((head, files)) = self.next(op, relation).await? else {
            return Ok(());
        };
        let position = head.position;
        let shape = Arc::clone(files.shape());
        let before = old.map(|old| old.values.values().map(text).collect::<Vec<_>>());
        let row = match new {
            Some(new) => {
                let whole = before.as_ref().filter(|_| old.is_some_and(|old| old.is_whole));
                whole_row(&shape, new, whole, position)?
            }
            None => before.clone().unwrap_or_default(),
        };
        if row.len() != shape.columns.len() {
            return Err(Error::internal(format!("a change of {} has other columns", shape.table)));
        }
        let is_of_key = shape.key.len() < shape.columns.len();
        if op == "D" && is_of_key && shape.key.iter().any(|at| row[*at].is_none()) {
            return Err(Error::data(format!(
                "{}: the delete at {position} was logged without the key: the replica identity was another \
                 one, of the table or of its partition",
                shape.table
            ))
            .hint(another_table()));
        }
        // Null is a key that did not change.
        let before = before.filter(|before| op == "U" && before.len() == row.len());
        let old_key = shape.key.iter().map(|at| before.as_ref().and_then(|before| before[*at]));
        files.append(head, old_key, row.into_iter()).await
    }
}

/// The type of a column, which the source can set to text.
pub(super) fn kind_of(source: &Source, table: &str, column: &str, kind: Kind) -> Kind {
    let name = format!("{table}.{column}");
    if source.text_columns.contains(&name) { Kind::Text } else { kind }
}

fn text(value: Value<'_>) -> Option<&[u8]> {
    match value {
        Value::Text(text) => Some(text),
        Value::Null | Value::Unchanged => None,
    }
}

/// The values of a row after a change: those that the change does not have are those of the row before.
fn whole_row<'v>(
    shape: &Shape,
    new: &Tuple<'v>,
    before: Option<&Vec<Option<&'v [u8]>>>,
    position: Position,
) -> Result<Vec<Option<&'v [u8]>>> {
    let values = new.values().enumerate().map(|(column, value)| match (value, before) {
        // What is not sent again is never null.
        (Value::Unchanged, Some(before)) if before.get(column).is_some_and(Option::is_some) => {
            Ok(before[column])
        }
        (Value::Unchanged, _) => {
            let name = shape.columns.get(column).map_or("", |(name, _)| name);
            let table = &shape.table;
            Err(Error::data(format!(
                "{table}: the log lacks the value of `{name}` in the change at {position}, which left it \
                 as it was, because the replica identity of the table, or of its partition, was not FULL"
            ))
            .hint(another_table()))
        }
        (value, _) => Ok(text(value)),
    });
    values.collect()
}
