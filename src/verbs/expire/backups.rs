//! Deletes backups. The record goes first, so that a backup is not listed any more when its other objects go.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::report::ExpireReport;
use super::unfinished::needed_from;
use crate::archive::{Archive, Same};
use crate::error::{Context, Error, Result};
use crate::format::backup::BackupRecord;
use crate::format::keep::Keep;
use crate::format::keys::{BackupId, BackupObject, Key, LedgerObject, backup_prefix};
use crate::format::released::TimelineRanges;
use crate::judge::catalogue::{Catalogue, Unfinished, needed_wal};
use crate::judge::retention::Action;
use crate::pg::SegmentNumber;
use crate::progress::Progress;
use crate::store::Body;

/// How often walship tries to put back a record that must stay.
const PUT_BACK_ATTEMPTS: u32 = 5;
const PUT_BACK_PAUSE: Duration = Duration::from_secs(3);

/// Deletes the backups that are to go by the plan. If the store refuses to delete one, the WAL that it needs is taken
/// out of `deletable`.
///
/// # Errors
/// `Conflict` where a backup was marked to be kept meanwhile; otherwise as the store.
pub(super) async fn delete(
    report: &mut ExpireReport,
    deletable: &mut TimelineRanges,
    catalogue: &Catalogue,
    archive: &Archive,
    progress: &Progress,
) -> Result<()> {
    let fates = report.plan.backups.iter();
    let ids: Vec<_> = fates
        .filter(|fate| fate.action == Action::Delete)
        .map(|fate| fate.id.clone())
        .collect();
    let mut deletion = Deletion {
        archive,
        progress,
        now: report.plan.now,
        report,
    };
    for id in ids {
        progress.phase(format!("delete backup {id}"));
        let unfinished = catalogue.unfinished.iter().find(|entry| entry.id == id);
        let gone = match unfinished {
            Some(entry) => deletion.unfinished(entry).await?,
            None => deletion.listed(&id).await?,
        };
        match (gone, unfinished) {
            (true, _) => deletion.report.deleted.backups += 1,
            (false, None) => keep_wal_of_listed(&id, deletable, catalogue),
            (false, Some(_)) => {
                let note = keep_wal_of_unfinished(&id, deletable, catalogue, archive).await?;
                deletion.report.notes.extend(note);
            }
        }
    }
    Ok(())
}

/// A backup that is still listed must stay restorable.
fn keep_wal_of_listed(id: &BackupId, deletable: &mut TimelineRanges, catalogue: &Catalogue) {
    let Some(backup) = catalogue.readable().find(|backup| backup.id == *id) else {
        return;
    };
    for needed in needed_wal(&backup.wal_ranges, catalogue.wal.segment_size()) {
        let ranges = deletable.of_mut(needed.timeline);
        ranges.remove_range(needed.first.0, needed.end.0 - 1);
    }
}

/// Somebody may have finished it or be about to; or the store refuses to delete it.
async fn keep_wal_of_unfinished(
    id: &BackupId,
    deletable: &mut TimelineRanges,
    catalogue: &Catalogue,
    archive: &Archive,
) -> Result<Option<String>> {
    let first = needed_from(archive, id, catalogue.wal.segment_size()).await?;
    deletable.remove_from(first.unwrap_or(SegmentNumber(0)));
    Ok(first
        .is_none()
        .then(|| format!("backup {id} may need any WAL; a later run deletes WAL, when it is known what became of the backup")))
}

struct Deletion<'a> {
    archive: &'a Archive,
    progress: &'a Progress,
    now: DateTime<Utc>,
    report: &'a mut ExpireReport,
}

