//! Records that change what a recovery needs or touches: settings that replay depends on, tablespaces
//! and databases that are made and dropped, checkpoints, ends of backups and of timelines.
//!
//! Layouts: `xl_parameter_change`, `xl_end_of_recovery` (`src/include/access/xlog_internal.h`),
//! `CheckPoint` (`src/include/catalog/pg_control.h`), `xl_tblspc_…` (`src/include/commands/tablespace.h`)
//! and `xl_dbase_…` (`src/include/commands/dbcommands_xlog.h`), PostgreSQL 14 to 18. None of these
//! records has block references.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::record::{DATABASE, OPERATION, RecordHeader, TABLESPACE, XLOG, main_data_of};
use crate::pg::fields::{u32_at, u64_at};
use crate::pg::{Lsn, Major, TimelineId};

/// At most this much of a record is read, in bytes: enough for a path (`MAXPGPATH`), or a database in 500 tablespaces.
const LIMIT_BYTES: usize = 2048;

/// What a record changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum WalChange {
    /// The server was started with other settings than before (`XLOG_PARAMETER_CHANGE`).
    Parameters(WalParameters),
    /// The `wal_level` here, by a checkpoint (`XLOG_CHECKPOINT_REDO`; 17 and later).
    WalLevel {
        /// The level.
        wal_level: WalLevel,
    },
    /// A checkpoint, which may begin a timeline and so end another one.
    Checkpoint(WalCheckpoint),
    /// A recovery ended here, and a timeline began (`XLOG_END_OF_RECOVERY`).
    EndOfRecovery {
        /// The new timeline.
        timeline: TimelineId,
        /// The one that was left.
        previous: TimelineId,
    },
    /// A base backup ended (`XLOG_BACKUP_END`).
    BackupEnded {
        /// Where it began: the redo position of its checkpoint.
        start_lsn: Lsn,
    },
    /// `CREATE TABLESPACE`. Replay makes a link to the path, and writes there.
    TablespaceCreated {
        /// Its OID.
        oid: u32,
        /// The absolute path; empty where it lies within the data directory.
        path: PathBuf,
    },
    /// `DROP TABLESPACE`.
    TablespaceDropped {
        /// Its OID.
        oid: u32,
    },
    /// `CREATE DATABASE` by copying files, which replay does again.
    DatabaseCopied {
        /// The new database's OID.
        oid: u32,
        /// Where its files go.
        tablespace: u32,
        /// The database that was copied.
        source: u32,
        /// Where that one's files are.
        source_tablespace: u32,
    },
    /// `CREATE DATABASE` whose blocks are in the WAL (15 and later).
    DatabaseCreated {
        /// Its OID.
        oid: u32,
        /// Where its files go.
        tablespace: u32,
    },
    /// `DROP DATABASE`, or one that was moved away: replay removes its files at once, before the commit.
    DatabaseDropped {
        /// Its OID.
        oid: u32,
        /// Where its files were.
        tablespaces: Vec<u32>,
    },
    /// One of these changes, but its record was not read whole.
    Unread,
}

/// The lowest settings with which a server can replay what follows, and the kind of WAL that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalParameters {
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

/// `wal_level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalLevel {
    /// Enough only for recovery from a crash: a recovery from an archive cannot cross it.
    Minimal,
    /// Enough for archiving and standbys.
    Replica,
    /// For logical decoding too.
    Logical,
}

/// A checkpoint's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalCheckpoint {
    /// Where replay begins.
    pub redo: Lsn,
    /// Whether the server was stopped, or came up.
    pub shutdown: bool,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The timeline before it: another one where this checkpoint begins a timeline.
    pub previous: TimelineId,
    /// `wal_level`; `None` before PostgreSQL 17.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_level: Option<WalLevel>,
}

impl WalLevel {
    fn of(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Minimal),
            1 => Some(Self::Replica),
            2 => Some(Self::Logical),
            _ => None,
        }
    }
}

/// The form of such a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Checkpoint { shutdown: bool },
    BackupEnd,
    Parameters,
    EndOfRecovery,
    CheckpointRedo,
    TablespaceCreate,
    TablespaceDrop,
    DatabaseCopy,
    DatabaseCreate,
    DatabaseDrop,
}

