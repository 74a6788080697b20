//! What raw files may contain: types of times, keys and other columns, columns that only some files
//! have, unusual names of objects, and the variants of Parquet.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::NaiveDateTime;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{Int32Type, Int64Type, Int96, Int96Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::support::{
    DAY_US, Error, Lab, LabBuilder, PLACES, Place, Report, Result, Row, Task, batch, cells,
    file_of_columns, integers, optional_texts, parquet, texts, timestamps,
};

/// A pipeline of the table (id, v) whose windows select rows.
fn builder() -> LabBuilder {
    Lab::builder()
        .window_by("commit")
        .partition_by(&["event_dt"])
        .curated_sql("SELECT id, v, event_dt FROM latest")
}

/// Folds files of these contents, in this order, and returns the table.
fn fold(builder: &LabBuilder, files: &[Vec<u8>]) -> Result<(Lab, Report, Vec<Row>)> {
    let lab = builder.build();
    for (number, file) in files.iter().enumerate() {
        lab.put(&format!("raw/20200101-{number:09}.parquet"), file.clone());
    }
    let report = lab.run("0001-01-01", "9999-12-31T23:59:59.999999999Z")?;
    let rows = lab.table("lake/curated");
    Ok((lab, report, rows))
}

fn folded(builder: &LabBuilder, files: &[Vec<u8>]) -> Vec<Row> {
    fold(builder, files).expect("a run").2
}

fn us(text: &str) -> i64 {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f")
        .expect("a time")
        .and_utc()
        .timestamp_micros()
}

/// A file of one INT96 column `ts`, as Spark and Impala write times, with `id` and `v`.
fn int96_file(changes: &[(i32, i64, &str)]) -> Vec<u8> {
    let schema = "message changes { optional int32 id; optional int64 v; optional int96 ts; }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema, Arc::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    let levels = vec![1; changes.len()];
    let mut column = group.next_column().expect("next").expect("id");
    let ids: Vec<i32> = changes.iter().map(|change| change.0).collect();
    column.typed::<Int32Type>().write_batch(&ids, Some(&levels), None).expect("written");
    column.close().expect("closed");
    let mut column = group.next_column().expect("next").expect("v");
    let values: Vec<i64> = changes.iter().map(|change| change.1).collect();
    column.typed::<Int64Type>().write_batch(&values, Some(&levels), None).expect("written");
    column.close().expect("closed");
    let mut column = group.next_column().expect("next").expect("ts");
    let times: Vec<Int96> = changes.iter().map(|change| int96(us(change.2))).collect();
    column.typed::<Int96Type>().write_batch(&times, Some(&levels), None).expect("written");
    column.close().expect("closed");
    group.close().expect("closed");
    writer.close().expect("closed");
    bytes
}

/// Nanoseconds of the day, and the Julian day, whose number is 2,440,588 on 1970-01-01.
fn int96(us: i64) -> Int96 {
    let day = us.div_euclid(DAY_US) + 2_440_588;
    let ns = us.rem_euclid(DAY_US) * 1000;
    let mut value = Int96::new();
    value.set_data(ns as u32, (ns >> 32) as u32, day as u32);
    value
}

#[test]
fn a_commit_time_orders_the_same_in_every_type() {
    // The later change comes first in the file.
    let (later, earlier) = ("2020-01-02 00:00:00", "2020-01-01 23:59:59.999");
    let (later_us, earlier_us) = (us(later), us(earlier));
    let ms = TimestampMillisecondArray::from(vec![later_us / 1000, earlier_us / 1000]);
    let micros = TimestampMicrosecondArray::from(vec![later_us, earlier_us]);
    let ns = TimestampNanosecondArray::from(vec![later_us * 1000, earlier_us * 1000]);
    let times: Vec<ArrayRef> = vec![
        texts(["2020-01-02 00:00:00.000000", "2020-01-01 23:59:59.999000"]),
        texts(["2020-01-02 00:00:00", "2020-01-01 23:59:59"]),
        texts(["2020-01-02 00:00:00", "2020-01-01 23:59:59.999999999"]),
        texts(["2020-01-02T00:00:00Z", "2020-01-02T00:59:59+01:00"]),
        Arc::new(ms.clone()),
        Arc::new(ms.with_timezone("UTC")),
        Arc::new(micros.clone()),
        Arc::new(micros.with_timezone("UTC")),
        Arc::new(ns.clone()),
        Arc::new(ns.with_timezone("UTC")),
        Arc::new(Date32Array::from(vec![18_263, 18_262])),
    ];
    let mut files: Vec<(String, Vec<u8>)> = times
        .into_iter()
        .map(|ts| {
            let name = format!("{:?}", ts.data_type());
            let columns = vec![("id", integers([1, 1])), ("v", integers([10, 20])), ("ts", ts)];
            (name, file_of_columns(columns))
        })
        .collect();
    files.push(("INT96".into(), int96_file(&[(1, 10, later), (1, 20, earlier)])));
    for (name, bytes) in files {
        let (_, report, rows) = fold(&builder(), &[bytes]).expect("a run");
        assert_eq!(cells(&rows, ["id", "v", "event_dt"]), [["1", "10", "2020-01-02"]], "{name}");
        assert_eq!((report.rows_superseded, report.ties), (1, 0), "{name}");
    }
}

