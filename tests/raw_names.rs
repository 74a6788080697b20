//! Names of columns: any name works in any role, those of glueless's own columns included.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::cast;

use crate::operator::rewrite;
use crate::support::{
    COUNT_PER_DAY, DAY_US, FIRST_DAY_US, Lab, LabBuilder, Place, assert_refused, integers,
    optional_texts, raw_file, texts, timestamps,
};

/// Names of glueless's own columns, tables and functions, in all of its relations and queries.
const OWN: [&str; 59] = [
    "seq",
    "deleted",
    "event_dt",
    "change_event_dt",
    "key_seq",
    "partition_seq",
    "key_deleted",
    "file",
    "row",
    "row number",
    "row_number",
    "last",
    "location",
    "part_0",
    "key_0",
    "key_1",
    "cdc",
    "time_us",
    "time_ns",
    "order_bytes",
    "order_bytes_",
    "latest",
    "history",
    "changes",
    "curated",
    "versions",
    "expected",
    "found",
    "position",
    "present",
    "live",
    "day",
    "origin",
    "part",
    "key",
    "change",
    "reason",
    "line",
    "run_id",
    "column",
    "last_changes",
    "rows_of_it",
    "c0",
    "k0",
    "d0",
    "e",
    "f",
    "0",
    "1",
    "op",
    "__position",
    "__live",
    "__latest",
    "__present",
    "__day",
    "__key_0",
    "__event_dt",
    "___live",
    "____",
];

/// Names that SQL, TOML, folders or formats could stumble over.
const ODD: [&str; 26] = [
    "ID",
    "SEQ",
    "Deleted",
    "EVENT_DT",
    "SELECT",
    "FROM",
    "LATEST",
    "a.b",
    "latest.c",
    "a b",
    " x ",
    "q\"uote",
    "it's",
    "`tick`",
    "a/b",
    "a=b",
    "a:b",
    "50%",
    "x%2Fy",
    "*",
    "a,b;(c)",
    "new\nline",
    "tab\t",
    "ключ",
    "Ärger",
    "名前",
];

/// What a name is used for.
struct Roles<'a> {
    key: [&'a str; 2],
    partition: &'a str,
    order: &'a str,
    commit_time: &'a str,
    event_time: &'a str,
    op: &'a str,
    payload: &'a str,
}

