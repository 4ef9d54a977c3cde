//! `walship push`: what it stores, what it refuses, and what a repetition means.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::sample::{SEGMENT, Sample};
use crate::support::make_dir;
use crate::support::stores::Place;
use crate::support::trace;

fn push(name: &str) -> [String; 2] {
    ["push".to_owned(), format!("pg_wal/{name}")]
}

fn stored(archive: &Place, name: &str) -> PathBuf {
    archive
        .path()
        .unwrap()
        .join(format!("wal/{}/{}/{name}.zst", &name[..8], &name[..16]))
}

#[test]
fn a_pushed_segment_reads_back_with_zstd_alone_byte_for_byte() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let name = &Sample::shared().segments[0];
    let output = data.walship(&archive).run(&push(name)).succeeded();
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("", ""),
        "push is silent on success"
    );
    let decoded = Command::new("zstd")
        .arg("-dc")
        .arg(stored(&archive, name))
        .output()
        .unwrap();
    assert!(decoded.status.success());
    assert_eq!(decoded.stdout, fs::read(data.segment(name)).unwrap());
}

#[test]
fn the_first_push_creates_the_archives_identity_and_later_ones_keep_it() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let segments = &Sample::shared().segments;
    data.walship(&archive).run(&push(&segments[0])).succeeded();
    let identity = fs::read(archive.path().unwrap().join("walship.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&identity).unwrap();
    assert_eq!(json["postgres_major"], 17);
    assert_eq!(json["segment_bytes"], SEGMENT);
    assert_eq!(json["conditional_writes"], true);
    data.walship(&archive).run(&push(&segments[1])).succeeded();
    assert_eq!(
        fs::read(archive.path().unwrap().join("walship.json")).unwrap(),
        identity
    );
}

// Seen to fail: `cluster/wal_file.rs`: `has_archived` is asked of a cluster that remembers its archive
#[test]
fn a_push_costs_the_same_however_many_files_wait() {
    let name = &Sample::shared().segments[0];
    let [few, many] = [1_000, 100_000].map(|files| {
        let (data, archive) = (Sample::shared().copy(), Place::directory());
        data.walship(&archive).run(&push(name)).succeeded();
        let status = make_dir(&data.file("pg_wal"), "archive_status", 0o700);
        fs::write(status.join(format!("{name}.ready")), "").unwrap();
        for number in 0..files {
            let waiting = format!("00000001{:08X}{:08X}.ready", 1000 + number / 256, number % 256);
            fs::write(status.join(waiting), "").unwrap();
        }
        trace::count(&data.walship(&archive), "getdents64", &push(name))
    });
    assert_eq!(
        many, few,
        "reads of directories with 100,000 and with 1,000 files"
    );
}

// Seen to fail: `archive/writing.rs`: a conflict is an error at once
#[test]
fn the_same_content_pushed_again_succeeds_and_changes_nothing() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let name = &Sample::shared().segments[0];
    data.walship(&archive).run(&push(name)).succeeded();
    let before = fs::metadata(stored(&archive, name)).unwrap().modified().unwrap();
    data.walship(&archive).run(&push(name)).succeeded();
    // Another level makes other bytes of the same content.
    data.walship(&archive)
        .env("WALSHIP_PUSH_COMPRESSION_LEVEL", "9")
        .run(&push(name))
        .succeeded();
    assert_eq!(
        fs::metadata(stored(&archive, name)).unwrap().modified().unwrap(),
        before
    );
}

// Seen to fail: `archive/writing.rs`: `PutMode::Replace`; any content counts as the same
#[test]
fn different_content_under_the_same_name_is_refused_with_both_hashes() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let name = &Sample::shared().segments[0];
    data.walship(&archive).run(&push(name)).succeeded();
    let stored_before = fs::read(stored(&archive, name)).unwrap();
    let mut content = fs::read(data.segment(name)).unwrap();
    content[SEGMENT - 1] ^= 1;
    fs::write(data.segment(name), content).unwrap();
    let output = data.walship(&archive).run(&push(name)).exited(1);
    assert_eq!(output.stderr.matches("XXH3").count(), 1, "{}", output.stderr);
    assert!(output.stderr.contains("other content"), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "one line: {}", output.stderr);
    assert_eq!(fs::read(stored(&archive, name)).unwrap(), stored_before);
}

#[test]
fn a_damaged_stored_object_is_reported_and_not_replaced() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let name = &Sample::shared().segments[0];
    data.walship(&archive).run(&push(name)).succeeded();
    for damage in [&b""[..], b"not zstd at all"] {
        fs::write(stored(&archive, name), damage).unwrap();
        let output = data.walship(&archive).run(&push(name)).exited(1);
        assert!(
            output.stderr.contains("damaged") && output.stderr.contains(name),
            "{}",
            output.stderr
        );
        assert_eq!(fs::read(stored(&archive, name)).unwrap(), damage);
    }
}

