//! Makes the curated table again from its own rows, where raw files are gone: in other partitions, another format or place,
//! and with other columns, as far as they can be computed from those that the table has.
//!
//! ```text
//! published rows ─▶ columns of the new query ─▶ sorter ─▶ files in staging
//! versions ───────▶ in the new layout, with the partitions of their rows ─▶ versions
//! ```
//!
//! The table has the values of the expressions of the query that made it. So a column of the new query can be computed if
//! all that it reads of raw is part of such expressions, which are replaced by the table's columns.
//!
//! Runs need the partition of a version only as long as the table has its row. Of others, the value of a new partition column
//! is not known: `history` and `balance` do not have this column ([`VersionsLayout::unrecorded`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan, cast, ident};
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::{DataFrame, SessionContext};
use futures::TryStreamExt;

use crate::changes::BEFORE_ALL;
use crate::config::{Format, Keep, VALID_FROM};
use crate::curate::Curate;
use crate::curate::conservation::does_not_add_up;
use crate::curate::curated_sql::{self, CuratedQuery};
use crate::engine::session::{session, sorting_session};
use crate::engine::tasks::{join_all, spawn};
use crate::error::{Error, Result};
use crate::parquet_io::open::conform;
use crate::state::contract::{TableContract, column_types, read_types, write_types};
use crate::state::ledger::{CURATED, Ledger};
use crate::state::versions::{VersionsLayout, quoted};
use crate::state::versions_writer::{VersionsFile, VersionsWriter, day_ranges};
use crate::state::{State, table_of};
use crate::store::Folder;
use crate::table::TableFile;
use crate::table::delta_log::delta_schema;
use crate::table::files::{FileTable, PartitionFile, register_store};
use crate::table::rebuild::PublishedTable;
use crate::table::sorter::{Sorted, Sorter, compact};
use crate::table::writer::{StagedFile, TableWriter};
use crate::types::day_counts::DayCounts;
use crate::types::key::canonical_column;

/// A table that was made from its own rows.
#[derive(Debug)]
pub(crate) struct FromTable {
    /// The table's files, in staging.
    pub staged: Vec<StagedFile>,
    /// The files of versions, in the state's folder and not yet committed.
    pub versions: Vec<VersionsFile>,
    /// The versions' layout.
    pub layout: Arc<VersionsLayout>,
    /// The table's columns.
    pub columns: Vec<Field>,
    /// What becomes of the contract.
    pub contract: TableContract,
}

/// A column of the published table.
struct Known {
    name: String,
    /// What it was of raw.
    expression: Expr,
    /// The type of that, and the one that the table has.
    raw: DataType,
    stored: DataType,
    /// Whether it was added to rows that have null in it.
    is_grown: bool,
}

impl Known {
    /// Whether all rows have their value of it.
    fn has_values(&self) -> bool {
        !self.is_grown && !matches!(self.expression, Expr::Literal(..))
    }

    /// Its value as the query had it.
    fn value(&self) -> Expr {
        let column = ident(&self.name);
        let is_text = self.raw.is_string() && self.stored.is_string();
        if self.raw == self.stored || is_text { column } else { cast(column, self.raw.clone()) }
    }
}

/// A column of the new table.
struct NewColumn {
    name: String,
    /// What it is, over the columns of the published table.
    expression: Expr,
}

impl NewColumn {
    /// The column of the published table, if it is one.
    fn published(&self) -> Option<&str> {
        match &self.expression {
            Expr::Column(column) => Some(column.name()),
            _ => None,
        }
    }

    /// Whether the published table has it under the same name.
    fn is_same(&self) -> bool {
        self.published() == Some(self.name.as_str())
    }
}

/// The column with a name.
fn column_of<'a>(new: &'a [NewColumn], name: &str) -> Option<&'a NewColumn> {
    new.iter().find(|column| column.name == name)
}

/// The column of the published table that one with a name is, if it is one.
fn published_as<'a>(new: &'a [NewColumn], name: &str) -> Option<&'a str> {
    column_of(new, name).and_then(NewColumn::published)
}

