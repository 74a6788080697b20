//! `verify --against postgres`: the published table and a table of a database are equal, or the keys that differ
//! are named.

use serde_json::Value;

use crate::support::{Database, Output, Place, Shop, Task, beside, pause};

/// Compares the table of a shop with a table of its database.
fn verify(shop: &Shop, table: &str, more: &[&str]) -> Output {
    let table = format!("verify.table={table}");
    let program = shop.lab.program("verify").args(["--against", "postgres", "--output", "json"]);
    let program = program.args(more).set(&["verify.url_env=WAREHOUSE_URL", &table]);
    program.envs(shop.lab.environment.iter()).run()
}

/// What a comparison that found differences says of the keys.
#[track_caller]
fn differences(output: &Output) -> Vec<(String, String)> {
    assert_eq!(output.code, 1, "{}", output.stderr);
    let report = output.json();
    let text = |value: &Value| value.as_str().expect("a text").to_string();
    let differences = report["key_differences"].as_array().expect("differences").clone();
    let of = |one: &Value| (text(&one["key"][0][1]), text(&one["why"]));
    let mut all: Vec<_> = differences.iter().map(of).collect();
    all.sort();
    all
}

fn shop() -> Shop {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n numeric(10, 2), at timestamptz, f float8, d date, b bytea, more int);
        ALTER TABLE t REPLICA IDENTITY FULL";
    let columns = "CAST(id AS INT) AS id, CAST(v AS VARCHAR) AS v, CAST(n AS DECIMAL(10, 2)) AS n, CAST(at AS TIMESTAMP(6)) AS at, \
        CAST(f AS DOUBLE) AS f, CAST(d AS DATE) AS d, b, upper(v) AS loud";
    let shop = Shop::new(Place::Local, sql, "[\"public.t\"]", columns);
    shop.sql("INSERT INTO t SELECT i, 'v' || i, i / 7.0, '2024-01-01'::timestamptz + i * interval '1 s', sqrt(i), '2024-01-01'::date + i, decode(lpad(to_hex(i), 8, '0'), 'hex'), i FROM generate_series(1, 3000) i");
    shop.sql("INSERT INTO t (id) VALUES (0)");
    shop.captured();
    shop.fold();
    shop
}

#[test]
fn a_table_that_followed_is_equal_and_one_that_did_not_is_told_by_key_and_column() {
    let shop = shop();
    let equal = verify(&shop, "public.t", &[]);
    equal.assert_success();
    let report = equal.json();
    assert_eq!((&report["rows_expected"], &report["rows_found"]), (&3001.into(), &3001.into()));
    let note = report["notes"][0].as_str().expect("a note");
    assert!(
        note.starts_with("not compared: `event_dt`") || note.starts_with("not compared: `loud`"),
        "{note}"
    );
    shop.sql("UPDATE t SET n = 0 WHERE id = 5; UPDATE t SET v = 'x', f = NULL WHERE id = 6; DELETE FROM t WHERE id = 7; INSERT INTO t (id) VALUES (-1)");
    // A column that the table lacks.
    shop.sql("UPDATE t SET more = 0 WHERE id = 8");
    let different = verify(&shop, "public.t", &[]);
    let expected = [
        ("-1", "its row is missing"),
        ("5", "its row differs in `n`"),
        ("6", "its row differs in `v`, `f`"),
        ("7", "it has a row that is not expected"),
    ];
    assert_eq!(
        differences(&different),
        expected.map(|(key, why)| (key.to_string(), why.to_string()))
    );
    assert_eq!(different.json()["keys_different"], 4);
    // No value of a row is in the log.
    assert!(!different.stderr.contains("v5"), "{}", different.stderr);
    shop.captured();
    shop.fold();
    verify(&shop, "public.t", &[]).assert_success();
    // A view stands for a table whose columns have other names.
    shop.sql("CREATE VIEW loud AS SELECT id AS \"ID\", upper(v) AS loud FROM t");
    let view = verify(&shop, "public.loud", &[]);
    view.assert_success();
}

const HASHES: [&str; 2] = ["--set", "verify.method=hashes"];

