//! What the records of one WAL segment tell: when transactions ended, the restore points, and what changes the
//! conditions of a recovery. The index is made when the segment is pushed and stands in the trailer of its object, so
//! that the segment need not be read again.
//!
//! A segment's index covers the records that lie wholly in it. For a recovery, a record that begins in one segment and
//! ends in a later one belongs to the later one. Neither segment alone can tell what the record is. So the index of the
//! first keeps its beginning, that of the later one its end, and [`Crossing`] puts them together.
//!
//! Commit times are not in the order of the WAL, because each is taken before its record is written. So an index has
//! the first and the last in the order of the WAL, and also the smallest and the largest.

mod changes;
mod links;
mod moment;
mod switch;

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pg::{
    Lsn, Major, RecordHead, RecordTail, WalCheck, WalEvent, WalEventKind, WalReader, WalTime, join_record,
};

pub use self::changes::Change;
use self::changes::ChangesTally;
pub use self::links::{LinkChecker, Links};
pub use self::moment::{MomentEnd, MomentIn};

/// At most this many restore points are named.
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
    /// Transactions that were prepared (`PREPARE TRANSACTION`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepares: Option<Ends>,
    /// The first restore points.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_points: Vec<RestorePoint>,
    /// How many more restore points there are; their names are not kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_restore_points: u64,
    /// The first records that change what a recovery needs or touches; `None` where they were not looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<Change>>,
    /// Whether there are more; only reading the segment shows them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_changes: bool,
    /// The end of a record that begins in an earlier segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continued: Option<ContinuedRecord>,
    /// The beginning of a record that ends in a later segment; `None` where it certainly tells nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<UnfinishedRecord>,
    /// Where the valid WAL ends, if that is within the segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Lsn>,
    /// How its records are tied to those before and after it; `None` where that was not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<Links>,
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
    remaining: u32,
    /// Its first bytes here.
    bytes: HexBytes,
    /// The position after it; `None` where it goes on beyond the segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Lsn>,
}

/// The beginning of a record that ends in a later segment ([`RecordHead`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedRecord {
    /// Where it begins.
    lsn: Lsn,
    /// How much of it is still to come, in bytes.
    remaining: u32,
    /// Its first bytes.
    bytes: HexBytes,
}

/// Bytes that JSON holds in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct HexBytes(pub Vec<u8>);

impl From<HexBytes> for String {
    fn from(bytes: HexBytes) -> Self {
        crate::text::hex(&bytes.0)
    }
}

impl TryFrom<String> for HexBytes {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let bytes = crate::text::from_hex(&text).map(Self);
        bytes.ok_or_else(|| Error::corrupt("bytes are not written in hexadecimal"))
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

    /// The same, with one more record after it.
    #[cfg(test)]
    pub(crate) fn with_later(self, event: WalEvent) -> Self {
        let mut later = Tally::default();
        later.add(event);
        self.then(later.finish().unwrap())
    }

    /// The same, with a record before all others: one that begins in an earlier segment and ends in this one.
    #[must_use]
    pub fn with_crossing(&self, crossing: Option<WalEvent>) -> Self {
        let told = crossing.and_then(|event| {
            let mut first = Tally::default();
            first.add(event);
            first.finish()
        });
        match told {
            Some(first) => first.then(self.clone()),
            None => self.clone(),
        }
    }

    /// This index, followed by a later one.
    fn then(self, later: Self) -> Self {
        let together = |first: Option<Ends>, later: Option<Ends>| match (first, later) {
            (Some(first), Some(later)) => Some(first.then(&later)),
            (one, other) => one.or(other),
        };
        let mut restore_points = self.restore_points;
        restore_points.extend(later.restore_points);
        let changes = self.changes.zip(later.changes);
        Self {
            commits: together(self.commits, later.commits),
            aborts: together(self.aborts, later.aborts),
            prepares: together(self.prepares, later.prepares),
            restore_points,
            changes: changes.map(|(first, later)| [first, later].concat()),
            more_changes: self.more_changes || later.more_changes,
            ..later
        }
    }
}

