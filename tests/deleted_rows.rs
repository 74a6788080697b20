//! `keep_deleted`: the rows of deleted keys stay, marked. Tables that can be checked by hand; the model has random ones.

use crate::support::{
    Answer, Database, FLOWS, Lab, LabBuilder, ORDERS, Program, ROWS_PER_DAY, Task, assert_refused,
    file_of_rows, python,
};

fn builder() -> LabBuilder {
    Lab::builder()
        .set("keep_deleted", true)
        .set("raw.order_by", vec!["ts"])
        .partition_by(&["event_dt"])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, tier, event_dt FROM latest")
}

/// Writes a file of rows: operation, time of January 2020, key and value.
fn put(lab: &Lab, name: &str, rows: &[[&str; 4]]) {
    lab.put_january(name, "tier", rows);
}

fn run(lab: &Lab) {
    lab.run("2020-01-01", "2020-02-01").expect("a run");
}

/// The rows: key, value, day, and when the key was deleted.
fn rows(lab: &Lab) -> Vec<String> {
    let rows = lab.table("lake/curated").into_iter().map(|row| {
        let at = row.get("_deleted_at").map(|time| time[8..16].replace('T', " "));
        assert_eq!(row["_deleted"], at.is_some().to_string());
        let at = at.map_or(String::new(), |at| format!(" deleted {at}"));
        format!("{} {} {}{at}", row["id"], row["tier"], &row["event_dt"][8..])
    });
    let mut rows: Vec<String> = rows.collect();
    rows.sort();
    rows
}

/// Deletes have nothing but their key.
const LIFE: [(&str, &[[&str; 4]]); 3] = [
    (
        "20200102-000000000",
        &[
            ["I", "02 10:00", "1", "blue"],
            ["I", "02 11:00", "2", "red"],
            // Born and deleted within a file.
            ["I", "02 12:00", "3", "short"],
            ["D", "02 12:30", "3", "-"],
            // Its birth is not in raw.
            ["D", "02 13:00", "4", "-"],
        ],
    ),
    (
        "20200103-000000000",
        &[["D", "03 10:00", "1", "-"], ["D", "03 11:00", "2", "-"], ["I", "03 12:00", "2", "new"]],
    ),
    // Late: the last state of key 1, and an earlier delete of key 3.
    (
        "20200104-000000000",
        &[
            ["U", "02 20:00", "1", "silver"],
            ["D", "02 12:10", "3", "-"],
            ["D", "04 09:00", "1", "-"],
        ],
    ),
];

const LIVES: [&str; 3] =
    ["1 silver 02 deleted 03 10:00", "2 new 03", "3 short 02 deleted 02 12:10"];

#[test]
fn changes_in_any_order_come_to_one_table_with_deleted_rows() {
    builder().assert_in_any_order(("tier", LIFE), &ORDERS[4..], rows, &LIVES);
}

#[test]
fn other_engines_read_live_and_deleted_rows() {
    let [parquet, delta] = ["parquet", "delta"].map(|format| {
        let lab = builder().format(format).build();
        for (name, rows) in LIFE {
            put(&lab, name, rows);
            run(&lab);
        }
        lab
    });
    let script = r#"
import sys, duckdb, polars
rows = duckdb.read_parquet(sys.argv[1] + '/*/*.parquet', hive_partitioning=True)
print(duckdb.sql("SELECT id, tier, _deleted, strftime(_deleted_at AT TIME ZONE 'UTC', '%d %H:%M') FROM rows ORDER BY id").fetchall())
print(polars.read_delta(sys.argv[2]).filter(~polars.col('_deleted')).sort('id').select('id', 'tier').rows())
"#;
    let folders = [&parquet, &delta].map(|lab| lab.folder.path().join("lake/curated"));
    let read = Program::new(&python()).args(["-c", script]).args(folders).succeed();
    let expected = "[(1, 'silver', True, '03 10:00'), (2, 'new', False, None), \
                    (3, 'short', True, '02 12:10')]\n[(2, 'new')]\n";
    assert_eq!(read.stdout, expected);
}

