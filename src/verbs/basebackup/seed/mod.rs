//! `walship basebackup --seed-replica`: a ready standby in one command, copied from its primary by PostgreSQL's
//! `pg_basebackup`, or restored from the archive.
//!
//! What can be refused is refused before a byte is written. A failure removes everything that was made, the slot too,
//! or the message says what is left and where. Until everything is there, a server starts on the data directory only as
//! a standby.

mod args;
mod copy;
mod interrupt;
mod remains;
mod report;
mod slot;
mod start;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use self::copy::{Copied, Copy};
use self::interrupt::{Interrupt, given_up};
use self::slot::Slot;
use crate::cluster::primary::Primary;
use crate::cluster::seed_source::{SeedSource, Source, choose};
use crate::cluster::tablespaces::NewTablespaces;
use crate::cluster::{
    self, RestoredStandby, StandbyOptions, StandbySettings, TablespaceMapping, restore_command,
};
use crate::cluster::{apart, remembered};
use crate::error::{Error, Result};
use crate::judge::seed_source::WalLimits;
use crate::pg::SlotName;
use crate::progress::Progress;
use crate::server::ConnInfo;
use crate::store::Store;

pub use self::args::SeedArgs;
pub use self::report::SeedReport;

/// What to make, and how.
#[derive(Debug, Clone)]
pub struct SeedOptions {
    /// The data directory to make: empty or missing.
    pub pgdata: PathBuf,
    pub from: SeedSource,
    /// The slot that the replica streams through; `None` for a replica without one.
    pub slot: Option<SlotName>,
    /// The replica's name in `pg_stat_replication`, unless the connection's settings give one.
    pub name: String,
    /// For tablespaces that go to another directory than on the primary.
    pub tablespace_mappings: Vec<TablespaceMapping>,
    /// Whether the checkpoint before a copy is made at once.
    pub fast_checkpoint: bool,
    /// Most KiB a second that the primary may send for a copy.
    pub max_rate_kib: Option<u32>,
    /// Parts of a backup that are restored at the same time.
    pub concurrency: usize,
    /// With more WAL than this since the newest backup, `SeedSource::Auto` copies from the primary.
    pub archive_wal: WalLimits,
    /// Start it, and wait at most this long until it streams.
    pub start: Option<Duration>,
    /// This program and the global flags that it needs to find the archive. The replica's `restore_command` begins with
    /// them, so no secret may be among them.
    pub walship: Vec<String>,
    /// `PATH`, in which PostgreSQL's programs are looked for.
    pub search_path: Option<OsString>,
}

/// Seeds a replica, and starts it if the options say so. `interrupted` resolves with a signal's name when the user
/// wants it to end.
///
/// # Errors
/// `Conflict` for a directory that is not empty, another replica's slot, and a primary that is not the archive's
/// latest; `Invalid`, `NotFound` for programs, backups and settings that cannot be used; as the server, the store and
/// the operating system say.
pub async fn run(
    options: &SeedOptions,
    info: &ConnInfo,
    store: &Store,
    now: DateTime<Utc>,
    progress: &Arc<Progress>,
    interrupted: impl Future<Output = &'static str>,
) -> Result<SeedReport> {
    let mut interrupt = Interrupt::new(interrupted);
    let prepared = tokio::select! {
        biased;
        signal = interrupt.wait() => return Err(given_up(signal)),
        prepared = prepare(options, info, store, now, progress) => prepared?,
    };
    // This is not interrupted, because a slot that is half made would stay.
    let slot = match &options.slot {
        Some(name) => Some(Slot::take(name, info).await?),
        None => None,
    };
    let settings = StandbySettings {
        restore_command: restore_command(&options.walship, None, NewTablespaces::Checked),
        primary_conninfo: Some(prepared.conninfo),
        primary_slot_name: options.slot.as_ref().map(SlotName::to_string),
    };
    let (primary, source) = (prepared.primary, prepared.source);
    let seeding = match prepared.copy {
        Some(copy) => {
            progress.phase("copy the primary");
            let copied = copy.run(settings.clone(), progress, &mut interrupt).await;
            copied.map(|copied| Seeded::Copied(remember(copied, &options.pgdata, &source)))
        }
        None => restore(options, &source, settings.clone(), progress, &mut interrupt).await,
    };
    let seeded = match (seeding, &slot) {
        (Ok(seeded), _) => seeded,
        (Err(error), Some(slot)) => return Err(slot.release(info, error).await),
        (Err(error), None) => return Err(error),
    };
    let mut report = report::new(options, &primary, &source, slot.as_ref(), settings, seeded);
    if let Some(limit) = options.start {
        progress.phase("start the replica");
        let replica = start::Replica {
            pgdata: &report.pgdata,
            start_command: &report.start_command,
            slot: options.slot.as_ref(),
            primary: info,
        };
        let started = tokio::select! {
            biased;
            signal = interrupt.wait() => Err(Error::internal(format!(
                "{signal}: the replica in {} is complete and may have been started; walship did not wait until it streams",
                report.pgdata.display()
            ))),
            started = start::run(&replica, limit, progress) => started,
        };
        report.started = Some(started?);
    }
    Ok(report)
}

