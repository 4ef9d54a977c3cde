//! The data directory of a new Patroni cluster, from an archive.
//!
//! Either the new cluster is a *clone*: it has its own archive, which must be empty and is begun here. Or it takes the
//! place of the archive's cluster, which is gone. A clone has a mark that keeps it from its source's archive, and
//! nothing that `ALTER SYSTEM` set in its source.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::archive::Archive;
use crate::cluster::{self, ArchiveMode, RecoverOptions, RecoverReport, SourceConfiguration, TargetAction};
use crate::error::{Error, Result};
use crate::format::keys::{BACKUPS_PREFIX, WAL_PREFIX};
use crate::format::remembered::ArchiveMark;
use crate::progress::Progress;
use crate::store::Store;

/// What the new cluster is to the archive's.
#[derive(Debug)]
pub enum Relation {
    /// A copy, which archives into this store.
    Clone(Store),
    /// Its successor, which archives into the same.
    Successor,
}

#[derive(Debug)]
pub struct BootstrapReport {
    recovered: RecoverReport,
    /// Where the new cluster archives.
    archive: String,
}

impl fmt::Display for BootstrapReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recovered = &self.recovered;
        writeln!(
            f,
            "restored from {}: {}; it recovers to {} on timeline {}",
            recovered.archive, recovered.reason, recovered.target, recovered.timeline
        )?;
        for note in &recovered.notes {
            writeln!(f, "note: {note}")?;
        }
        write!(
            f,
            "the new cluster archives into {}; take a base backup of it soon",
            self.archive
        )
    }
}

/// Restores. The options' action, archive mode and configuration are not used, because Patroni waits for the new
/// cluster to open for writing.
///
/// # Errors
/// `Conflict` where the new cluster would write into its source's archive, or into one that is in use;
/// otherwise as [`cluster::recover`].
pub async fn run(
    options: RecoverOptions,
    source: &Store,
    relation: &Relation,
    now: DateTime<Utc>,
    progress: &Arc<Progress>,
) -> Result<BootstrapReport> {
    let from = Archive::open(source).await?;
    let (archive, archive_mode, configuration) = match relation {
        Relation::Clone(own) => {
            let begun = begin_archive(own, &from, now).await?;
            let mark = ArchiveMark::of(begun.url(), begun.identity());
            (own, ArchiveMode::Own(mark), SourceConfiguration::LeftOut)
        }
        Relation::Successor => (source, ArchiveMode::OnUnlessAlive, SourceConfiguration::Kept),
    };
    let options = RecoverOptions {
        action: Some(TargetAction::Promote),
        archive_mode,
        configuration,
        ..options
    };
    let recovered = cluster::recover(&options, source, now, progress).await?;
    if let (Relation::Successor, Some(why)) = (relation, &recovered.archiving_off) {
        return Err(Error::conflict(format!(
            "the new cluster cannot take the place of the cluster that archives into {}: {why}. Make a clone with its \
             own archive (source-archive), or stop the old cluster first",
            recovered.archive
        )));
    }
    Ok(BootstrapReport {
        recovered,
        archive: archive.location().to_string(),
    })
}

/// Begins the clone's own archive before anything is restored, so that whatever is wrong with it is found now.
async fn begin_archive(own: &Store, source: &Archive, now: DateTime<Utc>) -> Result<Archive> {
    let url = own.location();
    let begun = Archive::open_or_create(own, source.identity().cluster(), now).await?;
    if begun.identity().created_at == source.identity().created_at {
        return Err(Error::conflict(format!(
            "{url}, where the new cluster would archive, is the archive of its source ({}), and a clone must not write \
             there. Give the new cluster its own archive (archive in the configuration file, or WALSHIP_ARCHIVE)",
            source.url()
        )));
    }
    // An earlier bootstrap that failed may have left walship.json and no more.
    for prefix in [WAL_PREFIX, BACKUPS_PREFIX] {
        let page = own.list(prefix, None).next().await?;
        if let Some(object) = page.and_then(|page| page.into_iter().next()) {
            return Err(Error::conflict(format!(
                "{url}, where the new cluster would archive, is in use (it has {}), and the new cluster's WAL would \
                 contradict the WAL there. Give the new cluster an archive URL at which nothing is stored",
                object.key
            )));
        }
    }
    Ok(begun)
}