#[test]
fn a_delete_writes_the_partition_of_its_row_and_one_that_changes_nothing_writes_none() {
    let lab = builder().aggregate("rows", ROWS_PER_DAY).build();
    put(&lab, "20200102-000000000", &[["I", "02 10:00", "1", "a"], ["I", "02 10:00", "2", "a"]]);
    put(&lab, "20200103-000000000", &[["I", "03 10:00", "3", "b"]]);
    run(&lab);
    put(&lab, "20200105-000000000", &[["D", "05 10:00", "2", "-"]]);
    let report = lab.run("2020-01-05", "2020-01-06").expect("a run");
    assert_eq!((report.partitions_written, report.rows_written), (1, 2));
    assert_eq!((report.rows_latest, report.rows_deleted), (0, 1));
    put(&lab, "20200106-000000000", &[["D", "06 10:00", "2", "-"], ["D", "06 10:00", "9", "-"]]);
    let report = lab.run("2020-01-06", "2020-01-07").expect("a run");
    assert_eq!((report.partitions_written, report.rows_written), (0, 0));
    assert_eq!(rows(&lab), ["1 a 02", "2 a 02 deleted 05 10:00", "3 b 03"]);
    lab.assert_verified();
}

#[test]
fn truncates_and_loads_at_their_time_delete_rows() {
    let builder = builder().set("raw.full_load_at", "name").set("raw.full_load", "*/full/*");
    let builder = builder.set("raw.commit_time", "ts");
    let files: [(&str, &[[&str; 4]]); 4] = [
        ("20200102-000000000", &[["I", "02 10:00", "1", "a"], ["I", "02 11:00", "2", "a"]]),
        ("20200103-000000000", &[["T", "03 10:00", "-", "-"], ["I", "03 10:00", "1", "b"]]),
        ("full/20200104-000000000", &[["I", "04 00:00", "3", "loaded"]]),
        ("20200105-000000000", &[["U", "02 23:00", "2", "late"], ["U", "05 10:00", "3", "c"]]),
    ];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let mut lab = builder.build();
        lab.now = crate::support::now() + chrono::TimeDelta::days(1);
        for number in order {
            let (name, rows) = files[number];
            put(&lab, name, rows);
            run(&lab);
        }
        let expected = ["1 b 03 deleted 04 00:00", "2 late 02 deleted 03 10:00", "3 c 05"];
        assert_eq!(rows(&lab), expected, "{order:?}");
        lab.assert_verified();
    }
}

#[test]
fn a_row_that_the_query_filters_out_is_not_kept_and_a_key_that_moves_leaves_a_deleted_row() {
    let query = "SELECT CAST(id AS BIGINT) AS id, tier, event_dt FROM latest WHERE tier <> 'out'";
    let builder = builder().set("raw.before_image_prefix", "BI_").curated_sql(query);
    let lab = builder.build();
    let columns = ["Op", "ts", "id", "tier", "BI_id"];
    let rows_of = |rows: &[[&str; 5]]| file_of_rows(&columns, rows);
    lab.put(
        "raw/20200102-000000000.parquet",
        rows_of(&[
            ["I", "2020-01-02 10:00:00", "1", "a", "-"],
            ["I", "2020-01-02 10:00:00", "2", "a", "-"],
            ["I", "2020-01-02 10:00:00", "3", "a", "-"],
        ]),
    );
    run(&lab);
    lab.put(
        "raw/20200103-000000000.parquet",
        rows_of(&[
            ["U", "2020-01-03 10:00:00", "7", "b", "1"],
            ["U", "2020-01-03 10:00:00", "2", "out", "2"],
            ["D", "2020-01-03 11:00:00", "2", "-", "-"],
            ["U", "2020-01-03 10:00:00", "3", "out", "3"],
        ]),
    );
    run(&lab);
    assert_eq!(rows(&lab), ["1 a 02 deleted 03 10:00", "7 b 03"]);
    lab.assert_verified();
}

