//! Restore points as the segments' indexes name them.

use super::{Finder, FoundRecord};
use crate::archive::recovery_plan::Start;
use crate::archive::segment_index::{Crossing, RestorePoint, SegmentIndex};
use crate::error::Result;
use crate::pg::{Lsn, SegmentName, SegmentNumber};

/// So many indexes are read at a time.
const AT_A_TIME: usize = 256;

/// What is known of the next segment.
pub(super) enum Known {
    /// The restore point is in it.
    Here(FoundRecord),
    /// It is not.
    NotHere,
    /// The segment has to be read, as the one before it was.
    ReadOn,
    /// It has to be read by a new reader, which begins with this segment: the same, or the one before
    /// where a record goes on from there.
    ReadFrom(SegmentNumber),
}

/// The indexes of the segments that are searched, one after the other.
pub(super) struct KnownPoints<'a> {
    finder: &'a Finder<'a>,
    segments: Vec<SegmentName>,
    number: SegmentNumber,
    first: SegmentNumber,
    read: std::vec::IntoIter<Option<SegmentIndex>>,
    crossing: Crossing,
    /// Whether the segment before was read; whether its last record goes on in this one.
    before_was_read: bool,
    goes_on: bool,
}

impl<'a> KnownPoints<'a> {
    pub(super) fn new(
        finder: &'a Finder<'a>,
        start: &Start<'_>,
        first: SegmentNumber,
        end: SegmentNumber,
    ) -> Result<Self> {
        let segments = (first.0..end.0).map(|number| start.chain.segment(SegmentNumber(number)));
        Ok(Self {
            finder,
            segments: segments.collect::<Result<_>>()?,
            number: first,
            first,
            read: Vec::new().into_iter(),
            crossing: Crossing::new(finder.times.major()?),
            before_was_read: true,
            goes_on: false,
        })
    }

    /// What is known of the next segment, for a restore point from a position on.
    pub(super) async fn next(&mut self, from: Lsn, name: &str) -> Result<Known> {
        let number = self.number;
        self.number = number.next();
        let place = (number.0 - self.first.0) as usize;
        if self.read.as_slice().is_empty() {
            let end = self.segments.len().min(place + AT_A_TIME);
            let next = self.segments.get(place..end).unwrap_or_default();
            self.read = self.finder.times.of_all(next).await?.into_iter();
        }
        let index = self.read.next().flatten();
        let crossing = self.crossing.next(index.as_ref());
        let whole = index.as_ref().map(|index| index.with_crossing(crossing));
        let named = whole.as_ref().and_then(|whole| {
            let mut points = whole.restore_points.iter();
            points.find(|point| point.name == name && point.lsn >= from)
        });
        if let (Some(point), Some(segment)) = (named, self.segments.get(place)) {
            return Ok(Known::Here(self.record(*segment, number, point)));
        }
        let all_named =
            whole.is_some_and(|index| index.more_restore_points == 0 && index.valid_until.is_none());
        let goes_on = index.is_some_and(|index| index.unfinished.is_some());
        let known = match (all_named, self.before_was_read, self.goes_on) {
            (true, _, _) => Known::NotHere,
            (false, true, _) => Known::ReadOn,
            (false, false, true) => Known::ReadFrom(SegmentNumber(number.0 - 1)),
            (false, false, false) => Known::ReadFrom(number),
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
            // Where exactly it ends does not matter, for all of the segment is archived.
            end_lsn: self.finder.catalogue.wal.segment_size().start_of(number.next()),
            time: point.time,
        }
    }
}
