//! The default pipeline of a lab, and how a test changes it.

use toml::{Table, Value};

use super::lab::{Lab, Place};

/// The default pipeline. `{base}` stands for the URL of the lab.
const PIPELINE: &str = r#"
name = "lab"
key = ["id"]
[raw]
url = "{base}/raw"
window_by = "name"
order_by = ["ts"]
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt", "cat"]
"#;

/// The default `curated.sql`: the columns that [`Lab::put_changes`] writes.
const CURATED: &str = "SELECT id, cat, v, event_dt FROM latest";

/// An aggregate: how many rows each day has that were not deleted.
pub const COUNT_PER_DAY: &str = "SELECT event_dt AS dt, COUNT(*) AS n FROM history
WHERE NOT deleted AND event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

/// An aggregate: how many rows of the curated table each day has.
pub const ROWS_PER_DAY: &str = "SELECT event_dt AS dt, COUNT(*) AS n FROM curated
WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

/// An aggregate: what enters and exits on each day.
pub const FLOWS: &str = "SELECT event_dt AS dt, cat, entered, exited FROM balance
WHERE event_dt >= $start_date AND event_dt < $end_date";

/// A running aggregate: how many keys were alive at the end of each day.
pub fn count_of_each_day_so_far(key: &str) -> String {
    format!(
        "WITH days AS (SELECT UNNEST(RANGE(CAST($start_date AS DATE), CAST($end_date AS DATE), INTERVAL '1 day')) AS day),
seen AS (SELECT CAST(days.day AS DATE) AS dt, h.*, ROW_NUMBER() OVER (PARTITION BY days.day, {key} ORDER BY seq DESC) AS place
         FROM days JOIN history h ON h.event_dt <= days.day)
SELECT dt, COUNT(*) AS n FROM seen WHERE place = 1 AND NOT deleted GROUP BY dt"
    )
}

/// Makes labs. Every setting has a default: see [`PIPELINE`] and [`CURATED`].
#[derive(Clone, Debug)]
pub struct LabBuilder {
    place: Place,
    pipeline: Table,
    queries: Vec<(String, String)>,
}

impl Lab {
    /// The default lab, in a local folder.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            place: Place::Local,
            pipeline: PIPELINE.parse().expect("TOML"),
            queries: vec![("curated.sql".into(), CURATED.into())],
        }
    }
}

/// The format of a Delta table with deletion vectors.
pub const DELETION_VECTORS: &str = "delta with deletion vectors";

impl LabBuilder {
    /// Where the lab is.
    pub fn place(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// Sets a key of `pipeline.toml`, such as `raw.event_time`. `{base}` in a text stands for the
    /// URL of the lab.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let (sections, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.pipeline;
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            let empty = || Value::Table(Table::new());
            let entry = table.entry(section).or_insert_with(empty);
            table = entry.as_table_mut().expect("a section");
        }
        table.insert(name.into(), value.into());
        self
    }

    /// Leaves a key of a section out.
    pub fn unset(mut self, key: &str) -> Self {
        let (section, name) = key.split_once('.').expect("a section and a key");
        let section = self.pipeline.get_mut(section).and_then(Value::as_table_mut);
        section.expect("a section").remove(name);
        self
    }

    /// Sets `keep`.
    pub fn keep(self, keep: &str) -> Self {
        self.set("keep", keep)
    }

    /// Sets `raw.window_by`.
    pub fn window_by(self, window_by: &str) -> Self {
        self.set("raw.window_by", window_by)
    }

    /// Sets `[raw.columns]`: names and types, in the order of the columns.
    pub fn raw_columns(self, columns: &[(&str, &str)]) -> Self {
        let columns = columns.iter().map(|(name, kind)| (name.to_string(), Value::from(*kind)));
        self.set("raw.columns", Value::Table(columns.collect()))
    }

    /// Sets `curated.format`.
    pub fn format(self, format: &str) -> Self {
        if format == DELETION_VECTORS {
            let delta = self.set("curated.format", "delta");
            // Files need some rows to stay when one of them is deleted.
            return delta.set("curated.deletion_vectors", true).partition_by(&["cat"]);
        }
        self.set("curated.format", format)
    }

    /// Sets `curated.partition_by`.
    pub fn partition_by(self, columns: &[&str]) -> Self {
        self.set("curated.partition_by", columns.to_vec())
    }

    /// Sets the query of the curated table.
    pub fn curated_sql(mut self, sql: impl Into<String>) -> Self {
        self.queries[0].1 = sql.into();
        self
    }

    /// Adds an aggregate whose day column is `dt`, in a table of its own.
    pub fn aggregate(self, name: &str, sql: impl Into<String>) -> Self {
        self.add_aggregate(name, sql.into(), false)
    }

    /// Adds an aggregate that is computed again for all days from the first changed one on.
    pub fn running_aggregate(self, name: &str, sql: impl Into<String>) -> Self {
        self.add_aggregate(name, sql.into(), true)
    }

    /// Loads the curated table and the aggregates into the database that the lab follows: `public.curated`
    /// and tables of the aggregates' names.
    pub fn loaded(mut self) -> Self {
        let tables = self.pipeline.get_mut("aggregate").and_then(Value::as_array_mut);
        for aggregate in tables.into_iter().flatten().filter_map(Value::as_table_mut) {
            let mut load = Table::new();
            load.insert("table".into(), aggregate["name"].clone());
            aggregate.insert("load".into(), Value::Table(load));
        }
        self.set("load.url_env", "WAREHOUSE_URL").set("load.table", "public.curated")
    }

    fn add_aggregate(mut self, name: &str, sql: String, running: bool) -> Self {
        let file = format!("{name}.sql");
        let mut aggregate = Table::new();
        for (key, value) in [
            ("name", name),
            ("sql", &file),
            ("url", &format!("{{base}}/lake/{name}")),
            ("day", "dt"),
        ] {
            aggregate.insert(key.into(), value.into());
        }
        if running {
            aggregate.insert("running".into(), true.into());
        }
        let none = || Value::Array(Vec::new());
        let aggregates = self.pipeline.entry("aggregate").or_insert_with(none);
        let aggregates = aggregates.as_array_mut().expect("a list of aggregates");
        aggregates.push(Value::Table(aggregate));
        self.queries.push((file, sql));
        self
    }

    /// Makes a lab. Each has its own folders.
    pub fn build(&self) -> Lab {
        let toml = toml::to_string(&self.pipeline).expect("TOML");
        let queries: Vec<(&str, &str)> =
            self.queries.iter().map(|(name, sql)| (name.as_str(), sql.as_str())).collect();
        Lab::new(self.place, &toml, &queries)
    }
}
