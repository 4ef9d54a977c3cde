//! After any sequence of writing, backups, promotions, expiries and crashes in the middle of them,
//! everything that the policy promises can be recovered, according to `recovery_plan`.
//!
//! Beside the archive that expires, a twin keeps everything: what the twin can recover, and the
//! policy promises, the archive must be able to recover.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use proptest::prelude::*;

use super::super::periods;
use super::scene::{Scene, backup, hour};
use super::*;
use crate::format::keep::Keep;
use crate::format::keys::Key;
use crate::judge::catalogue::{Backup, UnfinishedState, missing_wal};
use crate::judge::fixture::{SIZE, at, segment, tli};
use crate::judge::recovery_plan::{self, Request, Target};
use crate::judge::timeline_chain::TimelineChain;
use crate::pg::{SegmentNumber, TimelineHistory};

/// Something that happens. Each takes an hour at least.
#[derive(Debug, Clone)]
enum Event {
    /// The server writes this many segments, one each hour.
    Write(u64),
    /// A base backup, during which this many segments are written.
    Backup(u64),
    /// A mark on the n-th newest backup, for this many hours or for ever.
    Keep(usize, Option<u64>),
    /// The server begins a new timeline this many segments back.
    Promote(u64),
    /// An old primary writes on.
    OldPrimary(u64),
    /// Nothing is written for this many hours.
    Pause(u64),
    /// Expiry, which is killed after this many deletions.
    Expire(Option<usize>),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..14_u64).prop_map(Event::Write),
        4 => (0..3_u64).prop_map(Event::Backup),
        1 => (0..4_usize, prop::option::of(1..60_u64)).prop_map(|(rank, hours)| Event::Keep(rank, hours)),
        1 => (0..20_u64).prop_map(Event::Promote),
        1 => (1..4_u64).prop_map(Event::OldPrimary),
        1 => (1..60_u64).prop_map(Event::Pause),
        3 => prop::option::of(0..30_usize).prop_map(Event::Expire),
    ]
}

fn any_policy() -> impl Strategy<Value = RetentionPolicy> {
    let count = || prop::option::of(0..4_u32);
    (prop::option::of(1..60_i64), count(), count(), count(), count())
        .prop_map(|(window, backups, daily, weekly, monthly)| RetentionPolicy {
            window: window.map(TimeDelta::hours),
            backups,
            daily,
            weekly,
            monthly,
            yearly: None,
        })
        .prop_filter("it keeps something", |policy| policy.check().is_ok())
}

/// An archive as its objects.
#[derive(Debug, Clone, Default)]
struct Archive {
    /// Each segment, and the hour in which it was stored.
    wal: BTreeMap<(u32, u64), u64>,
    /// Each backup, and whether its record is still there.
    backups: BTreeMap<BackupId, (Backup, bool)>,
    released: TimelineRanges,
}

/// What happened so far.
#[derive(Debug, Clone)]
struct World {
    now: u64,
    timeline: u32,
    next: u64,
    /// Each timeline: its history's text, and the next segment its server writes.
    timelines: BTreeMap<u32, (Vec<(u32, u64)>, u64)>,
    /// The hour in which each segment was written.
    written: BTreeMap<(u32, u64), u64>,
    archive: Archive,
    twin: Archive,
    /// The archive as the last expiry found it.
    before: Archive,
    /// Branches that were silent for a whole window: whoever revives one must take a new backup.
    over: BTreeSet<u32>,
}

impl World {
    fn new() -> Self {
        Self {
            now: 0,
            timeline: 1,
            next: 0,
            timelines: [(1, (Vec::new(), 0))].into(),
            written: BTreeMap::new(),
            archive: Archive::default(),
            twin: Archive::default(),
            before: Archive::default(),
            over: BTreeSet::new(),
        }
    }

    fn write(&mut self, timeline: u32, number: u64) {
        self.written.insert((timeline, number), self.now);
        self.now += 1;
        for archive in [&mut self.archive, &mut self.twin] {
            archive.wal.insert((timeline, number), self.now);
        }
    }

    fn write_on(&mut self) {
        self.write(self.timeline, self.next);
        self.next += 1;
        let entry = self.timelines.get_mut(&self.timeline).unwrap();
        entry.1 = self.next;
    }

    fn happen(&mut self, event: &Event, policy: &RetentionPolicy) {
        match event {
            Event::Write(segments) => (0..*segments).for_each(|_| self.write_on()),
            Event::Backup(segments) => self.back_up(*segments),
            Event::Keep(rank, hours) => self.keep(*rank, *hours),
            Event::Promote(back) => self.promote(*back),
            Event::OldPrimary(segments) => self.old_primary(*segments, policy),
            Event::Pause(hours) => self.now += hours,
            Event::Expire(crash) => self.expire(policy, *crash),
        }
    }