// Seen to fail: `cluster/wal_file.rs`: no `header.check`; `archive/identity.rs`: `open_or_create` without
// `identity.check`
#[test]
fn another_clusters_segment_is_refused() {
    let (ours, theirs, archive) = (
        Sample::shared().copy(),
        Sample::other().copy(),
        Place::directory(),
    );
    ours.walship(&archive)
        .run(&push(&Sample::shared().segments[0]))
        .succeeded();
    let output = theirs
        .walship(&archive)
        .run(&push(&Sample::other().segments[0]))
        .exited(1);
    assert!(output.stderr.contains("system identifier"), "{}", output.stderr);
    // A foreign segment in our own data directory is noticed by its page header.
    let name = &Sample::shared().segments[1];
    fs::copy(theirs.segment(&Sample::other().segments[1]), ours.segment(name)).unwrap();
    let output = ours.walship(&archive).run(&push(name)).exited(1);
    assert!(output.stderr.contains("system identifier"), "{}", output.stderr);
    assert!(!stored(&archive, name).exists());
}

#[test]
fn a_segment_under_another_segments_name_is_refused() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let segments = &Sample::shared().segments;
    fs::copy(data.segment(&segments[0]), data.segment(&segments[1])).unwrap();
    let output = data.walship(&archive).run(&push(&segments[1])).exited(1);
    assert!(output.stderr.contains(&segments[1]), "{}", output.stderr);
    assert!(!stored(&archive, &segments[1]).exists());
}

// Seen to fail: `cluster/wal_file.rs`: the size is not compared
#[test]
fn truncated_empty_and_zeroed_segments_are_refused() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let name = &Sample::shared().segments[0];
    let whole = fs::read(data.segment(name)).unwrap();
    for content in [&whole[..SEGMENT - 1], &whole[..100], &[], &vec![0; SEGMENT]] {
        fs::write(data.segment(name), content).unwrap();
        let output = data.walship(&archive).run(&push(name)).exited(1);
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
        assert!(!stored(&archive, name).exists());
    }
}

#[test]
fn names_that_postgresql_does_not_archive_are_refused() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    for path in [
        "/etc/passwd",
        "pg_wal/../global/pg_control",
        "pg_wal/archive_status",
        "pg_wal/RECOVERYXLOG",
    ] {
        let output = data.walship(&archive).run(&["push", path]).exited(1);
        assert!(
            output
                .stderr
                .contains("not the name of a file PostgreSQL archives"),
            "{}",
            output.stderr
        );
    }
    assert_eq!(fs::read_dir(archive.path().unwrap()).unwrap().count(), 0);
}

// Seen to fail: `cluster/wal_file.rs`: a missing `pg_control` is made up
#[test]
fn a_history_or_backup_file_needs_a_data_directory() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    fs::write(
        data.segment("00000002.history"),
        "1\t0/3000000\tno recovery target specified\n",
    )
    .unwrap();
    let segments = &Sample::shared().segments;
    data.walship(&archive).run(&push(&segments[0])).succeeded();
    data.walship(&archive).run(&push("00000002.history")).succeeded();
    fs::remove_file(data.file("global/pg_control")).unwrap();
    let output = data.walship(&archive).run(&push("00000002.history")).exited(1);
    assert!(output.stderr.contains("pg_control"), "{}", output.stderr);
    // A segment says whose it is by itself.
    data.walship(&archive).run(&push(&segments[1])).succeeded();
}

// Seen to fail: `cluster/wal_file.rs`: `check_history` accepts every history
#[test]
fn a_history_that_contradicts_its_parents_is_refused() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    data.walship(&archive)
        .run(&push(&Sample::shared().segments[0]))
        .succeeded();
    for (name, content, code) in [
        ("00000002.history", "1\t0/3000000\tfirst\n", 0),
        (
            "00000003.history",
            "1\t0/3000000\tfirst\n\n2\t0/4000000\tsecond\n",
            0,
        ),
        (
            "00000004.history",
            "1\t0/2000000\tfirst\n\n2\t0/4000000\tsecond\n",
            1,
        ),
        ("00000005.history", "garbage\n", 1),
        // The same name with another content: a second promotion out of sight of the first.
        ("00000002.history", "1\t0/3500000\tother\n", 1),
    ] {
        fs::write(data.segment(name), content).unwrap();
        data.walship(&archive).run(&push(name)).exited(code);
    }
}

#[test]
fn two_partials_of_one_segment_are_both_kept() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let name = &Sample::shared().segments[0];
    let partial = format!("{name}.partial");
    let mut content = fs::read(data.segment(name)).unwrap();
    for _ in 0..2 {
        fs::write(data.segment(&partial), &content).unwrap();
        data.walship(&archive).run(&push(&partial)).succeeded();
        content[SEGMENT - 1] ^= 1;
    }
    let folder = stored(&archive, name).parent().unwrap().to_owned();
    let kept = fs::read_dir(folder).unwrap().filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .ends_with(".partial.zst")
    });
    assert_eq!(kept.count(), 2);
}

