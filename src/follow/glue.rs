//! Registers the published tables in the AWS Glue catalog, in place of a crawler.
//!
//! ```text
//! table? ─▶ made if missing ─▶ partitions: listed ─▶ added, updated, deleted in batches ─▶ table updated, with the marker
//! ```
//! The catalog has no transactions: the marker is a parameter of the table, written last. Every call can
//! be repeated. The partitions of the table in the catalog are compared with those of the ledger, so that
//! what others have changed there is mended, too.
//!
//! | parameter of the table | meaning |
//! |---|---|
//! | `glueless.pipeline`, `glueless.source` | what it is: the pipeline, and the table as the ledger names it |
//! | `glueless.commit`, `glueless.run_id` | the marker |
//!
//! Limits of the API (per call): 100 partitions made or updated, 25 deleted
//! (<https://docs.aws.amazon.com/glue/latest/webapi/API_BatchDeletePartition.html>). The table input is
//! what Athena itself makes for `CREATE EXTERNAL TABLE … STORED AS PARQUET`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::datatypes::DataType;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_glue::Client;
use aws_sdk_glue::config::Credentials;
use aws_sdk_glue::config::retry::RetryConfig;
use aws_sdk_glue::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_glue::types::{
    Column, ErrorDetail, PartitionInput, PartitionValueList, SerDeInfo, StorageDescriptor, Table,
    TableInput,
};
use chrono::{DateTime, Days, NaiveDate, Utc};
use futures::stream::{self, StreamExt, TryStreamExt};
use tracing::info;

use crate::config::{Catalog, CatalogMode, Format};
use crate::error::{Error, Result};
use crate::follow::Marker;
use crate::follow::hive_type::hive_type;
use crate::layout::{DEFAULT_PARTITION, parent, partition_segment, partition_values};
use crate::report::FollowerReport;
use crate::state::ledger::Ledger;
use crate::store::Location;

/// The partitions of a call that makes or updates them.
const WRITTEN_AT_ONCE: usize = 100;
/// The partitions of a call that deletes them.
const DELETED_AT_ONCE: usize = 25;
/// The calls that are open at once.
const CONCURRENT_CALLS: usize = 4;
/// How often a call is tried if AWS_MAX_ATTEMPTS does not say it: Glue throttles accounts, for seconds.
const TRIES: u32 = 6;
/// The longest value of a parameter of a table, in bytes.
const PARAMETER_BYTES_MAX: usize = 500_000;

const PIPELINE: &str = "glueless.pipeline";
const SOURCE: &str = "glueless.source";
const COMMIT: &str = "glueless.commit";
const RUN_ID: &str = "glueless.run_id";

/// The tables that are registered, and where.
pub(crate) struct Registrar<'a> {
    /// The pipeline's name.
    pub pipeline: &'a str,
    /// The settings of the catalog.
    pub catalog: &'a Catalog,
    /// The environment, for the region, the endpoint and keys; the rest the SDK finds itself.
    pub environment: &'a BTreeMap<String, String>,
    /// The ledger of the newest commit.
    pub ledger: &'a Ledger,
    /// The newest commit.
    pub newest: Marker,
    /// The time of the run.
    pub now: DateTime<Utc>,
    /// Whether tables whose marker is the newest commit are compared too.
    pub repairs: bool,
    /// The tables.
    pub tables: Vec<RegisteredTable<'a>>,
}

/// A table that is registered.
pub(crate) struct RegisteredTable<'a> {
    /// The ledger's name for it.
    pub source: String,
    /// Its name in the catalog.
    pub name: String,
    /// Where it is.
    pub location: &'a Location,
    /// Its format.
    pub format: Format,
    /// Its columns: name and type.
    pub columns: Vec<(String, DataType)>,
    /// Its partition columns.
    pub partition_by: Vec<String>,
}

/// One partition: its values in the order of the partition columns, and its folder.
type Partitions = BTreeMap<Vec<String>, String>;

