//! Timelines that the archive knows and the standby that asks does not know yet.
//!
//! A standby that does not stream asks for its next segment, then for new timelines, then waits, and asks for the
//! segment again (`WaitForWALToBecomeAvailable`, `xlogrecovery.c`, `xlog.c` in 14). When a promotion falls into that
//! wait, and the old primary archives its own version of the segment of the fork, the standby would get that one, and
//! could never follow the new timeline. So the segment is absent for it: it looks for new timelines next. One that is
//! to stay on its timeline says so with `recovery_target_timeline` in `postgresql.auto.conf` (`ALTER SYSTEM`) or in the
//! server's configuration file.

use std::path::{Path, PathBuf};

use crate::commands::recover::value_of;
use crate::commands::stored_wal;
use crate::error::Result;
use crate::pg::data_directory::{RecoverySignal, cluster_identity, data_directory_of};
use crate::pg::{Lsn, SegmentName, TimelineId};
use crate::store::Store;

/// Where a later timeline of the archive left a segment's timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) by: TimelineId,
    pub(super) at: Lsn,
}

/// The newest timeline that left this segment's, where a standby asks that follows the latest one.
///
/// # Errors
/// As the store; `Corrupt` for a history that is damaged.
pub(super) async fn find(
    segment: SegmentName,
    signal: RecoverySignal,
    destination: &Path,
    store: &Store,
) -> Result<Option<Left>> {
    let directory = data_directory_of(destination);
    if signal != RecoverySignal::Standby || !follows_latest(&directory) {
        return Ok(None);
    }
    let Some(cluster) = cluster_identity(&directory)? else {
        return Ok(None);
    };
    let mut newest = None;
    let mut number = segment.timeline().get();
    // A server that is promoted takes the first number that is free, so the first one missing ends the search.
    while let Some(next) = number.checked_add(1) {
        number = next;
        let by = TimelineId::new(number)?;
        let Some(history) = stored_wal::read_history(store, by, cluster.system_identifier).await? else {
            break;
        };
        if let Some(at) = history.end_of(segment.timeline()) {
            newest = Some(Left { by, at });
        }
    }
    Ok(newest)
}

/// Whether neither `postgresql.auto.conf` nor the server's configuration file names another timeline than the
/// latest, which is the default. What that file includes is not read.
fn follows_latest(directory: &Path) -> bool {
    let files = [
        directory.join("postgresql.auto.conf"),
        config_file(directory).unwrap_or_else(|| directory.join("postgresql.conf")),
    ];
    let named = files.iter().find_map(|file| {
        let content = std::fs::read(file).ok()?;
        value_of(&content, "recovery_target_timeline")
    });
    named.is_none_or(|timeline| timeline.is_empty() || timeline == b"latest")
}

/// The configuration file that the server was started with, where one was named, as Debian does. The server
/// notes its command line in `postmaster.opts`, each argument in quotes (`CreateOptsFile`, `postmaster.c`).
fn config_file(directory: &Path) -> Option<PathBuf> {
    let options = std::fs::read_to_string(directory.join("postmaster.opts")).ok()?;
    let named = options
        .split('"')
        .find_map(|argument| argument.trim_start_matches("--").strip_prefix("config_file="))?;
    Some(PathBuf::from(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_follows_the_latest_timeline_unless_a_file_says_otherwise() {
        let top = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(top.path().join(file), text).unwrap();
        assert!(follows_latest(top.path()));
        write("postgresql.conf", "recovery_target_timeline = 1\n");
        assert!(!follows_latest(top.path()));
        write("postgresql.auto.conf", "recovery_target_timeline = 'latest'\n");
        assert!(follows_latest(top.path()));
        write("postgresql.auto.conf", "recovery_target_timeline = 'current'\n");
        assert!(!follows_latest(top.path()));

        // Debian keeps it elsewhere.
        write("postgresql.auto.conf", "");
        write("main.conf", "recovery_target_timeline = '1'\n");
        write("postgresql.conf", "");
        assert!(follows_latest(top.path()));
        let named = top.path().join("main.conf");
        let options = format!(
            "/usr/bin/postgres \"-D\" \"x\" \"-c\" \"config_file={}\"\n",
            named.display()
        );
        write("postmaster.opts", &options);
        assert!(!follows_latest(top.path()));
    }
}
