//! Texts of other libraries' errors and panics that this crate decides by, because there is no type
//! to decide by. Each has the line that writes it: look there when the library is updated.

/// The panic of the engine's repartitioning when its input runs out of memory.
/// <https://github.com/apache/datafusion/blob/55.2.0/datafusion/physical-plan/src/repartition/mod.rs#L1688>,
/// as in <https://github.com/apache/datafusion/issues/15493>
pub const OUT_OF_MEMORY_PANIC: &str = "partition not used yet";

/// The panic of a task that reads a Delta log when its runtime ends first, as that of a run that is given up.
/// `buoyant_kernel_engine` 0.28.0, src/executor.rs, `block_on`
pub const RUNTIME_ENDED_PANIC: &str = "TokioMultiThreadExecutor has crashed";

/// The engine's error when memory ends in a nested loop join: it runs the left input again to spill it,
/// and an input that can run only once is empty then.
/// <https://github.com/apache/datafusion/blob/55.2.0/datafusion/physical-plan/src/joins/nested_loop_join.rs#L1581>
pub(super) const JOIN_NOT_SPILLED: &str = "Left side produced no data to spill";

/// In the I/O error of a spill file that exceeds the limit of all spill files: the engine's setting.
/// <https://github.com/apache/datafusion/blob/55.2.0/datafusion/execution/src/disk_manager.rs#L500>
pub(super) const SPILLED_TOO_MUCH: &str = "max_temp_directory_size";

/// A Parquet footer that could not be fetched: the engine's error is text only, its cause included.
/// <https://github.com/apache/datafusion/blob/55.2.0/datafusion/datasource-parquet/src/reader.rs#L296>
pub(super) const FOOTER_NOT_FETCHED: &str = "Failed to fetch metadata for file";

/// Before the name of a field that a document lacks; a backtick follows it.
/// <https://github.com/serde-rs/serde/blob/v1.0.229/serde_core/src/de/mod.rs#L290>
pub const FIELD_MISSING: &str = "missing field `";

/// A value where a list should be.
/// <https://github.com/serde-rs/serde/blob/v1.0.229/serde_core/src/de/impls.rs#L1010>
pub const LIST_EXPECTED: &str = "expected a sequence";
