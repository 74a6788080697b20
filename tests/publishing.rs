//! What a run leaves in the curated folder: partitions and their names, files and their order, what
//! later runs and crashes do to them, and that a small memory limit gives the same tables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Int32Array, Int64Array,
    TimestampMicrosecondArray,
};
use bytes::Bytes;

use crate::support::{
    FIRST_DAY_US, Lab, LabBuilder, PLACES, Place, Report, STATE, assert_refused, batches_of, cells,
    day, integers, optional_texts, raw_file, rows_of, staging_name, texts, timestamps,
};

const SQL: &str = "SELECT id, v, kind, event_dt FROM latest";

/// A table with a partition for each day.
fn by_day(place: Place) -> LabBuilder {
    Lab::builder().place(place).partition_by(&["event_dt"]).curated_sql(SQL)
}

/// A table with a partition for each day and kind.
fn by_day_and_kind(place: Place) -> LabBuilder {
    by_day(place).partition_by(&["event_dt", "kind"])
}

/// A change: operation, key, kind, value, day of January 2020.
type Change<'a> = (&'a str, i64, Option<&'a str>, i64, i64);

/// Writes the file of one day, with changes of any day.
fn put(lab: &Lab, file_day: i64, changes: &[Change]) {
    let changes = || changes.iter();
    let columns = vec![
        ("Op", texts(changes().map(|change| change.0))),
        ("id", integers(changes().map(|change| change.1))),
        ("kind", optional_texts(changes().map(|change| change.2))),
        ("v", integers(changes().map(|change| change.3))),
        ("ts", texts(changes().map(|change| format!("{} 12:00:00", day(change.4))))),
    ];
    lab.put_columns(&raw_file(file_day), columns);
}

/// A run of the days up to the end.
fn run(lab: &Lab, end: i64, set: &[&str]) -> Report {
    lab.run_days_with(1, end, set)
}

/// The files of the curated table.
fn files(lab: &Lab) -> BTreeMap<String, Bytes> {
    lab.file_contents("lake/curated")
}

#[test]
fn a_partition_value_is_escaped_as_hive_does_and_null_has_its_own_partition() {
    let value = "A/B: c%d=";
    for place in PLACES {
        let lab = by_day_and_kind(place).build();
        put(
            &lab,
            1,
            &[
                ("I", 1, Some(value), 10, 1),
                ("I", 2, None, 20, 1),
                ("I", 3, Some(""), 30, 1),
                ("I", 4, Some("é 日本"), 40, 2),
                ("I", 5, Some("%41"), 50, 2),
            ],
        );
        for written in [(5, 4), (0, 0)] {
            let report = run(&lab, 2, &[]);
            assert_eq!((report.rows_written, report.partitions_written), written);
            assert_eq!(
                lab.list("lake/curated"),
                [
                    "event_dt=2020-01-01/kind=A%2FB%3A c%25d%3D/part-c00000001-00000.snappy.parquet",
                    "event_dt=2020-01-01/kind=__HIVE_DEFAULT_PARTITION__/part-c00000001-00000.snappy.parquet",
                    "event_dt=2020-01-02/kind=%2541/part-c00000001-00000.snappy.parquet",
                    "event_dt=2020-01-02/kind=é 日本/part-c00000001-00000.snappy.parquet",
                ]
            );
        }
        if place == Place::Local {
            // The names on disk are the objects' names.
            let folder = lab.folder.path().join("lake/curated/event_dt=2020-01-01");
            assert!(folder.join("kind=A%2FB%3A c%25d%3D").is_dir());
            for engine in ["duckdb", "polars"] {
                let read = lab.read_with(engine, "lake/curated", None);
                let (columns, rows) = read.expect("read");
                let names: Vec<String> = columns.into_iter().map(|column| column.0).collect();
                assert_eq!(names, ["id", "v", "event_dt", "kind"], "{engine}");
                let day = |day| Some(format!("2020-01-0{day}"));
                let some = |text: &str| Some(text.to_string());
                assert_eq!(
                    rows,
                    [
                        vec![some("1"), some("10"), day(1), some(value)],
                        vec![some("2"), some("20"), day(1), None],
                        vec![some("3"), some("30"), day(1), None],
                        vec![some("4"), some("40"), day(2), some("é 日本")],
                        vec![some("5"), some("50"), day(2), some("%41")],
                    ],
                    "{engine}"
                );
            }
        }
    }
}

