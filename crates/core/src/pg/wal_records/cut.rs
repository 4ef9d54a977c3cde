//! A record that begins in one segment and ends in another, put together from what each of the two segments keeps of
//! it.

use super::body::BEGINNING_BYTES;
use super::record::{RecordHeader, Telling};
use super::{WalEvent, take_front};
use crate::pg::{Lsn, Major};

/// At least this many bytes of a record lie in the segment in which it begins, because records begin at multiples of
/// it.
const LEAST_HEAD_BYTES: usize = 8;

/// The beginning of a record that a segment leaves unfinished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHead {
    /// Where it begins.
    pub start: Lsn,
    /// How much of it is still to come, in bytes.
    pub(crate) remaining: u32,
    /// Its first bytes: enough to tell what it is, or as many as there are.
    pub bytes: Vec<u8>,
}

impl RecordHead {
    /// More bytes are never needed.
    pub const LIMIT_BYTES: usize = RecordHeader::SIZE_BYTES + BEGINNING_BYTES;
}

/// The part of a record with which a segment begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordTail {
    /// How much of it was still to come at the segment's start, in bytes.
    pub remaining: u32,
    /// Its first bytes: enough to tell what it is together with the head, or as many as there are.
    pub bytes: Vec<u8>,
    /// The position after the record, padding included; `None` where it goes on beyond the segment.
    pub(crate) end: Option<Lsn>,
}

impl RecordTail {
    /// More bytes are never needed.
    pub const LIMIT_BYTES: usize = RecordHead::LIMIT_BYTES - LEAST_HEAD_BYTES;

    pub(super) fn new(remaining: u32) -> Self {
        Self {
            remaining,
            bytes: Vec::new(),
            end: None,
        }
    }

    /// Takes the next bytes after the page header, as many as are wanted.
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        let wanted = Self::LIMIT_BYTES.min(self.remaining as usize);
        let missing = wanted.saturating_sub(self.bytes.len());
        if missing > 0 {
            self.bytes
                .extend_from_slice(take_front(&mut bytes, missing as u64));
        }
    }
}

/// What a record tells that begins in one segment, goes on in the next, and ends at `end`. `None` where it tells
/// nothing, or the two are not parts of one record: a crash may have cut the first one off. The id of a prepared
/// transaction is not read and is 0. A change whose record is longer than the two parts is
/// [`super::WalChange::Unread`].
pub(crate) fn join(head: &RecordHead, tail: &RecordTail, end: Lsn, major: Major) -> Option<WalEvent> {
    if head.remaining != tail.remaining || head.start >= end {
        return None;
    }
    let mut bytes = head.bytes.clone();
    // A head that was cut at the limit has all that is needed.
    if bytes.len() < RecordHead::LIMIT_BYTES {
        bytes.extend_from_slice(&tail.bytes);
    }
    let (header, body) = bytes.split_first_chunk()?;
    let mut record = Telling::of(&RecordHeader::parse(header)?, major)?;
    record.take(body);
    Some(WalEvent {
        start: head.start,
        end,
        kind: record.told_so_far()?,
    })
}
