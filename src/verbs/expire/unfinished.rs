//! Which WAL the backups need that are not finished: from `pending.json`, or from the heartbeat.

use chrono::{DateTime, Utc};

use crate::archive::{catalogue, records};
use crate::error::{ErrorKind, Result};
use crate::format::backup::{BackupAlive, WalRange};
use crate::format::keys::{BackupId, BackupObject, Key};
use crate::judge::catalogue::{Catalogue, UnfinishedState, needed_wal};
use crate::judge::retention::{UnfinishedWal, UnfinishedWals};
use crate::pg::{SegmentNumber, SegmentSize};
use crate::store::Store;

/// The largest `alive.json` that is read.
const ALIVE_LIMIT: u64 = 64 << 10;

/// Asks for each unfinished backup.
///
/// # Errors
/// As the store.
pub(super) async fn needs(
    store: &Store,
    catalogue: &Catalogue,
    now: DateTime<Utc>,
) -> Result<UnfinishedWals> {
    let mut needs = UnfinishedWals::new();
    for entry in &catalogue.unfinished {
        let wal = match entry.state {
            UnfinishedState::WaitingForWal => pending(store, &entry.id).await?,
            // A lost record told it.
            _ if entry.lost_record(now).is_some() => UnfinishedWal::Unknown,
            UnfinishedState::Started => running(store, &entry.id).await?,
            UnfinishedState::Remains => continue,
        };
        needs.insert(entry.id.clone(), wal);
    }
    Ok(needs)
}

async fn pending(store: &Store, id: &BackupId) -> Result<UnfinishedWal> {
    match catalogue::find_record(store, id, BackupObject::Pending).await {
        Ok(Some(record)) => Ok(UnfinishedWal::Ranges(record.wal_ranges)),
        // It was finished or given up in this very moment.
        Ok(None) => Ok(UnfinishedWal::Unknown),
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            Ok(UnfinishedWal::Unreadable(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// What a running backup says that it needs.
///
/// # Errors
/// As the store.
pub(super) async fn running(store: &Store, id: &BackupId) -> Result<UnfinishedWal> {
    let key = Key::Backup(id.clone(), BackupObject::Alive).to_string();
    match records::read(store, &key, ALIVE_LIMIT, BackupAlive::parse).await {
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

/// The first segment that a backup needs which goes on or began meanwhile, on whatever timeline; `None` where
/// nobody knows.
///
/// # Errors
/// As the store.
pub(super) async fn needed_from(
    store: &Store,
    id: &BackupId,
    size: SegmentSize,
) -> Result<Option<SegmentNumber>> {
    let first_of = |ranges: &[WalRange]| {
        let needed = needed_wal(ranges, size);
        needed.iter().map(|needed| needed.first).min()
    };
    if let UnfinishedWal::Ranges(ranges) = pending(store, id).await? {
        return Ok(first_of(&ranges));
    }
    if let UnfinishedWal::From { lsn, .. } = running(store, id).await? {
        return Ok(Some(size.segment_of(lsn)));
    }
    // It may be complete already.
    match catalogue::read_record(store, id).await {
        Ok(record) => Ok(first_of(&record.wal_ranges)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
