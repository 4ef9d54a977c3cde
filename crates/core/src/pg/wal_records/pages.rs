//! WAL as a sequence of pages: removes the page headers and checks them as
//! `XLogReaderValidatePageHeader` does (`src/backend/access/transam/xlogreader.c`, PostgreSQL 14 to 18).

use super::{RECORD_ALIGNMENT, take_front};
use crate::pg::fields::{u16_at, u32_at, u64_at};
use crate::pg::page_header::{
    ALL_FLAGS, FIRST_IS_CONTINUATION, FIRST_IS_OVERWRITE, LONG_HEADER, SHORT_HEADER_BYTES,
};
use crate::pg::{LongPageHeader, Lsn};

/// What comes next in the WAL.
pub(super) enum Piece<'a> {
    PageStart(PageStart),
    /// Bytes of one page, after its header.
    Body {
        /// The position of the first one.
        at: u64,
        bytes: &'a [u8],
    },
    /// The WAL ends before the page that would begin here.
    Invalid(String),
}

/// What a page's header says about its first record.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageStart {
    /// The page begins with the rest of a record from the page before.
    pub(super) continues: bool,
    /// The record from the page before was never finished, and is replaced.
    pub(super) overwrites: bool,
    /// How much is left of the record that goes on, in bytes.
    pub(super) remaining: u32,
    /// The position after its header.
    body_start: u64,
    /// Room in the page after its header, in bytes.
    body_bytes: u64,
}

impl PageStart {
    /// The position after the record that goes on, padding included; `None` where it does not end in this page.
    pub(super) fn continuation_end(&self) -> Option<Lsn> {
        let rest = u64::from(self.remaining).next_multiple_of(RECORD_ALIGNMENT);
        (rest <= self.body_bytes).then_some(Lsn(self.body_start.saturating_add(rest)))
    }

    /// How much of the record that goes on is left after the page, in bytes.
    pub(super) fn remaining_after(&self) -> u32 {
        u64::from(self.remaining).saturating_sub(self.body_bytes) as u32
    }

    /// How far after the header the page's first record begins, in bytes; `None` where none does.
    pub(super) fn first_record(&self) -> Option<u64> {
        if !self.continues {
            return Some(0);
        }
        let rest = u64::from(self.remaining).next_multiple_of(RECORD_ALIGNMENT);
        (rest < self.body_bytes).then_some(rest)
    }
}

/// Cuts the bytes it is given at page boundaries. It holds no more of them than one page header.
#[derive(Clone)]
pub(super) struct Pages {
    /// The position of the next byte.
    position: u64,
    /// The header of the first page, which all others must fit; `None` before it was read.
    first: Option<LongPageHeader>,
    /// The timeline of the latest page; no later page may be on an earlier one.
    timeline: u32,
    /// Bytes before this position are skipped, page headers too.
    skip_to: u64,
    page_end: u64,
    header: [u8; LongPageHeader::SIZE_BYTES],
    /// How much of a page's header was read; `None` within its body.
    header_got: Option<usize>,
}

impl Pages {
    /// Pages from the start of a segment on.
    pub(super) fn new(start: Lsn) -> Self {
        Self {
            position: start.0,
            first: None,
            timeline: 0,
            skip_to: start.0,
            page_end: start.0,
            header: [0; LongPageHeader::SIZE_BYTES],
            header_got: Some(0),
        }
    }

    /// The header of the first page, once it was read.
    pub(super) fn first(&self) -> Option<&LongPageHeader> {
        self.first.as_ref()
    }

    /// Skips everything before the start of a page.
    pub(super) fn skip_to(&mut self, page_start: Lsn) {
        self.skip_to = page_start.0;
        self.header_got = Some(0);
    }

