//! A switch of segments whose record begins in the last bytes of the segment before.
//!
//! Such a record ends in the next segment and fills all of that one too (`ReserveXLogSwitch`, `xlog.c`;
//! `XLogDecodeNextRecord`, `xlogreader.c`, PostgreSQL 14 to 18): nothing but zeros follows it there. A reader of that
//! segment alone finds the end of a record, and no other record.

use super::{ContinuedRecord, SegmentIndex};

/// A switch is a header and nothing else (`SizeOfXLogRecord`). These bytes at its end hold what it is, padding, and the
/// CRC.
const HEADER_END_BYTES: usize = 8;
/// `XLOG_SWITCH` of `RM_XLOG_ID`, and the padding; the lower four bits of the first byte are the reader's.
const SWITCH: [u8; 4] = [0x40, 0, 0, 0];

impl SegmentIndex {
    /// The same, without a false end of the WAL. An older walship took a switch that began in the segment before for
    /// the end of the WAL, and its trailers stay.
    pub(crate) fn without_false_end(self) -> Self {
        if self.is_filled_by_a_switch() {
            return Self {
                valid_until: None,
                ..self
            };
        }
        self
    }

    fn is_filled_by_a_switch(&self) -> bool {
        let (Some(until), Some(continued)) = (self.valid_until, &self.continued) else {
            return false;
        };
        // No record was read after it.
        continued.end.is_some_and(|end| until <= end) && continued.is_end_of_a_switch()
    }
}

impl ContinuedRecord {
    /// Records begin at multiples of 8, so 8 or 16 bytes of the header lie in this segment.
    fn is_end_of_a_switch(&self) -> bool {
        let bytes = &self.bytes.0;
        let header_end = bytes.len().checked_sub(HEADER_END_BYTES);
        let begin = header_end.and_then(|at| bytes.get(at..)?.first_chunk::<4>().copied());
        matches!(self.remaining, 8 | 16)
            && bytes.len() == self.remaining as usize
            && begin.is_some_and(|[info, rest @ ..]| [info & 0xF0, rest[0], rest[1], rest[2]] == SWITCH)
    }
}