#[test]
fn nanoseconds_decide_where_microseconds_are_equal() {
    let texts = texts(["2020-01-01 00:00:00.000000002", "2020-01-01 00:00:00.000000001"]);
    let ns: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![2, 1]));
    for ts in [texts, ns] {
        let columns = vec![("id", integers([1, 1])), ("v", integers([10, 20])), ("ts", ts)];
        let rows = folded(&builder(), &[file_of_columns(columns)]);
        assert_eq!(cells(&rows, ["v"]), [["10"]]);
    }
}

#[test]
fn int96_times_of_the_year_9999_and_before_1970_survive() {
    let bytes = int96_file(&[
        (1, 10, "9999-12-31 23:59:59.999999"),
        (1, 20, "2020-01-01 00:00:00"),
        (2, 10, "1969-12-31 23:59:59.999999"),
        (2, 20, "1816-03-30 05:56:08.066277"),
        (3, 10, "1816-03-30 05:56:08.066278"),
        (3, 20, "1816-03-30 05:56:08.066277"),
    ]);
    let builder = builder().curated_sql("SELECT id, v, ts, event_dt FROM latest");
    let (lab, _, rows) = fold(&builder, &[bytes]).expect("a run");
    assert_eq!(
        cells(&rows, ["id", "v", "ts", "event_dt"]),
        [
            ["1", "10", "9999-12-31 23:59:59.999999", "9999-12-31"],
            ["2", "10", "1969-12-31 23:59:59.999999", "1969-12-31"],
            ["3", "10", "1816-03-30 05:56:08.066278", "1816-03-30"],
        ]
    );
    assert_eq!(
        lab.list("lake/curated"),
        ["1816-03-30", "1969-12-31", "9999-12-31"]
            .map(|day| format!("event_dt={day}/part-c00000001-00000.snappy.parquet"))
    );
}

#[test]
fn the_ends_of_time_are_ordinary_times() {
    let times = [
        ("0001-01-01 00:00:00", "0001-01-02 00:00:00.000000"),
        ("1960-02-29 23:59:59.999999", "1960-03-01"),
        ("1969-12-31 23:59:59.999999", "1970-01-01 00:00:00"),
        ("9999-12-30 00:00:00", "9999-12-31 23:59:59.999999"),
    ];
    let mut columns: (Vec<i64>, Vec<i64>, Vec<&str>) = Default::default();
    for (id, (earlier, later)) in times.into_iter().enumerate() {
        for (v, time) in [(10, later), (20, earlier)] {
            columns.0.push(id as i64);
            columns.1.push(v);
            columns.2.push(time);
        }
    }
    let columns =
        vec![("id", integers(columns.0)), ("v", integers(columns.1)), ("ts", texts(columns.2))];
    let rows = folded(&builder(), &[file_of_columns(columns)]);
    assert_eq!(
        cells(&rows, ["id", "v", "event_dt"]),
        [
            ["0", "10", "0001-01-02"],
            ["1", "10", "1960-03-01"],
            ["2", "10", "1970-01-01"],
            ["3", "10", "9999-12-31"],
        ]
    );
}

