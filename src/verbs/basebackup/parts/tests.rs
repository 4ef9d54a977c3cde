//! The pipeline against a directory store.

use std::io::Read;

use super::*;
use crate::ErrorKind;
use crate::archive::fixture;
use crate::store::{FaultKind, Faults, Location, Operation, Store, StoreOptions};

const SETTINGS: PartSettings = PartSettings {
    compression_level: 1,
    workers: 3,
    frame_bytes: 1000,
    part_bytes: 4096,
    upload_bytes: 5000,
};

async fn store_in(root: &tempfile::TempDir) -> Store {
    let location = Location::directory(root.path()).unwrap();
    Store::open(&location, &StoreOptions::default()).await.unwrap()
}

fn id() -> BackupId {
    "20261123T041500Z".parse().unwrap()
}

/// Bytes that do not compress, so that parts are larger than their tar.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

async fn part(store: &Store, stream: Stream, number: u32) -> Vec<u8> {
    let key = id().key(BackupObject::Part(stream, number)).to_string();
    store.read(&key, 1 << 20).await.unwrap().to_vec()
}

fn decompress(zstd: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    zstd::stream::read::Decoder::new(zstd)
        .unwrap()
        .read_to_end(&mut tar)
        .unwrap();
    tar
}

#[tokio::test]
async fn the_parts_of_a_stream_are_the_stream_whatever_its_length_and_pieces() {
    for length in [1, 999, 1000, 4095, 4096, 4097, 8192, 9000, 12_288, 30_000] {
        for piece_bytes in [512, 4096, 100_000] {
            let root = tempfile::tempdir().unwrap();
            let store = store_in(&root).await;
            let mut writer = PartWriter::new(fixture::archive(&store), id(), SETTINGS);
            let tar = noise(length);
            for stream in [Stream::Tablespace(16385), Stream::Base] {
                writer.begin(stream);
                for piece in tar.chunks(piece_bytes) {
                    writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
                }
                let parts = writer.end().await.unwrap();
                assert_eq!(parts.len(), length.div_ceil(4096), "{length} in {piece_bytes}");
            }
            writer.finish().await.unwrap();
            for stream in [Stream::Tablespace(16385), Stream::Base] {
                let mut stored = Vec::new();
                for (number, expected) in (1..).zip(tar.chunks(4096)) {
                    let bytes = part(&store, stream, number).await;
                    assert_eq!(decompress(&bytes), expected, "part {number} of {length}");
                    stored.extend(bytes);
                }
                assert_eq!(decompress(&stored), tar);
            }
        }
    }
}

#[tokio::test]
async fn a_parts_record_matches_the_stored_object_and_its_frames_have_checksums() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(&root).await;
    let mut writer = PartWriter::new(fixture::archive(&store), id(), SETTINGS);
    writer.begin(Stream::Base);
    writer.write(noise(5000).into()).await.unwrap();
    let parts = writer.end().await.unwrap();
    writer.finish().await.unwrap();
    for (number, recorded) in (1..).zip(parts) {
        let bytes = part(&store, Stream::Base, number).await;
        assert_eq!(recorded, objects::stored(&Body::from_bytes(bytes.clone())));
        assert!(zstd::zstd_safe::get_frame_content_size(&bytes).unwrap().is_some());
        // Bit 2 of the frame header's descriptor: RFC 8878, section 3.1.1.1.1.
        assert_eq!(bytes[4] & 4, 4, "no checksum");
    }
}

#[tokio::test]
async fn a_part_whose_answer_got_lost_counts_as_stored() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(&root).await;
    let mut writer = PartWriter::new(fixture::archive(&store), id(), SETTINGS);
    // As if an earlier attempt of the same put had been carried out.
    for tar in [noise(4096), noise(4096)] {
        writer.begin(Stream::Base);
        writer.write(tar.into()).await.unwrap();
        writer.end().await.unwrap();
    }
    writer.finish().await.unwrap();
    let mut writer = PartWriter::new(fixture::archive(&store), id(), SETTINGS);
    writer.begin(Stream::Base);
    writer.write(noise(4095).into()).await.unwrap();
    writer.end().await.unwrap();
    assert_eq!(writer.finish().await.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_failed_upload_ends_the_backup() {
    let root = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let store = store_in(&root).await.with_faults(faults.clone());
    let second = id().key(BackupObject::Part(Stream::Base, 2)).to_string();
    faults.add(Operation::Put, &second, FaultKind::Before(ErrorKind::Unavailable));
    let mut writer = PartWriter::new(fixture::archive(&store), id(), SETTINGS);
    writer.begin(Stream::Base);
    let tar = noise(100_000);
    let mut result = writer.write(tar.into()).await;
    if result.is_ok() {
        result = writer.finish().await;
    }
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_upload_no_other_is_under_way() {
    let root = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let store = store_in(&root).await.with_faults(faults.clone());
    let key = |number| id().key(BackupObject::Part(Stream::Base, number)).to_string();
    faults.add(Operation::Put, &key(2), FaultKind::Before(ErrorKind::Unavailable));
    let delay = std::time::Duration::from_millis(500);
    faults.add(Operation::Put, &key(1), FaultKind::Delay(delay));
    let settings = PartSettings {
        upload_bytes: 50_000,
        ..SETTINGS
    };
    let mut writer = PartWriter::new(fixture::archive(&store), id(), settings);
    writer.begin(Stream::Base);
    let _ = writer.write(noise(8192).into()).await;
    let _ = writer.end().await;
    let _ = writer.finish().await;
    // It was waited for, not cut off.
    assert!(store.head(&key(1)).await.unwrap().is_some());
}

#[test]
fn memory_stays_within_bounds_whatever_the_number_of_cores() {
    for workers in [1, 2, 8, 16] {
        let settings = PartSettings::new(1, workers, 32 << 20);
        assert!(settings.memory_bytes() <= 176 << 20, "{workers}: {settings:?}");
        assert!(settings.upload_bytes as u64 >= settings.part_bytes);
    }
}
