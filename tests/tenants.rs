//! Columns that are said by where raw files are: those of sources, and of folders.

use proptest::prelude::*;
use toml::{Table, Value};

use crate::support::{
    Kind, Lab, LabBuilder, PLACES, Place, Program, assert_refused, environment_of, file_of_rows,
};

const COLUMNS: [&str; 4] = ["Op", "ts", "id", "v"];

/// A list of sources: their folders and tenants.
fn sources(all: &[(&str, &str)]) -> Value {
    let source = |(url, tenant): &(&str, &str)| {
        let columns = Table::from_iter([("tenant".to_string(), Value::from(*tenant))]);
        Value::Table(Table::from_iter([
            ("url".to_string(), Value::from(format!("{{base}}/raw/{url}"))),
            ("columns".to_string(), Value::Table(columns)),
        ]))
    };
    Value::Array(all.iter().map(source).collect())
}

fn builder() -> LabBuilder {
    Lab::builder()
        .window_by("name")
        .set("key", vec!["tenant", "id"])
        .set("raw.order_by", vec!["ts"])
        .partition_by(&["tenant"])
        .curated_sql("SELECT CAST(tenant AS VARCHAR) AS tenant, CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v FROM latest")
}

fn of_sources(all: &[(&str, &str)]) -> LabBuilder {
    builder().unset("raw.url").set("raw.source", sources(all))
}

fn put(lab: &Lab, name: &str, rows: &[[&str; 4]]) {
    lab.put(&format!("raw/{name}.parquet"), file_of_rows(&COLUMNS, rows));
}

fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["tenant", "id", "v"])
}

const BOTH: [(&str, &str); 2] = [("acme", "acme"), ("beta", "Beta & co")];
const ALL: (&str, &str) = ("2020-01-01", "2020-02-01");

#[test]
fn tenants_with_the_same_keys_have_rows_of_their_own() {
    for place in PLACES {
        let lab = of_sources(&BOTH).place(place).build();
        for (folder, v) in [("acme", "1"), ("beta", "2")] {
            lab.put(
                &format!("raw/{folder}/LOAD00000001.parquet"),
                file_of_rows(&["id", "v"], &[["1", v], ["2", v]]),
            );
        }
        put(&lab, "acme/20200102-100000000", &[["U", "2020-01-02 09:00:00", "1", "10"]]);
        put(&lab, "beta/20200102-100000000", &[["D", "2020-01-02 09:00:00", "1", "-"]]);
        lab.run(ALL.0, ALL.1).expect("a run");
        assert_eq!(curated(&lab), ["Beta & co 2 2", "acme 1 10", "acme 2 1"]);
        assert!(lab.list("lake/curated").iter().any(|path| path.starts_with("tenant=Beta & co/")));
        lab.assert_verified();
        let explained = lab.explain(&["acme", "1"]);
        assert_eq!(explained.changes.len(), 2, "of this tenant alone");
        // Late, and again.
        put(&lab, "beta/20200101-100000000", &[["U", "2020-01-01 09:00:00", "2", "5"]]);
        lab.run(ALL.0, ALL.1).expect("a run");
        assert_eq!(curated(&lab), ["Beta & co 2 5", "acme 1 10", "acme 2 1"]);
        lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(curated(&lab), ["Beta & co 2 5", "acme 1 10", "acme 2 1"]);
    }
}

#[test]
fn folders_say_columns_of_declared_types() {
    let lab = builder()
        .window_by("path")
        .set("raw.path_columns", vec!["tenant", "Region"])
        .raw_columns(&[("tenant", "BIGINT")])
        .curated_sql("SELECT CAST(tenant AS BIGINT) AS tenant, CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, \"Region\" AS region FROM latest")
        .build();
    put(&lab, "tenant=7/region=e%2Fu/2020/01/02/a", &[["I", "2020-01-02 09:00:00", "1", "1"]]);
    put(&lab, "tenant=8/2020/01/02/a", &[["I", "2020-01-02 09:00:00", "1", "2"]]);
    put(
        &lab,
        "tenant=9/region=__HIVE_DEFAULT_PARTITION__/2020/01/02/a",
        &[["I", "2020-01-02 09:00:00", "1", "3"]],
    );
    lab.run(ALL.0, ALL.1).expect("a run");
    let rows = lab.lines("lake/curated", ["tenant", "id", "v", "region"]);
    assert_eq!(rows, ["7 1 1 e/u", "8 1 2 -", "9 1 3 -"]);
    lab.assert_verified();
    // A value that is none of the type is bad, and so is a key without one.
    put(&lab, "tenant=x/2020/01/03/a", &[["I", "2020-01-03 09:00:00", "1", "1"]]);
    let error = lab.run(ALL.0, ALL.1).expect_err("refused");
    assert!(error.to_string().contains("column `tenant` does not fit"), "{error}");
    lab.remove("raw/tenant=x/2020/01/03/a.parquet");
    put(&lab, "2020/01/03/a", &[["I", "2020-01-03 09:00:00", "1", "1"]]);
    let error = lab.run(ALL.0, ALL.1).expect_err("refused");
    assert!(error.to_string().contains("column `tenant` is null"), "{error}");
}

