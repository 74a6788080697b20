//! Extracts without a log: the lake has every row as the last extract saw it, whatever the times in the column
//! are, whatever is interrupted, repeated or raced; and what cannot be read is refused or said.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;

use crate::support::{
    Fault, Kind, PLACES, Place, Program, Row, Server, Shop, Task, beside, pause, send_signal,
    test_times,
};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint, at timestamptz)";
const COLUMNS: &str = "CAST(id AS INT) AS id, CAST(v AS VARCHAR) AS v, CAST(n AS BIGINT) AS n";
const ORDER: &str = "raw.order_by=[\"_extract\"]";

/// A database that is read by its column `at`, and the lab that folds its table `t`.
struct Extracts {
    shop: Shop,
}

impl Extracts {
    fn new(place: Place) -> Self {
        Extracts::with(place, TABLE, "at")
    }

    fn with(place: Place, sql: &str, column: &str) -> Self {
        Extracts::of(Shop::new(place, sql, "[\"public.t\"]", COLUMNS), column)
    }

    fn of(shop: Shop, column: &str) -> Self {
        let toml = std::fs::read_to_string(&shop.source).expect("the source");
        let audit = format!("{toml}mode = \"audit\"\ncolumn = \"{column}\"\n");
        std::fs::write(&shop.source, audit).expect("written");
        Extracts { shop }
    }

    /// Makes an extract; returns the rows and the files that it wrote.
    #[track_caller]
    fn extract(&self, set: &[&str]) -> (u64, u64) {
        let captured = self.shop.captured_with(set);
        let written = captured.tables.first();
        written.map_or((0, 0), |table| (table.rows_loaded + table.inserts, table.files))
    }

    #[track_caller]
    fn fold(&self, start: &str, end: &str) {
        let folded = self.shop.lab.run_with(Task::Run, start, end, &[ORDER]);
        folded.unwrap_or_else(|error| panic!("{error}: {:?}", error.hint));
    }

    #[track_caller]
    fn lake(&self) -> Vec<Row> {
        self.fold("2020-01-01", "2100-01-01");
        self.shop.lab.published("curated")
    }

    /// The rows of the database, but for the column with the times.
    fn source(&self) -> Vec<Row> {
        let mut rows = self.shop.database.rows("t");
        rows.iter_mut().for_each(|row| {
            row.remove("at");
        });
        rows.sort();
        rows
    }

    #[track_caller]
    fn assert_equal(&self, set: &[&str]) {
        self.extract(set);
        assert_eq!(self.lake(), self.source());
    }

    fn names(&self) -> Vec<String> {
        self.shop.lab.list_all("raw/public/t")
    }

    #[track_caller]
    fn refusal(&self, set: &[&str]) -> (String, String) {
        let error = self.shop.capture_with(&self.shop.lab, set).expect_err("refused");
        assert_eq!(error.kind, Kind::Usage, "{error}");
        (error.to_string(), error.hint.unwrap_or_default())
    }

    fn program(&self) -> Program {
        self.shop.program()
    }

    /// The program, as a user who may log in and has these roles; and the user's name.
    fn program_of_reader(&self, roles: &str) -> (impl Fn() -> Program + '_, String) {
        let name = format!("read_{}", self.shop.database.name);
        self.shop.database.ask(&format!("CREATE ROLE {name} LOGIN PASSWORD 'pass word' {roles}"));
        let url = self.shop.database.url().replace("//lab:", &format!("//{name}:"));
        (move || self.program().envs([("WAREHOUSE_URL", url.as_str())]), name)
    }

    fn drop_reader(&self, name: &str) {
        self.shop.database.ask(&format!("DROP OWNED BY {name}; DROP ROLE {name}"));
    }
}

