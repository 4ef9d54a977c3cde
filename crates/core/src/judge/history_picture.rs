//! What a picture of the recoverable history shows, and where in time: a lane for each timeline, what is archived of it,
//! gaps and what retention released, where it left its parent, the backups, and what can be recovered now.
//!
//! *Times.* The catalogue knows when backups began and ended, the last commits of recoverable WAL, what drills replayed,
//! when a timeline's newest segment and its history came into the store, and when the archive was begun. Everything else,
//! such as where a gap lies, is placed between those by its position in the WAL, as if WAL had been written evenly. A gap
//! may so be drawn some hours beside its real time; its segments, which are named, are exact.

mod axis;
mod clock;
mod lanes;
#[cfg(test)]
mod tests;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub use self::axis::Period;
use super::catalogue::{Catalogue, UnfinishedState};
use super::recovery_plan;
use super::window::Window;
use crate::error::Result;
use crate::format::keys::BackupId;
use crate::format::proof::Proven;
use crate::format::wal_inventory::SegmentRange;
use crate::pg::{Lsn, SegmentName, TimelineId};

/// The recoverable history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct History {
    /// The periods in which there is something to show, in the order of time; the last one ends now, or later where a
    /// clock is ahead. What lies between two of them is long, and nothing is archived there.
    pub periods: Vec<Period>,
    /// The timelines, oldest first. Those of which nothing is left are absent.
    pub lanes: Vec<Lane>,
    /// The timeline that a recovery follows if it names none; null where only a person can choose, or nothing is there.
    pub followed: Option<TimelineId>,
    /// The moment that all this is about.
    pub now: DateTime<Utc>,
}

/// What there is of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lane {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it left its parent; null where it has none, or where its history cannot be read.
    pub fork: Option<Fork>,
    /// The WAL, in its order.
    pub stretches: Vec<Stretch>,
    /// The backups that ended on it, in the order of time. A backup whose record cannot be read is put on the timeline
    /// that had begun last when it was taken.
    pub backups: Vec<Mark>,
    /// When this timeline's own part of the history can be recovered, in the order of time.
    pub recoverable: Vec<Period>,
    /// Positions that no recovery crosses.
    pub barriers: Vec<BarrierMark>,
    /// The newest archived segment.
    pub last: Option<LastSegment>,
    /// Why nobody is to follow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired: Option<String>,
    /// Why its history cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// Where a timeline left its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fork {
    /// The parent.
    pub timeline: TimelineId,
    /// Where.
    pub lsn: Lsn,
    /// When the parent was at that position.
    pub left_at: DateTime<Utc>,
    /// When the timeline began: later than that where a copy was recovered to an earlier moment.
    pub begins_at: DateTime<Utc>,
}

/// Consecutive segments of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// What is known of them.
    pub kind: StretchKind,
    /// Which.
    pub segments: SegmentRange,
    /// About when they were written.
    pub period: Period,
}

/// What is known of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StretchKind {
    /// They are in the archive.
    Archived,
    /// They are not, because retention has released them.
    Released,
    /// They are in the archive, and known to be damaged.
    Damaged,
    /// They are missing.
    Gap,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// Its id.
    pub id: BackupId,
    /// From its start to its end; for an unfinished one, to the last sign of it.
    pub period: Period,
    /// Whether it can be restored.
    pub state: MarkState,
    /// The label the user gave; empty where that is not known.
    pub label: String,
    /// Bytes in the store; null where that is not known.
    pub stored_bytes: Option<u64>,
    /// Until when it is kept whatever the policy says: "for ever", or "until" a moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// What drills showed of it.
    pub proven: Proven,
}

/// Whether a backup can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum MarkState {
    /// It can.
    Restorable,
    /// It can, to its own end and nowhere else: retention has released the WAL that follows.
    StandsAlone,
    /// It cannot.
    Unrestorable {
        /// Why, for people.
        reason: String,
    },
    /// It has no record.
    Unfinished {
        /// How far it came.
        state: UnfinishedState,
    },
}

/// A position that no recovery crosses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BarrierMark {
    /// The position.
    pub lsn: Lsn,
    /// About when.
    pub at: DateTime<Utc>,
    /// Why.
    pub reason: String,
}

/// The newest segment of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LastSegment {
    /// The segment.
    pub segment: SegmentName,
    /// Where the lane ends.
    pub at: DateTime<Utc>,
    /// When the store got it, by its clock.
    pub stored_at: Option<DateTime<Utc>>,
}

impl History {
    /// From what an archive holds, and its windows.
    ///
    /// # Errors
    /// `Invalid` for positions that no segment has.
    pub fn of(catalogue: &Catalogue, windows: &[Window], now: DateTime<Utc>) -> Result<Self> {
        let lanes = lanes::lanes(catalogue, windows, now)?;
        let mut shown: Vec<Period> = lanes.iter().flat_map(Lane::shown).collect();
        if !shown.is_empty() {
            shown.push(Period::new(now, now));
        }
        let followed = recovery_plan::followed(catalogue)
            .ok()
            .and_then(std::result::Result::ok);
        Ok(Self {
            periods: axis::pieces(shown),
            followed: followed.filter(|followed| lanes.iter().any(|lane| lane.timeline == *followed)),
            lanes,
            now,
        })
    }

    /// The backups of all timelines.
    pub fn backups(&self) -> impl Iterator<Item = &Mark> {
        self.lanes.iter().flat_map(|lane| &lane.backups)
    }
}

impl Lane {
    /// When there is something of it to show. What was released is not there.
    fn shown(&self) -> impl Iterator<Item = Period> {
        let wal = self
            .stretches
            .iter()
            .filter(|stretch| stretch.kind != StretchKind::Released);
        let backups = self.backups.iter().map(|mark| mark.period);
        let fork = self.fork.map(|fork| Period::new(fork.begins_at, fork.begins_at));
        let last = self.last.map(|last| Period::new(last.at, last.at));
        wal.map(|stretch| stretch.period)
            .chain(backups)
            .chain(self.recoverable.iter().copied())
            .chain(fork)
            .chain(last)
    }
}
