//! Reads the rows of one table, in one statement, to compare with them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use parquet::basic::Compression;
use tokio_postgres::Client;

use crate::capture::Output;
use crate::capture::catalog::{Catalog, Column, Table};
use crate::capture::column::Kind;
use crate::capture::hold::{Session, hold};
use crate::capture::mark::create;
use crate::capture::position::Position;
use crate::capture::rows::{Head, Shape};
use crate::capture::snapshot::{Copy, SETTINGS, enter};
use crate::config::TargetTable;
use crate::error::{Error, Result};
use crate::postgres::connect::Server;
use crate::postgres::refusal::failed;
use crate::postgres::row_hash::{BUCKETS, Bucket, bucket_in_sql, hash_in_sql};
use crate::postgres::{Purpose, quoted};
use crate::store::Folder;

/// What the connection is for.
const COMPARE: Purpose = Purpose {
    key: "verify.url_env",
    unchanged: "nothing was changed: run the command again",
    grants: "docs/operating.md",
};

/// The size of files.
const FILE_BYTES: u64 = 64 << 20;

/// Rows that were read.
pub(crate) struct Exported {
    /// The columns, as the table names them.
    pub(crate) columns: Vec<(String, DataType)>,
    /// The files: names and sizes.
    pub(crate) files: Vec<(String, u64)>,
}

/// The columns of a table that are read, and how.
pub(crate) struct WantedColumns {
    shape: Arc<Shape>,
    /// Its name in SQL. Tables that inherit from it have rows of their own.
    relation: String,
    /// The values that are hashed, in SQL; `None` for those that the server writes in another way.
    hashed: Vec<Option<String>>,
}

/// A session that reads one table or view.
pub(crate) struct Reader<'a> {
    client: Client,
    server: Server,
    pub(crate) table: &'a TargetTable,
    doing: String,
    /// Whether it sees the snapshot of somebody else.
    is_held: Cell<bool>,
}

impl<'a> Reader<'a> {
    /// Opens a session.
    ///
    /// # Errors
    /// Usage, when the table is not there or must not be read; storage, when the server fails.
    pub(crate) async fn open(
        (url, variable): (&str, &str),
        table: &'a TargetTable,
    ) -> Result<Self> {
        let server = Server::parse(url, variable, COMPARE)?;
        let client = server.connect("glueless verify").await?;
        let doing = format!("read {table}");
        let set = client.batch_execute(SETTINGS).await;
        set.map_err(|error| failed(&server.name, &doing, &error))?;
        let reader = Reader { client, server, table, doing, is_held: Cell::new(false) };
        reader.columns().await?;
        Ok(reader)
    }

    /// Goes on in a snapshot, where it has locked the table.
    ///
    /// # Errors
    /// Storage, when the snapshot is gone, or the table was dropped or stays locked; usage, when it must not be
    /// read.
    pub(super) async fn enter(&self, snapshot: &str) -> Result<()> {
        let server = &self.server.name;
        let ended = self.client.batch_execute("ROLLBACK").await;
        ended.map_err(|error| failed(server, &self.doing, &error))?;
        enter(&self.client, server, snapshot).await?;
        self.is_held.set(true);
        hold(&[Session { client: &self.client, server, names: vec![(self.sql_name(), true)] }])
            .await
    }

