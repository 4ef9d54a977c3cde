//! `retention.json`: the WAL that retention has released.
//!
//! `walship expire` writes it before it deletes WAL. So WAL that was deleted on purpose can be told from WAL that was
//! lost. It only grows. Where it is absent, nothing was released.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::keys::Key;
use super::ranges::RangeSet;
use super::{FORMAT_VERSION, Stored, record};
use crate::error::{Error, Result};
use crate::pg::{SegmentName, SegmentNumber, SegmentSize, TimelineId};

/// Segments of several timelines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimelineRanges(BTreeMap<TimelineId, RangeSet>);

impl TimelineRanges {
    /// The segments of a timeline, to be changed.
    pub fn of_mut(&mut self, timeline: TimelineId) -> &mut RangeSet {
        self.0.entry(timeline).or_default()
    }

    /// The segments of a timeline.
    #[must_use]
    pub fn of(&self, timeline: TimelineId) -> Option<&RangeSet> {
        self.0.get(&timeline)
    }

    /// Whether a segment is among them.
    #[must_use]
    pub fn contains(&self, timeline: TimelineId, segment: SegmentNumber) -> bool {
        self.of(timeline).is_some_and(|ranges| ranges.contains(segment.0))
    }

    /// Adds all segments of another set.
    pub fn add(&mut self, other: &Self) {
        for (timeline, ranges) in &other.0 {
            self.of_mut(*timeline).add(ranges);
        }
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        for (timeline, ranges) in &other.0 {
            if let Some(mine) = self.0.get_mut(timeline) {
                mine.subtract(ranges);
            }
        }
        self.0.retain(|_, ranges| !ranges.is_empty());
    }

    /// Every timeline with its segments, in ascending order.
    fn iter(&self) -> impl Iterator<Item = (TimelineId, &RangeSet)> {
        self.0.iter().map(|(timeline, ranges)| (*timeline, ranges))
    }

    /// Removes this segment and all later ones, on every timeline.
    pub fn remove_from(&mut self, first: SegmentNumber) {
        for ranges in self.0.values_mut() {
            ranges.remove_range(first.0, u64::MAX);
        }
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.values().all(RangeSet::is_empty)
    }
}

/// The WAL that retention has released, and since when: what `retention.json` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The cluster's.
    pub segment_size: SegmentSize,
    /// When it was written, by the writer's clock.
    pub at: DateTime<Utc>,
    /// What was released.
    pub released: TimelineRanges,
}

/// The content of `retention.json`.
#[derive(Serialize, Deserialize)]
struct Content {
    format_version: u32,
    walship: String,
    at: DateTime<Utc>,
    released_wal: Vec<StoredRange>,
}

/// Consecutive segments on one timeline, both ends included.
#[derive(Serialize, Deserialize)]
struct StoredRange {
    first: String,
    last: String,
}

impl Stored for Retention {
    type Of = SegmentSize;
    /// About 90 for each gap.
    const LIMIT_BYTES: u64 = 64 << 20;

    fn key(_: &SegmentSize) -> Key {
        Key::Retention
    }

    fn parse(bytes: &[u8], url: &str, size: &SegmentSize) -> Result<Self> {
        let content: Content = record::parse(bytes, url)?;
        let mut released = TimelineRanges::default();
        for StoredRange { first, last } in content.released_wal {
            let bad = || {
                Error::corrupt(format!(
                    "{url} is damaged: {first} to {last} is not a range of WAL segments"
                ))
            };
            let name = |text: &str| text.parse::<SegmentName>().map_err(|_| bad());
            let (from, to) = (name(&first)?, name(&last)?);
            if from.timeline() != to.timeline() {
                return Err(bad());
            }
            let number = |name: SegmentName| name.number(*size).map_err(|_| bad());
            released
                .of_mut(from.timeline())
                .insert_range(number(from)?.0, number(to)?.0);
        }
        Ok(Self {
            segment_size: *size,
            at: content.at,
            released,
        })
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut released_wal = Vec::new();
        for (timeline, ranges) in self.released.iter() {
            let name = |number| SegmentName::new(timeline, SegmentNumber(number), self.segment_size);
            for (first, last) in ranges.iter() {
                released_wal.push(StoredRange {
                    first: name(first)?.to_string(),
                    last: name(last)?.to_string(),
                });
            }
        }
        record::to_bytes(&Content {
            format_version: FORMAT_VERSION,
            walship: env!("CARGO_PKG_VERSION").to_owned(),
            at: self.at,
            released_wal,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    #[test]
    fn what_was_released_reads_back_as_it_was_written() {
        let mut released = TimelineRanges::default();
        released.of_mut(TimelineId::FIRST).insert_range(0, 254);
        released.of_mut(TimelineId::FIRST).insert_range(256, 1000);
        released.of_mut(TimelineId::new(7).unwrap()).insert(3);
        let retention = Retention {
            segment_size: SIZE,
            at: DateTime::UNIX_EPOCH,
            released,
        };
        let bytes = retention.to_bytes().unwrap();
        assert_eq!(Retention::parse(&bytes, "u", &SIZE).unwrap(), retention);
    }

    #[test]
    fn an_impossible_range_is_an_error() {
        for (first, last) in [
            ("000000010000000000000001", "000000020000000000000002"),
            ("x", "000000020000000000000002"),
            ("000000010000000000000001", "0000000100000000000001FF"),
        ] {
            let content = serde_json::json!({
                "format_version": 1, "walship": "0", "at": "2026-01-01T00:00:00Z",
                "released_wal": [{"first": first, "last": last}],
            });
            let bytes = record::to_bytes(&content).unwrap();
            let error = Retention::parse(&bytes, "u", &SIZE).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
    }
}
