//! The backup's file index on this machine: fetched whole and verified before any of it is used, then read as often as
//! needed.
//!
//! It has some 10 bytes for each file of the cluster. Up to a limit it is held in memory, and beyond that in an
//! unlinked temporary file. Reading it from the store in step with the parts would keep one connection open and mostly
//! idle for as long as the recovery takes, which servers do not allow.

use std::io::Write;

use crate::archive::Archive;
use crate::error::{Context, Error, Result};
use crate::format::Sha256Sum;
use crate::format::backup::{BackupRecord, StoredObject};
use crate::format::file_index::FileIndexReader;
use crate::format::keys::{BackupId, BackupObject, Key};
use crate::store::{Body, BodyReader, BodyWriter, read_again_if_damaged};

/// Bytes of the index that are held in memory.
const MEMORY_LIMIT_BYTES: usize = 8 << 20;

/// An object of a backup, verified.
#[derive(Debug)]
pub struct Spooled {
    body: Body,
    /// For messages.
    pub url: String,
}

impl Spooled {
    /// Fetches an object of a backup.
    ///
    /// # Errors
    /// `Corrupt` where it is not what the record says, `NotFound` where it is missing; as the store
    /// says.
    pub async fn fetch(
        archive: &Archive,
        id: &BackupId,
        object: BackupObject,
        expected: StoredObject,
    ) -> Result<Self> {
        let key = id.key(object);
        let url = archive.url_of(&key);
        let body = read_again_if_damaged(async || Self::body(archive, &key, &url, expected).await).await?;
        Ok(Self { body, url })
    }

    async fn body(archive: &Archive, key: &Key, url: &str, expected: StoredObject) -> Result<Body> {
        let mut object = archive.get(key).await.context(|| format!("read {url}"))?;
        let mut body = BodyWriter::new(MEMORY_LIMIT_BYTES);
        while let Some(piece) = object.chunk().await.context(|| format!("read {url}"))? {
            body.write_all(&piece)
                .map_err(|error| Error::io("write a temporary file (TMPDIR)", error))?;
        }
        let body = body.finish();
        let sum = Sha256Sum(body.sha256);
        if body.length() != expected.stored_bytes || sum != expected.sha256 {
            let found = Error::corrupt(format!(
                "it has {} bytes and SHA-256 {sum}, backup.json says {} bytes and {}",
                body.length(),
                expected.stored_bytes,
                expected.sha256
            ));
            return Err(damaged(found, url));
        }
        Ok(body)
    }

    /// Its bytes, from the first.
    #[must_use]
    pub fn reader(&self) -> BodyReader<'_> {
        self.body.reader()
    }
}

/// A verified `files.zst`.
#[derive(Debug)]
pub struct Index(Spooled);

impl Index {
    /// Fetches the index of a backup.
    pub async fn fetch(archive: &Archive, record: &BackupRecord) -> Result<Self> {
        Spooled::fetch(archive, &record.id, BackupObject::Files, record.files)
            .await
            .map(Self)
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Its entries, from the first.
    ///
    /// # Errors
    /// `Internal` where there is no memory for it.
    pub fn entries(&self) -> Result<FileIndexReader<BodyReader<'_>>> {
        FileIndexReader::new(self.0.reader(), self.url())
    }
}
/// Names a damaged part, and says what to do.
pub(crate) fn damaged(error: Error, url: &str) -> Error {
    if error.kind() != crate::ErrorKind::Corrupt {
        return error;
    }
    Error::corrupt(format!(
        "{url} is damaged: {error}; recover from another backup (--backup, see walship list backups)"
    ))
}
