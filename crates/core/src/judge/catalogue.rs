//! What an archive holds, from a listing and the records of its backups. `list` reports it, and `recover` plans from
//! it.
//!
//! A backup is held here without the list of its parts, so that the catalogue of a large archive stays small.
//! [`PartCheck`] decides whether all parts are there while the record is at hand.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};

use super::damage::Damage;
use crate::error::{Error, Result};
use crate::format::backup::{BackupKind, BackupRecord, BackupSource, WalRange};
use crate::format::drills::Drills;
use crate::format::identity::Identity;
use crate::format::keep::Keep;
use crate::format::keys::{BackupId, BackupObject};
use crate::format::proof::Proof;
use crate::format::released::TimelineRanges;
use crate::format::retired::Retired;
use crate::format::segment_index::EndOfTransaction;
use crate::format::wal_inventory::{SegmentRange, WalInventory};
use crate::pg::{Lsn, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};

/// What an archive holds.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// Whose archive it is.
    pub identity: Identity,
    /// The backups that can be restored, oldest first.
    pub backups: Vec<Backup>,
    /// The backups with a `backup.json` that cannot be restored as they are.
    pub unrestorable: Vec<Unrestorable>,
    /// Backups that run, wait for their WAL, or were never finished.
    pub unfinished: Vec<Unfinished>,
    /// The WAL.
    pub wal: WalInventory,
    /// The timelines' histories that could be read. Timeline 1's, which has no file, is always there.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// The timelines whose histories could not be read, and why.
    pub unreadable_histories: BTreeMap<TimelineId, String>,
    /// The timelines that nobody must follow.
    pub retired: BTreeMap<TimelineId, Retired>,
    /// The last end of a transaction in the WAL of a timeline, if it has one. Only the timelines that
    /// [`super::branches::undecided`] names have an entry.
    pub newest_ends: BTreeMap<TimelineId, Option<EndOfTransaction>>,
    /// The backups whose `keep.json` could not be read, and why.
    pub unreadable_keeps: BTreeMap<BackupId, String>,
    /// The WAL that retention has released: where it is missing, nothing was lost.
    pub released: TimelineRanges,
    /// What earlier verifications found wrong and what has not changed since.
    pub damage: Damage,
}

/// The times of a backup agree with the server's clock to within this: the server shows them no more exactly.
const CLOCKS_AGREE: TimeDelta = TimeDelta::seconds(3);

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
    /// The first moment that can be recovered from it.
    pub finished_at: DateTime<Utc>,
    /// Where replay starts.
    pub start_lsn: Lsn,
    /// The first position that can be recovered from it.
    pub stop_lsn: Lsn,
    /// The timeline at the start.
    pub start_timeline: TimelineId,
    /// The timeline at the end.
    pub stop_timeline: TimelineId,
    /// The WAL that it cannot be restored without.
    pub wal_ranges: Vec<WalRange>,
    /// Bytes of tar.
    pub size_bytes: u64,
    /// Bytes in the store.
    pub stored_bytes: u64,
    /// What drills showed of it, if there were any.
    pub proof: Option<Proof>,
    /// The mark of `walship keep`.
    pub keep: Option<Keep>,
    /// When its record was stored, by the store's clock, where that is known.
    pub stored_at: Option<DateTime<Utc>>,
}

impl Backup {
    /// Every transaction that had ended by then is in the backup. One that ends while the backup is taken may be
    /// missing. `None` for a standby's backup: it holds what the standby had replayed, whatever its clock says.
    pub(crate) fn settled_at(&self) -> Option<DateTime<Utc>> {
        (self.source == BackupSource::Primary).then(|| self.started_at - CLOCKS_AGREE)
    }

    /// When it was taken: at the latest when its record was stored, whatever the server's clock said.
    pub(crate) fn taken_at(&self) -> DateTime<Utc> {
        self.stored_at
            .map_or(self.finished_at, |stored| stored.min(self.finished_at))
    }

    /// A moment by which it had certainly ended. A standby dates its backups by its own clock, but its WAL has the
    /// primary's times. The record was stored after the end.
    pub(crate) fn ended_by(&self) -> DateTime<Utc> {
        match (self.source, self.stored_at) {
            (BackupSource::Standby, Some(stored)) => stored.max(self.finished_at),
            _ => self.finished_at,
        }
    }
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
    /// The last sign of it, by the store's clock: its heartbeat, or its first or last object.
    pub last_sign: DateTime<Utc>,
    /// The mark of `walship keep`.
    pub keep: Option<Keep>,
    /// Whether a verification once found all of it good.
    pub was_verified: bool,
}

impl Unfinished {
    /// How it is known that it once had a `backup.json` that walship did not delete. Retention deletes no marked
    /// backup, and makes the ledger forget a backup before it deletes the record.
    #[must_use]
    pub fn lost_record(&self, now: DateTime<Utc>) -> Option<String> {
        match &self.keep {
            Some(keep) if keep.holds_at(now) => Some(format!("the backup is marked to be kept {keep}")),
            _ if self.was_verified => Some("an earlier walship verify found the backup good".to_owned()),
            _ => None,
        }
    }
}

