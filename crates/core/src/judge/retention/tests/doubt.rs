//! In doubt, nothing is deleted.

use chrono::TimeDelta;

use super::scene::{Scene, id};
use super::*;
use crate::error::ErrorKind;
use crate::format::backup::BackupSource;
use crate::judge::catalogue::{UnfinishedState, Unrestorable};
use crate::judge::fixture::tli;
use crate::pg::TimelineHistory;

fn archive() -> Scene {
    Scene::new().wal(1, 0..=227).daily(1, 0..10)
}

#[track_caller]
fn refused(scene: &Scene, policy: &RetentionPolicy, kind: ErrorKind, words: &[&str]) {
    let error = scene.plan(policy, 230).expect_err("it is refused");
    for word in words.iter().chain(&["nothing was deleted"]) {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
    assert!(!error.to_string().contains('\n'), "{error}");
    assert_eq!(error.kind(), kind, "{error}");
}

fn two_backups() -> RetentionPolicy {
    RetentionPolicy {
        backups: Some(2),
        ..RetentionPolicy::default()
    }
}

#[test]
fn without_a_policy_nothing_is_deleted() {
    let none = RetentionPolicy::default();
    refused(
        &archive(),
        &none,
        ErrorKind::Invalid,
        &["no retention policy is set", "keep_window"],
    );
}

// Seen to fail: `retention/policy.rs`: it is accepted
#[test]
fn a_policy_of_zeros_is_refused() {
    let zeros = RetentionPolicy {
        backups: Some(0),
        daily: Some(0),
        ..RetentionPolicy::default()
    };
    refused(&archive(), &zeros, ErrorKind::Invalid, &["would keep nothing"]);
    let with_a_window = RetentionPolicy {
        window: Some(TimeDelta::days(1)),
        ..zeros
    };
    assert!(archive().plan(&with_a_window, 230).is_ok());
}

// Seen to fail: `retention/mod.rs`: records and marks are not looked at
#[test]
fn a_record_that_cannot_be_read_stops_everything() {
    let mut scene = archive();
    scene.catalogue.unrestorable.push(Unrestorable {
        id: id(5),
        reason: "it is damaged".to_owned(),
        backup: None,
    });
    refused(
        &scene,
        &two_backups(),
        ErrorKind::Corrupt,
        &[id(5).to_string().as_str(), "walship verify"],
    );
}

// Seen to fail: `retention/histories.rs`: histories are not looked at
#[test]
fn a_history_that_cannot_be_read_stops_everything() {
    let mut scene = archive();
    let unreadable = &mut scene.catalogue.unreadable_histories;
    unreadable.insert(tli(2), "its hash is another".to_owned());
    refused(
        &scene,
        &two_backups(),
        ErrorKind::Corrupt,
        &["history of timeline 2", "another"],
    );
}

#[test]
fn a_history_that_is_missing_stops_everything() {
    let scene = archive().wal(3, 100..=100);
    refused(
        &scene,
        &two_backups(),
        ErrorKind::Corrupt,
        &["timeline 3", "00000003.history"],
    );
    let of_a_backup = archive().backup(4, 228);
    refused(&of_a_backup, &two_backups(), ErrorKind::Corrupt, &["timeline 4"]);
}

#[test]
fn histories_that_disagree_stop_everything() {
    let mut scene = archive()
        .history(2, &[(1, 100)])
        .history(3, &[(1, 100), (2, 120)]);
    let other = TimelineHistory::parse(tli(2), b"1\t0/5000000\tx").unwrap();
    scene.catalogue.histories.insert(tli(2), other);
    refused(&scene, &two_backups(), ErrorKind::Conflict, &["disagree"]);
}

#[test]
fn a_mark_that_cannot_be_read_stops_everything() {
    let mut scene = archive();
    let unreadable = &mut scene.catalogue.unreadable_keeps;
    unreadable.insert(id(24), "keep.json is damaged".to_owned());
    refused(
        &scene,
        &two_backups(),
        ErrorKind::Corrupt,
        &["keep.json is damaged", "--release"],
    );
}

#[test]
fn a_waiting_backup_whose_needs_cannot_be_read_stops_everything() {
    let unreadable = UnfinishedWal::Unreadable("pending.json is damaged".to_owned());
    let scene = archive().unfinished(3, UnfinishedState::WaitingForWal, Some(unreadable));
    refused(
        &scene,
        &two_backups(),
        ErrorKind::Corrupt,
        &["pending.json is damaged"],
    );
}

// Seen to fail: `judge/catalogue.rs`: `ended_by` is `finished_at`
#[test]
fn a_standbys_backup_begins_the_window_only_when_its_record_was_stored_before_it() {
    let mut scene = archive();
    // Dated a day too early by the standby's clock; its record has the store's.
    let late = scene
        .catalogue
        .backups
        .iter_mut()
        .find(|backup| backup.id == id(6 * 24));
    let late = late.unwrap();
    late.source = BackupSource::Standby;
    late.stored_at = Some(late.finished_at + TimeDelta::days(1));
    let policy = RetentionPolicy {
        window: Some(TimeDelta::hours(230 - 6 * 24 - 12)),
        ..RetentionPolicy::default()
    };
    let action = |scene: &Scene, day: u64| {
        let plan = scene.plan(&policy, 230).unwrap();
        let fate = plan.backups.into_iter().find(|fate| fate.id == id(day * 24));
        fate.unwrap().action
    };
    assert_eq!(action(&scene, 5), Action::Keep);
    assert_eq!(action(&scene, 4), Action::Delete);
    for backup in &mut scene.catalogue.backups {
        backup.source = BackupSource::Primary;
    }
    assert_eq!(action(&scene, 5), Action::Delete);
}
