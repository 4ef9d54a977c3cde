//! A piece of WAL as it stands in its segments, and single records in it, found by their position: checkpoints, and the
//! ends of backups (`XLOG_CHECKPOINT_…`, `XLOG_BACKUP_END`, `CheckPoint` in
//! `src/include/catalog/pg_control.h`; their layouts are the same in PostgreSQL 14 to 18).
//!
//! Unlike [`super::WalReader`], which reads every record from a segment's start on, this looks at one position and
//! trusts nothing but the record's own CRC.

use super::fields::{u32_at, u64_at};
use super::page_header::SHORT_HEADER_BYTES;
use super::wal_records::RECORD_ALIGNMENT;
use super::wal_records::record::{DATA_SHORT, OPERATION, RecordHeader, XLOG, crc_of};
use super::{LongPageHeader, Lsn};

/// At most this much of a server's WAL is asked for at once, in bytes.
pub const WAL_PIECE_BYTES: u64 = 64 * 1024;
/// No record that is looked for is longer.
const LONGEST_BYTES: usize = 256;
/// A record of `XLOG_BACKUP_END`: header, length, start position.
const BACKUP_END_BYTES: u64 = 34;

/// Any record that is looked for lies within this many bytes from its first one on, page headers included.
pub(crate) const RECORD_REACH_BYTES: u64 = 512;

/// Sizes that say where page headers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalGeometry {
    /// `XLOG_BLCKSZ`.
    pub page_bytes: u64,
    /// The cluster's segment size.
    pub segment_bytes: u64,
}

impl WalGeometry {
    fn header_bytes(self, page: u64) -> u64 {
        if page.is_multiple_of(self.segment_bytes) {
            LongPageHeader::SIZE_BYTES as u64
        } else {
            SHORT_HEADER_BYTES as u64
        }
    }

    /// Where a record of `XLOG_BACKUP_END` begins that ends at this position.
    pub(crate) fn start_of_backup_end(self, end: Lsn) -> Option<Lsn> {
        let length = BACKUP_END_BYTES.next_multiple_of(RECORD_ALIGNMENT);
        let last = end.0.checked_sub(1)?;
        let page = last - last % self.page_bytes;
        let in_page = (end.0 - page).checked_sub(self.header_bytes(page))?;
        if in_page >= length {
            return Some(Lsn(end.0 - length));
        }
        // It begins in the page before.
        page.checked_sub(length - in_page).map(Lsn)
    }
}

/// Consecutive bytes of the WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPiece {
    /// The position of the first one.
    pub start: Lsn,
    /// The bytes, page headers included.
    pub bytes: Vec<u8>,
}

/// The content of a checkpoint's record, which `pg_control` repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointCopy([u8; Self::SIZE_BYTES]);

impl CheckpointCopy {
    /// `sizeof(CheckPoint)`.
    pub(crate) const SIZE_BYTES: usize = 88;
    /// Every field but `nextXid`, without the padding between them.
    const FIELDS: [std::ops::Range<usize>; 3] = [0..17, 32..60, 64..84];
    const NEXT_XID: usize = 24;

    /// The content of a checkpoint, from exactly as many bytes.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Where replay from it starts.
    pub(crate) fn redo(&self) -> Lsn {
        Lsn(u64_at(&self.0, 0).unwrap_or(0))
    }

    /// The timeline it was made on.
    pub(crate) fn timeline(&self) -> u32 {
        u32_at(&self.0, 8).unwrap_or(0)
    }

    /// When it was begun, in seconds since 1970, by the server's clock.
    pub(crate) fn time(&self) -> i64 {
        u64_at(&self.0, 64).unwrap_or(0).cast_signed()
    }

    /// Whether `pg_control` repeats this content of a record. A standby writes the `nextXid` of later checkpoints into
    /// its copy (`xlog_redo`).
    pub(crate) fn is_repeated_by(&self, control: &Self) -> bool {
        let next = |copy: &Self| u64_at(&copy.0, Self::NEXT_XID);
        let same = |range: std::ops::Range<usize>| self.0.get(range.clone()) == control.0.get(range);
        Self::FIELDS.into_iter().all(same) && next(self) <= next(control)
    }
}

