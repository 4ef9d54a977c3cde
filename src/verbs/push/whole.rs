//! Whether a segment is whole. PostgreSQL gives its archiver whole segments only; people give what lies in `pg_wal`, the
//! segment that is still being written too. Stored under its name, that one would be in the way of the whole one for
//! good.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{Compressor, Created, Source, push_source, wal_name};
use crate::cluster::remembered;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::codec::Trailer;
use crate::pg::{Lsn, SegmentName, WalName};
use crate::server::data_directory::{data_directory_of, postmaster_pid};
use crate::store::Store;

/// What became of the last segment of a server that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedReport {
    /// The object.
    pub key: String,
    /// Where its WAL ends; `None` where the segment turned out to be whole, and is stored as such.
    pub end: Option<Lsn>,
    /// Whether it was created, or there already.
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
                "{} {stored}: its WAL ends at LSN {end}. No recovery reads it by itself: put it into pg_wal of what walship \
                 recover has made, before the server starts (docs/proof.md, \"The last segment of a server that is gone\")",
                self.key
            ),
        }
    }
}

impl Source {
    /// In a `pg_wal`, PostgreSQL announces each segment that is whole: `.ready` until the archiver is done with it,
    /// `.done` then. Elsewhere there is nothing to be announced, and the content tells: [`Source::refuse_incomplete`].
    ///
    /// # Errors
    /// `Invalid` for a segment that is not announced.
    pub(super) fn refuse_unannounced(&self) -> Result<()> {
        let (WalName::Segment(segment), Some(status)) = (self.name, self.archive_status()?) else {
            return Ok(());
        };
        // In this order: the one becomes the other.
        for extension in ["ready", "done"] {
            if exists(&status.join(format!("{segment}.{extension}")))? {
                return Ok(());
            }
        }
        let data_directory = data_directory_of(&self.path);
        let remembered = remembered::read(&data_directory)?;
        if let (Some(mark), None) = (&remembered.clone, &remembered.archive) {
            return Err(Error::conflict(format!(
                "{} is a copy, made from the archive {}, and its WAL belongs into no archive of its source; nothing was stored",
                data_directory.display(),
                mark.source
            )));
        }
        Err(self.unfinished(&format!(
            "PostgreSQL has not announced it in {} (no .ready, no .done)",
            status.display()
        )))
    }

    /// A whole segment's WAL goes on to its end. Where PostgreSQL says that it is whole, it is stored as it is, for the
    /// archiver would stand still for ever, and that is said.
    ///
    /// # Errors
    /// `Invalid` where it does not, and it lies in no `pg_wal`.
    pub(super) fn refuse_incomplete(&self, trailer: &Trailer) -> Result<()> {
        let WalName::Segment(segment) = self.name else {
            return Ok(());
        };
        let Some(end) = trailer.index.as_ref().and_then(|index| index.valid_until) else {
            return Ok(());
        };
        if self.archive_status()?.is_none() {
            return Err(self.unfinished(&format!("its WAL ends at LSN {end}, within the segment")));
        }
        tracing::warn!(
            "{segment} is archived as it is, and its WAL ends at LSN {end}: the records break off there, so every recovery \
             ends there. Take a base backup: walship basebackup"
        );
        Ok(())
    }

    fn archive_status(&self) -> Result<Option<std::path::PathBuf>> {
        let status = self.path.with_file_name("archive_status");
        Ok(exists(&status)?.then_some(status))
    }

    fn unfinished(&self, why: &str) -> Error {
        let path = self.path.display();
        Error::invalid(format!(
            "{path} is not known to be whole: {why}. Stored now it would be in the way of the whole one. Nothing was stored. \
             A server that runs finishes and archives it: SELECT pg_switch_wal(); of a server that is gone for good, walship \
             push --unfinished {path} stores what there is. A segment that is whole, and that nobody archives, can be copied out \
             of pg_wal and pushed from there"
        ))
    }
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists()
        .map_err(|error| Error::io(format!("look for {}", path.display()), error))
}

/// Stores a segment of a server that is gone for good, as what it is: beside the whole segments, under a name of its own
/// that no whole one ever has, or as a whole one if its WAL goes on to its end.
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
            "{} is no WAL segment; only a segment can be unfinished, so push it without --unfinished",
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
    let source = Arc::new(Source::open(WalName::Partial(segment), path)?);
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
    let source = Arc::new(Source::open(name, path)?);
    let (report, key) = push_source(&source, compressor, store, now).await?;
    Ok(UnfinishedReport { key, end, report })
}

/// A server that runs goes on writing.
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
                "a server runs in {} (process {} of postmaster.pid), and finishes its segments itself: SELECT \
                 pg_switch_wal(), and let its archiver store it. Nothing was stored",
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

    #[tokio::test]
    async fn what_is_stored_of_a_dead_server_is_not_told_where_the_archive_went_meanwhile() {
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