    fn back_up(&mut self, segments: u64) {
        let (started, first) = (self.now, self.next);
        (0..=segments).for_each(|_| self.write_on());
        let mut taken = backup(self.timeline, started);
        taken.start_lsn = at(first, 40);
        taken.stop_lsn = at(first + segments, 400);
        taken.finished_at = hour(self.now - 1) + TimeDelta::minutes(10);
        taken.wal_ranges = vec![WalRange {
            timeline: tli(self.timeline),
            start_lsn: taken.start_lsn,
            end_lsn: taken.stop_lsn,
        }];
        for archive in [&mut self.archive, &mut self.twin] {
            archive.backups.insert(taken.id.clone(), (taken.clone(), true));
        }
    }

    fn keep(&mut self, rank: usize, hours: Option<u64>) {
        let listed = self.archive.backups.iter().filter(|(_, (_, listed))| *listed);
        let Some(id) = listed.map(|(id, _)| id.clone()).rev().nth(rank) else {
            return;
        };
        let keep = Keep::new(&id, hours.map(|hours| hour(self.now + hours)), hour(self.now));
        for archive in [&mut self.archive, &mut self.twin] {
            archive.backups.get_mut(&id).unwrap().0.keep = Some(keep.clone());
        }
    }

    fn promote(&mut self, back: u64) {
        let (history, next) = self.timelines[&self.timeline].clone();
        // It cannot leave its ancestor before it began.
        let began = history.last().map_or(0, |(_, fork)| *fork);
        let back_to = next.saturating_sub(back).max(began);
        // Only to where one can recover; a standby is promoted where the primary ended.
        let target = Request {
            timeline: Some(tli(self.timeline)),
            ..Request::new(Target::Lsn(at(back_to, 1000)))
        };
        let archive = self.scene(&self.archive).catalogue;
        let can_recover = recovery_plan::plan(&archive, &target, hour(self.now + 1)).is_ok();
        let fork = if can_recover { back_to } else { next };
        let child = *self.timelines.keys().next_back().unwrap() + 1;
        let mut ancestors = history;
        ancestors.push((self.timeline, fork));
        self.timelines.insert(child, (ancestors, fork));
        (self.timeline, self.next) = (child, fork);
        self.write_on();
    }

    fn old_primary(&mut self, segments: u64, policy: &RetentionPolicy) {
        let Some((parent, _)) = self.timelines[&self.timeline].0.last().copied() else {
            return;
        };
        let of_parent = self
            .twin
            .wal
            .iter()
            .filter(|((timeline, _), _)| *timeline == parent);
        let newest = of_parent.map(|(_, stored)| *stored).max().unwrap_or(0);
        if policy
            .window
            .is_some_and(|window| hour(newest) <= hour(self.now) - window)
        {
            self.over.insert(parent);
        }
        for _ in 0..segments {
            let number = self.timelines[&parent].1;
            self.write(parent, number);
            if self.over.contains(&parent) {
                self.written.remove(&(parent, number));
            }
            self.timelines.get_mut(&parent).unwrap().1 += 1;
        }
    }

    fn scene(&self, archive: &Archive) -> Scene {
        let mut scene = Scene::new();
        for (timeline, (ancestors, _)) in self.timelines.iter().skip(1) {
            scene = scene.history(*timeline, ancestors);
        }
        for ((timeline, number), stored) in &archive.wal {
            let key = Key::Segment(segment(*timeline, *number)).to_string();
            scene.catalogue.wal.add_stored(&key, 1, hour(*stored));
        }
        scene.catalogue.released = archive.released.clone();
        for (id, (backup, listed)) in &archive.backups {
            if !listed {
                let entry = crate::judge::catalogue::Unfinished {
                    id: id.clone(),
                    state: UnfinishedState::Remains,
                    last_sign: backup.finished_at,
                    keep: None,
                    was_verified: false,
                };
                scene.catalogue.unfinished.push(entry);
                continue;
            }
            let missing = missing_wal(backup, &scene.catalogue.wal).unwrap();
            assert_eq!(missing, None, "backup {id} is listed and has lost WAL");
            scene.catalogue.backups.push(backup.clone());
        }
        scene
    }

    /// In the order of `walship expire`: the record, the rest, the note of the released WAL, then the WAL.
    fn expire(&mut self, policy: &RetentionPolicy, crash: Option<usize>) {
        self.before = self.archive.clone();
        let plan = self.scene(&self.archive).plan(policy, self.now).unwrap();
        let mut left = crash.unwrap_or(usize::MAX);
        let mut may = || {
            let may = left > 0;
            left = left.saturating_sub(1);
            may
        };
        for fate in plan.backups.iter().filter(|fate| fate.action == Action::Delete) {
            if !may() {
                return;
            }
            self.archive.backups.get_mut(&fate.id).unwrap().1 = false;
            if !may() {
                return;
            }
            self.archive.backups.remove(&fate.id);
        }
        if !may() {
            return;
        }
        self.archive.released.add(&plan.deletable_wal);
        let deletable = |timeline, number| plan.deletable_wal.contains(tli(timeline), SegmentNumber(number));
        let keys: Vec<_> = self.archive.wal.keys().copied().collect();
        for (timeline, number) in keys {
            if deletable(timeline, number) {
                if !may() {
                    return;
                }
                self.archive.wal.remove(&(timeline, number));
            }
        }
    }

