//! The balance: kept with the versions while an aggregate reads it, begun anew when it was not, the
//! same whatever windows fold, with little memory too, and checked by `verify`.

use std::collections::BTreeSet;

use arrow::array::{ArrayRef, AsArray, new_null_array};
use arrow::datatypes::DataType;

use crate::support::{
    Answer, COUNT_PER_DAY, Change, DAY_US, FIRST_DAY_US, FLOWS, Lab, LabBuilder, PLACES, Place,
    Row, Task, batches_of, day, integers, raw_file, texts, timestamps,
};

/// `sql/cust_loyalty/status.sql` for the columns of [`Lab::put_changes`].
fn status() -> String {
    for_changes(include_str!("../sql/cust_loyalty/status.sql"))
}

/// The same table, computed from the history alone: the query of an earlier version.
fn status_over_history() -> String {
    for_changes(include_str!("../fixtures/states/0.1.0/pipelines/latest/status.sql"))
}

fn for_changes(sql: &str) -> String {
    sql.replace("cust_id", "id").replace("cust_loyalty_category", "cat")
}

const STATE_TABLE: &str = "lake/_glueless/lab/versions";
const CATEGORIES: [&str; 5] = ["Basic", "Silver", "Gold", "Platinum", "Other"];

/// The files of the balance, below the state's table.
fn balance_files(lab: &Lab) -> Vec<String> {
    let files = lab.list_all(STATE_TABLE).into_iter();
    files.filter(|path| path.starts_with("kind=balance/")).collect()
}

fn builder() -> LabBuilder {
    Lab::builder().set("raw.event_time", "event")
}

/// A file of each day with changes of some keys: a number between 0 and `of` is drawn for each key,
/// of which the operation, the category and the event's day depend.
fn put_days(lab: &Lab, days: std::ops::Range<i64>, keys: i64) {
    for day in days {
        let rows = (0..keys).filter_map(|id| {
            let drawn = (id * 7_919 + day * 104_729) % 1_009;
            (drawn % 3 != 0).then(|| Change {
                op: if drawn % 11 == 0 { "D" } else { "U" },
                id,
                cat: CATEGORIES[(drawn % 5) as usize],
                v: drawn,
                us: id,
                // Some events are days before their change.
                event_us: (day - 1 - drawn % 4).max(0) * DAY_US,
            })
        });
        lab.put_changes(&raw_file(day), day, &rows.collect::<Vec<_>>());
    }
}

fn toml_of(lab: &Lab) -> String {
    std::fs::read_to_string(lab.pipeline.join("pipeline.toml")).expect("a pipeline")
}

fn of_days(rows: Vec<Row>) -> Vec<Row> {
    let mut rows = rows;
    rows.sort();
    rows
}

#[test]
fn the_status_from_the_balance_is_that_from_the_history() {
    // With 64 threads that query needs too much memory, and is tried again with one.
    for (place, keep, memory, threads) in [
        (Place::Local, "latest", "1GB", 2),
        (Place::Local, "latest-per-day", "128MB", 2),
        (Place::S3, "latest", "128MB", 64),
        (Place::S3, "latest-per-day", "1GB", 2),
    ] {
        let lab = builder()
            .place(place)
            .keep(keep)
            .set("limits.memory", memory)
            .running_aggregate("status", status())
            .running_aggregate("expected", status_over_history())
            .aggregate("flows", FLOWS)
            .build();
        put_days(&lab, 1..13, if memory == "1GB" { 500 } else { 20_000 });
        // Not in the order of time, and some days twice.
        for (first, end) in [(7, 9), (1, 4), (3, 8), (9, 13), (2, 3)] {
            lab.run_days_with(first, end, &[&format!("limits.threads={threads}")]);
        }
        assert_eq!(of_days(lab.table("lake/status")), of_days(lab.table("lake/expected")));
        lab.assert_verified();
        let before = ["lake/status", "lake/flows"].map(|table| of_days(lab.table(table)));
        lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(balance_files(&lab).len(), 1);
        let after = ["lake/status", "lake/flows"].map(|table| of_days(lab.table(table)));
        assert_eq!(after, before);
    }
}

