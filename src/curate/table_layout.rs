//! The columns, types and order of the curated table and of its versions.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::config::{DELETED_AT, Format, Keep, VALID_FROM};
use crate::curate::Curate;
use crate::curate::curated_sql::CuratedQuery;
use crate::curate::merge::{CommittedVersions, PLACE, PRESENT};
use crate::curate::validity::{self, EndNames};
use crate::error::{Error, Result};
use crate::state::contract::{TableContract, read_types};
use crate::state::versions::VersionsLayout;
use crate::table::rebuild::{EndColumns, TableRows};
use crate::table::sorter::Order;
use crate::types::column_type::widen;
use crate::types::day_counts::DayCounts;
use crate::types::key::canonical;

/// The columns of the curated table.
pub(super) struct TableColumns {
    pub(super) columns: Vec<Field>,
    /// The columns that are text only because their raw columns have only nulls so far.
    pub(super) untyped: Vec<String>,
    /// The columns that were such, and have a type now: all files of the table are written again.
    pub(super) retyped: Vec<String>,
}

impl Curate<'_> {
    /// The table's columns: those of the query, with types to which the published ones can be widened.
    pub(super) fn columns(
        &self,
        query: &CuratedQuery,
        contract: Option<&TableContract>,
    ) -> Result<TableColumns> {
        let file = &self.pipeline.curated.sql.file;
        self.check_own(query)?;
        let Some(contract) = contract else {
            let own = validity::fields(self.own_columns);
            return Ok(TableColumns {
                columns: query.columns.iter().cloned().chain(own).collect(),
                untyped: query.untyped.clone(),
                retyped: Vec::new(),
            });
        };
        let mut untyped = Vec::new();
        let mut retyped = Vec::new();
        let mut columns = Vec::new();
        for (name, published) in read_types(&contract.columns)? {
            let column = query.columns.iter().find(|column| *column.name() == name);
            let data_type = match column {
                // No file of the window has this raw column.
                None => published,
                Some(_) if query.untyped.contains(&name) => {
                    untyped.extend(contract.untyped.contains(&name).then(|| name.clone()));
                    published
                }
                Some(column) if *column.data_type() == published => published,
                // Only how they are kept in memory differs.
                Some(column)
                    if published.is_string() && column.data_type().is_string()
                        || published.is_binary() && column.data_type().is_binary() =>
                {
                    published
                }
                Some(column) => {
                    if contract.untyped.contains(&name) {
                        retyped.push(name.clone());
                        columns.push(column.clone());
                        continue;
                    }
                    let found = column.data_type();
                    let is_partition = self.pipeline.curated.partition_by.contains(&name);
                    // Files of a Delta table that are not replaced would keep the old type.
                    let is_delta = self.pipeline.curated.format == Format::Delta;
                    let widened = widen(&published, found).filter(|_| !is_partition && !is_delta);
                    widened.ok_or_else(|| {
                        Error::data(format!(
                            "{file}: the column `{name}` was published as {published} and is {found} now"
                        ))
                        .hint(
                            "cast it in the query to one type that fits all values, and rebuild the \
                             tables: glueless rebuild",
                        )
                    })?
                }
            };
            columns.push(Field::new(name, data_type, true));
        }
        // The table's own columns stay the last ones.
        let own = columns.split_off(columns.len().saturating_sub(self.own_columns.len()));
        for column in &query.columns {
            if !columns.iter().any(|known| known.name() == column.name()) {
                untyped.extend(query.untyped.iter().find(|name| *name == column.name()).cloned());
                columns.push(column.clone());
            }
        }
        columns.extend(own);
        Ok(TableColumns { columns, untyped, retyped })
    }

    /// Checks that the query has no column with a name that the table has of its own.
    pub(super) fn check_own(&self, query: &CuratedQuery) -> Result<()> {
        let file = &self.pipeline.curated.sql.file;
        let is_own = |column: &&Field| {
            self.own_columns.iter().any(|own| own.eq_ignore_ascii_case(column.name()))
        };
        if let Some(column) = query.columns.iter().find(is_own) {
            let name = column.name();
            let message = format!(
                "{file} returns the column `{name}`, and the table has one of that name of its own"
            );
            return Err(Error::usage(message).hint("give it another name"));
        }
        Ok(())
    }

    /// The layout of the versions, which must be the same as in earlier runs.
    pub(super) fn versions_layout(
        &self,
        columns: &[Field],
        day: Option<&str>,
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
        let keep = self.pipeline.keep;
        let instants = if keep.keeps_changes() { VALID_FROM } else { DELETED_AT };
        let instants = keep.keeps_times().then(|| Ok((instants.to_string(), DataType::Int64)));
        let partitions = self.pipeline.curated.partition_by.iter().map(|name| {
            let field = columns.iter().find(|field| field.name() == name);
            let data_type = canonical(field.ok_or_else(|| lost(name))?.data_type());
            Ok((name.clone(), data_type))
        });
        let layout = VersionsLayout {
            keys: keys.chain(instants).collect::<Result<_>>()?,
            partitions: partitions.collect::<Result<_>>()?,
            day: self
                .pipeline
                .curated
                .partition_by
                .iter()
                .position(|name| Some(name.as_str()) == day),
            packed: self.changes.is_packed(),
            has_instants: keep.keeps_times(),
            has_row_hashes: self.compares_rows,
            unrecorded: self.unrecorded.to_vec(),
        };
        if let Some(contract) = contract {
            self.check_layout(&layout, contract)?;
        }
        Ok(layout)
    }

    /// Checks that the versions have the layout of earlier runs.
    fn check_layout(&self, layout: &VersionsLayout, contract: &TableContract) -> Result<()> {
        let mut known = contract.layout()?;
        for ((name, known), (_, found)) in known.keys.iter_mut().zip(&layout.keys) {
            // No version has a key without a type.
            if contract.is_untyped(name) {
                *known = found.clone();
            }
        }
        let orders = self.changes.order_kinds();
        if contract.orders.is_empty() {
            // All versions are of full loads without order columns: none has a value of the order.
            known.packed = layout.packed;
        }
        let is_other = |(name, kind): &&(String, String)| {
            let mut known = contract.orders.iter();
            known.any(|(known, before)| known == name && before != kind)
        };
        for ((name, known), (_, found)) in known.partitions.iter_mut().zip(&layout.partitions) {
            // All versions have null in it, which every type has.
            if contract.untyped.contains(name) {
                *known = found.clone();
            }
        }
        if let Some((name, kind)) = orders.iter().find(is_other) {
            return Err(Error::data(format!(
                "the order column `{name}` is a {kind} now, and had another type in earlier runs"
            ))
            .hint(ONE_TYPE));
        }
        if let Some(((name, found), (_, before))) =
            layout.keys.iter().zip(&known.keys).find(|(found, before)| found != before)
        {
            return Err(Error::data(format!(
                "the key column `{name}` is {found} now, and was {before} in earlier runs"
            ))
            .hint(ONE_TYPE));
        }
        if known != *layout {
            return Err(Error::data("the versions have another layout")
                .hint("rebuild the tables from raw: glueless rebuild"));
        }
        Ok(())
    }

    /// The order of the table's rows, and the columns of new rows: those of the table, then the flag
    /// [`PRESENT`] and the [`PLACE`]. Rows are grouped by partition; in a partition tombstones come
    /// first, then rows by the columns `curated.sort_by`, if there are any, and by their place.
    pub(super) fn rows(
        &self,
        columns: &[Field],
        day: Option<&str>,
    ) -> Result<(TableRows, SchemaRef)> {
        let mut fields = columns.to_vec();
        fields.push(Field::new(PRESENT, DataType::Boolean, false));
        fields.push(Field::new(PLACE, DataType::UInt64, false));
        let (present, place) = (columns.len(), columns.len() + 1);
        let schema = Arc::new(Schema::new(fields));
        let index = |name: &String| {
            schema.index_of(name).map_err(|_| {
                Error::usage(format!("the table does not have the column `{name}` yet"))
                    .hint("rebuild it: glueless rebuild")
            })
        };
        let parts = &self.pipeline.curated.partition_by;
        let partition_by = parts.iter().map(index).collect::<Result<Vec<_>>>()?;
        let stored: Vec<usize> = (0..place).filter(|at| !partition_by.contains(at)).collect();
        // A day of `latest-per-day` is part of the key.
        let day = day.filter(|_| self.pipeline.keep == Keep::LatestPerDay).map(String::from);
        let mut key = self.pipeline.key.clone();
        key.extend(day.filter(|day| !key.contains(day)));
        let is_history = self.pipeline.keep == Keep::History;
        key.extend(is_history.then(|| VALID_FROM.to_string()));
        let stored_places = |names: &[String]| -> Result<Vec<usize>> {
            let at = names.iter().map(index).collect::<Result<Vec<usize>>>()?;
            Ok(at.iter().filter_map(|at| stored.iter().position(|one| one == at)).collect())
        };
        let (key, sort_by) = (stored_places(&key)?, stored_places(&self.pipeline.curated.sort_by)?);
        let mut order_by: Vec<usize> = sort_by.iter().map(|at| stored[*at]).collect();
        if !order_by.is_empty() {
            order_by.insert(0, present);
        }
        // The place of a tombstone is the first.
        order_by.push(place);
        let ends = match validity::end_columns(self.own_columns) {
            None => None,
            Some(EndNames { end, flag, flag_of_ended, by }) => {
                let flag = stored_places(&[flag.into()])?.first().copied();
                let lost = || Error::internal("the column with the ends of rows is not stored");
                let end = stored_places(&[end.into()])?.first().copied().ok_or_else(lost)?;
                let by = by.map(|by| stored_places(&[by.into()])).transpose()?;
                let by = by.and_then(|by| by.first().copied());
                Some(EndColumns { end, flag, flag_of_ended, by })
            }
        };
        let order = Order::new(Arc::clone(&schema), partition_by, order_by, stored)?;
        Ok((TableRows { order: Arc::new(order), key, sort_by, ends }, schema))
    }

    /// The committed versions to merge with the winners. Files of the winners' days are rewritten, and
    /// so are small files once there are too many.
    pub(super) fn versions_to_merge(&self, has_new_floors: bool) -> Vec<CommittedVersions> {
        let Some(ledger) = self.earlier else {
            return Vec::new();
        };
        let is_keyless = self.changes.is_keyless();
        let none = DayCounts::default();
        let days = |path: &String| ledger.versions.get(path).unwrap_or(&none);
        let is_small = |path: &String| days(path).rows() < SMALL_ROWS;
        let small = self.committed_versions.iter().filter(|(path, _)| is_small(path));
        let too_many = small.count() > SMALL_FILES_MAX.max(SMALL_RUNS_MAX * self.threads);
        let committed = self.committed_versions.iter().map(|(path, bytes)| {
            // Without a key no version replaces another.
            let touched = !is_keyless && days(path).overlaps(&self.folded.days);
            CommittedVersions {
                rewritten: touched || (too_many && is_small(path)),
                rows: days(path).rows(),
                path: path.clone(),
                bytes: *bytes,
            }
        });
        let reads_all =
            self.pipeline.keep != Keep::LatestPerDay || self.keeps_balance() || has_new_floors;
        let is_looked_up = reads_all && !is_keyless;
        let is_read = |file: &CommittedVersions| file.rewritten || is_looked_up;
        committed.filter(is_read).collect()
    }
}

/// Files of versions with fewer rows are combined once there are many.
pub(super) const SMALL_ROWS: u64 = 50_000;

/// The most small files of versions before they are combined.
pub(super) const SMALL_FILES_MAX: usize = 16;

/// The most small files of versions per thread; the greater of both limits applies.
pub(super) const SMALL_RUNS_MAX: usize = 4;

/// The hint for a key or order column whose type differs from earlier runs.
pub(super) const ONE_TYPE: &str = "declare one type for it in `[raw.columns]` that fits all values, and rebuild the \
                        tables: glueless rebuild";
