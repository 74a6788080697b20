//! Parquet objects: opening them, and fetching their bytes ahead of decoding.

pub mod fetch;
pub mod open;
