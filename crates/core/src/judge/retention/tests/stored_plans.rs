//! Small archives, each with the plan that is right for it, stored in `plans/`. To store a new one,
//! run the tests with `WALSHIP_STORE_PLANS=1`, and read it.

use chrono::TimeDelta;

use super::scene::{Scene, show};
use super::*;
use crate::judge::catalogue::UnfinishedState;
use crate::judge::fixture::{at, tli};

const NOTHING: RetentionPolicy = RetentionPolicy {
    window: None,
    backups: None,
    daily: None,
    weekly: None,
    monthly: None,
    yearly: None,
};

fn days(days: i64) -> RetentionPolicy {
    RetentionPolicy {
        window: Some(TimeDelta::days(days)),
        ..NOTHING
    }
}

fn backups(count: u32) -> RetentionPolicy {
    RetentionPolicy {
        backups: Some(count),
        ..NOTHING
    }
}

/// Compares the plan with the one that is stored.
#[track_caller]
fn is_as_stored(name: &str, scene: &Scene, policy: &RetentionPolicy, hours: u64) {
    let shown = show(&scene.plan(policy, hours).unwrap());
    let path = format!(
        "{}/src/judge/retention/tests/plans/{name}.txt",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("WALSHIP_STORE_PLANS").is_some() {
        std::fs::write(&path, &shown).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(shown == stored, "{path} has\n{stored}\nbut the plan is\n{shown}");
}

/// Ten days of WAL and a backup each midnight; now it is noon of the tenth day.
fn ten_days() -> Scene {
    Scene::new().wal(1, 0..=227).daily(1, 0..10)
}

const NOON: u64 = 9 * 24 + 12;

// Seen to fail: `retention/choose.rs`: no backup before the window is chosen
#[test]
fn a_window_keeps_the_newest_backup_before_it_with_all_wal_after() {
    is_as_stored("window", &ten_days(), &days(3), NOON);
}

#[test]
fn a_backup_that_ended_exactly_at_the_windows_start_is_its_start() {
    let mut scene = ten_days();
    scene.catalogue.backups[6].finished_at = super::scene::hour(6 * 24 + 12);
    is_as_stored("window_at_its_start", &scene, &days(3), NOON);
}

#[test]
fn a_window_longer_than_the_archive_deletes_nothing() {
    is_as_stored("window_longer", &ten_days(), &days(30), NOON);
}

#[test]
fn the_newest_backups_stay_with_all_wal_after_them() {
    is_as_stored("backups", &ten_days(), &backups(3), NOON);
}

#[test]
fn a_number_of_backups_holds_where_backups_stopped_long_ago() {
    let policy = RetentionPolicy {
        backups: Some(3),
        ..days(3)
    };
    is_as_stored("backups_stopped", &ten_days(), &policy, 100 * 24);
}

#[test]
fn wal_goes_by_itself_where_no_backup_does() {
    let scene = Scene::new().wal(1, 0..=227).backup(1, 9 * 24);
    is_as_stored("wal_by_itself", &scene, &days(3), NOON);
}

// Seen to fail: `retention/periods.rs`: the oldest of a period stays
#[test]
fn grandfathers_fathers_and_sons_stand_alone() {
    let scene = Scene::new().wal(1, 0..=1500).daily(1, 0..62);
    let policy = RetentionPolicy {
        window: Some(TimeDelta::days(2)),
        daily: Some(4),
        weekly: Some(3),
        monthly: Some(3),
        yearly: Some(5),
        ..NOTHING
    };
    is_as_stored("periods", &scene, &policy, 61 * 24 + 12);
}

#[test]
fn with_periods_alone_the_newest_backup_still_leads_on() {
    let policy = RetentionPolicy {
        daily: Some(3),
        ..NOTHING
    };
    is_as_stored("periods_alone", &ten_days(), &policy, NOON);
}

#[test]
fn days_without_a_backup_do_not_count() {
    let scene = Scene::new()
        .wal(1, 0..=227)
        .daily(1, 0..2)
        .backup(1, 30)
        .backup(1, 7 * 24)
        .backup(1, 9 * 24);
    let policy = RetentionPolicy {
        daily: Some(3),
        ..NOTHING
    };
    is_as_stored("periods_with_pauses", &scene, &policy, NOON);
}

#[test]
fn a_mark_keeps_a_backup_until_its_moment() {
    let scene = Scene::new()
        .wal(1, 0..=227)
        .backup(1, 24)
        .kept(None)
        .backup(1, 48)
        .kept(Some(NOON + 1))
        .backup(1, 72)
        .kept(Some(NOON))
        .daily(1, 8..10);
    is_as_stored("marks", &scene, &backups(1), NOON);
}

// Seen to fail: `retention/choose.rs`: the heartbeat does not count
#[test]
fn a_running_backups_wal_is_kept_from_where_it_starts() {
    let from = UnfinishedWal::From {
        timeline: tli(1),
        lsn: at(100, 40),
    };
    let scene = ten_days().unfinished(NOON - 1, UnfinishedState::Started, Some(from));
    is_as_stored("running", &scene, &backups(1), NOON);
}

// Seen to fail: `retention/wal.rs`: no hold
#[test]
fn no_wal_goes_while_nobody_knows_where_a_backup_starts() {
    let state = UnfinishedState::Started;
    let scene = ten_days().unfinished(NOON - 1, state, Some(UnfinishedWal::Unknown));
    is_as_stored("starting", &scene, &backups(1), NOON);
}

// Seen to fail: `retention/choose.rs`: remainders never go; they go at once
#[test]
fn a_backup_that_was_silent_for_a_day_has_died() {
    let state = UnfinishedState::Started;
    let scene = ten_days()
        .unfinished(NOON - 24, state, Some(UnfinishedWal::Unknown))
        .unfinished(NOON - 23, UnfinishedState::Remains, None)
        .unfinished(NOON - 25, UnfinishedState::Remains, None);
    is_as_stored("dead_backups", &scene, &backups(1), NOON);
}

// Seen to fail: `retention/wal.rs`: WAL of unfinished backups is not kept
#[test]
fn a_backup_that_waits_for_its_wal_keeps_what_it_needs() {
    let ranges = UnfinishedWal::Ranges(super::scene::backup(1, 100).wal_ranges);
    let scene = ten_days().unfinished(100, UnfinishedState::WaitingForWal, Some(ranges));
    is_as_stored("waiting", &scene, &backups(1), NOON);
    is_as_stored("waited_too_long", &scene, &backups(1), NOON + 4 * 24);
}

#[test]
fn the_last_hope_waits_for_ever() {
    let ranges = UnfinishedWal::Ranges(super::scene::backup(1, 100).wal_ranges);
    let scene = Scene::new().wal(1, 0..=150).backup(1, 24).unfinished(
        100,
        UnfinishedState::WaitingForWal,
        Some(ranges),
    );
    is_as_stored("last_hope", &scene, &backups(1), 100 * 24);
}

#[test]
fn a_backup_that_cannot_be_restored_takes_part_in_no_promise() {
    let scene = Scene::new()
        .wal(1, 0..=227)
        .backup(1, 24)
        .broken()
        .backup(1, 100)
        .backup(1, 150)
        .broken()
        .backup(1, 200)
        .broken();
    is_as_stored("unrestorable", &scene, &backups(1), NOON);
}

#[test]
fn without_a_backup_no_wal_goes() {
    let scene = Scene::new()
        .wal(1, 0..=227)
        .history(2, &[(1, 100)])
        .wal(2, 100..=110);
    is_as_stored("no_backup", &scene, &days(1), 100 * 24);
}

/// A failover in segment 100: the old primary still archived a few segments of its own.
fn failover() -> Scene {
    Scene::new()
        .wal(1, 0..=103)
        .daily(1, 0..4)
        .history(2, &[(1, 100)])
        .wal(2, 100..=227)
        .daily(2, 5..10)
}

#[test]
fn a_window_reaches_back_over_a_failover() {
    is_as_stored("failover_in_the_window", &failover(), &days(6), NOON);
}

// Seen to fail: `retention/choose.rs`: every branch is dead
#[test]
fn an_old_primarys_wal_goes_when_nothing_was_written_to_it_for_long() {
    is_as_stored("failover_young", &failover(), &days(3), NOON);
    is_as_stored("failover_old", &failover(), &days(3), NOON + 72);
}

/// A recovery to segment 100 on the seventh day left two days of timeline 1 behind.
fn abandoned_branch() -> Scene {
    Scene::new()
        .wal(1, 0..=150)
        .daily(1, 0..7)
        .history(2, &[(1, 100)])
        .wal(2, 100..=101)
}

// Seen to fail: `retention/choose.rs`: a backup is chosen on the latest timeline only
#[test]
fn moments_of_an_abandoned_branch_are_promised_too() {
    is_as_stored("branch_in_the_window", &abandoned_branch(), &days(1), 160);
}

// Seen to fail: `retention/choose.rs`: they are counted among all only
#[test]
fn the_newest_backups_are_counted_on_the_latest_chain_and_among_all() {
    is_as_stored("branch_newest", &abandoned_branch(), &backups(2), 160);
}

#[test]
fn an_abandoned_branch_goes_once_its_last_backup_has_gone() {
    let scene = Scene::new()
        .wal(1, 0..=150)
        .daily(1, 0..7)
        .history(2, &[(1, 100)])
        .wal(2, 100..=600)
        .daily(2, 8..25);
    is_as_stored("branch_gone", &scene, &days(3), 24 * 24 + 12);
    let yearly = RetentionPolicy {
        weekly: Some(4),
        ..days(3)
    };
    is_as_stored("branch_gone_but_weekly", &scene, &yearly, 24 * 24 + 12);
}

// Seen to fail: `retention/choose.rs`: the newest backups are counted on the latest chain only
#[test]
fn a_timeline_that_nobody_meant_to_begin_costs_no_backup() {
    // A copy was promoted by mistake on the sixth day, archived one segment, and was stopped.
    let scene = Scene::new()
        .wal(1, 0..=227)
        .daily(1, 0..10)
        .history(2, &[(1, 130)])
        .wal(2, 130..=130);
    is_as_stored("accident", &scene, &backups(2), NOON);
}

#[test]
fn a_timeline_without_a_history_of_its_own_is_known_from_its_descendants() {
    let scene = Scene::new()
        .wal(1, 0..=60)
        .daily(1, 0..2)
        .wal(2, 60..=100)
        .history(3, &[(1, 60), (2, 100)])
        .wal(3, 100..=227)
        .daily(3, 5..10);
    is_as_stored("no_own_history", &scene, &days(3), NOON);
}

// Seen to fail: `retention/choose.rs`: released WAL is ignored
#[test]
fn a_backup_that_stands_alone_is_no_start_of_a_longer_window() {
    // An earlier, shorter window released the WAL after the backup of the third day.
    let scene = Scene::new()
        .wal(1, 48..=48)
        .backup(1, 48)
        .wal(1, 120..=227)
        .daily(1, 5..10)
        .released(1, 0, 47)
        .released(1, 49, 119);
    let policy = RetentionPolicy {
        monthly: Some(2),
        ..days(6)
    };
    is_as_stored("longer_window", &scene, &policy, NOON);
}

#[test]
fn a_gap_that_nobody_made_on_purpose_does_not_end_a_promise() {
    let scene = Scene::new().wal(1, 0..=100).wal(1, 110..=227).daily(1, 0..10);
    is_as_stored("lost_wal", &scene, &days(6), NOON);
}

#[test]
fn a_backup_that_went_through_a_promotion_needs_both_timelines() {
    let mut scene = failover();
    let mut over = super::scene::backup(2, 99);
    over.start_timeline = tli(1);
    over.stop_lsn = at(101, 400);
    over.wal_ranges = vec![
        WalRange {
            timeline: tli(1),
            start_lsn: at(99, 40),
            end_lsn: at(100, 1000),
        },
        WalRange {
            timeline: tli(2),
            start_lsn: at(100, 1000),
            end_lsn: at(101, 400),
        },
    ];
    scene.catalogue.backups.insert(4, over);
    let policy = RetentionPolicy {
        daily: Some(6),
        ..backups(1)
    };
    is_as_stored("over_a_promotion", &scene, &policy, NOON + 20 * 24);
}
