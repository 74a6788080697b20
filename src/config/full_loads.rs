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
            FullLoadAt::Name => "name",
        }
    }
}

/// How full loads are folded.
#[derive(Clone, Copy, Debug)]
pub struct FullLoads {
    /// `raw.full_load_at`; default `before`.
    pub at: FullLoadAt,
    /// `raw.full_load_settle`: how long no file of a full load must have been written before it is
    /// folded, and the longest pause within one load; default `15m`.
    pub settle: Duration,
    /// `raw.full_load_max_deletes`: the greatest share of the table's rows, in percent, that full loads of
    /// one run end and do not have themselves; `None` for all.
    pub max_deletes: Option<f64>,
}

/// The keys of full loads as they are written in `pipeline.toml`.
pub(super) struct FullLoadKeys<'a> {
    pub(super) at: FullLoadAt,
    /// The key that says that full loads have a time, and its value.
    pub(super) said_by: (&'a str, &'a str),
    pub(super) settle: Option<&'a str>,
    pub(super) max_deletes: Option<&'a str>,
    pub(super) key: &'a [String],
    pub(super) order_by: &'a [String],
    pub(super) commit_time: Option<&'a str>,
}

impl FullLoadKeys<'_> {
    /// Checks the keys. `wrong` makes the error for a key.
    pub(super) fn check(&self, wrong: &dyn Fn(&str, String) -> Error) -> Result<FullLoads> {
        const SETTLE: &str = "raw.full_load_settle";
        const MAX_DELETES: &str = "raw.full_load_max_deletes";
        let settle = parse_duration(self.settle.unwrap_or("15m"))
            .map_err(|why| wrong(SETTLE, why).hint("write a duration such as 15m or 2h"))?;
        let percent = |text: &str| {
            let number = text.strip_suffix('%').and_then(|number| number.trim().parse().ok());
            number.filter(|percent| (0.0..=100.0).contains(percent)).ok_or_else(|| {
                wrong(MAX_DELETES, format!("is `{text}`")).hint("write a share such as 10%")
            })
        };
        let max_deletes = self.max_deletes.map(percent).transpose()?;
        if !self.at.is_time() {
            let set = [(SETTLE, self.settle), (MAX_DELETES, self.max_deletes)];
            if let Some((key, _)) = set.into_iter().find(|(_, value)| value.is_some()) {
                return Err(wrong(key, "is for full loads that have a time".into())
                    .hint("leave it out, or set `raw.full_load_at`"));
            }
            return Ok(FullLoads { at: self.at, settle, max_deletes });
        }
        let (key, value) = self.said_by;
        let refused = |why: &str| wrong(key, format!("cannot be `{value}` {why}"));
        if self.key.is_empty() {
            return Err(refused("for a table without a key")
                .hint("name the primary key in `key`: a full load ends the rows of earlier ones"));
        }
        if !begins_with_commit_time(self.order_by, self.commit_time) {
            return Err(refused("unless `raw.order_by` begins with the commit time")
                .hint("the time of a full load is its place among the changes"));
        }
        Ok(FullLoads { at: self.at, settle, max_deletes })
    }
}

/// Whether an order of changes can begin with the commit time: it is not known of each column whether it has times.
pub(super) fn begins_with_commit_time(order_by: &[String], commit_time: Option<&str>) -> bool {
    let first = order_by.first().map(String::as_str);
    first.is_some() && commit_time.is_none_or(|time| first == Some(time))
}