#[test]
fn event_times_without_a_zone_are_of_the_pipelines_and_days_are_utc() {
    let builder = builder().set("raw.event_time", "event").set("raw.time_zone", "Europe/Berlin");
    let events = ["2020-01-02 00:30:00", "2020-07-02 01:59:59", "2020-07-02 02:00:00"];
    let as_us: Vec<i64> = events.iter().map(|event| us(event)).collect();
    let local = timestamps(as_us.clone());
    for event in [texts(events), local] {
        let columns = vec![
            ("id", integers([1, 2, 3])),
            ("v", integers([0, 0, 0])),
            ("ts", texts(["2020-12-31 23:30:00"; 3])),
            ("event", event),
        ];
        let rows = folded(&builder, &[file_of_columns(columns)]);
        assert_eq!(
            cells(&rows, ["id", "event_dt"]),
            [["1", "2020-01-01"], ["2", "2020-07-01"], ["3", "2020-07-02"]]
        );
    }
    // Event times with a zone keep it.
    let zoned: ArrayRef = Arc::new(TimestampMicrosecondArray::from(as_us).with_timezone("UTC"));
    let with_zones =
        texts(["2020-01-02 00:30:00Z", "2020-07-02 01:59:59+00:00", "2020-07-01 23:00:00-03:00"]);
    for event in [zoned, with_zones] {
        let columns = vec![
            ("id", integers([1, 2, 3])),
            ("v", integers([0, 0, 0])),
            ("ts", texts(["2020-12-31 23:30:00"; 3])),
            ("event", event),
        ];
        let rows = folded(&builder, &[file_of_columns(columns)]);
        assert_eq!(
            cells(&rows, ["id", "event_dt"]),
            [["1", "2020-01-02"], ["2", "2020-07-02"], ["3", "2020-07-02"]]
        );
    }
    // A delete's day is that of its commit time, which is UTC whatever the zone.
    let columns = vec![
        ("Op", texts(["I", "D"])),
        ("id", integers([1, 2])),
        ("v", integers([0, 0])),
        ("ts", texts(["2020-01-01 23:30:00"; 2])),
        ("event", texts(["2020-01-01 12:00:00"; 2])),
    ];
    let (_, report, _) = fold(&builder, &[file_of_columns(columns)]).expect("a run");
    assert_eq!((report.rows_latest, report.rows_deleted), (1, 1));
}

#[test]
fn an_operation_may_be_missing_null_or_in_lower_case() {
    let second = "2020-01-01 00:00:01";
    let without = file_of_columns(vec![
        ("id", integers([1, 2, 3, 4, 5])),
        ("v", integers([1; 5])),
        ("ts", texts(["2020-01-01 00:00:00"; 5])),
    ]);
    let with = file_of_columns(vec![
        ("Op", optional_texts([Some("u"), Some("d"), None, Some("D"), Some("i")])),
        ("id", integers([1, 2, 3, 4, 6])),
        ("v", integers([2; 5])),
        ("ts", texts([second; 5])),
    ]);
    let rows = folded(&builder(), &[without.clone(), with]);
    assert_eq!(cells(&rows, ["id", "v"]), [["1", "2"], ["3", "2"], ["5", "1"], ["6", "2"]]);
    // Where the pipeline names the column, every file but a full load must have it.
    let named = builder().set("raw.op", "Op");
    let error = refused(&named, &[without]);
    assert_eq!(error.kind.exit_code(), 2);
    assert_eq!(error.to_string(), "no raw file has the column `Op`, which `raw.op` names");
    assert_eq!(error.hint.as_deref(), Some("found: id, v, ts"));
}

#[test]
fn an_unknown_operation_is_refused_with_its_place() {
    let columns = vec![
        ("op", texts(["I", "X"])),
        ("id", integers([1, 2])),
        ("v", integers([0, 0])),
        ("ts", texts(["2020-01-01 00:00:00"; 2])),
    ];
    let error = refused(&builder(), &[file_of_columns(columns)]);
    assert_eq!(error.kind.exit_code(), 65);
    let message = error.to_string();
    assert!(
        message.starts_with("row 2 of ") && message.ends_with("column `op` is none of I, U, D, T"),
        "{message}"
    );
}

fn refused(builder: &LabBuilder, files: &[Vec<u8>]) -> Error {
    fold(builder, files).map(|_| ()).expect_err("refused")
}

