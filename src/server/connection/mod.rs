//! A connection to a PostgreSQL server, for replication or for SQL: commands, and what the server answers.
//!
//! What holds: every wait for the server has a deadline; a connection on which a command was abandoned half-way refuses
//! the next one, because the rest of the answer is still to come.

mod commands;
mod dial;
mod login;
mod script;
mod server_error;
mod slots;
mod stream;
mod wal;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;

use self::login::{Refusal, refusal};
use self::server_error::ServerError;
use self::stream::Stream;
use self::wire::Wire;
use super::ConnInfo;
use super::conninfo::Session;
use crate::error::{Error, Result};
use crate::pg::Major;

pub use self::script::ScriptEvent;
pub use self::slots::SlotState;

/// How long the server may send nothing while it works on a command, unless the caller sets it.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_mins(5);
/// The oldest major version walship speaks with.
const OLDEST_MAJOR: Major = Major::V14;
/// The limit for the rows of one answer.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// One row as it arrived.
pub(super) type Row = Vec<Option<Bytes>>;

/// A connection that speaks the replication protocol, or SQL.
pub struct Connection {
    wire: Wire<Stream>,
    session: Session,
    parameters: BTreeMap<String, String>,
    server_major: Major,
    used_password: bool,
    idle_timeout: Duration,
    /// False while an answer is outstanding.
    ready: bool,
}

impl Connection {
    /// Connects to the first host that answers and logs in, for replication or to a database as `info` was resolved.
    /// Connecting and logging in together may take `connect_timeout` for each address.
    ///
    /// # Errors
    /// `Unavailable` when no host answers in time, `Denied` when it refuses, `Invalid` for a server
    /// older than PostgreSQL 14, `Corrupt` for one that is not PostgreSQL.
    pub async fn connect(info: &ConnInfo) -> Result<Self> {
        dial::connect(info).await
    }

    /// Takes over after the login, and waits until the server is ready for commands.
    async fn start(
        wire: Wire<Stream>,
        info: &ConnInfo,
        used_password: bool,
    ) -> std::result::Result<Self, Refusal> {
        let mut connection = Self {
            wire,
            session: info.session.clone(),
            parameters: BTreeMap::new(),
            // Until the server has said its own.
            server_major: OLDEST_MAJOR,
            used_password,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            ready: false,
        };
        loop {
            match connection.receive(info.connect_timeout).await? {
                Message::BackendKeyData(_) => {}
                Message::ReadyForQuery(_) => break,
                Message::ErrorResponse(body) => {
                    return Err(refusal(&ServerError::read(body.fields()), &connection.wire, info));
                }
                _ => {
                    return Err(connection
                        .wire
                        .garbled("a message out of place after the login")
                        .into());
                }
            }
        }
        // PgBouncer's console tells PgBouncer's version.
        if info.session != Session::PgbouncerConsole {
            connection.server_major = connection.check_version()?;
        }
        connection.ready = true;
        Ok(connection)
    }

    fn check_version(&self) -> Result<Major> {
        let version = self.parameter("server_version").unwrap_or_default();
        let major = Major::of_version(version).ok_or_else(|| self.wire.garbled("no server_version"))?;
        if major < OLDEST_MAJOR {
            return Err(Error::invalid(format!(
                "{} runs PostgreSQL {version}, and walship needs {OLDEST_MAJOR} or later; upgrade the server",
                self.wire.peer()
            )));
        }
        Ok(major)
    }

    /// The server's major version.
    #[must_use]
    pub fn server_major(&self) -> Major {
        self.server_major
    }

    /// Whether it can be used: after an error of a command it can, after a broken answer not.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// A setting the server reported of itself, such as `server_version` or `in_hot_standby`.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Whether the server asked for a password.
    #[must_use]
    pub fn used_password(&self) -> bool {
        self.used_password
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.wire.stream().is_tls()
    }

    /// Sets how long the server may send nothing while it works on a command. Default 5 minutes.
    pub fn set_idle_timeout(&mut self, idle_timeout: Duration) {
        self.idle_timeout = idle_timeout;
    }

    pub(super) fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// Runs one command and returns its rows as text; NULL is none.
    ///
    /// # Errors
    /// What the server reports; `Unavailable` when the connection breaks or nothing arrives in time;
    /// `Corrupt` for an answer that is not UTF-8 or larger than 64 MiB.
    pub async fn simple_query(&mut self, command: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.sql(command, command).await
    }

    /// As [`Connection::simple_query`], with a phrase that replaces the command in error messages, for commands that
    /// are long or hold what no message may show.
    ///
    /// # Errors
    /// As [`Connection::simple_query`].
    pub async fn sql(&mut self, what: &str, command: &str) -> Result<Vec<Vec<Option<String>>>> {
        let rows = self.query(what, command).await?;
        let text = |bytes: Bytes| {
            String::from_utf8(bytes.into()).map_err(|_| self.wire.garbled("an answer that is not UTF-8"))
        };
        rows.into_iter()
            .map(|row| row.into_iter().map(|value| value.map(text).transpose()).collect())
            .collect()
    }

