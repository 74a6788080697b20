//! Connects to a PostgreSQL server.
//!
//! TLS is as `sslmode` in the URL says, with one difference to libpq: wherever TLS is used, the server's
//! certificate is verified, against `sslrootcert` (a PEM file) or the authorities that the system trusts.
//!
//! | `sslmode` | TLS | verified |
//! |---|---|---|
//! | `disable` | never | |
//! | `allow`, `prefer` | if the server offers it | certificate and host name |
//! | `require`, `verify-full` | always | certificate and host name |
//! | `verify-ca` | always | certificate |
//!
//! Without `sslmode` it is `verify-full`; for a socket and this machine itself, `disable`. A server whose
//! certificate is in `sslrootcert` itself is accepted under any name.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::debug;

use crate::error::{Error, Result};
use crate::postgres::refusal::{connecting, no_tls, no_tls_offered};
use crate::postgres::{Purpose, ServerName as DatabaseName};

/// The time after which a server that does not answer counts as not reachable.
const CONNECT_SECONDS: u64 = 20;
/// The time after which a connection without traffic is tried, and how often until it counts as lost.
const KEEPALIVE_SECONDS: u64 = 30;
const KEEPALIVE_TRIES: u32 = 5;

/// A connection's stream of bytes.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// Where and how to connect. Its password is in no message.
#[derive(Clone)]
pub(crate) struct Server {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// The database and where it is, for messages.
    pub(crate) name: DatabaseName,
}

