//! PostgreSQL servers, which run as long as the tests do.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

use super::lab::Lab;
use super::readers::python;
use super::tables::Row;

/// A server. It stops when its standard input closes, which is when the tests end.
pub struct Server {
    pub port: u16,
    /// The folder of its Unix socket.
    pub socket: String,
    /// The certificate of its authority.
    pub certificate: String,
    psql: String,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    _child: Child,
}

/// The server that tests share; each has a database of its own.
static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

/// A database of a server, owned by the user `lab`.
pub struct Database {
    pub server: &'static Server,
    pub name: String,
}

impl Server {
    /// Starts a server.
    pub fn start() -> Server {
        Server::start_with(&[])
    }

    /// Starts a server with settings.
    pub fn start_with(settings: &[&str]) -> Server {
        let mut child = Command::new(python())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres_server.py"))
            .args(settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the PostgreSQL server starts");
        let stdin = child.stdin.take().expect("its stdin");
        let mut stdout = BufReader::new(child.stdout.take().expect("its stdout"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("its address");
        let address: serde_json::Value = serde_json::from_str(&line).expect("its address");
        let text = |name: &str| address[name].as_str().expect("a text").to_string();
        Server {
            port: address["port"].as_u64().expect("a port") as u16,
            socket: text("socket"),
            certificate: text("certificate"),
            psql: text("psql"),
            pipes: Mutex::new((stdin, stdout)),
            _child: child,
        }
    }

    /// Another of PostgreSQL's programs.
    pub fn tool(&self, name: &str) -> PathBuf {
        Path::new(&self.psql).with_file_name(name)
    }

    /// Ends all of its processes at once (`kill`), starts it again (`start`), or starts a standby of it (`standby`).
    pub fn control(&self, command: &str) {
        let mut pipes = self.pipes.lock().expect("the pipes");
        writeln!(pipes.0, "{command}").expect("told");
        let mut line = String::new();
        pipes.1.read_line(&mut line).expect("an answer");
        assert_eq!(line, "done\n", "the server did not {command}");
    }

    /// Makes a database on it.
    pub fn database(&'static self) -> Database {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("lab{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let database = Database { server: self, name: "postgres".into() };
        database.ask(&format!("CREATE DATABASE {name} OWNER lab"));
        Database { server: self, name }
    }
}

impl Database {
    /// A new database of the shared server.
    pub fn new() -> Database {
        SERVER.database()
    }

    /// Its URL, for the user `lab`, by TCP and with a password.
    pub fn url(&self) -> String {
        let Server { port, certificate, .. } = self.server;
        let name = &self.name;
        format!(
            "postgresql://lab:pass%20word@localhost:{port}/{name}?sslmode=verify-full&sslrootcert={certificate}"
        )
    }

    /// Its URL at the standby of the server.
    pub fn url_at_standby(&self) -> String {
        let Server { port, socket, .. } = self.server;
        format!("postgresql://lab@/{}?host={socket}/standby&port={port}", self.name)
    }

    /// Runs statements as the superuser; returns the rows of the last, with `|` between their values and
    /// null as `null`.
    pub fn ask(&self, statements: &str) -> Vec<String> {
        self.try_ask(statements).unwrap_or_else(|error| panic!("{statements}: {error}"))
    }

    /// As [`Database::ask`]; with the message of the server if it refuses.
    pub fn try_ask(&self, statements: &str) -> Result<Vec<String>, String> {
        let output = Command::new(&self.server.psql)
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-P", "null=null"])
            .args(["-h", &self.server.socket, "-p", &self.server.port.to_string()])
            .args(["-U", "postgres", "-d", &self.name, "-c", statements])
            .output()
            .expect("psql runs");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        Ok(text.lines().map(String::from).collect())
    }
}

impl Lab {
    /// Lets `[load]` find a database.
    pub fn follow(mut self, database: &Database) -> Self {
        self.environment.insert("WAREHOUSE_URL".into(), database.url());
        self
    }

    /// Checks that tables of the database have the rows of the published ones: the curated table and
    /// aggregates.
    #[track_caller]
    pub fn assert_followed(&self, database: &Database, tables: &[&str]) {
        for table in tables {
            assert_eq!(database.rows(table), self.published(table), "{table}");
        }
    }

    /// Every row of a published table, sorted, with numbers as [`Database::rows`] has them.
    pub fn published(&self, table: &str) -> Vec<Row> {
        let mut rows = self.table(&format!("lake/{table}"));
        rows.iter_mut().for_each(plain);
        rows.sort();
        rows
    }
}

impl Database {
    /// Every row of a table, sorted, as [`Lab::table`] has them; numbers without zeros that do not count.
    /// A table that is missing has none.
    pub fn rows(&self, table: &str) -> Vec<Row> {
        if self.ask(&format!("SELECT to_regclass('public.{table}')")) == ["null"] {
            return Vec::new();
        }
        let lines = self.ask(&format!("SELECT to_jsonb(t) FROM public.{table} t"));
        let mut rows: Vec<Row> = lines.iter().map(|line| row_of(line)).collect();
        rows.sort();
        rows
    }
}

fn row_of(line: &str) -> Row {
    let values: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(line).expect("a row");
    let mut row: Row = values
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| match value {
            serde_json::Value::String(text) => (name, text),
            other => (name, other.to_string()),
        })
        .collect();
    plain(&mut row);
    row
}

/// Writes numbers, and times with a zone, in one way.
fn plain(row: &mut Row) {
    for value in row.values_mut() {
        if let Some(time) = value.strip_suffix("+00:00").filter(|time| time.contains('T')) {
            *value = format!("{time}Z");
        }
        if let Ok(number) = value.parse::<f64>()
            && value.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '-')
        {
            *value = format!("{}", number + 0.0);
        }
    }
}
