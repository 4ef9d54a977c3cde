//! From the archive, or not at all: for who has other ways of making a replica.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::From;
use super::primary::Primary;
use super::source::Source;
use crate::archive::Archive;
use crate::cluster::{self, RestoredStandby, StandbyOptions, newest_as_standby};
use crate::error::Result;
use crate::judge::seed_source::WalLimits;
use crate::progress::Progress;
use crate::server::ConnInfo;
use crate::store::Store;
use crate::verbs::seed::source;

/// What came of it.
#[derive(Debug)]
pub enum ArchiveSeed {
    /// A standby was restored; why from the archive, in one sentence.
    Restored(Box<RestoredStandby>, String),
    /// Nothing was written, for a copy of the primary is better; why, in one sentence.
    NotBetter(String),
}

/// Restores the newest backup that leads to the timeline of the server at `info`, unless `From::Auto`
/// would copy that server. Without a server, the archive is all there is, and its latest timeline is
/// followed.
///
/// # Errors
/// As [`super::run`].
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
    match source::choose(From::Auto, limits, &primary, store, now).await? {
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
