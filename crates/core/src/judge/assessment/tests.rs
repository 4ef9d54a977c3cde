//! What small archives are worth, on the fixtures of the recovery plan.

use super::*;
use crate::format::backup::WalRange;
use crate::format::keys::Key;
use crate::judge::fixture::{SIZE, at, tli};
use crate::judge::recovery_plan::tests::{archive, id, with_history};
use crate::pg::SegmentName;

#[derive(Default)]
struct Known {
    bad: Vec<(u32, u64)>,
    backups: BTreeMap<BackupId, String>,
    last: BTreeMap<TimelineId, SegmentNumber>,
}

fn judge(catalogue: &Catalogue, known: &Known) -> Assessment {
    let mut bad_segments = WalInventory::new(SIZE);
    let mut last = known.last.clone();
    for (timeline, number) in &known.bad {
        let name = SegmentName::new(tli(*timeline), SegmentNumber(*number), SIZE).unwrap();
        bad_segments.add(&Key::Segment(name).to_string(), 1);
        let known = last.entry(tli(*timeline)).or_insert(SegmentNumber(*number));
        *known = (*known).max(SegmentNumber(*number));
    }
    let evidence = Evidence {
        bad_segments: &bad_segments,
        bad_backups: &known.backups,
        known: &last,
    };
    assess(catalogue, &evidence).unwrap()
}

fn bad(segments: &[(u32, u64)]) -> Known {
    Known {
        bad: segments.to_vec(),
        ..Known::default()
    }
}

/// Where each backup leads to, by timeline and segment.
fn reached(worth: &BackupWorth) -> Vec<(u32, u64, End)> {
    let way = |leads: &LeadsTo| (leads.timeline.get(), leads.end_lsn.0 / SIZE.bytes(), leads.end);
    worth.leads_to.iter().map(way).collect()
}

#[test]
fn a_whole_archive_is_whole() {
    let catalogue = archive(&[(1, 2), (1, 6)], &[(1, 2..=9)]);
    let assessment = judge(&catalogue, &Known::default());
    assert!(assessment.is_whole());
    assert_eq!(assessment.backups.len(), 2);
    assert!(
        assessment
            .backups
            .iter()
            .all(|worth| reached(worth) == [(1, 10, End::EndOfWal)])
    );
}

#[test]
fn a_damaged_segment_ends_every_way_until_the_next_backup() {
    let catalogue = archive(&[(1, 2), (1, 6), (1, 8)], &[(1, 2..=9)]);
    let assessment = judge(&catalogue, &bad(&[(1, 4), (1, 5)]));
    let ends: Vec<_> = assessment.backups.iter().map(reached).collect();
    assert_eq!(
        ends,
        [
            vec![(1, 4, End::Lost)],
            vec![(1, 10, End::EndOfWal)],
            vec![(1, 10, End::EndOfWal)]
        ]
    );
    let [lost] = &assessment.lost[..] else {
        panic!("{assessment:?}")
    };
    assert_eq!(
        (lost.segments.segments, lost.from_lsn, lost.until_lsn),
        (2, at(4, 0), at(6, 0))
    );
    assert_eq!(lost.backups, [id(2)]);
    assert_eq!(lost.again_from.as_ref().unwrap().backup, id(6));
    assert!(!assessment.is_whole());
}

#[test]
fn the_next_backup_must_itself_be_sound() {
    let catalogue = archive(&[(1, 2), (1, 6), (1, 8)], &[(1, 2..=9)]);
    let known = Known {
        bad: vec![(1, 4)],
        backups: [(id(6), "a part is damaged".to_owned())].into(),
        ..Known::default()
    };
    let assessment = judge(&catalogue, &known);
    assert_eq!(assessment.lost[0].again_from.as_ref().unwrap().backup, id(8));
    assert_eq!(
        assessment.backups[1].unrestorable.as_deref(),
        Some("a part is damaged")
    );
    assert!(reached(&assessment.backups[1]).is_empty());
}

#[test]
fn a_backup_whose_own_wal_is_damaged_cannot_be_restored() {
    let catalogue = archive(&[(1, 2)], &[(1, 2..=9)]);
    let assessment = judge(&catalogue, &bad(&[(1, 2)]));
    assert!(assessment.backups[0].unrestorable.is_some());
    assert_eq!(assessment.lost[0].again_from, None);
}

#[test]
fn a_damaged_or_lost_end_is_noticed() {
    let catalogue = archive(&[(1, 2)], &[(1, 2..=9)]);
    assert_eq!(judge(&catalogue, &bad(&[(1, 9)])).lost[0].from_lsn, at(9, 0));
    let known = Known {
        last: [(tli(1), SegmentNumber(11))].into(),
        ..Known::default()
    };
    let assessment = judge(&catalogue, &known);
    assert_eq!(
        (assessment.lost[0].from_lsn, assessment.lost[0].segments.segments),
        (at(10, 0), 2)
    );
}