#[test]
fn a_key_is_explained_with_the_time_of_its_delete() {
    let lab = builder().set("curated.sort_by", vec!["_deleted_at", "id"]).build();
    for (name, rows) in LIFE {
        put(&lab, name, rows);
        run(&lab);
    }
    assert_eq!(rows(&lab), LIVES);
    let text = |key: &str| lab.explain(&[key]).text();
    let why = ", deleted at 2020-01-03 10:00:00 by row 1 of ";
    assert!(text("1").contains(why), "{}", text("1"));
    assert!(!text("1").contains("no row"), "{}", text("1"));
    assert!(!text("2").contains("deleted at"), "{}", text("2"));
    assert!(text("4").contains("no row: only deletes of this key"), "{}", text("4"));
    put(&lab, "20200105-000000000", &[["T", "05 10:00", "-", "-"]]);
    run(&lab);
    assert!(text("2").contains(", deleted at 2020-01-05 10:00:00 by a truncate, row 1 of "));
    let ddl = lab.program("ddl").args(["--dialect", "postgres"]).succeed().stdout;
    for line in
        ["\"_deleted\" boolean", "\"_deleted_at\" timestamp with time zone", "PRIMARY KEY (\"id\")"]
    {
        assert!(ddl.contains(line), "{line}: {ddl}");
    }
}

#[test]
fn a_database_follows_deleted_rows_and_is_compared_by_its_live_ones() {
    let database = Database::new();
    let source = "public.source";
    let builder = builder().loaded().set("verify.url_env", "WAREHOUSE_URL");
    let lab = builder.set("verify.table", source).build().follow(&database);
    for (name, rows) in LIFE {
        put(&lab, name, rows);
        run(&lab);
        lab.assert_followed(&database, &["curated"]);
    }
    let create = format!(
        "SET ROLE lab; CREATE TABLE {source} (id bigint PRIMARY KEY, tier text, event_dt date)"
    );
    database.ask(&create);
    database.ask(&format!("INSERT INTO {source} VALUES (2, 'new', '2020-01-03')"));
    let verify = || {
        let environment = [("WAREHOUSE_URL", database.url())];
        lab.program("verify").args(["--against", "postgres"]).envs(environment).run()
    };
    let compared = verify();
    assert_eq!(compared.code, 0, "{}{}", compared.stdout, compared.stderr);
    database.ask(&format!("INSERT INTO {source} VALUES (1, 'silver', '2020-01-02')"));
    let compared = verify();
    assert_eq!(compared.code, 1, "{}{}", compared.stdout, compared.stderr);
}

#[test]
fn a_load_is_refused_by_the_live_rows_that_it_lacks() {
    let builder = builder().set("raw.full_load_at", "name").set("raw.full_load", "*/full/*");
    let builder = builder.set("raw.commit_time", "ts").set("raw.full_load_max_deletes", "50%");
    let mut lab = builder.build();
    lab.now = crate::support::now() + chrono::TimeDelta::days(1);
    let load = |day: &str, ids: &[&str]| {
        let time = format!("{day} 00:00");
        let rows: Vec<[&str; 4]> = ids.iter().map(|id| ["I", time.as_str(), id, "x"]).collect();
        put(&lab, &format!("full/202001{day}-000000000"), &rows);
    };
    load("02", &["1", "2", "3", "4", "5"]);
    // Rows that are deleted do not count.
    put(&lab, "20200103-000000000", &[["D", "03 10:00", "5", "-"]]);
    run(&lab);
    load("04", &["1"]);
    let refused = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    let message = "the table has 4 rows, and the full loads of this run would end 3 of them";
    assert_refused(refused, 65, message, "full_load_max_deletes=100%");
    load("04", &["1", "2"]);
    run(&lab);
    let deleted = ["3 x 02 deleted 04 00:00", "4 x 02 deleted 04 00:00", "5 x 02 deleted 03 10:00"];
    assert_eq!(rows(&lab), [&["1 x 04", "2 x 04"][..], &deleted].concat());
    lab.assert_verified();
}

