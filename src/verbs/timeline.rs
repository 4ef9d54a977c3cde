//! `walship timeline`: what the archive's timelines are to each other, and the marks of those that nobody shall follow.
//!
//! A mark hides a timeline from whoever follows timelines; it deletes nothing, and can be taken away again.

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

/// So many segments that an older walship stored may be read whole, for their times.
const WHOLE_READS: u64 = 8;
/// So many segments are looked at, from the end of each timeline on, for its newest commit.
const LOOK_BACK: u64 = 64;

/// The timelines of an archive.
#[derive(Debug, Clone, Serialize)]
pub struct TimelinesReport {
    /// The one that a recovery follows which names none; none where only a person can choose.
    pub followed: Option<TimelineId>,
    /// Those between which only a person can choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ambiguous: Option<Ambiguity>,
    /// Why no recovery that names none goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Each, oldest first.
    pub timelines: Vec<ListedLine>,
    /// Backups that cannot be restored, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What is known of a timeline.
#[derive(Debug, Clone, Serialize)]
pub struct ListedLine {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it left another one; none where it did not, or its history cannot be read.
    pub branched_from: Option<Branch>,
    /// Its segments, the first and the last, and how many are there; none where there is none.
    pub wal: Option<SegmentRange>,
    /// When the newest of them was stored, by the store's clock.
    pub newest_stored: Option<DateTime<Utc>>,
    /// When its last transaction ended; none where that is not known, or there was none.
    pub newest_commit: Option<DateTime<Utc>>,
    /// The backups that ended on it, oldest first.
    pub backups: Vec<BackupId>,
    /// The mark that keeps it from being followed.
    pub retired: Option<Retired>,
    /// Why its history, or its mark, cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// Shows the timelines.
///
/// # Errors
/// As [`catalogue::load`].
pub async fn list(store: &Store) -> Result<TimelinesReport> {
    let archive = Archive::open(store).await?;
    let catalogue = catalogue::load(&archive).await?;
    let times = TimeIndex::new(&archive, WHOLE_READS);
    let mut timelines = Vec::new();
    for timeline in catalogue.timelines() {
        timelines.push(line(&catalogue, &times, timeline).await?);
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

async fn line(catalogue: &Catalogue, times: &TimeIndex, timeline: TimelineId) -> Result<ListedLine> {
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
    // What its first segment shares with its parent is not its own.
    let begin = branched_from.as_ref().map(|branch| branch.lsn);
    let newest_commit = newest_commit.filter(|end| begin.is_none_or(|begin| end.lsn >= begin));
    let backups = catalogue
        .backups
        .iter()
        .filter(|backup| backup.stop_timeline == timeline);
    Ok(ListedLine {
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

/// What became of a mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetireReport {
    /// The timeline.
    pub timeline: TimelineId,
    /// The mark that it has now.
    pub retired: Option<Retired>,
}

/// Marks a timeline. `now` is this machine's time.
///
/// # Errors
/// `NotFound` for a timeline that the archive does not know; `Invalid` for a reason that is none; otherwise as the store.
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
            "timeline {timeline} is not in {}; it has {}",
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
                 runs. A standby that has {file} in pg_wal, or is on timeline {timeline}: see docs/replicas.md."
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
        let rows = self.timelines.iter().map(|line| self.row(line));
        write_table(&headings, rows.collect(), f)?;
        for line in &self.timelines {
            if let Some(mark) = &line.retired {
                writeln!(f, "timeline {} was {mark}", line.timeline)?;
            }
            if let Some(why) = &line.unreadable {
                writeln!(f, "timeline {} CANNOT BE JUDGED: {why}", line.timeline)?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        match (&self.followed, &self.ambiguous, &self.refused) {
            (Some(followed), ..) => writeln!(f, "a recovery follows timeline {followed}"),
            (None, Some(ambiguity), _) => writeln!(
                f,
                "AMBIGUOUS: {ambiguity}. A recovery needs --target-timeline until the copy's is retired (walship timeline \
                 retire)"
            ),
            (None, None, Some(why)) => writeln!(f, "NO TIMELINE IS FOLLOWED: {why}"),
            (None, None, None) => Ok(()),
        }
    }
}

impl TimelinesReport {
    fn row(&self, line: &ListedLine) -> Vec<String> {
        let none = || "-".to_owned();
        let contends = |ambiguity: &Ambiguity| {
            let mut contenders = ambiguity.contenders.iter();
            contenders.any(|contender| contender.timeline == line.timeline)
        };
        let state = match &line.retired {
            Some(_) => "retired",
            None if line.unreadable.is_some() => "unreadable",
            None if self.followed == Some(line.timeline) => "followed",
            None if self.ambiguous.as_ref().is_some_and(contends) => "AMBIGUOUS",
            None if line.wal.is_none() => "no WAL",
            None => "left",
        };
        let branch = line.branched_from.as_ref();
        vec![
            line.timeline.to_string(),
            branch.map_or_else(none, |branch| branch.timeline.to_string()),
            branch.map_or_else(none, |branch| branch.lsn.to_string()),
            line.wal.map_or_else(none, |span| span.last.to_string()),
            line.wal.map_or_else(none, |span| span.segments.to_string()),
            line.newest_commit.map_or_else(none, time_text),
            line.backups.len().to_string(),
            state.to_owned(),
        ]
    }
}
