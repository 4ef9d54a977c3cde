//! `walship recover`: restores a backup into an empty directory, ready to recover to a target.
//!
//! Everything that can be refused is refused before a byte is written. From then on the data directory
//! is one that PostgreSQL refuses to start on, until the last step; a failure removes what was made,
//! and what a kill leaves behind is recognised by the next recovery, which says how to go on.
//! Nothing is ever written into a directory that is not empty.

mod alive;
mod configuration;
mod decompress;
mod destination;
mod extract;
mod files;
#[cfg(test)]
mod fixture;
mod guc_file;
mod index;
mod layout;
mod report;
mod restore;
mod schedule;
mod settings;
mod space;
mod start_command;
mod survey;
mod tablespace_map;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::alive::{NewestSegments, sign_of_life};
use self::layout::Layout;
use self::report::{RestoredTablespace, next_steps};
use self::restore::{Extracted, Restoration};
use self::settings::RecoverySettings;
use self::start_command::{System, start_command};
use crate::archive::backup::BackupRecord;
use crate::commands::progress::Progress;
use crate::error::{Error, Result};
use crate::pg::TimelineId;
use crate::store::Store;

pub use self::configuration::ConfigurationReport;
pub use self::layout::TablespaceMapping;
pub use self::report::RecoverReport;
pub use self::settings::{StopAt, TargetAction};

/// What `walship recover` is asked to do, beside which backup and which target.
#[derive(Debug, Clone)]
pub struct RecoverOptions {
    /// The data directory to make: empty or missing.
    pub pgdata: PathBuf,
    /// Where tablespaces go that shall not be where they were.
    pub tablespace_mappings: Vec<TablespaceMapping>,
    /// Whether the target itself is still replayed. Default, as in PostgreSQL: yes.
    pub inclusive: bool,
    /// What the server does at the target. Default, as in PostgreSQL: pause.
    pub action: Option<TargetAction>,
    /// Whether the recovered server archives.
    pub archive_mode: ArchiveMode,
    /// Parts of the backup that are restored at the same time.
    pub concurrency: usize,
    /// The `restore_command` of the recovered server.
    pub restore_command: String,
    /// `PATH`, in which the programs that start the server are looked for.
    pub search_path: Option<std::ffi::OsString>,
}

/// Whether the recovered server archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ArchiveMode {
    /// Not where the archive shows that the source is alive.
    #[default]
    Auto,
    /// As its configuration says.
    Keep,
    /// Not.
    Off,
}

/// What was decided before anything is written.
#[derive(Debug, Clone)]
pub struct Decided {
    /// The backup.
    pub record: Arc<BackupRecord>,
    /// Where recovery ends.
    pub stop: StopAt,
    /// The timeline to follow.
    pub timeline: TimelineId,
    /// The newest WAL when the command started.
    pub newest: NewestSegments,
    /// What the plan has to say to the user.
    pub notes: Vec<String>,
}

/// Refuses to run as root, who may not start PostgreSQL.
///
/// # Errors
/// `Denied`, with the command to use instead.
pub fn refuse_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Err(Error::denied(
            "PostgreSQL does not run as root, and the files it runs on belong to who restores them; run \
             walship recover as the user who owns the cluster: sudo -u postgres walship recover …",
        ));
    }
    Ok(())
}

