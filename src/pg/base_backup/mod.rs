//! `BASE_BACKUP` as a stream of events, in the dialects of PostgreSQL 14 and of 15 to 18.

use bytes::Bytes;

use super::{Connection, Lsn, TimelineId};
use crate::error::{Error, Result};

/// What a base backup asks of the server.
#[derive(Debug, Clone)]
pub struct BaseBackupOptions {
    /// The label in `backup_label` and the backup history file: at most 1024 bytes, one line.
    pub label: String,
    /// Whether the checkpoint at the start runs at full speed rather than spread over minutes.
    pub fast_checkpoint: bool,
    /// The most the server sends, in KiB a second, from 32 to 1048576. Default: no limit.
    pub max_rate_kib: Option<u32>,
    /// Whether the server writes a backup manifest, with CRC-32C for each file.
    pub manifest: bool,
}

impl BaseBackupOptions {
    /// A backup with this label, a spread checkpoint, no limit and a manifest.
    #[must_use]
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            fast_checkpoint: false,
            max_rate_kib: None,
            manifest: true,
        }
    }
}

/// One tar archive of the backup: a tablespace, or the data directory itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceHeader {
    /// The tablespace's OID; none for the data directory.
    pub oid: Option<u32>,
    /// Where the tablespace is on the server; none for the data directory.
    pub location: Option<String>,
    /// The server's estimate of its size, in KiB.
    pub size_kib: Option<u64>,
}

/// What comes out of a base backup, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The archive of [`BaseBackupStream::tablespaces`] at this index begins.
    ArchiveStart(usize),
    /// The next bytes of the archive that began last. PostgreSQL 14 leaves out the two zero blocks
    /// that end a tar archive; 15 and later send them.
    Data(Bytes),
    /// All archives are complete; the manifest begins.
    ManifestStart,
    /// The next bytes of the manifest.
    Manifest(Bytes),
    /// Bytes of all archives done so far, as PostgreSQL 15 and later count them; 14 sends none.
    Progress(u64),
    /// The server confirmed that the backup is complete. Nothing follows.
    End {
        /// The position up to which WAL is needed.
        stop_lsn: Lsn,
        /// The timeline of that position.
        stop_timeline: TimelineId,
    },
}

/// A base backup in progress.
#[derive(Debug)]
pub struct BaseBackupStream {
    /// Where recovery from this backup starts.
    pub start_lsn: Lsn,
    /// The timeline of that position.
    pub start_timeline: TimelineId,
    /// The archives to come: every tablespace, and the data directory last.
    pub tablespaces: Vec<TablespaceHeader>,
    _connection: Connection,
}

impl BaseBackupStream {
    /// The next event; after `End` there is none, and asking again is an error.
    ///
    /// # Errors
    /// What the server reports, `Corrupt` for page checksum failures among it; `Unavailable` when the
    /// connection breaks or nothing arrives within the idle timeout.
    pub async fn next(&mut self) -> Result<Event> {
        Err(Error::internal("not there yet"))
    }
}
