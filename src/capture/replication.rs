//! A replication connection: PostgreSQL's streaming replication protocol for logical slots.
//!
//! Messages, passwords and TLS are those of libraries (`postgres-protocol`, `tokio-postgres-rustls`); they
//! have no replication. `pgwire-replication` has it, but trusts other authorities than our other
//! connections, and takes over the cryptography of the whole process; what is left of it is here.
//!
//! A task of its own receives, answers the server, and passes on what it received in batches, so that a
//! slow write of a file does not let the server give up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{ErrorResponseBody, Header, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::capture::WAIT_FOR_THE_OTHER;
use crate::capture::position::Lsn;
use crate::error::{Error, Result};
use crate::postgres::connect::{Server, Socket};
use crate::postgres::refusal::{no_password, refused};
use crate::postgres::{Refusal, ServerName, quoted};

/// The bytes that are read from the connection at once.
const READ_BYTES: usize = 256 << 10;
/// The messages that are passed on together, and the batches that wait.
const BATCH_MESSAGES: usize = 1024;
const BATCHES_WAITING: usize = 4;
/// The time between two messages about our position; also the time after which a server that has nothing to
/// send is asked where it is.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// The time that the server gets to answer at first.
const LOGIN_SECONDS: u64 = 60;
/// The time that the server gets to end the stream.
const END_SECONDS: u64 = 20;
/// The tag of the message that begins the stream, which the library does not know.
const COPY_BOTH: u8 = b'W';

/// The SQLSTATEs for a slot that another process uses, or has just made.
const IN_USE: &str = "55006";
const EXISTS: &str = "42710";
/// The SQLSTATE for a limit of the configuration.
const NO_SLOT_FREE: &str = "53400";

/// A row of a query: texts, `None` for null.
pub(super) type Row = Vec<Option<String>>;

/// A connection that does not stream yet. It takes the commands of replication and SQL, without
/// parameters.
pub(super) struct Replication {
    server: ServerName,
    socket: Box<dyn Socket>,
    input: BytesMut,
}

impl Replication {
    /// Connects.
    ///
    /// # Errors
    /// As [`Server::connect`].
    pub(super) async fn connect(server: &Server, application: &str) -> Result<Self> {
        let socket = server.socket().await?;
        let name = server.name.clone();
        let mut this = Replication { server: name, socket, input: BytesMut::new() };
        let (user, password, database) = server.login()?;
        let parameters = [
            ("user", user),
            ("database", database),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", application),
            // How values are written; `crate::capture::column` reads them so.
            ("DateStyle", "ISO, MDY"),
            ("IntervalStyle", "iso_8601"),
            ("TimeZone", "UTC"),
            ("bytea_output", "hex"),
            ("extra_float_digits", "3"),
            // The session that exported a snapshot waits.
            ("statement_timeout", "0"),
            ("lock_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
            ("idle_session_timeout", "0"),
        ];
        let mut message = BytesMut::new();
        frontend::startup_message(parameters, &mut message).map_err(|e| this.lost(&e))?;
        this.send(&message).await?;
        match timeout(Duration::from_secs(LOGIN_SECONDS), this.log_in(user, password)).await {
            Ok(begun) => begun.map(|()| this),
            Err(_) => Err(this.lost(&"it does not answer")),
        }
    }

    async fn log_in(&mut self, user: &str, password: Option<&[u8]>) -> Result<()> {
        let needed = |server: &ServerName| password.ok_or_else(|| no_password(server));
        let mut scram = None;
        loop {
            let mut answer = BytesMut::new();
            let written = match self.message().await? {
                Message::AuthenticationOk => {
                    let begun = self.until_ready().await?;
                    let doing = "open a session for replication";
                    return begun.map(|_| ()).map_err(|body| self.refused(&body, doing));
                }
                Message::AuthenticationCleartextPassword => {
                    frontend::password_message(needed(&self.server)?, &mut answer)
                }
                Message::AuthenticationMd5Password(body) => {
                    let password = needed(&self.server)?;
                    let hash = md5_hash(user.as_bytes(), password, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut answer)
                }
                Message::AuthenticationSasl(body) => {
                    let password = needed(&self.server)?;
                    let has_scram = body.mechanisms().any(|name| Ok(name == SCRAM_SHA_256));
                    if !has_scram.unwrap_or(false) {
                        return Err(self.other_login());
                    }
                    // TLS has verified the server already.
                    let begun = ScramSha256::new(password, ChannelBinding::unsupported());
                    let scram = scram.insert(begun);
                    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut answer)
                }
                Message::AuthenticationSaslContinue(body) => {
                    let scram: &mut ScramSha256 =
                        scram.as_mut().ok_or_else(|| self.other_login())?;
                    let updated = scram.update(body.data());
                    updated.and_then(|()| frontend::sasl_response(scram.message(), &mut answer))
                }
                Message::AuthenticationSaslFinal(body) => {
                    let scram = scram.as_mut().ok_or_else(|| self.other_login())?;
                    scram.finish(body.data())
                }
                Message::ErrorResponse(body) => {
                    return Err(self.refused(&body, "open a session for replication"));
                }
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => Ok(()),
                _ => return Err(self.other_login()),
            };
            written.map_err(|error| self.lost(&error))?;
            self.send(&answer).await?;
        }
    }

