use super::*;
use crate::format::backup::{WalRange, fixture};
use crate::format::segment_index::HexBytes;
use crate::pg::wal_pieces::{GEOMETRY, backup_end, checkpoint, copy, write};
use crate::pg::{SegmentSize, TimelineId};

const START: Lsn = Lsn(0x20_0028);
const CHECKPOINT: Lsn = Lsn(0x20_0060);
const TIME: i64 = 1_764_000_000;

/// A backup in one segment of 1 MiB, and the archived WAL of its server.
fn backup() -> (BackupRecord, Lineage, Vec<WalPiece>) {
    let mut piece = WalPiece {
        start: Lsn(0x20_0000),
        bytes: vec![0; 3 * 8192],
    };
    write(&mut piece, CHECKPOINT, &checkpoint(&copy(START, TIME)));
    let stop = write(&mut piece, Lsn(0x20_3000), &backup_end(START));
    let mut record = fixture::record(&[]);
    record.segment_bytes = SegmentSize::new(1 << 20).unwrap();
    (record.start_lsn, record.stop_lsn) = (START, stop);
    record.wal_ranges = vec![WalRange {
        timeline: TimelineId::FIRST,
        start_lsn: START,
        end_lsn: stop,
    }];
    let sum = WalPiece {
        start: Lsn(0x20_2F00),
        bytes: piece.between(Lsn(0x20_2F00), stop).unwrap().to_vec(),
    };
    let lineage = Lineage {
        checkpoint_lsn: CHECKPOINT,
        control_lsn: CHECKPOINT,
        control_checkpoint: HexBytes(copy(START, TIME).bytes().to_vec()),
        wal: vec![WalSum::of(&sum)],
    };
    (record, lineage, vec![piece])
}

fn contradiction(change: impl FnOnce(&mut BackupRecord, &mut Lineage, &mut WalPiece)) -> String {
    let (mut record, mut lineage, mut archived) = backup();
    change(&mut record, &mut lineage, &mut archived[0]);
    judge(&record, &lineage, &archived, GEOMETRY).unwrap_or_default()
}

#[test]
fn a_backups_own_wal_is_its_own() {
    let (record, lineage, archived) = backup();
    assert_eq!(judge(&record, &lineage, &archived, GEOMETRY), None);
}

// Seen to fail: `judge/lineage.rs`: `judge` does not compare the copy in `pg_control`
#[test]
fn a_checkpoint_at_the_same_position_is_another_one_if_it_was_made_at_another_moment() {
    let found = contradiction(|_, _, archived| {
        write(archived, CHECKPOINT, &checkpoint(&copy(START, TIME + 1)));
    });
    assert!(found.contains("has another one there"), "{found}");
    let none = contradiction(|_, _, archived| archived.bytes[0x60..0xA0].fill(0));
    assert!(none.contains("the archived WAL has none there"), "{none}");
}

// Seen to fail: `judge/lineage.rs`: `judge` does not compare the checkpoint
#[test]
fn a_checkpoint_that_begins_elsewhere_is_another_one() {
    let found = contradiction(|record, _, _| record.start_lsn = Lsn(START.0 + 8));
    assert!(found.contains("begins replay at 0/200030"), "{found}");
}

// Seen to fail: `judge/lineage.rs`: `judge` does not compare the backup's end
#[test]
fn a_primarys_backup_ends_with_the_record_that_names_its_start() {
    let other = contradiction(|_, _, archived| {
        write(archived, Lsn(0x20_3000), &backup_end(Lsn(0x10_0028)));
    });
    assert!(other.contains("in the archived WAL began at 0/100028"), "{other}");
    let none = contradiction(|_, _, archived| archived.bytes[0x3000..0x3028].fill(7));
    assert!(
        none.contains("no backup ends there in the archived WAL"),
        "{none}"
    );
}

// Seen to fail: `judge/lineage.rs`: `judge` does not compare the bytes
#[test]
fn wal_that_differs_in_nothing_but_what_was_written_is_other_wal() {
    for source in [BackupSource::Primary, BackupSource::Standby] {
        let found = contradiction(|record, _, archived| {
            record.source = source;
            archived.bytes[0x2F80] ^= 1;
        });
        assert!(found.contains("differs from the server's"), "{found}");
    }
}

#[test]
fn a_standbys_backup_has_no_record_of_its_end_and_may_know_later_transactions() {
    let found = contradiction(|record, lineage, archived| {
        record.source = BackupSource::Standby;
        lineage.wal.clear();
        lineage.control_checkpoint.0[24] += 1;
        archived.bytes[0x3000..0x3028].fill(0);
    });
    assert_eq!(found, "");
    let of_a_primary = contradiction(|_, lineage, _| lineage.control_checkpoint.0[24] += 1);
    assert!(of_a_primary.contains("has another one there"), "{of_a_primary}");
}

#[test]
fn only_wal_that_the_backup_needs_is_asked_for_and_little_of_it() {
    let (record, lineage, _) = backup();
    let all = wanted(&record, &lineage).unwrap();
    assert!(
        all.iter()
            .all(|wanted| wanted.from >= START && wanted.from < wanted.until)
    );
    let changes: [fn(&mut Lineage); 4] = [
        |lineage| lineage.checkpoint_lsn = Lsn(0x50_0000),
        |lineage| lineage.control_lsn = Lsn(0x1F_FFF8),
        |lineage| lineage.wal[0].lsn = Lsn(0),
        |lineage| lineage.wal[0].end_lsn = Lsn(u64::MAX),
    ];
    for (number, change) in changes.iter().enumerate() {
        let (record, mut lineage, _) = backup();
        change(&mut lineage);
        let asked = wanted(&record, &lineage);
        // Nothing is asked for beyond the end: then there is nothing to compare.
        let ends = number == 0
            && asked
                .as_ref()
                .is_ok_and(|all| all.iter().all(|wanted| wanted.until <= Lsn(0x30_0000)));
        assert!(asked.is_err() || ends, "change {number}: {asked:?}");
    }
}

#[test]
fn a_piece_across_two_segments_is_asked_for_of_both_and_put_together() {
    let (mut record, mut lineage, _) = backup();
    record.stop_lsn = Lsn(0x30_0100);
    record.wal_ranges[0].end_lsn = record.stop_lsn;
    lineage.checkpoint_lsn = Lsn(0x2F_FFF0);
    let all = wanted(&record, &lineage).unwrap();
    let names: Vec<_> = all.iter().map(|wanted| wanted.segment.to_string()).collect();
    assert!(names.iter().any(|name| name.ends_with('3')), "{names:?}");
    let piece = |start: u64, bytes: &[u8]| WalPiece {
        start: Lsn(start),
        bytes: bytes.to_vec(),
    };
    let together = joined(vec![
        piece(4, b"efgh"),
        piece(0, b"abcd"),
        piece(1, b"bc"),
        piece(20, b"x"),
        piece(6, b"ghij"),
    ]);
    assert_eq!(together, [piece(0, b"abcdefghij"), piece(20, b"x")]);
}
