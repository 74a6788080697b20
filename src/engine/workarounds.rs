//! Workarounds for bugs of the engine, and the texts that identify them.

/// The panic message of the engine's repartitioning when its input runs out of memory.
pub const OUT_OF_MEMORY_PANIC: &str = "partition not used yet";
