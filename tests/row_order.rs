//! The order of rows in the files of a curated table: that of the fold, or of `curated.sort_by`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, UInt64Array};
use bytes::Bytes;

use crate::support::{
    Change, FIRST_DAY_US, Lab, LabBuilder, PLACES, Place, Task, assert_refused, day, integers,
    raw_file, rows_of, texts, timestamps,
};

fn builder(place: Place) -> LabBuilder {
    Lab::builder().place(place).set("raw.event_time", "event").partition_by(&["cat"])
}

/// The rows of the table's files in their order: partition, key and value.
fn stored(lab: &Lab) -> Vec<String> {
    let files = lab.file_contents("lake/curated").into_iter();
    let rows = files.flat_map(|(path, bytes)| {
        let folder = path.split('/').next().unwrap_or_default().replace("cat=", "");
        rows_of(bytes).into_iter().map(move |row| format!("{folder} {} {}", row["id"], row["v"]))
    });
    rows.collect()
}

#[test]
fn rows_stay_where_they_are_and_new_ones_follow_in_the_order_of_files_and_rows() {
    for place in PLACES {
        for format in ["parquet", "delta"] {
            let lab = builder(place).set("curated.format", format).build();
            lab.put_day(1, &[("I", 9, "a"), ("I", 4, "b"), ("I", 7, "a"), ("I", 1, "a")]);
            lab.put_day(2, &[("I", 3, "a"), ("U", 9, "a"), ("I", 8, "b")]);
            lab.run_days(1, 3);
            assert_eq!(stored(&lab), ["a 7 1", "a 1 1", "a 3 2", "a 9 2", "b 4 1", "b 8 2"]);
            // One moves to another partition, one is deleted, one changes, and one is new.
            lab.put_day(3, &[("U", 1, "b"), ("D", 3, ""), ("U", 7, "a"), ("I", 0, "a")]);
            lab.run_days(3, 4);
            assert_eq!(stored(&lab), ["a 9 2", "a 7 3", "a 0 3", "b 4 1", "b 8 2", "b 1 3"]);
            lab.run_days(1, 4);
            assert_eq!(stored(&lab).len(), 6);
            lab.rebuild(false, &[]).expect("a rebuild");
            assert_eq!(stored(&lab), ["a 9 2", "a 7 3", "a 0 3", "b 4 1", "b 8 2", "b 1 3"]);
            lab.assert_verified();
        }
    }
}

#[test]
fn each_partition_that_a_run_changes_is_sorted_on_request() {
    for place in PLACES {
        let lab = builder(place).build();
        lab.put_day(1, &[("I", 9, "a"), ("I", 4, "b"), ("I", 7, "a"), ("I", 5, "b")]);
        lab.run_days(1, 2);
        lab.put_day(2, &[("I", 3, "a"), ("I", 8, "a"), ("U", 9, "a")]);
        let by_id = ["curated.sort_by=[\"id\"]"];
        lab.run_days_with(2, 3, &by_id);
        assert_eq!(stored(&lab), ["a 3 2", "a 7 1", "a 8 2", "a 9 2", "b 4 1", "b 5 1"]);
        lab.put_day(3, &[("I", 6, "b"), ("I", 2, "c"), ("I", 1, "c"), ("D", 4, "")]);
        let by_value = ["curated.sort_by=[\"v\", \"id\"]"];
        lab.run_days_with(3, 4, &by_value);
        let sorted = ["a 3 2", "a 7 1", "a 8 2", "a 9 2", "b 5 1", "b 6 3", "c 1 3", "c 2 3"];
        assert_eq!(stored(&lab), sorted);
        lab.rebuild(false, &by_value).expect("a rebuild");
        let sorted = ["a 7 1", "a 3 2", "a 8 2", "a 9 2", "b 5 1", "b 6 3", "c 1 3", "c 2 3"];
        assert_eq!(stored(&lab), sorted);
        lab.assert_verified();
        for (columns, message, hint) in [
            ("[\"idd\"]", "lacks the column `idd`", "columns of the query: id, cat, v, event_dt"),
            ("[\"cat\"]", "names the partition column `cat`", "leave it out"),
            ("[\"v\", \"v\"]", "names `v` twice", ""),
        ] {
            let set = format!("curated.sort_by={columns}");
            let run = lab.run_with(Task::Run, &day(1), &day(4), &[&set]);
            assert_refused(run.expect_err("refused"), 2, message, hint);
        }
        assert_eq!(stored(&lab), sorted);
    }
}

