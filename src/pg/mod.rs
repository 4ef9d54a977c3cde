//! PostgreSQL's own notions. Everything here is pure but the edges: the data directory and the
//! connection to a server.

mod backup_label;
mod control_file;
mod fields;
mod lsn;
mod major;
mod manifest;
mod page_header;
mod relative_path;
mod timeline_history;
mod transaction_id;
mod wal_name;
mod wal_records;
mod wal_time;

pub use backup_label::{BackupHistory, BackupLabel, BackupSource, IncrementalFrom};
pub use control_file::{ClusterState, ControlFile};
pub use lsn::{Lsn, SegmentNumber, SegmentSize, TimelineId};
pub use major::Major;
pub use manifest::{ChecksumAlgorithm, FileChecksum, Manifest, ManifestFile, WalRange};
pub use page_header::LongPageHeader;
pub use relative_path::RelativePath;
pub use timeline_history::{Ancestor, TimelineHistory};
pub use transaction_id::TransactionId;
pub use wal_name::{SegmentName, WalName};
pub use wal_records::{WalCheck, WalEvent, WalEventKind, WalReader, WalTransaction};
pub use wal_time::WalTime;
