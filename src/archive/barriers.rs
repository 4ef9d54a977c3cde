//! Records that no recovery crosses, and how far the WAL was looked at for them. A segment never changes once it is
//! whole, so nobody has to look twice: `walship verify` keeps this in the ledger.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::pg::{Lsn, TimelineId};

/// What is known of such records.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "Vec<Looked>", from = "Vec<Looked>")]
pub struct Barriers(BTreeMap<TimelineId, Looked>);

/// One timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Looked {
    timeline: TimelineId,
    /// All WAL from here on was looked at,
    first: Lsn,
    /// up to here; nothing where both are the same.
    end: Lsn,
    /// The positions of the records.
    at: BTreeSet<Lsn>,
}

impl From<Barriers> for Vec<Looked> {
    fn from(barriers: Barriers) -> Self {
        barriers.0.into_values().collect()
    }
}

impl From<Vec<Looked>> for Barriers {
    fn from(timelines: Vec<Looked>) -> Self {
        Self(
            timelines
                .into_iter()
                .map(|looked| (looked.timeline, looked))
                .collect(),
        )
    }
}

impl Barriers {
    /// Takes note of a record.
    pub fn add(&mut self, timeline: TimelineId, at: Lsn) {
        self.of(timeline).at.insert(at);
    }

    /// The first record from `begin` on and before `end`.
    #[must_use]
    pub fn first(&self, timeline: TimelineId, begin: Lsn, end: Lsn) -> Option<Lsn> {
        let at = &self.0.get(&timeline)?.at;
        at.range(begin..end.max(begin)).next().copied()
    }

    /// Where looking goes on for somebody who wants to know all from `begin` on.
    #[must_use]
    pub fn unseen_from(&self, timeline: TimelineId, begin: Lsn) -> Lsn {
        let seen = self.0.get(&timeline).map(|looked| looked.first..looked.end);
        seen.filter(|seen| seen.contains(&begin))
            .map_or(begin, |seen| seen.end)
    }

    /// Takes note that all from `begin` to `end` was looked at. What does not go on where the last look ended takes
    /// its place.
    pub fn saw(&mut self, timeline: TimelineId, begin: Lsn, end: Lsn) {
        let looked = self.of(timeline);
        let goes_on = looked.first < looked.end && looked.first <= begin && begin <= looked.end;
        if !goes_on {
            looked.first = begin;
        }
        looked.end = if goes_on { looked.end.max(end) } else { end };
    }

    /// From this position on nothing counts as looked at.
    pub fn forget_from(&mut self, timeline: TimelineId, position: Lsn) {
        if let Some(looked) = self.0.get_mut(&timeline) {
            looked.end = looked.end.min(position).max(looked.first);
        }
    }

    fn of(&mut self, timeline: TimelineId) -> &mut Looked {
        self.0.entry(timeline).or_insert(Looked {
            timeline,
            first: Lsn(0),
            end: Lsn(0),
            at: BTreeSet::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TimelineId = TimelineId::FIRST;

    #[test]
    fn nobody_looks_twice_and_nothing_between_two_looks_counts_as_seen() {
        let mut barriers = Barriers::default();
        assert_eq!(barriers.unseen_from(ONE, Lsn(10)), Lsn(10));
        barriers.saw(ONE, Lsn(10), Lsn(30));
        barriers.saw(ONE, Lsn(30), Lsn(50));
        for (begin, unseen) in [(10, 50), (49, 50), (50, 50), (9, 9), (60, 60)] {
            assert_eq!(barriers.unseen_from(ONE, Lsn(begin)), Lsn(unseen), "{begin}");
        }
        barriers.saw(ONE, Lsn(60), Lsn(70));
        assert_eq!(barriers.unseen_from(ONE, Lsn(10)), Lsn(10));
        assert_eq!(barriers.unseen_from(ONE, Lsn(60)), Lsn(70));
    }

    #[test]
    fn what_is_damaged_is_looked_at_again_with_all_behind_it() {
        let mut barriers = Barriers::default();
        barriers.saw(ONE, Lsn(10), Lsn(50));
        barriers.forget_from(ONE, Lsn(60));
        assert_eq!(barriers.unseen_from(ONE, Lsn(10)), Lsn(50));
        barriers.forget_from(ONE, Lsn(20));
        assert_eq!(barriers.unseen_from(ONE, Lsn(10)), Lsn(20));
        barriers.forget_from(ONE, Lsn(5));
        assert_eq!(barriers.unseen_from(ONE, Lsn(10)), Lsn(10));
    }

    #[test]
    fn it_reads_back_as_it_was_written() {
        let mut barriers = Barriers::default();
        barriers.saw(ONE, Lsn(10), Lsn(50));
        barriers.add(ONE, Lsn(20));
        barriers.add(TimelineId::new(3).unwrap(), Lsn(7));
        let text = serde_json::to_string(&barriers).unwrap();
        let back: Barriers = serde_json::from_str(&text).unwrap();
        assert_eq!(back, barriers);
        assert_eq!(back.first(ONE, Lsn(10), Lsn(50)), Some(Lsn(20)));
        assert_eq!(back.first(ONE, Lsn(21), Lsn(50)), None);
        assert_eq!(back.first(ONE, Lsn(21), Lsn(5)), None);
    }
}
