use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::format::backup::BackupSource;
use crate::judge::fixture::{at, tli};
use crate::judge::recovery_plan::tests::{archive, id, time, with_history};
use crate::pg::{WalEvent, WalEventKind};

fn windows(catalogue: &Catalogue) -> Vec<(u32, BackupId, BackupId, Lsn)> {
    let stretches = stretches(catalogue).unwrap();
    let windows = stretches.iter().filter_map(|stretch| stretch.window(None));
    windows
        .map(|window| {
            let timeline = window.timeline.get();
            (
                timeline,
                window.first_backup,
                window.newest_backup,
                window.end_lsn,
            )
        })
        .collect()
}

#[test]
fn unbroken_wal_makes_one_stretch_from_the_first_backup_on() {
    let catalogue = archive(&[(1, 2), (1, 5)], &[(1, 1..=9)]);
    assert_eq!(windows(&catalogue), [(1, id(2), id(5), at(10, 0))]);
    assert_eq!(stretches(&catalogue).unwrap()[0].first, SegmentNumber(2));
}

// Seen to fail: `judge/window.rs`: all backups make one window
#[test]
fn a_gap_and_a_backup_that_stands_alone_make_several() {
    // The backup in segment 2 was kept with its own WAL only; segment 8 was lost.
    let catalogue = archive(
        &[(1, 2), (1, 5), (1, 7), (1, 10)],
        &[(1, 2..=2), (1, 5..=7), (1, 9..=12)],
    );
    assert_eq!(
        windows(&catalogue),
        [
            (1, id(2), id(2), at(3, 0)),
            (1, id(5), id(7), at(8, 0)),
            (1, id(10), id(10), at(13, 0)),
        ]
    );
    let missing = stretches(&catalogue).unwrap()[1].missing.unwrap();
    assert_eq!(missing.to_string(), "000000010000000000000008");
    // Released WAL is not missing.
    let mut catalogue = catalogue;
    catalogue.released.of_mut(tli(1)).insert_range(3, 4);
    let first = &stretches(&catalogue).unwrap()[0];
    assert_eq!((first.missing, first.released), (None, true));
}

#[test]
fn each_timeline_has_its_own() {
    let catalogue = archive(&[(1, 2), (2, 6)], &[(1, 2..=5), (2, 4..=8)]);
    let catalogue = with_history(catalogue, 2, &[(tli(1).get(), at(4, 100))]);
    assert_eq!(
        windows(&catalogue),
        [(1, id(2), id(2), at(6, 0)), (2, id(2), id(6), at(9, 0))]
    );
}

#[test]
fn without_a_backup_there_is_nothing_to_recover() {
    assert_eq!(windows(&archive(&[], &[(1, 1..=9)])), []);
}

// Seen to fail: `judge/catalogue.rs`: a standby's backup is dated like a primary's, or by its end
#[test]
fn the_latest_moment_is_the_last_commit_or_the_start_of_a_later_backup() {
    let catalogue = archive(&[(1, 2), (1, 5)], &[(1, 2..=9)]);
    let stretch = &stretches(&catalogue).unwrap()[0];
    let latest = |commit: Option<EndOfTransaction>| {
        let last = commit.map(|end| LastEnds {
            commit: Some(end),
            largest: end,
            last: end,
        });
        let window = stretch.window(Some(last)).unwrap();
        assert_eq!(window.earliest, time(2, 10));
        (window.latest, window.latest_is)
    };
    let end = |lsn, time| Some(EndOfTransaction { time, lsn });
    let commit = end(at(9, 5), time(9, 7));
    assert_eq!(latest(commit), (Some(time(9, 7)), LatestIs::Commit));
    for earlier in [None, end(at(3, 5), time(3, 7))] {
        let start = time(5, 0) - TimeDelta::seconds(3);
        assert_eq!(latest(earlier), (Some(start), LatestIs::StartOfBackup));
    }
    // A standby's backup holds what the standby had replayed; and the end of the first one tells of itself alone.
    let mut of_standby = catalogue.clone();
    of_standby.backups[1].source = BackupSource::Standby;
    let alone = stretches(&of_standby).unwrap()[0].window(Some(None)).unwrap();
    assert_eq!((alone.latest, alone.latest_is), (None, LatestIs::EndOfBackup));
    let unknown = stretch.window(None).unwrap();
    assert_eq!((unknown.latest, unknown.latest_is), (None, LatestIs::Unknown));
}

/// A segment with commits at these seconds, and a rollback after them if wanted.
fn segment(number: u64, commits: &[i64], abort: Option<i64>) -> SegmentIndex {
    let mut index = SegmentIndex::default();
    let kinds = commits
        .iter()
        .map(|second| (true, *second))
        .chain(abort.map(|second| (false, second)));
    for (place, (commit, second)) in kinds.enumerate() {
        let ended = crate::pg::WalTransaction {
            id: crate::pg::TransactionId(7),
            time: (time(0, 0) + TimeDelta::seconds(second)).into(),
        };
        let start = at(number, 40 + 40 * place as u64);
        index = index.with_later(WalEvent {
            start,
            end: Lsn(start.0 + 40),
            kind: if commit {
                WalEventKind::Commit(ended)
            } else {
                WalEventKind::Abort(ended)
            },
        });
    }
    index
}