impl Deletion<'_> {
    /// Deletes a backup that has a record; false where the store refuses to delete the record.
    async fn listed(&mut self, id: &BackupId) -> Result<bool> {
        self.refuse_marked(id).await?;
        // The record may have to be put back as it was written. If there is none, another expiry was faster.
        let record = self.archive.find_whole::<BackupRecord>(id).await;
        let record = record.context(|| format!("delete backup {id}"))?;
        if let Some(record) = record {
            self.forget(id).await?;
            let key = id.key(BackupObject::Record);
            if !self.delete(&[(key.clone(), record.info.size)]).await? {
                return Ok(false);
            }
            // There is a mark, or an outage, and then nobody knows whether there is one.
            if let Err(error) = self.refuse_marked(id).await {
                self.put_back(&key, &Body::from_bytes(record.bytes)).await?;
                return Err(error);
            }
        }
        self.sweep(id).await?;
        Ok(true)
    }

    /// Removes a backup from the ledger before its record goes. A backup that is in the ledger without a record counts
    /// as one that has lost it: a later run may say so if this removal fails and a kill then leaves the other objects.
    async fn forget(&self, id: &BackupId) -> Result<()> {
        let key = Key::Ledger(LedgerObject::Backup(id.clone())).to_string();
        self.archive.store().delete_where_allowed(&[key]).await.map(drop)
    }

    /// Puts back a record that must stay. Until then only this process has it.
    async fn put_back(&self, key: &Key, record: &Body) -> Result<()> {
        let mut attempt = 1;
        loop {
            match self.archive.create(key, record, Same::Bytes, None).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_retryable() && attempt < PUT_BACK_ATTEMPTS => {
                    tracing::warn!(%error, attempt, "a backup's record must stay, and could not be put back yet");
                    tokio::time::sleep(PUT_BACK_PAUSE).await;
                    attempt += 1;
                }
                Err(error) => {
                    return Err(error).context(|| format!("put {} back", self.archive.url_of(key)));
                }
            }
        }
    }

    /// Refuses to go on if the backup was marked meanwhile. Whoever marks a backup looks afterwards whether it is still
    /// there, and whoever deletes it looks whether it was marked.
    async fn refuse_marked(&self, id: &BackupId) -> Result<()> {
        let keep: Option<Keep> = self.archive.find(id).await?;
        match keep.filter(|keep| keep.holds_at(self.now)) {
            None => Ok(()),
            Some(keep) => Err(Error::conflict(format!(
                "backup {id} was marked to be kept {keep} while walship was about to delete it; it is kept. Run walship \
                 expire again for the rest"
            ))),
        }
    }

    /// Deletes what is left of a backup without a record, unless there is a new sign of it.
    async fn unfinished(&mut self, entry: &Unfinished) -> Result<bool> {
        let id = &entry.id;
        if self.has_new_sign(entry).await? {
            return Ok(false);
        }
        let pending = [(id.key(BackupObject::Pending), 0)];
        if !self.delete(&pending).await? {
            return Ok(false);
        }
        // If somebody began to finish it before that, there is a heartbeat by now.
        if self.has_new_sign(entry).await? {
            return Ok(false);
        }
        self.sweep(id).await?;
        let record = id.key(BackupObject::Record);
        if self.archive.head(&record).await?.is_some() {
            self.report.notes.push(format!(
                "backup {id} was finished while its objects were being deleted; it is deleted too, so take another"
            ));
            self.delete(&[(record, 0)]).await?;
        }
        Ok(true)
    }

    async fn has_new_sign(&mut self, entry: &Unfinished) -> Result<bool> {
        let mut listing = self.archive.store().list(&backup_prefix(&entry.id), None);
        let mut is_new = false;
        while let Some(page) = listing.next().await? {
            for object in page {
                let kind = object.key.parse();
                is_new |= object.modified > entry.last_sign
                    || matches!(kind, Ok(Key::Backup(_, BackupObject::Record)));
            }
        }
        if is_new {
            self.report.notes.push(format!(
                "somebody has worked on backup {} meanwhile; it is left alone",
                entry.id
            ));
        }
        Ok(is_new)
    }

    /// Deletes whatever walship wrote below a backup's prefix, a page at a time.
    async fn sweep(&mut self, id: &BackupId) -> Result<()> {
        let mut listing = self.archive.store().list(&backup_prefix(id), None);
        while let Some(page) = listing.next().await.context(|| format!("list backup {id}"))? {
            let objects = page.iter().filter_map(|object| match object.key.parse() {
                Ok(Key::Backup(_, BackupObject::Record)) | Err(_) => None,
                Ok(key) => Some((key, object.size)),
            });
            let objects: Vec<_> = objects.collect();
            self.delete(&objects).await?;
        }
        Ok(())
    }

    /// Deletes objects, each given with its size. Returns whether all of them were deleted.
    async fn delete(&mut self, objects: &[(Key, u64)]) -> Result<bool> {
        let (all, bytes) = self.report.delete(objects, self.archive.store()).await?;
        self.progress.advance(bytes);
        Ok(all)
    }
}
