//! `walship drill`: restores a backup into a scratch directory, replays the archived WAL with a real
//! server, checks the data, and notes the result in the archive.
//!
//! Two things can go wrong. If something speaks against the backup or the archive, the drill fails: that is a result,
//! and it is recorded. If something prevents the drill (no room, no programs, an outage), that is an error, and nothing
//! is recorded.
//!
//! Nothing is written into the archive but `proof.json` and `ledger/drills.json`. Whatever ends the drill, its server
//! is ended and its directory is removed. If a drill is killed, the next one removes what it left (`scratch`).

mod args;
mod checks;
mod processes;
mod programs;
mod reach;
mod replay;
mod report;
mod room;
mod scratch;
mod server;
mod settings;
mod sql_check;

pub use self::args::DrillArgs;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use self::programs::Programs;
use self::replay::Workspace;
use self::scratch::{Note, Scratch};
use crate::archive::drills::record;
use crate::archive::stored_wal::{self, LARGEST_SEGMENT};
use crate::archive::{Archive, catalogue, find_record};
use crate::cluster::{
    self, ArchiveMode, RecoverOptions, SourceConfiguration, TablespaceMapping, TargetAction,
};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::backup::BackupRecord;
use crate::format::keys::{BackupId, Key};
use crate::format::proof::{DrillRecord, Stage};
use crate::judge::catalogue::Catalogue;
use crate::judge::recovery_plan::{self, Plan, Request, Target};
use crate::pg::{SegmentName, WalName};
use crate::progress::Progress;
use crate::store::Store;
use crate::text::ByteSize;

pub use self::checks::SqlFile;
use self::report::{CleanReport, DrillReport};

/// What `walship drill` is asked to do.
#[derive(Debug, Clone)]
pub struct DrillOptions {
    /// The target, and which backup and timeline to use for it.
    pub request: Request,
    /// Where scratch directories are made.
    pub directory: PathBuf,
    /// `PATH`, in which PostgreSQL's programs are looked for.
    pub search_path: Option<OsString>,
    /// A superuser of the restored cluster.
    pub user: Option<String>,
    /// The user's own statements.
    pub sql: Option<SqlFile>,
    /// Run `pg_amcheck`, if it is installed.
    pub amcheck: bool,
    /// Leave the scratch directory.
    pub keep: bool,
    /// How long the whole drill may take.
    pub timeout: Duration,
    /// How many parts are restored, and how many jobs check, at the same time.
    pub concurrency: usize,
    pub shared_buffers: ByteSize,
    /// `shared_preload_libraries` of the server.
    pub preload_libraries: String,
    /// As [`RecoverOptions::walship`].
    pub walship: Vec<String>,
}

/// Removes what killed drills and `--keep` left in `directory`.
///
/// # Errors
/// `Internal` where something cannot be read or removed.
pub async fn clean(directory: &Path) -> Result<CleanReport> {
    Ok(CleanReport {
        removed: scratch::clean(directory, &host(), true).await?,
    })
}

/// Makes a drill. `interrupted` resolves with a signal's name when the user wants it to end.
///
/// # Errors
/// What prevents the drill: `NotFound` for programs, `Internal` for a scratch directory that is too small and for an
/// interruption, `Unavailable` for outages and for a drill that takes longer than the timeout; as `recover` for a
/// target that cannot be reached, unless that speaks against the archive.
pub async fn run(
    options: &DrillOptions,
    store: &Store,
    now: DateTime<Utc>,
    progress: &Arc<Progress>,
    interrupted: impl Future<Output = &'static str>,
) -> Result<DrillReport> {
    let mut drill = Drill {
        options,
        store,
        progress,
        began: Instant::now(),
        record: DrillRecord::begun(now, host(), options.request.target.to_string()),
        archive: None,
        backup: None,
        last_segment: None,
        workspace: None,
        notes: Vec::new(),
    };
    let outcome = tokio::select! {
        biased;
        signal = interrupted => Err(Error::internal(format!("{signal}: the drill was interrupted"))),
        () = tokio::time::sleep(options.timeout) => Err(Error::unavailable(format!(
            "the drill was not done within {} s, which is all that drill.timeout allows; raise it, or free this machine",
            options.timeout.as_secs()
        ))),
        outcome = drill.make(now) => outcome,
    };
    drill.finish(outcome).await
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A drill under way.
struct Drill<'a> {
    options: &'a DrillOptions,
    store: &'a Store,
    progress: &'a Arc<Progress>,
    began: Instant,
    /// What is known so far.
    record: DrillRecord,
    /// Once it was opened.
    archive: Option<Archive>,
    /// The backup that the result is about.
    backup: Option<BackupId>,
    /// Replay must reach this segment, if the target is the end of the archived WAL.
    last_segment: Option<SegmentName>,
    /// Must be ended and removed, whatever happens.
    workspace: Option<Workspace>,
    notes: Vec<String>,
}

