//! Keys that are forgotten: nothing of them is left but a hash, and the tables are those of a fold without their
//! changes, whenever they were forgotten.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    Answer, COUNT_PER_DAY, DELETION_VECTORS, Database, FLOWS, Fault, Lab, LabBuilder, PLACES,
    Program, ROWS_PER_DAY, STATE, Task, assert_nowhere, assert_refused, file_of_rows, glueless,
    rows_of, test_times,
};

fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.order_by", vec!["ts"])
        .set("key", vec!["who"])
        .partition_by(&["event_dt"])
        .curated_sql("SELECT who, cat, event_dt FROM latest")
}

/// A change: operation, time of January 2020, key and value.
type Change<'a> = [&'a str; 4];

fn put(lab: &Lab, name: &str, rows: &[Change<'_>]) {
    let rows = rows.iter().map(|[op, time, who, cat]| {
        [op.to_string(), format!("2020-01-{time}:00"), who.to_string(), cat.to_string()]
    });
    let rows: Vec<[String; 4]> = rows.collect();
    let file = file_of_rows(&["Op", "ts", "who", "cat"], &rows);
    lab.put(&format!("raw/{name}.parquet"), file);
}

fn run(lab: &Lab) {
    lab.run("2020-01-01", "2020-02-01").expect("a run");
}

fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["who", "cat", "event_dt"])
}

fn note(lab: &Lab, keys: &[&str], undo: bool) -> String {
    lab.forget(keys, undo).expect("done").note.expect("a note")
}

const ANN: &str = "ann@example.org";
const BOB: &str = "bob@example.org";

