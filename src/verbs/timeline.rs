//! `walship timeline`: how the archive's timelines branched off each other, and marks for those that nobody is to
//! follow.
//!
//! A mark hides a timeline from servers that would follow it. It deletes nothing, and can be taken away again.

mod args;

pub use self::args::TimelineArgs;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::archive::time_index::TimeIndex;
use crate::archive::{Archive, catalogue};
use crate::error::{Error, Result};
use crate::format::Stored;
use crate::format::keys::BackupId;
use crate::format::retired::Retired;
use crate::format::wal_inventory::SegmentRange;
use crate::judge::branches::{Ambiguity, Branch, branch};
use crate::judge::catalogue::Catalogue;
use crate::judge::recovery_plan;
use crate::pg::{SegmentNumber, TimelineHistory, TimelineId, WalName};
use crate::store::Store;
use crate::text::{time_text, write_table};

/// At most this many segments that an older walship stored are read whole for their times.
const WHOLE_READS: u64 = 8;
/// The newest commit is looked for in at most this many segments at the end of each timeline.
const LOOK_BACK: u64 = 64;

/// The timelines of an archive.
#[derive(Debug, Clone, Serialize)]
pub struct TimelinesReport {
    /// The timeline that a recovery follows if it names none; null where only a person can choose.
    pub followed: Option<TimelineId>,
    /// The timelines between which only a person can choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ambiguous: Option<Ambiguity>,
    /// Why a recovery that names no timeline is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Oldest first.
    pub timelines: Vec<TimelineEntry>,
    /// Backups that cannot be restored, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct TimelineEntry {
    pub timeline: TimelineId,
    /// Where it left another timeline; null where it did not, or where its history cannot be read.
    pub branched_from: Option<Branch>,
    /// Its first and its last segment, and how many are in the archive; null where there is none.
    pub wal: Option<SegmentRange>,
    /// When the newest segment was stored, by the store's clock.
    pub newest_stored: Option<DateTime<Utc>>,
    /// When its last transaction ended; null where that is not known, or where there was none.
    pub newest_commit: Option<DateTime<Utc>>,
    /// The backups that ended on it, oldest first.
    pub backups: Vec<BackupId>,
    /// The mark that keeps it from being followed.
    pub retired: Option<Retired>,
    /// Why its history, or its mark, cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

pub async fn list(store: &Store) -> Result<TimelinesReport> {
    let archive = Archive::open(store).await?;
    let catalogue = catalogue::load(&archive).await?;
    let times = TimeIndex::new(&archive, WHOLE_READS);
    let mut timelines = Vec::new();
    for timeline in catalogue.timelines() {
        timelines.push(entry(&catalogue, &times, timeline).await?);
    }
    let (followed, ambiguous, refused) = match recovery_plan::followed(&catalogue) {
        Ok(Ok(followed)) => (Some(followed), None, None),
        Ok(Err(ambiguity)) => (None, Some(ambiguity), None),
        Err(error) => (None, None, Some(error.to_string())),
    };
    let unrestorable = catalogue.unrestorable.iter();
    let notes = unrestorable.map(|entry| format!("backup {} cannot be restored: {}", entry.id, entry.reason));
    Ok(TimelinesReport {
        followed,
        ambiguous,
        refused,
        timelines,
        notes: notes.collect(),
    })
}

async fn entry(catalogue: &Catalogue, times: &TimeIndex, timeline: TimelineId) -> Result<TimelineEntry> {
    let (wal, size) = (&catalogue.wal, catalogue.wal.segment_size());
    let span = wal.span(timeline);
    let branched_from = branch(&catalogue.histories, wal, timeline);
    let newest_commit = match wal.ranges(timeline).last() {
        Some(run) => {
            let (first, last) = (run.first.number(size)?, run.last.number(size)?);
            times
                .newest_end(
                    timeline,
                    first.max(SegmentNumber(last.0.saturating_sub(LOOK_BACK))),
                    last,
                )
                .await?
                .flatten()
        }
        None => None,
    };
    // Transactions before the fork are in its first segment too, but they are its parent's.
    let begin = branched_from.as_ref().map(|branch| branch.lsn);
    let newest_commit = newest_commit.filter(|end| begin.is_none_or(|begin| end.lsn >= begin));
    let backups = catalogue
        .backups
        .iter()
        .filter(|backup| backup.stop_timeline == timeline);
    Ok(TimelineEntry {
        timeline,
        branched_from,
        wal: span,
        newest_stored: wal.newest_stored(timeline),
        newest_commit: newest_commit.map(|end| end.time),
        backups: backups.map(|backup| backup.id.clone()).collect(),
        retired: catalogue.retired.get(&timeline).cloned(),
        unreadable: catalogue.unreadable_histories.get(&timeline).cloned(),
    })
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetireReport {
    pub timeline: TimelineId,
    /// The mark that it has now.
    pub retired: Option<Retired>,
}

/// Marks a timeline. `now` is this machine's time.
///
/// # Errors
/// `NotFound` for a timeline that the archive does not know; `Invalid` for an unusable reason; otherwise as the store.
pub async fn retire(
    timeline: TimelineId,
    reason: &str,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<RetireReport> {
    let mark = Retired::new(timeline, reason, now)?;
    let archive = Archive::open(store).await?;
    let known = known(&archive).await?;
    if !known.contains(&timeline) {
        let known: Vec<_> = known.iter().map(TimelineId::to_string).collect();
        return Err(Error::not_found(format!(
            "timeline {timeline} is not in {}; the timelines there are: {}",
            archive.url(),
            if known.is_empty() {
                "none yet".to_owned()
            } else {
                known.join(", ")
            }
        )));
    }
    archive.replace(&timeline, &mark).await?;
    Ok(RetireReport {
        timeline,
        retired: Some(mark),
    })
}

/// Takes a timeline's mark away.
///
/// # Errors
/// `NotFound` where it has none; otherwise as the store.
pub async fn reinstate(timeline: TimelineId, store: &Store) -> Result<RetireReport> {
    let archive = Archive::open(store).await?;
    let key = Retired::key(&timeline);
    if archive.head(&key).await?.is_none() {
        return Err(Error::not_found(format!(
            "timeline {timeline} is not retired in {}; see walship timeline list",
            archive.url()
        )));
    }
    archive.delete(&[key]).await?;
    Ok(RetireReport {
        timeline,
        retired: None,
    })
}

async fn known(archive: &Archive) -> Result<Vec<TimelineId>> {
    let wal = catalogue::wal(archive).await?;
    let (histories, _) = catalogue::histories(archive, &wal).await?;
    let ancestors = histories.values().flat_map(TimelineHistory::ancestors);
    let mut known: Vec<_> = wal
        .timelines()
        .chain(ancestors.map(|ancestor| ancestor.timeline))
        .collect();
    known.sort_unstable();
    known.dedup();
    Ok(known)
}

impl fmt::Display for RetireReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (timeline, file) = (self.timeline, WalName::History(self.timeline));
        match &self.retired {
            Some(_) => write!(
                f,
                "Timeline {timeline} is retired: no recovery and no standby follows it unasked. Nothing of it was deleted; \
                 walship timeline reinstate {timeline} takes the mark away. Stop the server that writes on it, if it still \
                 runs. For a standby that has {file} in pg_wal, or is on timeline {timeline}, see docs/replicas.md."
            ),
            None => write!(f, "Timeline {timeline} is not retired any more."),
        }
    }
}

impl fmt::Display for TimelinesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.timelines.is_empty() {
            return writeln!(f, "no timelines: nothing is archived yet");
        }
        let headings = [
            "TIMELINE",
            "PARENT",
            "LEFT IT AT",
            "LAST SEGMENT",
            "SEGMENTS",
            "NEWEST COMMIT",
            "BACKUPS",
            "STATE",
        ];
        let rows = self.timelines.iter().map(|entry| self.row(entry));
        write_table(&headings, rows.collect(), f)?;
        for entry in &self.timelines {
            if let Some(mark) = &entry.retired {
                writeln!(f, "timeline {} was {mark}", entry.timeline)?;
            }
            if let Some(why) = &entry.unreadable {
                writeln!(f, "timeline {} CANNOT BE JUDGED: {why}", entry.timeline)?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        match (&self.followed, &self.ambiguous, &self.refused) {
            (Some(followed), ..) => writeln!(f, "a recovery follows timeline {followed}"),
            (None, Some(ambiguity), _) => writeln!(
                f,
                "AMBIGUOUS: {ambiguity}. A recovery needs --target-timeline until the copy's timeline is retired (walship \
                 timeline retire)"
            ),
            (None, None, Some(why)) => writeln!(f, "NO TIMELINE IS FOLLOWED: {why}"),
            (None, None, None) => Ok(()),
        }
    }
}

impl TimelinesReport {
    fn row(&self, entry: &TimelineEntry) -> Vec<String> {
        let none = || "-".to_owned();
        let contends = |ambiguity: &Ambiguity| {
            let mut contenders = ambiguity.contenders.iter();
            contenders.any(|contender| contender.timeline == entry.timeline)
        };
        let state = match &entry.retired {
            Some(_) => "retired",
            None if entry.unreadable.is_some() => "unreadable",
            None if self.followed == Some(entry.timeline) => "followed",
            None if self.ambiguous.as_ref().is_some_and(contends) => "AMBIGUOUS",
            None if entry.wal.is_none() => "no WAL",
            None => "left",
        };
        let branch = entry.branched_from.as_ref();
        vec![
            entry.timeline.to_string(),
            branch.map_or_else(none, |branch| branch.timeline.to_string()),
            branch.map_or_else(none, |branch| branch.lsn.to_string()),
            entry.wal.map_or_else(none, |span| span.last.to_string()),
            entry.wal.map_or_else(none, |span| span.segments.to_string()),
            entry.newest_commit.map_or_else(none, time_text),
            entry.backups.len().to_string(),
            state.to_owned(),
        ]
    }
}
