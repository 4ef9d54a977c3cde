//! What an archive is worth: which backups can be restored, how far their WAL leads, and what cannot be
//! recovered because something is damaged or missing.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::catalogue::{Backup, Catalogue, missing_wal};
use super::recovery_plan::known_until;
use super::timeline_chain::{Gap, TimelineChain};
use crate::error::Result;
use crate::format::barriers::Barrier;
use crate::format::keys::BackupId;
use crate::format::wal_inventory::{SegmentRange, WalInventory};
use crate::pg::{Lsn, SegmentNumber, TimelineId};

/// What is known besides the catalogue.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// Damaged segments.
    pub bad_segments: &'a WalInventory,
    /// Backups with objects that are damaged or missing, and why they cannot be restored.
    pub bad_backups: &'a BTreeMap<BackupId, String>,
    /// The last segment of each timeline that is known to have existed.
    pub known: &'a BTreeMap<TimelineId, SegmentNumber>,
}

/// What an archive is worth.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Assessment {
    /// Every backup, oldest first.
    pub backups: Vec<BackupWorth>,
    /// What cannot be recovered.
    pub lost: Vec<Lost>,
    /// What is worth knowing though nothing is wrong.
    pub notes: Vec<String>,
}

impl Assessment {
    /// Whether nothing is lost.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.lost.is_empty() && self.backups.iter().all(|backup| backup.unrestorable.is_none())
    }
}

/// What a backup is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupWorth {
    /// Its id.
    pub id: BackupId,
    /// Why it cannot be restored; absent where it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrestorable: Option<String>,
    /// The first moment that can be recovered from it; absent where its record cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<DateTime<Utc>>,
    /// The first position that can be recovered from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_lsn: Option<Lsn>,
    /// How far the WAL leads from it, along each timeline. Empty where it cannot be restored.
    pub leads_to: Vec<LeadsTo>,
}

/// How far the WAL leads from a backup along a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeadsTo {
    /// The timeline.
    pub timeline: TimelineId,
    /// Only positions before this can be reached.
    pub end_lsn: Lsn,
    /// Why it ends there.
    pub end: End,
}

/// Why the WAL leads no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The archived WAL ends there.
    EndOfWal,
    /// Retention has released what follows: the backup stands alone.
    Released,
    /// What follows is damaged or missing.
    Lost,
}

/// WAL without which something cannot be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// The segments that are damaged or missing.
    pub segments: SegmentRange,
    /// Where they begin.
    pub from_lsn: Lsn,
    until_lsn: Lsn,
    /// How it is known that they existed.
    pub evidence: String,
    /// A position that no recovery crosses, although nothing is damaged or missing: the evidence says why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub barrier: Option<Lsn>,
    /// The timelines whose chains read them.
    pub timelines: Vec<TimelineId>,
    /// The backups from which nothing at or after `from_lsn` can be recovered along those timelines.
    backups: Vec<BackupId>,
    /// The first backup after them: from its end on, everything can be recovered again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub again_from: Option<Again>,
}

/// Where recovery of a timeline is possible again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Again {
    /// The backup.
    pub backup: BackupId,
    /// Its first moment.
    pub finished_at: DateTime<Utc>,
    /// Its first position.
    pub stop_lsn: Lsn,
}

/// Says what the archive is worth.
///
/// # Errors
/// `Invalid` where a record names a position that no segment has.
pub fn assess(catalogue: &Catalogue, evidence: &Evidence<'_>) -> Result<Assessment> {
    let mut sound = catalogue.clone();
    for timeline in evidence.bad_segments.timelines() {
        for range in evidence.bad_segments.ranges(timeline) {
            sound.wal.remove(range)?;
        }
    }
    let mut assessment = Assessment::default();
    for backup in sound.readable() {
        assessment.backups.push(worth(&sound, evidence, backup)?);
    }
    for entry in sound.unrestorable.iter().filter(|entry| entry.backup.is_none()) {
        assessment.backups.push(BackupWorth {
            id: entry.id.clone(),
            unrestorable: Some(entry.reason.clone()),
            finished_at: None,
            stop_lsn: None,
            leads_to: Vec::new(),
        });
    }
    for (id, reason) in evidence.bad_backups {
        if !assessment.backups.iter().any(|backup| backup.id == *id) {
            assessment.backups.push(BackupWorth {
                id: id.clone(),
                unrestorable: Some(reason.clone()),
                finished_at: None,
                stop_lsn: None,
                leads_to: Vec::new(),
            });
        }
    }
    assessment.backups.sort_by(|one, other| one.id.cmp(&other.id));
    for backup in sound.readable() {
        follow(&sound, evidence, backup, &mut assessment)?;
    }
    assessment.lost.sort_by_key(|lost| lost.segments.first);
    assessment.notes.dedup();
    Ok(assessment)
}