impl WalPiece {
    /// The position after the last byte.
    #[must_use]
    pub fn end(&self) -> Lsn {
        Lsn(self.start.0.saturating_add(self.bytes.len() as u64))
    }

    /// The bytes between two positions, if the piece has all of them.
    #[must_use]
    pub fn between(&self, from: Lsn, until: Lsn) -> Option<&[u8]> {
        let begin = usize::try_from(from.0.checked_sub(self.start.0)?).ok()?;
        let end = usize::try_from(until.0.checked_sub(self.start.0)?).ok()?;
        self.bytes.get(begin..end)
    }

    /// The checkpoint whose record begins here; `None` where none begins here.
    pub(crate) fn checkpoint_at(&self, lsn: Lsn, geometry: WalGeometry) -> Option<CheckpointCopy> {
        let (info, data) = self.xlog_record_at(lsn, geometry)?;
        // Shutdown and online.
        matches!(info, 0x00 | 0x10)
            .then(|| CheckpointCopy::new(&data))
            .flatten()
    }

    /// The start position of the backup that ended with the record which begins here; `None` where none begins here.
    pub(crate) fn backup_end_at(&self, lsn: Lsn, geometry: WalGeometry) -> Option<Lsn> {
        let (info, data) = self.xlog_record_at(lsn, geometry)?;
        (info == 0x50 && data.len() == 8)
            .then(|| u64_at(&data, 0).map(Lsn))
            .flatten()
    }

    /// Operation and main data of a small record of the resource manager `RM_XLOG_ID`.
    fn xlog_record_at(&self, lsn: Lsn, geometry: WalGeometry) -> Option<(u8, Vec<u8>)> {
        if !lsn.0.is_multiple_of(RECORD_ALIGNMENT) {
            return None;
        }
        let length = u32_at(&self.content(lsn, 4, geometry)?, 0)? as usize;
        if !(RecordHeader::SIZE_BYTES + 2..=LONGEST_BYTES).contains(&length) {
            return None;
        }
        let record = self.content(lsn, length, geometry)?;
        let (header, body) = record.split_first_chunk()?;
        let header = RecordHeader::parse(header)?;
        if crc_of(&record)? != header.crc || header.resource_manager != XLOG {
            return None;
        }
        let (&[block, data_bytes], data) = body.split_first_chunk()?;
        let is_whole = block == DATA_SHORT && usize::from(data_bytes) == data.len();
        is_whole.then(|| (header.info & OPERATION, data.to_vec()))
    }

