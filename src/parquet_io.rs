//! Parquet objects: opening them, and fetching their bytes ahead of decoding.

pub(crate) mod fetch;
pub(crate) mod open;
pub(crate) mod texts;
