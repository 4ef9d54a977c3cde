//! What the records of one WAL segment tell of time: when transactions ended, and the restore points.
//! It is taken when the segment is pushed and stands in the trailer of its object, so that nobody has
//! to read the segment again to know.
//!
//! A segment's index covers the records that lie in it whole. A record that begins in one segment and
//! ends in a later one belongs to the one in which it ends, as far as recovery is concerned; neither of
//! the two segments can tell what it is. So the first keeps its beginning, the later its end, and
//! [`Crossing`] puts them together.
//!
//! Commit times are not in the order of the WAL: each is taken before its record is written. An index
//! therefore has both the first and the last in that order, and the smallest and the largest.

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pg::{
    Lsn, Major, RecordHead, RecordTail, WalCheck, WalEvent, WalEventKind, WalReader, WalTime, join_record,
};

/// So many restore points are named at most.
pub const RESTORE_POINTS: usize = 16;

/// What the records of one segment tell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SegmentIndex {
    /// The commits, of prepared transactions too; `None` where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commits: Option<Ends>,
    /// The rollbacks, of prepared transactions too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aborts: Option<Ends>,
    /// The first restore points.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_points: Vec<RestorePoint>,
    /// How many more there are, whose names are not kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_restore_points: u64,
    /// The end of a record that begins in an earlier segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continued: Option<ContinuedRecord>,
    /// The beginning of a record that ends in a later segment; `None` where it is known to tell nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<UnfinishedRecord>,
    /// Where the valid WAL ends, if that is within the segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Lsn>,
}

/// Ends of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// How many.
    pub count: u64,
    /// The first one in the WAL.
    pub first: EndOfTransaction,
    /// The last one in the WAL.
    pub last: EndOfTransaction,
    /// The one with the earliest time.
    pub smallest: EndOfTransaction,
    /// The one with the latest time.
    pub largest: EndOfTransaction,
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndOfTransaction {
    /// When, by the server's clock.
    pub time: DateTime<Utc>,
    /// The position of its record.
    pub lsn: Lsn,
}

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub time: DateTime<Utc>,
    /// The position of its record.
    pub lsn: Lsn,
}

/// The end of a record that begins in an earlier segment ([`RecordTail`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContinuedRecord {
    /// How much of it was still to come, in bytes.
    pub remaining: u32,
    /// Its first bytes here.
    pub bytes: HexBytes,
    /// The position after it; `None` where it goes on beyond the segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Lsn>,
}

/// The beginning of a record that ends in a later segment ([`RecordHead`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedRecord {
    /// Where it begins.
    pub lsn: Lsn,
    /// How much of it is still to come, in bytes.
    pub remaining: u32,
    /// Its first bytes.
    pub bytes: HexBytes,
}

/// Bytes that JSON holds in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct HexBytes(pub Vec<u8>);

impl From<HexBytes> for String {
    fn from(bytes: HexBytes) -> Self {
        super::hex(&bytes.0)
    }
}

impl TryFrom<String> for HexBytes {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let bad = || Error::corrupt("bytes are not written in hexadecimal");
        let digits = text.as_bytes().chunks(2);
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        };
        digits
            .map(byte)
            .collect::<Option<Vec<_>>>()
            .map(Self)
            .ok_or_else(bad)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl SegmentIndex {
    /// Commits and rollbacks together; `None` where no transaction ended here.
    #[must_use]
    pub fn ends(&self) -> Option<Ends> {
        match (self.commits, self.aborts) {
            (Some(commits), Some(aborts)) => Some(commits.and(&aborts)),
            (one, other) => one.or(other),
        }
    }

    /// Adds what a record tells. `None` for a moment that no calendar of people has.
    fn add(&mut self, event: WalEvent) -> Option<()> {
        let lsn = event.start;
        match event.kind {
            WalEventKind::Commit(ended) | WalEventKind::CommitPrepared(ended) => {
                let time = moment(ended.time)?;
                Ends::add(&mut self.commits, EndOfTransaction { time, lsn });
            }
            WalEventKind::Abort(ended) | WalEventKind::AbortPrepared(ended) => {
                let time = moment(ended.time)?;
                Ends::add(&mut self.aborts, EndOfTransaction { time, lsn });
            }
            WalEventKind::RestorePoint { .. } if self.restore_points.len() >= RESTORE_POINTS => {
                self.more_restore_points += 1;
            }
            WalEventKind::RestorePoint { name, time } => {
                let time = moment(time)?;
                self.restore_points.push(RestorePoint { name, time, lsn });
            }
            WalEventKind::End { .. } => self.valid_until = Some(lsn),
        }
        Some(())
    }

    /// The same with a record that follows.
    #[cfg(test)]
    pub(super) fn with_later(mut self, event: WalEvent) -> Self {
        let _ = self.add(event);
        self
    }

    /// The same with a record that ends in this segment and begins in an earlier one, which comes
    /// before all others.
    #[must_use]
    pub fn with_crossing(&self, crossing: Option<WalEvent>) -> Self {
        let Some(event) = crossing else {
            return self.clone();
        };
        let mut first = Self::default();
        if first.add(event).is_none() {
            return self.clone();
        }
        let together = |first: Option<Ends>, later: Option<Ends>| match (first, later) {
            (Some(first), Some(later)) => Some(first.then(&later)),
            (one, other) => one.or(other),
        };
        let mut restore_points = first.restore_points;
        restore_points.extend(self.restore_points.iter().cloned());
        Self {
            commits: together(first.commits, self.commits),
            aborts: together(first.aborts, self.aborts),
            restore_points,
            ..self.clone()
        }
    }
}

