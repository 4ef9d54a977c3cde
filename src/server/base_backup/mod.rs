//! A base backup as a stream of events: `BASE_BACKUP`, in the dialects of PostgreSQL 14 and of 15 to 18, or the data
//! directory as it is read on this machine ([`LocalBackup`]).
//!
//! What holds: `End` comes only after the server confirmed the whole backup, every archive and the
//! manifest arrived, and no checksum failed. The backup carries no WAL, and the server does not wait
//! for its archiver: the caller must take care of both.

mod command;
mod local;
mod stream;

use bytes::Bytes;

use crate::pg::{Lsn, TimelineId};

pub use self::local::{LocalBackup, OwnDirectory};
pub use self::stream::BaseBackupStream;

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
    /// All archives are complete. From the server the manifest begins here.
    ManifestStart,
    /// The next bytes of the manifest; where the data directory is read here, they come while it is.
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
