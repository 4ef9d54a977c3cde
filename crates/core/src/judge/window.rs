//! The recoverable window: the periods of time to which a cluster can be recovered.
//!
//! Along each timeline, a recovery can start from each backup whose WAL leads on without a break. Backups whose WAL
//! leads to the same end make one stretch. Its earliest moment is the end of the first backup; its latest is the last
//! commit in its WAL, or the start of a later backup. A gap in the WAL ends a stretch, and so does a stand-alone
//! backup, so a timeline may have several.
//!
//! *The latest moment* is the largest time of a commit. PostgreSQL stops a recovery to a time before
//! the first end of a transaction with a later one (`recoveryStopsBefore`, `xlogrecovery.c`), and
//! fails if there is none; for that last moment walship gives it the position of the last record.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::catalogue::{Backup, Catalogue};
use super::recovery_plan;
use crate::error::Result;
use crate::format::barriers::Barrier;
use crate::format::keys::BackupId;
use crate::format::segment_index::{Crossing, EndOfTransaction, Ends, SegmentIndex};
use crate::format::wal_inventory::SegmentRange;
use crate::pg::{Lsn, Major, SegmentName, SegmentNumber, TimelineId};

/// The search for the latest commit goes backwards from the end, until this many segments with commits were found: the
/// first commits of a segment may be older than the last ones of the segment before.
const SEGMENTS_WITH_COMMITS: usize = 2;

/// WAL without a break, and the backups from which it can be replayed to its end.
#[derive(Debug, Clone)]
pub struct Stretch<'a> {
    /// The timeline that is followed.
    pub timeline: TimelineId,
    /// The backups, at least one, in the order of the WAL.
    backups: Vec<&'a Backup>,
    /// The segment of the first backup's start, on the timeline of the chain from which it is read.
    pub first: SegmentNumber,
    /// The last segment.
    pub last: SegmentName,
    /// The position after it.
    pub end_lsn: Lsn,
    /// What is missing there, if it is known that there was more.
    missing: Option<SegmentRange>,
    /// What is wrong with that WAL, if it is there and damaged.
    damage: Option<String>,
    /// Whether retention has released what followed.
    released: bool,
    /// What no recovery crosses.
    barrier: Option<Barrier>,
}

/// A period of time to which a cluster can be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The timeline that is followed.
    pub timeline: TimelineId,
    /// The earliest moment: the end of the first backup.
    pub earliest: DateTime<Utc>,
    /// The latest moment; `None` where it is not known.
    pub latest: Option<DateTime<Utc>>,
    /// What the latest moment is.
    pub latest_is: LatestIs,
    /// The backup to which the earliest moment belongs.
    pub first_backup: BackupId,
    /// The newest backup.
    pub newest_backup: BackupId,
    /// How many backups there are to start from.
    pub backups: usize,
    /// The last segment of its WAL.
    pub last_segment: SegmentName,
    /// The position after it.
    pub end_lsn: Lsn,
    /// WAL that existed and is missing there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<SegmentRange>,
    /// What is wrong with that WAL, if it is there and known to be damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// Whether retention has released what followed: then nothing is missing.
    #[serde(rename = "given_up", skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
    /// A position that no recovery crosses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub barrier: Option<Lsn>,
    /// Why no recovery crosses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub barrier_is: Option<String>,
}

/// What the latest moment of a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LatestIs {
    /// The last commit in the WAL.
    Commit,
    /// The start of the newest backup: nothing was committed between the last commit and then.
    StartOfBackup,
    /// There is no commit after the first backup's end: only that state can be reached.
    EndOfBackup,
    /// The WAL's times are not known: it was stored by an older walship, or it is damaged.
    Unknown,
}

/// The last ends of transactions in a stretch of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastEnds {
    /// The commit with the largest time; `None` where only rollbacks were found.
    pub(crate) commit: Option<EndOfTransaction>,
    /// The commit or rollback with the largest time.
    pub largest: EndOfTransaction,
    /// The last one in the order of the WAL.
    pub last: EndOfTransaction,
}

/// What is known of the last ends of transactions in a stretch of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// More segments, further back, must be read.
    LookFurther,
    /// These; `None` where no transaction ended in the whole stretch.
    Ends(Option<LastEnds>),
    /// It cannot be known.
    Unknown,
}