#[test]
fn every_type_partitions_and_other_engines_read_the_values() {
    let decimals = Decimal128Array::from(vec![Some(-150), None, Some(5)])
        .with_precision_and_scale(9, 2)
        .expect("decimals");
    // Per type: a column, the folder of its first row, and the value as other engines show it.
    let cases: Vec<(ArrayRef, &str, &str)> = vec![
        (optional_texts([Some("A/B: c%d="), None, Some("x")]), "A%2FB%3A c%25d%3D", "A/B: c%d="),
        (Arc::new(Int32Array::from(vec![Some(-7), None, Some(0)])), "-7", "-7"),
        (
            Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(0)])),
            "-9223372036854775808",
            "-9223372036854775808",
        ),
        (Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])), "true", "true"),
        (Arc::new(decimals), "-1.50", "-1.5"),
        (Arc::new(Date32Array::from(vec![Some(-1), None, Some(0)])), "1969-12-31", "1969-12-31"),
        (
            Arc::new(TimestampMicrosecondArray::from(vec![Some(1_500_000), None, Some(0)])),
            "1970-01-01 00%3A00%3A01.500",
            "1970-01-01 00:00:01.5",
        ),
        (
            Arc::new(
                TimestampMicrosecondArray::from(vec![Some(1_000_000), None, Some(0)])
                    .with_timezone("UTC"),
            ),
            "1970-01-01 00%3A00%3A01",
            "1970-01-01 00:00:01",
        ),
    ];
    for place in PLACES {
        for (column, folder, value) in &cases {
            let name = column.data_type().to_string();
            let lab =
                by_day(place).partition_by(&["p"]).curated_sql("SELECT id, p FROM latest").build();
            let columns = vec![
                ("id", integers([1, 2, 3])),
                ("p", Arc::clone(column)),
                ("ts", texts(["2020-01-01"; 3])),
            ];
            lab.put_columns(&raw_file(1), columns);
            run(&lab, 2, &[]);
            let files = lab.list("lake/curated");
            assert_eq!(files.len(), 3, "{name}: {files:?}");
            for expected in [folder, "__HIVE_DEFAULT_PARTITION__"] {
                let path = format!("p={expected}/part-c00000001-00000.snappy.parquet");
                assert!(files.contains(&path), "{name}: {files:?}");
            }
            if place == Place::Local {
                for engine in ["duckdb", "polars"] {
                    let (_, rows) = lab.read_with(engine, "lake/curated", None).expect("read");
                    let ids: Vec<_> = rows.iter().map(|row| row[0].as_deref()).collect();
                    assert_eq!(ids, [Some("1"), Some("2"), Some("3")], "{engine} {name}");
                    assert_eq!(rows[1][1], None, "{engine} {name}");
                    let read = rows[0][1].clone().expect("a value");
                    // Engines take the type from the folder's name, and may drop zeros at the end of a fraction.
                    let read = match read.split_once('.') {
                        Some((_, fraction)) if !fraction.contains(':') => {
                            read.trim_end_matches('0').to_string()
                        }
                        _ => read,
                    };
                    assert_eq!(read, *value, "{engine} {name}");
                }
            }
            // The second run finds its partitions again.
            let again = run(&lab, 2, &[]);
            assert_eq!(again.partitions_removed, 0, "{name}");
            assert_eq!(lab.list("lake/curated"), files, "{name}");
        }
    }
}

fn ids_in_file_order(bytes: Bytes) -> Vec<i64> {
    let rows = rows_of(bytes).into_iter();
    rows.map(|row| row["id"].parse().expect("an id")).collect()
}

