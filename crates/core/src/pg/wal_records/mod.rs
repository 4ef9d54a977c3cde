//! A reader of WAL records that finds the ends of transactions, the restore points and what changes the
//! conditions of a recovery, and passes over everything else. It follows `XLogDecodeNextRecord` and
//! `XLogFindNextRecord` (`src/backend/access/transam/xlogreader.c`, PostgreSQL 14 to 18).
//!
//! It is fed bytes in pieces of any size and holds at most a few hundred bytes. The first invalid record ends the WAL,
//! as it does for PostgreSQL.

mod body;
mod change;
mod cut;
mod pages;
pub(super) mod record;
pub mod tablespace_record;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "fixtures"))]
pub mod writer;

use pages::{PageStart, Pages, Piece};
use record::{PartialHeader, Record, RecordHeader, WholeRecord};

pub use change::{WalChange, WalCheckpoint, WalLevel, WalParameters};
pub(crate) use cut::join;
pub use cut::{RecordHead, RecordTail};
pub use tablespace_record::NewTablespace;

use super::{LongPageHeader, Lsn, TransactionId, WalTime};

/// Records begin at multiples of it (`MAXALIGN`).
pub(super) const RECORD_ALIGNMENT: u64 = 8;

/// How closely records are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalCheck {
    /// Page headers, record lengths and each record's link to the one before. Enough for whole segments that are known
    /// to be as PostgreSQL archived them, and the fastest.
    Structure,
    /// Each record's CRC as well: needed to find the end of WAL in a `.partial` segment.
    Crc,
}

/// A transaction that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalTransaction {
    /// The top-level transaction's id.
    pub id: TransactionId,
    /// When it ended, by the server's clock.
    pub time: WalTime,
}

/// Something that the WAL tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalEvent {
    /// The position of the record.
    pub start: Lsn,
    /// The position after it, as PostgreSQL reports it: where the next record begins, or the next page if no record
    /// fits before it.
    pub end: Lsn,
    /// What it is.
    pub kind: WalEventKind,
}

/// What a [`WalEvent`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalEventKind {
    /// A named restore point (`pg_create_restore_point`).
    RestorePoint {
        /// Its name.
        name: String,
        /// When it was made.
        time: WalTime,
    },
    /// A transaction committed.
    Commit(WalTransaction),
    /// A transaction was rolled back.
    Abort(WalTransaction),
    /// A prepared transaction was committed (`COMMIT PREPARED`).
    CommitPrepared(WalTransaction),
    /// A prepared transaction was rolled back (`ROLLBACK PREPARED`).
    AbortPrepared(WalTransaction),
    /// A transaction was prepared (`PREPARE TRANSACTION`): from here on it survives a crash.
    Prepare(WalTransaction),
    /// What a recovery needs or touches changes.
    Change(WalChange),
    /// The valid WAL ends here; `start` and `end` are the end of the last valid record. Nothing is read after that.
    End {
        /// What is wrong with what follows.
        why: String,
    },
}

/// Reads the records of consecutive WAL segments. Segments of a parent timeline may be followed by
/// those of its child.
#[derive(Clone)]
pub struct WalReader {
    check: WalCheck,
    pages: Pages,
    state: State,
    /// The start of the last record read; `None` before the first.
    previous: Option<Lsn>,
    /// The first record that begins here: its position, and the position that it names for the record before it.
    first: Option<(Lsn, Lsn)>,
    valid_until: Lsn,
    /// The end of a record that began before the first page.
    tail: Option<RecordTail>,
    /// How much of it is left after the pages read so far; `None` before the first page.
    tail_left: Option<u32>,
}

#[derive(Clone)]
enum State {
    /// Within a record that began before the first page.
    Seeking,
    /// Before a record, after this many bytes of padding.
    Between { padding: u64 },
    /// Within a record's header.
    Header(PartialHeader),
    /// Within a record's body.
    Body(Record),
    /// The WAL has ended.
    Ended,
}

impl WalReader {
    /// A reader of the WAL from a segment's first byte on. A record that began in the segment before
    /// is passed over.
    #[must_use]
    pub fn new(segment_start: Lsn, check: WalCheck) -> Self {
        Self {
            check,
            pages: Pages::new(segment_start),
            state: State::Seeking,
            previous: None,
            first: None,
            valid_until: segment_start,
            tail: None,
            tail_left: None,
        }
    }

    /// The header of the first segment, once it was read.
    pub(crate) fn first_page(&self) -> Option<&LongPageHeader> {
        self.pages.first()
    }

