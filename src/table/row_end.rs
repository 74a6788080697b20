//! Ends of rows that stay in the table: when, and what has ended them.

/// The end of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowEnd {
    /// When, in microseconds since 1970.
    pub at: i64,
    /// What has ended it.
    pub by: Cause,
}

/// What has ended a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A change that left another row of the key.
    Update,
    /// A change that left no row: a delete, or one that `curated.sql` filters out.
    Delete,
    /// A truncate.
    Truncate,
    /// A full load at its time that lacks the key.
    Load,
}

impl Cause {
    /// All of them.
    pub(crate) const ALL: [Cause; 4] = [Cause::Update, Cause::Delete, Cause::Truncate, Cause::Load];

    /// The text in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Cause::Update => "update",
            Cause::Delete => "delete",
            Cause::Truncate => "truncate",
            Cause::Load => "load",
        }
    }

    /// The cause that has this text.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.name() == name)
    }
}