#[test]
fn null_keys_and_null_or_bad_commit_times_are_refused_with_their_place() {
    let good = "2020-01-01 00:00:00";
    let null_key: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    for (id, ts, expected) in [
        (null_key, texts([good, good]), "column `id` is null"),
        (integers([1, 2]), optional_texts([Some(good), None]), "column `ts` is null"),
        (integers([1, 2]), texts([good, "soon"]), "column `ts` is not a time"),
    ] {
        let columns = vec![("id", id), ("v", integers([0, 0])), ("ts", ts)];
        let error = refused(&builder(), &[file_of_columns(columns)]);
        assert_eq!(error.kind.exit_code(), 65);
        let message = error.to_string();
        assert!(message.starts_with("row 2 of ") && message.ends_with(expected), "{message}");
    }
}

#[test]
fn columns_are_found_by_name_in_any_order_and_case() {
    let first = file_of_columns(vec![
        ("id", integers([1, 2])),
        ("v", integers([1, 1])),
        ("note", texts(["old", "old"])),
        ("ts", texts(["2020-01-01 00:00:00"; 2])),
    ]);
    let second = file_of_columns(vec![
        ("TS", texts(["2020-01-02 00:00:00"; 2])),
        ("OP", texts(["U", "I"])),
        ("V", integers([2, 2])),
        ("extra", texts(["e", "f"])),
        ("Id", integers([2, 3])),
    ]);
    let builder = builder().curated_sql("SELECT id, v, note, extra, event_dt FROM latest");
    let rows = folded(&builder, &[first, second]);
    assert_eq!(
        cells(&rows, ["id", "v", "note", "extra"]),
        [["1", "1", "old", "-"], ["2", "2", "-", "e"], ["3", "2", "-", "f"]]
    );
}

#[test]
fn a_key_in_another_case_is_passed_through_by_its_alias() {
    let builder = builder().curated_sql("SELECT \"ID\" AS id, v, event_dt FROM latest");
    let columns = vec![
        ("ID", integers([1, 1])),
        ("v", integers([1, 2])),
        ("ts", texts(["2020-01-01 00:00:00"; 2])),
    ];
    let rows = folded(&builder, &[file_of_columns(columns)]);
    assert_eq!(cells(&rows, ["id", "v"]), [["1", "2"]]);
}

#[test]
fn numbers_widen_over_files_and_a_key_that_widens_stays_one_key() {
    let decimals = |values: Vec<i128>, precision, scale| -> ArrayRef {
        let array = Decimal128Array::from(values).with_precision_and_scale(precision, scale);
        Arc::new(array.expect("decimals"))
    };
    let first = file_of_columns(vec![
        ("id", Arc::new(Int32Array::from(vec![1, 2]))),
        ("v", Arc::new(Int8Array::from(vec![-1, -2]))),
        ("amount", decimals(vec![150, 250], 10, 2)),
        ("ratio", Arc::new(Float32Array::from(vec![0.5, 0.25]))),
        ("ts", texts(["2020-01-01 00:00:00"; 2])),
    ]);
    let second = file_of_columns(vec![
        ("id", integers([2, 1 << 40])),
        ("v", Arc::new(UInt32Array::from(vec![u32::MAX, 7]))),
        ("amount", decimals(vec![12_345, 1], 12, 4)),
        ("ratio", Arc::new(Float64Array::from(vec![0.1, 1e300]))),
        ("ts", texts(["2020-01-02 00:00:00"; 2])),
    ]);
    let third = file_of_columns(vec![
        ("id", Arc::new(Int16Array::from(vec![3]))),
        ("v", Arc::new(Int16Array::from(vec![3]))),
        ("amount", integers([3])),
        ("ratio", Arc::new(Float32Array::from(vec![3.0]))),
        ("ts", texts(["2020-01-03 00:00:00"])),
    ]);
    let builder = builder().curated_sql("SELECT id, v, amount, ratio, event_dt FROM latest");
    let (_, report, rows) = fold(&builder, &[first.clone(), second, third]).expect("a run");
    assert_eq!(report.rows_superseded, 1);
    assert_eq!(
        cells(&rows, ["id", "v", "amount", "ratio"]),
        [
            ["1", "-1", "1.5000", "0.5"],
            ["1099511627776", "7", "0.0001", "1e300"],
            ["2", "4294967295", "1.2345", "0.1"],
            ["3", "3", "3.0000", "3.0"],
        ]
    );
    // It also stays one key when the wider type comes in a later run.
    let lab = builder.build();
    lab.put("raw/20200101-000000000.parquet", first);
    lab.run("2020-01-01", "2020-01-02").expect("a run");
    let wide = file_of_columns(vec![
        ("id", integers([2])),
        ("v", integers([9])),
        ("amount", decimals(vec![1], 10, 2)),
        ("ratio", Arc::new(Float64Array::from(vec![2.0]))),
        ("ts", texts(["2020-01-02 00:00:00"])),
    ]);
    lab.put("raw/20200102-000000000.parquet", wide);
    lab.run("2020-01-01", "2020-01-03").expect("a run");
    let rows = lab.table("lake/curated");
    assert_eq!(cells(&rows, ["id", "v"]), [["1", "-1"], ["2", "9"]]);
}

