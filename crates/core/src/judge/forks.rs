//! Which stored segments a server must not get, because it follows a timeline that left theirs.
//!
//! An old primary may go on after a promotion, and archive its own version of the segment in which the new timeline
//! began, and later ones. PostgreSQL asks for a segment on the newest timeline that it follows first, then on those
//! before it (`XLogFileReadAnyTLI`, `xlogrecovery.c`, `xlog.c` in 14), and replays what it is given beyond the end of a
//! timeline too. So two servers must not get such a segment: one that follows the new timeline while the archive does
//! not have that timeline's version of the segment (yet), and a standby that does not know the new timeline yet, but
//! would go over to it at its next look (`rescanLatestTimeLine`). Every other server gets what it asks for: PostgreSQL
//! checks timelines itself. In doubt, the segment is delivered.
//!
//! `docs/exit-codes.md` has the table of all cases.

pub mod hidden;

use std::collections::BTreeMap;

use crate::pg::{Lsn, TimelineHistory, TimelineId};

/// Which timeline a server is told to recover to (`recovery_target_timeline`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetTimeline {
    /// The newest one that it finds, which is the default. A standby goes over to newer ones; a recovery keeps to what
    /// it found when it started.
    #[default]
    Latest,
    /// The one of `pg_control`.
    Current,
    /// This one.
    Number(TimelineId),
}

impl TargetTimeline {
    /// Reads the setting as the server does (`check_recovery_target_timeline`, 14 to 18), numbers like `strtoul`.
    /// `None` for a value with which no server starts.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        match value {
            b"latest" => return Some(Self::Latest),
            b"current" => return Some(Self::Current),
            _ => {}
        }
        let text = std::str::from_utf8(value).ok()?.trim_start();
        let text = text.strip_prefix('+').unwrap_or(text);
        let lower = text.to_ascii_lowercase();
        let (digits, radix) = match lower.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None if lower.starts_with('0') => (lower.as_str(), 8),
            None => (lower.as_str(), 10),
        };
        let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
        let number = u32::from_str_radix(digits.get(..end)?, radix).ok()?;
        TimelineId::new(number).ok().map(Self::Number)
    }
}

/// What a server in recovery does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovering {
    /// It follows a primary, and asks again for a segment that it did not get.
    Standby,
    /// It recovers to a target, and ends where it gets no segment.
    ToTarget,
}

/// A position on a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The timeline.
    pub timeline: TimelineId,
    /// The position.
    pub lsn: Lsn,
}

/// A history that the server finds where it looks: in the archive, or in its `pg_wal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visible {
    /// The history.
    pub history: TimelineHistory,
    /// Whether it is in `pg_wal`: the server keeps a copy of every history that it has read, even if it does not follow
    /// that timeline.
    pub kept: bool,
}

/// The server that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follower {
    /// What it does.
    pub recovering: Recovering,
    /// `recovery_target_timeline` as it has it.
    pub target: TargetTimeline,
    /// What `pg_control` says that it has replayed: its last checkpoint, and its minimum recovery point if it has one.
    pub replayed: Vec<Position>,
    /// The histories that it finds and that matter: of its target, and of the timelines of `replayed`. If it looks for
    /// the latest timeline, also those of all timelines from there, and from the segment's, to the first that is
    /// missing.
    pub histories: BTreeMap<TimelineId, Visible>,
}

/// Where the server leaves the timeline of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The timeline that it follows, or goes over to at its next look.
    pub by: TimelineId,
    /// Where the history of `by` leaves the segment's timeline.
    pub at: Lsn,
    /// The timeline that begins there, which may be an ancestor of `by`.
    pub child: TimelineId,
}

/// What to do with an archived segment that reaches beyond a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The server gets it.
    Deliver,
    /// The server is told that it is absent.
    Withhold,
    /// The server must stop: with the segment it would replay another history's WAL; without it, it might end recovery
    /// too early.
    Refuse,
}

impl Follower {
    /// The timeline at which the server starts its search for the latest one (`InitWalRecovery`).
    #[must_use]
    pub fn start_of_search(&self) -> TimelineId {
        let timelines = self.replayed.iter().map(|position| position.timeline);
        timelines.max().unwrap_or(TimelineId::FIRST)
    }

