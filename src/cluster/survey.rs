//! The first reading of a backup's file index, before anything is written. It checks that the index fits the backup's
//! record and that no path leaves its directory, and adds up how much room the backup takes.

use std::ops::ControlFlow;

use crate::cluster::destination::{Access, CONTROL};
use crate::error::{Error, Result};
use crate::format::backup::{BackupRecord, EntryKind, IndexEntry};

/// PostgreSQL's block size and the usual one of file systems: content takes whole blocks.
const BLOCK_BYTES: u64 = 4096;
/// Tar's block size: content starts and ends on such a boundary, one block of header before it.
const TAR_BLOCK_BYTES: u64 = 512;
/// Says where WAL replay begins; a data directory without it would start and be corrupt.
const LABEL: &str = "backup_label";

/// What the index says of the backup as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Bytes on disk and number of files, for each stream.
    pub streams: Vec<StreamNeed>,
    /// The permissions of the cluster's files.
    pub access: Access,
    /// Symbolic links in the data directory beside those of tablespaces; they are not restored.
    pub links: Vec<String>,
}

/// What one stream takes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamNeed {
    /// Bytes, counted in whole blocks.
    pub bytes: u64,
    /// Files and directories.
    pub files: u64,
}

/// How far the index was read.
struct Cursor<'a> {
    record: &'a BackupRecord,
    url: &'a str,
    stream: usize,
    /// End of the last content seen in the stream, as an offset in its tar.
    end: u64,
}

/// Reads the index of a backup; `url` names it in messages.
///
/// # Errors
/// `Corrupt` where the index contradicts the record or itself, or lacks a file that every data directory has; and what
/// `entries` returns.
pub fn survey(
    record: &BackupRecord,
    url: &str,
    entries: impl Iterator<Item = Result<IndexEntry>>,
) -> Result<Survey> {
    let mut survey = Survey {
        streams: vec![StreamNeed::default(); record.streams.len()],
        access: Access::Owner,
        links: Vec::new(),
    };
    let mut cursor = Cursor {
        record,
        url,
        stream: 0,
        end: 0,
    };
    let (mut has_control, mut has_label) = (false, false);
    for entry in entries {
        let entry = entry?;
        cursor.check(&entry)?;
        survey.count(&entry);
        let in_base = record
            .streams
            .get(cursor.stream)
            .is_some_and(|stream| stream.tablespace.is_none());
        if in_base && entry.kind == EntryKind::File {
            has_control |= entry.path == CONTROL;
            if entry.path == LABEL {
                has_label = true;
                survey.access = access_of(entry.mode);
            }
        }
    }
    for (found, path) in [(has_control, CONTROL), (has_label, LABEL)] {
        if !found {
            return Err(cursor.corrupt(&format!("it does not list {path}")));
        }
    }
    Ok(survey)
}

/// PostgreSQL gives `backup_label` the mode that its data directory asks for
/// (`sendFileWithContent`, `pg_file_create_mode`).
fn access_of(mode: u32) -> Access {
    if mode & 0o040 == 0 {
        Access::Owner
    } else {
        Access::Group
    }
}

impl Survey {
    fn count(&mut self, entry: &IndexEntry) {
        let Some(need) = self.streams.get_mut(entry.stream as usize) else {
            return;
        };
        need.files += 1;
        need.bytes += match entry.kind {
            EntryKind::File => entry.size.div_ceil(BLOCK_BYTES) * BLOCK_BYTES,
            EntryKind::Directory => BLOCK_BYTES,
            EntryKind::Link => {
                // PostgreSQL makes the links of tablespaces itself, from tablespace_map.
                if !entry.path.starts_with("pg_tblspc/") {
                    self.links.push(entry.path.clone());
                }
                0
            }
        };
    }
}

