//! Finds the members of a tar stream while it passes by, in pieces of any size.
//!
//! PostgreSQL writes plain ustar (`tarCreateHeader` in `src/port/tar.c`, the same in 14 to 18): regular
//! files, directories, and symbolic links whose names end in a slash like a directory's. Anything else is refused.
//! So is a path that could leave the directory it is restored into, because the stream comes from another machine.

use super::backup::{EntryKind, IndexEntry};
use crate::error::{Error, Result};

/// Tar is made of blocks of this size.
const BLOCK_BYTES: usize = 512;
/// Two zero blocks end a tar archive.
const END_BLOCKS: u32 = 2;
/// What ends a tar archive, for streams whose sender left it out (PostgreSQL 14).
pub const TAR_END: [u8; 1024] = [0; 1024];
/// A member whose content is asked for has at most this many bytes. `tablespace_map` has one short line for each
/// tablespace.
const CAPTURE_LIMIT_BYTES: u64 = 1 << 20;

/// Follows one tar stream.
#[derive(Debug)]
pub struct TarScanner {
    stream: u32,
    /// Bytes fed so far.
    position: u64,
    state: State,
    wanted: &'static [&'static str],
    captured: Vec<CapturedMember>,
}

/// The content of a member that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedMember {
    /// The member's path.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// What is known at the end of a tar stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEnd {
    /// Bytes of the stream.
    pub tar_bytes: u64,
    /// Whether it has the zero blocks that end a tar archive. If not, [`TAR_END`] must be added.
    pub terminated: bool,
    /// The members that were asked for and found, in their order.
    pub captured: Vec<CapturedMember>,
}

#[derive(Debug)]
enum State {
    /// Collecting a header, or a zero block after `zero_blocks` others.
    Header { block: Vec<u8>, zero_blocks: u32 },
    /// Inside a member's content.
    Content { left: u64, padding: u64, capture: bool },
    /// Between a member's content and the next header.
    Padding { left: u64 },
    /// After the end of the archive, where only zeros may follow.
    End,
}

impl State {
    fn next_header() -> Self {
        Self::Header {
            block: Vec::new(),
            zero_blocks: 0,
        }
    }

    fn content(size: u64, capture: bool) -> Self {
        Self::Content {
            left: size,
            padding: size.next_multiple_of(BLOCK_BYTES as u64) - size,
            capture,
        }
        .skip_empty()
    }

    /// The next state, where nothing is left to read in this one.
    fn skip_empty(self) -> Self {
        match self {
            Self::Content { left: 0, padding, .. } => Self::Padding { left: padding }.skip_empty(),
            Self::Padding { left: 0 } => Self::next_header(),
            other => other,
        }
    }
}

