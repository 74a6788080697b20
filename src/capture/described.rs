//! What a source says of all its tables, for those who read files that something else has captured.

use arrow::datatypes::DataType;

use crate::capture::catalog::Catalog;
use crate::error::Result;
use crate::postgres::Purpose;
use crate::postgres::connect::Server;

/// What the connection is for.
const DESCRIBE: Purpose = Purpose {
    key: "--source-url-env",
    unchanged: "nothing was changed: run the command again",
    grants: "docs/many-tables.md",
};

/// A table of the source.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) schema: String,
    pub(crate) name: String,
    /// Its columns in their order, with their types in files.
    pub(crate) columns: Vec<(String, DataType)>,
    /// The columns of its primary key, else of a unique index of columns that are never null; none if it has neither.
    pub(crate) key: Vec<String>,
}

/// Describes all tables of a database, given by its URL and the variable that has it.
///
/// # Errors
/// Usage, when the URL cannot be read or the server refuses the user; storage, when it cannot be reached.
pub(crate) async fn described(url: &str, variable: &str) -> Result<Vec<Described>> {
    let server = Server::parse(url, variable, DESCRIBE)?;
    let client = server.connect("glueless init").await?;
    let catalog = Catalog { client: &client, server: &server.name };
    catalog.described().await
}

impl Catalog<'_> {
    /// Describes all tables but those of the server itself.
    async fn described(&self) -> Result<Vec<Described>> {
        let domains = self.domains().await?;
        let columns = "SELECT n.nspname::text, c.relname::text, a.attname::text, a.atttypid, a.atttypmod
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
                AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
            ORDER BY 1, 2, a.attnum";
        let mut tables: Vec<Described> = Vec::new();
        for row in self.rows(columns, &[], "read the columns of its tables").await? {
            let (schema, name): (String, String) = (row.get(0), row.get(1));
            let data_type = domains.kind(row.get(3), row.get(4)).data_type();
            let column = (row.get(2), data_type);
            match tables.last_mut().filter(|table| table.schema == schema && table.name == name) {
                Some(table) => table.columns.push(column),
                None => {
                    tables.push(Described { schema, name, columns: vec![column], key: Vec::new() })
                }
            }
        }
        // The primary key, else the unique index with the fewest columns.
        let keys = "SELECT DISTINCT ON (n.nspname, c.relname) n.nspname::text, c.relname::text,
                ARRAY(SELECT a.attname::text FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attnum = ANY(i.indkey)
                        AND array_position(i.indkey::int2[], a.attnum) < i.indnkeyatts
                    ORDER BY array_position(i.indkey::int2[], a.attnum))
            FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
                AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY(i.indkey)
                    AND array_position(i.indkey::int2[], a.attnum) < i.indnkeyatts AND NOT a.attnotnull)
            ORDER BY n.nspname, c.relname, i.indisprimary DESC, i.indnkeyatts, i.indexrelid";
        for row in self.rows(keys, &[], "read the keys of its tables").await? {
            let (schema, name): (String, String) = (row.get(0), row.get(1));
            let mut all = tables.iter_mut();
            if let Some(table) = all.find(|table| table.schema == schema && table.name == name) {
                table.key = row.get(2);
            }
        }
        Ok(tables)
    }
}
