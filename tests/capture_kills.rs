//! The whole way from a database to another one, while pgbench writes, and captures, folds, loads and the server
//! itself are killed at random: a table is never another one than its source. `GLUELESS_TEST_SECONDS` says for how
//! long.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::support::{Database, LOGICAL, Output, Place, Program, Server, Shop, pause, send_signal};

/// One transaction of pgbench: rows are inserted, updated, moved to other keys, deleted; now and then the table is
/// truncated, within a transaction that fills it again.
const CHANGES: &str = r"
SELECT greatest(last_value - 3000, 1) AS low, last_value AS high FROM ids \gset
\set one random(:low, :high)
\set two random(:low, :high)
\set three random(:low, :high)
\set dice random(1, 3000)
BEGIN;
INSERT INTO t VALUES (nextval('ids'), 'new', :dice);
UPDATE t SET n = n + 1, v = 'changed' WHERE id = :one;
UPDATE t SET id = nextval('ids') WHERE id = :two;
DELETE FROM t WHERE id = :three;
\if :dice = 1
TRUNCATE t;
INSERT INTO t SELECT nextval('ids'), 'again', i FROM generate_series(1, 300) i;
\endif
COMMIT;
";

/// The time that the test takes.
#[expect(clippy::disallowed_methods, reason = "how long to test is not a matter of the program")]
fn length() -> Duration {
    let seconds = std::env::var("GLUELESS_TEST_SECONDS").ok();
    Duration::from_secs(seconds.map_or(20, |seconds| seconds.parse().expect("seconds")))
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A database with writers, the lab that folds what is captured of it, and a second database that follows.
struct Chain {
    shop: Shop,
    server: &'static Server,
    target: Database,
    script: PathBuf,
    writers: Option<Child>,
    random: Random,
    /// Whether the slot was dropped, and no new snapshot is complete yet.
    is_lost: bool,
    /// What was killed: captures, folds, the server.
    killed: [u32; 3],
}

impl Chain {
    fn new(server: &'static Server) -> Self {
        let sql = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint); CREATE SEQUENCE ids START 1001;
            INSERT INTO t SELECT i, 'first', i FROM generate_series(1, 1000) i";
        let columns = "CAST(id AS INT) AS id, CAST(v AS VARCHAR) AS v, CAST(n AS BIGINT) AS n";
        let shop = Shop::at(server, Place::Local, sql, "[\"public.t\"]", columns);
        let script = shop.lab.folder.path().join("changes.sql");
        std::fs::write(&script, CHANGES).expect("written");
        let target = server.database();
        Chain {
            shop,
            server,
            target,
            script,
            writers: None,
            random: Random(length().as_secs()),
            is_lost: false,
            killed: [0; 3],
        }
    }

    /// Starts pgbench, unless it runs. It ends with the server.
    fn write(&mut self) {
        let ended = |writers: &mut Child| writers.try_wait().expect("looked").is_some();
        if self.writers.as_mut().is_none_or(ended) {
            let pgbench = Command::new(self.server.tool("pgbench"))
                .args(["-h", &self.server.socket, "-p", &self.server.port.to_string()])
                .args(["-U", "postgres", "--no-vacuum", "--client", "3", "--rate", "150"])
                .args(["--max-tries", "5", "--time", "100000", "--file"])
                .args([self.script.to_str().expect("a path"), &self.shop.database.name])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            self.writers = Some(pgbench.expect("pgbench starts"));
        }
    }

    /// Ends pgbench, and waits until the server has ended its transactions.
    fn pause_writers(&mut self) {
        if let Some(mut writers) = self.writers.take() {
            let _ = writers.kill();
            writers.wait().expect("it ended");
        }
        let active = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
        self.shop.wait("pgbench still writes", || self.shop.database.ask(active) == ["0"]);
    }

    fn capture(&self) -> Program {
        let program = self.shop.program().set(&["file_bytes=20000"]);
        if self.is_lost { program.arg("--new-snapshot") } else { program }
    }

    fn command(&self, command: &str) -> Program {
        let lab = &self.shop.lab;
        let program = match command {
            "run" => lab.program_for(command, "2020-01-01", "2100-01-01"),
            _ => lab.program(command),
        };
        let keys = ["load.url_env=TARGET_URL", "load.table=public.t"];
        let program = program.set(&keys).envs([("TARGET_URL", self.target.url())]);
        program.envs(lab.environment.iter())
    }

    /// Starts a capture, a fold or both, and ends them, or the server, after a while, or not.
    fn step(&mut self) {
        let mut processes = Vec::new();
        let which = self.random.below(4);
        if which != 0 {
            processes.push((0, self.capture().start()));
        }
        if which != 1 {
            processes.push((1, self.command("run").start()));
        }
        let kills_server = self.random.below(6) == 0;
        for (kind, process) in &mut processes {
            if self.random.below(2) == 0 {
                pause(Duration::from_millis(self.random.below(700)));
                if process.try_wait().expect("looked").is_none() {
                    send_signal(process, "-KILL");
                    self.killed[*kind] += 1;
                }
            }
        }
        if kills_server {
            pause(Duration::from_millis(self.random.below(300)));
            self.server.control("kill");
            self.server.control("start");
            self.killed[2] += 1;
        }
        for (kind, process) in processes {
            let output = process.wait_with_output().expect("it ended");
            let text = String::from_utf8_lossy(&output.stderr);
            match output.status.code() {
                Some(0) if kind == 0 => self.is_lost = false,
                // Killed; the database cannot be reached; another process is at work.
                None | Some(0 | 69 | 75) => {}
                Some(code) => panic!("exit code {code} of {kind}: {text}"),
            }
        }
        if self.random.below(15) == 0 {
            self.lose_slot();
        }
    }

    /// Drops the slot, unless a process that is gone still has it.
    fn lose_slot(&mut self) {
        let name = format!("glueless_{}", self.shop.database.name);
        let drop = format!("SELECT pg_drop_replication_slot('{name}')");
        self.is_lost |= self.shop.database.try_ask(&drop).is_ok();
    }

    /// Runs a program until it succeeds: the server learns late that a process is gone.
    #[track_caller]
    fn succeed(program: impl Fn() -> Program) -> Output {
        let started = Instant::now();
        loop {
            let output = program().run();
            if output.code != 75 || started.elapsed() > Duration::from_secs(60) {
                output.assert_success();
                return output;
            }
            pause(Duration::from_millis(100));
        }
    }

    /// With the writers paused, captures, folds and loads, and compares all three.
    #[track_caller]
    fn check(&mut self) {
        self.pause_writers();
        Chain::succeed(|| self.capture());
        self.is_lost = false;
        Chain::succeed(|| self.command("run"));
        Chain::succeed(|| {
            let keys = ["verify.url_env=WAREHOUSE_URL", "verify.table=public.t"];
            self.command("verify").args(["--against", "postgres"]).set(&keys)
        });
        let rows =
            "SELECT count(*), md5(string_agg(concat_ws(',', id, v, n), ';' ORDER BY id)) FROM t";
        assert_eq!(self.target.ask(rows), self.shop.database.ask(rows), "the second database");
    }

    /// Compares with the source at a position of its log, while the writers go on.
    #[track_caller]
    fn check_beside_writers(&mut self) {
        self.write();
        let source = self.shop.source.to_str().expect("a path");
        Chain::succeed(|| {
            let keys = ["verify.url_env=WAREHOUSE_URL", "verify.table=public.t"];
            let exact = ["--against", "postgres", "--source", source];
            self.command("verify").args(exact).set(&keys)
        });
    }
}

#[test]
fn whatever_is_killed_beside_writers_the_tables_are_those_of_the_source() {
    static OWN: LazyLock<Server> = LazyLock::new(|| Server::start_with(&LOGICAL));
    let started = Instant::now();
    let mut chain = Chain::new(&OWN);
    chain.check();
    let mut checks = 0;
    while started.elapsed() < length() {
        for _ in 0..12 {
            chain.write();
            chain.step();
        }
        chain.check();
        chain.check_beside_writers();
        checks += 1;
    }
    chain.pause_writers();
    let [captures, folds, servers] = chain.killed;
    eprintln!("{checks} checks; killed: {captures} captures, {folds} folds, {servers} servers");
}
