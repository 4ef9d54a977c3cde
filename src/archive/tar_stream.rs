//! Finds the members of a tar stream while it passes by, in pieces of any size.
//!
//! PostgreSQL writes plain ustar (`tarCreateHeader` in `src/port/tar.c`, the same in 14 to 18): regular
//! files, directories, and symbolic links whose names end in a slash like a directory's. Anything
//! else is refused, and so is a path that could leave the directory it is restored into: the stream
//! comes from another machine.

use super::backup::{EntryKind, IndexEntry};
use crate::error::{Error, Result};

/// Tar is made of blocks of this size.
const BLOCK_BYTES: usize = 512;
/// Two zero blocks end a tar archive.
const END_BLOCKS: u32 = 2;
/// What ends a tar archive, for streams whose sender left it out (PostgreSQL 14).
pub const TAR_END: [u8; 1024] = [0; 1024];
/// The most that is kept of a member whose content is asked for. `tablespace_map` has one short
/// line for each tablespace.
const CAPTURE_LIMIT_BYTES: u64 = 1 << 20;

/// Follows one tar stream.
#[derive(Debug)]
pub struct TarScanner {
    stream: u32,
    /// Bytes fed so far.
    position: u64,
    state: State,
    wanted: &'static [&'static str],
    captured: Vec<Captured>,
}

/// The content of a member that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// The member's path.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// What a whole tar stream was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEnd {
    /// Bytes of the stream.
    pub tar_bytes: u64,
    /// Whether it has the zero blocks that end an archive. Where not, [`TAR_END`] makes it one.
    pub terminated: bool,
    /// The members that were asked for and found, in their order.
    pub captured: Vec<Captured>,
}

#[derive(Debug)]
enum State {
    /// Collecting a header, or a zero block after `zero_blocks` others.
    Header { block: Vec<u8>, zero_blocks: u32 },
    /// Inside a member's content.
    Content { left: u64, padding: u64, capture: bool },
    /// Between a member's content and the next header.
    Padding { left: u64 },
    /// Behind the end of the archive, where only zeros may follow.
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

    /// The state that follows where nothing is left of this one.
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
    /// cannot store. Feeding on after an error has no meaning.
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

    /// Takes some of `piece`, which is not empty: how much, and the member that this completed.
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

    /// A whole block is there, its last `last_taken` bytes from the present piece.
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
            self.captured.push(Captured {
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
            return Err(self.corrupt(&format!("{path} has content but is no file")));
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

/// `length`, at most `limit`.
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;

    const WANTED: &[&str] = &["backup_label"];

    #[derive(Debug, Clone)]
    struct Made {
        path: String,
        kind: EntryKind,
        mode: u32,
        mtime: u64,
        content: Vec<u8>,
    }

    /// A tar as PostgreSQL 15 makes it, and the entries it should give.
    fn build(members: &[Made]) -> (Vec<u8>, Vec<IndexEntry>) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut entries = Vec::new();
        for made in members {
            let mut header = tar::Header::new_ustar();
            header.set_mode(made.mode);
            header.set_mtime(made.mtime);
            let mut content = &made.content[..];
            match made.kind {
                EntryKind::File => header.set_entry_type(tar::EntryType::Regular),
                EntryKind::Directory => header.set_entry_type(tar::EntryType::Directory),
                EntryKind::Link => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_link_name("/somewhere/else").unwrap();
                }
            }
            if made.kind != EntryKind::File {
                content = &[];
            }
            let slash = if made.kind == EntryKind::File { "" } else { "/" };
            header.set_path(format!("{}{slash}", made.path)).unwrap();
            header.set_size(content.len() as u64);
            header.set_cksum();
            let offset = builder.get_ref().len() as u64 + 512;
            builder.append(&header, content).unwrap();
            entries.push(IndexEntry {
                stream: 3,
                path: made.path.clone(),
                kind: made.kind,
                mode: made.mode,
                mtime: made.mtime.cast_signed(),
                size: content.len() as u64,
                offset: if made.kind == EntryKind::File { offset } else { 0 },
                target: (made.kind == EntryKind::Link).then(|| "/somewhere/else".to_owned()),
            });
        }
        (builder.into_inner().unwrap(), entries)
    }

    fn scan(tar: &[u8], piece_bytes: usize) -> Result<(Vec<IndexEntry>, TarEnd)> {
        let mut scanner = TarScanner::new(3, WANTED);
        let mut entries = Vec::new();
        for piece in tar.chunks(piece_bytes) {
            entries.extend(scanner.feed(piece)?);
        }
        Ok((entries, scanner.finish()?))
    }

    fn file(path: &str, content: &[u8]) -> Made {
        Made {
            path: path.to_owned(),
            kind: EntryKind::File,
            mode: 0o600,
            mtime: 1_700_000_000,
            content: content.to_vec(),
        }
    }

    /// A tar of one file whose header is changed and signed anew.
    fn with_header(change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path("file").unwrap();
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_size(0);
        change(&mut header);
        header.set_cksum();
        [&header.as_bytes()[..], &TAR_END].concat()
    }

    fn any_member() -> impl Strategy<Value = Made> {
        let kind = prop_oneof![
            4 => Just(EntryKind::File),
            1 => Just(EntryKind::Directory),
            1 => Just(EntryKind::Link)
        ];
        (
            "[a-z0-9_]{1,12}(/[a-zé0-9._]{3,40}){0,3}",
            kind,
            0..=0o7777u32,
            // Beyond 2^33 the field is in base 256.
            0..1u64 << 40,
            proptest::collection::vec(any::<u8>(), 0..1600),
        )
            .prop_map(|(path, kind, mode, mtime, content)| Made {
                path,
                kind,
                mode,
                mtime,
                content,
            })
    }

