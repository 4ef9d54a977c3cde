//! `walship list`: the backups with what retention makes of them, the WAL of each timeline with its gaps, the moments
//! to which it can be recovered, and the segments of one moment.

mod args;
mod moment;
mod retention;
#[cfg(test)]
mod tests;
mod text;

pub use self::args::ListArgs;
use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use self::moment::at;
use self::retention::ListedRetention;
use crate::archive::time_index::TimeIndex;
use crate::archive::{Archive, catalogue, wal_changes};
use crate::error::Result;
use crate::format::backup::{BackupKind, BackupSource};
use crate::format::keys::BackupId;
use crate::format::proof::Proven;
use crate::format::released::TimelineRanges;
use crate::format::retired::Retired;
use crate::format::wal_inventory::{SegmentRange, WalInventory};
use crate::judge::branches::{Ambiguity, Branch, branch, judge};
use crate::judge::catalogue::{Backup, Catalogue, UnfinishedState};
use crate::judge::retention::RetentionPolicy;
use crate::judge::window::Window;
use crate::pg::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId};
use crate::store::Store;

/// At most this many segments that an older walship stored are read whole for the times of their transactions.
const WHOLE_READS: u64 = 8;

/// What an archive holds, for people and for programs. A part that was not asked for is absent.
#[derive(Debug, Clone, Serialize)]
pub struct ListReport {
    /// The backups that can be restored, oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backups: Option<Vec<ListedBackup>>,
    /// The backups that have a record but cannot be restored as they are, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrestorable: Option<Vec<ListedUnrestorable>>,
    /// Backups that run, wait for their WAL, or were left behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Vec<ListedUnfinished>>,
    /// The WAL of each timeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal: Option<Vec<ListedTimeline>>,
    /// The spans of time to which the cluster can be recovered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Vec<Window>>,
    /// Timelines that have begun but have no segment in the archive yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timelines_without_wal: Vec<TimelineId>,
    /// Timelines between which only a person can choose. Until then a recovery needs `--target-timeline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ambiguous: Option<Ambiguity>,
    /// Timelines that are not followed unasked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<Retired>,
    /// Objects that are of no use, and whatever else a person should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    #[serde(skip)]
    url: String,
    #[serde(skip)]
    released: TimelineRanges,
    #[serde(skip)]
    segment_size: SegmentSize,
}

/// A backup that can be restored.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // the fields of `backup.json`: docs/format.md
pub struct ListedBackup {
    pub id: BackupId,
    pub label: String,
    pub kind: BackupKind,
    pub source: BackupSource,
    pub started_at: DateTime<Utc>,
    pub finished_at: DateTime<Utc>,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    /// The timeline on which it became consistent.
    pub timeline: TimelineId,
    pub postgres_version: String,
    pub size_bytes: u64,
    pub stored_bytes: u64,
    /// When drills proved it, or failed to.
    pub proven: Proven,
    pub retention: ListedRetention,
}

/// A backup that cannot be restored as it is.
#[derive(Debug, Clone, Serialize)]
pub struct ListedUnrestorable {
    pub id: BackupId,
    pub reason: String,
}

/// A backup without a record.
#[derive(Debug, Clone, Serialize)]
pub struct ListedUnfinished {
    pub id: BackupId,
    /// How far it came.
    pub state: UnfinishedState,
    /// When the store last saw a sign of it.
    pub last_sign: DateTime<Utc>,
}

/// The WAL of one timeline.
#[derive(Debug, Clone, Serialize)]
pub struct ListedTimeline {
    pub timeline: TimelineId,
    /// The first segment in the archive.
    pub first: SegmentName,
    /// The last segment in the archive.
    pub last: SegmentName,
    /// How many segments are in the archive.
    pub segments: u64,
    /// What is missing between the first and the last.
    pub gaps: Vec<SegmentRange>,
    /// What is not there because retention has released it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<SegmentRange>,
    /// How many `.partial` files promotions have left.
    pub partials: u64,
    /// Where it branched off another timeline; null where it did not, or where its history is not readable.
    pub branched_from: Option<Branch>,
}

/// A part of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ListPart {
    /// The base backups.
    Backups,
    /// The WAL of each timeline.
    Wal,
}

