//! Tables in PostgreSQL follow the published ones: after each load they have the same rows, and only
//! what differs was written.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray, ListBuilder,
    PrimitiveArray, StringArray, StringBuilder, TimestampMicrosecondArray,
    TimestampNanosecondArray,
};
use arrow::datatypes::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, Time32MillisecondType, Time64MicrosecondType, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};

use crate::support::{
    Answer, COUNT_PER_DAY, Change, DAY_US, DELETION_VECTORS, Database, FIRST_DAY_US, FLOWS, Lab,
    LabBuilder, Program, ROWS_PER_DAY, Server, Task, assert_refused, day, glueless, integers,
    texts, timestamps,
};

const TABLES: [&str; 3] = ["curated", "daily", "rows"];

fn builder() -> LabBuilder {
    Lab::builder().aggregate("daily", COUNT_PER_DAY).aggregate("rows", ROWS_PER_DAY).loaded()
}

/// Three days: rows are inserted, updated, deleted, moved to other partitions and inserted again.
fn days(lab: &Lab) {
    let rows: Vec<(&str, i64, &str)> =
        (1..=40).map(|id| ("I", id, if id <= 20 { "a" } else { "b" })).collect();
    lab.put_day(1, &rows);
    lab.put_day(2, &[("D", 3, "a"), ("U", 4, "b"), ("U", 30, "b"), ("I", 50, "c"), ("D", 40, "b")]);
    lab.put_day(3, &[("I", 3, "a"), ("D", 50, "c"), ("U", 4, "a")]);
}

/// The transaction that wrote each row, with the row's key.
fn writers(database: &Database, table: &str, key: &str) -> BTreeSet<String> {
    database.ask(&format!("SELECT {key}, xmin FROM {table}")).into_iter().collect()
}

#[test]
fn a_database_follows_every_run_by_what_changed() {
    for (keep, format) in [
        ("latest", "parquet"),
        ("latest", "delta"),
        ("latest", DELETION_VECTORS),
        ("latest-per-day", "parquet"),
        ("latest-per-day", "delta"),
    ] {
        let database = Database::new();
        let lab = builder().keep(keep).format(format).build().follow(&database);
        days(&lab);
        let first = lab.run_days(1, 2).followers;
        assert_eq!(first[0].name, "postgres:public.curated");
        assert_eq!((first[0].from_commit, first[0].rows_upserted), (None, 40));
        assert_eq!((first[1].days_replaced, first[1].rows_upserted), (1, 1));
        lab.assert_followed(&database, &TABLES);
        let before = writers(&database, "curated", "id, event_dt");

        let second = lab.run_days(2, 3).followers;
        lab.assert_followed(&database, &TABLES);
        let stayed = writers(&database, "curated", "id, event_dt");
        assert!(before.intersection(&stayed).count() >= 36, "rows were written for nothing");
        assert_eq!(second[0].from_commit, Some(first[0].to_commit));
        if keep == "latest" {
            assert_eq!((second[0].rows_upserted, second[0].rows_deleted), (3, 2));
        } else {
            // Of yesterday nothing is deleted.
            assert_eq!((second[0].rows_upserted, second[0].rows_deleted), (3, 0));
        }
        // A window that is repeated, and days in any order.
        let again = lab.run_days(2, 3).followers;
        assert_eq!((again[0].rows_upserted, again[0].rows_deleted), (0, 0));
        assert_eq!(writers(&database, "curated", "id, event_dt"), stayed);
        lab.run_days(3, 4);
        lab.assert_followed(&database, &TABLES);
        // A change that comes late.
        lab.put_changes(
            "raw/20200102-235959000.parquet",
            2,
            &[Change { op: "D", id: 20, cat: "a", v: 0, us: 5, event_us: 0 }],
        );
        lab.run_days(3, 4);
        lab.assert_followed(&database, &TABLES);
        // Nothing to do.
        let done = lab.load(false).expect("nothing to do");
        assert_eq!(done.note.as_deref(), Some("the database has the newest commit"));
        assert!(done.followers.iter().all(|it| it.rows_upserted + it.rows_deleted == 0));
    }
}

#[test]
fn several_commits_are_applied_at_once_and_a_rebuild_from_empty() {
    let database = Database::new();
    let lab = builder().aggregate("flows", FLOWS).loaded().build().follow(&database);
    let tables = ["curated", "daily", "rows", "flows"];
    days(&lab);
    lab.run_days(1, 2);
    // Commits that no follower saw.
    for first in [3, 2] {
        lab.run_with(Task::Curate, &day(first), &day(first + 1), &[]).expect("a run");
    }
    lab.run_with(Task::Aggregate, &day(1), &day(4), &[]).expect("a run");
    let loaded = lab.load(false).expect("loaded").followers;
    assert_eq!(loaded[0].from_commit.map(|commit| commit + 3), Some(loaded[0].to_commit));
    lab.assert_followed(&database, &tables);
    // A file with the only changes of some keys is lost: the rebuild goes on without them.
    let stayed = writers(&database, "curated", "id");
    lab.remove("raw/20200102-000000000.parquet");
    let rebuilt = lab.rebuild(true, &[]).expect("rebuilt").followers;
    lab.assert_followed(&database, &tables);
    assert!(rebuilt[0].rows_deleted + rebuilt[0].rows_upserted < 10, "{rebuilt:?}");
    assert!(writers(&database, "curated", "id").intersection(&stayed).count() > 30);
}

