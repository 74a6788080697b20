//! Capture from PostgreSQL: every change is in one file, in the order of commits, whatever is interrupted,
//! repeated or raced; and what cannot be captured as it is is refused.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;

use crate::support::{
    Database, Fault, Kind, LOGICAL, PLACES, Place, Program, Row, SIMPLE, Server, Shop, glueless,
    pause, send_signal, test_times,
};

/// A row's values of some columns, `null` for those that it lacks.
fn of<'a>(row: &'a Row, names: &[&str]) -> Vec<&'a str> {
    names.iter().map(|name| row.get(*name).map_or("null", String::as_str)).collect()
}

/// The error of a capture that must be refused, and its hint.
#[track_caller]
fn refusal(shop: &Shop, kind: Kind) -> (String, String) {
    let error = shop.capture().expect_err("refused");
    assert_eq!(error.kind, kind, "{error}");
    (error.to_string(), error.hint.unwrap_or_default())
}

#[test]
fn a_table_is_loaded_and_then_followed() {
    for place in PLACES {
        let shop = Shop::simple(place);
        shop.sql("INSERT INTO t SELECT i, 'v' || i, i * 10 FROM generate_series(1, 500) i");
        let first = shop.captured();
        assert_eq!((first.tables[0].rows_loaded, first.tables[0].files), (500, 1));
        shop.fold();
        assert_eq!(shop.lab.published("curated"), shop.database.rows("t"));
        shop.sql("INSERT INTO t VALUES (501, 'new', NULL)");
        shop.sql("UPDATE t SET v = 'changed' WHERE id <= 3; DELETE FROM t WHERE id = 2");
        // Keys are swapped by way of a third one, and a row moves.
        shop.sql("UPDATE t SET id = -1 WHERE id = 10; UPDATE t SET id = 10 WHERE id = 11; UPDATE t SET id = 11 WHERE id = -1");
        shop.sql("UPDATE t SET id = 1000 WHERE id = 20");
        let second = shop.captured();
        let table = &second.tables[0];
        assert_eq!((table.inserts, table.updates, table.deletes), (1, 7, 1));
        assert_eq!((table.rows_loaded, table.files, second.transactions), (0, 1, Some(4)));
        shop.fold();
        assert_eq!(shop.lab.published("curated"), shop.database.rows("t"));
        let third = shop.captured();
        assert_eq!((third.tables.len(), third.transactions), (0, Some(0)));
        let changes = shop.changes("public/t");
        assert_eq!(of(&changes[0], &["Op", "id", "v", "n"]), ["I", "501", "new", "null"]);
        assert_eq!(of(&changes[8], &["Op", "_old_id", "id"]), ["U", "20", "1000"]);
        assert_eq!(of(&changes[4], &["Op", "_old_id", "id", "v"]), ["D", "null", "2", "null"]);
    }
}

/// A statement of a transaction.
#[derive(Clone, Debug)]
enum Statement {
    Write(i32, i64),
    Update(i32, i64),
    Delete(i32),
    Move(i32, i32),
    /// Changes that are rolled back, within the transaction.
    RolledBack(i32),
}

#[derive(Clone, Debug)]
enum Step {
    Transaction(Vec<Statement>, bool),
    Capture,
    /// A capture whose request fails after some.
    Broken(usize, Fault),
    Fold,
}

fn statement() -> impl Strategy<Value = Statement> {
    let id = || 1_i32..12;
    prop_oneof![
        4 => (id(), any::<i16>()).prop_map(|(id, n)| Statement::Write(id, n.into())),
        2 => (id(), any::<i16>()).prop_map(|(id, n)| Statement::Update(id, n.into())),
        2 => id().prop_map(Statement::Delete),
        2 => (id(), id()).prop_map(|(from, to)| Statement::Move(from, to)),
        1 => id().prop_map(Statement::RolledBack),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop::sample::select(vec![Fault::AllDead, Fault::OneDead, Fault::ReplyLost]);
    prop_oneof![
        6 => (prop::collection::vec(statement(), 1..6), prop::bool::weighted(0.9))
            .prop_map(|(statements, commits)| Step::Transaction(statements, commits)),
        2 => Just(Step::Capture),
        2 => (0_usize..8, fault).prop_map(|(requests, fault)| Step::Broken(requests, fault)),
        1 => Just(Step::Fold),
    ]
}

fn sql_of(statement: &Statement) -> String {
    match statement {
        Statement::Write(id, n) => format!(
            "INSERT INTO t VALUES ({id}, 'v{n}', {n}) ON CONFLICT (id) DO UPDATE SET v = excluded.v, n = excluded.n"
        ),
        Statement::Update(id, n) => format!("UPDATE t SET n = {n} WHERE id = {id}"),
        Statement::Delete(id) => format!("DELETE FROM t WHERE id = {id}"),
        Statement::Move(from, to) => format!(
            "UPDATE t SET id = {to} WHERE id = {from} AND NOT EXISTS (SELECT FROM t WHERE id = {to})"
        ),
        Statement::RolledBack(id) => format!(
            "SAVEPOINT a; DELETE FROM t WHERE id = {id}; INSERT INTO t VALUES ({id} + 100); ROLLBACK TO a"
        ),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * test_times(), max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// Random transactions, captures that fail at any request, small files, and folds: in the end the files
    /// have every change once, and the table has the rows of the database.
    #[test]
    fn the_table_is_the_databases_whatever_failed(steps in prop::collection::vec(step(), 4..24)) {
        let shop = Shop::simple(Place::Local);
        shop.sql("INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, 6) i");
        shop.captured();
        for step in &steps {
            match step {
                Step::Transaction(statements, commits) => {
                    let statements: Vec<String> = statements.iter().map(sql_of).collect();
                    let end = if *commits { "COMMIT" } else { "ROLLBACK" };
                    shop.sql(&format!("BEGIN; {}; {end}", statements.join("; ")));
                }
                Step::Capture => {
                    shop.captured();
                }
                Step::Broken(requests, fault) => {
                    let (broken, _) = shop.lab.failing_after(*requests, *fault);
                    // A file for each few rows.
                    let _ = shop.capture_with(&broken, &["file_bytes=400"]);
                }
                Step::Fold => {
                    shop.fold();
                }
            }
        }
        shop.assert_followed();
        shop.changes("public/t");
    }
}

#[test]
fn a_capture_that_fails_at_any_request_is_finished_by_the_next() {
    for place in PLACES {
        let shop = Shop::simple(place);
        shop.sql("INSERT INTO t VALUES (1, 'one', 1)");
        let mut id = 1;
        for fault in [Fault::AllDead, Fault::ReplyLost] {
            let mut requests = 0;
            loop {
                id += 1;
                shop.sql(&format!("INSERT INTO t VALUES ({id}, 'a', 1)"));
                shop.sql(&format!(
                    "UPDATE t SET n = n + 1 WHERE id = 1; INSERT INTO t VALUES (-{id}, 'b', 2)"
                ));
                let (broken, seen) = shop.lab.failing_after(requests, fault);
                let _ = shop.capture_with(&broken, &["file_bytes=300"]);
                if seen.left().is_some_and(|left| left > 0) {
                    break;
                }
                requests += 1;
                shop.captured();
            }
            assert!(requests >= 2, "nothing failed");
        }
        shop.assert_followed();
        shop.changes("public/t");
    }
}

#[test]
fn processes_that_are_killed_lose_nothing_and_repeat_nothing() {
    let shop = Shop::simple(Place::Local);
    shop.sql("INSERT INTO t SELECT i, 'v', 0 FROM generate_series(1, 2000) i");
    let mut random = 7_u64;
    for round in 0..25 * i64::from(test_times()) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        shop.sql(&format!(
            "UPDATE t SET n = n + 1 WHERE id % 7 = {}; DELETE FROM t WHERE id = {round};
            INSERT INTO t VALUES (10000 + {round}, 'new', 1)",
            round % 7
        ));
        let mut process = shop.program().set(&["file_bytes=2000"]).start();
        pause(Duration::from_millis(random >> 56));
        send_signal(&process, "-KILL");
        process.wait().expect("it ended");
        if round % 5 == 0 {
            shop.fold_if_any();
        }
    }
    // The server learns late that a process is gone.
    shop.wait("the slot is in use", || shop.of_slot("active") != "t");
    shop.assert_followed();
    shop.changes("public/t");
}

#[test]
fn a_suspended_process_that_wakes_up_repeats_nothing() {
    let shop = Shop::simple(Place::Local);
    shop.captured();
    let program = shop.program().args(["--follow", "--every", "1s"]).set(&["file_bytes=2000"]);
    let mut frozen = program.start();
    shop.wait("it does not read", || shop.of_slot("active") == "t");
    shop.sql("INSERT INTO t SELECT i, 'v', 0 FROM generate_series(1, 3000) i");
    send_signal(&frozen, "-STOP");
    // The server takes the slot from it.
    let kill = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots";
    shop.database.ask(&format!("{kill} WHERE slot_name = 'glueless_{}'", shop.database.name));
    shop.wait("the slot is in use", || shop.of_slot("active") != "t");
    shop.sql("UPDATE t SET n = 1 WHERE id % 2 = 0");
    shop.assert_followed();
    send_signal(&frozen, "-CONT");
    frozen.wait().expect("it ended");
    shop.sql("DELETE FROM t WHERE id < 100");
    shop.assert_followed();
    assert_eq!(shop.changes("public/t").len(), 3000 + 1500 + 99);
}

#[test]
fn a_server_that_is_killed_sends_again_what_it_has_forgotten() {
    static OWN: LazyLock<Server> = LazyLock::new(|| Server::start_with(&LOGICAL));
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint)";
    let columns = "CAST(id AS INT) AS id, CAST(v AS VARCHAR) AS v, CAST(n AS BIGINT) AS n";
    let shop = Shop::at(&OWN, Place::Local, sql, "[\"public.t\"]", columns);
    shop.captured();
    for round in 0..4 {
        shop.sql(&format!("INSERT INTO t VALUES ({round}, 'v', 0); UPDATE t SET n = n + 1"));
        shop.captured();
        let before = shop.of_slot("confirmed_flush_lsn");
        OWN.control("kill");
        OWN.control("start");
        // What the slot's consumer has confirmed is written down from time to time only.
        if round > 0 {
            assert_ne!(shop.of_slot("confirmed_flush_lsn"), before);
        }
    }
    shop.assert_followed();
    shop.changes("public/t");
}

