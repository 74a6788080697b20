//! Raw files: discovery, opening, and checks of their rows and columns.

pub mod bad_rows;
pub mod columns;
pub mod csv;
pub mod discover;
pub mod open;
pub mod schema_changes;
