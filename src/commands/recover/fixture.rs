//! A backup for the tests of this folder, made of any directories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // only tests use it

use std::path::Path;

use chrono::DateTime;

use crate::archive::backup::{
    BackupKind, BackupRecord, BackupSource, StoredObject, Tablespace, TarStream, WalRange,
};
use crate::archive::file_index::FileIndexWriter;
use crate::archive::keys::{BackupId, BackupObject, Key};
use crate::archive::tar_stream::TarScanner;
use crate::archive::{FORMAT_VERSION, Sha256Sum};
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::store::{Body, Location, PutMode, Store, StoreOptions};

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
        postgres_major: 17,
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
    }
}

/// A store in a new directory below `top`.
pub async fn store(top: &Path) -> Store {
    let archive = top.join("archive");
    std::fs::create_dir(&archive).unwrap();
    let location = Location::directory(&archive).unwrap();
    Store::open(&location, &StoreOptions::default()).await.unwrap()
}

/// Stores a backup of these directories, the tablespaces' first and the data directory last, cut into
/// small parts of small frames, and returns its record.
pub async fn store_backup(store: &Store, directories: &[&Path], part_bytes: usize) -> BackupRecord {
    let (data, tablespaces) = directories.split_last().unwrap();
    let locations: Vec<&str> = tablespaces.iter().map(|path| path.to_str().unwrap()).collect();
    let mut record = record(&locations);
    let mut index = FileIndexWriter::new(Vec::new()).unwrap();
    for number in 0..directories.len() {
        let tar = if number == tablespaces.len() {
            tar_of_data(data)
        } else {
            tar_of(tablespaces[number], &["."], &[])
        };
        for entry in TarScanner::new(number as u32, &[]).feed(&tar).unwrap() {
            index.push(&entry).unwrap();
        }
        let stream = &mut record.streams[number];
        stream.tar_bytes = tar.len() as u64;
        stream.part_bytes = part_bytes as u64;
        record.size_bytes += tar.len() as u64;
        for (part, content) in (1..).zip(tar.chunks(part_bytes)) {
            let frames = content.chunks(part_bytes / 3 + 1);
            let stored: Vec<u8> = frames
                .flat_map(|frame| zstd::bulk::compress(frame, 1).unwrap())
                .collect();
            let key = record.stream_key(number).unwrap();
            let object = put(store, &record.id, BackupObject::Part(key, part), stored).await;
            record.streams[number].parts.push(object);
        }
    }
    record.files = put(store, &record.id, BackupObject::Files, index.finish().unwrap()).await;
    record
}

/// Stores one object of a backup.
pub async fn put(store: &Store, id: &BackupId, object: BackupObject, bytes: Vec<u8>) -> StoredObject {
    let stored = StoredObject {
        stored_bytes: bytes.len() as u64,
        sha256: Sha256Sum::of(&bytes),
    };
    let key = Key::Backup(id.clone(), object).to_string();
    let body = Body::from_bytes(bytes);
    store.put(&key, &body, PutMode::Create).await.unwrap();
    stored
}

/// The tar of a data directory in PostgreSQL's order: `backup_label` first, `pg_control` last.
fn tar_of_data(data: &Path) -> Vec<u8> {
    tar_of(
        data,
        &["backup_label", ".", "global/pg_control"],
        &["./backup_label", "./global/pg_control", "./postmaster.pid"],
    )
}

fn tar_of(directory: &Path, members: &[&str], left_out: &[&str]) -> Vec<u8> {
    let mut tar = std::process::Command::new("tar");
    tar.current_dir(directory)
        .args([
            "--format=ustar",
            "--no-wildcards",
            "--anchored",
            "-c",
            "--transform=s,^\\./,,",
        ])
        .args(left_out.iter().map(|path| format!("--exclude={path}")));
    let output = tar.args(members).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The entry of the directory itself, which PostgreSQL does not send, is the first of its members.
    let header_bytes = 512;
    let tar = output.stdout;
    let own = tar
        .chunks(header_bytes)
        .position(|block| block.starts_with(b"./\0"))
        .expect("the directory itself");
    [&tar[..own * header_bytes], &tar[(own + 1) * header_bytes..]].concat()
}
