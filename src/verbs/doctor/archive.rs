//! What the store and the archive say. All questions are asked at the same time.

use tokio::time::timeout_at;

use crate::archive::{Archive, catalogue, drills, ledger, wal_changes};
use crate::error::Result;
use crate::judge::catalogue::Catalogue;
use crate::judge::diagnosis::Fact;
use crate::judge::diagnosis::facts::ArchiveFacts;
use crate::server::deadline::Deadline;
use crate::store::Store;

/// What the archive holds, and the barriers in it, as far as there is time to look for them.
async fn load(store: &Store, deadline: Deadline) -> Result<Catalogue> {
    let archive = Archive::open(store).await?;
    let mut catalogue = catalogue::load(&archive).await?;
    let look = wal_changes::note_barriers(&archive, &mut catalogue, wal_changes::LOOKED_AT);
    if !matches!(timeout_at(deadline.earlier().at(), look).await, Ok(Ok(()))) {
        tracing::warn!("there was not enough time to see whether wal_level was minimal in between");
    }
    Ok(catalogue)
}

pub(super) async fn gather(store: &Store, expires: bool, deadline: Deadline) -> ArchiveFacts {
    let (archive, catalogue, verification, drills, probe, (properties, delete)) = tokio::join!(
        deadline.within("read walship.json", Archive::find_at(store)),
        deadline.within("list the archive", load(store, deadline)),
        deadline.within("read the ledger", async {
            ledger::last_verification(&Archive::open(store).await?).await
        }),
        deadline.within("read the last drills", async {
            drills::last_drills(&Archive::open(store).await?).await
        }),
        deadline.within("write walship.probe", store.probe_conditional_writes()),
        async {
            let properties = timeout_at(deadline.at(), store.properties()).await.ok();
            let versioning = properties
                .as_ref()
                .map(|properties| properties.versioning.as_ref().ok());
            // If versions are kept, or may be kept, a deletion leaves a delete marker.
            let leaves_nothing = matches!(versioning, Some(Some(None | Some(false))));
            let delete = if expires && leaves_nothing {
                deadline
                    .within("see whether deleting is allowed", store.probe_delete())
                    .await
                    .map(Some)
            } else {
                Ok(None)
            };
            (properties, delete)
        }
    );
    let clock = properties.as_ref().and_then(|properties| properties.clock);
    let (versioning, object_lock) = match properties {
        Some(properties) => (text(properties.versioning), text(properties.object_lock)),
        None => (
            Err(deadline.too_slow("ask the bucket")),
            Err(deadline.too_slow("ask the bucket")),
        ),
    };
    ArchiveFacts {
        url: store.location().to_string(),
        identity: archive.map(|archive| archive.map(|archive| archive.identity().clone())),
        catalogue,
        verification,
        drills,
        probe,
        delete,
        versioning,
        object_lock,
        clock_ahead: clock.map(crate::store::StoreClock::ahead),
        last_archived: Err("the server does not answer".to_owned()),
        server_lsn_after: None,
    }
}

fn text<T>(result: Result<T>) -> Fact<T> {
    result.map_err(|error| error.to_string())
}