    /// The next piece, taken off the input; `None` where more input is needed.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        if self.position < self.skip_to {
            self.take(input, self.skip_to - self.position);
        }
        if let Some(got) = self.header_got {
            return self.read_header(got, input);
        }
        if input.is_empty() {
            return None;
        }
        let at = self.position;
        let bytes = self.take(input, self.page_end - self.position);
        if self.position == self.page_end {
            self.header_got = Some(0);
        }
        Some(Piece::Body { at, bytes })
    }

    fn take<'a>(&mut self, input: &mut &'a [u8], at_most: u64) -> &'a [u8] {
        let taken = take_front(input, at_most);
        // Saturates beyond the last LSN only, where no page has the right address.
        self.position = self.position.saturating_add(taken.len() as u64);
        taken
    }

    fn read_header<'a>(&mut self, mut got: usize, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        loop {
            let size = self.header_size(got);
            if got == size {
                break;
            }
            let taken = self.take(input, (size - got) as u64);
            if taken.is_empty() {
                self.header_got = Some(got);
                return None;
            }
            if let Some(room) = self.header.get_mut(got..got + taken.len()) {
                room.copy_from_slice(taken);
            }
            got += taken.len();
        }
        self.header_got = None;
        Some(match self.begin_page(got) {
            Ok(start) => Piece::PageStart(start),
            Err(why) => Piece::Invalid(why),
        })
    }

    /// How long the header is, as far as its bytes so far tell.
    fn header_size(&self, got: usize) -> usize {
        let long = self.first.is_none()
            || got >= SHORT_HEADER_BYTES && u16_at(&self.header, 2).unwrap_or(0) & LONG_HEADER != 0;
        if long {
            LongPageHeader::SIZE_BYTES
        } else {
            SHORT_HEADER_BYTES
        }
    }

    fn begin_page(&mut self, header_size: usize) -> Result<PageStart, String> {
        let start = self.position - header_size as u64;
        let first = match self.first {
            Some(first) => first,
            None => LongPageHeader::parse(&self.header).map_err(|error| error.to_string())?,
        };
        if self.first.is_none() && !start.is_multiple_of(first.segment_size.bytes()) {
            return Err(format!("no segment begins at {}", Lsn(start)));
        }
        self.check(&first, start)?;
        let page_size = u64::from(first.page_size_bytes);
        self.first = Some(first);
        self.timeline = self.timeline_in_header();
        self.page_end = start
            .checked_add(page_size)
            .ok_or_else(|| "the page lies beyond the last LSN".to_owned())?;
        let info = u16_at(&self.header, 2).unwrap_or(0);
        Ok(PageStart {
            continues: info & FIRST_IS_CONTINUATION != 0,
            overwrites: info & FIRST_IS_OVERWRITE != 0,
            remaining: u32_at(&self.header, 16).unwrap_or(0),
            body_start: self.position,
            body_bytes: page_size - header_size as u64,
        })
    }

    fn check(&self, first: &LongPageHeader, start: u64) -> Result<(), String> {
        let magic = u16_at(&self.header, 0).unwrap_or(0);
        if Some(magic) != first.major.wal_magic() {
            return Err(format!("page {} starts with {magic:#06X}", Lsn(start)));
        }
        let info = u16_at(&self.header, 2).unwrap_or(0);
        let long = info & LONG_HEADER != 0;
        if info & !ALL_FLAGS != 0 || (start.is_multiple_of(first.segment_size.bytes()) && !long) {
            return Err(format!("page {} has flags {info:#06X}", Lsn(start)));
        }
        let address = u64_at(&self.header, 8).unwrap_or(0);
        if address != start {
            return Err(format!(
                "where page {} should be is page {}",
                Lsn(start),
                Lsn(address)
            ));
        }
        let timeline = self.timeline_in_header();
        if timeline < self.timeline {
            return Err(format!(
                "page {} is on timeline {timeline}, the one before on {}",
                Lsn(start),
                self.timeline
            ));
        }
        if long && !self.fits(first) {
            return Err(format!("page {} is of another cluster", Lsn(start)));
        }
        Ok(())
    }

    fn fits(&self, first: &LongPageHeader) -> bool {
        u64_at(&self.header, 24) == Some(first.system_identifier)
            && u32_at(&self.header, 32) == Some(first.segment_size.into())
            && u32_at(&self.header, 36) == Some(first.page_size_bytes)
    }

    fn timeline_in_header(&self) -> u32 {
        u32_at(&self.header, 4).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_a_record_fills_has_no_record_that_begins_in_it() {
        let first_record = |continues, remaining| {
            let start = PageStart {
                continues,
                overwrites: false,
                remaining,
                body_start: 24,
                body_bytes: 8192 - 24,
            };
            start.first_record()
        };
        assert_eq!(first_record(false, 0), Some(0));
        assert_eq!(first_record(true, 13), Some(16));
        assert_eq!(first_record(true, 8192 - 32), Some(8192 - 32));
        assert_eq!(first_record(true, 8192 - 31), None);
    }
}
