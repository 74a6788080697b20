//! Raw files: discovery, opening, and checks of their rows and columns.

pub(crate) mod bad_rows;
pub(crate) mod columns;
pub(crate) mod csv;
pub(crate) mod discover;
pub(crate) mod envelope;
pub(crate) mod fingerprint;
pub(crate) mod identify;
pub(crate) mod input;
pub(crate) mod json;
pub(crate) mod list;
pub(crate) mod loads;
pub(crate) mod open;
pub(crate) mod reload;
pub(crate) mod schema_changes;
pub(crate) mod typed;
