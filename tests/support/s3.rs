//! An S3 server, which runs as long as the tests do.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;

use super::readers::python;

/// The server's process. It stops when its standard input closes, which is when the tests end.
struct S3Server {
    endpoint: String,
    _child: Child,
    _stdin: ChildStdin,
}

static S3: LazyLock<S3Server> = LazyLock::new(|| {
    let mut child = Command::new(python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/s3_server.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the S3 server starts");
    let stdin = child.stdin.take().expect("its stdin");
    let mut port = String::new();
    BufReader::new(child.stdout.take().expect("its stdout"))
        .read_line(&mut port)
        .expect("its port");
    S3Server { endpoint: format!("http://127.0.0.1:{}", port.trim()), _child: child, _stdin: stdin }
});

/// The environment variables with which a location can be reached: none for a local folder.
pub fn environment_of(location: &str) -> Vec<(String, String)> {
    if !location.starts_with("s3://") {
        return Vec::new();
    }
    let variables = [
        ("AWS_ENDPOINT_URL", S3.endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ];
    variables.map(|(name, value)| (name.to_string(), value.to_string())).to_vec()
}
