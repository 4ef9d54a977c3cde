//! Writes a backup's objects, and checks those that are there.

use std::collections::HashMap;

use crate::archive::{Archive, Same};
use crate::error::{Context, Error, Result};
use crate::format::Sha256Sum;
use crate::format::backup::{BackupRecord, StoredObject};
use crate::format::keys::{BackupId, BackupObject, backup_prefix};
use crate::store::Body;

/// What the record says of an object with this body.
pub(super) fn stored(body: &Body) -> StoredObject {
    StoredObject {
        stored_bytes: body.length(),
        sha256: Sha256Sum(body.sha256),
    }
}

/// Creates an object of a backup, or finds it as an earlier attempt left it.
pub(super) async fn create(
    archive: &Archive,
    id: &BackupId,
    object: BackupObject,
    body: &Body,
) -> Result<()> {
    let key = id.key(object);
    let created = archive.create(&key, body, Same::Bytes, None).await;
    created
        .context(|| format!("write {}", archive.url_of(&key)))
        .map(drop)
}

/// Lists a backup's objects and compares their sizes with the record.
///
/// # Errors
/// `Corrupt` where an object is missing or has another size.
pub(super) async fn check_listed(archive: &Archive, record: &BackupRecord) -> Result<()> {
    let mut listed = HashMap::new();
    let mut listing = archive.store().list(&backup_prefix(&record.id), None);
    while let Some(page) = listing.next().await.context(|| "list the backup's objects")? {
        listed.extend(page.into_iter().map(|object| (object.key, object.size)));
    }
    for (object, expected) in record.objects() {
        let key = record.id.key(object).to_string();
        let what = match listed.get(&key) {
            Some(size) if *size == expected.stored_bytes => continue,
            Some(size) => format!("has {size} bytes instead of {}", expected.stored_bytes),
            None => "is missing".to_owned(),
        };
        return Err(Error::corrupt(format!(
            "{} {what} although walship wrote it; something else deletes or writes in the archive (perhaps a lifecycle \
             rule). The backup is not listed; take another",
            archive.store().url_of(&key)
        )));
    }
    Ok(())
}

/// Deletes what a failed backup wrote, as far as possible. `started.json` goes last, so that it can be seen what the
/// rest is if that cannot be deleted.
pub(super) async fn discard(archive: &Archive, id: &BackupId) -> Result<()> {
    let store = archive.store();
    let mut keys = Vec::new();
    let mut listing = store.list(&backup_prefix(id), None);
    while let Some(page) = listing.next().await? {
        keys.extend(page.into_iter().map(|object| object.key));
    }
    let started = id.key(BackupObject::Started).to_string();
    let record = id.key(BackupObject::Record).to_string();
    if keys.contains(&record) {
        return Ok(());
    }
    keys.retain(|key| *key != started);
    store.delete(&keys).await?;
    store.delete(&[started]).await
}
