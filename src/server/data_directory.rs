//! A data directory on this machine: whose it is, and in which state of recovery.

use std::collections::BTreeSet;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::error::{Error, ErrorKind, Result};
use crate::pg::{ClusterIdentity, ControlFile, TimelineId, WalName};

/// A running server rewrites `global/pg_control` in place; a reader may find it half-written
/// (PostgreSQL's own `get_controlfile` reads again as well).
const TORN_READ_ATTEMPTS: u32 = 10;
const TORN_READ_PAUSE: Duration = Duration::from_millis(5);

/// Where the archiver notes the files that it has to archive and those that it has archived.
const ARCHIVE_STATUS: &str = "pg_wal/archive_status";

/// Whether, and as what, the server of a data directory is in recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoverySignal {
    /// `standby.signal`: it follows a primary. PostgreSQL lets it win over `recovery.signal`.
    Standby,
    /// `recovery.signal`: it recovers to a target and then ends recovery.
    Recovery,
    /// Neither.
    None,
}

/// The data directory that a path of `pg_wal` belongs to: `pg_wal/X` belongs to `.`.
#[must_use]
pub fn data_directory_of(wal_path: &Path) -> PathBuf {
    match wal_path.parent().map(|pg_wal| (pg_wal, pg_wal.parent())) {
        Some((_, Some(parent))) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some((pg_wal, _)) if !pg_wal.as_os_str().is_empty() => PathBuf::from("."),
        _ => PathBuf::from(".."),
    }
}

/// Reads `global/pg_control`; `None` where there is none, so this is not a data directory.
///
/// # Errors
/// `Corrupt` where it is damaged, `Invalid` where a PostgreSQL version wrote it that walship does not know, `Internal`
/// where it cannot be read.
pub fn read_control_file(data_directory: &Path) -> Result<Option<ControlFile>> {
    Ok(control_file(data_directory)?.map(|(_, control_file)| control_file))
}

/// As [`read_control_file`], with the file's bytes, which match their CRC.
pub(super) fn control_file(data_directory: &Path) -> Result<Option<(Vec<u8>, ControlFile)>> {
    let path = data_directory.join("global/pg_control");
    let mut attempt = 1;
    loop {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        match ControlFile::parse(&bytes) {
            Err(error) if error.kind() == ErrorKind::Corrupt && attempt < TORN_READ_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(TORN_READ_PAUSE);
            }
            Err(error) => return Err(error.context(format!("read {}", path.display()))),
            Ok(control_file) => return Ok(Some((bytes, control_file))),
        }
    }
}

/// Whether PostgreSQL's archiver has ever finished a file of this cluster, as far as
/// `pg_wal/archive_status` still tells.
///
/// # Errors
/// `Internal` where that directory cannot be read.
pub fn has_archived(data_directory: &Path) -> Result<bool> {
    match archive_status(data_directory, "done").and_then(|mut entries| entries.next().transpose()) {
        Ok(done) => Ok(done.is_some()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(unreadable_status(data_directory, error)),
    }
}

/// The files of `pg_wal/archive_status` with this extension.
fn archive_status(
    data_directory: &Path,
    extension: &'static str,
) -> std::io::Result<impl Iterator<Item = std::io::Result<DirEntry>>> {
    let has_it = move |entry: &DirEntry| entry.path().extension().is_some_and(|found| found == extension);
    let entries = std::fs::read_dir(data_directory.join(ARCHIVE_STATUS))?;
    Ok(entries.filter(move |entry| entry.as_ref().map_or(true, has_it)))
}

fn unreadable_status(data_directory: &Path, error: std::io::Error) -> Error {
    let path = data_directory.join(ARCHIVE_STATUS);
    Error::io(format!("read the directory {}", path.display()), error)
}

/// What a server says of itself in `postmaster.pid` (`LOCK_FILE_LINE_*`, `miscadmin.h`, PostgreSQL 14 to 18). It may
/// have ended, or not be ready yet: then only the first lines are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postmaster {
    /// Its process; with a minus in single-user mode.
    pub pid: i32,
    /// When it was started, in seconds since 1970.
    pub started_at: Option<i64>,
    pub port: String,
    /// The directory of its first Unix socket.
    pub socket_directory: String,
}

/// Reads `postmaster.pid`; `None` where there is none.
#[must_use]
pub fn postmaster(data_directory: &Path) -> Option<Postmaster> {
    let text = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let line = |number: usize| lines.get(number).copied().unwrap_or_default();
    Some(Postmaster {
        pid: line(0).parse().ok()?,
        started_at: line(2).parse().ok(),
        port: line(3).to_owned(),
        socket_directory: line(4).to_owned(),
    })
}

/// The process id in `postmaster.pid`, as [`postmaster`] has it.
#[must_use]
pub fn postmaster_pid(data_directory: &Path) -> Option<i32> {
    postmaster(data_directory).map(|postmaster| postmaster.pid)
}