/// The stretches of all timelines, oldest timeline first and in the order of the WAL. Retired timelines have none, nor
/// have timelines whose history cannot be read.
///
/// # Errors
/// `Invalid` for positions that no segment has.
pub fn stretches(catalogue: &Catalogue) -> Result<Vec<Stretch<'_>>> {
    let mut all = Vec::new();
    let timelines = catalogue.timelines().into_iter();
    for timeline in timelines.filter(|timeline| !catalogue.retired.contains_key(timeline)) {
        let Ok(chain) = recovery_plan::chain_of(catalogue, timeline) else {
            continue;
        };
        let mut backups: Vec<_> = catalogue.backups.iter().collect();
        backups.retain(|backup| chain.can_start_from(backup));
        backups.sort_by_key(|backup| (backup.stop_lsn, backup.finished_at));
        let begin = all.len();
        for backup in backups {
            let reach = recovery_plan::reach(catalogue, &chain, backup)?;
            let Some(last) = reach.last_segment.filter(|_| reach.end_lsn >= backup.stop_lsn) else {
                continue;
            };
            let known = all
                .iter_mut()
                .skip(begin)
                .find(|known: &&mut Stretch<'_>| known.end_lsn == reach.end_lsn);
            let first = catalogue.wal.segment_size().segment_of(backup.start_lsn);
            let released = recovery_plan::is_released(catalogue, &chain, &reach, backup);
            match known {
                Some(stretch) => {
                    stretch.first = stretch.first.min(first);
                    stretch.backups.push(backup);
                }
                None => all.push(Stretch {
                    damage: reach.gap.as_ref().and_then(|gap| gap.damage.clone()),
                    timeline,
                    backups: vec![backup],
                    first,
                    last,
                    end_lsn: reach.end_lsn,
                    barrier: reach.gap.as_ref().and_then(|gap| gap.barrier),
                    missing: reach.gap.and_then(|gap| gap.lacks()).filter(|_| !released),
                    released,
                }),
            }
        }
    }
    Ok(all)
}

impl Stretch<'_> {
    /// The stretch in time. `last`: the last ends of transactions in its WAL; `None` if they are not known.
    #[must_use]
    pub fn window(&self, last: Option<Option<LastEnds>>) -> Option<Window> {
        let (first, newest) = (self.backups.first()?, self.backups.last()?);
        let commit = last.map(|last| last.and_then(|last| last.commit));
        let settled = self.backups.iter().filter_map(|backup| backup.settled_at()).max();
        let settled = settled.filter(|settled| *settled >= first.finished_at);
        let (latest, latest_is) = match commit {
            None => (None, LatestIs::Unknown),
            Some(Some(commit)) if commit.time >= first.finished_at && Some(commit.time) >= settled => {
                (Some(commit.time), LatestIs::Commit)
            }
            Some(_) if settled.is_some() => (settled, LatestIs::StartOfBackup),
            Some(_) => (None, LatestIs::EndOfBackup),
        };
        Some(Window {
            timeline: self.timeline,
            earliest: first.finished_at,
            latest,
            latest_is,
            first_backup: first.id.clone(),
            newest_backup: newest.id.clone(),
            backups: self.backups.len(),
            last_segment: self.last,
            end_lsn: self.end_lsn,
            missing: self.missing,
            damage: self.damage.clone(),
            released: self.released,
            barrier: self.barrier.map(Barrier::lsn),
            barrier_is: self.barrier.map(|barrier| barrier.to_string()),
        })
    }
}

/// The last ends of transactions in a stretch of WAL. `indexes`: those of consecutive segments up to the stretch's last
/// one; `None` for one that is unknown. `whole`: they begin with the stretch's first segment.
#[must_use]
pub fn last_ends(indexes: &[Option<SegmentIndex>], whole: bool, major: Major) -> Last {
    let mut crossing = Crossing::new(major);
    let mut complete = Vec::with_capacity(indexes.len());
    for index in indexes {
        let before = crossing.next(index.as_ref());
        complete.push(index.as_ref().map(|index| index.with_crossing(before)));
        if index.as_ref().is_some_and(|index| index.valid_until.is_some()) {
            // PostgreSQL replays nothing beyond it.
            break;
        }
    }
    let (mut commits, mut all, mut found): (Option<Ends>, Option<Ends>, usize) = (None, None, 0);
    for (position, index) in complete.iter().enumerate().rev() {
        let Some(index) = index else {
            return all.map_or(Last::Unknown, |all| of(commits, all));
        };
        if position == 0 && !whole {
            // The end of a record that begins before it may be missing in it.
            return Last::LookFurther;
        }
        let before = |ends: Option<Ends>, later: Option<Ends>| match (ends, later) {
            (Some(ends), Some(later)) => Some(ends.then(&later)),
            (one, other) => one.or(other),
        };
        commits = before(index.commits, commits);
        all = before(index.ends(), all);
        found += usize::from(index.commits.is_some());
        if let Some(all) = all.filter(|_| found >= SEGMENTS_WITH_COMMITS) {
            return of(commits, all);
        }
    }
    if !whole {
        return Last::LookFurther;
    }
    all.map_or(Last::Ends(None), |all| of(commits, all))
}

fn of(commits: Option<Ends>, all: Ends) -> Last {
    Last::Ends(Some(LastEnds {
        commit: commits.map(|commits| commits.largest),
        largest: all.largest,
        last: all.last,
    }))
}

#[cfg(test)]
mod tests;