#[test]
fn an_insert_and_a_delete_with_one_place_in_the_order_are_a_tie() {
    let [delete, insert] = [["D", "02 10:00", "1", "-"], ["I", "02 10:00", "1", "a"]];
    let lab = builder().build();
    put(&lab, "20200102-000000000", &[delete, insert]);
    let report = lab.run("2020-01-01", "2020-02-01").expect("a run");
    assert_eq!(report.ties, 1);
    assert_eq!(rows(&lab), ["1 a 02"]);
    for files in [vec![vec![delete, insert]], vec![vec![insert], vec![delete]]] {
        let lab = builder().set("raw.on_tie", "fail").build();
        let last = files.len() - 1;
        for (number, file) in files.iter().enumerate() {
            put(&lab, &format!("20200102-00000000{number}"), file);
            let run = lab.run("2020-01-01", "2020-02-01");
            if number == last {
                let tied = run.expect_err("refused");
                assert_refused(tied, 65, "the same order columns as another", "raw.order_by");
            }
        }
    }
}

#[test]
fn a_delete_at_no_time_is_refused_or_quarantined() {
    let lab = builder().set("raw.commit_time", "ts").build();
    put(&lab, "LOAD00000001", &[["I", "02 10:00", "1", "a"], ["D", "02 10:00", "2", "a"]]);
    let refused = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    let message = "row 2 of ";
    assert!(refused.to_string().starts_with(message), "{refused}");
    let message =
        "LOAD00000001.parquet: column `Op` is a delete or truncate in a full load, at no time";
    assert_refused(refused, 65, message, "raw.full_load_at");
    let settings = ["raw.on_bad_row=quarantine"];
    let report = lab.run_with(Task::Run, "2020-01-01", "2020-02-01", &settings).expect("a run");
    assert_eq!((report.rows_rejected, rows(&lab)), (1, vec!["1 a 02".to_string()]));
    // A truncate, which no quarantine takes.
    let lab = builder().set("raw.commit_time", "ts").build();
    put(&lab, "LOAD00000001", &[["I", "02 10:00", "1", "a"], ["T", "02 11:00", "-", "-"]]);
    for settings in [&[][..], &settings] {
        let refused = lab.run_with(Task::Run, "2020-01-01", "2020-02-01", settings);
        let refused = refused.expect_err("refused");
        assert_refused(refused, 65, "a delete or truncate in a full load", "raw.full_load_at");
    }
    // An update that moves a key.
    let lab = builder().set("raw.before_image_prefix", "BI_").build();
    let moved =
        [["I", "2020-01-02 10:00:00", "1", "a", "-"], ["U", "2020-01-02 11:00:00", "2", "a", "1"]];
    let file = file_of_rows(&["Op", "ts", "id", "tier", "BI_id"], &moved);
    lab.put("raw/LOAD00000001.parquet", file);
    let refused = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    assert_refused(refused, 65, "a delete or truncate in a full load", "raw.full_load_at");
}

#[test]
fn a_key_is_deleted_at_the_earliest_time_of_a_delete_after_its_row() {
    // The sequence of the log decides what is later, and the clock went back.
    let builder = builder().set("raw.order_by", vec!["seq"]).set("raw.commit_time", "ts");
    let change = |op, seq, hour: &str| {
        [op, seq, "1", "a"]
            .map(String::from)
            .into_iter()
            .chain([format!("2020-01-02 {hour}:00:00")])
    };
    let changes = [
        change("I", "1", "01"),
        change("D", "3", "09"),
        change("D", "5", "10"),
        change("D", "6", "08"),
        change("D", "9", "10"),
    ];
    let columns = ["Op", "seq", "id", "tier", "ts"];
    let changes: Vec<Vec<String>> = changes.into_iter().map(Iterator::collect).collect();
    let lab = builder.build();
    lab.put("raw/20200102-000000000.parquet", file_of_rows(&columns, &changes));
    run(&lab);
    assert_eq!(rows(&lab), ["1 a 02 deleted 02 08:00"]);
    let lab = builder.build();
    for (number, change) in changes.iter().enumerate().rev() {
        let name = format!("raw/20200102-00000000{number}.parquet");
        lab.put(&name, file_of_rows(&columns, std::slice::from_ref(change)));
        run(&lab);
    }
    assert_eq!(rows(&lab), ["1 a 02 deleted 02 08:00"]);
    lab.assert_verified();
}

