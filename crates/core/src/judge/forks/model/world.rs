//! Timelines and what is archived of them, at random.

use std::collections::{BTreeMap, BTreeSet};

use crate::judge::fixture::tli;
use crate::pg::{Lsn, TimelineHistory};

/// The size of a segment. A record has the size 1, or 2 where it crosses the end of a segment.
pub(super) const SEGMENT: u64 = 4;

/// Decisions, taken from random bytes.
pub(super) struct Choices<'a>(
    pub(super) std::iter::Cycle<std::slice::Iter<'a, u8>>,
    pub(super) u64,
);

impl Choices<'_> {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        // The same bytes mean something else when they come again.
        self.1 = self
            .1
            .wrapping_mul(31)
            .wrapping_add(u64::from(*self.0.next().unwrap()));
        (self.1 >> 3) % limit
    }
}

/// All timelines, with all that their servers ever wrote.
pub(super) struct World {
    /// Of each timeline after the first: its parent, and where it left that.
    pub(super) forks: BTreeMap<u32, (u32, u64)>,
    pub(super) ends: BTreeMap<u32, u64>,
    /// The ends of segments that a record crosses, of each timeline.
    pub(super) crossed: BTreeSet<(u32, u64)>,
}

impl World {
    pub(super) fn random(choices: &mut Choices) -> Self {
        let mut world = Self {
            forks: BTreeMap::new(),
            ends: BTreeMap::from([(1, 8 + choices.below(24))]),
            crossed: BTreeSet::new(),
        };
        for timeline in 1..=1 + choices.below(5) as u32 {
            if timeline > 1 {
                let parent = 1 + choices.below(u64::from(timeline) - 1) as u32;
                let (begin, end) = (world.begin(parent), world.ends[&parent]);
                let mut fork = begin + choices.below(end - begin + 1);
                if fork > begin && world.is_within_a_record(parent, fork) {
                    fork -= 1;
                }
                world.forks.insert(timeline, (parent, fork));
                world.ends.insert(timeline, fork + choices.below(16));
            }
            for number in 1..16 {
                if choices.below(3) == 0 {
                    world.crossed.insert((timeline, number));
                }
            }
        }
        world
    }

    pub(super) fn begin(&self, timeline: u32) -> u64 {
        self.forks.get(&timeline).map_or(1, |(_, at)| *at)
    }

    /// Whose WAL a timeline's past has at a position.
    pub(super) fn origin(&self, timeline: u32, position: u64) -> u32 {
        match self.forks.get(&timeline) {
            Some((parent, at)) if position < *at => self.origin(*parent, position),
            _ => timeline,
        }
    }

    pub(super) fn is_within_a_record(&self, timeline: u32, position: u64) -> bool {
        let writer = self.origin(timeline, position - 1);
        position.is_multiple_of(SEGMENT)
            && position > self.begin(writer)
            && self.crossed.contains(&(writer, position / SEGMENT))
    }

    /// The end of the record that begins at a position.
    pub(super) fn record_end(&self, timeline: u32, position: u64) -> u64 {
        position + 1 + u64::from(self.is_within_a_record(timeline, position + 1))
    }

    pub(super) fn history(&self, timeline: u32) -> TimelineHistory {
        let mut lines = Vec::new();
        let mut child = timeline;
        while let Some((parent, at)) = self.forks.get(&child) {
            lines.insert(0, format!("{parent}\t{}\tpromoted\n", Lsn(*at)));
            child = *parent;
        }
        TimelineHistory::parse(tli(timeline), lines.concat().as_bytes()).unwrap()
    }

    /// The end of a timeline in the history of another.
    pub(super) fn end_of(&self, ancestor: u32, target: u32) -> Option<u64> {
        if !self.forks.contains_key(&target) {
            return None;
        }
        self.history(target).end_of(tli(ancestor)).map(|end| end.0)
    }

    /// A timeline and its ancestors, newest first.
    pub(super) fn expected(&self, target: u32) -> Vec<u32> {
        let mut found = vec![target];
        while let Some((parent, _)) = self.forks.get(found.last().unwrap()) {
            found.push(*parent);
        }
        found
    }

    /// What a server replayed that followed a timeline to a position.
    pub(super) fn path(&self, timeline: u32, end: u64) -> Vec<u32> {
        (0..end).map(|position| self.origin(timeline, position)).collect()
    }
}

#[derive(Default)]
pub(super) struct Archive {
    pub(super) segments: BTreeSet<(u32, u64)>,
    pub(super) histories: BTreeSet<u32>,
}

impl Archive {
    /// An archiver stores its next file: its history first, then one complete segment after the other.
    pub(super) fn take_next(&mut self, world: &World, timeline: u32) {
        if timeline > 1 && self.histories.insert(timeline) {
            return;
        }
        let mut number = world.begin(timeline) / SEGMENT;
        while self.segments.contains(&(timeline, number)) {
            number += 1;
        }
        if (number + 1) * SEGMENT <= world.ends[&timeline] {
            self.segments.insert((timeline, number));
        }
    }
}
