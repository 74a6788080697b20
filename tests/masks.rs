//! Masks: no value of a masked column is stored, printed or logged, and the table is the one that the same changes without
//! masks make, with each value masked.

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit, Mac};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sha2::{Digest, Sha256};

use crate::support::{
    Answer, COUNT_PER_DAY, Compared, Database, Event, Lab, LabBuilder, PLACES, Row, STATE, Task,
    assert_nowhere, assert_refused, events_json, events_parquet, file_of_columns, file_of_rows,
    integers, optional_texts, rows_of, test_times, texts,
};

const KEY: &str = "the key of the masks of these tests";
const SALT: &str = "the salt of the masks of these tests";

/// The columns of a log, each of another mask; `city` has none.
const COLUMNS: [&str; 9] = ["Op", "ts", "email", "name", "card", "born", "ssn", "phone", "city"];
const MASKS: [(&str, &str); 6] = [
    ("email", "hmac"),
    ("name", "redact"),
    ("card", "last4"),
    ("born", "year"),
    ("ssn", "sha256"),
    ("phone", "null"),
];
const SQL: &str = "SELECT email, name, card, born, ssn, phone, city, event_dt FROM latest";
const FORMATS: [&str; 3] = ["parquet", "csv", "json"];

type Change = [&'static str; 9];

const ANN: &str = "ann@example.org";
const BOB: &str = "bob@example.org";

/// What is nowhere to be found.
const SECRETS: [&str; 13] = [
    ANN,
    BOB,
    "eve@example.org",
    "Ann Lee",
    "Bob Fox",
    "Eve Ray",
    "411111111111",
    "550000000000",
    "1987-05-06",
    "1990-12-31",
    "987654321",
    "123454321",
    "+49 30 1234567",
];

const FIRST: [Change; 3] = [
    [
        "I",
        "2020-01-02 10:00:00",
        ANN,
        "Ann Lee",
        "4111111111111234",
        "1987-05-06",
        "987654321",
        "+49 30 1234567",
        "Rome",
    ],
    [
        "I",
        "2020-01-02 11:00:00",
        BOB,
        "Bob Fox",
        "5500000000005678",
        "1990-12-31",
        "123454321",
        "+49 30 1234567",
        "Oslo",
    ],
    ["I", "2020-01-02 12:00:00", "zed@example.org", "", "", "", "", "", "Bonn"],
];
const SECOND: [Change; 2] = [
    [
        "U",
        "2020-01-03 10:00:00",
        ANN,
        "Ann Lee",
        "4111111111111234",
        "1987-05-06",
        "987654321",
        "",
        "Kiel",
    ],
    ["D", "2020-01-03 11:00:00", "zed@example.org", "", "", "", "", "", ""],
];
/// The time of a change, or its date of birth, is none.
const BAD: [Change; 2] = [
    [
        "I",
        "2020-01-04 10:00:00",
        "eve@example.org",
        "Eve Ray",
        "4111111111111234",
        "soon",
        "987654321",
        "+49 30 1234567",
        "Bath",
    ],
    [
        "I",
        "2020-01-04 11:00:00",
        BOB,
        "Bob Fox",
        "5500000000005678",
        "1990-12-31",
        "123454321",
        "+49 30 1234567",
        "Paris",
    ],
];

fn builder(format: &str) -> LabBuilder {
    let mut builder = Lab::builder()
        .set("key", vec!["email"])
        .set("raw.format", format)
        .set("raw.on_bad_row", "quarantine")
        .partition_by(&["event_dt"])
        .curated_sql(SQL);
    for (column, mask) in MASKS {
        builder = builder.set(&format!("mask.{column}"), mask);
    }
    match format {
        "csv" => {
            let kind = |name: &str| if name == "ssn" { "BIGINT" } else { "VARCHAR" };
            let columns: Vec<(&str, &str)> =
                COLUMNS.iter().map(|name| (*name, kind(name))).collect();
            builder.raw_columns(&columns)
        }
        _ => builder,
    }
}

fn build(builder: &LabBuilder) -> Lab {
    let mut lab = builder.build();
    let secrets = [("GLUELESS_MASK_KEY", KEY), ("GLUELESS_MASK_SALT", SALT)];
    lab.environment = secrets.map(|(name, value)| (name.to_string(), value.to_string())).into();
    lab
}

/// A raw file of changes; an empty text is null, and `ssn` is a number.
fn file(format: &str, changes: &[Change]) -> Vec<u8> {
    let value = |text: &'static str| Some(text).filter(|text| !text.is_empty());
    match format {
        "csv" => {
            changes.iter().map(|change| change.join(",") + "\n").collect::<String>().into_bytes()
        }
        "json" => {
            let line = |change: &Change| {
                let fields = COLUMNS.iter().zip(change).map(|(name, text)| {
                    let json = match (value(text), *name) {
                        (Some(number), "ssn") => number.parse::<i64>().expect("a number").into(),
                        (text, _) => serde_json::Value::from(text),
                    };
                    (name.to_string(), json)
                });
                serde_json::Value::Object(fields.collect()).to_string() + "\n"
            };
            changes.iter().map(line).collect::<String>().into_bytes()
        }
        _ => {
            let columns = COLUMNS.iter().enumerate().map(|(number, name)| {
                let values = || changes.iter().map(|change| value(change[number]));
                let column = if *name == "ssn" {
                    let numbers = values()
                        .map(|text| text.map(|text| text.parse::<i64>().expect("a number")));
                    std::sync::Arc::new(numbers.collect::<arrow::array::Int64Array>()) as _
                } else {
                    optional_texts(values())
                };
                (*name, column)
            });
            file_of_columns(columns.collect())
        }
    }
}

fn put(lab: &Lab, format: &str, day: u32, changes: &[Change]) {
    lab.put(&format!("raw/202001{day:02}-000000000.{format}"), file(format, changes));
}

fn run(lab: &Lab) {
    lab.run("2020-01-01", "2020-02-01").expect("a run");
}

fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["email", "name", "card", "born", "ssn", "phone", "city", "event_dt"])
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hmac(text: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).expect("a key");
    digits(&mac.chain_update(text).finalize().into_bytes())
}

