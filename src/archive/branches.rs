//! Where timelines branched off others, and what the others went on with: an old primary that was cut off, or the
//! source of a copy that was recovered to an earlier moment.

use std::collections::BTreeMap;

use serde::Serialize;

use super::wal_inventory::{SegmentRange, WalInventory};
use crate::pg::{Lsn, TimelineHistory, TimelineId};

/// Where a timeline began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// The timeline it branched off.
    pub timeline: TimelineId,
    /// Where.
    pub lsn: Lsn,
    /// The segments of that timeline with WAL beyond this position, first and last, and how many are held: none of
    /// them is part of the new timeline's past.
    pub goes_on: Option<SegmentRange>,
}

/// Where a timeline branched off; none for one without a parent, and for one whose history is not known.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::keys::Key;
    use crate::pg::{SegmentName, SegmentNumber, SegmentSize};

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn found(fork: Lsn, held: &[(u32, u64)]) -> (String, Option<(String, u64)>) {
        let mut wal = WalInventory::new(SIZE);
        for (timeline, number) in held {
            let name = SegmentName::new(tli(*timeline), SegmentNumber(*number), SIZE).unwrap();
            wal.add(&Key::Segment(name).to_string(), 1);
        }
        let text = format!("1\t{fork}\tno recovery target specified\n");
        let history = TimelineHistory::parse(tli(2), text.as_bytes()).unwrap();
        let histories = BTreeMap::from([(tli(1), TimelineHistory::root(tli(1))), (tli(2), history)]);
        assert_eq!(branch(&histories, &wal, tli(1)), None);
        assert_eq!(branch(&histories, &wal, tli(3)), None);
        let branch = branch(&histories, &wal, tli(2)).unwrap();
        let goes_on = branch
            .goes_on
            .map(|range| (range.first.to_string(), range.segments));
        (branch.lsn.to_string(), goes_on)
    }

    #[test]
    fn what_the_parent_went_on_with_begins_with_the_segment_of_the_fork() {
        let within = Lsn(5 * SIZE.bytes() + 96);
        let held = [(1, 3), (1, 4), (2, 5), (2, 6)];
        assert_eq!(found(within, &held), (within.to_string(), None));
        let went_on = [&held[..], &[(1, 5), (1, 6), (1, 9)]].concat();
        let expected = Some(("000000010000000000000005".to_owned(), 3));
        assert_eq!(found(within, &went_on).1, expected);
        // At a boundary the segment before belongs to both.
        let boundary = Lsn(5 * SIZE.bytes());
        assert_eq!(found(boundary, &held).1, None);
        assert_eq!(found(boundary, &went_on).1, expected);
    }
}
