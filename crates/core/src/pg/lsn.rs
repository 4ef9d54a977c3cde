//! Positions in the write-ahead log: LSN, segment size, segment number and timeline.
//!
//! Arithmetic follows `src/include/access/xlog_internal.h` (the same in PostgreSQL 14 to 18).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A byte position in the WAL, printed as PostgreSQL does: `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    /// Reads `X/Y`, both parts one to eight hexadecimal digits (`pg_lsn_in`, `pg_lsn.c`).
    fn from_str(text: &str) -> Result<Self> {
        let part = |part: &str| {
            let digits = !part.is_empty() && part.len() <= 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self((part(high)? << 32) | part(low)?)))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "\"{text}\" is not an LSN; write it as PostgreSQL does, like 16/B374D848"
                ))
            })
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

impl TryFrom<String> for Lsn {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// A timeline's number, 1 or more. Printed in decimal, as in PostgreSQL's messages and
/// `recovery_target_timeline`; file names use eight hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct TimelineId(u32);

impl TimelineId {
    /// The timeline `initdb` starts with.
    pub const FIRST: Self = Self(1);

    /// A timeline's number.
    ///
    /// # Errors
    /// `Invalid` for zero, which PostgreSQL never uses.
    pub fn new(number: u32) -> Result<Self> {
        if number == 0 {
            return Err(Error::invalid(
                "timeline 0 does not exist; PostgreSQL counts timelines from 1",
            ));
        }
        Ok(Self(number))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TimelineId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = text.parse().map_err(|_| {
            Error::invalid(format!(
                "\"{text}\" is not a timeline; give its number in decimal, like 2"
            ))
        })?;
        Self::new(number)
    }
}

impl From<TimelineId> for u32 {
    fn from(timeline: TimelineId) -> Self {
        timeline.0
    }
}

impl TryFrom<u32> for TimelineId {
    type Error = Error;

    fn try_from(number: u32) -> Result<Self> {
        Self::new(number)
    }
}

/// The size of a cluster's WAL segments: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// What `initdb` chooses unless told otherwise: 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// A segment size in bytes.
    ///
    /// # Errors
    /// `Invalid` unless it is a power of two from 1 MiB to 1 GiB.
    pub fn new(bytes: u32) -> Result<Self> {
        if !bytes.is_power_of_two() || !((1 << 20)..=(1 << 30)).contains(&bytes) {
            return Err(Error::invalid(format!(
                "{bytes} bytes is not a WAL segment size; PostgreSQL allows powers of two from 1 MiB to 1 GiB"
            )));
        }
        Ok(Self(bytes))
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments share one "log" number, the middle eight digits of a segment's name
    /// (`XLogSegmentsPerXLogId`).
    pub(crate) fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    /// The segment that holds a position (`XLByteToSeg`).
    #[must_use]
    pub fn segment_of(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0 / self.bytes())
    }

    /// The segment that holds the byte before a position (`XLByteToPrevSeg`): the last one needed
    /// to reach it. For position 0 that is segment 0.
    #[must_use]
    pub fn segment_before(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0.saturating_sub(1) / self.bytes())
    }

    /// The position of a segment's first byte.
    #[must_use]
    pub fn start_of(self, segment: SegmentNumber) -> Lsn {
        Lsn(segment.0.saturating_mul(self.bytes()))
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> Self {
        size.0
    }
}

impl TryFrom<u32> for SegmentSize {
    type Error = Error;

    fn try_from(bytes: u32) -> Result<Self> {
        Self::new(bytes)
    }
}

/// A segment's number in a cluster's WAL, counted in segments from position 0. It has a meaning
/// only together with a [`SegmentSize`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    /// The segment after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_lsn_reads_back_as_it_prints(position: u64) {
            prop_assert_eq!(Lsn(position).to_string().parse::<Lsn>().unwrap(), Lsn(position));
        }

        #[test]
        fn no_text_makes_the_lsn_parser_panic(text: String) {
            let _ = text.parse::<Lsn>();
        }

        #[test]
        fn a_position_lies_within_its_segment(position in 0..u64::MAX >> 1, shift in 20u32..=30) {
            let size = SegmentSize::new(1 << shift).unwrap();
            let start = size.start_of(size.segment_of(Lsn(position))).0;
            prop_assert!(start <= position && position - start < size.bytes());
        }
    }

    #[test]
    fn an_lsn_prints_as_postgresql_prints_it() {
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0).to_string(), "0/0");
        assert_eq!(String::from(Lsn(0x16_B374_D848)), "16/B374D848");
        assert_eq!(u32::from(TimelineId(7)), 7);
    }

    #[test]
    fn an_lsn_that_postgresql_refuses_is_refused() {
        for text in [
            "",
            "/",
            "0/",
            "/0",
            "0",
            "0/0/0",
            "G/0",
            "+1/0",
            "123456789/0",
            "0/123456789",
            " 0/0",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_segment_before_a_boundary_is_the_one_that_ends_there() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(size.segment_before(Lsn(0x300_0000)), SegmentNumber(2));
        assert_eq!(size.segment_before(Lsn(0x300_0001)), SegmentNumber(3));
        assert_eq!(size.segment_before(Lsn(0)), SegmentNumber(0));
    }

    #[test]
    fn only_the_segment_sizes_of_postgresql_are_accepted() {
        assert!(SegmentSize::new(1 << 20).is_ok() && SegmentSize::new(1 << 30).is_ok());
        for bytes in [0, 1, 1 << 19, 3 << 20, (1 << 30) + 1, 1 << 31] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
    }

    #[test]
    fn timeline_zero_is_refused() {
        assert!(TimelineId::new(0).is_err() && "0".parse::<TimelineId>().is_err());
    }
}