#[test]
fn types_that_do_not_widen_are_refused_with_both_files() {
    let of = |v: ArrayRef| {
        file_of_columns(vec![
            ("id", integers([1])),
            ("v", v),
            ("ts", texts(["2020-01-01 00:00:00"])),
        ])
    };
    let error = refused(&builder(), &[of(integers([1])), of(texts(["1"]))]);
    assert_eq!(error.kind.exit_code(), 65);
    let message = error.to_string();
    for part in ["column `v`", "20200101-000000000.parquet", "20200101-000000001.parquet"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_delete_needs_nothing_but_its_key() {
    let builder = builder().set("raw.event_time", "event");
    let first = file_of_columns(vec![
        ("Op", texts(["I", "I"])),
        ("id", integers([1, 2])),
        ("v", integers([1, 1])),
        ("event", texts(["2019-01-01 00:00:00"; 2])),
        ("ts", texts(["2020-01-01 00:00:00"; 2])),
    ]);
    let null_columns = file_of_columns(vec![
        ("Op", texts(["D"])),
        ("id", integers([1])),
        ("v", Arc::new(Int64Array::new_null(1))),
        ("event", optional_texts([None::<&str>])),
        ("ts", texts(["2020-01-02 00:00:00"])),
    ]);
    let no_columns = file_of_columns(vec![
        ("Op", texts(["D"])),
        ("id", integers([1])),
        ("ts", texts(["2020-01-02 00:00:00"])),
    ]);
    for delete in [null_columns, no_columns] {
        let (_, report, rows) = fold(&builder, &[first.clone(), delete]).expect("a run");
        assert_eq!(cells(&rows, ["id", "event_dt"]), [["2", "2019-01-01"]]);
        assert_eq!((report.rows_latest, report.rows_superseded, report.rows_deleted), (1, 1, 1));
    }
}

#[test]
fn object_names_are_taken_as_they_are() {
    for place in PLACES {
        let lab = builder().place(place).curated_sql("SELECT id, v, event_dt FROM latest").build();
        let names = [
            "a b.parquet",
            "a%20b.parquet",
            "a+b.parquet",
            "a#b.parquet",
            "a&b=c;d@e,f$g!h'i(j).parquet",
            "100%.parquet",
            "%41.parquet",
            "ä ö/日本/ü%2F.parquet",
            "x=1%2C/y= /z.parquet",
            "a?b*c.parquet",
        ];
        for (id, name) in names.iter().enumerate() {
            let columns = vec![
                ("id", integers([id as i64])),
                ("v", integers([0])),
                ("ts", texts(["2020-01-01 00:00:00"])),
            ];
            lab.put(&format!("raw/{name}"), file_of_columns(columns));
        }
        for _ in 0..2 {
            let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
            assert_eq!(report.files, names.len() as u64);
        }
        let rows = lab.table("lake/curated");
        let expected: Vec<[String; 1]> = (0..names.len()).map(|id| [id.to_string()]).collect();
        assert_eq!(cells(&rows, ["id"]), expected);
        // The ledger lists the files by the same names.
        lab.remove("raw/a%20b.parquet");
        let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
        let note = report.note.expect("a note");
        assert!(note.contains("such as a%20b.parquet"), "{note}");
        assert_eq!(cells(&lab.table("lake/curated"), ["id"]), expected);
    }
}

#[test]
fn locations_with_spaces_and_percent_signs_are_taken_as_they_are() {
    for place in PLACES {
        let lab = builder().place(place).build();
        let columns = vec![
            ("id", integers([1])),
            ("v", integers([1])),
            ("ts", texts(["2020-01-01 00:00:00"])),
        ];
        lab.put("r %20ä/x.parquet", file_of_columns(columns));
        let raw = format!("raw.url={}/r %20ä", lab.base);
        let curated = format!("curated.url={}/l %20ä/c %d", lab.base);
        let state = format!("state.url={}/s ä/+", lab.base);
        for _ in 0..2 {
            lab.run_with(Task::Run, "2020-01-01", "2020-01-02", &[&raw, &curated, &state])
                .expect("a run");
            let rows = lab.table("l %20ä/c %d");
            assert_eq!(cells(&rows, ["id", "v"]), [["1", "1"]]);
        }
    }
}

#[test]
fn required_columns_are_read() {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("v", DataType::Int64, false),
        Field::new("ts", DataType::Utf8, false),
    ]);
    let arrays = vec![
        integers([1, 1]),
        integers([1, 2]),
        texts(["2020-01-01 00:00:00", "2020-01-01 00:00:01"]),
    ];
    let required = RecordBatch::try_new(Arc::new(schema), arrays).expect("a batch");
    // A delete without the columns that another file requires.
    let delete = file_of_columns(vec![
        ("Op", texts(["D", "I"])),
        ("id", integers([3, 4])),
        ("ts", texts(["2020-01-01 00:00:02"; 2])),
    ]);
    let rows = folded(&builder(), &[parquet(&required, None), delete]);
    assert_eq!(cells(&rows, ["id", "v"]), [["1", "2"], ["4", "-"]]);
}

