//! New snapshots: tables that have lost changes are read anew into the same folder, behind what was captured, and
//! captures go on from there, whatever is interrupted.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::support::{
    Fault, Kind, LOGICAL, PLACES, Place, Row, SIMPLE, Server, Shop, beside, pause, send_signal,
    test_times,
};

/// A shop with some rows that were captured and folded.
fn shop(place: Place) -> Shop {
    let shop = Shop::simple(place);
    shop.sql("INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, 300) i");
    shop.captured();
    shop.sql("UPDATE t SET n = 0 WHERE id <= 5");
    shop.assert_followed();
    shop
}

fn drop_slot(shop: &Shop) {
    shop.wait("the slot is in use", || shop.of_slot("active") != "t");
    let name = format!("glueless_{}", shop.database.name);
    shop.database.ask(&format!("SELECT pg_drop_replication_slot('{name}')"));
}

/// Operations and positions of changes.
fn positions(changes: &[Row]) -> Vec<(&str, &str)> {
    changes.iter().map(|row| (row["Op"].as_str(), row["_lsn"].as_str())).collect()
}

#[test]
fn a_lost_slot_is_followed_by_a_new_snapshot_behind_the_old_changes() {
    for place in PLACES {
        let shop = shop(place);
        let old = shop.changes("public/t").pop().expect("a change")["_lsn"].clone();
        drop_slot(&shop);
        // What nobody has captured: new rows, other values, deleted rows, and keys that change.
        shop.sql("INSERT INTO t VALUES (400, 'new', 1); UPDATE t SET n = 7 WHERE id < 50");
        shop.sql(
            "DELETE FROM t WHERE id BETWEEN 50 AND 99; UPDATE t SET id = id + 1000 WHERE id > 250",
        );
        let error = shop.capture().expect_err("refused");
        assert!(error.kind == Kind::Data && error.to_string().contains("is gone"), "{error}");
        let report = shop.captured_anew(&[]);
        let table = &report.tables[0];
        assert_eq!((table.rows_loaded, table.truncates, table.inserts), (251, 1, 0));
        shop.fold();
        assert_eq!(shop.lab.published("curated"), shop.database.rows("t"));
        shop.sql("UPDATE t SET n = 8 WHERE id = 1400; DELETE FROM t WHERE id = 1");
        shop.assert_followed();
        let changes = shop.changes("public/t");
        let changes = positions(&changes);
        let truncation = changes.iter().position(|(op, _)| *op == "T").expect("a truncation");
        assert_eq!(changes[truncation - 1].1, old);
        assert!(changes[truncation + 1..=truncation + 251].iter().all(|(op, _)| *op == "I"));
        let after: Vec<&str> = changes[truncation + 252..].iter().map(|(op, _)| *op).collect();
        assert_eq!(after, ["U", "D"]);
        shop.lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(shop.lab.published("curated"), shop.database.rows("t"));
        let verified = shop.lab.program("verify").args(["--against", "postgres"]);
        let verified = verified.set(&["verify.url_env=WAREHOUSE_URL", "verify.table=public.t"]);
        verified.envs(shop.lab.environment.iter()).succeed();
    }
}

/// The rows that no test deletes are in the table at any time.
#[track_caller]
fn assert_that_rows_stay(shop: &Shop) {
    shop.fold();
    let rows = shop.lab.published("curated");
    let stays = rows.iter().filter(|row| row["v"] == "stays").count();
    assert_eq!(stays, 200, "rows are missing while a snapshot is incomplete");
}

#[test]
fn a_new_snapshot_that_fails_at_any_request_is_repeated() {
    let shop = shop(Place::Local);
    shop.sql("UPDATE t SET v = 'stays' WHERE id <= 200");
    shop.assert_followed();
    for fault in [Fault::AllDead, Fault::ReplyLost] {
        let mut requests = 0;
        loop {
            if shop.of_slot("plugin") == "pgoutput" {
                drop_slot(&shop);
            }
            shop.sql(&format!(
                "DELETE FROM t WHERE id = 201 + {requests}; UPDATE t SET n = n + 1 WHERE id <= 200;
                INSERT INTO t VALUES (1000 + {requests}, 'new', 1) ON CONFLICT (id) DO UPDATE SET n = t.n + 1"
            ));
            let (broken, seen) = shop.lab.failing_after(requests, fault);
            let ended = shop.capture_anew(&broken, &[], &["file_bytes=2000"]);
            assert_that_rows_stay(&shop);
            if ended.is_err() {
                // Without the slot, nothing goes on; with it, all tables are there.
                assert_eq!(shop.capture().is_ok(), shop.of_slot("plugin") == "pgoutput");
            }
            if seen.left().is_some_and(|left| left > 0) {
                break;
            }
            requests += 1;
        }
        assert!(requests >= 5, "nothing failed");
        shop.captured_anew(&[]);
        shop.assert_followed();
    }
    shop.changes("public/t");
}

