//! A standby from the archive: the newest backup that leads to a timeline, restored as `restore` does it, with
//! `standby.signal`. From its first start on it catches up by replaying WAL from the archive, without load on any
//! server. Then it streams, if it knows a primary.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::destination::Access;
use super::layout::{Layout, Root, TablespaceMapping};
use super::recovery::{finish, links_note, restored_tablespaces};
use super::report::RestoredTablespace;
use super::restore::{Remembers, Restoration, write_settings};
use super::settings::{ServerSettings, StandbySettings};
use super::start_command::{OutsideConfiguration, StartCommand, System, start_command};
use super::{ConfigurationReport, SourceConfiguration, space};
use crate::archive::find_record::plan;
use crate::archive::{Archive, catalogue};
use crate::cluster::{destination, tablespaces};
use crate::error::{Error, Result};
use crate::format::backup::BackupRecord;
use crate::format::keys::BackupId;
use crate::format::remembered::ArchiveMark;
use crate::judge::catalogue::Catalogue;
use crate::judge::recovery_plan::{Plan, Request, Target};
use crate::pg::{Lsn, Major, TimelineId};
use crate::progress::Progress;

#[derive(Debug, Clone)]
pub struct StandbyOptions {
    /// The data directory: empty or missing.
    pub pgdata: PathBuf,
    /// Where tablespaces go that are not to be where they were.
    pub tablespace_mappings: Vec<TablespaceMapping>,
    /// Parts of the backup that are restored at the same time.
    pub concurrency: usize,
    /// How it follows its primary.
    pub settings: StandbySettings,
    /// `PATH`, in which the programs that start the server are looked for.
    pub search_path: Option<OsString>,
}

#[derive(Debug, Clone, Serialize)]
pub struct RestoredStandby {
    pub backup: BackupId,
    pub reason: String,
    /// PostgreSQL's version in it, such as `17.11`.
    pub postgres_version: String,
    pub pgdata: PathBuf,
    /// The tablespaces outside the data directory.
    pub tablespaces: Vec<RestoredTablespace>,
    /// Bytes of the restored tar streams.
    pub size_bytes: u64,
    /// The end of the archived WAL when it was read.
    pub archived_until: Lsn,
    /// Configuration files outside the data directory.
    pub configuration: ConfigurationReport,
    /// What the administrator must know or do.
    pub notes: Vec<String>,
    /// The command that starts the server.
    pub start_command: String,
}

/// Which backup a standby of this timeline starts from. A standby finds the latest timeline by itself, so
/// without one it is the archive's latest.
///
/// # Errors
/// As `plan`: where no backup leads to the timeline, or the archived WAL has a gap on the way.
pub async fn plan_standby(
    archive: &Archive,
    catalogue: &Catalogue,
    timeline: Option<TimelineId>,
    now: DateTime<Utc>,
    progress: &Progress,
) -> Result<Plan> {
    let request = Request {
        timeline,
        ..Request::new(Target::Latest)
    };
    plan(archive, catalogue, &request, now, progress).await
}

/// Restores the newest backup that leads to a timeline (the archive's latest without one) as a standby.
///
/// # Errors
/// As [`plan_standby`] and [`restore_standby`].
pub async fn newest_as_standby(
    options: &StandbyOptions,
    timeline: Option<TimelineId>,
    archive: &Archive,
    now: DateTime<Utc>,
    progress: &Arc<Progress>,
) -> Result<RestoredStandby> {
    progress.phase("read the archive");
    let catalogue = catalogue::load(archive).await?;
    let plan = plan_standby(archive, &catalogue, timeline, now, progress).await?;
    restore_standby(options, plan, archive, progress).await
}

