//! Columns whose types change: those that have nothing but nulls in a file take the type of the
//! others, and those that the pipeline does not use are not looked at.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array,
    DictionaryArray, DurationMicrosecondArray, FixedSizeBinaryArray, Float64Array, Int32Array,
    Int64Array, LargeStringArray, ListArray, MapBuilder, NullArray, StringBuilder, StructArray,
    Time64MicrosecondArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::{Field, Int32Type};

use crate::support::{
    COUNT_PER_DAY, DAY_US, FIRST_DAY_US, Lab, LabBuilder, PLACES, Place, assert_refused,
    batches_of, integers, optional_texts, raw_file, texts, timestamps,
};

/// A column of nothing but nulls, whose Parquet type is null.
fn nulls(rows: usize) -> ArrayRef {
    Arc::new(NullArray::new(rows))
}

/// A change per value of `note`, with the keys from `id` on, on a day of January 2020.
fn put_note(lab: &Lab, day: i64, id: i64, note: ArrayRef) {
    put(lab, day, id, vec![("note", note)]);
}

fn put(lab: &Lab, day: i64, id: i64, more: Vec<(&str, ArrayRef)>) {
    let rows = more[0].1.len() as i64;
    let start = FIRST_DAY_US + (day - 1) * DAY_US;
    let mut columns = vec![
        ("Op", texts(vec!["I"; rows as usize])),
        ("ts", timestamps(start..start + rows)),
        ("id", integers(id..id + rows)),
    ];
    columns.extend(more);
    lab.put_columns(&raw_file(day), columns);
}

fn note_builder(format: &str) -> LabBuilder {
    Lab::builder()
        .format(format)
        .partition_by(&["event_dt"])
        .curated_sql("SELECT id, note, event_dt FROM latest")
}

/// The types of a column in the files of the curated table.
fn types_in_files(lab: &Lab, column: &str) -> BTreeSet<String> {
    let mut types = BTreeSet::new();
    for file in lab.file_contents("lake/curated").into_values() {
        for batch in batches_of(file) {
            types.insert(batch.column_by_name(column).expect("a column").data_type().to_string());
        }
    }
    types
}

#[test]
fn a_column_of_only_nulls_in_some_files_takes_the_type_of_the_others_in_any_order_of_windows() {
    let lists: ArrayRef =
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(7)])]));
    let decimals = Decimal128Array::from(vec![Some(150)]).with_precision_and_scale(9, 2);
    let values: Vec<(&str, ArrayRef)> = vec![
        ("x", texts(["x"])),
        ("5", integers([5])),
        ("1.50", Arc::new(decimals.expect("decimals"))),
        ("1970-01-02", Arc::new(Date32Array::from(vec![1]))),
        ("1970-01-01 00:00:01", timestamps([1_000_000])),
        ("true", Arc::new(BooleanArray::from(vec![true]))),
        ("[7]", lists),
    ];
    for (text, value) in values {
        for format in ["parquet", "delta"] {
            let kind = value.data_type();
            if format == "delta" && kind.is_nested() {
                continue;
            }
            let builder = note_builder(format);
            let put_all = |lab: &Lab| {
                put_note(lab, 1, 1, nulls(1));
                put_note(lab, 2, 2, Arc::clone(&value));
                put_note(lab, 3, 3, nulls(1));
                put_note(lab, 4, 4, new_null_array(kind, 1));
            };
            let whole = builder.build();
            put_all(&whole);
            whole.run_days(1, 5);
            let expected = ["1 -".into(), format!("2 {text}"), "3 -".into(), "4 -".into()];
            let found = whole.lines("lake/curated", ["id", "note"]);
            // The times of Delta tables have a zone.
            let found: Vec<String> =
                found.iter().map(|line| line.replace('T', " ").replace('Z', "")).collect();
            assert_eq!(found, expected, "{kind}");
            let typed = types_in_files(&whole, "note");
            assert_eq!(typed.len(), 1, "{typed:?}");
            for order in [[1, 3, 2, 4], [2, 1, 4, 3]] {
                let lab = builder.build();
                put_all(&lab);
                for day in order {
                    // Only the window's own file.
                    lab.run_days_with(day, day + 1, &["raw.lookback=0d"]);
                    assert_eq!(types_in_files(&lab, "note").len(), 1, "{kind} {order:?}");
                }
                lab.assert_verified();
                assert_eq!(
                    lab.table("lake/curated"),
                    whole.table("lake/curated"),
                    "{kind} {order:?}"
                );
                assert_eq!(types_in_files(&lab, "note"), typed, "{kind} {order:?}");
                lab.assert_tidy();
            }
        }
    }
}

