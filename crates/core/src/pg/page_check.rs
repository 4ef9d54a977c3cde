//! Whether every page of a WAL segment is the one that belongs there (`XLogPageHeaderData`,
//! `src/include/access/xlog_internal.h`, the same in PostgreSQL 14 to 18).
//!
//! After a switch the rest of a segment is zeros. After the end of a timeline it may hold old pages
//! of a recycled file. But a page that belongs there never follows one that does not.

use super::fields::{u16_at, u32_at, u64_at};
use super::page_header::{ALL_FLAGS, LONG_HEADER, SHORT_HEADER_BYTES};
use super::{LongPageHeader, Lsn, SegmentName, SegmentSize, TimelineId};
use crate::error::{Error, Result};

/// Checks the page headers of a segment that is fed in pieces. It holds at most one header.
#[derive(Debug)]
pub struct PageCheck {
    /// Offset of the next byte in the segment.
    position: u64,
    /// Offset of the next page.
    next_page: u64,
    header: Vec<u8>,
    first: Option<LongPageHeader>,
    /// The first thing that is certainly wrong.
    wrong: Option<Error>,
    latest_timeline: u32,
    earliest_timeline: u32,
    /// The first page that is not of this segment, and what it is.
    ended: Option<(Lsn, End)>,
}

/// What follows the last page of a segment that belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Zeros,
    Other,
}

/// What the pages of a segment say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// The lowest timeline a page was written on.
    pub earliest_timeline: TimelineId,
    /// Where the segment's own pages end, if anything but zeros follows them.
    pub stale_from: Option<Lsn>,
}

impl Default for PageCheck {
    fn default() -> Self {
        Self {
            position: 0,
            next_page: 0,
            header: Vec::with_capacity(LongPageHeader::SIZE_BYTES),
            first: None,
            wrong: None,
            latest_timeline: 0,
            earliest_timeline: u32::MAX,
            ended: None,
        }
    }
}

