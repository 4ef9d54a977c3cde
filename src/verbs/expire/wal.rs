//! Deleting WAL: listed a page at a time, so that memory does not grow with it.

use std::collections::BTreeSet;

use chrono::TimeDelta;

use super::report::ExpireReport;
use super::unfinished::needed_from;
use crate::archive::Archive;
use crate::error::{Context, Result};
use crate::format::keys::{BACKUPS_PREFIX, BackupId, BackupObject, Key, WAL_PREFIX, backup_prefix};
use crate::format::released::TimelineRanges;
use crate::judge::catalogue::Catalogue;
use crate::pg::{SegmentNumber, SegmentSize};
use crate::progress::Progress;
use crate::store::{ObjectInfo, Store};

/// As many objects as one request deletes.
const BATCH: usize = 1000;

/// Deletes the segments that may go, and the `.partial` and `.backup` files beside them; in a dry run
/// it counts them.
///
/// # Errors
/// As the store.
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
        newcomers: Newcomers::new(catalogue),
        deletable,
        batch: Vec::with_capacity(BATCH),
        report,
    };
    progress.phase("look through the WAL");
    let mut listing = archive.store().list(WAL_PREFIX, None);
    while let Some(page) = listing.next().await.context(|| "list the archived WAL")? {
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
    newcomers: Newcomers,
    deletable: TimelineRanges,
    batch: Vec<(Key, u64)>,
    report: &'a mut ExpireReport,
}

impl Deletion<'_> {
    /// The object and its size, where it may go.
    fn may_go(&self, object: &ObjectInfo) -> Option<(Key, u64)> {
        let key = object.key.parse().ok()?;
        // The plan knows nothing of what was stored after it.
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
        self.look_for_newcomers().await?;
        objects.retain(|(key, _)| self.is_deletable(key));
        let (_, bytes) = self.report.delete(&objects, self.archive.store()).await?;
        self.progress.advance(bytes);
        let files = self.report.deleted.objects;
        self.progress.phase(format!("delete WAL, {files} objects so far"));
        Ok(())
    }

    /// A backup that began since the archive was read may need WAL that was not needed then.
    async fn look_for_newcomers(&mut self) -> Result<()> {
        for id in self.newcomers.look(self.archive.store()).await? {
            let needed = needed_from(self.archive, &id, self.size).await?;
            if needed.is_none() {
                self.report.notes.push(format!(
                    "backup {id} began meanwhile and may need any WAL; the rest goes at the next run"
                ));
            }
            self.deletable.remove_from(needed.unwrap_or(SegmentNumber(0)));
        }
        Ok(())
    }
}

/// How much the clock of a machine that begins a backup may be behind those before it.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::days(1);

/// Backups that the plan did not know.
struct Newcomers {
    known: BTreeSet<BackupId>,
}

impl Newcomers {
    fn new(catalogue: &Catalogue) -> Self {
        let backups = catalogue.backups.iter().map(|backup| &backup.id);
        let unrestorable = catalogue.unrestorable.iter().map(|entry| &entry.id);
        let unfinished = catalogue.unfinished.iter().map(|entry| &entry.id);
        Self {
            known: backups.chain(unrestorable).chain(unfinished).cloned().collect(),
        }
    }

    /// Those that came since the last look. Their ids are in the order of their machines' clocks.
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
