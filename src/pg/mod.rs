//! PostgreSQL's own notions. Everything here is pure but the edges: the data directory and the
//! connection to a server.

mod base_backup;
mod connection;
mod conninfo;
mod lsn;
mod tls;
mod tls_verifier;
mod wal_name;
mod x509;

pub use base_backup::{BaseBackupOptions, BaseBackupStream, Event, TablespaceHeader};
pub use connection::{Connection, SystemIdentity, TimelineHistory};
pub use conninfo::ConnInfo;
pub use lsn::{Lsn, SegmentNumber, SegmentSize, TimelineId};
pub use wal_name::{SegmentName, WalName};