impl Server {
    /// Reads a URL or a list of `key=value`, as libpq does.
    ///
    /// # Errors
    /// Usage, when it cannot be read, without repeating it.
    pub(crate) fn parse(url: &str, variable: &str, purpose: Purpose) -> Result<Self> {
        let wrong = |why: String| {
            Error::usage(format!("the variable {variable} (`{}`) {why}", purpose.key))
                .hint(
                    "write postgresql://user:password@host:5432/database?sslmode=verify-full, with %40, \
                     %2F and %25 for @, / and % in the password",
                )
        };
        let url = url.trim();
        let (rest, options) = without_tls_options(url);
        let mut config: Config =
            rest.parse().map_err(|_| wrong("is not the URL of a PostgreSQL database".into()))?;
        let hosts = config.get_hosts();
        if hosts.is_empty() {
            return Err(wrong("names no host".into()));
        }
        // The first `@` ends the password: what follows a second one would be shown as the host.
        let is_cut = |text: &str| text.contains('@');
        let is_host_cut = hosts.iter().any(|host| matches!(host, Host::Tcp(name) if is_cut(name)));
        if is_host_cut || config.get_dbname().is_some_and(is_cut) {
            return Err(wrong("has an `@` or `/` in its password as it is".into()));
        }
        let addresses = config.get_hostaddrs();
        let is_near = hosts.iter().all(is_this_machine)
            && addresses.iter().all(std::net::IpAddr::is_loopback);
        let mode = match options.mode.as_deref() {
            None if is_near => "disable",
            None => "verify-full",
            Some(mode) => mode,
        };
        let (ssl_mode, checks_name) = match mode {
            "disable" => (SslMode::Disable, true),
            "allow" | "prefer" => (SslMode::Prefer, true),
            "require" | "verify-full" => (SslMode::Require, true),
            "verify-ca" => (SslMode::Require, false),
            other => return Err(wrong(format!("has the unknown sslmode `{other}`"))),
        };
        let names = config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let names = names.collect::<Vec<String>>().join(",");
        let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
        let name = format!("the database `{database}` at {names}");
        let name = DatabaseName { name, purpose };
        config.ssl_mode(ssl_mode);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(CONNECT_SECONDS));
        }
        let keepalive = Duration::from_secs(KEEPALIVE_SECONDS);
        config.keepalives_idle(keepalive);
        config.keepalives_interval(config.get_keepalives_interval().unwrap_or(keepalive));
        config.keepalives_retries(config.get_keepalives_retries().unwrap_or(KEEPALIVE_TRIES));
        let tls = match ssl_mode {
            SslMode::Disable => None,
            _ => Some(tls(options.root.as_deref(), checks_name)?),
        };
        Ok(Server { config, tls, name })
    }

    /// Connects. The connection ends when the client is dropped.
    ///
    /// # Errors
    /// Storage, when the server cannot be reached; usage, when it refuses the user or TLS fails.
    pub(crate) async fn connect(&self, application: &str) -> Result<Client> {
        // The library's own timeout is for TCP alone, not for TLS and the password.
        // It is for each address: names can have two.
        let addresses = 2 * self.config.get_hosts().len() as u32 + 1;
        let most = addresses * self.config.get_connect_timeout().copied().unwrap_or_default();
        let connected = tokio::time::timeout(most, self.try_connect(application)).await;
        connected.unwrap_or_else(|_| Err(self.unreachable("it does not answer")))
    }

    /// Opens a connection on which nothing was sent but what begins TLS; for protocols that the library
    /// does not have.
    ///
    /// # Errors
    /// As [`Server::connect`]; usage, when the URL names several hosts.
    pub(crate) async fn socket(&self) -> Result<Box<dyn Socket>> {
        let most = 2 * self.config.get_connect_timeout().copied().unwrap_or_default();
        let opened = tokio::time::timeout(most, self.open_socket()).await;
        opened.unwrap_or_else(|_| Err(self.unreachable("it does not answer")))
    }

    async fn open_socket(&self) -> Result<Box<dyn Socket>> {
        let config = &self.config;
        let [host] = config.get_hosts() else {
            return Err(Error::usage(format!("{} is at several hosts", self.name))
                .hint("name one of them in the URL"));
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let unreachable = |error: std::io::Error| self.unreachable(&error.to_string());
        let name = match host {
            Host::Unix(folder) => {
                let path = folder.join(format!(".s.PGSQL.{port}"));
                return Ok(Box::new(UnixStream::connect(path).await.map_err(unreachable)?));
            }
            Host::Tcp(name) => name,
        };
        let mut socket = match config.get_hostaddrs().first() {
            Some(address) => TcpStream::connect((*address, port)).await,
            None => TcpStream::connect((name.as_str(), port)).await,
        }
        .map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let seconds = Duration::from_secs(KEEPALIVE_SECONDS);
        let keepalive = TcpKeepalive::new()
            .with_time(seconds)
            .with_interval(seconds)
            .with_retries(KEEPALIVE_TRIES);
        SockRef::from(&socket).set_tcp_keepalive(&keepalive).map_err(unreachable)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(socket));
        };
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request).await.map_err(unreachable)?;
        if socket.read_u8().await.map_err(unreachable)? == b'S' {
            let made = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls.clone(), name);
            let connect = made.unwrap_or_else(|never| match never {});
            let secured = TlsConnect::connect(connect, socket).await;
            return Ok(Box::new(secured.map_err(|error| no_tls(&self.name, &error))?));
        }
        match config.get_ssl_mode() {
            SslMode::Require => Err(no_tls_offered(&self.name)),
            _ => Ok(Box::new(socket)),
        }
    }

    fn unreachable(&self, why: &str) -> Error {
        Error::storage(format!("cannot reach {}: {why}", self.name))
            .hint("start it or check host and port, then run the command again")
    }

    /// The user, the password and the database.
    ///
    /// # Errors
    /// Usage, when the URL names no user.
    pub(crate) fn login(&self) -> Result<(&str, Option<&[u8]>, &str)> {
        let user = self.config.get_user().ok_or_else(|| {
            Error::usage(format!("the URL of {} names no user", self.name))
                .hint("write postgresql://user@…")
        })?;
        Ok((user, self.config.get_password(), self.config.get_dbname().unwrap_or(user)))
    }

    async fn try_connect(&self, application: &str) -> Result<Client> {
        let mut config = self.config.clone();
        config.application_name(application);
        let failed = |error| connecting(&self.name, &error);
        let (client, driven) = match &self.tls {
            None => {
                let (client, connection) =
                    config.connect(tokio_postgres::NoTls).await.map_err(failed)?;
                (client, tokio::spawn(async move { connection.await.err() }))
            }
            Some(tls) => {
                let (client, connection) = config.connect(tls.clone()).await.map_err(failed)?;
                (client, tokio::spawn(async move { connection.await.err() }))
            }
        };
        // An error of the connection is also that of the statement that waits for it.
        drop(driven);
        Ok(client)
    }
}

/// The options of TLS in a URL.
#[derive(Debug, Default, PartialEq, Eq)]
struct TlsOptions {
    mode: Option<String>,
    root: Option<String>,
}

/// Takes the options of TLS out of a URL or a list of `key=value`: the library knows less of them.
fn without_tls_options(text: &str) -> (String, TlsOptions) {
    let mut options = TlsOptions::default();
    let mut take = |pair: &str, decode: fn(&str) -> String| {
        let found = match pair.split_once('=') {
            Some(("sslmode", value)) => (&mut options.mode, value),
            Some(("sslrootcert", value)) => (&mut options.root, value),
            _ => return false,
        };
        *found.0 = Some(decode(found.1));
        true
    };
    let rest = if text.contains("://") {
        let (base, query) = text.split_once('?').unwrap_or((text, ""));
        let decode = |value: &str| {
            let pairs = format!("v={}", value.replace('+', "%2B"));
            let decoded = url::form_urlencoded::parse(pairs.as_bytes()).next();
            decoded.map(|(_, value)| value.into_owned()).unwrap_or_default()
        };
        let others: Vec<&str> =
            query.split('&').filter(|pair| !pair.is_empty() && !take(pair, decode)).collect();
        if others.is_empty() { base.into() } else { format!("{base}?{}", others.join("&")) }
    } else {
        let plain = |value: &str| value.trim_matches('\'').to_string();
        let others: Vec<&str> = text.split_whitespace().filter(|pair| !take(pair, plain)).collect();
        // Values in quotes can have white space: without options nothing is taken apart.
        if options == TlsOptions::default() { text.into() } else { others.join(" ") }
    };
    (rest, options)
}

