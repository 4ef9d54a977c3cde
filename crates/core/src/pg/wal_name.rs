//! The names that PostgreSQL gives to the files of `pg_wal`. Walship makes paths and keys only from these
//! names (`XLogFileName`, `TLHistoryFileName`, `BackupHistoryFileName` and their `Is…` tests in
//! `src/include/access/xlog_internal.h`, the same in PostgreSQL 14 to 18).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Lsn, SegmentNumber, SegmentSize, TimelineId};
use crate::error::{Error, Result};

/// The name of one WAL segment: timeline, log number and segment within the log, eight upper-case
/// hexadecimal digits each. Orders by timeline first, then by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SegmentName {
    timeline: TimelineId,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// The name of a segment on a timeline.
    ///
    /// # Errors
    /// `Invalid` where the number lies beyond the largest position an LSN can name.
    pub fn new(timeline: TimelineId, number: SegmentNumber, size: SegmentSize) -> Result<Self> {
        let log = u32::try_from(number.0 / size.segments_per_log())
            .map_err(|_| Error::invalid(format!("segment number {} lies beyond the last LSN", number.0)))?;
        // The remainder is below 4096, the number of 1 MiB segments in a log.
        let segment = (number.0 % size.segments_per_log()) as u32;
        Ok(Self {
            timeline,
            log,
            segment,
        })
    }

    /// The segment of a timeline that holds a position.
    ///
    /// # Errors
    /// None in practice: every LSN has a segment's name.
    pub fn holding(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Result<Self> {
        Self::new(timeline, size.segment_of(lsn), size)
    }

    /// The timeline in the name.
    #[must_use]
    pub fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// The segment of the same position on another timeline.
    #[must_use]
    pub fn on_timeline(self, timeline: TimelineId) -> Self {
        Self { timeline, ..self }
    }

    /// The middle eight digits.
    #[must_use]
    pub fn log(self) -> u32 {
        self.log
    }

    /// The segment's number in a cluster of this segment size.
    ///
    /// # Errors
    /// `Invalid` where the last eight digits cannot occur with this segment size.
    pub fn number(self, size: SegmentSize) -> Result<SegmentNumber> {
        if u64::from(self.segment) >= size.segments_per_log() {
            return Err(Error::invalid(format!(
                "{self} is not a segment of a cluster with WAL segments of {} MiB",
                size.bytes() >> 20
            )));
        }
        Ok(SegmentNumber(
            u64::from(self.log) * size.segments_per_log() + u64::from(self.segment),
        ))
    }

    /// The position of the segment's first byte in a cluster of this segment size.
    ///
    /// # Errors
    /// As [`SegmentName::number`].
    pub fn start(self, size: SegmentSize) -> Result<Lsn> {
        Ok(size.start_of(self.number(size)?))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:08X}{:08X}{:08X}",
            self.timeline.get(),
            self.log,
            self.segment
        )
    }
}

impl FromStr for SegmentName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse()? {
            WalName::Segment(name) => Ok(name),
            _ => Err(Error::invalid(format!(
                "\"{text}\" is not the name of a WAL segment"
            ))),
        }
    }
}

impl From<SegmentName> for String {
    fn from(name: SegmentName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for SegmentName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// The name of any file that PostgreSQL archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    /// A whole segment: `00000001000000030000002A`.
    Segment(SegmentName),
    /// The last, incomplete segment of a timeline that a promotion ended: `….partial`.
    Partial(SegmentName),
    /// A timeline's history: `00000002.history`.
    History(TimelineId),
    /// A backup history file, about a base backup: `00000001000000030000002A.00000028.backup`; `offset` is
    /// the start position's offset in the segment, in bytes.
    Backup {
        /// The segment in which the backup started.
        segment: SegmentName,
        /// Offset of the start position in that segment, in bytes.
        offset: u32,
    },
}

impl WalName {
    /// The timeline in the name.
    #[must_use]
    pub fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::Backup { segment: name, .. } => name.timeline,
            Self::History(timeline) => timeline,
        }
    }
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => name.fmt(f),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.get()),
            Self::Backup { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

impl FromStr for WalName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            Error::invalid(format!(
                "{text:?} is not the name of a file PostgreSQL archives: \
                 a WAL segment, .partial, .history or .backup"
            ))
        })
    }
}

impl From<SegmentName> for WalName {
    fn from(name: SegmentName) -> Self {
        Self::Segment(name)
    }
}

