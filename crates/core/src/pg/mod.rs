//! PostgreSQL's own notions: positions, names, pages, records, manifests, settings.

mod backup_label;
mod cluster_identity;
pub mod configuration_files;
mod control_file;
pub mod fields;
pub mod guc_file;
pub mod hba;
mod lsn;
mod major;
mod manifest;
mod page_check;
mod page_header;
mod relative_path;
mod slot_name;
pub mod sql;
mod timeline_history;
mod timestamp;
mod transaction_id;
mod wal_name;
mod wal_piece;
mod wal_records;
mod wal_time;

pub use backup_label::{BackupHistory, BackupLabel, LabelSource};
pub use cluster_identity::ClusterIdentity;
pub use control_file::{ClusterState, ControlFile};
pub use lsn::{Lsn, SegmentNumber, SegmentSize, TimelineId};
pub use major::Major;
pub use manifest::{
    ChecksumAlgorithm, FileChecksum, FileHash, Manifest, ManifestFile, ManifestWalRange, ManifestWriter,
    NewFile,
};
pub use page_check::{PageCheck, Pages};
pub use page_header::LongPageHeader;
pub use relative_path::RelativePath;
pub use slot_name::SlotName;
pub use timeline_history::{Ancestor, TimelineHistory};
pub use timestamp::parse_timestamp;
pub use transaction_id::TransactionId;
pub use wal_name::{SegmentName, WalName};
pub(crate) use wal_piece::RECORD_REACH_BYTES;
#[cfg(test)]
pub(crate) use wal_piece::tests as wal_pieces;
pub use wal_piece::{CheckpointCopy, WAL_PIECE_BYTES, WalGeometry, WalPiece};
pub(crate) use wal_records::join as join_record;
#[cfg(any(test, feature = "fixtures"))]
pub use wal_records::writer as wal_writer;
pub use wal_records::{
    NewTablespace, RecordHead, RecordTail, WalChange, WalCheck, WalCheckpoint, WalEvent, WalEventKind,
    WalLevel, WalParameters, WalReader, WalTransaction, tablespace_record,
};
pub use wal_time::WalTime;
