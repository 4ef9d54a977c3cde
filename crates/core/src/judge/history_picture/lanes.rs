//! The lanes of the picture.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::axis::{Period, united};
use super::clock::{Clock, Known};
use super::{BarrierMark, Fork, Lane, LastSegment, Mark, MarkState, Stretch, StretchKind};
use crate::error::Result;
use crate::format::keep::Keep;
use crate::format::proof::Proven;
use crate::format::ranges::RangeSet;
use crate::format::wal_inventory::SegmentRange;
use crate::judge::catalogue::{Backup, Catalogue, missing_wal};
use crate::judge::recovery_plan::chain_of;
use crate::judge::window::{LatestIs, Window};
use crate::pg::{Lsn, SegmentNumber, TimelineId};

/// A timeline while its lane is made.
#[derive(Debug)]
struct Timeline {
    clock: Clock,
    fork: Option<Fork>,
}

/// The lanes, oldest timeline first.
pub(super) fn lanes(catalogue: &Catalogue, windows: &[Window], now: DateTime<Utc>) -> Result<Vec<Lane>> {
    let maker = Maker {
        catalogue,
        windows,
        now,
    };
    let mut timelines = BTreeMap::new();
    for timeline in maker.timelines() {
        // A parent has a smaller number than its children, so its clock is there.
        let made = maker.timeline(timeline, &timelines);
        timelines.insert(timeline, made);
    }
    let mut recoverable = maker.recoverable(&timelines);
    let mut lanes = Vec::new();
    for (timeline, made) in &timelines {
        let mut lane = maker.lane(*timeline, made)?;
        lane.recoverable = united(recoverable.remove(timeline).unwrap_or_default());
        lanes.push(lane);
    }
    maker.place_others(&mut lanes);
    lanes.retain(|lane| maker.has_something(lane));
    Ok(lanes)
}

struct Maker<'a> {
    catalogue: &'a Catalogue,
    windows: &'a [Window],
    now: DateTime<Utc>,
}

