//! The command line. Its help is the manual of the commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Folds the change log that a CDC tool leaves in object storage into curated tables, one date
/// window at a time. Any windows, in any order, any number of times, give the same tables.
#[derive(Debug, Parser)]
#[command(name = "glueless", version, after_long_help = AFTER_HELP)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Logs go to stderr; the run report goes to stdout, as its last line.

Exit codes:
   0  done
   2  wrong command line or pipeline
  65  bad input data
  69  storage not reachable: retry later
  70  a fault of glueless
  75  another run is publishing: retry later

Examples:
  glueless run sql/cust_loyalty --start-date 2019-12-12 --end-date 2019-12-16
  glueless curate sql/cust_loyalty --start-date 2019-12-12T06:00:00Z --end-date 2019-12-12T07:00:00Z
  glueless run sql/cust_loyalty --start-date 2019-12-12 --end-date 2019-12-16 \\
      --set raw.url=s3://bucket/raw/cust_loyalty --set limits.memory=2GiB

S3 is reached with the standard AWS settings: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
AWS_PROFILE, web identity and instance roles, AWS_REGION, and AWS_ENDPOINT_URL for other stores.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Curate, then aggregate.
    ///
    /// Folds the window's changes into the curated table and recomputes the aggregates' days.
    Run(Window),
    /// The curated table only.
    ///
    /// Lists the raw files of the window, reduces their changes to the last one per key (or per
    /// key and day), and replaces exactly the partitions of the curated table that change.
    Curate(Window),
    /// The aggregates only.
    ///
    /// Recomputes the window's days, and every day that changed since it was last aggregated,
    /// from what was curated last.
    Aggregate(Window),
    /// Everything again, from raw.
    ///
    /// Folds every raw file that was folded so far, makes the curated table, what is remembered
    /// and the aggregates anew beside the old ones, and switches. For a changed raw file or a
    /// changed pipeline. Refused when one of these raw files is no longer there.
    Rebuild(Rebuild),
    /// What was put aside, again.
    ///
    /// Folds the raw files of which rows, or all, are in quarantine once more: after the pipeline
    /// has changed, or this program. A file that was put aside as a whole may have been mended; one
    /// that has changed since some of its rows were folded needs `rebuild`.
    CatchUp(Common),
}

/// A pipeline.
#[derive(Args, Debug)]
pub struct Rebuild {
    /// Go on without the raw files, and rows, that are no longer there or can no longer be read. What
    /// only they said is lost.
    #[arg(long)]
    pub accept_missing: bool,

    /// What all commands take.
    #[command(flatten)]
    pub common: Common,
}

/// What all commands take.
#[derive(Args, Debug)]
pub struct Common {
    /// The pipeline: the folder that holds its pipeline.toml, or the toml file itself.
    pub pipeline: PathBuf,

    /// Override a key of pipeline.toml, such as raw.url=s3://bucket/raw or
    /// aggregate.NAME.url=/tables/daily. May be given many times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// How the report is printed: json is one line, text a short table. Default: text on a
    /// terminal, json otherwise.
    #[arg(long, value_enum)]
    pub output: Option<Output>,
}

/// A pipeline and a window of time.
#[derive(Args, Debug)]
pub struct Window {
    /// The window's first instant, UTC: 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00'.
    #[arg(long, alias = "startDate", value_name = "DATE")]
    pub start_date: String,

    /// The first instant after the window, UTC. It is not part of the window.
    #[arg(long, alias = "endDate", value_name = "DATE")]
    pub end_date: String,

    /// What all commands take.
    #[command(flatten)]
    pub common: Common,
}

/// How the report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line of JSON.
    Json,
    /// A short table.
    Text,
}
