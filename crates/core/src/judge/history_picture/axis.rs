//! The pieces of time that are drawn to scale. What lies between two of them is folded: nothing is archived there, and it
//! would press the rest together. A yearly backup that is kept beside the last two weeks is such a case, and an archive
//! that nobody has written to for months.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

/// Time without anything to show is folded if it is longer than this, and
const FOLDED_FROM: TimeDelta = TimeDelta::minutes(10);
/// than this share of the time with something to show.
const FOLDED_SHARE: i32 = 5;

/// From one moment to a later one, or the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Period {
    /// The first moment.
    pub from: DateTime<Utc>,
    /// The last moment.
    pub until: DateTime<Utc>,
}

impl Period {
    pub(super) fn new(from: DateTime<Utc>, until: DateTime<Utc>) -> Self {
        Self {
            from,
            until: until.max(from),
        }
    }

    /// How long it is.
    #[must_use]
    pub fn length(&self) -> TimeDelta {
        self.until - self.from
    }
}

/// Periods that touch or overlap become one; in the order of time.
pub(super) fn united(mut periods: Vec<Period>) -> Vec<Period> {
    periods.sort_by_key(|period| period.from);
    let mut all: Vec<Period> = Vec::new();
    for period in periods {
        match all.last_mut() {
            Some(last) if period.from <= last.until => last.until = last.until.max(period.until),
            _ => all.push(period),
        }
    }
    all
}

/// The pieces of the axis, in the order of time. `shown`: when there is something to show.
pub(super) fn pieces(shown: Vec<Period>) -> Vec<Period> {
    let shown = united(shown);
    let length: TimeDelta = shown.iter().map(Period::length).sum();
    let folded_from = FOLDED_FROM.max(length / FOLDED_SHARE);
    let mut pieces: Vec<Period> = Vec::new();
    for period in shown {
        match pieces.last_mut() {
            Some(last) if period.from - last.until <= folded_from => last.until = period.until,
            _ => pieces.push(period),
        }
    }
    pieces
}
