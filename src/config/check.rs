//! Checks the parsed `pipeline.toml` and turns it into a [`Pipeline`].

use std::path::{Path, PathBuf};

use toml::Value;

use crate::config::catalog::table_name;
use crate::config::file::{
    AggregateToml, CatalogToml, CuratedToml, LimitsToml, LoadToml, PipelineToml, VerifyToml,
};
use crate::config::masks::OtherColumns;
use crate::config::values::{bytes, no_repeats};
use crate::config::{
    ALL_COLUMNS, Aggregate, Catalog, Curated, Format, IS_CURRENT, Keep, Kind, Limits, Load,
    MEMORY_BYTES_MIN, Masks, Origins, Pipeline, Raw, Sql, TargetTable, VerifySource,
};
use crate::error::{Error, Result};
use crate::store::Location;
use crate::window::parse_duration;

/// Checks a parsed file. Relative URLs start from `folder`; messages name the file that a key stands in.
pub(super) fn check(parsed: PipelineToml, folder: &Path, origins: &Origins) -> Result<Pipeline> {
    let checks = Checks { folder, origins };
    checks.names(&parsed)?;
    let wrong = |key: &str, why: String| checks.wrong(key, why);
    let mut raw = parsed.raw.check(&parsed.key, folder, &wrong)?;
    raw.masks = checks.masks(parsed.mask, &raw, &parsed.key)?;
    if let Some(name) = raw.constants.names().find(|name| raw.masks.of(name).is_some()) {
        return Err(checks
            .wrong(&format!("mask.{name}"), "is a column of sources or folders".into())
            .hint("its values stand in the names of raw files, which the state has: leave the mask out"));
    }
    let curated = checks.curated(parsed.curated)?;
    let aggregates = checks.aggregates(parsed.aggregate)?;
    let state = checks.state(parsed.state.url, &parsed.name, &curated.url)?;
    let pipeline = Pipeline {
        name: parsed.name,
        key: parsed.key,
        keep: checks.keep(parsed.keep, parsed.keep_deleted, &raw)?,
        history_columns: checks.history_columns(parsed.keep, parsed.history_columns)?,
        raw,
        curated,
        aggregates,
        state,
        catalog: parsed.catalog.map(|catalog| checks.catalog(catalog)).transpose()?,
        load: parsed.load.map(|load| checks.load(load)).transpose()?,
        verify: parsed.verify.map(|verify| checks.verify(verify)).transpose()?,
        compact: parsed.compact.check(folder, &wrong)?,
        limits: checks.limits(parsed.limits)?,
    };
    checks.no_overlaps(&pipeline)?;
    checks.load_tables(&pipeline)?;
    checks.catalog_tables(&pipeline)?;
    checks.kept_times(&pipeline)?;
    Ok(pipeline)
}

/// The checks of one file.
pub(super) struct Checks<'a> {
    /// The folder that relative URLs start from.
    pub(super) folder: &'a Path,
    /// Where the keys come from.
    pub(super) origins: &'a Origins,
}