impl Form {
    /// `rmgrlist.h`; `XLOG_…` in `pg_control.h`, `tablespace.h` and `dbcommands_xlog.h`: 14 numbers the
    /// records of databases otherwise.
    fn of(resource_manager: u8, info: u8, major: Major) -> Option<Self> {
        Some(match (resource_manager, info & OPERATION) {
            (XLOG, 0x00) => Self::Checkpoint { shutdown: true },
            (XLOG, 0x10) => Self::Checkpoint { shutdown: false },
            (XLOG, 0x50) => Self::BackupEnd,
            (XLOG, 0x60) => Self::Parameters,
            (XLOG, 0x90) => Self::EndOfRecovery,
            (XLOG, 0xE0) if major >= Major::V17 => Self::CheckpointRedo,
            (DATABASE, 0x00) => Self::DatabaseCopy,
            (DATABASE, 0x10) if major == Major::V14 => Self::DatabaseDrop,
            (DATABASE, 0x10) => Self::DatabaseCreate,
            (DATABASE, 0x20) => Self::DatabaseDrop,
            (TABLESPACE, 0x00) => Self::TablespaceCreate,
            (TABLESPACE, 0x10) => Self::TablespaceDrop,
            _ => return None,
        })
    }
}

/// Whether a record may be one of these, whatever the version.
pub(super) fn may_change(resource_manager: u8, info: u8) -> bool {
    Form::of(resource_manager, info, Major::V18).is_some()
}

/// The body of such a record, as far as it was read.
#[derive(Debug, Clone)]
pub(super) struct ChangeBody {
    form: Form,
    major: Major,
    bytes: Vec<u8>,
    total: u64,
}

impl ChangeBody {
    /// The body of a record; `None` if the record is not one of these.
    pub(super) fn of(record: &RecordHeader, major: Major) -> Option<Self> {
        Some(Self {
            form: Form::of(record.resource_manager, record.info, major)?,
            major,
            bytes: Vec::new(),
            total: record.body_bytes(),
        })
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        let room = LIMIT_BYTES.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes
            .extend_from_slice(bytes.get(..room).unwrap_or_default());
    }

    /// The first bytes of it that were taken.
    pub(super) fn beginning(&self) -> &[u8] {
        let wanted = super::body::BEGINNING_BYTES.min(self.bytes.len());
        self.bytes.get(..wanted).unwrap_or_default()
    }

    /// The change, as far as the bytes taken so far tell.
    pub(super) fn told(&self) -> WalChange {
        self.main_data()
            .and_then(|(data, length)| self.decode(data, length))
            .unwrap_or(WalChange::Unread)
    }

    /// The main data as far as it was taken, and its whole length.
    fn main_data(&self) -> Option<(&[u8], usize)> {
        let (begin, length) = main_data_of(&self.bytes)?;
        let is_last = (begin as u64).checked_add(length as u64) == Some(self.total);
        let data = self.bytes.get(begin..).unwrap_or_default();
        is_last.then_some((data, length))
    }

    fn decode(&self, data: &[u8], length: usize) -> Option<WalChange> {
        let number = |offset| u32_at(data, offset);
        let timeline = |offset| TimelineId::new(number(offset)?).ok();
        Some(match self.form {
            Form::Checkpoint { shutdown } => WalChange::Checkpoint(WalCheckpoint {
                redo: Lsn(u64_at(data, 0)?),
                shutdown,
                timeline: timeline(8)?,
                previous: timeline(12)?,
                wal_level: if self.major < Major::V17 {
                    None
                } else {
                    Some(WalLevel::of(number(20)?)?)
                },
            }),
            Form::BackupEnd => WalChange::BackupEnded {
                start_lsn: Lsn(u64_at(data, 0)?),
            },
            Form::Parameters => WalChange::Parameters(WalParameters {
                max_connections: number(0)?,
                max_worker_processes: number(4)?,
                max_wal_senders: number(8)?,
                max_prepared_transactions: number(12)?,
                max_locks_per_transaction: number(16)?,
                wal_level: WalLevel::of(number(20)?)?,
            }),
            Form::EndOfRecovery => WalChange::EndOfRecovery {
                timeline: timeline(8)?,
                previous: timeline(12)?,
            },
            Form::CheckpointRedo => WalChange::WalLevel {
                wal_level: WalLevel::of(number(0)?)?,
            },
            Form::TablespaceCreate => WalChange::TablespaceCreated {
                oid: number(0)?,
                path: path(data.get(4..length)?)?,
            },
            Form::TablespaceDrop => WalChange::TablespaceDropped { oid: number(0)? },
            Form::DatabaseCopy => WalChange::DatabaseCopied {
                oid: number(0)?,
                tablespace: number(4)?,
                source: number(8)?,
                source_tablespace: number(12)?,
            },
            Form::DatabaseCreate => WalChange::DatabaseCreated {
                oid: number(0)?,
                tablespace: number(4)?,
            },
            Form::DatabaseDrop => WalChange::DatabaseDropped {
                oid: number(0)?,
                tablespaces: oids(data.get(8..)?, number(4)?)?,
            },
        })
    }
}