enum Seeded {
    Copied(Copied),
    Restored(Box<RestoredStandby>),
}

/// Notes in the copy which archive it belongs to: the one that its primary remembers or, if the primary has not
/// archived yet, the one in the settings.
fn remember(mut copied: Copied, pgdata: &Path, source: &Source) -> Copied {
    if let Source::Primary {
        archive: Some(archive),
        ..
    } = source
    {
        let joined = remembered::join(pgdata, archive.identity(), &archive.url());
        copied.notes.extend(joined.err().map(|error| error.to_string()));
    }
    copied
}

/// What is known before anything is made.
struct Prepared {
    primary: Primary,
    conninfo: String,
    source: Source,
    /// `None` where the replica is restored from the archive.
    copy: Option<Copy>,
}

async fn prepare(
    options: &SeedOptions,
    info: &ConnInfo,
    store: &Store,
    now: DateTime<Utc>,
    progress: &Arc<Progress>,
) -> Result<Prepared> {
    cluster::check_empty(&options.pgdata)?;
    let mapped = options
        .tablespace_mappings
        .iter()
        .map(|mapping| mapping.new.as_path());
    apart::check_places(store.location(), mapped.chain([options.pgdata.as_path()]))?;
    progress.phase("ask the primary");
    let primary = Primary::connect(info).await?;
    let name = info.given_application_name().unwrap_or(&options.name);
    let conninfo = info.standby_conninfo(name, primary.used_password)?;
    progress.phase("read the archive");
    let source = choose(options.from, options.archive_wal, &primary, store, now).await?;
    let copy = match &source {
        Source::Primary { .. } => Some(Copy::prepare(options, &primary, &conninfo)?),
        Source::Archive { .. } => None,
    };
    Ok(Prepared {
        primary,
        conninfo,
        source,
        copy,
    })
}

async fn restore(
    options: &SeedOptions,
    source: &Source,
    settings: StandbySettings,
    progress: &Arc<Progress>,
    interrupt: &mut Interrupt<'_>,
) -> Result<Seeded> {
    let Source::Archive { plan, archive, .. } = source else {
        return Err(Error::internal(
            "a copy was not prepared; this is a defect in walship",
        ));
    };
    let standby = StandbyOptions {
        pgdata: options.pgdata.clone(),
        tablespace_mappings: options.tablespace_mappings.clone(),
        concurrency: options.concurrency,
        settings,
        search_path: options.search_path.clone(),
    };
    let restoring = cluster::restore_standby(&standby, plan.as_ref().clone(), archive, progress);
    let restored = tokio::select! {
        biased;
        signal = interrupt.wait() => Err(match cluster::check_empty(&options.pgdata) {
            Ok(()) => given_up(signal),
            Err(left) => Error::internal(format!("{}: {left}", given_up(signal))),
        }),
        restored = restoring => restored,
    };
    Ok(Seeded::Restored(Box::new(restored?)))
}