#[test]
fn every_page_version_compression_and_encoding_is_read() {
    let columns = || {
        vec![
            ("id", integers((0..3000).map(|n| n % 1000))),
            ("v", integers(0..3000)),
            ("ts", texts(["2020-01-01 00:00:00"; 3000])),
        ]
    };
    let expected: Vec<[String; 2]> = {
        let mut rows: Vec<_> =
            (0..1000).map(|id: i64| [id.to_string(), (id + 2000).to_string()]).collect();
        rows.sort();
        rows
    };
    let compressions = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4_RAW,
        Compression::BROTLI(Default::default()),
    ];
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for compression in compressions {
            for dictionary in [true, false] {
                let properties = WriterProperties::builder()
                    .set_writer_version(version)
                    .set_compression(compression)
                    .set_dictionary_enabled(dictionary)
                    .set_data_page_row_count_limit(300)
                    .set_write_batch_size(100)
                    .set_max_row_group_row_count(Some(1700))
                    .build();
                let bytes = parquet(&batch(columns()), Some(properties));
                let rows = folded(&builder(), &[bytes]);
                assert_eq!(
                    cells(&rows, ["id", "v"]),
                    expected,
                    "{version:?} {compression} dictionary {dictionary}"
                );
            }
        }
    }
}

#[test]
fn files_without_rows_are_folded() {
    let empty = |typed: bool| {
        let mut columns = vec![("id", integers([])), ("v", integers([]))];
        columns.push(("ts", texts([""; 0])));
        if typed {
            columns.push(("w", integers([])));
        }
        file_of_columns(columns)
    };
    let (lab, report, rows) = fold(&builder(), &[empty(false)]).expect("a run");
    assert_eq!((report.files, report.rows_read, rows.len()), (1, 0, 0));
    assert_eq!(lab.list("lake/curated"), [""; 0]);
    let one = file_of_columns(vec![
        ("id", integers([1])),
        ("v", integers([1])),
        ("ts", texts(["2020-01-01 00:00:00"])),
    ]);
    let builder = builder().curated_sql("SELECT id, v, w, event_dt FROM latest");
    let rows = folded(&builder, &[empty(true), one, empty(false)]);
    assert_eq!(cells(&rows, ["id", "v", "w"]), [["1", "1", "-"]]);
}

/// Random bytes, which do not compress, and are the same in every run.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                (self.0 >> 32) as u8
            })
            .collect()
    }
}

/// The last row and payload of each key.
type Payloads = BTreeMap<i64, (i64, Vec<u8>)>;

/// A file of changes with a payload that does not compress; every key changes several times.
fn large_file(
    rows: i64,
    keys: i64,
    payload_bytes: usize,
    group_rows: usize,
) -> (Vec<u8>, Payloads) {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut ids = Vec::new();
    let mut payloads = Vec::new();
    let mut expected = BTreeMap::new();
    for row in 0..rows {
        // Some keys follow one another and others are far apart, so that both ways of reading selected
        // rows are used.
        let id = if row % 100 < 50 { row % keys } else { row * 7919 % keys };
        let payload = noise.bytes(payload_bytes);
        expected.insert(id, (row, payload.clone()));
        ids.push(id);
        payloads.push(payload);
    }
    let start_us = us("2020-01-01 00:00:00");
    let payloads: ArrayRef = Arc::new(BinaryArray::from_iter_values(payloads));
    let columns = vec![
        ("id", integers(ids)),
        ("v", integers(0..rows)),
        ("payload", payloads),
        ("ts", timestamps((0..rows).map(|row| start_us + row / 3))),
    ];
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(group_rows)).build();
    (parquet(&batch(columns), Some(properties)), expected)
}