impl Registrar<'_> {
    /// Brings all tables of the catalog to the newest commit.
    ///
    /// # Errors
    /// Usage, when something is not permitted, a table is that of someone else, or a type is not
    /// supported; storage, when the catalog cannot be reached.
    pub(crate) async fn register(&self) -> Result<Vec<FollowerReport>> {
        let client = client(self.environment).await?;
        let mut reports = Vec::new();
        for table in &self.tables {
            reports.push(self.register_one(&client, table).await?);
        }
        Ok(reports)
    }

    async fn register_one(
        &self,
        client: &Client,
        table: &RegisteredTable<'_>,
    ) -> Result<FollowerReport> {
        let started = std::time::Instant::now();
        let mut report = FollowerReport {
            name: format!("glue:{}.{}", self.catalog.database, table.name),
            to_commit: self.newest.commit,
            ..Default::default()
        };
        let found = self.find(client, table).await?;
        if let Some(found) = &found {
            self.check_owner(table, found)?;
            let marker = marker_of(found);
            report.from_commit = marker.as_ref().map(|marker| marker.commit);
            let newest = Marker { source: table.source.clone(), ..self.newest.clone() };
            if marker == Some(newest) && !self.repairs {
                return Ok(report);
            }
        }
        let columns = Columns::of(table, found.as_ref())?;
        let wanted = self.partitions(table);
        let input = self.table_input(table, &columns, &wanted, found.as_ref())?;
        if found.is_none() {
            self.make(client, table, &input).await?;
        }
        if self.lists_partitions(table) {
            let are_columns_new = found.as_ref().is_none_or(|found| !columns.are_those_of(found));
            self.bring_partitions(client, table, &columns, &wanted, are_columns_new, &mut report)
                .await?;
        }
        // The marker comes last.
        let is_same = found.as_ref().is_some_and(|found| is_same_table(found, &input));
        if !is_same {
            let updated = client.update_table().database_name(&self.catalog.database);
            let updated = updated.table_input(input).skip_archive(true).send().await;
            updated.map_err(|error| self.failed("update", &table.name, error))?;
        }
        report.seconds = started.elapsed().as_secs_f64();
        info!(
            "catalog {}: {} partitions written, {} removed",
            report.name, report.partitions_written, report.partitions_removed
        );
        Ok(report)
    }

    fn lists_partitions(&self, table: &RegisteredTable<'_>) -> bool {
        // A Delta table lists its files itself.
        self.catalog.mode == CatalogMode::Partitions
            && table.format == Format::Parquet
            && !table.partition_by.is_empty()
    }

    async fn find(&self, client: &Client, table: &RegisteredTable<'_>) -> Result<Option<Table>> {
        let get = client.get_table().database_name(&self.catalog.database).name(&table.name);
        match get.send().await {
            Ok(found) => Ok(found.table),
            Err(error) if error.code() == Some("EntityNotFoundException") => Ok(None),
            Err(error) => Err(self.failed("read", &table.name, error)),
        }
    }

    /// Refuses a table that is neither ours nor at our place.
    fn check_owner(&self, table: &RegisteredTable<'_>, found: &Table) -> Result<()> {
        let name = format!("{}.{}", self.catalog.database, table.name);
        let other = parameter(found, PIPELINE).filter(|other| *other != self.pipeline);
        if let Some(other) = other {
            return Err(Error::usage(format!(
                "the catalog's table {name} is that of the pipeline `{other}`"
            ))
            .hint("name another table: `catalog.table`; or delete that one, if it is not used"));
        }
        let is_ours = parameter(found, PIPELINE).is_some();
        let location = found.storage_descriptor().and_then(StorageDescriptor::location);
        let place = |location: &str| location.trim_end_matches('/').to_string();
        let is_here = location.is_some_and(|found| place(found) == place(&table.location.folder()));
        if is_ours || is_here {
            return Ok(());
        }
        Err(Error::usage(format!(
            "the catalog's table {name} is at {}",
            location.unwrap_or("none")
        ))
        .hint("name another table: `catalog.table`; or delete that one, if it is not used"))
    }

    /// The partitions that the ledger lists.
    fn partitions(&self, table: &RegisteredTable<'_>) -> Partitions {
        let folders: BTreeSet<&str> =
            self.ledger.files(&table.source).map(|file| parent(&file.path)).collect();
        let values = |folder: &str| {
            let values = partition_values(folder);
            values.map(|(_, value)| value.unwrap_or_else(|| DEFAULT_PARTITION.into())).collect()
        };
        folders.into_iter().map(|folder| (values(folder), folder.to_string())).collect()
    }

    /// The table as it should be, with the marker, and with what others have added to it.
    fn table_input(
        &self,
        table: &RegisteredTable<'_>,
        columns: &Columns,
        partitions: &Partitions,
        found: Option<&Table>,
    ) -> Result<TableInput> {
        let mut parameters: HashMap<String, String> =
            found.and_then(Table::parameters).cloned().unwrap_or_default();
        let is_own =
            |name: &str| name.starts_with("projection.") || name == "storage.location.template";
        parameters.retain(|name, _| !is_own(name));
        let format = match table.format {
            Format::Parquet => vec![("classification", "parquet")],
            Format::Delta => vec![
                ("classification", "delta"),
                ("table_type", "delta"),
                ("spark.sql.sources.provider", "delta"),
            ],
        };
        let own = [
            ("EXTERNAL", "TRUE"),
            (PIPELINE, self.pipeline),
            (SOURCE, &table.source),
            (COMMIT, &self.newest.commit.to_string()),
            (RUN_ID, &self.newest.run_id),
        ];
        let own = own.into_iter().chain(format);
        parameters.extend(own.map(|(name, value)| (name.to_string(), value.to_string())));
        let is_projected = self.catalog.mode == CatalogMode::Projection && !partitions.is_empty();
        if is_projected && table.format == Format::Parquet && !table.partition_by.is_empty() {
            parameters.extend(projection(table, partitions, self.now)?);
        }
        let input = TableInput::builder()
            .name(&table.name)
            .set_description(found.and_then(Table::description).map(String::from))
            .set_owner(found.and_then(Table::owner).map(String::from))
            .table_type("EXTERNAL_TABLE")
            .set_parameters(Some(parameters))
            .set_partition_keys(Some(columns.partitions.clone()))
            .storage_descriptor(columns.storage(table, &table.location.folder()));
        input.build().map_err(|error| Error::internal("a table of the catalog").caused_by(error))
    }

    /// Makes a table, without the marker.
    async fn make(
        &self,
        client: &Client,
        table: &RegisteredTable<'_>,
        input: &TableInput,
    ) -> Result<()> {
        let mut input = input.clone();
        if let Some(parameters) = &mut input.parameters {
            parameters.remove(COMMIT);
            parameters.remove(RUN_ID);
        }
        let made = client.create_table().database_name(&self.catalog.database).table_input(input);
        match made.send().await {
            Ok(_) => Ok(()),
            // Another run has made it.
            Err(error) if error.code() == Some("AlreadyExistsException") => Ok(()),
            Err(error) if error.code() == Some("EntityNotFoundException") => {
                let database = &self.catalog.database;
                Err(Error::usage(format!("the catalog has no database `{database}`")).hint(
                    format!("make it: aws glue create-database --database-input Name={database}"),
                ))
            }
            Err(error) => Err(self.failed("make", &table.name, error)),
        }
    }

    /// Brings the partitions in the catalog to those of the ledger.
    async fn bring_partitions(
        &self,
        client: &Client,
        table: &RegisteredTable<'_>,
        columns: &Columns,
        wanted: &Partitions,
        are_columns_new: bool,
        report: &mut FollowerReport,
    ) -> Result<()> {
        let base = table.location.folder();
        let location = |folder: &str| format!("{base}{folder}/");
        let listed = self.list_partitions(client, table).await?;
        let input = |(values, folder): (&Vec<String>, &String)| {
            PartitionInput::builder()
                .set_values(Some(values.clone()))
                .storage_descriptor(columns.storage(table, &location(folder)))
                .build()
        };
        let is_missing = |(values, _): &(&Vec<String>, &String)| !listed.contains_key(*values);
        let missing: Vec<PartitionInput> = wanted.iter().filter(is_missing).map(input).collect();
        let place = |location: &str| location.trim_end_matches('/').to_string();
        let differs = |(values, folder): &(&Vec<String>, &String)| {
            listed.get(*values).is_some_and(|(found, format)| {
                are_columns_new
                    || found.as_deref().map(place) != Some(place(&location(folder)))
                    || format.as_deref() != Some(input_format(table.format))
            })
        };
        let wrong: Vec<(Vec<String>, PartitionInput)> =
            wanted.iter().filter(differs).map(|pair| (pair.0.clone(), input(pair))).collect();
        let gone: Vec<Vec<String>> =
            listed.into_keys().filter(|values| !wanted.contains_key(values)).collect();
        report.partitions_written = (missing.len() + wrong.len()) as u64;
        report.partitions_removed = gone.len() as u64;
        self.add(client, table, missing).await?;
        self.update(client, table, wrong).await?;
        self.delete(client, table, gone).await
    }

    /// The partitions of a table in the catalog: their values, locations and formats.
    async fn list_partitions(
        &self,
        client: &Client,
        table: &RegisteredTable<'_>,
    ) -> Result<BTreeMap<Vec<String>, (Option<String>, Option<String>)>> {
        let mut pages = client
            .get_partitions()
            .database_name(&self.catalog.database)
            .table_name(&table.name)
            .exclude_column_schema(true)
            .into_paginator()
            .page_size(1000)
            .send();
        let mut listed = BTreeMap::new();
        while let Some(page) = pages.next().await {
            let page =
                page.map_err(|error| self.failed("list the partitions of", &table.name, error))?;
            for partition in page.partitions.unwrap_or_default() {
                let storage = partition.storage_descriptor.as_ref();
                let location = storage.and_then(|storage| storage.location.clone());
                let format = storage.and_then(|storage| storage.input_format.clone());
                listed.insert(partition.values.unwrap_or_default(), (location, format));
            }
        }
        Ok(listed)
    }

    async fn add(
        &self,
        client: &Client,
        table: &RegisteredTable<'_>,
        partitions: Vec<PartitionInput>,
    ) -> Result<()> {
        let calls = partitions.chunks(WRITTEN_AT_ONCE).map(|batch| async {
            let made = client
                .batch_create_partition()
                .database_name(&self.catalog.database)
                .table_name(&table.name)
                .set_partition_input_list(Some(batch.to_vec()))
                .send()
                .await
                .map_err(|error| self.failed("add partitions to", &table.name, error))?;
            let errors = made.errors.unwrap_or_default();
            // Those that another run has made meanwhile are there.
            let details = errors.iter().filter_map(|error| error.error_detail.as_ref());
            self.check_partitions(table, details, "AlreadyExistsException")
        });
        stream::iter(calls).buffer_unordered(CONCURRENT_CALLS).try_collect().await
    }

    async fn update(
        &self,
        client: &Client,
        table: &RegisteredTable<'_>,
        partitions: Vec<(Vec<String>, PartitionInput)>,
    ) -> Result<()> {
        let calls = partitions.chunks(WRITTEN_AT_ONCE).map(|batch| async {
            let entries = batch.iter().map(|(values, input)| {
                aws_sdk_glue::types::BatchUpdatePartitionRequestEntry::builder()
                    .set_partition_value_list(Some(values.clone()))
                    .partition_input(input.clone())
                    .build()
            });
            let entries: Result<Vec<_>, _> = entries.collect();
            let entries = entries
                .map_err(|error| Error::internal("a partition of the catalog").caused_by(error))?;
            let updated = client
                .batch_update_partition()
                .database_name(&self.catalog.database)
                .table_name(&table.name)
                .set_entries(Some(entries))
                .send()
                .await
                .map_err(|error| self.failed("update partitions of", &table.name, error))?;
            let errors = updated.errors.unwrap_or_default();
            let details = errors.iter().filter_map(|error| error.error_detail.as_ref());
            self.check_partitions(table, details, "")
        });
        stream::iter(calls).buffer_unordered(CONCURRENT_CALLS).try_collect().await
    }

    async fn delete(
        &self,
        client: &Client,
        table: &RegisteredTable<'_>,
        partitions: Vec<Vec<String>>,
    ) -> Result<()> {
        let calls = partitions.chunks(DELETED_AT_ONCE).map(|batch| async {
            let values = batch.iter().map(|values| {
                PartitionValueList::builder().set_values(Some(values.clone())).build()
            });
            let values: Result<Vec<_>, _> = values.collect();
            let values = values
                .map_err(|error| Error::internal("a partition of the catalog").caused_by(error))?;
            let deleted = client
                .batch_delete_partition()
                .database_name(&self.catalog.database)
                .table_name(&table.name)
                .set_partitions_to_delete(Some(values))
                .send()
                .await
                .map_err(|error| self.failed("delete partitions of", &table.name, error))?;
            let errors = deleted.errors.unwrap_or_default();
            let details = errors.iter().filter_map(|error| error.error_detail.as_ref());
            self.check_partitions(table, details, "EntityNotFoundException")
        });
        stream::iter(calls).buffer_unordered(CONCURRENT_CALLS).try_collect().await
    }

    /// Checks the errors of single partitions, of which one kind is none.
    fn check_partitions<'b>(
        &self,
        table: &RegisteredTable<'_>,
        errors: impl Iterator<Item = &'b ErrorDetail>,
        harmless: &str,
    ) -> Result<()> {
        let codes = errors.map(|error| error.error_code().unwrap_or("unknown"));
        let codes: Vec<&str> = codes.filter(|code| *code != harmless).collect();
        // Values of partitions are values of rows, and are not repeated.
        match codes.first() {
            None => Ok(()),
            Some(code) => Err(Error::storage(format!(
                "the catalog refuses {} partitions of {}.{}: {code}",
                codes.len(),
                self.catalog.database,
                table.name
            ))
            .hint("run `glueless catalog`: what is done stays done")),
        }
    }

    /// The error of a call.
    fn failed<E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static>(
        &self,
        doing: &str,
        table: &str,
        error: SdkError<E>,
    ) -> Error {
        let database = &self.catalog.database;
        call_failed(format!("cannot {doing} {database}.{table} in the Glue catalog"), error)
    }
}

