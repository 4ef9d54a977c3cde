use proptest::prelude::*;

use super::*;
use crate::pg::Major;
use writer::{PAGE, SEGMENT, START, Spec, Writer, main_data};

fn any_spec() -> impl Strategy<Value = Spec> {
    let lists = || prop::array::uniform4(0_u32..300);
    prop_oneof![
        4 => (6_u8..22, any::<u8>(), 0_usize..300).prop_map(|(m, i, n)| Spec::Other(m, i, n)),
        4 => (6_u8..22, any::<u8>(), 0_usize..30_000).prop_map(|(m, i, n)| Spec::Other(m, i, n)),
        1 => (128_u8.., any::<u8>(), 300_000_usize..700_000).prop_map(|(m, i, n)| Spec::Other(m, i, n)),
        3 => (any::<u32>(), any::<i64>()).prop_map(|(id, time)| Spec::Commit(id, time)),
        2 => (any::<u32>(), any::<i64>()).prop_map(|(id, time)| Spec::Abort(id, time)),
        2 => (any::<u32>(), any::<i64>(), lists()).prop_map(|(id, time, l)| Spec::CommitPrepared(id, time, l)),
        2 => (any::<u32>(), any::<i64>(), lists()).prop_map(|(id, time, l)| Spec::AbortPrepared(id, time, l)),
        2 => ("[a-zé ]{1,31}", any::<i64>()).prop_map(|(name, time)| Spec::RestorePoint(name, time)),
        1 => Just(Spec::Switch),
    ]
}

fn any_wal() -> impl Strategy<Value = Writer> {
    let specs = prop::collection::vec(any_spec(), 1..40);
    (prop::sample::select(&Major::ALL[..]), specs).prop_map(|(major, specs)| Writer::of(major, &specs))
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes with {:?}", self.bytes.len(), self.events)
    }
}

#[test]
fn the_first_record_follows_one_that_began_before_it() {
    let reader = WalReader::new(Lsn(START), WalCheck::Crc);
    let previous = |lsn| reader.check_header(Lsn(START), RecordHeader::SIZE_BYTES as u32, Lsn(lsn));
    assert!(previous(START - 1).is_ok());
    assert!(previous(START).is_err());
}

/// Everything a reader tells, and the end of the valid WAL.
fn read_from(start: u64, bytes: &[u8], check: WalCheck, step: usize) -> (Vec<WalEvent>, Lsn) {
    let mut reader = WalReader::new(Lsn(start), check);
    let mut events = Vec::new();
    for chunk in bytes.chunks(step) {
        reader.feed(chunk, |event| events.push(event));
    }
    (events, reader.valid_until())
}

fn read(bytes: &[u8]) -> (Vec<WalEvent>, Lsn) {
    read_from(START, bytes, WalCheck::Crc, 1 << 20)
}

/// Splits off the event that says where the valid WAL ends.
fn split_end(mut events: Vec<WalEvent>) -> (Vec<WalEvent>, Option<Lsn>) {
    match events.pop() {
        Some(WalEvent {
            start,
            kind: WalEventKind::End { .. },
            ..
        }) => (events, Some(start)),
        last => {
            events.extend(last);
            (events, None)
        }
    }
}