    /// A table of others that was written anew since the snapshot.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn rewritten(
        &self,
        tables: &BTreeMap<String, Table>,
    ) -> Result<Option<String>> {
        self.catalog().rewritten(tables).await
    }

    fn catalog(&self) -> Catalog<'_> {
        Catalog { client: &self.client, server: &self.server.name }
    }

    fn sql_name(&self) -> String {
        format!("{}.{}", quoted(&self.table.schema), quoted(&self.table.name))
    }

    /// Its columns, and whether it is a table without partitions.
    async fn columns(&self) -> Result<(Vec<Column>, bool)> {
        let (columns, is_plain) = self.catalog().columns_of(self.table).await?;
        if columns.is_empty() {
            let (table, server) = (self.table, &self.server.name);
            return Err(Error::usage(format!("there is no table `{table}` in {server}"))
                .hint("correct `verify.table`; names are taken as they are written"));
        }
        Ok((columns, is_plain))
    }

    /// Begins a snapshot, unless it has entered one.
    ///
    /// # Errors
    /// Storage, when the server fails.
    pub(crate) async fn begin(&self) -> Result<()> {
        self.unless_held("ROLLBACK; BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            .await
    }

    /// Ends the snapshot, unless it has entered one: the table is free then.
    ///
    /// # Errors
    /// Storage, when the server fails.
    pub(crate) async fn end(&self) -> Result<()> {
        self.unless_held("ROLLBACK").await
    }

    async fn unless_held(&self, statement: &str) -> Result<()> {
        if self.is_held.get() {
            return Ok(());
        }
        let done = self.client.batch_execute(statement).await;
        done.map_err(|error| failed(&self.server.name, &self.doing, &error))
    }

    /// Finds the columns of the table that have one of the wanted names, in any case; those that are wanted as
    /// text are read as text.
    ///
    /// # Errors
    /// Usage, when the table is not there or must not be read; storage, when the server fails.
    pub(crate) async fn wanted(&self, wanted: &[(String, DataType)]) -> Result<WantedColumns> {
        let (columns, is_plain) = self.columns().await?;
        let domains = self.catalog().domains().await?;
        let (mut kinds, mut hashed) = (Vec::new(), Vec::new());
        for column in columns {
            let same = |(name, _): &&(String, DataType)| name.eq_ignore_ascii_case(&column.name);
            let Some((_, wanted)) = wanted.iter().find(same) else {
                continue;
            };
            let kind = domains.kind(column.type_id, column.modifier);
            hashed.push(hashed_value(&column.name, kind, wanted));
            // What is text there is as the server writes it.
            kinds.push((column.name, if wanted.is_string() { Kind::Text } else { kind }));
        }
        let shape = Shape::new(self.table.to_string(), kinds, Vec::new());
        let shape = Arc::new(shape.map_err(|error| {
            error.hint(
                "let `verify.table` name a view without the column, or with another name for it",
            )
        })?);
        let relation = format!("{}{}", if is_plain { "ONLY " } else { "" }, self.sql_name());
        Ok(WantedColumns { shape, relation, hashed })
    }

    /// Counts and sums up the hashes of rows, which the server computes, in buckets.
    ///
    /// # Errors
    /// Usage, when the table must not be read; storage, when the server fails.
    pub(crate) async fn buckets(&self, wanted: &WantedColumns, hash: &str) -> Result<Vec<Bucket>> {
        let statement = format!(
            // Without the OFFSET the server computes a hash for each of its uses.
            "SELECT {}, count(*), sum(hash)::text FROM (SELECT {hash} AS hash FROM {} OFFSET 0) hashed \
             GROUP BY 1",
            bucket_in_sql("hash"),
            wanted.relation
        );
        let mut buckets = vec![Bucket::default(); BUCKETS];
        for row in self.catalog().rows(&statement, &[], &self.doing).await? {
            let (bucket, rows, sum): (i32, i64, String) = (row.get(0), row.get(1), row.get(2));
            let sum = sum.parse().map_err(|_| Error::internal("a sum of hashes is no number"))?;
            buckets[bucket as usize] = Bucket { rows: rows.unsigned_abs(), sum };
        }
        Ok(buckets)
    }

    /// Reads rows into files: those of some buckets by a hash, or all of them.
    ///
    /// # Errors
    /// Usage, when the table must not be read; data, for a value that its column cannot have in files; storage,
    /// when the server or the disk fails.
    pub(crate) async fn export(
        &self,
        wanted: &WantedColumns,
        buckets: Option<(&str, &[usize])>,
        folder: &Folder,
    ) -> Result<Exported> {
        let shape = &wanted.shape;
        let names: Vec<String> = shape.columns.iter().map(|(name, _)| quoted(name)).collect();
        let output = Output {
            slot: String::new(),
            file_bytes: FILE_BYTES,
            compression: Compression::SNAPPY,
        };
        let some = buckets.map(|(hash, buckets)| {
            let list: Vec<String> = buckets.iter().map(ToString::to_string).collect();
            format!(" WHERE {} = ANY ('{{{}}}')", bucket_in_sql(hash), list.join(","))
        });
        let copy = Copy {
            client: &self.client,
            server: &self.server.name,
            statement: format!(
                "COPY (SELECT {} FROM {}{}) TO STDOUT",
                names.join(", "),
                wanted.relation,
                some.unwrap_or_default()
            ),
            doing: self.doing.clone(),
            shape,
            output: &output,
        };
        let head = Head { op: "I", commit_time: 0, position: Position::default(), xid: None };
        let mut files = Vec::new();
        copy.read(
            || head,
            async |file| {
                let name = format!("{:06}.parquet", files.len());
                let bytes = file.finish(Vec::new())?;
                files.push((name.clone(), bytes.len() as u64));
                create(folder, &name, bytes.into()).await.map(|_| ())
            },
        )
        .await
        .map_err(|error| match error.kind {
            crate::error::Kind::Data => Error::data(error.message)
                .hint("let `verify.table` name a view that casts the column to text"),
            _ => error,
        })?;
        Ok(Exported { columns: wanted.columns(), files })
    }
}