    fn other_login(&self) -> Error {
        Error::usage(format!(
            "cannot connect to {}: it asks for another way to log in",
            self.server
        ))
        .hint("use a password: scram-sha-256 in pg_hba.conf")
    }

    /// Runs one statement; returns its rows.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn query(&mut self, statement: &str, doing: &str) -> Result<Vec<Row>> {
        let mut message = BytesMut::new();
        frontend::query(statement, &mut message).map_err(|error| self.lost(&error))?;
        self.send(&message).await?;
        match self.until_ready().await? {
            Ok(rows) => Ok(rows),
            Err(body) => Err(self.refused(&body, doing)),
        }
    }

    /// Reads up to the end of a statement.
    async fn until_ready(&mut self) -> Result<Result<Vec<Row>, ErrorResponseBody>> {
        let (mut rows, mut refusal) = (Vec::new(), None);
        loop {
            let message = match (self.message().await, refusal.take()) {
                // It ended the session with the refusal.
                (Err(_), Some(refusal)) => return Ok(Err(refusal)),
                (message, taken) => {
                    refusal = taken;
                    message?
                }
            };
            match message {
                Message::ReadyForQuery(_) => return Ok(refusal.map_or(Ok(rows), Err)),
                Message::ErrorResponse(body) => refusal = Some(body),
                Message::DataRow(body) => {
                    let value = |range: Option<std::ops::Range<usize>>| {
                        let bytes = range.map(|range| &body.buffer()[range]);
                        Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
                    };
                    let row = body.ranges().map(value).collect();
                    rows.push(row.map_err(|error: std::io::Error| self.lost(&error))?);
                }
                _ => {}
            }
        }
    }

    /// Begins to stream what a slot's consumer has not confirmed, in version 1 of `pgoutput`'s protocol.
    ///
    /// # Errors
    /// Those of the server: busy, when another process streams from the slot.
    pub(super) async fn start(mut self, slot: &str, publication: &str) -> Result<LogStream> {
        let statement = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '1', publication_names '{}')",
            quoted_in_list(publication)
        );
        let mut message = BytesMut::new();
        frontend::query(&statement, &mut message).map_err(|error| self.lost(&error))?;
        self.send(&message).await?;
        loop {
            let frame = self.frame().await?;
            match frame[0] {
                COPY_BOTH => break,
                b'E' => return Err(self.refusal(&frame, &format!("read the slot `{slot}`"))),
                _ => {}
            }
        }
        let (sender, receiver) = mpsc::channel(BATCHES_WAITING);
        let (ends, end) = mpsc::channel(1);
        let confirmed = Arc::new(AtomicU64::new(0));
        let receives =
            Receiver { replication: self, sender, end, confirmed: Arc::clone(&confirmed) };
        let task = tokio::spawn(receives.run());
        Ok(LogStream { receiver, ends, confirmed, task: Some(task) })
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = async {
            self.socket.write_all(bytes).await?;
            self.socket.flush().await
        };
        let sent = sent.await;
        sent.map_err(|error| self.lost(&error))
    }

    async fn message(&mut self) -> Result<Message> {
        loop {
            if let Some(message) =
                Message::parse(&mut self.input).map_err(|error| self.lost(&error))?
            {
                return Ok(message);
            }
            self.read().await?;
        }
    }

    /// The next message as a whole, with its tag.
    async fn frame(&mut self) -> Result<Bytes> {
        loop {
            if let Some(frame) = self.buffered_frame()? {
                return Ok(frame);
            }
            self.read().await?;
        }
    }

    fn buffered_frame(&mut self) -> Result<Option<Bytes>> {
        let header = Header::parse(&self.input).map_err(|error| self.lost(&error))?;
        let length = header.map(|header| header.len() as usize + 1);
        match length {
            Some(length) if self.input.len() >= length => {
                Ok(Some(self.input.split_to(length).freeze()))
            }
            length => {
                self.input.reserve(length.unwrap_or(0).saturating_sub(self.input.len()));
                Ok(None)
            }
        }
    }

    /// Reads more bytes. It can be cancelled: bytes that were read stay.
    async fn read(&mut self) -> Result<()> {
        self.input.reserve(READ_BYTES);
        match self.socket.read_buf(&mut self.input).await {
            Ok(0) => Err(self.lost(&"the connection was closed")),
            Ok(_) => Ok(()),
            Err(error) => Err(self.lost(&error)),
        }
    }

    fn lost(&self, why: &dyn std::fmt::Display) -> Error {
        Error::storage(format!("lost the connection to {}: {why}", self.server))
            .hint(self.server.purpose.unchanged)
    }

    fn other_protocol(&self) -> Error {
        Error::internal(format!("{} speaks another protocol", self.server))
    }

    /// The error for a message that is a refusal, with its tag.
    fn refusal(&self, frame: &[u8], doing: &str) -> Error {
        match Message::parse(&mut BytesMut::from(frame)) {
            Ok(Some(Message::ErrorResponse(body))) => self.refused(&body, doing),
            _ => self.other_protocol(),
        }
    }

    fn refused(&self, body: &ErrorResponseBody, doing: &str) -> Error {
        let mut refusal = Refusal::default();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut fields = body.fields();
        while let Ok(Some(field)) = fields.next() {
            match field.type_() {
                b'C' => refusal.code = text(field.value_bytes()),
                b'M' => refusal.message = text(field.value_bytes()),
                _ => {}
            }
        }
        if refusal.code == IN_USE || refusal.code == EXISTS {
            let busy = format!("another process uses the slot in {}", self.server);
            return Error::busy(busy).hint(WAIT_FOR_THE_OTHER);
        }
        if refusal.code == NO_SLOT_FREE {
            let message = format!("cannot {doing} in {}: {}", self.server, refusal.message);
            return Error::usage(message)
                .hint("raise `max_replication_slots` or `max_wal_senders`");
        }
        refused(&self.server, &refusal, doing)
    }
}

