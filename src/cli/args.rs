//! Command line arguments. Their doc comments are the help text of the commands.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Reads the change files that a CDC tool writes to object storage, and keeps tables of the current
/// rows, one date window at a time. To fold changes is to keep only the last change of each key. Any
/// windows, in any order, any number of times, give the same tables.
#[derive(Debug, Parser)]
#[command(name = "glueless", version, after_long_help = AFTER_HELP)]
pub struct Arguments {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,

    /// Logging options.
    #[command(flatten)]
    pub logging: Logging,
}

const AFTER_HELP: &str = "\
Logs go to stderr; a command's result goes to stdout.

Exit codes:
   0  done
   1  verify found a difference, or doctor an error
   2  wrong command line or pipeline
  65  bad input data, or a row that the database refuses
  69  storage or database not reachable: retry later
  70  internal error: a bug in glueless
  75  another run is publishing: retry later
 130  backfill stopped by Ctrl-C

Examples:
  glueless init        s3://bucket/raw --out sql                                        write a project for raw files
  glueless plan        sql/cust_loyalty --start-date 2019-12-12 --end-date 2019-12-13   preview a run
  glueless run         sql/cust_loyalty --start-date 2019-12-12 --end-date 2019-12-13
  glueless backfill    sql/cust_loyalty --start-date 2019-12-01 --end-date 2020-01-01   run a month, day by day
  glueless capture     shop.toml                                                        capture a database
  glueless runs        sql/cust_loyalty                                                 list past runs
  glueless verify      sql/cust_loyalty                                                 check the table against raw
  glueless explain-key sql/cust_loyalty Cust100                                         trace the changes of a key

  glueless run sql/cust_loyalty --start-date 2019-12-12T06:00:00Z --end-date 2019-12-12T07:00:00Z \\
      --set raw.url=s3://bucket/raw/cust_loyalty --set limits.memory=2GiB