impl Drill<'_> {
    /// Does everything up to the last check. If something speaks against the archive, it is in the record afterwards.
    async fn make(&mut self, now: DateTime<Utc>) -> Result<()> {
        let removed = scratch::clean(&self.options.directory, &self.record.host, false).await?;
        self.notes.extend(
            removed
                .iter()
                .map(|path| format!("removed what a killed drill had left: {}", path.display())),
        );
        self.progress.phase("read the archive");
        let archive = Archive::open(self.store).await?;
        let catalogue = catalogue::load(&archive).await?;
        self.archive = Some(archive.clone());
        let planned =
            find_record::plan(&archive, &catalogue, &self.options.request, now, self.progress).await;
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => return self.blame(error, &catalogue, now),
        };
        self.backup = Some(plan.backup.id.clone());
        self.notes.extend(plan.notes.clone());
        let programs = Programs::find(
            catalogue.identity.postgres_major,
            self.options.search_path.as_deref(),
        )?;
        if self.restore(plan, programs, &catalogue, &archive, now).await? {
            self.replay_and_check(&archive).await?;
        }
        Ok(())
    }

    /// Records damaged and missing objects against the backup that a recovery would have used.
    fn blame(&mut self, error: Error, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<()> {
        if error.kind() != ErrorKind::Corrupt {
            return Err(error);
        }
        let request = Request {
            target: match &self.options.request.target {
                Target::Xid(_) | Target::Name(_) => Target::Latest,
                other => other.clone(),
            },
            ..self.options.request.clone()
        };
        let started = recovery_plan::start(catalogue, &request, now).map(|start| start.backup.id.clone());
        let newest_damaged = || catalogue.unrestorable.last().map(|entry| entry.id.clone());
        let blamed = started
            .ok()
            .or_else(|| request.backup.clone())
            .or_else(newest_damaged);
        let Some(backup) = blamed else {
            return Err(error);
        };
        self.backup = Some(backup);
        self.record.failure = Some(error.to_string());
        Ok(())
    }

    /// Restores into a new scratch directory; false where the backup's objects are damaged or missing.
    async fn restore(
        &mut self,
        plan: Plan,
        programs: Programs,
        catalogue: &Catalogue,
        archive: &Archive,
        now: DateTime<Utc>,
    ) -> Result<bool> {
        let record: BackupRecord = archive.read(&plan.backup.id).await?;
        room::check(&self.options.directory, &record, &plan)?;
        let note = Note {
            host: self.record.host.clone(),
            archive: archive.url(),
            backup: plan.backup.id.clone(),
            started_at: now,
            kept: false,
        };
        let scratch = Scratch::create(&self.options.directory, note)?;
        let options = self.recover_options(&scratch, &record);
        self.record.timeline = Some(plan.timeline);
        self.last_segment = (plan.target == Target::Latest).then_some(plan.last_segment);
        let workspace = self
            .workspace
            .insert(Workspace::new(scratch, programs, &plan, record.segment_bytes));
        let expected = record.size_bytes + workspace.wal_bytes();
        let begun = Instant::now();
        match cluster::restore(&options, plan, catalogue, archive, self.progress).await {
            Ok(report) => {
                self.record.restore = Some(stage(report.size_bytes, begun));
                self.progress.expect(expected);
                Ok(true)
            }
            // The store answers, so this is about the backup's objects.
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                self.record.failure = Some(error.to_string());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The copy gets nothing of the source's configuration, and nothing outside the scratch directory.
    fn recover_options(&self, scratch: &Scratch, record: &BackupRecord) -> RecoverOptions {
        let streams = record.streams.iter();
        let locations = streams.filter_map(|stream| stream.tablespace.as_ref());
        RecoverOptions {
            pgdata: scratch.data(),
            request: self.options.request.clone(),
            action: Some(TargetAction::Promote),
            tablespace_mappings: locations
                // A tablespace inside the data directory moves with it.
                .filter(|tablespace| Path::new(&tablespace.location).is_absolute())
                .map(|tablespace| TablespaceMapping {
                    old: PathBuf::from(&tablespace.location),
                    new: scratch.tablespaces().join(tablespace.oid.to_string()),
                })
                .collect(),
            archive_mode: ArchiveMode::Off,
            configuration: SourceConfiguration::LeftOut,
            concurrency: self.options.concurrency,
            walship: self.options.walship.clone(),
            search_path: None,
        }
    }

    async fn replay_and_check(&mut self, archive: &Archive) -> Result<()> {
        let Some(workspace) = &mut self.workspace else {
            return Err(Error::internal("a restored backup has a directory"));
        };
        self.record.postgres_version = Some(workspace.postgres_version().to_owned());
        self.progress.phase("replay the WAL");
        let replayed = workspace.replay(self.options, self.progress).await?;
        let replayed = match replayed {
            Ok(stage) => stage,
            Err(failure) => {
                let refused = workspace.refused();
                self.blame_what_was_refused(refused, &failure).await?;
                self.record.failure = Some(failure);
                return Ok(());
            }
        };
        let reached = workspace.reached(self.options).await?;
        self.record.reached_lsn = Some(reached.lsn);
        self.record.newest_commit = reached.newest_commit;
        self.record.replay = Some(Stage {
            bytes: workspace.bytes_to(reached.lsn),
            ms: replayed.as_millis() as u64,
        });
        if let Some(last) = self.last_segment
            && let Some(failure) = reach::ended_early(archive, last, reached.lsn).await?
        {
            self.record.failure = Some(failure);
            return Ok(());
        }
        self.record.failure = workspace
            .check(
                self.options,
                &reached.user,
                self.progress,
                &mut self.record.checks,
            )
            .await?;
        Ok(())
    }

    /// Reads the file that the server did not get once more. Only if that fails again does it speak against the
    /// archive, because an outage proves nothing.
    async fn blame_what_was_refused(&self, refused: Option<WalName>, failure: &str) -> Result<()> {
        let proves_nothing = || "the drill proves nothing, because the archive cannot be read any more";
        // A directory is looked for by its path again: it may have been moved away.
        let store = self.store.reopened();
        let archive = Archive::open(&store).await.context(proves_nothing)?;
        let Some(name) = refused else {
            return Ok(());
        };
        let Ok(key) = Key::of_wal(name) else {
            return Ok(());
        };
        let read = stored_wal::verify(&store, &key, LARGEST_SEGMENT).await;
        match read {
            Ok(trailer) if trailer.check(name, archive.identity().system_identifier).is_ok() => {
                Err(Error::unavailable(format!(
                    "the drill proves nothing, because {name} could not be read then, but can be read now; run it again \
                     ({failure})"
                )))
            }
            Err(error) if !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                Err(error.context(proves_nothing()))
            }
            _ => Ok(()),
        }
    }

    /// Ends the server, removes the directory, and records the result if there is one.
    async fn finish(mut self, outcome: Result<()>) -> Result<DrillReport> {
        self.record.finished_at = self.record.started_at + self.began.elapsed();
        let mut kept = None;
        let mut cleaned = Ok(());
        if let Some(workspace) = self.workspace.take() {
            if self.options.keep && outcome.is_ok() {
                kept = Some(workspace.keep(self.options).await?);
            } else {
                self.progress.phase("remove the scratch directory");
                cleaned = workspace.remove().await;
            }
        }
        let outcome = match (outcome, cleaned) {
            (Ok(()), Err(error)) => {
                self.notes.push(error.to_string());
                Ok(())
            }
            (Err(error), Err(left)) => Err(Error::new(error.kind(), format!("{error} (and {left})"))),
            (outcome, Ok(())) => outcome,
        };
        outcome?;
        let (Some(archive), Some(backup)) = (self.archive, self.backup) else {
            return Err(Error::internal("the drill has a result but no backup"));
        };
        let recorded = record(&archive, &backup, self.record.clone()).await;
        Ok(DrillReport::new(backup, self.record, kept, self.notes, recorded))
    }
}

fn stage(bytes: u64, begun: Instant) -> Stage {
    Stage {
        bytes,
        ms: begun.elapsed().as_millis() as u64,
    }
}
