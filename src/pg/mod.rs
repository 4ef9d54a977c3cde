//! PostgreSQL's own notions. Everything here is pure but the edges: the data directory and the
//! connection to a server.

mod lsn;
mod wal_name;

pub use lsn::{Lsn, SegmentNumber, SegmentSize, TimelineId};
pub use wal_name::{SegmentName, WalName};
