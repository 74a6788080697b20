//! The AWS Glue catalog of the S3 server, and a way to it that counts, throttles and loses replies.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::lab::Lab;
use super::readers::python;
use super::s3::environment_of;

/// A database of the catalog.
pub struct Glue {
    pub database: String,
}

/// What becomes of calls of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// They are refused, because there are too many.
    Throttled,
    /// They are carried out, and the client is told that the server has failed.
    ReplyLost,
}

/// A way to the catalog.
pub struct GlueProxy {
    pub url: String,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Glue {
    /// A new database.
    pub fn new() -> Glue {
        let database = format!("lab_{}", uuid::Uuid::now_v7().simple());
        let glue = Glue { database };
        glue.call("create_database", json!({"DatabaseInput": {"Name": glue.database}}));
        glue
    }

    /// Calls the API as someone else.
    pub fn call(&self, operation: &str, arguments: Value) -> Value {
        let output = Command::new(python())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/glue_catalog.py"))
            .args([operation, &arguments.to_string()])
            .envs(environment_of("s3://lab"))
            .output()
            .expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{operation}: {error}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// A table.
    pub fn table(&self, name: &str) -> Value {
        let found = self.call("get_table", json!({"DatabaseName": self.database, "Name": name}));
        found["Table"].clone()
    }

    /// The names and types of a table's columns, then those of its partition columns.
    pub fn columns(&self, name: &str) -> [Vec<String>; 2] {
        let table = self.table(name);
        [&table["StorageDescriptor"]["Columns"], &table["PartitionKeys"]].map(|columns| {
            let columns = columns.as_array().expect("columns").iter();
            columns
                .map(|column| format!("{} {}", text(&column["Name"]), text(&column["Type"])))
                .collect()
        })
    }

    /// The partitions of a table: values and locations.
    pub fn partitions(&self, name: &str) -> BTreeMap<Vec<String>, String> {
        let arguments = json!({"DatabaseName": self.database, "TableName": name});
        let found = self.call("get_partitions", arguments);
        let partitions = found["Partitions"].as_array().expect("partitions").iter();
        let values = |partition: &Value| {
            partition["Values"].as_array().expect("values").iter().map(text).collect()
        };
        partitions
            .map(|partition| (values(partition), text(&partition["StorageDescriptor"]["Location"])))
            .collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_string()
}

impl Lab {
    /// Lets `[catalog]` find the catalog.
    pub fn with_catalog(mut self) -> Self {
        self.environment.extend(environment_of("s3://lab"));
        self
    }
}

impl GlueProxy {
    /// A way on which the first calls of some operations get into trouble.
    pub fn new(troubles: &[(&'static str, usize, Trouble)]) -> GlueProxy {
        let variables: BTreeMap<String, String> = environment_of("s3://lab").into_iter().collect();
        let server = variables["AWS_ENDPOINT_URL"].trim_start_matches("http://").to_string();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (recorded, mut troubles) = (Arc::clone(&calls), troubles.to_vec());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.expect("a connection");
                let Some((request, operation)) = read_request(&mut client) else { continue };
                recorded.lock().expect("calls").push(operation.clone());
                let trouble = troubles.iter_mut().find(|it| it.0 == operation && it.1 > 0);
                let trouble = trouble.map(|(_, left, trouble)| {
                    *left -= 1;
                    *trouble
                });
                let mut answer = match trouble {
                    Some(Trouble::Throttled) => Vec::new(),
                    _ => {
                        let mut server = TcpStream::connect(&server).expect("a connection");
                        server.write_all(&request).expect("sent");
                        let mut answer = Vec::new();
                        server.read_to_end(&mut answer).expect("answered");
                        answer
                    }
                };
                match trouble {
                    Some(Trouble::Throttled) => answer = refusal(400, "ThrottlingException"),
                    Some(Trouble::ReplyLost) => answer = refusal(500, "InternalServiceException"),
                    None => {}
                }
                let _ = client.write_all(&answer);
            }
        });
        GlueProxy { url, calls }
    }

    /// The operations that were called since this was last asked.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().expect("calls"))
    }
}

fn refusal(status: u16, kind: &str) -> Vec<u8> {
    let body = json!({"__type": kind, "message": "too much"}).to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} No\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Reads a request; returns it so that the server closes the connection after it, and the operation that
/// it calls.
fn read_request(client: &mut TcpStream) -> Option<(Vec<u8>, String)> {
    let (mut request, mut buffer) = (Vec::new(), [0; 1 << 14]);
    let end = loop {
        if let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        let count = client.read(&mut buffer).ok().filter(|count| *count > 0)?;
        request.extend_from_slice(&buffer[..count]);
    };
    let head = String::from_utf8_lossy(&request[..end]).into_owned();
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.to_string())
    };
    let length: usize = header("content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    while request.len() < end + length {
        let count = client.read(&mut buffer).ok().filter(|count| *count > 0)?;
        request.extend_from_slice(&buffer[..count]);
    }
    let target = header("x-amz-target").unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default().to_string();
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let whole = [head.as_bytes(), &request[end..]].concat();
    Some((whole, operation))
}
