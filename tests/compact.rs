//! Compacted raw files: few of a day, with the same rows in the order of changes.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use crate::support::{
    Fault, Kind, Lab, LabBuilder, PLACES, Place, Program, environment_of, file_of_rows, gzip,
    python, rows_of,
};

const COLUMNS: [&str; 5] = ["Op", "ts", "id", "BI_id", "v"];

/// A change: its operation, commit time, key, key before, and value.
type Change = [String; 5];

/// A log: files of four days, in the order of their names, each with its changes.
fn log(has_deletes: bool) -> impl Strategy<Value = Vec<Vec<Change>>> {
    let operations = if has_deletes { vec!["I", "U", "U", "D", "T", "B"] } else { vec!["I"] };
    let change = (proptest::sample::select(operations), 0..6i64, 1..6i64, 1..6i64, 0..100i64);
    let change = change.prop_map(|(op, second, id, before, v)| {
        let ts = format!("2020-01-0{} 10:00:00", 1 + second);
        let before = if op == "U" && before % 3 == 0 { before.to_string() } else { "-".into() };
        let (id, v) = match op {
            "T" => ("-".into(), "-".into()),
            "D" => (id.to_string(), "-".into()),
            _ => (id.to_string(), v.to_string()),
        };
        [op.to_string(), ts, id, before, v]
    });
    proptest::collection::vec(proptest::collection::vec(change, 1..8), 1..9)
}

fn put(lab: &Lab, number: usize, rows: &[Change]) {
    let day = 1 + number / 2;
    let name = format!("raw/2020010{day}-0{number}0000000.parquet");
    lab.put(&name, file_of_rows(&COLUMNS, rows));
}

/// A pipeline over the small files.
fn small(keep: &str, order_by: &[&str], key: &[&str]) -> LabBuilder {
    let builder = Lab::builder()
        .window_by("name")
        .keep(keep)
        .set("key", key.to_vec())
        .set("raw.order_by", order_by.to_vec())
        .partition_by(&["event_dt"])
        .curated_sql(
            "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, event_dt FROM latest",
        );
    if key.is_empty() {
        return builder;
    }
    builder.set("raw.before_image_prefix", "BI_").set("raw.op_values.ignore", vec!["B"])
}

/// The same pipeline over the compacted files of a lab, and the loads of it.
fn large(of: &Lab, keep: &str, order_by: &[&str], key: &[&str]) -> LabBuilder {
    // Without columns that order changes, files do: their times are a column now.
    let order_by = if order_by.is_empty() { &["_raw_time"][..] } else { order_by };
    let mut urls = vec![format!("{}/compacted", of.base)];
    if !of.list_all("loads").is_empty() {
        urls.push(format!("{}/loads", of.base));
    }
    small(keep, order_by, key).window_by("path").set("raw.url", urls)
}

const ALL: (&str, &str) = ("2020-01-01", "2020-02-01");

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn compacted_files_give_the_table_of_the_small_ones(
        files in log(true),
        keep in proptest::sample::select(vec!["latest", "latest-per-day", "history"]),
        by_files in any::<bool>(),
    ) {
        let order_by: &[&str] = if by_files { &[] } else { &["ts"] };
        let lab = small(keep, order_by, &["id"]).build();
        let load = file_of_rows(&["ts", "id", "v"], &[["2020-01-01 00:00:00", "1", "7"], ["2020-01-01 00:00:00", "2", "8"]]);
        if !by_files {
            // Without a column, the time of a load is that of its file.
            lab.put("raw/LOAD00000001.parquet", load.clone());
            lab.put("loads/LOAD00000001.parquet", load);
        }
        files.iter().enumerate().for_each(|(number, rows)| put(&lab, number, rows));
        let compacted = lab.compact(ALL.0, ALL.1).expect("compacted");
        let rows: u64 = compacted.days.iter().map(|day| day.rows).sum();
        prop_assert_eq!(rows, files.iter().map(|rows| rows.len() as u64).sum::<u64>());
        let days = files.len().div_ceil(2);
        prop_assert_eq!(compacted.days.len(), days);
        prop_assert!(compacted.days.iter().all(|day| day.files_written == 1 && day.is_new));
        lab.run(ALL.0, ALL.1).expect("a run");
        let over = large(&lab, keep, order_by, &["id"]).build();
        over.run(ALL.0, ALL.1).expect("a run over the compacted files");
        prop_assert_eq!(over.table("lake/curated"), lab.table("lake/curated"));
        over.assert_verified();
    }

    #[test]
    fn compacted_files_keep_every_row_of_a_table_without_a_key(files in log(false)) {
        let lab = small("latest", &["ts"], &[]).build();
        lab.put("loads/LOAD00000001.parquet", file_of_rows(&["ts", "id", "v"], &[["2020-01-01 00:00:00", "1", "7"]]));
        lab.put("raw/LOAD00000001.parquet", lab.get("loads/LOAD00000001.parquet"));
        files.iter().enumerate().for_each(|(number, rows)| put(&lab, number, rows));
        lab.compact(ALL.0, ALL.1).expect("compacted");
        lab.run(ALL.0, ALL.1).expect("a run");
        let over = large(&lab, "latest", &["ts"], &[]).build();
        over.run(ALL.0, ALL.1).expect("a run over the compacted files");
        let sorted = |lab: &Lab| {
            let mut lines = lab.lines("lake/curated", ["id", "v", "event_dt"]);
            lines.sort();
            lines
        };
        prop_assert_eq!(sorted(&over), sorted(&lab));
    }
}

