//! The raw files: finding, opening and checking them.

pub mod bad_rows;
pub mod columns;
pub mod csv;
pub mod discover;
pub mod open;
pub mod schema_changes;