#[test]
fn a_large_partition_gets_several_files_and_one_again_without_a_trace() {
    for place in PLACES {
        let lab = by_day(place).build();
        let many: Vec<Change> = (0..40_000).map(|n| ("I", n, None, n * 31, 1)).collect();
        put(&lab, 1, &many);
        put(&lab, 2, &[("I", 50_000, None, 1, 2)]);
        let small = ["curated.file_bytes=50kB"];
        run(&lab, 3, &small);
        let rows = lab.table("lake/curated");
        assert_eq!(rows.len(), 40_001);
        let names = |commits: [u64; 2], count: usize| -> Vec<String> {
            (0..count)
                .map(|n| {
                    format!("event_dt=2020-01-01/part-c{:08}-{n:05}.snappy.parquet", commits[0])
                })
                .chain([format!(
                    "event_dt=2020-01-02/part-c{:08}-00000.snappy.parquet",
                    commits[1]
                )])
                .collect()
        };
        let first = lab.list("lake/curated");
        let parts = first.len() - 1;
        assert!((3..10).contains(&parts), "{first:?}");
        assert_eq!(first, names([1, 1], parts));
        let files = files(&lab).into_values().take(parts);
        let ids = files.flat_map(ids_in_file_order);
        assert!(ids.eq(0..40_000), "the files follow one another");

        // One change replaces the files of its partition, and no others. Its row comes after the others.
        put(&lab, 3, &[("U", 7, None, 0, 1)]);
        run(&lab, 4, &small);
        assert_eq!(lab.list("lake/curated"), names([2, 1], parts + 1));
        put(&lab, 4, &[("U", 7, None, 7 * 31, 1), ("U", 50_000, None, 1, 2)]);
        run(&lab, 5, &[]);
        assert_eq!(lab.list("lake/curated"), names([3, 1], 1));
        assert_eq!(lab.table("lake/curated"), rows);
        put(&lab, 5, &[("U", 7, None, 7 * 31, 1)]);
        run(&lab, 6, &small);
        assert_eq!(lab.list("lake/curated"), names([4, 1], parts + 1));
        assert_eq!(lab.table("lake/curated"), rows);
    }
}

#[test]
fn a_partition_left_without_rows_disappears_with_its_folder() {
    for place in PLACES {
        let lab = by_day_and_kind(place).build();
        put(
            &lab,
            1,
            &[("I", 1, Some("a"), 1, 1), ("I", 2, Some("b"), 1, 1), ("I", 3, Some("c"), 1, 2)],
        );
        let report = run(&lab, 2, &[]);
        assert_eq!((report.partitions_written, report.partitions_removed), (3, 0));
        // One row moves to another kind, one to another day, and one is deleted.
        put(&lab, 3, &[("U", 1, Some("b"), 2, 1), ("U", 2, Some("b"), 2, 3), ("D", 3, None, 0, 3)]);
        let report = run(&lab, 4, &[]);
        assert_eq!((report.partitions_written, report.partitions_removed), (2, 2));
        assert_eq!(
            lab.list("lake/curated"),
            [
                "event_dt=2020-01-01/kind=b/part-c00000001-00000.snappy.parquet",
                "event_dt=2020-01-03/kind=b/part-c00000002-00000.snappy.parquet",
            ]
        );
        assert_eq!(
            cells(&lab.table("lake/curated"), ["event_dt", "kind", "id"]),
            [["2020-01-01", "b", "1"], ["2020-01-03", "b", "2"]]
        );
        if place == Place::Local {
            let curated = lab.folder.path().join("lake/curated");
            assert!(!curated.join("event_dt=2020-01-02").exists());
            assert!(!curated.join("event_dt=2020-01-01/kind=a").exists());
        }
        // The table can lose all its rows.
        put(&lab, 4, &[("D", 1, None, 0, 4), ("D", 2, None, 0, 4)]);
        let report = run(&lab, 5, &[]);
        assert_eq!((report.partitions_written, report.partitions_removed), (0, 2));
        assert_eq!(lab.list("lake/curated"), [""; 0]);
    }
}