    proptest! {
        #[test]
        fn every_member_is_found_whatever_the_pieces(
            members in proptest::collection::vec(any_member(), 0..8),
            piece_bytes in 1..3000usize,
        ) {
            let (tar, entries) = build(&members);
            let (found, end) = scan(&tar, piece_bytes).unwrap();
            prop_assert_eq!(&found, &entries);
            prop_assert!(end.terminated);
            prop_assert_eq!(end.tar_bytes, tar.len() as u64);
            for (made, entry) in members.iter().zip(&found).filter(|(_, entry)| entry.kind == EntryKind::File) {
                let content = &tar[entry.offset as usize..(entry.offset + entry.size) as usize];
                prop_assert_eq!(content, &made.content[..]);
            }
        }

        #[test]
        fn no_bytes_make_the_scanner_panic(bytes: Vec<u8>, piece_bytes in 1..600usize) {
            let _ = scan(&bytes, piece_bytes);
        }

        #[test]
        fn a_stream_cut_anywhere_but_between_members_is_refused(cut in 1..5632usize) {
            let (mut tar, _) = build(&[file("one", &[1; 700]), file("two", &[2; 1024]), file("three", b"")]);
            // Behind a whole member is where PostgreSQL 14 ends its streams.
            let whole = [1536, 3072, 3584].contains(&cut) || cut >= 4608;
            tar.truncate(cut);
            prop_assert_eq!(scan(&tar, 512).is_ok(), whole);
        }

        #[test]
        fn a_flipped_bit_in_a_header_is_noticed(bit in 0..512 * 8usize) {
            let (mut tar, entries) = build(&[file("one", b"1")]);
            tar[bit / 8] ^= 1 << (bit % 8);
            // The checksum's own terminators carry nothing; elsewhere the sum no longer fits.
            prop_assert!(scan(&tar, 512).map_or(true, |(found, _)| found == entries));
        }
    }

    #[test]
    fn a_member_asked_for_is_captured_whole() {
        let members = [
            file("backup_label", &[7; 1000]),
            file("PG_VERSION", b"17\n"),
            file("base/backup_label", b"another"),
        ];
        let (tar, _) = build(&members);
        for piece_bytes in [1, 511, 512, 1 << 20] {
            let (_, end) = scan(&tar, piece_bytes).unwrap();
            let [captured] = &end.captured[..] else {
                panic!("{:?}", end.captured)
            };
            assert_eq!(captured.path, "backup_label");
            assert_eq!(captured.content, [7; 1000]);
        }
    }

    #[test]
    fn a_stream_without_its_end_says_so_and_the_end_completes_it() {
        let (mut tar, entries) = build(&[file("one", b"content")]);
        tar.truncate(1024);
        let (_, end) = scan(&tar, 100).unwrap();
        assert!(!end.terminated);
        tar.extend_from_slice(&TAR_END);
        let (found, end) = scan(&tar, 100).unwrap();
        assert!(end.terminated && found == entries);
    }

    #[test]
    fn a_path_that_leaves_its_directory_is_refused() {
        for path in [
            "/etc/passwd",
            "../up",
            "a/../../b",
            "a//b",
            "a/./b",
            "././a",
            "./",
            "./..",
            ".//a",
            ".",
            "",
            "/",
        ] {
            let tar = with_header(|header| {
                let name = &mut header.as_old_mut().name;
                name.fill(0);
                name[..path.len()].copy_from_slice(path.as_bytes());
            });
            let error = scan(&tar, 512).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{path:?}: {error}");
        }
    }

    #[test]
    fn the_dot_before_some_of_postgresqls_paths_is_left_out() {
        let path = b"./pg_wal/archive_status";
        // The crate's `set_path` would leave it out as well.
        let tar = with_header(|header| header.as_old_mut().name[..path.len()].copy_from_slice(path));
        let (found, _) = scan(&tar, 512).unwrap();
        assert_eq!(found[0].path, "pg_wal/archive_status");
    }

    #[test]
    fn what_postgresql_never_sends_is_refused() {
        for kind in *b"1346789gxLKSD" {
            let tar = with_header(|header| header.set_entry_type(tar::EntryType::new(kind)));
            assert_eq!(scan(&tar, 512).unwrap_err().kind(), ErrorKind::Corrupt, "{kind}");
        }
        for (kind, size) in [(tar::EntryType::Directory, 1), (tar::EntryType::Symlink, 0)] {
            let tar = with_header(|header| {
                header.set_entry_type(kind);
                header.set_size(size);
            });
            assert_eq!(
                scan(&tar, 512).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "{kind:?}"
            );
        }
        let huge = with_header(|header| header.set_size(u64::MAX));
        assert_eq!(scan(&huge, 512).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_name_that_is_not_utf8_is_named_in_the_refusal() {
        let tar = with_header(|header| header.as_old_mut().name[..5].copy_from_slice(b"a\xff\xfe/b"));
        let error = scan(&tar, 512).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(r"a\xff\xfe/b"), "{error}");
    }

    #[test]
    fn nothing_may_follow_the_end() {
        let (tar, _) = build(&[file("one", b"1")]);
        let twice = [&tar[..], &tar[..]].concat();
        assert!(scan(&twice, 700).is_err());
        let padded = [&tar[..], &[0; 10_240]].concat();
        assert!(scan(&padded, 700).is_ok());
    }
}
