//! glueless folds the change log that a CDC tool leaves in object storage into curated tables,
//! one date window at a time.
//!
//! This page is the manual of the library: how data flows, what holds and why, and where each
//! part is. The program is a thin shell around [`pipeline::run`]; the README is its manual.
//!
//! # Data flow
//!
//! ```text
//!  window, ledger                 sql/fold.sql              curated.sql
//!        │                             │                         │
//!        ▼                             ▼                         ▼
//!  discover ─▶ changes ─────────▶ fold (pass one) ──bits──▶ curate (pass two) ─▶ table_writer ─▶ staging
//!  (sorted     (one relation,     (the place of each        (payload of the          │
//!   inputs)     checked rows)      key's last changes)       winners only)           ▼
//!                                                                │            check, commit (state)
//!                                                                ▼                   │
//!                                                            versions ─▶ state       ▼
//!                                                                │                publish ─▶ curated table
//!                                                                ▼                   │
//!                                                   history ─▶ aggregate ◀── curated ┘ ─▶ tables per day
//! ```
//!
//! 1. [`discover`] lists the raw files of the window and sorts them in the order of files.
//! 2. [`changes`] opens them as one relation, adds each row's day and [`position`], and refuses
//!    rows that cannot be folded, naming file, row and column.
//! 3. [`fold`] runs `sql/fold.sql` over key and position only. The aggregate function
//!    [`last_changes`] keeps, per key and day, the greatest position; [`winners`] keeps one bit
//!    per raw row of it.
//! 4. [`curate`](mod@curate) reads the winners' rows again, with all columns, through the checked
//!    and rewritten `curated.sql` ([`curated_sql`]). Every winner becomes a row of [`versions`];
//!    those that live become rows of the table, put in order by partition and key ([`sorter`])
//!    and written to staging by [`table_writer`].
//! 5. [`pipeline`] checks that the run adds up, [`state`] commits versions and ledger in one
//!    Delta commit, and [`publish`] swaps exactly the planned partitions.
//! 6. [`aggregate`] computes the tables per day from `history` (over versions) and `curated`
//!    (over the committed file list), and publishes them the same way.
//!
//! # What holds, and why
//!
//! * **The last change wins, whatever the tie.** A position is a total order of changes that
//!   depends on the data only: full load before CDC, then the order columns, then file and row.
//!   It is compared as one integer or byte string ([`position`]); property tests hold both
//!   against tuples. Winners that only file or row decided are counted.
//! * **Deletes hold.** A delete is a change like any other and wins like any other; where it is
//!   last, versions say so and the table has no row. It needs no column but the key, because its
//!   day is that of its commit time.
//! * **Repeating a run gives the same tables.** Results depend on the inputs only; partitions are
//!   replaced whole, a partition of one file under the same name, and files that the ledger does
//!   not list are swept away.
//! * **A failed run changes nothing.** Up to the commit all writing goes to staging and to files
//!   that no commit names. A run that does not read everything folded before is refused
//!   ([`state::Ledger::check_complete`]), because it could not rebuild what it replaces.
//! * **An interrupted run is finished or undone.** The ledger keeps where a commit's files are
//!   staged; the next command, whichever it is, publishes what was committed.
//! * **A run adds up, or publishes nothing.** Rows in the inputs' footers are compared with where
//!   rows went, and rows in the staged files' footers with what was counted.
//! * **Memory is limited.** Pass one and the [`sorter`] of pass two spill, winners are bits, and
//!   each thread has one output file open at a time.
//!
//! # Map of modules
//!
//! Dependencies point down only; steps do not import each other's insides.
//!
//! | layer | modules |
//! |---|---|
//! | surface | `args`, [`report`], [`config`] |
//! | the run | [`pipeline`] |
//! | steps | [`discover`], [`fold`], [`curate`](mod@curate), [`aggregate`], [`publish`] |
//! | relations | [`changes`], [`change_reader`], [`raw_columns`], [`curated_sql`], [`versions`], [`file_table`] |
//! | memory between runs | [`state`] |
//! | parts | [`last_changes`], [`winners`], [`position`], [`times`], [`parquet_file`], [`partition_name`], [`sorter`], [`table_writer`], [`session`], [`memory`] |
//! | ground | [`window`], [`layout`], [`store`], [`error`] |
//!
//! Only the program's `main` reads the command line, the environment and the clock; everything
//! else is handed them.

pub mod aggregate;
pub mod args;
pub mod change_reader;
pub mod changes;
pub mod config;
pub mod curate;
pub mod curated_sql;
pub mod discover;
pub mod error;
pub mod file_table;
pub mod fold;
pub mod last_changes;
pub mod layout;
pub mod memory;
pub mod parquet_file;
pub mod partition_name;
pub mod pipeline;
pub mod position;
pub mod publish;
pub mod raw_columns;
pub mod report;
pub mod session;
pub mod sorter;
pub mod state;
pub mod store;
pub mod table_writer;
pub mod times;
pub mod versions;
pub mod window;
pub mod winners;
