//! glueless folds the change log that a CDC tool leaves in object storage into curated tables,
//! one date window at a time.
//!
//! This page is the manual of the library: how data flows, what holds and why, and where each
//! part is. The program is a thin shell around [`commands`]; the README is its manual. Modules
//! are named by their path below `src`; most of them are private.
//!
//! # Data flow
//!
//! ```text
//!  window, ledger          sql/fold.sql                                   curated.sql
//!        │                      │                                             │
//!        ▼                      ▼                                             ▼
//!  discover ─▶ changes ─▶ fold (pass one) ──bits──▶ merge ──bits──▶ curate (pass two) ─▶ sorter
//!  (sorted     (one       (the position of         (earlier         (payload of the       │
//!   inputs)     relation)  each key's last          changes drop     winners only)        ▼
//!                          changes)                 out; old rows        │             rebuild ◀─ published
//!                                                   are found)           │                │        partitions
//!                                                      ▲                 ▼                ▼
//!                                            versions ─┘◀──────────── versions         staging
//!                                                │                                        │
//!                                                ▼                                        ▼
//!                                            history ─▶ aggregate ◀─ curated ◀─ publish ◀─ commit (state)
//!                                                              └──────────┬─────────┘
//!                                                                         ▼
//!                                                       follow (a database, a catalog)
//! ```
//!
//! 1. `raw::discover` lists the raw files of the window, and late ones that the ledger does not
//!    know (`raw::list`: pruned by date folders and ranges of names), and sorts them in the order of files (`changes::file_order`). A file with another time or
//!    ETag and the same bytes is the one that was folded (`raw::identify`).
//! 2. `raw::open` opens them, and `changes` makes them one relation: it adds each row's day and
//!    `changes::position`, and refuses rows that cannot be folded, with file, row and column, or
//!    quarantines them (`raw::bad_rows`, `state::quarantine`). CSV, JSON and envelopes are converted
//!    to Parquet first (`raw::csv`, `raw::json`, `raw::envelope`); an update that moves a row to
//!    another key becomes two changes (`changes::key_moves`). Files are fetched ahead of decoding, in
//!    fetch units (`parquet_io::fetch`).
//! 3. `fold` runs `sql/fold.sql` over key, day and position only. What runs is that query: an
//!    optimizer rule of ours replaces the engine's grouping by the node `FoldExec`
//!    (`fold::exec`), which `EXPLAIN` shows. It computes the aggregate function `last_changes`: per
//!    key and day, the greatest position, in a table of our own (`fold::key_table`). Of the result,
//!    `changes::row_bitmap` stores one bit per raw row, two where a row can be two changes. A table
//!    without a key has nothing to fold: every row is a winner.
//! 4. `curate::merge` compares the winners with the versions of earlier runs (`state::versions`). A
//!    winner that is not later drops out; for the others, versions say which published rows are
//!    removed, and in which partition they are. What becomes of one key is decided by a pure
//!    function (`curate::merge::decide`).
//! 5. `curate::pass_two` reads the winners' rows again, with all columns, through the checked and
//!    rewritten `curated.sql` (`curate::curated_sql`). Every winner becomes a version. Winners that
//!    are live become rows of the table: grouped by partition (`table::sorter`), appended to the rows
//!    of their partitions that stay (`table::rebuild`), and written to staging (`table::writer`).
//! 6. `curate::stage` holds these steps together and checks that the run adds up. `commands::run`
//!    passes it inputs and folders; [`state`] commits versions and ledger in one Delta commit (of the
//!    ledger's inputs, those of old windows are read by need: `state::inputs`), and
//!    `publish` replaces exactly the planned partitions. Where the curated table has a Delta log of
//!    its own, a commit to that log makes the switch (`publish::delta`).
//!    In a history (`keep = "history"`) the commit time is a part of the key up to here. Nearly every change is the last of
//!    its key and time, so that pass one marks them all, and the merge sorts out the others. It reads what `curated.sql`
//!    makes of them, and versions have a hash of each row (`curate::altered`): which changes are seen, which alter the
//!    row, and when rows end, is decided with all of a key's versions at hand (`curate::merge::intervals`). A row that
//!    one of before was for, too, is copied from the published table (`curate::copies`), or, where not all columns are
//!    compared, read from raw again (`curate::raw_copies`). Where the newest copy of a table is kept (snapshots), keys are
//!    folded the same way, and the table has their rows without an end (`curate::merge::current`). Where the rows of deleted keys stay (`keep_deleted`), so
//!    is that of deletes, and a row ends when its key is deleted (`curate::merge::deletes`). A published row whose end
//!    changes gets its new end while its partition is rebuilt.
//! 7. [`aggregate`] computes the tables per day from the relations `history` (over versions, of those of
//!    several commit times the last one of a day),
//!    `balance` (what each day's changes add to and take from the partition columns' values, kept
//!    with the versions: `state::balance`, `curate::merge::standing`) and `curated` (over the
//!    committed file list), and publishes them the same way.
//!
//! 8. [`follow`] brings what is outside of the lake to the newest commit: tables in PostgreSQL
//!    (`follow::postgres`), tables of the AWS Glue catalog (`follow::glue`). Each has a marker, the last
//!    commit that was applied, and gets the difference between that and the newest one. Versions say
//!    which commit accepted them, so that the keys that changed are known
//!    (`curate::merge::changed_keys`).
//!
//! Before all of it, `capture` can write the raw files itself: the rows of a PostgreSQL database, and then
//! its changes, from a replication slot, or from the tables themselves by a column with the time of a row's last
//! change (`commands::capture`).
//!
//! # Run control
//!
//! A [`Task`](commands::Task) says what a run is to do; it has one or two steps, and each step is
//! one commit ([`run`](fn@commands::run), `commands::run`). A try at that commit
//! (`commands::run::attempt`) ends in one outcome: committed, in doubt, bad input, outrun, or
//! failed. After bad input that may be quarantined the step is tried without it; after another
//! run's commit it is tried on top of that commit, a few times with growing delays. A
//! [backfill](commands::backfill) runs a task per window.
//!
//! # Questions
//!
//! Questions change nothing, and are answered by the steps that a run is made of. [`plan`]
//! discovers as a run does, and for a dry fold stages into a temporary folder
//! (`commands::dry_fold`); [`verify`](fn@commands::verify) stages all inputs from empty in the same
//! way, and compares the digests of both tables (`table::digest`), or exports a table of a database to
//! compare with (`capture::export`);
//! [`explain_key`](fn@commands::explain_key) scans the key's columns, and reads the other columns of
//! the key's own rows as pass two reads winners; [`history`](commands::runs::history) reads the
//! ledger. Each is answered for one commit: if a run commits meanwhile, it is answered again
//! (`commands::one_commit`). Beside their reports, runs are described by [logs](cli::logging) and
//! [metrics](cli::metrics).
//!
//! [`plan`]: fn@commands::plan
//!
//! # What holds, and why
//!
//! * **The last change wins, whatever the tie.** A position is a total order of changes that
//!   depends on the data only: full load before CDC, then the order columns, then file and row.
//!   Without order columns, files are ordered by the time in their names or folders.
//!   It is compared as one integer or byte string (`changes::position`); property tests compare
//!   both with tuples. Winners that only file or row decided are counted.
//! * **Deletes hold.** A delete is a change like any other and wins like any other; where it is
//!   last, versions say so and the table has no row. It needs no column but the key, because its
//!   day is that of its commit time.
//! * **Truncates are floors.** A truncate ends every key that has a row before it in the order of
//!   changes. It is stored in the ledger as values of the data (`state::floors`), and what it ends is
//!   computed from floors and versions together, by the merge, `history` and the balance alike: a
//!   floor that comes late takes the rows before it, and a late change before it makes none. A full load
//!   that has a time (`raw.full_load_at`, `changes::load_times`) is a floor, and rows right after it. A truncate can be
//!   set by hand, and is a floor without a file, and runs from empty take it from the ledger (`commands::run::truncate`).
//! * **Forgotten keys do not come back.** The ledger has salted hashes of them (`state::forgotten`). Pass one leaves their
//!   changes out (`changes::forgotten`), so that nothing after it knows of them, in runs, rebuilds and questions alike; what
//!   was there when they were forgotten is removed by the merge (`curate::merge::forget`, `commands::run::forget`).
//! * **Values of masked columns are nowhere but in raw.** They are replaced in the batch that is read from a Parquet file, and
//!   in the files that stand for those of other formats before they are spilled (`types::mask`, `config::Masks`); positions,
//!   keys and all that comes after have what stands in their place. The masks are a part of the pipeline's identity.
//! * **A table can be made from itself.** Where raw files are gone, `rebuild --from-table` makes it again from its rows
//!   and the versions, in other partitions, another format or folder, with columns that can be computed from those
//!   that it has (`curate::from_table`); the state stays, but for the partitions that versions name.
//! * **Windows do not matter.** A version is the order of the last change per key and day, as
//!   values of the data. A winner replaces it only if it is later (`curate::merge`), so the table
//!   shows the greatest of all changes folded so far, in whatever order and however often they
//!   came. A window that is run again finds its own versions, is not later, and changes nothing. A
//!   row of a table without a key is known by its file, which is folded once. One thing needs the
//!   changes of a transaction in one run: telling a key swap from a row that moves on
//!   (`changes::key_moves`).
//! * **Late data lose nothing and are not lost.** A partition is rebuilt from its existing rows,
//!   minus those that versions remove, plus the new ones (`table::rebuild`); with deletion vectors
//!   its files stay, and the rows that versions remove are marked. Every run records its
//!   window, an empty one too, and its inputs: a file that appears later in a window that was run
//!   is found by the next runs as far as they look back, and by `catch-up` however old it is.
//! * **A row moves, it does not multiply.** A version says in which partition its row is. The old
//!   row is removed in the same commit that adds the new one.
//! * **Nothing is dropped in silence.** A row or file that cannot be read stops the run, or is
//!   counted, and stored with its file, row and the reason; what is quarantined is in the ledger,
//!   and folded again on request. A value is cast to another type only if it stays the same
//!   (`types::column_type`).
//! * **A failed run changes nothing.** Up to the commit all writing is to staging and to files
//!   that no commit names.
//! * **An interrupted run is finished or undone.** The ledger records where a commit's files are
//!   staged; the next command that writes publishes what was committed. Whatever an attempt
//!   writes carries the number of the commit that it is to become, so that files of dead attempts
//!   are recognized and removed.
//! * **A suspended process that wakes up undoes nothing.** Publishing can be repeated, and done by
//!   several processes at once: a file comes into the table only from staging, which is emptied by
//!   that, and the name of a removed file is not used again (`publish`).
//! * **A Delta table is what the state says, or the difference is found.** Its commit carries the
//!   number of the state's commit, so that it is made once, whoever finishes it; before each run
//!   its log must list the files that the ledger lists (`publish::delta`).
//! * **Two runs at once: one is first.** Both aim at one commit number, and nothing retries below
//!   the run ([`state`]); the other one folds again on top of what the first one left.
//! * **A run adds up, or publishes nothing.** Rows in the inputs' footers are compared with where
//!   rows went; and for every partition, rows in the staged files' footers, and those that are left
//!   of files that stay, with those of the old files, minus the rows that versions remove, plus the
//!   winners (`curate::conservation`).
//! * **A damaged table or state is detected.** Files that are read must have the size and the number
//!   of rows that the ledger lists; a row that is removed must have been there, once (`table::rebuild`).
//! * **A follower ends in exactly a commit's state.** Its marker is written with the data, in one
//!   transaction, or last; a load locks it first, and looks for a newer commit before it commits. A key
//!   is deleted if the last of all its versions leaves no row (where deleted rows are kept, the last of an insert or
//!   update), and its row is written if it is among the
//!   files written since; both can be repeated. Publishing does not wait for it.
//! * **A captured change is in one file.** A file of changes is named by the position of its first one and
//!   created if that name is free, and its footer says how far it goes; the server is told that changes
//!   are durable when their files are. What was not confirmed is sent again, and found (`capture`).
//! * **Of two extracts the later one wins.** Each reads all tables in one snapshot, and begins before every time
//!   that a transaction which it does not see can write (`capture::audit`).
//! * **Memory is limited.** Pass one and the sorter spill, winners are bits, a Bloom filter keeps
//!   versions of other keys out of the merge, partitions are rebuilt as streams, in passes if
//!   memory does not hold the keys that they lose, and each thread has one output file of the table
//!   open at a time, and a few of versions.
//!
//! # Map of rooms
//!
//! A module and its folder are a room. Imports run one way, from the top to the ground: a room
//! imports from the rooms below it, and none of its own floor. A test checks this.
//!
//! | floor | room | what it does |
//! |---|---|---|
//! | 1 | [`cli`] | arguments, the program, progress, logs, metrics; reads the environment and the clock |
//! | 2 | [`commands`] | one file per command: run and its steps, backfill, catch-up, rebuild, truncate, forget; load, catalog; plan, runs, verify, explain-key, ddl, doctor; init, compact; capture |
//! | 3 | [`follow`] | followers: PostgreSQL, the Glue catalog; statements for other engines |
//! | 3 | [`aggregate`] | the days to compute, the query of an aggregate, the relations `history` and `balance` |
//! | 4 | `curate` | staging, the merge with versions, pass two through `curated.sql`, conservation checks |
//! | 4 | `publish` | the plan of a commit, its execution for Parquet and Delta, the owner of a folder, announcements |
//! | 5 | `fold` | pass one: `FoldExec`, `last_changes`, the key table |
//! | 5 | [`state`] | versions, ledger, quarantine; the identity and the table contract of a pipeline |
//! | 5 | [`survey`] | looks at an unknown folder of raw files: its tables, and settings that each of them needs |
//! | 6 | `changes` | the relation of changes: reader, position, key moves, file order, row bitmaps |
//! | 6 | [`report`] | the run report, text tables |
//! | 7 | `capture` | the rows and changes of a PostgreSQL database as raw files: catalog, snapshot, log, files |
//! | 7 | `raw` | raw files: discovery, opening, CSV, JSON, envelopes, columns and their changes, bad rows |
//! | 7 | `table` | files of a table: scan, write, sort, rebuild, digest; the Delta log, partition names |
//! | 8 | [`config`] | `pipeline.toml`, `glueless.toml` and sources: read, check, override |
//! | 8 | `parquet_io` | one Parquet object: open, fetch |
//! | 9 | [`store`] | locations, listing, removing |
//! | 10 | [`engine`] | DataFusion: sessions, memory pool, spill folders, tasks |
//! | 10 | [`layout`] | names of objects: date folders, Hive partitions, our own files |
//! | 10 | `postgres` | connections to PostgreSQL, what its refusals mean, and hashes of rows as it computes them |
//! | 10 | `types` | column types, canonical keys and their hashes, times |
//! | 11 | [`window`] | windows of time, dates and durations |
//! | 12 | [`error`] | the error type: kinds, hints, exit codes; texts of libraries that we decide by |
//!
//! Only the program (`main.rs` and `cli`) reads the command line, the environment and the clock;
//! every other room gets them as arguments.

// What is printed goes through logs and reports.
#![warn(clippy::dbg_macro, clippy::print_stderr, clippy::print_stdout)]

pub mod aggregate;
#[cfg(feature = "postgres")]
mod capture;
mod changes;
pub mod cli;
pub mod commands;
pub mod config;
mod curate;
pub mod engine;
pub mod error;
mod fold;
pub mod follow;
pub mod layout;
mod parquet_io;
#[cfg(feature = "postgres")]
mod postgres;
mod publish;
mod raw;
pub mod report;
pub mod state;
pub mod store;
pub mod survey;
mod table;
mod types;
pub mod window;
