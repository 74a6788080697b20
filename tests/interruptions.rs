//! Interruptions: a run whose requests fail from the n-th on, for every n, as if its process had
//! been killed there; one whose n-th request alone fails; and one whose n-th request is done and
//! its reply lost, or taken for another's. Nothing of it may be visible before its commit, all of
//! it must be after the next command, and that run repeated must end where a clean one ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use glueless::commands::Task;
use glueless::layout::attempt_name;

use crate::faults::{Cut, Fault, NO_LIMIT};
use crate::support::{Lab, Place, Row};

const TOML: &str = r#"
name = "cut"
key = ["id"]
keep = "latest"
[raw]
url = "{base}/raw"
window_by = "name"
order_by = ["ts"]
on_bad_row = "quarantine"
on_bad_file = "quarantine"
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt", "cat"]
format = "{format}"
[[aggregate]]
name = "daily"
sql = "daily.sql"
url = "{base}/lake/daily"
day = "dt"
"#;

const DAILY: &str = "SELECT event_dt AS dt, cat, COUNT(*) AS n FROM curated
WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt, cat";

fn lab(place: Place, format: &str) -> Lab {
    let sql = [
        ("curated.sql", "SELECT id, cat, v, event_dt FROM latest"),
        ("daily.sql", DAILY),
    ];
    Lab::new(place, &TOML.replace("{format}", format), &sql)
}

fn first_day(lab: &Lab) {
    lab.put_day(
        1,
        &[
            ("I", 1, "a"),
            ("I", 2, "a"),
            ("X", 2, "b"),
            ("I", 3, "b"),
            ("I", 4, "c"),
        ],
    );
}

/// A row changes its partition, one is deleted and empties its partition, one is new, and one and a
/// file are bad.
fn second_day(lab: &Lab) {
    let changes = [("U", 1, "b"), ("D", 4, "c"), ("Y", 4, "c"), ("I", 5, "d")];
    lab.put_day(2, &changes);
    lab.put("raw/20200102-120000000.parquet", b"cut off".to_vec());
}

/// The tables' rows and files, and what is in quarantine.
type Tables = (Vec<Row>, Vec<String>, Vec<Row>, Vec<String>, Vec<Row>);

fn tables(lab: &Lab) -> Tables {
    // The commit in a name may be another one after a fault.
    let files = |table: &str| -> Vec<String> {
        let names = lab.list(table).into_iter();
        let names = names.map(|name| match name.split_once("part-c") {
            Some((before, after)) => format!("{before}part-{}", &after[9..]),
            None => name,
        });
        names.collect()
    };
    (
        lab.table("lake/curated"),
        files("lake/curated"),
        lab.table("lake/daily"),
        files("lake/daily"),
        in_quarantine(lab),
    )
}

/// All that is in quarantine, but for the runs and the labs that it came from.
fn in_quarantine(lab: &Lab) -> Vec<Row> {
    let mut rows = lab.table("lake/_glueless/cut/quarantine");
    for row in &mut rows {
        row.remove("run_id");
        row.retain(|_, value| !value.contains(&lab.base));
    }
    rows.sort();
    rows
}

/// At every moment a partition, which here has one file at most, is what it was or what it will
/// be; a Delta table is that as a whole.
fn assert_old_or_new(lab: &Lab, format: &str, before: &[Row], after: &[Row]) {
    let found = lab.table("lake/curated");
    if format == "delta" {
        assert!(found == before || found == after, "{found:?}");
        return;
    }
    let partition = |row: &Row| (row.get("event_dt").cloned(), row.get("cat").cloned());
    let of = |rows: &[Row], wanted: &Row| -> Vec<Row> {
        let rows = rows
            .iter()
            .filter(|row| partition(row) == partition(wanted));
        rows.cloned().collect()
    };
    for row in before.iter().chain(after).chain(&found) {
        let now = of(&found, row);
        assert!(now == of(before, row) || now == of(after, row), "{now:?}");
    }
}

