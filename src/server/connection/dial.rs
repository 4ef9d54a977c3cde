//! From connection settings to a logged-in wire: which host, which address, which encryption.
//!
//! Hosts are tried in order. As in libpq the next one is tried after a host that cannot be reached
//! or is not ready, and not after one that refuses the login. Each address has `connect_timeout`.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Connection;
use super::login::{Refusal, log_in};
use super::stream::Stream;
use super::wire::Wire;
use crate::error::{Error, ErrorKind, Result};
use crate::server::conninfo::{ConnInfo, Endpoint, Host, TargetSession};
use crate::server::tls::SslMode;
use crate::server::tls_verifier::{explain, server_name};

/// `SSLRequest` (`NEGOTIATE_SSL_CODE` in `src/include/libpq/pqcomm.h`).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// Connects to the first host that answers and is what `target_session_attrs` asks for.
pub(super) async fn connect(info: &ConnInfo) -> Result<Connection> {
    let passes: &[TargetSession] = match &info.target {
        TargetSession::PreferStandby => &[TargetSession::Standby, TargetSession::Any],
        target => std::slice::from_ref(target),
    };
    let mut failures = Vec::new();
    for target in passes {
        failures.clear();
        for host in &info.hosts {
            match connect_to_host(info, host, *target).await {
                Ok(connection) => return Ok(connection),
                Err(error) if error.is_retryable() => failures.push(error),
                Err(error) => return Err(error),
            }
        }
    }
    Err(all_failed(failures))
}

fn all_failed(mut failures: Vec<Error>) -> Error {
    if failures.len() == 1
        && let Some(only) = failures.pop()
    {
        return only;
    }
    let texts: Vec<_> = failures.iter().map(ToString::to_string).collect();
    Error::unavailable(format!("no server could be used: {}", texts.join(" | ")))
}

async fn connect_to_host(info: &ConnInfo, host: &Host, target: TargetSession) -> Result<Connection> {
    let mut last = None;
    for address in addresses(info, host).await? {
        let attempt = timeout(info.connect_timeout, log_in_at(info, host, address)).await;
        let connected = attempt.unwrap_or_else(|_| Err(too_slow(host, info.connect_timeout)));
        match connected.and_then(|connection| fitting(connection, target)) {
            Err(error) if error.is_retryable() => last = Some(error),
            result => return result,
        }
    }
    Err(last.unwrap_or_else(|| Error::unavailable(format!("{host} has no address; check host"))))
}

/// The addresses of a host; a Unix socket has one, without a number.
async fn addresses(info: &ConnInfo, host: &Host) -> Result<Vec<Option<SocketAddr>>> {
    match &host.endpoint {
        Endpoint::Unix(_) => Ok(vec![None]),
        Endpoint::Address(address) => Ok(vec![Some(SocketAddr::new(*address, host.port))]),
        Endpoint::Name(name) => {
            let looking = tokio::net::lookup_host((name.as_str(), host.port));
            let found = timeout(info.connect_timeout, looking).await;
            let found = found.map_err(|_| too_slow(host, info.connect_timeout))?;
            let found = found.map_err(|error| {
                Error::unavailable(format!(
                    "look up the host {name}: {error}; check host and the resolver"
                ))
            })?;
            Ok(found.map(Some).collect())
        }
    }
}

fn too_slow(host: &Host, limit: Duration) -> Error {
    Error::unavailable(format!(
        "connect to {host}: no login within {} s; check host, port and firewalls, or raise connect_timeout",
        limit.as_secs()
    ))
}

/// Refuses a server that is not what `target_session_attrs` asks for.
fn fitting(connection: Connection, target: TargetSession) -> Result<Connection> {
    let standby = connection.parameter("in_hot_standby") == Some("on");
    let read_only = standby || connection.parameter("default_transaction_read_only") == Some("on");
    let (fits, wanted) = match target {
        TargetSession::Any => (true, "any"),
        TargetSession::ReadWrite => (!read_only, "read-write"),
        TargetSession::ReadOnly => (read_only, "read-only"),
        TargetSession::Primary => (!standby, "primary"),
        TargetSession::Standby | TargetSession::PreferStandby => (standby, "standby"),
    };
    if fits {
        return Ok(connection);
    }
    let is = if standby { "a standby" } else { "a primary" };
    Err(Error::unavailable(format!(
        "{} is {is}, and target_session_attrs asks for {wanted}; name another host or change target_session_attrs",
        connection.wire.peer()
    )))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    None,
    Tls,
}