/// The error of a call.
fn call_failed<E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static>(
    what: String,
    error: SdkError<E>,
) -> Error {
    let Some(code) = error.code().map(String::from) else {
        return Error::storage(what)
            .hint("run `glueless catalog` when the catalog can be reached")
            .caused_by(error.into_source().unwrap_or_else(|error| Box::new(error)));
    };
    let message = error.message().unwrap_or_default().to_string();
    match code.as_str() {
        "AccessDeniedException"
        | "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "ExpiredTokenException" => Error::usage(format!("{what}: {code}: {message}"))
            .hint("grant it; docs/followers.md lists what is needed"),
        // Its message can have values of partitions.
        "InvalidInputException" | "ValidationException" => {
            Error::internal(format!("{what}: {code}"))
        }
        _ => Error::storage(format!("{what}: {code}"))
            .hint("run `glueless catalog` later: what is done stays done"),
    }
}

/// Checks that the database of a catalog can be read.
///
/// # Errors
/// Usage, when it does not exist or must not be read; storage, when the catalog cannot be reached.
pub(crate) async fn check_database(
    environment: &BTreeMap<String, String>,
    catalog: &Catalog,
) -> Result<()> {
    let client = client(environment).await?;
    let name = &catalog.database;
    let found = client.get_database().name(name).send().await;
    found.map(|_| ()).map_err(|error| match error.code() {
        Some("EntityNotFoundException") => {
            Error::usage(format!("the Glue catalog has no database `{name}`"))
                .hint("make it, or correct `catalog.glue`")
        }
        _ => call_failed(format!("cannot read the database `{name}` of the Glue catalog"), error),
    })
}