fn check_large(place: Place, bytes: Vec<u8>, expected: &Payloads) {
    let lab =
        builder().place(place).curated_sql("SELECT id, v, payload, event_dt FROM latest").build();
    lab.put("raw/x.parquet", bytes);
    let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
    assert_eq!(report.rows_latest, expected.len() as u64);
    let rows = lab.table("lake/curated");
    assert_eq!(rows.len(), expected.len());
    for row in rows {
        let id: i64 = row["id"].parse().expect("an id");
        let (v, payload) = &expected[&id];
        assert_eq!(row["v"], v.to_string(), "key {id}");
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(row["payload"], hex, "key {id}");
    }
}

#[test]
fn a_file_of_many_row_groups_is_read_in_ranges() {
    for place in PLACES {
        let (bytes, expected) = large_file(10_000, 3000, 200, 1000);
        assert!(bytes.len() > 1 << 20);
        check_large(place, bytes, &expected);
    }
}

#[test]
fn a_large_file_is_split_and_no_row_is_mistaken_for_another() {
    let (bytes, expected) = large_file(60_000, 2000, 600, 1000);
    assert!(bytes.len() > 33 << 20);
    check_large(Place::Local, bytes, &expected);
}

#[test]
fn composite_keys_are_told_apart_by_all_their_columns() {
    let builder =
        builder().set("key", vec!["a", "b"]).curated_sql("SELECT a, b, v, event_dt FROM latest");
    let columns = vec![
        ("a", texts(["x", "x", "xy", "x", ""])),
        ("b", texts(["y", "", "", "y", "xy"])),
        ("v", integers([1, 2, 3, 4, 5])),
        ("ts", texts(["2020-01-01 00:00:00"; 5])),
    ];
    let rows = folded(&builder, &[file_of_columns(columns)]);
    assert_eq!(
        cells(&rows, ["a", "b", "v"]),
        [["", "xy", "5"], ["x", "", "2"], ["x", "y", "4"], ["xy", "", "3"]]
    );
}

#[test]
fn keys_of_every_type_are_compared_by_value() {
    let decimals = Decimal128Array::from(vec![100, 1000, 100, -100])
        .with_precision_and_scale(28, 2)
        .expect("decimals");
    let cases: Vec<(ArrayRef, &[&str])> = vec![
        (Arc::new(Float64Array::from(vec![0.0, 1.5, -0.0, -1.5])), &["1.5", "-1.5"]),
        (Arc::new(Float32Array::from(vec![-0.0, 1.5, 0.0, -1.5])), &["1.5", "-1.5"]),
        (Arc::new(decimals), &["1.00", "10.00", "-1.00"]),
        (texts(["a", "A", "a", "a "]), &["a", "A", "a "]),
        (
            Arc::new(Date32Array::from(vec![0, 1, 0, -1])),
            &["1970-01-01", "1970-01-02", "1969-12-31"],
        ),
        (
            Arc::new(TimestampMicrosecondArray::from(vec![0, 1, 0, -1])),
            &["1970-01-01 00:00:00", "1970-01-01 00:00:00.000001"],
        ),
        (Arc::new(BinaryArray::from(vec![&b"\0"[..], b"", b"\0", b"\0\0"])), &["00", "", "0000"]),
    ];
    for (id, expected) in cases {
        let name = id.data_type().to_string();
        let columns = vec![
            ("id", id),
            ("v", integers([1, 2, 3, 4])),
            ("ts", texts(["2020-01-01 00:00:00"; 4])),
        ];
        let (_, report, rows) = fold(&builder(), &[file_of_columns(columns)]).expect("a run");
        assert_eq!(report.rows_latest, 3, "{name}");
        let mut values: Vec<&str> = rows.iter().map(|row| row["v"].as_str()).collect();
        values.sort();
        assert_eq!(values, ["2", "3", "4"], "{name}");
        for key in expected {
            assert!(rows.iter().any(|row| row["id"] == *key), "{name}: {rows:?}");
        }
    }
}