    /// The next `length` bytes of the WAL's content from a position on, without the page headers.
    fn content(&self, from: Lsn, length: usize, geometry: WalGeometry) -> Option<Vec<u8>> {
        let mut content = Vec::with_capacity(length);
        let mut at = from.0;
        while content.len() < length {
            if at.is_multiple_of(geometry.page_bytes) {
                at = at.checked_add(geometry.header_bytes(at))?;
            }
            let left_in_page = geometry.page_bytes - at % geometry.page_bytes;
            let taken = left_in_page.min((length - content.len()) as u64);
            content.extend_from_slice(self.between(Lsn(at), Lsn(at.checked_add(taken)?))?);
            at = at.checked_add(taken)?;
        }
        Some(content)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const GEOMETRY: WalGeometry = WalGeometry {
        page_bytes: 8192,
        segment_bytes: 1 << 20,
    };

    /// A record of the resource manager `RM_XLOG_ID`.
    fn record(info: u8, data: &[u8]) -> Vec<u8> {
        let body = [&[DATA_SHORT, data.len() as u8], data].concat();
        let mut record = vec![0; RecordHeader::SIZE_BYTES];
        record[..4].copy_from_slice(&((RecordHeader::SIZE_BYTES + body.len()) as u32).to_le_bytes());
        record[RecordHeader::INFO_OFFSET] = info;
        record.extend_from_slice(&body);
        let crc = crc_of(&record).unwrap();
        record[RecordHeader::CRC_OFFSET..RecordHeader::SIZE_BYTES].copy_from_slice(&crc.to_le_bytes());
        record
    }

    pub(crate) fn backup_end(start: Lsn) -> Vec<u8> {
        record(0x50, &start.0.to_le_bytes())
    }

    pub(crate) fn checkpoint(copy: &CheckpointCopy) -> Vec<u8> {
        record(0x10, copy.bytes())
    }

    pub(crate) fn copy(redo: Lsn, time: i64) -> CheckpointCopy {
        let mut bytes = [0; CheckpointCopy::SIZE_BYTES];
        bytes[..8].copy_from_slice(&redo.0.to_le_bytes());
        bytes[8] = 1;
        bytes[CheckpointCopy::NEXT_XID] = 100;
        bytes[64..72].copy_from_slice(&time.to_le_bytes());
        CheckpointCopy(bytes)
    }

    /// Writes a record at a position, around the page headers; returns the position after it, padding included.
    pub(crate) fn write(piece: &mut WalPiece, at: Lsn, record: &[u8]) -> Lsn {
        let padded = record.len().next_multiple_of(RECORD_ALIGNMENT as usize);
        let mut at = at.0;
        for index in 0..padded {
            if at.is_multiple_of(GEOMETRY.page_bytes) {
                at += GEOMETRY.header_bytes(at);
            }
            piece.bytes[(at - piece.start.0) as usize] = record.get(index).copied().unwrap_or(0);
            at += 1;
        }
        Lsn(at)
    }

    fn empty(start: Lsn) -> WalPiece {
        WalPiece {
            start,
            bytes: vec![0; 3 * 8192],
        }
    }

    #[test]
    fn a_backups_end_is_found_wherever_it_lies_in_its_pages_and_segments() {
        // Pages in the middle of a segment, and around the boundary of two.
        for base in [0x30_0000, 0x30_0000 - 8192, 0x20_2000] {
            for offset in (8192 - 64..8192 + 8).step_by(8) {
                let start = if offset >= 8192 {
                    base + offset + GEOMETRY.header_bytes(base + 8192)
                } else {
                    base + offset
                };
                let mut piece = empty(Lsn(base));
                let end = write(&mut piece, Lsn(start), &backup_end(Lsn(0x1234_5678)));
                let found = GEOMETRY.start_of_backup_end(end).unwrap();
                // A record whose first byte would be a page's header begins after it.
                assert_eq!(
                    piece.backup_end_at(found, GEOMETRY),
                    Some(Lsn(0x1234_5678)),
                    "{base:X} {offset}"
                );
            }
        }
    }

    #[test]
    fn one_wrong_bit_or_another_record_is_no_end_of_a_backup() {
        let at = Lsn(0x20_2020);
        let mut piece = empty(Lsn(0x20_2000));
        write(&mut piece, at, &backup_end(Lsn(7)));
        assert_eq!(piece.backup_end_at(at, GEOMETRY), Some(Lsn(7)));
        assert_eq!(piece.checkpoint_at(at, GEOMETRY), None);
        for byte in 0..BACKUP_END_BYTES as usize {
            let mut damaged = piece.clone();
            damaged.bytes[0x20 + byte] ^= 1;
            assert_eq!(damaged.backup_end_at(at, GEOMETRY), None, "byte {byte}");
        }
        assert_eq!(piece.backup_end_at(Lsn(at.0 + 4), GEOMETRY), None);
        assert_eq!(piece.backup_end_at(Lsn(0x1F_0000), GEOMETRY), None);
    }

    #[test]
    fn a_checkpoint_is_repeated_by_the_control_file_that_was_written_with_it() {
        let ours = copy(Lsn(0x20_2000), 1_764_000_000);
        let at = Lsn(0x20_2000 + 8192 - 48);
        let mut piece = empty(Lsn(0x20_2000));
        write(&mut piece, at, &checkpoint(&ours));
        let found = piece.checkpoint_at(at, GEOMETRY).unwrap();
        assert_eq!(
            (found.redo(), found.timeline(), found.time()),
            (Lsn(0x20_2000), 1, 1_764_000_000)
        );
        assert!(found.is_repeated_by(&ours));
        assert!(!found.is_repeated_by(&copy(Lsn(0x20_2000), 1_764_000_001)));
        assert!(!found.is_repeated_by(&copy(Lsn(0x20_2008), 1_764_000_000)));
        let (mut later, mut earlier) = (ours, ours);
        later.0[CheckpointCopy::NEXT_XID] += 1;
        earlier.0[CheckpointCopy::NEXT_XID] -= 1;
        assert!(found.is_repeated_by(&later) && !found.is_repeated_by(&earlier));
    }
}
