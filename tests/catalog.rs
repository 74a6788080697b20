//! Tables of the AWS Glue catalog follow the published ones, in place of a crawler.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::support::{
    Answer, COUNT_PER_DAY, Glue, GlueProxy, Lab, LabBuilder, Place, Task, Trouble, assert_refused,
    day, integers, test_times, texts, timestamps,
};

fn builder(glue: &Glue) -> LabBuilder {
    let builder = Lab::builder().place(Place::S3).set("catalog.glue", glue.database.as_str());
    builder.aggregate("Daily", COUNT_PER_DAY)
}

/// The partitions that a table should have: values and locations.
fn published(lab: &Lab, table: &str) -> BTreeMap<Vec<String>, String> {
    let files = lab.list(table).into_iter();
    let folders: BTreeSet<String> =
        files.filter_map(|path| Some(path.rsplit_once('/')?.0.to_string())).collect();
    let values = |folder: &str| {
        folder.split('/').map(|part| part.split_once('=').expect("a value").1.to_string()).collect()
    };
    let location = |folder: &str| format!("{}/{table}/{folder}/", lab.base);
    folders.iter().map(|folder| (values(folder), location(folder))).collect()
}

#[test]
fn the_catalog_follows_every_run() {
    let glue = Glue::new();
    let lab = builder(&glue).build().with_catalog();
    lab.put_day(1, &[("I", 1, "a"), ("I", 2, "b"), ("I", 3, "b")]);
    lab.put_day(2, &[("D", 1, "a"), ("U", 2, "b"), ("I", 4, "c")]);
    let first = lab.run_days(1, 2).followers;
    assert_eq!(first[0].name, format!("glue:{}.lab", glue.database));
    assert_eq!((first[0].from_commit, first[0].partitions_written), (None, 2));
    assert_eq!(
        glue.columns("lab"),
        [vec!["id bigint", "v bigint"], vec!["event_dt date", "cat string"]]
    );
    assert_eq!(glue.columns("daily"), [vec!["n bigint"], vec!["dt date"]]);
    for (table, name) in [("lake/curated", "lab"), ("lake/Daily", "daily")] {
        assert_eq!(glue.partitions(name), published(&lab, table));
    }
    // A partition is emptied, others are new.
    let second = lab.run_days(2, 3).followers;
    assert_eq!(second[0].from_commit, Some(first[0].to_commit));
    assert_eq!((second[0].partitions_written, second[0].partitions_removed), (2, 1));
    for (table, name) in [("lake/curated", "lab"), ("lake/Daily", "daily")] {
        assert_eq!(glue.partitions(name), published(&lab, table));
    }
    let table = glue.table("lab");
    assert_eq!(table["Parameters"]["glueless.commit"], second[0].to_commit.to_string());
    assert_eq!(table["TableType"], "EXTERNAL_TABLE");
    assert_eq!(table["StorageDescriptor"]["Location"], format!("{}/lake/curated/", lab.base));
    // Runs that no follower saw, and a rebuild.
    lab.put_day(3, &[("D", 3, "b"), ("I", 1, "a")]);
    lab.run_with(Task::Curate, &day(3), &day(4), &[]).expect("a run");
    let report = lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(report.exit_code(), 0, "{:?}", report.followers);
    assert_eq!(glue.partitions("lab"), published(&lab, "lake/curated"));
}