#[test]
fn nulls_come_first_among_numbers_without_a_sign() {
    let lab = builder(Place::Local).curated_sql("SELECT id, cat, u, event_dt FROM latest").build();
    let put = |day: i64, ids: [i64; 3], numbers: [Option<u64>; 3]| {
        let columns = vec![
            ("Op", texts(["I"; 3])),
            ("id", integers(ids)),
            ("cat", texts(["a"; 3])),
            ("u", Arc::new(UInt64Array::from(numbers.to_vec())) as ArrayRef),
            ("ts", timestamps([FIRST_DAY_US + day; 3])),
            ("event", timestamps([FIRST_DAY_US; 3])),
        ];
        lab.put_columns(&raw_file(day), columns);
    };
    put(1, [1, 2, 3], [Some(0), None, Some(u64::MAX)]);
    put(2, [4, 5, 6], [Some(1), None, Some(0)]);
    let by_number = ["curated.sort_by=[\"u\"]"];
    lab.run_days_with(1, 2, &by_number);
    lab.run_days_with(2, 3, &by_number);
    let files = lab.file_contents("lake/curated").into_values();
    let ids: Vec<String> = files.flat_map(rows_of).map(|row| row["id"].clone()).collect();
    assert_eq!(ids, ["2", "5", "1", "6", "4", "3"]);
}

/// A table's files without their footers, in which the attempt's name is.
fn data(lab: &Lab) -> BTreeMap<String, Bytes> {
    let files = lab.file_contents("lake/curated").into_iter();
    let without_footer = |bytes: Bytes| {
        let end = bytes.len() - 8;
        let footer = u32::from_le_bytes(bytes[end..end + 4].try_into().expect("four bytes"));
        bytes.slice(..end - footer as usize)
    };
    files.map(|(path, bytes)| (path, without_footer(bytes))).collect()
}

#[test]
fn the_files_are_the_same_for_any_number_of_threads_and_any_memory() {
    for sort_by in ["[]", "[\"v\", \"id\"]"] {
        let mut expected: Option<BTreeMap<String, Bytes>> = None;
        for (threads, memory) in [(1, "1GB"), (2, "1GB"), (8, "1GB"), (2, "128MB"), (8, "128MB")] {
            let wide =
                "SELECT id, cat, v, REPEAT(CAST(v AS VARCHAR), 500) AS note, event_dt FROM latest";
            let lab = builder(Place::Local).curated_sql(wide).build();
            for file in 1..=6 {
                let rows = (0..25_000).map(|row| {
                    let id = (row * 7_919 + file * 104_729) % 60_000;
                    Change {
                        op: if row % 13 == 0 { "D" } else { "U" },
                        id,
                        cat: ["a", "b", "c"][((id + file / 4) % 3) as usize],
                        v: row % 1_000,
                        us: row,
                        event_us: 0,
                    }
                });
                lab.put_changes(&raw_file(file), file, &rows.collect::<Vec<_>>());
            }
            for (first, end) in [(1, 4), (4, 6), (6, 7)] {
                let set = [
                    format!("limits.threads={threads}"),
                    format!("limits.memory={memory}"),
                    format!("curated.sort_by={sort_by}"),
                    "curated.file_bytes=20kB".into(),
                ];
                let curate = || {
                    let program = lab.program_for("curate", &day(first), &day(end));
                    program.set(&set.each_ref().map(String::as_str))
                };
                if (first, memory) == (1, "128MB") {
                    // What the table's rows take is more than memory has.
                    let refused = curate().set(&["limits.spill_bytes_max=1MB"]).run();
                    assert_eq!(refused.code, 2, "{}", refused.stderr);
                    assert!(refused.stderr.contains("spill_bytes_max"), "{}", refused.stderr);
                }
                let program = curate();
                program.succeed();
            }
            let found = data(&lab);
            assert!(found.len() > 3, "{:?}", found.keys());
            let same = expected.get_or_insert_with(|| found.clone());
            assert!(found == *same, "{threads} threads, {memory}, sorted by {sort_by}");
        }
    }
}
