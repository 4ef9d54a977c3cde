//! Deletes WAL. It is listed a page at a time, so that memory does not grow with its amount.

use std::collections::BTreeSet;

use chrono::TimeDelta;

use super::report::ExpireReport;
use super::unfinished::needed_from;
use crate::archive::Archive;
use crate::archive::wal_listing::WalListing;
use crate::error::{Context, Result};
use crate::format::keys::{BACKUPS_PREFIX, BackupId, BackupObject, Key, backup_prefix};
use crate::format::released::TimelineRanges;
use crate::judge::catalogue::Catalogue;
use crate::pg::{SegmentNumber, SegmentSize};
use crate::progress::Progress;
use crate::store::{ObjectInfo, Store};

/// One request deletes at most this many objects.
const BATCH: usize = 1000;

/// Deletes the segments that may go, and the `.partial` and `.backup` files beside them. A dry run only counts them.
pub(super) async fn delete(
    report: &mut ExpireReport,
    deletable: TimelineRanges,
    catalogue: &Catalogue,
    archive: &Archive,
    progress: &Progress,
) -> Result<()> {
    if deletable.is_empty() {
        return Ok(());
    }
    let mut deletion = Deletion {
        archive,
        progress,
        size: catalogue.wal.segment_size(),
        new_backups: NewBackups::new(catalogue),
        deletable,
        batch: Vec::with_capacity(BATCH),
        report,
    };
    progress.phase("look through the WAL");
    let mut listing = WalListing::new(archive);
    while let Some(page) = listing.next().await? {
        for object in page {
            deletion.batch.extend(deletion.may_go(&object));
            if deletion.batch.len() == BATCH {
                deletion.flush().await?;
            }
        }
        if deletion.deletable.is_empty() {
            break;
        }
    }
    deletion.flush().await
}

struct Deletion<'a> {
    archive: &'a Archive,
    progress: &'a Progress,
    size: SegmentSize,
    new_backups: NewBackups,
    deletable: TimelineRanges,
    batch: Vec<(Key, u64)>,
    report: &'a mut ExpireReport,
}

impl Deletion<'_> {
    /// The object's key and size; `None` where it must stay.
    fn may_go(&self, object: &ObjectInfo) -> Option<(Key, u64)> {
        let key = object.key.parse().ok()?;
        // What was stored after the plan was made is not part of it.
        let may_go = object.modified <= self.report.plan.now && self.is_deletable(&key);
        may_go.then_some((key, object.size))
    }

    fn is_deletable(&self, key: &Key) -> bool {
        key.segment().is_some_and(|segment| {
            let number = segment.number(self.size);
            number.is_ok_and(|number| self.deletable.contains(segment.timeline(), number))
        })
    }

    async fn flush(&mut self) -> Result<()> {
        let mut objects = std::mem::take(&mut self.batch);
        if objects.is_empty() {
            return Ok(());
        }
        if self.report.dry_run {
            self.report.deleted.count(&objects);
            return Ok(());
        }
        self.look_for_new_backups().await?;
        objects.retain(|(key, _)| self.is_deletable(key));
        let (_, bytes) = self.report.delete(&objects, self.archive.store()).await?;
        self.progress.advance(bytes);
        let files = self.report.deleted.objects;
        self.progress.phase(format!("delete WAL, {files} objects so far"));
        Ok(())
    }

    /// A backup that began since the archive was read may need WAL that was not needed then.
    async fn look_for_new_backups(&mut self) -> Result<()> {
        for id in self.new_backups.look(self.archive.store()).await? {
            let needed = needed_from(self.archive, &id, self.size).await?;
            if needed.is_none() {
                self.report.notes.push(format!(
                    "backup {id} began meanwhile and may need any WAL; the next run deletes the rest"
                ));
            }
            self.deletable.remove_from(needed.unwrap_or(SegmentNumber(0)));
        }
        Ok(())
    }
}

/// A backup's machine may have a clock that is at most this much behind those of earlier backups' machines.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::days(1);

/// Backups that the plan did not know.
struct NewBackups {
    known: BTreeSet<BackupId>,
}

impl NewBackups {
    fn new(catalogue: &Catalogue) -> Self {
        let backups = catalogue.backups.iter().map(|backup| &backup.id);
        let unrestorable = catalogue.unrestorable.iter().map(|entry| &entry.id);
        let unfinished = catalogue.unfinished.iter().map(|entry| &entry.id);
        Self {
            known: backups.chain(unrestorable).chain(unfinished).cloned().collect(),
        }
    }

    /// The backups that began since the last look. Their ids are in the order of their machines' clocks.
    async fn look(&mut self, store: &Store) -> Result<Vec<BackupId>> {
        let newest = self.known.last().map(BackupId::moment);
        let after = newest.map(|newest| backup_prefix(&BackupId::at(newest - CLOCK_TOLERANCE)));
        let mut listing = store.list(BACKUPS_PREFIX, after.as_deref());
        let mut found = Vec::new();
        while let Some(page) = listing.next().await.context(|| "look for new backups")? {
            for object in page {
                if let Ok(Key::Backup(id, BackupObject::Started)) = object.key.parse()
                    && self.known.insert(id.clone())
                {
                    found.push(id);
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}