// Seen to fail: `archive/identity.rs`: `refuse_orphans` finds none
#[test]
fn objects_without_an_identity_are_not_adopted() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let segments = &Sample::shared().segments;
    data.walship(&archive).run(&push(&segments[0])).succeeded();
    fs::remove_file(archive.path().unwrap().join("walship.json")).unwrap();
    let output = data.walship(&archive).run(&push(&segments[1])).exited(1);
    assert!(output.stderr.contains("walship.json"), "{}", output.stderr);
    assert!(!archive.path().unwrap().join("walship.json").exists());
}

#[test]
fn an_archive_of_a_newer_format_is_refused() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let segments = &Sample::shared().segments;
    data.walship(&archive).run(&push(&segments[0])).succeeded();
    let path = archive.path().unwrap().join("walship.json");
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("\"format_version\": 1", "\"format_version\": 2");
    fs::write(&path, crate::support::sealed(text)).unwrap();
    let output = data.walship(&archive).run(&push(&segments[1])).exited(1);
    assert!(output.stderr.contains("format version 2"), "{}", output.stderr);
}

// Seen to fail: `exit.rs`: a push fails with 200
#[test]
fn bad_usage_of_push_is_1_so_that_the_archiver_survives() {
    let archive = Place::directory();
    let walship = crate::support::walship::Walship::at(&archive);
    walship.run(&["push"]).exited(1);
    walship.run(&["push", "a", "b"]).exited(1);
    walship.run(&["push", "--nonsense"]).exited(1);
    walship
        .clone()
        .env("WALSHIP_PUSH_TIMEOUT", "soon")
        .run(&["push", "x"])
        .exited(1);
    crate::support::walship::Walship::without_archive()
        .run(&["push", "000000010000000000000001"])
        .exited(1);
}

// Seen to fail: `directory/publication.rs`: the object is written in place
#[test]
fn a_push_killed_at_any_moment_leaves_nothing_or_everything_and_can_be_repeated() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let name = &Sample::shared().segments[0];
    for microseconds in (0..60).map(|i| i * 700) {
        let mut running = data.walship(&archive).spawn(&push(name));
        std::thread::sleep(std::time::Duration::from_micros(microseconds));
        running.kill9();
        drop(running);
        if stored(&archive, name).exists() {
            data.walship(&archive)
                .run(&["restore", name, "pg_wal/RECOVERYXLOG"])
                .succeeded();
            assert_eq!(
                fs::read(data.segment("RECOVERYXLOG")).unwrap(),
                fs::read(data.segment(name)).unwrap()
            );
            fs::remove_file(data.segment("RECOVERYXLOG")).unwrap();
            fs::remove_file(stored(&archive, name)).unwrap();
        }
    }
    data.walship(&archive).run(&push(name)).succeeded();
    data.walship(&archive).run(&push(name)).succeeded();
}

#[test]
fn an_archive_that_vanished_is_not_started_anew_behind_the_administrators_back() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let segments = &Sample::shared().segments;
    data.walship(&archive).run(&push(&segments[0])).succeeded();
    fs::create_dir(data.file("pg_wal/archive_status")).unwrap();
    fs::write(
        data.file(&format!("pg_wal/archive_status/{}.done", segments[0])),
        "",
    )
    .unwrap();
    data.announce(&segments[1]);
    // Its file system is not mounted, or the bucket was emptied.
    let path = archive.path().unwrap();
    for gone in [true, false] {
        let _ = fs::remove_dir_all(path);
        if !gone {
            fs::create_dir(path).unwrap();
        }
        let output = data.walship(&archive).run(&push(&segments[1])).exited(1);
        assert!(output.stderr.contains("walship basebackup"), "{}", output.stderr);
        assert!(!path.join("walship.json").exists());
        assert_eq!(path.exists(), !gone);
    }
}

/// A replica that is promoted while the archive's file system is not mounted has archived nothing itself.
// Seen to fail: `cluster/wal_file.rs`: the timeline is not looked at
#[test]
fn a_promoted_server_begins_no_archive_and_joins_the_one_that_is_there() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let first = &Sample::shared().segments[0];
    let history = "1\t0/2000000\tno recovery target specified\n";
    fs::write(data.segment("00000002.history"), history).unwrap();
    let path = archive.path().unwrap();
    let output = data.walship(&archive).run(&push("00000002.history")).exited(1);
    for part in [
        "nothing was archived there yet",
        "was promoted or recovered",
        "walship basebackup",
    ] {
        assert!(output.stderr.contains(part), "{}", output.stderr);
    }
    assert_eq!(output.stderr.trim_end().lines().count(), 1, "{}", output.stderr);
    assert!(fs::read_dir(path).unwrap().next().is_none());
    data.walship(&archive).run(&push(first)).succeeded();
    data.walship(&archive).run(&push("00000002.history")).succeeded();
}
