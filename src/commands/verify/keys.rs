//! Finds the first key whose rows differ in a partition.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{ident, lit, try_cast};
use datafusion::prelude::{DataFrame, SessionContext};

use super::KeyDifference;
use crate::config::{Keep, Pipeline};
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
        // In these queries a column has its number as name: `c0`, `c1` and so on.
        for (name, rows) in [("expected", expected), ("found", found)] {
            let columns = self.columns.iter();
            let columns =
                columns.map(|(name, kind)| try_cast(ident(name), kind.clone()).alias(name));
            let rows = rows.select(columns.collect::<Vec<_>>())?;
            let columns = self.columns.iter().enumerate();
            let numbered =
                columns.map(|(number, (name, _))| ident(name).alias(format!("c{number}")));
            let rows = self.selected(rows)?.select(numbered.collect::<Vec<_>>())?;
            context.deregister_table(name)?;
            context.register_table(name, rows.into_view())?;
        }
        let key = self.key();
        let listed: Vec<String> = key.iter().map(|number| format!("c{number}")).collect();
        let counted = |side: &str| {
            let key = listed.join(", ");
            format!("SELECT {key}, count(*) AS rows_of_it FROM {side} GROUP BY {key}")
        };
        let shown = |side: &str| {
            let columns =
                listed.iter().enumerate().map(|(at, name)| format!("{side}.{name} AS k{at}"));
            columns.collect::<Vec<_>>().join(", ")
        };
        let same = listed.iter().map(|name| format!("(e.{name} IS NOT DISTINCT FROM f.{name})"));
        let same = same.collect::<Vec<_>>().join(" AND ");
        let keys: Vec<String> = (0..key.len()).map(|at| format!("k{at}")).collect();
        // Counts are compared first: a key with two rows would join with itself.
        let counts = format!(
            "SELECT {}, rows_of_it AS expected_rows, CAST(0 AS BIGINT) AS found_rows FROM \
             ({}) e \
             UNION ALL SELECT {}, CAST(0 AS BIGINT), rows_of_it FROM ({}) f",
            shown("e"),
            counted("expected"),
            shown("f"),
            counted("found"),
        );
        let keys = keys.join(", ");
        let by_count = format!(
            "SELECT {keys}, sum(expected_rows) AS expected, sum(found_rows) AS found FROM ({counts}) \
             GROUP BY {keys} HAVING sum(expected_rows) <> sum(found_rows) ORDER BY {keys} LIMIT 1"
        );
        let mut difference = self
            .row(context, &by_count, &key, |row, at| {
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
            })
            .await?;
        let other_columns: Vec<usize> =
            (0..self.columns.len()).filter(|number| !key.contains(number)).collect();
        if difference.is_none() && !other_columns.is_empty() {
            let differs: Vec<String> = other_columns
                .iter()
                .map(|number| format!("(e.c{number} IS DISTINCT FROM f.c{number})"))
                .collect();
            let flags =
                differs.iter().enumerate().map(|(at, differs)| format!("{differs} AS d{at}"));
            let by_values = format!(
                "SELECT {}, {} FROM expected e JOIN found f ON {same} WHERE {} ORDER BY {keys} LIMIT 1",
                shown("e"),
                flags.collect::<Vec<_>>().join(", "),
                differs.join(" OR ")
            );
            difference = self
                .row(context, &by_values, &key, |row, at| {
                    let differ = other_columns.iter().enumerate().filter(|(number, _)| {
                        let flags = row.column_by_name(&format!("d{number}"));
                        flags.is_some_and(|flags| flags.as_boolean().value(at))
                    });
                    let names = differ.map(|(_, column)| format!("`{}`", self.columns[*column].0));
                    let names: Vec<String> = names.collect();
                    format!("its row differs in {}", names.join(", "))
                })
                .await?;
        }
        Ok(difference)
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
        let values = key.iter().enumerate().map(|(at, number)| {
            let column = row.column(at);
            let shown = ArrayFormatter::try_new(column, &format)?;
            Ok((self.columns[*number].0.clone(), shown.value(0).try_to_string()?))
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
