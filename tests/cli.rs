//! The program as a process: exit codes, what it says, and that what it refuses changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
use assert_cmd::Command;
use glueless::layout::staging_name;
use insta::assert_snapshot;
use serde_json::Value;

use crate::support::{self, Lab, Place, batch, glueless, parquet};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

const TOML: &str = r#"
name = "customers"
key = ["id"]
[raw]
url = "{base}/raw"
window_by = "name"
op = "Op"
order_by = ["ts"]
event_time = "event"
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt", "category"]
[[aggregate]]
name = "daily"
sql = "daily.sql"
url = "{base}/lake/daily"
day = "dt"
"#;

const CURATED: &str = "SELECT CAST(id AS BIGINT) AS id, CAST(note AS VARCHAR) AS note,
    CAST(category AS VARCHAR) AS category, CAST(event_dt AS DATE) AS event_dt FROM latest";

const DAILY: &str = "SELECT CAST(event_dt AS DATE) AS dt, COUNT(*) AS customers FROM history
    WHERE NOT deleted AND event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

/// In the environment of every run.
const SECRET: &str = "hunter2hunter2hunter2";
/// In every row of every raw file: values that no message may show.
const NOTE: &str = "confidential";
const FIRST_ID: i64 = 90_010_000;

/// 2019-12-12 in microseconds since 1970.
const FIRST_DAY_US: i64 = 1_576_108_800_000_000;
const DAY_US: i64 = 86_400_000_000;

type Columns = Vec<(&'static str, ArrayRef)>;

fn text(values: [Option<&str>; 3]) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

/// Three changes of one day: keys 0, 1 and 2 counted from `first_id`.
fn changes(day: i64, first_id: i64) -> Columns {
    let times: Vec<String> = (0..3)
        .map(|row| format!("2019-12-{:02} 12:00:0{row}.000000", 12 + day))
        .collect();
    let events = [FIRST_DAY_US + day * DAY_US; 3];
    let ids = [0, 1, 2].map(|number| FIRST_ID + first_id + number);
    vec![
        ("Op", text([Some("I"), Some("U"), Some("I")])),
        ("ts", Arc::new(StringArray::from(times))),
        (
            "event",
            Arc::new(TimestampMicrosecondArray::from(events.to_vec())),
        ),
        ("id", Arc::new(Int64Array::from(ids.to_vec()))),
        (
            "category",
            text([Some("Gold"), Some("Silver"), Some("Gold")]),
        ),
        ("note", text([Some(NOTE); 3])),
    ]
}

/// The columns with one of them replaced, or added.
fn with(mut columns: Columns, name: &'static str, array: ArrayRef) -> Columns {
    match columns.iter_mut().find(|column| column.0 == name) {
        Some(column) => column.1 = array,
        None => columns.push((name, array)),
    }
    columns
}

fn without(mut columns: Columns, name: &str) -> Columns {
    columns.retain(|column| column.0 != name);
    columns
}

/// A lab with one good run behind it, and a raw file that the next run would fold.
fn lab_after_a_good_run() -> Lab {
    let files = [("curated.sql", CURATED), ("daily.sql", DAILY)];
    let lab = Lab::new(Place::Local, TOML, &files);
    lab.put_raw("20191212-120000000.parquet", &batch(changes(0, 0)));
    let done = run(&lab, &first_window(&lab));
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(lab.table("lake/curated").len(), 3);
    assert_eq!(lab.table("lake/daily").len(), 1);
    lab.put_raw("20191213-120000000.parquet", &batch(changes(1, 1)));
    lab
}

fn first_window(lab: &Lab) -> Vec<String> {
    arguments("run", &lab.pipeline, "2019-12-12", "2019-12-13")
}

/// The run that folds the second file too.
fn both_windows(lab: &Lab) -> Vec<String> {
    arguments("run", &lab.pipeline, "2019-12-12", "2019-12-14")
}

fn arguments(command: &str, pipeline: &Path, start: &str, end: &str) -> Vec<String> {
    let pipeline = pipeline.display().to_string();
    [command, &pipeline, "--start-date", start, "--end-date", end]
        .map(String::from)
        .to_vec()
}

fn set(arguments: Vec<String>, overrides: &[&str]) -> Vec<String> {
    let overrides = overrides
        .iter()
        .flat_map(|text| ["--set".to_string(), text.to_string()]);
    arguments.into_iter().chain(overrides).collect()
}

/// A second pipeline in the same lake: it has no state yet, so that its SQL may be anything.
fn elsewhere(lab: &Lab) -> Vec<String> {
    let base = &lab.base;
    let overrides = [
        "name=others".to_string(),
        format!("curated.url={base}/lake/others"),
        format!("aggregate.daily.url={base}/lake/others_daily"),
    ];
    set(both_windows(lab), &overrides.each_ref().map(String::as_str))
}

/// What a process did. Temporary folders and run ids are masked.
#[derive(Debug)]
struct Output {
    code: i32,
    stdout: String,
    stderr: String,
}

fn run(lab: &Lab, arguments: &[String]) -> Output {
    run_program(&lab.base, Command::new(glueless()), arguments)
}

fn run_program(folder: &str, mut program: Command, arguments: &[String]) -> Output {
    let output = program
        .args(arguments)
        .env_clear()
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .output()
        .expect("it starts");
    let masked = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).expect("text");
        mask_run_ids(&text.replace(folder, "[folder]"))
    };
    Output {
        code: output.status.code().expect("an exit code"),
        stdout: masked(output.stdout),
        stderr: masked(output.stderr),
    }
}

