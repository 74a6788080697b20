//! Captures of a database into the raw folder of a lab.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use glueless::commands::{CaptureContext, CaptureMode, CaptureReport, capture};
use glueless::config::Source;
use glueless::engine::resources::Resources;
use glueless::error::{Kind, Result};
use glueless::report::Meter;

use super::lab::{Lab, Place};
use super::postgres::{Database, Server};
use super::program::Program;
use super::s3::environment_of;
use super::tables::{Row, rows_of};
use super::{RUNTIME, Report};

/// The server that tests of capture share: it decodes its log. The making of a slot waits for all
/// transactions of a server, so that tests of other things have their own.
static SERVER: LazyLock<Server> = LazyLock::new(|| Server::start_with(&LOGICAL));

/// The settings of a server that is captured.
pub const LOGICAL: [&str; 6] =
    ["-c", "wal_level=logical", "-c", "max_replication_slots=100", "-c", "max_wal_senders=60"];

/// The pipeline that folds what is captured of the table `public.t`.
const PIPELINE: &str = r#"
name = "lab"
key  = ["id"]

[raw]
url                 = "{base}/raw/public/t"
window_by           = "name"
order_by            = ["_lsn"]
on_tie              = "fail"
commit_time         = "_commit_time"
before_image_prefix = "_old_"

[curated]
url = "{base}/lake/curated"
"#;

/// A database that is captured, and the lab that folds its table `t`.
pub struct Shop {
    pub database: Database,
    pub lab: Lab,
    /// The source's toml file.
    pub source: PathBuf,
}

impl Shop {
    /// A shop with tables of its database, whose changes are to be captured: as `tables` of the source has
    /// them. `sql` makes the tables, as their owner; `columns` are those of `curated.sql`.
    pub fn new(place: Place, sql: &str, tables: &str, columns: &str) -> Self {
        Shop::at(&SERVER, place, sql, tables, columns)
    }

    /// A shop at another server.
    pub fn at(
        server: &'static Server,
        place: Place,
        sql: &str,
        tables: &str,
        columns: &str,
    ) -> Self {
        let curated = format!("SELECT {columns} FROM latest");
        let lab = Lab::new(place, PIPELINE, &[("curated.sql", &curated)]);
        let database = server.database();
        let lab = lab.follow(&database);
        let source = lab.folder.path().join("shop.toml");
        let toml = format!(
            "name = \"{}\"\nurl_env = \"WAREHOUSE_URL\"\ntables = {tables}\nto = \"{}/raw\"\n",
            database.name, lab.base
        );
        std::fs::write(&source, toml).expect("written");
        let shop = Shop { database, lab, source };
        shop.sql(sql);
        shop
    }

    /// A shop with a table of an id, a text and a number.
    pub fn simple(place: Place) -> Self {
        let sql = "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n bigint)";
        Shop::new(place, sql, "[\"public.t\"]", SIMPLE)
    }

    /// Runs statements as the owner of the tables, in one transaction.
    pub fn sql(&self, statements: &str) -> Vec<String> {
        self.database.ask(&format!("SET ROLE lab; {statements}"))
    }

    /// Captures in this process.
    pub fn capture(&self) -> Result<CaptureReport> {
        self.capture_with(&self.lab, &[])
    }

    /// Captures through a lab's store, with overrides of the source's keys.
    pub fn capture_with(&self, lab: &Lab, set: &[&str]) -> Result<CaptureReport> {
        self.captures(lab, set, None)
    }

    /// A capture in a new snapshot of tables, which must succeed.
    #[track_caller]
    pub fn captured_anew(&self, tables: &[&str]) -> CaptureReport {
        let captured = self.capture_anew(&self.lab, tables, &[]);
        captured.unwrap_or_else(|error| panic!("{error}: {:?}", error.hint))
    }

    /// As [`Shop::capture_with`], in a new snapshot of tables; of all if none is named.
    pub fn capture_anew(&self, lab: &Lab, tables: &[&str], set: &[&str]) -> Result<CaptureReport> {
        let tables = tables.iter().map(ToString::to_string).collect();
        self.captures(lab, set, Some(tables))
    }

    fn captures(
        &self,
        lab: &Lab,
        set: &[&str],
        new_snapshot: Option<Vec<String>>,
    ) -> Result<CaptureReport> {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        let source = Source::read(&self.source, &set)?;
        let resources = Resources {
            memory_bytes: 256 << 20,
            spill_dir: std::env::temp_dir(),
            spill_bytes_max: u64::MAX,
            threads: 2,
        };
        let context = CaptureContext {
            source: &source,
            run_id: uuid::Uuid::now_v7().to_string(),
            new_snapshot,
            stores: &lab.stores,
            environment: &self.lab.environment,
            resources: &resources,
            meter: Meter { started: Instant::now(), peak_memory_bytes: || 0 },
            progress: &|_| (),
        };
        RUNTIME.block_on(capture(&context, CaptureMode::CatchUp))
    }