impl Curate<'_> {
    /// Makes the table and its versions again from the published table in a folder, which has this contract. That of the new
    /// one still has the identity of before.
    ///
    /// # Errors
    /// Usage, when the table cannot be made from its rows; data, when the table or the versions are not as they were
    /// committed; storage, when these cannot be read, or staging and state not be written.
    pub(crate) async fn remake(
        &self,
        context: &SessionContext,
        published: &Folder,
        contract: &TableContract,
    ) -> Result<FromTable> {
        let ledger = self.earlier.ok_or_else(|| Error::internal("there is no table"))?;
        let query = self.query(context, &self.folded.winners).await?;
        let new = self.new_columns(context, contract).await?;
        self.check_compared(contract, &new)?;
        self.check_own(&query)?;
        let columns = self.columns_from(contract, &query, &new)?;
        let before = contract.layout()?;
        let layout = self.layout_from(&before, &columns, query.day.as_deref(), &new)?;
        let of_names = |names: &[String]| -> Vec<String> {
            let is_of = |column: &&NewColumn| {
                column.published().is_some_and(|published| names.iter().any(|one| one == published))
            };
            new.iter().filter(is_of).map(|column| column.name.clone()).collect()
        };
        let mut untyped = of_names(&contract.untyped);
        let computed = new.iter().filter(|column| column.published().is_none());
        let computed = computed.map(|column| &column.name);
        untyped.extend(computed.filter(|name| query.untyped.contains(name)).cloned());
        let after = TableContract {
            columns: column_types(&columns),
            partitions: write_types(
                layout.partitions.iter().map(|(name, kind)| (name.as_str(), kind)),
            ),
            unrecorded: layout.unrecorded.clone(),
            untyped,
            grown: of_names(&contract.grown),
            day: TableContract::stored_day(&columns, query.day.as_deref()),
            ..contract.clone()
        };
        let table = PublishedRows { folder: published, contract, ledger };
        let staged = self.rows_from(context, &table, &new, &columns, query.day.as_deref()).await?;
        let written: u64 = staged.iter().map(|file| file.rows).sum();
        let rows: u64 = ledger.files(CURATED).map(TableFile::live_rows).sum();
        if written != rows {
            return Err(does_not_add_up("rows of the table", written, rows));
        }
        let layout = Arc::new(layout);
        let versions = self.versions_from(context, &table, &new, (&before, &layout)).await?;
        Ok(FromTable { staged, versions, layout, columns, contract: after })
    }

    /// The columns of the new query, over the published table.
    async fn new_columns(
        &self,
        context: &SessionContext,
        contract: &TableContract,
    ) -> Result<Vec<NewColumn>> {
        let sql = &self.pipeline.curated.sql;
        let own = self.own_columns.len();
        let published: Vec<&str> = contract.columns[..contract.columns.len() - own]
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        if contract.identity.has_query(sql) {
            let same = |name: &&str| NewColumn { name: name.to_string(), expression: ident(*name) };
            return Ok(published.iter().map(same).collect());
        }
        let before = contract.identity.query_with(&sql.text).ok_or_else(|| {
            Error::usage(format!("{} differs in more than its columns", sql.file)).hint(
                "from the table, only the columns can change: undo the change of the rest, or rebuild from raw: \
                 glueless rebuild",
            )
        })?;
        let parse = |text: String| async move {
            let parsed = curated_sql::parse(context, self.changes, &text).await;
            parsed.map_err(|error| Error::query(&sql.file, error))
        };
        let now = curated_sql::text_of(self.pipeline, self.changes);
        let (before, now) = (parse(before).await?, parse(now).await?);
        let types = read_types(&contract.columns)?;
        let mut known = Vec::new();
        for (name, expression) in outputs(&before) {
            let Some((_, stored)) = types.iter().find(|(column, _)| *column == name) else {
                continue;
            };
            let raw = before.schema().field_with_unqualified_name(&name)?.data_type().clone();
            let (stored, is_grown) = (stored.clone(), contract.grown.contains(&name));
            known.push(Known { name, expression, raw, stored, is_grown });
        }
        let new = outputs(&now).into_iter().map(|(name, expression)| {
            let mut of_whole = known.iter().filter(|known| known.expression == expression);
            if of_whole.clone().any(|known| known.name == name) {
                return Ok(NewColumn { expression: ident(&name), name });
            }
            if let Some(known) = of_whole.find(|known| known.has_values()) {
                return Ok(NewColumn { name, expression: ident(&known.name) });
            }
            let mut missing = None;
            let expression = expression.transform_down(|part| {
                let mut found = known.iter().filter(|known| known.has_values());
                if let Some(known) = found.find(|known| known.expression == part) {
                    return Ok(Transformed::new(known.value(), true, TreeNodeRecursion::Jump));
                }
                if let Expr::Column(column) = &part {
                    missing.get_or_insert_with(|| column.name().to_string());
                }
                Ok(Transformed::no(part))
            })?;
            match missing {
                None => Ok(NewColumn { name, expression: expression.data }),
                Some(missing) => Err(lacks(&sql.file, (&name, &missing), &known)),
            }
        });
        new.collect()
    }

    /// Checks that rows are compared by the same columns as before.
    fn check_compared(&self, contract: &TableContract, new: &[NewColumn]) -> Result<()> {
        if !contract.compares_rows() {
            return Ok(());
        }
        let named = &self.pipeline.history_columns;
        let own = self.own_columns.len();
        let before = contract.columns[..contract.columns.len() - own].iter();
        let is_compared = |name: &str| named.is_empty() || named.iter().any(|one| one == name);
        let before: BTreeSet<Option<&str>> = before
            .map(|(name, _)| name.as_str())
            .filter(|name| is_compared(name))
            .map(Some)
            .collect();
        let now = new.iter().filter(|column| is_compared(&column.name));
        let now: BTreeSet<Option<&str>> =
            now.map(|column| column.published().filter(|_| column.is_same())).collect();
        if before == now {
            return Ok(());
        }
        let sql = &self.pipeline.curated.sql.file;
        let by = if named.is_empty() { "all columns" } else { "these columns" };
        Err(Error::usage(format!("{sql} changes columns by which rows are compared")).hint(
            format!(
                "rows are compared by {by}: undo the change, or rebuild from raw: glueless rebuild"
            ),
        ))
    }

    /// The columns of the new table: those that it has keep their types.
    fn columns_from(
        &self,
        contract: &TableContract,
        query: &CuratedQuery,
        new: &[NewColumn],
    ) -> Result<Vec<Field>> {
        // Formats have types of their own.
        let format = self.pipeline.curated.format;
        let is_same_format = contract.identity.table().1 == format.to_string();
        let types = read_types(&contract.columns)?;
        let of_query = query.columns.iter().map(|field| {
            let published = published_as(new, field.name());
            let known = types.iter().find(|(name, _)| Some(name.as_str()) == published);
            let known = known.filter(|_| is_same_format);
            let kind = known.map_or(field.data_type(), |(_, kind)| kind);
            Field::new(field.name(), kind.clone(), true)
        });
        let own = types[types.len() - self.own_columns.len()..].iter();
        let own = own.map(|(name, kind)| Field::new(name, kind.clone(), true));
        let columns: Vec<Field> = of_query.chain(own).collect();
        if format == Format::Delta {
            delta_schema(columns.iter().cloned())?;
        }
        Ok(columns)
    }

    /// The layout of the new versions.
    fn layout_from(
        &self,
        before: &VersionsLayout,
        columns: &[Field],
        day: Option<&str>,
        new: &[NewColumn],
    ) -> Result<VersionsLayout> {
        let now = self.versions_layout(columns, day, None)?;
        let mut layout =
            VersionsLayout { partitions: now.partitions, day: now.day, ..before.clone() };
        // Under `latest-per-day` the table has the rows of all versions that leave one.
        let knows_all = self.pipeline.keep == Keep::LatestPerDay && !self.pipeline.key.is_empty();
        let is_unrecorded = |name: &&String| {
            published_as(new, name)
                .is_some_and(|name| before.unrecorded.iter().any(|one| one == name))
                || !knows_all && self.source_of(name, before, new, layout.day_name()) == Source::Row
        };
        let names = layout.partitions.iter().map(|(name, _)| name);
        let unrecorded: Vec<String> = names.filter(is_unrecorded).cloned().collect();
        let named = &self.pipeline.history_columns;
        let key = &self.pipeline.key;
        let lost =
            |name: &&String| !named.is_empty() && !named.contains(name) && !key.contains(name);
        if let Some(name) = unrecorded.iter().find(lost) {
            return Err(Error::usage(format!(
                "the partition column `{name}` is not among `history_columns`"
            ))
            .hint(
                "what changes without a row had in it is in raw only: partition by other columns, or rebuild from raw: \
                 glueless rebuild",
            ));
        }
        layout.unrecorded = unrecorded;
        Ok(layout)
    }

    /// Where versions have the value of a partition column from.
    fn source_of(
        &self,
        name: &str,
        before: &VersionsLayout,
        new: &[NewColumn],
        day: Option<&str>,
    ) -> Source {
        if Some(name) == day {
            return Source::Day;
        }
        if self.pipeline.keep.is_own(name) {
            return Source::Own;
        }
        let published = published_as(new, name);
        let number =
            before.partitions.iter().position(|(name, _)| Some(name.as_str()) == published);
        match number.filter(|number| before.day != Some(*number)) {
            Some(number) => Source::Versions(number),
            None => Source::Row,
        }
    }

    /// Writes the rows of the table, with the columns of the new one.
    async fn rows_from(
        &self,
        context: &SessionContext,
        table: &PublishedRows<'_>,
        new: &[NewColumn],
        columns: &[Field],
        day: Option<&str>,
    ) -> Result<Vec<StagedFile>> {
        let (rows, schema) = self.rows(columns, day)?;
        let mut sorter = Sorter::new(Arc::clone(&rows.order), context.runtime_env());
        // One after the other: the order of files and rows stays.
        let one = session(&context.runtime_env(), 1);
        if let Some(published) = table.read(&one)? {
            let own = self.own_columns.iter().map(|name| ident(*name));
            let all = new.iter().map(|column| column.expression.clone().alias(&column.name));
            let mut batches = published.select(all.chain(own))?.execute_stream().await?;
            let of_table = Arc::new(Schema::new(columns.to_vec()));
            let failed = |error| Error::query(&self.pipeline.curated.sql.file, error);
            let mut place = 0;
            while let Some(batch) = batches.try_next().await.map_err(failed)? {
                let mut values = conform(&batch, &of_table)?.columns().to_vec();
                let count = batch.num_rows() as u64;
                values.push(Arc::new(BooleanArray::from(vec![true; batch.num_rows()])));
                let places = place + 1..=place + count;
                values.push(Arc::new(UInt64Array::from_iter_values(places)));
                place += count;
                sorter.push(&compact(&RecordBatch::try_new(Arc::clone(&schema), values)?)?)?;
            }
        }
        let writer = TableWriter {
            staging: self.staging.clone(),
            prefix: format!("{}/curated", self.attempt),
            file_bytes: self.pipeline.curated.file_bytes,
        };
        let sorted = Sorted::new(&rows.order, vec![sorter])?;
        let none =
            PublishedTable::new(self.table, std::iter::empty(), &rows, context.runtime_env())?;
        let written = writer.write(sorted, Some(Arc::new(none)), self.threads).await?;
        Ok(written.into_iter().flat_map(|one| one.files).collect())
    }

    /// Writes the versions in the new layout.
    async fn versions_from(
        &self,
        context: &SessionContext,
        table: &PublishedRows<'_>,
        new: &[NewColumn],
        (before, layout): (&VersionsLayout, &Arc<VersionsLayout>),
    ) -> Result<Vec<VersionsFile>> {
        let context = sorting_session(&context.runtime_env(), self.threads);
        register_store(&context, self.state);
        let versions = table_of(self.state, &self.committed_versions, before.schema())?;
        context.register_table("versions", Arc::new(versions))?;
        let read = self.versions_query(&context, table, new, (before, layout))?;
        let mut days = DayCounts::default();
        table.ledger.versions.values().for_each(|of_file| days.add_all(of_file));
        let starts = Arc::new(day_ranges(&days));
        let plan = context.sql(&read).await?.create_physical_plan().await?;
        let streams = execute_stream_partitioned(plan, context.task_ctx())?;
        let tasks = streams.into_iter().enumerate().map(|(thread, mut batches)| {
            let prefix = format!("{}-{thread:02}", State::versions_prefix(self.attempt));
            let mut writer = VersionsWriter::new(self.versions, layout, prefix, &starts);
            let (written, layout) = (layout.written_schema(), Arc::clone(layout));
            spawn(async move {
                while let Some(batch) = batches.try_next().await? {
                    if batch.column(batch.schema().index_of("location")?).null_count() > 0 {
                        return Err(Error::data("the table has a row without a version").hint(
                            "nothing was changed: see what differs with `glueless verify`, and rebuild from raw",
                        ));
                    }
                    let versions = canonical_parts(&batch, &layout)?;
                    writer.write(&conform(&versions, &written)?).await?;
                }
                writer.finish().await
            })
        });
        let files: Vec<VersionsFile> = join_all(tasks).await?.into_iter().flatten().collect();
        let written: u64 = files.iter().map(|file| file.rows).sum();
        if written != days.rows() {
            return Err(does_not_add_up("versions written", written, days.rows()));
        }
        Ok(files)
    }

    /// The query that gives the versions in the new layout; it reads `versions`, and `rows`, if any partition column has
    /// its values from the table's rows.
    fn versions_query(
        &self,
        context: &SessionContext,
        table: &PublishedRows<'_>,
        new: &[NewColumn],
        (before, layout): (&VersionsLayout, &Arc<VersionsLayout>),
    ) -> Result<String> {
        let source = |name: &str| self.source_of(name, before, new, layout.day_name());
        let names = layout.partitions.iter().map(|(name, _)| name.as_str());
        let mut of_rows: Vec<&str> = names.filter(|name| source(name) == Source::Row).collect();
        let rows = table.read(context)?.filter(|_| !self.pipeline.key.is_empty());
        if rows.is_none() {
            of_rows.clear();
        }
        let is_filled = self.pipeline.keep == Keep::History && !of_rows.is_empty();
        let part = |number: usize, (name, _): &(String, DataType)| {
            let value = match source(name) {
                Source::Own => "NULL".to_string(),
                Source::Day => "v.event_dt".to_string(),
                Source::Versions(number) => format!("v.part_{number}"),
                Source::Row => match of_rows.iter().position(|one| one == name) {
                    None => "NULL".to_string(),
                    Some(number) if is_filled => format!("filled['p{number}']"),
                    Some(number) => format!("r.p{number}"),
                },
            };
            format!("CASE WHEN v.deleted THEN NULL ELSE {value} END AS part_{number}")
        };
        let stored = layout.schema();
        let others = stored.fields().iter().map(|field| field.name());
        let others = others.filter(|name| !name.starts_with("part_"));
        let columns: Vec<String> = others
            .map(|name| format!("v.{}", quoted(name)))
            .chain(layout.partitions.iter().enumerate().map(|(number, one)| part(number, one)))
            .collect();
        let columns = columns.join(", ");
        let Some(rows) = rows.filter(|_| !of_rows.is_empty()) else {
            return Ok(format!("SELECT {columns} FROM versions v"));
        };
        let on = self.register_rows((context, rows), table, new, &of_rows, layout)?;
        let joined = format!("FROM versions v FULL JOIN rows r ON {on}");
        if !is_filled {
            return Ok(format!("SELECT {columns} {joined}"));
        }
        // A version without a row of its own has that of the row before, which it has left as it was.
        let values = (0..of_rows.len()).map(|number| format!("'p{number}', r.p{number}"));
        let values = values.collect::<Vec<_>>().join(", ");
        let keys = (0..layout.key_count()).map(|key| format!("v.key_{key}"));
        let keys = keys.collect::<Vec<_>>().join(", ");
        let time = format!("v.key_{}", layout.key_count());
        Ok(format!(
            "SELECT {columns} FROM (SELECT v.*, last_value(CASE WHEN r.k0 IS NOT NULL THEN named_struct({values}) END) \
             IGNORE NULLS OVER (PARTITION BY {keys} ORDER BY {time} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) \
             AS filled {joined}) v"
        ))
    }

    /// Registers `rows`: the keys of the table's rows and the values of new partition columns. Returns the condition by
    /// which versions have them.
    fn register_rows(
        &self,
        (context, rows): (&SessionContext, DataFrame),
        table: &PublishedRows<'_>,
        new: &[NewColumn],
        of_rows: &[&str],
        layout: &VersionsLayout,
    ) -> Result<String> {
        let expression = |name: &str| {
            let column = column_of(new, name).map(|column| column.expression.clone());
            column.ok_or_else(|| Error::internal(format!("the column `{name}` was lost")))
        };
        let types = read_types(&table.contract.columns)?;
        let (mut selected, mut on) = (Vec::new(), Vec::new());
        for (number, name) in self.pipeline.key.iter().enumerate() {
            let kind = types.iter().find(|(known, _)| known == name);
            let (_, kind) = kind.ok_or_else(|| Error::internal(format!("`{name}` was lost")))?;
            selected.push(ident(name).alias(format!("k{number}")));
            on.push(format!("arrow_cast(v.key_{number}, '{kind}') = r.k{number}"));
        }
        for (number, name) in of_rows.iter().enumerate() {
            selected.push(expression(name)?.alias(format!("p{number}")));
        }
        match self.pipeline.keep {
            Keep::LatestPerDay => {
                let day = table.contract.day().ok_or_else(|| Error::internal("no day"))?;
                selected.push(ident(day).alias("day"));
                let days =
                    |day: &str| format!("COALESCE(arrow_cast({day}, 'Int32'), {})", i32::MIN);
                on.push(format!("{} = {}", days("v.event_dt"), days("r.day")));
            }
            Keep::History => {
                selected.push(ident(VALID_FROM).alias("since"));
                let since = format!(
                    "COALESCE(arrow_cast(arrow_cast(r.since, 'Timestamp(Microsecond, Some(\"UTC\"))'), 'Int64'), {BEFORE_ALL})"
                );
                on.push(format!("v.key_{} = {since}", layout.key_count()));
            }
            _ => {}
        }
        context.register_table("rows", rows.select(selected)?.into_view())?;
        Ok(on.join(" AND "))
    }
}

