//! Truncates that are set by hand: each is as a truncate among the changes, and can be taken back.

use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, TimestampNanosecondArray};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    Answer, COUNT_PER_DAY, Database, FLOWS, Fault, Lab, LabBuilder, PLACES, ROWS_PER_DAY, Row,
    assert_refused, file_of_rows, integers, test_times, texts,
};

/// 2020-01-01, in seconds since 1970.
const FIRST_OF_JANUARY: i64 = 1_577_836_800;

fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.order_by", vec!["ts"])
        .partition_by(&["event_dt"])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, cat, event_dt FROM latest")
}

/// Writes a file of rows: operation, time of January 2020, key and value.
fn put(lab: &Lab, name: &str, rows: &[[&str; 4]]) {
    lab.put_january(name, "cat", rows);
}

fn run(lab: &Lab) {
    lab.run("2020-01-01", "2020-02-01").expect("a run");
}

/// A lab for which January 2020 has passed.
fn started(builder: &LabBuilder) -> Lab {
    let mut lab = builder.build();
    lab.now = crate::support::now();
    lab
}

fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "cat", "event_dt"])
}

const LIFE: [(&str, &[[&str; 4]]); 2] = [
    ("20200102-000000000", &[["I", "02 10:00", "1", "a"], ["I", "02 11:00", "2", "a"]]),
    ("20200103-000000000", &[["U", "03 10:00", "2", "b"], ["I", "04 10:00", "3", "b"]]),
];

#[test]
fn a_truncate_by_hand_ends_what_is_before_it_and_can_be_taken_back() {
    for place in PLACES {
        for format in ["parquet", "delta"] {
            let lab = started(&builder().place(place).format(format));
            for (name, rows) in LIFE {
                put(&lab, name, rows);
                run(&lab);
            }
            let before = curated(&lab);
            let report = lab.truncate("2020-01-04T00:00:00Z", false).expect("set");
            let note = report.note.expect("a note");
            assert_eq!(note, "the truncate at 2020-01-04 00:00:00 UTC has ended 2 rows");
            assert_eq!(curated(&lab), ["3 b 2020-01-04"]);
            lab.assert_verified();
            // A late change from before it makes no row, one from after it does.
            put(
                &lab,
                "20200105-000000000",
                &[["U", "03 23:00", "1", "late"], ["U", "05 10:00", "2", "new"]],
            );
            run(&lab);
            let after = ["2 new 2020-01-05", "3 b 2020-01-04"];
            assert_eq!(curated(&lab), after);
            let again = lab.truncate("2020-01-04", false).expect("nothing to do");
            assert!(again.note.expect("a note").contains("was set before"));
            lab.rebuild(false, &[]).expect("rebuilt");
            assert_eq!(curated(&lab), after);
            lab.assert_verified();
            lab.truncate("2020-01-04", true).expect("taken back");
            let expected = ["1 late 2020-01-03", "2 new 2020-01-05", "3 b 2020-01-04"];
            assert_eq!(curated(&lab), expected, "and not {before:?}");
            lab.assert_verified();
        }
    }
}

#[test]
fn changes_of_exactly_its_time_stay_and_an_explained_key_names_it() {
    let lab = started(&builder().set("raw.order_by", vec!["ts", "id"]));
    for (name, rows) in LIFE {
        put(&lab, name, rows);
        run(&lab);
    }
    let at = ["--at", "2020-01-03T10:00:00Z"];
    let set = lab.program("truncate").args(at).succeed().stdout;
    assert!(set.contains("has ended 1 rows"), "{set}");
    assert_eq!(curated(&lab), ["2 b 2020-01-03", "3 b 2020-01-04"]);
    lab.assert_verified();
    let text = lab.explain(&["1"]).text();
    let why = "no row of 2020-01-02: a truncate is later, which was set by hand at 2020-01-03 10:00:00 UTC";
    assert!(text.contains(why), "{text}");
    let runs = lab.program("runs").succeed().stdout;
    assert!(runs.contains("\"command\":\"truncate\""), "{runs}");
    lab.program("truncate").args(at).arg("--undo").succeed();
    assert_eq!(curated(&lab).len(), 3);
}

