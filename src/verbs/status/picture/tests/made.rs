//! Made archives, and what `walship status` reports of them.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::super::super::tests::report as healthy;
use super::super::super::{StatusReport, backups, last_wal};
use crate::format::backup::{BackupKind, BackupSource, WalRange};
use crate::format::identity::Identity;
use crate::format::keep::Keep;
use crate::format::keys::{BackupId, Key};
use crate::format::proof::{DrillRecord, Proof};
use crate::format::released::TimelineRanges;
use crate::format::retired::Retired;
use crate::format::wal_inventory::WalInventory;
use crate::judge::catalogue::{Backup, Catalogue, Unfinished, UnfinishedState, Unrestorable};
use crate::judge::damage::Damage;
use crate::judge::history_picture::History;
use crate::judge::window::{LatestIs, Window, stretches};
use crate::pg::{
    ClusterIdentity, Lsn, Major, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId,
};

const SIZE: SegmentSize = SegmentSize::DEFAULT;

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn lsn(segment: u64, offset: u64) -> Lsn {
    Lsn(segment * SIZE.bytes() + offset)
}

/// A made archive in which so many minutes pass with each segment.
pub(super) struct Made {
    catalogue: Catalogue,
    minutes: i64,
}

impl Made {
    pub(super) fn new(minutes: i64) -> Self {
        let cluster = ClusterIdentity {
            system_identifier: 1,
            postgres_major: Major::V17,
            segment_size: SIZE,
        };
        let begin = "2026-10-20T08:00:00Z".parse().unwrap();
        let catalogue = Catalogue {
            identity: Identity::new(cluster, true, begin),
            backups: Vec::new(),
            unrestorable: Vec::new(),
            unfinished: Vec::new(),
            wal: WalInventory::new(SIZE),
            histories: [(tli(1), TimelineHistory::root(tli(1)))].into(),
            unreadable_histories: BTreeMap::new(),
            retired: BTreeMap::new(),
            newest_ends: BTreeMap::new(),
            unreadable_keeps: BTreeMap::new(),
            released: TimelineRanges::default(),
            damage: Damage::default(),
        };
        Self { catalogue, minutes }
    }

    pub(super) fn time(&self, segment: u64) -> DateTime<Utc> {
        self.catalogue.identity.created_at + TimeDelta::minutes(self.minutes * segment.cast_signed())
    }

    pub(super) fn wal(self, timeline: u32, segments: std::ops::RangeInclusive<u64>) -> Self {
        self.wal_later(timeline, segments, 0)
    }

    /// WAL that was written when that many more segments had been.
    fn wal_later(mut self, timeline: u32, segments: std::ops::RangeInclusive<u64>, later: u64) -> Self {
        for number in segments {
            let segment = SegmentName::new(tli(timeline), SegmentNumber(number), SIZE).unwrap();
            let stored = self.time(number + 1 + later);
            self.catalogue
                .wal
                .add_stored(&Key::Segment(segment).to_string(), 1, stored);
        }
        self
    }

    /// A timeline with these ancestors; its history was stored when that segment was.
    fn fork(mut self, timeline: u32, ancestors: &[(u32, u64)], stored: u64) -> Self {
        let lines: Vec<_> = ancestors
            .iter()
            .map(|(parent, segment)| format!("{parent}\t{}\treason", lsn(*segment, 4_000_000)))
            .collect();
        let history = TimelineHistory::parse(tli(timeline), lines.join("\n").as_bytes()).unwrap();
        self.catalogue.histories.insert(tli(timeline), history);
        let stored = self.time(stored) + TimeDelta::minutes(self.minutes / 4);
        self.catalogue
            .wal
            .add_stored(&Key::History(tli(timeline)).to_string(), 1, stored);
        self
    }