/// Where versions have the value of a partition column from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Their day.
    Day,
    /// Nowhere: it changes when the row ends.
    Own,
    /// A partition column that they have.
    Versions(usize),
    /// The table's row.
    Row,
}

/// The published table.
struct PublishedRows<'a> {
    folder: &'a Folder,
    contract: &'a TableContract,
    ledger: &'a Ledger,
}

impl PublishedRows<'_> {
    /// Its rows, file by file; `None` if there are none.
    fn read(&self, context: &SessionContext) -> Result<Option<DataFrame>> {
        register_store(context, self.folder);
        let files: Vec<PartitionFile<'_>> =
            self.ledger.files(CURATED).map(PartitionFile::of).collect();
        if files.is_empty() {
            return Ok(None);
        }
        let columns = read_types(&self.contract.columns)?;
        let partition_by = self.contract.identity.partition_by();
        let table =
            FileTable::of_partitions(self.folder, files.into_iter(), &columns, partition_by)?;
        Ok(Some(context.read_table(Arc::new(table))?))
    }
}

/// Versions with partition columns of their canonical types, which the query need not give them.
fn canonical_parts(versions: &RecordBatch, layout: &VersionsLayout) -> Result<RecordBatch> {
    let schema = versions.schema();
    let mut fields = schema.fields().to_vec();
    let mut columns = versions.columns().to_vec();
    for (number, (name, kind)) in layout.partitions.iter().enumerate() {
        let at = schema.index_of(&format!("part_{number}"))?;
        columns[at] = canonical_column(&columns[at], name, kind)?;
        fields[at] = Arc::new(Field::new(schema.field(at).name(), kind.clone(), true));
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The error for a new column that reads one which the table does not have as it was.
fn lacks(file: &str, (column, missing): (&str, &str), known: &[Known]) -> Error {
    let reads = |known: &&Known| {
        let columns = known.expression.column_refs();
        known.has_values() && columns.iter().any(|column| column.name() == missing)
    };
    let has: Vec<String> = known
        .iter()
        .filter(reads)
        .map(|known| format!("{} as `{}`", known.expression.human_display(), known.name))
        .collect();
    let way =
        if has.is_empty() { "" } else { "write an expression as the query of before has it, " };
    let has = match &has[..] {
        [] => String::new(),
        has => format!(" as it was; it has {}", has.join(", ")),
    };
    Error::usage(format!(
        "{file}: the column `{column}` reads `{missing}`, which the table does not have{has}"
    ))
    .hint(format!("{way}leave the column out, or rebuild from raw: glueless rebuild"))
}

/// The columns that a plan returns: names, and what they are.
fn outputs(plan: &LogicalPlan) -> Vec<(String, Expr)> {
    let names = plan.schema().fields().iter().map(|field| field.name().clone());
    let expressions: Vec<Expr> = match plan {
        LogicalPlan::Projection(projection) => projection.expr.clone(),
        _ => plan.schema().columns().into_iter().map(Expr::Column).collect(),
    };
    names.zip(expressions.into_iter().map(Expr::unalias)).collect()
}