/// Restores what was planned, as a standby.
///
/// # Errors
/// `Conflict` and `Invalid` for directories that cannot be used; `Corrupt` and `NotFound` for damaged
/// and missing objects, named; `Internal` where something cannot be written or there is no room.
pub async fn restore_standby(
    options: &StandbyOptions,
    plan: Plan,
    archive: &Archive,
    progress: &Arc<Progress>,
) -> Result<RestoredStandby> {
    if options.settings.restore_command.is_empty() {
        return Err(Error::internal(
            "a standby from the archive needs a restore_command",
        ));
    }
    let remembers = Remembers::Own(ArchiveMark::of(archive.url(), archive.identity()));
    let record = Arc::new(archive.read::<BackupRecord>(&plan.backup.id).await?);
    let layout = Layout::new(&options.pgdata, &record, &options.tablespace_mappings)?;
    let restoration = Restoration::prepare(
        archive,
        Arc::clone(&record),
        layout.clone(),
        SourceConfiguration::Kept,
    )
    .await?;
    let mut notes = plan.notes;
    notes.extend(tablespaces::look_ahead(
        &plan.new_tablespaces,
        record.postgres_major,
    )?);
    let links = restoration.links().to_vec();
    let extracted = restoration.extract(options.concurrency, progress).await?;
    let extracted = extracted.demanding(plan.demands);
    progress.phase("write settings and sync");
    let settings = ServerSettings::Standby(options.settings.clone());
    let configuration = finish(extracted, settings, remembers).await?;
    notes.extend(links_note(&configuration.links_left_out(links, &layout.data)));
    notes.extend(configuration.note.clone());
    notes.extend(configuration.notes.clone());
    let outside = OutsideConfiguration::of_backup(&record, configuration.pending.as_deref());
    let search_path = options.search_path.as_deref();
    let system = System::look(record.postgres_major, &layout.data, search_path, outside);
    let StartCommand { command, notes: more } = start_command(&layout.data, &system);
    notes.extend(more);
    Ok(RestoredStandby {
        backup: plan.backup.id,
        reason: plan.reason,
        postgres_version: record.postgres_version.clone(),
        tablespaces: restored_tablespaces(&layout),
        pgdata: layout.data,
        size_bytes: record.size_bytes,
        archived_until: plan.end_lsn,
        configuration,
        notes,
        start_command: command,
    })
}

/// Refuses a data directory that neither a restore nor a copy can fill.
///
/// # Errors
/// `Conflict` where it is not empty; `Invalid` where it cannot be one.
pub fn check_empty(pgdata: &Path) -> Result<()> {
    let data = std::path::absolute(pgdata)
        .map_err(|error| Error::io(format!("find {}", pgdata.display()), error))?;
    let root = Root {
        directory: data.clone(),
        tablespace: None,
    };
    destination::check(&Layout {
        data,
        roots: vec![root],
    })
}

/// Refuses where `bytes` do not fit into the file systems of these directories.
///
/// # Errors
/// `Internal`, with what is needed and what is there.
pub fn check_room(directories: &[&Path], bytes: u64) -> Result<()> {
    space::check_total(directories, bytes + bytes / 64)
}

/// Makes a standby of a complete copy of a running server. A `standby.signal` that is there stays while the settings
/// are written. Returns what the administrator must know.
///
/// # Errors
/// `Internal` where a file cannot be written.
pub fn make_standby(pgdata: &Path, settings: &StandbySettings) -> Result<Vec<String>> {
    let doing = || format!("write the settings of {}", pgdata.display());
    let mode = pgdata
        .metadata()
        .map_err(|error| Error::io(doing(), error))?
        .mode();
    let access = if mode & 0o050 == 0 {
        Access::Owner
    } else {
        Access::Group
    };
    let notes = write_settings(
        pgdata,
        access,
        SourceConfiguration::Kept,
        None,
        &ServerSettings::Standby(settings.clone()),
    )?;
    for name in ["postgresql.auto.conf", "standby.signal", "."] {
        File::open(pgdata.join(name))
            .and_then(|file| file.sync_all())
            .map_err(|error| Error::io(doing(), error))?;
    }
    Ok(notes)
}

/// The command that starts a copied standby. Where its configuration lies outside it, that is Debian's for the cluster
/// with this data directory.
#[must_use]
pub fn standby_start_command(pgdata: &Path, major: Major, search_path: Option<&OsStr>) -> StartCommand {
    let outside = OutsideConfiguration::of_debian(major, pgdata);
    start_command(pgdata, &System::look(major, pgdata, search_path, outside))
}
