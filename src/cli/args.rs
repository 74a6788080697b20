//! The command line. Its help is the manual of the commands.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Folds the change log that a CDC tool leaves in object storage into curated tables, one date
/// window at a time. Any windows, in any order, any number of times, give the same tables.
#[derive(Debug, Parser)]
#[command(name = "glueless", version, after_long_help = AFTER_HELP)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What is logged.
    #[command(flatten)]
    pub logging: Logging,
}

const AFTER_HELP: &str = "\
Logs go to stderr; what a command tells goes to stdout, as its last line.

Exit codes:
   0  done
   1  verify found a difference
   2  wrong command line or pipeline
  65  bad input data
  69  storage not reachable: retry later
  70  a fault of glueless
  75  another run is publishing: retry later
 130  a backfill that Ctrl-C stopped

A day's work:
  glueless plan        sql/cust_loyalty --start-date 2019-12-12 --end-date 2019-12-13   what will happen
  glueless run         sql/cust_loyalty --start-date 2019-12-12 --end-date 2019-12-13
  glueless backfill    sql/cust_loyalty --start-date 2019-12-01 --end-date 2020-01-01   a month, day by day
  glueless runs        sql/cust_loyalty                                                 what happened
  glueless verify      sql/cust_loyalty                                                 is the table right?
  glueless explain-key sql/cust_loyalty Cust100                                         why is this row so?

  glueless run sql/cust_loyalty --start-date 2019-12-12T06:00:00Z --end-date 2019-12-12T07:00:00Z \\
      --set raw.url=s3://bucket/raw/cust_loyalty --set limits.memory=2GiB

S3 is reached with the standard AWS settings: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
AWS_PROFILE, web identity and instance roles, AWS_REGION, and AWS_ENDPOINT_URL for other stores.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Curate, then aggregate.
    ///
    /// Folds the window's changes into the curated table and recomputes the aggregates' days. Of
    /// several pipelines each is run, whatever becomes of the others; the exit code is the worst.
    Run(WindowOfMany),
    /// The curated table only.
    ///
    /// Lists the raw files of the window, reduces their changes to the last one per key (or per
    /// key and day), and replaces exactly the partitions of the curated table that change.
    Curate(WindowOfMany),
    /// The aggregates only.
    ///
    /// Recomputes the window's days, and every day that changed since it was last aggregated,
    /// from what was curated last.
    Aggregate(WindowOfMany),
    /// Window after window.
    ///
    /// Cuts the span into windows of one step and runs them in their order. Windows that were run
    /// and whose files are still the same are skipped, so that a backfill that was interrupted goes
    /// on where it was. A window that fails does not keep the next ones from being run; an error of
    /// the command line or the pipeline does. Ctrl-C stops after the window that is running; Ctrl-C
    /// again stops at once, and breaks nothing either.
    Backfill(Backfill),
    /// What was never folded.
    ///
    /// Folds what the ledger says was never folded, however long ago: files that appeared after
    /// their window was run, what lies between the windows, and what is in quarantine (after the
    /// pipeline or this program has changed). A file that was put aside as a whole may have been
    /// mended; one that has changed since some of its rows were folded needs `rebuild`.
    CatchUp(Many),
    /// Everything again, from raw.
    ///
    /// Folds every raw file that was folded so far, makes the curated table, what is remembered
    /// and the aggregates anew beside the old ones, and switches. For a changed raw file or a
    /// changed pipeline. Refused when one of these raw files is no longer there.
    Rebuild(Rebuild),
    /// What a run would do.
    ///
    /// Lists what a run of the window would read, and touches nothing: files and bytes, late files
    /// of earlier windows, days that are published already, memory and time by earlier runs.
    Plan(Plan),
    /// What was done.
    ///
    /// Lists all runs, as the ledger has them: window, when, rows, late files, partitions, seconds.
    /// Gaps between the windows follow.
    Runs(One),
    /// Whether the table is right.
    ///
    /// Folds all raw files that were folded so far again, from nothing, beside the table, and
    /// compares: rows, rows per day, and a hash per partition that does not depend on the order of
    /// rows. The first key that differs is named. Exit code 1 on a difference. Nothing is touched.
    /// The aggregates are compared too. Needs disk in `limits.spill_dir` for another copy of the
    /// table, beside `limits.spill_bytes_max`. Refused when one of the raw files is no longer there, or
    /// has changed.
    Verify(Verify),
    /// The changes of one key.
    ///
    /// Lists every change of a key in the raw files: where it is, its order, what it did, which run
    /// folded it, which one is last and why, and where the key's row is now.
    ExplainKey(ExplainKey),
}

/// What is logged.
#[derive(Args, Debug)]
pub struct Logging {
    /// Log more: the files that are read, and what each step makes of them.
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,