    /// As [`Connection::sql`], with the name of its column for each value.
    ///
    /// # Errors
    /// As [`Connection::sql`].
    pub async fn table(&mut self, what: &str, command: &str) -> Result<Vec<BTreeMap<String, String>>> {
        let (names, rows) = self.answer(what, command).await?;
        let text = |value: Option<Bytes>| String::from_utf8_lossy(&value.unwrap_or_default()).into_owned();
        let by_name = |row: Row| names.iter().cloned().zip(row.into_iter().map(text)).collect();
        Ok(rows.into_iter().map(by_name).collect())
    }

    /// Says goodbye, so that the server does not log a broken connection.
    pub async fn close(mut self) {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        // The connection ends in either case.
        let _ = self.wire.send(&message, Duration::from_secs(1)).await;
    }

    /// Runs one command and returns its rows. `what` names it in messages.
    async fn query(&mut self, what: &str, command: &str) -> Result<Vec<Row>> {
        self.answer(what, command).await.map(|(_, rows)| rows)
    }

    /// The names of the columns, and the rows.
    async fn answer(&mut self, what: &str, command: &str) -> Result<(Vec<String>, Vec<Row>)> {
        self.send_command(command).await?;
        let (mut names, mut rows) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut failure = None;
        loop {
            let message = match self.receive(self.idle_timeout).await {
                Ok(message) => message,
                // After a FATAL error the server closes the connection: the error says why.
                Err(broken) => return Err(failure.unwrap_or(broken)),
            };
            match message {
                Message::CommandComplete(_) | Message::EmptyQueryResponse => {}
                Message::RowDescription(columns) => {
                    let columns = columns.fields().map(|column| Ok(column.name().to_owned()));
                    names = columns
                        .collect()
                        .map_err(|error| self.wire.garbled(&error.to_string()))?;
                }
                Message::DataRow(row) => {
                    bytes += row.buffer().len();
                    if bytes > ANSWER_BYTES {
                        return Err(self.wire.garbled("an answer of more than 64 MiB"));
                    }
                    rows.push(self.values(&row)?);
                }
                Message::ErrorResponse(body) => {
                    failure = Some(self.failure(&body, what));
                }
                Message::ReadyForQuery(_) => break,
                _ => return Err(self.wire.garbled("a message out of place in an answer")),
            }
        }
        self.ready = true;
        failure.map_or(Ok((names, rows)), Err)
    }

    /// Sends a command whose answer the caller reads to its end.
    pub(super) async fn send_command(&mut self, command: &str) -> Result<()> {
        if !self.ready {
            return Err(Error::unavailable(format!(
                "the connection to {} cannot be used after an error on it; connect again",
                self.wire.peer()
            )));
        }
        self.ready = false;
        let mut message = BytesMut::new();
        frontend::query(command, &mut message)
            .map_err(|_| Error::invalid("a command for the server contains a zero byte; remove it"))?;
        self.wire.send(&message, self.idle_timeout).await
    }

    /// The next message that is not a notice. `limit` is for each wait for bytes.
    pub(super) async fn receive(&mut self, limit: Duration) -> Result<Message> {
        loop {
            match self.wire.receive(limit).await? {
                Message::NoticeResponse(body) => ServerError::read(body.fields()).log(self.wire.peer()),
                Message::NotificationResponse(_) => {}
                Message::ParameterStatus(body) => {
                    if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                        self.parameters.insert(name.to_owned(), value.to_owned());
                    }
                }
                message => return Ok(message),
            }
        }
    }

    pub(super) fn values(&self, row: &DataRowBody) -> Result<Row> {
        let bytes = row.buffer_bytes();
        let values = row.ranges().map(|range| {
            // `ranges` has checked each range against the buffer.
            Ok(range.map(|range| bytes.slice(range)))
        });
        values
            .collect()
            .map_err(|error| self.wire.garbled(&error.to_string()))
    }

    /// The error that the server reported for a command.
    pub(super) fn failure(&self, body: &ErrorBody, command: &str) -> Error {
        ServerError::read(body.fields()).of_command(self.wire.peer(), &self.session, command)
    }

    /// The server sent something that its version does not send.
    pub(super) fn garbled(&self, what: &str) -> Error {
        self.wire.garbled(what)
    }
}

/// The body of an error message.
pub(super) type ErrorBody = postgres_protocol::message::backend::ErrorResponseBody;

/// Shows neither the settings nor buffered bytes: both may hold a secret.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.wire.peer())
            .field("server_major", &self.server_major)
            .finish_non_exhaustive()
    }
}