/// What a comparison by hashes says of them.
fn note_of_hashes(output: &Output) -> String {
    let notes = output.json()["notes"].clone();
    let notes: Vec<&str> =
        notes.as_array().expect("notes").iter().filter_map(|note| note.as_str()).collect();
    let of_hashes = |note: &&&str| note.contains("hash");
    notes.iter().find(of_hashes).unwrap_or_else(|| panic!("{notes:?}")).to_string()
}

#[test]
fn rows_that_the_server_hashes_are_read_where_they_differ() {
    let shop = shop();
    let equal = verify(&shop, "public.t", &HASHES);
    equal.assert_success();
    let report = equal.json();
    assert_eq!((&report["rows_expected"], &report["rows_found"]), (&3001.into(), &3001.into()));
    assert!(note_of_hashes(&equal).ends_with(": 0 of 65536 buckets of rows differ"));
    shop.sql("UPDATE t SET n = 0 WHERE id = 5; UPDATE t SET v = 'x', f = NULL WHERE id = 6; DELETE FROM t WHERE id = 7; INSERT INTO t (id) VALUES (-1)");
    let different = verify(&shop, "public.t", &HASHES);
    assert_eq!(differences(&different), differences(&verify(&shop, "public.t", &[])));
    assert_eq!(different.json()["keys_different"], 4);
    assert_eq!(different.json()["rows_expected"], 3001);
    assert!(note_of_hashes(&different).ends_with(": 6 of 65536 buckets of rows differ"));
    let source = shop.source.to_str().expect("a path");
    let exact = verify(&shop, "public.t", &[&HASHES[..], &["--source", source]].concat());
    exact.assert_success();
    assert!(note_of_hashes(&exact).ends_with(": 0 of 65536 buckets of rows differ"));
    // What the server writes in another way is read.
    shop.sql("UPDATE t SET d = 'infinity' WHERE id = 1");
    let infinite = verify(&shop, "public.t", &[&HASHES[..], &["--source", source]].concat());
    infinite.assert_success();
    assert!(note_of_hashes(&infinite).ends_with(": 2 of 65536 buckets of rows differ"));
    shop.sql(
        "CREATE VIEW as_text AS SELECT id::text AS id, v, n FROM t; UPDATE t SET v = v || 'x'",
    );
    let number = verify(&shop, "public.as_text", &HASHES);
    assert_eq!(number.json()["keys_different"], 2999);
    assert!(note_of_hashes(&number).starts_with("all rows were read: `id`"));
    let most = verify(&shop, "public.t", &HASHES);
    assert_eq!(most.json()["keys_different"], 2999);
    assert_eq!(most.json()["rows_found"], 3001);
}

#[test]
fn texts_of_all_types_have_the_hashes_of_the_server() {
    let sql = "CREATE TABLE t (id bigint PRIMARY KEY, v varchar(200), c char(5), s smallint, o boolean, r real, f float8, n numeric(30, 4), m numeric, d date, h time, w timestamp, z timestamptz, b bytea, j jsonb, a text[], u uuid, category varchar(10));
        ALTER TABLE t REPLICA IDENTITY FULL";
    let columns = "CAST(id AS BIGINT) AS id, v, c, CAST(s AS INT) AS s, o, r, f, n, m, d, h, w, CAST(z AS TIMESTAMP(6)) AS z, b, j, a, u, category";
    let shop = Shop::new(Place::Local, sql, "[\"public.t\"]", columns);
    let partition = ["curated.partition_by=[\"category\"]"];
    shop.sql("INSERT INTO t SELECT i, 'v', 'c', -i, i % 2 = 0, i / 3.0, -1e-7 * i, i / 7.0, i * 1e20, date '0001-01-01' + 7300 * i, time '00:00' + i * interval '83.0001 s', timestamp '1900-02-28 23:59:59.5' + i * interval '400 d 0.000001 s', timestamptz '1969-12-31 23:59:59+00' + i * interval '1 h 0.01 s', decode(lpad(to_hex(i), 8, '0'), 'hex'), jsonb_build_object('a b', i), ARRAY['a', 'b c', NULL], gen_random_uuid(), 'c' || i % 3 FROM generate_series(0, 400) i");
    for (id, text) in [
        "''",
        "' '",
        "'a b'",
        "E'a\\tb'",
        "E'a\\nb'",
        "E'\\\\'",
        "'\"'",
        "'a,b'",
        "'()'",
        "'NULL'",
        "NULL",
        "'é–漢字🦀'",
        "E'\\u00A0'",
        "E'\\u0085'",
        "E'\\x0B'",
        "'{}'",
        "repeat('x\"\\', 60)",
    ]
    .into_iter()
    .enumerate()
    {
        let id = 1_000 + id;
        shop.sql(&format!(
            "INSERT INTO t (id, v, c, category) VALUES ({id}, {text}, left({text}, 5), NULL)"
        ));
    }
    shop.sql("INSERT INTO t (id, r, f, o, category) VALUES (2000, 'NaN', '-0', true, ''), (2001, 'Infinity', 'NaN', false, NULL), (2002, '1e-45', '5e-324', NULL, 'x y'), (-9223372036854775808, 3.4028235e38, -1.7976931348623157e308, true, 'a')");
    shop.captured();
    let folded = shop.lab.run_with(Task::Run, "2020-01-01", "2100-01-01", &partition);
    folded.expect("folded");
    let verified = verify(&shop, "public.t", &[&HASHES[..], &["--set", partition[0]]].concat());
    verified.assert_success();
    assert_eq!(
        note_of_hashes(&verified),
        "compared by hashes of the server: 0 of 65536 buckets of rows differ"
    );
    assert_eq!(verified.json()["rows_found"], 422);
}

