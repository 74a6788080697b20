//! Workarounds for faults of the engine, and the texts by which they are known.

/// What the engine's repartitioning panics with, when what comes before it runs out of memory.
pub const STARVED: &str = "partition not used yet";
