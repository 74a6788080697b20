//! Which inputs a run reads: windows of names, of folders, of times of objects and of rows, at their
//! ends, in several zones, in a local folder and on an S3 server.

use std::collections::BTreeSet;

use arrow::array::ArrayRef;
use bytes::Bytes;
use chrono::{DateTime, Duration, NaiveDate, NaiveDateTime, SubsecRound, Utc};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::support::{
    DAY_US, Kind, Lab, LabBuilder, PLACES, Place, Report, Task, assert_refused, batch,
    file_of_columns, integers, parquet, texts, timestamps,
};

/// A pipeline whose raw files are chosen by `window_by`.
fn builder(place: Place, window_by: &str) -> LabBuilder {
    Lab::builder()
        .place(place)
        .window_by(window_by)
        .partition_by(&[])
        .curated_sql("SELECT id, ts, origin FROM latest")
}

fn lab(place: Place, window_by: &str) -> Lab {
    builder(place, window_by).build()
}

/// A lab whose runs do not look for late files.
fn without_lookback(place: Place, window_by: &str) -> Lab {
    builder(place, window_by).set("raw.lookback", "0").build()
}

/// A file of one row: its id, and a commit time on which no window of files depends.
fn one_row(id: i64) -> Vec<u8> {
    file_of(&[(id, "2020-01-01 00:00:00")], "")
}

fn file_of(changes: &[(i64, &str)], origin: &str) -> Vec<u8> {
    let changes = || changes.iter();
    file_of_columns(vec![
        ("id", integers(changes().map(|change| change.0))),
        ("ts", texts(changes().map(|change| change.1))),
        ("origin", texts(changes().map(|_| origin))),
    ])
}

/// Writes files of one row, whose ids are their positions in the list.
fn put(lab: &Lab, paths: &[&str]) {
    for (id, path) in paths.iter().enumerate() {
        lab.put(&format!("raw/{path}"), one_row(id as i64));
    }
}

/// The ids that a first run of a window reads: each call has an empty lake of its own.
fn found(lab: &Lab, start: &str, end: &str) -> (Report, BTreeSet<i64>) {
    let lake = format!("lake-{}", uuid::Uuid::now_v7());
    let set = format!("curated.url={}/{lake}/curated", lab.base);
    let report = lab
        .run_with(Task::Run, start, end, &[&set])
        .unwrap_or_else(|error| panic!("{start} to {end}: {error}"));
    let ids = ids(lab, &format!("{lake}/curated"));
    (report, ids)
}

fn ids(lab: &Lab, table: &str) -> BTreeSet<i64> {
    let rows = lab.table(table);
    let ids = rows.iter().map(|row| row["id"].parse().expect("an id"));
    ids.collect()
}

/// Asserts that a window reads exactly the files with these ids.
fn assert_found(lab: &Lab, start: &str, end: &str, expected: &[i64]) {
    let (report, ids) = found(lab, start, end);
    let expected: BTreeSet<i64> = expected.iter().copied().collect();
    assert_eq!(ids, expected, "{start} to {end}");
    assert_eq!(report.files, expected.len() as u64, "{start} to {end}");
}

#[test]
fn by_name_the_start_of_a_window_is_in_and_its_end_is_out() {
    for place in PLACES {
        let lab = lab(place, "name");
        put(
            &lab,
            &[
                "20211122-235959999.parquet",
                "20211123-000000000.parquet",
                "20211123-1015001234.parquet",
                "20211123-101500-001.parquet",
                "shop/orders/20211123-235959999.parquet",
                "20211123-2359599999.PARQUET",
                "20211124-000000000.parquet",
            ],
        );
        assert_found(&lab, "2021-11-23", "2021-11-24", &[1, 2, 3, 4, 5]);
        assert_found(&lab, "2021-11-22", "2021-11-23", &[0]);
        assert_found(&lab, "2021-11-24", "2021-11-25", &[6]);
        assert_found(&lab, "2021-11-23", "2021-11-23T00:00:00.001Z", &[1]);
        assert_found(&lab, "2021-11-23T10:15:00.001Z", "2021-11-23T10:15:00.123Z", &[3]);
        assert_found(&lab, "2021-11-23T10:15:00.123Z", "2021-11-23T10:15:00.124Z", &[2]);
        let (report, ids) = found(&lab, "2021-11-25", "2021-11-26");
        assert_eq!((report.files, ids.len()), (0, 0));
        assert_eq!(report.note.as_deref(), Some("no inputs in the window"));
    }
}

