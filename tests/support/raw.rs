//! Raw files: columns of values, rows of text, and the changes of a day.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Int64Array, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::builder::LabBuilder;
use super::lab::{Lab, PLACES, Place};

/// 2020-01-01, in microseconds since 1970.
pub const FIRST_DAY_US: i64 = 1_577_836_800_000_000;
pub const DAY_US: i64 = 86_400_000_000;

/// A day of January 2020.
pub fn day(day: i64) -> String {
    format!("2020-01-{day:02}")
}

/// The path of the raw file of a day of January 2020.
pub fn raw_file(day: i64) -> String {
    format!("raw/202001{day:02}-000000000.parquet")
}

/// The columns of a file: names and values.
pub type Columns = Vec<(&'static str, ArrayRef)>;

/// A column of text.
pub fn texts<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

/// A column of text and nulls.
pub fn optional_texts<T: AsRef<str>>(values: impl IntoIterator<Item = Option<T>>) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

/// A column of BIGINT.
pub fn integers(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

/// A column of timestamps, from microseconds since 1970.
pub fn timestamps(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values))
}

/// A batch of nullable columns.
pub fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let field =
        |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(schema), arrays).expect("a batch")
}

/// A batch as a Parquet file.
pub fn parquet(batch: &RecordBatch, properties: Option<WriterProperties>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, batch.schema(), properties).expect("a writer");
    writer.write(batch).expect("written");
    writer.close().expect("closed");
    bytes
}

/// Columns as a Parquet file.
pub fn file_of_columns(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    parquet(&batch(columns), None)
}

/// Rows of text as a Parquet file. The columns `id`, `v` and `BI_id` are BIGINT, all others are text;
/// `-` is null.
pub fn file_of_rows<R: AsRef<[T]>, T: AsRef<str>>(columns: &[&str], rows: &[R]) -> Vec<u8> {
    let column = |(number, name): (usize, &&str)| -> ArrayRef {
        let values = rows
            .iter()
            .map(|row| row.as_ref()[number].as_ref())
            .map(|value| Some(value).filter(|value| *value != "-"));
        match *name {
            "id" | "v" | "BI_id" => {
                let number = |value: &str| value.parse::<i64>().expect("a number");
                let numbers = values.map(|value| value.map(number));
                Arc::new(numbers.collect::<Int64Array>())
            }
            _ => optional_texts(values),
        }
    };
    let arrays = columns.iter().enumerate().map(column);
    file_of_columns(columns.iter().copied().zip(arrays).collect())
}

impl Lab {
    /// Writes a raw file of rows: operation, time of January 2020 as `02 10:00`, key, and the value of a column.
    pub fn put_january(&self, name: &str, column: &str, rows: &[[&str; 4]]) {
        let rows = rows.iter().map(|[op, time, id, value]| {
            let time = format!("2020-01-{time}:00");
            [op.to_string(), time, id.to_string(), value.to_string()]
        });
        let rows: Vec<[String; 4]> = rows.collect();
        self.put(&format!("raw/{name}.parquet"), file_of_rows(&["Op", "ts", "id", column], &rows));
    }
}

/// Three files of [`Lab::put_january`]: their names and rows.
pub type FilesOfJanuary<'a> = [(&'a str, &'a [[&'a str; 4]]); 3];

/// The orders of three files.
pub const ORDERS: [[usize; 3]; 6] =
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