#[test]
fn a_database_and_the_aggregates_follow_a_truncate_by_hand() {
    let database = Database::new();
    let builder = builder().aggregate("daily", COUNT_PER_DAY).aggregate("flows", FLOWS);
    let builder = builder.aggregate("rows", ROWS_PER_DAY).partition_by(&["event_dt", "cat"]);
    let lab = started(&builder.loaded()).follow(&database);
    for (name, rows) in LIFE {
        put(&lab, name, rows);
        run(&lab);
    }
    for (at, undo) in
        [("2020-01-03", false), ("2020-01-05", false), ("2020-01-05", true), ("2020-01-03", true)]
    {
        let report = lab.truncate(at, undo).expect("done");
        assert_eq!(report.exit_code(), 0, "{:?}", report.followers);
        lab.assert_followed(&database, &["curated", "daily", "flows", "rows"]);
        lab.assert_verified();
    }
    assert_eq!(curated(&lab), ["1 a 2020-01-02", "2 b 2020-01-03", "3 b 2020-01-04"]);
}

#[test]
fn a_truncate_by_hand_that_has_no_place_is_refused() {
    let at = "2020-01-03T00:00:00Z";
    let refused = started(&builder()).truncate(at, false).expect_err("refused");
    assert_eq!(refused.kind.exit_code(), 2, "{refused}");
    let lab = started(&builder());
    for (name, rows) in LIFE {
        put(&lab, name, rows);
        run(&lab);
    }
    let refused = lab.truncate("2100-01-01", false).expect_err("refused");
    assert_refused(refused, 2, "has not come yet", "still to come");
    let refused = lab.truncate(at, true).expect_err("refused");
    assert_refused(refused, 2, "no truncate was set by hand at 2020-01-03", "none was set");
    lab.truncate(at, false).expect("set");
    let refused = lab.truncate("2020-01-04", true).expect_err("refused");
    assert_refused(refused, 2, "no truncate was set", "are at 2020-01-03 00:00:00 UTC");
    // What it has ended is in raw only.
    lab.rename("raw/20200102-000000000.parquet", "kept.parquet");
    let before = curated(&lab);
    let refused = lab.truncate(at, true).expect_err("refused");
    assert_refused(refused, 65, "are missing", "restore them as they were folded");
    assert_eq!(curated(&lab), before);
    lab.rename("kept.parquet", "raw/20200102-000000000.parquet");
    lab.truncate(at, true).expect("taken back");
    assert_eq!(curated(&lab).len(), 3);
    for (key, value, why) in [
        ("raw.order_by", vec!["id"], "is not the commit time"),
        ("raw.order_by", vec![], "is not the commit time"),
        ("key", vec![], "a table without a key"),
    ] {
        let lab = started(&builder().set("raw.commit_time", "ts").set(key, value));
        put(&lab, LIFE[0].0, LIFE[0].1);
        run(&lab);
        let refused = lab.truncate(at, false).expect_err("refused");
        assert_refused(refused, 2, why, "");
    }
    // Only a full load was folded, which has no column of the order.
    let rows = [["1", "a"]];
    for (order, commit_time, why) in [
        ("seq", Some("ts"), "is not the commit time"),
        ("seq", None, "no change with a commit time was folded yet"),
        ("ts", None, "no change with a commit time was folded yet"),
    ] {
        let builder = builder().set("raw.order_by", vec![order]);
        let lab = started(&match commit_time {
            Some(commit_time) => builder.set("raw.commit_time", commit_time),
            None => builder,
        });
        lab.put("raw/LOAD00000001.parquet", file_of_rows(&["id", "cat"], &rows));
        lab.set_modified("raw/LOAD00000001.parquet", FIRST_OF_JANUARY);
        run(&lab);
        let refused = lab.truncate(at, false).expect_err("refused");
        assert_refused(refused, 2, why, "");
        lab.remove("raw/LOAD00000001.parquet");
        put(&lab, LIFE[0].0, LIFE[0].1);
        let is_noted = lab.run("2020-01-01", "2020-01-02").expect("a run").note;
        let is_noted = is_noted.is_some_and(|note| note.contains("glueless truncate"));
        assert_eq!(is_noted, commit_time.is_none(), "{order}");
    }
    // A truncate of before is not forgotten.
    let lab = started(&builder());
    put(&lab, LIFE[0].0, LIFE[0].1);
    run(&lab);
    lab.truncate(at, false).expect("set");
    for (change, why) in
        [("key=[]", "a table without a key"), ("raw.order_by=[\"id\"]", "is not the commit time")]
    {
        let refused = lab.rebuild(false, &[change]).expect_err("refused");
        assert_refused(refused, 2, why, "");
    }
    lab.truncate(at, true).expect("taken back");
    let again = lab.truncate(at, true).expect("nothing to do").note.expect("a note");
    assert_eq!(again, "the truncate at 2020-01-03 00:00:00 UTC was taken back before");
}