fn parse(text: &str) -> Option<WalName> {
    let (stem, suffix) = text
        .split_once('.')
        .map_or((text, None), |(stem, suffix)| (stem, Some(suffix)));
    match suffix {
        None => segment(stem).map(WalName::Segment),
        Some("partial") => segment(stem).map(WalName::Partial),
        Some("history") => timeline(stem).map(WalName::History),
        Some(suffix) => {
            let offset = hex8(suffix.strip_suffix(".backup")?)?;
            Some(WalName::Backup {
                segment: segment(stem)?,
                offset,
            })
        }
    }
}

fn segment(text: &str) -> Option<SegmentName> {
    if text.len() != 24 || !text.is_ascii() {
        return None;
    }
    Some(SegmentName {
        timeline: timeline(text.get(..8)?)?,
        log: hex8(text.get(8..16)?)?,
        segment: hex8(text.get(16..)?)?,
    })
}

fn timeline(text: &str) -> Option<TimelineId> {
    TimelineId::new(hex8(text)?).ok()
}

/// Eight upper-case hexadecimal digits, and nothing else: a lower-case name is another file.
fn hex8(text: &str) -> Option<u32> {
    let digits = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    digits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_name() -> impl Strategy<Value = WalName> {
        (1..u32::MAX, any::<u32>(), any::<u32>(), any::<u32>(), 0..4).prop_map(
            |(timeline, log, segment, offset, kind)| {
                let timeline = TimelineId::new(timeline).unwrap();
                let segment = SegmentName {
                    timeline,
                    log,
                    segment,
                };
                match kind {
                    0 => WalName::Segment(segment),
                    1 => WalName::Partial(segment),
                    2 => WalName::History(timeline),
                    _ => WalName::Backup { segment, offset },
                }
            },
        )
    }

    proptest! {
        #[test]
        fn every_wal_name_reads_back_as_it_prints(name in any_name()) {
            prop_assert_eq!(name.to_string().parse::<WalName>().unwrap(), name);
        }

        #[test]
        fn no_text_makes_the_name_parser_panic(text: String) {
            let _ = text.parse::<WalName>();
        }

        #[test]
        fn what_parses_is_spelled_in_one_way_only(text in "[0-9A-Fa-f]{8,24}(\\.[0-9A-F]{8})?(\\.(history|partial|backup))?") {
            if let Ok(name) = text.parse::<WalName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }

        #[test]
        fn segment_numbers_and_names_are_one_to_one(number in 0..u64::from(u32::MAX), shift in 20u32..=30) {
            let size = SegmentSize::new(1 << shift).unwrap();
            if let Ok(name) = SegmentName::new(TimelineId::FIRST, SegmentNumber(number), size) {
                prop_assert_eq!(name.number(size).unwrap(), SegmentNumber(number));
            }
        }
    }

    #[test]
    fn a_segment_is_its_name_as_text_and_keeps_its_position_on_another_timeline() {
        let name: SegmentName = "00000001000000030000002A".parse().unwrap();
        assert_eq!(String::from(name), "00000001000000030000002A");
        let child = name.on_timeline(TimelineId::new(2).unwrap());
        assert_eq!(child.to_string(), "00000002000000030000002A");
    }

    #[test]
    fn names_are_postgresqls() {
        for text in [
            "00000001000000030000002A",
            "00000001000000030000002A.partial",
            "00000002.history",
            "00000001000000030000002A.00000028.backup",
        ] {
            assert_eq!(text.parse::<WalName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "00000001000000030000002a",
            "00000001000000030000002",
            "00000001000000030000002A0",
            "00000000000000030000002A",
            "00000000.history",
            "0000002.history",
            "../00000002.history",
            "00000002.history.zst",
            "00000001000000030000002A.0000028.backup",
            "00000001000000030000002A.00000028.backup.partial",
            "RECOVERYXLOG",
            "/etc/passwd",
            "0000000100000003000000é",
        ] {
            assert!(text.parse::<WalName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_name_that_cannot_occur_with_this_segment_size_is_refused() {
        let size = SegmentSize::new(1 << 30).unwrap();
        assert!(
            "000000010000000000000004"
                .parse::<SegmentName>()
                .unwrap()
                .number(size)
                .is_err()
        );
        assert!(
            "000000010000000000000003"
                .parse::<SegmentName>()
                .unwrap()
                .number(size)
                .is_ok()
        );
    }
}