#[test]
fn what_others_have_changed_is_mended() {
    let glue = Glue::new();
    let lab = builder(&glue).build().with_catalog();
    let rows = [("I", 1, "a"), ("I", 2, "b/c: %"), ("I", 3, "c")];
    lab.put_day(1, &rows);
    // A crawler was there before, and has read the types in its own way.
    let storage = json!({
        "Columns": [{"Name": "id", "Type": "string", "Comment": "the customer"}],
        "Location": format!("{}/lake/curated", lab.base),
        "InputFormat": "org.apache.hadoop.mapred.TextInputFormat",
    });
    glue.call(
        "create_table",
        json!({"DatabaseName": glue.database, "TableInput": {
            "Name": "lab",
            "Description": "loyalty",
            "StorageDescriptor": storage,
            "PartitionKeys": [{"Name": "event_dt", "Type": "string"}, {"Name": "cat", "Type": "string"}],
            "Parameters": {"UPDATED_BY_CRAWLER": "hourly", "owner": "data"},
        }}),
    );
    glue.call(
        "create_partition",
        json!({"DatabaseName": glue.database, "TableName": "lab", "PartitionInput": {
            "Values": ["2020-01-01", "a"], "StorageDescriptor": storage,
        }}),
    );
    lab.run_days(1, 2);
    let wanted = published(&lab, "lake/curated");
    let unescaped: BTreeMap<Vec<String>, String> = wanted
        .into_iter()
        .map(|(values, location)| {
            let decode =
                |value: String| value.replace("%2F", "/").replace("%3A", ":").replace("%25", "%");
            (values.into_iter().map(decode).collect(), location)
        })
        .collect();
    let check = || {
        assert_eq!(glue.partitions("lab"), unescaped);
        assert_eq!(
            glue.columns("lab"),
            [vec!["id bigint", "v bigint"], vec!["event_dt date", "cat string"]]
        );
        let table = glue.table("lab");
        assert_eq!(table["Parameters"]["owner"], "data");
        assert_eq!(table["Description"], "loyalty");
        assert_eq!(table["StorageDescriptor"]["Columns"][0]["Comment"], "the customer");
        let arguments = json!({"DatabaseName": glue.database, "TableName": "lab"});
        let found = glue.call("get_partitions", arguments);
        for partition in found["Partitions"].as_array().expect("partitions") {
            assert_eq!(partition["StorageDescriptor"]["Columns"][0]["Type"], "bigint");
        }
    };
    check();
    // Someone deletes a partition, adds another and changes a type.
    let place = json!({"DatabaseName": glue.database, "TableName": "lab"});
    let with = |name: &str, value: serde_json::Value| {
        let mut arguments = place.clone();
        arguments[name] = value;
        arguments
    };
    glue.call("delete_partition", with("PartitionValues", json!(["2020-01-01", "a"])));
    let other = json!({"Values": ["1999-01-01", "x"], "StorageDescriptor": storage});
    glue.call("create_partition", with("PartitionInput", other));
    let repaired = lab.catalog().expect("registered").followers;
    assert_eq!((repaired[0].partitions_written, repaired[0].partitions_removed), (1, 1));
    check();
    let again = lab.catalog().expect("registered").followers;
    assert_eq!((again[0].partitions_written, again[0].partitions_removed), (0, 0));
}

#[test]
fn tables_of_others_stay() {
    let glue = Glue::new();
    let lab = builder(&glue).build().with_catalog();
    lab.put_day(1, &[("I", 1, "a")]);
    let table = |parameters: serde_json::Value| {
        json!({"DatabaseName": glue.database, "TableInput": {
            "Name": "lab",
            "StorageDescriptor": {"Columns": [], "Location": "s3://elsewhere/table/"},
            "Parameters": parameters,
        }})
    };
    glue.call("create_table", table(json!({})));
    let report = lab.run_days(1, 2);
    assert_eq!(report.exit_code(), 2);
    let error = report.followers[0].error.clone().expect("an error");
    assert!(error.contains("is at s3://elsewhere/table/"), "{error}");
    glue.call("update_table", table(json!({"glueless.pipeline": "other"})));
    assert_refused(
        lab.catalog().expect_err("refused"),
        2,
        "of the pipeline `other`",
        "catalog.table",
    );
    lab.edit_pipeline("glue =", "table = \"lab_2\"\nglue =");
    lab.catalog().expect("registered");
    assert_eq!(glue.partitions("lab_2"), published(&lab, "lake/curated"));
    lab.edit_pipeline(&glue.database, "none");
    assert_refused(lab.catalog().expect_err("refused"), 2, "no database `none`", "create-database");
}

#[test]
fn calls_that_are_throttled_or_lose_their_reply_are_repeated() {
    let glue = Glue::new();
    let mut lab = builder(&glue).partition_by(&["cat"]).build().with_catalog();
    let proxy = GlueProxy::new(&[
        ("GetTable", 1, Trouble::Throttled),
        ("CreateTable", 1, Trouble::ReplyLost),
        ("BatchCreatePartition", 2, Trouble::ReplyLost),
        ("UpdateTable", 1, Trouble::Throttled),
        ("BatchDeletePartition", 1, Trouble::ReplyLost),
    ]);
    lab.environment.insert("AWS_ENDPOINT_URL_GLUE".into(), proxy.url.clone());
    lab.put_day(1, &[("I", 1, "a"), ("I", 2, "b")]);
    lab.put_day(2, &[("D", 1, "a")]);
    for first in [1, 2] {
        let report = lab.run_days(first, first + 1);
        assert_eq!(report.exit_code(), 0, "{:?}", report.followers);
        assert_eq!(glue.partitions("lab"), published(&lab, "lake/curated"));
    }
    // A catalog that is not there.
    lab.environment.insert("AWS_ENDPOINT_URL_GLUE".into(), "http://127.0.0.1:1".into());
    lab.environment.insert("AWS_MAX_ATTEMPTS".into(), "1".into());
    lab.put_day(3, &[("I", 5, "e")]);
    let report = lab.run_days(3, 4);
    assert_eq!(report.exit_code(), 69, "{:?}", report.followers);
    lab.environment.remove("AWS_ENDPOINT_URL_GLUE");
    lab.catalog().expect("registered");
    assert_eq!(glue.partitions("lab"), published(&lab, "lake/curated"));
}