#[test]
fn an_aggregate_by_the_day_of_the_delete_follows_deletes_that_come_late() {
    let per_day = "SELECT CAST(_deleted_at AS DATE) AS dt, COUNT(*) AS n FROM curated
        WHERE _deleted_at >= $start_date AND _deleted_at < $end_date GROUP BY 1";
    let lab = builder().aggregate("deletes", per_day).build();
    let counts = || lab.lines("lake/deletes", ["dt", "n"]);
    let files: [(&str, &str, &[[&str; 4]]); 3] = [
        ("02", "20200102-000000000", &[["I", "02 10:00", "1", "a"], ["I", "02 10:00", "2", "a"]]),
        ("06", "20200106-000000000", &[["D", "05 10:00", "1", "-"], ["D", "05 10:00", "2", "-"]]),
        ("08", "20200108-000000000", &[["D", "03 10:00", "1", "-"], ["U", "07 10:00", "2", "b"]]),
    ];
    for (day, name, rows) in files {
        put(&lab, name, rows);
        let next = day.parse::<i64>().expect("a day") + 1;
        lab.run(&format!("2020-01-{day}"), &format!("2020-01-{next:02}")).expect("a run");
    }
    assert_eq!(counts(), ["2020-01-03 1"]);
    lab.assert_verified();
}

#[test]
fn deletes_of_their_own_do_not_count_as_those_of_a_load() {
    let builder = builder().set("raw.full_load_at", "name").set("raw.full_load", "*/full/*");
    let builder = builder.set("raw.commit_time", "ts").set("raw.full_load_max_deletes", "50%");
    let mut lab = builder.build();
    lab.now = crate::support::now() + chrono::TimeDelta::days(1);
    let ids = ["1", "2", "3", "4"];
    for day in ["02", "04"] {
        let time = format!("{day} 00:00");
        let rows = ids.map(|id| ["I", time.as_str(), id, "x"]);
        put(&lab, &format!("full/202001{day}-000000000"), &rows);
        if day == "04" {
            put(&lab, "20200105-000000000", &ids.map(|id| ["D", "05 10:00", id, "-"]));
        }
        run(&lab);
    }
    assert!(rows(&lab).iter().all(|row| row.ends_with("x 04 deleted 05 10:00")));
}

#[test]
fn what_a_table_with_deleted_rows_cannot_have_is_refused() {
    let put_one = |lab: &Lab| put(lab, "20200102-000000000", &[["I", "02 10:00", "1", "a"]]);
    let named = "SELECT CAST(id AS BIGINT) AS id, tier AS \"_Deleted\", event_dt FROM latest";
    let lab = builder().curated_sql(named).build();
    put_one(&lab);
    let error = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    assert_refused(error, 2, "returns the column `_Deleted`", "another name");
    for (key, value, message) in [
        ("keep", toml::Value::from("history"), "`keep_deleted` is for keep = \"latest\""),
        ("key", Vec::<String>::new().into(), "`key` is missing, with keep_deleted"),
        ("curated.partition_by", vec!["_deleted"].into(), "names `_deleted`, with keep_deleted"),
        ("raw.delete_when", "tier = 'x'".into(), "`raw.delete_when` cannot be used"),
    ] {
        let lab = builder().set(key, value).build();
        let output = lab.program_for("run", "2020-01-01", "2020-02-01").run();
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(output.stderr.contains(message), "{}", output.stderr);
    }
    let lab = builder().aggregate("a", FLOWS).build();
    let output = lab.program_for("run", "2020-01-01", "2020-02-01").run();
    assert!(output.stderr.contains("reads `balance`, with keep_deleted"), "{}", output.stderr);
    let lab = builder().build();
    put_one(&lab);
    run(&lab);
    let without = ["keep_deleted=false"];
    let changed =
        lab.run_with(Task::Run, "2020-01-01", "2020-02-01", &without).expect_err("refused");
    assert!(changed.to_string().contains("`keep_deleted`"), "{changed}");
    lab.rebuild(false, &without).expect("rebuilt");
    assert!(!lab.table("lake/curated")[0].contains_key("_deleted"));
}