#[test]
fn leftovers_of_a_crashed_run_are_removed_and_foreign_files_are_not() {
    for place in PLACES {
        let lab = by_day(place).build();
        put(&lab, 1, &[("I", 1, None, 1, 1), ("I", 2, None, 1, 2)]);
        run(&lab, 2, &[]);
        let clean = files(&lab);
        let strays = [
            "curated/event_dt=2020-01-01/part-c00000001-00007.snappy.parquet",
            "curated/event_dt=2031-01-01/part-c00000001-00000.snappy.parquet",
            "curated/part-c00000000-00003.snappy.parquet",
            "_glueless/lab/staging/{own}/00000000000000000002-older-run/curated/000000.parquet",
            "_glueless/lab/versions/kind=version/00000000000000000002-older-run-00.parquet",
            "_glueless/lab/publishing/00000000000000000002-older-run",
        ];
        // Another run may be about to make these.
        let later = [
            "curated/event_dt=2020-01-01/part-c00000003-00000.snappy.parquet",
            "_glueless/lab/staging/{own}/00000000000000000003-other-run/curated/000000.parquet",
            "_glueless/lab/versions/kind=version/00000000000000000003-other-run-00.parquet",
            "_glueless/lab/publishing/00000000000000000003-other-run",
        ];
        let foreign = [
            "curated/event_dt=2020-01-01/data.parquet",
            "curated/event_dt=2020-01-01/part-1.parquet",
            "curated/part-00003.snappy.parquet",
            "curated/notes.txt",
        ];
        let own = staging_name(&format!("{}/{STATE}", lab.base));
        let strays = strays.map(|name| name.replace("{own}", &own));
        let later = later.map(|name| name.replace("{own}", &own));
        let foreign = foreign.map(String::from);
        for name in strays.iter().chain(&foreign).chain(&later) {
            lab.put(&format!("lake/{name}"), "left");
        }
        // What a crash of the local store leaves. An object of that store cannot have such a name.
        let leftover =
            "curated/event_dt=2020-01-01/part-c00000001-00000.snappy.parquet#1".to_string();
        let lake = lab.folder.path().join("lake");
        match place {
            Place::Local => std::fs::write(lake.join(&leftover), b"left").expect("written"),
            Place::S3 => lab.put(&format!("lake/{leftover}"), "left"),
        }
        run(&lab, 2, &[]);
        let left = lab.list_all("lake");
        for name in strays.iter().chain([&leftover]) {
            assert!(!left.iter().any(|other| other == name), "{name} in {left:?}");
            assert!(!lake.join(name).exists(), "{name}");
        }
        for name in foreign.iter().chain(&later) {
            assert_eq!(lab.get(&format!("lake/{name}")), "left", "{name}");
            lab.remove(&format!("lake/{name}"));
        }
        assert_eq!(files(&lab), clean);
        if place == Place::Local {
            assert!(!lake.join("curated/event_dt=2031-01-01").exists());
            let staging = lake.join("_glueless/lab/staging").join(&own);
            assert!(!staging.join("00000000000000000002-older-run").exists());
        }
    }
}

#[test]
fn running_twice_changes_no_file() {
    for place in PLACES {
        for keep in ["latest", "latest-per-day"] {
            let lab = by_day_and_kind(place).keep(keep).build();
            for day in 1..4 {
                let changes: Vec<Change> = (0..50)
                    .map(|n| {
                        let op = if n % 7 == 0 { "D" } else { "U" };
                        let kind = [None, Some("a"), Some("b/c")][((n + day) % 3) as usize];
                        (op, n % 20, kind, n, day)
                    })
                    .collect();
                put(&lab, day, &changes);
            }
            let first = run(&lab, 4, &[]);
            assert_eq!(first.rows_stale, 0);
            let before = files(&lab);
            assert!(before.len() >= 3);
            for _ in 0..2 {
                let again = run(&lab, 4, &[]);
                assert_eq!(files(&lab), before);
                assert_eq!((again.rows_written, again.partitions_removed), (0, 0));
                assert_eq!(
                    (again.rows_stale, again.rows_superseded, again.ties),
                    (first.rows_latest + first.rows_deleted, first.rows_read, first.ties)
                );
            }
        }
    }
}

#[test]
fn a_table_without_partition_columns_is_one_file() {
    for place in PLACES {
        let lab = by_day(place).partition_by(&[]).build();
        put(&lab, 1, &[("I", 2, Some("x"), 1, 1), ("I", 1, None, 1, 2)]);
        for written in [1, 0] {
            let report = run(&lab, 2, &[]);
            assert_eq!((report.partitions_written, report.partitions_removed), (written, 0));
            assert_eq!(lab.list("lake/curated"), ["part-c00000001-00000.snappy.parquet"]);
            assert_eq!(
                cells(&lab.table("lake/curated"), ["id", "kind", "event_dt"]),
                [["1", "-", "2020-01-02"], ["2", "x", "2020-01-01"]]
            );
        }
        put(&lab, 2, &[("D", 1, None, 0, 3), ("D", 2, None, 0, 3)]);
        run(&lab, 3, &[]);
        assert_eq!(lab.list("lake/curated"), [""; 0]);
    }
}

/// A change: operation, key, kind, a text that may be a number, and a divisor.
type Note<'a> = (&'a str, i64, Option<&'a str>, &'a str, i64);

