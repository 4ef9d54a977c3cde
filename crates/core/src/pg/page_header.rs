//! The long header of a WAL segment's first page: whose segment it is and where it belongs
//! (`XLogLongPageHeaderData`, `src/include/access/xlog_internal.h`, the same in PostgreSQL 14 to 18).

use super::fields::{u16_at, u32_at, u64_at};
use super::{Lsn, Major, SegmentName, SegmentSize, TimelineId};
use crate::error::{Error, Result};

/// The page's first record continues one from the page before (`XLP_FIRST_IS_CONTRECORD`).
pub(super) const FIRST_IS_CONTINUATION: u16 = 0x0001;
/// The header is a long one (`XLP_LONG_HEADER`): each segment's first page has it.
pub(super) const LONG_HEADER: u16 = 0x0002;
/// The page replaces a record that a crash left unfinished (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
pub(super) const FIRST_IS_OVERWRITE: u16 = 0x0008;
/// Every flag (`XLP_ALL_FLAGS`).
pub(super) const ALL_FLAGS: u16 = 0x000F;

/// The size of a page header that is not long, padding included (`SizeOfXLogShortPHD`).
pub(super) const SHORT_HEADER_BYTES: usize = 24;

/// What the first page of a WAL segment says about it. A value exists only for bytes that PostgreSQL
/// 14 to 18 could have written; [`LongPageHeader::check`] tells whether they are the right ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongPageHeader {
    /// The version of PostgreSQL that wrote the segment, told by the page's magic number.
    pub major: Major,
    /// `XLP_…` flags, only the known ones.
    info: u16,
    /// The timeline the page was written on. Lower than the file name's where a promotion copied the
    /// start of the segment to a new timeline.
    timeline: TimelineId,
    /// The position of the page's first byte.
    pub page_address: Lsn,
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// The cluster's WAL segment size.
    pub segment_size: SegmentSize,
    /// The size of a WAL page in bytes (`XLOG_BLCKSZ`): 8192 unless PostgreSQL was built otherwise.
    pub page_size_bytes: u32,
}

impl LongPageHeader {
    /// Its size in bytes, padding included (`SizeOfXLogLongPHD`).
    pub const SIZE_BYTES: usize = 40;

    /// Reads the header at the start of a segment; bytes after it are ignored.
    ///
    /// # Errors
    /// `Corrupt` for anything that PostgreSQL 14 to 18 does not write at the start of a segment.
    pub fn parse(segment: &[u8]) -> Result<Self> {
        Fields::read(segment)
            .ok_or_else(|| {
                Error::corrupt(format!(
                    "the file ends after {} bytes, within the WAL page header; it was cut short",
                    segment.len()
                ))
            })?
            .validate()
    }

    /// Checks that the segment is what its name says, and this cluster's. The header's timeline may
    /// be lower than the name's, but not higher.
    ///
    /// # Errors
    /// `Invalid` for a segment of another cluster or another segment size, `Corrupt` for one that
    /// holds other WAL than its name says.
    pub fn check(&self, name: SegmentName, size: SegmentSize, system_identifier: u64) -> Result<()> {
        if self.system_identifier != system_identifier {
            return Err(Error::invalid(format!(
                "WAL segment {name} belongs to the cluster with system identifier {}, not to {system_identifier}; \
                 use the archive of that cluster, or start a new one",
                self.system_identifier
            )));
        }
        if self.segment_size != size {
            return Err(Error::invalid(format!(
                "WAL segment {name} was written with a segment size of {} MiB, but the cluster's is {} MiB; \
                 if the size was changed with pg_resetwal, start a new archive",
                self.segment_size.bytes() >> 20,
                size.bytes() >> 20
            )));
        }
        let start = name.start(size)?;
        if self.page_address != start {
            return Err(Error::corrupt(format!(
                "WAL segment {name} should start at {start}, but its first page is that of {}: it is a recycled \
                 file that was not written yet, or a copy under the wrong name; do not use it",
                self.page_address
            )));
        }
        if self.timeline > name.timeline() {
            return Err(Error::corrupt(format!(
                "WAL segment {name} was written on timeline {}, later than the timeline in its name; \
                 it is a copy under the wrong name, do not use it",
                self.timeline
            )));
        }
        Ok(())
    }
}

/// The header as it stands in the file, before any of it is believed.
struct Fields {
    magic: u16,
    info: u16,
    timeline: u32,
    page_address: u64,
    system_identifier: u64,
    segment_size: u32,
    page_size: u32,
}