/// How many files wait for PostgreSQL's archiver, and since when the oldest does.
///
/// # Errors
/// `Internal` where `pg_wal/archive_status` cannot be read.
pub fn ready_files(data_directory: &Path) -> Result<(u64, Option<DateTime<Utc>>)> {
    let unreadable = |error| unreadable_status(data_directory, error);
    let (mut count, mut oldest) = (0, None::<DateTime<Utc>>);
    for entry in archive_status(data_directory, "ready").map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        // A file that was archived meanwhile does not wait.
        if let Ok(modified) = entry.metadata().and_then(|found| found.modified()) {
            count += 1;
            let modified = DateTime::from(modified);
            oldest = Some(oldest.map_or(modified, |oldest| oldest.min(modified)));
        }
    }
    Ok((count, oldest))
}

/// Whose data directory it is; `None` where it is not a data directory.
pub fn cluster_identity(data_directory: &Path) -> Result<Option<ClusterIdentity>> {
    Ok(
        read_control_file(data_directory)?.map(|control_file| ClusterIdentity {
            system_identifier: control_file.system_identifier,
            postgres_major: control_file.major,
            segment_size: control_file.segment_size,
        }),
    )
}

/// What the signal files of a data directory say.
///
/// # Errors
/// `Internal` where that cannot be found out: a disk that does not answer is not a missing file.
pub fn recovery_signal(data_directory: &Path) -> Result<RecoverySignal> {
    let exists = |name: &str| {
        let path = data_directory.join(name);
        path.try_exists()
            .map_err(|error| Error::io(format!("look for {}", path.display()), error))
    };
    Ok(if exists("standby.signal")? {
        RecoverySignal::Standby
    } else if exists("recovery.signal")? {
        RecoverySignal::Recovery
    } else {
        RecoverySignal::None
    })
}

/// Whether the server of a data directory has not opened yet, not even for reading: the postmaster notes in the eighth
/// line of `postmaster.pid` how far it is (`LOCK_FILE_LINE_PM_STATUS`, `pidfile.h`, 14 to 18).
///
/// # Errors
/// `Internal` where the file cannot be read.
pub fn is_starting(data_directory: &Path) -> Result<bool> {
    let path = data_directory.join("postmaster.pid");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text
            .lines()
            .nth(7)
            .is_none_or(|status| status.trim() == "starting")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
    }
}

/// The timelines whose histories a `pg_wal` directory has. They do not tell which timeline its server
/// follows: PostgreSQL keeps a copy of each history that it reads, even of those that it then does not follow.
///
/// # Errors
/// `Internal` where the directory cannot be read.
pub fn kept_histories(pg_wal: &Path) -> Result<BTreeSet<TimelineId>> {
    let failed = |error| Error::io(format!("read the directory {}", pg_wal.display()), error);
    let entries = match std::fs::read_dir(pg_wal) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut kept = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        if let Some(Ok(WalName::History(timeline))) = name.to_str().map(str::parse) {
            kept.insert(timeline);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_is_the_parent_of_pg_wal() {
        for (path, directory) in [
            ("pg_wal/000000010000000000000001", "."),
            (
                "/var/lib/postgresql/17/main/pg_wal/000000010000000000000001",
                "/var/lib/postgresql/17/main",
            ),
            ("./pg_wal/000000010000000000000001", "."),
            ("../x/pg_wal/000000010000000000000001", "../x"),
            ("000000010000000000000001", ".."),
        ] {
            assert_eq!(data_directory_of(Path::new(path)), Path::new(directory), "{path}");
        }
    }

    #[test]
    fn a_postmaster_says_what_it_knows_so_far() {
        let top = tempfile::tempdir().unwrap();
        assert_eq!(postmaster(top.path()), None);
        let whole = "42\n/data\n1764100000\n5433\n/run/postgresql\nlocalhost\n  5432001 7\nready   \n";
        for (text, started_at, port) in [(whole, Some(1_764_100_000), "5433"), ("-42\n/data\n", None, "")] {
            std::fs::write(top.path().join("postmaster.pid"), text).unwrap();
            let found = postmaster(top.path()).unwrap();
            assert_eq!(found.pid.abs(), 42);
            assert_eq!((found.started_at, found.port.as_str()), (started_at, port));
            assert_eq!(found.socket_directory.is_empty(), port.is_empty());
        }
    }

    #[test]
    fn what_waits_for_the_archiver_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let status = directory.path().join("pg_wal/archive_status");
        assert!(ready_files(directory.path()).is_err());
        std::fs::create_dir_all(&status).unwrap();
        assert_eq!(ready_files(directory.path()).unwrap(), (0, None));
        for name in ["000000010000000000000001.done", "a.ready", "b.ready"] {
            std::fs::write(status.join(name), "").unwrap();
        }
        let (count, oldest) = ready_files(directory.path()).unwrap();
        assert!(count == 2 && oldest.is_some());
    }

    #[test]
    fn a_directory_without_pg_control_is_not_a_data_directory() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read_control_file(directory.path()).unwrap().is_none());
    }

    #[test]
    fn a_standby_signal_wins_over_a_recovery_signal() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(recovery_signal(directory.path()).unwrap(), RecoverySignal::None);
        std::fs::write(directory.path().join("recovery.signal"), "").unwrap();
        assert_eq!(
            recovery_signal(directory.path()).unwrap(),
            RecoverySignal::Recovery
        );
        std::fs::write(directory.path().join("standby.signal"), "").unwrap();
        assert_eq!(
            recovery_signal(directory.path()).unwrap(),
            RecoverySignal::Standby
        );
    }
}
