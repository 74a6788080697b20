//! Finds the first key whose rows differ in a partition.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{ident, lit, try_cast};
use datafusion::prelude::{DataFrame, SessionContext};

use super::KeyDifference;
use crate::config::{Keep, Pipeline, VALID_FROM};
use crate::error::Result;
use crate::layout::partition_values;

/// Searches the keys of a partition that differs.
pub(super) struct Keys<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) columns: &'a [(String, DataType)],
    /// The column that is the day.
    pub(super) day: Option<&'a str>,
    pub(super) partition: &'a str,
}

impl Keys<'_> {
    /// The columns that identify a row, as indices: the key, under `latest-per-day` also the day;
    /// without a key all columns.
    fn key(&self) -> Vec<usize> {
        if self.pipeline.key.is_empty() {
            return (0..self.columns.len()).collect();
        }
        let index = |wanted: &str| self.columns.iter().position(|(name, _)| name == wanted);
        let mut key: Vec<usize> = self.pipeline.key.iter().filter_map(|name| index(name)).collect();
        if self.pipeline.keep == Keep::LatestPerDay
            && let Some(day) = self.day.and_then(index)
            && !key.contains(&day)
        {
            key.push(day);
        }
        key.extend(index(VALID_FROM).filter(|_| self.pipeline.keep == Keep::History));
        key
    }

    /// The rows of the partition.
    fn selected(&self, rows: DataFrame) -> Result<DataFrame> {
        let values: BTreeMap<String, Option<String>> = partition_values(self.partition).collect();
        let mut rows = rows;
        for part in &self.pipeline.curated.partition_by {
            let Some((_, kind)) = self.columns.iter().find(|(name, _)| name == part) else {
                continue;
            };
            let matches_value = match values.get(part).cloned().flatten() {
                Some(text) => ident(part).eq(lit(ScalarValue::try_from_string(text, kind)?)),
                None if kind.is_string() => ident(part).is_null().or(ident(part).eq(lit(""))),
                None => ident(part).is_null(),
            };
            rows = rows.filter(matches_value)?;
        }
        Ok(rows)
    }

    /// The first key, in key order, whose row is missing, unexpected or different.
    pub(super) async fn first_difference(
        &self,
        context: &SessionContext,
        expected: DataFrame,
        found: DataFrame,
    ) -> Result<Option<KeyDifference>> {
        // In these queries a column has its number as name: `c0`, `c1` and so on.
        for (name, rows) in [("expected", expected), ("found", found)] {
            let typed = self.columns.iter();
            let typed = typed.map(|(name, kind)| try_cast(ident(name), kind.clone()).alias(name));
            let rows = self.selected(rows.select(typed.collect::<Vec<_>>())?)?;
            let numbered = self.columns.iter().enumerate();
            let numbered =
                numbered.map(|(number, (name, _))| ident(name).alias(format!("c{number}")));
            let rows = rows.select(numbered.collect::<Vec<_>>())?;
            context.deregister_table(name)?;
            context.register_table(name, rows.into_view())?;
        }
        let key = self.key();
        match self.first_by_count(context, &key).await? {
            Some(difference) => Ok(Some(difference)),
            None => self.first_by_values(context, &key).await,
        }
    }

    /// The first key that has another number of rows in one of the tables. These are compared first: a
    /// key with two rows would join with itself.
    async fn first_by_count(
        &self,
        context: &SessionContext,
        key: &[usize],
    ) -> Result<Option<KeyDifference>> {
        let key_list = listed(key, |column| format!("c{column}"), ", ");
        let query = format!(
            "SELECT {key_list}, sum(expected_rows) AS expected, sum(found_rows) AS found FROM ( \
             SELECT {key_list}, count(*) AS expected_rows, CAST(0 AS BIGINT) AS found_rows \
             FROM expected GROUP BY {key_list} \
             UNION ALL SELECT {key_list}, CAST(0 AS BIGINT), count(*) \
             FROM found GROUP BY {key_list}) GROUP BY {key_list} \
             HAVING sum(expected_rows) <> sum(found_rows) ORDER BY {key_list} LIMIT 1"
        );
        let why = |row: &RecordBatch, at: usize| {
            let count = |name: &str| {
                let counts = row.column_by_name(name)?.as_primitive_opt::<Int64Type>()?;
                Some(counts.value(at))
            };
            match (count("expected"), count("found")) {
                (Some(0), _) => "it has a row that is not expected".into(),
                (_, Some(0)) => "its row is missing".into(),
                (Some(expected), Some(found)) => {
                    format!("it has {found} rows, and {expected} are expected")
                }
                _ => "its rows differ".into(),
            }
        };
        self.row(context, &query, key, why).await
    }

    /// The first key whose rows differ in a column, where each key has one row in both tables.
    async fn first_by_values(
        &self,
        context: &SessionContext,
        key: &[usize],
    ) -> Result<Option<KeyDifference>> {
        let other_columns: Vec<usize> =
            (0..self.columns.len()).filter(|column| !key.contains(column)).collect();
        if other_columns.is_empty() {
            return Ok(None);
        }
        let differs = |column| format!("(e.c{column} IS DISTINCT FROM f.c{column})");
        let of_expected = listed(key, |column| format!("e.c{column}"), ", ");
        let query = format!(
            "SELECT {of_expected}, {} FROM expected e JOIN found f ON {} WHERE {} \
             ORDER BY {of_expected} LIMIT 1",
            listed(&other_columns, |column| format!("{} AS d{column}", differs(column)), ", "),
            listed(
                key,
                |column| format!("(e.c{column} IS NOT DISTINCT FROM f.c{column})"),
                " AND "
            ),
            listed(&other_columns, differs, " OR "),
        );
        let why = |row: &RecordBatch, at: usize| {
            let differ = other_columns.iter().copied().filter(|column| {
                let flags = row.column_by_name(&format!("d{column}"));
                flags.is_some_and(|flags| flags.as_boolean().value(at))
            });
            let differ: Vec<usize> = differ.collect();
            let names = listed(&differ, |column| format!("`{}`", self.columns[column].0), ", ");
            format!("its row differs in {names}")
        };
        self.row(context, &query, key, why).await
    }

    /// The first row of a query as a difference; `why` describes it.
    async fn row(
        &self,
        context: &SessionContext,
        query: &str,
        key: &[usize],
        why: impl Fn(&RecordBatch, usize) -> String,
    ) -> Result<Option<KeyDifference>> {
        let batches = context.sql(query).await?.collect().await?;
        let Some(row) = batches.iter().find(|batch| batch.num_rows() > 0) else {
            return Ok(None);
        };
        let format = FormatOptions::default().with_null("null");
        let values = key.iter().enumerate().map(|(at, column)| {
            let shown = ArrayFormatter::try_new(row.column(at), &format)?;
            Ok((self.columns[*column].0.clone(), shown.value(0).try_to_string()?))
        });
        // Without a key, only row values would identify the row, and they must not be printed.
        let key = if self.pipeline.key.is_empty() {
            Vec::new()
        } else {
            values.collect::<Result<Vec<_>>>()?
        };
        Ok(Some(KeyDifference { partition: self.partition.into(), key, why: why(row, 0) }))
    }
}

/// Columns as a list in a query.
fn listed(columns: &[usize], form: impl Fn(usize) -> String, separator: &str) -> String {
    columns.iter().map(|column| form(*column)).collect::<Vec<_>>().join(separator)
}
