//! What is refused: a wrong command line or pipeline (exit code 2), and bad input (exit code 65).

use std::sync::Arc;

use arrow::array::Int64Array;
use insta::assert_snapshot;

use crate::support::{Columns, Lab, Program, file_of_columns, optional_texts, texts};

use super::{
    CURATED, DAILY, FIRST_ID, both_windows, both_windows_elsewhere, changes, failure,
    lab_after_a_good_run, refusal, refusal_hiding, run, with,
};

fn without(mut columns: Columns, name: &str) -> Columns {
    columns.retain(|column| column.0 != name);
    columns
}

/// The message about a raw file that is the last of its window.
fn refusal_of_file(bytes: Vec<u8>, hidden: &[&str]) -> String {
    let lab = lab_after_a_good_run();
    lab.put("raw/20191213-130000000.parquet", bytes);
    refusal_hiding(&lab, both_windows(&lab), hidden)
}

fn refusal_of_columns(columns: Columns, hidden: &[&str]) -> String {
    refusal_of_file(file_of_columns(columns), hidden)
}

/// The messages about several queries as `curated.sql`.
fn refusals_of_curated_sql(queries: &[&str]) -> String {
    let lab = lab_after_a_good_run();
    let messages = queries.iter().map(|query| {
        lab.write_file("curated.sql", query);
        format!("{query}\n{}", refusal(&lab, both_windows_elsewhere(&lab)))
    });
    messages.collect::<Vec<_>>().join("\n\n")
}

