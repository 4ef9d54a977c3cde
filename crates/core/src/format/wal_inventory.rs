//! Which WAL an archive holds, learnt from its listing alone.
//!
//! Keys may come in any order, because some servers do not list bytewise. Memory grows with the number of gaps, not of
//! segments: neighbours merge into ranges as they come.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::barriers::{Barrier, Barriers};
use super::keys::Key;
use super::ranges::RangeSet;
use crate::error::Result;
use crate::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};

/// The WAL of an archive.
#[derive(Debug, Clone)]
pub struct WalInventory {
    segment_size: SegmentSize,
    timelines: BTreeMap<TimelineId, HeldTimeline>,
    retired: BTreeSet<TimelineId>,
    foreign: u64,
    empty: u64,
    stored_bytes: u64,
    /// The records that no recovery crosses, as far as they were searched for.
    barriers: Barriers,
}

/// What the archive holds of one timeline.
#[derive(Debug, Clone, Default)]
struct HeldTimeline {
    segments: RangeSet,
    partials: u64,
    history: bool,
    newest_stored: Option<DateTime<Utc>>,
    history_stored: Option<DateTime<Utc>>,
}

/// Consecutive segments on one timeline, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SegmentRange {
    /// The first one.
    pub first: SegmentName,
    /// The last one.
    pub last: SegmentName,
    /// How many they are.
    pub segments: u64,
}

impl SegmentRange {
    /// The segments of a timeline from `first` to `last`.
    ///
    /// # Errors
    /// `Invalid` where a number lies beyond the last LSN.
    pub fn new(
        timeline: TimelineId,
        first: SegmentNumber,
        last: SegmentNumber,
        size: SegmentSize,
    ) -> Result<Self> {
        Ok(Self {
            first: SegmentName::new(timeline, first, size)?,
            last: SegmentName::new(timeline, last, size)?,
            segments: (last.0 + 1).saturating_sub(first.0),
        })
    }
}

impl std::fmt::Display for SegmentRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.segments {
            1 => write!(f, "{}", self.first),
            segments => write!(f, "{} to {} ({segments} segments)", self.first, self.last),
        }
    }
}

impl WalInventory {
    /// An empty inventory.
    #[must_use]
    pub fn new(segment_size: SegmentSize) -> Self {
        Self {
            segment_size,
            timelines: BTreeMap::new(),
            retired: BTreeSet::new(),
            foreign: 0,
            empty: 0,
            stored_bytes: 0,
            barriers: Barriers::default(),
        }
    }

    /// Notes a position that no recovery crosses, in a segment of this timeline.
    pub fn add_barrier(&mut self, timeline: TimelineId, barrier: Barrier) {
        self.barriers.add(timeline, barrier);
    }

    /// What is known of such records.
    #[must_use]
    pub fn barriers(&self) -> &Barriers {
        &self.barriers
    }

    /// The same, to be extended, or replaced by what is known from elsewhere.
    pub fn barriers_mut(&mut self) -> &mut Barriers {
        &mut self.barriers
    }

    /// The first record from a position on that no recovery crosses, in the segments of a timeline up to `last`.
    #[must_use]
    pub fn barrier(
        &self,
        timeline: TimelineId,
        first: SegmentNumber,
        last: SegmentNumber,
        from: Lsn,
    ) -> Option<Barrier> {
        let begin = from.max(self.segment_size.start_of(first));
        let end = self.segment_size.start_of(last.next());
        self.barriers.first(timeline, begin, end)
    }

    /// Notes a listed object below `wal/`. Anything that is not a key of an archive is counted and otherwise ignored.
    /// An empty object is never a WAL file, so it does not count as held.
    pub fn add(&mut self, key: &str, size_bytes: u64) {
        self.stored_bytes += size_bytes;
        match key.parse() {
            // Its reader finds out whether it is valid.
            Ok(Key::Retired(timeline)) => {
                self.retired.insert(timeline);
            }
            Ok(_) if size_bytes == 0 => self.empty += 1,
            Ok(Key::Segment(name)) => match name.number(self.segment_size) {
                Ok(number) => self.timeline(name.timeline()).segments.insert(number.0),
                Err(_) => self.foreign += 1,
            },
            Ok(Key::Partial { segment, .. }) => self.timeline(segment.timeline()).partials += 1,
            Ok(Key::History(timeline)) => self.timeline(timeline).history = true,
            Ok(Key::BackupHistory { .. }) => {}
            Ok(Key::Identity | Key::Retention | Key::Backup(..) | Key::Ledger(_) | Key::Damaged { .. })
            | Err(_) => {
                self.foreign += 1;
            }
        }
    }