fn sha256(text: &str) -> String {
    digits(&Sha256::new_with_prefix(SALT).chain_update(text).finalize())
}

fn ann_in_kiel() -> String {
    format!("{} *** ****1234 1987 {} - Kiel 2020-01-03", hmac(ANN), sha256("987654321"))
}

fn bob(city: &str, day: u32) -> String {
    format!("{} *** ****5678 1990 {} - {city} 2020-01-{day:02}", hmac(BOB), sha256("123454321"))
}

fn sorted<const N: usize>(mut lines: [String; N]) -> [String; N] {
    lines.sort();
    lines
}

#[track_caller]
fn assert_masked(lab: &Lab) {
    SECRETS.iter().for_each(|secret| assert_nowhere(lab, "lake", secret));
}

#[test]
fn no_value_of_a_masked_column_is_stored() {
    for (place, format) in PLACES.into_iter().flat_map(|place| FORMATS.map(|it| (place, it))) {
        let lab = build(&builder(format).place(place).aggregate("daily", COUNT_PER_DAY));
        put(&lab, format, 3, &SECOND);
        run(&lab);
        put(&lab, format, 2, &FIRST);
        run(&lab);
        assert_eq!(
            sorted(curated(&lab).try_into().expect("two rows")),
            sorted([ann_in_kiel(), bob("Oslo", 2)])
        );
        lab.assert_verified();

        // Bad rows are kept, too, without what is masked.
        put(&lab, format, 4, &BAD);
        let report = lab.run("2020-01-01", "2020-02-01").expect("a run");
        assert_eq!(report.rows_rejected, 1, "{format}");
        assert_eq!(
            sorted(curated(&lab).try_into().expect("two rows")),
            sorted([ann_in_kiel(), bob("Paris", 4)])
        );
        let kept = lab.list_all(&format!("{STATE}/quarantine"));
        let kept = rows_of(lab.get(&format!("{STATE}/quarantine/{}", kept[0])));
        let change: BTreeMap<String, String> =
            serde_json::from_str(&kept[0]["change"]).expect("JSON");
        assert_eq!(kept[0]["column"], "born");
        if format == "csv" {
            // Its fields may be those of other columns.
            assert_eq!(change, BTreeMap::new());
        } else {
            assert_eq!(change["city"], "Bath");
            assert_eq!(change["email"], hmac("eve@example.org"));
            assert_eq!((change["born"].as_str(), change.get("phone")), ("***", None));
        }
        assert_masked(&lab);

        // A key is found by its value, and by what stands for it.
        for key in [ANN.to_string(), hmac(ANN)] {
            let explained = lab.explain(&[&key]);
            assert_eq!((explained.changes.len(), explained.rows_now.len()), (2, 1), "{format}");
            assert_eq!(explained.key, [("email".to_string(), hmac(ANN))]);
            assert!(!explained.text().contains(ANN));
        }
        lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(curated(&lab).len(), 2);
        let note = lab.forget(&[ANN], false).expect("forgotten").note.expect("a note");
        assert!(note.starts_with("1 keys are forgotten; 1 rows"), "{note}");
        assert_eq!(curated(&lab), [bob("Paris", 4)]);
        lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(curated(&lab), [bob("Paris", 4)]);
        assert_masked(&lab);
        lab.assert_verified();
    }
}