fn check_of(crc: bool) -> WalCheck {
    if crc { WalCheck::Crc } else { WalCheck::Structure }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn all_that_was_written_is_found_however_the_bytes_come(wal in any_wal(), step in 1_usize..20_000, crc: bool) {
        let (events, end) = read_from(START, &wal.bytes, check_of(crc), step);
        prop_assert_eq!(&events, &wal.events);
        prop_assert_eq!(end, Lsn(wal.position()));
    }

    #[test]
    fn reading_can_start_at_any_segment(wal in any_wal(), crc: bool) {
        for at in (0..wal.bytes.len()).step_by(SEGMENT as usize) {
            let from = START + at as u64;
            let (events, _) = read_from(from, &wal.bytes[at..], check_of(crc), 10_000);
            let later: Vec<_> = wal.events.iter().filter(|event| event.start.0 >= from).cloned().collect();
            prop_assert_eq!(events, later);
        }
    }

    #[test]
    fn damage_ends_the_wal_and_invents_nothing(wal in any_wal(), at: prop::sample::Index, flip in 1_u8..) {
        let mut bytes = wal.bytes.clone();
        bytes[at.index(wal.bytes.len())] ^= flip;
        let (events, _) = split_end(read(&bytes).0);
        prop_assert!(wal.events.starts_with(&events));
    }

    #[test]
    fn damage_in_a_record_that_tells_something_ends_the_wal_there(wal in any_wal(), pick: prop::sample::Index, flip in 1_u8..) {
        prop_assume!(!wal.events.is_empty());
        let at = pick.index(wal.events.len());
        let mut bytes = wal.bytes.clone();
        bytes[(wal.events[at].start.0 - START) as usize + 4] ^= flip;
        let (events, end) = split_end(read(&bytes).0);
        prop_assert_eq!(&events, &wal.events[..at]);
        prop_assert!(end.is_some_and(|end| end <= wal.events[at].start));
    }

    #[test]
    fn wal_that_stops_is_not_wal_that_ends(wal in any_wal(), at: prop::sample::Index) {
        let (events, end) = split_end(read(&wal.bytes[..at.index(wal.bytes.len())]).0);
        prop_assert!(wal.events.starts_with(&events));
        prop_assert_eq!(end, None);
    }

    #[test]
    fn zeros_after_the_last_record_end_the_wal_there(wal in any_wal()) {
        let mut bytes = wal.bytes.clone();
        bytes.resize(bytes.len() + 64, 0);
        let (events, end) = split_end(read(&bytes).0);
        prop_assert_eq!(&events, &wal.events);
        prop_assert_eq!(end, Some(Lsn(wal.position())));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(noise: Vec<u8>, start: u64, crc: bool) {
        read_from(start, &noise, check_of(crc), 100);
        let mut bytes = Writer::of(Major::V17, &[Spec::Commit(1, 2)]).bytes;
        bytes.extend(&noise);
        read_from(START, &bytes, check_of(crc), 100);
        for manager in [0_u8, 1] {
            for info in (0..=0xF0).step_by(0x10) {
                let mut wal = Writer::new(Major::V18);
                wal.write_record(manager, info, 1, &main_data(&noise));
                wal.write_record(manager, info, 1, &noise);
                read_from(START, &wal.bytes, check_of(crc), 100);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // Seen to fail: `wal_records/mod.rs`: the fast path over whole records does not move the end of valid WAL
    #[test]
    fn where_damaged_wal_ends_does_not_depend_on_how_the_bytes_come(
        wal in any_wal(), at: prop::sample::Index, flip in 1_u8.., step in 1_usize..9000, crc: bool
    ) {
        let mut bytes = wal.bytes.clone();
        // Close to the start, where every record is a chance.
        bytes[at.index(wal.bytes.len().min(20_000))] ^= flip;
        let whole = read_from(START, &bytes, check_of(crc), usize::MAX);
        prop_assert_eq!(whole, read_from(START, &bytes, check_of(crc), step));
    }
}

#[test]
fn positions_beyond_the_last_segment_end_the_wal_without_panic() {
    let mut bytes = Writer::of(Major::V17, &[Spec::Commit(1, 2)]).bytes;
    let last = u64::MAX - (SEGMENT - 1);
    for (start, ends) in [(last, false), (u64::MAX - 7, true), (u64::MAX, true)] {
        bytes[8..16].copy_from_slice(&start.to_le_bytes());
        let (events, _) = read_from(start, &bytes, WalCheck::Crc, 1000);
        assert_eq!(split_end(events).1.is_some(), ends, "{start:X}");
    }
}

#[test]
fn real_segments_of_each_version_read_as_pg_waldump_prints_them() {
    const SEGMENTS: [(&[u8], &str); 5] = [
        (
            include_bytes!("../../../../../../tests/fixtures/wal/14.zst"),
            include_str!("../../../../../../tests/fixtures/wal/14.txt"),
        ),
        (
            include_bytes!("../../../../../../tests/fixtures/wal/15.zst"),
            include_str!("../../../../../../tests/fixtures/wal/15.txt"),
        ),
        (
            include_bytes!("../../../../../../tests/fixtures/wal/16.zst"),
            include_str!("../../../../../../tests/fixtures/wal/16.txt"),
        ),
        (
            include_bytes!("../../../../../../tests/fixtures/wal/17.zst"),
            include_str!("../../../../../../tests/fixtures/wal/17.txt"),
        ),
        (
            include_bytes!("../../../../../../tests/fixtures/wal/18.zst"),
            include_str!("../../../../../../tests/fixtures/wal/18.txt"),
        ),
    ];
    for (compressed, expected) in SEGMENTS {
        let segment = zstd::decode_all(compressed).unwrap();
        let start = LongPageHeader::parse(&segment).unwrap().page_address;
        for check in [WalCheck::Crc, WalCheck::Structure] {
            let (events, end) = read_from(start.0, &segment, check, 3000);
            let lines: String = events.iter().map(printed).collect();
            assert_eq!(lines, expected);
            assert_eq!(end, Lsn(start.0 + SEGMENT), "the segment ends in a switch");
        }
    }
}

fn printed(event: &WalEvent) -> String {
    let ended =
        |word: &str, ended: &WalTransaction| format!("{} {word} {} {}\n", event.start, ended.id, ended.time);
    match &event.kind {
        WalEventKind::Commit(transaction) => ended("COMMIT", transaction),
        WalEventKind::Abort(transaction) => ended("ABORT", transaction),
        WalEventKind::CommitPrepared(transaction) => ended("COMMIT_PREPARED", transaction),
        WalEventKind::AbortPrepared(transaction) => ended("ABORT_PREPARED", transaction),
        WalEventKind::RestorePoint { name, .. } => format!("{} RESTORE_POINT {name}\n", event.start),
        WalEventKind::Prepare(_) | WalEventKind::Change(_) => String::new(),
        WalEventKind::End { why } => format!("{} END {why}\n", event.start),
    }
}

#[test]
fn a_record_that_a_crash_cut_off_is_passed_over() {
    for filler in [0, 5000, 8000] {
        let mut wal = Writer::of(Major::V17, &[Spec::Commit(1, 2), Spec::Other(10, 0, filler)]);
        wal.write_unfinished(20_000);
        wal.write(&Spec::Commit(3, 4));
        assert_eq!(read(&wal.bytes).0, wal.events, "{filler}");
    }
}

#[test]
fn a_record_cut_off_without_that_mark_ends_the_wal() {
    let mut wal = Writer::of(Major::V17, &[Spec::Commit(1, 2), Spec::Other(10, 0, 5000)]);
    let end = wal.position();
    wal.write_unfinished(20_000);
    let page = wal.bytes.len() - 24;
    wal.write(&Spec::Commit(3, 4));
    wal.bytes[page + 2] &= !0x08;
    let (events, ended) = split_end(read(&wal.bytes).0);
    assert_eq!(events, wal.events[..1]);
    assert_eq!(ended, Some(Lsn(end)));
}

#[test]
fn what_a_recycled_segment_held_before_is_not_read() {
    let filler = vec![Spec::Other(10, 0, 6000); 400];
    let old = Writer::of(Major::V17, &filler);
    // New WAL over the old file: its first page, and then what was there, one segment earlier.
    let mut bytes = Writer::of(Major::V17, &[Spec::Commit(1, 2), Spec::Other(10, 0, 8200)]).bytes;
    bytes.truncate(PAGE as usize);
    bytes.extend(&old.bytes[(SEGMENT + PAGE) as usize..(2 * SEGMENT) as usize]);
    let (events, end) = split_end(read(&bytes).0);
    assert_eq!(events.len(), 1);
    assert_eq!(end, Some(events[0].end));
}

#[test]
fn a_record_that_does_not_follow_the_one_before_ends_the_wal() {
    let wal = Writer::of(Major::V17, &[Spec::Commit(1, 2), Spec::Commit(3, 4)]);
    let mut bytes = wal.bytes;
    bytes[80 + 8] -= 8;
    let (events, end) = split_end(read_from(START, &bytes, WalCheck::Structure, 64).0);
    assert_eq!(
        (events.as_slice(), end),
        (&wal.events[..1], Some(Lsn(START + 80)))
    );
    // Nor may the first record follow one that comes after it.
    bytes[40 + 8..40 + 16].copy_from_slice(&(START + SEGMENT).to_le_bytes());
    let (events, end) = split_end(read_from(START, &bytes, WalCheck::Structure, 64).0);
    assert_eq!((events, end), (vec![], Some(Lsn(START))));
}

#[test]
fn a_child_timelines_segments_may_follow_but_not_an_older_ones() {
    let wal = Writer::of(Major::V17, &[Spec::Switch, Spec::Commit(1, 2)]);
    let mut bytes = wal.bytes.clone();
    bytes[SEGMENT as usize + 4] = 2;
    assert_eq!(read(&bytes).0, wal.events);
    bytes[4] = 3;
    assert_eq!(split_end(read(&bytes).0), (vec![], Some(Lsn(START + SEGMENT))));
}

#[test]
fn a_segment_of_another_cluster_version_or_place_ends_the_wal() {
    let wal = Writer::of(Major::V17, &[Spec::Switch, Spec::Commit(1, 2)]);
    let second = SEGMENT as usize;
    for (offset, flip) in [(0, 0x05), (2, 0x02), (24, 1), (34, 0x30), (37, 0x60)] {
        let mut bytes = wal.bytes.clone();
        bytes[second + offset] ^= flip;
        let (events, end) = split_end(read_from(START, &bytes, WalCheck::Structure, 500).0);
        assert_eq!(
            (events, end),
            (vec![], Some(Lsn(START + SEGMENT))),
            "byte {offset}"
        );
    }
    let (events, end) = split_end(read_from(START + SEGMENT, &wal.bytes, WalCheck::Structure, 500).0);
    assert_eq!((events, end), (vec![], Some(Lsn(START + SEGMENT))));
}

#[test]
fn a_page_with_flags_that_it_cannot_have_ends_the_wal_and_is_named() {
    let wal = Writer::of(Major::V17, &[Spec::Switch, Spec::Commit(1, 2)]);
    let second = SEGMENT as usize;
    // Not the long header of a segment's first page; a flag that no version has.
    for (flip, flags) in [(0x02, "0x0000"), (0x10, "0x0012")] {
        let mut bytes = wal.bytes.clone();
        bytes[second + 2] ^= flip;
        let (events, _) = read_from(START, &bytes, WalCheck::Structure, 500);
        let [
            WalEvent {
                kind: WalEventKind::End { why },
                ..
            },
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert!(
            why.contains(&format!("{} has flags {flags}", Lsn(START + SEGMENT))),
            "{why}"
        );
    }
}

#[test]
fn reading_can_start_within_a_record_that_ends_near_the_end_of_a_page() {
    for body in (8000..8400).step_by(8) {
        let mut wal = Writer::new(Major::V17);
        wal.fill_to(24);
        wal.write(&Spec::Other(10, 0, body));
        wal.write(&Spec::Commit(1, 2));
        let second = &wal.bytes[SEGMENT as usize..];
        let (events, _) = read_from(START + SEGMENT, second, WalCheck::Crc, 5000);
        assert_eq!(events, wal.events, "{body}");
    }
}

#[test]
fn a_record_counts_as_continued_only_where_each_page_says_so() {
    let mut wal = Writer::new(Major::V17);
    wal.fill_to(24);
    wal.write(&Spec::Other(10, 0, 30_000));
    wal.write(&Spec::Commit(1, 2));
    let second = &wal.bytes[SEGMENT as usize..];
    let page = PAGE as usize;
    let continued = |change: fn(&mut [u8])| {
        let mut bytes = second.to_vec();
        change(&mut bytes[page..]);
        let mut reader = WalReader::new(Lsn(START + SEGMENT), WalCheck::Structure);
        reader.feed(&bytes, |_| ());
        reader.continued().is_some()
    };
    assert!(continued(|_| ()));
    // A crash cut it off: the page says that another record goes on, or that none does.
    assert!(!continued(|page| page[16] ^= 8));
    assert!(!continued(|page| page[2] &= !1));
    let mut reader = WalReader::new(Lsn(START), WalCheck::Structure);
    reader.feed(&wal.bytes, |_| ());
    assert_eq!(reader.continued(), None);
}

#[test]
fn a_switch_that_fills_its_segment_exactly_skips_nothing() {
    let mut wal = Writer::new(Major::V17);
    while wal.position() < START + SEGMENT - PAGE {
        wal.write(&Spec::Other(10, 0, 1000));
    }
    let room = START + SEGMENT - 24 - wal.position();
    let page_header = if wal.position().is_multiple_of(PAGE) {
        24
    } else {
        0
    };
    wal.write(&Spec::Other(10, 0, (room - page_header - 24) as usize));
    wal.write(&Spec::Switch);
    assert_eq!(wal.position(), START + SEGMENT);
    wal.write(&Spec::Commit(1, 2));
    assert_eq!(read(&wal.bytes).0, wal.events);
}

#[test]
fn only_the_crc_check_sees_a_changed_transaction_id() {
    let mut wal = Writer::of(Major::V17, &[Spec::Commit(1, 2)]);
    wal.bytes[40 + 4] = 9;
    let (events, end) = split_end(read(&wal.bytes).0);
    assert_eq!((events, end), (vec![], Some(Lsn(START))));
    let (events, end) = split_end(read_from(START, &wal.bytes, WalCheck::Structure, 64).0);
    assert_eq!((events.len(), end), (1, None));
}

#[test]
fn a_commit_that_cannot_be_read_ends_the_wal_rather_than_going_unseen() {
    for (info, body) in [
        (0x30, main_data(&[0; 8])),
        (0xB0, main_data(&[0; 12])),
        (
            0xB0,
            main_data(&[&[0; 8][..], &0x12_u32.to_le_bytes(), &[255; 8]].concat()),
        ),
        (0x00, main_data(&[0; 7])),
        (0x00, [main_data(&[0; 8]), vec![0; 8]].concat()),
        (0x00, vec![0; 40]),
        (0x00, vec![]),
    ] {
        let mut wal = Writer::new(Major::V17);
        wal.write_record(1, info, 0, &body);
        wal.write(&Spec::Commit(1, 2));
        assert_eq!(
            split_end(read(&wal.bytes).0),
            (vec![], Some(Lsn(START))),
            "{info:X} {body:?}"
        );
    }
}