#[test]
fn the_balance_is_kept_from_the_run_in_which_an_aggregate_first_reads_it() {
    for place in PLACES {
        let without = builder().place(place).aggregate("daily", COUNT_PER_DAY);
        let lab = without.build();
        put_days(&lab, 1..7, 300);
        lab.run_days(1, 3);
        assert_eq!(balance_files(&lab), [""; 0]);
        let toml = toml_of(&lab);
        let with = without.clone().aggregate("flows", FLOWS);
        let with = with.running_aggregate("status", status()).build();
        let with_toml = toml_of(&with).replace(&with.base, &lab.base);
        lab.write_file("flows.sql", FLOWS);
        lab.write_file("status.sql", &status());
        // It does not read it, reads it, does not read it, and reads it.
        lab.write_file("pipeline.toml", &with_toml);
        lab.run_days(3, 4);
        assert_eq!(balance_files(&lab).len(), 1, "begun by the aggregates' step");
        lab.run_with(Task::Curate, &day(4), &day(5), &[]).expect("a run");
        assert_eq!(balance_files(&lab).len(), 2, "kept by the next run");
        lab.write_file("pipeline.toml", &toml);
        lab.run_days(5, 6);
        assert_eq!(balance_files(&lab), [""; 0]);
        lab.write_file("pipeline.toml", &with_toml);
        lab.run_days(6, 7);
        lab.assert_verified();

        with.copy_raw(&lab);
        with.run_days(1, 7);
        for table in ["lake/flows", "lake/status"] {
            assert_eq!(of_days(lab.table(table)), of_days(with.table(table)), "{table}");
        }
    }
}

/// The formats of the ledger's files, in the order of commits.
fn formats(lab: &Lab) -> Vec<String> {
    let files = lab.list_all(STATE_TABLE).into_iter();
    let ledger = files.filter(|path| path.starts_with("kind=ledger/"));
    let format = |path: String| {
        let batches = batches_of(lab.get(&format!("{STATE_TABLE}/{path}")));
        let records = batches[0].column_by_name("record").expect("records");
        records.as_string::<i32>().value(0).to_string()
    };
    ledger.map(format).collect()
}