    /// Removes segments again, because the objects found there are not these segments.
    ///
    /// # Errors
    /// `Invalid` for a name that no segment of this cluster has.
    pub(crate) fn remove(&mut self, range: SegmentRange) -> Result<()> {
        let (first, last) = (
            range.first.number(self.segment_size)?,
            range.last.number(self.segment_size)?,
        );
        if let Some(held) = self.timelines.get_mut(&range.first.timeline()) {
            held.segments.remove_range(first.0, last.0);
        }
        Ok(())
    }

    /// As [`WalInventory::add`], and remembers when the store says the object was stored.
    pub fn add_stored(&mut self, key: &str, size_bytes: u64, stored_at: DateTime<Utc>) {
        self.add(key, size_bytes);
        match key.parse() {
            Ok(Key::Segment(segment) | Key::Partial { segment, .. }) => {
                let newest = &mut self.timeline(segment.timeline()).newest_stored;
                *newest = (*newest).max(Some(stored_at));
            }
            Ok(Key::History(timeline)) => self.timeline(timeline).history_stored = Some(stored_at),
            _ => {}
        }
    }

    /// When the newest segment or `.partial` of a timeline was stored, by the store's clock; `None` where there is
    /// none, or its time was not noted.
    #[must_use]
    pub fn newest_stored(&self, timeline: TimelineId) -> Option<DateTime<Utc>> {
        self.timelines.get(&timeline)?.newest_stored
    }

    /// When a timeline's history was stored, by the store's clock; `None` where there is none, or its time was not
    /// noted.
    pub(crate) fn history_stored(&self, timeline: TimelineId) -> Option<DateTime<Utc>> {
        self.timelines.get(&timeline)?.history_stored
    }

    /// The timelines that have a mark of `walship timeline retire`.
    pub fn retired(&self) -> impl Iterator<Item = TimelineId> {
        self.retired.iter().copied()
    }

    fn timeline(&mut self, timeline: TimelineId) -> &mut HeldTimeline {
        self.timelines.entry(timeline).or_default()
    }

    /// The cluster's segment size.
    #[must_use]
    pub fn segment_size(&self) -> SegmentSize {
        self.segment_size
    }

    /// Objects below `wal/` that walship did not write.
    #[must_use]
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Bytes of everything below `wal/`, as stored.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Objects with a WAL file's key and no content.
    #[must_use]
    pub fn empty(&self) -> u64 {
        self.empty
    }

    /// Every timeline that the archive holds anything of, in ascending order.
    pub fn timelines(&self) -> impl Iterator<Item = TimelineId> {
        self.timelines.keys().copied()
    }

    /// The timelines whose history is in the archive, in ascending order.
    pub fn histories(&self) -> impl Iterator<Item = TimelineId> {
        self.timelines
            .iter()
            .filter(|(_, held)| held.history)
            .map(|(timeline, _)| *timeline)
    }

    /// How many `.partial` objects a timeline has.
    #[must_use]
    pub fn partials(&self, timeline: TimelineId) -> u64 {
        self.timelines.get(&timeline).map_or(0, |held| held.partials)
    }

    /// From the first to the last segment held of a timeline; `segments` counts those held. `None`
    /// where it has none.
    #[must_use]
    pub fn span(&self, timeline: TimelineId) -> Option<SegmentRange> {
        let held = self.ranges_of(timeline)?;
        let (first, last) = (held.first()?, held.last()?);
        let mut span = self.range(timeline, first, last)?;
        span.segments = held.count();
        Some(span)
    }

    /// How many of these segments are held.
    ///
    /// # Errors
    /// `Invalid` for a name that no segment of this cluster has.
    pub fn count_within(&self, range: &SegmentRange) -> Result<u64> {
        let (first, last) = (
            range.first.number(self.segment_size)?,
            range.last.number(self.segment_size)?,
        );
        let mut wanted = RangeSet::default();
        wanted.insert_range(first.0, last.0);
        let held = self.ranges_of(range.first.timeline());
        Ok(held.map_or(0, |held| held.intersection(&wanted).count()))
    }