#[test]
fn what_is_not_known_to_be_loaded_is_loaded_as_a_whole() {
    let database = Database::new();
    let lab = builder().build().follow(&database);
    days(&lab);
    lab.run_days(1, 3);
    // The database is restored from a backup: markers and tables are as they were.
    let save =
        TABLES.map(|table| format!("CREATE TABLE saved_{table} AS TABLE {table}")).join("; ");
    database.ask(&format!("{save}; CREATE TABLE saved_markers AS TABLE glueless_loads"));
    lab.run_days(3, 4);
    let restore = TABLES
        .map(|table| format!("TRUNCATE {table}; INSERT INTO {table} SELECT * FROM saved_{table}"));
    database.ask(&format!(
        "{}; DELETE FROM glueless_loads; INSERT INTO glueless_loads SELECT * FROM saved_markers",
        restore.join("; ")
    ));
    let loaded = lab.load(false).expect("loaded").followers;
    assert!(loaded[0].rows_upserted < 10);
    lab.assert_followed(&database, &TABLES);
    // Rows that someone changed are found by a full load alone.
    database.ask("DELETE FROM curated WHERE id < 10; INSERT INTO daily VALUES ('2030-01-01', 1)");
    lab.load(false).expect("nothing to do");
    let full = lab.load(true).expect("loaded").followers;
    assert_eq!(full[0].rows_upserted, 9);
    lab.assert_followed(&database, &TABLES);
    // A table that is gone, markers that are gone, a marker of another state.
    for damage in [
        "DROP TABLE curated; DROP TABLE daily; DELETE FROM glueless_loads",
        "DELETE FROM glueless_loads; DELETE FROM curated WHERE id = 7",
        "UPDATE glueless_loads SET run_id = 'other'; DELETE FROM rows",
        "UPDATE glueless_loads SET commit = 1000; UPDATE curated SET v = 0 WHERE id = 7",
    ] {
        database.ask(damage);
        lab.load(false).expect("loaded");
        lab.assert_followed(&database, &TABLES);
    }
}

#[test]
fn a_table_that_is_gone_is_filled_although_its_marker_is_there() {
    let database = Database::new();
    let lab = builder().build().follow(&database);
    days(&lab);
    lab.run_days(1, 3);
    database.ask("DROP TABLE curated; DROP TABLE daily; TRUNCATE rows");
    lab.run_days(3, 4);
    lab.assert_followed(&database, &TABLES);
}

#[test]
fn a_users_table_keeps_its_grants_indexes_views_and_columns() {
    let database = Database::new();
    database.ask(
        "SET ROLE lab;
        CREATE TYPE category AS ENUM ('a', 'b', 'c');
        CREATE TABLE curated (
            id numeric PRIMARY KEY, note text DEFAULT 'mine', cat category, v bigint, event_dt date
        );
        CREATE INDEX by_day ON curated (event_dt);
        CREATE VIEW of_a AS SELECT * FROM curated WHERE cat = 'a';
        GRANT SELECT ON curated TO pg_monitor;
        INSERT INTO curated (id) VALUES (1), (1000)",
    );
    let lab = Lab::builder().loaded().set("load.after_sql", "after.sql").build();
    let lab = lab.follow(&database);
    lab.write_file(
        "after.sql",
        "CREATE MATERIALIZED VIEW IF NOT EXISTS per_day AS
            SELECT event_dt, count(*) AS n FROM curated GROUP BY event_dt;
        REFRESH MATERIALIZED VIEW per_day;",
    );
    days(&lab);
    let oid = database.ask("SELECT 'curated'::regclass::oid");
    for day in 1..4 {
        lab.run_days(day, day + 1);
        let sum = "SELECT count(*), sum(v) FROM curated";
        let rows = lab.table("lake/curated");
        let v: i64 = rows.iter().map(|row| row["v"].parse::<i64>().expect("a number")).sum();
        assert_eq!(database.ask(sum), [format!("{}|{v}", rows.len())]);
        let days = "SELECT sum(n) FROM per_day";
        assert_eq!(database.ask(days), [rows.len().to_string()]);
    }
    assert_eq!(database.ask("SELECT 'curated'::regclass::oid"), oid);
    assert_eq!(database.ask("SELECT DISTINCT note FROM curated"), ["mine"]);
    assert_eq!(database.ask("SELECT count(*) FROM of_a"), ["20"]);
    assert_eq!(
        database.ask("SELECT has_table_privilege('pg_monitor', 'curated', 'SELECT')"),
        ["t"]
    );
}

#[test]
fn a_table_that_does_not_fit_is_refused_with_both_sides() {
    let database = Database::new();
    let lab = Lab::builder().loaded().build().follow(&database);
    days(&lab);
    database.ask("SET ROLE lab; CREATE TABLE curated (id bigint PRIMARY KEY, cat json, v bigint)");
    let follower = &lab.run_days(1, 2).followers[0];
    assert_eq!(follower.exit_code, 2);
    let error = follower.error.clone().expect("an error");
    assert_eq!(
        error,
        "public.curated does not fit: `cat`, `event_dt`; the rows have id bigint, cat text, v bigint, \
         event_dt date; the table has id bigint, cat json, v bigint"
    );
    database.ask("DROP TABLE curated; SET ROLE lab; CREATE TABLE curated (id bigint, cat text, v bigint, event_dt date); INSERT INTO curated VALUES (1)");
    let error = lab.load(false).expect_err("no key");
    let hint = "ALTER TABLE \"public\".\"curated\" ADD PRIMARY KEY (\"id\")";
    assert_refused(error, 2, "has no unique index of its key \"id\"", hint);
    database.ask("ALTER TABLE curated ADD PRIMARY KEY (id)");
    lab.load(false).expect("loaded");
    lab.assert_followed(&database, &["curated"]);
}

