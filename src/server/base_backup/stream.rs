//! Reading a base backup: what the server sends, checked against the order it promised.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use postgres_protocol::message::backend::{DataRowBody, Message};

use super::command::{command, parse_duration};
use super::{BaseBackupOptions, Event, TablespaceHeader};
use crate::error::{Error, Result};
use crate::pg::{Lsn, TimelineId};
use crate::server::connection::Connection;

const COMMAND: &str = "BASE_BACKUP";

/// A base backup in progress. Dropping it ends the backup on the server.
#[derive(Debug)]
pub struct BaseBackupStream {
    /// Where recovery from this backup starts.
    pub start_lsn: Lsn,
    /// The timeline of that position.
    pub start_timeline: TimelineId,
    /// The archives to come: every tablespace, and the data directory last.
    pub tablespaces: Vec<TablespaceHeader>,
    connection: Connection,
    /// PostgreSQL 15 and later send one stream of typed messages, 14 one stream for each archive.
    typed: bool,
    with_manifest: bool,
    /// Which archives have begun; all of them are complete when what follows them begins.
    begun: Vec<bool>,
    state: State,
    stop: Option<(Lsn, TimelineId)>,
}

/// Where in the answer the stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between two copies of the server.
    Between,
    /// In a copy of typed messages, before the first archive.
    Opened,
    Archive,
    Manifest,
    /// After the last copy.
    Copied,
    /// The server failed, or the end was delivered.
    Over,
}

impl Connection {
    /// Starts a base backup. Returns when the server's checkpoint is done and the first bytes are about to flow. The
    /// server has the idle timeout plus twice its `checkpoint_timeout` for that, because a running checkpoint ends
    /// first. The connection serves nothing else afterwards.
    ///
    /// # Errors
    /// `Invalid` for a label or rate that PostgreSQL would refuse; else what the server reports.
    pub async fn base_backup(mut self, options: BaseBackupOptions) -> Result<BaseBackupStream> {
        let command = command(&options, self.server_major())?;
        let checkpoint = parse_duration(&self.show("checkpoint_timeout").await?);
        let patience = self.idle_timeout() + 2 * checkpoint.unwrap_or(Duration::from_hours(1));
        self.send_command(&command).await?;
        let start = self.backup_rows(patience).await?;
        let (start_lsn, start_timeline) = match start.as_slice() {
            [row] => position(&self, row)?,
            _ => return Err(self.garbled("not exactly one start position of a backup")),
        };
        let rows = self.backup_rows(self.idle_timeout()).await?;
        let tablespaces: Vec<_> = rows.iter().map(|row| header(&self, row)).collect::<Result<_>>()?;
        if tablespaces.iter().filter(|header| header.oid.is_none()).count() != 1 {
            return Err(self.garbled("a backup without exactly one data directory"));
        }
        Ok(BaseBackupStream {
            start_lsn,
            start_timeline,
            begun: vec![false; tablespaces.len()],
            tablespaces,
            typed: self.server_major().has_new_base_backup(),
            with_manifest: options.manifest,
            state: State::Between,
            stop: None,
            connection: self,
        })
    }

    /// One of the result sets at the start of a backup.
    async fn backup_rows(&mut self, patience: Duration) -> Result<Vec<DataRowBody>> {
        let mut rows = Vec::new();
        loop {
            match self.receive(patience).await? {
                Message::RowDescription(_) => {}
                Message::DataRow(row) if rows.len() < MAX_TABLESPACES => rows.push(row),
                Message::CommandComplete(_) => return Ok(rows),
                Message::ErrorResponse(body) => return Err(self.failure(&body, COMMAND)),
                _ => return Err(self.garbled("a message out of place at the start of a backup")),
            }
        }
    }
}

/// More than any cluster has; a bound for what a server can make this process keep.
const MAX_TABLESPACES: usize = 100_000;

/// A position and its timeline, as the server sends them at the start and at the end.
fn position(connection: &Connection, row: &DataRowBody) -> Result<(Lsn, TimelineId)> {
    let row = connection.values(row)?;
    Ok((
        connection.field(&row, 0, COMMAND)?,
        connection.field(&row, 1, COMMAND)?,
    ))
}

fn header(connection: &Connection, row: &DataRowBody) -> Result<TablespaceHeader> {
    let row = connection.values(row)?;
    Ok(TablespaceHeader {
        oid: connection.optional_field(&row, 0, COMMAND)?,
        location: connection.optional_field(&row, 1, COMMAND)?,
        size_kib: connection.optional_field(&row, 2, COMMAND)?,
    })
}

impl BaseBackupStream {
    /// The next event; after `End` there is none, and asking again is an error. A call that is cancelled half-way loses
    /// nothing.
    ///
    /// # Errors
    /// What the server reports, with `Corrupt` for page checksum failures; `Unavailable` when the
    /// connection breaks or nothing arrives within the idle timeout.
    pub async fn next(&mut self) -> Result<Event> {
        if self.state == State::Over {
            return Err(Error::internal(
                "the base backup is over and was asked for more; this is a defect in walship",
            ));
        }
        loop {
            let message = self.connection.receive(self.connection.idle_timeout()).await;
            match message.and_then(|message| self.take(message)) {
                Ok(None) => {}
                Ok(Some(event)) => return Ok(event),
                Err(error) => {
                    self.state = State::Over;
                    return Err(error);
                }
            }
        }
    }