#[test]
fn one_process_at_a_time_reads_a_slot() {
    let shop = Shop::simple(Place::Local);
    shop.captured();
    let mut first = shop.program().args(["--follow", "--every", "1s"]).start();
    shop.wait("it does not read", || shop.of_slot("active") == "t");
    let (message, hint) = refusal(&shop, Kind::Busy);
    assert!(message.contains("another process captures with the slot"), "{message}");
    assert!(hint.contains("run the command again"), "{hint}");
    shop.sql("INSERT INTO t VALUES (1, 'a', 2)");
    shop.wait("it writes nothing", || !shop.changes("public/t").is_empty());
    shop.sql("INSERT INTO t VALUES (2, 'b', 2)");
    send_signal(&first, "-INT");
    let ended = first.wait().expect("it ended");
    assert_eq!(ended.code(), Some(0));
    // What it has not read is for the next one.
    shop.assert_followed();
    assert_eq!(shop.changes("public/t").len(), 2);
}

/// Every type, with a value at its edge.
const EVERY_TYPE: &str = "CREATE DOMAIN amount AS numeric(12, 3); CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE TABLE t (id int PRIMARY KEY, b bool, i2 int2, i8 int8, f4 float4, f8 float8, n numeric(10, 2),
        free numeric, wide numeric(50, 1), a amount, txt text, vc varchar(9), ch char(4), by bytea, d date,
        ti time, tz timetz, ts timestamp, tstz timestamptz, iv interval, u uuid, j json, jb jsonb,
        ints int[], m mood, ip inet, r int4range, bits bit(3), mon money);
    ALTER TABLE t REPLICA IDENTITY FULL";

const VALUES: &str = "true, -32768, 9223372036854775807, 1.5, '-Infinity', -12345678.90, 1e-30, 1e40, 7.125,
    E'tab\\there \\\\ \\n \u{e4}', 'x', 'ab', '\\x00ff', '0044-03-15 BC', '23:59:59.999999', '12:00+02',
    '2024-02-29 23:59:59.123456', '2024-02-29 23:59:59.5+02', '1 year 2 days 03:00',
    '00000000-0000-0000-0000-00000000000a', '{\"a\": 1}', '{\"b\":2}', '{1,NULL,3}', 'glad', '10.0.0.1/8',
    '[1,5)', B'101', '1.50'";

#[test]
fn every_type_is_the_same_in_loads_and_changes() {
    let shop = Shop::new(Place::Local, EVERY_TYPE, "[\"public.*\"]", "CAST(id AS INT) AS id");
    shop.sql(&format!("INSERT INTO t VALUES (1, {VALUES}); INSERT INTO t (id) VALUES (2)"));
    shop.captured();
    shop.sql(&format!("INSERT INTO t VALUES (3, {VALUES}); INSERT INTO t (id) VALUES (4)"));
    shop.captured();
    let without_head = |rows: Vec<Row>| -> Vec<Row> {
        let is_own = |name: &String| !name.starts_with('_') && name != "id" && name != "Op";
        let kept = rows.into_iter().map(|row| row.into_iter().filter(|(name, _)| is_own(name)));
        kept.map(Iterator::collect).collect()
    };
    let changes = without_head(shop.changes("public/t"));
    assert_eq!(without_head(shop.loaded("public/t")), changes);
    assert!(changes[1].is_empty(), "{changes:?}");
    let row = &changes[0];
    let wrong = [
        ("b", "true"),
        ("i2", "-32768"),
        ("i8", "9223372036854775807"),
        ("f4", "1.5"),
        ("f8", "-inf"),
        ("n", "-12345678.90"),
        ("free", "0.000000000000000000000000000001"),
        ("wide", "10000000000000000000000000000000000000000.0"),
        ("a", "7.125"),
        ("txt", "tab\there \\ \n \u{e4}"),
        ("vc", "x"),
        ("ch", "ab  "),
        ("by", "00ff"),
        ("d", "-0043-03-15"),
        ("ti", "23:59:59.999999"),
        ("tz", "12:00:00+02"),
        ("ts", "2024-02-29 23:59:59.123456"),
        ("tstz", "2024-02-29T21:59:59.500Z"),
        ("iv", "P1Y2DT3H"),
        ("u", "00000000-0000-0000-0000-00000000000a"),
        ("j", "{\"a\": 1}"),
        ("jb", "{\"b\": 2}"),
        ("ints", "{1,NULL,3}"),
        ("m", "glad"),
        ("ip", "10.0.0.1/8"),
        ("r", "[1,5)"),
        ("bits", "101"),
        ("mon", "$1.50"),
    ]
    .map(|(column, expected)| (column, row.get(column).map_or("null", String::as_str), expected));
    let wrong: Vec<_> = wrong.iter().filter(|(_, found, expected)| found != expected).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn infinite_times_are_counted_and_a_number_that_is_none_is_refused() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, d date, ts timestamptz, n numeric(5, 1))";
    let shop = Shop::new(Place::Local, sql, "[\"public.t\"]", "CAST(id AS INT) AS id");
    shop.captured();
    shop.sql("INSERT INTO t VALUES (1, 'infinity', '-infinity', 1)");
    let captured = shop.captured();
    assert_eq!(captured.tables[0].infinite_values, 2);
    let changes = shop.changes("public/t");
    assert_eq!(of(&changes[0], &["d", "ts"]), ["9999-12-31", "0001-01-01T00:00:00Z"]);
    shop.sql("INSERT INTO t VALUES (2, NULL, NULL, 2)");
    shop.sql(
        "INSERT INTO t VALUES (3, NULL, NULL, 3); INSERT INTO t VALUES (4, NULL, NULL, 'NaN')",
    );
    let (message, hint) = refusal(&shop, Kind::Data);
    assert!(message.contains("public.t: a value of `n` in the change at"), "{message}");
    assert!(message.ends_with("is NaN, which a decimal number cannot be"), "{message}");
    assert!(hint.contains("add \"public.t.n\" to `text_columns`"), "{hint}");
    // The transaction before it is captured, and nothing of it.
    assert_eq!(shop.changes("public/t").len(), 2);
    shop.capture_with(&shop.lab, &["text_columns=[\"public.t.n\"]"]).expect("as text");
    let changes = shop.changes("public/t");
    assert_eq!(of(&changes[3], &["id", "n"]), ["4", "NaN"]);
}