impl Fields {
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..LongPageHeader::SIZE_BYTES)?;
        Some(Self {
            magic: u16_at(bytes, 0)?,
            info: u16_at(bytes, 2)?,
            timeline: u32_at(bytes, 4)?,
            page_address: u64_at(bytes, 8)?,
            system_identifier: u64_at(bytes, 24)?,
            segment_size: u32_at(bytes, 32)?,
            page_size: u32_at(bytes, 36)?,
        })
    }

    fn validate(self) -> Result<LongPageHeader> {
        if self.magic == 0 {
            return Err(Error::corrupt(
                "the file starts with zeros instead of a WAL page; it is empty or was damaged",
            ));
        }
        let major = Major::of_wal_magic(self.magic).ok_or_else(|| {
            Error::corrupt(format!(
                "the file starts with {:#06X}, which no WAL page of PostgreSQL 14 to 18 does; \
                 it is not a WAL segment, or was damaged",
                self.magic
            ))
        })?;
        if self.info & LONG_HEADER == 0 || self.info & !ALL_FLAGS != 0 {
            return Err(Error::corrupt(format!(
                "the first WAL page has flags {:#06X}, which the first page of a segment never has; \
                 the file was cut out of a segment, or was damaged",
                self.info
            )));
        }
        let damaged = |what: &str, value: u32| {
            Error::corrupt(format!(
                "the WAL page header gives {value} as the {what}; it was damaged"
            ))
        };
        let page_size_ok = self.page_size.is_power_of_two() && (1024..=65536).contains(&self.page_size);
        if !page_size_ok {
            return Err(damaged("WAL page size", self.page_size));
        }
        Ok(LongPageHeader {
            major,
            info: self.info,
            timeline: TimelineId::new(self.timeline).map_err(|_| damaged("timeline", self.timeline))?,
            page_address: Lsn(self.page_address),
            system_identifier: self.system_identifier,
            segment_size: SegmentSize::new(self.segment_size)
                .map_err(|_| damaged("segment size", self.segment_size))?,
            page_size_bytes: self.page_size,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    const SYSTEM: u64 = 7_575_757_575_757_575_757;

    fn name(text: &str) -> SegmentName {
        text.parse().unwrap()
    }

    fn header_bytes(major: Major, timeline: u32, start: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(major.wal_magic().unwrap().to_le_bytes());
        bytes.extend(0x0006_u16.to_le_bytes());
        bytes.extend(timeline.to_le_bytes());
        bytes.extend(start.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(SYSTEM.to_le_bytes());
        bytes.extend((16_u32 << 20).to_le_bytes());
        bytes.extend(8192_u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_page_size_that_postgresql_cannot_be_built_with_is_refused() {
        for (page_bytes, fits) in [
            (1024_u32, true),
            (65536, true),
            (512, false),
            (1 << 17, false),
            (8193, false),
        ] {
            let mut bytes = header_bytes(Major::V17, 1, 0);
            bytes[36..40].copy_from_slice(&page_bytes.to_le_bytes());
            assert_eq!(LongPageHeader::parse(&bytes).is_ok(), fits, "{page_bytes}");
        }
    }

    fn kind_of(bytes: &[u8]) -> ErrorKind {
        LongPageHeader::parse(bytes).unwrap_err().kind()
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = LongPageHeader::parse(&bytes);
        }

        #[test]
        fn damage_to_one_byte_is_refused_or_changes_what_was_read(at in 0_usize..40, flip in 1_u8..) {
            let good = header_bytes(Major::V17, 1, 0x0300_0000);
            let mut bad = good.clone();
            bad[at] ^= flip;
            // Bytes 16 to 24 are the length of a continuation and padding; no field here.
            if let (Ok(read), false) = (LongPageHeader::parse(&bad), (16..24).contains(&at)) {
                prop_assert_ne!(read, LongPageHeader::parse(&good).unwrap());
            }
        }
    }

    #[test]
    fn the_header_of_each_version_is_read() {
        for major in Major::ALL {
            let header = LongPageHeader::parse(&header_bytes(major, 1, 0x0300_0000)).unwrap();
            assert_eq!(header.major, major);
            header
                .check(name("000000010000000000000003"), SegmentSize::DEFAULT, SYSTEM)
                .unwrap();
        }
    }

    #[test]
    fn garbage_is_corrupt() {
        let good = header_bytes(Major::V17, 1, 0);
        assert_eq!(kind_of(&[]), ErrorKind::Corrupt);
        assert_eq!(kind_of(&good[..39]), ErrorKind::Corrupt);
        assert_eq!(kind_of(&[0; 8192]), ErrorKind::Corrupt);
        for (offset, byte) in [(0, 0x0B), (2, 0x04), (3, 0x10), (4, 0x00), (34, 0x03), (37, 0x00)] {
            let mut bad = good.clone();
            bad[offset] = byte;
            assert_eq!(kind_of(&bad), ErrorKind::Corrupt, "byte {offset}");
        }
    }

    #[test]
    fn a_segment_copied_at_a_promotion_keeps_the_old_timeline() {
        let header = LongPageHeader::parse(&header_bytes(Major::V17, 1, 0x0D00_0000)).unwrap();
        let later = name("00000002000000000000000D");
        header.check(later, SegmentSize::DEFAULT, SYSTEM).unwrap();
    }

    #[test]
    fn another_clusters_segment_is_invalid() {
        let header = LongPageHeader::parse(&header_bytes(Major::V17, 1, 0x0300_0000)).unwrap();
        let named = name("000000010000000000000003");
        let other_size = SegmentSize::new(64 << 20).unwrap();
        let error = header.check(named, SegmentSize::DEFAULT, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("system identifier"), "{error}");
        let error = header.check(named, other_size, SYSTEM).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("segment size"), "{error}");
    }

    #[test]
    fn other_wal_than_the_name_says_is_corrupt() {
        let header = LongPageHeader::parse(&header_bytes(Major::V17, 2, 0x0300_0000)).unwrap();
        for text in [
            "000000020000000000000004",
            "000000020000000100000003",
            "000000010000000000000003",
        ] {
            let error = header
                .check(name(text), SegmentSize::DEFAULT, SYSTEM)
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
    }
}
