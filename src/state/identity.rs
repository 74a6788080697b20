//! The identity of a pipeline: settings that must not change while its state exists.

use std::collections::{BTreeMap, BTreeSet};

use chrono_tz::Tz;
use datafusion::sql::sqlparser::ast::{self, SetExpr, Statement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use serde::{Deserialize, Serialize};

use crate::config::{ALL_COLUMNS, Format, Keep, Pipeline, Sql};
use crate::state::versions::quoted;

/// The settings of a pipeline that must not change while its state exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    curated: String,
    #[serde(default = "parquet")]
    format: String,
    key: Vec<String>,
    keep: String,
    order_by: Vec<String>,
    commit_time: String,
    event_time: String,
    time_zone: String,
    #[serde(default = "utc")]
    day_zone: String,
    partition_by: Vec<String>,
    #[serde(default)]
    before_image_prefix: Option<String>,
    /// The operation column; `None` in states written before it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    op: Option<String>,
    /// Those of `raw.op_values`, if they are not I, U and D; `none` where changes have no operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    op_values: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delete_when: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    commit_time_unit: Option<String>,
    /// Where full loads are in the order, if they are not before all changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    full_load_at: Option<String>,
    /// The table whose changes are read from files of all tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    /// Where each change that alters the row counts, the columns that it must alter; `None` in states of histories in
    /// which each change makes a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    history_columns: Option<String>,
    /// The raw columns with masks, in lower case, and their masks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    masks: BTreeMap<String, String>,
    /// Hashes of the secrets of masks, by the settings that name their variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    mask_secrets: BTreeMap<String, String>,
    /// The columns that are said by where raw files are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    constants: Vec<String>,
    /// Their values in each raw location; more locations may come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
    curated_sql: String,
    /// The columns of the query, and the rest of it.
    #[serde(default)]
    query: Query,
}

/// How all columns of a history but its day are recorded.
const EACH_COLUMN: &str = "*";

/// The format in states written before `format` was recorded.
fn parquet() -> String {
    Format::Parquet.to_string()
}

/// The zone of days in states written before `day_zone` was recorded.
fn utc() -> String {
    Tz::UTC.to_string()
}

impl Identity {
    /// The zone of the days in the state.
    pub fn day_zone(&self) -> Tz {
        self.day_zone.parse().unwrap_or(Tz::UTC)
    }

    /// Whether the last key column of versions is a time.
    pub fn keeps_times(&self) -> bool {
        Keep::ALL.iter().any(|keep| keep.keeps_times() && self.keep == keep.to_string())
    }

    /// Whether only changes that alter the row make one.
    pub fn compares_rows(&self) -> bool {
        self.history_columns.is_some()
    }

    /// The same, of a table that has rows already: if each change made one, it still does. What is known of the secrets of
    /// masks stays known.
    pub fn of_table(mut self, earlier: Option<&Self>) -> Self {
        for (setting, hash) in earlier.iter().flat_map(|earlier| &earlier.mask_secrets) {
            self.mask_secrets.entry(setting.clone()).or_insert_with(|| hash.clone());
        }
        match earlier {
            Some(earlier) if !earlier.compares_rows() => Identity { history_columns: None, ..self },
            _ => self,
        }
    }