impl TarScanner {
    /// A scanner for the stream at this index of the backup's streams. The contents of the members
    /// with the `wanted` paths are kept.
    #[must_use]
    pub fn new(stream: u32, wanted: &'static [&'static str]) -> Self {
        Self {
            stream,
            position: 0,
            state: State::next_header(),
            wanted,
            captured: Vec::new(),
        }
    }

    /// Takes the next bytes of the stream; returns the members whose headers ended in them.
    ///
    /// # Errors
    /// `Corrupt` where it is not the tar that PostgreSQL writes, `Invalid` for a name that walship
    /// cannot store. Nothing may be fed after an error.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<Vec<IndexEntry>> {
        let mut found = Vec::new();
        while !piece.is_empty() {
            let (taken, entry) = self.step(piece)?;
            let (_, rest) = piece.split_at(taken);
            self.position += taken as u64;
            piece = rest;
            if let Some(entry) = entry {
                found.push(entry);
            }
        }
        Ok(found)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// `Corrupt` where it ends inside a member, or with half of its end.
    pub fn finish(self) -> Result<TarEnd> {
        let terminated = match &self.state {
            State::End => true,
            State::Header {
                block,
                zero_blocks: 0,
            } if block.is_empty() => false,
            _ => return Err(self.corrupt("it ends in the middle of a member")),
        };
        Ok(TarEnd {
            tar_bytes: self.position,
            terminated,
            captured: self.captured,
        })
    }

    /// Takes some of `piece`, which is not empty. Returns how much, and the member that this completed.
    fn step(&mut self, piece: &[u8]) -> Result<(usize, Option<IndexEntry>)> {
        match &mut self.state {
            State::Header { block, .. } => {
                let (taken, _) = piece.split_at(piece.len().min(BLOCK_BYTES - block.len()));
                block.extend_from_slice(taken);
                let whole = block.len() == BLOCK_BYTES;
                let entry = if whole { self.end_block(taken.len())? } else { None };
                Ok((taken.len(), entry))
            }
            State::Content {
                left,
                padding,
                capture,
            } => {
                let (taken, _) = piece.split_at(bounded(piece.len(), *left));
                if let (true, Some(captured)) = (*capture, self.captured.last_mut()) {
                    captured.content.extend_from_slice(taken);
                }
                self.state = State::Content {
                    left: *left - taken.len() as u64,
                    padding: *padding,
                    capture: *capture,
                }
                .skip_empty();
                Ok((taken.len(), None))
            }
            State::Padding { left } => {
                let taken = bounded(piece.len(), *left);
                self.state = State::Padding {
                    left: *left - taken as u64,
                }
                .skip_empty();
                Ok((taken, None))
            }
            State::End if piece.iter().all(|byte| *byte == 0) => Ok((piece.len(), None)),
            State::End => Err(self.corrupt("something follows its end")),
        }
    }

    /// Handles a whole block; its last `last_taken` bytes are from the present piece.
    fn end_block(&mut self, last_taken: usize) -> Result<Option<IndexEntry>> {
        let State::Header { block, zero_blocks } = &mut self.state else {
            return Ok(None);
        };
        let (block, zero_blocks) = (std::mem::take(block), *zero_blocks);
        if block.iter().all(|byte| *byte == 0) {
            self.state = if zero_blocks + 1 == END_BLOCKS {
                State::End
            } else {
                State::Header {
                    block: Vec::new(),
                    zero_blocks: zero_blocks + 1,
                }
            };
            return Ok(None);
        }
        if zero_blocks > 0 {
            return Err(self.corrupt("a member follows a zero block"));
        }
        let entry = self.read_header(&block, self.position + last_taken as u64)?;
        let capture = entry.kind == EntryKind::File && self.wanted.contains(&entry.path.as_str());
        if capture {
            if entry.size > CAPTURE_LIMIT_BYTES {
                return Err(self.corrupt(&format!("its {} has {} bytes", entry.path, entry.size)));
            }
            self.captured.push(CapturedMember {
                path: entry.path.clone(),
                content: Vec::new(),
            });
        }
        self.state = State::content(entry.size, capture);
        Ok(Some(entry))
    }

    fn read_header(&self, block: &[u8], content_offset: u64) -> Result<IndexEntry> {
        let header = tar::Header::from_byte_slice(block);
        let field = |error: std::io::Error| self.corrupt(&format!("a header cannot be read: {error}"));
        if header.cksum().map_err(field)? != checksum(block) {
            return Err(self.corrupt("a header's checksum is wrong"));
        }
        let kind = match header.entry_type() {
            tar::EntryType::Regular => EntryKind::File,
            tar::EntryType::Directory => EntryKind::Directory,
            tar::EntryType::Symlink => EntryKind::Link,
            other => {
                return Err(self.corrupt(&format!(
                    "a member has the type {:?}, which PostgreSQL never sends",
                    char::from(other.as_byte())
                )));
            }
        };
        let path = self.member_path(&header.path_bytes())?;
        let size = header.entry_size().map_err(field)?;
        if kind != EntryKind::File && size != 0 {
            return Err(self.corrupt(&format!("{path} has content but is not a file")));
        }
        let target = match kind {
            EntryKind::Link => Some(self.link_target(header, &path)?),
            EntryKind::File | EntryKind::Directory => None,
        };
        // The end of the content, rounded up, has to be a position too.
        if size.saturating_add(content_offset) > u64::MAX >> 1 {
            return Err(self.corrupt(&format!("{path} has {size} bytes")));
        }
        Ok(IndexEntry {
            stream: self.stream,
            path,
            kind,
            mode: header.mode().map_err(field)? & 0o7777,
            mtime: header.mtime().map_err(field)?.cast_signed(),
            size,
            offset: if kind == EntryKind::File {
                content_offset
            } else {
                0
            },
            target,
        })
    }

    /// A member's path without the slash that ends directories' and links' names, and without the
    /// `./` that begins some (`./pg_wal/archive_status`).
    fn member_path(&self, bytes: &[u8]) -> Result<String> {
        let path = utf8(bytes)?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let path = path.strip_prefix("./").unwrap_or(path);
        let plain = path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
        if !plain || path.chars().any(|c| c == '\0') {
            return Err(self.corrupt(&format!("a member has the path {path:?}")));
        }
        Ok(path.to_owned())
    }

    fn link_target(&self, header: &tar::Header, path: &str) -> Result<String> {
        let target = header.link_name_bytes().unwrap_or_default();
        let target = utf8(&target)?;
        if target.is_empty() {
            return Err(self.corrupt(&format!("the link {path} points nowhere")));
        }
        Ok(target.to_owned())
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::corrupt(format!(
            "the tar stream from PostgreSQL is damaged near byte {}: {what}; take the backup again",
            self.position
        ))
    }
}

fn bounded(length: usize, limit: u64) -> usize {
    usize::try_from(limit).map_or(length, |limit| limit.min(length))
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| {
        Error::invalid(format!(
            "the cluster has a file whose name is not UTF-8: \"{}\"; PostgreSQL makes no such files, \
             rename it or move it out of the data directory",
            bytes.escape_ascii()
        ))
    })
}

/// The sum of a header's bytes, the checksum field counted as spaces.
fn checksum(block: &[u8]) -> u32 {
    block
        .iter()
        .enumerate()
        .map(|(index, byte)| match index {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum()
}

#[cfg(test)]
mod tests;
