//! `walship list wal --at TIME`: the segments that hold a moment.
//!
//! Commit times are almost in the order of the WAL, but not quite. So the WAL is halved until few segments are left,
//! and those are looked at with their neighbours on both sides. The answer is true for the segments that were looked
//! at. A segment further away is missed only if the server's clock was set back by more than the time of the
//! neighbours.

use std::fmt;
use std::ops::Range;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::archive::time_index::TimeIndex;
use crate::archive::{Archive, catalogue};
use crate::error::Result;
use crate::format::segment_index::{Crossing, SegmentIndex};
use crate::format::wal_inventory::WalInventory;
use crate::pg::{Major, SegmentName, SegmentNumber, TimelineId};
use crate::store::Store;
use crate::text::{time_text, write_table};

/// At most this many segments that an older walship stored are read whole.
const WHOLE_READS: u64 = 128;
/// This many segments are looked at on each side of those that are left.
const NEIGHBOURS: usize = 32;
/// This many segments are looked at first for the last end of a transaction.
const FIRST_LOOK: usize = 4;

/// The segments that hold a moment.
#[derive(Debug, Clone, Serialize)]
pub struct ListedMoment {
    pub time: DateTime<Utc>,
    /// Each timeline that has WAL.
    pub timelines: Vec<MomentOnTimeline>,
}

/// The segments of one timeline that hold a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MomentOnTimeline {
    pub timeline: TimelineId,
    /// Segments in which a transaction ended at the moment or before, and another at it or later.
    pub segments: Vec<ListedSegment>,
    /// The last segment in which a transaction ended at the moment or before.
    pub before: Option<SegmentName>,
    /// The first segment in which a transaction ended later: a recovery to the moment stops in it.
    pub after: Option<SegmentName>,
    /// How many of the segments that were looked at could not tell.
    pub unknown: usize,
}

/// When transactions ended in a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedSegment {
    pub segment: SegmentName,
    pub smallest: DateTime<Utc>,
    pub largest: DateTime<Utc>,
    pub commits: u64,
    pub aborts: u64,
}

/// Looks a moment up in all the WAL of the archive.
///
/// # Errors
/// As [`catalogue::wal`] and [`TimeIndex::of`].
pub async fn at(time: DateTime<Utc>, store: &Store) -> Result<ListedMoment> {
    let archive = Archive::open(store).await?;
    let wal = catalogue::wal(&archive).await?;
    let times = TimeIndex::new(&archive, WHOLE_READS);
    let mut timelines = Vec::new();
    for timeline in wal.timelines() {
        let held = Held::new(&wal, timeline)?;
        if held.count > 0 {
            let load = async |places: Range<usize>| times.of_all(&held.names(places)?).await;
            let (from, indexes) = around(time, held.count, &load).await?;
            let names = held.names(from..from + indexes.len())?;
            timelines.push(on_timeline(timeline, time, &names, &indexes, times.major()?));
        }
    }
    Ok(ListedMoment { time, timelines })
}

/// The segments of a timeline, by their place among those that are there.
struct Held<'a> {
    wal: &'a WalInventory,
    timeline: TimelineId,
    /// The first segment of each run without gaps, and how many segments the run has.
    runs: Vec<(SegmentNumber, usize)>,
    count: usize,
}

impl<'a> Held<'a> {
    fn new(wal: &'a WalInventory, timeline: TimelineId) -> Result<Self> {
        let runs = wal.ranges(timeline).map(|range| {
            let first = range.first.number(wal.segment_size())?;
            Ok((first, usize::try_from(range.segments).unwrap_or(usize::MAX)))
        });
        let runs = runs.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            wal,
            timeline,
            count: runs.iter().map(|(_, segments)| segments).sum(),
            runs,
        })
    }

    fn names(&self, places: Range<usize>) -> Result<Vec<SegmentName>> {
        let (mut names, mut begin) = (Vec::with_capacity(places.len()), 0);
        for (first, segments) in &self.runs {
            let here = places.start.max(begin)..places.end.min(begin + segments);
            for place in here {
                let number = SegmentNumber(first.0 + (place - begin) as u64);
                names.push(SegmentName::new(self.timeline, number, self.wal.segment_size())?);
            }
            begin += segments;
        }
        Ok(names)
    }
}

