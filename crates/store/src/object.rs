//! What goes into a store and what comes out of it.

use std::io::Read;
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use walship_core::Error;

/// Which version of an object it is: another one after every write of other bytes. On S3 the `ETag`, in a
/// directory the file's inode, time and size; only the store that gave it can say more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub(super) String);

impl Version {
    /// As the store writes it; empty where the store does not tell versions apart.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the store tells versions apart at all; `If-Match` needs it.
    pub(super) fn is_known(&self) -> bool {
        !self.0.is_empty()
    }
}

/// An object that the store did not delete; trying again does not help.
#[derive(Debug)]
pub struct Refused {
    /// Its key.
    pub key: String,
    /// Why.
    pub error: Error,
}

/// What a put expects to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutMode {
    /// Nothing: the key is created, or the put fails with `Conflict` and changes nothing.
    Create,
    /// Anything: the object is replaced. Only for the objects `docs/format.md` names as mutable.
    Replace,
    /// This version of the object: it is replaced, or the put fails with `Conflict` and changes
    /// nothing. [`super::Store::probe_conditional_replaces`] tells whether the store holds to it.
    ReplaceIf(Version),
}

/// The bytes of an object to be stored: in memory, or spilled to a file.
#[derive(Debug)]
pub struct Body {
    /// Where the bytes are.
    pub content: BodyContent,
    /// SHA-256 of the bytes as they are stored. The store rejects anything else that arrives.
    pub sha256: [u8; 32],
}

/// Where the bytes of a [`Body`] are.
#[derive(Debug)]
pub enum BodyContent {
    /// In memory.
    Memory(Bytes),
    /// In a file, from its first byte to its last; typically unlinked, so that nothing is left
    /// behind. It must be readable; its position does not matter and does not change.
    File {
        /// The open file.
        file: std::fs::File,
        /// Its length in bytes.
        length: u64,
    },
}

impl Body {
    /// Bytes in memory, with their SHA-256 taken here. For small objects and tests: a body whose hash is known already
    /// is built from its fields.
    #[must_use]
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let sha256 = Sha256::digest(&bytes).into();
        Self {
            content: BodyContent::Memory(bytes),
            sha256,
        }
    }

    /// The length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match &self.content {
            BodyContent::Memory(bytes) => bytes.len() as u64,
            BodyContent::File { length, .. } => *length,
        }
    }

    /// The memory that the bytes are in; `None` where they are in a file, or somebody else holds them.
    #[must_use]
    pub fn into_buffer(self) -> Option<BytesMut> {
        match self.content {
            BodyContent::Memory(bytes) => bytes.try_into_mut().ok(),
            BodyContent::File { .. } => None,
        }
    }

    /// Reads the bytes from the first. There may be any number of readers at the same time.
    #[must_use]
    pub fn reader(&self) -> BodyReader<'_> {
        BodyReader {
            content: &self.content,
            position: 0,
        }
    }
}

/// Reads a [`Body`] without moving the position of its file.
#[derive(Debug)]
pub struct BodyReader<'a> {
    content: &'a BodyContent,
    position: u64,
}

impl Read for BodyReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = match self.content {
            BodyContent::Memory(bytes) => bytes
                .get(self.position as usize..)
                .unwrap_or_default()
                .read(buffer)?,
            BodyContent::File { file, length } => {
                let left = length.saturating_sub(self.position);
                let wanted = left.min(buffer.len() as u64) as usize;
                file.read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.position)?
            }
        };
        self.position += read as u64;
        Ok(read)
    }
}

/// What a listing or a look at one object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The key, relative to the archive's URL.
    pub key: String,
    /// Stored size in bytes.
    pub size: u64,
    /// When the store says it was last written.
    pub modified: DateTime<Utc>,
    /// Which version of the object it is.
    pub version: Version,
}

/// A page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Its objects, in the server's order.
    pub objects: Vec<ObjectInfo>,
    /// The folders that a listing of one folder found, each with the slash at its end, in the server's order. One may be
    /// empty. Listings of all objects have none.
    pub folders: Vec<String>,
}

impl Page {
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.folders.is_empty()
    }
}
