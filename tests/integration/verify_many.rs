//! `walship verify` on an archive of 2,000 segments: every sort of damage is found, and an unchanged
//! archive costs next to nothing.
//!
//! The segments are made up: valid page headers, and nothing in the pages. What lies before them, and the
//! base backup, is from a real server.

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use walship::inside::verify::{FindingKind, VerifyReport};
use walship_core::format::codec;
use walship_core::format::keys::Key;
use walship_core::judge::assessment::End;
use walship_core::pg::{Major, SegmentName, SegmentNumber, SegmentSize, TimelineId};

use crate::recovery::take_backup;
use crate::server::{archiving_primary, wait_archived};
use crate::support::give_to_user;
use crate::support::postgres::Stop;
use crate::support::stores::Place;
use crate::support::walship::Walship;
use crate::verify::{verify, verify_at};

const SEGMENTS: u64 = 2000;
const PAGE: usize = 8192;

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

/// Bytes of a segment as a server with little to do writes it.
fn content(name: SegmentName, written_on: u32, system_identifier: u64) -> Vec<u8> {
    let start = name.start(size()).unwrap();
    let mut bytes = vec![0; 1 << 20];
    for (number, page) in bytes.chunks_mut(PAGE).enumerate() {
        let mut header = Vec::new();
        header.extend(Major::V17.wal_magic().unwrap().to_le_bytes());
        header.extend(if number == 0 { 2_u16 } else { 0 }.to_le_bytes());
        header.extend(written_on.to_le_bytes());
        header.extend((start.0 + (number * PAGE) as u64).to_le_bytes());
        header.extend([0; 8]);
        if number == 0 {
            header.extend(system_identifier.to_le_bytes());
            header.extend((1_u32 << 20).to_le_bytes());
            header.extend((PAGE as u32).to_le_bytes());
        }
        page[..header.len()].copy_from_slice(&header);
    }
    bytes
}

/// A whole object of a segment, under a name and of a timeline.
pub fn object(name: SegmentName, written_on: u32, system_identifier: u64) -> Vec<u8> {
    let content = content(name, written_on, system_identifier);
    codec::encode(&content, 1, name.into(), system_identifier, None).unwrap()
}

/// An archive with one backup and a long stretch of WAL after it.
struct Archive {
    place: Place,
    root: PathBuf,
    system_identifier: u64,
    first: u64,
}

impl Archive {
    fn make() -> Self {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let mut primary = archiving_primary(Major::V17, &walship);
        take_backup(&walship, &primary);
        let last = primary.switch_wal();
        wait_archived(&primary, &last);
        primary.stop(Stop::Immediate);
        let root = place.path().unwrap().to_owned();
        let identity: serde_json::Value =
            serde_json::from_slice(&fs::read(root.join("walship.json")).unwrap()).unwrap();
        let mut archive = Self {
            place,
            root,
            system_identifier: identity["system_identifier"].as_str().unwrap().parse().unwrap(),
            first: 0,
        };
        // A switch may have left the next one as well.
        archive.first = archive.newest() + 1;
        for number in 0..SEGMENTS {
            let name = archive.name(number);
            archive.write(name, &object(name, 1, archive.system_identifier));
        }
        archive
    }

    fn newest(&self) -> u64 {
        let folder = self.root.join("wal/00000001/0000000100000000");
        let names = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter_map(|name| name.to_str()?.strip_suffix(".zst")?.parse::<SegmentName>().ok())
            .map(|name| name.number(size()).unwrap().0)
            .max()
            .unwrap()
    }

    /// The made-up segment of this number, counted from 0.
    fn name(&self, number: u64) -> SegmentName {
        SegmentName::new(TimelineId::FIRST, SegmentNumber(self.first + number), size()).unwrap()
    }

    fn path(&self, name: SegmentName) -> PathBuf {
        self.root.join(Key::Segment(name).to_string())
    }

    fn write(&self, name: SegmentName, bytes: &[u8]) {
        let path = self.path(name);
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            fs::create_dir_all(folder).unwrap();
            give_to_user(folder);
        }
        fs::write(&path, bytes).unwrap();
        give_to_user(&path);
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let name = self.name(number);
        let mut bytes = fs::read(self.path(name)).unwrap();
        change(&mut bytes);
        self.write(name, &bytes);
    }
}

fn found(report: &VerifyReport) -> Vec<(&str, FindingKind)> {
    report
        .findings
        .iter()
        .map(|finding| (finding.name.as_deref().unwrap(), finding.kind))
        .collect()
}

fn keep_time(path: &Path, change: impl FnOnce()) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    change();
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(modified)
        .unwrap();
}

