//! An archive of format version 1, as the walship wrote it that was new then, in
//! `tests/fixtures/format-1` (made by `tests/fixtures/make-format-1`): every walship must read it.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use walship_core::pg::Major;

use crate::support::postgres::Cluster;
use crate::support::stores::Place;
use crate::support::walship::Walship;
use crate::support::{command_as_user, give_to_user, make_dir, project, scratch};

const BACKUP: &str = "20261123T145450Z";
const SEGMENT: &str = "000000010000000000000006";
const SEGMENT_SHA256: &str = "b986cb5d7e5523fec9af80d0c24e08961b549ac555071569edb61ad2420e961a";

/// The fixture, where the test user may read it.
fn fixture() -> Place {
    let place = Place::directory();
    let to = place.path().unwrap();
    let script = format!(
        "cp -rT '{}' '{}'",
        project().join("tests/fixtures/format-1").display(),
        to.display()
    );
    // By whoever runs the tests: the project may lie in a folder that others cannot enter.
    let copied = std::process::Command::new("sh")
        .args(["-c", &script])
        .status()
        .unwrap();
    assert!(copied.success());
    let mut folders = vec![to.to_owned()];
    while let Some(folder) = folders.pop() {
        give_to_user(&folder);
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            give_to_user(&path);
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    place
}

fn sha256_of(command: &str) -> String {
    let output = command_as_user("/bin/sh")
        .args(["-c", &format!("set -e; {command} | sha256sum")])
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

#[test]
fn an_archive_of_format_1_is_listed() {
    let place = fixture();
    let output = Walship::at(&place).run(&["list", "--json"]).succeeded();
    let list: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(list["backups"].as_array().unwrap().len(), 1, "{}", output.stdout);
    let backup = &list["backups"][0];
    assert_eq!(backup["id"], BACKUP);
    assert_eq!(backup["label"], "format 1");
    assert_eq!(backup["kind"], "full");
    assert_eq!(backup["timeline"], 1);
    assert_eq!(backup["start_lsn"], "0/600028");
    let wal = list["wal"].as_array().unwrap();
    assert_eq!(wal.len(), 2, "{}", output.stdout);
    assert_eq!(wal[0]["segments"], 3);
    assert_eq!(wal[0]["last"], "000000010000000000000007");
    assert_eq!(wal[0]["gaps"], Value::Array(Vec::new()));
    assert_eq!(wal[1]["first"], "000000020000000000000008");
}

#[test]
fn every_kind_of_wal_file_of_format_1_is_restored() {
    let place = fixture();
    let root = scratch();
    let folder = make_dir(root.path(), "pg_wal", 0o700);
    let stored = place
        .path()
        .unwrap()
        .join(format!("wal/00000001/0000000100000000/{SEGMENT}.zst"));
    assert_eq!(
        sha256_of(&format!("zstd -dc '{}'", stored.display())),
        SEGMENT_SHA256
    );
    for name in [
        SEGMENT,
        "000000010000000000000006.00000028.backup",
        "000000010000000000000008.partial",
        "00000002.history",
        "000000020000000000000008",
    ] {
        let destination = folder.join(name);
        Walship::at(&place)
            .in_dir(root.path())
            .run(&["restore", name, destination.to_str().unwrap()])
            .succeeded();
        assert!(fs::metadata(&destination).unwrap().len() > 0, "{name}");
    }
    let restored = folder.join(SEGMENT);
    assert_eq!(
        sha256_of(&format!("cat '{}'", restored.display())),
        SEGMENT_SHA256
    );
    let history = fs::read_to_string(folder.join("00000002.history")).unwrap();
    assert!(history.starts_with("1\t0/8"), "{history}");
}

#[test]
fn a_backup_of_format_1_unpacks_with_zstd_and_tar_and_recovers_with_walship() {
    let place = fixture();
    let archive = place.path().unwrap();
    let names = format!(
        "cat '{}'/backups/{BACKUP}/base/*.tar.zst | zstd -dc | tar t",
        archive.display()
    );
    let output = command_as_user("/bin/sh").args(["-c", &names]).output().unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    for name in ["backup_label", "tablespace_map", "global/pg_control"] {
        assert!(names.lines().any(|line| line == name), "{name}: {names}");
    }

    let record = fs::read(archive.join(format!("backups/{BACKUP}/backup.json"))).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let streams = record["streams"].as_array().unwrap();
    let location = streams
        .iter()
        .find_map(|stream| stream["tablespace"]["location"].as_str())
        .unwrap();
    // To the end, and along the first timeline only.
    for (timeline, expected) in [(None, "1012|2001"), (Some("1"), "1010|1010")] {
        let root = scratch();
        let data = root.path().join("data");
        let mapping = format!("{location}={}", root.path().join("ts").display());
        let mut arguments = vec!["recover", "--pgdata", data.to_str().unwrap()];
        arguments.extend(["--tablespace-mapping", &mapping, "--archive-mode", "off"]);
        arguments.extend(
            timeline
                .iter()
                .flat_map(|timeline| ["--target-timeline", timeline]),
        );
        Walship::at(&place).run(&arguments).succeeded();
        // Its restore command and archive command are those of this build.
        let mut cluster = Cluster::adopt(Major::V17, &data);
        cluster.start();
        cluster.wait_until("select not pg_is_in_recovery()", "t", Duration::from_mins(1));
        assert_eq!(
            cluster.sql("select count(*), max(n) from t"),
            expected,
            "{timeline:?}"
        );
    }
}