#[test]
fn a_table_whose_changes_are_not_whole_in_the_log_is_refused_before_anything_is_made() {
    for (sql, why) in [
        (
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            "can have large values that an update does not log",
        ),
        (
            "CREATE TABLE t (id int)",
            "has neither a primary key, checked at once, nor another replica identity",
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING",
            "has no replica identity",
        ),
    ] {
        let shop = Shop::new(Place::Local, sql, "[\"public.t\"]", "CAST(id AS INT) AS id");
        let (message, hint) = refusal(&shop, Kind::Usage);
        assert_eq!(message, format!("the table `public.t` {why}"));
        let expected = "ALTER TABLE \"public\".\"t\" REPLICA IDENTITY FULL; -- or leave it out by `tables` or `exclude`";
        assert_eq!(hint, expected);
        assert_eq!(shop.database.ask("SELECT count(*) FROM pg_publication"), ["0"]);
        assert_eq!(shop.of_slot("plugin"), "");
        assert_eq!(shop.lab.list_all("raw"), Vec::<String>::new());
        // The hint is right.
        shop.sql(&hint);
        shop.sql("INSERT INTO t VALUES (1)");
        shop.captured();
        shop.sql("UPDATE t SET id = 2");
        shop.captured();
        assert_eq!(shop.changes("public/t").len(), 1);
    }
}

#[test]
fn a_large_value_that_did_not_change_is_that_of_the_row_before() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text, n bigint); ALTER TABLE t REPLICA IDENTITY FULL;
        ALTER TABLE t ALTER v SET STORAGE EXTERNAL";
    let columns = "CAST(id AS INT) AS id, CAST(v AS VARCHAR) AS v, CAST(n AS BIGINT) AS n";
    let shop = Shop::new(Place::Local, sql, "[\"public.t\"]", columns);
    shop.sql("INSERT INTO t VALUES (1, repeat('long', 5000), 1), (2, repeat('x', 9000), 1)");
    shop.captured();
    shop.sql("UPDATE t SET n = 2 WHERE id = 1");
    shop.sql("UPDATE t SET id = 3 WHERE id = 2");
    shop.assert_followed();
    // Its identity is taken back: what is logged from then on is not whole.
    shop.sql("INSERT INTO t VALUES (9, 'before', 1)");
    shop.sql("ALTER TABLE t REPLICA IDENTITY DEFAULT");
    shop.sql("UPDATE t SET n = 3 WHERE id = 1");
    shop.sql("ALTER TABLE t REPLICA IDENTITY FULL");
    let (message, hint) = refusal(&shop, Kind::Data);
    assert!(message.contains("public.t: the log lacks the value of `v`"), "{message}");
    assert!(
        message.ends_with("was not FULL") && hint.contains("`--new-snapshot` and the name"),
        "{message}: {hint}"
    );
    let changes = shop.changes("public/t");
    assert_eq!(of(changes.last().expect("a change"), &["id", "v"]), ["9", "before"]);
    // The hint is right.
    shop.captured_anew(&["public.t"]);
    shop.assert_followed();
}

#[test]
fn a_truncation_ends_the_rows_that_were_before_it() {
    let shop = Shop::simple(Place::Local);
    shop.captured();
    shop.sql("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 1)");
    shop.assert_followed();
    // What a transaction writes before it, and after it.
    shop.sql("INSERT INTO t VALUES (3, 'c', 1); TRUNCATE t; INSERT INTO t VALUES (1, 'again', 2)");
    let table = shop.captured().tables[0].clone();
    assert_eq!((table.inserts, table.deletes, table.truncates), (2, 0, 1));
    shop.assert_followed();
    let changes = shop.changes("public/t");
    let ops = changes.iter().map(|row| of(row, &["Op"])[0].to_string());
    assert_eq!(ops.collect::<Vec<_>>(), ["I", "I", "I", "T", "I"]);
    assert!(!changes[3].contains_key("id"), "it has no key");
    shop.sql("TRUNCATE t");
    shop.sql("TRUNCATE t");
    shop.assert_followed();
    assert!(shop.lab.published("curated").is_empty());
    shop.sql("INSERT INTO t VALUES (4, 'after', 1); DELETE FROM t WHERE id = 4");
    shop.sql("INSERT INTO t VALUES (5, 'after', 1)");
    shop.assert_followed();
    shop.lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(shop.lab.published("curated"), shop.database.rows("t"));
    // A table that is not captured can be truncated.
    let shop = Shop::simple(Place::Local);
    shop.sql("CREATE TABLE other (id int PRIMARY KEY)");
    shop.captured();
    shop.sql("TRUNCATE other");
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    shop.assert_followed();
}

#[test]
fn columns_can_be_added_removed_and_change_their_type() {
    let shop = Shop::simple(Place::Local);
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    shop.captured();
    shop.sql("INSERT INTO t VALUES (2, 'b', 2)");
    shop.sql("ALTER TABLE t ADD extra int DEFAULT 5");
    shop.sql("INSERT INTO t VALUES (3, 'c', 3, 7)");
    shop.sql("ALTER TABLE t DROP extra");
    shop.sql("ALTER TABLE t ALTER n TYPE numeric(12, 2)");
    shop.sql("UPDATE t SET n = 2.00 WHERE id = 1");
    let captured = shop.captured();
    assert_eq!(captured.tables[0].files, 3);
    let changes = shop.changes("public/t");
    let seen: Vec<_> = changes.iter().map(|row| of(row, &["id", "n", "extra"])).collect();
    assert_eq!(seen, [["2", "2", "null"], ["3", "3", "7"], ["1", "2.00", "null"]]);
    shop.fold();
    assert_eq!(shop.lab.published("curated"), shop.database.rows("t"));
}

