//! Texts of Parquet files that are not UTF-8: the row is bad, with its column, and not the file.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Encoding, LogicalType, Repetition, Type as PhysicalType};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::schema::types::{ColumnPath, SchemaDescriptor, Type};

use crate::support::{
    FIRST_DAY_US, Kind, Lab, LabBuilder, PLACES, Row, assert_refused, batch, integers, raw_file,
    rows_of, texts, timestamps,
};

/// A column of texts, some of which may not be UTF-8.
fn bytes<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> ArrayRef {
    Arc::new(BinaryArray::from_iter_values(values))
}

/// `count` texts; the one at `bad` is not UTF-8.
fn texts_with(count: usize, bad: usize) -> ArrayRef {
    let text =
        |at: usize| if at == bad { b"K\xf6n".to_vec() } else { format!("text {at}").into_bytes() };
    Arc::new(BinaryArray::from_iter_values((0..count).map(text)))
}

/// Columns as a Parquet file in which binary columns are called text.
fn file(columns: Vec<(&str, ArrayRef)>, properties: WriterProperties) -> Vec<u8> {
    fn as_text(data_type: &DataType) -> DataType {
        match data_type {
            DataType::Binary => DataType::Utf8,
            DataType::List(field) => {
                let item = field.as_ref().clone().with_data_type(as_text(field.data_type()));
                DataType::List(Arc::new(item))
            }
            other => other.clone(),
        }
    }
    let rows = batch(columns);
    let fields = rows.schema();
    let fields = fields.fields().iter();
    let called = fields.map(|field| Field::new(field.name(), as_text(field.data_type()), true));
    let called = Schema::new(called.collect::<Vec<_>>());
    let schema = ArrowSchemaConverter::new().convert(&called).expect("a schema");
    write(&rows, schema, properties)
}

fn write(
    rows: &arrow::array::RecordBatch,
    schema: SchemaDescriptor,
    properties: WriterProperties,
) -> Vec<u8> {
    let options = ArrowWriterOptions::new()
        .with_properties(properties)
        .with_parquet_schema(schema)
        .with_skip_arrow_metadata(true);
    let mut contents = Vec::new();
    let mut writer =
        ArrowWriter::try_new_with_options(&mut contents, rows.schema(), options).expect("a writer");
    writer.write(rows).expect("written");
    writer.close().expect("closed");
    contents
}

/// The columns of `count` inserts of the keys from 0 on.
fn inserts(count: usize) -> Vec<(&'static str, ArrayRef)> {
    let rows = count as i64;
    vec![
        ("Op", texts(vec!["I"; count])),
        ("id", integers(0..rows)),
        ("ts", timestamps(FIRST_DAY_US..FIRST_DAY_US + rows)),
    ]
}

fn builder() -> LabBuilder {
    Lab::builder().partition_by(&[]).curated_sql("SELECT id, note FROM latest")
}

const QUARANTINE: &str = "raw.on_bad_row=quarantine";

/// The rows in quarantine.
fn quarantined(lab: &Lab) -> Vec<Row> {
    let folder = "lake/_glueless/lab/quarantine";
    let files = lab.list_all(folder).into_iter();
    files.flat_map(|path| rows_of(lab.get(&format!("{folder}/{path}")))).collect()
}

/// Runs a lab with one bad row, number `row` from 1, in `column`.
#[track_caller]
fn assert_one_bad_row(lab: &Lab, row: usize, column: &str, rows: usize) {
    let error = lab.run("2020-01-01", "2020-01-02").expect_err("refused");
    let message =
        format!("row {row} of {}/{}: column `{column}` is not UTF-8 text", lab.base, raw_file(1));
    assert_refused(error, 65, &message, "texts of Parquet files are UTF-8");
    lab.plan_with("2020-01-01", "2020-01-02", true, &[QUARANTINE]).expect("a plan");
    let report = lab.run_days_with(1, 2, &[QUARANTINE]);
    assert_eq!(
        (report.rows_rejected, report.files_rejected, report.rows_written),
        (1, 0, rows as u64 - 1)
    );
    let found = quarantined(lab);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0]["row"].as_str(), found[0]["column"].as_str()),
        (row.to_string().as_str(), column)
    );
    assert_eq!(found[0]["reason"], "is not UTF-8 text");
    assert!(found[0]["change"].contains(r"K\\xF6n"), "{}", found[0]["change"]);
    assert_eq!(lab.table("lake/curated").len(), rows - 1);
    assert!(lab.verify_with(Default::default(), &[QUARANTINE]).expect("compared").is_equal);
}