    /// A capture that must succeed.
    #[track_caller]
    pub fn captured(&self) -> CaptureReport {
        self.captured_with(&[])
    }

    /// As [`Shop::captured`], with overrides of the source's keys. The server may not have seen yet that a
    /// process is gone.
    #[track_caller]
    pub fn captured_with(&self, set: &[&str]) -> CaptureReport {
        let started = Instant::now();
        loop {
            match self.capture_with(&self.lab, set) {
                Err(error)
                    if error.kind == Kind::Busy && started.elapsed() < Duration::from_secs(20) =>
                {
                    pause(Duration::from_millis(100));
                }
                captured => {
                    return captured.unwrap_or_else(|error| panic!("{error}: {:?}", error.hint));
                }
            }
        }
    }

    /// The program that captures.
    pub fn program(&self) -> Program {
        let environment = self.lab.environment.iter();
        Program::glueless()
            .envs(environment_of(&self.lab.base))
            .envs(environment)
            .arg("capture")
            .arg(&self.source)
    }

    /// Folds everything that is captured.
    #[track_caller]
    pub fn fold(&self) -> Report {
        let folded = self.lab.run("2020-01-01", "2100-01-01");
        folded.unwrap_or_else(|error| panic!("{error}: {:?}", error.hint))
    }

    /// Folds what is captured, if there is something.
    #[track_caller]
    pub fn fold_if_any(&self) {
        if self.lab.list_all("raw").iter().any(|name| name.ends_with(".parquet")) {
            self.fold();
        }
    }

    /// Captures and folds, after which the table has the rows of the database.
    #[track_caller]
    pub fn assert_followed(&self) {
        self.assert_followed_with(&[]);
    }

    /// As [`Shop::assert_followed`], with overrides of the source's keys.
    #[track_caller]
    pub fn assert_followed_with(&self, set: &[&str]) {
        self.captured_with(set);
        self.fold();
        assert_eq!(self.lab.published("curated"), self.database.rows("t"));
    }

    /// As [`Shop::assert_followed`], where the database's table has one column more.
    #[track_caller]
    pub fn assert_followed_but_for(&self, column: &str) {
        self.captured();
        self.fold();
        let mut rows = self.database.rows("t");
        rows.iter_mut().for_each(|row| {
            row.remove(column);
        });
        assert_eq!(self.lab.published("curated"), rows);
    }

    /// The captured changes of a table, in the order of their positions, each of which must be there once;
    /// without full loads.
    #[track_caller]
    pub fn changes(&self, folder: &str) -> Vec<Row> {
        let is_change = |name: &String| !name.starts_with("LOAD");
        let mut changes = self.rows(folder, is_change);
        changes.sort_by(|a, b| a["_lsn"].cmp(&b["_lsn"]));
        let twice = changes.windows(2).find(|two| two[0]["_lsn"] == two[1]["_lsn"]);
        assert_eq!(twice, None, "a change is there twice");
        changes
    }

    /// The rows of a table's full load.
    pub fn loaded(&self, folder: &str) -> Vec<Row> {
        self.rows(folder, |name| name.starts_with("LOAD"))
    }

    fn rows(&self, folder: &str, is_read: impl Fn(&String) -> bool) -> Vec<Row> {
        let folder = format!("raw/{folder}");
        let names = self.lab.list_all(&folder).into_iter().filter(is_read);
        names.flat_map(|name| rows_of(self.lab.get(&format!("{folder}/{name}")))).collect()
    }

    /// What the server says of the slot: a column of `pg_replication_slots`.
    pub fn of_slot(&self, column: &str) -> String {
        let name = format!("glueless_{}", self.database.name);
        let statement =
            format!("SELECT {column} FROM pg_replication_slots WHERE slot_name = '{name}'");
        self.database.ask(&statement).into_iter().next().unwrap_or_default()
    }

    /// Waits until something holds.
    pub fn wait(&self, what: &str, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(60), "{what}");
            pause(Duration::from_millis(50));
        }
    }
}

/// The columns of a simple shop's table.
pub const SIMPLE: &str = "CAST(id AS INT) AS id, CAST(v AS VARCHAR) AS v, CAST(n AS BIGINT) AS n";

#[expect(clippy::disallowed_methods, reason = "another process is waited for")]
pub fn pause(length: Duration) {
    std::thread::sleep(length);
}

/// Does something while another thread writes, again and again.
pub fn beside(write: impl Fn(u32) + Sync, does: impl FnOnce()) {
    let is_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let is_going_on = |_: &u32| !is_ended.load(Ordering::Relaxed);
            (0..).take_while(is_going_on).for_each(&write);
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(does));
        is_ended.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