#[test]
fn a_declared_type_decides_for_a_column_of_only_nulls() {
    for place in PLACES {
        let builder = note_builder("parquet").place(place).raw_columns(&[("note", "BIGINT")]);
        let lab = builder.build();
        put_note(&lab, 1, 1, nulls(2));
        let report = lab.run_days(1, 2);
        assert_eq!(report.note, None);
        assert_eq!(types_in_files(&lab, "note"), BTreeSet::from(["Int64".to_string()]));
        put_note(&lab, 2, 3, texts(["7"]));
        lab.run_days(2, 3);
        assert_eq!(lab.lines("lake/curated", ["id", "note"]), ["1 -", "2 -", "3 7"]);
        lab.assert_verified();
    }
}

#[test]
fn a_column_of_only_nulls_is_said_to_be_stored_as_text_until_it_has_another_type() {
    let lab = note_builder("parquet")
        .curated_sql("SELECT id, note, note * 2 AS n, event_dt FROM latest")
        .build();
    put_note(&lab, 1, 1, nulls(1));
    let note = lab.run_days(1, 2).note.expect("a note");
    assert!(note.contains("stored as text until they have values: `note`"), "{note}");
    // A text that has been published stays text.
    put_note(&lab, 2, 2, integers([4]));
    let note = lab.run_days(2, 3).note.expect("a note");
    assert!(note.contains("have another type from now on: `note`"), "{note}");
    assert_eq!(lab.run_days(3, 4).note.as_deref(), Some("no inputs in the window"));
    assert_eq!(lab.lines("lake/curated", ["id", "note", "n"]), ["1 - -", "2 4 8"]);
    put_note(&lab, 4, 4, texts(["x"]));
    let error = lab.run("2020-01-04", "2020-01-05").expect_err("text");
    assert_refused(error, 65, "column `note` is Utf8View in", "set its type in `[raw.columns]`");
}

#[test]
fn a_text_that_is_computed_from_a_column_of_only_nulls_stays_text() {
    for format in ["parquet", "delta"] {
        let sql = "SELECT id, COALESCE(note, 'none') AS note, event_dt FROM latest";
        let lab = note_builder(format).curated_sql(sql).build();
        put_note(&lab, 1, 1, nulls(1));
        put_note(&lab, 2, 2, texts(["x"]));
        lab.run_days(1, 2);
        lab.run_days(2, 3);
        assert_eq!(lab.lines("lake/curated", ["id", "note"]), ["1 none", "2 x"], "{format}");
        lab.assert_verified();
    }
}

#[test]
fn a_partition_column_may_have_only_nulls_at_first() {
    for format in ["parquet", "delta"] {
        let builder = note_builder(format).partition_by(&["event_dt", "note"]);
        let lab = builder.aggregate("daily", COUNT_PER_DAY).build();
        put_note(&lab, 1, 1, nulls(2));
        lab.run_days(1, 2);
        put(&lab, 2, 2, vec![("note", integers([4]))]);
        lab.run_days(2, 3);
        put(&lab, 3, 1, vec![("note", integers([5]))]);
        lab.run_days(3, 4);
        let rows = lab.lines("lake/curated", ["id", "note", "event_dt"]);
        assert_eq!(rows, ["1 5 2020-01-03", "2 4 2020-01-02"], "{format}");
        lab.assert_verified();
        assert_eq!(lab.explain(&["2"]).rows_now[0].partition, "event_dt=2020-01-02/note=4");
        lab.assert_tidy();
    }
}

#[test]
fn the_pipelines_own_columns_may_have_only_nulls_in_a_file() {
    // A sequence that full loads do not have, as text and as number.
    for sequence in [texts(["1", "2"]), integers([1, 2])] {
        let lab = Lab::builder()
            .set("raw.order_by", vec!["seq"])
            .set("raw.commit_time", "ts")
            .set("raw.event_time", "happened")
            .partition_by(&[])
            .curated_sql("SELECT id, v, event_dt FROM latest")
            .build();
        let load = vec![
            ("ts", nulls(2)),
            ("happened", nulls(2)),
            ("Op", nulls(2)),
            ("seq", nulls(2)),
            ("id", integers([1, 2])),
            ("v", integers([1, 1])),
        ];
        lab.put_columns("raw/LOAD00000001.parquet", load.clone());
        lab.run_days(1, 2);
        let cdc = vec![
            ("ts", timestamps([FIRST_DAY_US, FIRST_DAY_US])),
            ("happened", nulls(2)),
            ("Op", texts(["U", "D"])),
            ("seq", sequence),
            ("id", integers([1, 2])),
            ("v", integers([2, 2])),
        ];
        lab.put_columns(&raw_file(1), cdc);
        lab.run_days(1, 2);
        lab.put_columns("raw/LOAD00000002.parquet", load);
        lab.run_days(1, 2);
        assert_eq!(lab.lines("lake/curated", ["id", "v", "event_dt"]), ["1 2 -"]);
        lab.assert_verified();
    }
}

