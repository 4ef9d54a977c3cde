//! Starts the replica, and waits until it streams.
//!
//! It streams when it says so itself (`pg_stat_wal_receiver`, over its Unix socket as the user who runs it). If it lets
//! nobody in, it streams when its slot on the primary is in use.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::slot::look;
use crate::error::{Error, Result};
use crate::pg::SlotName;
use crate::progress::Progress;
use crate::server::data_directory::{Postmaster, postmaster};
use crate::server::{ConnInfo, Connection, SlotState};

/// Between two looks at the replica.
const PAUSE: Duration = Duration::from_millis(300);
/// Longer, because a look at the slot takes it for a moment, and that may be in the replica's way.
const SLOT_PAUSE: Duration = Duration::from_secs(3);
/// At most this many characters of the server's last message are shown.
const LAST_MESSAGE: usize = 400;

pub(super) struct Replica<'a> {
    pub(super) pgdata: &'a Path,
    pub(super) start_command: &'a str,
    pub(super) slot: Option<&'a SlotName>,
    pub(super) primary: &'a ConnInfo,
}

/// How far a started replica came.
#[derive(Debug, Clone, Serialize)]
pub struct Started {
    /// It streams from the primary.
    pub streaming: bool,
    /// What it has received, if it says so.
    pub received_lsn: Option<String>,
    /// From the start until then.
    pub seconds: f64,
}

impl fmt::Display for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds;
        match (self.streaming, &self.received_lsn) {
            (true, Some(lsn)) => write!(f, "It runs and streams, at {lsn} after {seconds:.1} s"),
            (true, None) => write!(f, "It runs and streams, after {seconds:.1} s"),
            (false, _) => write!(
                f,
                "It runs. It is not known whether it streams, because it lets nobody in over its socket and has no slot; \
                 ask it: SELECT status FROM pg_stat_wal_receiver"
            ),
        }
    }
}