impl Maker<'_> {
    /// Every timeline that may have a lane.
    fn timelines(&self) -> Vec<TimelineId> {
        let mut timelines = self.catalogue.timelines();
        timelines.extend(self.catalogue.readable().map(|backup| backup.stop_timeline));
        // Backups without a record need a lane to stand on.
        if timelines.is_empty() && (self.others().next().is_some()) {
            timelines.push(TimelineId::FIRST);
        }
        timelines.sort_unstable();
        timelines.dedup();
        timelines
    }

    fn timeline(&self, timeline: TimelineId, earlier: &BTreeMap<TimelineId, Timeline>) -> Timeline {
        let size = self.catalogue.wal.segment_size();
        let parent = self
            .catalogue
            .histories
            .get(&timeline)
            .and_then(|history| history.parent());
        let parents = parent.and_then(|parent| Some((parent, earlier.get(&parent.timeline)?)));
        let went_on = parents.and_then(|(parent, made)| made.clock.first_from(parent.end));
        let known = self.known(timeline, went_on);
        let Some(parent) = parent else {
            return Timeline {
                clock: Clock::new(&known, None, size),
                fork: None,
            };
        };
        let of_server: Vec<_> = known.iter().copied().filter(|known| known.by_server).collect();
        let first = Clock::new(&of_server, None, size).first_from(parent.end);
        let stored = self.catalogue.wal.history_stored(timeline);
        let stored = stored.filter(|stored| first.is_none_or(|first| *stored <= first));
        let left_at = parents.and_then(|(parent, made)| made.clock.at(parent.end));
        let left_at = left_at.map(|at| at.min(first.unwrap_or(at)));
        let begins_at = stored.max(left_at).or(first);
        let fork = left_at
            .or(begins_at)
            .zip(begins_at)
            .map(|(left_at, begins_at)| Fork {
                timeline: parent.timeline,
                lsn: parent.end,
                left_at,
                begins_at,
            });
        Timeline {
            clock: Clock::new(&known, begins_at.map(|begins_at| (parent.end, begins_at)), size),
            fork,
        }
    }

    /// The known moments of a timeline. `went_on`: a moment at which the parent had passed the fork. A commit from before
    /// it is taken for the parent's: the segment of a fork begins with the parent's transactions.
    fn known(&self, timeline: TimelineId, went_on: Option<DateTime<Utc>>) -> Vec<Known> {
        let (catalogue, size) = (self.catalogue, self.catalogue.wal.segment_size());
        let mut known = self.commits(timeline);
        known.retain(|known| went_on.is_none_or(|went_on| known.at > went_on));
        for backup in catalogue.readable() {
            if backup.start_timeline == timeline {
                known.push(by_server(backup.start_lsn, backup.started_at));
            }
            if backup.stop_timeline == timeline {
                known.push(by_server(backup.stop_lsn, backup.finished_at));
            }
        }
        if let (Some(newest), Some(stored)) = (
            catalogue.wal.newest(timeline),
            catalogue.wal.newest_stored(timeline),
        ) {
            known.push(by_store(size.start_of(newest.next()), stored));
        }
        let first = self.first_ever(timeline);
        if timeline == TimelineId::FIRST
            && let Some(first) = first
        {
            known.push(by_store(size.start_of(first), catalogue.identity.created_at));
        }
        // A clock that is ahead must not stretch the picture.
        known.retain(|known| known.at <= self.now.max(catalogue.identity.created_at));
        known
    }

    /// The commits of which position and moment are known: the last ones of windows and of branches, and those that
    /// drills replayed.
    fn commits(&self, timeline: TimelineId) -> Vec<Known> {
        let ended = self
            .windows
            .iter()
            .filter(|window| window.last_segment.timeline() == timeline);
        let of_windows = ended.filter(|window| window.latest_is == LatestIs::Commit);
        let of_windows = of_windows.filter_map(|window| Some(by_server(window.end_lsn, window.latest?)));
        let proofs = self
            .catalogue
            .readable()
            .filter_map(|backup| backup.proof.as_ref());
        let drills = proofs.filter_map(|proof| proof.last_success.as_ref());
        let drills = drills.filter(|drill| drill.timeline == Some(timeline));
        let of_drills = drills.filter_map(|drill| Some(by_server(drill.reached_lsn?, drill.newest_commit?)));
        let of_branch = self.catalogue.newest_ends.get(&timeline).copied().flatten();
        let of_branch = of_branch.map(|end| by_server(end.lsn, end.time));
        of_windows.chain(of_drills).chain(of_branch).collect()
    }

    /// The first segment that the archive ever had of a timeline, as far as is known.
    fn first_ever(&self, timeline: TimelineId) -> Option<SegmentNumber> {
        let released = self.catalogue.released.of(timeline).and_then(RangeSet::first);
        let held = self.catalogue.wal.held(timeline).first();
        [released, held].into_iter().flatten().min().map(SegmentNumber)
    }

    /// What can be recovered, timeline by timeline: each window goes along its chain.
    fn recoverable(&self, timelines: &BTreeMap<TimelineId, Timeline>) -> BTreeMap<TimelineId, Vec<Period>> {
        let mut all: BTreeMap<TimelineId, Vec<Period>> = BTreeMap::new();
        for window in self.windows {
            let first = self
                .catalogue
                .backups
                .iter()
                .find(|backup| backup.id == window.first_backup);
            let (Ok(chain), Some(first)) = (chain_of(self.catalogue, window.timeline), first) else {
                continue;
            };
            let (begin, end) = (first.stop_timeline, window.last_segment.timeline());
            for (timeline, _, _) in chain
                .links()
                .filter(|(link, _, _)| (begin..=end.max(begin)).contains(link))
            {
                let Some(made) = timelines.get(&timeline) else {
                    continue;
                };
                let begins_at = made.fork.map_or(window.earliest, |fork| fork.begins_at);
                let from = if timeline == begin {
                    window.earliest
                } else {
                    begins_at
                };
                let until = if timeline >= end {
                    latest(window, &made.clock)
                } else {
                    chain.leaves(timeline).and_then(|left| made.clock.at(left))
                };
                let period = Period::new(from, until.unwrap_or(from));
                all.entry(timeline).or_default().push(period);
            }
        }
        all
    }

    fn lane(&self, timeline: TimelineId, made: &Timeline) -> Result<Lane> {
        let catalogue = self.catalogue;
        let mut stretches = Vec::new();
        for (kind, ranges) in self.ranges(timeline)? {
            for (first, last) in ranges.iter() {
                stretches.push(self.stretch(kind, timeline, first, last, &made.clock)?);
            }
        }
        stretches.sort_by_key(|stretch| (stretch.segments.first, stretch.kind));
        let barriers = self
            .windows
            .iter()
            .filter(|window| window.last_segment.timeline() == timeline);
        let mut barriers: Vec<_> = barriers
            .filter_map(|window| barrier(window, &made.clock))
            .collect();
        barriers.sort_by_key(|barrier| barrier.lsn);
        barriers.dedup();
        let mut backups: Vec<_> = self.marks(timeline).collect();
        backups.sort_by_key(|mark| mark.period.until);
        let newest = catalogue.wal.ranges(timeline).last();
        let last = newest.and_then(|range| {
            let number = range.last.number(catalogue.wal.segment_size()).ok()?;
            let end = catalogue.wal.segment_size().start_of(number.next());
            Some(LastSegment {
                segment: range.last,
                at: made.clock.at(end).unwrap_or(self.now),
                stored_at: catalogue.wal.newest_stored(timeline),
            })
        });
        Ok(Lane {
            timeline,
            fork: made.fork,
            stretches,
            backups,
            recoverable: Vec::new(),
            barriers,
            last,
            retired: catalogue.retired.get(&timeline).map(ToString::to_string),
            unreadable: catalogue.unreadable_histories.get(&timeline).cloned(),
        })
    }

    /// The segments of a timeline, by what is known of them.
    fn ranges(&self, timeline: TimelineId) -> Result<[(StretchKind, RangeSet); 4]> {
        let (catalogue, size) = (self.catalogue, self.catalogue.wal.segment_size());
        let held = catalogue.wal.held(timeline);
        let mut damaged = RangeSet::default();
        for segment in catalogue
            .damage
            .wal
            .keys()
            .filter(|segment| segment.timeline() == timeline)
        {
            let number = segment.number(size)?;
            damaged.insert_range(number.0, number.0);
        }
        let damaged = damaged.intersection(&held);
        let mut gaps = RangeSet::default();
        if let (Some(first), Some(last)) = (held.first(), held.last()) {
            gaps.insert_range(first, last);
        }
        // What follows or precedes all that is held is missing too where it is known to have existed.
        let mut lost: Vec<SegmentRange> = self.windows.iter().filter_map(|window| window.missing).collect();
        for backup in catalogue.readable() {
            lost.extend(missing_wal(backup, &catalogue.wal)?);
        }
        for range in lost.iter().filter(|range| range.first.timeline() == timeline) {
            gaps.insert_range(range.first.number(size)?.0, range.last.number(size)?.0);
        }
        gaps.subtract(&held);
        let mut released = catalogue.released.of(timeline).cloned().unwrap_or_default();
        released.subtract(&held);
        gaps.subtract(&released);
        let mut archived = held;
        archived.subtract(&damaged);
        Ok([
            (StretchKind::Archived, archived),
            (StretchKind::Released, released),
            (StretchKind::Damaged, damaged),
            (StretchKind::Gap, gaps),
        ])
    }

    fn stretch(
        &self,
        kind: StretchKind,
        timeline: TimelineId,
        first: u64,
        last: u64,
        clock: &Clock,
    ) -> Result<Stretch> {
        let size = self.catalogue.wal.segment_size();
        let (first, last) = (SegmentNumber(first), SegmentNumber(last));
        let at = |lsn: Lsn| {
            clock
                .at(lsn)
                .unwrap_or(self.now)
                .min(self.now.max(self.catalogue.identity.created_at))
        };
        Ok(Stretch {
            kind,
            segments: SegmentRange::new(timeline, first, last, size)?,
            period: Period::new(at(size.start_of(first)), at(size.start_of(last.next()))),
        })
    }

    /// The backups of a timeline whose record could be read.
    fn marks(&self, timeline: TimelineId) -> impl Iterator<Item = Mark> {
        let restorable = self.catalogue.backups.iter().map(|backup| {
            let alone = self.catalogue.stands_alone(backup);
            (
                backup,
                if alone {
                    MarkState::StandsAlone
                } else {
                    MarkState::Restorable
                },
            )
        });
        let unrestorable = self.catalogue.unrestorable.iter().filter_map(|entry| {
            let reason = entry.reason.clone();
            Some((entry.backup.as_ref()?, MarkState::Unrestorable { reason }))
        });
        let all = restorable
            .chain(unrestorable)
            .filter(move |(backup, _)| backup.stop_timeline == timeline);
        all.map(|(backup, state)| self.mark(backup, state))
    }

    fn mark(&self, backup: &Backup, state: MarkState) -> Mark {
        Mark {
            id: backup.id.clone(),
            period: Period::new(backup.started_at, backup.finished_at),
            state,
            label: backup.label.clone(),
            stored_bytes: Some(backup.stored_bytes),
            kept: self.kept(backup.keep.as_ref()),
            proven: Proven::of(backup.proof.as_ref()),
        }
    }

    fn kept(&self, keep: Option<&Keep>) -> Option<String> {
        keep.filter(|keep| keep.holds_at(self.now))
            .map(ToString::to_string)
    }

    /// The backups of which no record tells the timeline.
    fn others(&self) -> impl Iterator<Item = Mark> {
        let mark = |id: &crate::format::keys::BackupId, until: DateTime<Utc>, state| Mark {
            id: id.clone(),
            period: Period::new(id.moment(), until),
            state,
            label: String::new(),
            stored_bytes: None,
            kept: None,
            proven: Proven::default(),
        };
        let unfinished = self.catalogue.unfinished.iter().map(move |entry| Mark {
            kept: self.kept(entry.keep.as_ref()),
            ..mark(
                &entry.id,
                entry.last_sign,
                MarkState::Unfinished { state: entry.state },
            )
        });
        let unreadable = self
            .catalogue
            .unrestorable
            .iter()
            .filter(|entry| entry.backup.is_none());
        let unreadable = unreadable.map(move |entry| {
            let reason = entry.reason.clone();
            mark(&entry.id, entry.id.moment(), MarkState::Unrestorable { reason })
        });
        unfinished.chain(unreadable)
    }

    /// Puts them on the timeline that had begun last when they were taken.
    fn place_others(&self, lanes: &mut [Lane]) {
        for mark in self.others() {
            let had_begun = |lane: &Lane| lane.fork.is_none_or(|fork| fork.begins_at <= mark.period.from);
            let place = lanes.iter().rposition(had_begun).unwrap_or(0);
            if let Some(lane) = lanes.get_mut(place) {
                lane.backups.push(mark);
                lane.backups.sort_by_key(|mark| mark.period.until);
            }
        }
    }

    /// Whether something is left of a timeline, or it has only just begun.
    fn has_something(&self, lane: &Lane) -> bool {
        let is_left = lane
            .stretches
            .iter()
            .any(|stretch| stretch.kind != StretchKind::Released);
        let mut histories = self.catalogue.histories.values();
        let has_child = histories.any(|history| history.end_of(lane.timeline).is_some());
        is_left || !lane.backups.is_empty() || !has_child
    }
}

fn by_server(lsn: Lsn, at: DateTime<Utc>) -> Known {
    Known {
        lsn,
        at,
        by_server: true,
    }
}

fn by_store(lsn: Lsn, at: DateTime<Utc>) -> Known {
    Known {
        lsn,
        at,
        by_server: false,
    }
}

/// The last moment of a window.
fn latest(window: &Window, clock: &Clock) -> Option<DateTime<Utc>> {
    match (window.latest, window.latest_is) {
        (Some(latest), _) => Some(latest),
        (None, LatestIs::EndOfBackup) => Some(window.earliest),
        (None, _) => clock.at(window.end_lsn),
    }
}

fn barrier(window: &Window, clock: &Clock) -> Option<BarrierMark> {
    Some(BarrierMark {
        lsn: window.barrier?,
        at: clock.at(window.barrier?)?,
        reason: window.barrier_is.clone()?,
    })
}