impl Cursor<'_> {
    fn check(&mut self, entry: &IndexEntry) -> Result<()> {
        if !is_plain(&entry.path) {
            return Err(self.corrupt(&format!(
                "it has the path {:?}, which leaves its directory",
                entry.path
            )));
        }
        let stream = entry.stream as usize;
        let Some(tar_bytes) = self.record.streams.get(stream).map(|stream| stream.tar_bytes) else {
            return Err(self.corrupt(&format!(
                "{} is in stream {stream}, which does not exist",
                entry.path
            )));
        };
        if stream < self.stream {
            return Err(self.corrupt(&format!("{} is out of order", entry.path)));
        }
        if stream > self.stream {
            (self.stream, self.end) = (stream, 0);
        }
        if entry.size == 0 {
            return Ok(());
        }
        let earliest = self.end.next_multiple_of(TAR_BLOCK_BYTES) + TAR_BLOCK_BYTES;
        let end = entry
            .offset
            .checked_add(entry.size)
            .filter(|end| *end <= tar_bytes);
        match end {
            Some(end) if entry.kind == EntryKind::File && entry.offset >= earliest => {
                self.end = end;
                Ok(())
            }
            _ => Err(self.corrupt(&format!(
                "{} lies where its tar stream has something else",
                entry.path
            ))),
        }
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::corrupt(format!(
            "{} is damaged: {what}; recover from another backup (--backup, see walship list backups)",
            self.url
        ))
    }
}

/// Whether a path stays below the directory it is joined to.
fn is_plain(path: &str) -> bool {
    let outcome = path.split('/').try_for_each(|part| match part {
        "" | "." | ".." => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    outcome.is_continue() && !path.contains('\0')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;
    use crate::archive::fixture;

    fn entry(stream: u32, path: &str, kind: EntryKind, offset: u64, size: u64) -> IndexEntry {
        IndexEntry {
            stream,
            path: path.to_owned(),
            kind,
            mode: 0o600,
            mtime: 0,
            size,
            offset,
            target: None,
        }
    }

    fn file(stream: u32, path: &str, offset: u64, size: u64) -> IndexEntry {
        entry(stream, path, EntryKind::File, offset, size)
    }

    /// A tablespace with one file, and a data directory of three.
    fn good() -> Vec<IndexEntry> {
        vec![
            entry(0, "PG_17", EntryKind::Directory, 0, 0),
            file(0, "PG_17/1", 1024, 8192),
            file(1, LABEL, 512, 200),
            file(1, "empty", 0, 0),
            entry(1, "pg_tblspc/16384", EntryKind::Link, 0, 0),
            entry(1, "pg_log", EntryKind::Link, 0, 0),
            file(1, CONTROL, 2048, 8192),
        ]
    }

    fn read(entries: Vec<IndexEntry>) -> Result<Survey> {
        let mut record = fixture::record(&["/ts"]);
        for stream in &mut record.streams {
            stream.tar_bytes = 2048 + 8192;
        }
        survey(&record, "u", entries.into_iter().map(Ok))
    }

    #[test]
    fn a_good_index_tells_what_each_stream_takes() {
        let survey = read(good()).unwrap();
        assert_eq!(
            survey.streams,
            [
                StreamNeed {
                    bytes: 4096 + 8192,
                    files: 2
                },
                StreamNeed {
                    bytes: 4096 + 8192,
                    files: 5
                }
            ]
        );
        assert_eq!(survey.links, ["pg_log"]);
        assert_eq!(survey.access, Access::Owner);
        let mut group = good();
        group[2].mode = 0o640;
        assert_eq!(read(group).unwrap().access, Access::Group);
    }

    #[test]
    fn an_index_that_contradicts_its_backup_is_refused() {
        type Change = fn(&mut Vec<IndexEntry>);
        let changes: [Change; 10] = [
            |index| index.clear(),
            |index| drop(index.remove(2)),
            |index| drop(index.remove(6)),
            |index| index.swap(1, 6),
            |index| index[6].offset = 700,
            |index| index[6].offset = 1023,
            |index| index[6].size += 1,
            |index| index[6].offset = u64::MAX,
            |index| index[0].stream = 2,
            |index| (index[0].size, index[0].offset) = (1, 512),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut index = good();
            change(&mut index);
            let error = read(index).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "change {number}: {error}");
        }
    }

    #[test]
    fn a_path_that_leaves_its_directory_is_refused() {
        for path in [
            "",
            "/etc/passwd",
            "../x",
            "a/../x",
            "a/..",
            "a//b",
            "a/",
            ".",
            "a\0b",
        ] {
            let mut index = good();
            path.clone_into(&mut index[0].path);
            assert_eq!(read(index).unwrap_err().kind(), ErrorKind::Corrupt, "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn a_path_that_is_accepted_stays_below_its_directory(path in "[a./]{0,12}") {
            if is_plain(&path) {
                let joined = std::path::Path::new("/top").join(&path);
                let normal = joined.components().filter(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert_eq!(normal.count(), path.split('/').count() + 1);
                prop_assert!(joined.starts_with("/top"));
            }
        }
    }
}
