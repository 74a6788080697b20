//! One Parquet object: opening it, and fetching its bytes ahead of decoding.

pub mod fetch;
pub mod open;
