//! When WAL was written, as far as the catalogue can tell.
//!
//! A segment's own time is in the segment, and nobody reads ten thousand segments for a picture. So the known moments of
//! a timeline are lined up by position, and what lies between two of them is placed by its distance, as if WAL had been
//! written evenly.

use chrono::{DateTime, TimeDelta, Utc};

use crate::pg::{Lsn, SegmentSize};

/// Two known moments of one timeline tell a rate only if they are at least this many segments apart: a backup of an idle
/// server takes minutes and writes a few hundred bytes.
const SEGMENTS_FOR_A_RATE: u64 = 2;

/// A position and a moment at which the WAL was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) lsn: Lsn,
    pub(super) at: DateTime<Utc>,
    /// By the server's clock, from a backup or a commit. Otherwise by the store's, which tells when an object came: in a
    /// copied archive that is the day of the copy.
    pub(super) by_server: bool,
}

/// The clock of one timeline.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    /// Neither positions nor moments go back.
    points: Vec<(Lsn, DateTime<Utc>)>,
    /// Nothing is placed before this: the timeline did not exist.
    begins_at: Option<DateTime<Utc>>,
    segment_bytes: u64,
}

impl Clock {
    /// From what is known, in any order, and where and when the timeline began. What the server's clock said goes before what the store's said; where a clock
    /// went back, the later moment counts for both.
    pub(super) fn new(known: &[Known], begins: Option<(Lsn, DateTime<Utc>)>, size: SegmentSize) -> Self {
        let sorted = |by_server: bool| {
            let mut points: Vec<_> = known
                .iter()
                .filter(|known| known.by_server == by_server)
                .collect();
            points.sort_by_key(|known| (known.lsn, known.at));
            points
        };
        let mut clock = Self {
            points: begins.into_iter().collect(),
            begins_at: begins.map(|(_, at)| at),
            segment_bytes: size.bytes(),
        };
        let (first, mut latest) = begins.unwrap_or((Lsn(0), DateTime::<Utc>::MIN_UTC));
        for known in sorted(true).into_iter().filter(|known| known.lsn >= first) {
            latest = latest.max(known.at);
            clock.points.push((known.lsn, latest));
        }
        for known in sorted(false) {
            clock.fit_in(known, size.bytes());
        }
        clock
    }

    /// Adds a moment of the store's clock where it agrees with those around it, and tells more than they do.
    fn fit_in(&mut self, known: &Known, segment_bytes: u64) {
        let place = self.points.partition_point(|(lsn, _)| *lsn <= known.lsn);
        let before = place.checked_sub(1).and_then(|before| self.points.get(before));
        let after = self.points.get(place);
        let is_near = |point: Option<&(Lsn, DateTime<Utc>)>| {
            point.is_some_and(|(lsn, _)| lsn.0.abs_diff(known.lsn.0) < segment_bytes)
        };
        let agrees = before.is_none_or(|(_, at)| *at <= known.at)
            && after.is_none_or(|(_, at)| known.at <= *at)
            && self.begins_at.is_none_or(|begin| begin <= known.at);
        if agrees && !is_near(before) && !is_near(after) {
            self.points.insert(place, (known.lsn, known.at));
        }
    }

    /// The first known moment at or after a position.
    pub(super) fn first_from(&self, lsn: Lsn) -> Option<DateTime<Utc>> {
        let place = self.points.partition_point(|(known, _)| *known < lsn);
        self.points.get(place).map(|(_, at)| *at)
    }

    /// When the WAL before a position was written. `None` where no moment of the timeline is known at all.
    pub(super) fn at(&self, lsn: Lsn) -> Option<DateTime<Utc>> {
        let place = self.points.partition_point(|(known, _)| *known <= lsn);
        let before = place.checked_sub(1).and_then(|before| self.points.get(before));
        let at = match (before, self.points.get(place)) {
            (Some(before), Some(after)) => between(*before, *after, lsn),
            (Some((known, at)), None) => *at + self.time_of(lsn.0 - known.0),
            (None, Some((known, at))) => *at - self.time_of(known.0 - lsn.0),
            (None, None) => return self.begins_at,
        };
        Some(at.max(self.begins_at.unwrap_or(at)))
    }

    /// How long it took to write so many bytes, at the timeline's average rate; no time where that is not known.
    fn time_of(&self, bytes: u64) -> TimeDelta {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            return TimeDelta::zero();
        };
        let written = last.0.0 - first.0.0;
        if written < SEGMENTS_FOR_A_RATE * self.segment_bytes {
            return TimeDelta::zero();
        }
        share(last.1 - first.1, bytes, written)
    }
}

fn between(before: (Lsn, DateTime<Utc>), after: (Lsn, DateTime<Utc>), lsn: Lsn) -> DateTime<Utc> {
    before.1 + share(after.1 - before.1, lsn.0 - before.0.0, after.0.0 - before.0.0)
}

/// `time` × `bytes` / `of`, within what a picture can show.
fn share(time: TimeDelta, bytes: u64, of: u64) -> TimeDelta {
    let ms = i128::from(time.num_milliseconds()) * i128::from(bytes) / i128::from(of.max(1));
    // At most a hundred years, so that no sum of a moment and this overflows.
    TimeDelta::milliseconds(ms.clamp(0, 100 * 365 * 86_400_000) as i64)
}