#[test]
fn a_table_is_read_and_then_what_has_changed() {
    for place in PLACES {
        let it = Extracts::new(place);
        it.shop.sql("INSERT INTO t SELECT i, 'v', i, '2024-01-01' FROM generate_series(1, 500) i");
        assert_eq!(it.extract(&[]), (500, 1));
        assert_eq!(it.names().len(), 2);
        // Nothing new writes nothing, although the rows have the newest time.
        assert_eq!(it.extract(&[]), (0, 0));
        it.shop.sql("UPDATE t SET n = 0, at = now() WHERE id <= 3");
        // The overlap before the newest time has all of the first rows.
        assert_eq!(it.extract(&[]), (500, 1));
        assert_eq!(it.extract(&[]), (0, 0));
        it.shop.sql("INSERT INTO t VALUES (501, 'new', 1, now())");
        assert_eq!(it.extract(&["overlap=0s"]), (4, 1));
        assert_eq!(it.lake(), it.source());
        assert_eq!(it.names().len(), 4);
        // An older row of the overlap changes without its time.
        it.shop.sql("UPDATE t SET v = 'again' WHERE id = 1");
        it.assert_equal(&[]);
    }
}

#[test]
fn a_deleted_row_stays_and_verify_finds_it() {
    let it = Extracts::new(Place::Local);
    it.shop.sql("INSERT INTO t SELECT i, 'v', i, now() FROM generate_series(1, 20) i");
    let report = it.shop.captured();
    assert!(report.notes[0].starts_with("deletes are not seen"), "{:?}", report.notes);
    it.shop.sql("DELETE FROM t WHERE id IN (3, 7)");
    it.extract(&[]);
    assert_eq!(it.lake().len(), 20);
    let verify = it.shop.lab.program("verify").args(["--against", "postgres", "--output", "json"]);
    let verify = verify.set(&["verify.url_env=WAREHOUSE_URL", "verify.table=public.t", ORDER]);
    let verified = verify.envs(it.shop.lab.environment.iter()).run();
    assert_eq!(verified.code, 1, "{}", verified.stderr);
    let report = verified.json();
    assert_eq!(report["keys_different"], 2);
    assert_eq!(report["key_differences"][0]["why"], "it has a row that is not expected");
    // A row that comes back is seen.
    it.shop.sql("INSERT INTO t VALUES (3, 'back', 1, now())");
    it.extract(&[]);
    assert!(it.lake().iter().any(|row| row["id"] == "3" && row["v"] == "back"));
}