S3 is reached with the standard AWS settings: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
AWS_PROFILE, web identity and instance roles, AWS_REGION, and AWS_ENDPOINT_URL for other stores.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Update the curated table and its aggregates.
    ///
    /// Folds the window's changes into the curated table and recomputes the aggregates' days.
    /// Given several pipelines, runs each one even if another fails; the exit code is the worst.
    Run(WindowOfMany),
    /// Update the curated table only.
    ///
    /// Lists the raw files of the window, keeps the last change of each key (or of each key and day),
    /// and replaces exactly the partitions of the curated table that change.
    Curate(WindowOfMany),
    /// Recompute the aggregates only.
    ///
    /// Recomputes the window's days, and every day that changed since it was last aggregated,
    /// from the curated table as last committed.
    Aggregate(WindowOfMany),
    /// Run a long period in steps.
    ///
    /// Splits the period into windows of one step and runs them in order. Windows that were already
    /// run and whose files have not changed are skipped, so an interrupted backfill resumes where it
    /// stopped. When a window fails, the next ones still run; an error in the command line or the
    /// pipeline stops the backfill. Ctrl-C stops after the current window; a second Ctrl-C stops at
    /// once, which is safe too.
    Backfill(Backfill),
    /// Capture the changes of a PostgreSQL database into raw files.
    ///
    /// The first time, makes a replication slot and a publication, and writes the rows of all tables to
    /// full loads. From then on, writes what has changed since the last capture, up to where the log of the
    /// database ends when the command begins. With `mode = "audit"` it reads tables by a column with the time of
    /// a row's last change, and needs neither.
    Capture(Capture),
    /// Fold what no run has folded yet.
    ///
    /// Folds everything between the start of the first window and the end of the last that no run has
    /// folded: files that appeared after their window was run, files between the windows, and what is
    /// in quarantine, if it can be read now. A file that was quarantined as a whole may have been
    /// repaired; one that has changed since some of its rows were folded needs `rebuild`.
    CatchUp(Many),
    /// Load the tables into the database of `[load]`.
    ///
    /// Applies what has changed in the published tables since the last load, in one transaction: keys of
    /// the curated table, days of aggregates. Runs, backfills, catch-up and rebuild do it at their end;
    /// this command does it by hand, such as after a database was not reachable.
    Load(Load),
    /// Register the tables in the catalog of `[catalog]`.
    ///
    /// Makes or updates the tables in the AWS Glue catalog, and adds and removes partitions, so that
    /// they are those of the published tables. Runs, backfills, catch-up and rebuild do it at their end;
    /// by hand, what others have changed in the catalog is mended too.
    Catalog(Many),
    /// Rebuild all tables from raw.
    ///
    /// Folds every raw file that was folded so far, builds the curated table, the state and the
    /// aggregates from empty beside the old ones, and switches to them. Use it after a raw file or
    /// the pipeline has changed. Refused when one of these raw files is missing.
    Rebuild(Rebuild),
    /// Compact the small files of changes of days into few.
    ///
    /// Writes the changes of each day of the window, with all columns and in the order of changes, into few files of another
    /// folder: changedate=2019-04-01/part-….parquet. Each row has the raw file and the row that it comes from. Raw files are
    /// not changed; a day is replaced as a whole when it has new files.
    Compact(Compact),
    /// Set a truncate by hand.
    ///
    /// For a source whose tool writes no truncates into files, such as AWS DMS: says that the source table was emptied
    /// at a time. Ends every row whose last change is before it, as a truncate among the changes does, also if that
    /// change is folded later. Rebuilds keep it.
    Truncate(Truncate),
    /// Forget keys for good.
    ///
    /// For people who ask to be forgotten: removes the rows of keys from the curated table, and what the state remembers
    /// of them, and computes the aggregates' days again. Changes of these keys are left out from then on, late ones and
    /// those of a rebuild too: a hash of each key stays to recognize it. Raw files, backups and earlier versions
    /// of a Delta table are not touched.
    Forget(Forget),
    /// Show what a run would do.
    ///
    /// Lists what a run of the window would read, and changes nothing: files and bytes, late files
    /// of earlier windows, days that are published already, memory and time estimated from earlier runs.
    Plan(Plan),
    /// Write a project for a folder of raw files.
    ///
    /// Looks at an unknown folder or bucket: finds the tables in it, reads a few rows of each, and writes a pipeline for
    /// each table, with its key, the order of its changes and how its files are written. Says how sure each of these is, and
    /// why; what cannot be known stays a question in the file, and the pipeline does not run until it is answered. Changes
    /// nothing but in --out, and no file there that exists: run it again when there are new tables.
    Init(Init),
    /// Look for what would fail tonight.
    ///
    /// Checks the configuration, reach and rights of every location, the clock, memory and disk, what the next run would read,
    /// gaps, quarantine and lag, and the targets of [load] and [catalog]. A line each, with the next step. Exits with code 1 if
    /// there is an error. Changes nothing, but writes a small object to each location of a table, and removes it again.
    Doctor(Doctor),
    /// Print statements that make the tables known elsewhere.
    ///
    /// Prints external tables for Athena, Hive or Spark, views for DuckDB, tables for PostgreSQL, or an
    /// external schema, tables and load procedures for Redshift. Runs nothing.
    Ddl(Ddl),
    /// List past runs.
    ///
    /// Lists all runs in the ledger: window, start time, rows, late files, partitions, seconds; then
    /// the gaps between their windows.
    Runs(One),
    /// Check the tables against raw.
    ///
    /// Folds all raw files that were folded so far once more, from empty, and compares the result
    /// with the table: rows, rows per day, and a hash per partition that does not depend on the order
    /// of rows. Names the first key that differs. Exits with code 1 on a difference. Changes
    /// nothing, but with --source.
    /// The aggregates are compared too. Needs disk in `limits.spill_dir` for another copy of the
    /// table, in addition to `limits.spill_bytes_max`. Refused when one of the raw files is missing or
    /// has changed.
    Verify(Verify),
    /// Show the changes of one key.
    ///
    /// Lists every change of a key in the raw files: its file and row, its order, its operation, and
    /// the run that folded it; then which change is the last and why, and where the key's row is now.
    ExplainKey(ExplainKey),
}