    /// Where the server leaves a segment's timeline before the segment's end, the one that it takes first at the front.
    /// There are several if it cannot be known which timeline it follows, and none if one of those does not leave
    /// there.
    #[must_use]
    pub fn forks_before(&self, timeline: TimelineId, segment_end: Lsn) -> Vec<Fork> {
        let forks = self.targets(timeline).into_iter().rev().map(|target| {
            self.fork_on(target, timeline)
                .filter(|fork| fork.at < segment_end)
        });
        forks.collect::<Option<_>>().unwrap_or_default()
    }

    /// Whether `pg_control` says that the server has replayed the segment's timeline beyond a fork. Then PostgreSQL
    /// does not go over to a timeline that left there.
    #[must_use]
    pub fn has_passed(&self, fork: &Fork, timeline: TimelineId) -> bool {
        self.replayed.iter().any(|position| {
            let is_on_chain = position.timeline == timeline
                || self
                    .fork_on(position.timeline, timeline)
                    .is_some_and(|left| left.at > fork.at);
            is_on_chain && position.lsn > fork.at
        })
    }

    /// What to answer when it is known whether the server has replayed beyond one of the forks.
    #[must_use]
    pub fn answer(&self, fork: &Fork, segment_start: Lsn, has_passed: bool) -> Answer {
        if has_passed {
            return Answer::Deliver;
        }
        match (self.recovering, self.target) {
            (Recovering::Standby, _) => Answer::Withhold,
            // The timeline was named, and none of the segment comes before the fork.
            (Recovering::ToTarget, TargetTimeline::Number(_) | TargetTimeline::Current)
                if fork.at <= segment_start =>
            {
                Answer::Withhold
            }
            (Recovering::ToTarget, _) => Answer::Refuse,
        }
    }

    /// The fork of the timeline that a recovery follows, wherever it lies.
    #[must_use]
    pub fn fork_of_recovery(&self, timeline: TimelineId) -> Option<Fork> {
        match self.recovering {
            Recovering::ToTarget => self.forks_before(timeline, Lsn(u64::MAX)).pop(),
            Recovering::Standby => None,
        }
    }

    /// The server follows one of these when it was told that a segment of this timeline is absent.
    fn targets(&self, timeline: TimelineId) -> Vec<TimelineId> {
        let search = self.start_of_search();
        match (self.target, self.recovering) {
            (TargetTimeline::Number(number), _) => vec![number],
            (TargetTimeline::Current, _) => vec![search],
            // It read the history of its target when it started, and looks no more.
            (TargetTimeline::Latest, Recovering::ToTarget) => {
                let kept = self
                    .chain(search)
                    .into_iter()
                    .rfind(|number| self.is_kept(*number));
                vec![kept.unwrap_or(search)]
            }
            (TargetTimeline::Latest, Recovering::Standby) => self.targets_of_standby(search.max(timeline)),
        }
    }

    /// A standby follows the timeline that was the newest when it last looked. It goes over only to the one that is the
    /// newest now, if that descends from it.
    fn targets_of_standby(&self, from: TimelineId) -> Vec<TimelineId> {
        let chain = self.chain(from);
        let newest = chain.last().copied().unwrap_or(from);
        let may_follow = |number: &TimelineId| *number == from || self.is_kept(*number);
        let followed = std::iter::once(from).chain(chain).filter(may_follow);
        let mut targets: Vec<TimelineId> = followed
            .map(|followed| {
                let goes_over = self.fork_on(newest, followed).is_some();
                if goes_over { newest } else { followed }
            })
            .collect();
        targets.dedup();
        targets
    }

    /// The timelines after this one whose histories the server finds one after the other (`findNewestTimeLine`).
    fn chain(&self, from: TimelineId) -> Vec<TimelineId> {
        let numbers = (from.get()..u32::MAX).map_while(|number| TimelineId::new(number + 1).ok());
        numbers
            .take_while(|number| self.histories.contains_key(number))
            .collect()
    }

    fn is_kept(&self, number: TimelineId) -> bool {
        self.histories.get(&number).is_some_and(|visible| visible.kept)
    }

    /// Where a timeline's history leaves one of its ancestors.
    fn fork_on(&self, target: TimelineId, ancestor: TimelineId) -> Option<Fork> {
        let history = &self.histories.get(&target)?.history;
        let ancestors = history.ancestors();
        let at = history.end_of(ancestor)?;
        let position = ancestors.iter().position(|entry| entry.timeline == ancestor)?;
        let child = ancestors.get(position + 1).map_or(target, |entry| entry.timeline);
        Some(Fork {
            by: target,
            at,
            child,
        })
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