impl<'a> Roles<'a> {
    /// Each name gets each role for one of the numbers.
    fn of(names: &[&'a str], number: usize) -> Self {
        let name = |role: usize| names[(number + role * 3) % names.len()];
        Roles {
            key: [name(0), name(1)],
            partition: name(2),
            order: name(3),
            commit_time: name(4),
            event_time: name(5),
            op: name(6),
            payload: name(7),
        }
    }

    /// The columns of a file: those of the roles, and all other names.
    fn columns(&self, names: &[&'a str], rows: &[Change]) -> Vec<(&'a str, ArrayRef)> {
        let column = |name: &&'a str| -> (&'a str, ArrayRef) {
            let name = *name;
            let numbers = |value: fn(&Change) -> i64| integers(rows.iter().map(value));
            let values = match name {
                _ if name == self.key[0] => numbers(|row| row.key),
                _ if name == self.key[1] => texts(rows.iter().map(|_| "k")),
                _ if name == self.partition => texts(rows.iter().map(|row| row.partition)),
                _ if name == self.order => numbers(|row| row.order),
                _ if name == self.op => texts(rows.iter().map(|row| row.op)),
                _ if name == self.payload => texts(rows.iter().map(|row| row.payload)),
                _ if name == self.commit_time || name == self.event_time => {
                    timestamps(rows.iter().map(|row| FIRST_DAY_US + (row.day - 1) * DAY_US))
                }
                _ => optional_texts(rows.iter().map(|row| Some(row.payload))),
            };
            (name, values)
        };
        names.iter().map(column).collect()
    }
}

#[derive(Clone, Copy)]
struct Change {
    op: &'static str,
    key: i64,
    partition: &'static str,
    order: i64,
    day: i64,
    payload: &'static str,
}

fn change(op: &'static str, key: i64, partition: &'static str, order: i64, day: i64) -> Change {
    let payload = if day == 1 { "before" } else { "after" };
    Change { op, key, partition, order, day, payload }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name in `history`.
fn in_history(name: &str) -> String {
    let is_taken = ["seq", "deleted", "event_dt"].contains(&name);
    if is_taken { format!("key_{name}") } else { name.into() }
}

fn check(names: &[&str], number: usize, builder: LabBuilder) {
    let roles = Roles::of(names, number);
    let format = if number.is_multiple_of(2) { "parquet" } else { "delta" };
    // Delta tables do not allow these characters, nor two names that differ only in case.
    let is_stored = |name: &str| {
        format == "parquet"
            || name != "EVENT_DT"
                && !name.contains([' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '='])
    };
    let is_told = [roles.key[0], roles.key[1], roles.partition].iter().all(|name| is_stored(name));
    let format = if is_told { format } else { "parquet" };
    let is_stored = |name: &&&str| format == "parquet" || is_stored(name);
    let per_day = number % 4 >= 2;
    let mut columns: Vec<String> =
        names.iter().filter(is_stored).map(|name| quoted(name)).collect();
    let day = match (names.contains(&"event_dt"), names.contains(&"EVENT_DT"), format) {
        (true, ..) => "change_change_event_dt",
        // Not written in its own case, it is found in the other one.
        (_, true, "delta") => "change_event_dt",
        _ => "event_dt",
    };
    columns.push(day.into());
    let mut order = vec![roles.order];
    if number.is_multiple_of(3) {
        order = vec![roles.commit_time];
    }
    let key = quoted(&in_history(roles.key[0]));
    let last = format!(
        "SELECT event_dt AS dt, {key} AS k, MAX(seq) AS s, COUNT(*) AS n FROM history
         WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt, {key}"
    );
    let of_curated = format!(
        "SELECT {day} AS dt, MAX({}) AS p, COUNT(*) AS n FROM curated
         WHERE {day} >= $start_date AND {day} < $end_date GROUP BY {day}",
        quoted(roles.partition)
    );
    let lab = builder
        .set("key", roles.key.to_vec())
        .keep(if per_day { "latest-per-day" } else { "latest" })
        .format(format)
        .set("raw.op", roles.op)
        .set("raw.order_by", order)
        .set("raw.commit_time", roles.commit_time)
        .set("raw.event_time", roles.event_time)
        .partition_by(&[roles.partition])
        .curated_sql(format!("SELECT {} FROM latest", columns.join(", ")))
        .aggregate("daily", COUNT_PER_DAY)
        .aggregate("last", last)
        .aggregate("of_curated", of_curated)
        .build();
    let first = [change("I", 1, "a", 1, 1), change("I", 2, "a", 2, 1), change("I", 3, "b", 3, 1)];
    let second = [change("U", 1, "b", 4, 2), change("D", 2, "a", 5, 2)];
    let context = format!("{number}: key {:?}, partition {:?}", roles.key, roles.partition);
    lab.put_columns(&raw_file(1), roles.columns(names, &first));
    lab.put_columns(&raw_file(2), roles.columns(names, &second));
    for day in [1, 2, 1] {
        let end = format!("2020-01-0{}", day + 1);
        lab.run(&format!("2020-01-0{day}"), &end)
            .unwrap_or_else(|error| panic!("{context}: {error}: {:?}", error.hint));
    }
    let expected: &[&str] = if per_day { &["1 a", "1 b", "2 a", "3 b"] } else { &["1 b", "3 b"] };
    assert_eq!(lab.lines("lake/curated", [roles.key[0], roles.partition]), expected, "{context}");
    let payloads = lab.lines("lake/curated", [roles.key[0], day]);
    assert!(payloads.contains(&"1 2020-01-02".to_string()), "{context}: {payloads:?}");
    assert_eq!(lab.lines("lake/daily", ["dt", "n"]), ["2020-01-01 3", "2020-01-02 1"], "{context}");
    assert_eq!(lab.table("lake/last").len(), 5, "{context}");
    let verified = lab.assert_verified();
    assert_eq!(verified.aggregates.len(), 3);
    let explained = lab.explain(&["1", "k"]);
    assert_eq!(explained.changes.len(), 2, "{context}");
    assert_eq!(explained.changes[0].op, "I", "{context}");
    assert!(explained.rows_now.iter().all(|row| row.place.is_some()), "{context}");
    lab.assert_tidy();
    if format == "parquet" {
        check_that_a_changed_row_is_found(&lab, &roles, &context);
    }
}

/// Changes a value in a published file: `verify` names the column and the key.
fn check_that_a_changed_row_is_found(lab: &Lab, roles: &Roles<'_>, context: &str) {
    let files = lab.list_all("lake/curated");
    let file = files.iter().find(|path| path.ends_with(".parquet")).expect("a file");
    rewrite(lab, &format!("lake/curated/{file}"), |rows| {
        let at = rows.schema().index_of(roles.payload).expect("the column");
        let changed = texts((0..rows.num_rows()).map(|_| "changed"));
        let mut columns = rows.columns().to_vec();
        columns[at] = cast(&changed, columns[at].data_type()).expect("text");
        RecordBatch::try_new(rows.schema(), columns).expect("rows")
    });
    let found = lab.verify().expect("compared").first_difference.expect("a difference");
    assert_eq!(found.why, format!("its row differs in `{}`", roles.payload), "{context}");
    let key: Vec<&str> = found.key.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(key[..2], roles.key, "{context}");
}

#[test]
fn names_of_our_own_work_in_every_role() {
    for number in 0..OWN.len() {
        check(&OWN, number, Lab::builder());
    }
}

#[test]
fn odd_names_work_in_every_role() {
    for number in 0..ODD.len() {
        check(&ODD, number, Lab::builder());
    }
}

#[test]
fn names_work_on_an_object_store_too() {
    for number in [0, 1] {
        check(&OWN, number, Lab::builder().place(Place::S3));
        check(&ODD, number, Lab::builder().place(Place::S3));
    }
}

#[test]
fn a_raw_column_event_dt_is_what_event_dt_means_and_the_day_has_another_name() {
    let columns = |day: i64| {
        vec![
            ("id", integers([day])),
            ("ts", timestamps([FIRST_DAY_US + (day - 1) * DAY_US])),
            ("event_dt", texts(["theirs"])),
        ]
    };
    let sql =
        "SELECT id, event_dt, change_event_dt, CAST(change_event_dt AS VARCHAR) AS d FROM latest";
    let lab = Lab::builder().partition_by(&["change_event_dt"]).curated_sql(sql).build();
    lab.put_columns(&raw_file(1), columns(1));
    lab.run_days(1, 2);
    lab.put_columns(&raw_file(2), columns(2));
    lab.run_days(2, 3);
    let rows = lab.lines("lake/curated", ["id", "event_dt", "change_event_dt", "d"]);
    assert_eq!(rows, ["1 theirs 2020-01-01 2020-01-01", "2 theirs 2020-01-02 2020-01-02"]);
    lab.assert_verified();
    // The day can also have the name that it has elsewhere.
    let sql = "SELECT id, event_dt AS theirs, change_event_dt AS event_dt FROM latest";
    let lab =
        Lab::builder().keep("latest-per-day").partition_by(&["event_dt"]).curated_sql(sql).build();
    lab.put_columns(&raw_file(1), columns(1));
    lab.put_columns(&raw_file(2), columns(2));
    lab.run_days(1, 3);
    let rows = lab.lines("lake/curated", ["id", "theirs", "event_dt"]);
    assert_eq!(rows, ["1 theirs 2020-01-01", "2 theirs 2020-01-02"]);
    lab.assert_verified();
    // Without it a key's rows of two days could not be told apart.
    let sql = "SELECT id, event_dt FROM latest";
    let lab = Lab::builder().keep("latest-per-day").partition_by(&[]).curated_sql(sql).build();
    lab.put_columns(&raw_file(1), columns(1));
    let error = lab.run("2020-01-01", "2020-01-02").expect_err("refused");
    assert_refused(
        error,
        2,
        "lacks the column `change_event_dt`",
        "`event_dt` is a raw column here",
    );
}

#[test]
fn a_raw_column_event_dt_that_comes_later_does_not_change_what_the_query_means() {
    let put = |lab: &Lab, day: i64, more: Vec<(&'static str, ArrayRef)>| {
        let mut columns =
            vec![("id", integers([day])), ("ts", timestamps([FIRST_DAY_US + (day - 1) * DAY_US]))];
        columns.extend(more);
        lab.put_columns(&raw_file(day), columns);
    };
    let lab =
        Lab::builder().curated_sql("SELECT id, event_dt FROM latest").partition_by(&[]).build();
    put(&lab, 1, vec![]);
    lab.run_days(1, 2);
    put(&lab, 2, vec![("event_dt", texts(["theirs"]))]);
    let error = lab.run("2020-01-02", "2020-01-03").expect_err("refused");
    assert_refused(
        error,
        65,
        "has a column `event_dt`: in earlier runs this name was",
        "change_event_dt",
    );
    // A query that says which one it means, whether files have the column or not.
    let sql = "SELECT id, change_event_dt FROM latest";
    let lab = Lab::builder().curated_sql(sql).partition_by(&[]).build();
    put(&lab, 1, vec![]);
    lab.run_days(1, 2);
    put(&lab, 2, vec![("event_dt", texts(["theirs"]))]);
    lab.run_days(2, 3);
    put(&lab, 3, vec![]);
    lab.run_days(3, 4);
    let rows = lab.lines("lake/curated", ["id", "change_event_dt"]);
    assert_eq!(rows, ["1 2020-01-01", "2 2020-01-02", "3 2020-01-03"]);
    lab.assert_verified();
}

#[test]
fn a_key_or_partition_column_with_a_name_of_history_has_a_prefix_there() {
    let lab = Lab::builder()
        .set("key", vec!["seq", "event_dt"])
        .partition_by(&["deleted", "key_seq"])
        .curated_sql("SELECT seq, event_dt, deleted, key_seq FROM latest")
        .build();
    let columns = vec![
        ("seq", integers([7])),
        ("event_dt", texts(["theirs"])),
        ("deleted", texts(["no"])),
        ("key_seq", texts(["ks"])),
        ("ts", timestamps([FIRST_DAY_US])),
    ];
    lab.put_columns(&raw_file(1), columns);
    lab.run_days(1, 2);
    let history = lab.history_relation();
    let mut row = history[0].clone();
    row.remove("seq").expect("the order");
    let row: Vec<(&str, &str)> =
        row.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [
        ("deleted", "false"),
        ("event_dt", "2020-01-01"),
        ("key_event_dt", "theirs"),
        ("key_key_seq", "7"),
        ("key_seq", "ks"),
        ("partition_deleted", "no"),
    ];
    assert_eq!(row, expected);
    lab.assert_verified();
}

#[test]
fn a_partition_column_with_a_name_of_the_balance_has_a_prefix_there() {
    let flows = "SELECT event_dt AS dt, part_1, partition_entered, partition_partition_exited,
        partition_exited, entered, exited FROM balance WHERE event_dt >= $start_date AND event_dt < $end_date";
    let names = ["part_1", "entered", "exited", "partition_exited"];
    let lab = Lab::builder()
        .partition_by(&names)
        .curated_sql(format!("SELECT id, {} FROM latest", names.join(", ")))
        .aggregate("flows", flows)
        .build();
    let put = |day: i64, first: &'static str| {
        let values = [first, "b", "c", "d"];
        let mut columns =
            vec![("id", integers([1])), ("ts", timestamps([FIRST_DAY_US + (day - 1) * DAY_US]))];
        columns.extend(names.into_iter().zip(values.map(|value| texts([value]))));
        lab.put_columns(&raw_file(day), columns);
    };
    put(1, "a");
    lab.run_days(1, 2);
    put(2, "x");
    lab.run_days(2, 3);
    let columns = [
        "dt",
        "part_1",
        "partition_entered",
        "partition_partition_exited",
        "partition_exited",
        "entered",
        "exited",
    ];
    let rows = lab.lines("lake/flows", columns);
    assert_eq!(
        rows,
        ["2020-01-01 a b c d 1 0", "2020-01-02 a b c d 0 1", "2020-01-02 x b c d 1 0"]
    );
    lab.assert_verified();
}

#[test]
fn a_name_that_needs_quotes_is_said_to_need_them() {
    let columns = || vec![("ID", integers([1])), ("CAT", texts(["a"])), ("ts", timestamps([0]))];
    for (key, partition, sql, message) in [
        ("ID", "cat", "SELECT ID, CAT FROM latest", "does not return the key column `ID`"),
        ("id", "CAT", "SELECT ID, CAT FROM latest", "lacks the partition column `CAT`"),
    ] {
        let lab = Lab::builder().set("key", vec![key]).partition_by(&[partition]);
        let lab = lab.curated_sql(sql).build();
        lab.put_columns(&raw_file(1), columns());
        let error = lab.run("2020-01-01", "2020-01-02").expect_err("refused");
        assert_refused(
            error,
            2,
            message,
            "without quotes SQL reads names in lower case: select \"",
        );
        for (key, partition, sql) in [
            ("ID", "CAT", "SELECT \"ID\", \"CAT\" FROM latest"),
            ("id", "cat", "SELECT ID, CAT FROM latest"),
        ] {
            let lab = Lab::builder().set("key", vec![key]).partition_by(&[partition]);
            let lab = lab.curated_sql(sql).build();
            lab.put_columns(&raw_file(1), columns());
            lab.run_days(1, 2);
            assert_eq!(lab.lines("lake/curated", [key, partition]), ["1 a"]);
        }
    }
}
