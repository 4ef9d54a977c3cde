//! `walship list`: the backups, and the WAL of each timeline with its gaps.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::catalogue;
use crate::archive::backup::{BackupKind, BackupSource};
use crate::archive::catalogue::{Backup, Catalogue, UnfinishedState};
use crate::archive::keys::BackupId;
use crate::archive::wal_inventory::SegmentRange;
use crate::config::ByteSize;
use crate::error::Result;
use crate::pg::{Lsn, SegmentName, TimelineId};
use crate::store::Store;

/// What an archive holds, for people and for programs. A part that was not asked for is absent.
#[derive(Debug, Clone, Serialize)]
pub struct ListReport {
    /// The backups that can be restored, oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backups: Option<Vec<ListedBackup>>,
    /// The backups with a record that cannot be restored as they are, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unrestorable: Vec<ListedUnrestorable>,
    /// Backups that run, wait for their WAL, or were left behind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<ListedUnfinished>,
    /// The WAL, a timeline each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal: Option<Vec<ListedTimeline>>,
    #[serde(skip)]
    url: String,
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
}

/// A backup that cannot be restored as it is.
#[derive(Debug, Clone, Serialize)]
pub struct ListedUnrestorable {
    /// Its id.
    pub id: BackupId,
    /// Why.
    pub reason: String,
}

/// A backup without a record.
#[derive(Debug, Clone, Serialize)]
pub struct ListedUnfinished {
    /// Its id.
    pub id: BackupId,
    /// How far it came.
    pub state: UnfinishedState,
    /// When the store last saw a sign of it.
    pub last_sign: DateTime<Utc>,
}

/// The WAL of one timeline.
#[derive(Debug, Clone, Serialize)]
pub struct ListedTimeline {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first segment held.
    pub first: SegmentName,
    /// The last segment held.
    pub last: SegmentName,
    /// How many are held.
    pub segments: u64,
    /// What is missing between the first and the last.
    pub gaps: Vec<SegmentRange>,
}

/// Which part of the list is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListPart {
    /// Everything.
    All,
    /// The backups.
    Backups,
    /// The WAL.
    Wal,
}

/// Reads what the archive holds.
///
/// # Errors
/// As [`catalogue::load`].
pub async fn run(part: ListPart, store: &Store) -> Result<ListReport> {
    let catalogue = catalogue::load(store).await?;
    let mut report = report(&catalogue, store.location().to_string());
    match part {
        ListPart::All => {}
        ListPart::Backups => report.wal = None,
        ListPart::Wal => {
            report.backups = None;
            report.unrestorable.clear();
            report.unfinished.clear();
        }
    }
    Ok(report)
}

fn report(catalogue: &Catalogue, url: String) -> ListReport {
    let wal = &catalogue.wal;
    let timelines = wal.timelines().filter_map(|timeline| {
        let span = wal.span(timeline)?;
        Some(ListedTimeline {
            timeline,
            first: span.first,
            last: span.last,
            segments: wal.ranges(timeline).map(|range| range.segments).sum(),
            gaps: wal.gaps(timeline).collect(),
        })
    });
    let unrestorable = catalogue.unrestorable.iter();
    let unfinished = catalogue.unfinished.iter();
    ListReport {
        backups: Some(catalogue.backups.iter().map(listed).collect()),
        unrestorable: unrestorable
            .map(|entry| ListedUnrestorable {
                id: entry.id.clone(),
                reason: entry.reason.clone(),
            })
            .collect(),
        unfinished: unfinished
            .map(|entry| ListedUnfinished {
                id: entry.id.clone(),
                state: entry.state,
                last_sign: entry.last_sign,
            })
            .collect(),
        wal: Some(timelines.collect()),
        url,
    }
}

fn listed(backup: &Backup) -> ListedBackup {
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
    }
}

impl fmt::Display for ListReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(backups) = &self.backups {
            self.write_backups(backups, f)?;
        }
        for entry in &self.unrestorable {
            writeln!(f, "\nbackup {} CANNOT BE RESTORED: {}", entry.id, entry.reason)?;
        }
        for entry in &self.unfinished {
            writeln!(f, "\nbackup {}: {}", entry.id, entry.describe())?;
        }
        if let Some(wal) = &self.wal {
            if self.backups.is_some() {
                writeln!(f)?;
            }
            self.write_wal(wal, f)?;
        }
        Ok(())
    }
}

impl ListReport {
    fn write_backups(&self, backups: &[ListedBackup], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if backups.is_empty() {
            return writeln!(
                f,
                "no backups in {}; take one with `walship basebackup`",
                self.url
            );
        }
        let headings = [
            "BACKUP",
            "LABEL",
            "KIND",
            "STARTED (UTC)",
            "FINISHED (UTC)",
            "START LSN",
            "STOP LSN",
            "TIMELINE",
            "POSTGRESQL",
            "SIZE",
            "STORED",
        ];
        let rows = backups.iter().map(|backup| {
            vec![
                backup.id.to_string(),
                backup.label.clone(),
                "full".to_owned(),
                time(backup.started_at),
                time(backup.finished_at),
                backup.start_lsn.to_string(),
                backup.stop_lsn.to_string(),
                backup.timeline.to_string(),
                backup.postgres_version.clone(),
                ByteSize(backup.size_bytes).to_string(),
                ByteSize(backup.stored_bytes).to_string(),
            ]
        });
        write_table(&headings, rows.collect(), f)
    }

    fn write_wal(&self, wal: &[ListedTimeline], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if wal.is_empty() {
            return writeln!(
                f,
                "no WAL in {}; set archive_command = 'walship push %p'",
                self.url
            );
        }
        let rows = wal.iter().map(|timeline| {
            vec![
                timeline.timeline.to_string(),
                timeline.first.to_string(),
                timeline.last.to_string(),
                timeline.segments.to_string(),
                if timeline.gaps.is_empty() {
                    "none".to_owned()
                } else {
                    timeline.gaps.len().to_string()
                },
            ]
        });
        write_table(
            &["TIMELINE", "FIRST SEGMENT", "LAST SEGMENT", "SEGMENTS", "GAPS"],
            rows.collect(),
            f,
        )?;
        for timeline in wal {
            for gap in &timeline.gaps {
                writeln!(f, "timeline {} LACKS {gap}", timeline.timeline)?;
            }
        }
        Ok(())
    }
}

impl ListedUnfinished {
    fn describe(&self) -> String {
        let id = &self.id;
        match self.state {
            UnfinishedState::WaitingForWal => format!(
                "stored, but the WAL it needs had not arrived; `walship basebackup --finish {id}` completes it"
            ),
            UnfinishedState::Started => {
                format!(
                    "not finished; the last sign of it is from {} UTC",
                    time(self.last_sign)
                )
            }
            UnfinishedState::Remains => "only remains of it are left".to_owned(),
        }
    }
}

/// Columns as wide as they must be, two blanks between them.
fn write_table(headings: &[&str], rows: Vec<Vec<String>>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let headings = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(headings).chain(rows).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    for line in &lines {
        let cells = line.iter().enumerate();
        let padded: Vec<_> = cells
            .map(|(column, cell)| format!("{cell:<width$}", width = width(column)))
            .collect();
        writeln!(f, "{}", padded.join("  ").trim_end())?;
    }
    Ok(())
}

fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S").to_string()
}