fn change(op: &str, ts: &str, id: &str, v: &str) -> Change {
    [op, ts, id, "-", v].map(String::from)
}

/// A lab with files of two days.
fn two_days(place: Place) -> Lab {
    let lab = small("latest", &["ts"], &["id"]).place(place).build();
    put(
        &lab,
        0,
        &[
            change("I", "2020-01-01 10:00:00", "1", "1"),
            change("I", "2020-01-01 12:00:00", "2", "2"),
        ],
    );
    put(&lab, 1, &[change("U", "2020-01-01 11:00:00", "1", "3")]);
    put(&lab, 2, &[change("D", "2020-01-02 10:00:00", "2", "-")]);
    lab
}

/// The files that readers see, with their bytes.
fn compacted(lab: &Lab) -> BTreeMap<String, Bytes> {
    let all = lab.contents("compacted").into_iter();
    all.filter(|(path, _)| !path.contains("/_") && !path.starts_with('_')).collect()
}

#[test]
fn a_day_is_replaced_as_a_whole_when_it_has_new_files() {
    for place in PLACES {
        let lab = two_days(place);
        let first = lab.compact("2020-01-01", "2020-01-03").expect("compacted");
        let rows = lab.lines("compacted", ["ts", "id", "v", "_raw_row", "changedate"]);
        assert_eq!(
            rows,
            [
                "2020-01-01 10:00:00 1 1 1 2020-01-01",
                "2020-01-01 11:00:00 1 3 1 2020-01-01",
                "2020-01-01 12:00:00 2 2 2 2020-01-01",
                "2020-01-02 10:00:00 2 - 1 2020-01-02",
            ]
        );
        let before = compacted(&lab);
        assert_eq!((first.days.len(), before.len()), (2, 2));
        let others = lab.list_all("compacted");
        assert!(others.iter().all(|path| path.contains("changedate=")), "{others:?}");
        assert!(!lab.folder.path().join("compacted/_glueless").exists());
        let again = lab.compact("2020-01-01", "2020-01-03").expect("compacted");
        assert!(again.days.iter().all(|day| !day.is_new));
        assert_eq!(compacted(&lab), before, "nothing is written");
        // A late file of the first day.
        lab.put(
            "raw/20200101-230000000.parquet",
            file_of_rows(&COLUMNS, &[change("U", "2020-01-01 09:00:00", "2", "9")]),
        );
        let late = lab.compact("2020-01-01", "2020-01-03").expect("compacted");
        assert_eq!(
            late.days.iter().map(|day| (day.is_new, day.rows)).collect::<Vec<_>>(),
            [(true, 4), (false, 1)]
        );
        let after = compacted(&lab);
        assert_eq!(after.len(), 2, "the files of before are gone: {:?}", after.keys());
        let of_second = |files: &BTreeMap<String, Bytes>| {
            files
                .iter()
                .find(|(path, _)| path.contains("2020-01-02"))
                .map(|(path, bytes)| (path.clone(), bytes.clone()))
        };
        assert_eq!(of_second(&after), of_second(&before));
        // Only the days of the window.
        put(&lab, 4, &[change("I", "2020-01-03 10:00:00", "3", "3")]);
        assert_eq!(lab.compact("2020-01-02", "2020-01-03").expect("compacted").days.len(), 1);
        assert!(lab.list_all("compacted").iter().all(|path| !path.contains("2020-01-03")));
    }
}