    fn made(&self, timeline: u32, segment: u64) -> Backup {
        let started_at = self.time(segment);
        Backup {
            id: BackupId::at(started_at),
            label: "nightly".to_owned(),
            kind: BackupKind::Full,
            source: BackupSource::Primary,
            postgres_version: "17.11".to_owned(),
            started_at,
            finished_at: started_at + TimeDelta::minutes(12),
            start_lsn: lsn(segment, 40),
            stop_lsn: lsn(segment, 4000),
            start_timeline: tli(timeline),
            stop_timeline: tli(timeline),
            wal_ranges: vec![WalRange {
                timeline: tli(timeline),
                start_lsn: lsn(segment, 40),
                end_lsn: lsn(segment, 4000),
            }],
            size_bytes: 90 << 30,
            stored_bytes: 24 << 30,
            proof: None,
            keep: None,
            stored_at: None,
        }
    }

    fn backup(self, timeline: u32, segment: u64) -> Self {
        self.backup_with(timeline, segment, |_| {})
    }

    pub(super) fn backup_with(
        mut self,
        timeline: u32,
        segment: u64,
        change: impl FnOnce(&mut Backup),
    ) -> Self {
        let mut backup = self.made(timeline, segment);
        change(&mut backup);
        self.catalogue.backups.push(backup);
        self
    }

    pub(super) fn unrestorable(mut self, timeline: u32, segment: u64, reason: &str) -> Self {
        let backup = self.made(timeline, segment);
        self.catalogue.unrestorable.push(Unrestorable {
            id: backup.id.clone(),
            reason: reason.to_owned(),
            backup: Some(backup),
        });
        self
    }

    fn unfinished(mut self, segment: u64, state: UnfinishedState) -> Self {
        let at = self.time(segment);
        self.catalogue.unfinished.push(Unfinished {
            id: BackupId::at(at),
            state,
            last_sign: at + TimeDelta::minutes(5),
            keep: None,
            was_verified: false,
        });
        self
    }

    fn released(mut self, timeline: u32, first: u64, last: u64) -> Self {
        self.catalogue
            .released
            .of_mut(tli(timeline))
            .insert_range(first, last);
        self
    }

    fn damaged(mut self, timeline: u32, number: u64) -> Self {
        let segment = SegmentName::new(tli(timeline), SegmentNumber(number), SIZE).unwrap();
        self.catalogue
            .damage
            .wal
            .insert(segment, "its hash differs".to_owned());
        self
    }

    fn windows(&self) -> Vec<Window> {
        let stretches = stretches(&self.catalogue).unwrap();
        let windows = stretches.iter().filter_map(|stretch| stretch.window(None));
        let with_commit = windows.map(|window| {
            let SegmentNumber(last) = window.last_segment.number(SIZE).unwrap();
            Window {
                latest: Some(self.time(last + 1).max(window.earliest)),
                latest_is: LatestIs::Commit,
                ..window
            }
        });
        with_commit.collect()
    }

    /// As `walship status` reports it when that segment would be next.
    pub(super) fn report(&self, segment: u64) -> StatusReport {
        let now = self.time(segment);
        let window = self.windows();
        StatusReport {
            history: History::of(&self.catalogue, &window, now).unwrap(),
            window,
            last_wal: last_wal(&self.catalogue),
            backups: backups(&self.catalogue),
            now,
            ..healthy()
        }
    }
}

fn proven(backup: &mut Backup, days_later: i64, failure: Option<&str>) {
    let mut drill = DrillRecord::begun(
        backup.finished_at + TimeDelta::days(days_later),
        "drill1".to_owned(),
        "the end of the archived WAL".to_owned(),
    );
    drill.failure = failure.map(str::to_owned);
    backup.proof = Some(Proof::after(backup.proof.take(), &backup.id, drill));
}

fn kept(backup: &mut Backup) {
    backup.keep = Some(Keep::new(&backup.id, None, backup.finished_at));
}

pub(super) fn no_archive() -> StatusReport {
    Made::new(60).report(1)
}

pub(super) fn no_backup() -> StatusReport {
    Made::new(60).wal(1, 1..=30).report(31)
}

pub(super) fn one_backup() -> StatusReport {
    Made::new(60)
        .wal(1, 1..=30)
        .backup_with(1, 4, |backup| proven(backup, 1, None))
        .report(31)
}