fn seconds(last: Last) -> (Option<i64>, i64, u64) {
    let Last::Ends(Some(ends)) = last else {
        panic!("{last:?}");
    };
    let second = |end: EndOfTransaction| (end.time - time(0, 0)).num_seconds();
    (ends.commit.map(second), second(ends.largest), ends.last.lsn.0)
}

fn look(segments: &[Option<SegmentIndex>], whole: bool) -> Last {
    last_ends(segments, whole, Major::V17)
}

// Seen to fail: `judge/window.rs`: the first segment with commits is enough
#[test]
fn the_largest_commit_time_counts_not_the_last_record() {
    let segments = [
        Some(segment(1, &[10, 99, 12], None)),
        Some(segment(2, &[98], Some(97))),
    ];
    assert_eq!(seconds(look(&segments, true)), (Some(99), 99, at(2, 80).0));
    let rollback_last = [Some(segment(1, &[10], None)), Some(segment(2, &[98], Some(100)))];
    assert_eq!(seconds(look(&rollback_last, true)), (Some(98), 100, at(2, 80).0));
}

#[test]
fn one_looks_further_back_until_two_segments_have_commits() {
    let none = || Some(SegmentIndex::default());
    let some = |number| Some(segment(number, &[number.cast_signed()], None));
    for segments in [
        vec![],
        vec![none()],
        vec![some(1)],
        vec![none(), some(2), none()],
        vec![some(1), some(2)],
    ] {
        assert_eq!(look(&segments, false), Last::LookFurther, "{segments:?}");
    }
    assert_eq!(
        seconds(look(&[none(), some(2), none(), some(4)], false)).0,
        Some(4)
    );
    assert_eq!(look(&[none(), none()], true), Last::Ends(None));
    assert_eq!(seconds(look(&[some(1), none()], true)).0, Some(1));
}

// Seen to fail: `judge/window.rs`: unknown times count as none
#[test]
fn a_segment_of_unknown_times_makes_the_end_unknown_unless_commits_follow_it() {
    let some = |number| Some(segment(number, &[number.cast_signed()], None));
    let empty = || Some(SegmentIndex::default());
    for segments in [vec![some(1), some(2), None], vec![some(1), None, empty()]] {
        assert_eq!(look(&segments, true), Last::Unknown);
    }
    assert_eq!(seconds(look(&[None, some(2), empty()], true)).0, Some(2));
}

// Seen to fail: `judge/window.rs`: the end of valid WAL is ignored
#[test]
fn what_follows_the_end_of_valid_wal_does_not_count() {
    let mut broken = segment(2, &[20], None);
    broken.valid_until = Some(at(2, 80));
    let segments = [
        Some(segment(1, &[10], None)),
        Some(broken),
        Some(segment(3, &[30], None)),
    ];
    assert_eq!(seconds(look(&segments, true)).0, Some(20));
}

proptest! {
    #[test]
    fn what_is_found_looking_back_is_what_reading_all_of_it_finds(
        // Times rise, but for a jitter smaller than what a segment spans.
        segments in prop::collection::vec(prop::collection::vec((0_i64..100, any::<bool>()), 0..4), 1..12),
        looked in 1_usize..12,
    ) {
        let indexes: Vec<_> = segments.iter().zip(1_u64..).map(|(ends, number)| {
            let base = number.cast_signed() * 60;
            let commits: Vec<_> = ends.iter().filter(|(_, commit)| *commit).map(|(jitter, _)| base + jitter).collect();
            let abort = ends.iter().find(|(_, commit)| !*commit).map(|(jitter, _)| base + jitter);
            Some(segment(number, &commits, abort))
        }).collect();
        let looked = looked.min(indexes.len());
        let part = &indexes[indexes.len() - looked..];
        let found = look(part, looked == indexes.len());
        if found == Last::LookFurther {
            prop_assert!(looked < indexes.len());
            return Ok(());
        }
        let all = |pick: fn(&SegmentIndex) -> Option<Ends>| {
            indexes.iter().flatten().filter_map(pick).map(|ends| ends.largest.time).max()
        };
        let ends = match found {
            Last::Ends(ends) => ends,
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(ends.and_then(|ends| ends.commit).map(|end| end.time), all(|index| index.commits));
        prop_assert!(ends.map(|ends| ends.largest.time) <= all(SegmentIndex::ends));
        let last = indexes.iter().flatten().rev().find_map(SegmentIndex::ends).map(|ends| ends.last);
        prop_assert_eq!(ends.map(|ends| ends.last), last);
    }
}
