//! Whether the records of one segment go on in the next. Each record names the one before it (`xl_prev`), and
//! PostgreSQL ends a replay at a record that names another one (`ValidXLogRecordHeader`, `xlogreader.c`, 14 to 18).
//! Segments of two histories, or of a server whose WAL was set back (`pg_resetwal`), have the right names and positions
//! but break there.

use serde::{Deserialize, Serialize};

use super::SegmentIndex;
use crate::pg::{Lsn, WalReader};

/// How a segment's records are tied to those before and after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Links {
    /// The first record that begins in the segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<FirstRecord>,
    /// The last record that begins in the segment and is complete in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<Lsn>,
    /// The record that begins in the segment and goes on in the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    open: Option<Lsn>,
}

/// A record, and what it says of the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FirstRecord {
    /// Where it begins.
    lsn: Lsn,
    /// Where it says that the record before it begins.
    previous: Lsn,
}

impl Links {
    /// The links of the segment that was read.
    pub(super) fn of(reader: &WalReader) -> Self {
        Self {
            first: reader
                .first_record()
                .map(|(lsn, previous)| FirstRecord { lsn, previous }),
            last: reader.last_record(),
            open: reader.open_record(),
        }
    }
}

/// Checks that the records go on over consecutive segments. It takes their indexes in their order.
#[derive(Debug, Clone, Default)]
pub struct LinkChecker {
    /// The last records so far: the first record of the next segment must name one of them. `None` where they are not
    /// known.
    before: Option<Links>,
    /// Where the WAL ended within the segment before.
    ended: Option<Lsn>,
}

impl LinkChecker {
    /// If the records of this segment do not follow those of the segments before: where a replay from there ends.
    /// `None` also where that is not known.
    pub fn next(&mut self, index: Option<&SegmentIndex>) -> Option<Lsn> {
        let ended = self.ended.take();
        let Some((index, links)) = index.and_then(|index| Some((index, index.links?))) else {
            self.before = None;
            return ended.filter(|_| index.is_some());
        };
        self.ended = index.valid_until;
        let before = self.before.take();
        // A record may fill whole segments.
        let begins = links.last.is_some() || links.open.is_some();
        self.before = if begins { Some(links) } else { before };
        let first = links.first?;
        let follows = |before: Links| [before.last, before.open].contains(&Some(first.previous));
        ended.or_else(|| before.filter(|before| !follows(*before)).map(|_| first.lsn))
    }
}
