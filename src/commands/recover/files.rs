//! The files of a restored cluster, written by several threads at once, each part of the backup at
//! its place. No order among parts is needed: whoever comes first makes a file.
//!
//! Nothing here is fsynced; `extract` syncs whole file systems at the end. Directories below the
//! destination are our own and hold no symbolic links, for none is ever made.

use std::collections::HashMap;
use std::fs::{File, FileTimes, Permissions};
use std::io::ErrorKind::AlreadyExists;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::destination::{CONTROL, SET_ASIDE_CONTROL};
use super::layout::{Layout, Root};
use super::schedule::{PartFile, PartJob};
use crate::archive::backup::{EntryKind, IndexEntry};
use crate::error::{Error, Result};

/// Where the files of all streams go.
#[derive(Debug)]
pub struct Files {
    roots: Vec<Root>,
    /// Bytes that are still missing of files that lie in several parts, by stream and offset.
    missing: Mutex<HashMap<(usize, u64), u64>>,
}

impl Files {
    /// Files in the directories of this layout, which exist.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self {
            roots: layout.roots.clone(),
            missing: Mutex::default(),
        }
    }

    /// Where a member goes. `pg_control` is set aside.
    fn path_of(&self, stream: usize, path: &str) -> Result<PathBuf> {
        let root = self.roots.get(stream).ok_or_else(|| {
            Error::internal(format!(
                "stream {stream} does not exist; this is a defect in walship"
            ))
        })?;
        let path = match root.tablespace {
            None if path == CONTROL => SET_ASIDE_CONTROL,
            _ => path,
        };
        Ok(root.directory.join(path))
    }

    /// Makes a directory or an empty file; links are left out (see `survey`).
    ///
    /// # Errors
    /// As the operating system says.
    pub fn make(&self, entry: &IndexEntry) -> Result<()> {
        let stream = entry.stream as usize;
        match entry.kind {
            EntryKind::Directory => make_directory(&self.path_of(stream, &entry.path)?, entry.mode),
            EntryKind::File => {
                let entry = PartFile::from(entry.clone());
                let (file, path) = self.open(stream, &entry)?;
                set_mtime(&file, entry.mtime).map_err(|error| writing(&path, error))
            }
            // A link of pg_wal stands for a directory that PostgreSQL expects.
            EntryKind::Link if entry.path == "pg_wal" => {
                let path = self.path_of(stream, &entry.path)?;
                make_directory(&path, 0o700)?;
                make_directory(&path.join("archive_status"), 0o700)
            }
            EntryKind::Link => Ok(()),
        }
    }

    /// Opens a file for writing, making it if nobody has.
    fn open(&self, stream: usize, file: &PartFile) -> Result<(File, PathBuf)> {
        let path = self.path_of(stream, &file.path)?;
        let mode = file.mode & 0o777;
        let open = || {
            let opened = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(mode)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)?;
            // The umask must not have its say.
            opened.set_permissions(Permissions::from_mode(mode))?;
            Ok(opened)
        };
        match open() {
            Ok(opened) => Ok((opened, path)),
            Err(error) => Err(writing(&path, error)),
        }
    }

    /// Counts a part's bytes as there, once it was verified; completes the files that have all theirs.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn finish_part(&self, job: &PartJob) -> Result<()> {
        for file in job.files.iter().filter(|file| spans_parts(file, job)) {
            let held = file.end().min(job.end) - file.offset.max(job.start);
            let key = (job.stream, file.offset);
            let complete = {
                let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
                let left = missing.entry(key).or_insert(file.size);
                *left -= held.min(*left);
                let complete = *left == 0;
                if complete {
                    missing.remove(&key);
                }
                complete
            };
            if complete {
                let (opened, path) = self.open(job.stream, file)?;
                set_mtime(&opened, file.mtime).map_err(|error| writing(&path, error))?;
            }
        }
        Ok(())
    }

    /// Whether every file has all its bytes.
    ///
    /// # Errors
    /// `Internal`, which would be a defect.
    pub fn finish(&self) -> Result<()> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        match missing.len() {
            0 => Ok(()),
            count => Err(Error::internal(format!(
                "{count} files are not complete after the last part; this is a defect in walship"
            ))),
        }
    }
}

/// Whether a file has content in other parts too.
fn spans_parts(file: &PartFile, job: &PartJob) -> bool {
    file.offset < job.start || file.end() > job.end
}

/// Writes the content of one part, from its first byte to its last, to the files it belongs to.
#[derive(Debug)]
pub struct PartWriter<'a> {
    files: &'a Files,
    job: &'a PartJob,
    /// Index of the file that comes next, or is open.
    next: usize,
    open: Option<(File, PathBuf)>,
    /// Offset in the tar stream.
    position: u64,
}

impl<'a> PartWriter<'a> {
    /// A writer at the start of a part.
    #[must_use]
    pub fn new(files: &'a Files, job: &'a PartJob) -> Self {
        Self {
            files,
            job,
            next: 0,
            open: None,
            position: job.start,
        }
    }