fn is_this_machine(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost"
                || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

fn tls(root: Option<&str>, checks_name: bool) -> Result<MakeRustlsConnect> {
    let mut roots = RootCertStore::empty();
    let mut named = Vec::new();
    match root.filter(|root| *root != "system") {
        Some(file) => {
            let unreadable = || {
                Error::usage(format!("cannot read the certificates of sslrootcert={file}"))
                    .hint("name a PEM file with the certificate of the authority, or of the server")
            };
            let read = CertificateDer::pem_file_iter(Path::new(file)).map_err(|_| unreadable())?;
            for certificate in read {
                let certificate = certificate.map_err(|_| unreadable())?;
                named.push(certificate.clone());
                roots.add(certificate).map_err(|_| unreadable())?;
            }
            if roots.is_empty() {
                return Err(unreadable());
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (added, ignored) = roots.add_parsable_certificates(found.certs);
            debug!("{added} authorities are trusted, {ignored} cannot be read");
        }
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let failed = |error: rustls::Error| Error::internal("cannot set up TLS").caused_by(error);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    if (checks_name && named.is_empty()) || roots.is_empty() {
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        return Ok(MakeRustlsConnect::new(config));
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| Error::internal("cannot set up TLS").caused_by(error))?;
    let config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier {
            inner,
            provider,
            named,
            checks_name,
        }))
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// Verifies a certificate by authorities, or by itself: a server can have signed its own. The handshake
/// shows that the server has the certificate's key.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
    /// The certificates of `sslrootcert`.
    named: Vec<CertificateDer<'static>>,
    /// Whether the name in a certificate must be that of the host: not for `sslmode=verify-ca`.
    checks_name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.named.iter().any(|named| named == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // The name is what is looked at last.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.checks_name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURPOSE: Purpose = Purpose { key: "url_env", unchanged: "", grants: "" };

    #[test]
    fn options_of_tls_are_taken_out_of_urls_and_lists() {
        let (rest, options) = without_tls_options(
            "postgresql://u:p%40@h:1/d?application_name=a&sslmode=require&sslrootcert=%2Fa%20b+c.pem",
        );
        assert_eq!(rest, "postgresql://u:p%40@h:1/d?application_name=a");
        assert_eq!(options.mode.as_deref(), Some("require"));
        assert_eq!(options.root.as_deref(), Some("/a b+c.pem"));
        let (rest, options) = without_tls_options("host=h user=u sslmode=verify-ca");
        assert_eq!((rest.as_str(), options.mode.as_deref()), ("host=h user=u", Some("verify-ca")));
        let (rest, _) = without_tls_options("postgresql://h/d?sslmode=disable");
        assert_eq!(rest, "postgresql://h/d");
    }

    #[test]
    fn a_url_that_cannot_be_read_is_not_repeated() {
        for url in [
            "secret",
            "postgresql://u:secret@h:port/d",
            "postgresql://u:secret@h/d?sslmode=x",
            "postgresql://u:pass@secret@h/d",
            "postgresql://u:12/secret@h/d",
        ] {
            match Server::parse(url, "URL", PURPOSE) {
                Ok(server) => assert_eq!(server.name.to_string(), "the database `d` at h"),
                Err(error) => assert!(!error.to_string().contains("secret"), "{error}"),
            }
        }
    }

    #[test]
    fn tls_is_verified_unless_the_server_is_this_machine() {
        let mode = |url: &str| {
            let server = Server::parse(url, "URL", PURPOSE).expect("a server");
            (server.config.get_ssl_mode(), server.name.to_string())
        };
        let name = "the database `d` at db.example".to_string();
        assert_eq!(mode("postgresql://u:p@db.example/d"), (SslMode::Require, name.clone()));
        assert_eq!(mode("postgresql://u:p@db.example/d?sslmode=disable"), (SslMode::Disable, name));
        for near in ["localhost", "127.0.0.1", "[::1]", "%2Fvar%2Frun"] {
            assert_eq!(mode(&format!("postgresql://u@{near}/d")).0, SslMode::Disable, "{near}");
        }
    }
}