/// 10,000 segments in 35 days, 40 backups, six timelines, two gaps.
pub(super) fn large() -> StatusReport {
    let mut made = Made::new(5)
        .released(1, 1, 1199)
        .wal(1, 1200..=3000)
        .fork(2, &[(1, 3000)], 3000)
        .wal(2, 3000..=4400)
        .wal(2, 4418..=5200)
        .fork(3, &[(1, 3000), (2, 5200)], 5200)
        .wal(3, 5200..=8100)
        // A rehearsal of an earlier moment, and a forgotten old primary's promotion.
        .fork(4, &[(1, 3000), (2, 5200), (3, 6000)], 6500)
        .wal_later(4, 6000..=6120, 600)
        .fork(5, &[(1, 3000), (2, 5200), (3, 8100)], 8100)
        .wal(5, 8100..=9300)
        .wal(5, 9302..=10_400)
        .fork(6, &[(1, 3000), (2, 5200), (3, 8100), (5, 10_400)], 10_400)
        .wal(6, 10_400..=11_300);
    for number in 0..40 {
        let segment = 1210 + number * 252;
        let timeline = match segment {
            0..3000 => 1,
            3000..5200 => 2,
            5200..8100 => 3,
            8100..10_400 => 5,
            _ => 6,
        };
        made = made.backup_with(timeline, segment, |backup| {
            if number % 7 == 3 {
                proven(backup, 2, None);
            }
            if number % 10 == 0 {
                kept(backup);
            }
        });
    }
    let mark = Retired::new(tli(4), "a rehearsal", made.time(6600)).unwrap();
    made.catalogue.retired.insert(tli(4), mark);
    made.report(11_301)
}

/// Whatever can be wrong.
pub(super) fn damaged() -> StatusReport {
    Made::new(30)
        .released(1, 1, 9)
        .wal(1, 10..=200)
        .wal(1, 230..=470)
        .damaged(1, 320)
        .damaged(1, 321)
        .backup_with(1, 12, |backup| {
            kept(backup);
            proven(backup, 3, None);
        })
        .unrestorable(1, 90, "part base/00002 is missing in the store")
        .backup_with(1, 150, |backup| {
            proven(backup, 1, None);
            proven(backup, 4, Some("pg_amcheck: <index> \"a\" & 'b' is damaged"));
        })
        .unrestorable(1, 210, "WAL that it needs is missing in the archive")
        .backup(1, 300)
        .unfinished(380, UnfinishedState::Remains)
        .backup(1, 400)
        .unfinished(455, UnfinishedState::WaitingForWal)
        .unfinished(469, UnfinishedState::Started)
        .report(471)
}

/// Yearly and monthly backups that are kept alone beside the last two weeks.
fn old_backups() -> StatusReport {
    let mut made = Made::new(60).released(1, 1, 20_000).wal(1, 20_001..=20_336);
    for segment in [
        20, 8_760, 13_500, 14_220, 14_950, 15_690, 16_410, 17_150, 17_880, 18_600, 19_340,
    ] {
        made = made.wal(1, segment..=segment).backup_with(1, segment, kept);
    }
    for number in 0..7 {
        made = made.backup(1, 20_010 + number * 48);
    }
    made.report(20_337)
}

/// Nobody has written to it for a year.
fn dead() -> StatusReport {
    Made::new(10).wal(1, 1..=100).backup(1, 4).report(52_560)
}

/// Gaps everywhere: one segment of three is missing.
pub(super) fn many_gaps() -> StatusReport {
    let mut made = Made::new(5);
    for number in (3..10_000).step_by(3) {
        made = made.wal(1, number..=number + 1);
    }
    made.backup(1, 3).report(10_001)
}

pub(super) fn all() -> [(&'static str, StatusReport); 8] {
    [
        ("no-archive", no_archive()),
        ("no-backup", no_backup()),
        ("one-backup", one_backup()),
        ("large", large()),
        ("damaged", damaged()),
        ("old-backups", old_backups()),
        ("dead", dead()),
        ("many-gaps", many_gaps()),
    ]
}