#[test]
fn a_table_that_is_added_later_gets_its_own_full_load() {
    let shop = Shop::simple(Place::Local);
    shop.sql("CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1), (2)");
    shop.captured();
    shop.sql("INSERT INTO other VALUES (3); INSERT INTO t VALUES (1, 'a', 1)");
    let both = "tables=[\"public.*\"]";
    // Files of something else are not mixed with its own.
    shop.lab.put("raw/public/other/LOAD00000001.parquet", "another tool's");
    let error = shop.capture_with(&shop.lab, &[both]).expect_err("refused");
    assert!(error.to_string().ends_with("public/other has files"), "{error}");
    shop.lab.remove_all("raw/public/other");
    // It is interrupted in its load.
    let (broken, _) = shop.lab.failing_after(3, Fault::AllDead);
    shop.capture_with(&broken, &[both]).expect_err("broken");
    shop.sql("DELETE FROM other WHERE id = 1");
    let captured = shop.capture_with(&shop.lab, &[both]).expect("captured");
    let names: Vec<&str> = captured.tables.iter().map(|table| table.table.as_str()).collect();
    assert_eq!(names, ["public.other", "public.t"]);
    assert_eq!(captured.tables[0].rows_loaded, 2);
    shop.sql("INSERT INTO other VALUES (4)");
    shop.capture_with(&shop.lab, &[both]).expect("captured");
    let last = shop.changes("public/other").pop().expect("a change");
    assert_eq!(of(&last, &["Op", "id"]), ["I", "4"]);
    // Without it, its changes would be skipped; without its place in the publication, they are lost.
    let (message, hint) = refusal(&shop, Kind::Usage);
    assert!(message.starts_with("public.other was captured before"), "{message}");
    assert!(hint.contains("ALTER PUBLICATION … DROP TABLE"), "{hint}");
    shop.sql(&format!("ALTER PUBLICATION glueless_{} DROP TABLE other", shop.database.name));
    shop.captured();
    let error = shop.capture_with(&shop.lab, &[both]).expect_err("refused");
    assert!(error.to_string().contains("changes since then are lost"), "{error}");
    shop.lab.remove_all("raw/public/other");
    shop.capture_with(&shop.lab, &[both]).expect("loaded anew");
    assert_eq!(shop.loaded("public/other").len(), 3);
    shop.assert_followed_with(&[both]);
}

#[test]
fn changes_before_a_load_are_left_out() {
    let shop = Shop::simple(Place::Local);
    shop.sql("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 1)");
    shop.captured();
    // Changes that are in the log, then some that are not, and the table is loaded anew.
    shop.sql("UPDATE t SET n = 2 WHERE id = 1; INSERT INTO t VALUES (3, 'c', 1)");
    let publication = format!("glueless_{}", shop.database.name);
    shop.sql(&format!("ALTER PUBLICATION {publication} DROP TABLE t"));
    shop.sql("UPDATE t SET n = 99 WHERE id = 1; DELETE FROM t WHERE id = 3");
    let (message, hint) = refusal(&shop, Kind::Data);
    assert!(
        message.contains("public.t was captured before, and is not in the publication"),
        "{message}"
    );
    assert!(hint.contains("`--new-snapshot` and the name"), "{hint}");
    shop.lab.remove_all("raw/public/t");
    shop.sql("INSERT INTO t VALUES (4, 'd', 1)");
    shop.captured();
    assert_eq!(shop.changes("public/t").len(), 0);
    shop.sql("DELETE FROM t WHERE id = 4");
    shop.assert_followed();
    assert_eq!(shop.changes("public/t").len(), 1);
    // Also a truncation before it.
    let shop = Shop::simple(Place::Local);
    shop.database
        .ask(&format!("CREATE PUBLICATION glueless_{} FOR ALL TABLES", shop.database.name));
    let all = "tables=[\"public.*\"]";
    shop.capture_with(&shop.lab, &[all]).expect("captured");
    shop.sql("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)");
    shop.sql("TRUNCATE later");
    shop.sql("INSERT INTO later VALUES (2)");
    shop.capture_with(&shop.lab, &[all]).expect("captured");
    assert_eq!(shop.loaded("public/later").len(), 1);
    shop.sql("INSERT INTO later VALUES (3)");
    shop.capture_with(&shop.lab, &[all]).expect("captured");
    assert_eq!(shop.changes("public/later").len(), 1);
}

#[test]
fn a_table_is_known_by_more_than_its_name() {
    let make = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint)";
    for change in [
        // Another table of the name.
        &format!("DROP TABLE t; {make}; ALTER PUBLICATION PUB ADD TABLE t"),
        &format!("ALTER TABLE t RENAME TO old; {make}; ALTER PUBLICATION PUB ADD TABLE t"),
        // Out of the publication and back, and another publication.
        "ALTER PUBLICATION PUB DROP TABLE t; INSERT INTO t VALUES (7, 'lost', 1); ALTER PUBLICATION PUB ADD TABLE t",
        "DROP PUBLICATION PUB; CREATE PUBLICATION PUB FOR TABLE t",
    ] {
        let shop = Shop::simple(Place::Local);
        shop.sql("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 1)");
        shop.captured();
        shop.fold();
        // Changes of the table that was, which are not captured.
        shop.sql("DELETE FROM t WHERE id = 2");
        let name = format!("glueless_{}", shop.database.name);
        shop.sql(&change.replace("PUBLICATION PUB", &format!("PUBLICATION {name}")));
        let (message, hint) = refusal(&shop, Kind::Data);
        let is_said =
            ["is another table than the one that was captured", "changes since then are lost"];
        assert!(is_said.iter().any(|said| message.contains(said)), "{message}");
        assert!(hint.contains("`--new-snapshot` and the name"), "{hint}");
        shop.sql("INSERT INTO t VALUES (8, 'new', 1)");
        shop.captured_anew(&["public.t"]);
        shop.sql("INSERT INTO t VALUES (9, 'newer', 1); UPDATE t SET n = 2");
        shop.assert_followed();
    }
}

#[test]
fn changes_under_another_name_are_not_lost() {
    let shop = Shop::simple(Place::Local);
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    shop.captured();
    shop.sql("ALTER TABLE t RENAME TO t_");
    shop.sql("UPDATE t_ SET n = 2");
    shop.sql("ALTER TABLE t_ RENAME TO t");
    let (message, hint) = refusal(&shop, Kind::Data);
    assert_eq!(message, "the table public.t was renamed to public.t_");
    assert!(hint.contains("`--new-snapshot` and the name"), "{hint}");
    shop.fold();
    shop.captured_anew(&["public.t"]);
    shop.assert_followed();
    // A schema out of the publication and back.
    let shop = Shop::simple(Place::Local);
    let name = format!("glueless_{}", shop.database.name);
    shop.database.ask(&format!("CREATE PUBLICATION {name} FOR TABLES IN SCHEMA public"));
    shop.captured();
    shop.database.ask(&format!("ALTER PUBLICATION {name} DROP TABLES IN SCHEMA public"));
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    shop.database.ask(&format!("ALTER PUBLICATION {name} ADD TABLES IN SCHEMA public"));
    let (message, _) = refusal(&shop, Kind::Data);
    assert!(message.contains("was taken out of the publication"), "{message}");
}

#[test]
fn a_table_that_is_made_while_capture_runs_is_loaded_by_the_next() {
    let shop = Shop::simple(Place::Local);
    shop.database
        .ask(&format!("CREATE PUBLICATION glueless_{} FOR ALL TABLES", shop.database.name));
    let all = "tables=[\"public.*\"]";
    shop.capture_with(&shop.lab, &[all]).expect("captured");
    let mut follows = shop.program().args(["--follow", "--every", "1s"]).set(&[all]).start();
    shop.wait("it does not read", || shop.of_slot("active") == "t");
    shop.sql("CREATE TABLE n (id int PRIMARY KEY, v int); INSERT INTO n VALUES (1, 1), (2, 2)");
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    shop.wait("it writes nothing", || !shop.changes("public/t").is_empty());
    send_signal(&follows, "-TERM");
    assert_eq!(follows.wait().expect("it ended").code(), Some(0));
    shop.sql("UPDATE n SET v = 9 WHERE id = 1; DELETE FROM n WHERE id = 2");
    shop.capture_with(&shop.lab, &[all]).expect("captured");
    assert_eq!((shop.loaded("public/n").len(), shop.changes("public/n").len()), (1, 0));
}