    /// Takes the next bytes of the tar stream.
    ///
    /// # Errors
    /// `Corrupt` for more bytes than the part has; as the operating system says.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.job.end - self.position {
            return Err(self.wrong_size("more"));
        }
        while !bytes.is_empty() {
            let limit = match self.job.files.get(self.next) {
                Some(file) if self.position < file.offset => file.offset,
                Some(file) => file.end(),
                None => self.job.end,
            };
            let length =
                usize::try_from(limit - self.position).map_or(bytes.len(), |max| max.min(bytes.len()));
            let (taken, rest) = bytes.split_at(length);
            self.write_within(taken)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Takes bytes that lie between two files, or all in one.
    fn write_within(&mut self, bytes: &[u8]) -> Result<()> {
        let start = self.position;
        self.position += bytes.len() as u64;
        let Some(file) = self.job.files.get(self.next) else {
            return Ok(());
        };
        if start < file.offset {
            return Ok(());
        }
        let (opened, path) = match &mut self.open {
            Some(open) => open,
            closed => closed.insert(self.files.open(self.job.stream, file)?),
        };
        opened
            .write_all_at(bytes, start - file.offset)
            .map_err(|error| writing(path, error))?;
        if self.position == file.end() {
            if !spans_parts(file, self.job) {
                set_mtime(opened, file.mtime).map_err(|error| writing(path, error))?;
            }
            self.open = None;
            self.next += 1;
        }
        Ok(())
    }

    /// Ends the part: every byte of it was there.
    ///
    /// # Errors
    /// `Corrupt` where bytes are missing.
    pub fn finish(self) -> Result<()> {
        if self.position == self.job.end {
            return Ok(());
        }
        Err(self.wrong_size("fewer"))
    }

    fn wrong_size(&self, than: &str) -> Error {
        Error::corrupt(format!(
            "it holds {than} than the {} bytes of tar that backup.json says",
            self.job.end - self.job.start
        ))
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    let permissions = mode & 0o777;
    let make = || {
        match std::fs::DirBuilder::new().mode(permissions).create(path) {
            Err(error) if error.kind() == AlreadyExists && path.is_dir() => {}
            created => created?,
        }
        std::fs::set_permissions(path, Permissions::from_mode(permissions))
    };
    make().map_err(|error: std::io::Error| {
        Error::io(format!("restore the directory {}", path.display()), error)
    })
}

fn set_mtime(file: &File, seconds: i64) -> std::io::Result<()> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    match time {
        Some(time) => file.set_times(FileTimes::new().set_modified(time)),
        None => Ok(()),
    }
}

fn writing(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("restore {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    use super::super::fixture;
    use super::*;
    use crate::archive::Sha256Sum;
    use crate::archive::backup::StoredObject;

    fn job(number: u32, part_bytes: u64, tar: &[u8], files: &[PartFile]) -> PartJob {
        let start = u64::from(number - 1) * part_bytes;
        let end = (start + part_bytes).min(tar.len() as u64);
        PartJob {
            stream: 0,
            number,
            object: StoredObject {
                stored_bytes: 0,
                sha256: Sha256Sum::of(b""),
            },
            start,
            end,
            files: files
                .iter()
                .filter(|file| file.offset < end && file.end() > start)
                .cloned()
                .collect(),
        }
    }

    fn file(path: &str, offset: u64, size: u64) -> PartFile {
        PartFile {
            path: path.into(),
            mode: 0o640,
            mtime: 1_000_000 + offset.cast_signed(),
            size,
            offset,
        }
    }

    fn files(top: &Path) -> Files {
        Files::new(&Layout::new(top, &fixture::record(&[]), &[]).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn parts_in_any_order_give_the_same_files(
            tar in proptest::collection::vec(any::<u8>(), 3000..3001),
            part_bytes in 100..3500u64,
            order: u64,
            piece in 1..700usize,
        ) {
            let top = tempfile::tempdir().unwrap();
            let restored = files(top.path());
            let members = [file("a", 512, 700), file("b", 2048, 1), file("c", 2400, 600)];
            let mut numbers: Vec<u32> = (1..=(tar.len() as u64).div_ceil(part_bytes) as u32).collect();
            numbers.sort_by_key(|number| (u64::from(*number)).wrapping_mul(order | 1) >> 7 & 0xff);
            for number in numbers {
                let job = job(number, part_bytes, &tar, &members);
                let mut writer = PartWriter::new(&restored, &job);
                for bytes in tar[job.start as usize..job.end as usize].chunks(piece) {
                    writer.write(bytes).unwrap();
                }
                writer.finish().unwrap();
                restored.finish_part(&job).unwrap();
            }
            restored.finish().unwrap();
            for member in members {
                let path = top.path().join(&*member.path);
                prop_assert_eq!(&std::fs::read(&path).unwrap(), &tar[member.offset as usize..member.end() as usize]);
                let found = path.metadata().unwrap();
                prop_assert_eq!((found.mtime(), found.mode() & 0o7777), (member.mtime, 0o640));
            }
        }
    }

    #[test]
    fn a_part_of_another_length_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let restored = files(top.path());
        let job = job(1, 100, &[0; 100], &[]);
        let mut writer = PartWriter::new(&restored, &job);
        writer.write(&[0; 99]).unwrap();
        assert_eq!(
            writer.write(&[0; 2]).unwrap_err().kind(),
            crate::ErrorKind::Corrupt
        );
        assert!(writer.finish().is_err());
    }

    #[test]
    fn pg_control_is_set_aside_and_no_link_is_made() {
        let top = tempfile::tempdir().unwrap();
        let restored = files(top.path());
        let mut entry = IndexEntry {
            stream: 0,
            path: "global".to_owned(),
            kind: EntryKind::Directory,
            mode: 0o700,
            mtime: 0,
            size: 0,
            offset: 0,
            target: None,
        };
        restored.make(&entry).unwrap();
        (entry.kind, entry.path) = (EntryKind::File, CONTROL.to_owned());
        restored.make(&entry).unwrap();
        assert!(top.path().join(SET_ASIDE_CONTROL).exists() && !top.path().join(CONTROL).exists());
        entry.target = Some("/etc".to_owned());
        for path in ["pg_wal", "log"] {
            (entry.kind, entry.path) = (EntryKind::Link, path.to_owned());
            restored.make(&entry).unwrap();
        }
        assert!(top.path().join("pg_wal/archive_status").is_dir());
        assert!(!top.path().join("log").exists());
    }
}
