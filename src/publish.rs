//! Publish: exactly the planned partitions of a Hive-partitioned Parquet table are replaced.
//!
//! A plan is made from what was staged and from the table's files before (the ledger's list,
//! never a listing). Once it is committed, every new file is brought to its place, then the old
//! ones are removed. Emptied partitions lose their folder.
//!
//! Anyone may publish a commit, any number of times, at the same time: the next command finishes
//! one that was interrupted ([`announce`]d runs have their files in the ledger, with their places
//! in staging). What a process does that slept while others went on harms nothing:
//!
//! * A partition with one file before and after keeps the file's name, and the file is swapped in
//!   one step, so that a reader sees the old or the new one. The step needs the file in staging,
//!   which goes before anything newer is published: locally a rename takes it away, and on S3,
//!   where a copy could not be made to depend on what it replaces, the tag of the file to be
//!   replaced is read first, the staged file next, and the write holds only while the tag does.
//!   (Every file names its attempt in its footer, so that no two have one tag.)
//! * Every other file carries its commit's number, and a name that went does not come again, so
//!   that a removal hits what it was meant for or nothing.
//! * Only files of the same or an earlier commit are swept away.

pub mod announcement;
pub mod delta;
pub mod owner;
mod parquet;
mod plan;

pub use parquet::{clear, discard, move_staged, publish, sweep};
pub use plan::{Names, Plan, plan};