/// How far an unfinished backup came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnfinishedState {
    /// It is stored and waits for its WAL: `walship basebackup --finish` completes it.
    WaitingForWal,
    /// It runs, or it died: the heartbeat shows which.
    Started,
    /// What an interrupted deletion left behind.
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
            proof: None,
            keep: None,
            stored_at: None,
        }
    }
}

impl Catalogue {
    /// Whether retention has released the WAL that follows a backup's own, and it has not come back (a standby may have
    /// archived it again). The backup stands alone then: it can be recovered to its own end and nowhere else.
    #[must_use]
    pub fn stands_alone(&self, backup: &Backup) -> bool {
        let own = needed_wal(&backup.wal_ranges, self.wal.segment_size());
        own.last().is_some_and(|last| {
            self.released.contains(last.timeline, last.end) && !self.wal.contains(last.timeline, last.end)
        })
    }

    /// The archive's drills, with what the proofs of its backups add: an archive may have lost its `drills.json`.
    #[must_use]
    pub fn drills_with_proofs(&self, known: Drills) -> Drills {
        let proofs = self
            .readable()
            .filter_map(|backup| Some((&backup.id, backup.proof.as_ref()?)));
        proofs.fold(known, |drills, (id, proof)| {
            let both = [&proof.last_success, &proof.last_failure];
            both.into_iter()
                .flatten()
                .fold(drills, |drills, drill| drills.with(id, drill))
        })
    }

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
}

/// The first WAL that a backup needs and the archive lacks. If a promotion happened during the backup, the segment of
/// the fork is needed on the new timeline only: on the old one it may never have been completed.
///
/// # Errors
/// `Invalid` where the backup's record names a position that has no segment.
pub fn missing_wal(backup: &Backup, wal: &WalInventory) -> Result<Option<SegmentRange>> {
    let size = wal.segment_size();
    for NeededWal { timeline, first, end } in needed_wal(&backup.wal_ranges, size) {
        let mut next = first;
        while next < end {
            if let Some(held) = wal.contiguous_from(timeline, next) {
                next = held.next();
                continue;
            }
            let later = wal.first_from(timeline, next);
            let last = later.map_or(end, |later| later.min(end)).0 - 1;
            return SegmentRange::new(timeline, next, SegmentNumber(last), size).map(Some);
        }
    }
    Ok(None)
}

/// Segments of one timeline that a backup needs, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeededWal {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first one.
    pub first: SegmentNumber,
    /// The one after the last.
    pub end: SegmentNumber,
}