#[test]
fn a_pipeline_that_is_not_there_is_named() {
    let lab = lab_after_a_good_run();
    let nowhere = lab.folder.path().join("nowhere");
    let window = ["--start-date", "2019-12-12", "--end-date", "2019-12-14"];
    let program = Program::glueless().arg("run").arg(&nowhere).args(window);
    assert_snapshot!(refusal(&lab, program), @"
    exit 2
    error: no such pipeline: [folder]/nowhere: No such file or directory (os error 2)
    hint: name the folder with the pipeline.toml, or the toml file itself
    ");
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    let lab = lab_after_a_good_run();
    let message = refusal(&lab, both_windows(&lab).set(&["raw.window_bi=name"]));
    assert_snapshot!(message, @"
    exit 2
    error: [folder]/pipeline/pipeline.toml: unknown key `raw.window_bi`
    hint: did you mean `raw.window_by`?
    ");
    lab.edit_pipeline("[curated]", "[curatd]");
    assert_snapshot!(refusal(&lab, both_windows(&lab)), @"
    exit 2
    error: [folder]/pipeline/pipeline.toml: unknown key `curatd`
    hint: did you mean `curated`?
    ");
}

#[test]
fn a_missing_key_is_named_with_its_section() {
    let lab = lab_after_a_good_run();
    lab.edit_pipeline("[curated]\nurl", "[curated]\n# url");
    assert_snapshot!(refusal(&lab, both_windows(&lab)), @"
    exit 2
    error: [folder]/pipeline/pipeline.toml: `curated.url` is missing
    hint: a pipeline needs at least name, key, raw.url and curated.url; an aggregate needs name, sql, url and day; [load] needs url_env; [verify] needs url_env and table; [catalog] needs glue
    ");
}

#[test]
fn a_toml_file_that_cannot_be_read_is_named() {
    let lab = lab_after_a_good_run();
    lab.edit_pipeline("key = [\"id\"]", "key = [\"id\"");
    assert_snapshot!(refusal(&lab, both_windows(&lab)), @"
    exit 2
    error: [folder]/pipeline/pipeline.toml is not valid TOML: line 4: missing comma between array elements, expected `,`
    ");
}

#[test]
fn a_query_that_does_not_plan_is_refused_with_the_reason() {
    let messages = refusals_of_curated_sql(&[
        "SELECT id, categori, event_dt FROM latest",
        "SELECT id, category, event_dt FROM changes",
        "SELECT id category event_dt FROM latest",
        "SELECT id, no_such(category) AS category, event_dt FROM latest",
        "",
    ]);
    assert_snapshot!(messages, @r#"
    SELECT id, categori, event_dt FROM latest
    exit 2
    error: cannot plan [folder]/pipeline/curated.sql: Schema error: No field named categori. Did you mean 'latest.category'?
    hint: the query can read the relation `latest`: the raw columns and `event_dt`; declare a column that no file of the window has in `[raw.columns]`

    SELECT id, category, event_dt FROM changes
    exit 2
    error: cannot plan [folder]/pipeline/curated.sql: Error during planning: table 'datafusion.public.changes' not found
    hint: the query can read the relation `latest`: the raw columns and `event_dt`; declare a column that no file of the window has in `[raw.columns]`

    SELECT id category event_dt FROM latest
    exit 2
    error: cannot plan [folder]/pipeline/curated.sql: SQL error: ParserError("Expected: end of statement, found: event_dt at Line: 1, Column: 20")
    hint: the query can read the relation `latest`: the raw columns and `event_dt`; declare a column that no file of the window has in `[raw.columns]`

    SELECT id, no_such(category) AS category, event_dt FROM latest
    exit 2
    error: cannot plan [folder]/pipeline/curated.sql: Error during planning: Invalid function 'no_such'.
    hint: the query can read the relation `latest`: the raw columns and `event_dt`; declare a column that no file of the window has in `[raw.columns]`


    exit 2
    error: cannot plan [folder]/pipeline/curated.sql: Error during planning: No SQL statements were provided in the query string
    hint: the query can read the relation `latest`: the raw columns and `event_dt`; declare a column that no file of the window has in `[raw.columns]`
    "#);
}

#[test]
fn a_query_that_is_not_row_wise_is_refused_with_what_makes_it_so() {
    let messages = refusals_of_curated_sql(&[
        "SELECT id, category, event_dt, COUNT(*) AS n FROM latest GROUP BY id, category, event_dt",
        "SELECT a.id, a.category, a.event_dt, b.note FROM latest a JOIN latest b ON a.id = b.id",
        "SELECT id, category, event_dt, ROW_NUMBER() OVER (ORDER BY ts) AS n FROM latest",
        "SELECT id, category, event_dt, note FROM latest LIMIT 1",
        "SELECT id, category, event_dt, note FROM latest ORDER BY id",
        "SELECT DISTINCT id, category, event_dt, note FROM latest",
        "SELECT id, category, event_dt, note FROM latest UNION ALL SELECT id, category, event_dt, note FROM latest",
        "SELECT id, category, event_dt, note, now() AS at FROM latest",
        "SELECT id, category, event_dt, note, random() AS chance FROM latest",
        "SELECT id, category, event_dt, note FROM latest WHERE ts < now()",
        "SELECT id, category, event_dt, (SELECT MAX(ts) FROM latest) AS last FROM latest",
        "SELECT id, category, event_dt, note FROM latest WHERE id IN (SELECT id FROM latest)",
        "SELECT id, category, event_dt, note FROM latest WHERE ts < $end_date",
    ]);
    assert_snapshot!(messages, @"
    SELECT id, category, event_dt, COUNT(*) AS n FROM latest GROUP BY id, category, event_dt
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has an aggregate
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT a.id, a.category, a.event_dt, b.note FROM latest a JOIN latest b ON a.id = b.id
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has a join
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT id, category, event_dt, ROW_NUMBER() OVER (ORDER BY ts) AS n FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has a window function
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT id, category, event_dt, note FROM latest LIMIT 1
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has LIMIT
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT id, category, event_dt, note FROM latest ORDER BY id
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has ORDER BY
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT DISTINCT id, category, event_dt, note FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has DISTINCT
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT id, category, event_dt, note FROM latest UNION ALL SELECT id, category, event_dt, note FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has UNION
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT id, category, event_dt, note, now() AS at FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has `now`, which is not immutable
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT id, category, event_dt, note, random() AS chance FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has `random`, which is not immutable
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT id, category, event_dt, note FROM latest WHERE ts < now()
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has `now`, which is not immutable
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT id, category, event_dt, (SELECT MAX(ts) FROM latest) AS last FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has a subquery in an expression
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT id, category, event_dt, note FROM latest WHERE id IN (SELECT id FROM latest)
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has a subquery in an expression
    hint: project and filter the rows of `latest` with immutable functions only

    SELECT id, category, event_dt, note FROM latest WHERE ts < $end_date
    exit 2
    error: [folder]/pipeline/curated.sql is not row-wise: it has the parameter $end_date
    hint: project and filter the rows of `latest` with immutable functions only
    ");
}

#[test]
fn a_curated_query_without_its_partition_column_is_refused() {
    let messages = refusals_of_curated_sql(&[
        "SELECT id, note, event_dt FROM latest",
        "SELECT id, note, category AS class, event_dt FROM latest",
    ]);
    assert_snapshot!(messages, @"
    SELECT id, note, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql lacks the partition column `category`
    hint: select it, or correct `curated.partition_by`; columns of the query: id, note, event_dt

    SELECT id, note, category AS class, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql lacks the partition column `category`
    hint: select it, or correct `curated.partition_by`; columns of the query: id, note, class, event_dt
    ");
}

#[test]
fn a_curated_query_that_does_not_pass_the_key_through_is_refused() {
    let messages = refusals_of_curated_sql(&[
        "SELECT note, category, event_dt FROM latest",
        "SELECT id AS customer, note, category, event_dt FROM latest",
        "SELECT id + 1 AS id, note, category, event_dt FROM latest",
        "SELECT CAST(id AS INT) AS id, note, category, event_dt FROM latest",
        "SELECT note AS id, category, event_dt FROM latest",
    ]);
    assert_snapshot!(messages, @"
    SELECT note, category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not return the key column `id` unchanged
    hint: select it under its own name; columns of the query: note, category, event_dt

    SELECT id AS customer, note, category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not return the key column `id` unchanged
    hint: select it under its own name; columns of the query: customer, note, category, event_dt

    SELECT id + 1 AS id, note, category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not return the key column `id` unchanged
    hint: its type is Int64: select it unchanged, or cast it so that different keys stay different; `[raw.columns]` can give it another type

    SELECT CAST(id AS INT) AS id, note, category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not return the key column `id` unchanged
    hint: its type is Int64: select it unchanged, or cast it so that different keys stay different; `[raw.columns]` can give it another type

    SELECT note AS id, category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not return the key column `id` unchanged
    hint: its type is Int64: select it unchanged, or cast it so that different keys stay different; `[raw.columns]` can give it another type
    ");
}

/// The message of `aggregate` about `daily.sql`, which is also that of `run`, before it publishes
/// the curated table.
fn refusal_of_daily_sql(query: &str) -> String {
    let lab = lab_after_a_good_run();
    lab.write_file("daily.sql", query);
    let message = refusal(&lab, aggregation(&lab));
    assert_eq!(refusal(&lab, both_windows(&lab)), message);
    message
}

fn aggregation(lab: &Lab) -> Program {
    lab.program_for("aggregate", "2019-12-12", "2019-12-14")
}

#[test]
fn an_aggregate_that_does_not_plan_is_refused() {
    assert_snapshot!(refusal_of_daily_sql("SELECT days FROM history"), @"
    exit 2
    error: cannot plan [folder]/pipeline/daily.sql: Schema error: No field named days.
    hint: the query can read `history`, `balance` and `curated`, and use $start_date and $end_date
    ");
}

#[test]
fn an_aggregate_without_its_day_column_is_refused() {
    let daily = DAILY.replace("AS dt", "AS day");
    assert_snapshot!(refusal_of_daily_sql(&daily), @"
    exit 2
    error: [folder]/pipeline/daily.sql lacks the day column `dt`
    hint: select it, or correct `aggregate.day`; columns of the query: day, customers
    ");
}

#[test]
fn an_aggregate_whose_day_is_text_is_refused() {
    let daily = DAILY.replace("AS DATE", "AS VARCHAR");
    assert_snapshot!(refusal_of_daily_sql(&daily), @"
    exit 2
    error: [folder]/pipeline/daily.sql: the day column `dt` is Utf8View, not DATE
    hint: write CAST(dt AS DATE)
    ");
}

/// A query whose days are found to be wrong only when it runs.
const OUTSIDE: &str = "SELECT DATE '2019-01-01' AS dt, COUNT(*) AS customers FROM history";

#[test]
fn a_table_that_parquet_cannot_hold_is_refused_before_anything_is_published() {
    let refused = |file: &str, sql: &str| {
        let lab = lab_after_a_good_run();
        lab.write_file(file, sql);
        refusal(&lab, both_windows_elsewhere(&lab))
    };
    let days = "SELECT DISTINCT event_dt AS dt FROM history
                WHERE event_dt >= $start_date AND event_dt < $end_date";
    assert_snapshot!(refused("daily.sql", days), @"
    exit 2
    error: [folder]/pipeline/daily.sql has only partition columns
    ");
    let null = CURATED.replace("CAST(note AS VARCHAR)", "NULL");
    assert_snapshot!(refused("curated.sql", &null), @"
    exit 2
    error: [folder]/pipeline/curated.sql: the column `note` has a type that Parquet tables do not support
    hint: cast it: CAST(… AS …)
    ");
    let other_day = CURATED.replace("CAST(event_dt AS DATE)", "CAST(event AS DATE)");
    assert_ne!(other_day, CURATED);
    assert_snapshot!(refused("curated.sql", &other_day), @"
    exit 2
    error: [folder]/pipeline/curated.sql gives `event_dt` another meaning than the change's day
    hint: select it unchanged, and give the other value another name
    ");
}

#[test]
fn an_aggregate_with_a_day_outside_of_its_parameters_is_refused() {
    let lab = lab_after_a_good_run();
    lab.write_file("daily.sql", OUTSIDE);
    assert_snapshot!(refusal(&lab, aggregation(&lab)), @"
    exit 2
    error: [folder]/pipeline/daily.sql returns a day outside of [$start_date, $end_date)
    hint: filter its days: >= $start_date and < $end_date
    ");
}

#[test]
fn a_run_whose_aggregate_failed_is_made_good_by_the_next_one() {
    let lab = lab_after_a_good_run();
    lab.write_file("daily.sql", OUTSIDE);
    assert_eq!(run(&lab, both_windows(&lab)).code, 2);
    lab.write_file("daily.sql", DAILY);
    let again = run(&lab, both_windows(&lab));
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(lab.table("lake/curated").len(), 4);
    assert_eq!(lab.table("lake/daily").len(), 2);
}

#[test]
fn a_window_that_does_not_start_before_its_end_is_refused() {
    let lab = lab_after_a_good_run();
    let same = lab.program_for("run", "2019-12-12", "2019-12-12");
    assert_snapshot!(refusal(&lab, same), @"
    exit 2
    error: start 2019-12-12T00:00:00Z is not before end 2019-12-12T00:00:00Z: the end is exclusive, so the window is empty
    hint: the end is exclusive: 2019-04-01 to 2019-04-02 is one day
    ");
    let swapped = lab.program_for("run", "2019-12-14", "2019-12-12T06:00:00Z");
    assert_snapshot!(refusal(&lab, swapped), @"
    exit 2
    error: start 2019-12-14T00:00:00Z is not before end 2019-12-12T06:00:00Z: the end is exclusive, so the window is empty
    hint: the end is exclusive: 2019-04-01 to 2019-04-02 is one day
    ");
}

#[test]
fn a_date_that_cannot_be_read_is_refused_with_those_that_can() {
    let lab = lab_after_a_good_run();
    let messages = ["12.12.2019", "2019-02-30", "20191212", "yesterday", ""]
        .map(|date| refusal(&lab, lab.program_for("run", date, "2019-12-14")));
    assert_snapshot!(messages.join("\n\n"), @"
    exit 2
    error: `12.12.2019` is not a date
    hint: write 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00' (all UTC), or name an offset: 2019-04-01T06:00:00+02:00

    exit 2
    error: `2019-02-30` is not a date
    hint: write 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00' (all UTC), or name an offset: 2019-04-01T06:00:00+02:00

    exit 2
    error: `20191212` is not a date
    hint: write 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00' (all UTC), or name an offset: 2019-04-01T06:00:00+02:00

    exit 2
    error: `yesterday` is not a date
    hint: write 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00' (all UTC), or name an offset: 2019-04-01T06:00:00+02:00

    exit 2
    error: `` is not a date
    hint: write 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00' (all UTC), or name an offset: 2019-04-01T06:00:00+02:00
    ");
}

#[test]
fn a_window_without_an_end_is_refused() {
    let lab = lab_after_a_good_run();
    let program = lab.program("run").args(["--start-date", "2019-12-12"]);
    assert_snapshot!(refusal(&lab, program), @"
    exit 2
    error: the following required arguments were not provided:
      --end-date <DATE>

    Usage: glueless run --start-date <DATE> --end-date <DATE> <PIPELINE>...

    For more information, try '--help'.
    ");
}

#[test]
fn a_raw_location_that_does_not_exist_is_named() {
    let lab = lab_after_a_good_run();
    let messages = ["name", "modified", "path", "commit"].map(|window_by| {
        let nowhere = format!("raw.url={}/nowhere", lab.base);
        let window_by = format!("raw.window_by={window_by}");
        refusal(&lab, both_windows(&lab).set(&[&nowhere, &window_by]))
    });
    assert!(messages.iter().all(|one| *one == messages[0]), "{messages:#?}");
    assert_snapshot!(messages[0], @"
    exit 2
    error: the raw location [folder]/nowhere is not an existing folder
    hint: check `raw.url`
    ");
}

#[test]
fn two_pipelines_cannot_have_one_curated_table() {
    let lab = lab_after_a_good_run();
    let shared = format!("curated.url={}/lake/curated", lab.base);
    assert_snapshot!(refusal(&lab, both_windows_elsewhere(&lab).set(&[&shared])), @"
    exit 2
    error: [folder]/lake/curated belongs to `curated` of the pipeline `customers`
    hint: give each its own `curated.url`
    ");
}

#[test]
fn two_pipelines_cannot_have_one_aggregate_table() {
    let lab = lab_after_a_good_run();
    let shared = format!("aggregate.daily.url={}/lake/daily", lab.base);
    assert_snapshot!(refusal(&lab, both_windows_elsewhere(&lab).set(&[&shared])), @"
    exit 2
    error: [folder]/lake/daily belongs to `daily` of the pipeline `customers`
    hint: give each its own `aggregate.daily.url`
    ");
}

#[test]
fn two_pipelines_cannot_have_one_state() {
    let lab = lab_after_a_good_run();
    let shared = format!("state.url={}/lake/_glueless/customers", lab.base);
    assert_snapshot!(refusal(&lab, both_windows_elsewhere(&lab).set(&[&shared])), @"
    exit 2
    error: [folder]/lake/_glueless/customers belongs to `state` of the pipeline `customers`
    hint: give each its own `state.url`
    ");
}

#[test]
fn a_folder_with_files_of_somebody_else_is_not_taken() {
    let lab = lab_after_a_good_run();
    lab.put("lake/others/archive/2018.csv", b"theirs".to_vec());
    assert_snapshot!(refusal(&lab, both_windows_elsewhere(&lab)), @"
    exit 2
    error: [folder]/lake/others holds files that no run of this pipeline wrote, such as archive/2018.csv
    hint: set `curated.url` to an empty folder, or move the files elsewhere
    ");
}

#[test]
fn a_pipeline_that_is_no_longer_what_made_its_tables_is_refused() {
    let lab = lab_after_a_good_run();
    let elsewhere = format!("curated.url={}/lake/elsewhere", lab.base);
    let messages = [
        "key=[\"id\", \"category\"]",
        "keep=latest-per-day",
        "raw.event_time=ts",
        "curated.partition_by=[\"event_dt\"]",
        &elsewhere,
    ]
    .map(|change| {
        let message = refusal(&lab, both_windows(&lab).set(&[change]));
        format!("{}\n{message}", change.replace(&lab.base, "[folder]"))
    });
    assert_snapshot!(messages.join("\n\n"), @r#"
    key=["id", "category"]
    exit 2
    error: the pipeline `customers` differs from the one that wrote its tables: `key` changed
    hint: undo the change, rebuild the tables with `glueless rebuild`, or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers

    keep=latest-per-day
    exit 2
    error: the pipeline `customers` differs from the one that wrote its tables: `keep` changed
    hint: undo the change, rebuild the tables with `glueless rebuild`, or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers

    raw.event_time=ts
    exit 2
    error: the pipeline `customers` differs from the one that wrote its tables: `raw.event_time` changed
    hint: undo the change, rebuild the tables with `glueless rebuild`, or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers

    curated.partition_by=["event_dt"]
    exit 2
    error: the pipeline `customers` differs from the one that wrote its tables: `curated.partition_by` changed
    hint: undo the change, rebuild the tables with `glueless rebuild` (where raw files are gone, with --from-table), or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers

    curated.url=[folder]/lake/elsewhere
    exit 2
    error: the pipeline `customers` differs from the one that wrote its tables: `curated.url` changed
    hint: undo the change, rebuild the tables with `glueless rebuild` (where raw files are gone, with --from-table), or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers
    "#);
    let curated = format!("{CURATED} WHERE category <> 'Silver'");
    lab.write_file("curated.sql", &curated);
    assert_snapshot!(refusal(&lab, both_windows(&lab)), @"
    exit 2
    error: the pipeline `customers` differs from the one that wrote its tables: `curated.sql` changed
    hint: undo the change, rebuild the tables with `glueless rebuild` (where raw files are gone, with --from-table), or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers
    ");
}

#[test]
fn a_damaged_file_is_named() {
    let mut no_footer = file_of_columns(changes(1, 1));
    let length = no_footer.len();
    no_footer[length - 40..length - 8].fill(0xff);
    assert_snapshot!(refusal_of_file(no_footer, &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is not a readable Parquet file: Parquet error: invalid utf8
    hint: it may be truncated or damaged: restore it from its source, or, if it is a raw file that cannot be restored, put it in quarantine with `raw.on_bad_file`: its changes are then missing
    ");
    assert_snapshot!(refusal_of_file(b"id,note\n90010001,confidential\n".to_vec(), &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is not a readable Parquet file: Parquet error: Invalid Parquet file. Corrupt footer
    hint: it may be truncated or damaged: restore it from its source, or, if it is a raw file that cannot be restored, put it in quarantine with `raw.on_bad_file`: its changes are then missing
    ");
}

#[test]
fn a_file_with_damaged_pages_is_named() {
    let mut bytes = file_of_columns(changes(1, 1));
    bytes[4..200].fill(0xff);
    assert_snapshot!(refusal_of_file(bytes, &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is not a readable Parquet file: the query engine failed: Parquet argument error: Parquet error: Unexpected struct field type 15
    hint: it may be truncated or damaged: restore it from its source, or, if it is a raw file that cannot be restored, put it in quarantine with `raw.on_bad_file`: its changes are then missing
    ");
}

#[test]
fn a_truncated_file_is_named() {
    let bytes = file_of_columns(changes(1, 1));
    assert_snapshot!(refusal_of_file(bytes[..bytes.len() / 2].to_vec(), &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is not a readable Parquet file: Parquet error: Invalid Parquet file. Corrupt footer
    hint: it may be truncated or damaged: restore it from its source, or, if it is a raw file that cannot be restored, put it in quarantine with `raw.on_bad_file`: its changes are then missing
    ");
    assert_snapshot!(refusal_of_file(bytes[..6].to_vec(), &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is not a readable Parquet file: EOF: Parquet file too small. Size is 6 but need 8
    hint: it may be truncated or damaged: restore it from its source, or, if it is a raw file that cannot be restored, put it in quarantine with `raw.on_bad_file`: its changes are then missing
    ");
}

#[test]
fn an_empty_file_is_named() {
    assert_snapshot!(refusal_of_file(Vec::new(), &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is empty
    hint: restore it from its source, or, if it is a raw file that cannot be restored, put it in quarantine with `raw.on_bad_file`: its changes are then missing
    ");
}

#[test]
fn a_missing_key_column_is_named_with_the_columns_that_are_there() {
    assert_snapshot!(refusal_of_columns(without(changes(1, 1), "id"), &[]), @"
    exit 65
    error: column `id` missing in [folder]/raw/20191213-130000000.parquet
    hint: other files have it; found: Op, ts, event, category, note
    ");
    let lab = lab_after_a_good_run();
    let message = refusal(&lab, both_windows_elsewhere(&lab).set(&["key=[\"customer\"]"]));
    assert_snapshot!(message, @"
    exit 2
    error: no raw file has the column `customer`, which `key` names
    hint: found: Op, ts, event, id, category, note
    ");
}

#[test]
fn a_missing_commit_time_column_is_named_with_the_columns_that_are_there() {
    assert_snapshot!(refusal_of_columns(without(changes(1, 1), "ts"), &[]), @"
    exit 65
    error: column `ts` missing in [folder]/raw/20191213-130000000.parquet
    hint: other files have it; found: Op, event, id, category, note
    ");
}

#[test]
fn a_null_key_is_named_with_file_row_and_column() {
    let ids = Int64Array::from(vec![Some(FIRST_ID), None, Some(FIRST_ID + 2)]);
    let columns = with(changes(1, 1), "id", Arc::new(ids));
    assert_snapshot!(refusal_of_columns(columns, &[]), @"
    exit 65
    error: row 2 of [folder]/raw/20191213-130000000.parquet: column `id` is null
    hint: a key column must not be null: check `key` and the file
    ");
}

#[test]
fn an_operation_that_is_none_is_named_with_file_row_and_column() {
    let columns = with(changes(1, 1), "Op", texts(["I", "U", "X9"]));
    assert_snapshot!(refusal_of_columns(columns, &["X9"]), @r#"
    exit 65
    error: row 3 of [folder]/raw/20191213-130000000.parquet: column `Op` is none of I, U, D, T
    hint: name the values in `[raw.op_values]`, or the operation column in `raw.op`; only if no column says which rows are deletes, write raw.dialect = "flat"
    "#);
}

#[test]
fn a_null_commit_time_is_named_with_file_row_and_column() {
    let times = optional_texts([Some("2019-12-13 13:00:00"), None, Some("2019-12-13 13:00:02")]);
    let columns = with(changes(1, 1), "ts", times);
    assert_snapshot!(refusal_of_columns(columns, &["13:00:0"]), @"
    exit 65
    error: row 2 of [folder]/raw/20191213-130000000.parquet: column `ts` is null
    hint: every change needs a commit time: check `raw.order_by`
    ");
}

#[test]
fn a_commit_time_that_is_none_is_named_with_file_row_and_column() {
    let times = optional_texts([Some("2019-12-13 13:00:00"), Some("half past one"), None]);
    let columns = with(changes(1, 1), "ts", times);
    assert_snapshot!(refusal_of_columns(columns, &["half past one"]), @"
    exit 65
    error: row 2 of [folder]/raw/20191213-130000000.parquet: column `ts` is not a time
    hint: a commit time is yyyy-MM-dd HH:mm:ss[.ffffff] or a timestamp
    ");
}

#[test]
fn an_event_time_that_is_none_is_named_with_file_row_and_column() {
    let lab = lab_after_a_good_run();
    let events = optional_texts([None, Some("2019-12-13"), Some("one fine day")]);
    let columns = with(changes(1, 1), "happened", events);
    lab.put_columns("raw/20191213-130000000.parquet", columns);
    let program = both_windows_elsewhere(&lab).set(&["raw.event_time=happened"]);
    assert_snapshot!(refusal_hiding(&lab, program, &["one fine day"]), @"
    exit 65
    error: row 3 of [folder]/raw/20191213-130000000.parquet: column `happened` is not a time
    hint: an event time is yyyy-MM-dd HH:mm:ss[.ffffff], a date or a timestamp
    ");
}

#[test]
fn a_cdc_file_without_the_configured_operation_column_is_named() {
    assert_snapshot!(refusal_of_columns(without(changes(1, 1), "Op"), &[]), @"
    exit 65
    error: column `Op` missing in [folder]/raw/20191213-130000000.parquet
    hint: other files have it; found: ts, event, id, category, note
    ");
}

#[test]
fn a_column_that_is_text_here_and_a_number_there_is_named_with_both_files() {
    let columns = with(changes(1, 1), "id", texts(["90010001"; 3]));
    assert_snapshot!(refusal_of_columns(columns, &[]), @"
    exit 65
    error: column `id` is Int64 in [folder]/raw/20191212-120000000.parquet and Utf8View in [folder]/raw/20191213-130000000.parquet
    hint: set its type in `[raw.columns]`, if all values fit it, or fix the files
    ");
}

#[test]
fn a_value_that_does_not_fit_its_curated_type_is_refused_without_showing_it() {
    let lab = lab_after_a_good_run();
    let curated = CURATED.replace("CAST(note AS VARCHAR)", "CAST(note AS BIGINT)");
    lab.write_file("curated.sql", &curated);
    assert_snapshot!(refusal(&lab, both_windows_elsewhere(&lab)), @"
    exit 65
    error: [folder]/pipeline/curated.sql fails on a row: a value cannot be cast or computed
    hint: correct the query; TRY_CAST makes such a value null, and WHERE leaves its row out of the table
    ");
}

#[test]
fn a_raw_file_without_a_time_in_its_name_is_named() {
    let lab = lab_after_a_good_run();
    lab.put_columns("raw/export.parquet", changes(1, 1));
    assert_snapshot!(refusal(&lab, both_windows(&lab)), @"
    exit 65
    error: [folder]/raw/export.parquet has no time in its name (yyyyMMdd-HHmmssSSS)
    hint: set `raw.full_load` if it is a full load, or another `raw.window_by`
    ");
}

#[test]
fn a_metrics_file_that_cannot_be_written_is_refused_before_the_run() {
    let lab = lab_after_a_good_run();
    let before = lab.contents("lake");
    let output = run(&lab, both_windows(&lab).args(["--metrics-file", "/nowhere/a.prom"]));
    assert_snapshot!(failure(&output), @"
    exit 2
    error: cannot write /nowhere/a.prom: No such file or directory (os error 2)
    hint: name a file in a folder that can be written: --metrics-file
    ");
    assert_eq!(lab.contents("lake"), before);
}