// Seen to fail: `judge/assessment.rs`: its first segment is a gap
#[test]
fn a_timeline_that_has_only_begun_is_not_lost() {
    let catalogue = with_history(archive(&[(1, 2)], &[(1, 2..=9)]), 2, &[(1, at(7, 100))]);
    let assessment = judge(&catalogue, &Known::default());
    assert!(assessment.is_whole(), "{assessment:?}");
    assert_eq!(assessment.notes.len(), 1);
    // A damaged segment shows that there was more.
    let mut catalogue = catalogue;
    let first = SegmentName::new(tli(2), SegmentNumber(7), SIZE).unwrap();
    catalogue.wal.add(&Key::Segment(first).to_string(), 1);
    assert!(!judge(&catalogue, &bad(&[(2, 7)])).is_whole());
}

// Seen to fail: `judge/assessment.rs`: a timeline has begun if a later one names it
#[test]
fn a_timeline_that_was_left_within_its_first_segment_is_not_lost() {
    let catalogue = archive(&[(1, 2)], &[(1, 2..=6), (3, 7..=9)]);
    let catalogue = with_history(catalogue, 2, &[(1, at(7, 100))]);
    let catalogue = with_history(catalogue, 3, &[(1, at(7, 100)), (2, at(7, 200))]);
    let assessment = judge(&catalogue, &Known::default());
    assert!(assessment.is_whole(), "{assessment:?}");
    // A timeline that was left later had a whole segment.
    let catalogue = archive(&[(1, 2)], &[(1, 2..=6), (3, 8..=9)]);
    let catalogue = with_history(catalogue, 2, &[(1, at(7, 100))]);
    let catalogue = with_history(catalogue, 3, &[(1, at(7, 100)), (2, at(8, 200))]);
    assert!(!judge(&catalogue, &Known::default()).is_whole());
}

#[test]
fn a_gap_before_a_fork_counts_for_both_timelines() {
    let segments = [(1, 2..=9), (2, 7..=8)];
    let catalogue = with_history(archive(&[(1, 2)], &segments), 2, &[(1, at(7, 100))]);
    let assessment = judge(&catalogue, &bad(&[(1, 5)]));
    assert_eq!(assessment.lost.len(), 1, "{assessment:?}");
    assert_eq!(assessment.lost[0].timelines, [tli(1), tli(2)]);
    // The parent's copy of the fork's segment is read along the parent's chain only.
    let assessment = judge(&catalogue, &bad(&[(1, 7)]));
    assert_eq!(assessment.lost[0].timelines, [tli(1)]);
    assert_eq!(
        reached(&assessment.backups[0]),
        [(1, 7, End::Lost), (2, 9, End::EndOfWal)]
    );
}

// Seen to fail: `judge/assessment.rs`: `released` does not count
#[test]
fn what_retention_gave_up_is_not_lost() {
    let mut catalogue = archive(&[(1, 2), (1, 6)], &[(1, 2..=2), (1, 6..=9)]);
    assert!(!judge(&catalogue, &Known::default()).is_whole());
    catalogue.released.of_mut(tli(1)).insert_range(3, 5);
    let assessment = judge(&catalogue, &Known::default());
    assert!(assessment.is_whole(), "{assessment:?}");
    assert_eq!(reached(&assessment.backups[0]), [(1, 3, End::Released)]);
    // A killed expiry leaves some of it.
    catalogue.wal.add(
        &Key::Segment(SegmentName::new(tli(1), SegmentNumber(4), SIZE).unwrap()).to_string(),
        1,
    );
    assert!(judge(&catalogue, &Known::default()).is_whole());
    // Never the WAL that a backup itself needs.
    catalogue.released.of_mut(tli(1)).insert_range(6, 6);
    assert!(!judge(&catalogue, &bad(&[(1, 6)])).is_whole());
}

// Seen to fail: `recovery_plan/end.rs`: `known_until` takes all of a backup's ranges, the segment of the fork included
#[test]
fn a_backup_that_went_through_a_switchover_takes_nothing_away_from_the_old_timeline() {
    // Of a cascaded standby, from segment 3 of timeline 1 to segment 7 of timeline 2, which left it in segment 5. The
    // old primary archived no whole segment 5.
    let mut catalogue = archive(&[(1, 1), (2, 7)], &[(1, 1..=4), (2, 5..=8)]);
    let [_, across] = &mut catalogue.backups[..] else {
        panic!("two backups")
    };
    (across.start_timeline, across.start_lsn) = (tli(1), at(3, 40));
    across.wal_ranges = vec![range(2, at(5, 96), at(7, 400)), range(1, at(3, 40), at(5, 96))];
    let catalogue = with_history(catalogue, 2, &[(1, at(5, 96))]);
    let assessment = judge(&catalogue, &Known::default());
    assert!(assessment.is_whole(), "{:?}", assessment.lost);
    let ends: Vec<_> = assessment.backups.iter().map(reached).collect();
    let to_the_end = (2, 9, End::EndOfWal);
    assert_eq!(ends, [vec![(1, 5, End::EndOfWal), to_the_end], vec![to_the_end]]);
}

fn range(timeline: u32, start_lsn: Lsn, end_lsn: Lsn) -> WalRange {
    WalRange {
        timeline: tli(timeline),
        start_lsn,
        end_lsn,
    }
}