/// A name in a list of names within a literal.
fn quoted_in_list(name: &str) -> String {
    quoted(name).replace('\'', "''")
}

/// What the server sent.
#[derive(Debug)]
pub(super) enum Received {
    /// Messages of `pgoutput`.
    Messages(Vec<Bytes>),
    /// All that is before this position was sent.
    SentUpTo(Lsn),
}

/// The stream of a slot.
pub(super) struct LogStream {
    receiver: mpsc::Receiver<Result<Received>>,
    ends: mpsc::Sender<()>,
    confirmed: Arc<AtomicU64>,
    task: Option<tokio::task::JoinHandle<Result<()>>>,
}

impl LogStream {
    /// The next messages.
    ///
    /// # Errors
    /// Those of the server, and of the connection.
    pub(super) async fn next(&mut self) -> Result<Received> {
        match self.receiver.recv().await {
            Some(received) => received,
            None => Err(Error::internal("the log's receiver has ended")),
        }
    }

    /// Tells the server that everything before a position is durable here: it can remove its log up to
    /// there, and does not send it again. The server learns it within half a second.
    pub(super) fn confirm(&self, position: Lsn) {
        self.confirmed.fetch_max(position.0, Ordering::Relaxed);
    }

    /// Ends the stream, after what was confirmed has reached the server.
    ///
    /// # Errors
    /// Storage, when the connection is lost before.
    pub(super) async fn end(mut self) -> Result<()> {
        let _ = self.ends.send(()).await;
        // What is still sent is not for us.
        while self.receiver.recv().await.is_some() {}
        match self.task.take() {
            Some(task) => task.await.unwrap_or_else(|error| {
                Err(Error::internal("the log's receiver failed").caused_by(error))
            }),
            None => Ok(()),
        }
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The task that receives.
struct Receiver {
    replication: Replication,
    sender: mpsc::Sender<Result<Received>>,
    end: mpsc::Receiver<()>,
    confirmed: Arc<AtomicU64>,
}

impl Receiver {
    async fn run(mut self) -> Result<()> {
        let received = self.receive().await;
        match received {
            Ok(()) => self.finish().await,
            Err(error) => {
                let _ = self.sender.send(Err(error)).await;
                Ok(())
            }
        }
    }

    /// Receives until the stream is to end.
    async fn receive(&mut self) -> Result<()> {
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let Some(received) = self.buffered()? else {
                tokio::select! {
                    _ = self.end.recv() => return Ok(()),
                    _ = ticks.tick() => self.report(true).await?,
                    read = self.replication.read() => read?,
                }
                continue;
            };
            let sender = self.sender.clone();
            for one in received {
                let permit = loop {
                    tokio::select! {
                        _ = self.end.recv() => return Ok(()),
                        _ = ticks.tick() => self.report(false).await?,
                        permit = sender.reserve() => break permit,
                    }
                };
                if let Ok(permit) = permit {
                    permit.send(Ok(one));
                }
            }
        }
    }

    /// The messages that were read; `None` if there is no whole one.
    fn buffered(&mut self) -> Result<Option<Vec<Received>>> {
        let (mut received, mut messages) = (Vec::new(), Vec::new());
        while messages.len() < BATCH_MESSAGES
            && let Some(mut frame) = self.replication.buffered_frame()?
        {
            match frame[0] {
                b'd' => {}
                b'E' => return Err(self.replication.refusal(&frame, "read the log")),
                b'c' => return Err(self.replication.lost(&"the server ended the stream")),
                _ => continue,
            }
            frame.advance(5);
            match frame.first() {
                // Where the data begins, where the server's log ends, and the time.
                Some(b'w') if frame.len() >= 25 => messages.push(frame.slice(25..)),
                Some(b'k') if frame.len() >= 9 => {
                    let sent = Lsn(frame.slice(1..9).get_u64());
                    if !messages.is_empty() {
                        received.push(Received::Messages(std::mem::take(&mut messages)));
                    }
                    received.push(Received::SentUpTo(sent));
                }
                _ => return Err(self.replication.other_protocol()),
            }
        }
        if !messages.is_empty() {
            received.push(Received::Messages(messages));
        }
        Ok((!received.is_empty()).then_some(received))
    }

    /// Reports our position, and asks the server for its own.
    async fn report(&mut self, asks: bool) -> Result<()> {
        let confirmed = self.confirmed.load(Ordering::Relaxed).to_be_bytes();
        let mut status = BytesMut::new();
        status.extend_from_slice(b"r");
        // Received, durable and applied; the time, which the server does not need.
        for position in [confirmed, confirmed, confirmed, [0; 8]] {
            status.extend_from_slice(&position);
        }
        status.extend_from_slice(&[u8::from(asks)]);
        self.send_data(status.freeze()).await
    }

    async fn send_data(&mut self, data: Bytes) -> Result<()> {
        let mut message = BytesMut::new();
        match frontend::CopyData::new(data) {
            Ok(data) => data.write(&mut message),
            Err(error) => return Err(self.replication.lost(&error)),
        }
        self.replication.send(&message).await
    }

    /// Reports our position for the last time, and waits until the server has read it.
    async fn finish(mut self) -> Result<()> {
        self.report(false).await?;
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        self.replication.send(&message).await?;
        let ended = async {
            loop {
                // After its own end of the stream, the server is ready for the next statement.
                if self.replication.frame().await?[0] == b'Z' {
                    return Ok(());
                }
            }
        };
        match timeout(Duration::from_secs(END_SECONDS), ended).await {
            Ok(ended) => ended,
            // It still sends a transaction; what was confirmed, it has read before.
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_list_has_its_quotes_doubled() {
        assert_eq!(quoted_in_list("shop"), "\"shop\"");
        assert_eq!(quoted_in_list("a\"b'c,d"), "\"a\"\"b''c,d\"");
    }
}