#[test]
fn a_row_that_the_database_refuses_is_named_by_key_column_and_constraint() {
    let cases = [
        ("cat text, v bigint CHECK (v < 1000000)", "constraint `curated_v_check`"),
        ("cat text, v smallint", "a number is out of range"),
        ("cat category, v bigint", "a value is none of the column's type"),
        ("cat varchar(5), v bigint", "a text is too long"),
    ];
    for (columns, named) in cases {
        let database = Database::new();
        database.ask(&format!(
            "SET ROLE lab; CREATE TYPE category AS ENUM ('a', 'b');
            CREATE TABLE curated (id bigint PRIMARY KEY, {columns}, event_dt date);"
        ));
        let lab = Lab::builder().loaded().build().follow(&database);
        days(&lab);
        lab.run_days(1, 2);
        let before = database.rows("curated");
        let change = Change { op: "U", id: 5, cat: "secret", v: 7_654_321, us: 9, event_us: 0 };
        lab.put_changes("raw/20200102-000000001.parquet", 2, &[change]);
        let report = lab.run_days(2, 3);
        assert_eq!(report.exit_code(), 65);
        // The tables are published, and nothing is loaded.
        assert!(lab.lines("lake/curated", ["id", "v"]).contains(&"5 7654321".to_string()));
        assert_eq!(database.rows("curated"), before);
        let follower = &report.followers[0];
        let error = follower.error.clone().expect("an error");
        assert!(error.contains(named) && error.contains("public.curated"), "{error}");
        assert!(!error.contains("7654321") && !error.contains("secret"), "{error}");
        let hint = follower.hint.clone().expect("a hint");
        assert!(hint.contains("by their key `id`"), "{hint}");
        database.ask(
            "ALTER TABLE curated DROP CONSTRAINT IF EXISTS curated_v_check;
            ALTER TABLE curated ALTER v TYPE bigint, ALTER cat TYPE text",
        );
        lab.load(false).expect("loaded");
        lab.assert_followed(&database, &["curated"]);
    }
}

#[test]
fn a_database_that_is_not_there_does_not_stop_the_tables() {
    let database = Database::new();
    let mut lab = builder().build().follow(&database);
    days(&lab);
    lab.run_days(1, 2);
    let url = lab.environment["WAREHOUSE_URL"].clone();
    for (url, code, message) in [
        (
            "postgresql://lab:secret@127.0.0.1:1/d".to_string(),
            69,
            "cannot reach the database `d` at",
        ),
        (url.replace("pass%20word", "pass@secret"), 2, "has an `@` or `/` in its password"),
        (url.replace("pass%20word", "secret"), 2, "password authentication failed"),
        (url.replace(&format!("/{}?", database.name), "/none?"), 2, "database \"none"),
        (String::new(), 2, "the environment has no variable WAREHOUSE_URL"),
    ] {
        lab.environment.insert("WAREHOUSE_URL".into(), url);
        let report = lab.run_days(2, 4);
        assert_eq!(report.exit_code(), code);
        let error = report.followers[0].error.clone().expect("an error");
        assert!(error.contains(message) && !error.contains("secret"), "{error}");
        let error = lab.load(false).expect_err("not there");
        assert_refused(error, code, message, "");
    }
    assert_eq!(lab.table("lake/curated").len(), 39);
    let lab = lab.follow(&database);
    lab.load(false).expect("loaded");
    lab.assert_followed(&database, &TABLES);
}

#[test]
fn a_certificate_is_verified() {
    let database = Database::new();
    let mut lab = Lab::builder().loaded().build().follow(&database);
    days(&lab);
    lab.run_with(Task::Curate, &day(1), &day(2), &[]).expect("a run");
    let url = lab.environment["WAREHOUSE_URL"].clone();
    let (base, _) = url.split_once('?').expect("options");
    let root = &database.server.certificate;
    let own = root.replace("ca.pem", "server.pem");
    let by_address = base.replace("localhost", "127.0.0.1");
    for (url, is_accepted) in [
        (format!("{base}?sslmode=verify-full&sslrootcert={root}"), true),
        (format!("{base}?sslmode=require&sslrootcert={root}"), true),
        (format!("{base}?sslmode=require"), false),
        (format!("{base}?sslmode=prefer"), false),
        (format!("{base}?sslmode=require&sslrootcert={own}"), true),
        (format!("{by_address}?sslmode=verify-full&sslrootcert={own}"), true),
        // Without TLS, because it is this machine.
        (base.to_string(), true),
        (format!("{base}?sslmode=disable"), true),
        (format!("{by_address}?sslmode=verify-full&sslrootcert={root}"), false),
        (format!("{by_address}?sslmode=verify-ca&sslrootcert={root}"), true),
        (format!("{by_address}?sslmode=verify-ca"), false),
        (
            format!(
                "postgresql://lab@/{}?host={}&port={}",
                database.name, database.server.socket, database.server.port
            ),
            true,
        ),
    ] {
        lab.environment.insert("WAREHOUSE_URL".into(), url.clone());
        match lab.load(true) {
            Ok(_) => assert!(is_accepted, "{url}"),
            Err(error) => {
                assert!(!is_accepted, "{url}: {error}");
                assert_refused(error, 2, "TLS failed", "sslrootcert=FILE");
            }
        }
    }
    lab.assert_followed(&database, &["curated"]);
}

#[test]
fn two_pipelines_do_not_load_one_table() {
    let database = Database::new();
    let first = Lab::builder().loaded().build().follow(&database);
    days(&first);
    first.run_days(1, 2);
    let other = Lab::builder().set("name", "other").loaded().build().follow(&database);
    days(&other);
    let follower = &other.run_days(1, 2).followers[0];
    assert_eq!(follower.error.as_deref(), Some("the pipeline `lab` loads public.curated too"));
    database.ask("DELETE FROM glueless_loads WHERE pipeline = 'lab'");
    other.load(false).expect("loaded");
    other.assert_followed(&database, &["curated"]);
}

#[test]
fn columns_that_the_query_gets_later_are_added() {
    let database = Database::new();
    let lab = Lab::builder().format("delta").loaded().build().follow(&database);
    days(&lab);
    lab.run_days(1, 2);
    lab.write_file("curated.sql", "SELECT id, cat, v, event_dt, v * 2 AS twice FROM latest");
    lab.run_days(2, 3);
    lab.assert_followed(&database, &["curated"]);
    assert_eq!(database.ask("SELECT count(*) FROM curated WHERE twice IS NOT NULL"), ["3"]);
}