    /// The runs of segments held of a timeline, in ascending order.
    pub fn ranges(&self, timeline: TimelineId) -> impl Iterator<Item = SegmentRange> {
        self.ranges_of(timeline)
            .into_iter()
            .flat_map(RangeSet::iter)
            .filter_map(move |(first, last)| self.range(timeline, first, last))
    }

    /// The runs of segments that are missing between the first and the last one of a timeline.
    pub(crate) fn gaps(&self, timeline: TimelineId) -> impl Iterator<Item = SegmentRange> {
        let ranges = || self.ranges_of(timeline).into_iter().flat_map(RangeSet::iter);
        ranges()
            .zip(ranges().skip(1))
            .filter_map(move |((_, before), (after, _))| self.range(timeline, before + 1, after - 1))
    }

    /// Whether the archive holds a segment.
    #[must_use]
    pub fn contains(&self, timeline: TimelineId, segment: SegmentNumber) -> bool {
        self.contiguous_from(timeline, segment).is_some()
    }

    /// The last segment of the unbroken run that begins with this one; `None` where it is missing.
    pub(crate) fn contiguous_from(
        &self,
        timeline: TimelineId,
        segment: SegmentNumber,
    ) -> Option<SegmentNumber> {
        self.ranges_of(timeline)?.end_of_run(segment.0).map(SegmentNumber)
    }

    /// The first segment held of a timeline at or after this one.
    pub(crate) fn first_from(&self, timeline: TimelineId, segment: SegmentNumber) -> Option<SegmentNumber> {
        self.ranges_of(timeline)?.first_from(segment.0).map(SegmentNumber)
    }

    /// The newest segment held of a timeline.
    #[must_use]
    pub fn newest(&self, timeline: TimelineId) -> Option<SegmentNumber> {
        self.ranges_of(timeline)?.last().map(SegmentNumber)
    }

    /// The numbers of the segments held of a timeline.
    #[must_use]
    pub fn held(&self, timeline: TimelineId) -> RangeSet {
        self.ranges_of(timeline).cloned().unwrap_or_default()
    }

    fn ranges_of(&self, timeline: TimelineId) -> Option<&RangeSet> {
        Some(&self.timelines.get(&timeline)?.segments)
    }

