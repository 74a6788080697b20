//! Column types and times.

pub(crate) mod column_type;
pub(crate) mod day_counts;
pub(crate) mod key;
pub(crate) mod key_hash;
pub(crate) mod mask;
pub(crate) mod row_hash;
pub(crate) mod times;
