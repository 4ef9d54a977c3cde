//! The cases of the table in `docs/exit-codes.md`, one by one.

use super::*;
use crate::judge::fixture::tli;
use crate::pg::SegmentSize;

fn size() -> u64 {
    SegmentSize::DEFAULT.bytes()
}

fn follower(recovering: Recovering, target: TargetTimeline) -> Follower {
    Follower {
        recovering,
        target,
        replayed: vec![Position {
            timeline: tli(1),
            lsn: Lsn(2 * size()),
        }],
        histories: BTreeMap::new(),
    }
}

impl Follower {
    /// Adds a history, with the ends of its ancestors in tenths of segments.
    fn sees(mut self, timeline: u32, kept: bool, ancestors: &[(u32, u64)]) -> Self {
        let line = |(timeline, tenths): &(u32, u64)| {
            format!("{timeline}\t{}\tpromoted\n", Lsn(tenths * size() / 10))
        };
        let text: String = ancestors.iter().map(line).collect();
        let history = TimelineHistory::parse(tli(timeline), text.as_bytes()).unwrap();
        self.histories.insert(tli(timeline), Visible { history, kept });
        self
    }

    /// What is answered to a question for a segment of timeline 1.
    fn answers(&self, number: u64) -> Answer {
        let start = Lsn(number * size());
        let forks = self.forks_before(tli(1), Lsn(start.0 + size()));
        let has_passed = forks.iter().any(|fork| self.has_passed(fork, tli(1)));
        forks
            .first()
            .map_or(Answer::Deliver, |fork| self.answer(fork, start, has_passed))
    }
}

use Answer::{Deliver, Refuse, Withhold};
use Recovering::{Standby, ToTarget};
use TargetTimeline::{Current, Latest, Number};

#[test]
fn a_standby_gets_no_segment_that_reaches_beyond_where_the_latest_timeline_left() {
    for kept in [false, true] {
        let standby = follower(Standby, Latest).sees(2, kept, &[(1, 55)]);
        let answers = [4, 5, 6].map(|number| standby.answers(number));
        assert_eq!(answers, [Deliver, Withhold, Withhold]);
    }
    let at_the_end = follower(Standby, Latest).sees(2, false, &[(1, 60)]);
    assert_eq!(
        [5, 6].map(|number| at_the_end.answers(number)),
        [Deliver, Withhold]
    );
}

#[test]
fn a_standby_that_is_past_the_fork_or_pinned_to_its_timeline_gets_everything() {
    for at in [5, 15, 19] {
        let standby = follower(Standby, Latest).sees(2, true, &[(1, at)]);
        assert_eq!(
            [1, 2, 3].map(|number| standby.answers(number)),
            [Deliver; 3],
            "{at}"
        );
    }
    for target in [Current, Number(tli(1))] {
        let standby = follower(Standby, target).sees(2, true, &[(1, 55)]);
        assert_eq!([5, 6].map(|number| standby.answers(number)), [Deliver; 2]);
    }
}

#[test]
fn only_the_newest_timeline_counts_as_for_postgresql() {
    // Timeline 3 left timeline 1 later than timeline 2 did, and a gap in the numbers ends the search.
    let standby = follower(Standby, Latest)
        .sees(2, false, &[(1, 25)])
        .sees(3, false, &[(1, 55)]);
    assert_eq!([3, 5].map(|number| standby.answers(number)), [Deliver, Withhold]);
    let standby = follower(Standby, Latest).sees(3, false, &[(1, 25)]);
    assert_eq!(standby.answers(3), Deliver);
    // A standby that may follow timeline 2 keeps to it: timeline 3 is not a child of timeline 2.
    let standby = follower(Standby, Latest)
        .sees(2, true, &[(1, 85)])
        .sees(3, true, &[(1, 55)]);
    assert_eq!([5, 8].map(|number| standby.answers(number)), [Deliver, Withhold]);
    // A standby that may still be on timeline 1, past the fork of the newest, stays there.
    let standby = follower(Standby, Latest)
        .sees(2, true, &[(1, 55)])
        .sees(3, true, &[(1, 15)]);
    assert_eq!(standby.answers(5), Deliver);
}

#[test]
fn a_grandchild_counts_with_the_timeline_between() {
    let standby = follower(Standby, Latest)
        .sees(2, true, &[(1, 35)])
        .sees(3, false, &[(1, 35), (2, 55)]);
    let fork = standby.forks_before(tli(1), Lsn(4 * size()))[0];
    assert_eq!((fork.by, fork.child), (tli(3), tli(2)));
    assert_eq!(standby.answers(3), Withhold);
    let fork = standby.forks_before(tli(2), Lsn(6 * size()))[0];
    assert_eq!((fork.by, fork.child), (tli(3), tli(3)));
}

#[test]
fn a_recovery_is_never_told_that_a_segment_beyond_a_fork_is_absent() {
    let recovery = follower(ToTarget, Latest).sees(2, true, &[(1, 55)]);
    let answers = [4, 5, 6].map(|number| recovery.answers(number));
    assert_eq!(answers, [Deliver, Refuse, Refuse]);
    // It read no such history when it started, so it does not follow that timeline.
    let recovery = follower(ToTarget, Latest).sees(2, false, &[(1, 55)]);
    assert_eq!([5, 6].map(|number| recovery.answers(number)), [Deliver; 2]);
}

// Seen to fail: `judge/forks.rs`: the newest timeline is kept beside the one that is set
#[test]
fn a_recovery_follows_the_timeline_that_was_named() {
    let history = |target| follower(ToTarget, target).sees(2, true, &[(1, 55)]);
    for target in [Number(tli(1)), Current, Number(tli(7))] {
        assert_eq!([5, 6].map(|number| history(target).answers(number)), [Deliver; 2]);
    }
    let named = history(Number(tli(2)));
    assert_eq!(
        [4, 5, 6].map(|number| named.answers(number)),
        [Deliver, Refuse, Withhold]
    );
}

#[test]
fn replay_along_another_chain_counts_as_far_as_the_chains_are_one() {
    let mut standby = follower(Standby, Latest)
        .sees(2, true, &[(1, 75)])
        .sees(3, true, &[(1, 55)]);
    let fork = standby.fork_on(tli(3), tli(1)).unwrap();
    let mut position = |timeline, tenths| {
        standby.replayed = vec![Position {
            timeline: tli(timeline),
            lsn: Lsn(tenths * size() / 10),
        }];
        standby.has_passed(&fork, tli(1))
    };
    assert!(
        !position(1, 55) && position(1, 56),
        "PostgreSQL goes over at the fork itself"
    );
    assert!(
        !position(2, 54) && position(2, 80),
        "timeline 2 left timeline 1 later"
    );
    assert!(!position(3, 80), "it went the new way");
    assert!(!position(9, 80), "nobody knows that way");
}

#[test]
fn a_target_is_read_as_the_server_reads_it() {
    for (text, target) in [
        ("latest", Some(Latest)),
        ("current", Some(Current)),
        ("1", Some(Number(tli(1)))),
        (" +23x", Some(Number(tli(23)))),
        ("0x1F", Some(Number(tli(31)))),
        ("017", Some(Number(tli(15)))),
        ("Latest", None),
        ("0", None),
        ("", None),
        ("-1", None),
        ("99999999999", None),
    ] {
        assert_eq!(TargetTimeline::parse(text.as_bytes()), target, "{text:?}");
    }
}