/// A client with the keys, the region and the endpoint of an environment, or what the SDK finds.
async fn client(environment: &BTreeMap<String, String>) -> Result<Client> {
    let get = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    let tries = get("AWS_MAX_ATTEMPTS").and_then(|tries| tries.parse().ok()).unwrap_or(TRIES);
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .retry_config(RetryConfig::standard().with_max_attempts(tries));
    if let Some(region) = get("AWS_REGION").or(get("AWS_DEFAULT_REGION")) {
        loader = loader.region(Region::new(region));
    }
    if let Some(endpoint) = get("AWS_ENDPOINT_URL_GLUE").or(get("AWS_ENDPOINT_URL")) {
        loader = loader.endpoint_url(endpoint);
    }
    if let (Some(key), Some(secret)) = (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY")) {
        let token = get("AWS_SESSION_TOKEN");
        loader =
            loader.credentials_provider(Credentials::new(key, secret, token, None, "environment"));
    }
    let config = loader.load().await;
    if config.region().is_none() {
        return Err(
            Error::usage("the region of the Glue catalog is not known").hint("set AWS_REGION")
        );
    }
    Ok(Client::new(&config))
}

/// The marker in the parameters of a table.
fn marker_of(table: &Table) -> Option<Marker> {
    Some(Marker {
        commit: parameter(table, COMMIT)?.parse().ok()?,
        run_id: parameter(table, RUN_ID)?.to_string(),
        source: parameter(table, SOURCE)?.to_string(),
    })
}