#[test]
fn no_value_of_a_masked_column_is_printed_or_logged() {
    for format in FORMATS {
        let lab = build(&builder(format));
        put(&lab, format, 2, &FIRST);
        put(&lab, format, 4, &BAD);
        if format == "csv" {
            lab.put("raw/20200105-000000000.csv", format!("I,2020-01-05 10:00:00,{ANN},too,few\n"));
        }
        if format == "json" {
            lab.put(
                "raw/20200105-000000000.json",
                format!(
                    "{{\"email\": \"{ANN}\"\n{{\"Op\": \"I\", \"ts\": \"\", \"email\": \"x\"}}\n"
                ),
            );
        }
        let environment: Vec<_> = lab.environment.clone().into_iter().collect();
        let commands = [
            lab.program_for("run", "2020-01-01", "2020-02-01")
                .args(["--set", "raw.on_bad_row=fail"]),
            lab.program_for("plan", "2020-01-01", "2020-02-01").arg("--fold"),
            lab.program_for("run", "2020-01-01", "2020-02-01"),
            lab.program("verify"),
            lab.program("runs"),
            lab.program("explain-key").arg(BOB),
            lab.program("forget").arg(BOB),
            lab.program("ddl").args(["--dialect", "duckdb"]),
        ];
        for (number, command) in commands.into_iter().enumerate() {
            let output = command.args(["-v", "-v", "-v"]).envs(environment.clone()).run();
            let is_refused = number == 0;
            assert_eq!(
                output.code,
                if is_refused { 65 } else { 0 },
                "{format} {number}: {}",
                output.stderr
            );
            for secret in SECRETS.iter().chain([&KEY, &SALT]) {
                let is_shown = output.stdout.contains(secret) || output.stderr.contains(secret);
                assert!(
                    !is_shown,
                    "{format} {number} shows {secret}: {}{}",
                    output.stdout, output.stderr
                );
            }
        }
        assert_masked(&lab);
    }
}

#[test]
fn a_table_of_before_must_be_rebuilt_with_other_masks_or_secrets() {
    let mut lab = build(&builder("parquet"));
    put(&lab, "parquet", 2, &FIRST);
    run(&lab);
    let before = curated(&lab);
    let window = ("2020-01-01", "2020-02-01");
    for (set, changed) in [
        ("mask.name=hmac", "`mask` changed"),
        ("mask.city=hmac", "`mask` changed"),
        ("mask.name=none", "`mask` changed"),
    ] {
        let refused = lab.run_with(Task::Run, window.0, window.1, &[set]);
        assert_refused(refused.expect_err("refused"), 2, changed, "rebuild the tables");
    }
    // A mask of a column that the table does not have changes nothing.
    lab.run_with(Task::Run, window.0, window.1, &["mask.fax=hmac"]).expect("a run");
    let mut other = |name: &str, value: Option<&str>| {
        let known = lab.environment.remove(name).expect("a variable");
        lab.environment.extend(value.map(|value| (name.to_string(), value.to_string())));
        let refused = lab.run(window.0, window.1).expect_err("refused");
        let verified = lab.verify();
        lab.environment.insert(name.into(), known);
        (refused, verified.is_err())
    };
    let (refused, _) = other("GLUELESS_MASK_KEY", Some("another key of the masks"));
    assert_refused(refused, 2, "`mask.key_env` changed", "undo the change");
    let (refused, _) = other("GLUELESS_MASK_SALT", Some("another salt of the masks"));
    assert_refused(refused, 2, "`mask.salt_env` changed", "undo the change");
    let (refused, is_refused) = other("GLUELESS_MASK_KEY", None);
    assert_refused(
        refused,
        2,
        "no variable GLUELESS_MASK_KEY (`mask.key_env`)",
        "the secret with which",
    );
    assert!(is_refused);
    let (refused, is_refused) = other("GLUELESS_MASK_SALT", Some("short"));
    assert_refused(
        refused,
        2,
        "GLUELESS_MASK_SALT (`mask.salt_env`) has fewer than 16",
        "openssl rand",
    );
    assert!(is_refused);
    // What reads no raw file needs no secret.
    let secrets = std::mem::take(&mut lab.environment);
    assert_eq!(lab.history().expect("runs").runs.len(), 2);
    lab.environment = secrets;
    assert_eq!(curated(&lab), before);
    lab.assert_verified();
    let report = lab.rebuild(false, &["mask.name=hmac", "mask.card=none"]).expect("rebuilt");
    assert_eq!(report.rows_latest, 3);
    let row = format!("{} {} 5500000000005678", hmac(BOB), hmac("Bob Fox"));
    assert!(curated(&lab).iter().any(|line| line.starts_with(&row)), "{:?}", curated(&lab));
}

