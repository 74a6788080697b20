//! Reads the rows of one table, in one statement, to compare with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
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
    /// The columns of the table that were wanted, as the table names them.
    pub(crate) columns: Vec<(String, DataType)>,
    /// The files: names and sizes.
    pub(crate) files: Vec<(String, u64)>,
}

/// A session that reads one table or view.
pub(crate) struct Reader<'a> {
    client: Client,
    server: Server,
    pub(crate) table: &'a TargetTable,
    doing: String,
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
        let reader = Reader { client, server, table, doing };
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

    /// Reads the columns of the table that have one of the wanted names, in any case, into files; as text those
    /// that are wanted as text.
    ///
    /// # Errors
    /// Usage, when the table is not there or must not be read; data, for a value that its column cannot have in
    /// files; storage, when the server or the disk fails.
    pub(crate) async fn export(
        &self,
        wanted: &[(String, DataType)],
        folder: &Folder,
    ) -> Result<Exported> {
        let (columns, is_plain) = self.columns().await?;
        let (table, catalog) = (self.table, self.catalog());
        let domains = catalog.domains().await?;
        let columns = columns.into_iter().filter_map(|column| {
            let mut wanted = wanted.iter();
            let (_, kind) = wanted.find(|(name, _)| name.eq_ignore_ascii_case(&column.name))?;
            // What is text there is as the server writes it.
            let kind = match kind {
                DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => Kind::Text,
                _ => domains.kind(column.type_id, column.modifier),
            };
            Some((column.name, kind))
        });
        let columns: Vec<_> = columns.collect();
        let shape = Shape::new(table.to_string(), columns, Vec::new());
        let shape = Arc::new(shape.map_err(|error| {
            error.hint(
                "let `verify.table` name a view without the column, or with another name for it",
            )
        })?);
        let names: Vec<String> = shape.columns.iter().map(|(name, _)| quoted(name)).collect();
        let output = Output {
            slot: String::new(),
            file_bytes: FILE_BYTES,
            compression: Compression::SNAPPY,
        };
        let copy = Copy {
            client: &self.client,
            server: &self.server.name,
            statement: format!(
                "COPY (SELECT {} FROM {}{}) TO STDOUT",
                names.join(", "),
                // Tables that inherit from it have rows of their own.
                if is_plain { "ONLY " } else { "" },
                self.sql_name()
            ),
            doing: self.doing.clone(),
            shape: &shape,
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
        let columns = shape.columns.iter().map(|(name, kind)| (name.clone(), kind.data_type()));
        Ok(Exported { columns: columns.collect(), files })
    }
}