/// A change sequence as Qlik Replicate and DMS write it: 35 digits.
fn sequence(number: u64) -> String {
    format!("2020010100000000{number:019}")
}

#[test]
fn a_change_sequence_orders_and_the_commit_time_is_another_column() {
    let builder = builder().set("raw.order_by", vec!["seq"]).set("raw.commit_time", "ts");
    // The sequence contradicts the commit time and the order of rows.
    let sequences = [sequence(20), sequence(3), sequence(1)];
    let columns = vec![
        ("Op", texts(["U", "D", "I"])),
        ("id", integers([1, 1, 1])),
        ("v", integers([1, 2, 3])),
        ("seq", texts(sequences)),
        ("ts", texts(["2020-01-01 00:00:00", "2020-01-01 00:00:01", "2020-01-01 00:00:02"])),
    ];
    let cdc = file_of_columns(columns);
    let times = || texts(["2020-06-01 00:00:00"; 2]);
    let loads = [
        vec![("seq", optional_texts([None, Some("")]))],
        vec![("seq", texts(["99999999999999999999999999999999999"; 2]))],
        vec![],
    ];
    for mut load in loads {
        load.extend([("id", integers([1, 2])), ("v", integers([0, 0])), ("ts", times())]);
        let lab = builder.build();
        lab.put("raw/LOAD00000001.parquet", file_of_columns(load));
        lab.put("raw/20200101-000000000.parquet", cdc.clone());
        let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
        assert_eq!(report.ties, 0);
        let rows = lab.table("lake/curated");
        assert_eq!(
            cells(&rows, ["id", "v", "event_dt"]),
            [["1", "1", "2020-01-01"], ["2", "0", "2020-06-01"]]
        );
    }
}

#[test]
fn later_order_columns_decide_where_earlier_ones_are_equal_and_null_is_first() {
    let builder = builder().set("raw.order_by", vec!["ts", "lsn", "n"]);
    let time = "2020-01-01 00:00:00.000000";
    let columns = vec![
        ("id", integers([1, 1, 1, 2, 2, 3, 3, 4, 4])),
        ("v", integers([1, 2, 3, 4, 5, 6, 7, 8, 9])),
        ("ts", texts([time; 9])),
        (
            "lsn",
            optional_texts([
                Some("b"),
                Some("a"),
                None,
                Some(""),
                None,
                Some("x"),
                Some("x"),
                Some("y"),
                Some("y"),
            ]),
        ),
        (
            "n",
            Arc::new(Int64Array::from(vec![
                Some(0),
                Some(9),
                Some(99),
                Some(-1),
                Some(1),
                Some(-1),
                None,
                Some(5),
                Some(5),
            ])),
        ),
    ];
    let (_, report, rows) = fold(&builder, &[file_of_columns(columns)]).expect("a run");
    assert_eq!(cells(&rows, ["id", "v"]), [["1", "1"], ["2", "4"], ["3", "6"], ["4", "9"]]);
    assert_eq!(report.ties, 1);
}

#[test]
fn equal_times_written_differently_are_equal_among_several_order_columns() {
    let builder = builder().set("raw.order_by", vec!["ts", "n"]);
    let columns = vec![
        ("id", integers([1, 1])),
        ("v", integers([1, 2])),
        ("ts", texts(["2020-01-01 00:00:00", "2020-01-01 00:00:00.000000"])),
        ("n", integers([2, 1])),
    ];
    let rows = folded(&builder, &[file_of_columns(columns)]);
    assert_eq!(cells(&rows, ["id", "v"]), [["1", "1"]]);
}

#[test]
fn timestamps_of_different_units_are_one_column() {
    let of = |v: i64, ts: ArrayRef| {
        file_of_columns(vec![("id", integers([1])), ("v", integers([v])), ("ts", ts)])
    };
    let at = us("2020-01-01 00:00:00.001");
    let files = [
        of(1, Arc::new(TimestampMillisecondArray::from(vec![at / 1000 + 1]))),
        of(2, timestamps([at])),
        of(3, Arc::new(Date32Array::from(vec![18_262]))),
    ];
    let rows = folded(&builder(), &files);
    assert_eq!(cells(&rows, ["v"]), [["1"]]);
}
