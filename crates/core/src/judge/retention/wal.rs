//! Which WAL stays, and why.
//!
//! A segment goes only if two things hold:
//!
//! - *Nothing needs it.* No recovery from a point-in-time backup to any timeline reads it, and no stand-alone or
//!   unfinished backup needs it to be restored.
//! - *It is known to be old.* It lies before a point-in-time backup on that backup's own chain, or on a branch to which
//!   nothing was written for long.
//!
//! All other segments stay. While a running backup does not know yet what it needs, nothing goes at all (`on_hold`).

use chrono::{DateTime, Utc};

use super::choose::{Choice, is_dead, lead_to};
use super::histories::Histories;
use super::{Action, UnfinishedWal, UnfinishedWals, WalFate, WalReason};
use crate::error::Result;
use crate::format::backup::WalRange;
use crate::format::keys::BackupId;
use crate::format::ranges::RangeSet;
use crate::format::released::TimelineRanges;
use crate::format::wal_inventory::SegmentRange;
use crate::judge::catalogue::{Catalogue, needed_wal};
use crate::judge::timeline_chain::TimelineChain;
use crate::pg::{Lsn, SegmentNumber, TimelineId};

/// A range of WAL, and why it stays or goes.
#[derive(Debug)]
struct Mark {
    timeline: TimelineId,
    first: SegmentNumber,
    last: SegmentNumber,
    reason: WalReason,
}

/// What is decided of the WAL.
#[derive(Debug)]
pub(super) struct WalChoice {
    pub(super) fates: Vec<WalFate>,
    pub(super) deletable: TimelineRanges,
}

/// Decides for every segment.
///
/// # Errors
/// `Invalid` for positions that no segment has.
pub(super) fn choose(
    catalogue: &Catalogue,
    histories: &Histories<'_>,
    choice: &Choice,
    unfinished: &UnfinishedWals,
    branch_cutoff: DateTime<Utc>,
) -> Result<WalChoice> {
    let mut marks = Marks {
        catalogue,
        histories,
        keep: Vec::new(),
        old: Vec::new(),
    };
    marks.points_in_time(choice);
    marks.stand_alone(choice);
    marks.unfinished(choice, unfinished);
    if !choice.points_in_time.is_empty() {
        marks.before_backups(choice);
        marks.dead_branches(branch_cutoff);
    }
    let hold = on_hold(choice, unfinished);
    let deletable = if hold.is_some() {
        TimelineRanges::default()
    } else {
        let mut deletable = ranges(&marks.old);
        deletable.subtract(&ranges(&marks.keep));
        deletable
    };
    let fates = fates(catalogue, &marks, hold.as_ref(), &deletable)?;
    Ok(WalChoice { fates, deletable })
}

/// A backup that may need any WAL: it runs, and where it starts is not known yet.
fn on_hold(choice: &Choice, unfinished: &UnfinishedWals) -> Option<WalReason> {
    let protected = |fate: &&super::BackupFate| fate.action != Action::Delete;
    let unknown =
        |fate: &&super::BackupFate| matches!(unfinished.get(&fate.id), Some(UnfinishedWal::Unknown));
    let backup = choice.fates.iter().filter(protected).find(unknown)?;
    Some(WalReason::BackupStarts {
        backup: backup.id.clone(),
    })
}

struct Marks<'a> {
    catalogue: &'a Catalogue,
    histories: &'a Histories<'a>,
    keep: Vec<Mark>,
    old: Vec<Mark>,
}

