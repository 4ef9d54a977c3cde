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
use crate::error::{Error, Result};
use crate::judge::catalogue::{Backup, Catalogue};
use crate::judge::timeline_chain::{Reach, TimelineChain};
use crate::judge::window::LastEnds;
use crate::pg::{Lsn, SegmentName};
use crate::text::time_text;

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
    /// When: the time of the last commit, or that of a later backup's start; `None` where neither is known.
    time: Option<DateTime<Utc>>,
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
        let mut time = last.and_then(|last| last.commit).map(|commit| commit.time);
        // A backup that began later tells that nothing was committed until then.
        for other in &catalogue.backups {
            let same = chain.can_start_from(other) && other.stop_lsn >= backup.stop_lsn;
            if same && reach(catalogue, chain, other)?.end_lsn == reached.end_lsn {
                time = time.max(other.settled_at());
            }
        }
        Ok(Self { time, last })
    }

    /// Whether all that was committed until this moment is known to be archived.
    pub(super) fn holds(&self, time: DateTime<Utc>) -> bool {
        self.time.is_some_and(|last| time <= last)
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
            "the archive has nothing later than {} that this recovery reaches, and to stop there PostgreSQL would wait for \
             something later; it is told to stop after the last transaction that it reaches",
            time_text(time)
        )
    }

    pub(super) fn refuse(&self, time: DateTime<Utc>, backup: &Backup, last_segment: SegmentName) -> Error {
        let of = format!(
            "the WAL of timeline {} up to {last_segment}",
            last_segment.timeline()
        );
        let why = match (self.time.filter(|last| *last >= backup.finished_at), self.last) {
            (None, _) => format!(
                "target time {} lies after the end of backup {}, and no later commit is archived: what was committed until \
                 that time is not known from {of}; for the backup's own end give --target-immediate",
                time_text(time),
                backup.id
            ),
            (Some(last), found) => {
                let commit = found.and_then(|found| found.commit);
                let what = match commit.filter(|commit| commit.time == last) {
                    Some(commit) => format!("the last commit in the archived WAL (LSN {})", commit.lsn),
                    None => "the last backup had begun, and no later commit is archived".to_owned(),
                };
                format!(
                    "target time {} lies after {what}: the latest time that can be reached is {}, in {of}",
                    time_text(time),
                    time_text(last)
                )
            }
        };
        Error::invalid(format!(
            "{why}. If something happened only just now, wait until its segment is archived (SELECT pg_switch_wal(); of a \
             server that is gone, store its last segment, see docs/proof.md); for all that is archived, give no target"
        ))
    }
}
