//! One WAL record while it is read (`XLogRecord`, `src/include/access/xlogrecord.h`, the
//! same in PostgreSQL 14 to 18).

use super::body::Body;
use super::change::ChangeBody;
use super::{RECORD_ALIGNMENT, RecordHead, WalCheck, WalEventKind, WalTransaction};
use crate::pg::fields::{u32_at, u64_at};
use crate::pg::wal_records::{body, change};
use crate::pg::{Lsn, Major, TransactionId};

/// Resource managers (`src/include/access/rmgrlist.h`): `RM_XLOG_ID`, `RM_XACT_ID`, `RM_DBASE_ID`, `RM_TBLSPC_ID`.
pub(crate) const XLOG: u8 = 0;
pub(super) const TRANSACTION: u8 = 1;
pub(super) const DATABASE: u8 = 4;
pub(super) const TABLESPACE: u8 = 5;

/// The ids of what stands before a record's main data (`XLR_BLOCK_ID_…`).
pub(crate) const DATA_SHORT: u8 = 255;
pub(super) const DATA_LONG: u8 = 254;
pub(super) const ORIGIN: u8 = 253;
pub(super) const TOPLEVEL_XID: u8 = 252;

/// The bits of a record's info byte that say what its resource manager does (`~XLR_INFO_MASK`).
pub(crate) const OPERATION: u8 = 0xF0;

/// The CRC that a whole record should have: of its body, and then of its header as far as the CRC itself.
pub(crate) fn crc_of(record: &[u8]) -> Option<u32> {
    let body = crc32c::crc32c(record.get(RecordHeader::SIZE_BYTES..)?);
    Some(crc32c::crc32c_append(
        body,
        record.get(..RecordHeader::CRC_OFFSET)?,
    ))
}

/// Where the main data of a record without block references begin in its body, and their length.
pub(super) fn main_data_of(body: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    loop {
        match *body.get(at)? {
            ORIGIN => at += 3,
            TOPLEVEL_XID => at += 5,
            DATA_SHORT => return Some((at + 2, usize::from(*body.get(at + 1)?))),
            DATA_LONG => return Some((at + 5, u32_at(body, at + 1)? as usize)),
            _ => return None,
        }
    }
}

/// The fixed part of a record, with which it starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordHeader {
    pub(super) total_bytes: u32,
    pub(super) transaction: TransactionId,
    /// The position of the record before.
    pub(super) previous: Lsn,
    /// The upper four bits are the resource manager's.
    pub(crate) info: u8,
    pub(crate) resource_manager: u8,
    /// CRC-32C of the body, and then of the header as far as [`RecordHeader::CRC_OFFSET`].
    pub(crate) crc: u32,
    before_crc: [u8; Self::CRC_OFFSET],
}

impl RecordHeader {
    /// Its size in bytes (`SizeOfXLogRecord`).
    pub(crate) const SIZE_BYTES: usize = 24;
    /// Where its CRC stands, with which it ends.
    pub(crate) const CRC_OFFSET: usize = 20;
    /// Where the info byte and the resource manager stand.
    pub(crate) const INFO_OFFSET: usize = 16;
    pub(crate) const MANAGER_OFFSET: usize = 17;

    pub(crate) fn parse(bytes: &[u8; Self::SIZE_BYTES]) -> Option<Self> {
        Some(Self {
            total_bytes: u32_at(bytes, 0)?,
            transaction: TransactionId(u32_at(bytes, 4)?),
            previous: Lsn(u64_at(bytes, 8)?),
            info: *bytes.get(Self::INFO_OFFSET)?,
            resource_manager: *bytes.get(Self::MANAGER_OFFSET)?,
            crc: u32_at(bytes, Self::CRC_OFFSET)?,
            before_crc: *bytes.first_chunk()?,
        })
    }

