//! The commands of the program, one file per command.

pub mod backfill;
#[cfg(feature = "postgres")]
mod capture;
mod catch_up;
mod compact;
mod ddl;
mod doctor;
mod dry_fold;
mod explain_key;
mod follow;
mod init;
mod one_commit;
mod open_pipeline;
mod plan;
mod retry;
mod run;
pub mod runs;
mod task;
mod verify;

#[cfg(feature = "postgres")]
pub use capture::{CaptureContext, CaptureMode, CaptureReport, CapturedTableReport, capture};
pub use compact::{Compacted, CompactedDay, compact};
pub use ddl::{Statements, ddl};
pub use doctor::{Machine, doctor};
pub use explain_key::{Explained, explain_key};
pub use follow::{catalog, load};
pub use init::{InitContext, Initialized, InitializedTable, LeftOutFiles, init};
pub use open_pipeline::RunContext;
pub use plan::{Estimate, Planned, PlannedFold, plan};
pub use run::{finish, run};
pub use task::Task;
pub use verify::{Compared, Verified, verify};