impl Marks<'_> {
    /// Everything from the oldest point-in-time backup on, on every timeline that it leads to.
    fn points_in_time(&mut self, choice: &Choice) {
        for chain in self.histories.chains() {
            if let Some(backup) = lead_to(self.catalogue, &choice.points_in_time, &chain) {
                let reason = WalReason::Recovery {
                    from_backup: backup.id.clone(),
                };
                self.keep_from(&chain, backup.start_lsn, &reason);
            }
        }
    }

    fn keep_from(&mut self, chain: &TimelineChain<'_>, start: Lsn, reason: &WalReason) {
        let start = self.catalogue.wal.segment_size().segment_of(start);
        for (timeline, first, last) in chain.links() {
            let last = last.unwrap_or(SegmentNumber(u64::MAX));
            if last >= start {
                self.keep.push(Mark {
                    timeline,
                    first: first.max(start),
                    last,
                    reason: reason.clone(),
                });
            }
        }
    }

    fn keep_ranges(&mut self, ranges: &[WalRange], backup: &BackupId) {
        for needed in needed_wal(ranges, self.catalogue.wal.segment_size()) {
            self.keep.push(Mark {
                timeline: needed.timeline,
                first: needed.first,
                last: SegmentNumber(needed.end.0 - 1),
                reason: WalReason::Backup {
                    backup: backup.clone(),
                },
            });
        }
    }

    /// What each kept backup cannot be restored without.
    fn stand_alone(&mut self, choice: &Choice) {
        for backup in self.catalogue.readable() {
            let fate = choice.fates.iter().find(|fate| fate.id == backup.id);
            if fate.is_some_and(|fate| fate.action != Action::Delete) {
                self.keep_ranges(&backup.wal_ranges, &backup.id);
            }
        }
    }

    fn unfinished(&mut self, choice: &Choice, unfinished: &UnfinishedWals) {
        for fate in choice.fates.iter().filter(|fate| fate.action != Action::Delete) {
            match unfinished.get(&fate.id) {
                Some(UnfinishedWal::Ranges(ranges)) => self.keep_ranges(ranges, &fate.id),
                Some(UnfinishedWal::From { timeline, lsn }) => {
                    let reason = WalReason::Backup {
                        backup: fate.id.clone(),
                    };
                    for chain in self.histories.chains() {
                        if chain.passes(*timeline, *lsn) {
                            self.keep_from(&chain, *lsn, &reason);
                        }
                    }
                }
                Some(UnfinishedWal::Unknown | UnfinishedWal::Unreadable(_)) | None => {}
            }
        }
    }

    /// What lies before a point-in-time backup, on its own chain.
    fn before_backups(&mut self, choice: &Choice) {
        let size = self.catalogue.wal.segment_size();
        for backup in &self.catalogue.backups {
            let chain = self.histories.chain(backup.stop_timeline);
            let Some(chain) = chain.filter(|_| choice.points_in_time.contains(&backup.id)) else {
                continue;
            };
            let Some(before) = size.segment_of(backup.start_lsn).0.checked_sub(1) else {
                continue;
            };
            for (timeline, first, last) in chain.links() {
                self.old.push(Mark {
                    timeline,
                    first,
                    last: SegmentNumber(last.map_or(before, |last| last.0.min(before))),
                    reason: WalReason::BeforeBackup {
                        backup: backup.id.clone(),
                    },
                });
            }
        }
    }

    fn dead_branches(&mut self, cutoff: DateTime<Utc>) {
        let size = self.catalogue.wal.segment_size();
        let living = self.histories.living();
        for timeline in self.histories.timelines() {
            if !is_dead(self.catalogue, &living, timeline, cutoff) {
                continue;
            }
            // The segment after the last one may be there as a .partial. Later segments are not there yet, and are not
            // judged now.
            let newest = self.catalogue.wal.newest(timeline).map(|newest| newest.0 + 1);
            let fork = self
                .histories
                .last_fork(timeline)
                .map(|fork| size.segment_of(fork).0);
            let Some(last) = newest.max(fork) else { continue };
            self.old.push(Mark {
                timeline,
                first: SegmentNumber(0),
                last: SegmentNumber(last),
                reason: WalReason::DeadBranch {
                    last_stored: self.catalogue.wal.newest_stored(timeline),
                },
            });
        }
    }
}

fn ranges(marks: &[Mark]) -> TimelineRanges {
    let mut ranges = TimelineRanges::default();
    for mark in marks {
        ranges
            .of_mut(mark.timeline)
            .insert_range(mark.first.0, mark.last.0);
    }
    ranges
}

/// Every segment that is held, in ranges of one fate and one reason each.
fn fates(
    catalogue: &Catalogue,
    marks: &Marks<'_>,
    hold: Option<&WalReason>,
    deletable: &TimelineRanges,
) -> Result<Vec<WalFate>> {
    let mut fates = Vec::new();
    for timeline in catalogue.wal.timelines() {
        let mut left = catalogue.wal.held(timeline);
        let of_timeline = |mark: &&Mark| mark.timeline == timeline;
        let mut stretches: Vec<(u64, u64, bool, WalReason)> = Vec::new();
        let mut take = |left: &mut RangeSet, range: &RangeSet, delete: bool, reason: &WalReason| {
            let here = left.intersection(range);
            left.subtract(&here);
            stretches.extend(
                here.iter()
                    .map(|(first, last)| (first, last, delete, reason.clone())),
            );
        };
        for mark in marks.keep.iter().filter(of_timeline) {
            take(&mut left, &one(mark.first.0, mark.last.0), false, &mark.reason);
        }
        for mark in marks.old.iter().filter(of_timeline) {
            let range = deletable.of(timeline).cloned().unwrap_or_default();
            let range = range.intersection(&one(mark.first.0, mark.last.0));
            take(&mut left, &range, true, &mark.reason);
        }
        let reason = hold.cloned().unwrap_or(WalReason::NoBackup);
        take(&mut left, &one(0, u64::MAX), false, &reason);
        stretches.sort_by_key(|stretch| stretch.0);
        for (first, last, delete, reason) in stretches {
            let size = catalogue.wal.segment_size();
            fates.push(WalFate {
                range: SegmentRange::new(timeline, SegmentNumber(first), SegmentNumber(last), size)?,
                action: if delete { Action::Delete } else { Action::Keep },
                reason,
            });
        }
    }
    Ok(fates)
}

fn one(first: u64, last: u64) -> RangeSet {
    let mut range = RangeSet::default();
    range.insert_range(first, last);
    range
}
