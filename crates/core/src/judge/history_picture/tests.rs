use chrono::TimeDelta;
use proptest::prelude::*;

use super::StretchKind::{Archived, Damaged, Gap, Released};
use super::*;
use crate::format::keys::Key;
use crate::judge::catalogue::{Unfinished, Unrestorable};
use crate::judge::fixture::{at, segment, tli};
use crate::judge::recovery_plan::tests::{archive, id, time, with_history};
use crate::judge::window::{LatestIs, stretches};
use crate::pg::SegmentNumber;

/// The windows, each with a last commit in the last minute of its WAL.
fn windows(catalogue: &Catalogue) -> Vec<Window> {
    let stretches = stretches(catalogue).unwrap();
    let windows = stretches.iter().filter_map(|stretch| stretch.window(None));
    let with_commit = windows.map(|window| {
        let SegmentNumber(last) = window.last_segment.number(crate::judge::fixture::SIZE).unwrap();
        Window {
            latest: Some(time(last, 59).max(window.earliest)),
            latest_is: LatestIs::Commit,
            ..window
        }
    });
    with_commit.collect()
}

fn history(catalogue: &Catalogue) -> History {
    History::of(catalogue, &windows(catalogue), time(100, 0)).unwrap()
}

fn kinds(lane: &Lane) -> Vec<(StretchKind, String)> {
    let stretches = lane.stretches.iter();
    stretches
        .map(|stretch| (stretch.kind, stretch.segments.to_string()))
        .collect()
}

fn stored(catalogue: &mut Catalogue, timeline: u32, number: u64, at: DateTime<Utc>) {
    catalogue
        .wal
        .add_stored(&Key::Segment(segment(timeline, number)).to_string(), 1, at);
}

fn history_stored(catalogue: &mut Catalogue, timeline: u32, at: DateTime<Utc>) {
    catalogue
        .wal
        .add_stored(&Key::History(tli(timeline)).to_string(), 1, at);
}

// Seen to fail: `judge/history_picture.rs`: the axis always reaches to now
#[test]
fn an_empty_archive_has_no_lane_and_no_axis() {
    let history = history(&archive(&[], &[]));
    assert_eq!(
        (history.periods, history.lanes, history.followed),
        (vec![], vec![], None)
    );
}

// Seen to fail: `history_picture/clock.rs`: `between` takes the later moment
#[test]
fn a_gap_is_named_exactly_and_stands_between_the_moments_that_are_known() {
    let catalogue = archive(&[(1, 2), (1, 20)], &[(1, 2..=9), (1, 12..=30)]);
    let history = history(&catalogue);
    let lane = &history.lanes[0];
    assert_eq!(
        kinds(lane),
        [
            (
                Archived,
                "000000010000000000000002 to 000000010000000000000009 (8 segments)".to_owned()
            ),
            (
                Gap,
                "00000001000000000000000A to 00000001000000000000000B (2 segments)".to_owned()
            ),
            (
                Archived,
                "00000001000000000000000C to 00000001000000000000001E (19 segments)".to_owned()
            ),
        ]
    );
    let gap = lane.stretches[1].period;
    assert_eq!(gap.from, time(9, 59), "the last commit before it");
    assert!(gap.until > gap.from && gap.until < time(20, 0), "{gap:?}");
    // One minute passes with each segment.
    assert!((gap.until - time(12, 0)).abs() < TimeDelta::minutes(1), "{gap:?}");
}

// Seen to fail: `history_picture/lanes.rs`: what was released stays a gap
#[test]
fn what_retention_released_is_no_gap_and_damaged_wal_is_not_merely_archived() {
    let mut catalogue = archive(&[(1, 2), (1, 20)], &[(1, 2..=2), (1, 12..=30)]);
    catalogue.released.of_mut(tli(1)).insert_range(0, 1);
    catalogue.released.of_mut(tli(1)).insert_range(3, 11);
    catalogue.damage.wal.insert(segment(1, 25), "cut".to_owned());
    let history = history(&catalogue);
    let kinds: Vec<_> = kinds(&history.lanes[0])
        .into_iter()
        .map(|(kind, _)| kind)
        .collect();
    assert_eq!(kinds, [Released, Archived, Released, Archived, Damaged, Archived]);
    let states: Vec<_> = history.backups().map(|mark| mark.state.clone()).collect();
    assert_eq!(states, [MarkState::StandsAlone, MarkState::Restorable]);
}

// Seen to fail: `history_picture/lanes.rs`: only what lies between held segments is a gap
#[test]
fn wal_that_a_backup_needs_is_a_gap_even_before_the_first_segment() {
    let catalogue = archive(&[(1, 4)], &[(1, 5..=9)]);
    let lane = &history(&catalogue).lanes[0];
    assert_eq!(lane.stretches[0].kind, Gap);
    assert_eq!(lane.stretches[0].segments.to_string(), "000000010000000000000004");
}

// Seen to fail: `history_picture/lanes.rs`: a window ends at its last moment on each lane
#[test]
fn the_window_goes_from_lane_to_lane_along_the_forks() {
    let catalogue = archive(&[(1, 2)], &[(1, 2..=7), (2, 8..=14)]);
    let mut catalogue = with_history(catalogue, 2, &[(1, at(8, 100))]);
    stored(&mut catalogue, 1, 7, time(8, 0));
    history_stored(&mut catalogue, 2, time(8, 30));
    let history = history(&catalogue);
    let [parent, child] = &history.lanes[..] else {
        panic!("{history:?}")
    };
    let fork = child.fork.unwrap();
    assert_eq!((fork.timeline, fork.lsn, parent.fork), (tli(1), at(8, 100), None));
    assert!(
        fork.left_at > time(7, 0) && fork.left_at <= fork.begins_at,
        "{fork:?}"
    );
    assert_eq!(fork.begins_at, time(8, 30));
    // Timeline 1 itself is recoverable to its end, too.
    assert_eq!(parent.recoverable, [Period::new(time(2, 10), time(7, 59))]);
    assert_eq!(child.recoverable, [Period::new(time(8, 30), time(14, 59))]);
    assert_eq!(history.followed, Some(tli(2)));
}

