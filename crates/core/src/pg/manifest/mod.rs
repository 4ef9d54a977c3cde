//! PostgreSQL's `backup_manifest`, read as a stream: `src/backend/backup/backup_manifest.c` writes it
//! and `src/common/parse_manifest.c` reads it (version 1 in PostgreSQL 14 to 16, 2 in 17 and 18).
//!
//! Memory is bounded by [`MAX_LINE_BYTES`], whatever the number of files. The manifest's own checksum
//! stands at its end: so what the callback was given is proven only when [`Manifest::read`] returns.

mod checksum;
mod file;
mod source;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::io::{BufReader, Read};

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

pub use checksum::FileHash;
use file::FileLine;
pub use file::{ChecksumAlgorithm, FileChecksum, ManifestFile};
use source::Source;
pub use writer::{ManifestWriter, NewFile};

use super::{Lsn, TimelineId};
use crate::error::{Error, Result};
use crate::text::from_hex;

/// No line of a manifest is longer, in bytes: PostgreSQL writes one file a line, and its paths are
/// below 1024 bytes (`MAXPGPATH`).
const MAX_LINE_BYTES: usize = 64 << 10;

/// At most this many `WAL-Ranges` are kept: no backup spans as many timelines.
const MAX_WAL_RANGES: usize = 4096;

const BUFFER_BYTES: usize = 64 << 10;

/// WAL that a backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestWalRange {
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
    /// The position after its last byte.
    pub end: Lsn,
}

/// What a manifest says beside its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// `PostgreSQL-Backup-Manifest-Version`: 1 or 2.
    version: u32,
    /// The cluster's system identifier; version 1 has none.
    pub system_identifier: Option<u64>,
    /// The WAL needed to make the backup consistent.
    pub wal_ranges: Vec<ManifestWalRange>,
    /// How many files it lists.
    pub file_count: u64,
    /// SHA-256 of the manifest's content before the line that gives it.
    checksum: [u8; 32],
}

impl Manifest {
    /// Reads a manifest to its end and verifies its checksum, giving each file to `on_file` in order.
    /// `reader` needs no buffering.
    ///
    /// # Errors
    /// `Corrupt` for a manifest that is cut short, has trailing bytes, does not match its checksum, or has a path that
    /// leads out of the data directory. `Invalid` for a version that walship does not know. The error of `on_file`.
    /// If `reader` fails: the [`Error`] inside its [`std::io::Error`], or `Internal` where there is none.
    pub fn read(reader: impl Read, on_file: impl FnMut(ManifestFile) -> Result<()>) -> Result<Self> {
        let mut source = Source::new(reader);
        let mut parts = Parts::new(on_file);
        let read = {
            let mut json =
                serde_json::Deserializer::from_reader(BufReader::with_capacity(BUFFER_BYTES, &mut source));
            (&mut parts).deserialize(&mut json).and_then(|()| json.end())
        };
        if let Some(error) = parts.failure.take() {
            return Err(error);
        }
        read.map_err(error_of)?;
        parts.finish(source.checksum()?)
    }
}

/// The error that stopped the reading of the JSON.
fn error_of(error: serde_json::Error) -> Error {
    match error.classify() {
        serde_json::error::Category::Io => error_of_reader(error.into()),
        serde_json::error::Category::Eof => {
            Error::corrupt("backup_manifest ends in the middle; it was cut short, do not use the backup")
        }
        _ => Error::corrupt(format!(
            "backup_manifest is not what PostgreSQL writes: {error}; do not use the backup"
        )),
    }
}

/// Walship's own error inside an I/O error; where there is none, an error made from the I/O error.
fn error_of_reader(error: std::io::Error) -> Error {
    error
        .downcast()
        .unwrap_or_else(|error| Error::io("read backup_manifest", error))
}

/// A key of the manifest's outer object.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    Version,
    #[serde(rename = "System-Identifier")]
    SystemIdentifier,
    #[serde(rename = "Files")]
    Files,
    #[serde(rename = "WAL-Ranges")]
    WalRanges,
    #[serde(rename = "Manifest-Checksum")]
    Checksum,
}

/// What was read of the manifest so far.
struct Parts<F> {
    version: Option<u32>,
    system_identifier: Option<u64>,
    file_count: Option<u64>,
    wal_ranges: Option<Vec<ManifestWalRange>>,
    checksum: Option<String>,
    on_file: F,
    /// An error with a kind of its own; serde's carry only text.
    failure: Option<Error>,
}

impl<F: FnMut(ManifestFile) -> Result<()>> Parts<F> {
    fn new(on_file: F) -> Self {
        Self {
            version: None,
            system_identifier: None,
            file_count: None,
            wal_ranges: None,
            checksum: None,
            on_file,
            failure: None,
        }
    }

    /// Keeps an error for [`Manifest::read`] to return, and stops serde.
    fn fail<E: de::Error>(&mut self, error: Error) -> E {
        let text = E::custom(&error);
        self.failure = Some(error);
        text
    }

