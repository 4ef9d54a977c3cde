//! Where timelines branched off others, and what the others went on with: an old primary that was cut off, or the
//! source of a copy that was recovered to an earlier moment.

mod judgement;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::format::wal_inventory::{SegmentRange, WalInventory};
use crate::pg::{Lsn, TimelineHistory, TimelineId};

pub(crate) use self::judgement::Begun;
pub use self::judgement::{Ambiguity, Contender, Judgement, judge, undecided};

/// Where a timeline began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// The timeline it branched off.
    pub timeline: TimelineId,
    /// Where it began.
    pub lsn: Lsn,
    /// The held segments of that timeline with WAL beyond this position: the first, the last, and how many. None of
    /// them is part of the new timeline's past.
    pub goes_on: Option<SegmentRange>,
}

/// Where a timeline branched off. `None` if it has no parent, or its history is not known.
#[must_use]
pub fn branch(
    histories: &BTreeMap<TimelineId, TimelineHistory>,
    wal: &WalInventory,
    timeline: TimelineId,
) -> Option<Branch> {
    let parent = histories.get(&timeline)?.parent()?;
    Some(Branch {
        timeline: parent.timeline,
        lsn: parent.end,
        goes_on: held_beyond(wal, parent.timeline, parent.end),
    })
}

fn held_beyond(wal: &WalInventory, timeline: TimelineId, fork: Lsn) -> Option<SegmentRange> {
    let size = wal.segment_size();
    let first = wal.first_from(timeline, size.segment_of(fork))?;
    let last = wal.newest(timeline)?;
    let mut range = SegmentRange::new(timeline, first, last, size).ok()?;
    let missing = wal.gaps(timeline).filter(|gap| gap.first > range.first);
    range.segments -= missing.map(|gap| gap.segments).sum::<u64>();
    Some(range)
}
