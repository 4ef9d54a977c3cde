//! A replica from the archive, if that is better: Patroni has other methods as well.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::archive::Archive;
use crate::cluster::primary::Primary;
use crate::cluster::seed_source::{SeedSource, Source, choose};
use crate::cluster::{self, RestoredStandby, StandbyOptions, newest_as_standby};
use crate::error::Result;
use crate::judge::seed_source::WalLimits;
use crate::progress::Progress;
use crate::server::ConnInfo;
use crate::store::Store;

#[derive(Debug)]
pub enum ArchiveSeed {
    /// A standby was restored. The text says in one sentence why from the archive.
    Restored(Box<RestoredStandby>, String),
    /// Nothing was written, because a copy of the primary is better. The text says why in one sentence.
    NotBetter(String),
}

/// Restores the newest backup that leads to the timeline of the server at `info`, unless `SeedSource::Auto` would copy
/// that server. Without a server there is only the archive, and its latest timeline is followed.
pub async fn from_archive(
    options: &StandbyOptions,
    limits: WalLimits,
    info: Option<&ConnInfo>,
    store: &Store,
    now: DateTime<Utc>,
    progress: &Arc<Progress>,
) -> Result<ArchiveSeed> {
    cluster::check_empty(&options.pgdata)?;
    let Some(info) = info else {
        let archive = Archive::open(store).await?;
        let standby = newest_as_standby(options, None, &archive, now, progress).await?;
        let reason = "there is no server to copy".to_owned();
        return Ok(ArchiveSeed::Restored(Box::new(standby), reason));
    };
    progress.phase("ask the primary");
    let primary = Primary::connect(info).await?;
    progress.phase("read the archive");
    match choose(SeedSource::Auto, limits, &primary, store, now).await? {
        Source::Primary { reason, note, .. } => Ok(ArchiveSeed::NotBetter(note.unwrap_or(reason))),
        Source::Archive {
            reason,
            archive,
            plan,
        } => {
            let standby = cluster::restore_standby(options, *plan, &archive, progress).await?;
            Ok(ArchiveSeed::Restored(Box::new(standby), reason))
        }
    }
}
