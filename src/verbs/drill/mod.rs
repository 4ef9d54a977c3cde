//! `walship drill`: restores a backup into a scratch directory, replays the archived WAL with a real
//! server, looks at the data, and notes in the archive what came of it.
//!
//! Two things can go wrong, and they are told apart. What speaks against the backup or the archive
//! makes the drill fail: that is a result, it is recorded. What keeps the drill from being made (no
//! room, no programs, an outage) is an error, and nothing is recorded.
//!
//! The archive is only read, but for `proof.json`. Whatever ends the drill, its server is ended and its
//! directory removed; what a killed one leaves, the next one removes (`scratch`).

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
use self::replay::Bench;
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
    /// Whether `pg_amcheck` runs where it is installed.
    pub amcheck: bool,
    /// Whether the scratch directory stays.
    pub keep: bool,
    /// How long the whole drill may take.
    pub timeout: Duration,
    /// Parts that are restored, and jobs that check, at the same time.
    pub concurrency: usize,
    /// `shared_buffers` of the server.
    pub shared_buffers: ByteSize,
    /// `shared_preload_libraries` of the server.
    pub preload_libraries: String,
    /// As [`RecoverOptions::walship`].
    pub walship: Vec<String>,
}

/// Removes what killed drills left in `directory`, and what was kept there.
///
/// # Errors
/// `Internal` where something cannot be read or removed.
pub async fn clean(directory: &Path) -> Result<CleanReport> {
    Ok(CleanReport {
        removed: scratch::clean(directory, &host(), true).await?,
    })
}

/// Makes a drill. `interrupted` resolves, with a name for it, when the user wants it to end.
///
/// # Errors
/// What keeps the drill from being made: `NotFound` for programs, `Internal` for a scratch directory that
/// is too small and for an interruption, `Unavailable` for outages and for one that takes longer than the
/// timeout; as `recover` for a target that cannot be reached, unless that speaks against the archive.
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
        bench: None,
        notes: Vec::new(),
    };
    let outcome = tokio::select! {
        biased;
        signal = interrupted => Err(Error::internal(format!("{signal}: the drill is given up"))),
        () = tokio::time::sleep(options.timeout) => Err(Error::unavailable(format!(
            "the drill was not done within {} s; drill.timeout allows no more",
            options.timeout.as_secs()
        ))),
        outcome = drill.make(now) => outcome,
    };
    drill.finish(outcome).await
}

/// This machine's name.
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
    /// The backup that is proven, or speaks against itself.
    backup: Option<BackupId>,
    /// Where replay must come to, if that is the end of the archived WAL.
    last_segment: Option<SegmentName>,
    /// What must be ended and removed, whatever happens.
    bench: Option<Bench>,
    notes: Vec<String>,
}

impl Drill<'_> {
    /// Everything up to the last check. What speaks against the archive is in the record then.
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

    /// What is damaged or missing in the archive speaks against the backup a recovery would have used.
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

    /// Restores into a new scratch directory; whether that went well.
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
        let bench = self
            .bench
            .insert(Bench::new(scratch, programs, &plan, record.segment_bytes));
        let expected = record.size_bytes + bench.wal_bytes();
        let begun = Instant::now();
        match cluster::restore(&options, plan, catalogue, archive, self.progress).await {
            Ok(report) => {
                self.record.restore = Some(stage(report.size_bytes, begun));
                self.progress.expect(expected);
                Ok(true)
            }
            // Of the backup's objects; the store itself answers.
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                self.record.failure = Some(error.to_string());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// A copy with nothing of the source's configuration, and nothing outside the scratch directory.
    fn recover_options(&self, scratch: &Scratch, record: &BackupRecord) -> RecoverOptions {
        let streams = record.streams.iter();
        let locations = streams.filter_map(|stream| stream.tablespace.as_ref());
        RecoverOptions {
            pgdata: scratch.data(),
            request: self.options.request.clone(),
            action: Some(TargetAction::Promote),
            tablespace_mappings: locations
                // One inside the data directory moves with it.
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
        let Some(bench) = &mut self.bench else {
            return Err(Error::internal("a restored backup has a directory"));
        };
        self.record.postgres_version = Some(bench.postgres_version().to_owned());
        self.progress.phase("replay the WAL");
        let replayed = bench.replay(self.options, self.progress).await?;
        let replayed = match replayed {
            Ok(stage) => stage,
            Err(failure) => {
                let refused = bench.refused();
                self.blame_what_was_refused(refused, &failure).await?;
                self.record.failure = Some(failure);
                return Ok(());
            }
        };
        let reached = bench.reached(self.options).await?;
        self.record.reached_lsn = Some(reached.lsn);
        self.record.newest_commit = reached.newest_commit;
        self.record.replay = Some(Stage {
            bytes: bench.bytes_to(reached.lsn),
            ms: replayed.as_millis() as u64,
        });
        if let Some(last) = self.last_segment
            && let Some(failure) = reach::ended_early(archive, last, reached.lsn).await?
        {
            self.record.failure = Some(failure);
            return Ok(());
        }
        self.record.failure = bench
            .check(
                self.options,
                &reached.user,
                self.progress,
                &mut self.record.checks,
            )
            .await?;
        Ok(())
    }

    /// An outage is no proof of anything: what the server was refused is read once more, and speaks against the archive
    /// only if that fails again.
    async fn blame_what_was_refused(&self, refused: Option<WalName>, failure: &str) -> Result<()> {
        let proves_nothing = || "the drill proves nothing, for the archive cannot be read any more";
        // A directory is looked for by its path again: it may have been moved away.
        let store = self.store.afresh();
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
                    "the drill proves nothing, for {name} was kept from it, and can be read now; run it again ({failure})"
                )))
            }
            Err(error) if !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                Err(error.context(proves_nothing()))
            }
            _ => Ok(()),
        }
    }

    /// Ends and removes what there is, and records the result if there is one.
    async fn finish(mut self, outcome: Result<()>) -> Result<DrillReport> {
        self.record.finished_at = self.record.started_at + self.began.elapsed();
        let mut kept = None;
        let mut cleaned = Ok(());
        if let Some(bench) = self.bench.take() {
            if self.options.keep && outcome.is_ok() {
                kept = Some(bench.keep(self.options).await?);
            } else {
                self.progress.phase("remove the scratch directory");
                cleaned = bench.remove().await;
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
            return Err(Error::internal("a drill that was made is of a backup"));
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