#[test]
fn a_text_that_is_not_utf8_is_a_bad_row_in_every_encoding() {
    let properties = || WriterProperties::builder().set_max_row_group_row_count(Some(30_000));
    let note = || ColumnPath::from("note");
    let plain = || properties().set_dictionary_enabled(false);
    for (row, properties) in [
        (1, properties()),
        (20_000, properties().set_writer_version(WriterVersion::PARQUET_2_0)),
        (29_999, plain()),
        (30_001, plain().set_column_encoding(note(), Encoding::DELTA_LENGTH_BYTE_ARRAY)),
        (50_000, plain().set_column_encoding(note(), Encoding::DELTA_BYTE_ARRAY)),
    ] {
        let lab = builder().build();
        let mut columns = inserts(50_000);
        columns.push(("note", texts_with(50_000, row - 1)));
        // A file that is not fetched whole.
        let noise = (0..50_000u64).map(|n| format!("{:x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        columns.push(("noise", texts(noise)));
        lab.put(&raw_file(1), file(columns, properties.build()));
        assert_one_bad_row(&lab, row, "note", 50_000);
    }
}

#[test]
fn a_text_that_is_not_utf8_is_a_bad_row_in_every_role() {
    for place in PLACES {
        for column in ["Op", "id", "seq", "ts", "happened", "note"] {
            let lab = builder()
                .place(place)
                .set("raw.order_by", vec!["seq"])
                .set("raw.commit_time", "ts")
                .set("raw.event_time", "happened")
                .build();
            let good: [(&str, [&[u8]; 3]); 6] = [
                ("Op", [b"I", b"I", b"I"]),
                ("id", [b"1", b"2", b"3"]),
                ("seq", [b"1", b"2", b"3"]),
                ("ts", [b"2020-01-01", b"2020-01-01", b"2020-01-01"]),
                ("happened", [b"2020-01-01", b"2020-01-01", b"2020-01-01"]),
                ("note", [b"a", b"b", b"c"]),
            ];
            let columns = good.into_iter().map(|(name, mut values)| {
                if name == column {
                    values[1] = b"K\xf6n";
                }
                (name, bytes(values))
            });
            lab.put(&raw_file(1), file(columns.collect(), WriterProperties::default()));
            assert_one_bad_row(&lab, 2, column, 3);
            let explained = lab.explain(&["3"]);
            assert_eq!(explained.changes.len(), 1, "{column}");
        }
    }
}

#[test]
fn texts_in_lists_and_json_are_checked_too() {
    let lists = ListArray::new(
        Arc::new(Field::new("element", DataType::Binary, true)),
        OffsetBuffer::from_lengths([2, 0, 1]),
        bytes([&b"a"[..], b"b", b"K\xf6n"]),
        None,
    );
    let lab = builder().build();
    let mut columns = inserts(3);
    columns.push(("note", Arc::new(lists)));
    lab.put(&raw_file(1), file(columns, WriterProperties::default()));
    let error = lab.run("2020-01-01", "2020-01-02").expect_err("refused");
    assert!(error.to_string().contains("column `note` is not UTF-8 text"), "{error}");
    assert!(error.to_string().starts_with("row 3 of "), "{error}");
    assert_eq!(lab.run_days_with(1, 2, &[QUARANTINE]).rows_rejected, 1);
    assert_eq!(lab.lines("lake/curated", ["id", "note"]), ["0 [a, b]", "1 []"]);

    let lab = builder().build();
    let json = Type::primitive_type_builder("note", PhysicalType::BYTE_ARRAY)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(Some(LogicalType::Json));
    let columns = inserts(3);
    let called = batch(columns.clone()).schema();
    let known = ArrowSchemaConverter::new().convert(&called).expect("a schema");
    let mut fields = known.root_schema().get_fields().to_vec();
    fields.push(Arc::new(json.build().expect("a type")));
    let root = Type::group_type_builder("schema").with_fields(fields).build().expect("a type");
    let mut columns = columns;
    columns.push(("note", texts_with(3, 1)));
    let schema = SchemaDescriptor::new(Arc::new(root));
    lab.put(&raw_file(1), write(&batch(columns), schema, WriterProperties::default()));
    assert_one_bad_row(&lab, 2, "note", 3);
}

#[test]
fn a_text_that_is_not_utf8_does_not_matter_in_a_column_that_is_not_used() {
    let lab = builder().curated_sql("SELECT id FROM latest").build();
    let mut columns = inserts(3);
    columns.push(("note", texts_with(3, 1)));
    lab.put(&raw_file(1), file(columns, WriterProperties::default()));
    lab.run_days(1, 2);
    assert_eq!(lab.table("lake/curated").len(), 3);
    lab.assert_verified();
}

#[test]
fn a_text_of_a_change_that_is_not_the_last_is_not_missed() {
    let lab = builder().build();
    // The first change of key 1 is bad, and superseded in its own file.
    let changes = |day: i64, notes: [&'static [u8]; 2]| {
        vec![
            ("Op", texts(["I", "U"])),
            ("id", integers([1, 1])),
            ("ts", timestamps([FIRST_DAY_US + day, FIRST_DAY_US + day + 1])),
            ("note", bytes(notes)),
        ]
    };
    lab.put(&raw_file(1), file(changes(0, [b"K\xf6n", b"good"]), WriterProperties::default()));
    lab.run_days_with(1, 2, &[QUARANTINE]);
    // The last change of key 1 is bad: the one before it stays.
    lab.put(&raw_file(2), file(changes(9, [b"better", b"K\xf6n"]), WriterProperties::default()));
    let report = lab.run_days_with(1, 3, &[QUARANTINE]);
    assert_eq!(report.rows_rejected, 2, "one of them in the first file, which is read again");
    assert_eq!(lab.lines("lake/curated", ["id", "note"]), ["1 better"]);
    assert!(lab.verify_with(Default::default(), &[QUARANTINE]).expect("compared").is_equal);
    lab.rebuild(false, &[QUARANTINE]).expect("rebuilt");
    assert_eq!(lab.lines("lake/curated", ["id", "note"]), ["1 better"]);
    let error = lab.rebuild(false, &[]).expect_err("refused");
    assert_eq!(error.kind, Kind::Data);
}