#[test]
fn a_load_that_was_interrupted_and_left_out_is_refused() {
    let make =
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE z (id int PRIMARY KEY, x numeric(5, 1))";
    let shop = Shop::new(Place::Local, make, "[\"public.t\"]", "CAST(id AS INT) AS id");
    shop.captured();
    shop.sql("INSERT INTO z SELECT i, 1 FROM generate_series(1, 20000) i; INSERT INTO z VALUES (0, 'NaN')");
    let both = ["tables=[\"public.*\"]", "file_bytes=300"];
    shop.capture_with(&shop.lab, &both).expect_err("NaN");
    assert!(!shop.loaded("public/z").is_empty());
    shop.sql("INSERT INTO t VALUES (1)");
    shop.captured();
    shop.sql("DELETE FROM z WHERE id < 10");
    shop.captured();
    let error = shop.capture_with(&shop.lab, &both).expect_err("refused");
    assert!(error.to_string().contains("the load of public.z was interrupted"), "{error}");
    shop.sql("DELETE FROM z WHERE x = 'NaN'");
    shop.capture_anew(&shop.lab, &["public.z"], &both).expect("loaded");
    let rows = shop.changes("public/z");
    assert_eq!((of(&rows[0], &["Op"]), rows.len()), (vec!["T"], 1 + 19_991));
    shop.capture_with(&shop.lab, &both).expect("captured");
}

#[test]
fn what_a_publication_left_out_is_lost_once_there_is_a_slot() {
    let shop = Shop::simple(Place::Local);
    shop.sql("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 1)");
    shop.captured();
    shop.fold();
    let name = format!("glueless_{}", shop.database.name);
    shop.sql(&format!("ALTER PUBLICATION {name} SET (publish = 'insert, update')"));
    shop.sql("DELETE FROM t WHERE id = 1");
    let (message, hint) = refusal(&shop, Kind::Data);
    assert!(message.ends_with("leaves operations out: changes are lost"), "{message}");
    assert!(hint.starts_with(&format!("DROP PUBLICATION \"{name}\"")), "{hint}");
    // The hint is right.
    shop.database.ask(hint.split(", or").next().expect("a statement"));
    let (message, hint) = refusal(&shop, Kind::Data);
    assert!(message.contains("was dropped: changes since then are lost"), "{message}");
    assert!(hint.contains("`--new-snapshot`"), "{hint}");
    shop.captured_anew(&[]);
    shop.assert_followed();
}

#[test]
fn files_without_their_slot_are_not_continued() {
    let shop = Shop::simple(Place::Local);
    shop.sql("INSERT INTO t SELECT i, 'v', i FROM generate_series(1, 300) i");
    let (broken, _) = shop.lab.failing_after(4, Fault::AllDead);
    shop.capture_with(&broken, &["file_bytes=300"]).expect_err("broken");
    assert!(!shop.loaded("public/t").is_empty());
    shop.database
        .ask(&format!("SELECT pg_drop_replication_slot('glueless_{}')", shop.database.name));
    let (message, hint) = refusal(&shop, Kind::Usage);
    assert!(
        message.starts_with("public.t was not captured yet")
            && message.ends_with("public/t has files"),
        "{message}"
    );
    assert!(hint.contains("set `to` to a new folder"), "{hint}");
}

#[test]
fn a_table_that_changes_before_the_slot_is_made_is_loaded_as_it_is_then() {
    let shop = Shop::simple(Place::Local);
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    // A transaction that has begun holds the making of the slot up; meanwhile the table changes.
    let writer =
        "BEGIN; CREATE TEMP TABLE x (id int); SELECT txid_current(); SELECT pg_sleep(4); COMMIT";
    let change = "ALTER TABLE t ADD extra int DEFAULT 5; INSERT INTO t VALUES (2, 'b', 2, 6)";
    std::thread::scope(|scope| {
        scope.spawn(|| shop.sql(writer));
        pause(Duration::from_millis(500));
        let captured = scope.spawn(|| shop.captured());
        pause(Duration::from_millis(1500));
        shop.sql(change);
        assert_eq!(captured.join().expect("captured").tables[0].rows_loaded, 2);
    });
    shop.assert_followed_but_for("extra");
    let mut loaded = shop.loaded("public/t");
    loaded.sort_by(|a, b| a["id"].cmp(&b["id"]));
    let seen: Vec<_> = loaded.iter().map(|row| of(row, &["id", "extra"])).collect();
    assert_eq!(seen, [["1", "5"], ["2", "6"]]);
}

#[test]
fn one_process_at_a_time_sets_a_slot_up() {
    let shop = Shop::simple(Place::Local);
    let name = format!("glueless capture glueless_{}", shop.database.name);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let lock =
                format!("SELECT pg_advisory_lock(hashtextextended('{name}', 0)), pg_sleep(3)");
            shop.database.ask(&lock)
        });
        pause(Duration::from_millis(1000));
        let (message, hint) = refusal(&shop, Kind::Busy);
        assert!(message.contains("another process captures with the slot"), "{message}");
        assert!(hint.contains("run the command again"), "{hint}");
    });
    shop.captured();
}

#[test]
fn a_load_that_was_interrupted_is_done_again() {
    let shop = Shop::simple(Place::Local);
    shop.sql("INSERT INTO t SELECT i, 'v', i FROM generate_series(1, 300) i");
    for requests in 1..5 {
        let (broken, _) = shop.lab.failing_after(requests, Fault::AllDead);
        shop.capture_with(&broken, &["file_bytes=300"]).expect_err("broken");
        shop.fold_if_any();
        shop.sql(&format!(
            "DELETE FROM t WHERE id = {requests}; UPDATE t SET n = n + 1 WHERE id % 2 = 0"
        ));
    }
    shop.assert_followed();
    shop.changes("public/t");
}

#[test]
fn a_slot_without_its_changes_is_refused() {
    let shop = Shop::simple(Place::Local);
    shop.captured();
    let name = format!("glueless_{}", shop.database.name);
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    shop.database.ask(&format!("SELECT pg_drop_replication_slot('{name}')"));
    let (message, hint) = refusal(&shop, Kind::Data);
    assert_eq!(
        message,
        format!(
            "the slot `{name}` is gone, and public.t was captured with it: changes since then are lost"
        )
    );
    assert!(hint.contains("with `--new-snapshot`: it reads all tables anew"), "{hint}");
    // A new folder begins anew.
    let to = format!("to={}/raw2", shop.lab.base);
    shop.capture_with(&shop.lab, &[&to]).expect("captured");
    assert_eq!(shop.lab.list_all("raw2/public/t").len(), 2);
    // The publication is dropped, and the slot is one of something else.
    shop.sql(&format!("DROP PUBLICATION {name}"));
    let error = shop.capture_with(&shop.lab, &[&to]).expect_err("refused");
    assert!(error.to_string().contains("the publication"), "{error}");
    let error = shop.capture_with(&shop.lab, &[&to]).expect_err("refused again");
    assert!(error.to_string().contains("the publication"), "{error}");
}

#[test]
fn log_that_the_server_has_removed_is_lost_and_said_so() {
    static OWN: LazyLock<Server> = LazyLock::new(|| {
        let limits = [
            "-c",
            "max_slot_wal_keep_size=1MB",
            "-c",
            "max_wal_size=32MB",
            "-c",
            "min_wal_size=32MB",
        ];
        Server::start_with(&[&LOGICAL[..], &limits].concat())
    });
    let sql = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)";
    let shop = Shop::at(&OWN, Place::Local, sql, "[\"public.t\"]", "CAST(id AS INT) AS id");
    shop.sql("INSERT INTO t VALUES (0), (1)");
    shop.captured();
    shop.fold();
    shop.sql("UPDATE t SET id = 5 WHERE id = 0");
    shop.sql("CREATE TABLE noise (v text)");
    for _ in 0..4 {
        shop.sql(
            "INSERT INTO noise SELECT repeat(md5(i::text), 20) FROM generate_series(1, 40000) i",
        );
        shop.database.ask("SELECT pg_switch_wal()");
        shop.database.ask("CHECKPOINT");
    }
    shop.wait("the log is still there", || shop.of_slot("wal_status") == "lost");
    let (message, hint) = refusal(&shop, Kind::Data);
    assert!(message.contains("has removed log that the slot"), "{message}");
    assert!(hint.contains("with `--new-snapshot`: it reads all tables anew"), "{hint}");
    // The hint is right: once it is done, captures go on.
    shop.fold();
    shop.sql("INSERT INTO t VALUES (2), (3)");
    let (message, hint) = {
        let error =
            shop.capture_anew(&shop.lab, &["public.t"], &["tables=[\"public.t\", \"public.u\"]"]);
        let error = error.expect_err("refused");
        (error.to_string(), error.hint.unwrap_or_default())
    };
    assert!(message.contains("has removed log that the slot"), "{message}");
    assert!(hint.contains("without the names of tables"), "{hint}");
    shop.captured_anew(&[]);
    shop.sql("DELETE FROM t WHERE id = 1");
    shop.assert_followed();
    assert_eq!(shop.of_slot("wal_status"), "reserved");
}

