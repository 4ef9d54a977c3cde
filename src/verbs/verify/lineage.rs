//! Whether the archived WAL of each backup is its own. The backup's part of the ledger has the WAL objects that were
//! compared, beside the backup's own objects. The result counts as long as the store shows the same objects.

use super::backups::BackupPass;
use super::scope::Verdict;
use super::tally::{Finding, FindingKind, entry_of};
use crate::archive::Archive;
use crate::archive::lineage::{contradiction, segments};
use crate::error::{ErrorKind, Result};
use crate::format::backup::BackupRecord;
use crate::format::keys::{BackupId, BackupObject, Key};
use crate::format::ledger::Shard;
use crate::store::read_again_if_damaged;

impl BackupPass<'_> {
    /// Which of a backup's WAL is not its own. WAL that is missing or damaged is found elsewhere.
    pub(super) async fn verify_lineage(
        &self,
        record: &BackupRecord,
        before: &Shard,
        after: &mut Shard,
    ) -> Result<Option<Finding>> {
        let Some(lineage) = &record.lineage else {
            return Ok(None);
        };
        let segments = match segments(record, lineage) {
            Ok(segments) => segments,
            Err(error) => return Ok(Some(Finding::damaged(record_key(&record.id), error.to_string()))),
        };
        let (mut entries, mut is_due) = (Vec::new(), false);
        for segment in segments {
            let key = Key::Segment(segment);
            let Some(info) = self.archive.head(&key).await? else {
                return Ok(None);
            };
            match self.scope.judge(&info, before.entries.get(&info.key)) {
                Verdict::Known(entry) => entries.push((info.key, entry)),
                Verdict::PassOver => {}
                Verdict::Read => {
                    is_due = true;
                    let entry = entry_of(&info, self.scope.now);
                    entries.push((info.key, entry));
                }
            }
        }
        if is_due && let Some(what) = other_history(record, self.archive).await? {
            return Ok(Some(what));
        }
        after.entries.extend(entries);
        Ok(None)
    }
}

/// Compares a backup's archived WAL with what its server said about it.
pub(super) async fn other_history(record: &BackupRecord, archive: &Archive) -> Result<Option<Finding>> {
    let Some(lineage) = &record.lineage else {
        return Ok(None);
    };
    match read_again_if_damaged(|| contradiction(record, lineage, archive)).await {
        Ok(None) => Ok(None),
        Ok(Some(what)) => Ok(Some(Finding {
            kind: FindingKind::OtherHistory,
            ..Finding::damaged(record_key(&record.id), what)
        })),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Invalid
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Why such a backup cannot be restored.
pub(super) fn reason(finding: &Finding) -> String {
    format!(
        "the archived WAL is not its own but another history's: {}",
        finding.what
    )
}

fn record_key(id: &BackupId) -> String {
    id.key(BackupObject::Record).to_string()
}