#[test]
fn a_table_without_a_key_gets_the_partitions_that_changed() {
    let database = Database::new();
    let lab = Lab::builder().set("key", Vec::<String>::new()).aggregate("daily", COUNT_PER_DAY);
    let lab = lab.loaded().build().follow(&database);
    lab.put_day(1, &[("I", 1, "a"), ("I", 2, "b")]);
    lab.put_day(2, &[("I", 1, "a"), ("I", 3, "c")]);
    lab.put_day(3, &[("I", 1, "a")]);
    lab.run_days(1, 2);
    let before = writers(&database, "curated", "id, cat");
    lab.run_days(2, 3);
    lab.run_days(3, 4);
    lab.assert_followed(&database, &["curated", "daily"]);
    let after = writers(&database, "curated", "id, cat");
    assert!(before.is_subset(&after), "{before:?} {after:?}");
    lab.run_days(1, 4);
    assert_eq!(writers(&database, "curated", "id, cat"), after);
}

#[test]
fn a_backfill_is_followed_once_at_its_end() {
    let database = Database::new();
    let lab = builder().build().follow(&database);
    days(&lab);
    let all = lab.backfill(&day(1), &day(4)).expect("a backfill");
    assert_eq!(all.followers.len(), 3);
    assert_eq!(all.followers[0].from_commit, None);
    lab.assert_followed(&database, &TABLES);
    database.ask("DELETE FROM glueless_loads; TRUNCATE curated");
    // All windows are done; the follower is not.
    let all = lab.backfill(&day(1), &day(4)).expect("a backfill");
    assert_eq!((all.windows_skipped, all.followers[0].rows_upserted), (3, 39));
    lab.assert_followed(&database, &TABLES);
}

/// A way to the server that forwards everything, and breaks the first connection after its `COMMIT`.
fn through_a_proxy(lab: &Lab, database: &Database) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = database.server.port;
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let client = client.expect("a connection");
            let server = TcpStream::connect(("127.0.0.1", server)).expect("a connection");
            let answers =
                (server.try_clone().expect("a copy"), client.try_clone().expect("a copy"));
            std::thread::spawn(move || forward(answers.0, answers.1, |_| false));
            let breaks = move |sent: &[u8]| number == 0 && sent.ends_with(b"COMMIT\0");
            std::thread::spawn(move || forward(client, server, breaks));
        }
    });
    let url = &lab.environment["WAREHOUSE_URL"];
    let (base, _) = url.split_once('?').expect("options");
    base.replace(&server.to_string(), &port.to_string()) + "?sslmode=disable"
}

#[expect(clippy::disallowed_methods, reason = "the moment is what is tested")]
fn wait(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn forward(mut from: TcpStream, mut to: TcpStream, breaks_after: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
    {
        let is_last = breaks_after(&buffer[..count]);
        if is_last {
            // Its answer is lost.
            let _ = from.shutdown(Shutdown::Both);
        }
        if to.write_all(&buffer[..count]).is_err() || is_last {
            break;
        }
    }
    wait(100);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn a_lost_reply_to_the_commit_is_found_out() {
    let database = Database::new();
    let mut lab = builder().build().follow(&database);
    days(&lab);
    lab.run_days(1, 2);
    let url = through_a_proxy(&lab, &database);
    lab.environment.insert("WAREHOUSE_URL".into(), url);
    let report = lab.run_days(2, 3);
    assert_eq!((report.exit_code(), report.followers[0].rows_upserted), (0, 3));
    lab.assert_followed(&database, &TABLES);
}

#[test]
fn loads_at_once_end_in_the_newest_commit() {
    let database = Database::new();
    let lab = builder().format("delta").build().follow(&database);
    days(&lab);
    std::thread::scope(|scope| {
        for turn in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                for day in [1 + turn % 3, 3, 2] {
                    lab.run_days(day, day + 1);
                }
            });
            scope.spawn(move || {
                for _ in 0..3 {
                    // There may be no commit yet, or too many.
                    let _ = lab.load(false);
                }
            });
        }
    });
    lab.load(false).expect("loaded");
    lab.assert_followed(&database, &TABLES);
}

#[test]
fn a_load_that_is_killed_at_any_moment_leaves_a_whole_state() {
    let server: &'static Server = Box::leak(Box::new(Server::start()));
    let database = server.database();
    let lab = builder().build().follow(&database);
    days(&lab);
    lab.run_days(1, 4);
    let states = || TABLES.map(|table| database.rows(table));
    let mut random = 7_u64;
    for turn in 0..16 {
        let delete = if turn % 2 == 0 { "D" } else { "I" };
        let rows: Vec<(&str, i64, &str)> = (1..=30).map(|id| (delete, id, "a")).collect();
        let before = states();
        lab.put_day(4 + turn, &rows);
        lab.run_with(Task::Curate, &day(4 + turn), &day(5 + turn), &[]).expect("a run");
        lab.run_with(Task::Aggregate, &day(4 + turn), &day(5 + turn), &[]).expect("a run");
        let mut loading = Program::glueless()
            .arg("load")
            .arg(&lab.pipeline)
            .arg("--quiet")
            .envs(&lab.environment)
            .start();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        wait(20 + (random >> 33) % 180);
        if turn % 4 == 3 {
            server.control("kill");
            server.control("start");
            let _ = loading.wait();
        } else {
            let _ = loading.kill();
            let _ = loading.wait();
        }
        // The state before or after, of all tables.
        let found = states();
        let after = TABLES.map(|table| lab.published(table));
        assert!(found == before || found == after, "turn {turn}: {found:?}");
        lab.load(false).expect("loaded");
        lab.assert_followed(&database, &TABLES);
    }
}