const LIFE: [(&str, &[Change<'_>]); 2] = [
    (
        "20200102-000000000",
        &[
            ["I", "02 10:00", ANN, "a"],
            ["I", "02 11:00", BOB, "a"],
            ["I", "02 12:00", "zed-zed", "c"],
        ],
    ),
    ("20200103-000000000", &[["U", "03 10:00", ANN, "b"], ["D", "03 11:00", "zed-zed", "c"]]),
];

fn started(builder: &LabBuilder) -> Lab {
    let lab = builder.build();
    for (name, rows) in LIFE {
        put(&lab, name, rows);
        run(&lab);
    }
    lab
}

#[test]
fn a_forgotten_key_is_nowhere_and_does_not_come_back() {
    for place in PLACES {
        let lab = started(&builder().place(place).aggregate("daily", COUNT_PER_DAY));
        assert_eq!(curated(&lab), [format!("{ANN} b 2020-01-03"), format!("{BOB} a 2020-01-02")]);
        let said = note(&lab, &[ANN], false);
        assert!(said.starts_with("1 keys are forgotten; 1 rows of them were removed"), "{said}");
        let left = [format!("{BOB} a 2020-01-02")];
        assert_eq!(curated(&lab), left);
        assert_nowhere(&lab, "lake", ANN);
        assert_eq!(lab.lines("lake/daily", ["dt", "n"]), ["2020-01-02 2"]);
        lab.assert_verified();
        lab.assert_tidy();

        // Late data, newer data, and a rebuild.
        put(
            &lab,
            "20200104-000000000",
            &[
                ["U", "02 23:00", ANN, "late"],
                ["U", "04 10:00", ANN, "new"],
                ["D", "04 11:00", ANN, "-"],
            ],
        );
        let report = lab.run("2020-01-04", "2020-01-05").expect("a run");
        assert_eq!((report.rows_forgotten, report.rows_latest), (3, 0));
        assert_eq!(curated(&lab), left);
        let report = lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(report.rows_forgotten, 5);
        assert_eq!(curated(&lab), left);
        assert_nowhere(&lab, "lake", ANN);
        lab.assert_verified();
        let again = note(&lab, &[ANN], false);
        assert_eq!(again, "all of these keys were forgotten before: nothing to do");

        // A key that has only versions, and one that was never there.
        let said = note(&lab, &["zed-zed", "nobody", ANN, "zed-zed"], false);
        assert!(
            said.starts_with("2 keys are forgotten, 1 of which were never folded; 0 rows"),
            "{said}"
        );
        assert_nowhere(&lab, "lake", "zed-zed");
        put(&lab, "20200105-000000000", &[["I", "05 10:00", "nobody", "x"]]);
        let planned = lab.plan("2020-01-05", "2020-01-06", true).expect("planned").text();
        assert!(planned.contains("0 rejected, 1 of forgotten keys"), "{planned}");
        let text = lab.run("2020-01-05", "2020-01-06").expect("a run").text();
        assert!(text.contains("0 outside, 1 of forgotten keys"), "{text}");
        assert_eq!(curated(&lab), left);

        let said = note(&lab, &[ANN, "nobody"], true);
        assert!(said.starts_with("2 keys are folded again"), "{said}");
        assert_eq!(curated(&lab), [left[0].clone(), "nobody x 2020-01-05".into()]);
        put(&lab, "20200106-000000000", &[["I", "06 10:00", ANN, "back"]]);
        run(&lab);
        assert_eq!(curated(&lab)[0], format!("{ANN} back 2020-01-06"));
        lab.assert_verified();
    }
}

#[test]
fn rows_marked_as_deleted_are_rewritten_too() {
    for format in ["delta", DELETION_VECTORS] {
        let lab = builder().format(format).build();
        let mut rows: Vec<Change<'_>> =
            vec![["I", "02 10:00", ANN, "a"], ["I", "02 10:00", BOB, "a"]];
        let others: Vec<String> = (0..50).map(|number| format!("other{number}")).collect();
        rows.extend(others.iter().map(|who| ["I", "02 11:00", who, "a"]));
        put(&lab, "20200102-000000000", &rows);
        run(&lab);
        // The row moves to another partition: in its old file it is only marked.
        put(
            &lab,
            "20200103-000000000",
            &[["U", "03 10:00", ANN, "b"], ["U", "03 10:00", BOB, "b"]],
        );
        run(&lab);
        note(&lab, &[ANN], false);
        let has = |text: &str| {
            let files = lab.file_contents("lake/curated").into_values();
            let mut rows = files.flat_map(rows_of);
            rows.any(|row| row["who"] == text)
        };
        assert!(!has(ANN), "{format}");
        assert!(has(BOB) && has("other7"), "{format}");
        assert_eq!(curated(&lab).len(), 51);
        assert_nowhere(&lab, STATE, ANN);
        lab.assert_verified();
        put(
            &lab,
            "20200104-000000000",
            &[["D", "04 10:00", BOB, "-"], ["U", "04 10:00", ANN, "c"]],
        );
        run(&lab);
        assert_eq!(curated(&lab).len(), 50);
        lab.assert_verified();
    }
}

#[test]
fn a_database_and_the_aggregates_follow() {
    let database = Database::new();
    let builder = builder().aggregate("daily", COUNT_PER_DAY).aggregate("flows", FLOWS);
    let builder = builder.aggregate("rows", ROWS_PER_DAY).partition_by(&["event_dt", "cat"]);
    let lab = started(&builder.loaded()).follow(&database);
    for (keys, undo) in [(&[ANN][..], false), (&[BOB, "zed-zed"], false), (&[ANN, BOB], true)] {
        let report = lab.forget(keys, undo).expect("done");
        assert_eq!(report.exit_code(), 0, "{:?}", report.followers);
        lab.assert_followed(&database, &["curated", "daily", "flows", "rows"]);
        lab.assert_verified();
    }
    assert_eq!(curated(&lab).len(), 2);
}

#[test]
fn a_row_that_gets_another_key_is_left_out_as_far_as_its_keys_are_forgotten() {
    const COLUMNS: [&str; 5] = ["Op", "id", "BI_id", "v", "ts"];
    let at = |day: u32| format!("2020-01-{day:02} 10:00:00");
    let first = [
        ["I", "1", "-", "10", &at(1)],
        ["I", "2", "-", "20", &at(1)],
        ["I", "7", "-", "70", &at(1)],
    ];
    // 1 becomes 3, 2 becomes 4, and 4 becomes 5.
    let second = [["U", "3", "1", "11", &at(2)], ["U", "4", "2", "21", &at(2)]];
    let third = [["U", "5", "4", "22", &at(3)]];
    for before in [true, false] {
        for forgotten in ["1", "2", "3", "4", "5"] {
            let lab = Lab::builder()
                .set("raw.before_image_prefix", "BI_")
                .partition_by(&["event_dt"])
                .curated_sql(
                    "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, event_dt FROM latest",
                )
                .build();
            lab.put("raw/20200101-000000000.parquet", file_of_rows(&COLUMNS, &first));
            run(&lab);
            if before {
                note(&lab, &[forgotten], false);
            }
            lab.put("raw/20200102-000000000.parquet", file_of_rows(&COLUMNS, &second));
            lab.put("raw/20200103-000000000.parquet", file_of_rows(&COLUMNS, &third));
            run(&lab);
            if !before {
                note(&lab, &[forgotten], false);
            }
            let rows = lab.lines("lake/curated", ["id", "v"]);
            let all = ["3 11", "5 22", "7 70"];
            let expected: Vec<&str> =
                all.into_iter().filter(|row| !row.starts_with(forgotten)).collect();
            assert_eq!(rows, expected, "{forgotten}");
            lab.assert_verified();
            lab.rebuild(false, &[]).expect("rebuilt");
            assert_eq!(lab.lines("lake/curated", ["id", "v"]), expected, "{forgotten}");
        }
    }
}

#[test]
fn rows_in_quarantine_are_forgotten() {
    for (format, extension) in [("parquet", "parquet"), ("csv", "csv")] {
        let kinds = ["TEXT", "TEXT", "TEXT", "INTEGER"];
        let columns: Vec<(&str, &str)> =
            ["Op", "ts", "who", "cat"].into_iter().zip(kinds).collect();
        let builder = builder()
            .set("raw.on_bad_row", "quarantine")
            .set("raw.format", format)
            .set("raw.op", "Op")
            .raw_columns(&columns);
        let lab = builder.build();
        let put = |name: &str, rows: &[Change<'_>]| {
            let path = format!("raw/{name}.{extension}");
            if format == "csv" {
                let lines = rows.iter().map(|row| row.join(",") + "\n");
                lab.put(&path, lines.collect::<String>().into_bytes());
            } else {
                lab.put(&path, file_of_rows(&["Op", "ts", "who", "cat"], rows));
            }
        };
        let at = "2020-01-02 10:00:00";
        // A bad value, a bad operation, a bad time, and a good row.
        let bad: &[Change<'_>] = &[
            ["I", at, ANN, "bad"],
            ["?", at, ANN, "1"],
            ["I", "then", ANN, "1"],
            ["I", at, BOB, "bad"],
            ["I", at, ANN, "1"],
        ];
        put("20200102-000000000", bad);
        let report = lab.run("2020-01-01", "2020-02-01").expect("a run");
        assert_eq!((report.rows_rejected, report.rows_latest), (4, 1), "{format}");
        note(&lab, &[ANN], false);
        assert_nowhere(&lab, "lake", ANN);
        let quarantined = lab.table(&format!("{STATE}/quarantine"));
        assert_eq!(quarantined.len(), 4, "{format}");
        let texts = quarantined.iter().filter_map(|row| row.get("change"));
        let texts: Vec<&String> = texts.collect();
        assert!(texts.len() == 1 && texts[0].contains(BOB), "{format}: {texts:?}");
        // What is bad later is not quarantined, and does not stop a run.
        put("20200103-000000000", bad);
        let report = lab.run("2020-01-01", "2020-02-01").expect("a run");
        let counts = (report.rows_forgotten, report.rows_rejected, report.rows_latest);
        assert_eq!(counts, (8, 2, 0), "{format}");
        assert_nowhere(&lab, "lake", ANN);
        lab.assert_verified();
        lab.rebuild(false, &[]).expect("rebuilt");
        assert_nowhere(&lab, "lake", ANN);
        let report = lab.forget(&[ANN], true).expect("folded again");
        assert_eq!((report.rows_rejected, report.rows_latest), (8, 1), "{format}");
    }
}

#[test]
fn a_bad_row_is_left_out_only_if_all_of_its_keys_are_forgotten() {
    const NAMES: [&str; 5] = ["Op", "ts", "BI_who", "who", "cat"];
    let kinds = ["TEXT", "TEXT", "TEXT", "TEXT", "INTEGER"];
    let columns: Vec<(&str, &str)> = NAMES.into_iter().zip(kinds).collect();
    let builder = builder()
        .set("raw.before_image_prefix", "BI_")
        .set("raw.on_bad_row", "quarantine")
        .raw_columns(&columns);
    for format in ["csv", "parquet"] {
        let lab = builder.clone().set("raw.format", format).build();
        let put = |day: i64, rows: &[[&str; 5]]| {
            let path = format!("raw/2020010{day}-000000000.{format}");
            let field = |text: &&str| if *text == "-" { String::new() } else { text.to_string() };
            let line = |row: &[&str; 5]| row.iter().map(field).collect::<Vec<_>>().join(",") + "\n";
            match format {
                "csv" => lab.put(&path, rows.iter().map(line).collect::<String>().into_bytes()),
                _ => lab.put(&path, file_of_rows(&NAMES, rows)),
            }
        };
        let at = "2020-01-02 10:00:00";
        put(2, &[["I", at, "-", "ann", "1"], ["I", at, "-", "bob", "2"]]);
        run(&lab);
        note(&lab, &["ann"], false);
        // Of each move one key is forgotten; of the last row all are.
        let bad = [
            ["U", at, "ann", "cyd", "bad"],
            ["U", at, "bob", "ann", "bad"],
            ["U", at, "-", "ann", "bad"],
        ];
        put(3, &bad);
        let report = lab.run("2020-01-01", "2020-02-01").expect("a run");
        assert_eq!((report.rows_rejected, report.rows_forgotten), (2, 2), "{format}");
        assert_nowhere(&lab, "lake", "ann");
        assert_eq!(lab.lines("lake/curated", ["who", "cat"]), ["bob 2"]);
    }
}

#[test]
fn keys_are_recognized_in_other_types_and_another_key_is_refused() {
    let lab =
        Lab::builder().partition_by(&[]).curated_sql("SELECT id, event_dt FROM latest").build();
    let rows = [["I", "7", "2020-01-01 10:00:00"], ["I", "8", "2020-01-01 10:00:00"]];
    lab.put("raw/20200101-000000000.parquet", file_of_rows(&["Op", "id", "ts"], &rows));
    run(&lab);
    note(&lab, &["7"], false);
    for kind in ["DECIMAL(12, 2)", "DOUBLE", "SMALLINT"] {
        let change = format!("raw.columns.id={kind}");
        let report = lab.rebuild(false, &[&change]).expect("rebuilt");
        assert_eq!(report.rows_forgotten, 1, "{kind}");
        assert_eq!(lab.table("lake/curated").len(), 1, "{kind}");
    }
    for change in ["raw.columns.id=VARCHAR", "key=[\"id\", \"Op\"]", "key=[\"ts\"]"] {
        let refused = lab.rebuild(false, &[change]).expect_err("refused");
        assert_refused(refused, 2, "would come back with this key", "glueless forget --undo");
        assert_eq!(lab.table("lake/curated").len(), 1, "{change}");
    }
}

#[test]
fn a_key_that_names_partitions_is_forgotten_too() {
    let lab = started(&builder().partition_by(&["who"]));
    note(&lab, &[ANN], false);
    assert_eq!(curated(&lab), [format!("{BOB} a 2020-01-02")]);
    assert_nowhere(&lab, "lake", ANN);
    let names = lab.list_all("lake");
    assert!(names.iter().all(|name| !name.contains("ann")), "{names:?}");
}

/// A change of a random log: the day it is of, the file it is in, the key, and what it does.
type Drawn = (u32, usize, usize, usize);

/// Draws changes of five keys in four files, the order in which the files are folded, and which key is forgotten after
/// which file.
fn drawn() -> impl Strategy<Value = (Vec<Drawn>, Vec<usize>, Vec<(usize, usize)>)> {
    let changes = prop::collection::vec((1..20u32, 0..4usize, 0..5usize, 0..5usize), 1..40);
    let order = Just(vec![0, 1, 2, 3]).prop_shuffle();
    (changes, order, prop::collection::vec((0..4usize, 0..5usize), 1..4))
}

/// The files of a log without some keys.
fn files_of(changes: &[Drawn], without: &[usize]) -> [Vec<[String; 4]>; 4] {
    let mut files: [Vec<[String; 4]>; 4] = Default::default();
    for (number, (day, file, key, kind)) in changes.iter().enumerate() {
        if !without.contains(key) {
            let op = ["I", "U", "U", "D", "D"][*kind];
            let time = format!("2020-01-{day:02} 10:00:{number:02}");
            let cat = ["a", "b"][number % 2].to_string();
            files[*file].push([op.into(), time, format!("key{key}"), cat]);
        }
        if number % 13 == 12 {
            let time = format!("2020-01-{day:02} 11:00:{number:02}");
            files[*file].push(["T".into(), time, "-".into(), "-".into()]);
        }
    }
    files
}

fn put_files(lab: &Lab, files: &[Vec<[String; 4]>; 4], number: usize) {
    let rows = &files[number];
    if !rows.is_empty() {
        let path = format!("raw/2020010{}-000000000.parquet", number + 1);
        lab.put(&path, file_of_rows(&["Op", "ts", "who", "cat"], rows));
    }
}

#[test]
fn tables_are_those_of_a_log_without_the_forgotten_keys() {
    let kinds = ["latest", "latest-per-day", "keep_deleted", "history"];
    let config = Config { cases: 6 * test_times(), ..Config::default() };
    for (kind, format) in
        kinds.into_iter().flat_map(|kind| ["parquet", DELETION_VECTORS].map(|f| (kind, f)))
    {
        if format == DELETION_VECTORS && matches!(kind, "keep_deleted" | "history") {
            continue;
        }
        let builder = builder().format(format);
        let builder = builder.partition_by(&["event_dt", "cat"]);
        let builder = builder.aggregate("daily", COUNT_PER_DAY).aggregate("rows", ROWS_PER_DAY);
        let (builder, aggregates) = match kind {
            "keep_deleted" => (builder.set("keep_deleted", true), &["daily", "rows"][..]),
            "history" => (builder.keep(kind), &["daily", "rows"][..]),
            _ => (builder.keep(kind).aggregate("flows", FLOWS), &["daily", "flows", "rows"][..]),
        };
        let checked =
            |(changes, order, forgotten): (Vec<Drawn>, Vec<usize>, Vec<(usize, usize)>)| {
                let lab = builder.build();
                let mut files = files_of(&changes, &[]);
                // The type of the key is known from the first file on.
                files[order[0]].push([
                    "I".into(),
                    "2020-01-01 09:00:00".into(),
                    "first".into(),
                    "a".into(),
                ]);
                for (step, number) in order.iter().enumerate() {
                    put_files(&lab, &files, *number);
                    run(&lab);
                    for (_, key) in forgotten.iter().filter(|(after, _)| *after == step) {
                        lab.forget(&[&format!("key{key}")], false).expect("forgotten");
                    }
                }
                let keys: Vec<usize> = forgotten.iter().map(|(_, key)| *key).collect();
                let clean = builder.build();
                let mut files = files_of(&changes, &keys);
                files[order[0]].push([
                    "I".into(),
                    "2020-01-01 09:00:00".into(),
                    "first".into(),
                    "a".into(),
                ]);
                (0..4).for_each(|number| put_files(&clean, &files, number));
                run(&clean);
                prop_assert_eq!(lab.table("lake/curated"), clean.table("lake/curated"));
                for name in aggregates {
                    let table = format!("lake/{name}");
                    prop_assert_eq!(lab.table(&table), clean.table(&table), "{}", name);
                }
                let verified = lab.verify().expect("compared");
                prop_assert_eq!(verified.exit_code(), 0, "{}", verified.text());
                lab.rebuild(false, &[]).expect("rebuilt");
                prop_assert_eq!(lab.table("lake/curated"), clean.table("lake/curated"));
                Ok(())
            };
        TestRunner::new(config.clone())
            .run(&drawn(), checked)
            .unwrap_or_else(|error| panic!("{kind}, {format}: {error}"));
    }
}

#[test]
fn an_interrupted_command_is_finished_or_undone() {
    for (format, step) in [("parquet", 3), ("delta", 5)] {
        let builder = builder().format(format).aggregate("daily", COUNT_PER_DAY);
        let mut committed = 0;
        for requests in (0..).step_by(step) {
            let lab = started(&builder);
            let (faulty, seen) = lab.failing_after(requests, Fault::AllDead);
            let ended = faulty.forget(&[ANN], false);
            let enough = ended.is_ok() && seen.left().is_some_and(|left| left > 0);
            lab.run_with(Task::Aggregate, "2020-01-01", "2020-01-02", &[]).expect("finished");
            let rows = curated(&lab);
            assert!([1, 2].contains(&rows.len()), "after {requests} requests: {rows:?}");
            committed += usize::from(rows.len() == 1 && ended.is_err());
            lab.forget(&[ANN], false).expect("forgotten");
            assert_eq!(curated(&lab), [format!("{BOB} a 2020-01-02")], "after {requests} requests");
            assert_eq!(lab.lines("lake/daily", ["dt", "n"]), ["2020-01-02 2"]);
            assert_nowhere(&lab, STATE, ANN);
            lab.assert_verified();
            if enough {
                break;
            }
        }
        assert!(committed > 1, "some failed after their commit");
    }
}

#[test]
fn keys_come_from_files_and_refusals_do_not_show_them() {
    let lab = started(&builder());
    let file = lab.folder.path().join("keys.csv");
    std::fs::write(&file, format!("who\n{ANN}\n\"{BOB}\"\n")).expect("written");
    let done = lab.program("forget").arg("--keys-file").arg(&file).succeed();
    assert!(done.stdout.contains("2 keys are forgotten; 2 rows"), "{}", done.stdout);
    assert!(!done.stderr.contains("example.org"), "{}", done.stderr);
    assert_eq!(curated(&lab), [""; 0]);
    let runs = lab.program("runs").succeed().stdout;
    assert!(runs.contains("\"command\":\"forget\""), "{runs}");
    let text = lab.explain(&[ANN]).text();
    assert!(text.contains("this key was forgotten by run"), "{text}");
    let piped = format!("echo {ANN} | \"$0\" \"$@\" --undo --keys-file -");
    Program::shell(&piped).arg(glueless()).arguments_of(&lab.program("forget")).succeed();
    assert_eq!(curated(&lab), [format!("{ANN} b 2020-01-03")]);
    let refused = lab.program("forget").args([ANN, "secret", "--undo"]).run();
    assert!(refused.stdout.contains("none of these keys is forgotten"), "{}", refused.stdout);
    assert!(!refused.stdout.contains("secret"), "{}", refused.stdout);
    let refused = lab.program("forget").run();
    assert!(refused.stderr.contains("no key was given"), "{}", refused.stderr);

    let refused = builder().build().forget(&[ANN], false).expect_err("refused");
    assert_refused(refused, 2, "there is nothing to forget", "fold a window first");
    let keyless = builder().set("key", Vec::<String>::new()).build();
    put(&keyless, LIFE[0].0, LIFE[0].1);
    run(&keyless);
    let refused = keyless.program("forget").arg("x").run();
    assert!(refused.stderr.contains("the pipeline has no key"), "{}", refused.stderr);
}

#[test]
fn a_key_of_several_columns_is_given_as_csv_in_any_type() {
    let lab = Lab::builder()
        .set("key", vec!["tenant", "id"])
        .partition_by(&[])
        .curated_sql("SELECT tenant, CAST(id AS BIGINT) AS id, event_dt FROM latest")
        .build();
    let rows = |ids: [&str; 3]| {
        let row =
            |(tenant, id): (&str, &str)| ["I", tenant, id, "2020-01-01 10:00:00"].map(String::from);
        ["a,b", "a", "b"].into_iter().zip(ids).map(row).collect::<Vec<_>>()
    };
    let columns = ["Op", "tenant", "id", "ts"];
    lab.put("raw/20200101-000000000.parquet", file_of_rows(&columns, &rows(["7", "8", "9"])));
    run(&lab);
    lab.program("forget").args(["\"a,b\",7", "b,9"]).succeed();
    assert_eq!(lab.lines("lake/curated", ["tenant", "id"]), ["a 8"]);
    lab.assert_verified();
    let refused = lab.program("forget").args(["a,8", "a,x"]).run();
    assert_eq!(refused.code, 2);
    assert!(
        refused.stderr.contains("key 2: the text for `id` is no value of this key column"),
        "{}",
        refused.stderr
    );
    assert!(refused.stderr.contains("Int64"), "{}", refused.stderr);
    let refused = lab.program("forget").arg("a").run();
    assert!(
        refused.stderr.contains("the key has 2 columns, and 1 values were given"),
        "{}",
        refused.stderr
    );
}
