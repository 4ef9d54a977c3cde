//! The history of the server's timeline. PostgreSQL needs it to recover to that timeline.
//!
//! PostgreSQL archives a history once, when it makes the timeline. An archive that was begun later lacks it, so a
//! backup brings it along. It is stored last, when a segment of that timeline is in the archive: a history alone would
//! make every standby and recovery follow a timeline that may never get any WAL.

use crate::archive::{Archive, Same, stored_wal};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::backup::BackupRecord;
use crate::format::codec;
use crate::format::keys::Key;
use crate::pg::{TimelineHistory, TimelineId, WalName};
use crate::server::Connection;
use crate::store::Body;

const LEVEL: i32 = 3;

/// The history of the server's timeline, checked against the archive's; `None` for timeline 1, and where the server has
/// none or one that is not UTF-8.
///
/// # Errors
/// `Conflict` where the archive holds another history of this timeline, or of its parent.
pub(super) async fn of_server(
    connection: &mut Connection,
    timeline: TimelineId,
    archive: &Archive,
) -> Result<Option<String>> {
    if timeline == TimelineId::FIRST {
        return Ok(None);
    }
    let content = match connection.timeline_history(timeline).await {
        Ok(file) => file.content,
        // A standby may not have it. Whether the archive has it is asked at the end.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let history = TimelineHistory::parse(timeline, &content)?;
    is_stored(&history, archive).await?;
    Ok(String::from_utf8(content.into()).ok())
}

/// Stores the record's history if the archive has none. Returns whether the archive has one then.
pub(super) async fn store(record: &BackupRecord, archive: &Archive) -> Result<bool> {
    let (timeline, system_identifier) = (record.stop_timeline, record.system_identifier);
    let Some(content) = &record.timeline_history else {
        return Ok(false);
    };
    let history = TimelineHistory::parse(timeline, content.as_bytes())?;
    if is_stored(&history, archive).await? {
        return Ok(true);
    }
    let key = Key::History(timeline);
    let body = encode(timeline, content.as_bytes(), system_identifier)?;
    match archive.create(&key, &body, Same::Nothing, None).await {
        // The archiver was faster.
        Err(error) if error.kind() == ErrorKind::Conflict => is_stored(&history, archive).await,
        result => result
            .context(|| format!("write {}", archive.url_of(&key)))
            .map(|_| true),
    }
}

/// Whether the archive has this history.
async fn is_stored(history: &TimelineHistory, archive: &Archive) -> Result<bool> {
    match stored_wal::read_history(archive, history.timeline()).await? {
        Some(stored) => agree(history, &stored, archive).map(|()| true),
        None => stored_wal::check_parent(archive, history).await.map(|()| false),
    }
}

fn agree(ours: &TimelineHistory, stored: &TimelineHistory, archive: &Archive) -> Result<()> {
    if ours == stored {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "the server's history of timeline {} differs from {}; another server of this cluster made a timeline of the same \
         number and archived here. Find out which server's history is the right one, and give the other server an archive \
         of its own",
        ours.timeline(),
        archive.url_of(&Key::History(ours.timeline()))
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