/// What happens at the source, or to it.
#[derive(Clone, Debug)]
enum Step {
    /// A row is written with a time so many seconds ago.
    Write(i32, i16, u16),
    Delete(i32),
    Extract,
    Broken(usize, Fault),
    /// A window of hours is folded.
    Fold(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop::sample::select(vec![Fault::AllDead, Fault::OneDead, Fault::ReplyLost]);
    prop_oneof![
        6 => (1_i32..12, any::<i16>(), 0_u16..600).prop_map(|(id, n, ago)| Step::Write(id, n, ago)),
        1 => (1_i32..12).prop_map(Step::Delete),
        3 => Just(Step::Extract),
        2 => (0_usize..8, fault).prop_map(|(requests, fault)| Step::Broken(requests, fault)),
        1 => (0_u8..24, 1_u8..24).prop_map(|(start, length)| Step::Fold(start, length)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * test_times(), max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// Rows are written with times within the overlap, in any order; extracts fail at any request; windows are
    /// folded in any order. The lake has the rows of the source, and of deleted rows what an extract saw last.
    #[test]
    fn the_table_is_that_of_the_source_but_for_deletes(steps in prop::collection::vec(step(), 4..24)) {
        let it = Extracts::new(Place::Local);
        it.shop.sql("INSERT INTO t SELECT i, 'v' || i, i, now() FROM generate_series(1, 6) i");
        it.extract(&[]);
        // By id, what the source has, and what an extract may have seen of a deleted row.
        let mut rows: BTreeMap<i32, i64> = (1..7).map(|id| (id, id.into())).collect();
        let mut deleted: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for step in &steps {
            match step {
                Step::Write(id, n, ago) => {
                    it.shop.sql(&format!(
                        "INSERT INTO t VALUES ({id}, 'v', {n}, now() - interval '{ago} s') ON CONFLICT (id)
                        DO UPDATE SET n = excluded.n, at = excluded.at"
                    ));
                    rows.insert(*id, (*n).into());
                    deleted.entry(*id).or_default().push((*n).into());
                }
                Step::Delete(id) => {
                    it.shop.sql(&format!("DELETE FROM t WHERE id = {id}"));
                    rows.remove(id);
                }
                Step::Extract => {
                    it.extract(&["file_bytes=300"]);
                }
                Step::Broken(requests, fault) => {
                    let (broken, _) = it.shop.lab.failing_after(*requests, *fault);
                    let _ = it.shop.capture_with(&broken, &["file_bytes=300"]);
                }
                Step::Fold(start, length) => {
                    let (start, end) = (u32::from(*start), u32::from(start + length));
                    let hour = |hour: u32| it.shop.database.ask(&format!(
                        "SELECT to_char(date_trunc('day', now() AT TIME ZONE 'UTC') + interval '{hour} h', 'YYYY-MM-DD\"T\"HH24:00:00\"Z\"')"
                    )).remove(0);
                    it.fold(&hour(start), &hour(end));
                }
            }
        }
        it.extract(&[]);
        let source = it.source();
        let is_there = |row: &Row| rows.contains_key(&row["id"].parse().expect("an id"));
        let (live, gone): (Vec<Row>, Vec<Row>) = it.lake().into_iter().partition(is_there);
        assert_eq!(live, source);
        for row in gone {
            let (id, n) = (row["id"].parse::<i32>().expect("an id"), row["n"].parse::<i64>().expect("n"));
            let first = (id < 7).then_some(i64::from(id));
            let seen = deleted.get(&id).into_iter().flatten().copied().chain(first);
            assert!(seen.into_iter().any(|seen| seen == n), "{row:?}");
        }
        assert_eq!(it.extract(&[]), (0, 0), "nothing is new");
    }
}

#[test]
fn a_transaction_that_is_open_longer_than_the_overlap_is_not_missed() {
    let it = Extracts::new(Place::Local);
    let (reader, name) = it.program_of_reader("IN ROLE pg_read_all_stats");
    it.shop.database.ask(&format!("GRANT SELECT ON t TO {name}"));
    let extract = || reader().set(&["overlap=0s"]).succeed().json();
    it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, now())");
    extract();
    std::thread::scope(|scope| {
        // It stamps its row when it begins, and commits after the next extract.
        let late =
            "SELECT pg_sleep(1); INSERT INTO t VALUES (2, 'late', 1, now()); SELECT pg_sleep(3)";
        let writer = scope.spawn(|| it.shop.sql(late));
        pause(Duration::from_secs(2));
        it.shop.sql("INSERT INTO t VALUES (3, 'in between', 1, now())");
        assert_eq!(extract()["tables"][0]["files"], 1);
        assert_eq!(it.lake().len(), 2);
        writer.join().expect("committed");
    });
    assert_eq!(extract()["tables"][0]["files"], 1);
    assert_eq!(it.lake(), it.source());
    assert_eq!(extract()["tables"].as_array().map(Vec::len), Some(0));
    it.drop_reader(&name);
}

#[test]
fn a_transaction_whose_start_is_hidden_is_said_and_the_overlap_covers_it() {
    let it = Extracts::new(Place::Local);
    it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, now())");
    it.extract(&[]);
    std::thread::scope(|scope| {
        // Its session is the superuser's.
        let late = "INSERT INTO t VALUES (2, 'late', 1, now()); SELECT pg_sleep(3)";
        let writer = scope.spawn(|| it.shop.sql(late));
        pause(Duration::from_secs(1));
        it.shop.database.ask("INSERT INTO t VALUES (3, 'in between', 1, now())");
        let read = it.program().succeed();
        assert!(read.stderr.contains("GRANT pg_read_all_stats"), "{}", read.stderr);
        writer.join().expect("committed");
    });
    it.assert_equal(&[]);
}

#[test]
fn extracts_that_fail_or_are_killed_are_finished_by_the_next() {
    for place in PLACES {
        let it = Extracts::new(place);
        it.shop.sql("INSERT INTO t SELECT i, 'v', 0, now() FROM generate_series(1, 20) i");
        for fault in [Fault::AllDead, Fault::ReplyLost] {
            let mut requests = 0;
            loop {
                it.shop.sql("UPDATE t SET n = n + 1, at = now() WHERE id % 7 = 1");
                let (broken, seen) = it.shop.lab.failing_after(requests, fault);
                let _ = it.shop.capture_with(&broken, &["file_bytes=300"]);
                if seen.left().is_some_and(|left| left > 0) {
                    break;
                }
                requests += 1;
                if requests % 3 == 0 {
                    it.assert_equal(&[]);
                }
            }
            assert!(requests >= 3, "nothing failed");
        }
        it.assert_equal(&[]);
    }
    let it = Extracts::new(Place::Local);
    it.shop.sql("INSERT INTO t SELECT i, 'v', 0, now() FROM generate_series(1, 2000) i");
    let mut random = 7_u64;
    for round in 0..15 * u64::from(test_times()) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        it.shop.sql(&format!(
            "UPDATE t SET n = n + 1, at = now() WHERE id % 7 = {}; INSERT INTO t VALUES (10000 + {round}, 'new', 1, now())",
            round % 7
        ));
        let mut process = it.program().set(&["file_bytes=2000"]).start();
        pause(Duration::from_millis(random >> 56));
        send_signal(&process, "-KILL");
        process.wait().expect("it ended");
    }
    it.assert_equal(&[]);
}

