//! Reading `walship.json`, and creating it for a new archive.

use chrono::{DateTime, Utc};

use crate::archive::identity::{ClusterIdentity, IDENTITY_LIMIT, Identity};
use crate::archive::keys::{BACKUPS_PREFIX, Key, WAL_PREFIX};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::{Body, PutMode, Store};

/// Reads the archive's identity; `None` where it is proven that there is no `walship.json`.
///
/// # Errors
/// As [`Store::get`] and [`Identity::parse`].
pub async fn find(store: &Store) -> Result<Option<Identity>> {
    let key = Key::Identity.to_string();
    let url = store.url_of(&key);
    match store.read(&key, IDENTITY_LIMIT).await {
        Ok(bytes) => Identity::parse(&bytes, &url).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the archive's identity, and creates it where `cluster` is the first to use the archive.
///
/// # Errors
/// As [`find`] and [`Store::put`]; `Invalid` where the archive is another cluster's.
pub async fn find_or_create(store: &Store, cluster: ClusterIdentity, now: DateTime<Utc>) -> Result<Identity> {
    // A directory archive begins with its directory. On S3 this sends nothing.
    store.create_root().await?;
    let identity = match find(store).await? {
        Some(identity) => identity,
        None => create(store, cluster, now).await?,
    };
    identity.check(cluster, &store.location().to_string())?;
    Ok(identity)
}

/// Reads the identity of an archive that must be there.
///
/// # Errors
/// `Invalid` where there is no `walship.json`: a mistyped URL or an emptied archive must never look
/// like an archive that lacks one file. Otherwise as [`find`].
pub async fn require(store: &Store) -> Result<Identity> {
    find(store).await?.ok_or_else(|| {
        Error::invalid(format!(
            "there is no archive at {}: walship.json is missing; nothing was archived there yet, or it was emptied or \
             is not mounted; check the URL",
            store.location()
        ))
    })
}

/// Reads the identity of an archive that `cluster` has used before.
///
/// # Errors
/// `Invalid` where there is none, or it is another cluster's: a file system that is not mounted or an
/// emptied archive must not become a new archive behind the administrator's back.
pub async fn require_of(store: &Store, cluster: ClusterIdentity) -> Result<Identity> {
    let identity = require(store).await.map_err(|error| {
        let hint = "this cluster has archived before; mount or restore that archive, \
                    or start a new one here with `walship basebackup`";
        if error.kind() == ErrorKind::Invalid {
            Error::invalid(format!("{error} ({hint})"))
        } else {
            error
        }
    })?;
    identity.check(cluster, &store.location().to_string())?;
    Ok(identity)
}

/// Creates the identity of a new archive, after probing whether the store honours conditional
/// writes. Of racing creators one wins; the identity returned is the winner's.
///
/// # Errors
/// `Invalid` where objects are there already, whose identity is then lost; otherwise as
/// [`Store::put`].
async fn create(store: &Store, cluster: ClusterIdentity, now: DateTime<Utc>) -> Result<Identity> {
    if let Err(refusal) = refuse_orphans(store).await {
        // Unless another creator came first: the archiver while a base backup begins, say.
        return find(store).await?.ok_or(refusal);
    }
    let conditional_writes = store
        .probe_conditional_writes()
        .await
        .context(|| format!("probe whether {} honours conditional writes", store.location()))?;
    let identity = Identity::new(cluster, conditional_writes, now);
    let key = Key::Identity.to_string();
    match store
        .put(&key, &Body::from_bytes(identity.to_json()?), PutMode::Create)
        .await
    {
        Ok(()) => Ok(identity),
        Err(error) if error.kind() == ErrorKind::Conflict => require(store).await,
        Err(error) => Err(error.context(format!("create {}", store.url_of(&key)))),
    }
}

/// Warns where the store takes conditional writes without honouring them.
pub fn warn_if_unconditional(identity: &Identity, store: &Store) {
    if !identity.conditional_writes {
        tracing::warn!(
            "{} ignores conditional writes: walship looks before it writes, \
             but cannot keep two primaries apart that write at the same moment",
            store.location()
        );
    }
}

async fn refuse_orphans(store: &Store) -> Result<()> {
    for prefix in [WAL_PREFIX, BACKUPS_PREFIX] {
        let first_page = store.list(prefix, None).next().await?;
        if let Some(object) = first_page.and_then(|page| page.into_iter().next()) {
            return Err(Error::invalid(format!(
                "{} holds {} but no walship.json, so whose archive it is cannot be known; \
                 restore walship.json from a copy, or use an empty prefix",
                store.location(),
                object.key
            )));
        }
    }
    Ok(())
}