#[test]
fn text_files_get_the_columns_too() {
    let csv = of_sources(&BOTH)
        .set("raw.format", "csv")
        .raw_columns(&[("Op", "VARCHAR"), ("id", "BIGINT"), ("v", "BIGINT"), ("ts", "TIMESTAMP")])
        .build();
    let json = of_sources(&BOTH).set("raw.format", "json").build();
    for folder in ["acme", "beta"] {
        csv.put(&format!("raw/{folder}/20200102-100000000.csv"), "I,1,2,2020-01-02 09:00:00\n");
        let line = "{\"Op\":\"I\",\"id\":1,\"v\":2,\"ts\":\"2020-01-02 09:00:00\"}\n";
        json.put(&format!("raw/{folder}/20200102-100000000.json"), line);
    }
    for lab in [csv, json] {
        lab.run(ALL.0, ALL.1).expect("a run");
        assert_eq!(curated(&lab), ["Beta & co 1 2", "acme 1 2"]);
        lab.assert_verified();
    }
}

/// Changes of two tenants: the number of the file, the tenant, operation, second, key and value.
type Change = (usize, bool, &'static str, u32, i64, i64);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let operation = proptest::sample::select(vec!["I", "U", "U", "D"]);
    let change = (0..6usize, any::<bool>(), operation, 0..5u32, 1..4i64, 0..100i64);
    proptest::collection::vec(change, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_column_of_the_folder_is_as_one_of_the_rows(
        changes in changes(),
        keep in proptest::sample::select(vec!["latest", "latest-per-day", "history"]),
        order_by in proptest::sample::select(vec![vec!["ts"], vec!["ts", "tenant"]]),
    ) {
        let keyed = |builder: LabBuilder| {
            builder.keep(keep).set("raw.order_by", order_by.clone()).partition_by(&["tenant", "event_dt"]).curated_sql(
                "SELECT CAST(tenant AS VARCHAR) AS tenant, CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, event_dt FROM latest",
            )
        };
        let of_folders = keyed(builder().set("raw.path_columns", vec!["tenant"])).build();
        let of_rows = keyed(builder()).build();
        for file in 0..6 {
            for (is_first, tenant) in [(true, "acme"), (false, "beta")] {
                let rows: Vec<[String; 5]> = changes
                    .iter()
                    .filter(|change| change.0 == file && change.1 == is_first)
                    .map(|(_, _, op, second, id, v)| {
                        let ts = format!("2020-01-0{} 10:00:00", 1 + second);
                        let v = if *op == "D" { "-".into() } else { v.to_string() };
                        [op.to_string(), ts, id.to_string(), v, tenant.to_string()]
                    })
                    .collect();
                if rows.is_empty() {
                    continue;
                }
                let name = format!("tenant={tenant}/2020010{}-000000000.parquet", 1 + file);
                let named = ["Op", "ts", "id", "v", "tenant"];
                of_rows.put(&format!("raw/{name}"), file_of_rows(&named, &rows));
                let rows: Vec<&[String]> = rows.iter().map(|row| &row[..4]).collect();
                of_folders.put(&format!("raw/{name}"), file_of_rows(&named[..4], &rows));
            }
        }
        for days in [(3, 5), (1, 4), (1, 8)] {
            of_folders.run_days(days.0, days.1);
            of_rows.run_days(days.0, days.1);
        }
        prop_assert_eq!(of_folders.table("lake/curated"), of_rows.table("lake/curated"));
        of_folders.assert_verified();
    }
}

#[test]
fn a_tenant_that_is_added_later_is_folded_by_the_next_run() {
    let lab = of_sources(&BOTH[..1]).build();
    put(&lab, "acme/20200102-100000000", &[["I", "2020-01-02 09:00:00", "1", "1"]]);
    lab.run("2020-01-02", "2020-01-03").expect("a run");
    lab.put("raw/beta/LOAD00000001.parquet", file_of_rows(&["id", "v"], &[["1", "7"], ["2", "7"]]));
    put(&lab, "beta/20200103-100000000", &[["D", "2020-01-03 09:00:00", "2", "-"]]);
    let with = |all: &[(&str, &str)]| {
        let toml = std::fs::read_to_string(lab.pipeline.join("pipeline.toml")).expect("TOML");
        let mut table: Table = toml.parse().expect("TOML");
        let text = sources(all).to_string().replace("{base}", &lab.base);
        let value: Table = format!("source = {text}").parse().expect("TOML");
        let raw = table.get_mut("raw").and_then(Value::as_table_mut).expect("a section");
        raw.insert("source".into(), value["source"].clone());
        lab.write_file("pipeline.toml", &toml::to_string(&table).expect("TOML"));
    };
    with(&BOTH);
    lab.run("2020-01-03", "2020-01-04").expect("a run");
    assert_eq!(curated(&lab), ["Beta & co 1 7", "acme 1 1"]);
    lab.assert_verified();
    // Another name of a tenant, or another order, would give its rows to another one.
    for other in [[("acme", "other"), BOTH[1]], [BOTH[1], BOTH[0]]] {
        with(&other);
        let error = lab.run("2020-01-03", "2020-01-04").expect_err("refused");
        assert!(error.to_string().contains("`raw.source` changed"), "{error}");
    }
}

#[test]
fn a_key_is_forgotten_for_its_tenant_alone() {
    let lab = of_sources(&BOTH).set("raw.on_bad_row", "quarantine").build();
    for folder in ["acme", "beta"] {
        put(
            &lab,
            &format!("{folder}/20200102-100000000"),
            &[["I", "2020-01-02 09:00:00", "1", "1"], ["?", "2020-01-02 09:00:01", "1", "9"]],
        );
    }
    let report = lab.run(ALL.0, ALL.1).expect("a run");
    let folder = report.quarantine.expect("quarantined");
    let quarantine = |lab: &Lab| -> Vec<String> {
        let path = folder.strip_prefix(&format!("{}/", lab.base)).expect("below");
        lab.table(path).iter().filter_map(|row| row.get("change").cloned()).collect()
    };
    let rows = quarantine(&lab);
    assert!(rows.iter().any(|row| row.contains("\"tenant\":\"acme\"")), "{rows:?}");
    lab.forget(&["acme,1"], false).expect("forgotten");
    assert_eq!(curated(&lab), ["Beta & co 1 1"]);
    let rows = quarantine(&lab);
    assert!(rows.len() == 1 && rows[0].contains("Beta"), "{rows:?}");
    put(&lab, "acme/20200103-100000000", &[["U", "2020-01-03 09:00:00", "1", "2"]]);
    lab.run(ALL.0, ALL.1).expect("a run");
    assert_eq!(curated(&lab), ["Beta & co 1 1"]);
}

#[test]
fn compacted_files_have_the_columns_of_sources() {
    let lab = of_sources(&BOTH).build();
    put(&lab, "acme/20200102-100000000", &[["I", "2020-01-02 09:00:00", "1", "1"]]);
    put(&lab, "beta/20200102-100000000", &[["I", "2020-01-02 08:00:00", "1", "2"]]);
    lab.compact("2020-01-02", "2020-01-03").expect("compacted");
    assert_eq!(lab.lines("compacted", ["tenant", "id", "v"]), ["Beta & co 1 2", "acme 1 1"]);
}

#[test]
fn what_would_mix_tenants_is_refused() {
    let lab = of_sources(&BOTH).set("raw.on_bad_row", "quarantine").build();
    put(&lab, "acme/20200102-100000000", &[["I", "2020-01-02 09:00:00", "1", "1"]]);
    put(&lab, "beta/20200103-100000000", &[["T", "2020-01-03 09:00:00", "-", "-"]]);
    let error = lab.run(ALL.0, ALL.1).expect_err("refused");
    assert_eq!(error.kind, Kind::Data);
    assert!(
        error.to_string().contains("is a truncate, in a pipeline with columns of sources"),
        "{error}"
    );
    assert_eq!(lab.list_all("lake"), Vec::<String>::new());
    lab.remove("raw/beta/20200103-100000000.parquet");
    lab.run("2020-01-02", "2020-01-03").expect("a run");
    let error = lab.truncate("2020-01-02T12:00:00Z", false).expect_err("refused");
    assert!(error.to_string().contains("ends the rows of all sources"), "{error}");
    let with_column = [["I", "2020-01-03 09:00:00", "1", "1", "acme"]];
    let named = ["Op", "ts", "id", "v", "Tenant"];
    lab.put("raw/acme/20200103-100000000.parquet", file_of_rows(&named, &with_column));
    let error = lab.run(ALL.0, ALL.1).expect_err("refused");
    assert!(
        error.to_string().contains("has the column `tenant`, which its source or folder says"),
        "{error}"
    );
    for (builder, expected) in [
        (of_sources(&BOTH).set("raw.full_load_at", "column"), "`raw.full_load_at` ends the rows"),
        (of_sources(&BOTH).set("raw.commit_time", "tenant"), "`raw.commit_time` is `tenant`"),
        (of_sources(&BOTH).set("raw.url", "{base}/raw"), "`raw.url` is set, and there are sources"),
        (
            of_sources(&BOTH).set("raw.path_columns", vec!["tenant"]),
            "`raw.path_columns` names `tenant`",
        ),
        (of_sources(&BOTH).set("mask.tenant", "hmac"), "`mask.tenant` is a column of sources"),
        (builder().unset("raw.url"), "`raw.url` is missing"),
    ] {
        let error = builder.build().run(ALL.0, ALL.1).expect_err("refused");
        assert_refused(error, 2, expected, "");
    }
}

#[test]
fn sources_inside_one_another_are_refused() {
    let error = of_sources(&[("acme", "acme"), ("acme/eu", "eu")]).build().run(ALL.0, ALL.1);
    assert_refused(error.expect_err("refused"), 2, "which overlaps", "its own folder");
    let urls = vec!["{base}/raw", "{base}/raw/eu"];
    let lab = builder().set("raw.url", urls).set("raw.path_columns", vec!["tenant"]).build();
    let error = lab.run(ALL.0, ALL.1).expect_err("refused");
    assert_refused(error, 2, "`raw.url` has", "its own folder");
}

#[test]
fn a_tenant_that_looks_like_a_date_is_not_left_out_in_silence() {
    for folder in ["tenant=200012", "2020-01-02/tenant=200012"] {
        let with = |window_by: &str| {
            let lab =
                builder().window_by(window_by).set("raw.path_columns", vec!["tenant"]).build();
            put(&lab, &format!("{folder}/x"), &[["I", "2020-01-02 09:00:00", "1", "1"]]);
            lab
        };
        let error = with("path").run(ALL.0, ALL.1).expect_err("refused");
        assert_refused(error, 2, "tenant=200012", "raw.window_by");
        let lab = with("commit");
        lab.run(ALL.0, ALL.1).expect("a run");
        assert_eq!(curated(&lab), ["200012 1 1"]);
    }
}

#[test]
fn a_column_of_sources_orders_changes_beside_another() {
    let lab = of_sources(&BOTH).set("raw.order_by", vec!["v", "tenant"]).build();
    put(&lab, "acme/20200102-100000000", &[["I", "2020-01-02 09:00:00", "1", "1"]]);
    put(&lab, "beta/20200102-100000000", &[["I", "2020-01-02 09:00:00", "1", "2"]]);
    lab.run(ALL.0, ALL.1).expect("a run");
    assert_eq!(curated(&lab), ["Beta & co 1 2", "acme 1 1"]);
}

#[test]
fn a_key_without_a_tenant_is_warned_of() {
    let lab = of_sources(&BOTH).place(Place::S3).set("key", vec!["id"]).build();
    put(&lab, "acme/20200102-100000000", &[["I", "2020-01-02 09:00:00", "1", "1"]]);
    let output = Program::glueless()
        .envs(environment_of(&lab.base))
        .arg("run")
        .arg(&lab.pipeline)
        .args(["--start-date", ALL.0, "--end-date", ALL.1])
        .succeed();
    assert!(
        output.stderr.contains("the key has none of the columns of sources and folders (`tenant`)"),
        "{}",
        output.stderr
    );
}
