//! Prints a Hive-partitioned Parquet folder as a table: `show FOLDER`.
//!
//! Rows are sorted by the outermost partition column, which is the day in most tables, then by the
//! other columns from left to right.
//!
//! It reads the folder with DataFusion's own listing, as any reader would, without any part of
//! glueless.

use std::error::Error;

use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl,
};
use datafusion::prelude::{SessionContext, col, ident};
use std::sync::Arc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: show FOLDER")?;
    let context = SessionContext::new();
    let url = ListingTableUrl::parse(format!("{folder}/"))?;
    let options =
        ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
    // Partition columns are named by the folders, and shown as text.
    let names = options.infer_partitions(&context.state(), &url).await?;
    let outermost = names.first().cloned();
    let partitions = names.into_iter().map(|name| (name, DataType::Utf8)).collect();
    let options = options.with_table_partition_cols(partitions);
    let schema = options.infer_schema(&context.state(), &url).await?;
    let config = ListingTableConfig::new(url).with_listing_options(options).with_schema(schema);
    let frame = context.read_table(Arc::new(ListingTable::try_new(config)?))?;
    let columns = frame.schema().columns().into_iter().map(col);
    let order = outermost
        .map(ident)
        .into_iter()
        .chain(columns)
        .map(|column| column.sort(true, true))
        .collect();
    let batches = frame.sort(order)?.collect().await?;
    println!("{}", pretty_format_batches(&batches)?);
    Ok(())
}