#[test]
fn a_quiet_table_lets_the_server_remove_its_log() {
    let shop = Shop::simple(Place::Local);
    shop.captured();
    shop.sql("CREATE TABLE noise (v text)");
    shop.sql("INSERT INTO noise SELECT repeat('x', 500) FROM generate_series(1, 20000)");
    let before = shop.captured();
    assert!(before.held_bytes > Some(10_000_000), "{:?}", before.held_bytes);
    assert!(before.tables.is_empty());
    // From where the server must keep its log follows when it next writes down what is running.
    shop.wait("the log is held", || {
        shop.database.ask("CHECKPOINT");
        shop.captured().held_bytes < Some(1_000_000)
    });
    assert_eq!(shop.lab.list_all("raw/public/t").len(), 1);
}

#[test]
fn partitions_are_captured_as_their_table_and_generated_columns_are_left_out() {
    let sql = "CREATE TABLE t (id int, day date, n int, twice int GENERATED ALWAYS AS (n * 2) STORED,
            PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE t_old (n int, id int NOT NULL, day date NOT NULL, twice int GENERATED ALWAYS AS (n * 2) STORED);
        ALTER TABLE t ATTACH PARTITION t_old FOR VALUES FROM (MINVALUE) TO ('2024-01-01');
        CREATE TABLE t_new PARTITION OF t FOR VALUES FROM ('2024-01-01') TO (MAXVALUE)";
    let columns = "CAST(id AS INT) AS id, CAST(day AS DATE) AS day, CAST(n AS INT) AS n";
    let shop = Shop::new(Place::Local, sql, "[\"public.*\"]", columns);
    shop.sql("INSERT INTO t VALUES (1, '2023-05-05', 1), (2, '2024-05-05', 2)");
    let loaded = shop.captured();
    assert_eq!(loaded.tables.len(), 1);
    assert_eq!(loaded.tables[0].rows_loaded, 2);
    shop.sql("UPDATE t SET n = 5; UPDATE t SET day = '2025-01-01' WHERE id = 1; DELETE FROM t WHERE id = 2");
    shop.captured();
    let changes = shop.changes("public/t");
    // A row that moves to another partition is deleted and inserted.
    let seen: Vec<_> = changes.iter().map(|row| of(row, &["Op", "id", "day", "n"])).collect();
    assert_eq!(seen.len(), 5);
    assert_eq!(seen[3], ["I", "1", "2025-01-01", "5"]);
    assert!(changes.iter().all(|row| !row.contains_key("twice")));
    let folders: BTreeSet<String> =
        shop.lab.list_all("raw").iter().map(|path| folder_of(path)).collect();
    assert_eq!(folders, BTreeSet::from(["public/t".to_string()]));
    let named = Shop::new(Place::Local, sql, "[\"public.t_old\"]", columns);
    let (message, _) = refusal(&named, Kind::Usage);
    assert!(message.contains("is a partition: name its partitioned table"), "{message}");
}

fn folder_of(path: &str) -> String {
    path.rsplit_once('/').map_or("", |(folder, _)| folder).to_string()
}

#[test]
fn partitions_must_log_what_their_table_sends() {
    let make = "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF t FOR VALUES FROM (0) TO (100)";
    let shop = Shop::new(Place::Local, make, "[\"public.t\"]", "CAST(id AS INT) AS id");
    let (message, hint) = refusal(&shop, Kind::Usage);
    assert!(message.contains("can have large values"), "{message}");
    assert!(
        hint.contains("\"t\" REPLICA IDENTITY FULL") && hint.contains("\"p1\" REPLICA"),
        "{hint}"
    );
    shop.sql(&hint);
    shop.captured();
    // A new partition does not inherit it.
    shop.sql("CREATE TABLE p2 PARTITION OF t FOR VALUES FROM (100) TO (200)");
    shop.sql("ALTER TABLE p2 ALTER v SET STORAGE EXTERNAL");
    shop.sql("INSERT INTO t VALUES (150, repeat('long', 5000))");
    shop.sql("UPDATE t SET id = 151 WHERE id = 150");
    let (_, hint) = refusal(&shop, Kind::Usage);
    shop.sql(&hint);
    let (message, _) = refusal(&shop, Kind::Data);
    assert!(message.contains("public.t: the log lacks the value of `v`"), "{message}");
    let make = "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF t FOR VALUES FROM (0) TO (100);
        CREATE UNIQUE INDEX p1v ON p1 (v); ALTER TABLE p1 REPLICA IDENTITY USING INDEX p1v";
    let shop = Shop::new(Place::Local, make, "[\"public.t\"]", "CAST(id AS INT) AS id");
    let (message, _) = refusal(&shop, Kind::Usage);
    assert!(message.contains("and its partitions have different replica identities"), "{message}");
    let make = "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE UNLOGGED TABLE p1 PARTITION OF t FOR VALUES FROM (0) TO (100)";
    let shop = Shop::new(Place::Local, make, "[\"public.t\"]", "CAST(id AS INT) AS id");
    let (message, _) = refusal(&shop, Kind::Usage);
    assert!(
        message.starts_with("the partition `public.p1` of public.t is not in the log"),
        "{message}"
    );
}

#[test]
fn keys_are_those_of_the_log() {
    // Columns that are only stored with the index are none of the key.
    let make = "CREATE TABLE t (id int, v int, PRIMARY KEY (id) INCLUDE (v))";
    let shop = Shop::new(
        Place::Local,
        make,
        "[\"public.t\"]",
        "CAST(id AS INT) AS id, CAST(v AS INT) AS v",
    );
    shop.captured();
    shop.sql("INSERT INTO t VALUES (1, 1); UPDATE t SET id = 2");
    shop.assert_followed();
    assert!(shop.changes("public/t").iter().all(|row| !row.contains_key("_old_v")));
    // The identity is changed and changed back between two captures.
    let make = "CREATE TABLE t (id int PRIMARY KEY, e int NOT NULL UNIQUE)";
    let shop = Shop::new(Place::Local, make, "[\"public.t\"]", "CAST(id AS INT) AS id");
    shop.sql("INSERT INTO t VALUES (1, 1)");
    shop.captured();
    shop.sql("ALTER TABLE t REPLICA IDENTITY USING INDEX t_e_key");
    shop.sql("UPDATE t SET id = 10");
    shop.sql("ALTER TABLE t REPLICA IDENTITY DEFAULT");
    let (message, _) = refusal(&shop, Kind::Data);
    assert!(message.contains("changes were logged without `id`"), "{message}");
    shop.captured_anew(&["public.t"]);
    shop.sql("INSERT INTO t VALUES (2, 2); DELETE FROM t WHERE id = 10");
    shop.captured();
    shop.fold();
    let ids = shop.lab.published("curated").into_iter().map(|row| row["id"].clone());
    assert_eq!(ids.collect::<Vec<_>>(), ["2"]);
    // Without a primary key, the whole row is what it was.
    let make = "CREATE TABLE t (id int, v int); ALTER TABLE t REPLICA IDENTITY FULL";
    let shop = Shop::new(
        Place::Local,
        make,
        "[\"public.t\"]",
        "CAST(id AS INT) AS id, CAST(v AS INT) AS v",
    );
    shop.captured();
    shop.sql("INSERT INTO t VALUES (1, 1)");
    shop.sql("UPDATE t SET id = 2, v = 3");
    shop.assert_followed();
    // What the server would refuse to the application is refused here.
    for make in [
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)",
        "CREATE TABLE t (id int NOT NULL UNIQUE); ALTER TABLE t REPLICA IDENTITY USING INDEX t_id_key; ALTER TABLE t DROP CONSTRAINT t_id_key",
    ] {
        let shop = Shop::new(Place::Local, make, "[\"public.t\"]", "CAST(id AS INT) AS id");
        let (message, _) = refusal(&shop, Kind::Usage);
        assert!(message.contains("has neither a primary key, checked at once"), "{message}");
    }
    let make = "CREATE TABLE t (a int, id int GENERATED ALWAYS AS (a + 1) STORED PRIMARY KEY)";
    let shop = Shop::new(Place::Local, make, "[\"public.t\"]", "CAST(id AS INT) AS id");
    let (message, _) = refusal(&shop, Kind::Usage);
    assert!(message.contains("has the generated column `id`"), "{message}");
}