    /// The header as it stands in the WAL.
    pub(super) fn bytes(&self) -> [u8; Self::SIZE_BYTES] {
        let mut bytes = [0; Self::SIZE_BYTES];
        let (front, crc) = bytes.split_at_mut(Self::CRC_OFFSET);
        front.copy_from_slice(&self.before_crc);
        crc.copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// The size of what follows the header, in bytes.
    pub(super) fn body_bytes(&self) -> u64 {
        u64::from(self.total_bytes).saturating_sub(Self::SIZE_BYTES as u64)
    }
}

#[derive(Clone)]
pub(super) struct PartialHeader {
    start: Lsn,
    bytes: [u8; RecordHeader::SIZE_BYTES],
    got: usize,
}

impl PartialHeader {
    /// The header of the record that starts here.
    pub(super) fn new(start: Lsn) -> Self {
        Self {
            start,
            bytes: [0; RecordHeader::SIZE_BYTES],
            got: 0,
        }
    }

    pub(super) fn start(&self) -> Lsn {
        self.start
    }

    /// How much of the header is still to come, in bytes.
    pub(super) fn missing(&self) -> u64 {
        (RecordHeader::SIZE_BYTES - self.got) as u64
    }

    /// How much of the whole record is still to come, in bytes. The length itself is never split between pages, because
    /// records begin at multiples of eight.
    pub(super) fn remaining(&self) -> u64 {
        let total = u32_at(&self.bytes, 0).unwrap_or(0);
        u64::from(total).saturating_sub(self.got as u64)
    }

    /// The part of the record that was read.
    pub(super) fn head(&self) -> RecordHead {
        RecordHead {
            start: self.start,
            remaining: self.remaining() as u32,
            bytes: self.bytes.get(..self.got).unwrap_or_default().to_vec(),
        }
    }

    /// Takes at most the missing bytes; returns the header once it is complete.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<RecordHeader> {
        self.bytes
            .get_mut(self.got..self.got + bytes.len())?
            .copy_from_slice(bytes);
        self.got += bytes.len();
        if self.got < RecordHeader::SIZE_BYTES {
            return None;
        }
        RecordHeader::parse(&self.bytes)
    }
}

/// A record that stands whole in one piece of WAL.
pub(super) struct WholeRecord {
    pub(super) total_bytes: u32,
    /// The position of the record before.
    pub(super) previous: Lsn,
    /// Its length with the padding after it.
    pub(super) padded_bytes: usize,
    pub(super) tells: Option<WalEventKind>,
}

/// The reason why the WAL ends at a record with a wrong CRC.
pub(super) fn no_match(start: Lsn) -> String {
    format!("the record at {start} does not match its CRC")
}

impl WholeRecord {
    /// Whether the record at the start of these bytes is as it was written.
    pub(super) fn matches_its_crc(&self, bytes: &[u8]) -> bool {
        let record = bytes.get(..self.total_bytes as usize);
        let written = record.and_then(|record| u32_at(record, RecordHeader::CRC_OFFSET));
        written.is_some() && written == record.and_then(crc_of)
    }

    /// The record at the start of these bytes, if it is complete and of a common form: it tells nothing, or is the end
    /// of a transaction with nothing before its main data. `None` may be any other record.
    pub(super) fn at_start_of(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<{ RecordHeader::SIZE_BYTES }>()?;
        let total_bytes = u32_at(header, 0)?;
        let padded_bytes = (total_bytes as usize).next_multiple_of(RECORD_ALIGNMENT as usize);
        if bytes.len() < padded_bytes {
            return None;
        }
        let [.., info, resource_manager, _, _, _, _, _, _] = *header;
        let tells = match (resource_manager, info & 0x70) {
            (XLOG, 0x40 | 0x70) | (TRANSACTION, 0x10 | 0x30 | 0x40) => return None,
            (TRANSACTION, 0x00 | 0x20) => {
                let time = body::plain_time(bytes.get(RecordHeader::SIZE_BYTES..total_bytes as usize)?)?;
                let id = TransactionId(u32_at(header, 4)?);
                let ended = WalTransaction { id, time };
                Some(match info & 0x70 {
                    0x00 => WalEventKind::Commit(ended),
                    _ => WalEventKind::Abort(ended),
                })
            }
            _ if change::may_change(resource_manager, info) => return None,
            _ => None,
        };
        Some(Self {
            total_bytes,
            previous: Lsn(u64_at(header, 8)?),
            padded_bytes,
            tells,
        })
    }
}