#[test]
fn a_day_whose_raw_files_are_gone_stays_as_it_is() {
    let lab = two_days(Place::Local);
    lab.compact("2020-01-01", "2020-01-03").expect("compacted");
    let before = compacted(&lab);
    lab.remove("raw/20200101-000000000.parquet");
    lab.put(
        "raw/20200101-230000000.parquet",
        file_of_rows(&COLUMNS, &[change("U", "2020-01-01 09:00:00", "2", "9")]),
    );
    let report = lab.compact("2020-01-01", "2020-01-03").expect("compacted");
    assert_eq!(compacted(&lab), before);
    assert_eq!(report.days.len(), 1, "the other day");
    assert!(report.notes[0].contains("2020-01-01 stays as it was compacted"), "{:?}", report.notes);
    lab.remove_all("raw");
    lab.put(
        "raw/LOAD00000001.parquet",
        file_of_rows(&["ts", "id", "v"], &[["2020-01-01 00:00:00", "1", "7"]]),
    );
    assert_eq!(lab.compact("2020-01-01", "2020-01-03").expect("compacted").days, []);
    assert_eq!(compacted(&lab), before);
}

#[test]
fn a_raw_file_that_has_changed_since_it_was_compacted_is_refused() {
    let lab = two_days(Place::Local);
    lab.compact("2020-01-01", "2020-01-03").expect("compacted");
    let before = lab.contents("compacted");
    // Written again with the same bytes, it is the same.
    let bytes = lab.get("raw/20200101-000000000.parquet");
    lab.put("raw/20200101-000000000.parquet", bytes);
    lab.compact("2020-01-01", "2020-01-02").expect("compacted");
    lab.put(
        "raw/20200101-000000000.parquet",
        file_of_rows(&COLUMNS, &[change("I", "2020-01-01 10:00:00", "1", "5")]),
    );
    let error = lab.compact("2020-01-01", "2020-01-02").expect_err("refused");
    assert_eq!(error.kind, Kind::Data);
    assert!(error.to_string().contains("was compacted and has changed since"), "{error}");
    let names = |contents: &BTreeMap<String, Bytes>| -> Vec<String> {
        contents
            .keys()
            .filter(|path| path.ends_with(".parquet") && path.contains("2020-01-02"))
            .cloned()
            .collect()
    };
    assert_eq!(names(&lab.contents("compacted")), names(&before));
    assert_eq!(compacted(&lab).len(), 2);
}

#[test]
fn a_command_that_was_cut_off_at_any_request_is_done_again() {
    let clean = two_days(Place::Local);
    clean.compact("2020-01-01", "2020-01-03").expect("compacted");
    clean.put(
        "raw/20200101-230000000.parquet",
        file_of_rows(&COLUMNS, &[change("U", "2020-01-01 09:00:00", "2", "9")]),
    );
    clean.compact("2020-01-01", "2020-01-03").expect("compacted");
    let rows = |lab: &Lab| lab.lines("compacted", ["ts", "id", "v", "_raw_row", "changedate"]);
    let mut cut = 0;
    for requests in 0.. {
        let lab = two_days(Place::Local);
        lab.compact("2020-01-01", "2020-01-03").expect("compacted");
        lab.put(
            "raw/20200101-230000000.parquet",
            file_of_rows(&COLUMNS, &[change("U", "2020-01-01 09:00:00", "2", "9")]),
        );
        let (faulty, left) = lab.failing_after(requests, Fault::AllDead);
        let ended = faulty.compact("2020-01-01", "2020-01-03");
        if left.left().is_some_and(|left| left > 0) {
            ended.expect("all requests went through");
            break;
        }
        cut += 1;
        lab.compact("2020-01-01", "2020-01-03").expect("done again");
        assert_eq!(rows(&lab), rows(&clean), "cut off after {requests} requests");
        assert_eq!(
            compacted(&lab).len(),
            2,
            "after {requests} requests: {:?}",
            lab.list_all("compacted")
        );
    }
    assert!(cut > 5, "{cut}");
}