impl Checks<'_> {
    /// The error for a key with a wrong value.
    pub(super) fn wrong(&self, key: &str, why: String) -> Error {
        Error::usage(format!("{}: `{key}` {why}", self.origins.file_of(key).display()))
    }

    /// The masks of raw columns.
    fn masks(&self, section: toml::Table, raw: &Raw, key: &[String]) -> Result<Masks> {
        let columns = OtherColumns {
            key,
            roles: [
                ("raw.op", raw.op.name.as_slice()),
                ("raw.order_by", &raw.order_by),
                ("raw.commit_time", raw.commit_time.as_slice()),
                ("raw.event_time", raw.event_time.as_slice()),
            ],
            before_image: raw.before_image_prefix.as_ref(),
            named: &|name| raw.column_named(name),
            is_own: &|name| self.origins.is_own("mask", name),
        };
        Masks::check(section, &columns, &|key, why| self.wrong(key, why))
    }

    fn names(&self, parsed: &PipelineToml) -> Result<()> {
        let (name, curated) = (&parsed.name, &parsed.curated);
        if name.is_empty() || name.contains(['/', '\\', '%']) || name.starts_with('.') {
            return Err(self
                .wrong("name", format!("is `{name}`"))
                .hint("use letters, digits, `_` and `-`: it names a folder"));
        }
        no_repeats(&parsed.key)
            .map_err(|name| self.wrong("key", format!("names `{name}` twice")))?;
        no_repeats(&curated.partition_by)
            .map_err(|name| self.wrong("curated.partition_by", format!("names `{name}` twice")))?;
        no_repeats(&curated.sort_by)
            .map_err(|name| self.wrong("curated.sort_by", format!("names `{name}` twice")))?;
        if let Some(name) = curated.sort_by.iter().find(|name| curated.partition_by.contains(name))
        {
            let why = format!("names the partition column `{name}`");
            let hint = "leave it out: all rows of a partition have the same value in it";
            return Err(self.wrong("curated.sort_by", why).hint(hint));
        }
        if curated.deletion_vectors && curated.format != Some(Format::Delta) {
            let why = "is for Delta tables: a Parquet table has no log that names deleted rows";
            let hint = "leave it out, or write curated.format = \"delta\"";
            return Err(self.wrong("curated.deletion_vectors", why.into()).hint(hint));
        }
        if curated.retention.is_some() && curated.format != Some(Format::Delta) {
            let unused =
                "is for Delta tables: a Parquet table's replaced files are removed at once";
            return Err(self
                .wrong("curated.retention", unused.into())
                .hint("leave it out, or write curated.format = \"delta\""));
        }
        Ok(())
    }

    fn curated(&self, parsed: CuratedToml) -> Result<Curated> {
        let retention = parsed.retention.as_deref().unwrap_or("7d");
        Ok(Curated {
            url: Location::parse(&parsed.url, self.folder)?,
            partition_by: parsed.partition_by,
            sort_by: parsed.sort_by,
            format: parsed.format.unwrap_or(Format::Parquet),
            deletion_vectors: parsed.deletion_vectors,
            retention: parse_duration(retention).map_err(|why| {
                self.wrong("curated.retention", why).hint("write a duration such as 7d or 6h")
            })?,
            file_bytes: match parsed.file_bytes {
                None => 256 << 20,
                Some(value) => bytes(&value)
                    .filter(|bytes| *bytes > 0)
                    .ok_or_else(|| self.wrong("curated.file_bytes", format!("is `{value}`")))?,
            },
            sql: self.curated_sql()?,
        })
    }

    fn aggregates(&self, parsed: Vec<AggregateToml>) -> Result<Vec<Aggregate>> {
        let mut aggregates = Vec::new();
        for aggregate in parsed {
            let key = format!("aggregate.{}.load.table", aggregate.name);
            let named = aggregate.catalog.table.as_ref().unwrap_or(&aggregate.name);
            aggregates.push(Aggregate {
                catalog_table: named.to_lowercase(),
                load_table: self.target(&key, aggregate.load.table.as_deref())?,
                sql: self.sql(&aggregate.sql)?,
                url: Location::parse(&aggregate.url, self.folder)?,
                name: aggregate.name,
                day: aggregate.day,
                running: aggregate.running,
            });
        }
        let names: Vec<String> =
            aggregates.iter().map(|aggregate| aggregate.name.clone()).collect();
        no_repeats(&names)
            .map_err(|name| self.wrong("aggregate.name", format!("`{name}` is used twice")))?;
        Ok(aggregates)
    }

    fn state(&self, url: Option<String>, name: &str, curated: &Location) -> Result<Location> {
        let state = match url {
            Some(url) => Location::parse(&url, self.folder)?,
            None => {
                let beside = curated.sibling("_glueless");
                beside.map(|beside| beside.join(name)).ok_or_else(|| {
                    self.wrong(
                        "state.url",
                        format!("is missing, and {curated} is the root of a store"),
                    )
                    .hint("set `state.url` to the folder for the pipeline's state")
                })?
            }
        };
        if state.url().path().contains("%25") {
            return Err(self
                .wrong("state.url", format!("({state}) has a `%` in its path"))
                .hint("a Delta table cannot be stored there: set `state.url`"));
        }
        Ok(state)
    }

    /// The name of the environment variable with a database's URL.
    pub(super) fn url_env(&self, key: &str, name: String) -> Result<String> {
        if name.is_empty() || name.contains(['=', ':', '/', '@']) {
            // A URL has a password, which is not to be repeated.
            return Err(self
                .wrong(key, "is not the name of an environment variable".into())
                .hint("write the database's URL into a variable, and name the variable here"));
        }
        Ok(name)
    }

    fn verify(&self, parsed: VerifyToml) -> Result<VerifySource> {
        let table = self.target("verify.table", Some(&parsed.table))?;
        Ok(VerifySource {
            url_env: self.url_env("verify.url_env", parsed.url_env)?,
            table: table.ok_or_else(|| self.wrong("verify.table", "is missing".into()))?,
            method: parsed.method,
        })
    }

    fn load(&self, parsed: LoadToml) -> Result<Load> {
        Ok(Load {
            url_env: self.url_env("load.url_env", parsed.url_env)?,
            table: self.target("load.table", parsed.table.as_deref())?,
            after_sql: parsed.after_sql.map(|file| self.sql(&file)).transpose()?,
        })
    }

    fn catalog(&self, parsed: CatalogToml) -> Result<Catalog> {
        let table = parsed.table.map(|name| self.catalog_table("catalog.table", &name));
        Ok(Catalog {
            database: self.catalog_table("catalog.glue", &parsed.glue)?,
            table: table.transpose()?,
            mode: parsed.mode,
        })
    }

    fn catalog_table(&self, key: &str, name: &str) -> Result<String> {
        table_name(name).ok_or_else(|| {
            self.wrong(key, format!("is `{name}`"))
                .hint("use letters, digits and `_`; Glue stores names in lower case")
        })
    }

    /// Which rows the table holds.
    fn keep(&self, keep: Keep, keeps_deleted: bool, raw: &Raw) -> Result<Keep> {
        let has_days_of_snapshots = raw.kind == Kind::Snapshot && raw.event_time.is_none();
        match (keep, keeps_deleted) {
            (Keep::Latest, true) => Ok(Keep::LatestAndDeleted),
            (Keep::Latest, false) if has_days_of_snapshots => Ok(Keep::LatestAltered),
            (_, true) => Err(self
                .wrong("keep_deleted", format!("is for keep = \"latest\", and keep is `{keep}`"))
                .hint("leave it out, or write keep = \"latest\"")),
            (_, false) => Ok(keep),
        }
    }

    /// The columns that a change must alter to make a row of a history.
    fn history_columns(&self, keep: Keep, columns: Option<Vec<String>>) -> Result<Vec<String>> {
        const KEY: &str = "history_columns";
        let Some(columns) = columns else { return Ok(Vec::new()) };
        if keep != Keep::History {
            let why = format!("is for keep = \"history\", and keep is `{keep}`");
            return Err(self.wrong(KEY, why).hint("leave it out, or write keep = \"history\""));
        }
        no_repeats(&columns).map_err(|name| self.wrong(KEY, format!("names `{name}` twice")))?;
        match columns.iter().find(|name| keep.is_own(name)) {
            Some(own) => Err(self
                .wrong(KEY, format!("names `{own}`"))
                .hint("name columns of `curated.sql`: this one says when a row holds")),
            None if columns.is_empty() => Err(self
                .wrong(KEY, "is empty".into())
                .hint("name columns of `curated.sql`, or leave it out: then all are compared")),
            None => Ok(columns),
        }
    }

    /// Checks that a table for which times of changes are kept has a key, and nothing that is for other tables.
    fn kept_times(&self, pipeline: &Pipeline) -> Result<()> {
        let keep = pipeline.keep;
        if !keep.keeps_times() {
            return Ok(());
        }
        let is_history = keep == Keep::History;
        let with = match keep {
            Keep::History => "keep = \"history\"",
            Keep::LatestAltered => "raw.kind = \"snapshot\"",
            _ => "keep_deleted",
        };
        let refused = |key: &str, why: &str, hint: &str| {
            Err(self.wrong(key, format!("{why}, with {with}")).hint(hint))
        };
        if pipeline.key.is_empty() {
            let hint = "name the primary key: it says which changes are of one row";
            return refused("key", "is missing", hint);
        }
        if pipeline.curated.deletion_vectors && !keep.own_columns().is_empty() {
            let hint = "leave it out: what ends a row is written into it";
            return refused("curated.deletion_vectors", "cannot be used", hint);
        }
        let divides = |name: &&String| keep.is_own(name) && !(is_history && *name == IS_CURRENT);
        if let Some(own) = pipeline.curated.partition_by.iter().find(divides) {
            let hint = if is_history {
                "partition by the day, by columns of `curated.sql`, or by `is_current`"
            } else {
                "partition by the day, or by columns of `curated.sql`: they stay when a row ends"
            };
            return refused("curated.partition_by", &format!("names `{own}`"), hint);
        }
        if keep == Keep::LatestAndDeleted && pipeline.raw.delete_when.is_some() {
            let hint =
                "leave `raw.delete_when` out: rows then stay, with the columns that it reads";
            return refused("raw.delete_when", "cannot be used", hint);
        }
        if is_history && pipeline.load.as_ref().is_some_and(|load| load.table.is_some()) {
            let hint = "load a table of `keep = \"latest\"`, from a pipeline of its own";
            return refused("load.table", "cannot be used", hint);
        }
        match pipeline.aggregates.iter().find(|aggregate| aggregate.sql.reads("balance")) {
            Some(aggregate) => {
                let key = format!("aggregate.{}.sql", aggregate.name);
                refused(&key, "reads `balance`", "read `history`, or `curated`")
            }
            None => Ok(()),
        }
    }

    /// Checks that tables have different names in the catalog.
    fn catalog_tables(&self, pipeline: &Pipeline) -> Result<()> {
        let Some(catalog) = &pipeline.catalog else {
            return Ok(());
        };
        let curated = catalog.table_of_curated(&pipeline.name);
        let mut names = vec![self.catalog_table("catalog.table", &curated)?];
        for aggregate in &pipeline.aggregates {
            let key = format!("aggregate.{}.catalog.table", aggregate.name);
            let name = self.catalog_table(&key, &aggregate.catalog_table)?;
            if names.contains(&name) {
                return Err(self
                    .wrong(&key, format!("is `{name}`, as another table is"))
                    .hint("give each table its own name in the catalog"));
            }
            names.push(name);
        }
        Ok(())
    }

    fn target(&self, key: &str, text: Option<&str>) -> Result<Option<TargetTable>> {
        let parse = |text| {
            TargetTable::parse(text).ok_or_else(|| {
                let why = format!("is `{text}`");
                self.wrong(key, why).hint(
                    "write schema.table, or a table of the schema `public`; names have at most 63 bytes, \
                     no dot and no quotation mark",
                )
            })
        };
        text.map(parse).transpose()
    }

    /// Checks that tables are loaded into one database, each into a table of its own.
    fn load_tables(&self, pipeline: &Pipeline) -> Result<()> {
        let curated = pipeline.load.iter().filter_map(|load| load.table.as_ref());
        let mut targets: Vec<(String, &TargetTable)> =
            curated.map(|table| ("load.table".to_string(), table)).collect();
        for aggregate in &pipeline.aggregates {
            let key = format!("aggregate.{}.load.table", aggregate.name);
            targets.extend(aggregate.load_table.as_ref().map(|table| (key, table)));
        }
        for (number, (key, target)) in targets.iter().enumerate() {
            if pipeline.load.is_none() {
                return Err(self
                    .wrong(key, "is set, and there is no [load]".into())
                    .hint("add [load] with `url_env`, the variable with the database's URL"));
            }
            if let Some((other, _)) = targets[..number].iter().find(|(_, other)| other == target) {
                return Err(self
                    .wrong(key, format!("is `{target}`, as `{other}` is"))
                    .hint("give each its own table"));
            }
        }
        if pipeline.load.is_some() && targets.is_empty() {
            return Err(self.wrong("load.table", "is missing, and no aggregate is loaded".into()).hint(
                "write the table that follows the curated table, such as load.table = \"public.orders\"",
            ));
        }
        Ok(())
    }

    pub(super) fn limits(&self, parsed: LimitsToml) -> Result<Limits> {
        Ok(Limits {
            memory_bytes: self.size(
                "limits.memory",
                parsed.memory,
                MEMORY_BYTES_MIN,
                "write 900MB or 4GiB; at least 128MB",
            )?,
            spill_dir: parsed.spill_dir.map(|dir| self.folder.join(dir)),
            spill_bytes_max: self.size(
                "limits.spill_bytes_max",
                parsed.spill_bytes_max,
                0,
                "write 900MB or 40GiB",
            )?,
            threads: match parsed.threads {
                Some(0) => return Err(self.wrong("limits.threads", "is 0".into())),
                threads => threads,
            },
        })
    }

    /// A number of bytes, at least `least`.
    pub(super) fn size(
        &self,
        key: &str,
        value: Option<Value>,
        least: u64,
        hint: &str,
    ) -> Result<Option<u64>> {
        let read = |value: Value| {
            let size = bytes(&value).filter(|bytes| *bytes >= least);
            size.ok_or_else(|| self.wrong(key, format!("is `{value}`")).hint(hint))
        };
        value.map(read).transpose()
    }

    /// Checks that no output is inside of another output or of raw.
    fn no_overlaps(&self, pipeline: &Pipeline) -> Result<()> {
        let outputs = pipeline.outputs();
        for (number, (key, output)) in outputs.iter().enumerate() {
            let raw = pipeline.raw.urls.iter().map(|url| ("raw.url", url));
            let raw = raw.chain(pipeline.compact.url.iter().map(|url| ("compact.url", url)));
            let earlier = outputs[..number].iter().map(|(key, url)| (key.as_str(), *url));
            if let Some((other, url)) = raw.chain(earlier).find(|(_, url)| url.overlaps(output)) {
                return Err(self
                    .wrong(key, format!("({output}) overlaps `{other}` ({url})"))
                    .hint("give each its own folder, none inside another"));
            }
        }
        let raw = &pipeline.raw;
        let two = |(number, url): (usize, _)| {
            Some((raw.urls[..number].iter().find(|other| other.overlaps(url))?, url))
        };
        if !raw.constants.is_empty()
            && let Some((other, url)) = raw.urls.iter().enumerate().find_map(two)
        {
            let key = if raw.constants.has_sources() { "raw.source" } else { "raw.url" };
            return Err(self
                .wrong(key, format!("has `{url}`, which overlaps `{other}`"))
                .hint("give each source its own folder: a file in two would be rows of both"));
        }
        let compacted = pipeline.compact.url.iter();
        let both = compacted.flat_map(|to| pipeline.raw.urls.iter().map(move |url| (to, url)));
        match both.into_iter().find(|(to, url)| to.overlaps(url)) {
            None => Ok(()),
            Some((to, url)) => Err(self
                .wrong("compact.url", format!("({to}) overlaps `raw.url` ({url})"))
                .hint("name a folder outside of it: runs would read each change twice")),
        }
    }

    /// Reads a file of SQL in the pipeline's folder.
    fn sql(&self, name: &str) -> Result<Sql> {
        let file = self.beside(name);
        let text = std::fs::read_to_string(&file).map_err(|error| {
            Error::usage(format!("cannot read {}", file.display())).caused_by(error)
        })?;
        Ok(Sql { file: file.display().to_string(), text, is_default: false })
    }

    /// The query of the curated table: without a file, all columns.
    fn curated_sql(&self) -> Result<Sql> {
        const NAME: &str = "curated.sql";
        let file = self.beside(NAME);
        if self.origins.of_project.is_none() || file.try_exists().unwrap_or(true) {
            return self.sql(NAME);
        }
        let names = file.parent().and_then(|folder| std::fs::read_dir(folder).ok());
        let names = names.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.file_name()));
        if let Some(other) = names.into_iter().find(|name| name.eq_ignore_ascii_case(NAME)) {
            let message = format!("{} is named `{}`", file.display(), other.display());
            return Err(Error::usage(message).hint("name it `curated.sql`"));
        }
        Ok(Sql { file: file.display().to_string(), text: ALL_COLUMNS.into(), is_default: true })
    }

    /// The path of a file beside the pipeline's.
    fn beside(&self, name: &str) -> PathBuf {
        self.origins.file.parent().unwrap_or(Path::new("")).join(name)
    }
}