impl WantedColumns {
    /// The columns that are there, as the table names them, and their types in files.
    pub(crate) fn columns(&self) -> Vec<(String, DataType)> {
        let columns = self.shape.columns.iter();
        columns.map(|(name, kind)| (name.clone(), kind.data_type())).collect()
    }

    /// The hash of a row by these columns, in SQL, where empty texts in some of them are null; or the first
    /// column that the server writes in another way.
    pub(crate) fn hash<'n>(
        &self,
        columns: &'n [(String, DataType)],
        empty_is_null: impl Fn(&str) -> bool,
    ) -> std::result::Result<String, &'n str> {
        let value = |(name, wanted): &'n (String, DataType)| {
            let mut known = self.shape.columns.iter().zip(&self.hashed);
            let value = known.find(|((known, _), _)| known.eq_ignore_ascii_case(name));
            let value = value.and_then(|(_, value)| value.clone()).ok_or(name.as_str())?;
            let is_null = wanted.is_string() && empty_is_null(name);
            Ok(if is_null { format!("NULLIF(pg_catalog.concat({value}), '')") } else { value })
        };
        let values: std::result::Result<Vec<_>, &str> = columns.iter().map(value).collect();
        Ok(hash_in_sql(&values?))
    }
}

/// A column's value that is hashed, in SQL, if it is wanted in a type in which the server writes it.
fn hashed_value(name: &str, kind: Kind, wanted: &DataType) -> Option<String> {
    let column = quoted(name);
    match (kind, wanted) {
        (_, wanted) if wanted.is_string() => Some(column),
        (Kind::Int16 | Kind::Int32 | Kind::Int64, wanted) if wanted.is_signed_integer() => {
            Some(column)
        }
        (Kind::Float32, DataType::Float32) => {
            Some(format!("pg_catalog.encode(pg_catalog.float4send({column}), 'hex')"))
        }
        (Kind::Float64, DataType::Float64) => {
            Some(format!("pg_catalog.encode(pg_catalog.float8send({column}), 'hex')"))
        }
        (Kind::Decimal(_, scale), DataType::Decimal128(_, wanted)) if scale == *wanted => {
            Some(column)
        }
        (Kind::TimestampUtc, DataType::Timestamp(_, None))
        | (Kind::Timestamp, DataType::Timestamp(_, Some(_))) => {
            Some(format!("({column} AT TIME ZONE 'UTC')"))
        }
        (Kind::TimestampUtc, DataType::Timestamp(_, Some(_)))
        | (Kind::Timestamp, DataType::Timestamp(_, None))
        | (Kind::Boolean, DataType::Boolean)
        | (Kind::Date, DataType::Date32)
        | (Kind::Time, DataType::Time64(TimeUnit::Microsecond))
        | (Kind::Binary, DataType::Binary | DataType::LargeBinary | DataType::BinaryView) => {
            Some(column)
        }
        _ => None,
    }
}