#[test]
fn files_have_at_most_the_configured_size() {
    let lab = small("latest", &["ts"], &["id"]).set("compact.file_bytes", "200kB").build();
    for file in 0..4 {
        let rows: Vec<Change> = (0..20_000)
            .map(|row| {
                let number = file * 20_000 + row;
                let v = (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
                change("I", "2020-01-01 10:00:00", &number.to_string(), &v.to_string())
            })
            .collect();
        lab.put(&format!("raw/20200101-0{file}0000000.parquet"), file_of_rows(&COLUMNS, &rows));
    }
    let report = lab.compact("2020-01-01", "2020-01-02").expect("compacted");
    let files = compacted(&lab);
    assert!(files.len() > 2, "{}", files.len());
    assert!(
        files.values().all(|bytes| bytes.len() <= 200_000),
        "{:?}",
        files.values().map(Bytes::len).collect::<Vec<_>>()
    );
    assert_eq!(report.days[0].rows, 80_000);
    // Ties are in the order of files and rows, across files.
    let rows = files.into_values().flat_map(rows_of);
    let ids: Vec<i64> = rows.map(|row| row["id"].parse().expect("a number")).collect();
    let back = ids.windows(2).position(|two| two[0] >= two[1]);
    assert_eq!(back, None, "{:?}", back.map(|at| &ids[at..at + 3]));
}

#[test]
fn other_engines_read_the_days() {
    let lab = two_days(Place::Local);
    lab.compact("2020-01-01", "2020-01-03").expect("compacted");
    let query = format!(
        "import duckdb; print(duckdb.sql(\"SELECT string_agg(id || ':' || coalesce(v, -1) || ':' || changedate, ' ' ORDER BY changedate, ts) \
         FROM read_parquet('{}/compacted/*/*.parquet', hive_partitioning = true)\").fetchall()[0][0])",
        lab.base
    );
    let output = Program::new(&python()).args(["-c", &query]).succeed();
    assert_eq!(
        output.stdout.trim(),
        "1:1:2020-01-01 1:3:2020-01-01 2:2:2020-01-01 2:-1:2020-01-02"
    );
}

#[test]
fn text_files_and_masks_keep_their_values() {
    let columns = [("Op", "VARCHAR"), ("id", "BIGINT"), ("mail", "VARCHAR"), ("ts", "TIMESTAMP")];
    let sql = "SELECT CAST(id AS BIGINT) AS id, CAST(mail AS VARCHAR) AS mail FROM latest";
    let csv = |lab: &Lab| {
        lab.put("raw/20200101-100000000.csv.gz", gzip("I,1,ann@example.org,2020-01-01 09:00:00\n"));
        lab.put(
            "raw/20200101-110000000.csv",
            "U,1,\"ann, later\",2020-01-01 10:00:00\nI,2,,2020-01-01 10:00:00\n",
        );
    };
    let masked = |builder: LabBuilder| {
        let builder = builder.unset("curated.partition_by").set("mask.mail", "redact");
        let mut lab = builder.curated_sql(sql).build();
        lab.environment.insert("GLUELESS_MASK_KEY".into(), "0123456789abcdef".into());
        lab
    };
    let lab = masked(
        Lab::builder()
            .window_by("name")
            .set("raw.order_by", vec!["ts"])
            .set("raw.format", "csv")
            .raw_columns(&columns),
    );
    csv(&lab);
    lab.compact("2020-01-01", "2020-01-02").expect("compacted");
    let rows = lab.lines("compacted", ["id", "mail"]);
    assert_eq!(rows, ["1 ann, later", "1 ann@example.org", "2 -"], "as in raw");
    lab.run("2020-01-01", "2020-01-02").expect("a run");
    let over = masked(
        Lab::builder()
            .window_by("path")
            .set("raw.order_by", vec!["ts"])
            .set("raw.url", format!("{}/compacted", lab.base)),
    );
    over.run("2020-01-01", "2020-01-02").expect("a run");
    assert_eq!(over.lines("lake/curated", ["id", "mail"]), ["1 ***", "2 -"]);
    assert_eq!(over.table("lake/curated"), lab.table("lake/curated"));
}

#[test]
fn what_cannot_be_compacted_is_refused() {
    let refused = |lab: &Lab, expected: &str| {
        let error = lab.compact("2020-01-01", "2020-01-02").expect_err("refused");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(lab.list_all("compacted"), Vec::<String>::new(), "nothing is written");
    };
    let snapshots = Lab::builder().unset("raw.order_by").set("raw.kind", "snapshot").build();
    refused(&snapshots, "the raw files are snapshots");
    let envelopes = Lab::builder()
        .unset("raw.order_by")
        .set("raw.dialect", "debezium")
        .set("raw.format", "json")
        .build();
    refused(&envelopes, "envelopes cannot be compacted");
    let bad = two_days(Place::Local);
    bad.put(
        "raw/20200101-230000000.parquet",
        file_of_rows(&COLUMNS, &[change("U", "never", "2", "9")]),
    );
    refused(&bad, "row 1 of");
    assert_eq!(bad.list_all("compacted"), Vec::<String>::new());
    let inside = Lab::builder().set("compact.url", "{base}/raw/small").build();
    let error = inside.run("2020-01-01", "2020-01-02").expect_err("refused");
    assert!(error.to_string().contains("overlaps `raw.url`"), "{error}");
}

#[test]
fn files_that_nobody_compacted_are_left_alone() {
    let lab = two_days(Place::Local);
    let day = "compacted/changedate=2020-01-01";
    let foreign = format!("{day}/part-00000-1b2c.snappy.parquet");
    lab.put(&foreign, Bytes::from_static(b"theirs"));
    let error = lab.compact("2020-01-01", "2020-01-02").expect_err("refused");
    assert!(error.to_string().contains("is not a compacted file"), "{error}");
    assert_eq!(lab.list_all("compacted").len(), 1);
    lab.remove(&foreign);
    lab.compact("2020-01-01", "2020-01-02").expect("compacted");
    // One that comes later stays, too, when the day is replaced.
    lab.put(&foreign, Bytes::from_static(b"theirs"));
    put(&lab, 1, &[change("U", "2020-01-01 11:00:00", "1", "3")]);
    lab.put(
        "raw/20200101-230000000.parquet",
        file_of_rows(&COLUMNS, &[change("I", "2020-01-01 23:00:00", "3", "9")]),
    );
    lab.compact("2020-01-01", "2020-01-02").expect("compacted");
    assert!(lab.list_all("compacted").iter().any(|path| path.ends_with("1b2c.snappy.parquet")));
}

#[test]
fn compacted_files_without_their_list_are_not_replaced() {
    let lab = two_days(Place::Local);
    lab.compact("2020-01-01", "2020-01-02").expect("compacted");
    lab.remove("compacted/changedate=2020-01-01/_compacted.json");
    lab.remove("raw/20200101-000000000.parquet");
    let before = compacted(&lab);
    let error = lab.compact("2020-01-01", "2020-01-02").expect_err("refused");
    assert!(error.to_string().contains("that _compacted.json lists"), "{error}");
    assert_eq!(compacted(&lab), before);
}

#[test]
fn a_day_that_is_not_whole_and_whose_raw_files_are_gone_is_an_error() {
    let lab = two_days(Place::Local);
    lab.compact("2020-01-01", "2020-01-02").expect("compacted");
    let of_day = compacted(&lab);
    let file = of_day.keys().next().expect("a file");
    lab.remove(&format!("compacted/{file}"));
    lab.remove("raw/20200101-000000000.parquet");
    let error = lab.compact("2020-01-01", "2020-01-02").expect_err("refused");
    assert_eq!(error.kind, Kind::Data);
    assert!(error.to_string().contains("is not as it was compacted"), "{error}");
}

#[test]
fn a_file_without_a_date_is_of_no_day() {
    let lab = Lab::builder().window_by("modified").build();
    lab.put(
        "raw/x.parquet",
        file_of_rows(&COLUMNS, &[change("I", "2020-01-01 10:00:00", "1", "1")]),
    );
    let error = lab.compact("2020-01-01", "2030-01-02").expect_err("refused");
    assert!(error.to_string().contains("has no time in its name or folder"), "{error}");
}

#[test]
fn a_project_says_where_the_days_of_each_table_go() {
    let lab = two_days(Place::S3);
    let line = |more: &[&str]| {
        Program::glueless()
            .envs(environment_of(&lab.base))
            .args(["compact"])
            .arg(&lab.pipeline)
            .args(["--start-date", "2020-01-01", "--end-date", "2020-01-03"])
            .args(more)
    };
    let missing = line(&[]).run();
    assert_eq!(missing.code, 2);
    assert!(missing.stderr.contains("nothing says where"), "{}", missing.stderr);
    let to = format!("compact.url={}/compacted", lab.base);
    let report = line(&[]).set(&[&to]).succeed().json();
    assert_eq!(report["days"].as_array().map(Vec::len), Some(2));
    let part = Program::glueless()
        .envs(environment_of(&lab.base))
        .args(["compact"])
        .arg(&lab.pipeline)
        .args([
            "--start-date",
            "2020-01-01T10:00:00Z",
            "--end-date",
            "2020-01-03",
            "--to",
            &format!("{}/x", lab.base),
        ])
        .run();
    assert_eq!(part.code, 2);
    assert!(part.stderr.contains("only whole days"), "{}", part.stderr);
}
