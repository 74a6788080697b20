//! Publishing: replaces exactly the planned partitions of a Hive-partitioned Parquet table.
//!
//! A plan is made from the staged files and the table's files before (from the ledger, never from a
//! listing). Once it is committed, every new file is moved into the table, then the old files are
//! removed. Emptied partitions lose their folder.
//!
//! Any process may publish a commit, any number of times, also concurrently: the next command
//! finishes an interrupted publish (the ledger lists the files of announced runs with their paths in
//! staging). A process that was suspended while others went on does no harm:
//!
//! * A partition with one file before and after keeps the file's name, and the file is replaced
//!   atomically, so that a reader sees the old or the new one. This needs the file in staging, which
//!   is removed before anything newer is published: locally the rename removes it. On S3 a copy
//!   cannot be conditional on the object that it replaces, so the ETag of that object is read first,
//!   then the staged file, and the write succeeds only if the ETag is still the same. (Every file
//!   names its attempt in its footer, so that no two files have the same ETag.)
//! * Every other file carries its commit's number, and the name of a removed file is never used
//!   again, so that a late removal removes the intended file or nothing.
//! * Only files of the same or an earlier commit are swept.

pub(crate) mod announcement;
pub(crate) mod delta;
pub(crate) mod owner;
mod parquet;
mod plan;

pub(crate) use parquet::{clear, discard, move_staged, publish, sweep};
pub(crate) use plan::{FileNames, PartitionFiles, Plan, plan};
