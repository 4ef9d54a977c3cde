//! A moment as a position in the WAL.
//!
//! PostgreSQL stops a recovery to a time before the first commit or rollback with a later time
//! (`recoveryStopsBefore`, `xlogrecovery.c`). It replays everything before that record, also what is later than
//! the moment and needs no commit: `DROP DATABASE` removes the files before it commits. And it fails if there is no
//! later record, so the time of the last commit cannot be its target. walship gives it the position of the last record
//! that belongs to the moment instead.

use chrono::{DateTime, Utc};

use super::end::reach;
use super::{FoundRecord, Target};
use crate::error::{Error, Result};
use crate::judge::catalogue::{Backup, Catalogue};
use crate::judge::timeline_chain::{Reach, TimelineChain};
use crate::judge::window::LastEnds;
use crate::pg::{Lsn, SegmentName};
use crate::text::time_text;

/// The target for PostgreSQL, for a moment within the WAL: the last record that belongs to it, or the end of the backup
/// if there is none.
pub(super) fn position(backup: &Backup, later: &FoundRecord, last: Option<Lsn>) -> (Target, Vec<String>) {
    let next = format!(
        "the next transaction, at LSN {}, ended at {}",
        later.lsn,
        time_text(later.time)
    );
    if let Some(last) = last.filter(|last| *last >= backup.stop_lsn) {
        let note =
            format!("that moment is LSN {last}, the last record with a time that is not later; {next}");
        (Target::Lsn(last), vec![note])
    } else {
        let note = format!("that moment is the end of the backup; {next}");
        (Target::Immediate, vec![note])
    }
}

/// The last moment that can be reached.
pub(super) struct LastMoment<'a> {
    /// The time of the last commit, or of a later backup's start; `None` if neither is known.
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
        // A later backup whose WAL has the same end shows that nothing was committed between the last commit and its
        // start.
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

    /// The target for PostgreSQL.
    pub(super) fn target(&self, backup: &Backup) -> Target {
        match self.last {
            Some(last) if last.last.lsn >= backup.stop_lsn => Target::Lsn(last.last.lsn),
            _ => Target::Immediate,
        }
    }

    pub(super) fn note(time: DateTime<Utc>) -> String {
        format!(
            "this recovery reaches nothing later than {}, and PostgreSQL stops at a time only when something later \
             follows; so the target is the last transaction that it reaches",
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
                "target time {} lies after the end of backup {}, and no later commit is archived: {of} does not \
                 show what was committed until that time; for the backup's own end, give --target-immediate",
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
            "{why}. If something happened only just now, wait until its segment is archived (SELECT pg_switch_wal()); if the \
             server is gone, store its last segment (see docs/proof.md); for everything that is archived, give no target"
        ))
    }
}
