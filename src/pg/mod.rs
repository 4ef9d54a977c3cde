//! PostgreSQL's own notions. Everything here is pure but the edges: the data directory and the
//! connection to a server.

mod backup_label;
mod base_backup;
pub mod configuration_files;
mod connection;
mod conninfo;
mod control_file;
pub mod data_directory;
mod fields;
pub mod guc_file;
pub mod hba;
mod lsn;
mod major;
mod manifest;
mod page_check;
mod page_header;
mod relative_path;
pub mod server_settings;
mod slot_name;
pub mod sql;
mod timeline_history;
mod timestamp;
mod tls;
mod tls_verifier;
mod transaction_id;
mod wal_name;
mod wal_piece;
mod wal_records;
mod wal_time;
mod x509;

pub use backup_label::{BackupHistory, BackupLabel, BackupSource, IncrementalFrom};
pub use base_backup::{BaseBackupOptions, BaseBackupStream, Event, LocalBackup, TablespaceHeader};
pub use connection::{
    Connection, ScriptEvent, SlotState, SystemIdentity, TimelineHistoryFile, WAL_PIECE_BYTES,
};
pub use conninfo::ConnInfo;
pub(crate) use conninfo::{os_user, passfile, user_name};
pub use control_file::{ClusterState, ControlFile};
pub use lsn::{Lsn, SegmentNumber, SegmentSize, TimelineId};
pub use major::Major;
pub use manifest::{ChecksumAlgorithm, FileChecksum, FileHash, Manifest, ManifestFile, WalRange};
pub use page_check::{PageCheck, Pages};
pub use page_header::LongPageHeader;
pub use relative_path::RelativePath;
pub use slot_name::SlotName;
pub use timeline_history::{Ancestor, TimelineHistory};
pub use timestamp::parse_timestamp;
pub use transaction_id::TransactionId;
pub use wal_name::{SegmentName, WalName};
#[cfg(test)]
pub(crate) use wal_piece::tests as wal_pieces;
pub use wal_piece::{CheckpointCopy, RECORD_REACH_BYTES, WalGeometry, WalPiece};
#[cfg(test)]
pub(crate) use wal_records::tests::writer as wal_writer;
pub use wal_records::{
    NewTablespace, RecordHead, RecordTail, WalChange, WalCheck, WalCheckpoint, WalEvent, WalEventKind,
    WalLevel, WalParameters, WalReader, WalTransaction, join as join_record, tablespace_record,
};
pub use wal_time::WalTime;
