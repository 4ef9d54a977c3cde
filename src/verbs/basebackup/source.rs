//! Where a backup's bytes come from.

use crate::error::Result;
use crate::format::backup::WalFrom;
use crate::server::{BaseBackupStream, ConnInfo, Event, LocalBackup, TablespaceHeader};

/// How the server's files are read.
#[derive(Debug, Clone)]
pub enum Method {
    /// Over the replication protocol: the server reads them, and verifies its checksums.
    Stream,
    /// From the data directory on this machine. The [`ConnInfo`] is for an SQL session with the server.
    Local(Box<ConnInfo>),
}

/// A backup that has begun.
#[derive(Debug)]
pub(super) enum Source {
    Stream(BaseBackupStream),
    Local(LocalBackup),
}

impl Source {
    /// As [`BaseBackupStream::next`].
    pub(super) async fn next(&mut self) -> Result<Event> {
        match self {
            Self::Stream(stream) => stream.next().await,
            Self::Local(local) => local.next().await,
        }
    }

    /// Where recovery from it starts.
    pub(super) fn start(&self) -> WalFrom {
        let (timeline, lsn) = match self {
            Self::Stream(stream) => (stream.start_timeline, stream.start_lsn),
            Self::Local(local) => (local.start_timeline, local.start_lsn),
        };
        WalFrom { timeline, lsn }
    }

    /// The archives to come: every tablespace, and the data directory last.
    pub(super) fn tablespaces(&self) -> &[TablespaceHeader] {
        match self {
            Self::Stream(stream) => &stream.tablespaces,
            Self::Local(local) => &local.tablespaces,
        }
    }
}