#[test]
fn masks_that_would_hide_less_or_break_the_fold_are_refused() {
    let lab = build(&builder("parquet"));
    put(&lab, "parquet", 2, &FIRST);
    for (set, message, hint) in [
        ("mask.ts=hmac", "`mask.ts` is a mask of a column of `raw.order_by`", "cannot be masked"),
        ("mask.Op=redact", "`mask.Op` is a mask of a column of `raw.op`", "cannot be masked"),
        ("mask.email=redact", "`mask.email` is `redact`, for a key column", "write hmac"),
        ("mask.email=sha", "`mask.email` is `sha`", "write one of hmac, sha256"),
        (
            "mask.key_env=a secret",
            "`mask.key_env` is not the name",
            "write the secret into a variable",
        ),
        ("mask.ssn=year", "column `ssn` of", "mask it by `redact` or `null`"),
        (
            "mask.citys=hmac",
            "no raw file has the column `citys`, which `[mask]` names, and `city` has no mask",
            "mask.city = \"none\"",
        ),
    ] {
        let tried = lab.run_with(Task::Run, "2020-01-01", "2020-02-01", &[set]);
        let code = if set == "mask.ssn=year" { 65 } else { 2 };
        assert_refused(tried.expect_err(set), code, message, hint);
        assert_eq!(lab.list_all("lake"), Vec::<String>::new());
    }
    // What has no mask is said, and a column of that name may come.
    let set = ["mask.citys=hmac", "mask.city=none"];
    lab.run_with(Task::Run, "2020-01-01", "2020-02-01", &set).expect("a run");
    lab.remove_all("lake");
    // A column of that name has a mask, and there may be another one.
    lab.run_with(Task::Run, "2020-01-01", "2020-02-01", &["mask.emails=hmac"]).expect("a run");
}

#[test]
fn keys_that_are_masked_move_in_envelopes_as_others_do() {
    let note = |note: &str| Some(note.to_string());
    let events: [Event; 5] = [
        (Some("c"), None, Some((1, Some(10), note("the first secret"))), 1_577_923_200_000),
        (Some("c"), None, Some((2, Some(20), note("the second secret"))), 1_577_923_201_000),
        (
            Some("u"),
            Some((1, Some(10), note("the first secret"))),
            Some((9, Some(11), note("the third secret"))),
            1_577_923_202_000,
        ),
        (Some("d"), Some((2, None, None)), None, 1_577_923_203_000),
        (Some("m"), None, None, 1_577_923_204_000),
    ];
    for format in ["json", "parquet"] {
        let builder = Lab::builder()
            .set("raw.format", format)
            .set("raw.dialect", "debezium")
            .set("raw.order_by", vec!["ts_ms"])
            .set("mask.id", "hmac")
            .set("mask.note", "last4")
            .partition_by(&["event_dt"])
            .curated_sql("SELECT id, v, note, event_dt FROM latest");
        let lab = build(&builder);
        let bytes = if format == "json" {
            events_json(&events).into_bytes()
        } else {
            events_parquet(&events)
        };
        lab.put(&format!("raw/20200102-000000000.{format}"), bytes);
        run(&lab);
        let rows = lab.lines("lake/curated", ["id", "v", "note", "event_dt"]);
        assert_eq!(rows, [format!("{} 11 ****cret 2020-01-02", hmac("9"))]);
        assert_nowhere(&lab, "lake", "the third se");
        assert_eq!(lab.explain(&["1"]).changes.len(), 2);
        lab.assert_verified();
    }
}