impl Ends {
    fn of(end: EndOfTransaction) -> Self {
        Self {
            count: 1,
            first: end,
            last: end,
            smallest: end,
            largest: end,
        }
    }

    fn add(ends: &mut Option<Self>, end: EndOfTransaction) {
        let one = Self::of(end);
        *ends = Some(ends.map_or(one, |before| before.then(&one)));
    }

    /// These, and others that come later in the WAL.
    #[must_use]
    pub fn then(&self, later: &Self) -> Self {
        Self {
            count: self.count + later.count,
            first: self.first,
            last: later.last,
            smallest: if later.smallest.time < self.smallest.time {
                later.smallest
            } else {
                self.smallest
            },
            largest: if later.largest.time > self.largest.time {
                later.largest
            } else {
                self.largest
            },
        }
    }

    /// These, and others of the same stretch of WAL.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let (earlier, later) = if self.first.lsn <= other.first.lsn {
            (self, other)
        } else {
            (other, self)
        };
        let last = if self.last.lsn >= other.last.lsn {
            self.last
        } else {
            other.last
        };
        Self {
            last,
            ..earlier.then(later)
        }
    }
}

/// A moment between the years 0 and 9999: what JSON's form of a time can hold.
fn moment(time: WalTime) -> Option<DateTime<Utc>> {
    time.to_utc().filter(|time| (0..=9999).contains(&time.year()))
}

/// Makes the index of a segment from its bytes, as they come.
pub struct IndexBuilder {
    reader: WalReader,
    index: SegmentIndex,
    known: bool,
}

impl IndexBuilder {
    /// For the segment that begins here.
    #[must_use]
    pub fn new(segment_start: Lsn, check: WalCheck) -> Self {
        Self {
            reader: WalReader::new(segment_start, check),
            index: SegmentIndex::default(),
            known: true,
        }
    }

    /// Takes the segment's next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let (index, known) = (&mut self.index, &mut self.known);
        self.reader
            .feed(bytes, |event| *known &= index.add(event).is_some());
    }

    /// The index, when the whole segment was fed. `None` where it cannot be known.
    #[must_use]
    pub fn finish(mut self) -> Option<SegmentIndex> {
        self.reader.first_page()?;
        if !self.known {
            return None;
        }
        self.index.continued = self.reader.continued().map(|tail| ContinuedRecord {
            remaining: tail.remaining,
            bytes: HexBytes(tail.bytes.clone()),
            end: tail.end,
        });
        self.index.unfinished = self.reader.unfinished().map(|head| UnfinishedRecord {
            lsn: head.start,
            remaining: head.remaining,
            bytes: HexBytes(head.bytes),
        });
        Some(self.index)
    }
}

/// Puts records together that begin in one segment and end in a later one. It is shown the indexes of
/// consecutive segments, one after the other.
#[derive(Debug, Clone)]
pub struct Crossing {
    major: Major,
    head: Option<RecordHead>,
    /// The next part of the record, where it goes on beyond another segment.
    tail: Option<RecordTail>,
}

impl Crossing {
    /// Nothing is known of the segment before the first.
    #[must_use]
    pub fn new(major: Major) -> Self {
        Self {
            major,
            head: None,
            tail: None,
        }
    }

    /// Takes the next segment's index; `None` where it is unknown. Returns what the record tells that
    /// begins in an earlier segment and ends in this one.
    pub fn next(&mut self, index: Option<&SegmentIndex>) -> Option<WalEvent> {
        let continued = index.and_then(|index| index.continued.as_ref());
        let before = self.head.take().zip(continued).map(|(head, continued)| {
            let tail = self.tail.take().unwrap_or_else(|| RecordTail {
                remaining: continued.remaining,
                bytes: continued.bytes.0.clone(),
                end: None,
            });
            (head, tail, continued.end)
        });
        self.tail = None;
        match before {
            Some((head, tail, None)) => {
                (self.head, self.tail) = (Some(head), Some(tail));
                None
            }
            before => {
                self.head = index
                    .and_then(|index| index.unfinished.as_ref())
                    .map(|unfinished| RecordHead {
                        start: unfinished.lsn,
                        remaining: unfinished.remaining,
                        bytes: unfinished.bytes.0.clone(),
                    });
                let (head, tail, end) = before?;
                join_record(&head, &tail, end?, self.major)
            }
        }
    }
}

#[cfg(test)]
mod tests;