impl PageCheck {
    /// Takes the next bytes of the segment.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.wrong.is_none() {
            let before = usize::try_from(self.next_page.saturating_sub(self.position));
            let skipped = before.map_or(bytes.len(), |before| before.min(bytes.len()));
            let (_, rest) = bytes.split_at(skipped);
            self.position += skipped as u64;
            let wanted = self.header_bytes() - self.header.len();
            let (taken, rest) = rest.split_at(rest.len().min(wanted));
            self.header.extend_from_slice(taken);
            // The header belongs to the page: `next_page` moves on only when it is whole.
            self.position += taken.len() as u64;
            self.next_page = self.next_page.max(self.position);
            if self.header.len() == self.header_bytes() {
                self.end_header();
            }
            bytes = rest;
        }
    }

    /// The header of the first page, if it was fed and is valid.
    #[must_use]
    pub fn first(&self) -> Option<&LongPageHeader> {
        self.first.as_ref()
    }

    fn header_bytes(&self) -> usize {
        match self.first {
            None => LongPageHeader::SIZE_BYTES,
            Some(_) => SHORT_HEADER_BYTES,
        }
    }

    fn end_header(&mut self) {
        let header = std::mem::take(&mut self.header);
        let offset = self.position - header.len() as u64;
        let first = match self.first {
            Some(first) => first,
            None => match LongPageHeader::parse(&header) {
                Ok(first) => *self.first.insert(first),
                Err(error) => {
                    self.wrong = Some(error);
                    return;
                }
            },
        };
        self.next_page = offset + u64::from(first.page_size_bytes);
        // An LSN beyond the last one fits no page.
        let at = Lsn(first.page_address.0.saturating_add(offset));
        if let Err(end) = self.belongs(&first, &header, at) {
            self.ended.get_or_insert((at, end));
        } else if let Some((from, _)) = self.ended {
            self.wrong = Some(Error::corrupt(format!(
                "page {from} is not where it should be, though page {at} after it is"
            )));
        }
    }

    fn belongs(&mut self, first: &LongPageHeader, header: &[u8], at: Lsn) -> std::result::Result<(), End> {
        if header.iter().all(|byte| *byte == 0) {
            return Err(End::Zeros);
        }
        let info = u16_at(header, 2).unwrap_or(0);
        let timeline = u32_at(header, 4).unwrap_or(0);
        let is_first = at == first.page_address;
        let fits = u16_at(header, 0) == first.major.wal_magic()
            && info & !ALL_FLAGS == 0
            && (info & LONG_HEADER != 0) == is_first
            && u64_at(header, 8) == Some(at.0)
            && timeline >= self.latest_timeline.max(1);
        if !fits {
            return Err(End::Other);
        }
        self.latest_timeline = timeline;
        self.earliest_timeline = self.earliest_timeline.min(timeline);
        Ok(())
    }

    /// Ends the segment, which should be `name` of the cluster.
    ///
    /// # Errors
    /// `Corrupt` where it is not whole, or a page is not where it belongs or is on a later timeline than the name's;
    /// `Invalid` where it is another cluster's.
    pub fn finish(self, name: SegmentName, size: SegmentSize, system_identifier: u64) -> Result<Pages> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let first = self
            .first
            .ok_or_else(|| Error::corrupt("it ends within its first page's header"))?;
        first.check(name, size, system_identifier)?;
        if self.position != size.bytes() {
            return Err(Error::corrupt(format!(
                "it has {} bytes, a segment of this cluster has {}",
                self.position,
                size.bytes()
            )));
        }
        if self.latest_timeline > name.timeline().get() {
            return Err(Error::corrupt(format!(
                "it has pages of timeline {}, later than the timeline in its name",
                self.latest_timeline
            )));
        }
        Ok(Pages {
            earliest_timeline: TimelineId::new(self.earliest_timeline)?,
            stale_from: self
                .ended
                .filter(|(_, end)| *end == End::Other)
                .map(|(from, _)| from),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;
    use crate::pg::Major;

    const SYSTEM: u64 = 7_575_757_575_757_575_757;
    const PAGE: usize = 8192;
    const START: u64 = 0x0300_0000;

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    fn name() -> SegmentName {
        "000000020000000000000030".parse().unwrap()
    }

    /// A segment whose pages are of these timelines; 0 leaves the page zeroed.
    fn segment(timeline_of: impl Fn(usize) -> u32) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        for (number, page) in bytes.chunks_mut(PAGE).enumerate() {
            let timeline = timeline_of(number);
            if timeline == 0 {
                continue;
            }
            let mut header = Vec::new();
            header.extend(Major::V17.wal_magic().unwrap().to_le_bytes());
            header.extend(if number == 0 { 2_u16 } else { 0 }.to_le_bytes());
            header.extend(timeline.to_le_bytes());
            header.extend((START + (number * PAGE) as u64).to_le_bytes());
            header.extend([0; 8]);
            if number == 0 {
                header.extend(SYSTEM.to_le_bytes());
                header.extend((1_u32 << 20).to_le_bytes());
                header.extend((PAGE as u32).to_le_bytes());
            }
            page[..header.len()].copy_from_slice(&header);
            page[100..].fill(0x5A);
        }
        bytes
    }

    fn check(bytes: &[u8], piece: usize) -> Result<Pages> {
        let mut check = PageCheck::default();
        bytes.chunks(piece).for_each(|piece| check.feed(piece));
        check.finish(name(), size(), SYSTEM)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_whole_segment_passes_in_pieces_of_any_size(piece in 1..70_000usize, fork in 0..128usize, end in 1..=128usize) {
            let bytes = segment(|page| if page >= end { 0 } else if page < fork { 1 } else { 2 });
            let pages = check(&bytes, piece).unwrap();
            prop_assert_eq!(pages.stale_from, None);
            prop_assert_eq!(pages.earliest_timeline.get(), if fork == 0 { 2 } else { 1 });
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20_000), piece in 1..9000usize) {
            prop_assert!(check(&bytes, piece).is_err());
        }

        #[test]
        fn a_page_that_is_not_where_it_belongs_is_noticed(page in 1..127usize, other in 0..128usize) {
            prop_assume!(page != other);
            let mut bytes = segment(|_| 2);
            let copy = bytes[other * PAGE..(other + 1) * PAGE].to_vec();
            bytes[page * PAGE..(page + 1) * PAGE].copy_from_slice(&copy);
            prop_assert_eq!(check(&bytes, 10_000).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn what_a_recycled_file_still_holds_at_its_end_is_told() {
        let mut bytes = segment(|_| 2);
        let at = |page: usize| page * PAGE + 8..page * PAGE + 16;
        for page in 100..128 {
            bytes[at(page)].copy_from_slice(&0x0100_0000_u64.to_le_bytes());
        }
        let pages = check(&bytes, 4096).unwrap();
        assert_eq!(pages.stale_from, Some(Lsn(START + 100 * PAGE as u64)));
    }

    #[test]
    fn a_zeroed_page_in_the_middle_is_damage() {
        let bytes = segment(|page| if page == 50 { 0 } else { 2 });
        assert_eq!(check(&bytes, 4096).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn timelines_only_ascend_and_never_beyond_the_name() {
        let later = segment(|page| if page < 3 { 2 } else { 3 });
        assert_eq!(check(&later, 4096).unwrap_err().kind(), ErrorKind::Corrupt);
        let back = segment(|page| if page == 3 { 1 } else { 2 });
        assert_eq!(check(&back, 4096).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_segment_that_is_cut_short_is_noticed() {
        let bytes = segment(|_| 2);
        for length in [0, 10, 8192, (1 << 20) - 1] {
            assert!(check(&bytes[..length], 4096).is_err(), "{length}");
        }
    }
}
