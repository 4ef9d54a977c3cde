//! `files.zst`: the members of a backup's tar streams, one JSON object ([`IndexEntry`]) on each line,
//! in one zstd frame with a checksum.
//!
//! Both ends stream: memory does not depend on the number of files.

use std::io::{BufRead, BufReader, Read, Write};

use super::backup::IndexEntry;
use crate::error::{Error, Result};

/// The index is a small part of a backup; level 3 makes it about 15 times smaller at little cost.
const LEVEL: i32 = 3;
/// A line holds a path of at most 255 bytes (tar), a link target of at most 100, and numbers. JSON
/// may need six bytes for one.
const LINE_LIMIT_BYTES: u64 = 16 << 10;

/// Writes an index.
pub struct FileIndexWriter<W: Write> {
    frame: zstd::stream::write::Encoder<'static, W>,
    line: Vec<u8>,
}

impl<W: Write> FileIndexWriter<W> {
    /// Starts an index.
    ///
    /// # Errors
    /// `Internal` where there is no memory for it.
    pub fn new(output: W) -> Result<Self> {
        let start = || {
            let mut frame = zstd::stream::write::Encoder::new(output, LEVEL)?;
            frame.include_checksum(true)?;
            Ok(frame)
        };
        Ok(Self {
            frame: start().map_err(failed)?,
            line: Vec::new(),
        })
    }

    /// Adds a member.
    ///
    /// # Errors
    /// `Internal` where the output cannot be written.
    pub fn push(&mut self, entry: &IndexEntry) -> Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, entry).map_err(|error| Error::defect("write JSON", error))?;
        self.line.push(b'\n');
        self.frame.write_all(&self.line).map_err(failed)
    }

    /// Ends the index and gives the output back.
    ///
    /// # Errors
    /// `Internal` where the output cannot be written.
    pub fn finish(self) -> Result<W> {
        self.frame.finish().map_err(failed)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::io("write the backup's file index", error)
}

/// Reads an index, member by member.
pub struct FileIndexReader<R: Read> {
    lines: BufReader<zstd::stream::read::Decoder<'static, BufReader<R>>>,
    url: String,
    line_number: u64,
}

impl<R: Read> FileIndexReader<R> {
    /// Reads an index from its first byte; `url` names it in messages.
    ///
    /// # Errors
    /// `Internal` where there is no memory for it.
    pub fn new(input: R, url: impl Into<String>) -> Result<Self> {
        let frame = zstd::stream::read::Decoder::new(input)
            .map_err(|error| Error::io("start decompression", error))?
            .single_frame();
        Ok(Self {
            lines: BufReader::new(frame),
            url: url.into(),
            line_number: 0,
        })
    }

    fn read(&mut self) -> Result<Option<IndexEntry>> {
        self.line_number += 1;
        let mut line = Vec::new();
        let read = (&mut self.lines)
            .take(LINE_LIMIT_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|error| self.damaged(&error))?;
        if read == 0 {
            return self.end();
        }
        if line.last() != Some(&b'\n') {
            return Err(self.damaged(&format!("line {} does not end", self.line_number)));
        }
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|error| self.damaged(&format!("line {}: {error}", self.line_number)))
    }

    /// The frame ended, and the input must end with it.
    fn end(&mut self) -> Result<Option<IndexEntry>> {
        let rest = self
            .lines
            .get_mut()
            .get_mut()
            .fill_buf()
            .map(<[u8]>::len)
            .map_err(|error| self.damaged(&error))?;
        if rest > 0 || self.line_number == 1 {
            return Err(self.damaged(&"it is not one whole zstd frame with lines in it"));
        }
        Ok(None)
    }

    fn damaged(&self, what: &dyn std::fmt::Display) -> Error {
        Error::corrupt(format!("{} is damaged: {what}", self.url))
    }
}

impl<R: Read> Iterator for FileIndexReader<R> {
    type Item = Result<IndexEntry>;

    /// The next member. After an error, or the end, what comes has no meaning.
    fn next(&mut self) -> Option<Result<IndexEntry>> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;
    use crate::format::backup::EntryKind;

    fn write(entries: &[IndexEntry]) -> Vec<u8> {
        let mut writer = FileIndexWriter::new(Vec::new()).unwrap();
        for entry in entries {
            writer.push(entry).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<IndexEntry>> {
        FileIndexReader::new(bytes, "file:///a/files.zst")?.collect()
    }

    fn any_entry() -> impl Strategy<Value = IndexEntry> {
        let kind = prop_oneof![
            Just(EntryKind::File),
            Just(EntryKind::Directory),
            Just(EntryKind::Link)
        ];
        let target = proptest::option::of("[^\0]{1,100}");
        (
            any::<u32>(),
            ".{1,155}",
            kind,
            any::<(u32, i64, u64, u64)>(),
            target,
        )
            .prop_map(
                |(stream, path, kind, (mode, mtime, size, offset), target)| IndexEntry {
                    stream,
                    path,
                    kind,
                    mode,
                    mtime,
                    size,
                    offset,
                    target,
                },
            )
    }

    fn some_entries() -> Vec<IndexEntry> {
        (0..200)
            .map(|number| IndexEntry {
                stream: 0,
                path: format!("base/5/{number}"),
                kind: EntryKind::File,
                mode: 0o600,
                mtime: 1_700_000_000,
                size: 8192,
                offset: number * 8704 + 512,
                target: None,
            })
            .collect()
    }

    proptest! {
        #[test]
        fn every_index_reads_back_as_it_was_written(
            entries in proptest::collection::vec(any_entry(), 1..20)
        ) {
            prop_assert_eq!(read(&write(&entries)).unwrap(), entries);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            prop_assert!(read(&bytes).is_err());
        }
    }

    #[test]
    fn a_truncated_index_is_never_taken_for_a_shorter_one() {
        let whole = write(&some_entries());
        for length in 0..whole.len() {
            let error = read(&whole[..length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}: {error}");
        }
    }

    #[test]
    fn a_damaged_index_is_refused() {
        let entries = some_entries();
        let whole = write(&entries);
        for index in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 0x10;
            match read(&damaged) {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{index}: {error}"),
                // A bit of the frame's header that does not matter.
                Ok(found) => assert_eq!(found, entries, "{index}"),
            }
        }
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let mut frame = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        for entry in &some_entries()[..2] {
            serde_json::to_writer(&mut frame, entry).unwrap();
            frame.write_all(b"\n").unwrap();
        }
        frame.write_all(b"{}\n").unwrap();
        let error = read(&frame.finish().unwrap()).unwrap_err();
        assert!(error.to_string().contains("line 3"), "{error}");
    }

    #[test]
    fn what_follows_the_index_is_noticed() {
        let whole = write(&some_entries());
        assert!(read(&[&whole[..], b"x"].concat()).is_err());
        assert!(read(&[&whole[..], &whole[..]].concat()).is_err());
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut frame = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        frame.write_all(&vec![b'{'; 1 << 20]).unwrap();
        assert!(read(&frame.finish().unwrap()).is_err());
    }
}
