//! Where in the WAL a moment lies: before the first end of a transaction that is later than the moment
//! (`recoveryStopsBefore`, `xlogrecovery.c`), and after the last record with a time that is not later.

use chrono::{DateTime, Utc};

use super::SegmentIndex;
use crate::pg::{Lsn, WalEvent, WalEventKind, WalTime};

/// What a segment holds of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomentIn {
    /// It ends within the segment, or may: only reading the segment shows where.
    Read,
    /// It goes on after the segment; this is the last record here that belongs to it.
    GoesOn(Option<Lsn>),
}

/// The record before which a moment ends, and the last record that belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MomentEnd {
    /// The last record that belongs to it: a transaction ended or was prepared, or a restore point was made.
    pub last: Option<Lsn>,
    /// The first end of a transaction that is too late, and its time.
    pub later: Option<(Lsn, DateTime<Utc>)>,
}

impl SegmentIndex {
    /// What the segment holds of the moment after which `stops` is true of a time.
    #[must_use]
    pub fn moment(&self, stops: impl Fn(DateTime<Utc>) -> bool) -> MomentIn {
        if self.ends().is_some_and(|ends| stops(ends.largest.time)) || self.valid_until.is_some() {
            return MomentIn::Read;
        }
        let prepares = self.prepares.filter(|all| !stops(all.smallest.time));
        if prepares.is_some_and(|all| stops(all.largest.time)) {
            return MomentIn::Read;
        }
        let points = self.restore_points.iter().filter(|point| !stops(point.time));
        let all = [self.ends(), prepares]
            .into_iter()
            .flatten()
            .map(|ends| ends.last.lsn);
        MomentIn::GoesOn(all.chain(points.map(|point| point.lsn)).max())
    }
}

impl MomentEnd {
    /// Takes the next record into account.
    pub fn add(&mut self, event: &WalEvent, stops: impl Fn(DateTime<Utc>) -> bool) {
        let Some((time, ends)) = time_of(&event.kind) else {
            return;
        };
        // PostgreSQL takes a time beyond year 9999 as it is; a segment with one has no index.
        let Some(time) = time.to_utc().filter(|_| self.later.is_none()) else {
            return;
        };
        match (stops(time), ends) {
            (true, true) => self.later = Some((event.start, time)),
            (true, false) => {}
            (false, _) => self.last = Some(event.start),
        }
    }
}

/// When something happened, and whether it is the end of a transaction.
fn time_of(kind: &WalEventKind) -> Option<(WalTime, bool)> {
    match kind {
        WalEventKind::Commit(ended)
        | WalEventKind::Abort(ended)
        | WalEventKind::CommitPrepared(ended)
        | WalEventKind::AbortPrepared(ended) => Some((ended.time, true)),
        WalEventKind::Prepare(prepared) => Some((prepared.time, false)),
        WalEventKind::RestorePoint { time, .. } => Some((*time, false)),
        WalEventKind::Change(_) | WalEventKind::End { .. } => None,
    }
}