/// A column with three values, the third of them null, and what PostgreSQL shows of the others.
type Typed = (&'static str, ArrayRef, [&'static str; 2]);

fn typed(name: &'static str, values: impl Array + 'static, shown: [&'static str; 2]) -> Typed {
    (name, Arc::new(values), shown)
}

fn pair<T: ArrowPrimitiveType>(first: T::Native, last: T::Native) -> PrimitiveArray<T> {
    let values = vec![first, last, T::Native::default()];
    PrimitiveArray::new(values.into(), Some(vec![true, true, false].into()))
}

fn numbers() -> Vec<Typed> {
    let decimal = |first: i128, last: i128, precision, scale| {
        let values = pair::<Decimal128Type>(first, last);
        values.with_precision_and_scale(precision, scale).expect("a decimal")
    };
    let nines = 10_i128.pow(38) - 1;
    let ends_of_i64 = ["-9223372036854775808", "9223372036854775807"];
    let ends_of_decimal =
        ["-99999999999999999999999999999999999999", "99999999999999999999999999999999999999"];
    let small =
        ["-0.99999999999999999999999999999999999999", "0.00000000000000000000000000000000010000"];
    vec![
        typed("i8", pair::<Int8Type>(i8::MIN, i8::MAX), ["-128", "127"]),
        typed("i16", pair::<Int16Type>(i16::MIN, i16::MAX), ["-32768", "32767"]),
        typed("i32", pair::<Int32Type>(i32::MIN, i32::MAX), ["-2147483648", "2147483647"]),
        typed("i64", pair::<Int64Type>(i64::MIN, i64::MAX), ends_of_i64),
        typed("u8", pair::<UInt8Type>(0, u8::MAX), ["0", "255"]),
        typed("u16", pair::<UInt16Type>(0, u16::MAX), ["0", "65535"]),
        typed("u32", pair::<UInt32Type>(0, u32::MAX), ["0", "4294967295"]),
        typed("u64", pair::<UInt64Type>(0, u64::MAX), ["0", "18446744073709551615"]),
        typed("f32", pair::<Float32Type>(f32::NEG_INFINITY, 1.5), ["-Infinity", "1.5"]),
        typed("f64", pair::<Float64Type>(f64::NAN, f64::MAX), ["NaN", "1.7976931348623157e+308"]),
        typed("wide", decimal(-nines, nines, 38, 0), ends_of_decimal),
        typed("money", decimal(-1, 1_234_567_890, 10, 2), ["-0.01", "12345678.90"]),
        typed("small", decimal(-nines, 10_000, 38, 38), small),
    ]
}

fn times() -> Vec<Typed> {
    const YEAR_1_US: i64 = -62_135_596_800_000_000;
    const YEAR_9999_US: i64 = 253_402_300_799_999_999;
    const DAY_NS: i64 = 86_400_000_000_000;
    let ends = ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"];
    let in_utc = ["0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00"];
    let microseconds = || pair::<TimestampMicrosecondType>(YEAR_1_US, YEAR_9999_US);
    let milliseconds = pair::<TimestampMillisecondType>(YEAR_1_US / 1000, 1);
    let nanoseconds = pair::<TimestampNanosecondType>(-1_000, DAY_NS);
    let last_of_day = pair::<Time64MicrosecondType>(0, 86_399_999_999);
    vec![
        typed("date", pair::<Date32Type>(-719_162, 2_932_896), ["0001-01-01", "9999-12-31"]),
        typed("us", microseconds(), ends),
        typed("us_utc", microseconds().with_timezone("UTC"), in_utc),
        typed("ms", milliseconds, [ends[0], "1970-01-01 00:00:00.001"]),
        typed("ns", nanoseconds, ["1969-12-31 23:59:59.999999", "1970-01-02 00:00:00"]),
        typed("time", last_of_day, ["00:00:00", "23:59:59.999999"]),
        typed("time_ms", pair::<Time32MillisecondType>(1, 2), ["00:00:00.001", "00:00:00.002"]),
    ]
}

fn others() -> Vec<Typed> {
    let lists = vec![Some(vec![Some(1), None]), Some(vec![]), None];
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
    let stamps = vec![Some(vec![Some(1)]), Some(vec![]), None];
    let stamps = ListArray::from_iter_primitive::<TimestampMicrosecondType, _, _>(stamps);
    let mut words = ListBuilder::new(StringBuilder::new());
    words.append_value([Some("a"), None, Some("NULL \"q\",\\")]);
    words.append_value([Some("")]);
    words.append_null();
    let text = "é \"quoted\" \\. \t, 'x'";
    let fixed = [Some([0, 1]), Some([2, 3]), None].into_iter();
    let fixed = FixedSizeBinaryArray::try_from_sparse_iter_with_size(fixed, 2).expect("bytes");
    vec![
        typed("bool", BooleanArray::from(vec![Some(true), Some(false), None]), ["t", "f"]),
        typed("text", StringArray::from(vec![Some(text), Some(""), None]), [text, ""]),
        typed(
            "bytes",
            BinaryArray::from(vec![Some(&[0, 255, 92][..]), Some(&[]), None]),
            ["\\x00ff5c", "\\x"],
        ),
        typed("fixed", fixed, ["\\x0001", "\\x0203"]),
        typed("ints", lists, ["{1,NULL}", "{}"]),
        typed("stamps", stamps, ["{\"1970-01-01 00:00:00.000001\"}", "{}"]),
        typed("words", words.finish(), ["{a,NULL,\"NULL \\\"q\\\",\\\\\"}", "{\"\"}"]),
    ]
}

#[test]
fn values_of_every_type_are_loaded_as_they_are() {
    for format in ["parquet", "delta"] {
        let database = Database::new();
        let lab = Lab::builder().format(format).partition_by(&["event_dt"]);
        let lab = lab.curated_sql("SELECT * EXCLUDE (\"Op\", ts) FROM latest").loaded().build();
        let lab = lab.follow(&database);
        let mut types = [numbers(), times(), others()].concat();
        // Delta tables have no times of a day, and ours no lists.
        let is_of_delta =
            |name: &str| !["time", "time_ms", "ints", "stamps", "words"].contains(&name);
        types.retain(|(name, ..)| format == "parquet" || is_of_delta(name));
        let put = |day: i64, ids: [i64; 3]| {
            let mut columns = vec![
                ("Op", texts(["I"; 3])),
                ("id", integers(ids)),
                ("ts", timestamps([FIRST_DAY_US + day * DAY_US; 3])),
            ];
            columns.extend(types.iter().map(|(name, values, _)| (*name, Arc::clone(values))));
            lab.put_columns(&format!("raw/202001{:02}-000000000.parquet", day + 1), columns);
        };
        // The first load fills an empty table, the second one stages and upserts.
        put(0, [1, 2, 3]);
        lab.run_days(1, 2);
        put(1, [4, 5, 6]);
        let report = lab.run_days(2, 3);
        assert_eq!(report.exit_code(), 0, "{:?}", report.followers);
        for (name, _, [first, last]) in &types {
            let found = database
                .ask(&format!("SET timezone TO 'UTC'; SELECT \"{name}\" FROM curated ORDER BY id"));
            // Times of a Delta table are in UTC.
            let is_in_utc = format == "delta" && ["us", "ms", "ns"].contains(name);
            let zone = if is_in_utc { "+00" } else { "" };
            let expected = [format!("{first}{zone}"), format!("{last}{zone}"), "null".into()];
            assert_eq!(found, [&expected[..], &expected].concat(), "{format}: {name}");
        }
    }
}

#[test]
fn what_postgres_cannot_store_is_refused_by_column() {
    let nanosecond: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![1]));
    let far: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![i64::MIN]));
    for (values, message) in [
        (texts(["a\0secret"]), "the column `x` has a text with the character NUL"),
        (nanosecond, "the column `x` has a time finer than a microsecond"),
        (far, "a date or time is out of"),
    ] {
        let database = Database::new();
        let lab = Lab::builder().curated_sql("SELECT id, x FROM latest").partition_by(&[]);
        let lab = lab.loaded().build().follow(&database);
        let columns = vec![
            ("Op", texts(["I"])),
            ("id", integers([1])),
            ("ts", timestamps([FIRST_DAY_US])),
            ("x", values),
        ];
        lab.put_columns("raw/20200101-000000000.parquet", columns);
        let report = lab.run_days(1, 2);
        assert_eq!(report.exit_code(), 65, "{:?}", report.followers);
        let follower = &report.followers[0];
        let error = follower.error.clone().expect("an error");
        assert!(error.contains(message) && !error.contains("secret"), "{error}");
        assert!(
            follower.hint.as_ref().is_some_and(|hint| hint.contains("key `id`")),
            "{follower:?}"
        );
        let found = database.try_ask("SELECT count(*) FROM curated");
        assert!(found.is_err_and(|error| error.contains("does not exist")), "something is loaded");
    }
}

