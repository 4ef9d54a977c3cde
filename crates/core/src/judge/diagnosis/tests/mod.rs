//! A healthy cluster to plant faults in.

mod faults;
mod promotion;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::facts::*;
use super::*;
use crate::format::backup::fixture;
use crate::format::drills::Drills;
use crate::format::identity::Identity;
use crate::format::keys::Key;
use crate::format::remembered::{ArchiveMark, CloneMark, Remembered};
use crate::format::wal_inventory::WalInventory;
use crate::judge::catalogue::{Backup, Catalogue, Unfinished, UnfinishedState, Unrestorable};
use crate::judge::fixture::{SIZE, at, cluster, empty_archive, segment, tli};
use crate::pg::{Lsn, Major, TimelineHistory, WalName};

const HOUR: Duration = Duration::from_hours(1);

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000, 0).unwrap()
}

/// A backup that begins in segment 2, an hour old, and WAL from there to segment 8.
fn catalogue() -> Catalogue {
    let mut record = fixture::record(&[]);
    record.finished_at = now() - HOUR;
    (record.start_lsn, record.stop_lsn) = (at(2, 40), at(2, 400));
    (record.start_timeline, record.stop_timeline) = (tli(1), tli(1));
    record.wal_ranges = vec![crate::format::backup::WalRange {
        timeline: tli(1),
        start_lsn: at(2, 40),
        end_lsn: at(2, 400),
    }];
    let mut wal = WalInventory::new(SIZE);
    for number in 2..=8 {
        wal.add(&Key::Segment(segment(1, number)).to_string(), 1);
    }
    Catalogue {
        backups: vec![Backup::from(&record)],
        wal,
        ..empty_archive(now())
    }
}

fn server() -> ServerFacts {
    let values = [
        ("archive_command", "/usr/local/bin/walship push %p"),
        ("archive_library", ""),
        ("archive_mode", "on"),
        ("archive_timeout", "60"),
        ("data_checksums", "on"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("max_slot_wal_keep_size", "51200"),
        ("max_wal_senders", "10"),
        ("recovery_target_timeline", "latest"),
        ("restore_command", "walship restore %f %p"),
        ("synchronous_standby_names", ""),
        ("wal_level", "replica"),
    ];
    let values = values.map(|(name, value)| (name.to_owned(), value.to_owned()));
    ServerFacts {
        major: Major::V17,
        in_recovery: false,
        clock_ahead: TimeDelta::zero(),
        cluster: Ok(cluster()),
        timeline: Ok(tli(1)),
        lsn: Ok(at(9, 100)),
        settings: Ok(ServerSettings {
            values: values.into(),
            pending_restart: Vec::new(),
        }),
        archiver: Ok(ArchiverFacts {
            last_archived: Some(segment(1, 8).to_string()),
            last_archived_age: Some(Duration::from_secs(50)),
            ..ArchiverFacts::default()
        }),
        archiver_runs: Ok(true),
        ready: Ok(ReadyFiles::default()),
        slots: Ok(vec![Slot {
            name: "replica1".to_owned(),
            active: true,
            wal_status: Some("reserved".to_owned()),
            retained_bytes: Some(0),
            invalidated: None,
        }]),
        standbys: Ok(vec![StandbyFacts {
            name: "replica1".to_owned(),
            state: "streaming".to_owned(),
            lag_bytes: Some(0),
            lag: None,
        }]),
        streams: Ok(false),
        replay_paused: Ok(false),
        wal_rate: Ok(None),
    }
}

fn healthy() -> Facts {
    let catalogue = catalogue();
    Facts {
        now: now(),
        limits: Limits {
            backup_age: 26 * HOUR,
            archive_delay: Duration::from_mins(5),
            standby_lag: Duration::from_mins(5),
            verify_age: 8 * 24 * HOUR,
            drill_age: 35 * 24 * HOUR,
            push_time: Duration::from_secs(30),
        },
        server: Ok(server()),
        archive: Ok(ArchiveFacts {
            url: "s3://b/p".to_owned(),
            identity: Ok(Some(catalogue.identity.clone())),
            catalogue: Ok(catalogue),
            verification: Ok(None),
            drills: Ok(Drills::none(1)),
            probe: Ok(true),
            delete: Ok(Some(())),
            versioning: Ok(Some(false)),
            object_lock: Ok(None),
            clock_ahead: Some(TimeDelta::zero()),
            last_archived: Ok(Some((WalName::Segment(segment(1, 8)), true))),
            server_lsn_after: Some(at(9, 100)),
        }),
        host: HostFacts {
            pg_wal_space: Ok(Space {
                free_bytes: 50 << 30,
                total_bytes: 100 << 30,
            }),
            exposed_files: Ok(Vec::new()),
            user: "postgres".to_owned(),
            owner: Ok("postgres".to_owned()),
            program: Ok(ProgramState::Runs),
            command_archive: Ok("s3://b/p".to_owned()),
            remembered: Ok(("/data".to_owned(), Remembered::default())),
        },
        expires: true,
    }
}

/// A healthy standby of the same cluster.
fn standby() -> Facts {
    let mut facts = healthy();
    let server = facts.server.as_mut().unwrap();
    server.in_recovery = true;
    server.streams = Ok(true);
    server.archiver = Ok(ArchiverFacts::default());
    server.slots = Ok(Vec::new());
    server.standbys = Ok(Vec::new());
    let archive = facts.archive.as_mut().unwrap();
    archive.last_archived = Ok(None);
    archive.server_lsn_after = None;
    facts
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    let settings = facts.server.as_mut().unwrap().settings.as_mut().unwrap();
    settings.values.insert(name.to_owned(), value.to_owned());
}

fn archiver(facts: &mut Facts) -> &mut ArchiverFacts {
    facts.server.as_mut().unwrap().archiver.as_mut().unwrap()
}

fn ready(facts: &mut Facts, count: u64, age: Duration) {
    facts.server.as_mut().unwrap().ready = Ok(ReadyFiles {
        count,
        first: None,
        oldest_age: Some(age),
    });
}

fn slot(facts: &mut Facts) -> &mut Slot {
    &mut facts.server.as_mut().unwrap().slots.as_mut().unwrap()[0]
}

fn follower(facts: &mut Facts) -> &mut StandbyFacts {
    &mut facts.server.as_mut().unwrap().standbys.as_mut().unwrap()[0]
}

fn archive(facts: &mut Facts) -> &mut ArchiveFacts {
    facts.archive.as_mut().unwrap()
}

fn holdings(facts: &mut Facts) -> &mut Catalogue {
    archive(facts).catalogue.as_mut().unwrap()
}

fn without_segment(facts: &mut Facts, gap: u64) {
    let mut wal = WalInventory::new(SIZE);
    for number in (0..=8).filter(|number| *number != gap) {
        wal.add(&Key::Segment(segment(1, number)).to_string(), 1);
    }
    holdings(facts).wal = wal;
}

fn unfinished(facts: &mut Facts, state: UnfinishedState, silent: Duration) {
    let id = holdings(facts).backups[0].id.clone();
    let last_sign = now() - silent;
    holdings(facts).unfinished = vec![Unfinished {
        id,
        state,
        last_sign,
        keep: None,
        was_verified: false,
    }];
}

/// What is wrong with the facts: everything above information.
fn wrong(facts: &Facts) -> Vec<(Check, Level)> {
    let found = judge(facts)
        .into_iter()
        .filter(|finding| finding.level > Level::Info);
    found.map(|finding| (finding.check, finding.level)).collect()
}