#[test]
fn one_process_at_a_time_makes_extracts() {
    let it = Extracts::new(Place::Local);
    let name = format!("glueless capture audit {}", it.shop.database.name);
    std::thread::scope(|scope| {
        let lock = format!("SELECT pg_advisory_lock(hashtextextended('{name}', 0)), pg_sleep(3)");
        let database = &it.shop.database;
        scope.spawn(move || database.ask(&lock));
        pause(Duration::from_millis(1000));
        let error = it.shop.capture().expect_err("refused");
        assert_eq!(error.kind, Kind::Busy, "{error}");
        assert!(error.hint.is_some_and(|hint| hint.contains("run the command again")));
    });
}

#[test]
fn following_makes_an_extract_after_each_length_of_time() {
    let it = Extracts::new(Place::Local);
    it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, now())");
    let mut follows = it.program().args(["--follow", "--every", "1s"]).start();
    it.shop.wait("it loads nothing", || it.names().len() == 2);
    it.shop.sql("INSERT INTO t VALUES (2, 'b', 1, now())");
    it.shop.wait("it reads nothing", || it.names().len() == 3);
    send_signal(&follows, "-TERM");
    assert_eq!(follows.wait().expect("it ended").code(), Some(0));
    assert_eq!(it.lake(), it.source());
}

#[test]
fn rows_without_a_time_and_with_one_to_come_are_read_each_time() {
    let it = Extracts::new(Place::Local);
    it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, NULL), (2, 'b', 1, 'infinity'), (3, 'c', 1, now() + interval '1 year'), (4, 'd', 1, now())");
    let first = it.program().succeed();
    assert!(first.stderr.contains("1 rows have no `at`"), "{}", first.stderr);
    assert!(first.stderr.contains("2 rows have a `at` that is yet to come"), "{}", first.stderr);
    assert_eq!(first.json()["tables"][0]["rows_without_time"], 1);
    assert_eq!(it.extract(&[]), (0, 0));
    it.shop.sql("UPDATE t SET n = 2; INSERT INTO t VALUES (5, 'e', 1, NULL)");
    it.assert_equal(&[]);
    // A time that is yet to come does not hide what changes now.
    it.shop.sql("INSERT INTO t VALUES (6, 'f', 1, now())");
    it.assert_equal(&["overlap=0s"]);
    assert_eq!(it.extract(&["overlap=0s"]), (0, 0));
}

#[test]
fn a_time_that_goes_back_decides_nothing_between_two_extracts() {
    let it = Extracts::new(Place::Local);
    it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, now()), (2, 'b', 1, now())");
    it.extract(&[]);
    // An equal time, and an older one.
    it.shop.sql("UPDATE t SET n = 2 WHERE id = 1; UPDATE t SET n = 2, at = at - interval '5 min' WHERE id = 2");
    it.assert_equal(&[]);
}