#[test]
fn the_example_runs_the_whole_chain() {
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Program::new(Path::new("/bin/sh"))
        .arg(format!("{root}/examples/warehouse/run.sh"))
        .envs([("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"), ("HOME", "/tmp")])
        .envs([("GLUELESS", glueless().to_str().expect("a path"))])
        .succeed();
    let lines = output.stdout.lines().filter(|line| !line.contains("follower"));
    let shown: Vec<&str> = lines.map(str::trim_end).collect();
    insta::assert_snapshot!(shown.join("\n"), @r"
    == the warehouse: a schema for the dashboards
    == night of 2019-12-12
    == night of 2019-12-13
    == night of 2019-12-14
    == night of 2019-12-15
    == customers by category, from the materialized view
     cust_loyalty_category | customers
    -----------------------+-----------
     Basic                 |         7
     Gold                  |         3
     Platinum              |         1
     Silver                |         1
    (4 rows)

    == the last days, from the table of the aggregate
         dt     | basic | silver | gold | platinum | total
    ------------+-------+--------+------+----------+-------
     2019-12-15 |     6 |      1 |    3 |        1 |    11
     2019-12-14 |     6 |        |    4 |          |    10
    (2 rows)
    ");
    let followers = output.stdout.lines().filter(|line| line.contains("follower")).count();
    assert_eq!(followers, 8);
}

/// A lab whose key is a text.
fn with_text_keys() -> LabBuilder {
    let lab = Lab::builder().set("key", vec!["k"]).curated_sql("SELECT k, v, event_dt FROM latest");
    lab.partition_by(&["event_dt"]).loaded()
}

fn put_texts(lab: &Lab, day: i64, rows: &[(&str, &str)]) {
    let columns = vec![
        ("Op", texts(rows.iter().map(|row| row.0))),
        ("k", texts(rows.iter().map(|row| row.1))),
        ("v", integers(rows.iter().map(|_| day))),
        ("ts", timestamps(rows.iter().map(|_| FIRST_DAY_US + (day - 1) * DAY_US))),
    ];
    lab.put_columns(&format!("raw/202001{day:02}-000000000.parquet"), columns);
}

#[test]
fn keys_that_a_column_would_change_are_refused_and_others_are_found() {
    const UUIDS: [&str; 2] =
        ["11111111-1111-1111-1111-11111111111a", "22222222-2222-2222-2222-22222222222b"];
    for (kind, keys, bad) in [
        ("uuid", UUIDS, "11111111-1111-1111-1111-11111111111A"),
        ("inet", ["10.0.0.1", "10.0.0.2"], "10.0.0.1/32"),
        ("letter", ["a", "b"], "zzq"),
        ("char(3)", ["a", "b"], "a  "),
        ("varchar(3)", ["a", "b"], "abc "),
        ("text", ["a", "b"], "a\0"),
    ] {
        let database = Database::new();
        database.ask(&format!(
            "SET ROLE lab; CREATE TYPE letter AS ENUM ('a', 'b');
            CREATE TABLE curated (k {kind} PRIMARY KEY, v bigint, event_dt date)"
        ));
        let lab = with_text_keys().build().follow(&database);
        put_texts(&lab, 1, &[("I", keys[0]), ("I", keys[1])]);
        put_texts(&lab, 2, &[("U", keys[0]), ("I", bad)]);
        put_texts(&lab, 3, &[("D", keys[1]), ("D", bad)]);
        let report = lab.run_days(1, 2);
        assert_eq!(report.exit_code(), 0, "{kind}: {:?}", report.followers);
        let refused = lab.run_days(2, 3);
        assert_eq!(refused.exit_code(), 65, "{kind}: {:?}", refused.followers);
        let error = refused.followers[0].error.clone().expect("an error");
        let hint = refused.followers[0].hint.clone().expect("a hint");
        assert!(hint.contains("`k`") && !error.contains(bad), "{error} {hint}");
        assert_eq!(database.ask("SELECT v FROM curated"), ["1", "1"]);
        // Once its row is gone, the key is no matter any more.
        let report = lab.run_days(3, 4);
        assert_eq!(report.exit_code(), 0, "{kind}: {:?}", report.followers);
        let found =
            database.ask("SELECT trim(replace(CAST(k AS text), '/32', '')), v FROM curated");
        assert_eq!(found, [format!("{}|2", keys[0])]);
        assert_eq!(lab.load(true).expect("loaded").followers[0].rows_deleted, 0);
    }
}

#[test]
fn statements_after_a_load_do_not_end_its_transaction() {
    for end in ["COMMIT", "ROLLBACK"] {
        let database = Database::new();
        let lab = builder().set("load.after_sql", "after.sql");
        let lab = lab.build().follow(&database);
        lab.write_file("after.sql", "SELECT 1");
        days(&lab);
        lab.run_days(1, 2);
        lab.write_file("after.sql", end);
        let report = lab.run_days(2, 4);
        assert_eq!(report.exit_code(), 2);
        let error = report.followers[0].error.clone().expect("an error");
        assert!(error.contains("after.sql ends the transaction of the load"), "{error}");
        lab.write_file("after.sql", "SELECT 1");
        lab.load(false).expect("loaded");
        lab.assert_followed(&database, &TABLES);
    }
}

#[test]
fn an_error_inside_of_the_server_is_told_and_can_be_tried_again() {
    let database = Database::new();
    let lab = builder().set("load.after_sql", "after.sql").build().follow(&database);
    lab.write_file(
        "after.sql",
        "DO $$ BEGIN RAISE EXCEPTION 'could not map filenumber' USING ERRCODE = 'XX000'; END $$",
    );
    days(&lab);
    let report = lab.run_days(1, 2);
    assert_eq!(report.exit_code(), 69);
    let error = report.followers[0].error.clone().expect("an error");
    assert!(error.contains("could not map filenumber"), "{error}");
    let hint = report.followers[0].hint.clone().expect("a hint");
    assert!(hint.contains("whose log may say more"), "{hint}");
}

#[test]
fn an_aggregate_with_a_new_query_follows_once_it_is_computed() {
    let database = Database::new();
    let lab = builder().build().follow(&database);
    days(&lab);
    lab.run_days(1, 3);
    let before = database.rows("daily");
    lab.write_file("daily.sql", &COUNT_PER_DAY.replace("COUNT(*)", "2 * COUNT(*)"));
    lab.load(false).expect("loaded");
    assert_eq!(database.rows("daily"), before);
    lab.run_days(3, 4);
    lab.assert_followed(&database, &TABLES);
    assert_ne!(database.rows("daily")[0], before[0]);
}

#[test]
fn values_of_a_column_that_was_there_before_do_not_stay() {
    let database = Database::new();
    database.ask(
        "SET ROLE lab; CREATE TABLE curated (
            id bigint PRIMARY KEY, cat text, v bigint, event_dt date, twice bigint DEFAULT 0
        )",
    );
    let lab = Lab::builder().format("delta").loaded().build().follow(&database);
    days(&lab);
    lab.run_days(1, 2);
    lab.write_file("curated.sql", "SELECT id, cat, v, event_dt, v * 2 AS twice FROM latest");
    lab.run_days(2, 3);
    lab.assert_followed(&database, &["curated"]);
}