#[test]
fn columns_before_an_update_are_masked_as_those_after_it() {
    let lab = build(
        &Lab::builder()
            .set("key", vec!["email"])
            .set("raw.before_image_prefix", "BI_")
            .set("mask.Email", "hmac")
            .set("mask.city", "redact")
            .partition_by(&[])
            .curated_sql("SELECT email, \"BI_city\" AS before, city FROM latest"),
    );
    let columns = ["Op", "ts", "email", "BI_email", "city", "BI_city"];
    let rows = [
        ["I", "2020-01-02 10:00:00", ANN, "-", "Rome", "-"],
        ["U", "2020-01-02 11:00:00", BOB, ANN, "Oslo", "Rome"],
    ];
    lab.put("raw/20200102-000000000.parquet", file_of_rows(&columns, &rows));
    run(&lab);
    assert_eq!(
        lab.lines("lake/curated", ["email", "before", "city"]),
        [format!("{} *** ***", hmac(BOB))]
    );
    assert_nowhere(&lab, "lake", ANN);
    assert_nowhere(&lab, "lake", "Rome");
    lab.assert_verified();
}

#[test]
fn a_pipeline_takes_a_mask_of_its_project_back() {
    let lab = build(&builder("parquet"));
    let project =
        "[mask]\ncity = 'hmac'\nfax = 'hmac'\nphone = 'last4'\ncitys = 'hmac'\nemail = 'none'";
    std::fs::write(lab.folder.path().join("glueless.toml"), project).expect("written");
    put(&lab, "parquet", 2, &FIRST);
    // A column that other tables have, and this one does not, is no mistake of the project.
    run(&lab);
    let city = |lab: &Lab| lab.lines("lake/curated", ["city"]).contains(&hmac("Rome"));
    assert!(city(&lab) && curated(&lab).iter().any(|line| line.starts_with(&hmac(ANN))));
    assert!(curated(&lab).iter().all(|line| !line.contains("4567")));
    lab.edit_pipeline("email = \"hmac\"", "email = \"hmac\"\ncity = \"none\"");
    lab.rebuild(false, &[]).expect("rebuilt");
    assert!(!city(&lab));
}

#[test]
fn a_masked_table_is_not_compared_with_values_of_its_source() {
    let database = Database::new();
    database.ask("CREATE TABLE people (id BIGINT PRIMARY KEY, email TEXT, city TEXT)");
    database.ask("INSERT INTO people VALUES (1, 'ann@example.org', 'Rome')");
    database.ask("GRANT SELECT ON people TO PUBLIC");
    let builder = Lab::builder()
        .set("mask.email", "hmac")
        .set("verify.url_env", "SOURCE_URL")
        .set("verify.table", "people")
        .partition_by(&[])
        .curated_sql("SELECT id, email, city FROM latest");
    let mut lab = build(&builder);
    lab.environment.insert("SOURCE_URL".into(), database.url());
    let row = vec![
        ("Op", texts(["I"])),
        ("id", integers([1])),
        ("email", texts([ANN])),
        ("city", texts(["Rome"])),
        ("ts", texts(["2020-01-02 10:00:00"])),
    ];
    lab.put_columns("raw/20200102-000000000.parquet", row);
    run(&lab);
    let against =
        || Compared { days: None, against: Some("postgres".into()), lag: None, source: None };
    for method in ["hashes", "rows"] {
        let method = format!("verify.method={method}");
        let verified = lab.verify_with(against(), &[&method]).expect("verified");
        assert!(verified.is_equal, "{}", verified.text());
        assert!(
            verified.text().contains("not compared: `email`, which `[mask]` masks"),
            "{}",
            verified.text()
        );
    }
    database.ask("UPDATE people SET city = 'Oslo'");
    assert!(!lab.verify_with(against(), &[]).expect("verified").is_equal);
}

/// A random change: the hour, the number of the key before and of the key, the operation, and a value.
type Random = (u8, u8, u8, u8, u8);

#[test]
fn a_masked_table_is_the_table_of_masked_values() {
    let config =
        Config { cases: 24 * test_times(), failure_persistence: None, ..Config::default() };
    let change = (0u8..48, 0u8..4, 0u8..4, 0u8..8, 0u8..3);
    let logs = (
        prop::collection::vec(prop::collection::vec(change, 1..6), 1..5),
        0..3usize,
        any::<bool>(),
    );
    TestRunner::new(config)
        .run(&logs, |(files, keep, moves)| {
            check_random(&files, ["latest", "latest-per-day", "history"][keep], moves);
            Ok(())
        })
        .expect("equal");
}

