//! `walship status`: the one screen.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use walship_core::pg::Major;

use crate::recovery::{History, take_backup};
use crate::server::wait_archived;
use crate::support::postgres::Cluster;
use crate::support::stores::Place;
use crate::support::walship::Walship;

const PATIENCE: Duration = Duration::from_mins(1);

fn status(walship: &Walship, code: i32, arguments: &[&str]) -> Value {
    let output = walship
        .run(&[&["status", "--json"], arguments].concat())
        .exited(code);
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

/// Has finished WAL wait for the archiver.
fn hold_back(primary: &Cluster) {
    primary.set("archive_command", "false");
    primary.reload();
    primary.wait_until("show archive_command", "false", PATIENCE);
    primary.switch_wal();
}

// Seen to fail: `status/mod.rs`: the window, the backlog, the last verification, the next expiry, each left out
#[test]
fn one_screen_shows_what_there_is_and_a_program_gets_the_same() {
    let history = History::write(Major::V18, Place::directory());
    let (walship, primary) = (&history.walship, &history.primary);
    let screen = walship.run(&["status"]).succeeded().stdout;
    assert!(screen.lines().count() <= 24, "{screen}");
    assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    for says in [
        history.backup.as_str(),
        history.last_segment.as_str(),
        "Warnings      none",
    ] {
        assert!(screen.contains(says), "{says} is not in\n{screen}");
    }
    let report = status(walship, 0, &[]);
    assert_eq!(report["last_wal"]["segment"], history.last_segment.as_str());
    assert_eq!(report["backups"]["newest"]["id"], history.backup.as_str());
    assert_eq!(report["window"][0]["latest_is"], "commit", "{report}");
    assert_eq!(report["drill"], Value::Null);
    assert_eq!(report["expiry"]["state"], "no_policy");
    assert_eq!(report.get("backlog"), None);

    assert_eq!(report["verification"], Value::Null);

    // Of two backups the policy keeps one.
    let newest = take_backup(walship, primary);
    let policy = walship.clone().env("WALSHIP_RETENTION_KEEP_BACKUPS", "1");
    walship.run(&["verify"]).succeeded();
    let report = status(&policy, 0, &[]);
    assert_eq!(report["verification"]["findings"], 0, "{report}");
    assert_eq!(report["backups"]["newest"]["id"], newest.as_str());
    assert_eq!(
        report["expiry"]["backups"][0],
        history.backup.as_str(),
        "{report}"
    );

    hold_back(primary);
    let data = primary.data_dir().to_str().unwrap();
    let conninfo = primary.conninfo();
    for arguments in [["--pgdata", data], ["-d", &conninfo]] {
        let report = status(walship, 0, &arguments);
        assert!(report["backlog"]["files"].as_u64().unwrap() >= 1, "{report}");
    }
    let impatient = walship.clone().env("WALSHIP_DOCTOR_MAX_ARCHIVE_DELAY", "1ms");
    let report = status(&impatient.env("PGDATA", data), 10, &[]);
    assert_eq!(report["warnings"][0]["id"], "archiver.backlog", "{report}");
}

// Seen to fail: `status/mod.rs`: no warnings; `status/args.rs`: no picture is written
#[test]
fn what_is_wrong_with_an_archive_is_said_and_has_an_exit_code() {
    let history = History::write(Major::V17, Place::directory());
    let missing = history.primary.switch_wal();
    let after = history.primary.switch_wal();
    wait_archived(&history.primary, &after);
    let key = format!("wal/{}/{}/{missing}.zst", &missing[..8], &missing[..16]);
    fs::remove_file(history.place.path().unwrap().join(key)).unwrap();
    let output = history.walship.run(&["status"]).exited(10);
    assert!(
        output.stdout.contains("PROBLEM") && output.stdout.contains(&missing),
        "{output:?}"
    );
    let beside = tempfile::tempdir().unwrap();
    crate::support::give_to_user(beside.path());
    let file = beside.path().join("history.svg");
    let drawn = ["status", "--svg", file.to_str().unwrap()];
    history.walship.run(&drawn).exited(10);
    let picture = fs::read_to_string(&file).unwrap();
    for says in [
        &format!("Missing WAL, which no recovery crosses: {missing}."),
        "gap: 1 segment",
        &format!("backup {}: can be restored", history.backup),
    ] {
        assert!(picture.contains(says), "{says} is not in\n{picture}");
    }
    // A failed drill is said, too, as long as none has passed since.
    let proof = format!("backups/{}/proof.json", history.backup);
    let drill = serde_json::json!({
        "started_at": "2026-11-24T04:15:00Z", "finished_at": "2026-11-24T04:16:00Z", "host": "db1",
        "walship": "0.1.0", "target": "the end", "failure": "checksums",
    });
    let proof_json =
        serde_json::json!({"format_version": 1, "backup": history.backup, "last_failure": drill});
    let path = history.place.path().unwrap().join(proof);
    fs::write(&path, crate::support::sealed(proof_json.to_string())).unwrap();
    crate::support::give_to_user(&path);
    let output = history.walship.run(&["status"]).exited(10);
    assert!(
        output.stdout.contains("FAILED") && output.stdout.contains("checksums"),
        "{output:?}"
    );
    history
        .walship
        .clone()
        .env("WALSHIP_ARCHIVE", "file:///no/such/archive")
        .run(&["status"])
        .exited(2);
}
