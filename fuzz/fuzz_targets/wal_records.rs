//! Feeds any bytes to the reader of WAL records and to the builder of a segment's index.
//!
//! Input: three bytes of choices, then WAL. The choices repair what random bytes never get right: page
//! addresses, record CRCs and the chain between records, so that the fuzzer reaches the records' bodies.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walship_core::format::segment_index::{Crossing, IndexBuilder, RESTORE_POINTS, SegmentIndex};
use walship_core::pg::{LongPageHeader, Lsn, Major, RecordHead, RecordTail, WalCheck, WalEvent, WalEventKind, WalReader};

fuzz_target!(|input: &[u8]| {
    let [choices, step, cut, wal @ ..] = input else {
        return;
    };
    let mut wal = wal.to_vec();
    let start = LongPageHeader::parse(&wal).map_or(Lsn(0x60_0000), |header| header.page_address);
    if choices & 1 != 0 {
        repair_pages(&mut wal, start);
    }
    if choices & 2 != 0 {
        repair_records(&mut wal, start);
    }
    let check = if choices & 4 != 0 { WalCheck::Crc } else { WalCheck::Structure };
    read_in_pieces(&wal, start, check, usize::from(*step) + 1);
    index_in_pieces(&wal, start, check, usize::from(*step) + 1);
    cross(&wal, start, usize::from(*cut));
});

fn events(pieces: &mut dyn Iterator<Item = &[u8]>, start: Lsn, check: WalCheck) -> (Vec<WalEvent>, Lsn) {
    let mut reader = WalReader::new(start, check);
    let mut events = Vec::new();
    for piece in pieces {
        reader.feed(piece, |event| events.push(event));
        assert!(reader.valid_until() >= start);
        if let Some(head) = reader.unfinished() {
            assert!(head.bytes.len() <= RecordHead::LIMIT_BYTES && head.start >= start);
        }
        if let Some(tail) = reader.continued() {
            assert!(tail.bytes.len() <= RecordTail::LIMIT_BYTES);
        }
    }
    (events, reader.valid_until())
}

/// However the bytes come, the same is told; positions rise, and nothing follows the end.
fn read_in_pieces(wal: &[u8], start: Lsn, check: WalCheck, step: usize) {
    let whole = events(&mut std::iter::once(wal), start, check);
    assert_eq!(whole, events(&mut wal.chunks(step), start, check));
    for (event, next) in whole.0.iter().zip(whole.0.iter().skip(1)) {
        assert!(!matches!(event.kind, WalEventKind::End { .. }));
        assert!(event.start < event.end && event.end <= next.start.max(event.end));
        assert!(event.start < next.start || matches!(next.kind, WalEventKind::End { .. }));
    }
}

fn index(pieces: &mut dyn Iterator<Item = &[u8]>, start: Lsn, check: WalCheck) -> Option<SegmentIndex> {
    let mut builder = IndexBuilder::new(start, check);
    pieces.for_each(|piece| builder.feed(piece));
    builder.finish()
}

/// The index is small, does not depend on the pieces, and reads back from JSON as it was.
fn index_in_pieces(wal: &[u8], start: Lsn, check: WalCheck, step: usize) {
    let whole = index(&mut std::iter::once(wal), start, check);
    assert_eq!(whole, index(&mut wal.chunks(step), start, check));
    let Some(index) = whole else { return };
    assert!(index.restore_points.len() <= RESTORE_POINTS);
    let json = serde_json_text(&index);
    assert!(json.len() < 32 << 10);
    if let Some(ends) = index.ends() {
        assert!(ends.smallest.time <= ends.first.time.min(ends.last.time));
        assert!(ends.largest.time >= ends.first.time.max(ends.last.time));
        assert!(ends.first.lsn <= ends.last.lsn);
    }
}

fn serde_json_text(index: &SegmentIndex) -> String {
    let text = serde_json::to_string(index).expect("an index is JSON");
    assert_eq!(&serde_json::from_str::<SegmentIndex>(&text).expect("and reads back"), index);
    text
}

/// Whatever two indexes say, putting a record together from them does not panic, and names a record
/// that begins before it ends.
fn cross(wal: &[u8], start: Lsn, cut: usize) {
    let at = (wal.len() * cut / 256) & !7;
    let (first, second) = wal.split_at(at);
    let first = index(&mut std::iter::once(first), start, WalCheck::Structure);
    let second_start = LongPageHeader::parse(second).map_or(start, |header| header.page_address);
    let second = index(&mut std::iter::once(second), second_start, WalCheck::Structure);
    for major in Major::ALL {
        let mut crossing = Crossing::new(major);
        for index in [&first, &second, &first, &second] {
            if let Some(event) = crossing.next(index.as_ref()) {
                assert!(event.start < event.end);
                if let Some(index) = index {
                    let _ = index.with_crossing(Some(event));
                }
            }
        }
    }
}

const PAGE: usize = 8192;

/// Gives each page the address it should have, and the first page's magic number and identity.
fn repair_pages(wal: &mut [u8], start: Lsn) {
    let Some(first) = wal.get(..40).map(<[u8]>::to_vec) else {
        return;
    };
    for (number, page) in wal.chunks_mut(PAGE).enumerate().skip(1) {
        if page.len() < 40 {
            return;
        }
        page[..2].copy_from_slice(&first[..2]);
        page[2] &= 0x0D;
        page[3] = 0;
        page[4..8].copy_from_slice(&first[4..8]);
        let address = start.0.wrapping_add((number * PAGE) as u64);
        page[8..16].copy_from_slice(&address.to_le_bytes());
    }
}

/// Chains the records that lie within one page each to the one before, and gives them their CRC.
fn repair_records(wal: &mut [u8], start: Lsn) {
    let mut at = 40;
    if wal.len() > 24 && wal[2] & 1 != 0 {
        let rest = u32::from_le_bytes([wal[16], wal[17], wal[18], wal[19]]) as usize;
        at += rest.min(PAGE).next_multiple_of(8);
    }
    let mut previous = start.0.wrapping_sub(64);
    loop {
        if at % PAGE == 0 {
            at += 24;
        }
        let Some(header) = wal.get(at..at + 24) else { return };
        let total = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let page_end = (at / PAGE + 1) * PAGE;
        if total < 24 || at + total > page_end.min(wal.len()) {
            return;
        }
        wal[at + 8..at + 16].copy_from_slice(&previous.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&wal[at + 24..at + total]), &wal[at..at + 20]);
        wal[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
        previous = start.0.wrapping_add(at as u64);
        at = (at + total).next_multiple_of(8);
    }
}