    /// Log nothing but the error of a command that fails.
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// How log lines look. Both name the run.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Time, level, run and message.
    Text,
    /// One object of JSON per line.
    Json,
}

/// A window's two ends.
#[derive(Args, Debug)]
pub struct Dates {
    /// The window's first instant, UTC: 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00'.
    #[arg(long, alias = "startDate", value_name = "DATE")]
    pub start_date: String,

    /// The first instant after the window, UTC. It is not part of the window.
    #[arg(long, alias = "endDate", value_name = "DATE")]
    pub end_date: String,
}

/// How a pipeline is read, and the answer printed.
#[derive(Args, Debug)]
pub struct Common {
    /// Override a key of pipeline.toml, such as raw.url=s3://bucket/raw or
    /// aggregate.NAME.url=/tables/daily. May be given many times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// How the answer is printed: json is one line, text a short table. Default: text on a
    /// terminal, json otherwise.
    #[arg(long, value_enum)]
    pub output: Option<Output>,
}

/// One pipeline.
#[derive(Args, Debug)]
pub struct One {
    /// The pipeline: the folder that holds its pipeline.toml, or the toml file itself.
    pub pipeline: PathBuf,

    /// What all commands take.
    #[command(flatten)]
    pub common: Common,
}

/// Pipelines that are run.
#[derive(Args, Debug)]
pub struct Many {
    /// The pipelines: folders that hold a pipeline.toml each, or the toml files themselves. Of
    /// several paths, files and folders that are neither are left out: sql/* will do.
    #[arg(required = true, value_name = "PIPELINE")]
    pub pipelines: Vec<PathBuf>,

    /// What all commands take.
    #[command(flatten)]
    pub common: Common,

    /// Write what Prometheus is to know of each pipeline's last run to this file, for the
    /// node exporter's textfile collector (a name that ends in .prom). It is replaced in one step;
    /// what other runs wrote of other pipelines stays.
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
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

/// Making everything again.
#[derive(Args, Debug)]
pub struct Rebuild {
    /// Go on without the raw files, and rows, that are no longer there or can no longer be read. What
    /// only they said is lost.
    #[arg(long)]
    pub accept_missing: bool,

    /// The pipelines.
    #[command(flatten)]
    pub many: Many,
}

/// Running window after window.
#[derive(Args, Debug)]
pub struct Backfill {
    /// The span.
    #[command(flatten)]
    pub dates: Dates,

    /// How long each window is: a number and w, d, h or m. The last one ends with the span.
    #[arg(long, value_name = "LENGTH", default_value = "1d")]
    pub step: String,

    /// Skip windows that were run and whose files are still the same. This is the default.
    #[arg(long, conflicts_with = "redo")]
    pub resume: bool,

    /// Run every window, also those that were run before.
    #[arg(long)]
    pub redo: bool,

    /// Stop at the first window that fails.
    #[arg(long)]
    pub fail_fast: bool,

    /// The pipelines.
    #[command(flatten)]
    pub many: Many,
}

/// Looking ahead.
#[derive(Args, Debug)]
pub struct Plan {
    /// The window.
    #[command(flatten)]
    pub dates: Dates,

    /// Also fold, beside the table: how many rows would win, and which days and partitions would be
    /// replaced. Takes as long as the run, and in `limits.spill_dir` as much disk as it would write,
    /// beside `limits.spill_bytes_max`.
    #[arg(long)]
    pub fold: bool,

    /// The pipeline.
    #[command(flatten)]
    pub one: One,
}

/// Comparing.
#[derive(Args, Debug)]
pub struct Verify {
    /// Compare only days from here on: 2019-04-01, UTC.
    #[arg(long, alias = "startDate", value_name = "DATE")]
    pub start_date: Option<String>,

    /// Compare only days before this one.
    #[arg(long, alias = "endDate", value_name = "DATE")]
    pub end_date: Option<String>,

    /// Compare the published table with this Parquet or Delta table instead, the path or URL of its
    /// folder: rows, rows per day, and hashes, by the values of its partition columns and wherever its
    /// files lie.
    #[arg(long, value_name = "URL")]
    pub against: Option<String>,

    /// The pipeline.
    #[command(flatten)]
    pub one: One,
}

/// One key.
#[derive(Args, Debug)]
pub struct ExplainKey {
    /// The pipeline.
    #[command(flatten)]
    pub one: One,

    /// The key: the values of its columns, in their order; behind --, where one begins with a dash.
    #[arg(required = true, value_name = "VALUE", allow_negative_numbers = true)]
    pub key: Vec<String>,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line of JSON.
    Json,
    /// A short table.
    Text,
}
