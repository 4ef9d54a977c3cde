//! Writing tar: headers as PostgreSQL writes them (`tarCreateHeader`, `src/port/tar.c`), gathered into pieces that are
//! sent at most at the rate that is allowed.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Event, Outlet};
use crate::error::{Error, Result};

const BLOCK_BYTES: usize = 512;
/// A piece is sent before it would grow beyond this. It is compressed as it is.
const PIECE_BYTES: usize = 1 << 20;

/// The fields of a header besides name and size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// In seconds since 1970.
    pub(super) modified: i64,
}

impl Attributes {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: metadata.mtime(),
        }
    }
}

pub(super) struct TarOut {
    outlet: Outlet,
    piece: Vec<u8>,
    /// Bytes a second.
    rate: Option<u64>,
    /// When the next piece may go.
    next: Instant,
}

impl TarOut {
    pub(super) fn new(outlet: Outlet, rate: Option<u64>) -> Self {
        Self {
            outlet,
            piece: Vec::with_capacity(PIECE_BYTES),
            rate,
            next: Instant::now(),
        }
    }

    /// The piece that is being filled, with `room` for more bytes.
    pub(super) fn piece(&mut self, room: usize) -> Result<&mut Vec<u8>> {
        if self.piece.len() + room > PIECE_BYTES {
            self.flush()?;
        }
        Ok(&mut self.piece)
    }

    pub(super) fn directory(&mut self, name: &str, attributes: Attributes) -> Result<()> {
        self.header(&format!("{name}/"), tar::EntryType::Directory, 0, attributes)
    }

    /// The header of a file, whose content follows.
    pub(super) fn file(&mut self, name: &str, size: u64, attributes: Attributes) -> Result<()> {
        self.header(name, tar::EntryType::Regular, size, attributes)
    }

    fn header(&mut self, name: &str, kind: tar::EntryType, size: u64, attributes: Attributes) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).map_err(|error| {
            Error::invalid(format!(
                "the cluster has a file whose name is too long for tar, {name}: {error}; shorten it, or move it out of \
                 the data directory"
            ))
        })?;
        header.set_entry_type(kind);
        header.set_mode(attributes.mode);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        let named = header
            .set_username("postgres")
            .and_then(|()| header.set_groupname("postgres"));
        named.map_err(|error| Error::defect("write a tar header", error))?;
        header.set_mtime(attributes.modified.max(0).cast_unsigned());
        header.set_size(size);
        header.set_cksum();
        self.piece(BLOCK_BYTES)?.extend_from_slice(header.as_bytes());
        Ok(())
    }

    /// Fills up the last block of a file of this size.
    pub(super) fn end_file(&mut self, size: u64) -> Result<()> {
        let padding = (size.next_multiple_of(BLOCK_BYTES as u64) - size) as usize;
        let piece = self.piece(padding)?;
        piece.resize(piece.len() + padding, 0);
        Ok(())
    }

    /// Ends the archive, and sends what is left of it.
    pub(super) fn end_archive(&mut self) -> Result<()> {
        let piece = self.piece(2 * BLOCK_BYTES)?;
        piece.resize(piece.len() + 2 * BLOCK_BYTES, 0);
        self.flush()
    }

    pub(super) fn send(&self, event: Event) -> Result<()> {
        self.outlet.send(event)
    }

    pub(super) fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    fn flush(&mut self) -> Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        if let Some(rate) = self.rate {
            // Time without sending earns no credit, as in basebackup_throttle.c.
            let now = Instant::now();
            let due = self.next.max(now);
            std::thread::sleep(due - now);
            self.next = due + Duration::from_micros(1_000_000 * piece.len() as u64 / rate);
        }
        self.outlet.send(Event::Data(Bytes::from(piece)))
    }
}
