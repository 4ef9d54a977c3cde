//! Whether a segment is whole. PostgreSQL gives its archiver only whole segments; people push whatever is in `pg_wal`,
//! even the segment that is still being written. Stored under its name, it would keep the whole one out for good.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{push_source, wal_name};
use crate::archive::Created;
use crate::cluster::compressor::Compressor;
use crate::cluster::wal_file::WalFile;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::{Lsn, SegmentName, WalName};
use crate::server::data_directory::{data_directory_of, postmaster_pid};
use crate::store::Store;

/// What became of the last segment of a server that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedReport {
    pub key: String,
    /// Where its WAL ends; `None` where the segment turned out to be whole, and is stored as such.
    pub end: Option<Lsn>,
    pub report: Created,
}

impl fmt::Display for UnfinishedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stored = match self.report {
            Created::Now => "is stored",
            Created::Before => "was stored already",
        };
        match self.end {
            None => writeln!(f, "{} {stored}: the segment is whole", self.key),
            Some(end) => writeln!(
                f,
                "{} {stored}: its WAL ends at LSN {end}. No recovery reads it by itself: put it into pg_wal of the directory \
                 that walship recover has made, before the server starts (docs/proof.md, \"The last segment of a server \
                 that is gone\")",
                self.key
            ),
        }
    }
}

/// Stores a segment of a server that is gone for good. If its WAL goes on to its end, it is stored as a whole one; if
/// not, beside the whole segments, under a name that no whole one ever has.
///
/// # Errors
/// `Invalid` for anything but a segment, for one of a server that runs, and for one without WAL; otherwise as
/// [`super::run`].
pub async fn run_unfinished(
    path: &Path,
    compressor: &Arc<Compressor>,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<UnfinishedReport> {
    let WalName::Segment(segment) = wal_name(path)? else {
        return Err(Error::invalid(format!(
            "{} is not a WAL segment, and only a segment can be unfinished; push it without --unfinished",
            path.display()
        )));
    };
    let pushing = store_unfinished(segment, path, compressor, store, now);
    pushing.await.context(|| format!("push {segment}"))
}

async fn store_unfinished(
    segment: SegmentName,
    path: &Path,
    compressor: &Arc<Compressor>,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<UnfinishedReport> {
    refuse_running(&data_directory_of(path))?;
    let source = Arc::new(WalFile::open(WalName::Partial(segment), path)?);
    let (_, trailer) = compressor.compress(&source).await?;
    let Some(index) = &trailer.index else {
        return Err(Error::invalid(format!(
            "the records in {} cannot be read, so nobody could recover with it; nothing was stored",
            path.display()
        )));
    };
    let end = index.valid_until;
    if end == Some(segment.start(source.segment_size()?)?) {
        return Err(Error::invalid(format!(
            "{} has no WAL yet; nothing was stored",
            path.display()
        )));
    }
    let name = match end {
        Some(_) => WalName::Partial(segment),
        None => WalName::Segment(segment),
    };
    let source = Arc::new(WalFile::open(name, path)?);
    let (report, key) = push_source(&source, compressor, store, now).await?;
    Ok(UnfinishedReport { key, end, report })
}

/// Refuses a server that still runs, because it goes on writing.
fn refuse_running(data_directory: &Path) -> Result<()> {
    let Some(pid) = postmaster_pid(data_directory).and_then(|pid| rustix::process::Pid::from_raw(pid.abs()))
    else {
        return Ok(());
    };
    match rustix::process::test_kill_process(pid) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "a server runs in {} (process {} of postmaster.pid) and finishes its segments itself. Nothing was stored. \
                 Run SELECT pg_switch_wal(), and its archiver stores this segment",
                data_directory.display(),
                pid.as_raw_nonzero()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::archive::fixture;
    use crate::store::{FaultKind, Faults, Operation};

    // Seen to fail: `verbs/push.rs`: `push_source` does not look at the archive again
    #[tokio::test]
    async fn an_unfinished_segment_is_not_called_stored_if_the_archive_went_away_meanwhile() {
        let top = tempfile::tempdir().unwrap();
        let store = fixture::format_1(top.path()).await;
        let name = "000000010000000000000005";
        let segment = fixture::unpack(top.path(), name);
        let faults = Faults::default();
        faults.add(Operation::Put, name, FaultKind::Delay(Duration::from_millis(200)));
        let slow = store.with_faults(faults.clone());
        let compressor = Compressor::new(1, 1 << 20, 1);
        let meanwhile = async {
            while faults.left() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            std::fs::remove_file(top.path().join("archive/walship.json")).unwrap();
        };
        let pushing = run_unfinished(&segment, &compressor, &slow, DateTime::UNIX_EPOCH);
        let (pushed, ()) = tokio::join!(pushing, meanwhile);
        let error = pushed.unwrap_err();
        assert!(
            error.to_string().contains("walship.json is missing now"),
            "{error}"
        );
    }
}