/// Whether a backup can be restored at all.
fn worth(sound: &Catalogue, evidence: &Evidence<'_>, backup: &Backup) -> Result<BackupWorth> {
    let listed = sound.unrestorable.iter().find(|entry| entry.id == backup.id);
    let of_objects = evidence
        .bad_backups
        .get(&backup.id)
        .or(listed.map(|entry| &entry.reason));
    let unrestorable = match of_objects {
        Some(reason) => Some(reason.clone()),
        None => missing_wal(backup, &sound.wal)?
            .map(|range| format!("WAL that it needs is damaged or missing: {range}")),
    };
    Ok(BackupWorth {
        id: backup.id.clone(),
        unrestorable,
        finished_at: Some(backup.finished_at),
        stop_lsn: Some(backup.stop_lsn),
        leads_to: Vec::new(),
    })
}

/// Follows the WAL from a backup along every timeline.
fn follow(
    sound: &Catalogue,
    evidence: &Evidence<'_>,
    backup: &Backup,
    assessment: &mut Assessment,
) -> Result<()> {
    let size = sound.wal.segment_size();
    for history in sound.histories.values() {
        let chain = TimelineChain::new(history, size);
        let timeline = chain.timeline();
        if !chain.can_start_from(backup) {
            continue;
        }
        let known = known_until(sound, timeline).max(evidence.known.get(&timeline).copied());
        let reach = chain.reach(&sound.wal, backup.start_lsn, known)?;
        let mut end = End::EndOfWal;
        if let Some(gap) = &reach.gap {
            let first = gap.missing.first;
            let number = first.number(size)?;
            // A timeline that another left within its first segment never had a whole one.
            let has_begun =
                sound.wal.newest(timeline).is_some() || known.is_some_and(|known| known >= number);
            end = if let Some(mark) = sound.retired.get(&timeline) {
                let note = format!("timeline {timeline}, which lacks {}, was {mark}", gap.missing);
                assessment.notes.push(note);
                End::EndOfWal
            } else if first.timeline() == timeline && !has_begun {
                // A promotion archives the history at once, and the first segment when it is full.
                let note = format!("timeline {timeline} has no whole segment in the archive");
                assessment.notes.push(note);
                End::EndOfWal
            } else if sound.released.contains(first.timeline(), number) {
                End::Released
            } else {
                End::Lost
            };
        }
        if let Some(worth) = assessment.backups.iter_mut().find(|worth| worth.id == backup.id)
            && worth.unrestorable.is_none()
        {
            worth.leads_to.push(LeadsTo {
                timeline,
                end_lsn: reach.end_lsn,
                end,
            });
        }
        if let Some(gap) = reach.gap.filter(|_| end == End::Lost) {
            lose(sound, backup, timeline, gap, assessment)?;
        }
    }
    Ok(())
}

/// Notes a gap after a backup along a timeline.
fn lose(
    sound: &Catalogue,
    backup: &Backup,
    timeline: TimelineId,
    gap: Gap,
    assessment: &mut Assessment,
) -> Result<()> {
    let size = sound.wal.segment_size();
    let missing = &gap.missing;
    let again_from = again_from(sound, timeline, missing, assessment)?;
    let known = assessment.lost.iter_mut().find(|lost| lost.segments == *missing);
    let lost = match known {
        Some(lost) => lost,
        None => assessment.lost.push_mut(Lost {
            segments: *missing,
            from_lsn: match gap.barrier {
                Some(barrier) => barrier.lsn(),
                None => missing.first.start(size)?,
            },
            until_lsn: size.start_of(missing.last.number(size)?.next()),
            evidence: gap.evidence,
            barrier: gap.barrier.map(Barrier::lsn),
            timelines: Vec::new(),
            backups: Vec::new(),
            again_from: None,
        }),
    };
    if !lost.timelines.contains(&timeline) {
        lost.timelines.push(timeline);
    }
    if !lost.backups.contains(&backup.id) {
        lost.backups.push(backup.id.clone());
    }
    lost.again_from = again_from.or(lost.again_from.take());
    Ok(())
}

/// The first sound backup of the chain that begins after a gap.
fn again_from(
    sound: &Catalogue,
    timeline: TimelineId,
    missing: &SegmentRange,
    assessment: &Assessment,
) -> Result<Option<Again>> {
    let size = sound.wal.segment_size();
    let end = size.start_of(missing.last.number(size)?.next());
    let Some(history) = sound.histories.get(&timeline) else {
        return Ok(None);
    };
    let chain = TimelineChain::new(history, size);
    let is_sound = |backup: &&Backup| {
        let worth = assessment.backups.iter().find(|worth| worth.id == backup.id);
        worth.is_some_and(|worth| worth.unrestorable.is_none())
    };
    Ok(sound
        .readable()
        .filter(|backup| backup.start_lsn >= end && chain.can_start_from(backup))
        .filter(is_sound)
        .min_by_key(|backup| backup.stop_lsn)
        .map(|backup| Again {
            backup: backup.id.clone(),
            finished_at: backup.finished_at,
            stop_lsn: backup.stop_lsn,
        }))
}

#[cfg(test)]
mod tests;