    fn accept_version<E: de::Error>(&mut self, version: u32) -> std::result::Result<(), E> {
        if !(1..=2).contains(&version) {
            return Err(self.fail(Error::invalid(format!(
                "backup_manifest has version {version}; this walship reads versions 1 and 2 \
                 (PostgreSQL 14 to 18)"
            ))));
        }
        set(&mut self.version, version, "PostgreSQL-Backup-Manifest-Version")
    }

    fn accept_file<E: de::Error>(&mut self, line: FileLine) -> std::result::Result<(), E> {
        ManifestFile::try_from(line)
            .and_then(|file| (self.on_file)(file))
            .map_err(|error| self.fail(error))
    }

    fn finish(self, computed: [u8; 32]) -> Result<Manifest> {
        let missing =
            |key: &str| Error::corrupt(format!("backup_manifest has no \"{key}\"; do not use the backup"));
        let version = self
            .version
            .ok_or_else(|| missing("PostgreSQL-Backup-Manifest-Version"))?;
        if version >= 2 && self.system_identifier.is_none() {
            return Err(missing("System-Identifier"));
        }
        let stated = self.checksum.ok_or_else(|| missing("Manifest-Checksum"))?;
        if from_hex(&stated).as_deref() != Some(computed.as_slice()) {
            return Err(Error::corrupt(
                "backup_manifest does not match its own checksum; it was damaged, do not use the backup",
            ));
        }
        Ok(Manifest {
            version,
            system_identifier: self.system_identifier,
            wal_ranges: self.wal_ranges.ok_or_else(|| missing("WAL-Ranges"))?,
            file_count: self.file_count.ok_or_else(|| missing("Files"))?,
            checksum: computed,
        })
    }
}

fn set<T, E: de::Error>(slot: &mut Option<T>, value: T, key: &'static str) -> std::result::Result<(), E> {
    if slot.replace(value).is_some() {
        return Err(E::duplicate_field(key));
    }
    Ok(())
}

impl<'de, F: FnMut(ManifestFile) -> Result<()>> DeserializeSeed<'de> for &mut Parts<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(ManifestFile) -> Result<()>> Visitor<'de> for &mut Parts<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(key) = map.next_key::<Key>()? {
            if self.version.is_none() && key != Key::Version {
                return Err(de::Error::custom("the version does not come first"));
            }
            if self.checksum.is_some() {
                return Err(de::Error::custom("the checksum does not come last"));
            }
            match key {
                Key::Version => self.accept_version(map.next_value()?)?,
                Key::SystemIdentifier => set(
                    &mut self.system_identifier,
                    map.next_value()?,
                    "System-Identifier",
                )?,
                Key::Files => {
                    let count = map.next_value_seed(Files(self))?;
                    set(&mut self.file_count, count, "Files")?;
                }
                Key::WalRanges => set(
                    &mut self.wal_ranges,
                    map.next_value::<WalRanges>()?.0,
                    "WAL-Ranges",
                )?,
                Key::Checksum => set(&mut self.checksum, map.next_value()?, "Manifest-Checksum")?,
            }
        }
        Ok(())
    }
}

/// The array of files; yields their number.
struct Files<'a, F>(&'a mut Parts<F>);

impl<'de, F: FnMut(ManifestFile) -> Result<()>> DeserializeSeed<'de> for Files<'_, F> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<u64, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(ManifestFile) -> Result<()>> Visitor<'de> for Files<'_, F> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut files: A) -> std::result::Result<u64, A::Error> {
        let mut count = 0;
        while let Some(line) = files.next_element()? {
            self.0.accept_file(line)?;
            count += 1;
        }
        Ok(count)
    }
}

/// The array of WAL ranges, not longer than [`MAX_WAL_RANGES`].
struct WalRanges(Vec<ManifestWalRange>);

impl<'de> Deserialize<'de> for WalRanges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Ranges;
        impl<'de> Visitor<'de> for Ranges {
            type Value = WalRanges;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of WAL ranges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut lines: A) -> std::result::Result<WalRanges, A::Error> {
                let mut ranges = Vec::new();
                while let Some(line) = lines.next_element::<RangeLine>()? {
                    if ranges.len() == MAX_WAL_RANGES {
                        return Err(de::Error::custom("there are too many WAL ranges"));
                    }
                    if line.end < line.start {
                        return Err(de::Error::custom("a WAL range ends before it starts"));
                    }
                    ranges.push(ManifestWalRange {
                        timeline: line.timeline,
                        start: line.start,
                        end: line.end,
                    });
                }
                Ok(WalRanges(ranges))
            }
        }
        deserializer.deserialize_seq(Ranges)
    }
}

/// `{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000120" }`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeLine {
    #[serde(rename = "Timeline")]
    timeline: TimelineId,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}
