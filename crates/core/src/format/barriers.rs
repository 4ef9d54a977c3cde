//! Records that no recovery crosses, and how far the WAL was searched for them. A whole segment never changes, so one
//! search is enough: `walship verify` keeps the result in the ledger. Where the records break off is searched again,
//! because a better copy of a segment mends that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::pg::{Lsn, TimelineId};

/// What is known of such records.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "Vec<Searched>", from = "Vec<Searched>")]
pub struct Barriers(BTreeMap<TimelineId, Searched>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Searched {
    timeline: TimelineId,
    /// All WAL from here on was searched,
    first: Lsn,
    /// up to here; nothing where both are the same.
    end: Lsn,
    /// The positions of the records with which `wal_level = minimal` begins.
    at: BTreeSet<Lsn>,
    /// Where the records break off though WAL follows.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    ends: BTreeSet<Lsn>,
}

/// Why no recovery crosses a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    /// The server was started with `wal_level = minimal`: replay ends with FATAL (`CheckRequiredParameterValues`).
    Minimal(Lsn),
    /// The records break off: replay takes that for the end of the WAL.
    End(Lsn),
}

impl Barrier {
    /// The position.
    #[must_use]
    pub fn lsn(self) -> Lsn {
        match self {
            Self::Minimal(lsn) | Self::End(lsn) => lsn,
        }
    }
}

impl fmt::Display for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minimal(lsn) => write!(
                f,
                "the server was started with wal_level = minimal at LSN {lsn}, and no recovery from an archive crosses that"
            ),
            Self::End(lsn) => write!(
                f,
                "the records break off at LSN {lsn}, and replay ends there, though WAL follows: it was damaged before it was \
                 archived, is another history's, or pg_resetwal was run"
            ),
        }
    }
}

impl From<Barriers> for Vec<Searched> {
    fn from(barriers: Barriers) -> Self {
        barriers.0.into_values().collect()
    }
}

impl From<Vec<Searched>> for Barriers {
    fn from(timelines: Vec<Searched>) -> Self {
        Self(
            timelines
                .into_iter()
                .map(|looked| (looked.timeline, looked))
                .collect(),
        )
    }
}

impl Barriers {
    /// Notes a position.
    pub fn add(&mut self, timeline: TimelineId, barrier: Barrier) {
        let looked = self.of(timeline);
        match barrier {
            Barrier::Minimal(lsn) => looked.at.insert(lsn),
            Barrier::End(lsn) => looked.ends.insert(lsn),
        };
    }

    /// The first position from `begin` on and before `end`.
    pub(crate) fn first(&self, timeline: TimelineId, begin: Lsn, end: Lsn) -> Option<Barrier> {
        let looked = self.0.get(&timeline)?;
        let within = |all: &BTreeSet<Lsn>| all.range(begin..end.max(begin)).next().copied();
        let both = [
            within(&looked.at).map(Barrier::Minimal),
            within(&looked.ends).map(Barrier::End),
        ];
        both.into_iter().flatten().min_by_key(|barrier| barrier.lsn())
    }

    /// Where the search goes on for a caller who needs everything from `begin` on.
    #[must_use]
    pub fn unseen_from(&self, timeline: TimelineId, begin: Lsn) -> Lsn {
        let Some(looked) = self.0.get(&timeline) else {
            return begin;
        };
        let seen = looked.first..looked.end;
        if !seen.contains(&begin) {
            return begin;
        }
        looked
            .ends
            .range(seen)
            .next()
            .map_or(looked.end, |end| (*end).max(begin))
    }

    /// From a position on, forgets where records break off, so that it is searched again.
    pub fn forget_ends_from(&mut self, timeline: TimelineId, position: Lsn) {
        if let Some(looked) = self.0.get_mut(&timeline) {
            looked.ends.retain(|end| *end < position);
        }
    }

    /// Notes that all WAL from `begin` to `end` was searched. If that does not adjoin the last search, it takes its
    /// place.
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

    fn of(&mut self, timeline: TimelineId) -> &mut Searched {
        self.0.entry(timeline).or_insert(Searched {
            timeline,
            first: Lsn(0),
            end: Lsn(0),
            at: BTreeSet::new(),
            ends: BTreeSet::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TimelineId = TimelineId::FIRST;

    #[test]
    fn no_wal_is_searched_twice_and_what_lies_between_two_searches_is_unseen() {
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
    fn what_is_damaged_is_searched_again_with_all_behind_it() {
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
        barriers.add(ONE, Barrier::Minimal(Lsn(20)));
        barriers.add(ONE, Barrier::End(Lsn(30)));
        barriers.add(TimelineId::new(3).unwrap(), Barrier::Minimal(Lsn(7)));
        let text = serde_json::to_string(&barriers).unwrap();
        let back: Barriers = serde_json::from_str(&text).unwrap();
        assert_eq!(back, barriers);
        assert_eq!(back.first(ONE, Lsn(10), Lsn(50)), Some(Barrier::Minimal(Lsn(20))));
        assert_eq!(back.first(ONE, Lsn(21), Lsn(50)), Some(Barrier::End(Lsn(30))));
        // Where records break off is searched again.
        assert_eq!(back.unseen_from(ONE, Lsn(10)), Lsn(30));
        assert_eq!(back.first(ONE, Lsn(31), Lsn(50)), None);
        assert_eq!(back.first(ONE, Lsn(21), Lsn(5)), None);
    }
}