/// Finds the first segment in which a transaction ended later than the moment. Returns the indexes of the segments
/// around it, and the place of the first of those.
async fn around(
    time: DateTime<Utc>,
    count: usize,
    load: &impl AsyncFn(Range<usize>) -> Result<Vec<Option<SegmentIndex>>>,
) -> Result<(usize, Vec<Option<SegmentIndex>>)> {
    // The segment looked for is one of these, or the one after them.
    let (mut low, mut high) = (0, count);
    while high - low > NEIGHBOURS {
        let middle = low + (high - low) / 2;
        match last_before(low..middle + 1, load).await? {
            Some((place, largest)) if largest > time => high = place,
            _ => low = middle + 1,
        }
    }
    let from = low.saturating_sub(NEIGHBOURS);
    let indexes = load(from..(high + 1 + NEIGHBOURS).min(count)).await?;
    Ok((from, indexes))
}

/// The last of these segments in which a transaction ended, and the latest time in it.
async fn last_before(
    places: Range<usize>,
    load: &impl AsyncFn(Range<usize>) -> Result<Vec<Option<SegmentIndex>>>,
) -> Result<Option<(usize, DateTime<Utc>)>> {
    let (mut end, mut step) = (places.end, FIRST_LOOK);
    while end > places.start {
        let begin = end.saturating_sub(step).max(places.start);
        let indexes = load(begin..end).await?;
        let ends = indexes
            .iter()
            .map(|index| index.as_ref().and_then(SegmentIndex::ends));
        let found = (begin..)
            .zip(ends)
            .filter_map(|(place, ends)| Some((place, ends?.largest.time)));
        if let Some(found) = found.last() {
            return Ok(Some(found));
        }
        (end, step) = (begin, step * 2);
    }
    Ok(None)
}

fn on_timeline(
    timeline: TimelineId,
    time: DateTime<Utc>,
    names: &[SegmentName],
    indexes: &[Option<SegmentIndex>],
    major: Major,
) -> MomentOnTimeline {
    let mut found = MomentOnTimeline {
        timeline,
        segments: Vec::new(),
        before: None,
        after: None,
        unknown: 0,
    };
    let mut crossing = Crossing::new(major);
    for (segment, index) in names.iter().zip(indexes) {
        let before = crossing.next(index.as_ref());
        let Some(index) = index else {
            found.unknown += 1;
            continue;
        };
        let index = index.with_crossing(before);
        let Some(ends) = index.ends() else { continue };
        let (smallest, largest) = (ends.smallest.time, ends.largest.time);
        if smallest <= time {
            found.before = Some(*segment);
        }
        if largest > time {
            found.after.get_or_insert(*segment);
        }
        if smallest <= time && time <= largest {
            found.segments.push(ListedSegment {
                segment: *segment,
                smallest,
                largest,
                commits: index.commits.map_or(0, |commits| commits.count),
                aborts: index.aborts.map_or(0, |aborts| aborts.count),
            });
        }
    }
    found
}

impl fmt::Display for ListedMoment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = self.timelines.iter().flat_map(MomentOnTimeline::rows).collect();
        if !rows.is_empty() {
            let headings = [
                "TIMELINE",
                "SEGMENT",
                "FIRST END",
                "LAST END",
                "COMMITS",
                "ROLLBACKS",
            ];
            write_table(&headings, rows, f)?;
        }
        let time = time_text(self.time);
        for found in &self.timelines {
            let timeline = found.timeline;
            match (found.segments.is_empty(), found.before, found.after) {
                (true, Some(before), Some(after)) => {
                    writeln!(
                        f,
                        "timeline {timeline}: {time} lies between the last commit in {before} and the next one in {after}"
                    )?;
                }
                (_, Some(before), None) => {
                    writeln!(
                        f,
                        "timeline {timeline}: the archive has nothing later than {time}; the last segment before it is {before}"
                    )?;
                }
                (_, None, Some(after)) => {
                    writeln!(
                        f,
                        "timeline {timeline}: the archive has nothing as early as {time}; the first segment after it is {after}"
                    )?;
                }
                (_, None, None) => writeln!(f, "timeline {timeline}: no transaction ended in its WAL")?,
                (false, Some(_), Some(after)) => {
                    writeln!(f, "timeline {timeline}: a recovery to {time} stops in {after}")?;
                }
            }
            if found.unknown > 0 {
                writeln!(
                    f,
                    "timeline {timeline}: the times in {} segments near it are NOT KNOWN",
                    found.unknown
                )?;
            }
        }
        Ok(())
    }
}

