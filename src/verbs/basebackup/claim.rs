//! A backup's id, taken by creating `started.json`, and the heartbeat that says it still runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use tokio::task::JoinHandle;

use super::objects;
use crate::archive::{Archive, body};
use crate::error::{Error, ErrorKind, Result};
use crate::format::FORMAT_VERSION;
use crate::format::backup::{BackupAlive, BackupStarted, WalFrom};
use crate::format::keys::{BackupId, BackupObject};

/// Each attempt waits for the next second, so that this many backups would have to start together.
const ATTEMPTS: u32 = 10;
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Takes the id of a new backup.
///
/// # Errors
/// As [`Archive::create`].
pub(super) async fn claim(archive: &Archive) -> Result<BackupId> {
    for _ in 0..ATTEMPTS {
        let started = started_now();
        if create(archive, &started).await? {
            return Ok(started.id);
        }
        let next_second = started.started_at.trunc_subsecs(0) + TimeDelta::seconds(1);
        tokio::time::sleep((next_second - Utc::now()).to_std().unwrap_or_default()).await;
    }
    Err(Error::conflict(format!(
        "no free id for a backup in {}: {ATTEMPTS} others started in as many seconds; run it again",
        archive.url()
    )))
}

fn started_now() -> BackupStarted {
    let now: DateTime<Utc> = Utc::now();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    BackupStarted {
        format_version: FORMAT_VERSION,
        walship: env!("CARGO_PKG_VERSION").to_owned(),
        id: BackupId::at(now),
        started_at: now,
        host,
        process_id: std::process::id(),
    }
}

/// Whether the id is this backup's now.
async fn create(archive: &Archive, started: &BackupStarted) -> Result<bool> {
    match objects::create(archive, &started.id, BackupObject::Started, &body(started)?).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
        Err(error) => Err(error),
    }
}

/// Replaces `alive.json` every half minute until it is stopped or dropped.
pub(super) struct Heartbeat {
    pulse: Arc<Pulse>,
    task: JoinHandle<()>,
}

/// What each beat writes.
struct Pulse {
    archive: Archive,
    id: BackupId,
    wal_from: Mutex<Option<WalFrom>>,
}

impl Heartbeat {
    /// Writes the first one, and the others in the background.
    ///
    /// # Errors
    /// As [`Archive::replace`], for the first one only; a later one that fails is logged.
    pub(super) async fn start(archive: &Archive, id: &BackupId, wal_from: Option<WalFrom>) -> Result<Self> {
        let pulse = Arc::new(Pulse {
            archive: archive.clone(),
            id: id.clone(),
            wal_from: Mutex::new(wal_from),
        });
        pulse.beat().await?;
        let beating = Arc::clone(&pulse);
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                beating.beat_or_warn().await;
            }
        });
        Ok(Self { pulse, task })
    }

    /// Says at once that no WAL before this is needed, so that retention can delete what is older.
    pub(super) async fn tell(&self, wal_from: WalFrom) {
        *self.pulse.wal_from.lock().unwrap_or_else(PoisonError::into_inner) = Some(wal_from);
        self.pulse.beat_or_warn().await;
    }

    /// Ends it; when this returns no more is written.
    pub(super) async fn stop(mut self) {
        self.task.abort();
        // The only outcome is that it was cancelled.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pulse {
    async fn beat(&self) -> Result<()> {
        let wal_from = *self.wal_from.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = BackupAlive {
            format_version: FORMAT_VERSION,
            at: Utc::now(),
            wal_from,
        };
        self.archive.replace(&self.id, &alive).await
    }

    async fn beat_or_warn(&self) {
        if let Err(error) = self.beat().await {
            tracing::warn!("{error}; the backup goes on");
        }
    }
}
