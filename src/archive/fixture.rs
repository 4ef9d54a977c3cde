//! A backup for the tests of this folder, made of any directories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // only tests use it

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Archive, catalogue};
use crate::error::Result;
use crate::format::Sha256Sum;
pub use crate::format::backup::fixture::record;
use crate::format::backup::{BackupRecord, StoredObject};
use crate::format::file_index::FileIndexWriter;
use crate::format::identity::Identity;
use crate::format::keys::{BackupId, BackupObject, Key};
use crate::format::tar_stream::TarScanner;
use crate::judge::catalogue::Catalogue;
use crate::pg::{ClusterIdentity, Major, SegmentSize};
use crate::store::{Body, Location, PutMode, Store, StoreOptions};

/// A store in a new directory below `top`.
pub async fn store(top: &Path) -> Store {
    let archive = top.join("archive");
    std::fs::create_dir(&archive).unwrap();
    let location = Location::directory(&archive).unwrap();
    Store::open(&location, &StoreOptions::default()).await.unwrap()
}

/// An archive at a store where nothing tells whose it is.
pub fn archive(store: &Store) -> Archive {
    let cluster = ClusterIdentity {
        system_identifier: 7_000_000_000_000_000_001,
        postgres_major: Major::V17,
        segment_size: SegmentSize::DEFAULT,
    };
    Archive::of(store, Identity::new(cluster, true, chrono::DateTime::UNIX_EPOCH))
}

/// What the archive at a store holds.
pub async fn load(store: &Store) -> Result<Catalogue> {
    catalogue::load(&Archive::open(store).await?).await
}

/// A directory, in memory if the machine has a place for that, for tests that write and delete much.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// A copy of the archive of format 1 (`tests/fixtures/format-1`) below `top`.
pub async fn format_1(top: &Path) -> Store {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1");
    let archive = top.join("archive");
    let mut copy = std::process::Command::new("cp");
    assert!(
        copy.arg("-r")
            .args([&fixture, &archive])
            .status()
            .unwrap()
            .success()
    );
    let location = Location::directory(&archive).unwrap();
    Store::open(&location, &StoreOptions::default()).await.unwrap()
}

/// Unpacks a segment of an archive below `top` into a file of its name beside the archive.
pub fn unpack(top: &Path, name: &str) -> PathBuf {
    let key = Key::Segment(name.parse().unwrap()).to_string();
    let stored = std::fs::read(top.join("archive").join(key)).unwrap();
    let segment = top.join(name);
    std::fs::write(&segment, zstd::decode_all(stored.as_slice()).unwrap()).unwrap();
    segment
}

/// Every key there is.
pub async fn keys(store: &Store) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut listing = store.list("", None);
    while let Some(page) = listing.next().await.unwrap() {
        keys.extend(page.into_iter().map(|object| object.key));
    }
    keys
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
    record.add_up();
    record
}

/// Stores one object of a backup.
pub async fn put(store: &Store, id: &BackupId, object: BackupObject, bytes: Vec<u8>) -> StoredObject {
    let stored = StoredObject {
        stored_bytes: bytes.len() as u64,
        sha256: Sha256Sum::of(&bytes),
    };
    let key = id.key(object).to_string();
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
