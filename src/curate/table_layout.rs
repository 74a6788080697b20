//! The columns, types and order of the curated table and of its versions.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::changes::EVENT_DT;
use crate::config::{Format, Keep};
use crate::curate::Curate;
use crate::curate::curated_sql::CuratedQuery;
use crate::curate::merge::{PRESENT, StoredVersions};
use crate::error::{Error, Result};
use crate::state::contract::{TableContract, read_types};
use crate::state::versions::VersionsLayout;
use crate::table::sorter::Order;
use crate::types::column_type::widen;
use crate::types::day_counts::DayCounts;
use crate::types::key::canonical;

impl Curate<'_> {
    /// The table's columns: those of the query, in types that what was published widens to.
    pub(super) fn columns(
        &self,
        query: &CuratedQuery,
        contract: Option<&TableContract>,
    ) -> Result<Vec<Field>> {
        let Some(contract) = contract else {
            return Ok(query.columns.clone());
        };
        let file = &self.pipeline.curated.sql.file;
        let mut columns = Vec::new();
        for (name, published) in read_types(&contract.columns)? {
            let column = query.columns.iter().find(|column| *column.name() == name);
            let data_type = match column {
                // A raw column that no file of the window has.
                None => published,
                Some(column) if *column.data_type() == published => published,
                Some(column) => {
                    let found = column.data_type();
                    let is_partition = self.pipeline.curated.partition_by.contains(&name);
                    // Files of a Delta table that stay would have another type than the table.
                    let is_delta = self.pipeline.curated.format == Format::Delta;
                    let widened = widen(&published, found);
                    let widened = widened.filter(|_| !is_partition && !is_delta);
                    widened.ok_or_else(|| {
                        Error::data(format!(
                            "{file}: the column `{name}` was published as {published} and is {found} now"
                        ))
                        .hint("cast it in the query, or make the tables again: glueless rebuild")
                    })?
                }
            };
            columns.push(Field::new(name, data_type, true));
        }
        for column in &query.columns {
            if !columns.iter().any(|known| known.name() == column.name()) {
                columns.push(column.clone());
            }
        }
        Ok(columns)
    }

    pub(super) fn versions_layout(
        &self,
        columns: &[Field],
        contract: Option<&TableContract>,
    ) -> Result<VersionsLayout> {
        let lost = |name: &String| Error::internal(format!("the column `{name}` was lost"));
        let raw = self.changes.raw_schema();
        let keys = self.pipeline.key.iter().map(|name| {
            let column = self.changes.raw_column(name).ok_or_else(|| lost(name))?;
            let data_type = raw.field(column).data_type();
            if data_type.is_nested()
                || matches!(data_type, DataType::Time32(_) | DataType::Time64(_))
            {
                return Err(Error::usage(format!(
                    "the key column `{name}` is {data_type}, which cannot be a key"
                ))
                .hint("a key is text, binary, a number, a boolean, a date or a timestamp"));
            }
            Ok((name.clone(), canonical(data_type)))
        });
        let partitions = self.pipeline.curated.partition_by.iter().map(|name| {
            let field = columns.iter().find(|field| field.name() == name);
            let data_type = canonical(field.ok_or_else(|| lost(name))?.data_type());
            Ok((name.clone(), data_type))
        });
        let layout = VersionsLayout {
            keys: keys.collect::<Result<_>>()?,
            partitions: partitions.collect::<Result<_>>()?,
            packed: self.changes.is_packed(),
        };
        let Some(contract) = contract else {
            return Ok(layout);
        };
        let known = contract.layout()?;
        let orders = self.changes.order_kinds();
        let is_other = |(name, kind): &&(String, String)| {
            let mut known = contract.orders.iter();
            known.any(|(known, before)| known == name && before != kind)
        };
        if let Some((name, kind)) = orders.iter().find(is_other) {
            return Err(Error::data(format!(
                "the order column `{name}` is a {kind} now, and was something else in earlier runs"
            ))
            .hint(ONE_TYPE));
        }
        if let Some(((name, found), (_, before))) = layout
            .keys
            .iter()
            .zip(&known.keys)
            .find(|(found, before)| found != before)
        {
            return Err(Error::data(format!(
                "the key column `{name}` is {found} now, and was {before} in earlier runs"
            ))
            .hint(ONE_TYPE));
        }
        match known == layout {
            true => Ok(layout),
            false => Err(Error::data("the versions are of another layout")
                .hint("make the tables again from raw: glueless rebuild")),
        }
    }

    /// The table's rows by partition and key, under `latest-per-day` also by day, without a key by
    /// all columns; last the flag of a row that is there. Returns the order and the columns it takes.
    pub(super) fn order(&self, columns: &[Field]) -> Result<(Arc<Order>, SchemaRef)> {
        let mut fields = columns.to_vec();
        fields.push(Field::new(PRESENT, DataType::Boolean, false));
        let schema = Arc::new(Schema::new(fields));
        let place = |name: &str| Ok(schema.index_of(name)?);
        let parts = &self.pipeline.curated.partition_by;
        let is_stored = |name: &&str| !parts.iter().any(|part| part == name);
        let keys = self.pipeline.key.iter().map(String::as_str);
        let day = (self.pipeline.keep == Keep::LatestPerDay).then_some(EVENT_DT);
        let mut sort_by = match self.changes.is_keyless() {
            // Rows that are equal in all columns can stand for each other.
            true => {
                let names = columns.iter().map(|column| column.name().as_str());
                names
                    .filter(is_stored)
                    .map(place)
                    .collect::<Result<Vec<_>>>()?
            }
            false => keys
                .filter(is_stored)
                .chain(day.filter(is_stored))
                .map(place)
                .collect::<Result<Vec<_>>>()?,
        };
        sort_by.push(columns.len());
        let partition_by = parts
            .iter()
            .map(|part| place(part))
            .collect::<Result<Vec<_>>>()?;
        let stored = (0..schema.fields().len())
            .filter(|column| !partition_by.contains(column))
            .collect();
        let order = Order::new(Arc::clone(&schema), partition_by, sort_by, stored)?;
        Ok((Arc::new(order), schema))
    }

    /// The versions that the winners must meet. Files of their days are written again, and so are
    /// small ones once there are too many.
    pub(super) fn stored_versions(&self) -> Vec<StoredVersions> {
        let Some(ledger) = self.earlier else {
            return Vec::new();
        };
        let is_keyless = self.changes.is_keyless();
        let none = DayCounts::default();
        let days = |path: &String| ledger.versions.get(path).unwrap_or(&none);
        let is_small = |path: &String| days(path).rows() < SMALL_ROWS;
        let small = self.stored.iter().filter(|(path, _)| is_small(path));
        let too_many = small.count() > SMALL_FILES_MAX.max(SMALL_RUNS_MAX * self.threads);
        let stored = self.stored.iter().map(|(path, bytes)| {
            // Without a key no version meets another.
            let touched = !is_keyless && days(path).overlaps(&self.folded.days);
            StoredVersions {
                rewritten: touched || (too_many && is_small(path)),
                rows: days(path).rows(),
                path: path.clone(),
                bytes: *bytes,
            }
        });
        let is_looked_up = self.pipeline.keep == Keep::Latest && !is_keyless;
        let is_met = |file: &StoredVersions| file.rewritten || is_looked_up;
        stored.filter(is_met).collect()
    }
}

/// A file with versions that has fewer rows is put together with others once there are many.
pub(super) const SMALL_ROWS: u64 = 50_000;

/// So many small files with versions may stand.
pub(super) const SMALL_FILES_MAX: usize = 16;

/// More of them may stand where each run makes more: one per thread.
pub(super) const SMALL_RUNS_MAX: usize = 4;

/// The way out where a column that is remembered has become something else.
pub(super) const ONE_TYPE: &str = "give it one type in `[raw.columns]`, if all values can take it, and make the \
                        tables again: glueless rebuild";
