//! `walship keep`: marks a backup, so that retention keeps it, or takes the mark away.
//!
//! The mark is written first, and then the backup is looked for. Retention deletes `backup.json` first, and then looks
//! for the mark. So whichever comes second sees what the other did.

mod args;

pub use self::args::KeepArgs;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::archive::Archive;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Stored;
use crate::format::backup::BackupRecord;
use crate::format::keep::Keep;
use crate::format::keys::BackupId;
use crate::store::Store;
use crate::text::time_text;

/// What to do with the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The backup is kept until this moment, or for ever.
    Set(Option<DateTime<Utc>>),
    /// The policy decides again.
    Release,
}

/// What the mark says now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeepReport {
    pub id: BackupId,
    pub kept: bool,
    /// For ever where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
}

/// Sets the mark or takes it away. `now` is this machine's time.
///
/// # Errors
/// `NotFound` for a backup that the archive lacks; `Invalid` for a moment that is over; otherwise as
/// the store.
pub async fn run(id: &BackupId, mark: Mark, store: &Store, now: DateTime<Utc>) -> Result<KeepReport> {
    if let Mark::Set(Some(until)) = mark
        && until <= now
    {
        return Err(Error::invalid(format!(
            "{} is over, because it is {} now; give a later moment, or --forever",
            time_text(until),
            time_text(now)
        )));
    }
    let archive = Archive::open(store).await?;
    let key = Keep::key(id);
    // A mark can be taken away even if the backup has lost its record.
    if mark != Mark::Release || archive.head(&key).await?.is_none() {
        require_backup(id, &archive).await?;
    }
    let until = match mark {
        Mark::Release => {
            archive.delete(std::slice::from_ref(&key)).await?;
            return Ok(KeepReport {
                id: id.clone(),
                kept: false,
                until: None,
            });
        }
        Mark::Set(until) => until,
    };
    archive.replace(id, &Keep::new(id, until, now)).await?;
    if let Err(error) = require_backup(id, &archive).await {
        // Retention was faster. A mark without a backup means nothing, and retention deletes it if it stays.
        if error.kind() == ErrorKind::NotFound {
            let _ = archive.delete(&[key]).await;
        }
        return Err(error);
    }
    Ok(KeepReport {
        id: id.clone(),
        kept: true,
        until,
    })
}

/// A backup exists when its record does.
async fn require_backup(id: &BackupId, archive: &Archive) -> Result<()> {
    match archive.find::<BackupRecord>(id).await? {
        Some(_) => Ok(()),
        None => Err(Error::not_found(format!(
            "backup {id} is not in {}; see walship list backups",
            archive.url()
        ))),
    }
}

impl fmt::Display for KeepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = &self.id;
        match (self.kept, self.until) {
            (true, None) => write!(f, "Backup {id} is kept for ever."),
            (true, Some(until)) => write!(f, "Backup {id} is kept until {}.", time_text(until)),
            (false, _) => write!(
                f,
                "Backup {id} is not marked any more; the next walship expire decides by its policy."
            ),
        }
    }
}