fn mask_run_ids(text: &str) -> String {
    let is_id = |part: &str| uuid::Uuid::try_parse(part).is_ok();
    let mut masked = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if let Some(id) = rest.get(..36).filter(|part| is_id(part)) {
            masked.push_str("[run]");
            rest = &rest[id.len()..];
        } else {
            masked.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    masked
}

/// The end of a failed run's output, from its `error:` line on.
fn told(output: &Output) -> String {
    let start = output.stderr.find("error:").unwrap_or_default();
    // Two threads write versions, and either can be the first to fail.
    let error = output.stderr[start..].replace("[run]-01-", "[run]-00-");
    format!("exit {}\n{}", output.code, error.trim_end())
}

/// Every file of a lake with its content. Folders count too, but not those of the state.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("inside").display();
            let name = name.to_string();
            if path.is_dir() {
                if !name.starts_with("_glueless") {
                    found.insert(format!("{name}/"), Vec::new());
                }
                walk(root, &path, found);
            } else {
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

fn assert_unchanged(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) {
    let differs = |name: &&String| before.get(*name) != after.get(*name);
    let changed: Vec<&String> = before.keys().chain(after.keys()).filter(differs).collect();
    assert!(changed.is_empty(), "changed in the lake: {changed:#?}");
}

/// Runs what must be refused. Nothing in the lake may change, neither tables nor state; nothing
/// is printed on stdout; no message shows a secret, a row's value or any of `hidden`.
fn refusal_hiding(lab: &Lab, arguments: &[String], hidden: &[&str]) -> String {
    let lake = lab.folder.path().join("lake");
    let before = contents(&lake);
    let output = run(lab, arguments);
    let told = told(&output);
    assert_ne!(output.code, 0, "it was not refused: {}", output.stderr);
    assert_eq!(output.stdout, "", "{told}");
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
    let ids = FIRST_ID.to_string();
    for value in [SECRET, NOTE, &ids[..5]].iter().chain(hidden) {
        assert!(!output.stderr.contains(value), "{value} in {told}");
    }
    assert_unchanged(&before, &contents(&lake));
    told
}

fn refusal(lab: &Lab, arguments: &[String]) -> String {
    refusal_hiding(lab, arguments, &[])
}

/// What is said of a raw file, the last of its window.
fn refusal_of_file(bytes: Vec<u8>, hidden: &[&str]) -> String {
    let lab = lab_after_a_good_run();
    lab.put("raw/20191213-130000000.parquet", bytes);
    refusal_hiding(&lab, &both_windows(&lab), hidden)
}

fn refusal_of_columns(columns: Columns, hidden: &[&str]) -> String {
    refusal_of_file(parquet(&batch(columns), None), hidden)
}

/// What is said of several queries as `curated.sql`.
fn refusals_of_curated_sql(queries: &[&str]) -> String {
    let lab = lab_after_a_good_run();
    let told = queries.iter().map(|query| {
        fs::write(lab.pipeline.join("curated.sql"), query).expect("written");
        format!("{query}\n{}", refusal(&lab, &elsewhere(&lab)))
    });
    told.collect::<Vec<_>>().join("\n\n")
}

fn edit(lab: &Lab, from: &str, to: &str) {
    let file = lab.pipeline.join("pipeline.toml");
    let text = fs::read_to_string(&file).expect("a file");
    assert!(text.contains(from));
    fs::write(&file, text.replace(from, to)).expect("written");
}

// What is wrong with the command line or the pipeline: exit code 2.

#[test]
fn a_pipeline_that_is_not_there_is_named() {
    let lab = lab_after_a_good_run();
    let nowhere = lab.folder.path().join("nowhere");
    let arguments = arguments("run", &nowhere, "2019-12-12", "2019-12-14");
    assert_snapshot!(refusal(&lab, &arguments), @"
    exit 2
    error: no such pipeline: [folder]/nowhere: No such file or directory (os error 2)
    hint: name the folder that holds pipeline.toml, or the toml file itself
    ");
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    let lab = lab_after_a_good_run();
    let told = refusal(&lab, &set(both_windows(&lab), &["raw.window_bi=name"]));
    assert_snapshot!(told, @"
    exit 2
    error: [folder]/pipeline/pipeline.toml: unknown key `raw.window_bi`
    hint: did you mean `raw.window_by`?
    ");
    edit(&lab, "[curated]", "[curatd]");
    assert_snapshot!(refusal(&lab, &both_windows(&lab)), @"
    exit 2
    error: [folder]/pipeline/pipeline.toml: unknown key `curatd`
    hint: did you mean `curated`?
    ");
}

#[test]
fn a_missing_key_is_named_with_its_section() {
    let lab = lab_after_a_good_run();
    edit(&lab, "order_by = [\"ts\"]", "");
    assert_snapshot!(refusal(&lab, &both_windows(&lab)), @"
    exit 2
    error: [folder]/pipeline/pipeline.toml: `raw.order_by` is missing
    hint: a pipeline has at least name, key, raw.url, raw.order_by and curated.url; an aggregate name, sql, url and day
    ");
}

#[test]
fn a_toml_file_that_cannot_be_read_is_named() {
    let lab = lab_after_a_good_run();
    edit(&lab, "key = [\"id\"]", "key = [\"id\"");
    assert_snapshot!(refusal(&lab, &both_windows(&lab)), @"
    exit 2
    error: [folder]/pipeline/pipeline.toml is not valid TOML: line 4: missing comma between array elements, expected `,`
    ");
}

#[test]
fn a_query_that_does_not_plan_is_refused_with_the_reason() {
    let told = refusals_of_curated_sql(&[
        "SELECT id, categori, event_dt FROM latest",
        "SELECT id, category, event_dt FROM changes",
        "SELECT id category event_dt FROM latest",
        "SELECT id, no_such(category) AS category, event_dt FROM latest",
        "",
    ]);
    assert_snapshot!(told, @r#"
    SELECT id, categori, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not plan: Schema error: No field named categori. Did you mean 'latest.category'?
    hint: it reads the relation `latest`: the raw columns and `event_dt`; a column that no file of the window has is declared in `[raw.columns]`

    SELECT id, category, event_dt FROM changes
    exit 2
    error: [folder]/pipeline/curated.sql does not plan: Error during planning: table 'datafusion.public.changes' not found
    hint: it reads the relation `latest`: the raw columns and `event_dt`; a column that no file of the window has is declared in `[raw.columns]`

    SELECT id category event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not plan: SQL error: ParserError("Expected: end of statement, found: event_dt at Line: 1, Column: 20")
    hint: it reads the relation `latest`: the raw columns and `event_dt`; a column that no file of the window has is declared in `[raw.columns]`

    SELECT id, no_such(category) AS category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not plan: Error during planning: Invalid function 'no_such'.
    hint: it reads the relation `latest`: the raw columns and `event_dt`; a column that no file of the window has is declared in `[raw.columns]`


    exit 2
    error: [folder]/pipeline/curated.sql does not plan: Error during planning: No SQL statements were provided in the query string
    hint: it reads the relation `latest`: the raw columns and `event_dt`; a column that no file of the window has is declared in `[raw.columns]`
    "#);
}

#[test]
fn a_query_that_is_not_row_wise_is_refused_with_what_makes_it_so() {
    let told = refusals_of_curated_sql(&[
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
    assert_snapshot!(told, @"
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
    let told = refusals_of_curated_sql(&[
        "SELECT id, note, event_dt FROM latest",
        "SELECT id, note, category AS class, event_dt FROM latest",
    ]);
    assert_snapshot!(told, @"
    SELECT id, note, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql lacks the partition column `category`
    hint: select it, or mend `curated.partition_by`; its columns: id, note, event_dt

    SELECT id, note, category AS class, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql lacks the partition column `category`
    hint: select it, or mend `curated.partition_by`; its columns: id, note, class, event_dt
    ");
}

#[test]
fn a_curated_query_that_does_not_pass_the_key_through_is_refused() {
    let told = refusals_of_curated_sql(&[
        "SELECT note, category, event_dt FROM latest",
        "SELECT id AS customer, note, category, event_dt FROM latest",
        "SELECT id + 1 AS id, note, category, event_dt FROM latest",
        "SELECT CAST(id AS INT) AS id, note, category, event_dt FROM latest",
        "SELECT note AS id, category, event_dt FROM latest",
    ]);
    assert_snapshot!(told, @"
    SELECT note, category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not pass the key column `id` through
    hint: select it under its own name; its columns: note, category, event_dt

    SELECT id AS customer, note, category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not pass the key column `id` through
    hint: select it under its own name; its columns: customer, note, category, event_dt

    SELECT id + 1 AS id, note, category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not pass the key column `id` through
    hint: it is Int64: select it as it is, or cast it so that different keys stay different; `[raw.columns]` can give it another type

    SELECT CAST(id AS INT) AS id, note, category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not pass the key column `id` through
    hint: it is Int64: select it as it is, or cast it so that different keys stay different; `[raw.columns]` can give it another type

    SELECT note AS id, category, event_dt FROM latest
    exit 2
    error: [folder]/pipeline/curated.sql does not pass the key column `id` through
    hint: it is Int64: select it as it is, or cast it so that different keys stay different; `[raw.columns]` can give it another type
    ");
}

/// What is said of `daily.sql`: the same by `run`, before it publishes the curated table.
fn refusal_of_daily_sql(query: &str) -> String {
    let lab = lab_after_a_good_run();
    fs::write(lab.pipeline.join("daily.sql"), query).expect("written");
    let told = refusal(&lab, &aggregation(&lab));
    assert_eq!(refusal(&lab, &both_windows(&lab)), told);
    told
}

fn aggregation(lab: &Lab) -> Vec<String> {
    arguments("aggregate", &lab.pipeline, "2019-12-12", "2019-12-14")
}

#[test]
fn an_aggregate_that_does_not_plan_is_refused() {
    assert_snapshot!(refusal_of_daily_sql("SELECT days FROM history"), @"
    exit 2
    error: [folder]/pipeline/daily.sql does not plan: Schema error: No field named days.
    hint: it reads `history` and `curated`, with $start_date and $end_date
    ");
}

#[test]
fn an_aggregate_without_its_day_column_is_refused() {
    let daily = DAILY.replace("AS dt", "AS day");
    assert_snapshot!(refusal_of_daily_sql(&daily), @"
    exit 2
    error: [folder]/pipeline/daily.sql lacks the day column `dt`
    hint: select it, or mend `aggregate.day`; its columns: day, customers
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

/// Days that are found to be wrong only when the query runs.
const OUTSIDE: &str = "SELECT DATE '2019-01-01' AS dt, COUNT(*) AS customers FROM history";

#[test]
fn a_table_that_parquet_cannot_hold_is_refused_before_anything_is_published() {
    let refused = |file: &str, sql: &str| {
        let lab = lab_after_a_good_run();
        fs::write(lab.pipeline.join(file), sql).expect("written");
        refusal(&lab, &elsewhere(&lab))
    };
    let days = "SELECT DISTINCT event_dt AS dt FROM history
                WHERE event_dt >= $start_date AND event_dt < $end_date";
    assert_snapshot!(refused("daily.sql", days), @"
    exit 2
    error: [folder]/pipeline/daily.sql has no columns but partition columns
    ");
    let null = CURATED.replace("CAST(note AS VARCHAR)", "NULL");
    assert_snapshot!(refused("curated.sql", &null), @"
    exit 2
    error: [folder]/pipeline/curated.sql: the column `note` has a type that Parquet tables do not have
    hint: cast it: CAST(… AS …)
    ");
    let other_day = CURATED.replace("CAST(event_dt AS DATE)", "CAST(event AS DATE)");
    assert_ne!(other_day, CURATED);
    assert_snapshot!(refused("curated.sql", &other_day), @"
    exit 2
    error: [folder]/pipeline/curated.sql gives `event_dt` another meaning than the change's day
    hint: select it as it is, and give the other value another name
    ");
}

#[test]
fn an_aggregate_with_a_day_outside_of_its_parameters_is_refused() {
    let lab = lab_after_a_good_run();
    fs::write(lab.pipeline.join("daily.sql"), OUTSIDE).expect("written");
    assert_snapshot!(refusal(&lab, &aggregation(&lab)), @"
    exit 2
    error: [folder]/pipeline/daily.sql returns a day outside of [$start_date, $end_date)
    hint: restrict its days to the parameters
    ");
}

#[test]
fn a_run_whose_aggregate_failed_is_made_good_by_the_next_one() {
    let lab = lab_after_a_good_run();
    fs::write(lab.pipeline.join("daily.sql"), OUTSIDE).expect("written");
    assert_eq!(run(&lab, &both_windows(&lab)).code, 2);
    fs::write(lab.pipeline.join("daily.sql"), DAILY).expect("written");
    let again = run(&lab, &both_windows(&lab));
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(lab.table("lake/curated").len(), 4);
    assert_eq!(lab.table("lake/daily").len(), 2);
}

#[test]
fn a_window_that_does_not_start_before_its_end_is_refused() {
    let lab = lab_after_a_good_run();
    let same = arguments("run", &lab.pipeline, "2019-12-12", "2019-12-12");
    assert_snapshot!(refusal(&lab, &same), @"
    exit 2
    error: start 2019-12-12T00:00:00Z is not before end 2019-12-12T00:00:00Z: the end is exclusive, so the window holds nothing
    hint: the end is not part of the window: 2019-04-01 to 2019-04-02 is one day
    ");
    let swapped = arguments("run", &lab.pipeline, "2019-12-14", "2019-12-12T06:00:00Z");
    assert_snapshot!(refusal(&lab, &swapped), @"
    exit 2
    error: start 2019-12-14T00:00:00Z is not before end 2019-12-12T06:00:00Z: the end is exclusive, so the window holds nothing
    hint: the end is not part of the window: 2019-04-01 to 2019-04-02 is one day
    ");
}

#[test]
fn a_date_that_cannot_be_read_is_refused_with_those_that_can() {
    let lab = lab_after_a_good_run();
    let told = ["12.12.2019", "2019-02-30", "20191212", "yesterday", ""].map(|date| {
        let arguments = arguments("run", &lab.pipeline, date, "2019-12-14");
        refusal(&lab, &arguments)
    });
    assert_snapshot!(told.join("\n\n"), @"
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
    let mut arguments = both_windows(&lab);
    arguments.truncate(4);
    assert_snapshot!(refusal(&lab, &arguments), @"
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
    let told = ["name", "modified", "path", "commit"].map(|window_by| {
        let nowhere = format!("raw.url={}/nowhere", lab.base);
        let window_by = format!("raw.window_by={window_by}");
        refusal(&lab, &set(both_windows(&lab), &[&nowhere, &window_by]))
    });
    assert!(told.iter().all(|one| *one == told[0]), "{told:#?}");
    assert_snapshot!(told[0], @"
    exit 2
    error: the raw location [folder]/nowhere is not an existing folder
    hint: check `raw.url`
    ");
}

#[test]
fn two_pipelines_cannot_have_one_curated_table() {
    let lab = lab_after_a_good_run();
    let shared = format!("curated.url={}/lake/curated", lab.base);
    assert_snapshot!(refusal(&lab, &set(elsewhere(&lab), &[&shared])), @"
    exit 2
    error: [folder]/lake/curated belongs to `curated` of the pipeline `customers`
    hint: give each its own `curated.url`
    ");
}

#[test]
fn two_pipelines_cannot_have_one_aggregate_table() {
    let lab = lab_after_a_good_run();
    let shared = format!("aggregate.daily.url={}/lake/daily", lab.base);
    assert_snapshot!(refusal(&lab, &set(elsewhere(&lab), &[&shared])), @"
    exit 2
    error: [folder]/lake/daily belongs to `daily` of the pipeline `customers`
    hint: give each its own `aggregate.daily.url`
    ");
}

#[test]
fn two_pipelines_cannot_have_one_state() {
    let lab = lab_after_a_good_run();
    let shared = format!("state.url={}/lake/_glueless/customers", lab.base);
    assert_snapshot!(refusal(&lab, &set(elsewhere(&lab), &[&shared])), @"
    exit 2
    error: [folder]/lake/_glueless/customers belongs to `state` of the pipeline `customers`
    hint: give each its own `state.url`
    ");
}

#[test]
fn a_folder_with_files_of_somebody_else_is_not_taken() {
    let lab = lab_after_a_good_run();
    lab.put("lake/others/archive/2018.csv", b"theirs".to_vec());
    assert_snapshot!(refusal(&lab, &elsewhere(&lab)), @"
    exit 2
    error: [folder]/lake/others holds files that no run of this pipeline wrote, such as archive/2018.csv
    hint: point `curated.url` at an empty folder, or take the files away
    ");
}

#[test]
fn a_pipeline_that_is_no_longer_what_made_its_tables_is_refused() {
    let lab = lab_after_a_good_run();
    let elsewhere = format!("curated.url={}/lake/elsewhere", lab.base);
    let told = [
        "key=[\"id\", \"category\"]",
        "keep=latest-per-day",
        "raw.event_time=ts",
        "curated.partition_by=[\"event_dt\"]",
        &elsewhere,
    ]
    .map(|change| {
        let told = refusal(&lab, &set(both_windows(&lab), &[change]));
        format!("{}\n{told}", change.replace(&lab.base, "[folder]"))
    });
    assert_snapshot!(told.join("\n\n"), @r#"
    key=["id", "category"]
    exit 2
    error: the pipeline `customers` is no longer what made its tables: `key` changed
    hint: undo the change, make the tables again with `glueless rebuild`, or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers

    keep=latest-per-day
    exit 2
    error: the pipeline `customers` is no longer what made its tables: `keep` changed
    hint: undo the change, make the tables again with `glueless rebuild`, or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers

    raw.event_time=ts
    exit 2
    error: the pipeline `customers` is no longer what made its tables: `raw.event_time` changed
    hint: undo the change, make the tables again with `glueless rebuild`, or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers

    curated.partition_by=["event_dt"]
    exit 2
    error: the pipeline `customers` is no longer what made its tables: `curated.partition_by` changed
    hint: undo the change, make the tables again with `glueless rebuild`, or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers

    curated.url=[folder]/lake/elsewhere
    exit 2
    error: the pipeline `customers` is no longer what made its tables: `curated.url` changed
    hint: undo the change, make the tables again with `glueless rebuild`, or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers
    "#);
    let curated = format!("{CURATED} WHERE category <> 'Silver'");
    fs::write(lab.pipeline.join("curated.sql"), curated).expect("written");
    assert_snapshot!(refusal(&lab, &both_windows(&lab)), @"
    exit 2
    error: the pipeline `customers` is no longer what made its tables: `curated.sql` changed
    hint: undo the change, make the tables again with `glueless rebuild`, or use another `name` and `curated.url`; the state is in [folder]/lake/_glueless/customers
    ");
}

// What is wrong with the input: exit code 65.

#[test]
fn a_damaged_file_is_named() {
    let mut no_footer = parquet(&batch(changes(1, 1)), None);
    let length = no_footer.len();
    no_footer[length - 40..length - 8].fill(0xff);
    assert_snapshot!(refusal_of_file(no_footer, &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is not a readable Parquet file: Parquet error: invalid utf8
    hint: it may be truncated or damaged: restore it from its source, or take it away
    ");
    assert_snapshot!(refusal_of_file(b"id,note\n90010001,confidential\n".to_vec(), &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is not a readable Parquet file: Parquet error: Invalid Parquet file. Corrupt footer
    hint: it may be truncated or damaged: restore it from its source, or take it away
    ");
}

#[test]
fn a_file_with_damaged_pages_is_named() {
    let mut bytes = parquet(&batch(changes(1, 1)), None);
    bytes[4..200].fill(0xff);
    assert_snapshot!(refusal_of_file(bytes, &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is not a readable Parquet file: the query engine failed: Parquet argument error: Parquet error: Unexpected struct field type 15
    hint: it may be truncated or damaged: restore it from its source, or take it away
    ");
}

#[test]
fn a_truncated_file_is_named() {
    let bytes = parquet(&batch(changes(1, 1)), None);
    assert_snapshot!(refusal_of_file(bytes[..bytes.len() / 2].to_vec(), &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is not a readable Parquet file: Parquet error: Invalid Parquet file. Corrupt footer
    hint: it may be truncated or damaged: restore it from its source, or take it away
    ");
    assert_snapshot!(refusal_of_file(bytes[..6].to_vec(), &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is not a readable Parquet file: EOF: Parquet file too small. Size is 6 but need 8
    hint: it may be truncated or damaged: restore it from its source, or take it away
    ");
}

#[test]
fn an_empty_file_is_named() {
    assert_snapshot!(refusal_of_file(Vec::new(), &[]), @"
    exit 65
    error: [folder]/raw/20191213-130000000.parquet is empty
    hint: restore it from its source, or take it away
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
    let told = refusal(&lab, &set(elsewhere(&lab), &["key=[\"customer\"]"]));
    assert_snapshot!(told, @"
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
    let columns = with(
        changes(1, 1),
        "Op",
        text([Some("I"), Some("U"), Some("X9")]),
    );
    assert_snapshot!(refusal_of_columns(columns, &["X9"]), @"
    exit 65
    error: row 3 of [folder]/raw/20191213-130000000.parquet: column `Op` is none of I, U, D
    hint: check `raw.op` and the file
    ");
}

#[test]
fn a_null_commit_time_is_named_with_file_row_and_column() {
    let times = text([
        Some("2019-12-13 13:00:00"),
        None,
        Some("2019-12-13 13:00:02"),
    ]);
    let columns = with(changes(1, 1), "ts", times);
    assert_snapshot!(refusal_of_columns(columns, &["13:00:0"]), @"
    exit 65
    error: row 2 of [folder]/raw/20191213-130000000.parquet: column `ts` is null
    hint: every change needs a commit time: check `raw.order_by`
    ");
}

#[test]
fn a_commit_time_that_is_none_is_named_with_file_row_and_column() {
    let times = text([Some("2019-12-13 13:00:00"), Some("half past one"), None]);
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
    let events = text([None, Some("2019-12-13"), Some("one fine day")]);
    let columns = with(changes(1, 1), "happened", events);
    lab.put_raw("20191213-130000000.parquet", &batch(columns));
    let arguments = set(elsewhere(&lab), &["raw.event_time=happened"]);
    assert_snapshot!(refusal_hiding(&lab, &arguments, &["one fine day"]), @"
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
    let columns = with(changes(1, 1), "id", text([Some("90010001"); 3]));
    assert_snapshot!(refusal_of_columns(columns, &[]), @"
    exit 65
    error: column `id` is Int64 in [folder]/raw/20191212-120000000.parquet and Utf8View in [folder]/raw/20191213-130000000.parquet
    hint: name its type in `[raw.columns]`, if all values can take it, or mend the files
    ");
}

#[test]
fn a_value_that_does_not_fit_its_curated_type_is_refused_without_showing_it() {
    let lab = lab_after_a_good_run();
    let curated = CURATED.replace("CAST(note AS VARCHAR)", "CAST(note AS BIGINT)");
    fs::write(lab.pipeline.join("curated.sql"), curated).expect("written");
    assert_snapshot!(refusal(&lab, &elsewhere(&lab)), @"
    exit 65
    error: [folder]/pipeline/curated.sql fails on a row: a value cannot be cast or computed
    hint: leave such rows out with WHERE, or use TRY_CAST
    ");
}

#[test]
fn a_raw_column_with_a_reserved_name_is_refused() {
    let told = ["event_dt", "__position", "__live"].map(|name| {
        let columns = with(changes(1, 1), name, text([Some("reserved"); 3]));
        refusal_of_columns(columns, &[": reserved"])
    });
    assert_snapshot!(told.join("\n\n"), @"
    exit 65
    error: the raw column `event_dt` has a name that is reserved
    hint: rename the column where the changes are captured

    exit 65
    error: the raw column `__position` has a name that is reserved
    hint: rename the column where the changes are captured

    exit 65
    error: the raw column `__live` has a name that is reserved
    hint: rename the column where the changes are captured
    ");
}

#[test]
fn a_raw_file_without_a_time_in_its_name_is_named() {
    let lab = lab_after_a_good_run();
    lab.put_raw("export.parquet", &batch(changes(1, 1)));
    assert_snapshot!(refusal(&lab, &both_windows(&lab)), @"
    exit 65
    error: [folder]/raw/export.parquet has no time in its name (yyyyMMdd-HHmmssSSS)
    hint: set `raw.full_load` if it is a full load, or another `raw.window_by`
    ");
}

// Storage that does not take what is written: exit code 69.

fn set_modes(folder: &Path, folders: u32, files: u32) {
    let mode = |path: &Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    };
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => set_modes(&path, folders, files),
            false => mode(&path, files),
        }
    }
    mode(folder, folders);
}

/// The program as a user whom permissions bind: root is not bound by them.
fn bound_by_permissions(folder: &Path) -> Command {
    if fs::metadata(folder).expect("a folder").uid() != 0 {
        return Command::new(glueless());
    }
    let binary = folder.join("glueless");
    fs::copy(glueless(), &binary).expect("a copy for the other user");
    let mut program = Command::new("/usr/bin/setpriv");
    program.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    program.arg(binary);
    program
}

#[test]
fn a_lake_without_write_permission_stays_as_it_is() {
    let lab = lab_after_a_good_run();
    let (folder, lake) = (lab.folder.path(), lab.folder.path().join("lake"));
    let before = contents(&lake);
    let program = bound_by_permissions(folder);
    set_modes(folder, 0o555, 0o555);
    let output = run_program(&lab.base, program, &both_windows(&lab));
    set_modes(folder, 0o755, 0o755);
    assert_snapshot!(told(&output), @"
    exit 69
    error: cannot write [folder]/lake/_glueless/customers/versions/kind=version/00000000000000000003-[run]-00-00.parquet: input or output failed: Generic LocalFileSystem error: Unable to open file [folder]/lake/_glueless/customers/versions/kind=version/00000000000000000003-[run]-00-00.parquet#1: Permission denied (os error 13)
    hint: check its permissions and free space
    ");
    assert_eq!(output.stdout, "");
    assert_unchanged(&before, &contents(&lake));
    assert_eq!(run(&lab, &both_windows(&lab)).code, 0);
    assert_eq!(lab.table("lake/curated").len(), 4);
}

#[test]
fn a_lake_that_cannot_be_made_is_named() {
    let lab = lab_after_a_good_run();
    let (folder, lake) = (lab.folder.path(), lab.folder.path().join("lake"));
    let before = contents(&lake);
    let program = bound_by_permissions(folder);
    set_modes(folder, 0o555, 0o555);
    let output = run_program(&lab.base, program, &elsewhere(&lab));
    set_modes(folder, 0o755, 0o755);
    assert_snapshot!(told(&output), @"
    exit 69
    error: cannot write [folder]/lake/_glueless/others/versions/kind=version/00000000000000000001-[run]-00-00.parquet: input or output failed: Generic LocalFileSystem error: Unable to create dir [folder]/lake/_glueless/others/versions/kind=version: Permission denied (os error 13)
    hint: check its permissions and free space
    ");
    assert_eq!(output.stdout, "");
    assert_unchanged(&before, &contents(&lake));
}

/// In a mount namespace of its own, so that the small disk goes with the last process. The lake
/// gets a little more room from run to run, so that every write is the one that fails once.
const FILL_UP: &str = r#"
set -eu
lake="$1/lake"; glueless="$2"; pipeline="$1/pipeline"; first="$3"; second="$4"
mount -t tmpfs -o size=1m tmpfs "$lake"
published() { (cd "$lake" && find . -path ./_glueless -prune -o -type f -exec sha256sum {} + | sort); }
mv "$second" "$second.later"
"$glueless" run "$pipeline" --start-date 2019-12-12 --end-date 2019-12-13 > "$1/first" 2>&1
mv "$second.later" "$second"
before=$(published)
used=$(df -k --output=used "$lake" | tail -n 1)
for more in $(seq 0 4 400); do
    mount -o "remount,size=$((used + more))k" "$lake"
    code=0
    "$glueless" curate "$pipeline" --start-date 2019-12-12 --end-date 2019-12-14 \
        > "$1/stdout" 2> "$1/stderr" || code=$?
    same=changed
    if [ "$(published)" = "$before" ]; then same=unchanged; fi
    left=$(find "$lake/_glueless" -path '*staging*' -type f | wc -l)
    told=$(grep -E '^(error|hint):' "$1/stderr" | tr '\n' ' ' || true)
    echo "$more|$code|$same|$left|$(wc -c < "$1/stdout")|$told"
    if [ "$code" = 0 ]; then exit 0; fi
done
"#;

#[test]
fn a_full_disk_changes_nothing_wherever_it_is_met() {
    let works = |flags: &str| {
        let probe = "d=$(mktemp -d) && mount -t tmpfs -o size=1m tmpfs $d";
        let probe = Process::new("unshare")
            .args([flags, "sh", "-c", probe])
            .output();
        probe.is_ok_and(|output| output.status.success())
    };
    let flags = ["-rm", "-m"].into_iter().find(|flags| works(flags));
    let flags = flags.expect(
        "this test mounts a small disk: it needs util-linux's `unshare` and either user \
         namespaces (sysctl kernel.unprivileged_userns_clone=1) or the right to mount",
    );
    let lab = lab_after_a_good_run();
    fs::remove_dir_all(lab.folder.path().join("lake")).expect("removed");
    fs::create_dir(lab.folder.path().join("lake")).expect("made");
    // Text that does not compress, so that the table's file needs room.
    let mut state = 1_u64;
    let notes = [0; 3].map(|_| {
        let letter = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            char::from(b'0' + (state >> 58) as u8)
        };
        (0..20_000).map(letter).collect::<String>()
    });
    let columns = with(
        changes(1, 1),
        "note",
        Arc::new(StringArray::from(notes.to_vec())),
    );
    lab.put_raw("20191213-120000000.parquet", &batch(columns));
    let path = |name: &str| lab.folder.path().join(name);
    let output = Process::new("unshare")
        .args([flags, "sh", "-c", FILL_UP, "fill_up"])
        .args([&path(""), &glueless()])
        .args(
            ["20191212-120000000", "20191213-120000000"].map(|n| path(&format!("raw/{n}.parquet"))),
        )
        .output()
        .expect("it starts");
    let told = String::from_utf8_lossy(&output.stdout).replace(&lab.base, "[folder]");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{told}");
    let runs: Vec<Vec<&str>> = told.lines().map(|line| line.split('|').collect()).collect();
    let (last, failed) = runs.split_last().expect("runs");
    assert_eq!(last[1..3], ["0", "changed"], "{told}");
    assert!(failed.len() >= 10, "{told}");
    for run in failed {
        assert_eq!(run[1..5], ["69", "unchanged", "0", "0"], "{run:?}\n{told}");
        assert!(run[5].contains("the disk is full"), "{run:?}\n{told}");
    }
    let of_table = failed.iter().find(|run| run[5].contains("/staging/"));
    let of_table = of_table.expect("a failed write")[5].trim_end();
    // Two threads write; either can be the first to find no room.
    let of_table = ["000001", "000002", "000003"]
        .iter()
        .fold(of_table.to_string(), |told, number| {
            told.replace(&format!("curated/{number}-"), "curated/000000-")
        });
    let own = staging_name(&format!("{}/lake/_glueless/customers", lab.base));
    let of_table = of_table.replace(&own, "[own]");
    assert_snapshot!(mask_run_ids(&of_table), @"error: cannot write [folder]/lake/_glueless/customers/staging/[own]/00000000000000000003-[run]/curated/000000-00000.parquet: the disk is full: Generic LocalFileSystem error: Unable to copy data to file: No space left on device (os error 28) hint: free some space (spilled data goes to `limits.spill_dir`) and run again");
}

// A window without inputs is no error.

#[test]
fn a_window_without_inputs_is_done_and_says_so() {
    let lab = lab_after_a_good_run();
    let lake = lab.folder.path().join("lake");
    let published = || {
        let mut found = contents(&lake);
        found.retain(|name, _| !name.starts_with("_glueless"));
        found
    };
    let before = published();
    let arguments = arguments("run", &lab.pipeline, "2030-01-01", "2030-01-02");
    let output = run(&lab, &arguments);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let report: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(report["note"], "no inputs in the window");
    let numbers = report.as_object().expect("an object").iter();
    for (name, number) in numbers.filter(|(_, value)| value.is_number()) {
        if name != "seconds" && name != "peak_memory_bytes" {
            assert_eq!(*number, 0, "{name}");
        }
    }
    assert_eq!(report["aggregates"][0]["rows_removed"], 0);
    assert_eq!(report["aggregates"][0]["rows_inserted"], 0);
    assert_unchanged(&before, &published());
}

#[test]
fn a_first_window_without_inputs_makes_no_table() {
    let lab = lab_after_a_good_run();
    let mut arguments = elsewhere(&lab);
    arguments[3] = "2018-01-01".into();
    arguments[5] = "2018-01-02".into();
    // That the window was run is remembered; nothing else is written.
    let tables = || {
        let mut files = contents(&lab.folder.path().join("lake"));
        files.retain(|path, _| !path.starts_with("_glueless/others/"));
        files
    };
    let before = tables();
    let output = run(&lab, &arguments);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let report: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(report["note"], "no inputs in the window");
    assert_unchanged(&before, &tables());
}

// The surface.

/// A pipeline of the repository over the fixtures, in a lake of its own.
fn fixture_arguments(pipeline: &str, folder: &Path, start: &str, end: &str) -> Vec<String> {
    let place = Path::new(REPOSITORY).join("sql").join(pipeline);
    let folder = folder.display();
    let mut overrides = vec![
        format!("raw.url={REPOSITORY}/fixtures/raw/cust_loyalty"),
        format!("curated.url={folder}/curated"),
        format!("aggregate.{pipeline}_daily.url={folder}/daily"),
    ];
    if pipeline == "cust_loyalty" {
        overrides.push(format!("aggregate.{pipeline}_status.url={folder}/status"));
    }
    let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    set(arguments("run", &place, start, end), &overrides)
}

fn run_fixtures(pipeline: &str, folder: &Path, more: &[&str]) -> Output {
    let mut arguments = fixture_arguments(pipeline, folder, "2019-12-12", "2019-12-16");
    arguments.extend(more.iter().map(|text| text.to_string()));
    let shown = folder.display().to_string();
    let output = run_program(&shown, Command::new(glueless()), &arguments);
    assert_eq!(output.code, 0, "{}", output.stderr);
    output
}

#[test]
fn the_report_is_one_line_of_json_with_every_field() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run_fixtures("cust_loyalty", folder.path(), &["--output", "json"]);
    assert_eq!(output.stdout.lines().count(), 1);
    assert!(output.stdout.ends_with("}\n"));
    let mut report: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert!(report["seconds"].as_f64().expect("a number") > 0.0);
    assert!(report["peak_memory_bytes"].as_u64().expect("a number") > 1_000_000);
    let raw = Path::new(REPOSITORY).join("fixtures/raw/cust_loyalty");
    assert_eq!(report["bytes"], bytes_of(&raw));
    assert_eq!(
        report["bytes_written"],
        bytes_of(&folder.path().join("curated"))
    );
    assert_eq!(report["bytes_changed"], report["bytes_written"]);
    let varying = [
        "seconds",
        "peak_memory_bytes",
        "bytes",
        "bytes_written",
        "bytes_changed",
    ];
    for name in varying {
        report[name] = Value::Null;
    }
    assert_snapshot!(serde_json::to_string_pretty(&report).expect("JSON"), @r#"
    {
      "aggregates": [
        {
          "days": 7,
          "name": "cust_loyalty_daily",
          "rows_inserted": 6,
          "rows_removed": 0
        },
        {
          "days": 7,
          "name": "cust_loyalty_status",
          "rows_inserted": 7,
          "rows_removed": 0
        }
      ],
      "bytes": null,
      "bytes_changed": null,
      "bytes_written": null,
      "end": "2019-12-16T00:00:00Z",
      "files": 8,
      "files_rejected": 0,
      "key_moves": 0,
      "late_files": 0,
      "newest_commit_time": "2019-12-15T23:15:00Z",
      "partitions_removed": 0,
      "partitions_written": 10,
      "peak_memory_bytes": null,
      "pipeline": "cust_loyalty",
      "rows_deleted": 2,
      "rows_latest": 12,
      "rows_outside": 0,
      "rows_read": 36,
      "rows_rejected": 0,
      "rows_stale": 0,
      "rows_superseded": 22,
      "rows_written": 12,
      "run_id": "[run]",
      "seconds": null,
      "start": "2019-12-12T00:00:00Z",
      "ties": 2
    }
    "#);
}

/// The size of all Parquet files below a folder.
fn bytes_of(folder: &Path) -> u64 {
    let files = contents(folder).into_iter();
    let files = files.filter(|(name, _)| name.ends_with(".parquet"));
    files.map(|(_, bytes)| bytes.len() as u64).sum()
}

#[test]
fn the_report_is_json_where_stdout_is_no_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run_fixtures("cust_loyalty_by_day", folder.path(), &[]);
    assert_eq!(output.stdout.lines().count(), 1);
    let report: Value = serde_json::from_str(&output.stdout).expect("JSON");
    let numbers = [
        "rows_read",
        "rows_latest",
        "rows_superseded",
        "rows_deleted",
        "ties",
    ]
    .map(|name| report[name].as_u64().expect("a number"));
    assert_eq!(numbers, [36, 22, 11, 3, 4]);
    assert_eq!(report["partitions_written"], 16);
}

#[test]
fn the_report_is_a_short_table_where_text_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run_fixtures("cust_loyalty", folder.path(), &["--output", "text"]);
    let (table, took) = output.stdout.split_once("  took ").expect("a last line");
    let masked: String = took
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert!(masked.contains(" s, "), "{took}");
    assert!(masked.ends_with(" peak\n"), "{took}");
    assert_snapshot!(table, @"
    cust_loyalty  2019-12-12 00:00 to 2019-12-16 00:00
      files      8 (0 late), 10 kB
      rows read  36: 12 latest, 22 superseded, 2 deleted, 0 rejected, 0 outside
      ties       2
      curated    12 rows in 10 partitions, 0 removed, 13 kB (13 kB changed)
      aggregate  cust_loyalty_daily: 7 days, 0 rows removed, 6 rows inserted
      aggregate  cust_loyalty_status: 7 days, 0 rows removed, 7 rows inserted
    ");
}

#[test]
fn nothing_follows_the_report_on_either_stream() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = fixture_arguments("cust_loyalty", folder.path(), "2019-12-12", "2019-12-16");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(glueless());
    let output = run_program("no folder", shell, &arguments);
    let (logs, report) = output.stdout.trim_end().rsplit_once('\n').expect("lines");
    serde_json::from_str::<Value>(report).expect("JSON");
    assert!(output.stdout.ends_with("}\n"));
    assert!(logs.lines().count() > 3);
    assert!(logs.lines().all(|line| line.contains(" INFO ")), "{logs}");
}

#[test]
fn logs_go_to_stderr_and_say_what_each_aggregate_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let aggregates = |output: &Output| {
        assert!(!output.stdout.contains("INFO"));
        let lines = output.stderr.lines().filter_map(|line| {
            let start = line.find("aggregate ")?;
            Some(line[start..].to_string())
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let first = run_fixtures("cust_loyalty", folder.path(), &[]);
    assert_snapshot!(aggregates(&first), @"
    aggregate cust_loyalty_daily: window [2019-12-12T00:00:00Z, 2019-12-16T00:00:00Z), qualifying dates 7 (2019-04-01 to 2019-12-15), rows deleted 0, rows inserted 6
    aggregate cust_loyalty_status: window [2019-12-12T00:00:00Z, 2019-12-16T00:00:00Z), qualifying dates 7 (2019-04-01 to 2019-12-15), rows deleted 0, rows inserted 7
    ");
    let second = run_fixtures("cust_loyalty", folder.path(), &[]);
    assert_snapshot!(aggregates(&second), @"
    aggregate cust_loyalty_daily: window [2019-12-12T00:00:00Z, 2019-12-16T00:00:00Z), qualifying dates 4 (2019-12-12 to 2019-12-15), rows deleted 3, rows inserted 3
    aggregate cust_loyalty_status: window [2019-12-12T00:00:00Z, 2019-12-16T00:00:00Z), qualifying dates 4 (2019-12-12 to 2019-12-15), rows deleted 4, rows inserted 4
    ");
}

#[test]
fn both_spellings_of_the_dates_and_dates_with_time_are_taken() {
    let lab = lab_after_a_good_run();
    let pipeline = lab.pipeline.display().to_string();
    for (start, end) in [
        ("2019-12-12", "2019-12-14"),
        ("2019-12-12T00:00:00Z", "2019-12-14T00:00:00Z"),
        ("2019-12-12 00:00:00", "2019-12-14 00:00:00"),
        ("2019-12-12T02:00:00+02:00", "2019-12-13 19:00:00-05:00"),
    ] {
        for names in [["--start-date", "--end-date"], ["--startDate", "--endDate"]] {
            let arguments = ["curate", &pipeline, names[0], start, names[1], end];
            let output = run(&lab, &arguments.map(String::from));
            assert_eq!(output.code, 0, "{arguments:?} {}", output.stderr);
            let report: Value = serde_json::from_str(&output.stdout).expect("JSON");
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
        let output = run(&lab, &arguments("curate", &lab.pipeline, "2019-12-12", end));
        assert_eq!(output.code, 0, "{}", output.stderr);
        let report: Value = serde_json::from_str(&output.stdout).expect("JSON");
        report["files"].as_u64().expect("a number")
    };
    assert_eq!(files("2019-12-13T12:00:00Z"), 1);
    assert_eq!(files("2019-12-13T12:00:00.001Z"), 2);
}

#[test]
fn a_pipeline_is_named_by_its_folder_or_its_file() {
    let lab = lab_after_a_good_run();
    let file = lab.pipeline.join("pipeline.toml");
    let output = run(&lab, &arguments("run", &file, "2019-12-12", "2019-12-14"));
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(lab.table("lake/curated").len(), 4);
}

#[test]
fn set_overrides_keys_and_refuses_what_it_does_not_understand() {
    let lab = lab_after_a_good_run();
    let lowered = set(
        both_windows(&lab),
        &["limits.threads=1", "limits.memory=128MB"],
    );
    let output = run(&lab, &lowered);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(
        output.stderr.contains("memory limit 128 MB, 1 threads"),
        "{}",
        output.stderr
    );
    let told = [
        "raw.window_by",
        "raw.window_by=day",
        "aggregate.weekly.url=/tmp",
        "aggregate.daily.urls=/tmp",
        "curated.url=gs://bucket/curated",
        "limits.memory=lots",
        "a.b.c.d=1",
    ]
    .map(|text| {
        format!(
            "{text}\n{}",
            refusal(&lab, &set(both_windows(&lab), &[text]))
        )
    });
    assert_snapshot!(told.join("\n\n"), @r#"
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
        let arguments = arguments(command, &lab.pipeline, "2019-12-12", "2019-12-14");
        let output = run(&lab, &arguments);
        assert_eq!(output.code, 0, "{}", output.stderr);
        (
            lab.table("lake/curated").len(),
            lab.table("lake/daily").len(),
        )
    };
    assert_eq!(half("aggregate"), (3, 1));
    assert_eq!(half("curate"), (4, 1));
    assert_eq!(half("aggregate"), (4, 2));
}

#[test]
fn help_is_the_manual() {
    let folder = tempfile::tempdir().expect("a folder");
    let help = |arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().map(|text| text.to_string()).collect();
        let folder = folder.path().display().to_string();
        let output = run_program(&folder, Command::new(glueless()), &arguments);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        output.stdout
    };
    assert_snapshot!(help(&["--help"]), @r"
    Folds the change log that a CDC tool leaves in object storage into curated tables, one date window at a time. Any windows, in any order, any number of times, give the same tables

    Usage: glueless [OPTIONS] <COMMAND>

    Commands:
      run          Curate, then aggregate
      curate       The curated table only
      aggregate    The aggregates only
      backfill     Window after window
      catch-up     What was never folded
      rebuild      Everything again, from raw
      plan         What a run would do
      runs         What was done
      verify       Whether the table is right
      explain-key  The changes of one key
      help         Print this message or the help of the given subcommand(s)

    Options:
      -v, --verbose...
              Log more: the files that are read, and what each step makes of them

      -q, --quiet
              Log nothing but the error of a command that fails

          --log-format <FORMAT>
              How log lines look. Both name the run

              Possible values:
              - text: Time, level, run and message
              - json: One object of JSON per line
              
              [default: text]

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

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

      glueless run sql/cust_loyalty --start-date 2019-12-12T06:00:00Z --end-date 2019-12-12T07:00:00Z \
          --set raw.url=s3://bucket/raw/cust_loyalty --set limits.memory=2GiB

    S3 is reached with the standard AWS settings: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
    AWS_PROFILE, web identity and instance roles, AWS_REGION, and AWS_ENDPOINT_URL for other stores.
    ");
    assert_snapshot!(help(&["help", "run"]), @"
    Curate, then aggregate.

    Folds the window's changes into the curated table and recomputes the aggregates' days. Of several pipelines each is run, whatever becomes of the others; the exit code is the worst.

    Usage: glueless run [OPTIONS] --start-date <DATE> --end-date <DATE> <PIPELINE>...

    Arguments:
      <PIPELINE>...
              The pipelines: folders that hold a pipeline.toml each, or the toml files themselves. Of several paths, files and folders that are neither are left out: sql/* will do

    Options:
          --start-date <DATE>
              The window's first instant, UTC: 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00'

          --end-date <DATE>
              The first instant after the window, UTC. It is not part of the window

          --set <KEY=VALUE>
              Override a key of pipeline.toml, such as raw.url=s3://bucket/raw or aggregate.NAME.url=/tables/daily. May be given many times

          --output <OUTPUT>
              How the answer is printed: json is one line, text a short table. Default: text on a terminal, json otherwise

              Possible values:
              - json: One line of JSON
              - text: A short table

          --metrics-file <FILE>
              Write what Prometheus is to know of each pipeline's last run to this file, for the node exporter's textfile collector (a name that ends in .prom). It is replaced in one step; what other runs wrote of other pipelines stays

      -v, --verbose...
              Log more: the files that are read, and what each step makes of them

      -q, --quiet
              Log nothing but the error of a command that fails

          --log-format <FORMAT>
              How log lines look. Both name the run

              Possible values:
              - text: Time, level, run and message
              - json: One object of JSON per line
              
              [default: text]

      -h, --help
              Print help (see a summary with '-h')
    ");
    let rebuild = help(&["help", "rebuild"]);
    assert!(rebuild.contains("--accept-missing"), "{rebuild}");
    assert_eq!(help(&["help", "run"]), help(&["run", "--help"]));
}

// The fixtures, read by engines that are not ours.

/// A table as an engine of Python reads it: columns with the engine's types, and rows.
fn read_with(engine: &str, table: &Path) -> (String, Vec<BTreeMap<String, Option<String>>>) {
    let (columns, rows) =
        support::read_with(engine, &table.display().to_string(), None).expect("read");
    let typed = columns.iter().map(|(name, kind)| format!("{name} {kind}"));
    let typed = typed.collect::<Vec<_>>().join("\n");
    let names = || columns.iter().map(|(name, _)| name.clone());
    let rows = rows.into_iter().map(|row| names().zip(row).collect());
    (typed, sorted(rows.collect()))
}

fn sorted<T: Ord>(mut rows: Vec<T>) -> Vec<T> {
    rows.sort();
    rows
}

/// A table of `fixtures/expected`, its times written as the engines write them.
fn expected(name: &str) -> Vec<BTreeMap<String, Option<String>>> {
    let file = Path::new(REPOSITORY).join("fixtures/expected").join(name);
    let text = fs::read_to_string(file).expect("a file");
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().expect("names").split(',').collect();
    let cell = |(name, value): (&&str, &str)| {
        let mut value = value.to_string();
        if name.ends_with("_ts") {
            value = value.replace('T', " ");
            if value.contains('.') {
                value = value.trim_end_matches('0').to_string();
            }
        }
        (name.to_string(), (!value.is_empty()).then_some(value))
    };
    let rows = lines.map(|line| names.iter().zip(line.split(',')).map(cell).collect());
    sorted(rows.collect())
}

const ENGINES: [&str; 2] = ["duckdb", "polars"];

#[test]
fn the_fixtures_come_out_as_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    run_fixtures("cust_loyalty", folder.path(), &[]);
    let mut types = Vec::new();
    for engine in ENGINES {
        for (table, csv) in [
            ("curated", "curated_latest.csv"),
            ("daily", "daily.csv"),
            ("status", "status.csv"),
        ] {
            let (typed, rows) = read_with(engine, &folder.path().join(table));
            assert_eq!(rows, expected(csv), "{table} by {engine}");
            types.push(format!("{table} by {engine}\n{typed}"));
        }
    }
    assert_snapshot!(types.join("\n\n"), @"
    curated by duckdb
    event_id BIGINT
    event_ts TIMESTAMP
    cust_id VARCHAR
    business_op_code VARCHAR
    recorded_ts TIMESTAMP
    event_dt DATE
    cust_loyalty_category VARCHAR

    daily by duckdb
    basic BIGINT
    silver BIGINT
    gold BIGINT
    platinum BIGINT
    dt DATE

    status by duckdb
    basic BIGINT
    silver BIGINT
    gold BIGINT
    platinum BIGINT
    total BIGINT
    dt DATE

    curated by polars
    event_id Int64
    event_ts Datetime(time_unit='us', time_zone=None)
    cust_id String
    business_op_code String
    recorded_ts Datetime(time_unit='us', time_zone=None)
    event_dt Date
    cust_loyalty_category String

    daily by polars
    basic Int64
    silver Int64
    gold Int64
    platinum Int64
    dt Date

    status by polars
    basic Int64
    silver Int64
    gold Int64
    platinum Int64
    total Int64
    dt Date
    ");
}

#[test]
fn the_fixtures_by_day_come_out_as_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    run_fixtures("cust_loyalty_by_day", folder.path(), &[]);
    let mut types = Vec::new();
    for engine in ENGINES {
        for (table, csv) in [("curated", "curated_by_day.csv"), ("daily", "daily.csv")] {
            let (typed, rows) = read_with(engine, &folder.path().join(table));
            assert_eq!(rows, expected(csv), "{table} by {engine}");
            types.push(format!("{table} by {engine}\n{typed}"));
        }
    }
    assert_snapshot!(types.join("\n\n"), @"
    curated by duckdb
    event_id BIGINT
    event_ts TIMESTAMP
    cust_id VARCHAR
    business_op_code VARCHAR
    recorded_ts TIMESTAMP
    event_dt DATE
    cust_loyalty_category VARCHAR

    daily by duckdb
    basic BIGINT
    silver BIGINT
    gold BIGINT
    platinum BIGINT
    dt DATE

    curated by polars
    event_id Int64
    event_ts Datetime(time_unit='us', time_zone=None)
    cust_id String
    business_op_code String
    recorded_ts Datetime(time_unit='us', time_zone=None)
    event_dt Date
    cust_loyalty_category String

    daily by polars
    basic Int64
    silver Int64
    gold Int64
    platinum Int64
    dt Date
    ");
}

#[test]
fn the_known_sample_lies_in_its_partition_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = fixture_arguments("cust_loyalty", folder.path(), "2019-01-01", "2020-01-01");
    let shown = folder.path().display().to_string();
    let output = run_program(&shown, Command::new(glueless()), &arguments);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let day = folder.path().join("curated/event_dt=2019-04-01");
    let listed: Vec<String> = contents(&day).into_keys().collect();
    assert_eq!(
        listed,
        [
            "cust_loyalty_category=Basic/",
            "cust_loyalty_category=Basic/part-c00000001-00000.snappy.parquet"
        ]
    );
    for engine in ENGINES {
        let (_, there) = read_with(engine, &day.join("cust_loyalty_category=Basic"));
        let customers: Vec<&Option<String>> = there.iter().map(|row| &row["cust_id"]).collect();
        assert_eq!(customers, [&Some("Cust100".to_string())], "{engine}");
        let (_, all) = read_with(engine, &folder.path().join("curated"));
        let sample = all
            .iter()
            .filter(|row| row["cust_id"].as_deref() == Some("Cust100"));
        assert_eq!(sample.count(), 1, "{engine}");

        let (_, daily) = read_with(engine, &folder.path().join("daily"));
        let of_day: Vec<String> = daily
            .iter()
            .filter(|row| row["dt"].as_deref() == Some("2019-04-01"))
            .map(|row| {
                let cells = row.iter();
                let shown = cells.map(|(name, value)| match value {
                    Some(value) => format!("{name} {value}"),
                    None => format!("{name} null"),
                });
                shown.collect::<Vec<_>>().join(", ")
            })
            .collect();
        assert_eq!(
            of_day,
            ["basic 1, dt 2019-04-01, gold null, platinum null, silver null"],
            "{engine}"
        );
    }
}

#[test]
fn ten_thousand_partitions_need_few_open_files_and_little_memory() {
    let files = [("curated.sql", CURATED), ("daily.sql", DAILY)];
    let lab = Lab::new(Place::Local, TOML, &files);
    let partitions = 10_000;
    for day in 0..2 {
        // Each partition gets two rows; on the second day one of them changes.
        let ids = || (0..2 * partitions).filter(move |id| day == 0 || id % 2 == 0);
        let second = 12 + day;
        let times = ids().map(|id| format!("2019-12-{second} 12:00:00.{id:06}"));
        let categories = ids().map(|id| format!("category {:05}", id / 2));
        let ops = ids().map(|_| if day == 0 { "I" } else { "U" });
        let columns: Columns = vec![
            ("Op", Arc::new(StringArray::from_iter_values(ops))),
            ("ts", Arc::new(StringArray::from_iter_values(times))),
            (
                "event",
                Arc::new(TimestampMicrosecondArray::from_iter_values(
                    ids().map(|_| FIRST_DAY_US),
                )),
            ),
            ("id", Arc::new(Int64Array::from_iter_values(ids()))),
            (
                "category",
                Arc::new(StringArray::from_iter_values(categories)),
            ),
            (
                "note",
                Arc::new(StringArray::from_iter_values(ids().map(|_| NOTE))),
            ),
        ];
        lab.put_raw(
            &format!("201912{second}-120000000.parquet"),
            &batch(columns),
        );
        let window = [12 + day, 13 + day].map(|day| format!("2019-12-{day}"));
        let [start, end] = &window;
        let mut program = Command::new("/bin/sh");
        program.args(["-c", r#"ulimit -n 64; exec "$0" "$@""#]);
        program.arg(glueless());
        let arguments = arguments("run", &lab.pipeline, start, end);
        let arguments = set(arguments, &["limits.threads=2", "limits.memory=500MB"]);
        let output = run_program(&lab.base, program, &arguments);
        assert_eq!(output.code, 0, "{}", output.stderr);
        let report: Value = serde_json::from_str(&output.stdout).expect("a report");
        assert_eq!(report["partitions_written"], partitions, "{report}");
        assert_eq!(report["rows_written"], 2 * partitions, "{report}");
        let peak = report["peak_memory_bytes"].as_u64().expect("a number");
        assert!(peak < 500_000_000, "{peak} bytes");
    }
}

/// The lines of a log in JSON.
fn json_lines(log: &str) -> Vec<Value> {
    let lines = log.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn with_flags(arguments: Vec<String>, flags: &[&str]) -> Vec<String> {
    arguments
        .into_iter()
        .chain(flags.iter().map(ToString::to_string))
        .collect()
}

#[test]
fn every_line_of_a_log_names_its_run() {
    let lab = lab_after_a_good_run();
    let output = Command::new(glueless())
        .args(with_flags(
            both_windows(&lab),
            &["-v", "--log-format", "json"],
        ))
        .env_clear()
        .output()
        .expect("it starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let log = String::from_utf8(output.stderr).expect("text");
    let lines = json_lines(&log);
    assert!(lines.len() > 5, "{log}");
    for line in &lines {
        assert_eq!(line["run_id"], report["run_id"]);
        assert_eq!(line["pipeline"], "customers");
        assert!(line["time"].as_str().expect("a time").ends_with('Z'));
        assert!(!line["message"].as_str().expect("a message").is_empty());
    }
    let levels: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["level"].as_str())
        .collect();
    assert!(
        levels.contains(&"INFO") && levels.contains(&"DEBUG"),
        "{levels:?}"
    );

    let text = run(&lab, &both_windows(&lab)).stderr;
    assert!(
        text.lines().all(|line| line.contains("INFO [run] ")),
        "{text}"
    );
}

#[test]
fn a_failure_is_a_line_of_json_too() {
    let lab = lab_after_a_good_run();
    let bad = with(changes(2, 5), "Op", text([Some("I"), Some("X"), Some("I")]));
    lab.put_raw("20191213-130000000.parquet", &batch(bad));
    let output = run(
        &lab,
        &with_flags(both_windows(&lab), &["--log-format", "json"]),
    );
    let lines = json_lines(&output.stderr);
    let last = lines.last().expect("a line");
    assert_eq!((output.code, last["level"].as_str()), (65, Some("ERROR")));
    assert_eq!(
        (last["run_id"].as_str(), last["exit_code"].as_u64()),
        (Some("[run]"), Some(65))
    );
    let message = last["message"].as_str().expect("a message");
    assert!(message.contains("20191213-130000000.parquet"), "{message}");
    assert!(last["hint"].is_string());
}

#[test]
fn a_quiet_run_says_nothing_but_why_it_failed() {
    let lab = lab_after_a_good_run();
    let output = run(&lab, &with_flags(both_windows(&lab), &["--quiet"]));
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let output = run(
        &lab,
        &with_flags(set(both_windows(&lab), &["raw.op=nope"]), &["-q"]),
    );
    assert_eq!(output.code, 2);
    assert!(
        output.stderr.starts_with("error: ") && output.stderr.lines().count() == 2,
        "{}",
        output.stderr
    );
}

#[test]
fn the_longest_log_holds_no_secret_and_no_value_of_a_row() {
    let lab = lab_after_a_good_run();
    let aside = set(
        both_windows(&lab),
        &["raw.on_bad_row=quarantine", "raw.on_bad_file=quarantine"],
    );
    let bad = with(
        changes(1, 5),
        "Op",
        text([Some("I"), Some(NOTE), Some("I")]),
    );
    lab.put_raw("20191213-130000000.parquet", &batch(bad));
    let key = (FIRST_ID + 1).to_string();
    let pipeline = lab.pipeline.display().to_string();
    let verify = ["verify".to_string(), pipeline.clone()].to_vec();
    let explain = ["explain-key".to_string(), pipeline, key].to_vec();
    let options = ["raw.on_bad_row=quarantine", "raw.on_bad_file=quarantine"];
    for arguments in [aside, set(verify, &options), set(explain, &options)] {
        for format in ["text", "json"] {
            let flags = ["-vv", "--log-format", format];
            let output = run(&lab, &with_flags(arguments.clone(), &flags));
            assert_eq!(output.code, 0, "{}", output.stderr);
            assert!(!output.stderr.contains(SECRET) && !output.stderr.contains(NOTE));
            // A key's values stand in an answer, where they were asked for, and in no log.
            assert!(
                !output.stderr.contains(&FIRST_ID.to_string()),
                "{}",
                output.stderr
            );
        }
    }
}

#[test]
fn questions_before_the_first_run_are_answered_plainly() {
    let files = [("curated.sql", CURATED), ("daily.sql", DAILY)];
    let lab = Lab::new(Place::Local, TOML, &files);
    lab.put_raw("20191212-120000000.parquet", &batch(changes(0, 0)));
    let pipeline = lab.pipeline.display().to_string();
    let ask = |more: &[&str]| {
        let arguments: Vec<String> = more[..1]
            .iter()
            .chain([&pipeline.as_str()])
            .chain(&more[1..])
            .map(ToString::to_string)
            .collect();
        run(&lab, &with_flags(arguments, &["-q"]))
    };
    let runs = ask(&["runs", "--output", "text"]);
    assert_eq!(
        (runs.code, runs.stdout.as_str()),
        (0, "customers: no run has committed anything yet\n")
    );
    assert_snapshot!(told(&ask(&["verify"])), @"
    exit 2
    error: there is nothing to verify: no run has folded anything yet
    hint: fold a window first: glueless run
    ");
    assert_snapshot!(told(&ask(&["explain-key", "1"])), @"
    exit 2
    error: there is nothing to explain: no run has folded anything yet
    hint: fold a window first: glueless run
    ");
    assert_snapshot!(told(&ask(&["catch-up"])), @"
    exit 2
    error: there is nothing to catch up with: no run has folded anything yet
    hint: fold a window first: glueless run
    ");
    assert!(lab.list_all("lake").is_empty());
}

#[test]
fn keys_that_are_none_are_refused_and_unknown_ones_are_told() {
    let lab = lab_after_a_good_run();
    let pipeline = lab.pipeline.display().to_string();
    let ask = |key: &[&str]| {
        let arguments = ["explain-key", &pipeline]
            .into_iter()
            .chain(key.iter().copied());
        run(&lab, &arguments.map(String::from).collect::<Vec<_>>())
    };
    assert_snapshot!(told(&ask(&["1", "2"])), @"
    exit 2
    error: the key has 1 columns, and 2 values were given
    hint: give a value for each of: id (behind --, where one begins with a dash)
    ");
    assert_snapshot!(told(&ask(&["one"])), @"
    exit 2
    error: `one` is not a value of the key column `id`
    hint: its type is Int64
    ");
    let unknown = ask(&["-7", "--output", "text"]);
    assert_snapshot!(unknown.stdout, @"
    customers  id -7: 0 changes among 6 rows of 2 files
    no change has this key
    ");
    assert_eq!(unknown.code, 0);
}

#[test]
fn a_metrics_file_that_cannot_be_written_is_refused_before_the_run() {
    let lab = lab_after_a_good_run();
    let before = lab.contents("lake");
    let output = run(
        &lab,
        &with_flags(both_windows(&lab), &["--metrics-file", "/nowhere/a.prom"]),
    );
    assert_snapshot!(told(&output), @"
    exit 2
    error: cannot write /nowhere/a.prom: No such file or directory (os error 2)
    hint: name a file in a folder that can be written: --metrics-file
    ");
    assert_eq!(lab.contents("lake"), before);
}
