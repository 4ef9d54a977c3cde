//! Writing a manifest, as PostgreSQL does (`src/backend/backup/backup_manifest.c`, before 16 in
//! `src/backend/replication/`). Each line can be taken as soon as it is known.

use std::fmt::Write as _;

use chrono::DateTime;
use sha2::{Digest, Sha256};

use super::ManifestWalRange;
use crate::error::{Error, Result};
use crate::pg::Major;

/// A file of the manifest, whose checksum is CRC-32C.
#[derive(Debug, Clone, Copy)]
pub struct NewFile<'a> {
    /// Where it belongs in the data directory.
    pub path: &'a str,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was changed last, in seconds since 1970.
    pub modified: i64,
    /// CRC-32C of its content.
    pub crc32c: u32,
}

/// A manifest that is being written.
#[derive(Debug)]
pub struct ManifestWriter {
    text: String,
    hash: Sha256,
    is_first: bool,
}

impl ManifestWriter {
    /// Begins the manifest of a cluster.
    #[must_use]
    pub fn new(major: Major, system_identifier: u64) -> Self {
        let text = if major < Major::V17 {
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [".to_owned()
        } else {
            format!(
                "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_identifier},\n\"Files\": ["
            )
        };
        Self {
            text,
            hash: Sha256::new(),
            is_first: true,
        }
    }

    /// Adds a file.
    ///
    /// # Errors
    /// `Internal` where its name or its time cannot be written.
    pub fn add(&mut self, file: NewFile<'_>) -> Result<()> {
        let NewFile { path, size_bytes, .. } = file;
        let failed = |what: &str| Error::internal(format!("write backup_manifest: {path} has {what}"));
        let path = serde_json::to_string(path).map_err(|_| failed("a name that JSON cannot hold"))?;
        let modified = DateTime::from_timestamp(file.modified, 0)
            .ok_or_else(|| failed("a time of change that is out of range"))?
            .format("%Y-%m-%d %H:%M:%S GMT");
        let comma = if std::mem::take(&mut self.is_first) {
            ""
        } else {
            ","
        };
        // The value's bytes as they lie in memory.
        let checksum = file.crc32c.swap_bytes();
        // Writing to a string cannot fail.
        let _ = write!(
            self.text,
            "{comma}\n{{ \"Path\": {path}, \"Size\": {size_bytes}, \"Last-Modified\": \"{modified}\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum:08x}\" }}"
        );
        Ok(())
    }

    /// Bytes that [`ManifestWriter::take`] would return.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.text.len()
    }

    /// What was written since the last time.
    pub fn take(&mut self) -> String {
        self.hash.update(&self.text);
        std::mem::take(&mut self.text)
    }

    /// Ends the manifest, with the WAL that the backup needs.
    #[must_use]
    pub fn finish(mut self, wal: ManifestWalRange) -> String {
        let ManifestWalRange { timeline, start, end } = wal;
        let _ = write!(
            self.text,
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}\
             \n],\n"
        );
        let mut text = self.take();
        text.push_str("\"Manifest-Checksum\": \"");
        for byte in self.hash.finalize() {
            let _ = write!(text, "{byte:02x}");
        }
        text.push_str("\"}\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Lsn, Manifest, TimelineId};

    // Seen to fail: `manifest/writer.rs`: version 2 for all
    #[test]
    fn what_is_written_reads_back_in_both_versions() {
        for major in Major::ALL {
            let mut writer = ManifestWriter::new(major, 7);
            let files = [("a \"quoted\" \\ ünïcode\n", 3), ("base/5/1", u64::MAX)];
            let mut text = String::new();
            for (path, size_bytes) in files {
                let file = NewFile {
                    path,
                    size_bytes,
                    modified: 1_795_439_291,
                    crc32c: 0xE306_9283,
                };
                writer.add(file).unwrap();
                text += &writer.take();
            }
            let wal = ManifestWalRange {
                timeline: TimelineId::new(2).unwrap(),
                start: Lsn(0x1_0200_0028),
                end: Lsn(0x1_0200_0100),
            };
            text += &writer.finish(wal);
            let mut seen = Vec::new();
            let manifest = Manifest::read(text.as_bytes(), |file| {
                assert_eq!(file.modified, "2026-11-23 13:08:11 GMT");
                assert_eq!(file.checksum.unwrap().bytes, 0xE306_9283_u32.to_le_bytes());
                seen.push((
                    String::from_utf8(file.path.as_bytes().to_vec()).unwrap(),
                    file.size_bytes,
                ));
                Ok(())
            })
            .unwrap();
            assert_eq!(manifest.wal_ranges, [wal]);
            assert_eq!(manifest.system_identifier, (major >= Major::V17).then_some(7));
            assert_eq!(seen, files.map(|(path, size)| (path.to_owned(), size)));
        }
    }
}