/// Tries the encryptions that `sslmode` allows, in its order. The next one is tried only where the handshake failed or
/// `pg_hba.conf` refused, because it would not help with other failures.
async fn log_in_at(info: &ConnInfo, host: &Host, address: Option<SocketAddr>) -> Result<Connection> {
    let mut first = None;
    for encryption in encryptions(info.tls.mode, address.is_some()) {
        match log_in_with(info, host, address, *encryption).await {
            Ok(connection) => return Ok(connection),
            Err(refusal) if refusal.may_differ => first = first.or(Some(refusal.error)),
            Err(refusal) => return Err(first.unwrap_or(refusal.error)),
        }
    }
    Err(first
        .unwrap_or_else(|| Error::internal(format!("{host} was not tried; this is a defect in walship"))))
}

fn encryptions(mode: SslMode, tcp: bool) -> &'static [Encryption] {
    match mode {
        // As in libpq, a Unix socket is never encrypted, whatever the mode.
        _ if !tcp => &[Encryption::None],
        SslMode::Disable => &[Encryption::None],
        SslMode::Allow => &[Encryption::None, Encryption::Tls],
        SslMode::Prefer => &[Encryption::Tls, Encryption::None],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Encryption::Tls],
    }
}

async fn log_in_with(
    info: &ConnInfo,
    host: &Host,
    address: Option<SocketAddr>,
    encryption: Encryption,
) -> std::result::Result<Connection, Refusal> {
    let stream = open(info, host, address, encryption).await?;
    let mut wire = Wire::new(stream, host.to_string());
    let used_password = log_in(&mut wire, info, host).await?;
    wire.logged_in();
    Connection::start(wire, info, used_password).await
}

async fn open(
    info: &ConnInfo,
    host: &Host,
    address: Option<SocketAddr>,
    encryption: Encryption,
) -> std::result::Result<Stream, Refusal> {
    let unreachable = |error: std::io::Error| {
        Error::unavailable(format!(
            "connect to {host}: {error}; check that PostgreSQL runs there, or set host and port"
        ))
    };
    let Some(address) = address else {
        let path = host.socket_path().unwrap_or_default();
        return Ok(Stream::Unix(
            UnixStream::connect(path).await.map_err(unreachable)?,
        ));
    };
    let socket = Stream::open_tcp(address, &info.tcp).await.map_err(unreachable)?;
    match encryption {
        Encryption::None => Ok(Stream::Tcp(socket)),
        Encryption::Tls => encrypt(info, host, socket).await,
    }
}

/// Asks for TLS and shakes hands.
async fn encrypt(
    info: &ConnInfo,
    host: &Host,
    mut socket: TcpStream,
) -> std::result::Result<Stream, Refusal> {
    let prefer = info.tls.mode == SslMode::Prefer;
    let config = info.tls.client_config(host.name.as_deref())?;
    let broken = |error| {
        Error::unavailable(format!(
            "ask {host} for TLS: {error}; check host and port, and try again"
        ))
    };
    socket.write_all(&SSL_REQUEST).await.map_err(broken)?;
    // Only one byte: unencrypted bytes after it must not be taken for part of the handshake.
    match socket.read_u8().await.map_err(broken)? {
        b'S' => {}
        b'N' if prefer => return Ok(Stream::Tcp(socket)),
        b'N' => {
            return Err(Error::denied(format!(
                "{host} does not offer TLS, and sslmode requires it; set ssl = on on the server"
            ))
            .into());
        }
        _ => {
            return Err(Error::unavailable(format!(
                "{host} did not answer the request for TLS as PostgreSQL does; check host and port, and the server's log"
            ))
            .into());
        }
    }
    let name = server_name(host.name.as_deref().unwrap_or_default());
    match TlsConnector::from(config).connect(name, socket).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(error) => {
            if prefer {
                tracing::warn!(
                    "TLS with {host} failed and sslmode is prefer, so the connection is not encrypted: {error}"
                );
            }
            let by_tls = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let kind = if by_tls.is_some() {
                ErrorKind::Denied
            } else {
                ErrorKind::Unavailable
            };
            Err(Refusal {
                error: Error::new(kind, format!("TLS with {host}: {}", explain(&error))),
                may_differ: prefer,
            })
        }
    }
}
