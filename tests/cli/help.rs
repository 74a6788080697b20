//! The arguments: the help, dates, paths of pipelines, overrides, and the halves of a run.

use insta::assert_snapshot;

use crate::support::Program;

use super::{both_windows, lab_after_a_good_run, refusal, run, run_in};

#[test]
fn both_spellings_of_the_dates_and_dates_with_time_are_taken() {
    let lab = lab_after_a_good_run();
    for (start, end) in [
        ("2019-12-12", "2019-12-14"),
        ("2019-12-12T00:00:00Z", "2019-12-14T00:00:00Z"),
        ("2019-12-12 00:00:00", "2019-12-14 00:00:00"),
        ("2019-12-12T02:00:00+02:00", "2019-12-13 19:00:00-05:00"),
    ] {
        for names in [["--start-date", "--end-date"], ["--startDate", "--endDate"]] {
            let arguments = [names[0], start, names[1], end];
            let output = run(&lab, lab.program("curate").args(arguments));
            assert_eq!(output.code, 0, "{arguments:?} {}", output.stderr);
            let report = output.json();
            assert_eq!(report["start"], "2019-12-12T00:00:00Z");
            assert_eq!(report["end"], "2019-12-14T00:00:00Z");
            assert_eq!(report["rows_read"], 6);
        }
    }
}

#[test]
fn the_end_of_a_window_is_not_part_of_it() {
    let lab = lab_after_a_good_run();
    let files = |end: &str| {
        let output = run(&lab, lab.program_for("curate", "2019-12-12", end));
        output.assert_success();
        let report = output.json();
        report["files"].as_u64().expect("a number")
    };
    assert_eq!(files("2019-12-13T12:00:00Z"), 1);
    assert_eq!(files("2019-12-13T12:00:00.001Z"), 2);
}

#[test]
fn a_pipeline_is_named_by_its_folder_or_its_file() {
    let lab = lab_after_a_good_run();
    let file = lab.pipeline.join("pipeline.toml");
    let window = ["--start-date", "2019-12-12", "--end-date", "2019-12-14"];
    let program = Program::glueless().arg("run").arg(&file).args(window);
    let output = run(&lab, program);
    output.assert_success();
    assert_eq!(lab.table("lake/curated").len(), 4);
}

