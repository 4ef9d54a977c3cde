//! What the store and the archive say; every question at the same time as the others.

use std::time::Duration;

use crate::archive::diagnosis::Known;
use crate::archive::diagnosis::facts::ArchiveFacts;
use crate::commands::{catalogue, identity, verify};
use crate::error::Result;
use crate::store::Store;

/// Asks the store everything, within `limit`.
pub(super) async fn gather(store: &Store, expires: bool, limit: Duration) -> ArchiveFacts {
    let (identity, catalogue, verification, probe, (manners, delete)) = tokio::join!(
        within(limit, "read walship.json", identity::find(store)),
        within(limit, "list the archive", catalogue::load(store)),
        within(limit, "read the ledger", verify::last_verification(store)),
        within(limit, "write walship.probe", store.probe_conditional_writes()),
        async {
            let manners = tokio::time::timeout(limit, store.manners()).await.ok();
            let versioning = manners.as_ref().map(|manners| manners.versioning.as_ref().ok());
            // Where versions are kept, or may be, a deletion leaves a delete marker.
            let leaves_nothing = matches!(versioning, Some(Some(None | Some(false))));
            let delete = if expires && leaves_nothing {
                within(limit, "see whether deleting is allowed", store.probe_delete())
                    .await
                    .map(Some)
            } else {
                Ok(None)
            };
            (manners, delete)
        }
    );
    let clock = manners.as_ref().and_then(|manners| manners.clock);
    let (versioning, object_lock) = match manners {
        Some(manners) => (text(manners.versioning), text(manners.object_lock)),
        None => (
            Err(too_slow("ask the bucket", limit)),
            Err(too_slow("ask the bucket", limit)),
        ),
    };
    ArchiveFacts {
        url: store.location().to_string(),
        identity,
        catalogue,
        verification,
        probe,
        delete,
        versioning,
        object_lock,
        clock_ahead: clock.map(crate::store::StoreClock::ahead),
        last_archived: Err("the server does not answer".to_owned()),
        server_lsn_after: None,
    }
}

fn text<T>(result: Result<T>) -> Known<T> {
    result.map_err(|error| error.to_string())
}

pub(super) async fn within<T>(
    limit: Duration,
    doing: &str,
    work: impl Future<Output = Result<T>>,
) -> Known<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => text(result),
        Err(_) => Err(too_slow(doing, limit)),
    }
}

fn too_slow(doing: &str, limit: Duration) -> String {
    format!(
        "{doing}: not done within {} s (doctor.timeout)",
        limit.as_secs_f64()
    )
}
