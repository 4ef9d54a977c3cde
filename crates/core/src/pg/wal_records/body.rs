//! The body of a record that has a time: a transaction ended or was prepared, or a restore point was made. It is read
//! as it comes, a field at a time, so that a commit of a million subtransactions takes no more memory than any other.
//!
//! Layouts: `xl_xact_commit` and `xl_xact_abort` with `ParseCommitRecord` and `ParseAbortRecord`
//! (`src/include/access/xact.h`, `src/backend/access/rmgrdesc/xactdesc.c`), `xl_xact_prepare` and `xl_restore_point`
//! (`src/include/access/xlog_internal.h`), PostgreSQL 14 to 18. None of these records has block
//! references, whose headers differ between versions.

use super::record::{DATA_LONG, DATA_SHORT, ORIGIN, RecordHeader, TOPLEVEL_XID, TRANSACTION, XLOG};
use super::{WalEventKind, WalTransaction};
use crate::pg::fields::{u32_at, u64_at};
use crate::pg::{Major, TransactionId, WalTime};

/// `XACT_XINFO_HAS_…`.
const HAS_DBINFO: u32 = 1;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWO_PHASE: u32 = 1 << 4;
const HAS_DROPPED_STATS: u32 = 1 << 8;

/// A restore point's time and name (`MAXFNAMELEN`), in bytes.
const RESTORE_POINT_BYTES: usize = 8 + 64;

/// What stands before the time in the record of a prepared transaction (`xl_xact_prepare`, `xact.h`), in bytes.
const BEFORE_PREPARED_AT: u64 = 16;

/// This much of a body tells what happened and when: an origin, a top-level transaction, the main data's length, and a
/// restore point's time and name.
pub(super) const BEGINNING_BYTES: usize = 3 + 5 + 5 + RESTORE_POINT_BYTES;

/// What a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tells {
    RestorePoint,
    Commit,
    Abort,
    CommitPrepared,
    AbortPrepared,
    Prepare,
}

/// The fields that are read, in the order in which they stand in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    BlockId,
    ShortLength,
    LongLength,
    RestorePoint,
    Time,
    Flags,
    /// The number of elements of a list, which follow it; the flag says which list.
    Count(u32),
    PreparedId,
    /// Nothing more is needed.
    Rest,
}

impl Field {
    fn size(self) -> usize {
        match self {
            Self::BlockId | Self::ShortLength => 1,
            Self::LongLength | Self::Flags | Self::Count(_) | Self::PreparedId => 4,
            Self::Time => 8,
            Self::RestorePoint => RESTORE_POINT_BYTES,
            Self::Rest => 0,
        }
    }
}

/// The time in a body that holds only the main data of a transaction's end, as most do.
pub(super) fn plain_time(body: &[u8]) -> Option<WalTime> {
    let data = match *body {
        [DATA_SHORT, length, ref data @ ..] if usize::from(length) == data.len() => data,
        [DATA_LONG, a, b, c, d, ref data @ ..] if u32::from_le_bytes([a, b, c, d]) as usize == data.len() => {
            data
        }
        _ => return None,
    };
    Some(WalTime(u64_at(data, 0)?.cast_signed()))
}

/// The part of a body that is still to come, and what was learned so far.
#[derive(Debug, Clone)]
pub(super) struct Body {
    tells: Tells,
    major: Major,
    /// Whether the main data has a field of flags.
    has_flags: bool,
    flags: u32,
    transaction: TransactionId,
    time: WalTime,
    /// How much of the record is still to come, in bytes.
    remaining: u64,
    /// How many of these bytes to skip before the field.
    skip: u64,
    field: Field,
    got: usize,
    buffer: [u8; RESTORE_POINT_BYTES],
    malformed: bool,
    beginning: [u8; BEGINNING_BYTES],
    begun: usize,
    /// Whether the time, and a restore point's name, were read.
    dated: bool,
}

impl Body {
    /// The body of a record, or `None` for one that tells nothing walship asks for.
    pub(super) fn of(record: &RecordHeader, major: Major) -> Option<Self> {
        Some(Self {
            tells: tells(record)?,
            major,
            has_flags: record.info & 0x80 != 0,
            flags: 0,
            transaction: record.transaction,
            time: WalTime(0),
            remaining: record.body_bytes(),
            skip: 0,
            field: Field::BlockId,
            got: 0,
            buffer: [0; RESTORE_POINT_BYTES],
            malformed: false,
            beginning: [0; BEGINNING_BYTES],
            begun: 0,
            dated: false,
        })
    }