fn check(place: Place, format: &str, step: usize, fault: Fault) {
    let clean = lab(place, format);
    first_day(&clean);
    clean.run("2020-01-01", "2020-01-02").expect("a run");
    let before = tables(&clean);
    second_day(&clean);
    clean.run("2020-01-02", "2020-01-03").expect("a run");
    let after = tables(&clean);
    assert_ne!(before, after);

    let (mut published, mut failed) = (0, 0);
    for requests in (0..).step_by(step) {
        let lab = lab(place, format);
        first_day(&lab);
        lab.run("2020-01-01", "2020-01-02").expect("a run");
        second_day(&lab);
        let left = Arc::new(AtomicUsize::new(requests));
        let shared = Arc::clone(&left);
        let faulty = lab.through(move |inner| {
            let left = Arc::clone(&shared);
            Arc::new(Cut {
                left,
                ..Cut::new(inner, fault)
            })
        });
        let cut = faulty.run("2020-01-02", "2020-01-03");
        if let Err(error) = &cut {
            let code = error.kind.exit_code();
            assert!(
                [69, 75].contains(&code),
                "after {requests} requests: {error}"
            );
        }
        assert_old_or_new(&lab, format, &before.0, &after.0);
        let enough = cut.is_ok() && !matches!(left.load(Ordering::SeqCst), 0 | NO_LIMIT);

        // The next command, whatever it is, finishes or undoes.
        lab.run_with(Task::Aggregate, "2020-01-01", "2020-01-02", &[])
            .unwrap_or_else(|error| panic!("after {requests} requests: {error}"));
        let curated = |tables: Tables| (tables.0, tables.1);
        let found = curated(tables(&lab));
        let is_published = found == curated(after.clone());
        assert!(
            is_published || found == curated(before.clone()),
            "after {requests} requests: {found:?}"
        );
        published += usize::from(is_published);
        lab.run("2020-01-02", "2020-01-03")
            .unwrap_or_else(|error| panic!("after {requests} requests: {error}"));
        assert_eq!(tables(&lab), after, "after {requests} requests");
        lab.assert_tidy();
        if enough {
            break;
        }
        failed += usize::from(cut.is_err());
    }
    // A lost reply can go unnoticed.
    let lost = matches!(fault, Fault::ReplyLost | Fault::ReplyExists);
    assert!(lost || failed > 10 / step, "{failed} runs were cut");
    assert!(published > 1, "some were cut after their commit");
}

#[test]
fn a_run_cut_at_any_request_is_finished_or_undone_in_a_local_folder() {
    check(Place::Local, "parquet", 1, Fault::AllDead);
}

#[test]
fn a_run_with_one_failed_request_is_finished_or_undone() {
    check(Place::Local, "parquet", 1, Fault::OneDead);
}

#[test]
fn a_run_cut_at_any_request_is_finished_or_undone_on_an_s3_server() {
    check(Place::S3, "parquet", 5, Fault::AllDead);
}

#[test]
fn a_run_that_loses_a_reply_is_finished_or_undone() {
    check(Place::Local, "parquet", 1, Fault::ReplyLost);
    check(Place::S3, "parquet", 11, Fault::ReplyLost);
}

#[test]
fn a_run_that_takes_its_own_work_for_anothers_is_finished_or_undone() {
    check(Place::Local, "parquet", 1, Fault::ReplyExists);
    check(Place::S3, "parquet", 11, Fault::ReplyExists);
}

#[test]
fn a_run_onto_a_delta_table_is_finished_or_undone() {
    for fault in [
        Fault::AllDead,
        Fault::OneDead,
        Fault::ReplyLost,
        Fault::ReplyExists,
    ] {
        check(Place::Local, "delta", 2, fault);
        check(Place::S3, "delta", 23, fault);
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_harms_nothing() {
    for format in ["parquet", "delta"] {
        let clean = lab(Place::Local, format);
        let lab = lab(Place::Local, format);
        let faulty = lab.through(|inner| Arc::new(Cut::new(inner, Fault::NoCheckpoint)));
        for day in 1..13 {
            for (lab, through) in [(&clean, &clean), (&lab, &faulty)] {
                lab.put_day(day, &[("U", day % 3, "a"), ("I", day, "b")]);
                let (start, end) = (
                    format!("2020-01-{day:02}"),
                    format!("2020-01-{:02}", day + 1),
                );
                through.run(&start, &end).expect("a run");
            }
        }
        assert_eq!(tables(&lab), tables(&clean));
        let has_checkpoint = |lab: &Lab| {
            let left = lab.list_all("lake").into_iter();
            left.filter(|path| path.contains("checkpoint")).count() > 0
        };
        assert!(has_checkpoint(&clean) && !has_checkpoint(&lab));
    }
}

#[test]
fn an_aggregate_that_is_gone_does_not_hold_up_what_was_interrupted() {
    let lab = lab(Place::Local, "parquet");
    first_day(&lab);
    let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
    let announced = attempt_name(2, &format!("{}-aggregate", report.run_id));
    let announced = format!("lake/_glueless/cut/publishing/{announced}");
    lab.put(&announced, Vec::new());
    let toml = lab.pipeline.join("pipeline.toml");
    let text = std::fs::read_to_string(&toml).expect("read");
    let (without, _) = text.split_once("[[aggregate]]").expect("an aggregate");
    std::fs::write(&toml, without).expect("written");
    lab.run("2020-01-01", "2020-01-02").expect("a run");
    let left = lab.list_all("lake/_glueless/cut/publishing");
    assert!(left.is_empty(), "{left:?}");
}