#[test]
fn processes_that_are_killed_in_a_new_snapshot_lose_nothing() {
    let shop = shop(Place::Local);
    shop.sql("UPDATE t SET v = 'stays' WHERE id <= 200");
    shop.sql("INSERT INTO t SELECT i, 'v', i FROM generate_series(1001, 3000) i");
    shop.assert_followed();
    let anew = || shop.program().arg("--new-snapshot").set(&["file_bytes=2000"]);
    let started = Instant::now();
    anew().succeed();
    let longest = started.elapsed().mul_f64(1.2);
    let (mut random, mut refused) = (11_u64, 0);
    for round in 0..12 * test_times() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if shop.of_slot("plugin") == "pgoutput" && random % 4 > 0 {
            drop_slot(&shop);
        }
        shop.sql(&format!(
            "UPDATE t SET n = n + 1 WHERE id % 7 = {round} % 7; DELETE FROM t WHERE id = 1001 + {round};
            INSERT INTO t VALUES (10000 + {round}, 'new', 1);
            UPDATE t SET id = 20000 + {round} WHERE id = 2000 + {round}"
        ));
        let mut process = anew().start();
        pause(longest.mul_f64((random >> 56) as f64 / 256.0));
        send_signal(&process, "-KILL");
        process.wait().expect("it ended");
        assert_that_rows_stay(&shop);
        // A plain capture is refused, or goes on behind a snapshot that is complete.
        shop.wait("the slot is in use", || shop.of_slot("active") != "t");
        match shop.capture() {
            Ok(_) => {
                shop.fold();
                assert_eq!(shop.lab.published("curated"), shop.database.rows("t"));
            }
            Err(error) => {
                assert!(matches!(error.kind, Kind::Data | Kind::Busy), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "no process was killed in time");
    anew().succeed();
    shop.sql("DELETE FROM t WHERE id > 2500");
    shop.assert_followed();
    shop.changes("public/t");
}

#[test]
fn one_table_can_be_read_anew_beside_others() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint); CREATE TABLE u (id int PRIMARY KEY)";
    let columns = "CAST(id AS INT) AS id, CAST(v AS VARCHAR) AS v, CAST(n AS BIGINT) AS n";
    let shop = Shop::new(Place::Local, sql, "[\"public.*\"]", columns);
    shop.sql("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2); INSERT INTO u VALUES (1)");
    shop.captured();
    shop.fold();
    // What a statement changes in rows is not in the log.
    shop.sql("ALTER TABLE t ALTER n TYPE bigint USING n * 10, ALTER v SET DEFAULT 'x'");
    shop.sql("INSERT INTO u VALUES (2); UPDATE t SET v = 'c' WHERE id = 2");
    let report = shop.captured_anew(&["public.t"]);
    let seen: Vec<_> = report
        .tables
        .iter()
        .map(|it| (it.table.as_str(), it.rows_loaded, it.truncates, it.inserts, it.updates))
        .collect();
    assert_eq!(seen, [("public.t", 2, 1, 0, 0), ("public.u", 0, 0, 1, 0)]);
    shop.sql("UPDATE t SET n = 5 WHERE id = 1; INSERT INTO u VALUES (3)");
    shop.assert_followed();
    assert_eq!((shop.changes("public/t").len(), shop.changes("public/u").len()), (4, 2));
    // All of them, with the same slot.
    shop.captured_anew(&[]);
    assert_eq!(shop.changes("public/u").len(), 2 + 1 + 3);
    shop.sql("DELETE FROM t");
    shop.captured_anew(&["public.t"]);
    shop.assert_followed();
    assert!(shop.lab.published("curated").is_empty());
    let error = shop.capture_anew(&shop.lab, &["public.none"], &[]).expect_err("refused");
    assert_eq!(error.to_string(), "the source has no table `public.none`");
    // One that was never captured is read, and one that is not named must have been.
    shop.sql("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)");
    let error = shop.capture_anew(&shop.lab, &["public.t"], &[]).expect_err("refused");
    assert_eq!(error.to_string(), "public.later was not captured yet");
    shop.captured_anew(&["public.later"]);
    shop.sql("INSERT INTO later VALUES (2)");
    shop.captured();
    assert_eq!(shop.changes("public/later").len(), 3);
}

