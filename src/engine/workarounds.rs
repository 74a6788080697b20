//! Workarounds for faults of the engine, and the texts by which they are known.

/// What the engine's repartitioning panics with, when what comes before it runs out of memory.
pub const OUT_OF_MEMORY_PANIC: &str = "partition not used yet";
