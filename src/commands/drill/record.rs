//! The result of a drill, noted beside the backup.

use crate::archive::keys::{BackupId, BackupObject, Key};
use crate::archive::proof::{DrillRecord, Proof};
use crate::commands::catalogue;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Body, PutMode, Store};

/// Notes the result beside the backup. Of two drills of one backup that end at the same moment, one
/// may get lost.
///
/// # Errors
/// `NotFound` where the backup is gone; as the store.
pub async fn record(store: &Store, backup: &BackupId, drill: DrillRecord) -> Result<()> {
    let key = |object| Key::Backup(backup.clone(), object).to_string();
    // A backup that was deleted meanwhile must not come back as a remainder.
    if store.head(&key(BackupObject::Record)).await?.is_none() {
        return Err(Error::not_found(format!(
            "backup {backup} was deleted while it was proven"
        )));
    }
    let before = match catalogue::read_proof(store, backup).await {
        Err(error) if error.kind() == ErrorKind::Corrupt => None,
        read => read?,
    };
    let proof = Proof::after(before, drill).to_json()?;
    store
        .put(
            &key(BackupObject::Proof),
            &Body::from_bytes(proof),
            PutMode::Replace,
        )
        .await
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::commands::recover::fixture;

    #[tokio::test]
    async fn a_backup_that_was_deleted_meanwhile_does_not_come_back_as_a_remainder() {
        let top = tempfile::tempdir().unwrap();
        let store = fixture::store(top.path()).await;
        let id = fixture::record(&[]).id;
        let drill = DrillRecord::begun(DateTime::UNIX_EPOCH, "db1".to_owned(), "the end".to_owned());
        let error = record(&store, &id, drill.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let key = |object| Key::Backup(id.clone(), object).to_string();
        assert!(store.head(&key(BackupObject::Proof)).await.unwrap().is_none());
        // A damaged proof is replaced; nothing depends on it.
        for object in [BackupObject::Record, BackupObject::Proof] {
            let body = Body::from_bytes("{");
            store.put(&key(object), &body, PutMode::Create).await.unwrap();
        }
        record(&store, &id, drill.clone()).await.unwrap();
        let proof = catalogue::read_proof(&store, &id).await.unwrap().unwrap();
        assert_eq!(proof.last_success, Some(drill));
    }
}
