//! One part of a tar stream on its way into the files that have content in it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::archive::parts::schedule::{PartFile, PartJob};
use crate::cluster::files::{Files, set_mtime, spans_parts, writing};
use crate::error::{Error, Result};

/// Splits the bytes of one part, from its first to its last, into those of the files in it.
#[derive(Debug)]
pub struct PartCursor<'a> {
    job: &'a PartJob,
    /// Index of the file that comes next, or that the next byte is in.
    next: usize,
    /// Offset in the tar stream.
    position: u64,
}

/// Some bytes of a file's content.
#[derive(Debug)]
pub struct FileBytes<'a> {
    pub file: &'a PartFile,
    /// Where in the file they begin.
    pub offset: u64,
    pub bytes: &'a [u8],
}

impl FileBytes<'_> {
    /// Whether the file ends with them.
    #[must_use]
    pub fn are_last(&self) -> bool {
        self.offset + self.bytes.len() as u64 == self.file.size
    }
}

impl<'a> PartCursor<'a> {
    /// At the start of a part.
    #[must_use]
    pub fn new(job: &'a PartJob) -> Self {
        Self {
            job,
            next: 0,
            position: job.start,
        }
    }

    /// Takes the next bytes of the tar stream, and passes on those that are a file's content.
    ///
    /// # Errors
    /// `Corrupt` for more bytes than the part has; what `each` returns.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(FileBytes<'_>) -> Result<()>,
    ) -> Result<()> {
        if bytes.len() as u64 > self.job.end - self.position {
            return Err(self.wrong_size("more"));
        }
        while !bytes.is_empty() {
            let file = self.job.files.get(self.next);
            let limit = match file {
                Some(file) if self.position < file.offset => file.offset,
                Some(file) => file.end(),
                None => self.job.end,
            };
            let length =
                usize::try_from(limit - self.position).map_or(bytes.len(), |max| max.min(bytes.len()));
            let (taken, rest) = bytes.split_at(length);
            let start = self.position;
            self.position += length as u64;
            bytes = rest;
            if let Some(file) = file.filter(|file| start >= file.offset) {
                self.next += usize::from(self.position == file.end());
                each(FileBytes {
                    file,
                    offset: start - file.offset,
                    bytes: taken,
                })?;
            }
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

/// Writes the content of one part, from its first byte to its last, to the files it belongs to.
#[derive(Debug)]
pub struct PartWriter<'a> {
    files: &'a Files,
    job: &'a PartJob,
    cursor: PartCursor<'a>,
    open: Option<(File, PathBuf)>,
}

impl<'a> PartWriter<'a> {
    /// A writer at the start of a part.
    #[must_use]
    pub fn new(files: &'a Files, job: &'a PartJob) -> Self {
        Self {
            files,
            job,
            cursor: PartCursor::new(job),
            open: None,
        }
    }

    /// Takes the next bytes of the tar stream.
    ///
    /// # Errors
    /// `Corrupt` for more bytes than the part has; as the operating system says.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Self {
            files,
            job,
            cursor,
            open,
        } = self;
        cursor.feed(bytes, |content| {
            let file = content.file;
            let (opened, path) = match &mut *open {
                Some(open) => open,
                closed => closed.insert(files.open(job.stream, file)?),
            };
            opened
                .write_all_at(content.bytes, content.offset)
                .map_err(|error| writing(path, error))?;
            if content.are_last() {
                if !spans_parts(file, job) {
                    set_mtime(opened, file.mtime).map_err(|error| writing(path, error))?;
                }
                *open = None;
            }
            Ok(())
        })
    }

    /// Ends the part: every byte of it was there.
    ///
    /// # Errors
    /// `Corrupt` where bytes are missing.
    pub fn finish(self) -> Result<()> {
        self.cursor.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;
    use crate::archive::fixture;
    use crate::cluster::layout::Layout;
    use crate::format::Sha256Sum;
    use crate::format::backup::StoredObject;

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
}