/// Logging options.
#[derive(Args, Debug)]
pub struct Logging {
    /// Log more: the files that are read, and the result of each step.
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,

    /// Log only the error when a command fails.
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// Format of log lines. Both formats name the run.
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Time, level, run and message.
    Text,
    /// One JSON object per line.
    Json,
}

/// Start and end of a window.
#[derive(Args, Debug)]
pub struct Dates {
    /// Start of the window, UTC, inclusive: 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00'.
    #[arg(long, alias = "startDate", value_name = "DATE")]
    pub start_date: String,

    /// End of the window, UTC; it is not part of the window.
    #[arg(long, alias = "endDate", value_name = "DATE")]
    pub end_date: String,
}

/// Options of all commands that read a pipeline.
#[derive(Args, Debug)]
pub struct Common {
    /// Override a key of pipeline.toml, or of a source, such as raw.url=s3://bucket/raw or
    /// aggregate.NAME.url=/tables/daily. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Format of the result: json is one line, text a short table. Default: text on a terminal, json
    /// otherwise.
    #[arg(long, value_enum)]
    pub output: Option<Output>,
}

/// One pipeline.
#[derive(Args, Debug)]
pub struct One {
    /// The pipeline: the folder with its pipeline.toml, or the toml file itself.
    pub pipeline: PathBuf,

    /// Options of all commands.
    #[command(flatten)]
    pub common: Common,
}

/// The pipelines to run.
#[derive(Args, Debug)]
pub struct Many {
    /// The pipelines.
    #[command(flatten)]
    pub several: Several,

    /// Write metrics of each pipeline's last run to this file, for the textfile collector of
    /// Prometheus' node exporter (a name that ends in .prom). The file is replaced atomically; metrics
    /// of other pipelines in it stay.
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
}

/// Several pipelines.
#[derive(Args, Debug)]
pub struct Several {
    /// The pipelines: folders with a pipeline.toml each, or the toml files themselves. Given several
    /// paths, other files and folders are skipped, so sql/* works.
    #[arg(required = true, value_name = "PIPELINE")]
    pub pipelines: Vec<PathBuf>,

    /// How they are worked on.
    #[command(flatten)]
    pub at_once: AtOnce,
}

impl Several {
    /// The pipelines, and how they are worked on.
    pub fn both(&self) -> (&[PathBuf], &AtOnce) {
        (&self.pipelines, &self.at_once)
    }
}

/// How several pipelines are worked on.
#[derive(Args, Debug)]
pub struct AtOnce {
    /// Options of all commands.
    #[command(flatten)]
    pub common: Common,

    /// Work on so many pipelines at once. They share the limits: each has its part of `limits.memory` and
    /// `limits.spill_bytes_max`. With --metrics-file those that took longest the last time begin first.
    #[arg(long, value_name = "N", default_value = "1")]
    pub jobs: NonZeroUsize,

    /// Give a pipeline up that has not ended after this time, such as 30m, so that it does not hold up others.
    #[arg(long, value_name = "LENGTH")]
    pub timeout: Option<String>,
}

/// Arguments of `init`.
#[derive(Args, Debug)]
pub struct Init {
    /// The folder with the raw files of all tables: a path, file:// or s3://.
    pub url: String,

    /// The folder of the project: glueless.toml and a folder for each pipeline.
    #[arg(long, value_name = "FOLDER", default_value = "sql")]
    pub out: PathBuf,

    /// Where the tables are to go: a path, file:// or s3://. Default: lake, beside the project's folder.
    #[arg(long, value_name = "URL")]
    pub lake: Option<String>,

    /// The name of an environment variable with the URL of the source, a PostgreSQL database: its catalog then says what the
    /// keys are, and what the columns of CSV files without a header are.
    #[arg(long, value_name = "VARIABLE")]
    pub source_url_env: Option<String>,