/// A path that ends with a zero byte.
fn path(bytes: &[u8]) -> Option<PathBuf> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some(PathBuf::from(OsStr::from_bytes(bytes.get(..end)?)))
}

fn oids(bytes: &[u8], count: u32) -> Option<Vec<u32>> {
    if bytes.len() / 4 < count as usize {
        return None;
    }
    (0..count as usize)
        .map(|place| u32_at(bytes, 4 * place))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::wal_writer::main_data;

    fn told(manager: u8, info: u8, major: Major, body: &[u8], taken: usize) -> WalChange {
        let mut header = [0; RecordHeader::SIZE_BYTES];
        header[..4].copy_from_slice(&(RecordHeader::SIZE_BYTES as u32 + body.len() as u32).to_le_bytes());
        (header[16], header[17]) = (info, manager);
        let header = RecordHeader::parse(&header).unwrap();
        let mut reading = ChangeBody::of(&header, major).unwrap();
        body[..taken].chunks(7).for_each(|bytes| reading.take(bytes));
        reading.told()
    }

    #[test]
    fn a_path_is_known_only_with_its_end_and_a_list_only_with_all_of_it() {
        let body = main_data(&[&16_400_u32.to_le_bytes()[..], b"/srv/fast\0"].concat());
        let known = told(5, 0x00, Major::V17, &body, body.len());
        let path = PathBuf::from("/srv/fast");
        assert_eq!(known, WalChange::TablespaceCreated { oid: 16_400, path });
        let cut = told(5, 0x00, Major::V17, &body, body.len() - 1);
        assert_eq!(cut, WalChange::Unread);
        let list = [5_u32, 2, 1663, 16_400].map(u32::to_le_bytes).concat();
        let body = main_data(&list);
        let tablespaces = vec![1663, 16_400];
        let dropped = WalChange::DatabaseDropped { oid: 5, tablespaces };
        assert_eq!(told(4, 0x10, Major::V14, &body, body.len()), dropped);
        assert_eq!(told(4, 0x20, Major::V15, &body, body.len()), dropped);
        assert_eq!(
            told(4, 0x20, Major::V15, &body, body.len() - 4),
            WalChange::Unread
        );
        let absurd = main_data(&[5_u32, u32::MAX].map(u32::to_le_bytes).concat());
        assert_eq!(
            told(4, 0x20, Major::V18, &absurd, absurd.len()),
            WalChange::Unread
        );
    }

    #[test]
    fn a_level_that_no_version_has_is_not_guessed() {
        let settings = |level| main_data(&[90_u32, 8, 10, 0, 64, level, 0].map(u32::to_le_bytes).concat());
        let level = |level| {
            let body = settings(level);
            match told(0, 0x60, Major::V14, &body, body.len()) {
                WalChange::Parameters(parameters) => Some(parameters.wal_level),
                _ => None,
            }
        };
        let levels = [0, 1, 2, 3].map(level);
        let known = [WalLevel::Minimal, WalLevel::Replica, WalLevel::Logical];
        assert_eq!(levels[..3], known.map(Some));
        assert_eq!(levels[3], None);
    }
}