#[test]
fn the_last_changes_of_a_table_that_is_dropped_are_captured() {
    let shop = Shop::simple(Place::Local);
    shop.captured();
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    shop.sql("DROP TABLE t");
    shop.captured();
    assert_eq!(shop.changes("public/t").len(), 1);
}

#[test]
fn names_are_taken_as_they_are() {
    let sql = "CREATE SCHEMA \"My Shop\"; CREATE TABLE \"My Shop\".\"Orders/2024 'x'\" (\"Id\" int PRIMARY KEY, \"the value\" int)";
    let shop =
        Shop::new(Place::Local, sql, "[\"My Shop.Orders/2024 'x'\"]", "CAST(id AS INT) AS id");
    shop.sql("INSERT INTO \"My Shop\".\"Orders/2024 'x'\" VALUES (1, 2)");
    shop.captured();
    shop.sql("UPDATE \"My Shop\".\"Orders/2024 'x'\" SET \"the value\" = 3");
    shop.captured();
    let folder = "My Shop/Orders%2F2024 %27x%27";
    assert_eq!(shop.loaded(folder).len(), 1);
    assert_eq!(of(&shop.changes(folder)[0], &["Op", "Id", "the value"]), ["U", "1", "3"]);
    // Names of ours, and tables that are not there.
    let shop = Shop::new(
        Place::Local,
        "CREATE TABLE t (id int PRIMARY KEY, op int)",
        "[\"public.t\"]",
        "1 AS id",
    );
    let (message, hint) = refusal(&shop, Kind::Usage);
    assert!(message.contains("public.t: its column `op` has the name of `Op`"), "{message}");
    assert!(hint.contains("`tables`"), "{hint}");
    let error = shop.capture_with(&shop.lab, &["tables=[\"public.none\"]"]).expect_err("refused");
    assert_eq!(error.to_string(), "there is no table `public.none`");
}

#[test]
fn the_documented_permissions_are_enough_and_all_are_needed() {
    let shop = Shop::simple(Place::Local);
    let name = &shop.database.name;
    shop.database.ask(&format!(
        "CREATE ROLE cap_{name} LOGIN PASSWORD 'pass word'; CREATE PUBLICATION glueless_{name} FOR TABLE t"
    ));
    let url = shop.database.url().replace("//lab:", &format!("//cap_{name}:"));
    let with_url = |url: &str| {
        let program = shop.program().envs([("WAREHOUSE_URL", url)]);
        program.run()
    };
    let refused = with_url(&url);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("docs/capture.md"), "{}", refused.stderr);
    shop.database.ask(&format!("ALTER ROLE cap_{name} REPLICATION"));
    let refused = with_url(&url);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("must not be read by this user"), "{}", refused.stderr);
    assert_eq!(shop.of_slot("plugin"), "");
    shop.database.ask(&format!("GRANT SELECT ON t TO cap_{name}"));
    assert_eq!(with_url(&url).code, 0);
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    assert_eq!(with_url(&url).code, 0);
    assert_eq!(shop.changes("public/t").len(), 1);
    shop.wait("the slot is in use", || shop.of_slot("active") != "t");
    shop.database.ask(&format!("SELECT pg_drop_replication_slot('glueless_{name}')"));
    let anew = shop.program().arg("--new-snapshot").envs([("WAREHOUSE_URL", url.as_str())]);
    assert_eq!(anew.run().code, 0);
    // A wrong password, and a certificate that is not trusted; none is shown.
    let refused = with_url(&url.replace("pass%20word", "wrong%20secret"));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
    let system = url.split("&sslrootcert").next().expect("a URL");
    let refused = with_url(system);
    assert!(refused.stderr.contains("TLS failed"), "{}", refused.stderr);
    shop.database.ask(&format!("DROP OWNED BY cap_{name}; DROP ROLE cap_{name}"));
}

#[test]
fn a_publication_that_leaves_something_out_is_refused() {
    for (publication, why) in [
        ("FOR TABLE t WHERE (id > 5)", "leaves rows of public.t out"),
        ("FOR TABLE t (id)", "leaves columns of public.t out"),
        ("FOR TABLE t WITH (publish = 'insert, update')", "leaves operations out"),
    ] {
        let shop = Shop::simple(Place::Local);
        shop.database
            .ask(&format!("CREATE PUBLICATION glueless_{} {publication}", shop.database.name));
        let (message, _) = refusal(&shop, Kind::Usage);
        assert!(message.contains(why), "{message}");
    }
    let shop = Shop::simple(Place::Local);
    shop.database
        .ask(&format!("CREATE PUBLICATION glueless_{} FOR ALL TABLES", shop.database.name));
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    shop.assert_followed();
    shop.sql("DELETE FROM t");
    shop.assert_followed();
}

#[test]
fn a_server_that_does_not_decode_its_log_is_refused() {
    let database = Database::new();
    let shop = Shop::simple(Place::Local);
    let program = shop.program().envs([("WAREHOUSE_URL", database.url())]);
    let refused = program.run();
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("has wal_level = replica"), "{}", refused.stderr);
    assert!(refused.stderr.contains("ALTER SYSTEM SET wal_level = logical"), "{}", refused.stderr);
}

#[test]
fn a_report_and_metrics_say_what_was_captured() {
    let shop = Shop::simple(Place::Local);
    shop.sql("INSERT INTO t VALUES (1, 'a', 1)");
    let file = shop.lab.folder.path().join("m.prom");
    let metrics = ["--metrics-file", file.to_str().expect("a path")];
    let report = shop.program().args(metrics).succeed().json();
    assert_eq!(report["tables"][0]["table"], "public.t");
    assert_eq!(report["tables"][0]["rows_loaded"], 1);
    let text = std::fs::read_to_string(&file).expect("metrics");
    let label = format!("{{source=\"{}\"}}", shop.database.name);
    for line in ["capture_last_run_exit_code", "capture_held_bytes"] {
        assert!(text.contains(&format!("glueless_{line}{label} 0\n")), "{text}");
    }
    assert!(text.contains(&format!("glueless_capture_rows{label} 1\n")), "{text}");
    assert!(text.contains(&format!("glueless_capture_truncates{label} 0\n")), "{text}");
    shop.sql("TRUNCATE t");
    let shown = shop.program().args(metrics).args(["--output", "text"]).succeed().stdout;
    assert!(shown.contains("public.t: 1 truncates, 0 inserts, 0 updates, 0 deletes"), "{shown}");
    let text = std::fs::read_to_string(&file).expect("metrics");
    for name in ["rows", "truncates"] {
        assert!(text.contains(&format!("glueless_capture_{name}{label} 1\n")), "{text}");
    }
    assert!(shown.contains("captured   all before "), "{shown}");
}