#[test]
fn many_partitions_are_added_and_removed_in_batches() {
    // `make test-long` takes more of them.
    let count = if test_times() > 1 { 10_000 } else { 1_200 };
    let glue = Glue::new();
    let builder = Lab::builder().place(Place::S3).set("catalog.glue", glue.database.as_str());
    let mut lab = builder.partition_by(&["id"]).build().with_catalog();
    let put = |lab: &Lab, day: i64, op: &str, ids: std::ops::Range<i64>| {
        let length = (ids.end - ids.start) as usize;
        let columns = vec![
            ("Op", texts(vec![op; length])),
            ("id", integers(ids)),
            ("cat", texts(vec!["a"; length])),
            ("v", integers(vec![day; length])),
            ("ts", timestamps(vec![crate::support::FIRST_DAY_US + day; length])),
        ];
        lab.put_columns(&format!("raw/202001{day:02}-000000000.parquet"), columns);
    };
    let proxy = GlueProxy::new(&[]);
    lab.environment.insert("AWS_ENDPOINT_URL_GLUE".into(), proxy.url.clone());
    put(&lab, 1, "I", 0..count);
    let first = lab.run_days(1, 2).followers;
    assert_eq!(first[0].partitions_written, count as u64, "{first:?}");
    let of =
        |calls: &[String], name: &str| calls.iter().filter(|call| *call == name).count() as i64;
    assert_eq!(of(&proxy.calls(), "BatchCreatePartition"), count / 100);
    put(&lab, 2, "D", 0..60);
    let second = lab.run_days(2, 3).followers;
    assert_eq!((second[0].partitions_written, second[0].partitions_removed), (0, 60));
    let calls = proxy.calls();
    assert_eq!((of(&calls, "BatchDeletePartition"), of(&calls, "BatchCreatePartition")), (3, 0));
    assert_eq!(glue.partitions("lab"), published(&lab, "lake/curated"));
}

#[test]
fn athena_computes_partitions_by_properties_of_the_table() {
    let glue = Glue::new();
    let mut lab = builder(&glue).set("catalog.mode", "projection").build().with_catalog();
    let proxy = GlueProxy::new(&[]);
    lab.environment.insert("AWS_ENDPOINT_URL_GLUE".into(), proxy.url.clone());
    lab.put_day(1, &[("I", 1, "a"), ("I", 2, "b")]);
    lab.put_day(2, &[("I", 3, "b"), ("I", 4, "a b")]);
    lab.now = "2020-01-05T00:00:00Z".parse().expect("a time");
    lab.run_days(1, 3);
    let table = glue.table("lab");
    let parameters = table["Parameters"].as_object().expect("parameters");
    let projected: Vec<String> = parameters
        .iter()
        .filter(|(name, _)| name.starts_with("projection."))
        .map(|(name, value)| format!("{name}={}", value.as_str().expect("a text")))
        .collect();
    assert_eq!(
        projected,
        [
            "projection.cat.type=enum",
            "projection.cat.values=a,a b,b",
            "projection.enabled=true",
            "projection.event_dt.format=yyyy-MM-dd",
            "projection.event_dt.interval=1",
            "projection.event_dt.interval.unit=DAYS",
            "projection.event_dt.range=2020-01-01,NOW+1DAYS",
            "projection.event_dt.type=date",
        ]
    );
    assert!(!proxy.calls().iter().any(|call| call.contains("Partition")));
    // Rows that a reader would not see are refused.
    lab.put_day(3, &[("I", 5, "x,y")]);
    let report = lab.run_days(3, 4);
    assert_eq!(report.exit_code(), 2);
    let error = report.followers[0].error.clone().expect("an error");
    assert!(error.contains("a value of `cat` has a comma"), "{error}");
}

#[test]
fn a_location_is_that_of_the_objects() {
    let glue = Glue::new();
    let lab = builder(&glue).set("curated.url", "{base}/lake/my é curated").build().with_catalog();
    lab.put_day(1, &[("I", 1, "a")]);
    assert_eq!(lab.run_days(1, 2).exit_code(), 0);
    assert_eq!(glue.partitions("lab"), published(&lab, "lake/my é curated"));
}

#[test]
fn a_delta_table_is_registered_as_one() {
    let glue = Glue::new();
    let lab = builder(&glue).format("delta").build().with_catalog();
    lab.put_day(1, &[("I", 1, "a")]);
    let report = lab.run_days(1, 2);
    assert_eq!(report.exit_code(), 0, "{:?}", report.followers);
    let table = glue.table("lab");
    assert_eq!(table["Parameters"]["table_type"], "delta");
    assert!(glue.partitions("lab").is_empty());
    assert_eq!(glue.partitions("daily"), published(&lab, "lake/Daily"));
}
