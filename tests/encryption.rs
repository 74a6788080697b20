//! Encryption by the store: each object that is written asks for the encryption that the standard variables name.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::support::{COUNT_PER_DAY, Lab, Place, environment_of};

/// The heads of requests: lines of text.
type Heads = Arc<Mutex<Vec<Vec<String>>>>;

/// A way to the S3 server that records the heads of requests. Returns its address.
fn recorded(upstream: &str) -> (String, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let heads = Heads::default();
    let (upstream, of_threads) =
        (upstream.trim_start_matches("http://").to_string(), Arc::clone(&heads));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (upstream, heads) = (upstream.clone(), Arc::clone(&of_threads));
            std::thread::spawn(move || pass_on(client, &upstream, &heads));
        }
    });
    (url, heads)
}

/// Passes the bytes of a connection on in both directions.
fn pass_on(mut client: TcpStream, upstream: &str, heads: &Heads) {
    let mut server = TcpStream::connect(upstream).expect("the server");
    let (mut answers, mut to_client) =
        (server.try_clone().expect("a handle"), client.try_clone().expect("a handle"));
    let back = std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..count]);
        if server.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Write);
    let _ = back.join();
    let text = String::from_utf8_lossy(&seen);
    let mut head: Option<Vec<String>> = None;
    for line in text.split("\r\n") {
        let begins =
            |method: &&str| line.contains(&format!("{method} /")) && line.ends_with("HTTP/1.1");
        if ["PUT", "POST", "GET", "HEAD", "DELETE"].iter().any(begins) {
            head = Some(Vec::new());
        }
        match &mut head {
            Some(lines) if line.is_empty() => {
                heads.lock().expect("not poisoned").push(std::mem::take(lines))
            }
            Some(lines) => lines.push(line.to_lowercase()),
            None => {}
        }
        if line.is_empty() {
            head = None;
        }
    }
}

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

#[test]
fn every_object_is_written_with_the_encryption_that_variables_name() {
    for (variables, expected) in [
        (
            &[("AWS_SERVER_SIDE_ENCRYPTION", "AES256")][..],
            &["x-amz-server-side-encryption: aes256"][..],
        ),
        (
            &[
                ("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms"),
                ("AWS_SSE_KMS_KEY_ID", "key-of-the-lake"),
                ("AWS_SSE_BUCKET_KEY_ENABLED", "true"),
            ],
            &[
                "x-amz-server-side-encryption: aws:kms",
                "x-amz-server-side-encryption-aws-kms-key-id: key-of-the-lake",
                "x-amz-server-side-encryption-bucket-key-enabled: true",
            ],
        ),
        (
            &[("AWS_SERVER_SIDE_ENCRYPTION", "sse-c"), ("AWS_SSE_CUSTOMER_KEY_BASE64", KEY)],
            &[
                "x-amz-server-side-encryption-customer-algorithm: aes256",
                "x-amz-server-side-encryption-customer-key-md5: ",
            ],
        ),
    ] {
        let lab = Lab::builder()
            .place(Place::S3)
            .set("curated.format", "delta")
            .aggregate("daily", COUNT_PER_DAY)
            .build();
        lab.put_day(1, &[("I", 1, "a"), ("I", 2, "b")]);
        let mut environment = environment_of(&lab.base);
        let (url, heads) = recorded(&environment[0].1);
        environment[0].1 = url;
        environment
            .extend(variables.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        // The server does not encrypt by a customer's key, and answers as if it did.
        let output = lab.program_for("run", "2020-01-01", "2020-01-02").envs(environment).run();
        output.assert_success();
        assert!(!output.stderr.contains(KEY) && !output.stdout.contains(KEY));
        let heads = heads.lock().expect("not poisoned");
        let writes: Vec<&Vec<String>> = heads
            .iter()
            .filter(|head| {
                head[0].contains("put /lab/")
                    && !head.iter().any(|line| line.starts_with("x-amz-copy-source-if"))
            })
            .collect();
        let of = |part: &str| writes.iter().filter(|head| head[0].contains(part)).count();
        for part in ["lake/curated/", "/versions/", "lake/daily/", "_delta_log/"] {
            assert!(of(part) > 0, "nothing was written to {part}");
        }
        for head in writes {
            for line in expected {
                assert!(
                    head.iter().any(|found| found.starts_with(line)),
                    "{line} is missing in {head:?}"
                );
            }
        }
    }
}