#[test]
fn a_full_load_of_its_time_stays_whichever_comes_first() {
    let builder = builder().set("raw.full_load_at", "name").set("raw.full_load", "*/full/*");
    let builder = builder.set("raw.commit_time", "ts").set("raw.full_load_settle", "0m");
    let load = |lab: &Lab| put(lab, "full/20200103-000000000", &[["I", "03 00:00", "7", "a"]]);
    for is_load_first in [true, false] {
        let mut lab = started(&builder);
        lab.now += chrono::TimeDelta::days(1);
        put(&lab, LIFE[0].0, LIFE[0].1);
        if is_load_first {
            load(&lab);
        }
        run(&lab);
        lab.truncate("2020-01-03", false).expect("set");
        if !is_load_first {
            load(&lab);
            run(&lab);
        }
        assert_eq!(curated(&lab), ["7 a 2020-01-03"]);
        lab.assert_verified();
    }
}

#[test]
fn a_run_that_misses_a_full_load_says_how_to_set_a_truncate() {
    let lab = started(&builder());
    let rows = [["2020-01-01 00:00:00", "7", "a"]];
    lab.put("raw/LOAD00000001.parquet", file_of_rows(&["ts", "id", "cat"], &rows));
    lab.set_modified("raw/LOAD00000001.parquet", FIRST_OF_JANUARY);
    put(&lab, LIFE[0].0, LIFE[0].1);
    run(&lab);
    lab.remove("raw/LOAD00000001.parquet");
    put(&lab, LIFE[1].0, LIFE[1].1);
    let note = lab.run("2020-01-01", "2020-02-01").expect("a run").note.expect("a note");
    assert!(note.starts_with("1 inputs that were folded are missing, such as LOAD"), "{note}");
    assert!(note.ends_with("say when with `glueless truncate`"), "{note}");
    assert_eq!(curated(&lab).len(), 4);
    lab.truncate("2020-01-02", false).expect("set");
    assert_eq!(curated(&lab), ["1 a 2020-01-02", "2 b 2020-01-03", "3 b 2020-01-04"]);
    lab.remove("raw/20200102-000000000.parquet");
    let note = lab.run("2020-01-01", "2020-02-01").expect("a run").note.expect("a note");
    assert!(note.contains("2 inputs") && !note.contains("glueless truncate"), "{note}");
    // DMS has removed everything.
    lab.remove("raw/20200103-000000000.parquet");
    lab.truncate("2020-01-04", false).expect("set");
    let text = lab.explain(&["2"]).text();
    let why = "no row of 2020-01-03: a truncate is later, which was set by hand at 2020-01-04";
    assert!(text.contains(why), "{text}");
}

#[test]
fn a_full_load_that_was_written_after_a_truncate_by_hand_is_not_ended() {
    let load = |lab: &Lab, name: &str, id: &str, day: i64| {
        let rows = [[format!("2020-01-{:02} 00:00:00", day + 1), id.to_string(), "a".into()]];
        let path = format!("raw/{name}.parquet");
        lab.put(&path, file_of_rows(&["ts", "id", "cat"], &rows));
        lab.set_modified(&path, FIRST_OF_JANUARY + day * 86_400);
    };
    let lab = started(&builder().set("raw.commit_time", "ts"));
    load(&lab, "LOAD00000001", "7", 5);
    run(&lab);
    let refused = lab.truncate("2020-01-03", false).expect_err("refused");
    assert_refused(refused, 65, "is a full load without a time", "raw.full_load_at");
    // A copy of the same bytes is of the time of the first one.
    lab.set_modified("raw/LOAD00000001.parquet", FIRST_OF_JANUARY + 20 * 86_400);
    run(&lab);
    lab.truncate("2020-01-08", false).expect("set");
    assert!(curated(&lab).is_empty());
    // The reload has another name, or the same one.
    for name in ["LOAD00000002", "LOAD00000001"] {
        lab.remove_all("raw");
        load(&lab, name, "8", 9);
        let refused = if name == "LOAD00000001" {
            lab.rebuild(true, &[]).expect_err("refused")
        } else {
            lab.run("2020-01-01", "2020-02-01").expect_err("refused")
        };
        assert_refused(refused, 65, "is a full load without a time", "raw.full_load_at");
    }
    let planned = lab.plan("2020-01-01", "2020-02-01", false).expect_err("refused");
    assert_eq!(planned.kind.exit_code(), 65, "{planned}");
    lab.rebuild(true, &["raw.full_load_at=column", "raw.full_load_settle=0m"]).expect("rebuilt");
    assert_eq!(lab.lines("lake/curated", ["id"]), ["8"]);
    // It is folded now, and would be ended by a rebuild without times.
    let refused = lab.rebuild(false, &[]).expect_err("refused");
    assert_refused(refused, 65, "is a full load without a time", "raw.full_load_at");
}

