//! Restores a backup into an empty directory, ready to recover to a target.
//!
//! Everything that can be refused is refused before a byte is written. From then on, until the last step, PostgreSQL
//! refuses to start on the data directory. A failure removes what was made. What a kill leaves behind is recognised by
//! the next recovery, which says how to go on. Nothing is ever written into a directory that is not empty.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::alive::{NewestWal, Signs};
use super::archiving::{self, ArchiveMode};
use super::configuration::ConfigurationReport;
use super::layout::{Layout, TablespaceMapping};
use super::report::{RecoverReport, RestoredTablespace, next_steps};
use super::restore::{Extracted, Remembers, Restoration};
use super::restore_command::restore_command;
use super::settings::{RecoverySettings, ServerSettings, TargetAction};
use super::start_command::{OutsideConfiguration, StartCommand, System, start_command};
use crate::archive::find_record::plan;
use crate::archive::{Archive, catalogue};
use crate::cluster::tablespaces::{self, NewTablespaces};
use crate::error::{Error, Result};
use crate::format::backup::BackupRecord;
use crate::judge::catalogue::Catalogue;
use crate::judge::copy_settings::Copy;
use crate::judge::recovery_plan::{Plan, Request, Target};
use crate::progress::Progress;
use crate::store::Store;

/// What `walship recover` is asked to do.
#[derive(Debug, Clone)]
pub struct RecoverOptions {
    /// The data directory to make: empty or missing.
    pub pgdata: PathBuf,
    /// The target, and which backup and timeline to use for it.
    pub request: Request,
    /// What the server does at the target. Default, as in PostgreSQL: pause.
    pub action: Option<TargetAction>,
    /// Where tablespaces go that are not to be where they were.
    pub tablespace_mappings: Vec<TablespaceMapping>,
    /// Whether the recovered server archives.
    pub archive_mode: ArchiveMode,
    /// What becomes of the source's configuration.
    pub configuration: SourceConfiguration,
    /// Parts of the backup that are restored at the same time.
    pub concurrency: usize,
    /// This program, and the global flags that it needs to find the archive: the beginning of the
    /// recovered server's `restore_command`. No secret may be among them.
    pub walship: Vec<String>,
    /// `PATH`, in which the programs that start the server are looked for.
    pub search_path: Option<std::ffi::OsString>,
}

/// What becomes of the source's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SourceConfiguration {
    /// It stays: what `ALTER SYSTEM` set, and files outside the data directory, which are put back
    /// where they are missing.
    #[default]
    Kept,
    /// The copy has one of its own: `postgresql.auto.conf` has the settings of recovery only, and
    /// nothing is written outside the directories of the copy.
    LeftOut,
}

/// Refuses to run `walship <command>` as root, who may not start PostgreSQL.
///
/// # Errors
/// `Denied`, with the command to use instead.
pub fn refuse_root() -> Result<()> {
    refuse_root_for("recover")
}

/// As [`refuse_root`], for another command that makes a data directory.
///
/// # Errors
/// `Denied`, with the command to use instead.
pub fn refuse_root_for(command: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Err(Error::denied(format!(
            "PostgreSQL does not run as root, and restored files belong to the user who restores them; run \
             walship {command} as the user who owns the cluster: sudo -u postgres walship {command} …"
        )));
    }
    Ok(())
}

/// Plans and restores.
///
/// # Errors
/// Before anything is written `Invalid`, `NotFound` and `Corrupt` where the target cannot be recovered; then as
/// [`restore`].
pub async fn recover(
    options: &RecoverOptions,
    store: &Store,
    now: DateTime<Utc>,
    progress: &Arc<Progress>,
) -> Result<RecoverReport> {
    progress.phase("read the archive");
    let archive = Archive::open(store).await?;
    let catalogue = catalogue::load(&archive).await?;
    let plan = plan(&archive, &catalogue, &options.request, now, progress).await?;
    restore(options, plan, &catalogue, &archive, progress).await
}

