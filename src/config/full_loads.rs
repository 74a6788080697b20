//! `raw.full_load_at`: where full loads are in the order of changes.

use chrono::Duration;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::window::parse_duration;

/// `raw.full_load_at`: where full loads are in the order of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FullLoadAt {
    /// Before every change.
    #[default]
    Before,
    /// At the least commit time of its rows.
    Column,
    /// At the time when the first of its files was written.
    Modified,
    /// At the time in the names of its files, or of their date folders.
    Name,
}

impl FullLoadAt {
    /// Whether a full load has a time in the order of changes, and ends the rows from before it.
    pub fn is_time(self) -> bool {
        self != FullLoadAt::Before
    }

    /// The value of the key.
    pub fn name(self) -> &'static str {
        match self {
            FullLoadAt::Before => "before",
            FullLoadAt::Column => "column",
            FullLoadAt::Modified => "modified",
            FullLoadAt::Name => "name",
        }
    }
}

/// The keys of full loads as they are written in `pipeline.toml`.
pub(super) struct FullLoadKeys<'a> {
    pub(super) at: FullLoadAt,
    pub(super) settle: Option<&'a str>,
    pub(super) key: &'a [String],
    pub(super) order_by: &'a [String],
    pub(super) commit_time: Option<&'a str>,
}

impl FullLoadKeys<'_> {
    /// Checks the keys; returns `raw.full_load_settle`. `wrong` makes the error for a key.
    pub(super) fn check(&self, wrong: &dyn Fn(&str, String) -> Error) -> Result<Duration> {
        const SETTLE: &str = "raw.full_load_settle";
        let settle = parse_duration(self.settle.unwrap_or("15m"))
            .map_err(|why| wrong(SETTLE, why).hint("write a duration such as 15m or 2h"))?;
        if !self.at.is_time() {
            return match self.settle {
                None => Ok(settle),
                Some(_) => Err(wrong(SETTLE, "is for full loads that have a time".into())
                    .hint("leave it out, or set `raw.full_load_at`")),
            };
        }
        let at = format!("cannot be `{}`", self.at.name());
        let refused = |why: &str| wrong("raw.full_load_at", format!("{at} {why}"));
        if self.key.is_empty() {
            return Err(refused("for a table without a key")
                .hint("name the primary key in `key`: a full load ends the rows of earlier ones"));
        }
        let first = self.order_by.first().map(String::as_str);
        if first.is_none() || self.commit_time.is_some_and(|time| first != Some(time)) {
            return Err(refused("unless `raw.order_by` begins with the commit time")
                .hint("the time of a full load is its place among the changes"));
        }
        Ok(settle)
    }
}