    /// Format of the result, as for `run`.
    #[arg(long, value_enum)]
    pub output: Option<Output>,
}

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// The pipelines, as for `run`. Default: those of the project in the current folder.
    #[arg(default_value = ".", value_name = "PIPELINE")]
    pub pipelines: Vec<PathBuf>,

    /// How they are worked on.
    #[command(flatten)]
    pub at_once: AtOnce,
}

/// Pipelines and a window of time.
#[derive(Args, Debug)]
pub struct WindowOfMany {
    /// The window.
    #[command(flatten)]
    pub dates: Dates,

    /// The pipelines.
    #[command(flatten)]
    pub many: Many,
}

/// Arguments of `rebuild`.
#[derive(Args, Debug)]
pub struct Rebuild {
    /// Continue without raw files and rows that are missing or can no longer be read. Changes that
    /// only they hold are lost.
    #[arg(long)]
    pub accept_missing: bool,

    /// Make the tables again from the rows of the curated table, where raw files are gone: in other partitions, another
    /// format or folder, with columns that can be computed from those that the table has.
    #[arg(long, conflicts_with = "accept_missing")]
    pub from_table: bool,

    /// The pipelines.
    #[command(flatten)]
    pub many: Many,
}

/// Arguments of `compact`.
#[derive(Args, Debug)]
pub struct Compact {
    /// The days: from a date, to a date that is not part of it.
    #[command(flatten)]
    pub dates: Dates,

    /// The folder that gets the days: a path, file:// or s3://. Default: `compact.url`.
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,

    /// The pipelines.
    #[command(flatten)]
    pub several: Several,
}

/// Arguments of `truncate`.
#[derive(Args, Debug)]
pub struct Truncate {
    /// The time at which the source table was emptied, UTC: 2019-04-01T06:00:00Z. Changes of exactly this time stay.
    #[arg(long, value_name = "TIME")]
    pub at: String,

    /// Take back the truncate that was set at this time, and rebuild all tables from raw.
    #[arg(long)]
    pub undo: bool,

    /// The pipelines.
    #[command(flatten)]
    pub many: Many,
}

/// Arguments of `forget`.
#[derive(Args, Debug)]
pub struct Forget {
    /// The pipeline.
    #[command(flatten)]
    pub one: One,

    /// The keys. Of several columns, the values are separated by commas, as in CSV: acme,42. Put -- before a key that
    /// begins with a dash.
    #[arg(value_name = "KEY", allow_negative_numbers = true)]
    pub keys: Vec<String>,

    /// A CSV file with a key per line, or - for stdin; so that keys are neither in the shell's history nor in the list of
    /// processes.
    #[arg(long, value_name = "FILE")]
    pub keys_file: Option<PathBuf>,

    /// Fold the changes of these keys again, and rebuild all tables from raw.
    #[arg(long)]
    pub undo: bool,
}

/// Arguments of `load`.
#[derive(Args, Debug)]
pub struct Load {
    /// Load everything, whatever the database says was loaded: rows that it should not have are deleted,
    /// and rows that differ are updated.
    #[arg(long)]
    pub full: bool,

    /// The pipelines.
    #[command(flatten)]
    pub many: Many,
}

/// Arguments of `capture`.
#[derive(Args, Debug)]
pub struct Capture {
    /// The source: its toml file.
    pub source: PathBuf,

    /// Read tables anew, into the same folder: those that are named, or all.
    ///
    /// For changes that are lost, because the slot or the publication was dropped, or the server has removed its
    /// log. The rows of each table are written behind the changes that its files have, after a truncation; then the
    /// changes since then.
    #[arg(long, value_name = "TABLE", num_args = 0.., conflicts_with = "follow")]
    pub new_snapshot: Option<Vec<String>>,

    /// Go on until Ctrl-C, and write files at least after each `--every`.
    #[arg(long)]
    pub follow: bool,

    /// The longest time until a change is in a file, with --follow.
    #[arg(long, value_name = "LENGTH", default_value = "60s", requires = "follow")]
    pub every: String,

    /// Options of all commands.
    #[command(flatten)]
    pub common: Common,

