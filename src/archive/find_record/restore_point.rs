//! Looks for restore points in the segments' indexes.

use super::{Finder, FoundRecord};
use crate::error::Result;
use crate::format::segment_index::{Crossing, RestorePoint, SegmentIndex};
use crate::judge::timeline_chain::TimelineChain;
use crate::pg::{Lsn, SegmentName, SegmentNumber};

/// Indexes that are read at a time.
const AT_A_TIME: u64 = 256;

/// What the index of the next segment tells of a restore point.
pub(crate) enum NextSegment {
    /// The restore point is in it.
    Here(FoundRecord),
    /// It is not.
    NotHere,
    /// The segment has to be read; the one before it was read as well.
    ReadOn,
    /// It has to be read by a new reader, which begins with this segment: the same one, or the one before where a
    /// record continues from there.
    ReadFrom(SegmentNumber),
}

/// The indexes of the segments that are searched, one after the other.
pub(crate) struct IndexedPoints<'a> {
    finder: &'a Finder<'a>,
    chain: &'a TimelineChain<'a>,
    number: SegmentNumber,
    end: SegmentNumber,
    read: std::vec::IntoIter<Option<SegmentIndex>>,
    crossing: Crossing,
    /// Whether the segment before was read; whether its last record goes on in this one.
    before_was_read: bool,
    goes_on: bool,
}

impl<'a> IndexedPoints<'a> {
    pub(crate) fn new(
        finder: &'a Finder<'a>,
        chain: &'a TimelineChain<'a>,
        first: SegmentNumber,
        end: SegmentNumber,
    ) -> Result<Self> {
        Ok(Self {
            finder,
            chain,
            number: first,
            end,
            read: Vec::new().into_iter(),
            crossing: Crossing::new(finder.times.major()?),
            before_was_read: true,
            goes_on: false,
        })
    }

    /// The next segment, for a restore point from a position on.
    pub(crate) async fn next(&mut self, from: Lsn, name: &str) -> Result<NextSegment> {
        let number = self.number;
        self.number = number.next();
        if self.read.as_slice().is_empty() {
            let end = self.end.0.min(number.0.saturating_add(AT_A_TIME));
            let next = (number.0..end).map(|number| self.chain.segment(SegmentNumber(number)));
            let next = next.collect::<Result<Vec<_>>>()?;
            self.read = self.finder.times.of_all(&next).await?.into_iter();
        }
        let index = self.read.next().flatten();
        let crossing = self.crossing.next(index.as_ref());
        let whole = index.as_ref().map(|index| index.with_crossing(crossing));
        let named = whole.as_ref().and_then(|whole| {
            let mut points = whole.restore_points.iter();
            points.find(|point| point.name == name && point.lsn >= from)
        });
        if let Some(point) = named {
            return Ok(NextSegment::Here(self.record(
                self.chain.segment(number)?,
                number,
                point,
            )));
        }
        let all_named =
            whole.is_some_and(|index| index.more_restore_points == 0 && index.valid_until.is_none());
        let goes_on = index.is_some_and(|index| index.unfinished.is_some());
        let known = match (all_named, self.before_was_read, self.goes_on) {
            (true, _, _) => NextSegment::NotHere,
            (false, true, _) => NextSegment::ReadOn,
            (false, false, true) => NextSegment::ReadFrom(SegmentNumber(number.0 - 1)),
            (false, false, false) => NextSegment::ReadFrom(number),
        };
        self.before_was_read = !all_named;
        self.goes_on = goes_on;
        Ok(known)
    }

    /// A restore point that ends in this segment.
    fn record(&self, segment: SegmentName, number: SegmentNumber, point: &RestorePoint) -> FoundRecord {
        FoundRecord {
            timeline: segment.timeline(),
            lsn: point.lsn,
            // Its exact end does not matter, because the whole segment is archived.
            end_lsn: self.finder.catalogue.wal.segment_size().start_of(number.next()),
            time: point.time,
        }
    }
}
