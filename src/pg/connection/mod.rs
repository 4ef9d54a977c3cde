//! A replication connection to a PostgreSQL server.

use std::time::Duration;

use bytes::Bytes;

use super::{BaseBackupOptions, BaseBackupStream, ConnInfo, Lsn, TimelineId};
use crate::error::{Error, Result};

/// A connection that speaks the replication protocol.
#[derive(Debug)]
pub struct Connection {
    idle_timeout: Duration,
}

/// What `IDENTIFY_SYSTEM` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's identifier, which `initdb` drew.
    pub system_identifier: u64,
    /// The timeline the server writes, or replays, now.
    pub timeline: TimelineId,
    /// How far the WAL is flushed to disk; on a standby, received or replayed.
    pub flush_lsn: Lsn,
}

/// A timeline's history file as the server keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The file's name, such as `00000002.history`.
    pub file_name: String,
    /// The file's bytes.
    pub content: Bytes,
}

impl Connection {
    /// Connects to the first host that answers and logs in for physical replication.
    ///
    /// # Errors
    /// `Unavailable` when no host answers in time, `Denied` when it refuses, `Invalid` for a server
    /// older than PostgreSQL 14.
    pub async fn connect(_info: &ConnInfo) -> Result<Self> {
        Err(Error::internal("not there yet"))
    }

    /// The server's major version, such as 18.
    #[must_use]
    pub fn server_major(&self) -> u32 {
        0
    }

    /// A setting the server reported when the connection was made, such as `server_version`.
    #[must_use]
    pub fn parameter(&self, _name: &str) -> Option<&str> {
        None
    }

    /// Sets how long the server may send nothing while it works on a command. Default 5 minutes.
    pub fn set_idle_timeout(&mut self, idle_timeout: Duration) {
        self.idle_timeout = idle_timeout;
    }

    /// Runs one command and returns its rows as text.
    ///
    /// # Errors
    /// What the server reports; `Unavailable` when the connection breaks or nothing arrives in time.
    pub async fn simple_query(&mut self, _command: &str) -> Result<Vec<Vec<Option<String>>>> {
        Err(Error::internal("not there yet"))
    }

    /// Asks which cluster this is and where its WAL stands.
    ///
    /// # Errors
    /// As [`Connection::simple_query`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        Err(Error::internal("not there yet"))
    }

    /// The value of a server setting, as `SHOW` prints it.
    ///
    /// # Errors
    /// As [`Connection::simple_query`]; `Invalid` for a name that is none.
    pub async fn show(&mut self, _name: &str) -> Result<String> {
        Err(Error::internal("not there yet"))
    }

    /// A timeline's history file.
    ///
    /// # Errors
    /// `NotFound` when the server has none; timeline 1 never has.
    pub async fn timeline_history(&mut self, _timeline: TimelineId) -> Result<TimelineHistory> {
        Err(Error::internal("not there yet"))
    }

    /// Starts a base backup. Returns when the server's checkpoint is done and the first bytes are
    /// about to flow. The connection serves nothing else afterwards; dropping the stream ends the
    /// backup on the server.
    ///
    /// # Errors
    /// `Invalid` for a label that PostgreSQL would refuse; else what the server reports.
    pub async fn base_backup(self, _options: BaseBackupOptions) -> Result<BaseBackupStream> {
        Err(Error::internal("not there yet"))
    }
}
