//! Finds the first key whose rows differ in a partition.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{ident, lit, try_cast};
use datafusion::prelude::{DataFrame, SessionContext};

use super::KeyDifference;
use crate::changes::EVENT_DT;
use crate::config::{Keep, Pipeline};
use crate::error::Result;
use crate::layout::partition_values;

/// Searches the keys of a partition that differs.
pub(super) struct Keys<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) columns: &'a [(String, DataType)],
    pub(super) partition: &'a str,
}

impl Keys<'_> {
    /// The columns that identify a row: the key, under `latest-per-day` also the day; without a key
    /// all columns.
    fn key(&self) -> Vec<&str> {
        let all = self.columns.iter().map(|(name, _)| name.as_str());
        if self.pipeline.key.is_empty() {
            return all.collect();
        }
        let mut key: Vec<&str> = self.pipeline.key.iter().map(String::as_str).collect();
        let has_day = self.columns.iter().any(|(name, _)| name == EVENT_DT);
        if self.pipeline.keep == Keep::LatestPerDay && has_day && !key.contains(&EVENT_DT) {
            key.push(EVENT_DT);
        }
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
                None if matches!(
                    kind,
                    DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8
                ) =>
                {
                    ident(part).is_null().or(ident(part).eq(lit("")))
                }
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
        for (name, rows) in [("expected", expected), ("found", found)] {
            let columns = self
                .columns
                .iter()
                .map(|(name, kind)| try_cast(ident(name), kind.clone()).alias(name));
            let rows = rows.select(columns.collect::<Vec<_>>())?;
            context.deregister_table(name)?;
            context.register_table(name, self.selected(rows)?.into_view())?;
        }
        let keys = KeyNames::new(&self.key());
        match self.first_by_count(context, &keys).await? {
            Some(difference) => Ok(Some(difference)),
            None => self.first_by_values(context, &keys).await,
        }
    }

    /// The first key that has another number of rows in one of the tables. These are compared first: a
    /// key with two rows would join with itself.
    async fn first_by_count(
        &self,
        context: &SessionContext,
        keys: &KeyNames,
    ) -> Result<Option<KeyDifference>> {
        let list = keys.quoted.join(", ");
        let counted = |side: &str| {
            format!("SELECT {list}, count(*) AS \"rows of it\" FROM {side} GROUP BY {list}")
        };
        let counts = format!(
            "SELECT {}, \"rows of it\" AS expected_rows, CAST(0 AS BIGINT) AS found_rows FROM \
             ({}) e \
             UNION ALL SELECT {}, CAST(0 AS BIGINT), \"rows of it\" FROM ({}) f",
            keys.numbered_of("e"),
            counted("expected"),
            keys.numbered_of("f"),
            counted("found"),
        );
        let numbered = keys.numbered();
        let query = format!(
            "SELECT {numbered}, sum(expected_rows) AS expected, sum(found_rows) AS found \
             FROM ({counts}) GROUP BY {numbered} \
             HAVING sum(expected_rows) <> sum(found_rows) ORDER BY {numbered} LIMIT 1"
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
        self.row(context, &query, &self.key(), why).await
    }

    /// The first key whose rows differ in a column, where each key has one row in both tables.
    async fn first_by_values(
        &self,
        context: &SessionContext,
        keys: &KeyNames,
    ) -> Result<Option<KeyDifference>> {
        let key = self.key();
        let names = self.columns.iter().map(|(name, _)| name);
        let other_columns: Vec<&String> =
            names.filter(|name| !key.contains(&name.as_str())).collect();
        if other_columns.is_empty() {
            return Ok(None);
        }
        let differs: Vec<String> = other_columns
            .iter()
            .map(|name| format!("(e.{0} IS DISTINCT FROM f.{0})", quoted(name)))
            .collect();
        let flags = differs.iter().enumerate().map(|(at, differs)| format!("{differs} AS d{at}"));
        let query = format!(
            "SELECT {}, {} FROM expected e JOIN found f ON {} WHERE {} ORDER BY {} LIMIT 1",
            keys.numbered_of("e"),
            flags.collect::<Vec<_>>().join(", "),
            keys.same(),
            differs.join(" OR "),
            keys.numbered()
        );
        let why = |row: &RecordBatch, at: usize| {
            let differ = other_columns.iter().enumerate().filter(|(number, _)| {
                let flags = row.column_by_name(&format!("d{number}"));
                flags.is_some_and(|flags| flags.as_boolean().value(at))
            });
            let names: Vec<String> = differ.map(|(_, name)| format!("`{name}`")).collect();
            format!("its row differs in {}", names.join(", "))
        };
        self.row(context, &query, &key, why).await
    }

    /// The first row of a query as a difference; `why` describes it.
    async fn row(
        &self,
        context: &SessionContext,
        query: &str,
        key: &[&str],
        why: impl Fn(&RecordBatch, usize) -> String,
    ) -> Result<Option<KeyDifference>> {
        let batches = context.sql(query).await?.collect().await?;
        let Some(row) = batches.iter().find(|batch| batch.num_rows() > 0) else {
            return Ok(None);
        };
        let format = FormatOptions::default().with_null("null");
        let values = key.iter().enumerate().map(|(at, name)| {
            let column = row.column(at);
            let shown = ArrayFormatter::try_new(column, &format)?;
            Ok((name.to_string(), shown.value(0).try_to_string()?))
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

/// A column's name in a query.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The columns of a key in queries that compare the tables `expected` (e) and `found` (f).
struct KeyNames {
    quoted: Vec<String>,
}

impl KeyNames {
    fn new(key: &[&str]) -> Self {
        KeyNames { quoted: key.iter().map(|name| quoted(name)).collect() }
    }

    /// The columns of one side, as k0, k1 and so on.
    fn numbered_of(&self, side: &str) -> String {
        let as_numbered = |(at, name): (usize, &String)| format!("{side}.{name} AS k{at}");
        self.quoted.iter().enumerate().map(as_numbered).collect::<Vec<_>>().join(", ")
    }

    fn numbered(&self) -> String {
        (0..self.quoted.len()).map(|at| format!("k{at}")).collect::<Vec<_>>().join(", ")
    }

    /// The condition that both sides have the same key.
    fn same(&self) -> String {
        let is_same = |name: &String| format!("(e.{name} IS NOT DISTINCT FROM f.{name})");
        self.quoted.iter().map(is_same).collect::<Vec<_>>().join(" AND ")
    }
}