/// Restores what was decided.
///
/// # Errors
/// `Conflict` and `Invalid` for directories that cannot be used; `Corrupt` and `NotFound` for damaged
/// and missing objects, named; `Internal` where something cannot be written or there is no room.
pub async fn restore(
    options: &RecoverOptions,
    decided: Decided,
    store: &Store,
    progress: &Arc<Progress>,
) -> Result<RecoverReport> {
    let action = action_at(&decided.stop, options.action)?;
    let mut settings = RecoverySettings {
        restore_command: options.restore_command.clone(),
        stop: decided.stop.clone(),
        inclusive: options.inclusive,
        timeline: decided.timeline,
        action: action.unwrap_or_default(),
        archiving_off: false,
    };
    settings.check()?;
    let layout = Layout::new(&options.pgdata, &decided.record, &options.tablespace_mappings)?;
    let restoration = Restoration::prepare(store, Arc::clone(&decided.record), layout.clone()).await?;
    let mut notes = decided.notes;
    if !restoration.links().is_empty() {
        notes.push(links_note(restoration.links()));
    }
    let extracted = restoration.extract(options.concurrency, progress).await?;
    progress.phase("write settings and sync");
    let archiving_off = archiving_off(options.archive_mode, store, &decided.newest).await;
    settings.archiving_off = archiving_off.is_some();
    let configuration = finish(extracted, settings).await?;
    notes.extend(configuration.note.clone());
    let start = start(options, &decided.record, &layout.data, &configuration);
    notes.extend(start.note);
    Ok(RecoverReport {
        backup: decided.record.id.clone(),
        postgres_version: decided.record.postgres_version.clone(),
        tablespaces: restored_tablespaces(&layout),
        pgdata: layout.data,
        size_bytes: decided.record.size_bytes,
        next: next_steps(&decided.stop, action),
        target: decided.stop,
        timeline: decided.timeline,
        action,
        archiving_off,
        configuration,
        notes,
        start_command: start.command,
    })
}

/// The action at the target; none without a target, where PostgreSQL would ignore it.
fn action_at(stop: &StopAt, action: Option<TargetAction>) -> Result<Option<TargetAction>> {
    match (stop, action) {
        (StopAt::End, None | Some(TargetAction::Promote)) => Ok(None),
        (StopAt::End, Some(other)) => Err(Error::invalid(format!(
            "--target-action {} needs a target: without one the server replays all archived WAL and then opens \
             for writing (to stay readable, give --target-lsn or --target-time)",
            other.as_str()
        ))),
        (_, action) => Ok(Some(action.unwrap_or_default())),
    }
}

fn links_note(links: &[String]) -> String {
    format!(
        "the source's data directory had symbolic links, which are not restored (pg_wal is restored as a plain \
         directory): {}",
        links.join(", ")
    )
}

/// Why the recovered server must not archive, if it must not.
async fn archiving_off(mode: ArchiveMode, store: &Store, newest: &NewestSegments) -> Option<String> {
    match mode {
        ArchiveMode::Keep => None,
        ArchiveMode::Off => Some("as asked for with --archive-mode off".to_owned()),
        ArchiveMode::Auto => match sign_of_life(store, newest).await {
            Ok(None) => None,
            Ok(Some(sign)) => Some(format!(
                "the source is alive, for {sign} arrived in the archive meanwhile, and a copy must not archive \
                 into its source's archive (--archive-mode keep if the copy replaces it)"
            )),
            // The safe side: it can be switched on again at any time, history cannot be unmixed.
            Err(error) => Some(format!(
                "whether the source is alive could not be seen ({error}); set archive_mode when you know"
            )),
        },
    }
}

/// Syncing a large backup takes a while, during which the runtime must not stand still.
async fn finish(extracted: Extracted, settings: RecoverySettings) -> Result<ConfigurationReport> {
    tokio::task::spawn_blocking(move || extracted.finish(&settings))
        .await
        .map_err(|error| {
            Error::internal(format!(
                "finish the recovery: {error}; this is a defect in walship"
            ))
        })?
}

fn start(
    options: &RecoverOptions,
    record: &BackupRecord,
    data: &Path,
    configuration: &ConfigurationReport,
) -> start_command::StartCommand {
    let system = System::look(record, data, options.search_path.as_deref());
    let missing = configuration.failed.iter().find(|path| {
        record
            .configuration
            .as_ref()
            .is_some_and(|stored| Path::new(&stored.config_file) == path.as_path())
    });
    start_command(data, &system, missing.map(PathBuf::as_path))
}

fn restored_tablespaces(layout: &Layout) -> Vec<RestoredTablespace> {
    layout
        .tablespaces()
        .map(|(tablespace, directory)| RestoredTablespace {
            oid: tablespace.oid,
            location: tablespace.old.clone(),
            directory: directory.to_owned(),
        })
        .collect()
}