#[test]
fn what_the_log_has_of_a_table_that_is_another_one_now_is_left_out() {
    for anew in [true, false] {
        let shop = Shop::simple(Place::Local);
        let publication = format!("glueless_{}", shop.database.name);
        shop.database.ask(&format!("CREATE PUBLICATION {publication} FOR ALL TABLES"));
        shop.sql("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 1)");
        shop.assert_followed();
        shop.sql("UPDATE t SET n = 5");
        shop.sql("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint)");
        shop.sql("INSERT INTO t VALUES (3, 'c', 1)");
        let error = shop.capture().expect_err("refused");
        assert!(error.to_string().contains("is another table"), "{error}");
        if anew {
            shop.captured_anew(&["public.t"]);
        } else {
            shop.lab.remove_all("raw/public/t");
            shop.captured();
        }
        shop.sql("INSERT INTO t VALUES (4, 'd', 1)");
        shop.captured();
        let expected: &[&str] = if anew { &["T", "I", "I"] } else { &["I"] };
        let changes = shop.changes("public/t");
        let changes = positions(&changes);
        assert_eq!(changes.iter().map(|(op, _)| *op).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_publication_that_was_made_anew_takes_a_new_slot() {
    let shop = shop(Place::Local);
    let name = format!("glueless_{}", shop.database.name);
    shop.sql(&format!("DROP PUBLICATION {name}"));
    shop.sql("DELETE FROM t WHERE id = 1");
    shop.sql(&format!("CREATE PUBLICATION {name} FOR TABLE t"));
    let error = shop.capture().expect_err("refused");
    assert!(error.to_string().contains("changes since then are lost"), "{error}");
    shop.captured_anew(&[]);
    shop.sql("DELETE FROM t WHERE id = 2");
    shop.assert_followed();
}

#[test]
fn files_of_something_else_are_not_mixed_with_a_new_snapshot() {
    let shop = Shop::simple(Place::Local);
    shop.lab.put("raw/public/t/LOAD00000001.parquet", "another tool's");
    let error = shop.capture_anew(&shop.lab, &[], &[]).expect_err("refused");
    assert!(error.kind == Kind::Usage, "{error}");
    assert!(error.to_string().contains("LOAD00000001.parquet is no file of the slot"), "{error}");
    assert_eq!(shop.of_slot("plugin"), "");
    shop.lab.remove_all("raw");
    let other = Shop::simple(Place::Local);
    other.captured();
    other.sql("INSERT INTO t VALUES (1, 'a', 1)");
    other.captured();
    let name = other.lab.list_all("raw/public/t").remove(0);
    let file = other.lab.get(&format!("raw/public/t/{name}"));
    shop.lab.put(&format!("raw/public/t/{name}"), file);
    let error = shop.capture_anew(&shop.lab, &[], &[]).expect_err("refused");
    assert!(error.to_string().contains("is no file of the slot"), "{error}");
}

#[test]
fn a_database_that_went_back_is_refused() {
    static OWN: LazyLock<Server> = LazyLock::new(|| Server::start_with(&LOGICAL));
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint)";
    let columns = "CAST(id AS INT) AS id, CAST(v AS VARCHAR) AS v, CAST(n AS BIGINT) AS n";
    let shop = Shop::at(&OWN, Place::Local, sql, "[\"public.t\"]", columns);
    shop.captured();
    let cp = |from: &str, to: &str| {
        let (from, to) = (format!("{}/{from}", OWN.socket), format!("{}/{to}", OWN.socket));
        let _ = std::fs::remove_dir_all(Path::new(&to));
        let copied = Command::new("cp").args(["-a", &from, &to]).status();
        assert!(copied.expect("it starts").success());
    };
    OWN.control("kill");
    cp("data", "saved");
    OWN.control("start");
    shop.sql("INSERT INTO t SELECT i, 'v', i FROM generate_series(1, 5000) i");
    shop.assert_followed();
    OWN.control("kill");
    cp("saved", "data");
    OWN.control("start");
    // Backups have no slots.
    drop_slot(&shop);
    let error = shop.capture_anew(&shop.lab, &[], &[]).expect_err("refused");
    assert_eq!(error.kind, Kind::Data);
    assert!(error.to_string().ends_with("the database went back, or is another one"), "{error}");
    assert!(error.hint.expect("a hint").contains("set `to` to a new folder"));
    assert_eq!(shop.of_slot("plugin"), "");
    // Once its log has come further, new rows are behind the old ones.
    shop.sql("CREATE TABLE noise AS SELECT i FROM generate_series(1, 50000) i");
    shop.captured_anew(&[]);
    shop.assert_followed();
}

#[test]
fn a_new_snapshot_is_taken_by_word_of_sources_with_a_log() {
    let shop = shop(Place::Local);
    let follows = shop.program().args(["--new-snapshot", "--follow"]).run();
    assert_eq!(follows.code, 2, "{}", follows.stderr);
    let audit = shop.program().arg("--new-snapshot").set(&["mode=audit", "column=n"]).run();
    assert_eq!(audit.code, 2, "{}", audit.stderr);
    assert!(audit.stderr.contains("for sources whose log is read"), "{}", audit.stderr);
    let named = shop.program().args(["--new-snapshot", "public.t", "--output", "text"]).succeed();
    assert!(named.stdout.contains("public.t: 300 rows loaded, 1 truncates,"), "{}", named.stdout);
    shop.assert_followed();
}

#[test]
fn statements_that_want_a_table_alone_and_snapshots_wait_for_each_other_one_way() {
    let names = ["t", "t1", "t2", "t3", "t4", "t5"];
    let table =
        |name: &str| format!("CREATE TABLE {name} (id int PRIMARY KEY, v varchar(20), n bigint);");
    let (sql, tables) = (names.map(table).concat(), "[\"public.*\"]");
    let shop = Shop::new(Place::Local, &sql, tables, SIMPLE);
    shop.captured();
    let write = |round: u32| {
        pause(Duration::from_millis(100));
        let name = names[round as usize % names.len()];
        shop.sql(&format!(
            "TRUNCATE {name}; INSERT INTO {name} SELECT i, 'r', {round} FROM generate_series(1, 50) i"
        ));
        shop.sql(&format!("REINDEX INDEX {name}_pkey"));
    };
    beside(write, || {
        let mut codes = (0..300).map(|_| shop.program().arg("--new-snapshot").run().code);
        // A table that was emptied in the moment before it was held is told, and read the next time.
        let done = codes.by_ref().inspect(|code| assert!([0, 69].contains(code), "{code}"));
        assert_eq!(done.filter(|code| *code == 0).take(12).count(), 12);
    });
    shop.assert_followed();
}

#[test]
fn many_tables_take_a_lock_each_and_a_large_one_is_read_in_pieces() {
    // Room for about 300 locks, and the server allots some more.
    static SERVER: LazyLock<Server> = LazyLock::new(|| {
        let few = "max_locks_per_transaction=10 max_connections=20 max_worker_processes=2 \
                   autovacuum=off wal_level=logical max_replication_slots=4 max_wal_senders=4";
        let settings: Vec<&str> = few.split(' ').flat_map(|setting| ["-c", setting]).collect();
        Server::start_with(&settings)
    });
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint);
        INSERT INTO t SELECT i, 'v', i FROM generate_series(1, 1000) i;";
    let shop = Shop::at(&SERVER, Place::Local, sql, "[\"public.*\"]", SIMPLE);
    shop.database.ask("UPDATE pg_class SET relpages = 100000 WHERE relname = 't'");
    for first in (0..200).step_by(10) {
        let table = |number: i32| {
            let columns = "(id int PRIMARY KEY, a int UNIQUE, b int UNIQUE)";
            format!(
                "CREATE TABLE t{number} {columns}; INSERT INTO t{number} VALUES ({number}, 1, 2);"
            )
        };
        shop.sql(&(first..first + 10).map(table).collect::<String>());
    }
    for new_snapshot in [false, true] {
        let program =
            if new_snapshot { shop.program().arg("--new-snapshot") } else { shop.program() };
        let captured = program.args(["--output", "text"]).succeed();
        assert!(captured.stdout.contains("public.t199: 1 rows loaded"), "{}", captured.stdout);
        let pieces =
            captured.stderr.lines().filter(|line| line.contains(" rows of \"public\".\"t\""));
        assert_eq!(pieces.count(), 3, "{}", captured.stderr);
        shop.assert_followed();
    }
    for first in (200..1_200).step_by(50) {
        let table = |number: i32| format!("CREATE TABLE t{number} (id int PRIMARY KEY);");
        shop.sql(&(first..first + 50).map(table).collect::<String>());
    }
    let refused = shop.program().run();
    assert_eq!(refused.code, 69, "{}", refused.stderr);
    assert!(refused.stderr.contains("out of shared memory"), "{}", refused.stderr);
    assert!(refused.stderr.contains("`max_locks_per_transaction`"), "{}", refused.stderr);
}