fn parameter<'a>(table: &'a Table, name: &str) -> Option<&'a str> {
    Some(table.parameters()?.get(name)?.as_str())
}

/// Whether a table in the catalog is as it should be.
fn is_same_table(found: &Table, wanted: &TableInput) -> bool {
    let storage = |storage: Option<&StorageDescriptor>| {
        let storage = storage?;
        let serde = storage.serde_info().and_then(SerDeInfo::serialization_library);
        let texts = [storage.location(), storage.input_format(), storage.output_format(), serde];
        Some((storage.columns().to_vec(), texts.map(|text| text.map(String::from))))
    };
    found.parameters() == wanted.parameters()
        && found.partition_keys() == wanted.partition_keys()
        && found.table_type() == wanted.table_type()
        && storage(found.storage_descriptor()) == storage(wanted.storage_descriptor())
}

fn input_format(format: Format) -> &'static str {
    match format {
        Format::Parquet => "org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat",
        Format::Delta => "org.apache.hadoop.mapred.SequenceFileInputFormat",
    }
}

/// The columns of a table in the catalog.
struct Columns {
    stored: Vec<Column>,
    partitions: Vec<Column>,
}

impl Columns {
    /// The columns of a table, with the comments of one that was found in the catalog.
    fn of(table: &RegisteredTable<'_>, found: Option<&Table>) -> Result<Self> {
        let of_storage = found.and_then(Table::storage_descriptor).map(StorageDescriptor::columns);
        let of_partitions = found.map(Table::partition_keys);
        let known = of_storage.into_iter().chain(of_partitions).flatten();
        let comments: HashMap<&str, &str> =
            known.filter_map(|column| Some((column.name(), column.comment()?))).collect();
        let mut names = BTreeSet::new();
        for (name, _) in &table.columns {
            if !names.insert(name.to_lowercase()) {
                return Err(Error::usage(format!(
                    "{} has two columns `{}`, which the catalog does not tell apart",
                    table.name,
                    name.to_lowercase()
                ))
                .hint("give them names that differ in more than capitals"));
            }
        }
        let column = |(name, data_type): &(String, DataType)| {
            let hive = hive_type(data_type).ok_or_else(|| {
                Error::usage(format!(
                    "the column `{name}` of {} is {data_type}, for which Hive has no type",
                    table.name
                ))
                .hint("cast it in the query")
            })?;
            let name = name.to_lowercase();
            let comment = comments.get(name.as_str()).map(ToString::to_string);
            let column = Column::builder().name(name).r#type(hive).set_comment(comment).build();
            column.map_err(|error| Error::internal("a column of the catalog").caused_by(error))
        };
        let is_stored = |(name, _): &&(String, DataType)| !table.partition_by.contains(name);
        let stored = table.columns.iter().filter(is_stored).map(column).collect::<Result<_>>()?;
        let partitions = table.partition_by.iter().map(|name| {
            let found = table.columns.iter().find(|(column, _)| column == name);
            column(found.ok_or_else(|| Error::internal(format!("the column `{name}` was lost")))?)
        });
        Ok(Columns { stored, partitions: partitions.collect::<Result<_>>()? })
    }

