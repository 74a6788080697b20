//! glueless folds the change log that a CDC tool leaves in object storage into curated tables,
//! one date window at a time.
//!
//! This page is the manual of the library: how data flows, what holds and why, and where each
//! part is. The program is a thin shell around [`pipeline::run`]; the README is its manual.
//!
//! # Data flow
//!
//! ```text
//!  window, ledger          sql/fold.sql                                   curated.sql
//!        │                      │                                             │
//!        ▼                      ▼                                             ▼
//!  discover ─▶ changes ─▶ fold (pass one) ──bits──▶ merge ──bits──▶ curate (pass two) ─▶ sorter
//!  (sorted     (one       (the place of each        (losers drop     (payload of the       │
//!   inputs)     relation)  key's last changes)       out; old rows    winners only)        ▼
//!                                                    are found)           │             rebuild ◀─ published
//!                                                      ▲                  ▼                │        partitions
//!                                            versions ─┘◀───────────── versions            ▼
//!                                                │                                      staging
//!                                                ▼                                         ▼
//!                                            history ─▶ aggregate ◀─ curated ◀─ publish ◀─ commit (state)
//! ```
//!
//! 1. [`discover`] lists the raw files of the window, and late ones that the ledger does not know,
//!    and sorts them in the order of files.
//! 2. [`changes`] opens them ([`opening`]) as one relation, adds each row's day and [`position`], and
//!    refuses rows that cannot be folded, naming file, row and column, or puts them aside
//!    ([`quarantine`]). CSV files become Parquet first ([`csv_file`]); an update that moves a row to
//!    another key becomes two changes ([`key_moves`]). What is read is fetched ahead of what decodes
//!    it, in pieces ([`parquet_pieces`]).
//! 3. [`fold`] runs `sql/fold.sql` over key and position only. The aggregate function
//!    [`last_changes`] keeps, per key and day, the greatest position, in a table of our own
//!    ([`key_table`]); [`winners`] keeps one bit per raw row of it, two where a row can be two
//!    changes. A table without a key has nothing to fold: every row wins.
//! 4. [`merge`] compares the winners with the [`versions`] that earlier runs left. What is not
//!    later drops out; of the rest, versions say which published rows go, and where these are.
//! 5. [`curate`](mod@curate) reads the winners' rows again, with all columns, through the checked
//!    and rewritten `curated.sql` ([`curated_sql`]). Every winner becomes a version; those that
//!    live become rows of the table, put in order by partition and key ([`sorter`]), merged with
//!    what their partitions held ([`rebuild`]) and written to staging by [`table_writer`].
//! 6. [`stage`] holds these steps together and checks that the run adds up. [`pipeline`] hands it
//!    inputs and folders; [`state`] commits versions and [`ledger`] in one
//!    Delta commit, and [`publish`] swaps exactly the planned partitions. Where the curated table
//!    has a Delta log of its own, a commit to that one makes the switch ([`delta_table`]).
//! 7. [`aggregate`] computes the tables per day from `history` (over versions) and `curated`
//!    (over the committed file list), and publishes them the same way.
//!
//! # Questions
//!
//! Questions touch nothing, and are answered by the steps that a run is made of. [`pipeline::plan`]
//! discovers as a run does, and with a fold stages into a folder that is gone afterwards;
//! [`pipeline::verify`] stages all inputs onto nothing in the same way, and compares the [`digest`]s
//! of both tables; [`pipeline::explain_key`] scans the key's columns, and reads the rest of the
//! key's own rows as pass two reads winners; [`history::history`] reads the ledger. What is told of
//! runs beside their reports is in [`logging`] and [`metrics`].
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
//! * **Windows do not matter.** A version is the order of the last change per key and day, as
//!   values of the data. A winner replaces it only if it is later ([`merge`]), so what is published
//!   is the greatest of all changes folded so far, in whatever order and how often they came. A
//!   window run again meets its own versions, is not later, and changes nothing. A row of a table
//!   without a key is known by its file, which is folded once. One thing needs the changes of a
//!   transaction in one run: telling rows that change places from one that moves ([`key_moves`]).
//! * **Late data lose nothing and are not lost.** A partition is rebuilt from its own rows, less
//!   those that versions say go, plus those that come ([`rebuild`]). Every run remembers its window,
//!   an empty one too, and its inputs: what appears later in a window that was run is found, by the
//!   next runs as far as they look back, and by catching up however far.
//! * **A row moves, it does not multiply.** A version says in which partition its row is. The row
//!   goes in the same commit in which the new one comes.
//! * **Nothing is dropped in silence.** A row or file that cannot be read stops the run, or is
//!   counted, and kept with its place and the reason; what was put aside is in the ledger, and
//!   folded again on request. A value takes another type only if it stays what it is
//!   ([`column_type`]).
//! * **A failed run changes nothing.** Up to the commit all writing goes to staging and to files
//!   that no commit names.
//! * **An interrupted run is finished or undone.** The ledger keeps where a commit's files are
//!   staged; the next command, whichever it is, publishes what was committed. Whatever an attempt
//!   writes carries the number of the commit it can become, so dead attempts are known and removed.
//! * **Who sleeps undoes nothing.** Publishing can be repeated and done by several at once: a file
//!   gets to its place only from staging, where it is taken from, and a name that went does not
//!   come again ([`publish`]).
//! * **A Delta table is what the state says, or is found not to be.** Its commit carries the number
//!   of the state's, so that it is made once, whoever finishes it; before each run its log must
//!   list the files that the ledger lists ([`delta_table`]).
//! * **Two runs at once: one is first.** Both aim at one commit number, and nothing retries below
//!   the run ([`state`]); the other one folds again on top of what the first one left.
//! * **A run adds up, or publishes nothing.** Rows in the inputs' footers are compared with where
//!   rows went; and for every partition, rows in the staged files' footers with those in the old
//!   files' footers, less the rows that go by the versions, plus the winners.
//! * **A damaged table or state is found out.** Listed files must be there in their size and with
//!   their rows, in their order; a row that goes must have been there ([`rebuild`]).
//! * **Memory is limited.** Pass one and the [`sorter`] spill, winners are bits, a Bloom filter
//!   keeps versions of other keys out of the merge, partitions are rebuilt as streams, and each
//!   thread has one output file open at a time, of versions a few.
//!
//! # Map of modules
//!
//! Dependencies point down only; steps do not import each other's insides.
//!
//! | layer | modules |
//! |---|---|
//! | surface | `args`, [`report`], [`config`], [`logging`], [`metrics`], [`table_text`] |
//! | runs and questions | [`backfill`], [`pipeline`], [`history`] |
//! | steps | [`stage`], [`discover`], [`fold`], [`merge`], [`curate`](mod@curate), [`rebuild`], [`aggregate`], [`publish`], [`delta_table`] |
//! | relations | [`changes`], [`opening`], [`change_reader`], [`raw_columns`], [`schema_changes`], [`key_moves`], [`quarantine`], [`curated_sql`], [`versions`], [`versions_writer`], [`file_table`] |
//! | memory between runs | [`ledger`], [`state`] |
//! | parts | [`key_table`], [`last_changes`], [`winners`], [`position`], [`file_numbers`], [`times`], [`column_type`], [`bad_rows`], [`csv_file`], [`csv_records`], [`parquet_file`], [`parquet_pieces`], [`partition_name`], [`sorter`], [`table_writer`], [`delta_log`], [`digest`], [`session`], [`memory`] |
//! | ground | [`window`], [`layout`], [`store`], [`error`] |
//!
//! Only the program's `main` reads the command line, the environment and the clock; everything
//! else is handed them.

pub mod aggregate;
mod changes;
pub mod cli;
pub mod commands;
pub mod config;
mod curate;
pub mod engine;
pub mod error;
mod fold;
pub mod layout;
mod parquet_io;
mod publish;
mod raw;
pub mod report;
pub mod state;
pub mod store;
mod table;
mod types;
pub mod window;
