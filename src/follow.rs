//! Followers: what is outside of the lake and is brought to a commit's state, such as the tables of a
//! database.
//!
//! A follower's target has a marker: the last commit that was applied to it. What a follower applies
//! is the difference between that commit and the newest one, however many commits are between them;
//! without a marker that the ledger knows, it applies everything. The marker is written with the data,
//! in one transaction. So a follower ends in exactly the state of a commit, whatever was interrupted,
//! repeated or raced: a second one waits for the first, reads the marker, and finds nothing to do.

pub mod ddl;
#[cfg(feature = "postgres")]
mod difference;
#[cfg(feature = "glue")]
pub(crate) mod glue;
mod hive_type;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "postgres")]
mod rows;
mod sql_type;

/// What a target says of the last commit applied to it.
#[cfg(any(feature = "glue", feature = "postgres"))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    /// The number of the commit.
    pub commit: u64,
    /// The run that made the commit: another state can have a commit of the same number.
    pub run_id: String,
    /// The table that was applied, as the ledger names it.
    pub source: String,
}
