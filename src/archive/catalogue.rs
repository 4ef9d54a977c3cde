//! What an archive holds, as a listing and the records of its backups tell: the ground on which
//! `list` reports and `recover` plans.
//!
//! A backup is held here without the list of its parts, so that the catalogue of a large archive
//! stays small. Whether the parts are all there is decided while the record is at hand: [`PartCheck`].

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};

use super::backup::{BackupKind, BackupRecord, BackupSource, WalRange};
use super::identity::Identity;
use super::keys::{BackupId, BackupObject};
use super::wal_inventory::{SegmentRange, WalInventory};
use crate::error::{Error, Result};
use crate::pg::{Lsn, SegmentNumber, TimelineHistory, TimelineId};

/// What an archive holds.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// Whose archive it is.
    pub identity: Identity,
    /// The backups that can be restored, oldest first.
    pub backups: Vec<Backup>,
    /// The backups with a `backup.json` that cannot be restored as they are.
    pub unrestorable: Vec<Unrestorable>,
    /// Backups that run, wait for their WAL, or were left behind.
    pub unfinished: Vec<Unfinished>,
    /// The WAL.
    pub wal: WalInventory,
    /// The timelines' histories that could be read. Timeline 1's, which has no file, is always there.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Those that could not, and why.
    pub unreadable_histories: BTreeMap<TimelineId, String>,
}

/// A backup, as its record describes it, without its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Its id.
    pub id: BackupId,
    /// The label the user gave.
    pub label: String,
    /// How it was taken.
    pub kind: BackupKind,
    /// What it was taken from.
    pub source: BackupSource,
    /// The server's version as it names itself.
    pub postgres_version: String,
    /// When PostgreSQL began to copy.
    pub started_at: DateTime<Utc>,
    /// No moment before this can be recovered from it.
    pub finished_at: DateTime<Utc>,
    /// Where replay starts.
    pub start_lsn: Lsn,
    /// No position before this can be recovered from it.
    pub stop_lsn: Lsn,
    /// The timeline at the start.
    pub start_timeline: TimelineId,
    /// The timeline at the end.
    pub stop_timeline: TimelineId,
    /// The WAL it cannot be restored without.
    pub wal_ranges: Vec<WalRange>,
    /// Bytes of tar.
    pub size_bytes: u64,
    /// Bytes in the store.
    pub stored_bytes: u64,
}

/// A backup that cannot be restored as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unrestorable {
    /// Its id.
    pub id: BackupId,
    /// Why, for people.
    pub reason: String,
    /// Its record, where that could be read: it still tells which WAL there once was.
    pub backup: Option<Backup>,
}

/// A backup without a `backup.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Its id.
    pub id: BackupId,
    /// How far it came.
    pub state: UnfinishedState,
    /// When the store last saw a sign of it, by the store's clock: its heartbeat, or its first or
    /// last object.
    pub last_sign: DateTime<Utc>,
}

/// How far an unfinished backup came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnfinishedState {
    /// It is stored and waits for its WAL: `walship basebackup --finish` completes it.
    WaitingForWal,
    /// It runs, or died without a word; the heartbeat tells.
    Started,
    /// Objects without a beginning: what a deletion left behind.
    Remains,
}

impl From<&BackupRecord> for Backup {
    fn from(record: &BackupRecord) -> Self {
        Self {
            id: record.id.clone(),
            label: record.label.clone(),
            kind: record.kind,
            source: record.source,
            postgres_version: record.postgres_version.clone(),
            started_at: record.started_at,
            finished_at: record.finished_at,
            start_lsn: record.start_lsn,
            stop_lsn: record.stop_lsn,
            start_timeline: record.start_timeline,
            stop_timeline: record.stop_timeline,
            wal_ranges: record.wal_ranges.clone(),
            size_bytes: record.size_bytes,
            stored_bytes: record.stored_bytes,
        }
    }
}

impl Catalogue {
    /// Every timeline the archive knows of: by WAL, by a history, or as a history's ancestor.
    #[must_use]
    pub fn timelines(&self) -> Vec<TimelineId> {
        let ancestors = self.histories.values().flat_map(TimelineHistory::ancestors);
        let mut timelines: Vec<_> = self
            .wal
            .timelines()
            .chain(ancestors.map(|ancestor| ancestor.timeline))
            .collect();
        timelines.sort_unstable();
        timelines.dedup();
        timelines
    }

    /// Every backup whose record could be read, restorable or not.
    pub fn readable(&self) -> impl Iterator<Item = &Backup> {
        let unrestorable = self.unrestorable.iter().filter_map(|entry| entry.backup.as_ref());
        self.backups.iter().chain(unrestorable)
    }

    /// Whether the archive holds neither a backup nor any WAL.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.backups.is_empty()
            && self.unrestorable.is_empty()
            && self.unfinished.is_empty()
            && self.wal.timelines().next().is_none()
    }
}

/// The first stretch of WAL that a backup needs and the archive lacks.
///
/// # Errors
/// `Corrupt` where the backup's record names a position that has no segment.
pub fn missing_wal(backup: &Backup, wal: &WalInventory) -> Result<Option<SegmentRange>> {
    let size = wal.segment_size();
    for range in &backup.wal_ranges {
        let mut next = size.segment_of(range.start_lsn);
        let last = size.segment_before(range.end_lsn);
        while next <= last {
            if let Some(held) = wal.contiguous_from(range.timeline, next) {
                next = held.next();
                continue;
            }
            let end = wal
                .first_from(range.timeline, next)
                .map_or(last, |held| SegmentNumber(held.0 - 1).min(last));
            return SegmentRange::new(range.timeline, next, end, size).map(Some);
        }
    }
    Ok(None)
}

/// Whether every object of a backup was listed with the size its record states.
#[derive(Debug)]
pub struct PartCheck {
    unseen: HashMap<BackupObject, u64>,
    wrong: Option<String>,
}

impl PartCheck {
    /// Nothing was listed yet.
    ///
    /// # Errors
    /// `Corrupt` where the record names more parts than a key can number.
    pub fn new(record: &BackupRecord) -> Result<Self> {
        let mut unseen = HashMap::from([
            (BackupObject::Files, record.files.stored_bytes),
            (BackupObject::Manifest, record.manifest.stored_bytes),
        ]);
        if let Some(configuration) = &record.configuration {
            unseen.insert(BackupObject::Configuration, configuration.object.stored_bytes);
        }
        for (index, stream) in record.streams.iter().enumerate() {
            let key = record
                .stream_key(index)
                .ok_or_else(|| Error::internal("a stream has a key"))?;
            for (part, number) in stream.parts.iter().zip(1_u32..) {
                unseen.insert(BackupObject::Part(key, number), part.stored_bytes);
            }
        }
        Ok(Self { unseen, wrong: None })
    }

    /// Takes note of a listed object of the backup.
    pub fn saw(&mut self, object: &BackupObject, size_bytes: u64) {
        if let Some(expected) = self.unseen.remove(object)
            && expected != size_bytes
        {
            self.wrong.get_or_insert_with(|| {
                format!("{object} has {size_bytes} bytes in the store, its record says {expected}")
            });
        }
    }

    /// What is wrong with the backup's objects, if anything.
    #[must_use]
    pub fn finish(self) -> Option<String> {
        let missing = self.unseen.len();
        let first = self.unseen.into_keys().map(|object| object.to_string()).min();
        match (first, missing) {
            (None, _) => self.wrong,
            (Some(first), 1) => Some(format!("{first} is missing in the store")),
            (Some(first), _) => Some(format!(
                "{missing} of its objects are missing in the store, {first} first"
            )),
        }
    }
}
