//! Column types and times.

pub mod column_type;
pub mod day_counts;
pub mod key;
pub mod times;