#[test]
fn an_index_that_allows_nulls_is_no_key() {
    let database = Database::new();
    database.ask(
        "SET ROLE lab; CREATE TABLE curated (
            id bigint, cat text, v bigint NOT NULL, event_dt date, UNIQUE (id, event_dt),
            UNIQUE (id, event_dt, v)
        ); INSERT INTO curated (id, v) VALUES (0, 0)",
    );
    let lab = Lab::builder().keep("latest-per-day").loaded().build().follow(&database);
    days(&lab);
    let follower = &lab.run_days(1, 2).followers[0];
    let error = follower.error.clone().expect("an error");
    assert!(
        error.contains("no unique index of its key \"id\", \"event_dt\", without nulls"),
        "{error}"
    );
}

/// The SQL of docs/followers.md that grants what a loader needs: to make tables, and the least.
fn documented_grants() -> [String; 2] {
    let text = include_str!("../docs/followers.md");
    let section = text.split("### Permissions in the database").nth(1).expect("a section");
    let blocks = section.split("```sql\n").skip(1).map(|rest| rest.split("```").next());
    let mut blocks = blocks.map(|block| block.expect("a block").to_string());
    [(); 2].map(|()| blocks.next().expect("a block of SQL"))
}

#[test]
fn the_documented_permissions_are_enough_and_the_log_says_what_was_done() {
    let tables =
        "CREATE TABLE cust_loyalty (id bigint PRIMARY KEY, cat text, v bigint, event_dt date)";
    for (number, grants) in documented_grants().into_iter().enumerate() {
        let database = Database::new();
        let loader = format!("loader{}_{number}", database.name);
        let grants = grants.replace("DATABASE warehouse", &format!("DATABASE {}", database.name));
        let grants = grants.replace("TO loader", &format!("TO {loader}"));
        database.ask(&format!(
            "CREATE ROLE {loader} LOGIN PASSWORD 'pass word'; CREATE SCHEMA dashboard;
            REVOKE ALL ON DATABASE {} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC;
            {} {grants}",
            database.name,
            if number == 0 { String::new() } else { format!("{tables};") },
        ));
        let all = if number == 0 { builder() } else { Lab::builder().loaded() };
        let lab = all.set("load.table", "cust_loyalty").build();
        if number == 0 {
            lab.edit_pipeline("table = \"daily\"", "table = \"dashboard.daily\"");
        }
        let mut lab = lab.follow(&database);
        let url = database.url().replace("//lab:", &format!("//{loader}:"));
        lab.environment.insert("WAREHOUSE_URL".into(), url);
        days(&lab);
        for first in 1..4 {
            let program =
                lab.program_for("run", &day(first), &day(first + 1)).envs(&lab.environment);
            let output = program.run();
            assert_eq!(output.code, 0, "{}", output.stderr);
            let log = output.stderr;
            assert!(log.contains("load public.cust_loyalty: startDate 2020-01-0"), "{log}");
            if number == 0 {
                assert!(log.contains("load dashboard.daily: startDate 2020-01-0"), "{log}");
                assert!(log.contains("qualifying dates 1, rows deleted "), "{log}");
            }
            assert!(!log.contains("word"), "{log}");
        }
        assert_eq!(database.rows("cust_loyalty"), lab.published("curated"));
    }
}