impl Ends {
    /// These, and others that come later in the WAL.
    pub(crate) fn then(&self, later: &Self) -> Self {
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

    /// These, and others of the same WAL.
    fn and(&self, other: &Self) -> Self {
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

/// Counts what records tell as they come: a segment may have a hundred thousand of them.
#[derive(Default)]
struct Tally {
    commits: EndsTally,
    aborts: EndsTally,
    restore_points: Vec<(String, WalTime, Lsn)>,
    more_restore_points: u64,
    prepares: EndsTally,
    changes: ChangesTally,
    valid_until: Option<Lsn>,
}

/// Ends of transactions, each with its time and position.
#[derive(Default)]
struct EndsTally {
    count: u64,
    first: (WalTime, Lsn),
    last: (WalTime, Lsn),
    smallest: (WalTime, Lsn),
    largest: (WalTime, Lsn),
}

impl Tally {
    fn add(&mut self, event: WalEvent) {
        let lsn = event.start;
        match event.kind {
            WalEventKind::Commit(ended) | WalEventKind::CommitPrepared(ended) => {
                self.commits.add((ended.time, lsn));
            }
            WalEventKind::Abort(ended) | WalEventKind::AbortPrepared(ended) => {
                self.aborts.add((ended.time, lsn));
            }
            WalEventKind::Prepare(prepared) => self.prepares.add((prepared.time, lsn)),
            WalEventKind::Change(change) => self.changes.add(lsn, change),
            WalEventKind::RestorePoint { .. } if self.restore_points.len() >= RESTORE_POINTS => {
                self.more_restore_points += 1;
            }
            WalEventKind::RestorePoint { name, time } => self.restore_points.push((name, time, lsn)),
            WalEventKind::End { .. } => self.valid_until = Some(lsn),
        }
    }

    /// `None` where a moment is not in the years 0 to 9999.
    fn finish(self) -> Option<SegmentIndex> {
        let points = self.restore_points.into_iter().map(|(name, time, lsn)| {
            let time = moment(time)?;
            Some(RestorePoint { name, time, lsn })
        });
        Some(SegmentIndex {
            commits: self.commits.finish().ok()?,
            aborts: self.aborts.finish().ok()?,
            restore_points: points.collect::<Option<_>>()?,
            more_restore_points: self.more_restore_points,
            prepares: self.prepares.finish().ok()?,
            changes: Some(self.changes.kept),
            more_changes: self.changes.more,
            valid_until: self.valid_until,
            ..SegmentIndex::default()
        })
    }
}

impl EndsTally {
    fn add(&mut self, end: (WalTime, Lsn)) {
        if self.count == 0 {
            (self.first, self.smallest, self.largest) = (end, end, end);
        }
        self.count += 1;
        self.last = end;
        if end.0 < self.smallest.0 {
            self.smallest = end;
        }
        if end.0 > self.largest.0 {
            self.largest = end;
        }
    }

    /// `None` where no transaction ended.
    fn finish(&self) -> Result<Option<Ends>, TimeOutOfRange> {
        if self.count == 0 {
            return Ok(None);
        }
        let end = |(time, lsn)| {
            let time = moment(time).ok_or(TimeOutOfRange)?;
            Ok(EndOfTransaction { time, lsn })
        };
        Ok(Some(Ends {
            count: self.count,
            first: end(self.first)?,
            last: end(self.last)?,
            smallest: end(self.smallest)?,
            largest: end(self.largest)?,
        }))
    }
}

/// A moment that is not in the years 0 to 9999.
struct TimeOutOfRange;

/// A moment between the years 0 and 9999: what JSON's form of a time can hold.
fn moment(time: WalTime) -> Option<DateTime<Utc>> {
    time.to_utc().filter(|time| (0..=9999).contains(&time.year()))
}

/// Makes the index of a segment from its bytes as they come.
pub struct IndexBuilder {
    reader: WalReader,
    tally: Tally,
    until: Option<Lsn>,
}

impl IndexBuilder {
    /// For the segment that begins here.
    #[must_use]
    pub fn new(segment_start: Lsn, check: WalCheck) -> Self {
        Self {
            reader: WalReader::new(segment_start, check),
            tally: Tally::default(),
            until: None,
        }
    }

    /// Only of the records that begin before a position.
    #[must_use]
    pub fn until(self, lsn: Lsn) -> Self {
        let until = Some(lsn);
        Self { until, ..self }
    }

    /// Takes the segment's next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let counts = |event: &WalEvent| self.until.is_none_or(|until| event.start < until);
        self.reader.feed(bytes, |event| {
            if counts(&event) {
                self.tally.add(event);
            }
        });
    }

    /// The index, once the whole segment was fed. `None` where it cannot be known.
    #[must_use]
    pub fn finish(self) -> Option<SegmentIndex> {
        self.reader.first_page()?;
        let mut index = self.tally.finish()?;
        index.continued = self.reader.continued().map(|tail| ContinuedRecord {
            remaining: tail.remaining,
            bytes: HexBytes(tail.bytes.clone()),
            end: tail.end,
        });
        index.unfinished = self.reader.unfinished().map(|head| UnfinishedRecord {
            lsn: head.start,
            remaining: head.remaining,
            bytes: HexBytes(head.bytes),
        });
        index.links = Some(Links::of(&self.reader));
        Some(index.without_false_end())
    }
}

/// Puts records together that begin in one segment and end in a later one. It takes the indexes of consecutive segments
/// in their order.
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

    /// Takes the next segment's index; `None` where it is unknown. If a record begins in an earlier segment and ends in
    /// this one, returns what that record tells.
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
