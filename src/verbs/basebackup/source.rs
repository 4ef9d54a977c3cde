//! Where a backup's bytes come from.

use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::format::backup::WalFrom;
use crate::server::{
    BaseBackupOptions, BaseBackupStream, ConnInfo, Connection, Event, LocalBackup, OwnDirectory,
    TablespaceHeader,
};

/// In which a data directory must have answered.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Why a data directory is read.
const PROVEN: &str = "it is proven to be the server's own";

/// How the server's files are read. The [`ConnInfo`] is for an SQL session with the server.
#[derive(Debug, Clone)]
pub enum Method {
    /// From the data directory where it is proven that this is the server's own, else over the replication protocol.
    Auto(Option<Box<ConnInfo>>),
    /// Over the replication protocol: the server reads them, and verifies its checksums.
    Stream,
    /// From the data directory on this machine.
    Local(Box<ConnInfo>),
}

/// The method that was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chosen {
    /// `stream` or `local`.
    pub method: &'static str,
    /// In one sentence.
    pub reason: String,
}

/// A backup that has begun.
#[derive(Debug)]
pub(super) enum Source {
    Stream(BaseBackupStream),
    Local(LocalBackup),
}

impl Source {
    /// Begins a backup of the cluster. The server was asked over `replication`, which a local backup does not need.
    ///
    /// # Errors
    /// As [`OwnDirectory::of`], [`LocalBackup::start`] and [`Connection::base_backup`].
    pub(super) async fn begin(
        method: &Method,
        replication: Connection,
        system_identifier: u64,
        options: BaseBackupOptions,
    ) -> Result<(Self, Chosen)> {
        let (own, why) = match method {
            Method::Stream => (None, "as asked for with --method or backup.method".to_owned()),
            Method::Local(info) => {
                let own = own_directory(info, system_identifier).await;
                (Some(own.map_err(or_stream)?), format!("as asked for; {PROVEN}"))
            }
            Method::Auto(None) => (None, "no SQL session with the server is known".to_owned()),
            Method::Auto(Some(info)) => match own_directory(info, system_identifier).await {
                Ok(own) => (Some(own), PROVEN.to_owned()),
                Err(error) => (None, error.to_string()),
            },
        };
        let Some(own) = own else {
            let reason = format!("the files come over the replication protocol: {why}");
            let source = replication.base_backup(options).await?;
            return Ok((Self::Stream(source), chosen("stream", reason)));
        };
        replication.close().await;
        let reason = format!("the files are read from {}: {why}", own.path().display());
        let source = LocalBackup::start(own, &options).await.map_err(or_stream)?;
        Ok((Self::Local(source), chosen("local", reason)))
    }

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

/// As [`OwnDirectory::of`], in a task of its own: a look into a file system whose server is gone never returns.
async fn own_directory(info: &ConnInfo, system_identifier: u64) -> Result<OwnDirectory> {
    let info = info.clone();
    let looking = tokio::spawn(async move { OwnDirectory::of(&info, system_identifier).await });
    match tokio::time::timeout(ANSWER_TIME, looking).await {
        Ok(looked) => looked.map_err(|error| Error::defect("look at the data directory", error))?,
        Err(_) => Err(Error::unavailable(format!(
            "the server, or the file system of its data directory, did not answer within {} s",
            ANSWER_TIME.as_secs()
        ))),
    }
}

fn chosen(method: &'static str, reason: String) -> Chosen {
    tracing::info!("{reason}");
    Chosen { method, reason }
}

/// What to do where the data directory cannot be used.
fn or_stream(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Invalid => Error::invalid(format!(
            "{error}; or take the backup over the replication protocol (--method stream)"
        )),
        _ => error,
    }
}