// Seen to fail: `archive/wal_object.rs`: pages are not judged; `verify/wal.rs`: segments that the ledger tells of are
// not missed
#[test]
fn every_damage_among_2000_segments_is_found_and_an_unchanged_archive_costs_next_to_nothing() {
    let archive = Archive::make();
    let now = Utc::now();
    let first = verify(&archive.place, |_| {});
    assert!(first.is_clean, "{first}");
    assert!(first.read_objects >= SEGMENTS && first.read_objects == first.objects);

    let second = verify(&archive.place, |_| {});
    assert!(second.is_clean, "{second}");
    assert!(
        second.requests * 20 < first.requests,
        "{} of {}",
        second.requests,
        first.requests
    );
    assert!(
        second.read_bytes * 20 < first.read_bytes,
        "{} of {}",
        second.read_bytes,
        first.read_bytes
    );
    assert_eq!(second.objects, first.objects);

    let damaged: Vec<SegmentName> = [100, 300, 500, 600, 601, 900, 1100]
        .map(|number| archive.name(number))
        .into();
    archive.change(100, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    archive.change(300, |bytes| bytes.truncate(bytes.len() / 2));
    archive.change(500, Vec::clear);
    let swapped = [600, 601].map(|number| fs::read(archive.path(archive.name(number))).unwrap());
    archive.write(archive.name(600), &swapped[1]);
    archive.write(archive.name(601), &swapped[0]);
    // Whole by its own trailer, but of another cluster, and of a later timeline than its name.
    archive.write(
        archive.name(900),
        &object(archive.name(900), 1, archive.system_identifier + 1),
    );
    archive.write(
        archive.name(1100),
        &object(archive.name(1100), 2, archive.system_identifier),
    );
    let missing = [(1300, 1300), (1500, 1503)];
    for (first, last) in missing {
        for number in first..=last {
            fs::remove_file(archive.path(archive.name(number))).unwrap();
        }
    }
    // The end of the WAL: nothing but an earlier run tells that there was more.
    fs::remove_file(archive.path(archive.name(SEGMENTS - 1))).unwrap();

    let third = verify(&archive.place, |_| {});
    assert!(!third.is_clean);
    assert!(third.read_objects < 20, "{} were read", third.read_objects);
    let damaged_names: Vec<String> = damaged.iter().map(ToString::to_string).collect();
    let mut expected: Vec<_> = damaged_names
        .iter()
        .map(|name| (name.as_str(), FindingKind::Damaged))
        .collect();
    // From one backup the first gap is the end: what lies behind it is found one at a time.
    assert_eq!(found(&third), expected, "{third}");
    assert_eq!(third.lost.len(), 1, "{third}");
    assert_eq!(third.lost[0].segments.first, damaged[0]);
    assert_eq!(
        third.backups[0].leads_to[0].end_lsn,
        damaged[0].start(size()).unwrap()
    );
    assert_eq!(third.backups[0].leads_to[0].end, End::Lost);

    // The damaged ones replaced by what they were: now the gaps come to light, nearest first.
    for name in damaged {
        archive.write(name, &object(name, 1, archive.system_identifier));
    }
    for (first, last) in missing.into_iter().chain([(SEGMENTS - 1, SEGMENTS - 1)]) {
        let report = verify(&archive.place, |_| {});
        let name = archive.name(first).to_string();
        expected = vec![(&name, FindingKind::Missing)];
        assert_eq!(found(&report), expected, "{report}");
        assert_eq!(report.lost[0].segments.last, archive.name(last));
        assert!(report.lost[0].again_from.is_none());
        for number in first..=last {
            let name = archive.name(number);
            archive.write(name, &object(name, 1, archive.system_identifier));
        }
    }
    assert!(verify(&archive.place, |_| {}).is_clean);
    what_the_listing_does_not_show_is_found_in_its_turn(&archive, now);
}

/// Size, time and file stay the same: only reading shows it.
fn what_the_listing_does_not_show_is_found_in_its_turn(archive: &Archive, now: DateTime<Utc>) {
    let path = archive.path(archive.name(1200));
    keep_time(&path, || {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    });
    assert!(verify(&archive.place, |_| {}).is_clean);
    let name = archive.name(1200).to_string();
    let mut read = 0;
    let mut days = Vec::new();
    // A run every third day reads a tenth each time, and within thirty days the damage is found.
    for day in (3..=30).step_by(3) {
        let report = verify_at(
            &archive.place,
            now + TimeDelta::days(day) + TimeDelta::minutes(5),
            |_| {},
        );
        read += report.read_objects;
        let share = SEGMENTS / 10;
        assert!(
            (share / 2..share * 2).contains(&report.read_objects),
            "{} were read on day {day}",
            report.read_objects
        );
        if !report.is_clean {
            assert_eq!(
                found(&report),
                [(name.as_str(), FindingKind::Damaged)],
                "{report}"
            );
            days.push(day);
        }
    }
    assert!(read >= SEGMENTS, "{read} were read in thirty days");
    assert_eq!(days.last(), Some(&30), "what is damaged stays a finding");
    let report = verify(&archive.place, |options| options.full = true);
    assert_eq!(report.read_objects, report.objects);
    assert_eq!(
        found(&report),
        [(name.as_str(), FindingKind::Damaged)],
        "{report}"
    );
}