#[test]
fn the_metrics_of_a_capture_that_follows_are_written_while_it_goes_on() {
    let shop = Shop::simple(Place::Local);
    shop.captured();
    let file = shop.lab.folder.path().join("m.prom");
    let metrics = ["--metrics-file", file.to_str().expect("a path")];
    let follow = ["--follow", "--every", "1s"];
    let mut follows = shop.program().args(metrics).args(follow).start();
    let value = |name: &str| -> Option<f64> {
        let text = std::fs::read_to_string(&file).ok()?;
        let begin = format!("glueless_capture_{name}{{source=\"{}\"}} ", shop.database.name);
        text.lines().find_map(|line| line.strip_prefix(&begin)?.parse().ok())
    };
    for rows in [1.0, 2.0] {
        shop.sql(&format!("INSERT INTO t VALUES ({rows}, 'a', 1)"));
        shop.wait("its rows are not in its metrics", || value("rows") == Some(rows));
    }
    let now = || value("last_success_timestamp_seconds").expect("a time");
    let then = now();
    shop.wait("its time does not go on", || now() > then);
    // What another slot would hold is not confirmed; this one's is.
    shop.wait("its log is held", || value("held_bytes").is_some_and(|bytes| bytes < 1e6));
    // A transaction that is open holds the log, also when the capture ends.
    let open = "BEGIN; INSERT INTO t SELECT i, repeat('x', 20), 1 FROM generate_series(10, 40000) i; \
                SELECT pg_sleep(8); ROLLBACK";
    std::thread::scope(|scope| {
        scope.spawn(|| shop.sql(open));
        let held = || value("held_bytes").filter(|bytes| *bytes > 1e6);
        shop.wait("its log is not held", || held().is_some());
        send_signal(&follows, "-TERM");
        assert_eq!(follows.wait().expect("it ended").code(), Some(0));
        assert!(held().is_some(), "{:?}", value("held_bytes"));
    });
    shop.assert_followed();
}

#[test]
fn a_table_without_columns_is_captured() {
    let make =
        "CREATE TABLE t (); INSERT INTO t DEFAULT VALUES; ALTER TABLE t REPLICA IDENTITY FULL";
    let shop = Shop::new(Place::Local, make, "[\"public.t\"]", "1 AS id");
    shop.captured();
    shop.sql("INSERT INTO t DEFAULT VALUES");
    shop.captured();
    assert_eq!((shop.loaded("public/t").len(), shop.changes("public/t").len()), (1, 1));
}

#[test]
fn tables_of_a_schema_can_be_left_out() {
    let make = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint); CREATE TABLE log (line text); \
                CREATE TABLE u (id int PRIMARY KEY)";
    let shop = Shop::new(Place::Local, make, "[\"public.*\"]", SIMPLE);
    let (message, hint) = refusal(&shop, Kind::Usage);
    assert!(message.contains("public.log"), "{message}");
    assert!(hint.contains("`exclude`"), "{hint}");
    let without = ["exclude=[\"log\"]"];
    let wrong = shop.program().set(&["exclude=[\"log\", \"logs\"]"]).succeed();
    assert_eq!(
        wrong.stderr.matches("`exclude` names `public.logs`").count(),
        1,
        "{}",
        wrong.stderr
    );
    let part = "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); \
                CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9)";
    shop.sql(part);
    let error = shop.capture_with(&shop.lab, &["exclude=[\"log\", \"p1\"]"]).expect_err("refused");
    assert!(error.to_string().contains("`public.p1`, which is a partition"), "{error}");
    shop.sql("DROP TABLE p");
    shop.sql("INSERT INTO t VALUES (1, 'a', 1); INSERT INTO log VALUES ('a'); TRUNCATE log");
    let captured = shop.captured_with(&without);
    assert_eq!(
        captured.tables.iter().map(|it| it.table.as_str()).collect::<Vec<_>>(),
        ["public.t"]
    );
    assert_eq!(shop.changes("public/log").len() + shop.loaded("public/log").len(), 0);
    // One that was captured would have a gap.
    let error = shop.capture_with(&shop.lab, &["exclude=[\"log\", \"t\"]"]).expect_err("refused");
    assert!(error.to_string().contains("public.t was captured before"), "{error}");
    shop.assert_followed_with(&without);
}

#[test]
fn the_example_runs_the_whole_way() {
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Program::new(Path::new("/bin/sh"))
        .arg(format!("{root}/examples/postgres-to-lake/run.sh"))
        .envs([("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"), ("HOME", "/tmp")])
        .envs([("GLUELESS", glueless().to_str().expect("a path")), ("SECONDS_OF_CHANGES", "6")])
        .succeed();
    assert_eq!(output.stdout.lines().last(), Some("== equal"), "{}", output.stdout);
}

#[test]
fn a_standby_is_a_source_from_version_16_on() {
    static OWN: LazyLock<Server> = LazyLock::new(|| Server::start_with(&LOGICAL));
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint)";
    let columns = "CAST(id AS INT) AS id, CAST(v AS VARCHAR) AS v, CAST(n AS BIGINT) AS n";
    let mut shop = Shop::at(&OWN, Place::Local, sql, "[\"public.t\"]", columns);
    shop.sql("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)");
    let name = format!("glueless_{}", shop.database.name);
    shop.database.ask(&format!("CREATE PUBLICATION {name} FOR TABLE t"));
    OWN.control("standby");
    let url = shop.database.url_at_standby();
    shop.lab.environment.insert("WAREHOUSE_URL".into(), url);
    let version = shop.database.ask("SELECT current_setting('server_version_num')::int / 10000");
    if version[0].parse::<u32>().expect("a number") < 16 {
        let (message, hint) = refusal(&shop, Kind::Usage);
        assert!(message.contains("is a standby of PostgreSQL"), "{message}");
        assert!(hint.contains("a standby decodes its log from version 16 on"), "{hint}");
        return;
    }
    // The making of a slot waits for what the primary logs of its transactions.
    let logs_snapshots = |captured: &(dyn Fn() + Sync)| {
        std::thread::scope(|scope| {
            let captured = scope.spawn(captured);
            while !captured.is_finished() {
                shop.database.ask("SELECT pg_log_standby_snapshot()");
                pause(Duration::from_millis(100));
            }
            captured.join().expect("captured");
        });
    };
    let follows = || {
        shop.wait("the standby is behind", || {
            shop.captured();
            shop.fold();
            shop.lab.published("curated") == shop.database.rows("t")
        });
    };
    logs_snapshots(&|| drop(shop.captured()));
    shop.sql("UPDATE t SET n = 5 WHERE id = 1; DELETE FROM t WHERE id = 2");
    follows();
    // The slot is the standby's own.
    let standby = shop.database.url_at_standby();
    let psql = |statement: &str| {
        let mut psql = Command::new(OWN.tool("psql"));
        psql.args([
            "-X",
            "-q",
            "-o",
            "/dev/null",
            &standby.replace("//lab@", "//postgres@"),
            "-c",
            statement,
        ]);
        assert!(psql.status().expect("it starts").success(), "{statement}");
    };
    psql(&format!("SELECT pg_drop_replication_slot('{name}')"));
    shop.sql("DELETE FROM t; INSERT INTO t VALUES (3, 'c', 3)");
    logs_snapshots(&|| drop(shop.captured_anew(&[])));
    shop.sql("INSERT INTO t VALUES (4, 'd', 4)");
    follows();
    shop.changes("public/t");
}
