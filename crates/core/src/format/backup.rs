//! The record of a base backup: `backups/<id>/backup.json`, and the index of its files.
//!
//! A backup is made of tar streams, one for the data directory and one for each tablespace outside
//! it. Each stream is cut every `part_bytes` of tar; each part is one object, a sequence of zstd
//! frames. The index names every member with the offset of its content in its stream, so that parts
//! can be restored in any order.

#[cfg(any(test, feature = "fixtures"))]
pub mod fixture;

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::keys::{BackupId, BackupObject, Key, Stream};
use super::lineage::Lineage;
use super::{Sha256Sum, Stored, record};
use crate::error::{Error, Result};
use crate::pg::{Lsn, Major, SegmentSize, TimelineId};

/// At most this many bytes of tar are in all streams of a backup, so that sums of sizes never overflow.
const SIZE_LIMIT: u64 = 1 << 60;

/// The content of `started.json`: a backup that runs, or was left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStarted {
    /// The archive's format version.
    pub format_version: u32,
    /// The walship version that writes it.
    pub walship: String,
    /// The backup's id.
    pub id: BackupId,
    /// When it started, by the writer's clock.
    pub started_at: DateTime<Utc>,
    /// Host that runs `walship basebackup`.
    pub host: String,
    /// Its process id there.
    pub process_id: u32,
}

impl Stored for BackupStarted {
    type Of = BackupId;
    const LIMIT_BYTES: u64 = 64 << 10;

    fn key(backup: &BackupId) -> Key {
        backup.key(BackupObject::Started)
    }

    fn parse(bytes: &[u8], url: &str, _: &BackupId) -> Result<Self> {
        record::parse(bytes, url)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        record::to_bytes(self)
    }
}

/// The content of `alive.json`: a running backup's heartbeat. What counts is when the store says it
/// was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupAlive {
    /// The archive's format version.
    pub format_version: u32,
    /// When it was written, by the writer's clock.
    pub at: DateTime<Utc>,
    /// The backup will need no WAL before this; absent while that is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_from: Option<WalFrom>,
}

/// A position on a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalFrom {
    /// The timeline.
    pub timeline: TimelineId,
    /// The position.
    pub lsn: Lsn,
}

impl Stored for BackupAlive {
    type Of = BackupId;
    const LIMIT_BYTES: u64 = 64 << 10;

    fn key(backup: &BackupId) -> Key {
        backup.key(BackupObject::Alive)
    }

    fn parse(bytes: &[u8], url: &str, _: &BackupId) -> Result<Self> {
        record::parse(bytes, url)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        record::to_bytes(self)
    }
}

/// The content of `backup.json` (and of `pending.json`, while WAL is awaited).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// The archive's format version.
    pub format_version: u32,
    /// The walship version that wrote it.
    pub walship: String,
    /// The backup's id.
    pub id: BackupId,
    /// The label the user gave.
    pub label: String,
    /// How it was taken.
    pub kind: BackupKind,
    /// What it was taken from.
    pub source: BackupSource,
    /// The cluster's system identifier, in decimal.
    #[serde(with = "super::identity::decimal")]
    pub system_identifier: u64,
    /// The server's version as it names itself, such as `17.11`.
    pub postgres_version: String,
    /// The server's major version.
    pub postgres_major: Major,
    /// The cluster's WAL segment size in bytes.
    pub segment_bytes: SegmentSize,
    /// When PostgreSQL began to copy, by the server's clock.
    pub started_at: DateTime<Utc>,
    /// When PostgreSQL ended the backup, by the server's clock: no moment before it can be
    /// recovered from this backup.
    pub finished_at: DateTime<Utc>,
    /// Where replay starts: the redo position of the backup's checkpoint.
    pub start_lsn: Lsn,
    /// Where the backup becomes consistent: no position before it can be recovered from it.
    pub stop_lsn: Lsn,
    /// The timeline at the start.
    pub start_timeline: TimelineId,
    /// The timeline at the end; differs only where a standby followed a promotion meanwhile.
    pub stop_timeline: TimelineId,
    /// The WAL it cannot be restored without, from PostgreSQL's manifest.
    pub wal_ranges: Vec<WalRange>,
    /// Bytes of tar in all streams.
    pub size_bytes: u64,
    /// Bytes of all its objects in the store, without `backup.json`.
    pub stored_bytes: u64,
    /// The tar streams; the data directory's comes last, as PostgreSQL sends it.
    pub streams: Vec<TarStream>,
    /// `files.zst`.
    pub files: StoredObject,
    /// `manifest.zst`.
    pub manifest: StoredObject,
    /// `configuration.tar.zst`; absent where the streams lack no configuration file that could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Configuration>,
    /// What its server said of its own WAL. It shows whether the archived WAL is that server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
    /// The history of `stop_timeline`, as the server had it. The history is an object of its own only when a segment
    /// of that timeline has arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline_history: Option<String>,
}

