//! What tells one cluster from another.

use super::{Major, SegmentSize};

/// What tells one cluster from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterIdentity {
    /// The system identifier `initdb` made.
    pub system_identifier: u64,
    /// PostgreSQL's major version.
    pub postgres_major: Major,
    /// WAL segment size.
    pub segment_size: SegmentSize,
}