    /// The first record that begins here and has a complete header: its position, and the position that it names for
    /// the record before it (`xl_prev`).
    pub(crate) fn first_record(&self) -> Option<(Lsn, Lsn)> {
        self.first
    }

    /// The position of the last complete record that begins here.
    pub(crate) fn last_record(&self) -> Option<Lsn> {
        self.previous
    }

    /// The position of the record that the bytes fed so far leave unfinished.
    pub(crate) fn open_record(&self) -> Option<Lsn> {
        match &self.state {
            State::Header(header) => Some(header.start()),
            State::Body(record) => Some(record.start()),
            State::Seeking | State::Between { .. } | State::Ended => None,
        }
    }

    /// The end of the last complete record; the start position where there was none yet.
    #[must_use]
    pub fn valid_until(&self) -> Lsn {
        self.valid_until
    }

    /// Whether the end of the valid WAL was reached. More bytes change nothing then.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// What was read of the end of the record that began before the first page.
    #[must_use]
    pub fn continued(&self) -> Option<&RecordTail> {
        self.tail.as_ref()
    }

    /// The beginning of the record that the bytes fed so far leave unfinished, unless it
    /// certainly tells nothing.
    #[must_use]
    pub fn unfinished(&self) -> Option<RecordHead> {
        match &self.state {
            State::Header(header) => Some(header.head()),
            State::Body(record) => record.head(),
            State::Seeking | State::Between { .. } | State::Ended => None,
        }
    }