#[test]
fn by_name_a_time_zone_shifts_names_and_the_repeated_hour_is_its_first() {
    let lab = builder(Place::Local, "name").set("raw.time_zone", "Europe/Berlin").build();
    put(
        &lab,
        &[
            "2021/10/30/20211030-235959999.parquet",
            "2021/10/31/20211031-000000000.parquet",
            "2021/10/31/20211031-015959999.parquet",
            "2021/10/31/20211031-020000000.parquet",
            "2021/10/31/20211031-025959999.parquet",
            "2021/10/31/20211031-030000000.parquet",
            "2021/10/31/20211031-235959999.parquet",
            "2021/11/01/20211101-000000000.parquet",
        ],
    );
    // The local day has 25 hours.
    let day = [1, 2, 3, 4, 5, 6];
    assert_found(&lab, "2021-10-30T22:00:00Z", "2021-10-31T23:00:00Z", &day);
    assert_found(&lab, "2021-10-30", "2021-10-30T22:00:00Z", &[0]);
    assert_found(&lab, "2021-10-31T00:00:00Z", "2021-10-31T01:00:00Z", &[3, 4]);
    assert_eq!(found(&lab, "2021-10-31T01:00:00Z", "2021-10-31T02:00:00Z").0.files, 0);
    assert_found(&lab, "2021-10-31T02:00:00Z", "2021-10-31T03:00:00Z", &[5]);
    assert_found(&lab, "2021-10-31T23:00:00Z", "2021-11-01", &[7]);
    assert_found(&lab, "2021-10-31", "2021-11-01", &[3, 4, 5, 6, 7]);
}

#[test]
fn by_path_a_time_zone_shifts_folders_and_the_repeated_hour_is_both() {
    let lab = builder(Place::Local, "path")
        .set("raw.time_zone", "Europe/Berlin")
        .set("raw.lookback", "0")
        .build();
    put(
        &lab,
        &[
            "2021/10/31/01/a.parquet",
            "2021/10/31/02/b.parquet",
            "2021/10/31/03/c.parquet",
            "2021-10-31/d.parquet",
            "2021-11-01/e.parquet",
        ],
    );
    assert_found(&lab, "2021-10-30T23:00:00Z", "2021-10-31", &[0, 3]);
    assert_found(&lab, "2021-10-31T00:00:00Z", "2021-10-31T01:00:00Z", &[1, 3]);
    assert_found(&lab, "2021-10-31T01:00:00Z", "2021-10-31T02:00:00Z", &[1, 3]);
    assert_found(&lab, "2021-10-31T02:00:00Z", "2021-10-31T03:00:00Z", &[2, 3]);
    assert_found(&lab, "2021-10-31T22:59:59Z", "2021-10-31T23:00:00Z", &[3]);
    assert_found(&lab, "2021-10-31T23:00:00Z", "2021-10-31T23:00:01Z", &[4]);
}