    fn history(&self, timeline: u32) -> TimelineHistory {
        self.scene(&Archive::default()).catalogue.histories[&tli(timeline)].clone()
    }

    /// Every promise that the policy makes now.
    fn check(&self, policy: &RetentionPolicy) {
        let (scene, twin) = (self.scene(&self.archive), self.scene(&self.twin));
        let recovers = |scene: &Scene, request: &Request| {
            recovery_plan::plan(&scene.catalogue, request, hour(self.now) + TimeDelta::days(1))
        };
        let as_in = |other: &Scene, what: &str, request: &Request| {
            if recovers(other, request).is_ok() {
                let plan = recovers(&scene, request);
                assert!(plan.is_ok(), "{what} is promised: {request:?}: {plan:?}");
            }
        };
        let promise = |what: &str, request: &Request| as_in(&twin, what, request);
        promise("the latest moment", &Request::new(Target::Latest));
        for backup in &scene.catalogue.backups {
            let request = Request {
                backup: Some(backup.id.clone()),
                ..Request::new(Target::Immediate)
            };
            let plan = recovers(&scene, &request);
            assert!(plan.is_ok(), "backup {} is listed: {plan:?}", backup.id);
        }
        let listed: BTreeSet<&BackupId> = scene.catalogue.backups.iter().map(|backup| &backup.id).collect();
        for id in periods::choose(policy, &twin.catalogue.backups).keys() {
            assert!(listed.contains(id), "backup {id} stands for its period");
        }
        for backup in &twin.catalogue.backups {
            let kept = backup
                .keep
                .as_ref()
                .is_some_and(|keep| keep.holds_at(hour(self.now)));
            let was_deleted = !listed.contains(&backup.id);
            assert!(!kept || !was_deleted, "backup {} is marked", backup.id);
        }
        if let Some(window) = policy.window {
            self.check_window(hour(self.now) - window, &promise);
        }
        let before = self.scene(&self.before);
        self.check_newest(policy.newest(), &before, &|what, request| {
            as_in(&before, what, request);
        });
    }

    /// Every moment of the window, on every timeline: by position and by time.
    fn check_window(&self, cutoff: DateTime<Utc>, promise: &dyn Fn(&str, &Request)) {
        for timeline in self.timelines.keys() {
            let history = self.history(*timeline);
            let chain = TimelineChain::new(&history, SIZE);
            for ((of, number), written) in &self.written {
                let moment = hour(*written) + TimeDelta::minutes(30);
                if chain.segment(SegmentNumber(*number)).unwrap().timeline() != tli(*of) || moment <= cutoff {
                    continue;
                }
                for target in [Target::Lsn(at(*number, 500)), Target::Time(moment)] {
                    let request = Request {
                        timeline: Some(tli(*timeline)),
                        ..Request::new(target)
                    };
                    promise("a moment of the window", &request);
                }
            }
        }
    }

    /// The newest backups of the latest timeline's chain, and everything after the oldest of them.
    fn check_newest(&self, count: usize, before: &Scene, promise: &dyn Fn(&str, &Request)) {
        let history = self.history(*self.timelines.keys().next_back().unwrap());
        let chain = TimelineChain::new(&history, SIZE);
        let mut backups: Vec<&Backup> = before.catalogue.backups.iter().collect();
        backups.retain(|backup| chain.can_start_from(backup));
        backups.sort_by_key(|backup| std::cmp::Reverse(backup.stop_lsn));
        backups.truncate(count);
        for backup in &backups {
            for target in [Target::Latest, Target::Lsn(backup.stop_lsn)] {
                let request = Request {
                    backup: Some(backup.id.clone()),
                    timeline: Some(history.timeline()),
                    ..Request::new(target)
                };
                promise("recovery from one of the newest backups", &request);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    // Seen to fail: `retention/wal.rs`: no WAL is kept for point-in-time backups; none for stand-alone backups
    #[test]
    fn whatever_happens_everything_promised_can_be_recovered(
        events in prop::collection::vec(any_event(), 1..40),
        policy in any_policy(),
    ) {
        let mut world = World::new();
        for event in &events {
            world.happen(event, &policy);
            if matches!(event, Event::Expire(_)) {
                world.check(&policy);
            }
        }
        world.happen(&Event::Expire(None), &policy);
        world.check(&policy);
        // The next run finishes the work: nothing is left to do.
        let plan = world.scene(&world.archive).plan(&policy, world.now).unwrap();
        prop_assert!(plan.backups.iter().all(|fate| fate.action != Action::Delete));
        prop_assert!(plan.wal.iter().all(|fate| fate.action != Action::Delete));
    }
}