#[test]
fn a_key_or_commit_time_of_only_nulls_is_a_bad_row_and_gets_its_type_later() {
    for column in ["id", "ts"] {
        for others in [vec![], vec![2], vec![1]] {
            let lab = Lab::builder()
                .partition_by(&[])
                .set("raw.on_bad_row", "quarantine")
                .curated_sql("SELECT CAST(id AS BIGINT) AS id, v FROM latest")
                .build();
            for day in 1..=3 {
                let good = vec![
                    ("ts", timestamps([FIRST_DAY_US + day])),
                    ("id", integers([day])),
                    ("v", integers([day])),
                ];
                let bad = |(name, values)| {
                    (name, if name == column && day == 1 { nulls(1) } else { values })
                };
                lab.put_columns(&raw_file(day), good.into_iter().map(bad).collect());
            }
            let mut days = vec![1, 2, 3];
            days.retain(|day| !others.contains(day));
            let rejected: u64 = days
                .into_iter()
                .chain(others)
                .map(|day| lab.run_days_with(day, day + 1, &["raw.lookback=0d"]).rows_rejected)
                .sum();
            assert_eq!(rejected, 1);
            assert_eq!(lab.lines("lake/curated", ["id", "v"]), ["2 2", "3 3"], "{column}");
            lab.assert_verified();
            let error = lab.rebuild(false, &["raw.on_bad_row=fail"]).expect_err("refused");
            assert_refused(error, 65, &format!("column `{column}` is null"), "");
        }
    }
}

/// Columns of many types, one value each, none of which widens to another.
fn exotic() -> Vec<ArrayRef> {
    let text = || texts(["x"]);
    let field =
        |name: &str, array: &ArrayRef| Arc::new(Field::new(name, array.data_type().clone(), true));
    let number = integers([1]);
    let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    map.keys().append_value("k");
    map.values().append_value("v");
    map.append(true).expect("a map");
    let dictionary: DictionaryArray<Int32Type> = vec!["y"].into_iter().collect();
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(7)])]);
    let of_lists: ArrayRef = Arc::new(list.clone());
    vec![
        Arc::new(StructArray::from(vec![(field("a", &text()), text())])),
        Arc::new(StructArray::from(vec![
            (field("a", &text()), text()),
            (field("b", &number), number.clone()),
        ])),
        Arc::new(StructArray::from(vec![(field("l", &of_lists), of_lists)])),
        Arc::new(list),
        Arc::new(map.finish()),
        text(),
        Arc::new(LargeStringArray::from(vec!["large"])),
        Arc::new(dictionary),
        Arc::new(Int32Array::from(vec![1])),
        Arc::new(Float64Array::from(vec![1.5])),
        Arc::new(BooleanArray::from(vec![true])),
        Arc::new(BinaryArray::from(vec![&b"\xff"[..]])),
        Arc::new(FixedSizeBinaryArray::try_from_iter([[1u8; 5]].into_iter()).expect("binary")),
        Arc::new(Decimal128Array::from(vec![7]).with_precision_and_scale(10, 2).expect("decimals")),
        Arc::new(
            Decimal128Array::from(vec![7]).with_precision_and_scale(38, 37).expect("decimals"),
        ),
        Arc::new(
            Decimal256Array::from_iter_values([7.into()])
                .with_precision_and_scale(70, 6)
                .expect("decimals"),
        ),
        Arc::new(Time64MicrosecondArray::from(vec![1])),
        Arc::new(DurationMicrosecondArray::from(vec![1])),
        Arc::new(TimestampMicrosecondArray::from(vec![1])),
        Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC")),
        nulls(1),
    ]
}