#[test]
fn hashes_are_of_the_text_whatever_the_encoding_of_the_database() {
    let shop = Shop::simple(Place::Local);
    shop.sql("INSERT INTO t VALUES (1, 'é', 1), (2, 'a', 1)");
    shop.captured();
    shop.fold();
    let name = format!("{}_latin", shop.database.name);
    shop.database.ask(&format!(
        "CREATE DATABASE {name} OWNER lab ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    ));
    let latin = Database { server: shop.database.server, name };
    latin.ask(
        "SET ROLE lab; CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint);
        INSERT INTO t VALUES (1, chr(233), 1), (2, 'a', 1)",
    );
    let hashes = || {
        let program =
            shop.lab.program("verify").args(["--against", "postgres", "--output", "json"]);
        let table = ["verify.url_env=WAREHOUSE_URL", "verify.table=t", "verify.method=hashes"];
        program.set(&table).envs([("WAREHOUSE_URL", latin.url())]).run()
    };
    let equal = hashes();
    equal.assert_success();
    assert!(note_of_hashes(&equal).ends_with(": 0 of 65536 buckets of rows differ"));
    // The bytes of UTF-8, taken for another encoding.
    latin.ask("UPDATE t SET v = chr(195) || chr(169) WHERE id = 1");
    assert_eq!(differences(&hashes()), [("1".to_string(), "its row differs in `v`".to_string())]);
}

#[test]
fn what_lags_is_compared_again() {
    let shop = shop();
    shop.sql("UPDATE t SET n = 1 WHERE id = 5; UPDATE t SET n = 2 WHERE id = 6; UPDATE t SET n = 3 WHERE id = 7");
    std::thread::scope(|scope| {
        let verified = scope.spawn(|| verify(&shop, "public.t", &["--lag", "8s"]));
        // In between the table follows; one key changes at the source, and one is lost.
        pause(std::time::Duration::from_secs(3));
        // The table is free meanwhile.
        let open = "SELECT state FROM pg_stat_activity WHERE application_name = 'glueless verify'
            AND datname = current_database()";
        shop.wait("the table is held", || shop.database.ask(open) == ["idle"]);
        shop.captured();
        shop.fold();
        shop.sql("UPDATE t SET n = 4 WHERE id = 6");
        let verified = verified.join().expect("verified");
        verified.assert_success();
        let notes = verified.json()["notes"].to_string();
        assert!(
            notes.contains("1 keys differ both times and have changed in the database"),
            "{notes}"
        );
    });
    let different = verify(&shop, "public.t", &["--lag", "1s"]);
    assert_eq!(differences(&different), [("6".to_string(), "its row differs in `n`".to_string())]);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let shop = shop();
    for (table, message) in [
        ("public.none", "there is no table `public.none`"),
        ("public.keyless", "the key column `id` is not in both"),
    ] {
        shop.sql("CREATE TABLE IF NOT EXISTS keyless (v varchar(20))");
        let refused = verify(&shop, table, &[]);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains(message), "{}", refused.stderr);
    }
    let plain = shop.lab.program("verify").args(["--against", "postgres"]).run();
    assert_eq!(plain.code, 2, "{}", plain.stderr);
    assert!(plain.stderr.contains("has no [verify]"), "{}", plain.stderr);
    let lag = shop.lab.program("verify").args(["--against", "elsewhere", "--lag", "1s"]).run();
    assert!(lag.stderr.contains("--lag is for --against postgres"), "{}", lag.stderr);
    let source = shop.source.to_str().expect("a path");
    let other =
        shop.lab.program("verify").args(["--against", "elsewhere", "--source", source]).run();
    assert!(other.stderr.contains("--source is for --against postgres"), "{}", other.stderr);
    let toml = std::fs::read_to_string(&shop.source).expect("the source");
    let elsewhere = shop.lab.folder.path().join("elsewhere.toml");
    std::fs::write(&elsewhere, toml.replace("/raw\"", "/other\"")).expect("written");
    let elsewhere = elsewhere.to_str().expect("a path");
    let not_folded = verify(&shop, "public.t", &["--source", elsewhere]);
    assert_eq!(not_folded.code, 2, "{}", not_folded.stderr);
    assert!(not_folded.stderr.contains("what it captures is not folded"), "{}", not_folded.stderr);
    let audit = std::fs::read_to_string(&shop.source).expect("the source");
    std::fs::write(&shop.source, format!("{audit}mode = \"audit\"\ncolumn = \"at\"\n"))
        .expect("written");
    let audit = verify(&shop, "public.t", &["--source", source]);
    assert_eq!(audit.code, 2, "{}", audit.stderr);
    assert!(audit.stderr.contains("is not read"), "{}", audit.stderr);
}

#[test]
fn a_comparison_at_a_position_is_exact_while_writers_go_on() {
    let shop = shop();
    let source = shop.source.to_str().expect("a path");
    let exact = || {
        let verified = verify(&shop, "public.t", &["--source", source]);
        verified.assert_success();
        let notes = verified.json()["notes"].to_string();
        assert!(notes.contains("both are as of 0/"), "{notes}");
    };
    let write = |round| {
        shop.sql(&format!(
            "UPDATE t SET n = n + 1 WHERE id % 50 = {round} % 50; DELETE FROM t WHERE id = 100 + {round};
            INSERT INTO t (id) VALUES (10000 + {round});
            UPDATE t SET id = 20000 + {round} WHERE id = 5000 + {round}"
        ));
    };
    beside(write, || {
        exact();
        exact();
        shop.captured();
        exact();
        // What differs is found, too.
        shop.sql(
            "CREATE VIEW other AS SELECT id, CASE WHEN id = 7 THEN 'x' ELSE v END AS v, n FROM t",
        );
        let different = verify(&shop, "public.other", &["--source", source]);
        let expected = [("7".to_string(), "its row differs in `v`".to_string())];
        assert_eq!(differences(&different), expected);
    });
    // The log goes on with what is not captured.
    shop.sql("CREATE TABLE noise (i int)");
    let write = |round| {
        shop.sql(&format!("INSERT INTO noise SELECT {round} FROM generate_series(1, 2000)"));
    };
    beside(write, || (0..3).for_each(|_| exact()));
    // A statement that empties the table or rebuilds its index waits until the comparison has ended; one in the
    // moment before makes another snapshot necessary.
    let write = |round| {
        pause(std::time::Duration::from_millis(300));
        shop.sql(&format!(
            "TRUNCATE t; INSERT INTO t (id) SELECT 100000 * ({round} + 1) + i FROM generate_series(1, 50) i"
        ));
        shop.sql("REINDEX INDEX t_pkey");
    };
    beside(write, || (0..6).for_each(|_| exact()));
    // Nothing is left at the server, and captures go on.
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    shop.wait("a slot is left", || shop.database.ask(slots) == ["1"]);
    shop.captured();
    shop.fold();
    verify(&shop, "public.t", &[]).assert_success();
}
