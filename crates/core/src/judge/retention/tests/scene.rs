//! Small archives for the tests of retention: one segment is written each hour, and stored when it is full.

use std::fmt::Write;

use super::super::*;
use crate::format::keep::Keep;
use crate::format::keys::Key;
use crate::judge::catalogue::{Backup, Unfinished, UnfinishedState, Unrestorable};
use crate::judge::fixture::{self, SIZE, at, segment, tli};
use crate::pg::{SegmentName, TimelineHistory};

/// This many hours after the midnight of a Tuesday.
pub(crate) fn hour(hours: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_788_220_800, 0).unwrap() + TimeDelta::hours(hours.cast_signed())
}

pub(crate) fn id(hours: u64) -> BackupId {
    BackupId::at(hour(hours))
}

/// An archive in the making.
pub(crate) struct Scene {
    pub(crate) catalogue: Catalogue,
    unfinished: UnfinishedWals,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self {
            catalogue: fixture::empty_archive(hour(0)),
            unfinished: UnfinishedWals::new(),
        }
    }

    /// Segments of a timeline.
    pub(crate) fn wal(mut self, timeline: u32, numbers: std::ops::RangeInclusive<u64>) -> Self {
        for number in numbers {
            let key = Key::Segment(segment(timeline, number)).to_string();
            self.catalogue.wal.add_stored(&key, 1, hour(number + 1));
        }
        self
    }

    /// A timeline with all it descends from: each ancestor and the segment in which it was left.
    pub(crate) fn history(mut self, timeline: u32, ancestors: &[(u32, u64)]) -> Self {
        let lines: Vec<_> = ancestors
            .iter()
            .map(|(parent, segment)| format!("{parent}\t{}\treason", at(*segment, 1000)))
            .collect();
        let history = TimelineHistory::parse(tli(timeline), lines.join("\n").as_bytes()).unwrap();
        self.catalogue.histories.insert(tli(timeline), history);
        self.catalogue
            .wal
            .add(&Key::History(tli(timeline)).to_string(), 1);
        self
    }

    /// A backup that starts and ends within the hour.
    pub(crate) fn backup(mut self, timeline: u32, hours: u64) -> Self {
        self.catalogue.backups.push(backup(timeline, hours));
        self
    }

    /// A backup each day at midnight.
    pub(crate) fn daily(mut self, timeline: u32, days: std::ops::Range<u64>) -> Self {
        for day in days {
            self = self.backup(timeline, day * 24);
        }
        self
    }

    /// The newest backup is marked.
    pub(crate) fn kept(mut self, until: Option<u64>) -> Self {
        let backup = self.catalogue.backups.last_mut().unwrap();
        backup.keep = Some(Keep::new(&backup.id, until.map(hour), hour(0)));
        self
    }

    /// The newest backup cannot be restored.
    pub(crate) fn broken(mut self) -> Self {
        let backup = self.catalogue.backups.pop().unwrap();
        self.catalogue.unrestorable.push(Unrestorable {
            id: backup.id.clone(),
            reason: "files.zst is missing in the store".to_owned(),
            backup: Some(backup),
        });
        self
    }

    /// A backup without a record, last heard of at that hour.
    pub(crate) fn unfinished(
        mut self,
        hours: u64,
        state: UnfinishedState,
        wal: Option<UnfinishedWal>,
    ) -> Self {
        let entry = Unfinished {
            id: id(hours),
            state,
            last_sign: hour(hours),
            keep: None,
            was_verified: false,
        };
        if let Some(wal) = wal {
            self.unfinished.insert(entry.id.clone(), wal);
        }
        self.catalogue.unfinished.push(entry);
        self
    }

    /// WAL that an earlier run has released.
    pub(crate) fn released(mut self, timeline: u32, first: u64, last: u64) -> Self {
        self.catalogue
            .released
            .of_mut(tli(timeline))
            .insert_range(first, last);
        self
    }

    pub(crate) fn plan(&self, policy: &RetentionPolicy, hours: u64) -> Result<RetentionPlan> {
        plan(&self.catalogue, &self.unfinished, policy, hour(hours))
    }
}

pub(crate) fn backup(timeline: u32, hours: u64) -> Backup {
    fixture::backup(timeline, hours, hour(hours))
}

/// A plan as it is stored beside the tests: segments by number, which are hours here.
pub(crate) fn show(plan: &RetentionPlan) -> String {
    let mut text = String::new();
    for fate in &plan.backups {
        let reasons: Vec<_> = fate.reasons.iter().map(ToString::to_string).collect();
        let action = action(fate.action);
        writeln!(text, "{}  {action:11}  {}", fate.id, reasons.join(", ")).unwrap();
    }
    for fate in &plan.wal {
        let number = |name: SegmentName| name.number(SIZE).unwrap().0;
        let (first, last) = (number(fate.range.first), number(fate.range.last));
        let timeline = fate.range.first.timeline();
        let action = action(fate.action);
        writeln!(
            text,
            "timeline {timeline}: {first}-{last}  {action}  {}",
            fate.reason
        )
        .unwrap();
    }
    text
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Keep => "keep",
        Action::KeepStandAlone => "stand alone",
        Action::Delete => "DELETE",
    }
}