#[test]
fn set_overrides_keys_and_refuses_what_it_does_not_understand() {
    let lab = lab_after_a_good_run();
    let lowered = both_windows(&lab).set(&["limits.threads=1", "limits.memory=128MB"]);
    let output = run(&lab, lowered);
    output.assert_success();
    assert!(output.stderr.contains("memory limit 128 MB, 1 threads"), "{}", output.stderr);
    let messages = [
        "raw.window_by",
        "raw.window_by=day",
        "aggregate.weekly.url=/tmp",
        "aggregate.daily.urls=/tmp",
        "curated.url=gs://bucket/curated",
        "limits.memory=lots",
        "a.b.c.d=1",
    ]
    .map(|text| format!("{text}\n{}", refusal(&lab, both_windows(&lab).set(&[text]))));
    assert_snapshot!(messages.join("\n\n"), @r#"
    raw.window_by
    exit 2
    error: `--set raw.window_by` has no `=`
    hint: write --set key=value

    raw.window_by=day
    exit 2
    error: [folder]/pipeline/pipeline.toml: `raw.window_by`: unknown variant `day`, expected one of `modified`, `name`, `path`, `commit`

    aggregate.weekly.url=/tmp
    exit 2
    error: `--set aggregate.weekly.url`: there is no aggregate named `weekly`

    aggregate.daily.urls=/tmp
    exit 2
    error: [folder]/pipeline/pipeline.toml: unknown key `aggregate.urls`
    hint: did you mean `aggregate.url`?

    curated.url=gs://bucket/curated
    exit 2
    error: `gs://bucket/curated`: unknown scheme `gs`
    hint: use a path, file:// or s3://

    limits.memory=lots
    exit 2
    error: [folder]/pipeline/pipeline.toml: `limits.memory` is `"lots"`
    hint: write 900MB or 4GiB; at least 128MB

    a.b.c.d=1
    exit 2
    error: --set: unknown key `a.b.c.d`
    hint: did you mean `raw.url`?
    "#);
}

#[test]
fn curate_and_aggregate_each_do_their_half() {
    let lab = lab_after_a_good_run();
    let half = |command: &str| {
        let output = run(&lab, lab.program_for(command, "2019-12-12", "2019-12-14"));
        output.assert_success();
        (lab.table("lake/curated").len(), lab.table("lake/daily").len())
    };
    assert_eq!(half("aggregate"), (3, 1));
    assert_eq!(half("curate"), (4, 1));
    assert_eq!(half("aggregate"), (4, 2));
}

#[test]
fn help_is_the_manual() {
    let folder = tempfile::tempdir().expect("a folder");
    let help = |arguments: &[&str]| {
        let folder = folder.path().display().to_string();
        let output = run_in(&folder, Program::glueless().args(arguments));
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        output.stdout
    };
    assert_snapshot!(help(&["--help"]), @r"
    Reads the change files that a CDC tool writes to object storage, and keeps tables of the current rows, one date window at a time. To fold changes is to keep only the last change of each key. Any windows, in any order, any number of times, give the same tables

    Usage: glueless [OPTIONS] <COMMAND>

    Commands:
      run          Update the curated table and its aggregates
      curate       Update the curated table only
      aggregate    Recompute the aggregates only
      backfill     Run a long period in steps
      capture      Capture the changes of a PostgreSQL database into raw files
      catch-up     Fold what no run has folded yet
      load         Load the tables into the database of `[load]`
      catalog      Register the tables in the catalog of `[catalog]`
      rebuild      Rebuild all tables from raw
      compact      Compact the small files of changes of days into few
      truncate     Set a truncate by hand
      forget       Forget keys for good
      plan         Show what a run would do
      init         Write a project for a folder of raw files
      doctor       Look for what would fail tonight
      ddl          Print statements that make the tables known elsewhere
      runs         List past runs
      verify       Check the tables against raw
      explain-key  Show the changes of one key
      help         Print this message or the help of the given subcommand(s)

    Options:
      -v, --verbose...
              Log more: the files that are read, and the result of each step

      -q, --quiet
              Log only the error when a command fails

          --log-format <FORMAT>
              Format of log lines. Both formats name the run

              Possible values:
              - text: Time, level, run and message
              - json: One JSON object per line
              
              [default: text]

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

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

      glueless run sql/cust_loyalty --start-date 2019-12-12T06:00:00Z --end-date 2019-12-12T07:00:00Z \
          --set raw.url=s3://bucket/raw/cust_loyalty --set limits.memory=2GiB

    S3 is reached with the standard AWS settings: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
    AWS_PROFILE, web identity and instance roles, AWS_REGION, and AWS_ENDPOINT_URL for other stores.
    ");
    assert_snapshot!(help(&["help", "run"]), @"
    Update the curated table and its aggregates.

    Folds the window's changes into the curated table and recomputes the aggregates' days. Given several pipelines, runs each one even if another fails; the exit code is the worst.

    Usage: glueless run [OPTIONS] --start-date <DATE> --end-date <DATE> <PIPELINE>...

    Arguments:
      <PIPELINE>...
              The pipelines: folders with a pipeline.toml each, or the toml files themselves. Given several paths, other files and folders are skipped, so sql/* works

    Options:
          --start-date <DATE>
              Start of the window, UTC, inclusive: 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00'

          --end-date <DATE>
              End of the window, UTC; it is not part of the window

          --set <KEY=VALUE>
              Override a key of pipeline.toml, or of a source, such as raw.url=s3://bucket/raw or aggregate.NAME.url=/tables/daily. May be repeated

          --output <OUTPUT>
              Format of the result: json is one line, text a short table. Default: text on a terminal, json otherwise

              Possible values:
              - json: One line of JSON
              - text: A short table

          --jobs <N>
              Work on so many pipelines at once. They share the limits: each has its part of `limits.memory` and `limits.spill_bytes_max`. With --metrics-file those that took longest the last time begin first
              
              [default: 1]

          --timeout <LENGTH>
              Give a pipeline up that has not ended after this time, such as 30m, so that it does not hold up others

          --metrics-file <FILE>
              Write metrics of each pipeline's last run to this file, for the textfile collector of Prometheus' node exporter (a name that ends in .prom). The file is replaced atomically; metrics of other pipelines in it stay

      -v, --verbose...
              Log more: the files that are read, and the result of each step

      -q, --quiet
              Log only the error when a command fails

          --log-format <FORMAT>
              Format of log lines. Both formats name the run

              Possible values:
              - text: Time, level, run and message
              - json: One JSON object per line
              
              [default: text]

      -h, --help
              Print help (see a summary with '-h')
    ");
    let rebuild = help(&["help", "rebuild"]);
    assert!(rebuild.contains("--accept-missing"), "{rebuild}");
    assert_eq!(help(&["help", "run"]), help(&["run", "--help"]));
}