    fn take(&mut self, message: Message) -> Result<Option<Event>> {
        match message {
            Message::CopyData(body) if self.typed => self.typed_message(body.into_bytes()),
            Message::CopyData(body) => self.data(body.into_bytes()).map(Some),
            Message::CopyOutResponse(_) => self.copy_begins(),
            Message::CopyDone => self.copy_ends().map(|()| None),
            Message::RowDescription(_) | Message::CommandComplete(_) if self.state == State::Copied => {
                Ok(None)
            }
            Message::DataRow(row) if self.state == State::Copied && self.stop.is_none() => {
                self.stop = Some(position(&self.connection, &row)?);
                Ok(None)
            }
            Message::ErrorResponse(body) => Err(self.connection.failure(&body, COMMAND)),
            Message::ReadyForQuery(_) => self.end().map(Some),
            _ => Err(self.out_of_place()),
        }
    }

    /// A copy begins: in PostgreSQL 14 the next archive or the manifest, in the order announced.
    fn copy_begins(&mut self) -> Result<Option<Event>> {
        if self.state != State::Between {
            return Err(self.out_of_place());
        }
        if self.typed {
            self.state = State::Opened;
            return Ok(None);
        }
        match self.begun.iter().position(|begun| !begun) {
            Some(next) => self.archive_begins(next).map(Some),
            None => self.manifest_begins().map(Some),
        }
    }

    fn copy_ends(&mut self) -> Result<()> {
        self.state = match self.state {
            State::Archive if !self.typed && (self.with_manifest || self.begun.contains(&false)) => {
                State::Between
            }
            State::Archive if !self.with_manifest && !self.begun.contains(&false) => State::Copied,
            State::Manifest => State::Copied,
            _ => return Err(self.out_of_place()),
        };
        Ok(())
    }

    /// A message within the one copy of PostgreSQL 15 and later (`bbsink_copystream` in
    /// `basebackup_copy.c`).
    fn typed_message(&mut self, mut message: Bytes) -> Result<Option<Event>> {
        if matches!(self.state, State::Between | State::Copied) {
            return Err(self.out_of_place());
        }
        let kind = message.try_get_u8().map_err(|_| self.out_of_place())?;
        match kind {
            b'd' => self.data(message).map(Some),
            b'n' => {
                let index = self.announced(&message)?;
                self.archive_begins(index).map(Some)
            }
            b'm' => self.manifest_begins().map(Some),
            b'p' => {
                let done = message.try_get_u64().map_err(|_| self.out_of_place())?;
                Ok(Some(Event::Progress(done)))
            }
            _ => Err(self.out_of_place()),
        }
    }

    /// Which of the tablespaces a new archive is: its name is `base.tar` or `<oid>.tar`.
    fn announced(&self, message: &[u8]) -> Result<usize> {
        let name = message.split(|byte| *byte == 0).next().unwrap_or_default();
        let stem = std::str::from_utf8(name)
            .ok()
            .and_then(|name| name.strip_suffix(".tar"));
        let oid = match stem {
            Some("base") => None,
            Some(number) => Some(number.parse().map_err(|_| self.out_of_place())?),
            None => return Err(self.out_of_place()),
        };
        let found = self.tablespaces.iter().position(|header| header.oid == oid);
        found.ok_or_else(|| self.connection.garbled("an archive that was not announced"))
    }

    fn archive_begins(&mut self, index: usize) -> Result<Event> {
        match self.begun.get_mut(index) {
            Some(begun) if !*begun && self.state != State::Manifest => *begun = true,
            _ => return Err(self.out_of_place()),
        }
        self.state = State::Archive;
        Ok(Event::ArchiveStart(index))
    }

    fn manifest_begins(&mut self) -> Result<Event> {
        if !self.with_manifest || self.begun.contains(&false) || self.state == State::Manifest {
            return Err(self.out_of_place());
        }
        self.state = State::Manifest;
        Ok(Event::ManifestStart)
    }

    fn data(&self, bytes: Bytes) -> Result<Event> {
        match self.state {
            State::Archive => Ok(Event::Data(bytes)),
            State::Manifest => Ok(Event::Manifest(bytes)),
            _ => Err(self.out_of_place()),
        }
    }

    fn end(&mut self) -> Result<Event> {
        let (stop_lsn, stop_timeline) = self.stop.ok_or_else(|| self.out_of_place())?;
        self.state = State::Over;
        Ok(Event::End {
            stop_lsn,
            stop_timeline,
        })
    }

    fn out_of_place(&self) -> Error {
        self.connection.garbled("a message out of place in a base backup")
    }
}