#[test]
fn types_of_columns_that_are_not_used_cannot_stop_a_run() {
    for place in [Place::Local, Place::S3] {
        let builder = Lab::builder()
            .place(place)
            .partition_by(&[])
            .set("raw.on_bad_row", "quarantine")
            .set("raw.columns.declared", "BIGINT")
            .curated_sql(
                "SELECT id, UPPER(v) AS v FROM (SELECT * EXCLUDE (meta, declared) FROM latest)",
            );
        let lab = builder.build();
        for (day, value) in (1..).zip(exotic()) {
            let more = vec![("v", texts(["v"])), ("meta", Arc::clone(&value)), ("declared", value)];
            put(&lab, day, day, more);
        }
        // One column twice, but for its case, and a file that lacks it.
        put(&lab, 24, 24, vec![("meta", nulls(1)), ("Meta", texts(["m"])), ("v", texts(["v"]))]);
        put(&lab, 25, 25, vec![("v", texts(["v"]))]);
        for first in [1, 2, 3, 10, 20] {
            lab.run_days(first, first + 1);
        }
        lab.run_days(1, 26);
        assert_eq!(lab.table("lake/curated").len(), exotic().len() + 2);
        lab.assert_verified();
        let explained = lab.explain(&["3"]);
        assert_eq!((explained.changes.len(), explained.rows_now.len()), (1, 1));
        lab.plan("2020-01-01", "2020-01-31", true).expect("a plan");
        // A row is quarantined whole, with the columns that are not used.
        let bad = vec![("v", texts(["w"])), ("meta", texts(["seen"]))];
        put(&lab, 27, 27, bad);
        let no_key = vec![
            ("Op", texts(["I"])),
            ("ts", timestamps([FIRST_DAY_US])),
            ("id", Arc::new(Int64Array::from(vec![None])) as ArrayRef),
            ("meta", exotic()[4].clone()),
            ("v", texts(["w"])),
        ];
        lab.put_columns(&raw_file(28), no_key);
        assert_eq!(lab.run_days(27, 29).rows_rejected, 1);
        lab.rebuild(false, &[]).expect("rebuilt");
        lab.assert_verified();
    }
}

#[test]
fn a_column_that_is_used_later_must_have_one_type_from_then_on() {
    let lab = Lab::builder().partition_by(&[]).curated_sql("SELECT id FROM latest").build();
    put_note(&lab, 1, 1, integers([1]));
    put_note(&lab, 2, 2, texts(["2"]));
    lab.run_days(1, 3);
    lab.write_file("curated.sql", "SELECT id, note FROM latest");
    let error = lab.rebuild(false, &[]).expect_err("two types");
    assert_refused(error, 65, "column `note` is Int64 in", "set its type in `[raw.columns]`");
    lab.rebuild(false, &["raw.columns.note=VARCHAR"]).expect("rebuilt");
    assert_eq!(lab.lines("lake/curated", ["id", "note"]), ["1 1", "2 2"]);
    lab.write_file("curated.sql", "SELECT id FROM latest");
    lab.rebuild(false, &[]).expect("rebuilt");
    put_note(&lab, 3, 3, Arc::new(BooleanArray::from(vec![true])));
    lab.run_days(3, 4);
    assert_eq!(lab.table("lake/curated").len(), 3);
}

#[test]
fn items_of_lists_may_be_named_in_any_way_and_have_no_type_where_all_lists_are_empty() {
    let list = |item: &str, values: ArrayRef| -> ArrayRef {
        let field = Arc::new(Field::new(item, values.data_type().clone(), true));
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([values.len()]);
        Arc::new(ListArray::new(field, offsets, values, None))
    };
    let lab = Lab::builder().partition_by(&[]).curated_sql("SELECT id, note FROM latest").build();
    put_note(&lab, 1, 1, list("item", nulls(0)));
    put_note(&lab, 2, 2, list("item", optional_texts([Some("a"), None])));
    put_note(&lab, 3, 3, list("element", texts(["b"])));
    lab.run_days(1, 4);
    assert_eq!(lab.lines("lake/curated", ["id", "note"]), ["1 []", "2 [a, ]", "3 [b]"]);
    lab.assert_verified();
}

#[test]
fn the_schema_changes_of_a_run_do_not_list_columns_of_only_nulls() {
    let lab = note_builder("parquet").build();
    for (day, note) in (1..).zip([texts(["a"]), nulls(1), texts(["b"])]) {
        put_note(&lab, day, day, note);
    }
    assert_eq!(lab.run_days(1, 4).schema_changes, []);
    put_note(&lab, 4, 4, nulls(1));
    assert_eq!(lab.run_days(4, 5).schema_changes, []);
}
