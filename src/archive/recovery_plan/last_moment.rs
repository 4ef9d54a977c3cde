//! A moment as a position in the WAL.
//!
//! PostgreSQL stops a recovery to a time before the first commit or rollback with a later time
//! (`recoveryStopsBefore`, `xlogrecovery.c`). Until then it replays all that lies before that record, though some
//! of it is later than the moment and needs no commit: the files of a database that is dropped go before
//! `DROP DATABASE` commits. And it fails where there is no later record: the time of the last commit itself is no
//! target for it. walship gives it the position of the last record that belongs to the moment instead.

use chrono::{DateTime, Utc};

use super::end::reach;
use super::{FoundRecord, Target};
use crate::archive::catalogue::{Backup, Catalogue};
use crate::archive::time_text;
use crate::archive::timeline_chain::{Reach, TimelineChain};
use crate::archive::window::LastEnds;
use crate::error::{Error, Result};
use crate::pg::{Lsn, SegmentName};

/// What PostgreSQL is told for a moment that lies within the WAL: to stop after the last record that belongs to it, or
/// at the end of the backup where there is none.
pub(super) fn position(backup: &Backup, later: &FoundRecord, last: Option<Lsn>) -> (Target, Vec<String>) {
    let next = format!(
        "the next transaction, at LSN {}, ended at {}",
        later.lsn,
        time_text(later.time)
    );
    if let Some(last) = last.filter(|last| *last >= backup.stop_lsn) {
        let note = format!(
            "that moment is LSN {last}, the last record in the WAL that tells of a time and is not later; {next}"
        );
        (Target::Lsn(last), vec![note])
    } else {
        let note = format!("that moment is the end of the backup; {next}");
        (Target::Immediate, vec![note])
    }
}

/// The last moment that can be reached.
pub(super) struct LastMoment<'a> {
    /// When: the time of the last commit, or the end of a backup after it.
    pub(super) time: DateTime<Utc>,
    last: Option<&'a LastEnds>,
}

impl<'a> LastMoment<'a> {
    pub(super) fn new(
        catalogue: &Catalogue,
        chain: &TimelineChain<'_>,
        backup: &Backup,
        reached: &Reach,
        last: Option<&'a LastEnds>,
    ) -> Result<Self> {
        let mut time = backup.finished_at;
        // A backup that ended later tells that nothing was committed until then.
        for other in &catalogue.backups {
            let same = chain.can_start_from(other) && other.stop_lsn >= backup.stop_lsn;
            if same && reach(catalogue, chain, other)?.end_lsn == reached.end_lsn {
                time = time.max(other.finished_at);
            }
        }
        let commit = last.and_then(|last| last.commit);
        Ok(Self {
            time: commit.map_or(time, |commit| time.max(commit.time)),
            last,
        })
    }

    /// What PostgreSQL is told.
    pub(super) fn target(&self, backup: &Backup) -> Target {
        match self.last {
            Some(last) if last.last.lsn >= backup.stop_lsn => Target::Lsn(last.last.lsn),
            _ => Target::Immediate,
        }
    }

    pub(super) fn note(time: DateTime<Utc>) -> String {
        format!(
            "nothing later than {} is archived, and to stop there PostgreSQL would wait for something later; \
             it is told to stop after the last transaction in the archive",
            time_text(time)
        )
    }

    pub(super) fn refuse(&self, time: DateTime<Utc>, last_segment: SegmentName) -> Error {
        let what = match self.last.and_then(|last| last.commit) {
            Some(commit) if commit.time == self.time => {
                format!("the last commit in the archived WAL (LSN {})", commit.lsn)
            }
            _ => "the end of the last backup, after which no commit is archived".to_owned(),
        };
        Error::invalid(format!(
            "target time {} lies after {what}: the latest time that can be reached is {}, in the WAL of timeline {} up to \
             {last_segment}. If something happened only just now, wait until its segment is archived (SELECT \
             pg_switch_wal()); for all that is archived, give no target",
            time_text(time),
            time_text(self.time),
            last_segment.timeline(),
        ))
    }
}