    /// Takes the next bytes of the WAL, and returns what the records tell that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(WalEvent)) {
        while !self.has_ended() {
            let Some(piece) = self.pages.next(&mut bytes) else {
                return;
            };
            let read = match piece {
                Piece::PageStart(page) => self.begin_page(page),
                Piece::Body { at, bytes } => self.read_body(at, bytes, &mut on_event),
                Piece::Invalid(why) => Err(why),
            };
            if let Err(why) = read {
                self.state = State::Ended;
                on_event(WalEvent {
                    start: self.valid_until,
                    end: self.valid_until,
                    kind: WalEventKind::End { why },
                });
            }
        }
    }

    fn begin_page(&mut self, page: PageStart) -> Result<(), String> {
        let remaining = match &self.state {
            State::Seeking => {
                self.seek_in(page);
                return Ok(());
            }
            State::Header(header) => Some(header.remaining()),
            State::Body(record) => Some(record.remaining()),
            State::Between { .. } | State::Ended => None,
        };
        if remaining.is_some() && page.overwrites {
            // A crash cut the record off, and the server wrote another one in its place.
            self.state = State::Between { padding: 0 };
            return Ok(());
        }
        if remaining != page.continues.then_some(u64::from(page.remaining)) {
            return Err("a record does not go on in the next page as it should".to_owned());
        }
        Ok(())
    }

    /// Looks for the first record that begins in a page.
    fn seek_in(&mut self, page: PageStart) {
        let ended = self.tail.as_ref().is_some_and(|tail| tail.end.is_some());
        match self.tail_left {
            None if page.continues => self.tail = Some(RecordTail::new(page.remaining)),
            Some(left) if page.continues && page.remaining == left => {}
            // A crash cut the record off.
            Some(_) if !ended => self.tail = None,
            None | Some(_) => {}
        }
        self.tail_left = Some(page.remaining_after());
        if let Some(tail) = self.tail.as_mut().filter(|_| !ended) {
            tail.end = page.continuation_end();
        }
        if let Some(padding) = page.first_record() {
            self.state = State::Between { padding };
        }
    }

    /// Reads the records in a part of a page.
    fn read_body(
        &mut self,
        mut at: u64,
        mut bytes: &[u8],
        on_event: &mut impl FnMut(WalEvent),
    ) -> Result<(), String> {
        if let Some(tail) = &mut self.tail {
            tail.take(bytes);
        }
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::Seeking | State::Ended => return Ok(()),
                State::Between { padding: 0 } => {
                    let passed = self.pass_whole_records(at, bytes, on_event)?;
                    if passed > 0 {
                        at += take_front(&mut bytes, passed).len() as u64;
                        continue;
                    }
                    self.state = State::Header(PartialHeader::new(Lsn(at)));
                    continue;
                }
                State::Between { padding } => {
                    let taken = take_front(&mut bytes, *padding);
                    *padding -= taken.len() as u64;
                    taken
                }
                State::Header(header) => {
                    let taken = take_front(&mut bytes, header.missing());
                    if let Some(complete) = header.take(taken) {
                        let start = header.start();
                        self.state = State::Body(self.begin_record(start, complete)?);
                    }
                    taken
                }
                State::Body(record) => {
                    let taken = take_front(&mut bytes, record.remaining());
                    record.take(taken, self.check);
                    taken
                }
            };
            at += taken.len() as u64;
            if matches!(&self.state, State::Body(record) if record.remaining() == 0)
                && self.finish_record(Lsn(at), on_event)? == AfterRecord::NextSegment
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads records of common forms that lie in one piece, as most do, in a faster way. Returns how many bytes it
    /// read, padding included.
    fn pass_whole_records(
        &mut self,
        start: u64,
        bytes: &[u8],
        on_event: &mut impl FnMut(WalEvent),
    ) -> Result<u64, String> {
        let mut passed = 0_usize;
        while let Some(rest) = bytes.get(passed..)
            && let Some(record) = WholeRecord::at_start_of(rest)
        {
            let at = Lsn(start + passed as u64);
            self.check_header(at, record.total_bytes, record.previous)?;
            if self.check == WalCheck::Crc && !record.matches_its_crc(rest) {
                return Err(record::no_match(at));
            }
            self.first.get_or_insert((at, record.previous));
            self.previous = Some(at);
            passed += record.padded_bytes;
            self.valid_until = Lsn(start + passed as u64);
            if let Some(kind) = record.tells {
                on_event(WalEvent {
                    start: at,
                    end: self.valid_until,
                    kind,
                });
            }
        }
        Ok(passed as u64)
    }

    /// As `ValidXLogRecordHeader`.
    fn check_header(&self, start: Lsn, total_bytes: u32, previous: Lsn) -> Result<(), String> {
        if (total_bytes as usize) < RecordHeader::SIZE_BYTES {
            return Err(format!("there is no record at {start}"));
        }
        let follows = match self.previous {
            Some(before) => previous == before,
            None => previous < start,
        };
        if !follows {
            return Err(format!(
                "the record at {start} does not follow the one before it, but one at {previous}"
            ));
        }
        Ok(())
    }

    fn begin_record(&mut self, start: Lsn, header: RecordHeader) -> Result<Record, String> {
        self.check_header(start, header.total_bytes, header.previous)?;
        self.first.get_or_insert((start, header.previous));
        let first = self.pages.first().ok_or("no page was read")?;
        Ok(Record::new(start, header, first.major))
    }

    /// Returns what the record tells whose last byte was taken; it ends at `end`.
    fn finish_record(
        &mut self,
        end: Lsn,
        on_event: &mut impl FnMut(WalEvent),
    ) -> Result<AfterRecord, String> {
        let State::Body(record) = std::mem::replace(&mut self.state, State::Ended) else {
            return Err("no record was read".to_owned());
        };
        let start = record.start();
        let is_switch = record.is_switch();
        let told = record.finish(self.check)?;
        let padding = end.0.wrapping_neg() % RECORD_ALIGNMENT;
        self.previous = Some(start);
        self.state = State::Between { padding };
        self.valid_until = Lsn(end.0.saturating_add(padding));
        if is_switch {
            self.skip_segment();
        }
        if let Some(kind) = told {
            on_event(WalEvent {
                start,
                end: self.valid_until,
                kind,
            });
        }
        Ok(if is_switch {
            AfterRecord::NextSegment
        } else {
            AfterRecord::SamePage
        })
    }

    /// Skips the rest of the segment after a switch.
    fn skip_segment(&mut self) {
        if let Some(first) = self.pages.first() {
            let size = first.segment_size.bytes();
            let begun = self.valid_until.0.saturating_sub(1) / size;
            self.valid_until = Lsn((begun + 1).saturating_mul(size));
            self.state = State::Between { padding: 0 };
            self.pages.skip_to(self.valid_until);
        }
    }
}

/// Where a record's reader has to go on.
#[derive(PartialEq, Eq)]
enum AfterRecord {
    SamePage,
    NextSegment,
}

/// Takes at most `at_most` bytes off the front.
fn take_front<'a>(bytes: &mut &'a [u8], at_most: u64) -> &'a [u8] {
    let length = usize::try_from(at_most).map_or(bytes.len(), |at_most| at_most.min(bytes.len()));
    let (taken, rest) = bytes.split_at_checked(length).unwrap_or((bytes, &[]));
    *bytes = rest;
    taken
}