#[test]
fn it_is_as_a_truncate_of_that_time_whatever_the_type_and_the_zone() {
    let times = ["2020-01-01", "2020-01-02", "2020-01-04"];
    let days: ArrayRef = Arc::new(Date32Array::from_iter_values([18_262, 18_263, 18_265]));
    let file = |days: ArrayRef| {
        vec![
            ("Op", texts(["I", "I", "I"])),
            ("ts", days),
            ("id", integers([1, 2, 3])),
            ("cat", texts(times)),
        ]
    };
    for keep in ["latest", "latest-per-day"] {
        let builder = builder().keep(keep).set("raw.day_zone", "America/New_York");
        let [by_hand, among] = [(); 2].map(|()| {
            let lab = started(&builder);
            lab.put_columns("raw/20200102-000000000.parquet", file(Arc::clone(&days)));
            lab
        });
        run(&by_hand);
        by_hand.truncate("2020-01-03", false).expect("set");
        let truncate: Vec<(&str, ArrayRef)> = vec![
            ("Op", texts(["T"])),
            ("ts", Arc::new(Date32Array::from(vec![18_264]))),
            ("id", integers([1])),
            ("cat", texts(["a"])),
        ];
        among.put_columns("raw/20200102-000000001.parquet", truncate);
        run(&among);
        assert_eq!(curated(&by_hand), curated(&among), "{keep}");
        let history = |lab: &Lab| {
            let rows = lab.history_relation().into_iter();
            let rows =
                rows.map(|row| [&row["id"], &row["event_dt"], &row["deleted"]].map(Clone::clone));
            rows.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(history(&by_hand), history(&among), "{keep}");
        by_hand.assert_verified();
    }
}

#[test]
fn changes_of_a_nanosecond_before_it_are_ended_and_one_of_its_time_is_no_tie() {
    let at = 1_578_009_600_000_000_000_i64;
    let times = TimestampNanosecondArray::from_iter_values((-2..=1).map(|ns| at + ns));
    let ids = ["1", "2", "3", "4"];
    for order in [vec!["ts"], vec!["ts", "id"]] {
        let builder = builder().set("raw.order_by", order).set("raw.on_tie", "fail");
        let lab = started(&builder.partition_by(&[]));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("Op", texts(ids.map(|_| "I"))),
            ("ts", Arc::new(times.clone())),
            ("id", integers(1..=4)),
            ("cat", texts(ids)),
        ];
        lab.put_columns("raw/20200102-000000000.parquet", columns);
        run(&lab);
        lab.truncate("2020-01-03", false).expect("set");
        assert_eq!(lab.lines("lake/curated", ["id"]), ["3", "4"]);
        lab.assert_verified();
        lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(lab.lines("lake/curated", ["id"]), ["3", "4"]);
    }
}

#[test]
fn a_truncate_by_hand_that_is_cut_at_any_request_is_finished_or_undone() {
    let builder = builder().aggregate("rows", ROWS_PER_DAY);
    let mut done = 0;
    for requests in (0..).step_by(3) {
        let lab = started(&builder);
        for (name, rows) in LIFE {
            put(&lab, name, rows);
            run(&lab);
        }
        let (faulty, seen) = lab.failing_after(requests, Fault::AllDead);
        let is_set = faulty.truncate("2020-01-04", false).is_ok();
        let is_over = is_set && seen.left().is_some_and(|left| left > 0);
        lab.truncate("2020-01-04", false).expect("set");
        assert_eq!(curated(&lab), ["3 b 2020-01-04"], "after {requests} requests");
        lab.assert_verified();
        lab.assert_tidy();
        done += 1;
        if is_over {
            break;
        }
    }
    assert!(done > 5, "{done} tries");
}