    /// Write metrics of the source's last capture to this file; as for `run`.
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
}

/// Arguments of `ddl`.
#[derive(Args, Debug)]
pub struct Ddl {
    /// The dialect of the statements.
    #[arg(long, value_enum)]
    pub dialect: Dialect,

    /// The pipeline.
    #[command(flatten)]
    pub one: One,
}

/// The dialect of statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dialect {
    /// Amazon Athena.
    Athena,
    /// Apache Hive.
    Hive,
    /// Apache Spark.
    Spark,
    /// DuckDB.
    Duckdb,
    /// PostgreSQL.
    Postgres,
    /// Amazon Redshift.
    Redshift,
}

/// When followers are brought to the newest commit in a backfill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Follow {
    /// Once, at its end.
    Once,
    /// After each window.
    Each,
}

/// Arguments of `backfill`.
#[derive(Args, Debug)]
pub struct Backfill {
    /// The span.
    #[command(flatten)]
    pub dates: Dates,

    /// Length of each window: a number and w, d, h or m. The last window ends with the span.
    #[arg(long, value_name = "LENGTH", default_value = "1d")]
    pub step: String,

    /// Skip windows that were already run and whose files have not changed. This is the default.
    #[arg(long, conflicts_with = "redo")]
    pub resume: bool,

    /// Run every window, including those that were already run.
    #[arg(long)]
    pub redo: bool,

    /// Stop at the first window that fails.
    #[arg(long)]
    pub fail_fast: bool,

    /// When the database of `[load]` follows.
    #[arg(long, value_enum, default_value = "once")]
    pub follow: Follow,

    /// The pipelines.
    #[command(flatten)]
    pub many: Many,
}

/// Arguments of `plan`.
#[derive(Args, Debug)]
pub struct Plan {
    /// The window.
    #[command(flatten)]
    pub dates: Dates,

    /// Also fold, without publishing, to show how many rows would win and which days and partitions
    /// would be replaced. Takes as long as the run, and as much disk in `limits.spill_dir` as the run
    /// would write, in addition to `limits.spill_bytes_max`.
    #[arg(long)]
    pub fold: bool,

    /// The pipeline.
    #[command(flatten)]
    pub one: One,
}

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// Compare only this day and later ones: 2019-04-01, UTC.
    #[arg(long, alias = "startDate", value_name = "DATE")]
    pub start_date: Option<String>,

    /// Compare only days before this one, UTC.
    #[arg(long, alias = "endDate", value_name = "DATE")]
    pub end_date: Option<String>,

    /// Compare the published table with this Parquet or Delta table instead of raw; the path or URL of
    /// its folder. Compares rows, rows per day, and hashes, by the values of its partition columns,
    /// wherever its files are.
    ///
    /// `postgres` is the table of [verify] in pipeline.toml: its rows are read in one snapshot, and compared
    /// by the columns that both have.
    #[arg(long, value_name = "URL")]
    pub against: Option<String>,

    /// With --against postgres: if keys differ, compare again after this time, and report only keys that
    /// differ both times; the table may lag behind the database by so much.
    #[arg(long, value_name = "LENGTH", requires = "against")]
    pub lag: Option<String>,

    /// With --against postgres: capture this source, a toml file, up to the moment of the comparison, and run the
    /// pipeline; then both have the same changes, while writers go on.
    #[arg(long, value_name = "FILE", requires = "against", conflicts_with = "lag")]
    pub source: Option<PathBuf>,

    /// The pipelines.
    #[command(flatten)]
    pub several: Several,
}

/// Arguments of `explain-key`.
#[derive(Args, Debug)]
pub struct ExplainKey {
    /// The pipeline.
    #[command(flatten)]
    pub one: One,

    /// The key: the values of its columns, in order. Put -- before a value that begins with a dash.
    #[arg(required = true, value_name = "VALUE", allow_negative_numbers = true)]
    pub key: Vec<String>,
}

/// Format of a command's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line of JSON.
    Json,
    /// A short table.
    Text,
}
