//! `rebuild --from-table`: the table is made again from its own rows, and is what raw would come to. Later runs go on
//! with it.

use proptest::prelude::*;

use crate::load_times::lab;
use crate::snapshots::snapshots;
use crate::support::{
    COUNT_PER_DAY, Change, FLOWS, Fault, Lab, LabBuilder, PLACES, ROWS_PER_DAY, Row, Task,
    assert_refused, file_of_rows, test_times,
};

/// A changed pipeline: the query and the partition columns.
type Changed = (&'static str, &'static [&'static str]);

const SAME: &str = "SELECT id, cat, v, event_dt FROM latest";
/// Changes that every table can take.
const DIVIDED: [Changed; 4] =
    [(SAME, &["cat"]), (SAME, &["event_dt"]), (SAME, &[]), (SAME, &["v", "event_dt"])];
/// Changes of columns.
const COLUMNS: [Changed; 4] = [
    ("SELECT id, cat, v, event_dt, v > 3 AS big FROM latest", &["event_dt", "big"]),
    ("SELECT id, UPPER(cat) AS c, event_dt, 'eu' AS region, v FROM latest", &["region", "c"]),
    ("SELECT id, cat AS kind, v + id AS w, event_dt FROM latest", &["kind", "event_dt"]),
    ("SELECT event_dt, cat || '!' AS loud, cat, v, id FROM latest", &["loud"]),
];

fn builder(keep: &str) -> LabBuilder {
    let builder = Lab::builder()
        .curated_sql(SAME)
        .aggregate("daily", COUNT_PER_DAY)
        .aggregate("rows", ROWS_PER_DAY);
    match keep {
        "deleted" => builder.set("keep_deleted", true),
        keep => builder.keep(keep),
    }
}

/// Changes the pipeline: query, partition columns, and from one format to another, in another folder.
fn change(lab: &Lab, (sql, partition_by): Changed, format: Option<(&str, &str)>) {
    lab.write_file("curated.sql", sql);
    lab.edit_pipeline(
        r#"partition_by = ["event_dt", "cat"]"#,
        &format!("partition_by = {partition_by:?}"),
    );
    if let Some((before, format)) = format {
        lab.edit_pipeline(&format!("format = \"{before}\""), &format!("format = \"{format}\""));
        lab.edit_pipeline("/lake/curated\"", "/lake/other\"");
    }
}

/// A file: its day, and changes: operation, key and category.
type File = (i64, Vec<(&'static str, i64, &'static str)>);

fn files() -> impl Strategy<Value = Vec<File>> {
    let op = prop::sample::select(vec!["I", "U", "U", "D"]);
    let change = (op, 1..6i64, prop::sample::select(vec!["a", "b", "c"]));
    let changes = prop::collection::vec(change, 1..6);
    prop::collection::btree_map(1..8i64, changes, 2..7)
        .prop_map(|files| files.into_iter().collect::<Vec<File>>())
        .prop_shuffle()
}

fn fold(lab: &Lab, files: &[File]) {
    for (day, changes) in files {
        lab.put_day(*day, changes);
        lab.run_days(*day, day + 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32 * test_times(), max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_table_is_what_raw_comes_to(
        files in files(),
        at in 1..6usize,
        keep in prop::sample::select(vec!["latest", "latest-per-day", "deleted", "history"]),
        changed in 0..8usize,
        before in prop::sample::select(vec!["parquet", "delta"]),
        format in prop::option::of(prop::sample::select(vec!["parquet", "delta"])),
    ) {
        let (first, later) = files.split_at(at.min(files.len()));
        let lab = builder(keep).set("curated.format", before).build();
        fold(&lab, first);
        let changed = match keep {
            "history" => DIVIDED[changed % 4],
            _ if changed < 4 => DIVIDED[changed],
            _ => COLUMNS[changed - 4],
        };
        change(&lab, changed, format.map(|format| (before, format)));
        let report = lab.rebuild_from_table().expect("made again");
        prop_assert_eq!(report.rows_read, 0);
        lab.assert_verified();
        fold(&lab, later);
        lab.assert_verified();
        // Whatever it was made from, it is the same.
        let table = if format.is_some() { "lake/other" } else { "lake/curated" };
        let rows = lab.table(table);
        lab.rebuild(false, &[]).expect("rebuilt");
        prop_assert_eq!(lab.table(table), rows);
    }
}

/// Some days with changes of all kinds.
const DAYS: [&[(&str, i64, &str)]; 4] = [
    &[("I", 1, "a"), ("I", 2, "a"), ("I", 3, "b"), ("I", 4, "c")],
    &[("U", 1, "b"), ("D", 4, "c"), ("I", 5, "a")],
    &[("U", 2, "c"), ("U", 5, "a"), ("I", 4, "a")],
    &[("D", 1, "b"), ("U", 3, "a"), ("I", 6, "b")],
];

/// A lab in which three of the days are folded, the second one last.
fn three_days(builder: &LabBuilder) -> Lab {
    let lab = builder.build();
    for day in [1, 3, 2] {
        lab.put_day(day, DAYS[day as usize - 1]);
        lab.run_days(day, day + 1);
    }
    lab
}

#[test]
fn no_raw_file_is_needed() {
    for place in PLACES {
        for keep in ["latest", "latest-per-day", "deleted", "history"] {
            let lab = three_days(&builder(keep).place(place));
            lab.remove_all("raw");
            change(&lab, (SAME, &["v"]), None);
            lab.rebuild_from_table().expect("made again");
            assert!(lab.list("lake/curated").iter().all(|path| path.starts_with("v=")));
            // A change that is late, and a new one.
            late_day(&lab);
            let clean = three_days(&builder(keep).partition_by(&["v"]));
            late_day(&clean);
            assert_eq!(lab.table("lake/curated"), clean.table("lake/curated"), "{keep}");
            assert_eq!(lab.table("lake/daily"), clean.table("lake/daily"), "{keep}");
            lab.assert_tidy();
        }
    }
}

/// Writes the file of a day, and runs it: one of its changes is of an earlier day.
fn late_day(lab: &Lab) {
    let change = |op, id, cat, v, us| Change { op, id, cat, v, us, event_us: 0 };
    let late = change("U", 3, "c", 7, -30 * 3_600_000_000);
    let changes = [late, change("D", 2, "c", 8, 0), change("I", 7, "a", 9, 0)];
    lab.put_changes("raw/20200104-000000000.parquet", 4, &changes);
    lab.run_days(4, 5);
}

#[test]
fn a_history_can_be_divided_by_its_current_rows_and_by_columns_that_say_what_counts() {
    let current: Changed = (SAME, &["is_current", "cat"]);
    let lab = three_days(&builder("history").set("curated.format", "parquet"));
    change(&lab, current, Some(("parquet", "delta")));
    lab.rebuild_from_table().expect("made again");
    lab.assert_verified();
    fold(&lab, &[(4, DAYS[3].to_vec())]);
    lab.assert_verified();

    let named = builder("history").set("history_columns", vec!["cat"]);
    let lab = three_days(&named);
    change(&lab, (SAME, &["v"]), None);
    let error = lab.rebuild_from_table().expect_err("raw only");
    assert_refused(error, 2, "partition column `v` is not among `history_columns`", "in raw only");
    let lab = three_days(&named.partition_by(&["event_dt"]));
    lab.edit_pipeline(r#"["event_dt"]"#, r#"["cat"]"#);
    lab.write_file("curated.sql", "SELECT id, v * 2 AS twice, cat, event_dt FROM latest");
    lab.rebuild_from_table().expect("made again");
    lab.assert_verified();
    fold(&lab, &[(4, DAYS[3].to_vec())]);
    lab.assert_verified();
}

#[test]
fn rows_of_snapshots_are_made_again() {
    let lab = lab(&snapshots().curated_sql("SELECT * FROM latest"));
    let put = |day: i64, rows: &[[&str; 2]]| {
        lab.put(&format!("raw/dt=2020-01-0{day}/a.parquet"), file_of_rows(&["id", "name"], rows));
        lab.run("2020-01-01", "2020-02-01")
    };
    put(1, &[["1", "a"], ["2", "b"], ["3", "c"]]).expect("a run");
    put(3, &[["1", "a"], ["2", "b2"]]).expect("a run");
    lab.edit_pipeline(r#"partition_by = ["event_dt"]"#, r#"partition_by = ["name"]"#);
    lab.rebuild_from_table().expect("made again");
    lab.assert_verified();
    put(4, &[["1", "a"], ["2", "b2"], ["3", "c"]]).expect("a run");
    put(2, &[["1", "a9"], ["2", "b2"], ["3", "c"]]).expect("a run");
    let rows = lab.lines("lake/curated", ["id", "name", "event_dt"]);
    assert_eq!(rows, ["1 a 2020-01-03", "2 b2 2020-01-02", "3 c 2020-01-04"]);
    lab.assert_verified();
    // The same columns, in other words; and others.
    lab.write_file("curated.sql", "SELECT id, name, event_dt FROM latest");
    lab.rebuild_from_table().expect("made again");
    lab.assert_verified();
    lab.write_file("curated.sql", "SELECT id, name, UPPER(name) AS loud, event_dt FROM latest");
    let error = lab.rebuild_from_table().expect_err("compared");
    assert_refused(error, 2, "changes columns by which rows are compared", "by all columns");
}

#[test]
fn what_the_table_does_not_have_is_refused_and_nothing_changes() {
    let lab = three_days(
        &builder("latest").curated_sql("SELECT id, UPPER(cat) AS cat, v, event_dt FROM latest"),
    );
    let before = lab.contents("lake");
    let refused = |sql: &str, message: &str, hint: &str| {
        lab.write_file("curated.sql", sql);
        let error = lab.rebuild_from_table().expect_err(sql);
        assert_refused(error, 2, message, hint);
        assert_eq!(lab.contents("lake"), before);
    };
    let reads =
        "reads `cat`, which the table does not have as it was; it has upper(latest.cat) as `cat`";
    refused("SELECT id, cat, v, event_dt FROM latest", reads, "write an expression as");
    refused("SELECT id, UPPER(cat) AS cat, cat AS raw, v, event_dt FROM latest", reads, "");
    refused(
        "SELECT id, UPPER(cat) AS cat, v, event_dt, event FROM latest",
        "reads `event`, which",
        "leave the column out",
    );
    refused(
        "SELECT id, UPPER(cat) AS cat, v, event_dt FROM latest WHERE v > 1",
        "differs in more than its columns",
        "only the columns can change",
    );
    refused("SELECT id, UPPER(cat) AS cat, event_dt, nope FROM latest", "cannot plan", "");
    lab.write_file("curated.sql", "SELECT id, UPPER(cat) AS cat, v, event_dt FROM latest");
    lab.edit_pipeline("order_by = [\"ts\"]", "order_by = [\"ts\", \"v\"]");
    let error = lab.rebuild_from_table().expect_err("another order");
    assert_refused(error, 2, "`raw.order_by` changed", "rebuild from raw");
    assert_eq!(lab.contents("lake"), before);
    // What it has is computed from.
    lab.edit_pipeline("order_by = [\"ts\", \"v\"]", "order_by = [\"ts\"]");
    lab.write_file(
        "curated.sql",
        "SELECT id, UPPER(cat) AS cat, UPPER(cat) || v AS both, event_dt FROM latest",
    );
    let error = lab.run("2020-01-03", "2020-01-04").expect_err("another query");
    assert_refused(
        error,
        2,
        "`curated.sql` changed",
        "where raw files are gone, with --from-table",
    );
    lab.rebuild_from_table().expect("made again");
    lab.assert_verified();
}

#[test]
fn queries_do_not_see_columns_that_versions_lack() {
    let lab = three_days(&builder("latest").aggregate("flows", FLOWS));
    lab.edit_pipeline(r#"["event_dt", "cat"]"#, r#"["event_dt", "v"]"#);
    let before = lab.contents("lake");
    let error = lab.rebuild_from_table().expect_err("no column for the aggregate");
    assert_eq!(error.kind.exit_code(), 2, "{error}");
    assert!(error.to_string().contains("flows.sql"), "{error}");
    assert_eq!(lab.contents("lake"), before);
    lab.edit_pipeline(r#"["event_dt", "v"]"#, r#"["v", "cat"]"#);
    lab.rebuild_from_table().expect("made again");
    // The balance is made again, without the column.
    lab.assert_verified();
    lab.write_file("flows.sql", &FLOWS.replace("cat,", "v, cat,"));
    let error = lab.run("2020-01-03", "2020-01-04").expect_err("no such column");
    assert!(error.to_string().contains("flows.sql"), "{error}");
    lab.rebuild(false, &[]).expect("rebuilt");
    lab.assert_verified();
}

#[test]
fn a_rebuild_from_the_table_that_is_cut_off_is_finished_or_undone() {
    for (format, to) in
        [("parquet", None), ("parquet", Some(("parquet", "delta"))), ("delta", None)]
    {
        let mut failed = 0;
        for requests in (0..).step_by(5) {
            let lab = three_days(&builder("latest").set("curated.format", format));
            let rows = lab.lines("lake/curated", ["id", "cat", "v", "event_dt"]);
            change(&lab, COLUMNS[0], to);
            let (faulty, seen) = lab.failing_after(requests, Fault::AllDead);
            let cut = faulty.rebuild_from_table();
            if let Err(error) = lab.run("2020-01-02", "2020-01-03") {
                // It was not committed.
                assert_refused(
                    error,
                    2,
                    "differs from the one that wrote its tables",
                    "--from-table",
                );
                assert!(cut.is_err());
                assert_eq!(lab.lines("lake/curated", ["id", "cat", "v", "event_dt"]), rows);
                lab.rebuild_from_table().expect("made again");
            }
            lab.assert_verified();
            if to.is_none() {
                lab.assert_tidy();
            }
            if cut.is_ok() && seen.left().is_some_and(|left| left > 0) {
                break;
            }
            failed += 1;
        }
        assert!(failed > 4, "{failed}");
    }
}

#[test]
fn columns_have_the_types_of_their_format() {
    let sql =
        "SELECT id, cat, v, ts, event, CAST(v AS INTEGER UNSIGNED) AS u, event_dt FROM latest";
    for (before, after) in [("parquet", "delta"), ("delta", "parquet")] {
        let lab = three_days(&builder("latest").curated_sql(sql).set("curated.format", before));
        let unsigned = "CAST(v AS INTEGER UNSIGNED)";
        let more =
            format!("ts, CAST(event AS VARCHAR) || {unsigned} AS text, {unsigned} + 1 AS more,");
        let computed = sql.replace("ts,", &more);
        lab.write_file("curated.sql", &computed);
        lab.edit_pipeline(r#"["event_dt", "cat"]"#, r#"["event", "u"]"#);
        lab.edit_pipeline(before, after);
        lab.edit_pipeline("/lake/curated\"", "/lake/other\"");
        lab.rebuild_from_table().expect("made again");
        lab.assert_verified();
        fold(&lab, &[(4, DAYS[3].to_vec())]);
        lab.assert_verified();
    }
}

#[test]
fn columns_that_rows_were_given_later_stand_for_no_others() {
    let delta = builder("latest").set("curated.format", "delta");
    let lab = three_days(&delta);
    let grown = "SELECT id, cat AS title, cat, v, 0 AS flag, event_dt FROM latest";
    lab.write_file("curated.sql", grown);
    fold(&lab, &[(4, DAYS[3].to_vec())]);
    let rows = lab.table("lake/curated");
    assert!(rows.iter().any(|row| !row.contains_key("flag")), "{rows:?}");
    lab.write_file(
        "curated.sql",
        &grown.replace("event_dt", "v > 0 AS big, cat || '!' AS loud, event_dt"),
    );
    lab.rebuild_from_table().expect("made again");
    let big = |row: &Row| row["big"] == "true" && row["loud"] == format!("{}!", row["cat"]);
    let now = lab.table("lake/curated");
    assert!(now.iter().all(big), "{now:?}");
    let without = |mut row: Row| {
        row.retain(|name, _| name != "big" && name != "loud");
        row
    };
    assert_eq!(now.into_iter().map(without).collect::<Vec<_>>(), rows);
    lab.assert_verified();
    // In another format too.
    lab.edit_pipeline("\"delta\"", "\"parquet\"");
    lab.edit_pipeline("/lake/curated\"", "/lake/other\"");
    lab.rebuild_from_table().expect("made again");
    lab.assert_verified();
    fold(&lab, &[(5, vec![("U", 3, "z")])]);
    lab.assert_verified();
}

#[test]
fn a_part_of_a_snapshot_can_come_after_the_table_was_made_again() {
    let lab = lab(&snapshots().curated_sql("SELECT * FROM latest"));
    let put = |path: &str, rows: &[[&str; 2]]| {
        lab.put(&format!("raw/dt=2020-01-0{path}.parquet"), file_of_rows(&["id", "name"], rows));
        lab.run("2020-01-01", "2020-02-01").expect("a run");
    };
    put("1/a", &[["1", "a"], ["2", "b"], ["3", "c"]]);
    put("2/a", &[["1", "a"]]);
    lab.edit_pipeline(r#"partition_by = ["event_dt"]"#, r#"partition_by = ["name", "event_dt"]"#);
    lab.rebuild_from_table().expect("made again");
    put("2/b", &[["2", "b"], ["3", "c"]]);
    let rows = || lab.lines("lake/curated", ["id", "name", "event_dt"]);
    assert_eq!(rows(), ["1 a 2020-01-01", "2 b 2020-01-01", "3 c 2020-01-01"]);
    lab.assert_verified();
    assert_eq!(lab.explain(&["2"]).rows_now[0].partition, "name=b/event_dt=2020-01-01");
    put("3/a", &[["1", "a"], ["2", "b2"], ["3", "c"]]);
    lab.forget(&["3"], false).expect("forgotten");
    assert_eq!(rows(), ["1 a 2020-01-01", "2 b2 2020-01-03"]);
    lab.assert_verified();
}

#[test]
fn what_is_not_recorded_stays_so_under_another_name() {
    let lab = three_days(&builder("latest"));
    lab.edit_pipeline(r#"["event_dt", "cat"]"#, r#"["event_dt", "v"]"#);
    lab.rebuild_from_table().expect("made again");
    lab.write_file("curated.sql", &SAME.replace("v,", "v AS w,"));
    lab.edit_pipeline(r#"["event_dt", "v"]"#, r#"["event_dt", "w"]"#);
    let note = lab.rebuild_from_table().expect("made again").note.expect("a note");
    assert!(note.contains("the table has these columns no more: `v`"), "{note}");
    lab.assert_verified();
    lab.write_file("daily.sql", &COUNT_PER_DAY.replace("NOT deleted", "NOT deleted AND w > 0"));
    let error = lab.run("2020-01-03", "2020-01-04").expect_err("no such column");
    assert!(error.to_string().contains("daily.sql"), "{error}");
    let error = lab.rebuild_from_table().expect_err("no such column");
    assert_refused(error, 2, "daily.sql", "known of all changes, and so not `w`");
}

#[test]
fn a_table_that_is_not_published_yet_is_published_by_the_pipeline_that_has_it() {
    let lab = three_days(&builder("latest").set("curated.format", "parquet"));
    lab.remove_all("raw");
    let toml = lab.get_text("pipeline/pipeline.toml");
    change(&lab, (SAME, &["v"]), Some(("parquet", "delta")));
    let changed = lab.get_text("pipeline/pipeline.toml");
    for requests in 0.. {
        let (faulty, _) = lab.failing_after(requests, Fault::AllDead);
        if faulty.rebuild_from_table().is_ok() {
            break;
        }
        // Back, where it cannot be finished.
        lab.write_file("pipeline.toml", &toml);
        let is_committed = lab.run("2020-01-01", "2020-01-02").is_err();
        if is_committed {
            let error = lab.rebuild(false, &[]).expect_err("raw is gone");
            assert_refused(error, 65, "are missing", "--from-table");
        }
        lab.write_file("pipeline.toml", &changed);
        if is_committed {
            lab.run_with(Task::Aggregate, "2020-01-01", "2020-01-02", &[]).expect("finished");
            assert_eq!(lab.table("lake/other").len(), 5);
            return;
        }
    }
    panic!("no rebuild was cut off after its commit");
}

#[test]
fn the_folder_of_before_can_have_any_name() {
    for place in PLACES {
        let url = "{base}/lake/my table 100%";
        let lab = three_days(&builder("latest").place(place).set("curated.url", url));
        change(&lab, COLUMNS[0], None);
        lab.rebuild_from_table().expect("made again");
        lab.edit_pipeline("/lake/my table 100%", "/lake/other");
        let note = lab.rebuild_from_table().expect("made again").note.expect("a note");
        assert!(note.contains("the table is still in"), "{note}");
        lab.assert_verified();
    }
}

#[test]
fn what_a_later_rebuild_has_replaced_is_not_published_any_more() {
    let is_publishing = |lab: &Lab| {
        let runs = lab.history().expect("runs").runs;
        runs.last().is_some_and(|run| run.status == "publishing")
    };
    // A run that is cut off after its commit.
    let cut = |requests: usize| {
        let lab = three_days(&builder("latest").set("curated.format", "parquet"));
        lab.put_day(4, DAYS[3]);
        let (faulty, _) = lab.failing_after(requests, Fault::AllDead);
        faulty.run("2020-01-04", "2020-01-05").expect_err("cut off");
        lab
    };
    let lab = (0..).map(cut).find(is_publishing).expect("a run that is cut off");
    // The pipeline has its table elsewhere now, and its rebuild is cut off after its commit, too.
    change(&lab, (SAME, &["v"]), Some(("parquet", "delta")));
    for requests in 0.. {
        let (faulty, _) = lab.failing_after(requests, Fault::AllDead);
        faulty.rebuild(false, &[]).expect_err("cut off");
        if is_publishing(&lab) && lab.list("lake/other").is_empty() {
            let next = lab.run_with(Task::Aggregate, "2020-01-01", "2020-01-02", &[]);
            match next {
                Err(error) if error.kind.exit_code() == 2 => continue,
                next => drop(next.expect("finished")),
            }
            lab.assert_verified();
            assert_eq!(lab.table("lake/other").len(), 5);
            return;
        }
    }
}