/// A change: its operation, key, value and second, which is even.
type Change = (&'static str, i64, &'static str, i64);

/// What is done: a file is delivered and folded, or a truncate of a second is set.
#[derive(Clone, Debug)]
enum Step {
    File(usize),
    Truncate(i64),
}

/// A keep mode with the tables to compare, a format, files, and steps.
type Case = (&'static str, &'static str, Vec<Vec<Change>>, Vec<Step>);

fn cases() -> impl Strategy<Value = Case> {
    let ops = prop::sample::select(vec!["I", "U", "D"]);
    let change = (ops, 0..4i64, prop::sample::select(vec!["a", "b"]), 0..10i64);
    let change = change.prop_map(|(op, key, cat, at)| (op, key, cat, at * 2));
    let files = prop::collection::vec(prop::collection::vec(change, 1..6), 1..4);
    let truncates = prop::collection::btree_set((0..10i64).prop_map(|at| at * 2 + 1), 1..3);
    let keeps = vec!["latest", "latest-per-day", "history", "latest-and-deleted"];
    let kinds = (prop::sample::select(keeps), prop::sample::select(vec!["parquet", "delta"]));
    (kinds, files, truncates).prop_flat_map(|((keep, format), files, truncates)| {
        let steps = (0..files.len()).map(Step::File);
        let steps = steps.chain(truncates.into_iter().map(Step::Truncate));
        let steps = Just(steps.collect::<Vec<_>>()).prop_shuffle();
        (Just(keep), Just(format), Just(files), steps)
    })
}

fn second(at: i64) -> String {
    format!("2020-01-{:02}T00:00:{at:02}Z", 2 + at / 7)
}

fn lab_of((keep, format, ..): &Case) -> Lab {
    let builder = builder().format(format).partition_by(&["event_dt", "cat"]);
    let builder = builder.aggregate("rows", ROWS_PER_DAY);
    started(&match *keep {
        "latest-and-deleted" => builder.set("keep_deleted", true),
        "history" => builder.keep(keep),
        _ => builder.keep(keep).aggregate("daily", COUNT_PER_DAY).aggregate("flows", FLOWS),
    })
}

fn file_of(changes: &[Change]) -> Vec<[String; 4]> {
    let row = |(op, key, cat, at): &Change| {
        [op.to_string(), second(*at), key.to_string(), cat.to_string()]
    };
    changes.iter().map(row).collect()
}

fn tables(lab: &Lab, keep: &str) -> Vec<Vec<Row>> {
    let names: &[&str] = match keep {
        "latest" | "latest-per-day" => &["curated", "rows", "daily", "flows"],
        _ => &["curated", "rows"],
    };
    names.iter().map(|name| lab.table(&format!("lake/{name}"))).collect()
}

fn check(case: &Case) {
    let (keep, _, files, steps) = case;
    let put = |lab: &Lab, number: usize, rows: &[[String; 4]]| {
        let file = file_of_rows(&["Op", "ts", "id", "cat"], rows);
        lab.put(&format!("raw/20200102-00000000{number}.parquet"), file);
    };
    let lab = lab_of(case);
    let mut is_folded = false;
    for step in steps {
        match step {
            Step::File(number) => {
                put(&lab, *number, &file_of(&files[*number]));
                run(&lab);
                is_folded = true;
            }
            Step::Truncate(at) if is_folded => {
                lab.truncate(&second(*at), false).expect("set");
            }
            Step::Truncate(_) => {}
        }
    }
    // The same truncates among the changes, all at once.
    let expected = lab_of(case);
    for (number, changes) in files.iter().enumerate() {
        put(&expected, number, &file_of(changes));
    }
    let skipped = steps.iter().take_while(|step| matches!(step, Step::Truncate(_))).count();
    let truncates = steps[skipped..].iter().filter_map(|step| match step {
        Step::Truncate(at) => Some(["T".into(), second(*at), "0".into(), "a".into()]),
        Step::File(_) => None,
    });
    put(&expected, 9, &truncates.collect::<Vec<_>>());
    run(&expected);
    assert_eq!(tables(&lab, keep), tables(&expected, keep));
    lab.assert_verified();
    lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(tables(&lab, keep), tables(&expected, keep));
}

#[test]
fn truncates_by_hand_between_any_runs_are_as_those_among_the_changes() {
    let config = Config { cases: 16 * test_times(), ..Config::default() };
    TestRunner::new(config)
        .run(&cases(), |case| {
            check(&case);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}
