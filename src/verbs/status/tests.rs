use super::*;
use crate::judge::diagnosis::Check;
use crate::judge::window::LatestIs;
use crate::pg::{Lsn, Major};

fn moment(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

pub(super) fn report() -> StatusReport {
    let id: BackupId = "20261125T041500Z".parse().unwrap();
    let segment: SegmentName = "00000001000000030000002A".parse().unwrap();
    StatusReport {
        archive: "s3://backups/main".to_owned(),
        system_identifier: "7642135790246813579".to_owned(),
        postgres_major: Major::V17,
        window: vec![Window {
            timeline: TimelineId::FIRST,
            earliest: moment("2026-11-11T04:15:00Z"),
            latest: Some(moment("2026-11-25T20:01:13.123456Z")),
            latest_is: LatestIs::Commit,
            first_backup: "20261111T040000Z".parse().unwrap(),
            newest_backup: id.clone(),
            backups: 15,
            last_segment: segment,
            end_lsn: Lsn(0x3_2B00_0000),
            missing: None,
            barrier: None,
            barrier_is: None,
            damage: None,
            released: false,
        }],
        last_wal: Some(LastWal {
            timeline: TimelineId::FIRST,
            segment,
            stored_at: Some(moment("2026-11-25T20:01:20Z")),
        }),
        backlog: Some(Backlog {
            files: Some(3),
            oldest_seconds: Some(7),
            unknown: None,
        }),
        backups: Backups {
            count: 15,
            stored_bytes: 231 << 30,
            newest: Some(NewestBackup {
                id: id.clone(),
                finished_at: moment("2026-11-25T04:31:00Z"),
                stored_bytes: 24 << 30,
                proven: Proven::default(),
            }),
            unrestorable: Vec::new(),
            unfinished: Vec::new(),
        },
        verification: Some(Verification {
            finished_at: moment("2026-11-25T17:01:30Z"),
            findings: 0,
            last_clean_at: None,
        }),
        drill: Some(Drill {
            backup: id,
            started_at: moment("2026-11-22T20:01:30Z"),
            passed: true,
            recovery_ms: Some(245_000),
            data_loss_ms: Some(12_300),
        }),
        expiry: Expiry::Deletes {
            backups: vec!["20261111T040000Z".parse().unwrap()],
            backup_bytes: 24 << 30,
            wal_segments: 212,
        },
        warnings: Vec::new(),
        history: History {
            periods: Vec::new(),
            lanes: Vec::new(),
            followed: None,
            now: moment("2026-11-25T20:01:30Z"),
        },
        now: moment("2026-11-25T20:01:30Z"),
    }
}

#[test]
fn a_healthy_archive_fits_on_one_screen() {
    let expected = "\
Archive       s3://backups/main
Cluster       PostgreSQL 17, system identifier 7642135790246813579
Recoverable   2026-11-11 04:15:00Z to 2026-11-25 20:01:13Z, timeline 1
Last WAL      00000001000000030000002A, stored 10 s ago
Backlog       3 files, the oldest waits for 7 s
Backups       15, 231.0 GiB stored; the newest, 20261125T041500Z, ended 15 h ago
Verified      3 h ago, nothing wrong
Last drill    3 days ago, backup 20261125T041500Z passed; recovery took 4 min 5
              s; data loss at most 12.3 s
Next expiry   deletes 1 backup (24.0 GiB) and 212 WAL segments
Warnings      none
";
    assert_eq!(report().to_string(), expected);
}

#[test]
fn many_warnings_fit_on_the_screen_and_the_worst_comes_first() {
    let mut report = report();
    let words = "word ".repeat(40);
    for level in [
        Level::Problem,
        Level::Warning,
        Level::Warning,
        Level::Warning,
        Level::Warning,
    ] {
        report.warnings.push(Finding {
            check: Check::WalGaps,
            level,
            message: words.clone(),
            fix: None,
        });
    }
    report.window = vec![report.window[0].clone(); 9];
    report.backups.unrestorable = vec!["20261111T040000Z".parse().unwrap()];
    let text = report.to_string();
    assert!(
        text.contains("PROBLEM       word") && text.contains("and 2 more: see walship doctor"),
        "{text}"
    );
    assert!(text.contains("1 cannot be restored"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.lines().count() <= 24 + 5, "{text}");
}

#[test]
fn an_empty_archive_says_what_to_do() {
    let empty = StatusReport {
        window: Vec::new(),
        last_wal: None,
        backlog: None,
        verification: None,
        drill: None,
        expiry: Expiry::NoPolicy,
        backups: Backups {
            count: 0,
            stored_bytes: 0,
            newest: None,
            unrestorable: Vec::new(),
            unfinished: Vec::new(),
        },
        ..report()
    };
    let text = empty.to_string();
    for says in [
        "archive_command",
        "walship basebackup",
        "walship verify",
        "walship drill",
        "no retention policy",
    ] {
        assert!(text.contains(says), "{says} is not in\n{text}");
    }
    assert!(!text.contains("Backlog"), "{text}");
}
