//! Reading what an archive holds.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{identity, stored_wal};
use crate::archive::backup::BackupRecord;
use crate::archive::catalogue::{
    Backup, Catalogue, PartCheck, Unfinished, UnfinishedState, Unrestorable, missing_wal,
};
use crate::archive::identity::Identity;
use crate::archive::keys::{BACKUPS_PREFIX, BackupId, BackupObject, Key, WAL_PREFIX, backup_prefix};
use crate::archive::wal_inventory::WalInventory;
use crate::commands::basebackup::RECORD_LIMIT;
use crate::error::{Context, ErrorKind, Result};
use crate::pg::TimelineId;
use crate::store::Store;

/// Reads what the archive holds. Memory grows with the number of backups and of gaps in the WAL, not
/// with that of objects.
///
/// # Errors
/// As [`identity::require`] and the store. A damaged backup or history is no error but noted.
pub async fn load(store: &Store) -> Result<Catalogue> {
    let identity = identity::require(store).await?;
    // Backups before WAL: what a backup that ends meanwhile needs is then listed as well.
    let mut seen = survey_backups(store).await?;
    let wal = inventory(store, &identity).await?;
    let mut catalogue = Catalogue {
        histories: BTreeMap::new(),
        unreadable_histories: BTreeMap::new(),
        backups: Vec::new(),
        unrestorable: Vec::new(),
        unfinished: Vec::new(),
        wal,
        identity,
    };
    read_histories(store, &mut catalogue).await?;
    while let Some((id, survey)) = seen.pop_first() {
        if survey.has_record {
            judge(store, id, &mut catalogue).await?;
        } else {
            catalogue.unfinished.push(Unfinished {
                id,
                state: survey.state(),
                last_sign: survey.last_sign,
            });
        }
    }
    Ok(catalogue)
}

/// What a listing shows of one backup.
struct Survey {
    has_record: bool,
    is_pending: bool,
    is_started: bool,
    last_sign: DateTime<Utc>,
}

impl Survey {
    fn state(&self) -> UnfinishedState {
        if self.is_pending {
            UnfinishedState::WaitingForWal
        } else if self.is_started {
            UnfinishedState::Started
        } else {
            UnfinishedState::Remains
        }
    }
}

async fn survey_backups(store: &Store) -> Result<BTreeMap<BackupId, Survey>> {
    let mut seen = BTreeMap::new();
    let mut listing = store.list(BACKUPS_PREFIX, None);
    while let Some(page) = listing.next().await? {
        for object in page {
            let Ok(Key::Backup(id, kind)) = object.key.parse() else {
                continue;
            };
            let survey = seen.entry(id).or_insert(Survey {
                has_record: false,
                is_pending: false,
                is_started: false,
                last_sign: object.modified,
            });
            survey.has_record |= kind == BackupObject::Record;
            survey.is_pending |= kind == BackupObject::Pending;
            survey.is_started |= kind == BackupObject::Started;
            survey.last_sign = survey.last_sign.max(object.modified);
        }
    }
    Ok(seen)
}

async fn inventory(store: &Store, identity: &Identity) -> Result<WalInventory> {
    let mut wal = WalInventory::new(identity.segment_bytes);
    let mut listing = store.list(WAL_PREFIX, None);
    while let Some(page) = listing.next().await? {
        for object in &page {
            wal.add(&object.key, object.size);
        }
    }
    Ok(wal)
}

async fn read_histories(store: &Store, catalogue: &mut Catalogue) -> Result<()> {
    let timelines: Vec<TimelineId> = catalogue.wal.histories().collect();
    for timeline in timelines {
        match stored_wal::read_history(store, timeline, catalogue.identity.system_identifier).await {
            Ok(Some(history)) => drop(catalogue.histories.insert(timeline, history)),
            // Listed and then gone: nothing of walship deletes one.
            Ok(None) => note(catalogue, timeline, "vanished while the archive was read"),
            Err(error) if error.kind() == ErrorKind::Corrupt => note(catalogue, timeline, error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn note(catalogue: &mut Catalogue, timeline: TimelineId, why: impl Into<String>) {
    catalogue.unreadable_histories.insert(timeline, why.into());
}

/// Whether a backup with a record can be restored: the record is readable, all its objects are
/// listed with their sizes, the WAL it needs is there.
async fn judge(store: &Store, id: BackupId, catalogue: &mut Catalogue) -> Result<()> {
    let url = store.url_of(&Key::Backup(id.clone(), BackupObject::Record).to_string());
    let record = match read_record(store, &id).await {
        Ok(record) => record,
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            catalogue.unrestorable.push(Unrestorable {
                id,
                reason: error.to_string(),
                backup: None,
            });
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let backup = Backup::from(&record);
    let reason = if record.id != id {
        Some(format!("{url} is the record of another backup, {}", record.id))
    } else if record.system_identifier != catalogue.identity.system_identifier {
        Some(format!(
            "{url} belongs to the cluster with system identifier {}",
            record.system_identifier
        ))
    } else if let Some(wrong) = check_objects(store, &record).await? {
        Some(wrong)
    } else {
        missing_wal(&backup, &catalogue.wal)?
            .map(|missing| format!("the WAL it needs is not in the archive: {missing}"))
    };
    match reason {
        None => catalogue.backups.push(backup),
        Some(reason) => catalogue.unrestorable.push(Unrestorable {
            id,
            reason,
            backup: Some(backup),
        }),
    }
    Ok(())
}

async fn check_objects(store: &Store, record: &BackupRecord) -> Result<Option<String>> {
    let mut check = PartCheck::new(record)?;
    let mut listing = store.list(&backup_prefix(&record.id), None);
    while let Some(page) = listing.next().await? {
        for object in &page {
            if let Ok(Key::Backup(_, kind)) = object.key.parse() {
                check.saw(&kind, object.size);
            }
        }
    }
    Ok(check.finish())
}

/// Reads a backup's record.
///
/// # Errors
/// As the store and [`BackupRecord::parse`].
pub async fn read_record(store: &Store, id: &BackupId) -> Result<BackupRecord> {
    let key = Key::Backup(id.clone(), BackupObject::Record).to_string();
    let url = store.url_of(&key);
    let bytes = store
        .read(&key, RECORD_LIMIT)
        .await
        .context(|| format!("read {url}"))?;
    BackupRecord::parse(&bytes, &url)
}
