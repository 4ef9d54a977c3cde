//! Which WAL the unfinished backups need, by their `pending.json` or their heartbeat.

use chrono::{DateTime, Utc};

use crate::archive::Archive;
use crate::error::{ErrorKind, Result};
use crate::format::backup::{BackupAlive, BackupRecord, PendingRecord, WalRange};
use crate::format::keys::BackupId;
use crate::judge::catalogue::{Catalogue, UnfinishedState, needed_wal};
use crate::judge::retention::{UnfinishedWal, UnfinishedWals};
use crate::pg::{SegmentNumber, SegmentSize};

pub(super) async fn needs(
    archive: &Archive,
    catalogue: &Catalogue,
    now: DateTime<Utc>,
) -> Result<UnfinishedWals> {
    let mut needs = UnfinishedWals::new();
    for entry in &catalogue.unfinished {
        let wal = match entry.state {
            UnfinishedState::WaitingForWal => pending(archive, &entry.id).await?,
            // Only the record, which is lost, told it.
            _ if entry.lost_record(now).is_some() => UnfinishedWal::Unknown,
            UnfinishedState::Started => running(archive, &entry.id).await?,
            UnfinishedState::Remains => continue,
        };
        needs.insert(entry.id.clone(), wal);
    }
    Ok(needs)
}

async fn pending(archive: &Archive, id: &BackupId) -> Result<UnfinishedWal> {
    match archive.find(id).await {
        Ok(Some(PendingRecord(record))) => Ok(UnfinishedWal::Ranges(record.wal_ranges)),
        // It was just finished or given up.
        Ok(None) => Ok(UnfinishedWal::Unknown),
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            Ok(UnfinishedWal::Unreadable(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// Which WAL a running backup needs, by its heartbeat.
pub(super) async fn running(archive: &Archive, id: &BackupId) -> Result<UnfinishedWal> {
    match archive.find(id).await {
        Ok(Some(BackupAlive {
            wal_from: Some(from), ..
        })) => Ok(UnfinishedWal::From {
            timeline: from.timeline,
            lsn: from.lsn,
        }),
        Ok(Some(BackupAlive { wal_from: None, .. }) | None) => Ok(UnfinishedWal::Unknown),
        Err(error) => match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Invalid => Ok(UnfinishedWal::Unknown),
            _ => Err(error),
        },
    }
}

/// The first segment, on any timeline, that a running or just finished backup needs; `None` where nobody knows.
pub(super) async fn needed_from(
    archive: &Archive,
    id: &BackupId,
    size: SegmentSize,
) -> Result<Option<SegmentNumber>> {
    let first_of = |ranges: &[WalRange]| {
        let needed = needed_wal(ranges, size);
        needed.iter().map(|needed| needed.first).min()
    };
    if let UnfinishedWal::Ranges(ranges) = pending(archive, id).await? {
        return Ok(first_of(&ranges));
    }
    if let UnfinishedWal::From { lsn, .. } = running(archive, id).await? {
        return Ok(Some(size.segment_of(lsn)));
    }
    // It may be complete already.
    let record: Option<BackupRecord> = archive.find(id).await?;
    Ok(record.and_then(|record| first_of(&record.wal_ranges)))
}