impl MomentOnTimeline {
    fn rows(&self) -> impl Iterator<Item = Vec<String>> {
        self.segments.iter().map(|segment| {
            vec![
                self.timeline.to_string(),
                segment.segment.to_string(),
                time_text(segment.smallest),
                time_text(segment.largest),
                segment.commits.to_string(),
                segment.aborts.to_string(),
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;
    use crate::format::segment_index::{EndOfTransaction, Ends};
    use crate::pg::Lsn;

    fn second(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + seconds, 0).unwrap()
    }

    #[allow(clippy::unnecessary_wraps)] // as it is read
    fn segment(ends: &[i64]) -> Option<SegmentIndex> {
        let end = |second: DateTime<Utc>| EndOfTransaction {
            time: second,
            lsn: Lsn(1),
        };
        let times = || ends.iter().map(|at| end(second(*at)));
        let commits = || {
            Some(Ends {
                count: ends.len() as u64,
                first: times().next()?,
                last: times().next_back()?,
                smallest: times().min_by_key(|end| end.time)?,
                largest: times().max_by_key(|end| end.time)?,
            })
        };
        Some(SegmentIndex {
            commits: commits(),
            ..SegmentIndex::default()
        })
    }

    fn name(place: usize) -> SegmentName {
        let number = SegmentNumber(place as u64 + 1);
        SegmentName::new(TimelineId::FIRST, number, crate::pg::SegmentSize::DEFAULT).unwrap()
    }

    /// What is found, and how many indexes were read.
    fn find(segments: &[Option<SegmentIndex>], at: i64) -> (MomentOnTimeline, usize) {
        let read = RefCell::new(0);
        let load = async |places: Range<usize>| {
            *read.borrow_mut() += places.len();
            Ok(segments[places].to_vec())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let looking = around(second(at), segments.len(), &load);
        let (from, indexes) = runtime.block_on(looking).unwrap();
        let names: Vec<_> = (from..from + indexes.len()).map(name).collect();
        let found = on_timeline(TimelineId::FIRST, second(at), &names, &indexes, Major::V17);
        let read = *read.borrow();
        (found, read)
    }

    fn holding(found: &MomentOnTimeline) -> Vec<SegmentName> {
        found.segments.iter().map(|segment| segment.segment).collect()
    }

    #[test]
    fn a_moment_in_a_large_archive_is_found_with_few_reads() {
        let segments: Vec<_> = (0..20_000)
            .map(|number| segment(&[number * 10, number * 10 + 8]))
            .collect();
        let (found, read) = find(&segments, 123_455);
        assert_eq!(holding(&found), [name(12_345)]);
        assert_eq!(
            (found.before, found.after),
            (Some(name(12_345)), Some(name(12_345)))
        );
        assert!(read < 200, "{read}");
        let (found, _) = find(&segments, 123_459);
        assert_eq!(
            (holding(&found), found.before, found.after),
            (vec![], Some(name(12_345)), Some(name(12_346)))
        );
    }

    #[test]
    fn moments_before_and_after_the_archive_are_told() {
        let segments: Vec<_> = (0..100).map(|number| segment(&[number * 10])).collect();
        assert_eq!(find(&segments, -1).0.after, Some(name(0)));
        assert_eq!(find(&segments, -1).0.before, None);
        assert_eq!(find(&segments, 991).0.before, Some(name(99)));
        assert_eq!(find(&segments, 991).0.after, None);
        let (idle, _) = find(&vec![segment(&[]); 100], 5);
        assert_eq!((idle.before, idle.after, idle.unknown), (None, None, 0));
        assert_eq!(find(&vec![None; 10], 5).0.unknown, 10);
    }

    proptest! {
        // Seen to fail: `list/moment.rs`: no neighbours are looked at
        #[test]
        fn it_finds_what_looking_at_every_segment_finds(
            // A segment spans 60 seconds; times jump back by some 20 segments at most. Some are idle.
            segments in prop::collection::vec(prop::collection::vec(-1200_i64..60, 0..4), 1..300),
            at in -2000_i64..20_000,
        ) {
            let segments: Vec<_> = (0_i64..).zip(&segments).map(|(number, ends)| {
                let ends: Vec<_> = ends.iter().map(|end| number * 60 + end).collect();
                segment(&ends)
            }).collect();
            let names: Vec<_> = (0..segments.len()).map(name).collect();
            let expected = on_timeline(TimelineId::FIRST, second(at), &names, &segments, Major::V17);
            let (found, _) = find(&segments, at);
            prop_assert_eq!(holding(&found), holding(&expected));
            prop_assert_eq!(found.after, expected.after);
        }
    }
}
