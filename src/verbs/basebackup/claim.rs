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

/// Each attempt waits for the next second. So all fail only if this many other backups begin, one in each second.
const ATTEMPTS: u32 = 10;
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Takes the id of a new backup.
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
        "no free id for a backup in {}: in each of {ATTEMPTS} seconds another backup began; run it again",
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

/// Creates `started.json`; false where another backup has the id.
async fn create(archive: &Archive, started: &BackupStarted) -> Result<bool> {
    match objects::create(archive, &started.id, BackupObject::Started, &body(started)?).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
        Err(error) => Err(error),
    }
}

/// Replaces `alive.json` every half minute until it is stopped or dropped.
pub(super) struct Heartbeat {
    writer: Arc<AliveWriter>,
    task: JoinHandle<()>,
}

struct AliveWriter {
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
        let writer = Arc::new(AliveWriter {
            archive: archive.clone(),
            id: id.clone(),
            wal_from: Mutex::new(wal_from),
        });
        writer.write().await?;
        let background = Arc::clone(&writer);
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                background.write_or_warn().await;
            }
        });
        Ok(Self { writer, task })
    }

    /// Writes at once that no WAL before this is needed, so that retention can delete older WAL.
    pub(super) async fn tell(&self, wal_from: WalFrom) {
        *self
            .writer
            .wal_from
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(wal_from);
        self.writer.write_or_warn().await;
    }

    /// Ends it. After this returns nothing more is written.
    pub(super) async fn stop(mut self) {
        self.task.abort();
        // It can only have been cancelled.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl AliveWriter {
    async fn write(&self) -> Result<()> {
        let wal_from = *self.wal_from.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = BackupAlive {
            format_version: FORMAT_VERSION,
            at: Utc::now(),
            wal_from,
        };
        self.archive.replace(&self.id, &alive).await
    }

    async fn write_or_warn(&self) {
        if let Err(error) = self.write().await {
            tracing::warn!("{error}; the backup goes on");
        }
    }
}
