//! The query engine: sessions, memory, spill folders and tasks.

pub mod heaps;
pub mod memory_pool;
pub mod resources;
pub(crate) mod row_wise;
pub mod session;
pub mod spill;
pub mod tasks;