impl LabBuilder {
    /// Folds files one after the other, in every order, on S3 in those given, in both formats: each time, the table
    /// must have the expected rows, also after a rebuild, and a run that is repeated must write nothing.
    #[track_caller]
    pub fn assert_in_any_order(
        &self,
        (column, files): (&str, FilesOfJanuary<'_>),
        orders_on_s3: &[[usize; 3]],
        rows: impl Fn(&Lab) -> Vec<String>,
        expected: &[&str],
    ) {
        let run = |lab: &Lab| lab.run("2020-01-01", "2020-02-01").expect("a run");
        let kinds = PLACES.into_iter().flat_map(|place| ["parquet", "delta"].map(|f| (place, f)));
        for (place, format) in kinds {
            for order in if place == Place::Local { &ORDERS[..] } else { orders_on_s3 } {
                let lab = self.clone().place(place).format(format).build();
                for (name, of_file) in order.map(|number| files[number]) {
                    lab.put_january(name, column, of_file);
                    run(&lab);
                    lab.assert_verified();
                }
                assert_eq!(rows(&lab), expected, "{order:?}");
                let before = lab.list("lake/curated");
                run(&lab);
                let after = lab.list("lake/curated");
                assert_eq!(after, before, "a run that is repeated writes nothing");
                lab.rebuild(false, &[]).expect("rebuilt");
                assert_eq!(rows(&lab), expected, "{order:?}");
            }
        }
    }
}

/// An event of Debezium: operation, the rows before and after, and the time in milliseconds.
pub type Event = (Option<&'static str>, Option<EventRow>, Option<EventRow>, i64);

/// The row of an event: `id`, `v` and `note`.
pub type EventRow = (i64, Option<i64>, Option<String>);

/// Events as lines of JSON.
pub fn events_json(events: &[Event]) -> String {
    let row = |row: &Option<EventRow>| match row {
        None => serde_json::Value::Null,
        Some((id, v, note)) => serde_json::json!({"id": id, "v": v, "note": note}),
    };
    let lines = events.iter().map(|(op, before, after, ts_ms)| match op {
        None => "null\n".to_string(),
        Some(op) => {
            let source = serde_json::json!({"connector": "postgresql", "lsn": 7, "ts_ms": ts_ms - 5});
            let event = serde_json::json!({
                "before": row(before), "after": row(after), "source": source, "op": op, "ts_ms": ts_ms,
                "transaction": null,
            });
            format!("{event}\n")
        }
    });
    lines.collect()
}

/// Events as a Parquet file with structs.
pub fn events_parquet(events: &[Event]) -> Vec<u8> {
    fn structs(fields: Vec<(&str, ArrayRef)>, valid: Vec<bool>) -> ArrayRef {
        let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = fields
            .into_iter()
            .map(|(name, array)| (Field::new(name, array.data_type().clone(), true), array))
            .unzip();
        Arc::new(StructArray::new(fields.into(), arrays, Some(NullBuffer::from(valid))))
    }
    let part = |part: fn(&Event) -> &Option<EventRow>| {
        let rows = || events.iter().map(part);
        let fields: Vec<(&str, ArrayRef)> = vec![
            (
                "id",
                Arc::new(Int64Array::from_iter(rows().map(|row| row.as_ref().map(|row| row.0)))),
            ),
            (
                "v",
                Arc::new(Int64Array::from_iter(
                    rows().map(|row| row.as_ref().and_then(|row| row.1)),
                )),
            ),
            ("note", optional_texts(rows().map(|row| row.as_ref().and_then(|row| row.2.clone())))),
        ];
        structs(fields, rows().map(Option::is_some).collect())
    };
    let is_event = |event: &Event| event.0.is_some();
    let times = |less: i64| -> ArrayRef {
        let times = events.iter().map(|event| is_event(event).then_some(event.3 - less));
        Arc::new(Int64Array::from_iter(times))
    };
    let source = vec![
        ("connector", optional_texts(events.iter().map(|event| event.0.map(|_| "postgresql")))),
        ("ts_ms", times(5)),
    ];
    file_of_columns(vec![
        ("before", part(|event| &event.1)),
        ("after", part(|event| &event.2)),
        ("source", structs(source, events.iter().map(is_event).collect())),
        ("op", optional_texts(events.iter().map(|event| event.0))),
        ("ts_ms", times(0)),
    ])
}

/// A raw row.
pub struct Change<'a> {
    pub op: &'a str,
    pub id: i64,
    pub cat: &'a str,
    pub v: i64,
    /// When it was committed, in microseconds since the start of the day that its file is given.
    pub us: i64,
    /// When it happened, in microseconds since 2020-01-01.
    pub event_us: i64,
}

impl Lab {
    /// Writes one raw Parquet file of columns.
    pub fn put_columns(&self, path: &str, columns: Vec<(&str, ArrayRef)>) {
        self.put(path, file_of_columns(columns));
    }

    /// Writes the file of a day of January 2020: operation, key and category, with the day as value.
    pub fn put_day(&self, day: i64, changes: &[(&str, i64, &str)]) {
        let rows = changes.iter().zip(0..).map(|((op, id, cat), row)| Change {
            op,
            id: *id,
            cat,
            v: day,
            us: row,
            event_us: 0,
        });
        self.put_changes(&raw_file(day), day, &rows.collect::<Vec<_>>());
    }

    /// Writes a file whose commit times are counted from a day of January 2020.
    pub fn put_changes(&self, path: &str, day: i64, changes: &[Change]) {
        let changes = || changes.iter();
        let start_us = FIRST_DAY_US + (day - 1) * DAY_US;
        let columns = vec![
            ("Op", texts(changes().map(|change| change.op))),
            ("id", integers(changes().map(|change| change.id))),
            ("cat", texts(changes().map(|change| change.cat))),
            ("v", integers(changes().map(|change| change.v))),
            ("ts", timestamps(changes().map(|change| start_us + change.us))),
            ("event", timestamps(changes().map(|change| FIRST_DAY_US + change.event_us))),
        ];
        self.put_columns(path, columns);
    }
}

/// A text compressed by gzip.
pub fn gzip(text: &str) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    writer.write_all(text.as_bytes()).expect("written");
    writer.finish().expect("written")
}

/// Folds a text of 60,000 updates of 20,000 keys, whose `v` is the number of the row, four times with
/// the least memory: everywhere the last row of each key is left.
pub fn assert_folds_in_little_memory(builder: &LabBuilder, ending: &str, text: &str) {
    let mut tables = Vec::new();
    for place in PLACES {
        let lab = builder.clone().place(place).set("limits.memory", "128MB").build();
        for file in 0..4 {
            lab.put(&format!("raw/20200102-10000000{file}.{ending}"), gzip(text));
        }
        let report = lab.run("2020-01-01", "2020-02-01").expect("a run");
        assert_eq!((report.rows_read, report.rows_latest), (240_000, 20_000));
        tables.push(lab.table("lake/curated"));
    }
    assert_eq!(tables[0], tables[1]);
    assert!(tables[0].iter().all(|row| row["v"].parse::<i64>().expect("a number") >= 40_000));
}