    /// The first bytes of it that were taken.
    pub(super) fn beginning(&self) -> &[u8] {
        self.beginning.get(..self.begun).unwrap_or_default()
    }

    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        self.keep_beginning(bytes);
        while !bytes.is_empty() && self.field != Field::Rest {
            let wanted = if self.skip > 0 {
                self.skip.min(bytes.len() as u64) as usize
            } else {
                (self.field.size() - self.got).min(bytes.len())
            };
            let (taken, rest) = bytes.split_at_checked(wanted).unwrap_or((bytes, &[]));
            bytes = rest;
            self.remaining = self.remaining.saturating_sub(taken.len() as u64);
            if self.skip > 0 {
                self.skip -= taken.len() as u64;
                continue;
            }
            if let Some(room) = self.buffer.get_mut(self.got..self.got + taken.len()) {
                room.copy_from_slice(taken);
            }
            self.got += taken.len();
            if self.got == self.field.size() {
                self.got = 0;
                (self.skip, self.field) = self.accept();
            }
        }
    }

    fn keep_beginning(&mut self, bytes: &[u8]) {
        let room = self.beginning.get_mut(self.begun..).unwrap_or_default();
        let kept = room.len().min(bytes.len());
        if let (Some(room), Some(bytes)) = (room.get_mut(..kept), bytes.get(..kept)) {
            room.copy_from_slice(bytes);
        }
        self.begun += kept;
    }

    /// What the record tells, once its last byte was taken; `None` where it makes no sense.
    pub(super) fn finish(self) -> Option<WalEventKind> {
        if self.malformed || self.field != Field::Rest {
            return None;
        }
        Some(self.told())
    }

    /// What the bytes taken so far tell; `None` before the time is known. The id of a prepared
    /// transaction stands late in the record; until then it is the record's own, 0.
    pub(super) fn told_so_far(&self) -> Option<WalEventKind> {
        (self.dated && !self.malformed).then(|| self.told())
    }

    fn told(&self) -> WalEventKind {
        let ended = WalTransaction {
            id: self.transaction,
            time: self.time,
        };
        match self.tells {
            Tells::RestorePoint => WalEventKind::RestorePoint {
                name: self.restore_point_name(),
                time: self.time,
            },
            Tells::Commit => WalEventKind::Commit(ended),
            Tells::Abort => WalEventKind::Abort(ended),
            Tells::CommitPrepared => WalEventKind::CommitPrepared(ended),
            Tells::AbortPrepared => WalEventKind::AbortPrepared(ended),
            Tells::Prepare => WalEventKind::Prepare(ended),
        }
    }

    fn restore_point_name(&self) -> String {
        let name = self.buffer.get(8..).unwrap_or_default();
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
    }

    /// Uses the field in the buffer. Returns how much to skip, and the field after that.
    fn accept(&mut self) -> (u64, Field) {
        let number = u32_at(&self.buffer, 0).unwrap_or(0);
        let [byte, ..] = self.buffer;
        match self.field {
            Field::BlockId => match byte {
                DATA_SHORT => (0, Field::ShortLength),
                DATA_LONG => (0, Field::LongLength),
                ORIGIN => (2, Field::BlockId),
                TOPLEVEL_XID => (4, Field::BlockId),
                _ => self.refuse(),
            },
            Field::ShortLength => self.main_data(u64::from(byte)),
            Field::LongLength => self.main_data(u64::from(number)),
            Field::RestorePoint | Field::Time => {
                self.time = WalTime(u64_at(&self.buffer, 0).unwrap_or(0).cast_signed());
                self.dated = true;
                let prepared = matches!(self.tells, Tells::CommitPrepared | Tells::AbortPrepared);
                match (prepared, self.has_flags) {
                    (false, _) => (0, Field::Rest),
                    (true, true) => (0, Field::Flags),
                    (true, false) => self.refuse(),
                }
            }
            Field::Flags => {
                self.flags = number;
                let database = if number & HAS_DBINFO == 0 { 0 } else { 8 };
                (database, self.field_after(HAS_DBINFO))
            }
            Field::Count(list) => (
                u64::from(number) * self.element_bytes(list),
                self.field_after(list),
            ),
            Field::PreparedId => {
                self.transaction = TransactionId(number);
                (0, Field::Rest)
            }
            Field::Rest => (0, Field::Rest),
        }
    }

    fn refuse(&mut self) -> (u64, Field) {
        self.malformed = true;
        (0, Field::Rest)
    }

    /// The main data is the last thing in a record.
    fn main_data(&mut self, length: u64) -> (u64, Field) {
        if length != self.remaining {
            return self.refuse();
        }
        match self.tells {
            Tells::RestorePoint => (0, Field::RestorePoint),
            Tells::Prepare => (BEFORE_PREPARED_AT, Field::Time),
            _ => (0, Field::Time),
        }
    }

    /// The next list that the flags announce after this one; after the last list, the prepared transaction's id.
    fn field_after(&mut self, list: u32) -> Field {
        const ORDER: [u32; 5] = [
            HAS_DBINFO,
            HAS_SUBTRANSACTIONS,
            HAS_RELATIONS,
            HAS_DROPPED_STATS,
            HAS_INVALIDATIONS,
        ];
        let later = ORDER.into_iter().skip_while(|flag| *flag != list).skip(1);
        if let Some(next) = later.into_iter().find(|flag| self.flags & flag != 0) {
            return Field::Count(next);
        }
        if self.flags & HAS_TWO_PHASE == 0 {
            return self.refuse().1;
        }
        Field::PreparedId
    }

    fn element_bytes(&self, list: u32) -> u64 {
        match list {
            HAS_SUBTRANSACTIONS => 4,
            // `xl_xact_stats_item`; its object id became 64 bits wide in 18.
            HAS_DROPPED_STATS if self.major >= Major::V18 => 16,
            HAS_RELATIONS | HAS_DROPPED_STATS => 12,
            // `SharedInvalidationMessage`.
            _ => 16,
        }
    }
}