    fn storage(&self, table: &RegisteredTable<'_>, location: &str) -> StorageDescriptor {
        let (output, serde) = match table.format {
            Format::Parquet => (
                "org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat",
                "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe",
            ),
            Format::Delta => (
                "org.apache.hadoop.hive.ql.io.HiveSequenceFileOutputFormat",
                "org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe",
            ),
        };
        let serde = SerDeInfo::builder()
            .serialization_library(serde)
            .parameters("serialization.format", "1")
            .build();
        StorageDescriptor::builder()
            .set_columns(Some(self.stored.clone()))
            .location(location)
            .input_format(input_format(table.format))
            .output_format(output)
            .serde_info(serde)
            .build()
    }

    /// Whether they are those of a table in the catalog.
    fn are_those_of(&self, found: &Table) -> bool {
        let of = |columns: &[Column]| -> Vec<(String, Option<String>)> {
            columns.iter().map(|column| (column.name.clone(), column.r#type.clone())).collect()
        };
        let stored = found.storage_descriptor().map_or(&[][..], StorageDescriptor::columns);
        of(stored) == of(&self.stored)
    }
}

/// The properties by which Athena computes the partitions of a table
/// (<https://docs.aws.amazon.com/athena/latest/ug/partition-projection-supported-types.html>).
fn projection(
    table: &RegisteredTable<'_>,
    partitions: &Partitions,
    now: DateTime<Utc>,
) -> Result<Vec<(String, String)>> {
    // The folders have the names of the columns as they are, not in lower case.
    let folders = table.partition_by.iter().map(|name| {
        let segment = partition_segment(name, Some("v"));
        format!("{}${{{}}}/", segment.trim_end_matches('v'), name.to_lowercase())
    });
    let template = table.location.folder() + &folders.collect::<String>();
    let mut properties = vec![
        ("projection.enabled".to_string(), "true".to_string()),
        ("storage.location.template".to_string(), template),
    ];
    for (at, name) in table.partition_by.iter().enumerate() {
        let hidden = |why: &str| {
            Error::usage(format!(
                "partition projection would hide rows of {}: a value of `{name}` {why}",
                table.name
            ))
            .hint("write catalog.mode = \"partitions\", or leave such rows out in curated.sql")
        };
        let values: BTreeSet<&str> =
            partitions.keys().filter_map(|values| values.get(at)).map(String::as_str).collect();
        if values.contains(DEFAULT_PARTITION) {
            return Err(hidden("is null"));
        }
        let column = table.columns.iter().find(|(column, _)| column == name);
        let mut set = |property: &str, value: String| {
            properties.push((format!("projection.{}.{property}", name.to_lowercase()), value));
        };
        match column.map(|(_, data_type)| data_type) {
            Some(DataType::Date32) => {
                let days: Vec<NaiveDate> =
                    values.iter().filter_map(|value| value.parse().ok()).collect();
                if days.len() < values.len() {
                    return Err(hidden("is no day"));
                }
                let tomorrow = now.date_naive() + Days::new(1);
                let first = days.iter().min().copied().unwrap_or_default();
                let last = days.iter().max().filter(|last| **last > tomorrow);
                let last = last.map_or("NOW+1DAYS".to_string(), NaiveDate::to_string);
                set("type", "date".into());
                set("format", "yyyy-MM-dd".into());
                set("interval", "1".into());
                set("interval.unit", "DAYS".into());
                set("range", format!("{first},{last}"));
            }
            Some(data_type) if data_type.is_integer() => {
                let numbers: Vec<i64> =
                    values.iter().filter_map(|value| value.parse().ok()).collect();
                if numbers.len() < values.len() {
                    return Err(hidden("is too large"));
                }
                let first = numbers.iter().min().copied().unwrap_or_default();
                let last = numbers.iter().max().copied().unwrap_or_default();
                set("type", "integer".into());
                set("range", format!("{first},{last}"));
            }
            _ => {
                let is_escaped =
                    |value: &&str| partition_segment("v", Some(*value)) != format!("v={value}");
                if values.iter().any(|value| value.contains(',')) {
                    return Err(hidden("has a comma"));
                }
                if values.iter().any(is_escaped) {
                    return Err(hidden("is written in another way in the name of its folder"));
                }
                let all = values.into_iter().collect::<Vec<_>>().join(",");
                if all.len() > PARAMETER_BYTES_MAX {
                    return Err(hidden("is too much: there are too many of them"));
                }
                set("type", "enum".into());
                set("values", all);
            }
        }
    }
    Ok(properties)
}