/// Reads what the archive holds, and what the next expiry with this policy would do. `now` is this machine's time.
pub async fn run(
    part: Option<ListPart>,
    store: &Store,
    policy: &RetentionPolicy,
    now: DateTime<Utc>,
) -> Result<ListReport> {
    let mut report = ListReport {
        backups: None,
        unrestorable: None,
        unfinished: None,
        wal: None,
        window: None,
        timelines_without_wal: Vec::new(),
        ambiguous: None,
        retired: Vec::new(),
        notes: Vec::new(),
        url: store.location().to_string(),
        released: TimelineRanges::default(),
        segment_size: SegmentSize::DEFAULT,
    };
    let archive = Archive::open(store).await?;
    if part == Some(ListPart::Wal) {
        report.segment_size = archive.identity().segment_bytes;
        report.released = catalogue::released(&archive).await?;
        let wal = catalogue::wal(&archive).await?;
        let (histories, _) = catalogue::histories(&archive, &wal).await?;
        report.add_wal(&wal, &histories);
        return Ok(report);
    }
    let catalogue = catalogue::load(&archive).await?;
    report.segment_size = catalogue.wal.segment_size();
    report.released = catalogue.released.clone();
    report.ambiguous = judge(&catalogue, |_| true).followed.err();
    report.retired = catalogue.retired.values().cloned().collect();
    report.add_backups(&catalogue, policy, now);
    if part.is_none() {
        report.add_wal(&catalogue.wal, &catalogue.histories);
        let mut catalogue = catalogue;
        wal_changes::note_barriers(&archive, &mut catalogue, wal_changes::LOOKED_AT).await?;
        let times = TimeIndex::new(&archive, WHOLE_READS);
        report.window = Some(times.windows(&catalogue).await?);
    }
    Ok(report)
}

impl ListReport {
    fn add_backups(&mut self, catalogue: &Catalogue, policy: &RetentionPolicy, now: DateTime<Utc>) {
        let plan = retention::plan(catalogue, policy, now).unwrap_or_else(|refusal| {
            self.notes.push(refusal);
            None
        });
        let backups = catalogue.backups.iter().map(|backup| {
            let retention = ListedRetention::of(backup, catalogue, plan.as_ref());
            listed(backup, retention)
        });
        self.backups = Some(backups.collect());
        let unrestorable = catalogue.unrestorable.iter().map(|entry| ListedUnrestorable {
            id: entry.id.clone(),
            reason: entry.reason.clone(),
        });
        self.unrestorable = Some(unrestorable.collect());
        let unfinished = catalogue.unfinished.iter().map(|entry| ListedUnfinished {
            id: entry.id.clone(),
            state: entry.state,
            last_sign: entry.last_sign,
        });
        self.unfinished = Some(unfinished.collect());
    }

    fn add_wal(&mut self, wal: &WalInventory, histories: &BTreeMap<TimelineId, TimelineHistory>) {
        let timelines = wal.timelines().filter_map(|timeline| {
            let span = wal.span(timeline)?;
            let (gaps, given_up) = retention::gaps(wal, timeline, &self.released);
            Some(ListedTimeline {
                timeline,
                first: span.first,
                last: span.last,
                segments: span.segments,
                gaps,
                given_up,
                partials: wal.partials(timeline),
                branched_from: branch(histories, wal, timeline),
            })
        });
        self.wal = Some(timelines.collect());
        self.timelines_without_wal = wal
            .timelines()
            .filter(|timeline| wal.newest(*timeline).is_none())
            .collect();
        if wal.empty() > 0 {
            self.notes.push(format!(
                "empty objects below wal/, which count as missing: {}",
                wal.empty()
            ));
        }
        if wal.foreign() > 0 {
            self.notes.push(format!(
                "objects below wal/ that are not walship's: {}",
                wal.foreign()
            ));
        }
    }
}

fn listed(backup: &Backup, retention: ListedRetention) -> ListedBackup {
    ListedBackup {
        id: backup.id.clone(),
        label: backup.label.clone(),
        kind: backup.kind,
        source: backup.source,
        started_at: backup.started_at,
        finished_at: backup.finished_at,
        start_lsn: backup.start_lsn,
        stop_lsn: backup.stop_lsn,
        timeline: backup.stop_timeline,
        postgres_version: backup.postgres_version.clone(),
        size_bytes: backup.size_bytes,
        stored_bytes: backup.stored_bytes,
        proven: Proven::of(backup.proof.as_ref()),
        retention,
    }
}