/// How a backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Whole: it needs no other backup.
    Full,
}

/// What a backup was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupSource {
    /// A server that accepted writes.
    Primary,
    /// A server in recovery.
    Standby,
}

/// Consecutive WAL on one timeline, from the first byte needed to the end of the last record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// First position needed.
    pub start_lsn: Lsn,
    /// Position after the last byte needed.
    pub end_lsn: Lsn,
}

/// One tar stream of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TarStream {
    /// The tablespace it holds; the data directory where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tablespace: Option<Tablespace>,
    /// Bytes of tar.
    pub tar_bytes: u64,
    /// Bytes of tar in each part but the last, which holds the rest.
    pub part_bytes: u64,
    /// The parts, in order.
    pub parts: Vec<StoredObject>,
}

impl TarStream {
    /// The stream as keys name it.
    #[must_use]
    pub fn key(&self) -> Stream {
        self.tablespace
            .as_ref()
            .map_or(Stream::Base, |tablespace| Stream::Tablespace(tablespace.oid))
    }
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID, which is also its link's name in `pg_tblspc`.
    pub oid: u32,
    /// Where it lived when the backup was taken.
    pub location: String,
}

/// An object in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Its size in the store.
    pub stored_bytes: u64,
    /// SHA-256 of its bytes in the store, taken before they left the process that made them.
    pub sha256: Sha256Sum,
}

/// Configuration files that the server read and the backup of its data directory lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// `configuration.tar.zst`; its members' names are absolute paths without the leading slash.
    pub object: StoredObject,
    /// The data directory on the server, such as `/var/lib/postgresql/17/main`.
    pub data_directory: String,
    /// The server's `config_file`, such as `/etc/postgresql/17/main/postgresql.conf`.
    pub config_file: String,
    /// Its `hba_file`.
    pub hba_file: String,
    /// Its `ident_file`.
    pub ident_file: String,
}

/// One line of `files.zst`: a member of a tar stream. Lines stand in the order of the streams, and
/// within a stream in the order of its members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// Index into [`BackupRecord::streams`].
    pub stream: u32,
    /// Path relative to the data directory, or to the tablespace's directory.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, in seconds since 1970.
    pub mtime: i64,
    /// Bytes of content; 0 for anything but a file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// Offset of the content's first byte in the tar stream.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: u64,
    /// Where a link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What a member of a tar stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A record that waits for the backup's WAL: the content of `pending.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRecord(pub BackupRecord);

impl Stored for BackupRecord {
    type Of = BackupId;
    /// About 150 for each part.
    const LIMIT_BYTES: u64 = 256 << 20;

    fn key(backup: &BackupId) -> Key {
        backup.key(BackupObject::Record)
    }

    fn parse(bytes: &[u8], url: &str, id: &BackupId) -> Result<Self> {
        let record: Self = record::parse(bytes, url)?;
        record
            .check()
            .map_err(|error| error.context(format!("read {url}")))?;
        if record.id != *id {
            return Err(Error::corrupt(format!(
                "{url} is the record of backup {}",
                record.id
            )));
        }
        Ok(record)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        record::to_bytes(self)
    }
}

impl Stored for PendingRecord {
    type Of = BackupId;
    const LIMIT_BYTES: u64 = BackupRecord::LIMIT_BYTES;

    fn key(backup: &BackupId) -> Key {
        backup.key(BackupObject::Pending)
    }

