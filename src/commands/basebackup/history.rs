//! The history of the server's timeline, without which PostgreSQL does not recover to that timeline.
//!
//! PostgreSQL archives a history once, when it makes the timeline. An archive that was begun later
//! lacks it, so a backup brings it along.

use crate::archive::codec;
use crate::archive::identity::Identity;
use crate::archive::keys::Key;
use crate::commands::stored_wal;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::{Connection, TimelineHistory, TimelineId, WalName};
use crate::store::{Body, PutMode, Store};

const LEVEL: i32 = 3;

/// Makes sure that the archive holds the history of the server's timeline.
///
/// # Errors
/// `Conflict` where the archive holds another history of this timeline.
pub(super) async fn ensure(
    connection: &mut Connection,
    timeline: TimelineId,
    identity: &Identity,
    store: &Store,
) -> Result<()> {
    if timeline == TimelineId::FIRST {
        return Ok(());
    }
    let content = match connection.timeline_history(timeline).await {
        Ok(file) => file.content,
        // A standby may not have it; whether the archive has is asked at the end.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let history = TimelineHistory::parse(timeline, &content)?;
    let system_identifier = identity.system_identifier;
    if let Some(stored) = stored_wal::read_history(store, timeline, system_identifier).await? {
        return agree(&history, &stored, store);
    }
    stored_wal::check_parent(store, &history, system_identifier).await?;
    let key = Key::History(timeline).to_string();
    let body = encode(timeline, &content, system_identifier)?;
    match store.put(&key, &body, PutMode::Create).await {
        // The archiver was faster.
        Err(error) if error.kind() == ErrorKind::Conflict => {
            let stored = stored_wal::read_history(store, timeline, system_identifier).await?;
            stored.map_or(Err(error), |stored| agree(&history, &stored, store))
        }
        result => result.context(|| format!("write {}", store.url_of(&key))),
    }
}

fn agree(ours: &TimelineHistory, stored: &TimelineHistory, store: &Store) -> Result<()> {
    if ours == stored {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "the server's history of timeline {} is not the one at {}; another server of this cluster made a timeline of \
         the same number and archived here. Find out which server's history is the right one, and give the other an \
         archive of its own",
        ours.timeline(),
        store.url_of(&Key::History(ours.timeline()).to_string())
    )))
}

fn encode(timeline: TimelineId, content: &[u8], system_identifier: u64) -> Result<Body> {
    let bytes = codec::encode(
        content,
        LEVEL,
        WalName::History(timeline),
        system_identifier,
        None,
    )?;
    Ok(Body::from_bytes(bytes))
}