/// Folds changes file by file with masks, and at once without, and compares.
#[track_caller]
fn check_random(files: &[Vec<Random>], keep: &str, moves: bool) {
    let mut plain = Lab::builder()
        .set("key", vec!["who"])
        .keep(keep)
        .partition_by(&["event_dt"])
        .curated_sql("SELECT who, what, event_dt FROM latest");
    if moves {
        plain = plain.set("raw.before_image_prefix", "BI_");
    }
    let masked = plain.clone().set("mask.who", "hmac").set("mask.what", "hmac");
    let (plain, masked) = (plain.build(), build(&masked));
    for (number, rows) in files.iter().enumerate() {
        let name = format!("raw/202001{:02}-000000000.parquet", number + 2);
        let rows = rows.iter().map(|(hour, before, key, op, v)| {
            let op = ["I", "U", "U", "U", "U", "U", "U", "D"][usize::from(*op)];
            let before = if op == "U" { format!("key {before}") } else { "-".into() };
            let time = format!("2020-01-{:02} {:02}:00:00", 2 + hour / 24, hour % 24);
            [op.to_string(), time, format!("key {key}"), before, format!("value {v}")]
        });
        let file = file_of_rows(&["Op", "ts", "who", "BI_who", "what"], &rows.collect::<Vec<_>>());
        plain.put(&name, file.clone());
        masked.put(&name, file);
        run(&masked);
    }
    run(&plain);
    let columns: &[&str] = match keep {
        "history" => {
            &["who", "what", "event_dt", "valid_from", "valid_to", "is_current", "ended_by"]
        }
        _ => &["who", "what", "event_dt"],
    };
    let rows = |lab: &Lab, mask: &dyn Fn(&str) -> String| {
        let of = |row: &Row| {
            let cells = columns.iter().map(|name| match *name {
                "who" | "what" => mask(&row[*name]),
                _ => row.get(*name).cloned().unwrap_or_default(),
            });
            cells.collect::<Vec<_>>().join(" ")
        };
        let mut rows: Vec<String> = lab.table("lake/curated").iter().map(of).collect();
        rows.sort();
        rows
    };
    assert_eq!(rows(&masked, &|text| text.into()), rows(&plain, &hmac), "{files:?} {keep} {moves}");
    for text in ["key ", "value "] {
        assert_nowhere(&masked, "lake", text);
    }
    masked.assert_verified();
}

/// A log of one key column in Parquet files, one for each column of values.
fn of_keys(lab: &Lab, files: Vec<(&str, arrow::array::ArrayRef)>) {
    for (day, (op, keys)) in (2..).zip(files) {
        let rows = keys.len();
        let times = (0..rows).map(|row| format!("2020-01-{day:02} 10:00:{row:02}"));
        let columns = vec![("Op", texts(vec![op; rows])), ("id", keys), ("ts", texts(times))];
        lab.put_columns(&format!("raw/202001{day:02}-000000000.parquet"), columns);
    }
}

fn keyed() -> Lab {
    build(
        &Lab::builder()
            .set("mask.id", "hmac")
            .partition_by(&[])
            .curated_sql("SELECT id FROM latest"),
    )
}

#[test]
fn keys_that_are_no_texts_are_found_however_they_are_written() {
    let decimals = arrow::array::Decimal128Array::from(vec![150]).with_precision_and_scale(10, 2);
    let times = arrow::array::TimestampMicrosecondArray::from(vec![1_554_113_400_000_000]);
    let columns: [(arrow::array::ArrayRef, &[&str]); 4] = [
        (integers([7]), &["7", "007"]),
        (std::sync::Arc::new(decimals.expect("a decimal")), &["1.5", "1.50"]),
        (std::sync::Arc::new(times), &["2019-04-01 10:10:00", "2019-04-01T10:10:00.000"]),
        (std::sync::Arc::new(arrow::array::BinaryArray::from(vec![&b"abc"[..]])), &["616263"]),
    ];
    for (column, spellings) in columns {
        for spelling in spellings {
            let lab = keyed();
            of_keys(&lab, vec![("I", column.clone())]);
            run(&lab);
            if !column.data_type().is_binary() {
                assert_eq!(lab.explain(&[spelling]).changes.len(), 1, "{spelling}");
            }
            let note = lab.forget(&[spelling], false).expect("forgotten").note.expect("a note");
            assert!(note.starts_with("1 keys are forgotten; 1 rows"), "{spelling}: {note}");
            assert_eq!(lab.table("lake/curated").len(), 0);
        }
        let lab = keyed();
        of_keys(&lab, vec![("I", column.clone())]);
        run(&lab);
        if !column.data_type().is_binary() {
            assert!(lab.try_explain(&["no value"]).is_err());
        }
    }
    // A value of the source can have the form of a hash.
    let lab = keyed();
    let value = hmac("something");
    of_keys(&lab, vec![("I", texts([value.clone()]))]);
    run(&lab);
    for key in [value.clone(), hmac(&value)] {
        assert_eq!(lab.explain(&[&key]).changes.len(), 1);
    }
    let note = lab.forget(&[&value], false).expect("forgotten").note.expect("a note");
    assert!(note.starts_with("1 keys are forgotten; 1 rows"), "{note}");
}