#[test]
fn rows_that_the_query_filters_out_leave_the_table_and_are_not_computed() {
    for place in PLACES {
        let lab = by_day(place)
            .curated_sql(
                "WITH numbers AS (SELECT id, event_dt, note, 100 / v AS share FROM latest WHERE kind = 'num' AND v <> 0)
                 SELECT id, CAST(note AS INT) AS n, share, event_dt FROM numbers",
            )
            .build();
        let put = |file_day: i64, changes: &[Note]| {
            let changes = || changes.iter();
            let time = format!("{} 00:00:00", day(file_day));
            let columns = vec![
                ("Op", texts(changes().map(|change| change.0))),
                ("id", integers(changes().map(|change| change.1))),
                ("kind", optional_texts(changes().map(|change| change.2))),
                ("note", texts(changes().map(|change| change.3))),
                ("v", integers(changes().map(|change| change.4))),
                ("ts", texts(changes().map(|_| &time))),
            ];
            lab.put_columns(&raw_file(file_day), columns);
        };
        put(
            1,
            &[
                ("I", 1, Some("num"), "11", 5),
                ("I", 2, Some("num"), "12", 4),
                ("I", 3, Some("text"), "not a number", 0),
                ("I", 4, None, "not a number", 0),
                ("I", 5, Some("num"), "15", 1),
                ("I", 6, Some("num"), "not a number", 0),
            ],
        );
        let report = run(&lab, 2, &[]);
        assert_eq!((report.rows_latest, report.rows_deleted), (3, 3));
        assert_eq!(
            cells(&lab.table("lake/curated"), ["id", "n", "share"]),
            [["1", "11", "20"], ["2", "12", "25"], ["5", "15", "100"]]
        );
        // A row leaves the table when its last change is filtered out or deleted.
        put(
            2,
            &[
                ("U", 1, Some("text"), "not a number", 0),
                ("D", 2, Some("num"), "not a number", 0),
                ("U", 3, Some("num"), "13", 2),
            ],
        );
        let report = run(&lab, 3, &[]);
        assert_eq!((report.rows_latest, report.rows_deleted), (1, 2));
        assert_eq!(
            cells(&lab.table("lake/curated"), ["event_dt", "id", "n", "share"]),
            [["2020-01-01", "5", "15", "100"], ["2020-01-02", "3", "13", "50"]]
        );
        // A row that the table would hold is computed, and its failure stops the run.
        put(3, &[("I", 7, Some("num"), "not a number", 1)]);
        let before = files(&lab);
        let error = lab.run("2020-01-01", "2020-01-04").expect_err("refused");
        assert_eq!(error.kind.exit_code(), 65);
        assert_eq!(files(&lab), before);
    }
}

#[test]
fn latest_per_day_keeps_earlier_days_and_a_delete_ends_its_own_day_only() {
    for place in PLACES {
        let lab = by_day(place).keep("latest-per-day").build();
        put(&lab, 1, &[("I", 1, Some("a"), 1, 1), ("U", 1, Some("b"), 2, 1), ("I", 2, None, 1, 1)]);
        put(&lab, 2, &[("U", 1, Some("c"), 3, 2), ("U", 2, None, 2, 2)]);
        run(&lab, 3, &[]);
        put(&lab, 3, &[("D", 1, None, 0, 2), ("D", 2, None, 0, 3)]);
        let report = run(&lab, 4, &[]);
        assert_eq!((report.rows_latest, report.rows_deleted), (0, 2));
        assert_eq!(
            cells(&lab.table("lake/curated"), ["event_dt", "id", "kind", "v"]),
            [
                ["2020-01-01", "1", "b", "2"],
                ["2020-01-01", "2", "-", "1"],
                ["2020-01-02", "2", "-", "2"],
            ]
        );
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the watcher has a thread of its own")]
fn a_run_under_a_small_memory_limit_spills_and_gives_the_same_table() {
    let lab = by_day(Place::Local).curated_sql("SELECT id, note, v, event_dt FROM latest").build();
    let rows = 400_000i64;
    let keys = rows * 3 / 4;
    let key = |n: i64| {
        format!(
            "customer-{:032x}",
            (n as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        )
    };
    for file in 0..2 {
        let numbers = || (0..rows).filter(move |n| n % 2 == file);
        let columns = vec![
            ("id", texts(numbers().map(|n| key(n % keys)))),
            ("note", texts(numbers().map(|n| format!("{:0100}", n * 7919)))),
            ("v", integers(numbers())),
            ("ts", timestamps(numbers().map(|n| FIRST_DAY_US + n * 200_000))),
        ];
        lab.put_columns(&raw_file(file + 1), columns);
    }
    let run = |lab: &Lab, memory: &str| {
        let spill = tempfile::tempdir().expect("a folder");
        let done = AtomicBool::new(false);
        let (report, spilled) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(bytes_below(spill.path()));
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                most
            });
            let memory = format!("limits.memory={memory}");
            let spill_dir = spill.path().to_path_buf();
            let report = lab.run_spilling_to(spill_dir, &day(1), &day(3), &[&memory]);
            done.store(true, Ordering::Relaxed);
            (report, watcher.join().expect("watched"))
        });
        let report = report.unwrap_or_else(|error| panic!("{memory}: {error}"));
        assert_eq!((report.rows_read, report.rows_latest), (rows as u64, keys as u64));
        assert_eq!(bytes_below(spill.path()), 0, "nothing is left behind");
        let mut digest = Vec::new();
        for (name, bytes) in files(lab) {
            for batch in batches_of(bytes) {
                let (ids, v) = (batch.column(0).clone(), batch.column(2).clone());
                digest.push((name.clone(), ids, v, batch.column(1).clone()));
            }
        }
        (spilled, digest)
    };
    let (spilled, small) = run(&lab, "128MB");
    assert!(spilled > 1_000_000, "{spilled} bytes were spilled");
    lab.remove_all("lake");
    // Pass one spills more than the first limit, the rows of the table more than the second.
    for (most, twice) in [("500kB", 1_000_000), ("15MB", 30_000_000)] {
        assert!(spilled > twice, "{spilled} bytes were spilled");
        let set = ["limits.memory=128MB", &format!("limits.spill_bytes_max={most}")];
        let spill = tempfile::tempdir().expect("a folder");
        let spill_dir = spill.path().to_path_buf();
        let refused = lab.run_spilling_to(spill_dir, &day(1), &day(3), &set);
        assert_refused(
            refused.expect_err("too much"),
            2,
            "the run needs more spill space than `limits.spill_bytes_max` allows",
            "raise it, raise `limits.memory`, or run smaller windows",
        );
        assert_eq!(bytes_below(spill.path()), 0, "nothing is left behind");
        assert_eq!(lab.list_all("lake/curated"), Vec::<String>::new());
    }
    let (spilled, large) = run(&lab, "1GB");
    assert_eq!(spilled, 0);
    assert!(small == large, "the tables differ");
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
            _ => entry.metadata().map_or(0, |metadata| metadata.len()),
        })
        .sum()
}