#[test]
fn each_type_of_time_is_read() {
    for column_type in ["timestamptz(0)", "timestamp", "date", "moment"] {
        let sql = TABLE.replace("timestamptz", column_type);
        let it = Extracts::with(
            Place::Local,
            &format!("CREATE DOMAIN moment AS timestamp; {sql}"),
            "at",
        );
        it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, now() - interval '3 d'), (2, 'b', 1, now())");
        assert_eq!(it.extract(&[]), (2, 1), "{column_type}");
        assert_eq!(it.extract(&[]), (0, 0), "{column_type}");
        it.shop.sql(
            "UPDATE t SET n = 2, at = now() WHERE id = 1; INSERT INTO t VALUES (3, 'c', 1, now())",
        );
        it.assert_equal(&[]);
        assert_eq!(it.extract(&[]), (0, 0), "{column_type}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_or_read_whole() {
    let it = Extracts::new(Place::Local);
    it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, now())");
    let (message, hint) = it.refusal(&["column=none"]);
    assert_eq!(message, "public.t has no column `none`");
    assert!(hint.starts_with("correct `column`"), "{hint}");
    let (message, hint) = it.refusal(&["column=n"]);
    assert!(message.starts_with("public.t: its column `n` has no times"), "{message}");
    assert!(hint.contains("timestamptz, timestamp or date"), "{hint}");
    let (message, _) = it.refusal(&["tables=[\"public.none\"]"]);
    assert_eq!(message, "there is no table `public.none`");
    it.shop.lab.put("raw/public/t/LOAD00000001.parquet", "another tool's");
    let (message, hint) = it.refusal(&[]);
    assert!(message.contains("LOAD00000001.parquet is no file of extracts"), "{message}");
    assert!(hint.starts_with("set `to` to a new folder"), "{hint}");
    it.shop.lab.remove_all("raw/public/t");
    it.extract(&[]);
    // Files of another source.
    let (message, _) = it.refusal(&["name=other"]);
    assert!(message.contains("is no file of extracts of the source `other`"), "{message}");
    // Another table, and another column: all rows are read.
    it.shop.sql(&format!("DROP TABLE t; {TABLE}; INSERT INTO t VALUES (2, 'b', 2, '2020-01-01')"));
    assert_eq!(it.extract(&[]), (1, 1));
    it.shop.sql("ALTER TABLE t ADD at2 timestamptz; UPDATE t SET at2 = '2019-01-01'");
    let other = it.program().set(&["column=at2"]).succeed();
    assert!(other.stderr.contains("`column` is another one"), "{}", other.stderr);
    assert_eq!(it.extract(&["column=at2"]), (0, 0));
    assert_eq!(it.extract(&[]).1, 1);
}

#[test]
fn a_clock_that_went_back_lets_all_rows_be_read() {
    let it = Extracts::with(Place::Local, &TABLE.replace("timestamptz", "timestamp"), "at");
    let set_zone = |zone: &str| {
        let name = &it.shop.database.name;
        it.shop.database.ask(&format!("ALTER DATABASE {name} SET timezone = '{zone}'"));
    };
    // A clock that is 14 hours ahead is set right.
    set_zone("Pacific/Kiritimati");
    it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, now()), (2, 'b', 1, now() - interval '3 d')");
    it.extract(&[]);
    set_zone("UTC");
    it.shop.sql("INSERT INTO t VALUES (3, 'c', 1, now()); UPDATE t SET n = 5 WHERE id = 2");
    let read = it.program().succeed();
    assert!(read.stderr.contains("the clock of the server went back: all of its rows are read"));
    assert_eq!(it.lake(), it.source());
    it.shop.sql("INSERT INTO t VALUES (4, 'd', 1, now())");
    it.assert_equal(&[]);
    assert_eq!(it.extract(&[]), (0, 0));
}

#[test]
fn columns_and_tables_can_be_added() {
    let it = Extracts::new(Place::Local);
    it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, now())");
    it.extract(&[]);
    it.shop.sql("ALTER TABLE t ADD extra int DEFAULT 5; CREATE TABLE keyless (v varchar(9), at date); INSERT INTO keyless VALUES ('x', now()), ('x', now())");
    let both = ["tables=[\"public.*\"]"];
    let read = it.shop.captured_with(&both);
    let seen = read.tables.iter().map(|it| (it.table.as_str(), it.rows_loaded, it.inserts));
    let seen: Vec<_> = seen.collect();
    assert_eq!(seen, [("public.keyless", 2, 0), ("public.t", 0, 1)]);
    assert!(it.shop.captured_with(&both).tables.is_empty());
}

