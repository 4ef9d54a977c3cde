//! Which files each part of a backup holds, worked out while the index is read: memory holds the files of one part,
//! never the whole index.

use crate::error::{Error, Result};
use crate::format::backup::{BackupRecord, EntryKind, IndexEntry, StoredObject, TarStream};

/// One part to be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartJob {
    /// Index of its stream.
    pub stream: usize,
    /// Its number in the stream, from 1.
    pub number: u32,
    pub object: StoredObject,
    /// Offset of its first byte in the tar stream.
    pub start: u64,
    /// Offset after its last byte.
    pub end: u64,
    /// The files with content in it, in the order of the stream.
    pub files: Vec<PartFile>,
}

/// A file with content in a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartFile {
    /// Path below the stream's directory.
    pub path: Box<str>,
    pub mode: u32,
    /// Modification time, in seconds since 1970.
    pub mtime: i64,
    /// Bytes of content, in all parts.
    pub size: u64,
    /// Offset of the content's first byte in the tar stream.
    pub offset: u64,
}

impl PartFile {
    /// Offset after the content's last byte in the tar stream.
    #[must_use]
    pub fn end(&self) -> u64 {
        // The survey has checked the sum.
        self.offset.saturating_add(self.size)
    }
}

impl From<IndexEntry> for PartFile {
    fn from(entry: IndexEntry) -> Self {
        Self {
            path: entry.path.into(),
            mode: entry.mode,
            mtime: entry.mtime,
            size: entry.size,
            offset: entry.offset,
        }
    }
}

/// Walks through the parts of a surveyed backup.
pub struct Schedule<'a, I: Iterator<Item = Result<IndexEntry>>> {
    streams: std::slice::Iter<'a, TarStream>,
    entries: std::iter::Peekable<I>,
    /// The stream the walk is in.
    current: Option<&'a TarStream>,
    stream: usize,
    /// Parts of the stream already given out.
    given: usize,
    /// A file that goes on in the next part.
    carried: Option<PartFile>,
}

impl<'a, I: Iterator<Item = Result<IndexEntry>>> Schedule<'a, I> {
    /// The parts of a backup, whose index gives these entries.
    pub fn new(record: &'a BackupRecord, entries: I) -> Self {
        let mut streams = record.streams.iter();
        Self {
            current: streams.next(),
            streams,
            entries: entries.peekable(),
            stream: 0,
            given: 0,
            carried: None,
        }
    }

    /// The next part, after `make` was called for each directory, link and empty file before its end,
    /// in their order. A directory comes before what is in it, as in the tar stream.
    ///
    /// # Errors
    /// What `make` and the index return; `Internal` for an index that was not surveyed.
    pub fn next_part(&mut self, make: &mut dyn FnMut(&IndexEntry) -> Result<()>) -> Result<Option<PartJob>> {
        while let Some(stream) = self.current {
            if let Some(object) = stream.parts.get(self.given) {
                return self.part(stream, *object, make).map(Some);
            }
            self.current = self.streams.next();
            self.stream += 1;
            self.given = 0;
        }
        if self.entries.next().is_some() || self.carried.is_some() {
            return Err(Error::defect(
                "restore the backup",
                "the file index goes on after the last part",
            ));
        }
        Ok(None)
    }

    fn part(
        &mut self,
        stream: &TarStream,
        object: StoredObject,
        make: &mut dyn FnMut(&IndexEntry) -> Result<()>,
    ) -> Result<PartJob> {
        let start = self.given as u64 * stream.part_bytes;
        let end = stream.tar_bytes.min(start + stream.part_bytes);
        let mut files: Vec<PartFile> = self.carried.take().into_iter().collect();
        if files.last().is_none_or(|file| file.end() <= end) {
            while let Some(entry) = self.next_before(end)? {
                if entry.kind != EntryKind::File || entry.size == 0 {
                    make(&entry)?;
                    continue;
                }
                files.push(entry.into());
            }
        }
        self.carried = files.last().filter(|file| file.end() > end).cloned();
        self.given += 1;
        Ok(PartJob {
            stream: self.stream,
            // A record with 2^32 parts would not have been read.
            number: self.given as u32,
            object,
            start,
            end,
            files,
        })
    }

    /// The next entry of the current stream whose content, if any, starts before `end`.
    fn next_before(&mut self, end: u64) -> Result<Option<IndexEntry>> {
        let stream = self.stream;
        self.entries
            .next_if(|entry| {
                entry.as_ref().map_or(true, |entry| {
                    entry.stream as usize == stream && (entry.size == 0 || entry.offset < end)
                })
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::archive::fixture;
    use crate::format::Sha256Sum;

    /// A backup with these file sizes in each stream, cut every `part_bytes`.
    fn backup(streams: &[Vec<u64>], part_bytes: u64) -> (BackupRecord, Vec<IndexEntry>) {
        let mut record = fixture::record(&vec!["/ts"; streams.len() - 1]);
        let mut entries = Vec::new();
        for (index, sizes) in streams.iter().enumerate() {
            let mut position = 0;
            for (number, size) in sizes.iter().enumerate() {
                position += 512;
                entries.push(IndexEntry {
                    stream: index as u32,
                    path: format!("{index}/{number}"),
                    kind: EntryKind::File,
                    mode: 0o600,
                    mtime: 0,
                    size: *size,
                    offset: position,
                    target: None,
                });
                position += size.next_multiple_of(512);
            }
            let stream = &mut record.streams[index];
            (stream.tar_bytes, stream.part_bytes) = (position, part_bytes);
            stream.parts = vec![
                StoredObject {
                    stored_bytes: 0,
                    sha256: Sha256Sum::of(b"")
                };
                position.div_ceil(part_bytes) as usize
            ];
        }
        (record, entries)
    }

    proptest! {
        #[test]
        fn every_byte_of_every_file_is_in_exactly_one_part(
            streams in proptest::collection::vec(proptest::collection::vec(0..3000u64, 0..12), 1..4),
            part_bytes in 1..4000u64,
        ) {
            let (record, entries) = backup(&streams, part_bytes);
            let mut schedule = Schedule::new(&record, entries.iter().cloned().map(Ok));
            let mut empty = Vec::new();
            let mut bytes = std::collections::BTreeMap::new();
            let mut parts = vec![0; streams.len()];
            while let Some(job) = schedule.next_part(&mut |entry| { empty.push(entry.path.clone()); Ok(()) }).unwrap() {
                parts[job.stream] += 1;
                prop_assert_eq!(job.number, parts[job.stream]);
                prop_assert!(job.files.is_sorted_by_key(|file| file.offset));
                for file in &job.files {
                    let held = file.end().min(job.end).checked_sub(file.offset.max(job.start));
                    prop_assert!(held.is_some_and(|held| held > 0));
                    *bytes.entry(file.path.to_string()).or_insert(0) += held.unwrap();
                }
            }
            for entry in &entries {
                prop_assert_eq!(bytes.get(&entry.path).copied().unwrap_or(0), entry.size);
                prop_assert_eq!(empty.contains(&entry.path), entry.size == 0 && !record.streams[entry.stream as usize].parts.is_empty());
            }
            for (stream, count) in record.streams.iter().zip(parts) {
                prop_assert_eq!(stream.parts.len(), count as usize);
            }
        }
    }

    #[test]
    fn an_error_in_the_index_ends_the_walk() {
        let (record, _) = backup(&[vec![10]], 100);
        let broken = std::iter::once(Err(Error::corrupt("broken")));
        let mut schedule = Schedule::new(&record, broken);
        assert!(schedule.next_part(&mut |_| Ok(())).is_err());
    }
}