/// A late change to old days costs what these days cost: only their files, of the table and of the
/// versions, are read and written.
#[test]
fn a_run_that_touches_three_old_days_reads_and_writes_these_only() {
    let lab = by_day(Place::Local).keep("latest-per-day").build();
    for day in 1..=12 {
        let keys: Vec<Change> = (0..10).map(|key| ("I", key, Some("a"), 1, day)).collect();
        put(&lab, day, &keys);
        lab.run_days(day, day + 1);
    }
    let versions = lab.list(&format!("{STATE}/versions"));
    put(&lab, 13, &[("U", 3, Some("a"), 2, 2), ("U", 4, Some("a"), 2, 5), ("D", 5, None, 0, 9)]);
    let (recorded, requests) = lab.recorded();
    let report = recorded.run_days(13, 14);
    assert_eq!((report.rows_written, report.partitions_written), (29, 3));

    let seen = requests.seen();
    let of_verb = |verb: &str, of: &dyn Fn(&str) -> bool| -> BTreeSet<String> {
        let paths = seen.iter().filter(|(found, path)| *found == verb && of(path));
        let names = paths.map(|(_, path)| path.rsplit_once("/lake/").map_or("", |path| path.1));
        names.map(str::to_string).collect()
    };
    let file_of_day =
        |day| format!("curated/event_dt=2020-01-{day:02}/part-c{day:08}-00000.snappy.parquet");
    // In two of the days a tenth of the rows changed.
    let tenth = |day: u32| lab.get(&format!("lake/{}", file_of_day(day))).len() as u64 / 10;
    assert_eq!(report.bytes_changed, tenth(2) + tenth(5));
    let touched: BTreeSet<String> = [2, 5, 9].map(file_of_day).into();
    assert_eq!(
        of_verb("GET", &|path| path.contains("/curated/") && path.contains("part-")),
        touched
    );
    let staged = of_verb("RENAME", &|path| path.contains("/staging/"));
    assert_eq!(staged.len(), 3);
    // The versions of a day were written by the commit of that day.
    let commit_of = |path: &String| -> u64 {
        path.rsplit_once("/").expect("a name").1[..20].parse().expect("a commit")
    };
    let read: BTreeSet<u64> =
        of_verb("GET", &|path| path.contains("kind=version")).iter().map(commit_of).collect();
    let all: BTreeSet<u64> =
        versions.iter().filter(|path| path.starts_with("kind=version")).map(commit_of).collect();
    assert_eq!(all.len(), 12);
    assert_eq!(read, [2, 5, 9].into());
}