#[test]
fn what_changed_while_the_balance_was_not_kept_is_computed_again() {
    let flows = builder().aggregate("flows", FLOWS);
    let lab = flows.build();
    let change = |op, cat, event: i64| Change {
        op,
        id: 1,
        cat,
        v: 1,
        us: 0,
        event_us: (event - 1) * DAY_US,
    };
    lab.put_changes(&raw_file(2), 2, &[change("I", "Gold", 1)]);
    lab.put_changes(&raw_file(6), 6, &[change("U", "Silver", 5)]);
    lab.run_days(1, 8);
    let columns = ["dt", "cat", "entered", "exited"];
    let before = ["2020-01-01 Gold 1 0", "2020-01-05 Gold 0 1", "2020-01-05 Silver 1 0"];
    assert_eq!(lab.lines("lake/flows", columns), before);
    assert!(formats(&lab).iter().all(|format| format == r#"{"format":2}"#));
    // A later change of an earlier day: what changed on the 5th is never the status any more.
    lab.put_changes(&raw_file(12), 12, &[change("U", "Basic", 3)]);
    lab.run_with(Task::Curate, &day(12), &day(13), &["aggregate=[]"]).expect("a run");
    assert_eq!(formats(&lab).last().map(String::as_str), Some(r#"{"format":1}"#));
    lab.run_with(Task::Aggregate, &day(12), &day(13), &[]).expect("computed");
    assert_eq!(formats(&lab).last().map(String::as_str), Some(r#"{"format":2}"#));
    let after = ["2020-01-01 Gold 1 0", "2020-01-03 Basic 1 0", "2020-01-03 Gold 0 1"];
    assert_eq!(lab.lines("lake/flows", columns), after);
    lab.assert_verified();
}

#[test]
fn the_days_of_an_aggregate_over_it_do_not_depend_on_the_order_of_runs() {
    let of_order = |days: [i64; 2]| {
        let lab = builder().running_aggregate("status", status()).build();
        let change = |op, event: i64| Change {
            op,
            id: 1,
            cat: "Gold",
            v: 1,
            us: 0,
            event_us: (event - 1) * DAY_US,
        };
        lab.put_changes(&raw_file(10), 10, &[change("I", 3)]);
        lab.put_changes(&raw_file(11), 11, &[change("U", 2)]);
        days.iter().for_each(|day| drop(lab.run_days(*day, day + 1)));
        of_days(lab.table("lake/status"))
    };
    let rows = of_order([10, 11]);
    assert_eq!(rows.len(), 4);
    assert_eq!(of_order([11, 10]), rows);
}

#[test]
fn a_balance_that_is_damaged_is_computed_anew() {
    let lab = builder().aggregate("flows", FLOWS).build();
    put_days(&lab, 1..25, 50);
    for day in 1..9 {
        lab.run_days(day, day + 1);
    }
    let damage = || {
        for file in balance_files(&lab) {
            let path = format!("{STATE_TABLE}/{file}");
            let bytes = lab.get(&path);
            lab.put(&path, bytes[..bytes.len() / 2].to_vec());
        }
    };
    // The aggregates' step finds it.
    damage();
    lab.run_with(Task::Aggregate, &day(8), &day(9), &[]).expect("computed");
    lab.assert_verified();
    // A fold that combines the files finds it.
    damage();
    let mut folded = 9..25;
    while !balance_files(&lab).is_empty() {
        let next = folded.next().expect("the files are combined");
        lab.run_with(Task::Curate, &day(next), &day(next + 1), &[]).expect("a run");
    }
    assert!(folded.start > 12, "not the first run");
    lab.run_days(folded.start, 25);
    lab.assert_verified();
    let computed = of_days(lab.table("lake/flows"));
    lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(of_days(lab.table("lake/flows")), computed);
}

#[test]
fn a_partition_column_that_gets_a_type_later_keeps_its_balance() {
    let lab = builder().partition_by(&["event_dt", "v"]).aggregate(
        "flows",
        "SELECT event_dt AS dt, v, entered, exited FROM balance
         WHERE event_dt >= $start_date AND event_dt < $end_date",
    );
    let lab = lab.build();
    let put = |day: i64, v: ArrayRef| {
        let at = FIRST_DAY_US + (day - 1) * DAY_US;
        let columns = vec![
            ("Op", texts(["U", "U"])),
            ("id", integers([1, day])),
            ("cat", texts(["a", "a"])),
            ("v", v),
            ("ts", timestamps([at, at])),
            ("event", timestamps([at, at])),
        ];
        lab.put_columns(&raw_file(day), columns);
    };
    put(2, new_null_array(&DataType::Null, 2));
    lab.run_days(2, 3);
    put(3, integers([7, 8]));
    lab.run_days(3, 4);
    let rows = lab.table("lake/flows");
    let shown = |row: &Row| {
        let v = row.get("v").map_or("-", String::as_str);
        format!("{} {v} {} {}", row["dt"], row["entered"], row["exited"])
    };
    let rows: BTreeSet<String> = rows.iter().map(shown).collect();
    let expected = ["2020-01-02 - 2 0", "2020-01-03 - 0 1", "2020-01-03 7 1 0", "2020-01-03 8 1 0"];
    assert_eq!(rows, expected.map(String::from).into());
    lab.assert_verified();
}

#[test]
fn many_runs_leave_few_files_of_the_balance() {
    let lab = builder().aggregate("flows", FLOWS).build();
    put_days(&lab, 1..25, 50);
    for day in 1..25 {
        lab.run_days(day, day + 1);
        // Files that the last commit replaced are removed by the next.
        assert!(balance_files(&lab).len() <= 17, "day {day}");
    }
    lab.assert_verified();
}

#[test]
fn a_table_without_a_key_has_a_balance_of_what_enters() {
    let lab = Lab::builder()
        .set("key", Vec::<String>::new())
        .set("raw.event_time", "event")
        .aggregate("daily", COUNT_PER_DAY)
        .build();
    for day in 1..5 {
        let insert = |id| Change { op: "I", id, cat: "Gold", v: 1, us: id, event_us: 0 };
        lab.put_changes(&raw_file(day), day, &[insert(1), insert(day), insert(7)]);
    }
    lab.run_days(1, 3);
    let toml = toml_of(&lab);
    lab.write_file("flows.sql", FLOWS);
    let flows = toml.replace("daily", "flows");
    lab.write_file(
        "pipeline.toml",
        &format!("{toml}\n{}", &flows[flows.find("[[aggregate]]").expect("one")..]),
    );
    lab.run_days(3, 4);
    lab.run_days(4, 5);
    lab.assert_verified();
    let sum = |table: &str, column: &str| -> u64 {
        lab.table(table).iter().map(|row| row[column].parse::<u64>().expect("a count")).sum()
    };
    assert_eq!(sum("lake/flows", "entered"), sum("lake/daily", "n"));
    assert_eq!(sum("lake/flows", "exited"), 0);
}

#[test]
fn verify_tells_of_a_balance_that_is_another() {
    let builder = builder().aggregate("flows", FLOWS);
    let (lab, other) = (builder.build(), builder.build());
    let change = |id| Change { op: "I", id, cat: "Gold", v: 1, us: id, event_us: 0 };
    lab.put_changes(&raw_file(1), 1, &[change(1)]);
    other.put_changes(&raw_file(1), 1, &[change(1), change(2)]);
    lab.run_days(1, 2);
    other.run_days(1, 2);
    lab.assert_verified();
    let path = |lab: &Lab| format!("{STATE_TABLE}/{}", balance_files(lab)[0]);
    let good = lab.get(&path(&lab));
    lab.put(&path(&lab), other.get(&path(&other)));
    let found = lab.verify().expect("compared");
    assert!(!found.is_equal);
    assert_eq!(found.balance_days_different, [day(1).parse().expect("a day")]);
    let text = found.text();
    assert!(text.contains("balance    1 days differ, such as 2020-01-01"), "{text}");
    lab.put(&path(&lab), good[..good.len() / 2].to_vec());
    let found = lab.verify().expect("compared");
    assert_eq!((found.is_equal, found.state_files_damaged.len()), (false, 1));
}