    fn parse(bytes: &[u8], url: &str, id: &BackupId) -> Result<Self> {
        BackupRecord::parse(bytes, url, id).map(Self)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        self.0.to_bytes()
    }
}

impl BackupRecord {
    /// Every object of the backup but the records themselves, with what it holds.
    pub fn objects(&self) -> impl Iterator<Item = (BackupObject, StoredObject)> {
        let parts = self.streams.iter().flat_map(|stream| {
            let numbered = (1..).zip(&stream.parts);
            numbered.map(|(number, part)| (BackupObject::Part(stream.key(), number), *part))
        });
        let others = [
            Some((BackupObject::Files, self.files)),
            Some((BackupObject::Manifest, self.manifest)),
            self.configuration
                .as_ref()
                .map(|configuration| (BackupObject::Configuration, configuration.object)),
        ];
        parts.chain(others.into_iter().flatten())
    }

    /// The stream of an index entry, as keys name it.
    #[must_use]
    pub fn stream_key(&self, stream: usize) -> Option<Stream> {
        self.streams.get(stream).map(TarStream::key)
    }

    /// Computes the sums of sizes from the streams and objects.
    pub fn add_up(&mut self) {
        self.size_bytes = self.streams.iter().map(|stream| stream.tar_bytes).sum();
        self.stored_bytes = self.objects().map(|(_, object)| object.stored_bytes).sum();
    }

    /// Whether `wal_ranges` lead from the start to the end without a gap, as the other fields say.
    fn wal_fits(&self) -> bool {
        let start = (self.start_timeline, self.start_lsn);
        let stop = (self.stop_timeline, self.stop_lsn);
        let mut ranges = self.wal_ranges.iter();
        let within = |range: &WalRange| range.start_lsn >= self.start_lsn && range.end_lsn <= self.stop_lsn;
        ranges.clone().all(within)
            && ranges
                .clone()
                .any(|range| (range.timeline, range.start_lsn) == start)
            && ranges.any(|range| (range.timeline, range.end_lsn) == stop)
    }

    /// Whether the sums are those of the streams and objects.
    fn sums_match(&self) -> bool {
        let mut tar = self.streams.iter().map(|stream| stream.tar_bytes);
        let mut stored = self.objects().map(|(_, object)| object.stored_bytes);
        let tar = tar.try_fold(0_u64, u64::checked_add);
        let stored = stored.try_fold(0_u64, u64::checked_add);
        tar == Some(self.size_bytes) && stored == Some(self.stored_bytes)
    }