    /// Whether columns have other masks, or other secrets of them.
    pub fn masks_differently<'a>(
        &self,
        other: &Self,
        columns: impl Iterator<Item = &'a str> + Clone,
    ) -> bool {
        self.differences_of_masks(other, columns).contains(&true)
    }

    /// The partition columns of the curated table.
    pub fn partition_by(&self) -> &[String] {
        &self.partition_by
    }

    /// Whether it has a query, but for comments and spaces.
    pub fn has_query(&self, sql: &Sql) -> bool {
        self.curated_sql == sql.fingerprint()
    }

    /// A query with the columns of this one; `None` if they differ in more than these.
    pub fn query_with(&self, sql: &str) -> Option<String> {
        if self.query.is_default {
            let is_plain = Query::of(sql).rest == Query::of(ALL_COLUMNS).rest;
            return is_plain.then(|| ALL_COLUMNS.to_string());
        }
        let rest = &self.query.rest;
        let is_same = !rest.is_empty() && Query::of(sql).rest == *rest;
        let mut query = Query::parsed(sql).filter(|_| is_same)?;
        let columns = Query::parsed(&format!("SELECT {}", self.query.columns.join(", ")))?;
        let (SetExpr::Select(select), SetExpr::Select(columns)) = (&mut *query.body, *columns.body)
        else {
            return None;
        };
        select.projection = columns.projection;
        Some(query.to_string())
    }

    /// The URL of the curated table, and its format.
    pub fn table(&self) -> (&str, &str) {
        (&self.curated, &self.format)
    }

    /// The identity of a configured pipeline.
    pub fn of(pipeline: &Pipeline) -> Self {
        let raw = &pipeline.raw;
        // As it was recorded when there had to be a column: the first of the order.
        let first = || raw.order_by.first().cloned().unwrap_or_default();
        let commit_time = raw.commit_time.clone().unwrap_or_else(first);
        let (masks, mask_secrets) = raw.masks.identity();
        let (constants, sources) = raw.constants.identity();
        Identity {
            masks,
            mask_secrets,
            constants,
            sources,
            curated: pipeline.curated.url.to_string(),
            format: pipeline.curated.format.to_string(),
            key: pipeline.key.clone(),
            keep: pipeline.keep.to_string(),
            order_by: raw.order_by.clone(),
            event_time: raw.event_time.as_ref().unwrap_or(&commit_time).clone(),
            commit_time,
            time_zone: raw.time_zone.to_string(),
            day_zone: raw.day_zone.to_string(),
            partition_by: pipeline.curated.partition_by.clone(),
            before_image_prefix: raw.before_image_prefix.clone(),
            op: Some(raw.op.name.clone().unwrap_or_default()),
            op_values: match &raw.op.name {
                Some(_) => raw.op.values.identity(),
                None => Some("none".into()),
            },
            delete_when: raw.delete_when.clone(),
            commit_time_unit: raw.commit_time_unit.map(|unit| unit.name().to_string()),
            full_load_at: Some(raw.full_loads.at.name().to_string())
                .filter(|_| raw.full_loads.at.is_time()),
            table: raw.table.as_ref().map(ToString::to_string),
            history_columns: pipeline.keep.keeps_changes().then(|| {
                let named = pipeline.history_columns.iter().map(|name| quoted(name));
                let named = named.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
                let named = named.join(", ");
                if named.is_empty() { EACH_COLUMN.to_string() } else { named }
            }),
            curated_sql: pipeline.curated.sql.fingerprint(),
            query: if pipeline.curated.sql.is_default {
                Query { is_default: true, ..Query::default() }
            } else {
                Query::of(&pipeline.curated.sql.text)
            },
        }
    }

    /// The settings in which two identities differ. `raw` are the names of the raw columns so far: masks of others do not
    /// count.
    pub fn differences<'a>(
        &self,
        other: &Self,
        raw: impl Iterator<Item = &'a str> + Clone,
    ) -> Vec<&'static str> {
        let [masks, key, salt] = self.differences_of_masks(other, raw);
        let is = |keep: Keep| [&self.keep, &other.keep].map(|kept| *kept == keep.to_string());
        let are = |one: Keep, other: Keep| {
            is(one).iter().zip(is(other)).all(|(is_one, is_other)| *is_one || is_other)
        };
        let has_sources = !self.sources.is_empty() || !other.sources.is_empty();
        // The day of rows says it too.
        let differs = self.keep != other.keep;
        let (kept, differs) = if are(Keep::Latest, Keep::LatestAndDeleted) {
            ("keep_deleted", differs)
        } else if are(Keep::Latest, Keep::LatestAltered) {
            ("raw.kind", differs && self.event_time == other.event_time)
        } else {
            ("keep", differs)
        };
        [
            ("curated.url", self.curated != other.curated),
            ("curated.format", self.format != other.format),
            ("key", self.key != other.key),
            (kept, differs),
            ("history_columns", self.compares_other_columns(other)),
            ("raw.order_by", self.order_by != other.order_by),
            ("raw.commit_time", self.commit_time != other.commit_time),
            ("raw.event_time", self.event_time != other.event_time),
            ("raw.time_zone", self.time_zone != other.time_zone),
            ("raw.day_zone", self.day_zone != other.day_zone),
            ("curated.partition_by", self.partition_by != other.partition_by),
            ("raw.before_image_prefix", self.before_image_prefix != other.before_image_prefix),
            ("raw.op", self.op.is_some() && other.op.is_some() && self.op != other.op),
            ("raw.op_values", self.op_values != other.op_values),
            ("raw.delete_when", self.delete_when != other.delete_when),
            ("raw.commit_time_unit", self.commit_time_unit != other.commit_time_unit),
            ("raw.full_load_at", self.full_load_at != other.full_load_at),
            ("raw.table", self.table != other.table),
            ("raw.path_columns", !has_sources && self.constants != other.constants),
            (
                "raw.source",
                has_sources
                    && (self.constants != other.constants
                        || !other.sources.starts_with(&self.sources)),
            ),
            ("mask", masks),
            ("mask.key_env", key),
            ("mask.salt_env", salt),
            ("curated.sql", self.is_other_query(other)),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

impl Identity {
    /// Whether raw columns have other masks, other keys of `hmac`, and other salts of `sha256`.
    fn differences_of_masks<'a>(
        &self,
        other: &Self,
        raw: impl Iterator<Item = &'a str> + Clone,
    ) -> [bool; 3] {
        let is_raw = |masked: &&String| {
            raw.clone().any(|name| {
                let name = name.to_lowercase();
                let rest = name.strip_prefix(masked.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        let masked = || self.masks.keys().chain(other.masks.keys()).filter(is_raw);
        let differ = masked().any(|column| self.masks.get(column) != other.masks.get(column));
        let secret_differs = |kind: &str, setting: &str| {
            let secret = |of: &Self| of.mask_secrets.get(setting).cloned();
            let is_other = secret(self).zip(secret(other)).is_some_and(|(one, other)| one != other);
            is_other && masked().any(|column| self.masks.get(column).is_some_and(|it| it == kind))
        };
        [differ, secret_differs("hmac", "key_env"), secret_differs("sha256", "salt_env")]
    }

    /// Whether rows are compared by other columns. A history that was begun when each change made a row goes on like that.
    fn compares_other_columns(&self, other: &Self) -> bool {
        let columns = |one: &Self| one.history_columns.clone().unwrap_or(EACH_COLUMN.into());
        self.keep == other.keep && columns(self) != columns(other)
    }

    /// Whether existing rows are not rows of the other query. A query of a Delta table may add
    /// columns: they are null in existing rows. Where rows are compared, which changes have a row would depend on them.
    fn is_other_query(&self, other: &Self) -> bool {
        let is_grown = !self.compares_rows()
            && other.format == Format::Delta.to_string()
            && other.query.adds_to(&self.query);
        self.curated_sql != other.curated_sql && !is_grown
    }
}

/// A query, split into its columns and the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Query {
    /// The selected expressions.
    columns: Vec<String>,
    /// The rest of the query; empty if it could not be split.
    rest: String,
    /// Whether there is no query, and all columns are taken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_default: bool,
}

impl Query {
    fn parsed(sql: &str) -> Option<ast::Query> {
        let mut parsed = Parser::parse_sql(&GenericDialect {}, sql).ok()?.into_iter();
        match (parsed.next(), parsed.next()) {
            (Some(Statement::Query(query)), None) => Some(*query),
            _ => None,
        }
    }

    fn of(sql: &str) -> Self {
        let Some(mut query) = Query::parsed(sql) else { return Query::default() };
        let SetExpr::Select(select) = query.body.as_mut() else {
            return Query::default();
        };
        let columns = std::mem::take(&mut select.projection);
        Query {
            columns: columns.iter().map(ToString::to_string).collect(),
            rest: query.to_string(),
            is_default: false,
        }
    }

    /// Whether it equals `other` with columns added.
    fn adds_to(&self, other: &Self) -> bool {
        let has = |column: &String| self.columns.contains(column);
        !self.rest.is_empty() && self.rest == other.rest && other.columns.iter().all(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_how_rows_are_kept_is_named_where_it_differs() {
        let stored = r#"{"curated":"/c","key":["id"],"keep":"latest","order_by":["ts"],
            "commit_time":"ts","event_time":"ts","time_zone":"UTC","partition_by":[],
            "op":"Op","curated_sql":"x"}"#;
        let of = |keep: Keep, event_time: &str| {
            let identity: Identity = serde_json::from_str(stored).expect("an identity");
            Identity { keep: keep.to_string(), event_time: event_time.into(), ..identity }
        };
        let differences = |one: Keep, other: (Keep, &str)| {
            of(one, "ts").differences(&of(other.0, other.1), std::iter::empty()).join(", ")
        };
        assert_eq!(differences(Keep::LatestAltered, (Keep::LatestAltered, "ts")), "");
        assert_eq!(differences(Keep::Latest, (Keep::LatestAltered, "ts")), "raw.kind");
        assert_eq!(differences(Keep::LatestAltered, (Keep::Latest, "ts")), "raw.kind");
        assert_eq!(differences(Keep::LatestAltered, (Keep::Latest, "t")), "raw.event_time");
        assert_eq!(differences(Keep::LatestAndDeleted, (Keep::Latest, "ts")), "keep_deleted");
        assert_eq!(differences(Keep::LatestAltered, (Keep::LatestAndDeleted, "ts")), "keep");
        assert_eq!(differences(Keep::History, (Keep::Latest, "ts")), "keep");
    }

    #[test]
    fn a_history_that_was_begun_when_each_change_made_a_row_goes_on_like_that() {
        // As an earlier version wrote it.
        let stored = r#"{"curated":"/c","key":["id"],"keep":"history","order_by":["ts"],
            "commit_time":"ts","event_time":"ts","time_zone":"UTC","partition_by":[],
            "op":"Op","curated_sql":"x"}"#;
        let earlier: Identity = serde_json::from_str(stored).expect("an identity");
        let now = Identity { history_columns: Some(EACH_COLUMN.into()), ..earlier.clone() };
        assert!(!earlier.compares_rows() && now.compares_rows());
        assert_eq!(earlier.differences(&now, std::iter::empty()), Vec::<&str>::new());
        assert_eq!(now.clone().of_table(Some(&earlier)), earlier);
        assert_eq!(now.clone().of_table(None), now);
        assert_eq!(now.clone().of_table(Some(&now)), now);
    }
}