#[test]
fn tables_that_do_not_do_as_they_are_told_are_refused() {
    let columns = "(id bigint PRIMARY KEY, cat text, v bigint, event_dt date)";
    let leaves_out = "CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RETURN CASE WHEN NEW.id = 7 THEN NULL ELSE NEW END; END $$;
        CREATE TRIGGER t BEFORE INSERT ON curated FOR EACH ROW EXECUTE FUNCTION leave_out()";
    for (made, message) in [
        (
            "CREATE TABLE t (id bigint); CREATE VIEW curated AS SELECT * FROM t".to_string(),
            "is no table",
        ),
        (
            format!(
                "CREATE TABLE curated {columns}; CREATE RULE r AS ON DELETE TO curated DO INSTEAD NOTHING"
            ),
            "has rules",
        ),
        (format!("CREATE TABLE curated {columns}; {leaves_out}"), "has taken 39 of 40 rows"),
    ] {
        let database = Database::new();
        database.ask(&format!("SET ROLE lab; {made}"));
        let lab = Lab::builder().loaded().build().follow(&database);
        days(&lab);
        let report = lab.run_days(1, 2);
        assert_eq!(report.exit_code(), 2, "{:?}", report.followers);
        let error = report.followers[0].error.clone().expect("an error");
        assert!(error.contains(message), "{error}");
    }
    // A policy that hides rows, after a load.
    let database = Database::new();
    let lab = Lab::builder().loaded().build().follow(&database);
    days(&lab);
    lab.run_days(1, 2);
    database.ask(
        "ALTER TABLE curated OWNER TO postgres; GRANT ALL ON curated TO lab;
        ALTER TABLE curated ENABLE ROW LEVEL SECURITY;
        CREATE POLICY few ON curated USING (id < 3) WITH CHECK (true)",
    );
    let follower = &lab.run_days(2, 3).followers[0];
    let error = follower.error.clone().expect("an error");
    assert!(error.contains("row-level security"), "{error}");
    assert!(follower.hint.as_ref().is_some_and(|hint| hint.contains("BYPASSRLS")), "{follower:?}");
    database.ask("ALTER TABLE curated DISABLE ROW LEVEL SECURITY");
    lab.load(false).expect("loaded");
    lab.assert_followed(&database, &["curated"]);
}

#[test]
fn rows_of_tables_that_inherit_stay_and_dropped_columns_come_back_whole() {
    let database = Database::new();
    let lab = builder().build().follow(&database);
    days(&lab);
    lab.run_days(1, 2);
    database.ask(
        "SET ROLE lab; CREATE TABLE child () INHERITS (curated); INSERT INTO child (id) VALUES (999)",
    );
    database.ask("ALTER TABLE ONLY curated DROP COLUMN v; ALTER TABLE daily DROP COLUMN n");
    lab.run_days(2, 4);
    assert_eq!(database.ask("SELECT id FROM child"), ["999"]);
    let values = "SELECT sum(v) FROM ONLY curated";
    let v: i64 =
        lab.published("curated").iter().map(|row| row["v"].parse::<i64>().expect("a number")).sum();
    assert_eq!(database.ask(values), [v.to_string()]);
    lab.assert_followed(&database, &["daily", "rows"]);
    lab.load(true).expect("loaded");
    assert_eq!(database.ask("SELECT id FROM child"), ["999"]);
}

#[test]
fn two_states_of_one_name_do_not_load_one_table() {
    let database = Database::new();
    let [production, development] =
        [(); 2].map(|()| Lab::builder().loaded().build().follow(&database));
    days(&production);
    production.run_days(1, 2);
    days(&development);
    let report = development.run_days(1, 2);
    assert_eq!(report.exit_code(), 2);
    let error = report.followers[0].error.clone().expect("an error");
    assert!(
        error.contains("public.curated is loaded by another pipeline `lab`, whose state is"),
        "{error}"
    );
    production.assert_followed(&database, &["curated"]);
}