/// The segments that a backup needs, timeline by timeline. If a promotion happened during the backup, the segment of
/// the fork is needed on the new timeline only.
#[must_use]
pub fn needed_wal(ranges: &[WalRange], size: SegmentSize) -> Vec<NeededWal> {
    // PostgreSQL's manifest may name the newest timeline first.
    let mut ranges = ranges.to_vec();
    ranges.sort_by_key(|range| (range.timeline, range.start_lsn));
    let children = ranges.iter().skip(1).map(Some).chain([None]);
    let needed = ranges.iter().zip(children).map(|(range, child)| {
        let first = size.segment_of(range.start_lsn);
        let end = size.segment_before(range.end_lsn).max(first).next();
        let fork = child.filter(|child| child.timeline != range.timeline);
        NeededWal {
            timeline: range.timeline,
            first,
            end: fork.map_or(end, |child| end.min(size.segment_of(child.start_lsn))),
        }
    });
    needed.filter(|needed| needed.first < needed.end).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Sha256Sum;
    use crate::format::backup::{StoredObject, Tablespace, TarStream};
    use crate::pg::Major;

    fn object(stored_bytes: u64) -> StoredObject {
        StoredObject {
            stored_bytes,
            sha256: Sha256Sum([0; 32]),
        }
    }

    fn stream(tablespace: Option<u32>, parts: &[u64]) -> TarStream {
        TarStream {
            tablespace: tablespace.map(|oid| Tablespace {
                oid,
                location: "/ts".to_owned(),
            }),
            tar_bytes: parts.len() as u64,
            part_bytes: 1,
            parts: parts.iter().map(|bytes| object(*bytes)).collect(),
        }
    }

    fn range(timeline: u32, start: u64, end: u64) -> WalRange {
        WalRange {
            timeline: TimelineId::new(timeline).unwrap(),
            start_lsn: Lsn(start),
            end_lsn: Lsn(end),
        }
    }

    fn record(wal_ranges: Vec<WalRange>) -> BackupRecord {
        BackupRecord {
            format_version: 1,
            walship: "0.1.0".to_owned(),
            id: "20261123T041500Z".parse().unwrap(),
            label: String::new(),
            kind: BackupKind::Full,
            source: BackupSource::Standby,
            system_identifier: 1,
            postgres_version: "17.11".to_owned(),
            postgres_major: Major::V17,
            segment_bytes: SegmentSize::DEFAULT,
            started_at: DateTime::UNIX_EPOCH,
            finished_at: DateTime::UNIX_EPOCH,
            start_lsn: Lsn(0),
            stop_lsn: Lsn(0),
            start_timeline: TimelineId::FIRST,
            stop_timeline: TimelineId::FIRST,
            wal_ranges,
            size_bytes: 0,
            stored_bytes: 0,
            streams: vec![stream(Some(16384), &[5]), stream(None, &[6, 7])],
            files: object(1),
            manifest: object(2),
            configuration: None,
            lineage: None,
            timeline_history: None,
        }
    }

    fn wal(names: &[&str]) -> WalInventory {
        let mut wal = WalInventory::new(SegmentSize::DEFAULT);
        for name in names {
            let key = crate::format::keys::Key::Segment(name.parse().unwrap());
            wal.add(&key.to_string(), 1);
        }
        wal
    }

    fn missing(ranges: Vec<WalRange>, held: &[&str]) -> Option<String> {
        let backup = Backup::from(&record(ranges));
        missing_wal(&backup, &wal(held))
            .unwrap()
            .map(|range| range.to_string())
    }

    const ONE: &str = "000000010000000000000001";
    const TWO: &str = "000000010000000000000002";
    const THREE: &str = "000000010000000000000003";

    #[test]
    fn the_order_of_a_backups_ranges_does_not_matter() {
        let ranges = vec![range(2, 0x250_0000, 0x300_0028), range(1, 0x100_0028, 0x250_0000)];
        let needed = needed_wal(&ranges, SegmentSize::DEFAULT);
        let shown: Vec<_> = needed
            .iter()
            .map(|needed| (needed.timeline.to_string(), needed.first.0, needed.end.0))
            .collect();
        assert_eq!(shown, [("1".to_owned(), 1, 2), ("2".to_owned(), 2, 4)]);
        assert!(missing(ranges, &[ONE]).unwrap().starts_with("00000002"));
    }

    #[test]
    fn every_segment_of_a_backups_ranges_must_be_held() {
        let ranges = || vec![range(1, 0x100_0028, 0x300_0001)];
        assert_eq!(missing(ranges(), &[ONE, TWO, THREE]), None);
        assert_eq!(missing(ranges(), &[ONE, TWO]).unwrap(), THREE);
        assert_eq!(missing(ranges(), &[ONE, THREE]).unwrap(), TWO);
        assert!(missing(ranges(), &[]).unwrap().contains("(3 segments)"));
        // Up to a boundary, the segment behind it is not needed.
        assert_eq!(missing(vec![range(1, 0x100_0028, 0x300_0000)], &[ONE, TWO]), None);
        assert_eq!(missing(vec![range(1, 0x100_0000, 0x100_0000)], &[]).unwrap(), ONE);
    }

    #[test]
    fn the_segment_of_a_fork_is_needed_on_the_child_only() {
        let ranges = || vec![range(1, 0x100_0028, 0x300_0100), range(2, 0x300_0100, 0x300_0200)];
        let child = "000000020000000000000003";
        assert_eq!(missing(ranges(), &[ONE, TWO, child]), None);
        assert_eq!(missing(ranges(), &[ONE, TWO, THREE]).unwrap(), child);
    }

    fn check(listed: &[(&str, u64)]) -> Option<String> {
        let record = record(vec![range(1, 0, 1)]);
        let mut check = PartCheck::new(&record).unwrap();
        for (object, bytes) in listed {
            let key: crate::format::keys::Key = format!("backups/{}/{object}", record.id).parse().unwrap();
            if let crate::format::keys::Key::Backup(_, object) = key {
                check.saw(&object, *bytes);
            }
        }
        check.finish()
    }

    #[test]
    fn every_object_of_a_backup_must_be_listed_with_its_size() {
        let whole = [
            ("base/000002.tar.zst", 7),
            ("files.zst", 1),
            ("16384/000001.tar.zst", 5),
            ("manifest.zst", 2),
            ("base/000001.tar.zst", 6),
            ("base/000003.tar.zst", 9),
            ("backup.json", 100),
        ];
        assert_eq!(check(&whole), None);
        assert!(
            check(&whole[1..])
                .unwrap()
                .contains("base/000002.tar.zst is missing")
        );
        assert!(check(&whole[3..]).unwrap().contains("3 of its objects"));
        let mut wrong = whole;
        wrong[2].1 = 4;
        let reason = check(&wrong).unwrap();
        assert!(
            reason.contains("16384/000001.tar.zst has 4 bytes") && reason.contains('5'),
            "{reason}"
        );
    }

    #[test]
    fn a_range_that_ends_in_the_segment_of_its_fork_needs_nothing_of_its_own() {
        let size = SegmentSize::DEFAULT;
        let segment = size.bytes();
        let ranges = [
            range(1, 5 * segment + 40, 5 * segment + 80),
            range(2, 5 * segment + 80, 6 * segment),
        ];
        let needed = needed_wal(&ranges, size);
        let only = NeededWal {
            timeline: TimelineId::new(2).unwrap(),
            first: SegmentNumber(5),
            end: SegmentNumber(6),
        };
        assert_eq!(needed, [only]);
    }
}