    fn check(&self) -> Result<()> {
        let parts_fit = self.streams.iter().all(|stream| {
            stream.part_bytes > 0 && stream.tar_bytes.div_ceil(stream.part_bytes) == stream.parts.len() as u64
        });
        let bases = self
            .streams
            .iter()
            .filter(|stream| stream.tablespace.is_none())
            .count();
        let oids: HashSet<_> = self.streams.iter().map(TarStream::key).collect();
        if bases != 1 || oids.len() != self.streams.len() {
            return Err(Error::corrupt(
                "it does not have one stream for the data directory and one for each tablespace; the record is \
                 damaged",
            ));
        }
        let total = self
            .streams
            .iter()
            .try_fold(self.size_bytes, |sum, stream| sum.checked_add(stream.tar_bytes));
        let sizes_fit = total.is_some_and(|total| total <= SIZE_LIMIT)
            && self.streams.iter().all(|stream| stream.part_bytes <= SIZE_LIMIT);
        let is_of_its_major = Major::of_version(&self.postgres_version) == Some(self.postgres_major);
        let says_the_same = is_of_its_major && self.wal_fits() && self.sums_match();
        if !sizes_fit || !parts_fit || self.stop_lsn < self.start_lsn || !says_the_same {
            return Err(Error::corrupt(
                "its numbers contradict each other; the record is damaged",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::FORMAT_VERSION;

    // Seen to fail: `format/backup.rs`: `wal_fits` and `sums_match` are always true
    #[test]
    fn a_record_that_contradicts_itself_is_refused() {
        type Change = fn(&mut BackupRecord);
        let changes: [Change; 18] = [
            |record| record.streams.clear(),
            |record| drop(record.streams.pop()),
            |record| record.streams.push(record.streams[2].clone()),
            |record| record.streams[1] = record.streams[0].clone(),
            |record| record.streams[2].part_bytes = u64::MAX,
            |record| record.streams[2].part_bytes = 0,
            |record| {
                let stream = &mut record.streams[2];
                (stream.tar_bytes, stream.part_bytes) = (u64::MAX, u64::MAX);
                stream.parts = vec![record.files];
            },
            |record| record.size_bytes = u64::MAX,
            |record| record.stop_lsn = Lsn(record.start_lsn.0 - 1),
            |record| record.wal_ranges.clear(),
            |record| record.stop_lsn.0 += 1 << 24,
            |record| record.start_lsn.0 -= 8,
            |record| record.stop_timeline = TimelineId::new(2).unwrap(),
            |record| record.wal_ranges[0].timeline = TimelineId::new(2).unwrap(),
            |record| record.size_bytes = 1,
            |record| record.stored_bytes = 1,
            |record| record.files.stored_bytes = 1,
            |record| record.postgres_major = Major::V16,
        ];
        let good = fixture::record(&["/a", "/b"]);
        BackupRecord::parse(&good.to_bytes().unwrap(), "u", &good.id).unwrap();
        for (number, change) in changes.iter().enumerate() {
            let mut record = good.clone();
            change(&mut record);
            let error = BackupRecord::parse(&record.to_bytes().unwrap(), "u", &good.id).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt, "change {number}");
        }
        let mut short = good;
        short.stop_lsn = short.start_lsn;
        short.wal_ranges[0].end_lsn = short.stop_lsn;
        BackupRecord::parse(&short.to_bytes().unwrap(), "u", &short.id).unwrap();
    }

    #[test]
    fn what_a_running_backup_says_of_itself_reads_back() {
        let started = BackupStarted {
            format_version: FORMAT_VERSION,
            walship: "0.1.0".to_owned(),
            id: "20261123T041500Z".parse().unwrap(),
            started_at: DateTime::UNIX_EPOCH,
            host: "db1".to_owned(),
            process_id: 77,
        };
        let json = started.to_bytes().unwrap();
        assert_eq!(serde_json::from_slice::<BackupStarted>(&json).unwrap(), started);
        let alive = BackupAlive {
            format_version: FORMAT_VERSION,
            at: DateTime::UNIX_EPOCH,
            wal_from: None,
        };
        let json = alive.to_bytes().unwrap();
        assert_eq!(BackupAlive::parse(&json, "u", &started.id).unwrap(), alive);
    }

    #[test]
    fn the_objects_of_a_backup_are_its_parts_and_what_describes_it() {
        let mut record = fixture::record(&["/a"]);
        let part = |bytes| StoredObject {
            stored_bytes: bytes,
            ..record.files
        };
        record.streams[0].parts = vec![part(1), part(2)];
        record.streams[1].parts = vec![part(3)];
        let objects: Vec<_> = record
            .objects()
            .map(|(object, stored)| (object.to_string(), stored.stored_bytes))
            .collect();
        let expected = [
            ("16384/000001.tar.zst", 1),
            ("16384/000002.tar.zst", 2),
            ("base/000001.tar.zst", 3),
            ("files.zst", 0),
            ("manifest.zst", 0),
        ];
        assert_eq!(
            objects,
            expected.map(|(object, bytes)| (object.to_owned(), bytes))
        );
    }

    #[test]
    fn the_index_leaves_out_what_a_directory_lacks() {
        let mut entry = IndexEntry {
            stream: 0,
            path: "base".to_owned(),
            kind: EntryKind::Directory,
            mode: 0o700,
            mtime: 5,
            size: 0,
            offset: 0,
            target: None,
        };
        let json = |entry: &IndexEntry| serde_json::to_string(entry).unwrap();
        let directory = r#"{"stream":0,"path":"base","kind":"directory","mode":448,"mtime":5}"#;
        assert_eq!(json(&entry), directory);
        (entry.size, entry.offset) = (1, 512);
        assert!(
            json(&entry).ends_with(r#""size":1,"offset":512}"#),
            "{}",
            json(&entry)
        );
    }
}
