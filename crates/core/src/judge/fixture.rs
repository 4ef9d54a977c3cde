//! What the tests of several judgements have in common: segments of the usual size, and a backup within one.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::catalogue::{Backup, Catalogue};
use super::damage::Damage;
use crate::format::backup::{BackupKind, BackupSource, WalRange};
use crate::format::identity::Identity;
use crate::format::keys::BackupId;
use crate::format::released::TimelineRanges;
use crate::format::wal_inventory::WalInventory;
use crate::pg::{
    ClusterIdentity, Lsn, Major, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId,
};

pub(crate) const SIZE: SegmentSize = SegmentSize::DEFAULT;

pub(crate) fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

/// A position: a segment and an offset in it.
pub(crate) fn at(segment: u64, offset: u64) -> Lsn {
    Lsn(segment * SIZE.bytes() + offset)
}

pub(crate) fn segment(timeline: u32, number: u64) -> SegmentName {
    SegmentName::new(tli(timeline), SegmentNumber(number), SIZE).unwrap()
}

pub(crate) fn cluster() -> ClusterIdentity {
    ClusterIdentity {
        system_identifier: 1,
        postgres_major: Major::V17,
        segment_size: SIZE,
    }
}

/// An archive without backups and WAL.
pub(crate) fn empty_archive(created_at: DateTime<Utc>) -> Catalogue {
    Catalogue {
        identity: Identity::new(cluster(), true, created_at),
        backups: Vec::new(),
        unrestorable: Vec::new(),
        unfinished: Vec::new(),
        wal: WalInventory::new(SIZE),
        histories: [(tli(1), TimelineHistory::root(tli(1)))].into(),
        unreadable_histories: BTreeMap::new(),
        retired: BTreeMap::new(),
        newest_ends: BTreeMap::new(),
        unreadable_keeps: BTreeMap::new(),
        released: TimelineRanges::default(),
        damage: Damage::default(),
    }
}

/// A backup that starts at offset 40 of a segment and ends at offset 400, ten seconds later.
pub(crate) fn backup(timeline: u32, segment: u64, started_at: DateTime<Utc>) -> Backup {
    let (start_lsn, stop_lsn) = (at(segment, 40), at(segment, 400));
    Backup {
        id: BackupId::at(started_at),
        label: "test".to_owned(),
        kind: BackupKind::Full,
        source: BackupSource::Primary,
        postgres_version: "17.11".to_owned(),
        started_at,
        finished_at: started_at + TimeDelta::seconds(10),
        start_lsn,
        stop_lsn,
        start_timeline: tli(timeline),
        stop_timeline: tli(timeline),
        wal_ranges: vec![WalRange {
            timeline: tli(timeline),
            start_lsn,
            end_lsn: stop_lsn,
        }],
        size_bytes: 0,
        stored_bytes: 0,
        proof: None,
        keep: None,
        stored_at: None,
    }
}
