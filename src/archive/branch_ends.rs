//! The last transactions of timelines, where a listing and the backups do not decide which branch goes on.
//!
//! Most archives have no such timelines. Of each such timeline a few trailers are read.

use std::collections::BTreeMap;

use super::Archive;
use super::time_index::TimeIndex;
use crate::error::Result;
use crate::format::segment_index::EndOfTransaction;
use crate::judge::branches::undecided;
use crate::judge::catalogue::Catalogue;
use crate::pg::{SegmentNumber, TimelineId};

/// At most this many segments that an older walship stored are read whole.
const WHOLE_READS: u64 = 8;
/// At most this many segments of a timeline are looked at, backwards from its end.
const LOOK_BACK: u64 = 64;

/// The last end of a transaction of each timeline that matters, where it is known.
pub(crate) async fn read(
    archive: &Archive,
    catalogue: &Catalogue,
) -> Result<BTreeMap<TimelineId, Option<EndOfTransaction>>> {
    let times = TimeIndex::new(archive, WHOLE_READS);
    let mut known = BTreeMap::new();
    for (timeline, first) in undecided(catalogue) {
        if let Some(newest) = newest(&times, catalogue, timeline, first).await? {
            known.insert(timeline, newest);
        }
    }
    Ok(known)
}

/// The last end of a transaction in a timeline's own segments, from `first` on; `None` where that cannot be known.
async fn newest(
    times: &TimeIndex,
    catalogue: &Catalogue,
    timeline: TimelineId,
    first: SegmentNumber,
) -> Result<Option<Option<EndOfTransaction>>> {
    let size = catalogue.wal.segment_size();
    let runs: Vec<_> = catalogue.wal.ranges(timeline).collect();
    let mut left = LOOK_BACK;
    for run in runs.into_iter().rev() {
        let (begin, last) = (run.first.number(size)?.max(first), run.last.number(size)?);
        if begin > last {
            break;
        }
        let from = SegmentNumber((last.0 + 1).saturating_sub(left)).max(begin);
        match times.newest_end(timeline, from, last).await? {
            Some(None) if from == begin => left -= last.0 + 1 - from.0,
            // There are earlier segments that were not looked at.
            Some(None) => return Ok(None),
            known => return Ok(known),
        }
        if left == 0 {
            return Ok(None);
        }
    }
    Ok(Some(None))
}
