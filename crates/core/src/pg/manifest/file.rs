//! One file of a manifest.

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::pg::RelativePath;
use crate::text::from_hex;

/// How a file's checksum was computed (`pg_checksum_type`, `src/include/common/checksum_helper.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChecksumAlgorithm {
    /// CRC-32C; the checksum is the value's four bytes in little-endian order.
    Crc32c,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl ChecksumAlgorithm {
    fn of(name: &str) -> Option<Self> {
        Some(match name.to_ascii_uppercase().as_str() {
            "CRC32C" => Self::Crc32c,
            "SHA224" => Self::Sha224,
            "SHA256" => Self::Sha256,
            "SHA384" => Self::Sha384,
            "SHA512" => Self::Sha512,
            _ => return None,
        })
    }

    /// A checksum's length in bytes.
    pub(crate) fn length_bytes(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// A file's checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChecksum {
    /// How it was computed.
    pub algorithm: ChecksumAlgorithm,
    /// The checksum, as long as the algorithm says.
    pub bytes: Vec<u8>,
}

/// A file that a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Where it belongs in the data directory; a tablespace's files are below `pg_tblspc/<oid>/`.
    pub path: RelativePath,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was changed last, as PostgreSQL prints it: `2026-11-23 13:08:11 GMT`. Empty where the
    /// manifest does not say.
    pub(crate) modified: String,
    /// Its checksum; none where the backup was taken with `MANIFEST_CHECKSUMS 'NONE'`.
    pub checksum: Option<FileChecksum>,
}

/// A file as it stands in the JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileLine {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified", default)]
    modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

impl TryFrom<FileLine> for ManifestFile {
    type Error = Error;

    fn try_from(line: FileLine) -> Result<Self> {
        let bytes = match (line.path, line.encoded_path) {
            (Some(path), None) => Some(path.into_bytes()),
            (None, Some(hex)) => from_hex(&hex),
            _ => None,
        };
        let path = RelativePath::new(bytes.ok_or_else(|| {
            Error::corrupt("backup_manifest has a file without a usable path; do not use the backup")
        })?)?;
        let checksum = match (line.algorithm, line.checksum) {
            (None, None) => None,
            (Some(algorithm), Some(hex)) => Some(checksum(&algorithm, &hex).ok_or_else(|| unusable(&path))?),
            _ => return Err(unusable(&path)),
        };
        Ok(Self {
            path,
            size_bytes: line.size,
            modified: line.modified,
            checksum,
        })
    }
}

fn checksum(algorithm: &str, hex: &str) -> Option<FileChecksum> {
    let algorithm = ChecksumAlgorithm::of(algorithm)?;
    let bytes = from_hex(hex).filter(|bytes| bytes.len() == algorithm.length_bytes())?;
    Some(FileChecksum { algorithm, bytes })
}

fn unusable(path: &RelativePath) -> Error {
    Error::corrupt(format!(
        "backup_manifest has no usable checksum for {path}; do not use the backup"
    ))
}