    /// Only numbers that came from a segment's name are held, so each has a name.
    fn range(&self, timeline: TimelineId, first: u64, last: u64) -> Option<SegmentRange> {
        SegmentRange::new(
            timeline,
            SegmentNumber(first),
            SegmentNumber(last),
            self.segment_size,
        )
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn key(number: u64) -> String {
        let name = SegmentName::new(TimelineId::FIRST, SegmentNumber(number), SIZE).unwrap();
        Key::Segment(name).to_string()
    }

    fn inventory(numbers: &[u64]) -> WalInventory {
        let mut inventory = WalInventory::new(SIZE);
        for number in numbers {
            inventory.add(&key(*number), 1);
        }
        inventory
    }

    fn numbers(range: SegmentRange) -> (u64, u64) {
        let number = |name: SegmentName| name.number(SIZE).unwrap().0;
        (number(range.first), number(range.last))
    }

    proptest! {
        #[test]
        fn in_any_order_it_knows_what_a_plain_set_knows(
            // Around the boundary of a log number, where names are not consecutive.
            listed in prop::collection::vec(220..300_u64, 0..120),
            removed in prop::collection::vec(220..300_u64, 0..20),
            probe in 215..305_u64,
        ) {
            let mut inventory = inventory(&listed);
            let mut set: BTreeSet<u64> = listed.iter().copied().collect();
            for number in removed {
                set.remove(&number);
                let range = SegmentRange::new(TimelineId::FIRST, SegmentNumber(number), SegmentNumber(number), SIZE);
                inventory.remove(range.unwrap()).unwrap();
            }
            let tli = TimelineId::FIRST;
            let in_ranges: Vec<u64> = inventory.ranges(tli).map(numbers).flat_map(|(a, b)| a..=b).collect();
            prop_assert_eq!(&in_ranges, &set.iter().copied().collect::<Vec<_>>());
            let missing: Vec<u64> = match (set.first(), set.last()) {
                (Some(first), Some(last)) => (*first..=*last).filter(|n| !set.contains(n)).collect(),
                _ => Vec::new(),
            };
            let in_gaps: Vec<u64> = inventory.gaps(tli).map(numbers).flat_map(|(a, b)| a..=b).collect();
            prop_assert_eq!(in_gaps, missing);
            prop_assert_eq!(inventory.gaps(tli).count() + usize::from(!set.is_empty()), inventory.ranges(tli).count());
            prop_assert_eq!(inventory.contains(tli, SegmentNumber(probe)), set.contains(&probe));
            let run = (probe..400).take_while(|n| set.contains(n)).last();
            prop_assert_eq!(inventory.contiguous_from(tli, SegmentNumber(probe)).map(|n| n.0), run);
            prop_assert_eq!(
                inventory.first_from(tli, SegmentNumber(probe)).map(|n| n.0),
                set.range(probe..).next().copied()
            );
            prop_assert_eq!(inventory.newest(tli).map(|n| n.0), set.last().copied());
            prop_assert_eq!(inventory.span(tli).map(|span| span.segments), (!set.is_empty()).then_some(set.len() as u64));
        }
    }

    #[test]
    fn memory_does_not_grow_with_the_number_of_segments() {
        let mut inventory = WalInventory::new(SIZE);
        for number in (0..20_000).rev() {
            inventory.add(&key(number), 1);
            assert!(inventory.ranges(TimelineId::FIRST).count() <= 1);
        }
        assert_eq!(inventory.span(TimelineId::FIRST).unwrap().segments, 20_000);
    }

    #[test]
    fn foreign_keys_are_counted_and_otherwise_ignored() {
        let mut inventory = WalInventory::new(SegmentSize::new(1 << 30).unwrap());
        for key in [
            "wal/notes.txt",
            "wal/00000001/0000000100000000/00000001000000000000002a.zst",
            // Not a segment of a cluster with segments of 1 GiB.
            "wal/00000001/0000000100000000/000000010000000000000004.zst",
            "walship.json",
        ] {
            inventory.add(key, 1);
        }
        assert_eq!(inventory.foreign(), 4);
        assert_eq!(inventory.timelines().count(), 0);
    }

    #[test]
    fn every_stored_byte_counts_whatever_it_is_of() {
        let mut inventory = WalInventory::new(SIZE);
        assert_eq!(inventory.stored_bytes(), 0);
        for (key, bytes) in [
            (key(2), 3),
            ("wal/00000002.history.zst".to_owned(), 4),
            ("wal/x".to_owned(), 5),
        ] {
            inventory.add(&key, bytes);
        }
        assert_eq!(inventory.stored_bytes(), 12);
    }

    #[test]
    fn each_partial_counts() {
        let mut inventory = inventory(&[1]);
        assert_eq!(inventory.partials(TimelineId::FIRST), 0);
        for xxh3_start in [7, 8] {
            let segment = SegmentName::new(TimelineId::FIRST, SegmentNumber(2), SIZE).unwrap();
            let partial = Key::Partial { segment, xxh3_start };
            inventory.add(&partial.to_string(), 1);
        }
        assert_eq!(inventory.partials(TimelineId::FIRST), 2);
        assert!(!inventory.contains(TimelineId::FIRST, SegmentNumber(2)));
    }

    #[test]
    fn an_empty_object_is_not_a_segment() {
        let mut inventory = inventory(&[1, 3]);
        assert_eq!(inventory.empty(), 0);
        inventory.add(&key(2), 0);
        inventory.add(&key(2), 0);
        assert_eq!(inventory.empty(), 2);
        assert!(!inventory.contains(TimelineId::FIRST, SegmentNumber(2)));
        assert_eq!(
            inventory.gaps(TimelineId::FIRST).map(numbers).collect::<Vec<_>>(),
            [(2, 2)]
        );
    }

    #[test]
    fn histories_and_partials_are_noted_by_timeline() {
        let mut inventory = WalInventory::new(SIZE);
        inventory.add("wal/00000002.history.zst", 1);
        inventory.add(
            "wal/00000001/0000000100000003/00000001000000030000002A.00000000000000ab.partial.zst",
            1,
        );
        inventory.add(
            "wal/00000001/0000000100000003/00000001000000030000002A.00000028.backup.zst",
            1,
        );
        let timeline = |number| TimelineId::new(number).unwrap();
        assert_eq!(inventory.histories().collect::<Vec<_>>(), [timeline(2)]);
        assert_eq!(
            inventory.timelines().collect::<Vec<_>>(),
            [timeline(1), timeline(2)]
        );
        assert_eq!(inventory.partials(timeline(1)), 1);
        assert_eq!(inventory.span(timeline(1)), None);
        assert_eq!(inventory.foreign(), 0);
    }
}