#[test]
fn select_is_enough() {
    let it = Extracts::new(Place::Local);
    let (reader, name) = it.program_of_reader("");
    it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, now())");
    let run = || reader().run();
    let refused = run();
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("must not be read by this user"), "{}", refused.stderr);
    it.shop.database.ask(&format!("GRANT SELECT ON t TO {name}"));
    assert_eq!(run().code, 0);
    it.shop.sql("INSERT INTO t VALUES (2, 'a', 1, now())");
    let read = run();
    assert_eq!((read.code, &read.json()["tables"][0]["inserts"]), (0, &2.into()));
    assert_eq!(it.shop.of_slot("plugin"), "");
    assert_eq!(it.shop.database.ask("SELECT count(*) FROM pg_publication"), ["0"]);
    it.drop_reader(&name);
}

#[test]
fn a_report_and_metrics_fit_the_mode() {
    let it = Extracts::new(Place::Local);
    it.shop.sql("INSERT INTO t VALUES (1, 'a', 1, now())");
    let file = it.shop.lab.folder.path().join("m.prom");
    let metrics = ["--metrics-file", file.to_str().expect("a path")];
    let report = it.program().args(metrics).succeed().json();
    assert_eq!((&report["mode"], &report["slot"]), (&"audit".into(), &serde_json::Value::Null));
    let text = std::fs::read_to_string(&file).expect("metrics");
    assert!(text.contains("glueless_capture_rows{"), "{text}");
    assert!(!text.contains("glueless_capture_held_bytes{"), "{text}");
    std::fs::remove_file(&file).expect("removed");
    let follow = ["--follow", "--every", "1s"];
    let mut follows = it.program().args(metrics).args(follow).start();
    it.shop.wait("it writes no metrics", || file.exists());
    send_signal(&follows, "-KILL");
    follows.wait().expect("it ended");
    let shown = it.program().args(["--output", "text"]).succeed().stdout;
    assert!(
        shown.contains("note       deletes are not seen") && !shown.contains("slot"),
        "{shown}"
    );
}

#[test]
fn a_standby_can_be_read() {
    static OWN: LazyLock<Server> = LazyLock::new(Server::start);
    let shop = Shop::at(&OWN, Place::Local, TABLE, "[\"public.t\"]", COLUMNS);
    let mut extracts = Extracts::of(shop, "at");
    extracts.shop.sql("INSERT INTO t SELECT i, 'v', i, now() FROM generate_series(1, 100) i");
    OWN.control("standby");
    let url = extracts.shop.database.url_at_standby();
    extracts.shop.lab.environment.insert("WAREHOUSE_URL".into(), url);
    let follows = || {
        extracts.shop.wait("the standby is behind", || {
            extracts.extract(&[]);
            extracts.lake() == extracts.source()
        });
    };
    follows();
    extracts.shop.sql("INSERT INTO t VALUES (101, 'new', 1, now())");
    follows();
    let follow = extracts.shop.database.ask("SELECT count(*) FROM pg_stat_replication");
    assert_eq!(follow, ["1"], "there is no standby");
}

#[test]
fn tables_that_are_emptied_beside_an_extract_do_not_stop_it() {
    let names = ["t", "t1", "t2", "t3"];
    let table = |name: &str| TABLE.replace("TABLE t", &format!("TABLE {name}")) + ";";
    let shop = Shop::new(Place::Local, &names.map(table).concat(), "[\"public.*\"]", COLUMNS);
    let it = Extracts::of(shop, "at");
    let write = |round: u32| {
        pause(Duration::from_millis(150));
        let name = names[round as usize % names.len()];
        it.shop.sql(&format!("TRUNCATE {name}; INSERT INTO {name} SELECT i, 'r', {round}, now() FROM generate_series(1, 50) i"));
    };
    beside(write, || {
        let mut codes = (0..60).map(|_| it.shop.program().run().code);
        let done = codes.by_ref().inspect(|code| assert!([0, 69].contains(code), "{code}"));
        assert_eq!(done.filter(|code| *code == 0).take(5).count(), 5);
    });
    it.assert_equal(&[]);
}
