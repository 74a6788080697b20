//! Checking what was read, and turning it into values.

use std::path::Path;

use toml::Value;

use crate::config::file::PipelineToml;
use crate::config::values::{bytes, no_repeats};
use crate::config::{Aggregate, Curated, Format, Limits, MEMORY_BYTES_MIN, Pipeline, Sql};
use crate::error::{Error, Result};
use crate::store::Location;
use crate::window::parse_duration;

pub(super) fn check(read: PipelineToml, folder: &Path, file: &Path) -> Result<Pipeline> {
    let shown = file.display();
    let wrong = |key: &str, why: String| Error::usage(format!("{shown}: `{key}` {why}"));
    let shown_folder = file.parent().unwrap_or(Path::new(""));

    if read.name.is_empty() || read.name.contains(['/', '\\', '%']) || read.name.starts_with('.') {
        return Err(wrong("name", format!("is `{}`", read.name))
            .hint("use letters, digits, `_` and `-`: it names a folder"));
    }
    no_repeats(&read.key).map_err(|name| wrong("key", format!("names `{name}` twice")))?;
    no_repeats(&read.curated.partition_by)
        .map_err(|name| wrong("curated.partition_by", format!("names `{name}` twice")))?;
    let format = read.curated.format.unwrap_or(Format::Parquet);
    if read.curated.retention.is_some() && format != Format::Delta {
        let unused = "is for Delta tables: in others, replaced files go at once";
        return Err(wrong("curated.retention", unused.into())
            .hint("leave it out, or write curated.format = \"delta\""));
    }

    let raw = read.raw.check(&read.key, folder, &wrong)?;

    let curated = Curated {
        url: Location::parse(&read.curated.url, folder)?,
        partition_by: read.curated.partition_by,
        format,
        retention: parse_duration(read.curated.retention.as_deref().unwrap_or("7d")).map_err(
            |why| wrong("curated.retention", why).hint("write a duration such as 7d or 6h"),
        )?,
        file_bytes: match read.curated.file_bytes {
            None => 256 << 20,
            Some(value) => bytes(&value)
                .filter(|bytes| *bytes > 0)
                .ok_or_else(|| wrong("curated.file_bytes", format!("is `{value}`")))?,
        },
        sql: read_sql(shown_folder, "curated.sql")?,
    };
    let mut aggregates = Vec::new();
    for aggregate in read.aggregate {
        aggregates.push(Aggregate {
            sql: read_sql(shown_folder, &aggregate.sql)?,
            url: Location::parse(&aggregate.url, folder)?,
            name: aggregate.name,
            day: aggregate.day,
            running: aggregate.running,
        });
    }
    let names: Vec<String> = aggregates
        .iter()
        .map(|aggregate| aggregate.name.clone())
        .collect();
    no_repeats(&names).map_err(|name| wrong("aggregate.name", format!("`{name}` stands twice")))?;

    let state = match read.state.url {
        Some(url) => Location::parse(&url, folder)?,
        None => curated
            .url
            .sibling("_glueless")
            .map(|beside| beside.join(&read.name))
            .ok_or_else(|| {
                wrong(
                    "state.url",
                    format!("is missing, and {} is a root", curated.url),
                )
                .hint("say where the state may be kept")
            })?,
    };
    if state.url().path().contains("%25") {
        return Err(
            wrong("state.url", format!("({state}) has a `%` in its path"))
                .hint("Delta tables cannot be kept there: set `state.url`"),
        );
    }
    let size = |key: &str, value: Option<Value>, least: u64, hint: &str| {
        let read = |value: Value| {
            let found = bytes(&value).filter(|bytes| *bytes >= least);
            found.ok_or_else(|| wrong(key, format!("is `{value}`")).hint(hint))
        };
        value.map(read).transpose()
    };
    let limits = Limits {
        memory_bytes: size(
            "limits.memory",
            read.limits.memory,
            MEMORY_BYTES_MIN,
            "write 900MB or 4GiB; at least 128MB",
        )?,
        spill_dir: read.limits.spill_dir.map(|dir| folder.join(dir)),
        spill_bytes_max: size(
            "limits.spill_bytes_max",
            read.limits.spill_bytes_max,
            0,
            "write 900MB or 40GiB",
        )?,
        threads: match read.limits.threads {
            Some(0) => return Err(wrong("limits.threads", "is 0".into())),
            threads => threads,
        },
    };
    let pipeline = Pipeline {
        name: read.name,
        key: read.key,
        keep: read.keep,
        raw,
        curated,
        aggregates,
        state,
        limits,
    };
    let outputs = pipeline.outputs();
    for (position, (key, place)) in outputs.iter().enumerate() {
        let raw = pipeline.raw.urls.iter().map(|url| ("raw.url", url));
        let earlier = outputs[..position]
            .iter()
            .map(|(key, place)| (key.as_str(), *place));
        if let Some((other, at)) = raw.chain(earlier).find(|(_, at)| at.overlaps(place)) {
            return Err(wrong(key, format!("({place}) overlaps `{other}` ({at})"))
                .hint("give each its own folder, none inside another"));
        }
    }
    Ok(pipeline)
}

pub(super) fn read_sql(folder: &Path, name: &str) -> Result<Sql> {
    let file = folder.join(name);
    let text = std::fs::read_to_string(&file).map_err(|error| {
        Error::usage(format!("cannot read {}", file.display())).caused_by(error)
    })?;
    Ok(Sql {
        file: file.display().to_string(),
        text,
    })
}