/// The body of a record that tells something.
#[derive(Clone)]
pub(super) enum Telling {
    Time(Body),
    Change(ChangeBody),
}

impl Telling {
    /// The body of a record, or `None` for one that tells nothing walship asks for.
    pub(super) fn of(record: &RecordHeader, major: Major) -> Option<Self> {
        let change = || ChangeBody::of(record, major).map(Self::Change);
        Body::of(record, major).map(Self::Time).or_else(change)
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        match self {
            Self::Time(body) => body.take(bytes),
            Self::Change(body) => body.take(bytes),
        }
    }

    /// The first bytes of it that were taken.
    fn beginning(&self) -> &[u8] {
        match self {
            Self::Time(body) => body.beginning(),
            Self::Change(body) => body.beginning(),
        }
    }

    /// What the bytes taken so far tell.
    pub(super) fn told_so_far(&self) -> Option<WalEventKind> {
        match self {
            Self::Time(body) => body.told_so_far(),
            Self::Change(body) => Some(WalEventKind::Change(body.told())),
        }
    }

    /// What the whole record told; `None` where it makes no sense.
    fn finish(self) -> Option<WalEventKind> {
        match self {
            Self::Time(body) => body.finish(),
            Self::Change(body) => Some(WalEventKind::Change(body.told())),
        }
    }
}

/// A record whose header was read.
#[derive(Clone)]
pub(super) struct Record {
    start: Lsn,
    header: RecordHeader,
    remaining: u64,
    crc: u32,
    /// Only for a record that tells something, which few do.
    body: Option<Box<Telling>>,
}

impl Record {
    pub(super) fn new(start: Lsn, header: RecordHeader, major: Major) -> Self {
        Self {
            start,
            header,
            remaining: header.body_bytes(),
            crc: 0,
            body: Telling::of(&header, major).map(Box::new),
        }
    }

    pub(super) fn start(&self) -> Lsn {
        self.start
    }

    /// How much of it is still to come, in bytes.
    pub(super) fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The record's beginning, if the record tells something.
    pub(super) fn head(&self) -> Option<RecordHead> {
        let body = self.body.as_ref()?;
        let mut bytes = self.header.bytes().to_vec();
        bytes.extend_from_slice(body.beginning());
        Some(RecordHead {
            start: self.start,
            remaining: self.remaining as u32,
            bytes,
        })
    }

    /// Whether the rest of the segment is unused after it (`XLOG_SWITCH`).
    pub(super) fn is_switch(&self) -> bool {
        self.header.resource_manager == XLOG && self.header.info & OPERATION == 0x40
    }

    /// Takes at most the remaining bytes.
    pub(super) fn take(&mut self, bytes: &[u8], check: WalCheck) {
        self.remaining = self.remaining.saturating_sub(bytes.len() as u64);
        if check == WalCheck::Crc {
            self.crc = crc32c::crc32c_append(self.crc, bytes);
        }
        if let Some(body) = &mut self.body {
            body.take(bytes);
        }
    }

    /// What the complete record tells, if anything.
    pub(super) fn finish(self, check: WalCheck) -> Result<Option<WalEventKind>, String> {
        let start = self.start;
        if check == WalCheck::Crc
            && crc32c::crc32c_append(self.crc, &self.header.before_crc) != self.header.crc
        {
            return Err(no_match(start));
        }
        let Some(body) = self.body else {
            return Ok(None);
        };
        match body.finish() {
            Some(kind) => Ok(Some(kind)),
            None => Err(format!("the record at {start} is not one that PostgreSQL writes")),
        }
    }
}
