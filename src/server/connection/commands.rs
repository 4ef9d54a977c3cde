//! The commands of the replication protocol that answer with rows ("Streaming Replication Protocol"
//! in PostgreSQL's manual, 14 to 18).

use std::str::FromStr;

use bytes::Bytes;

use super::{Connection, Row};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::{Lsn, TimelineId};

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
pub struct TimelineHistoryFile {
    /// The file's name, such as `00000002.history`.
    pub file_name: String,
    pub content: Bytes,
}

impl Connection {
    /// Asks which cluster this is and where its WAL stands.
    ///
    /// # Errors
    /// As [`Connection::simple_query`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let row = self.one_row("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity {
            system_identifier: self.field(&row, 0, "IDENTIFY_SYSTEM")?,
            timeline: self.field(&row, 1, "IDENTIFY_SYSTEM")?,
            flush_lsn: self.field(&row, 2, "IDENTIFY_SYSTEM")?,
        })
    }

    /// The value of a server setting, as `SHOW` prints it.
    ///
    /// # Errors
    /// As [`Connection::simple_query`]; `Invalid` for what cannot be a setting's name.
    pub async fn show(&mut self, name: &str) -> Result<String> {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.');
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(Error::invalid(format!(
                "{name:?} is not the name of a server setting"
            )));
        }
        let row = self.one_row(&format!("SHOW {name}")).await?;
        self.field(&row, 0, "SHOW")
    }

    /// A timeline's history file.
    ///
    /// # Errors
    /// `NotFound` when the server has none; timeline 1 never has.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<TimelineHistoryFile> {
        if timeline == TimelineId::FIRST {
            return Err(Error::new(
                ErrorKind::NotFound,
                "timeline 1 has no history file: it has no parent",
            ));
        }
        let command = format!("TIMELINE_HISTORY {timeline}");
        let row = self.one_row(&command).await?;
        // The content is passed on as it is, whatever the encoding of the names in it.
        let content = row.get(1).cloned().flatten();
        Ok(TimelineHistoryFile {
            file_name: self.field(&row, 0, &command)?,
            content: content.ok_or_else(|| self.garbled(&format!("no content for {command}")))?,
        })
    }

    async fn one_row(&mut self, command: &str) -> Result<Row> {
        let mut rows = self.query(command, command).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(self.garbled(&format!("not exactly one row for {command}"))),
        }
    }

    /// A value of a row that must be there and parse.
    pub(in crate::server) fn field<T: FromStr>(&self, row: &Row, column: usize, command: &str) -> Result<T> {
        let value = self.optional_field(row, column, command)?;
        value.ok_or_else(|| self.garbled(&format!("no column {} for {command}", column + 1)))
    }

    /// A value of a row that must parse; NULL is none.
    pub(in crate::server) fn optional_field<T: FromStr>(
        &self,
        row: &Row,
        column: usize,
        command: &str,
    ) -> Result<Option<T>> {
        let Some(Some(value)) = row.get(column) else {
            return Ok(None);
        };
        let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        let wrong = || self.garbled(&format!("an unreadable column {} for {command}", column + 1));
        parsed.map(Some).ok_or_else(wrong)
    }
}