/// Resource managers and operations: `rmgrlist.h`, `XLOG_RESTORE_POINT` in `pg_control.h`,
/// `XLOG_XACT_…` in `xact.h`.
fn tells(record: &RecordHeader) -> Option<Tells> {
    match (record.resource_manager, record.info & 0x70) {
        (XLOG, 0x70) if record.info & 0x80 == 0 => Some(Tells::RestorePoint),
        (TRANSACTION, 0x00) => Some(Tells::Commit),
        (TRANSACTION, 0x10) => Some(Tells::Prepare),
        (TRANSACTION, 0x20) => Some(Tells::Abort),
        (TRANSACTION, 0x30) => Some(Tells::CommitPrepared),
        (TRANSACTION, 0x40) => Some(Tells::AbortPrepared),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a record of this operation tells, with this main data and these bytes before it.
    fn told(resource_manager: u8, info: u8, front: &[u8], data: &[u8]) -> Option<WalEventKind> {
        let body = [front, &[DATA_SHORT, data.len() as u8], data].concat();
        let mut header = [0; RecordHeader::SIZE_BYTES];
        header[..4].copy_from_slice(&(RecordHeader::SIZE_BYTES as u32 + body.len() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&700_u32.to_le_bytes());
        (header[16], header[17]) = (info, resource_manager);
        let header = RecordHeader::parse(&header).unwrap();
        // It tells the same, however it is cut into pieces.
        let mut all = (1..=body.len()).map(|piece| {
            let mut reading = Body::of(&header, Major::V18)?;
            body.chunks(piece).for_each(|bytes| reading.take(bytes));
            reading.finish()
        });
        let first = all.next().unwrap();
        assert!(all.all(|other| other == first));
        first
    }

    fn prepared(info: u8, flags: u32) -> Option<WalEventKind> {
        let data = [
            &9_i64.to_le_bytes()[..],
            &flags.to_le_bytes(),
            &77_u32.to_le_bytes(),
        ]
        .concat();
        told(TRANSACTION, info, &[], &data)
    }

    #[test]
    fn a_prepared_transactions_end_says_which_one_it_was_or_nothing() {
        assert!(prepared(0x30 | 0x80, HAS_TWO_PHASE).is_some());
        assert_eq!(prepared(0x30 | 0x80, 0), None, "without its id");
        assert_eq!(prepared(0x30, HAS_TWO_PHASE), None, "without flags");
    }

    #[test]
    fn what_stands_before_the_main_data_is_passed_over() {
        let time = 9_i64.to_le_bytes();
        let plain = told(TRANSACTION, 0, &[], &time);
        assert!(plain.is_some());
        let toplevel = [TOPLEVEL_XID, 1, 2, 3, 4];
        let origin = [ORIGIN, 1, 0];
        assert_eq!(told(TRANSACTION, 0, &toplevel, &time), plain);
        assert_eq!(told(TRANSACTION, 0, &origin, &time), plain);
        assert_eq!(told(TRANSACTION, 0, &[251], &time), None);
    }

    #[test]
    fn nothing_is_told_before_the_time_is_known_nor_of_what_makes_no_sense() {
        let mut header = [0; RecordHeader::SIZE_BYTES];
        header[..4].copy_from_slice(&(RecordHeader::SIZE_BYTES as u32 + 10).to_le_bytes());
        header[17] = TRANSACTION;
        let header = RecordHeader::parse(&header).unwrap();
        let told = |bytes: &[u8]| {
            let mut reading = Body::of(&header, Major::V18).unwrap();
            reading.take(bytes);
            reading.told_so_far()
        };
        let whole = [&[DATA_SHORT, 8][..], &9_i64.to_le_bytes()].concat();
        assert!(told(&whole).is_some());
        assert_eq!(told(&whole[..9]), None);
        assert_eq!(told(&[251; 10]), None);
    }

    #[test]
    fn a_plain_time_is_read_only_where_the_lengths_agree() {
        let time = 9_i64.to_le_bytes();
        let plain = |front: &[u8]| plain_time(&[front, &time].concat());
        assert_eq!(plain(&[DATA_SHORT, 8]), Some(WalTime(9)));
        assert_eq!(plain(&[DATA_LONG, 8, 0, 0, 0]), Some(WalTime(9)));
        for front in [&[DATA_SHORT, 9][..], &[DATA_LONG, 9, 0, 0, 0], &[ORIGIN, 8]] {
            assert_eq!(plain(front), None, "{front:?}");
        }
    }

    #[test]
    fn only_a_restore_point_is_one() {
        let data = [0; RESTORE_POINT_BYTES];
        assert!(told(0, 0x70, &[], &data).is_some());
        assert_eq!(told(0, 0xF0, &[], &data), None);
    }
}