// Seen to fail: `history_picture/lanes.rs`: a timeline begins where it left its parent
#[test]
fn a_copy_that_was_recovered_to_an_earlier_moment_left_there_and_begins_when_it_was_made() {
    let catalogue = archive(&[(1, 2), (1, 30)], &[(1, 2..=40), (2, 10..=12)]);
    let mut catalogue = with_history(catalogue, 2, &[(1, at(10, 100))]);
    history_stored(&mut catalogue, 2, time(50, 0));
    stored(&mut catalogue, 2, 12, time(55, 0));
    let lanes = history(&catalogue).lanes;
    let fork = lanes[1].fork.unwrap();
    assert!(
        (fork.left_at - time(10, 0)).abs() < TimeDelta::minutes(2),
        "{fork:?}"
    );
    assert_eq!(fork.begins_at, time(50, 0));
    assert_eq!(lanes[1].stretches[0].period.from, time(50, 0));
    assert_eq!(lanes[1].last.unwrap().at, time(55, 0));
}

// Seen to fail: `history_picture/clock.rs`: the store's moment counts beside the server's
#[test]
fn the_day_on_which_an_archive_was_copied_does_not_count() {
    let mut catalogue = archive(&[(1, 2)], &[(1, 2..=9)]);
    stored(&mut catalogue, 1, 9, time(90, 0));
    let history = history(&catalogue);
    let last = history.lanes[0].last.unwrap();
    assert_eq!((last.at, last.stored_at), (time(9, 59), Some(time(90, 0))));
}

// Seen to fail: `history_picture/lanes.rs`: it stands on the first timeline
#[test]
fn a_backup_without_a_record_stands_on_the_timeline_that_had_begun_last() {
    let catalogue = archive(&[(1, 2), (2, 20)], &[(1, 2..=8), (2, 8..=24)]);
    let mut catalogue = with_history(catalogue, 2, &[(1, at(8, 100))]);
    catalogue.unfinished.push(Unfinished {
        id: id(5),
        state: UnfinishedState::Remains,
        last_sign: time(5, 30),
        keep: None,
        was_verified: false,
    });
    catalogue.unrestorable.push(Unrestorable {
        id: id(22),
        reason: "its record is damaged".to_owned(),
        backup: None,
    });
    let history = history(&catalogue);
    let ids: Vec<Vec<_>> = history
        .lanes
        .iter()
        .map(|lane| lane.backups.iter().map(|mark| mark.id.clone()).collect())
        .collect();
    assert_eq!(ids, [vec![id(2), id(5)], vec![id(20), id(22)]]);
}

// Seen to fail: `history_picture/lanes.rs`: every timeline has a lane
#[test]
fn a_timeline_of_which_nothing_is_left_has_no_lane_and_one_that_has_just_begun_has() {
    let catalogue = with_history(archive(&[(2, 20)], &[(2, 20..=24)]), 2, &[(1, at(8, 100))]);
    let catalogue = with_history(catalogue, 3, &[(1, at(8, 100)), (2, at(24, 5000))]);
    let lanes: Vec<_> = history(&catalogue)
        .lanes
        .iter()
        .map(|lane| lane.timeline)
        .collect();
    assert_eq!(lanes, [tli(2), tli(3)]);
}

// Seen to fail: `history_picture/axis.rs`: nothing is folded
#[test]
fn long_times_with_nothing_are_folded_and_short_ones_are_not() {
    let day = |day: i64| DateTime::UNIX_EPOCH + TimeDelta::days(day);
    let period = |from, until| Period::new(day(from), day(until));
    assert_eq!(axis::pieces(vec![period(10, 20), period(0, 9)]), [period(0, 20)]);
    assert_eq!(
        axis::pieces(vec![period(400, 420), period(0, 0), period(422, 422)]),
        [period(0, 0), period(400, 422)]
    );
    assert_eq!(axis::pieces(vec![]), []);
}

proptest! {
    // Seen to fail: `history_picture/clock.rs`: a clock that went back counts
    #[test]
    fn however_clocks_go_wal_never_goes_back_in_time(
        known in prop::collection::vec((0..200_u64, -3600..3600_i64, any::<bool>()), 0..12),
        begins in prop::option::of(-3600..3600_i64),
        probes in prop::collection::vec(0..200_u64, 2),
    ) {
        let moment = |seconds| DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds);
        let known: Vec<_> = known
            .into_iter()
            .map(|(number, seconds, by_server)| clock::Known { lsn: at(number, 40), at: moment(seconds), by_server })
            .collect();
        let begins = begins.map(moment);
        let clock = clock::Clock::new(&known, begins.map(|begins| (at(20, 0), begins)), crate::judge::fixture::SIZE);
        let (first, last) = (probes[0].min(probes[1]), probes[0].max(probes[1]));
        let (first, last) = (clock.at(at(first, 0)), clock.at(at(last, 0)));
        prop_assert!(first <= last, "{first:?} {last:?}");
        prop_assert!(begins.is_none() || first >= begins);
    }
}