/// Every form of date folder: its strftime pattern, and the time that a folder covers.
const FORMS: [(&str, Lasts); 20] = [
    ("%Y/%m/%d", Lasts::Day),
    ("%Y_%m_%d", Lasts::Day),
    ("%Y-%m-%d", Lasts::Day),
    ("%Y%m%d", Lasts::Day),
    ("%Y/%m/%d/%H", Lasts::Hour),
    ("%Y_%m_%d_%H", Lasts::Hour),
    ("%Y-%m-%d-%H", Lasts::Hour),
    ("%Y%m%d%H", Lasts::Hour),
    ("%Y/%m", Lasts::Month),
    ("%Y_%m", Lasts::Month),
    ("%Y-%m", Lasts::Month),
    ("%Y%m", Lasts::Month),
    ("%m/%Y/%d", Lasts::Day),
    ("%m_%Y_%d", Lasts::Day),
    ("%m-%Y-%d", Lasts::Day),
    ("%m%Y%d", Lasts::Day),
    ("%d/%m/%Y", Lasts::Day),
    ("%d_%m_%Y", Lasts::Day),
    ("%d-%m-%Y", Lasts::Day),
    ("%d%m%Y", Lasts::Day),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lasts {
    Hour,
    Day,
    Month,
}

impl Lasts {
    /// Whether a folder that holds `time` overlaps `[start, end)`.
    fn overlaps(self, time: NaiveDateTime, start: NaiveDateTime, end: NaiveDateTime) -> bool {
        let same = match self {
            Lasts::Hour => "%Y%m%d%H",
            Lasts::Day => "%Y%m%d",
            Lasts::Month => "%Y%m",
        };
        let name = |time: NaiveDateTime| time.format(same).to_string();
        (name(start)..=name(end - Duration::milliseconds(1))).contains(&name(time))
    }
}

fn time(text: &str) -> NaiveDateTime {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").expect("a time")
}

/// Files of nine times in every form of date folder, each form below a folder of its own.
fn files_in_every_form(place: Place, window_by: &str) -> (Lab, Vec<(i64, Lasts, NaiveDateTime)>) {
    let lab = without_lookback(place, window_by);
    let times = [
        "2021-10-31T23:59:59.999",
        "2021-11-01T00:00:00",
        "2021-11-22T23:59:59.999",
        "2021-11-23T00:00:00",
        "2021-11-23T01:30:00",
        "2021-11-23T23:59:59.999",
        "2021-11-24T00:00:00",
        "2021-12-01T00:00:00",
        "2022-11-23T00:00:00",
    ]
    .map(time);
    let mut files = Vec::new();
    let mut objects = Vec::new();
    for (number, (form, lasts)) in FORMS.into_iter().enumerate() {
        for time in times {
            let id = files.len() as i64;
            let pattern = format!("raw/form{number}/{form}/%Y%m%d-%H%M%S%3f.parquet");
            objects.push((time.format(&pattern).to_string(), one_row(id).into()));
            files.push((id, lasts, time));
        }
    }
    lab.put_all(objects);
    (lab, files)
}

const FORM_WINDOWS: [(&str, &str); 5] = [
    ("2021-11-23T00:00:00", "2021-11-24T00:00:00"),
    ("2021-11-23T01:00:00", "2021-11-23T02:00:00"),
    ("2021-11-24T00:00:00", "2021-11-24T00:00:01"),
    ("2021-10-31T00:00:00", "2021-11-02T00:00:00"),
    ("2021-11-01T00:00:00", "2021-12-01T00:00:00"),
];

#[test]
fn by_name_every_form_of_date_folder_is_searched() {
    for place in PLACES {
        let (lab, files) = files_in_every_form(place, "name");
        let windows = if place == Place::S3 { &FORM_WINDOWS[..2] } else { &FORM_WINDOWS[..] };
        for (start, end) in windows {
            let window = time(start)..time(end);
            let chosen = files.iter().filter(|(_, _, at)| window.contains(at));
            let expected: Vec<i64> = chosen.map(|file| file.0).collect();
            assert_found(&lab, start, end, &expected);
        }
    }
}

#[test]
fn by_path_every_form_of_date_folder_is_read_where_it_overlaps() {
    for place in PLACES {
        let (lab, files) = files_in_every_form(place, "path");
        let windows = if place == Place::S3 { &FORM_WINDOWS[..2] } else { &FORM_WINDOWS[..] };
        for (start, end) in windows {
            let (from, to) = (time(start), time(end));
            let chosen = files.iter().filter(|(_, lasts, at)| lasts.overlaps(*at, from, to));
            let expected: Vec<i64> = chosen.map(|file| file.0).collect();
            assert_found(&lab, start, end, &expected);
        }
    }
}

#[test]
fn a_folder_of_one_day_can_hold_names_of_the_next() {
    let paths = [
        "2021/11/23/20211124-000000100.parquet",
        "2021/11/25/20211124-235959900.parquet",
        "2021/11/24/20211124-120000000.parquet",
        "2021/11/24/20211123-120000000.parquet",
        "2021/11/24/20211201-120000000.parquet",
    ];
    for place in PLACES {
        let by_name = without_lookback(place, "name");
        put(&by_name, &paths);
        assert_found(&by_name, "2021-11-24", "2021-11-25", &[0, 1, 2]);
        assert_found(&by_name, "2021-11-23", "2021-11-24", &[3]);
        let by_path = without_lookback(place, "path");
        put(&by_path, &paths);
        assert_found(&by_path, "2021-11-24", "2021-11-25", &[2, 3, 4]);
        assert_found(&by_path, "2021-11-23", "2021-11-24", &[0]);
    }
}

#[test]
fn by_path_a_file_outside_of_all_date_folders_is_refused() {
    for place in PLACES {
        let lab = lab(place, "path");
        put(&lab, &["2021/11/23/a.parquet", "shop/b.parquet"]);
        let error = lab.run("2021-11-23", "2021-11-24").expect_err("refused");
        let message = "raw/shop/b.parquet has no date in its folders";
        assert_refused(error, 65, message, "raw.window_by");
        assert_eq!(lab.list("lake"), [""; 0]);
    }
}

#[test]
fn by_name_a_file_without_a_time_in_its_name_is_refused() {
    for place in PLACES {
        for name in ["changes.parquet", "20211323-000000000.parquet"] {
            let lab = lab(place, "name");
            put(&lab, &["20211123-000000000.parquet", name]);
            let error = lab.run("2021-11-23", "2021-11-24").expect_err("refused");
            let message = format!("raw/{name} has no time in its name");
            assert_refused(error, 65, &message, "raw.full_load");
            assert_eq!(lab.list("lake"), [""; 0]);
        }
    }
}

#[test]
fn by_modified_the_time_of_a_local_file_decides_wherever_it_lies() {
    let lab = lab(Place::Local, "modified");
    let paths = [
        "a.parquet",
        "2001/01/01/20010101-000000000.parquet",
        "b.parquet",
        "c.parquet",
        "x/y/d.parquet",
    ];
    put(&lab, &paths);
    let times = [
        "2021-11-22T23:59:59.999999999Z",
        "2021-11-23T00:00:00Z",
        "2021-11-23T12:00:00.5Z",
        "2021-11-23T23:59:59.999999999Z",
        "2021-11-24T00:00:00Z",
    ];
    for (path, time) in paths.iter().zip(times) {
        let time: DateTime<Utc> = time.parse().expect("a time");
        lab.set_modified_at(&format!("raw/{path}"), time);
    }
    assert_found(&lab, "2021-11-23", "2021-11-24", &[1, 2, 3]);
    assert_found(&lab, "2021-11-22", "2021-11-23", &[0]);
    assert_found(&lab, "2021-11-24", "2021-11-25", &[4]);
    assert_found(&lab, "2021-11-23", "2021-11-23T12:00:00Z", &[1]);
    assert_found(&lab, "2021-11-23T12:00:00Z", "2021-11-23T12:00:01Z", &[2]);
}

#[test]
fn by_modified_an_s3_object_is_chosen_by_its_last_modified() {
    let lab = lab(Place::S3, "modified");
    put(&lab, &["2001/01/01/a.parquet"]);
    let modified = lab.objects("raw")[0].last_modified.trunc_subsecs(0);
    let text = |time: DateTime<Utc>| time.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let later = text(modified + Duration::seconds(1));
    assert_found(&lab, &text(modified), &later, &[0]);
    assert_eq!(found(&lab, &text(modified - Duration::hours(1)), &text(modified)).0.files, 0);
    assert_eq!(found(&lab, &later, &text(modified + Duration::hours(1))).0.files, 0);
}

#[test]
fn by_commit_the_rows_of_the_window_are_folded_and_the_others_counted() {
    for place in PLACES {
        let lab = lab(place, "commit");
        let rows = [
            (0, "2021-11-22 23:59:59.999999"),
            (1, "2021-11-23 00:00:00"),
            (2, "2021-11-23 23:59:59.999999"),
            (3, "2021-11-24 00:00:00.000000"),
            (4, "2021-11-23T12:00:00Z"),
            (5, "2021-11-24 01:00:00+02:00"),
        ];
        lab.put("raw/2001/01/01/20010101-000000000.parquet", file_of(&rows, ""));
        lab.put("raw/any.parquet", file_of(&[(6, "2020-01-01 00:00:00")], ""));
        lab.put("raw/LOAD01.parquet", file_of(&[(7, "2020-01-01 00:00:00")], ""));
        let (report, ids) = found(&lab, "2021-11-23", "2021-11-24");
        assert_eq!(ids, BTreeSet::from([1, 2, 4, 5, 7]));
        assert_eq!((report.files, report.rows_read, report.rows_outside), (3, 8, 3));
        let (report, ids) = found(&lab, "2021-11-24", "2021-11-25");
        assert_eq!((report.rows_outside, ids), (6, BTreeSet::from([3, 7])));
    }
}

/// A file of three row groups, days apart, where the data of one group is overwritten.
fn file_with_a_damaged_group(times: ArrayRef, damaged: usize) -> Vec<u8> {
    let columns = vec![("id", integers(0..6)), ("ts", times), ("origin", texts(["x"; 6]))];
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
    let mut bytes = parquet(&batch(columns), Some(properties));
    let reader = SerializedFileReader::new(Bytes::from(bytes.clone())).expect("Parquet");
    assert_eq!(reader.num_row_groups(), 3);
    for column in reader.metadata().row_group(damaged).columns() {
        let (start, length) = column.byte_range();
        bytes[start as usize..(start + length) as usize].fill(0xff);
    }
    bytes
}

#[test]
fn by_commit_row_groups_outside_of_the_window_are_not_read() {
    let as_texts = texts([
        "2021-11-20 00:00:00.000000",
        "2021-11-20 23:59:59.999999",
        "2021-11-23 00:00:00.000000",
        "2021-11-23 23:59:59.999999",
        "2021-11-26 00:00:00.000000",
        "2021-11-26 12:00:00.000000",
    ]);
    let first = NaiveDate::from_ymd_opt(2021, 11, 20)
        .and_then(|day| day.and_hms_opt(0, 0, 0))
        .expect("a day")
        .and_utc()
        .timestamp_micros();
    let as_timestamps = timestamps(
        [0, DAY_US - 1, 3 * DAY_US, 4 * DAY_US - 1, 6 * DAY_US, 7 * DAY_US - 1]
            .map(|us| first + us),
    );
    for place in PLACES {
        for times in [&as_texts, &as_timestamps] {
            let lab = lab(place, "commit");
            lab.put("raw/a.parquet", file_with_a_damaged_group(times.clone(), 1));
            for (start, end, expected) in
                [("2021-11-20", "2021-11-21", [0, 1]), ("2021-11-26", "2021-11-27", [4, 5])]
            {
                let (report, ids) = found(&lab, start, end);
                assert_eq!(ids, BTreeSet::from(expected));
                assert_eq!((report.rows_read, report.rows_outside, report.rows_latest), (6, 4, 2));
            }
            // A window that needs the damaged group is refused.
            let error = lab.run("2021-11-23", "2021-11-24").expect_err("refused");
            let message = "raw/a.parquet is not a readable Parquet file";
            assert_refused(error, 65, message, "");
        }
    }
}

#[test]
fn a_full_load_is_folded_once_by_the_first_run_that_finds_it() {
    for place in PLACES {
        for window_by in ["name", "path"] {
            let lab = lab(place, window_by);
            put(
                &lab,
                &[
                    "LOAD00000001.parquet",
                    "2021/11/22/20211122-000000000.parquet",
                    "2021/11/23/20211123-000000000.parquet",
                ],
            );
            let first = lab.run("2021-11-22", "2021-11-23").expect("a run");
            assert_eq!((first.files, first.late_files), (2, 0));
            assert_eq!(ids(&lab, "lake/curated"), BTreeSet::from([0, 1]));
            let again = lab.run("2021-11-22", "2021-11-23").expect("a run");
            assert_eq!((again.files, again.rows_read), (1, 1));
            let wider = lab.run("2021-11-22", "2021-11-24").expect("a run");
            assert_eq!((wider.files, wider.late_files), (2, 0));
            assert_eq!(ids(&lab, "lake/curated"), BTreeSet::from([0, 1, 2]));
            // A full load alone is folded by the first run that finds it.
            let alone = self::lab(place, window_by);
            put(&alone, &["LOAD00000001.parquet"]);
            assert_found(&alone, "2001-01-01", "2001-01-02", &[0]);
        }
    }
}

#[test]
fn more_objects_than_one_listing_holds_are_all_found() {
    for place in PLACES {
        let lab = without_lookback(place, "name");
        let name = |n: i64| {
            let day = if n % 110 == 0 { 24 } else { 23 };
            format!("raw/202111{day}-{:02}{:02}00000.parquet", n / 60, n % 60)
        };
        let objects = (0..1100).map(|id| (name(id), one_row(id).into()));
        lab.put_all(objects.collect());
        let all: BTreeSet<i64> = (0..1100).collect();
        let (one_day, other): (Vec<i64>, Vec<i64>) = all.iter().partition(|id| *id % 110 != 0);
        assert_found(&lab, "2021-11-24", "2021-11-25", &other);
        if place == Place::Local {
            assert_found(&lab, "2021-11-23", "2021-11-24", &one_day);
        }
        let (report, ids) = found(&lab, "2021-11-23", "2021-11-25");
        assert_eq!((report.files, ids), (1100, all));
    }
}

#[test]
fn a_folder_with_very_many_files_is_listed_from_the_look_back_on() {
    for place in PLACES {
        let lab = builder(place, "name").set("raw.lookback", "1d").build();
        // A file every ten minutes, of twelve keys.
        let objects = |numbers: std::ops::Range<i64>| {
            let name = |n: i64| {
                let (day, hour, minute) = (1 + n / 144, n / 6 % 24, n % 6 * 10);
                format!("raw/202111{day:02}-{hour:02}{minute:02}00000.parquet")
            };
            numbers.map(|n| (name(n), one_row(n % 12).into())).collect()
        };
        lab.put_all(objects(0..9 * 144));
        lab.run("2021-11-01", "2021-11-10").expect("a run");
        lab.put_all(objects(9 * 144..10 * 144));
        put(&lab, &["LOAD00000001.parquet", "20211109-120100000.parquet"]);
        let (recorded, requests) = lab.recorded();
        let report = recorded.run("2021-11-10", "2021-11-11").expect("a run");
        assert_eq!((report.files, report.late_files), (144 + 2, 1));
        let begins =
            |(verb, at): &(&str, String)| *verb == "LIST" && at.ends_with("raw/20211108-210000");
        assert_eq!(requests.seen().iter().any(begins), place == Place::S3);
        // Date folders of the window, wherever their names are among those of the files.
        for (folder, top) in [
            ("2021/11/10", "2021"),
            ("2021_11_10", "2021_11_10"),
            ("2021-11-10", "2021-11-10"),
            ("20211110", "20211110"),
            ("2021111023", "2021111023"),
            ("202111", "202111"),
            ("10112021", "10112021"),
            ("table/20211110", "table"),
        ] {
            let path = format!("raw/{folder}/20211110-235900000.parquet");
            lab.put(&path, one_row(1));
            let report = lab.run("2021-11-10", "2021-11-11").expect("a run");
            assert_eq!(report.files, 144 + 1, "{folder}");
            lab.remove_all(&format!("raw/{top}"));
        }
    }
}

#[test]
fn hidden_files_and_files_of_other_formats_are_left_alone() {
    for place in PLACES {
        for window_by in ["name", "commit"] {
            let lab = lab(place, window_by);
            put(&lab, &["20211123-000000000.parquet"]);
            for name in [
                "_SUCCESS",
                ".20211123-000000000.parquet.crc",
                ".hidden.parquet",
                "_metadata.parquet",
                "20211123-000000000.json",
                "20211123-000000000.parquet.gz",
                "notes.txt",
                "parquet",
            ] {
                lab.put(&format!("raw/{name}"), "not Parquet");
            }
            let report = lab.run("2019-01-01", "2022-01-01").expect("a run");
            assert_eq!(report.files, 1);
            assert_eq!(ids(&lab, "lake/curated"), BTreeSet::from([0]));
        }
    }
}

#[test]
fn a_file_that_came_late_is_read_by_a_wider_window() {
    for place in PLACES {
        let lab = lab(place, "name");
        put(&lab, &["20211101-000000000.parquet", "20211102-000000000.parquet"]);
        lab.run("2021-11-01", "2021-11-03").expect("a run");
        lab.put("raw/20211102-120000000.parquet", one_row(2));
        lab.put("raw/20211103-120000000.parquet", one_row(3));
        let report = lab.run("2021-11-01", "2021-11-04").expect("a run");
        assert_eq!((report.files, report.late_files), (4, 0));
        assert_eq!(ids(&lab, "lake/curated"), BTreeSet::from([0, 1, 2, 3]));
    }
}

#[test]
fn a_late_file_within_the_lookback_is_found_and_counted() {
    for place in PLACES {
        let lab = builder(place, "name").set("raw.lookback", "2d").build();
        put(&lab, &["20211104-000000000.parquet"]);
        lab.run("2021-11-01", "2021-11-05").expect("a run");
        lab.put("raw/20211102-000000000.parquet", one_row(1));
        lab.put("raw/20211101-235959999.parquet", one_row(2));
        let report = lab.run("2021-11-04", "2021-11-06").expect("a run");
        assert_eq!((report.files, report.late_files), (2, 1));
        assert_eq!(ids(&lab, "lake/curated"), BTreeSet::from([0, 1]));
    }
}

#[test]
fn a_file_before_the_window_is_not_late_when_its_own_window_was_never_run() {
    let lab = builder(Place::Local, "name").set("raw.lookback", "30d").build();
    put(&lab, &["20211104-000000000.parquet", "20211102-000000000.parquet"]);
    for _ in 0..2 {
        let report = lab.run("2021-11-04", "2021-11-06").expect("a run");
        assert_eq!((report.files, report.late_files), (1, 0));
        assert_eq!(ids(&lab, "lake/curated"), BTreeSet::from([0]));
    }
}

#[test]
fn an_input_that_vanished_is_reported_and_nothing_of_it_is_lost() {
    for place in PLACES {
        let lab = lab(place, "name");
        put(&lab, &["20211101-120000000.parquet", "20211102-120000000.parquet"]);
        lab.run("2021-11-01", "2021-11-03").expect("a run");
        let before = lab.table("lake/curated");
        lab.remove("raw/20211101-120000000.parquet");
        for (start, noted) in [("2021-11-01", true), ("2021-11-02", false)] {
            let report = lab.run(start, "2021-11-03").expect("a run");
            let note = report.note.unwrap_or_default();
            assert_eq!(note.contains("20211101-120000000.parquet"), noted, "{note}");
            assert_eq!(lab.table("lake/curated"), before);
        }
    }
}

#[test]
fn an_input_in_a_date_folder_of_another_day_is_not_taken_for_missing() {
    for place in PLACES {
        let lab = lab(place, "name");
        put(&lab, &["2021/11/01/20211201-040000000.parquet", "20211201-050000000.parquet"]);
        let report = lab.run("2021-12-01", "2021-12-02").expect("a run");
        assert_eq!(report.files, 1);
        assert_eq!(lab.catch_up(&[]).expect("caught up").files, 1);
        let report = lab.run("2021-12-01", "2021-12-02").expect("a run");
        assert_eq!((report.files, report.note), (2, None));
    }
}

#[test]
fn an_input_that_changed_since_it_was_folded_is_refused_and_nothing_changes() {
    let path = "20211101-120000000.parquet";
    for place in PLACES {
        for (changed, window) in [
            (path, ("2021-11-01", "2021-11-02")),
            // Every run looks at full loads.
            ("LOAD00000001.parquet", ("2021-11-05", "2021-11-06")),
        ] {
            let lab = lab(place, "name");
            put(&lab, &[path, "LOAD00000001.parquet"]);
            lab.run("2021-11-01", "2021-11-02").expect("a run");
            let before = (lab.contents("lake"), lab.list_all("lake/_glueless"));
            let original = lab.get(&format!("raw/{changed}"));
            lab.put(&format!("raw/{changed}"), one_row(99));
            let error = lab.run(window.0, window.1).expect_err("refused");
            assert!(error.to_string().contains(changed), "{error}");
            assert_refused(error, 65, "has changed since", "glueless rebuild");
            assert_eq!((lab.contents("lake"), lab.list_all("lake/_glueless")), before);
            if place == Place::S3 {
                // The same content again is the same input.
                lab.put(&format!("raw/{changed}"), original);
                lab.run(window.0, window.1).expect("a run");
            }
        }
    }
}

#[test]
fn what_appears_in_a_window_that_was_empty_is_late() {
    for place in PLACES {
        for window_by in ["name", "commit"] {
            let lab = lab(place, window_by);
            put(&lab, &["20211101-120000000.parquet"]);
            let report = lab.run("2021-11-02", "2021-11-03").expect("an empty run");
            assert_eq!(report.rows_latest, 0, "{window_by}");
            let late = file_of(&[(7, "2021-11-02 12:00:00")], "late");
            lab.put("raw/20211102-120000000.parquet", late);
            let report = lab.run("2021-11-03", "2021-11-04").expect("a run");
            assert_eq!(report.rows_latest, 1, "{window_by}: {report:?}");
            assert_eq!(ids(&lab, "lake/curated"), BTreeSet::from([7]), "{window_by}");
        }
    }
}

#[test]
fn several_raw_urls_are_read_together_and_the_later_one_wins_a_tie() {
    for place in PLACES {
        let lab = lab(place, "name");
        let set = format!("raw.url=[\"{0}/raw/b\", \"{0}/raw/a\"]", lab.base);
        let same = [(1, "2021-11-01 00:00:00")];
        let name = "20211101-120000000.parquet";
        lab.put(&format!("raw/a/{name}"), file_of(&same, "a"));
        lab.put(&format!("raw/b/{name}"), file_of(&same, "b"));
        lab.put("raw/a/20211102-120000000.parquet", file_of(&[(2, "2021-11-02 00:00:00")], "a"));
        lab.put("raw/20211101-130000000.parquet", one_row(3));
        for _ in 0..2 {
            let report =
                lab.run_with(Task::Run, "2021-11-01", "2021-11-03", &[&set]).expect("a run");
            assert_eq!((report.files, report.rows_read, report.ties), (3, 3, 1));
            assert_eq!(lab.lines("lake/curated", ["id", "origin"]), ["1 a", "2 a"]);
        }
    }
}

#[test]
fn a_raw_folder_that_does_not_exist_is_refused() {
    for window_by in ["name", "modified", "commit"] {
        let lab = lab(Place::Local, window_by);
        let set = format!("raw.url={}/rwa", lab.base);
        let refused = lab.run_with(Task::Run, "2021-11-01", "2021-11-03", &[&set]);
        let error = refused.expect_err("refused");
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.to_string().ends_with("rwa is not an existing folder"), "{error}");
    }
}