/// Starts the server and waits until it streams.
///
/// # Errors
/// `Internal` where it does not start, with its last message; `Unavailable` where it runs and does not stream in
/// time.
pub(super) async fn run(replica: &Replica<'_>, limit: Duration, progress: &Progress) -> Result<Started> {
    let begun = Instant::now();
    launch(replica, limit).await?;
    progress.phase("wait until the replica streams");
    let mut slot_seen = begun;
    loop {
        let server = running(replica.pgdata).ok_or_else(|| ended(replica.pgdata, ""))?;
        let mut started = Started {
            streaming: true,
            received_lsn: None,
            seconds: begun.elapsed().as_secs_f64(),
        };
        match (server.ask().await, replica.slot) {
            (Receiver::Streaming(lsn), _) => {
                started.received_lsn = lsn;
                return Ok(started);
            }
            (Receiver::Hidden, None) => {
                started.streaming = false;
                return Ok(started);
            }
            (Receiver::Hidden | Receiver::Silent, Some(slot)) if slot_seen.elapsed() > SLOT_PAUSE => {
                if is_active(slot, replica.primary).await {
                    return Ok(started);
                }
                slot_seen = Instant::now();
            }
            _ => {}
        }
        if begun.elapsed() > limit {
            return Err(Error::unavailable(format!(
                "the replica in {} runs, but did not stream within {} s: it may still replay WAL from the archive. It \
                 goes on by itself; read its log, and ask it: SELECT status FROM pg_stat_wal_receiver",
                replica.pgdata.display(),
                limit.as_secs()
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn is_active(slot: &SlotName, primary: &ConnInfo) -> bool {
    matches!(look(slot, primary).await, Ok(SlotState::Active(_)))
}

/// Runs the start command. The command may give up waiting although the server is still starting.
async fn launch(replica: &Replica<'_>, limit: Duration) -> Result<()> {
    let output = Arc::new(tempfile::NamedTempFile::new().map_err(|error| Error::io("make a file", error))?);
    let clone = || {
        output
            .as_file()
            .try_clone()
            .map_err(|error| Error::io("share a file", error))
    };
    // Not a pipe: the server would keep it open.
    let mut child = Command::new("/bin/sh")
        .args(["-c", replica.start_command])
        .stdin(Stdio::null())
        .stdout(clone()?)
        .stderr(clone()?)
        .spawn()
        .map_err(|error| Error::io(format!("run {}", replica.start_command), error))?;
    let begun = Instant::now();
    let status = loop {
        let status = child
            .try_wait()
            .map_err(|error| Error::io(format!("wait for {}", replica.start_command), error))?;
        match status {
            Some(status) => break status,
            None if begun.elapsed() > limit => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::unavailable(format!(
                    "{} did not end within {} s; read the log of the server in {}",
                    replica.start_command,
                    limit.as_secs(),
                    replica.pgdata.display()
                )));
            }
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    if status.success() || running(replica.pgdata).is_some() {
        return Ok(());
    }
    let said = std::fs::read_to_string(output.path()).unwrap_or_default();
    Err(ended(replica.pgdata, &said))
}

/// The server does not run, although it should.
fn ended(pgdata: &Path, said: &str) -> Error {
    let log = pgdata.join("startup.log");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let fatal = text
        .lines()
        .rev()
        .find(|line| line.contains("FATAL") || line.contains("PANIC") || line.starts_with("postgres: "));
    let last = fatal
        .or_else(|| said.lines().rev().find(|line| !line.trim().is_empty()))
        .unwrap_or("it said nothing");
    let last: String = last.chars().take(LAST_MESSAGE).collect();
    Error::internal(format!(
        "the replica in {} does not run: {last}; its log is {} or where its configuration says. The directory is \
         complete: correct the cause and start the replica, or remove the directory and drop its slot",
        pgdata.display(),
        log.display()
    ))
}

/// What the replica says of its WAL receiver.
enum Receiver {
    Streaming(Option<String>),
    /// There is none, or it does not stream yet.
    Not,
    /// The server does not answer: not yet, or never, because hot_standby is off.
    Silent,
    /// The server lets nobody in, or the role may not see it.
    Hidden,
}

/// The server of a data directory, if it runs.
fn running(pgdata: &Path) -> Option<Server> {
    let server = postmaster(pgdata)?;
    rustix::process::test_kill_process(rustix::process::Pid::from_raw(server.pid)?).ok()?;
    Some(Server(server))
}

struct Server(Postmaster);

impl Server {
    async fn ask(&self) -> Receiver {
        match self.receiver().await {
            // A role that may not see it gets a row with nothing but the process.
            Ok(Some((None, _))) => Receiver::Hidden,
            Ok(Some((Some(status), lsn))) if status == "streaming" => Receiver::Streaming(lsn),
            Ok(_) => Receiver::Not,
            Err(error) if error.is_retryable() => Receiver::Silent,
            Err(_) => Receiver::Hidden,
        }
    }

    /// Status and position of the WAL receiver, if there is one.
    async fn receiver(&self) -> Result<Option<(Option<String>, Option<String>)>> {
        let quoted = self.0.socket_directory.replace('\\', r"\\").replace('\'', r"\'");
        let conninfo = format!(
            "host='{quoted}' port={} dbname=postgres connect_timeout=2",
            self.0.port
        );
        // This is the replica's own socket. PGHOST and the rest are about the primary.
        let info = ConnInfo::resolve_database(Some(&conninfo), |_| None)?;
        let mut connection = Connection::connect(&info).await?;
        let rows = connection
            .sql(
                "ask for the WAL receiver",
                "SELECT status, latest_end_lsn FROM pg_stat_wal_receiver",
            )
            .await?;
        connection.close().await;
        let row = rows.into_iter().next();
        Ok(row.map(|row| {
            let mut values = row.into_iter();
            (values.next().flatten(), values.next().flatten())
        }))
    }
}