#[test]
fn masked_values_of_types_that_have_no_common_one_are_refused() {
    for (one, other) in [
        (texts(["007"]), integers([7])),
        (integers([7]), texts(["7"])),
        (integers([7]), std::sync::Arc::new(arrow::array::Float64Array::from(vec![7.0])) as _),
    ] {
        let lab = keyed();
        of_keys(&lab, vec![("I", one.clone())]);
        run(&lab);
        of_keys(&lab, vec![("I", one.clone()), ("D", other.clone())]);
        let refused = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
        assert_refused(refused, 65, "column `id` is", "[raw.columns]");
        let at_once = keyed();
        of_keys(&at_once, vec![("I", one), ("D", other)]);
        let refused = at_once.run("2020-01-01", "2020-02-01").expect_err("refused");
        assert_refused(refused, 65, "column `id` is", "[raw.columns]");
    }
    // Those that have one are the same key.
    let small =
        std::sync::Arc::new(arrow::array::Int8Array::from(vec![7])) as arrow::array::ArrayRef;
    let lab = keyed();
    of_keys(&lab, vec![("I", small), ("D", integers([7]))]);
    run(&lab);
    assert_eq!(lab.table("lake/curated").len(), 0);
    // A declared type that is another one than that of before.
    let lab = keyed();
    of_keys(&lab, vec![("I", texts(["007"]))]);
    run(&lab);
    let refused = lab.run_with(Task::Run, "2020-01-01", "2020-02-01", &["raw.columns.id=BIGINT"]);
    assert_refused(refused.expect_err("refused"), 65, "was Utf8View in earlier runs", "rebuild");
}

#[test]
fn forgotten_keys_do_not_come_back_by_another_mask() {
    let mut lab = keyed();
    of_keys(&lab, vec![("I", texts(["a", "b"]))]);
    run(&lab);
    lab.forget(&["a"], false).expect("forgotten");
    for set in ["mask.id=sha256", "mask.id=none"] {
        let refused = lab.rebuild(false, &[set]).expect_err("refused");
        assert_refused(refused, 2, "keys were forgotten, and would come back", "forget --undo");
    }
    let known =
        lab.environment.insert("GLUELESS_MASK_KEY".into(), "another key of the masks".into());
    let refused = lab.rebuild(false, &[]).expect_err("refused");
    assert_refused(refused, 2, "keys were forgotten, and would come back", "forget --undo");
    lab.environment.insert("GLUELESS_MASK_KEY".into(), known.expect("a key"));
    lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(lab.lines("lake/curated", ["id"]), [hmac("b")]);
}

#[test]
fn values_before_an_update_have_no_masks_of_their_own() {
    let lab = build(&builder("parquet").set("raw.before_image_prefix", "BI_"));
    for (set, message, hint) in [
        (
            &["mask.BI_email=redact"][..],
            "`mask.BI_email` is a mask of a value before an update",
            "mask the column itself",
        ),
        (
            &["raw.order_by=[\"ts\", \"BI_city\"]", "mask.city=hmac"],
            "`mask.city` is a mask of a column of `raw.order_by`",
            "",
        ),
    ] {
        let refused = lab.run_with(Task::Run, "2020-01-01", "2020-02-01", set);
        assert_refused(refused.expect_err("refused"), 2, message, hint);
    }
    let lab =
        Lab::builder().set("raw.dialect", "debezium").set("raw.order_by", vec!["ts_ms"]).build();
    let refused = lab.run_with(Task::Run, "2020-01-01", "2020-02-01", &["mask.before.email=hmac"]);
    assert_refused(
        refused.expect_err("refused"),
        2,
        "is a mask of a value before an update",
        "mask the column itself",
    );
}