/// Restores what was planned, from the archive that the catalogue describes.
///
/// # Errors
/// `Conflict` and `Invalid` for directories that cannot be used; `Corrupt` and `NotFound` for damaged
/// and missing objects, named; `Internal` where something cannot be written or there is no room.
pub(crate) async fn restore(
    options: &RecoverOptions,
    plan: Plan,
    catalogue: &Catalogue,
    archive: &Archive,
    progress: &Arc<Progress>,
) -> Result<RecoverReport> {
    let begun = Utc::now();
    let newest = NewestWal::of(&catalogue.wal)?;
    let action = action_at(&plan.target, options.action)?;
    let mut settings = settings(options, &plan, action)?;
    let gap = plan.gap.map(|gap| gap.first);
    let record = Arc::new(archive.read::<BackupRecord>(&plan.backup.id).await?);
    let layout = Layout::new(&options.pgdata, &record, &options.tablespace_mappings)?;
    let restoration = Restoration::prepare(
        archive,
        Arc::clone(&record),
        layout.clone(),
        options.configuration,
    )
    .await?;
    let mut notes = plan.notes;
    match options.archive_mode {
        ArchiveMode::On | ArchiveMode::OnUnlessAlive => {
            notes.extend(tablespaces::look_ahead(
                &plan.new_tablespaces,
                record.postgres_major,
            )?);
        }
        ArchiveMode::Auto | ArchiveMode::Own(_) | ArchiveMode::Off => {
            tablespaces::refuse_shared(&plan.new_tablespaces, record.segment_bytes)?;
        }
    }
    let links = restoration.links().to_vec();
    let extracted = restoration.extract(options.concurrency, progress).await?;
    let extracted = extracted.demanding(plan.demands);
    progress.phase("write settings and sync");
    let looking = Signs::look(archive, catalogue, &newest, begun).await;
    let archiving = archiving::decide(&options.archive_mode, &looking, archive, &options.pgdata);
    settings.copy = what_it_is(options, archiving.off.is_some());
    if settings.copy == Copy::Replacement {
        settings.restore_command = restore_command(&options.walship, gap, NewTablespaces::Checked);
    }
    notes.extend(archiving.notes);
    let configuration = finish(extracted, ServerSettings::Recovery(settings), archiving.remembers).await?;
    notes.extend(links_note(&configuration.links_left_out(links, &layout.data)));
    notes.extend(configuration.note.clone());
    notes.extend(configuration.notes.clone());
    // Patroni writes a configuration of its own.
    let not_configured = match options.archive_mode {
        ArchiveMode::On => archiving::not_configured(&layout.data),
        _ => None,
    };
    let start = start(options, &record, &layout.data, &configuration);
    notes.extend(start.notes);
    Ok(RecoverReport {
        backup: plan.backup.id,
        reason: plan.reason,
        postgres_version: record.postgres_version.clone(),
        tablespaces: restored_tablespaces(&layout),
        pgdata: layout.data,
        size_bytes: record.size_bytes,
        next: next_steps(&plan.target, action, &notes),
        archive: archive.url(),
        target: plan.target,
        timeline: plan.timeline,
        action,
        archiving_off: archiving.off,
        archiving_not_configured: not_configured,
        configuration,
        notes,
        start_command: start.command,
    })
}

fn settings(options: &RecoverOptions, plan: &Plan, action: Option<TargetAction>) -> Result<RecoverySettings> {
    let gap = plan.gap.map(|gap| gap.first);
    let settings = RecoverySettings {
        restore_command: restore_command(&options.walship, gap, NewTablespaces::Inside),
        target: plan.target.clone(),
        inclusive: plan.inclusive,
        timeline: plan.timeline,
        action: action.unwrap_or_default(),
        copy: Copy::Rehearsal,
        postgres_version: plan.backup.postgres_version.clone(),
    };
    settings.check()?;
    Ok(settings)
}

/// The relation of the copy to its source.
fn what_it_is(options: &RecoverOptions, archiving_off: bool) -> Copy {
    match (options.configuration, &options.archive_mode) {
        (SourceConfiguration::LeftOut, ArchiveMode::Own(_)) => Copy::Clone,
        (SourceConfiguration::LeftOut, _) => Copy::Drill,
        (SourceConfiguration::Kept, _) if archiving_off => Copy::Rehearsal,
        (SourceConfiguration::Kept, _) => Copy::Replacement,
    }
}

/// The action at the target; none without a target, where PostgreSQL would ignore it.
fn action_at(target: &Target, action: Option<TargetAction>) -> Result<Option<TargetAction>> {
    match (target, action) {
        (Target::Latest, None | Some(TargetAction::Promote)) => Ok(None),
        (Target::Latest, Some(other)) => Err(Error::invalid(format!(
            "--target-action {} needs a target: without one the server replays all archived WAL and then opens \
             for writing (to stay readable, give --target-lsn or --target-time)",
            other.as_str()
        ))),
        (_, action) => Ok(Some(action.unwrap_or_default())),
    }
}

pub(super) fn links_note(links: &[String]) -> Option<String> {
    (!links.is_empty()).then(|| {
        format!(
            "the source's data directory had symbolic links, which are not restored (pg_wal is restored as a \
             plain directory): {}",
            links.join(", ")
        )
    })
}

/// Syncing a large backup takes a while, and must not block the runtime.
pub(super) async fn finish(
    extracted: Extracted,
    settings: ServerSettings,
    remembers: Remembers,
) -> Result<ConfigurationReport> {
    tokio::task::spawn_blocking(move || extracted.finish(&settings, &remembers))
        .await
        .map_err(|error| Error::defect("finish the recovery", error))?
}

fn start(
    options: &RecoverOptions,
    record: &BackupRecord,
    data: &Path,
    configuration: &ConfigurationReport,
) -> StartCommand {
    let outside = OutsideConfiguration::of_backup(record, configuration.pending.as_deref());
    let search_path = options.search_path.as_deref();
    start_command(
        data,
        &System::look(record.postgres_major, data, search_path, outside),
    )
}

pub(super) fn restored_tablespaces(layout: &Layout) -> Vec<RestoredTablespace> {
    layout
        .tablespaces()
        .map(|(tablespace, directory)| RestoredTablespace {
            oid: tablespace.oid,
            location: tablespace.old.clone(),
            directory: directory.to_owned(),
        })
        .collect()
}
