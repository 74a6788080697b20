//! Columns that are not in raw files, but said by where these are: `[[raw.source]]` and `raw.path_columns`.
//!
//! Each file has one value of such a column, or null. They are raw columns like others: they can be in the key, order changes,
//! and be partition columns.

use std::path::Path;

use serde::Deserialize;
use toml::Value;

use crate::config::values::no_repeats;
use crate::error::{Error, Result};
use crate::layout::{parent, partition_values};
use crate::store::Location;

/// A raw location with columns, as it is written in `pipeline.toml`.
#[derive(Deserialize)]
pub(super) struct SourceToml {
    url: String,
    #[serde(default)]
    columns: toml::Table,
}

/// The columns that are said by where files are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constants {
    /// `raw.source.columns`: per raw location the columns that all its files have, and their values.
    of_locations: Vec<Vec<(String, String)>>,
    /// `raw.path_columns`: columns whose values are in the folders of files, `tenant=acme`.
    of_paths: Vec<String>,
}

impl Constants {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names().next().is_none()
    }

    /// The names of the columns.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        // All locations have the same ones.
        let of_locations = self.of_locations.first().into_iter().flatten();
        of_locations.map(|(name, _)| name.as_str()).chain(self.of_paths.iter().map(String::as_str))
    }

    /// Whether a column is one of them, by its name in any case.
    pub fn has(&self, name: &str) -> bool {
        self.names().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Whether locations are those of `[[raw.source]]`.
    pub fn has_sources(&self) -> bool {
        !self.of_locations.is_empty()
    }

    /// Whether a column is one of `raw.path_columns`, by its name in any case.
    pub fn is_of_path(&self, name: &str) -> bool {
        self.of_paths.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// The values of a file, given by the index of its location and its path below that, in the order of
    /// [`Constants::names`]; `None` where its path does not say one.
    pub fn of(&self, location: usize, path: &str) -> Vec<Option<String>> {
        let of_location = self.of_locations.get(location).into_iter().flatten();
        let of_location = of_location.map(|(_, value)| Some(value.clone()));
        let in_path: Vec<(String, Option<String>)> = partition_values(parent(path)).collect();
        let of_path = self.of_paths.iter().map(|name| {
            let found = in_path.iter().find(|(column, _)| column.eq_ignore_ascii_case(name));
            found.and_then(|(_, value)| value.clone())
        });
        of_location.chain(of_path).collect()
    }

    /// What must not change for the identity of a pipeline: the columns, and of each location its values.
    pub fn identity(&self) -> (Vec<String>, Vec<String>) {
        let of_locations = self.of_locations.iter().map(|columns| {
            let each = columns.iter().map(|(name, value)| format!("{name}={value}"));
            each.collect::<Vec<_>>().join(", ")
        });
        (self.names().map(String::from).collect(), of_locations.collect())
    }

    /// Checks both keys, and returns the locations of the sources too.
    pub(super) fn check(
        sources: Vec<SourceToml>,
        of_paths: Vec<String>,
        folder: &Path,
        wrong: &dyn Fn(&str, String) -> Error,
    ) -> Result<(Self, Vec<Location>)> {
        let mut of_locations: Vec<Vec<(String, String)>> = Vec::new();
        let mut urls = Vec::new();
        for source in sources {
            urls.push(Location::parse(&source.url, folder)?);
            let columns = source.columns.iter().map(|(name, value)| match value {
                Value::String(text) => Ok((name.clone(), text.clone())),
                Value::Integer(number) => Ok((name.clone(), number.to_string())),
                Value::Boolean(flag) => Ok((name.clone(), flag.to_string())),
                other => Err(wrong(&format!("raw.source.columns.{name}"), format!("is {other}"))
                    .hint("write a text, such as tenant = \"acme\"")),
            });
            let mut columns: Vec<(String, String)> = columns.collect::<Result<_>>()?;
            columns.sort();
            of_locations.push(columns);
        }
        let names = |columns: &Vec<(String, String)>| -> Vec<String> {
            columns.iter().map(|(name, _)| name.clone()).collect()
        };
        if let [first, others @ ..] = of_locations.as_slice()
            && let Some(other) = others.iter().find(|other| names(other) != names(first))
        {
            let shown = |columns| names(columns).join(", ");
            let why = format!(
                "has the columns `{}` in one, and `{}` in another",
                shown(first),
                shown(other)
            );
            return Err(wrong("raw.source", why)
                .hint("give each source the same columns, each with its value"));
        }
        let constants = Constants { of_locations, of_paths };
        let all: Vec<String> = constants.names().map(str::to_lowercase).collect();
        no_repeats(&all).map_err(|name| {
            wrong(
                "raw.path_columns",
                format!("names `{name}`, which `raw.path_columns` or `raw.source` has, too"),
            )
        })?;
        Ok((constants, urls))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str, of_paths: &[&str]) -> Result<(Constants, Vec<Location>)> {
        #[derive(Deserialize)]
        struct Sources {
            source: Vec<SourceToml>,
        }
        let sources: Sources = toml::from_str(toml).expect("TOML");
        let of_paths = of_paths.iter().map(ToString::to_string).collect();
        let wrong = |key: &str, why: String| Error::usage(format!("`{key}` {why}"));
        Constants::check(sources.source, of_paths, Path::new("/base"), &wrong)
    }

    #[test]
    fn values_are_those_of_the_location_and_of_the_path() {
        let toml = "[[source]]\nurl = 'a'\ncolumns = { tenant = 'acme' }\n[[source]]\nurl = 'b'\ncolumns = { tenant = 'beta' }";
        let (constants, urls) = check(toml, &["region"]).expect("good");
        assert_eq!(urls.len(), 2);
        assert_eq!(constants.names().collect::<Vec<_>>(), ["tenant", "region"]);
        let of = |location, path| constants.of(location, path);
        assert_eq!(of(0, "region=e%2Fu/x.parquet"), [Some("acme".into()), Some("e/u".into())]);
        assert_eq!(of(1, "x.parquet"), [Some("beta".into()), None]);
        assert_eq!(
            of(1, "region=__HIVE_DEFAULT_PARTITION__/x.parquet"),
            [Some("beta".into()), None]
        );
        assert!(constants.has("Tenant") && !constants.has("id"));
    }

    #[test]
    fn sources_have_the_same_columns() {
        let toml = "[[source]]\nurl = 'a'\ncolumns = { tenant = 'acme' }\n[[source]]\nurl = 'b'";
        let error = check(toml, &[]).expect_err("refused");
        assert!(
            error.to_string().contains("has the columns `tenant` in one, and `` in another"),
            "{error}"
        );
        let toml = "[[source]]\nurl = 'a'\ncolumns = { tenant = 'acme' }";
        assert!(check(toml, &["Tenant"]).is_err());
    }
}