#[test]
fn a_column_that_is_similar_to_a_masked_one_is_named() {
    let lab = build(&builder("parquet"));
    let project = "[mask]\nCARD = 'hmac'\n";
    std::fs::write(lab.folder.path().join("glueless.toml"), project).expect("written");
    put(&lab, "parquet", 2, &FIRST);
    let environment: Vec<_> = lab.environment.clone().into_iter().collect();
    let run = |lab: &Lab| {
        lab.program_for("run", "2020-01-01", "2020-02-01").envs(environment.clone()).succeed()
    };
    run(&lab);
    // The pipeline's own mask counts, however its project writes the name.
    assert!(curated(&lab).iter().any(|line| line.contains("****1234")));
    let row = vec![
        ("Op", texts(["I"])),
        ("ts", texts(["2020-01-03 10:00:00"])),
        ("email", texts(["x@example.org"])),
        ("e_mail", texts(["x@example.org"])),
    ];
    lab.put_columns("raw/20200103-000000000.parquet", row);
    let output = run(&lab);
    let expected = "`e_mail` has no mask, and its name is similar to `email`, which has one";
    assert!(output.stderr.contains(expected), "{}", output.stderr);
}

/// A JSON file, a line each.
fn put_json(lab: &Lab, day: u32, lines: &[&str]) {
    lab.put(&format!("raw/202001{day:02}-000000000.json"), lines.join("\n") + "\n");
}

#[test]
fn types_of_converted_files_are_those_before_they_are_masked() {
    let lab = build(
        &Lab::builder()
            .set("raw.format", "json")
            .set("mask.id", "hmac")
            .set("mask.age", "year")
            .partition_by(&[])
            .curated_sql("SELECT id FROM latest"),
    );
    put_json(&lab, 2, &[r#"{"Op": "I", "id": 7, "ts": "2020-01-02 10:00:00", "age": 5}"#]);
    // A column that is not used may be of a type that cannot be masked so.
    run(&lab);
    assert_eq!(lab.lines("lake/curated", ["id"]), [hmac("7")]);
    // A key that is a number is found by what stands in the table, too.
    for key in ["7", &hmac("7")] {
        assert_eq!(lab.explain(&[key]).changes.len(), 1);
    }
    put_json(&lab, 3, &[r#"{"Op": "D", "id": "007", "ts": "2020-01-03 10:00:00"}"#]);
    for missing in [false, true] {
        if missing {
            lab.remove_all("lake");
        }
        let refused = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
        assert_refused(refused, 65, "column `id` is", "[raw.columns]");
    }
    lab.remove("raw/20200103-000000000.json");
    run(&lab);
    lab.forget(&["007"], false).expect("forgotten");
    assert_eq!(lab.table("lake/curated").len(), 0);
    let refused = lab.rebuild(false, &["raw.columns.id=VARCHAR"]).expect_err("refused");
    assert_refused(refused, 2, "keys were forgotten by `id` (number)", "forget --undo");
}

#[test]
fn envelopes_are_masked_in_declared_types_and_under_their_other_names() {
    let events: [Event; 2] = [
        (Some("c"), None, Some((7, Some(10), Some("007".into()))), 1_577_923_200_000),
        (Some("c"), None, Some((8, Some(20), Some("8".into()))), 1_577_923_201_000),
    ];
    for format in ["json", "parquet"] {
        let lab = build(
            &Lab::builder()
                .set("raw.format", format)
                .set("raw.dialect", "debezium")
                .set("raw.order_by", vec!["ts_ms"])
                .raw_columns(&[("note", "BIGINT")])
                .set("mask.id", "hmac")
                .set("mask.note", "hmac")
                .set("mask.v", "redact")
                .partition_by(&[])
                .curated_sql(
                    "SELECT id, \"after.id\" AS again, note, \"after.v\" AS v FROM latest",
                ),
        );
        let bytes = match format {
            "json" => events_json(&events).into_bytes(),
            _ => events_parquet(&events),
        };
        lab.put(&format!("raw/20200102-000000000.{format}"), bytes);
        run(&lab);
        let row = |id: &str| format!("{0} {0} {0} ***", hmac(id));
        let mut found = lab.lines("lake/curated", ["id", "again", "note", "v"]);
        found.sort();
        assert_eq!(found, sorted([row("7"), row("8")]), "{format}");
        lab.assert_verified();
        let note = lab.forget(&["07"], false).expect("forgotten").note.expect("a note");
        assert!(note.starts_with("1 keys are forgotten; 1 rows"), "{note}");
    }
}
