//! A record for tests.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate
)] // only tests use it

use chrono::DateTime;

use super::{BackupKind, BackupRecord, BackupSource, StoredObject, Tablespace, TarStream, WalRange};
use crate::format::{FORMAT_VERSION, Sha256Sum};
use crate::pg::{Lsn, Major, SegmentSize, TimelineId};

/// The record of a backup with tablespaces at these places, OIDs from 16384 on, and empty streams.
pub fn record(tablespaces: &[&str]) -> BackupRecord {
    let object = StoredObject {
        stored_bytes: 0,
        sha256: Sha256Sum::of(b""),
    };
    let places = (16384..).zip(tablespaces).map(|(oid, location)| {
        Some(Tablespace {
            oid,
            location: (*location).to_owned(),
        })
    });
    BackupRecord {
        format_version: FORMAT_VERSION,
        walship: "0.1.0".to_owned(),
        id: "20261123T041500Z".parse().unwrap(),
        label: "test".to_owned(),
        kind: BackupKind::Full,
        source: BackupSource::Primary,
        system_identifier: 7_642_135_790_246_813_579,
        postgres_version: "17.11".to_owned(),
        postgres_major: Major::V17,
        segment_bytes: SegmentSize::DEFAULT,
        started_at: DateTime::UNIX_EPOCH,
        finished_at: DateTime::UNIX_EPOCH,
        start_lsn: Lsn(0x200_0028),
        stop_lsn: Lsn(0x200_0100),
        start_timeline: TimelineId::FIRST,
        stop_timeline: TimelineId::FIRST,
        wal_ranges: vec![WalRange {
            timeline: TimelineId::FIRST,
            start_lsn: Lsn(0x200_0028),
            end_lsn: Lsn(0x200_0100),
        }],
        size_bytes: 0,
        stored_bytes: 0,
        streams: places
            .chain([None])
            .map(|tablespace| TarStream {
                tablespace,
                tar_bytes: 0,
                part_bytes: 1024,
                parts: Vec::new(),
            })
            .collect(),
        files: object,
        manifest: object,
        configuration: None,
        lineage: None,
        timeline_history: None,
    }
}
