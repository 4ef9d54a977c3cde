//! `walship status`: the one screen to look at. It shows what there is, from when to when the cluster can be recovered,
//! when the archive was last verified and proven, and what is wrong.

mod args;
pub mod metrics;
mod picture;
#[cfg(test)]
mod tests;
mod text;

pub use self::args::StatusArgs;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::archive::time_index::TimeIndex;
use crate::archive::{Archive, catalogue, drills, ledger, wal_changes};
use crate::error::{ErrorKind, Result};
use crate::format::drills::Drills;
use crate::format::keys::BackupId;
use crate::format::ledger::LedgerSummary;
use crate::format::proof::Proven;
use crate::judge;
use crate::judge::catalogue::Catalogue;
use crate::judge::diagnosis::facts::{ArchiveFacts, ReadyFiles};
use crate::judge::diagnosis::{Fact, Finding, Level, Limits, judge_archive};
use crate::judge::history_picture::History;
use crate::judge::retention::{Action, RetentionPolicy};
use crate::judge::window::Window;
use crate::pg::{Major, SegmentName, TimelineId};
use crate::server::{ConnInfo, data_directory, facts};
use crate::store::Store;

/// At most this many segments that an older walship stored are read whole for their times.
const WHOLE_READS: u64 = 8;

/// What to look at.
#[derive(Debug, Clone)]
pub struct StatusOptions {
    /// For what the next expiry would delete.
    pub policy: RetentionPolicy,
    /// Where warnings begin.
    pub limits: Limits,
    /// The server's data directory on this machine, for the backlog of its archiver.
    pub pgdata: Option<PathBuf>,
    /// How long the server may take to answer.
    pub timeout: Duration,
}

#[derive(Debug, Clone, Serialize)]
pub struct StatusReport {
    /// The archive's URL.
    pub archive: String,
    pub system_identifier: String,
    pub postgres_major: Major,
    /// The spans of time to which the cluster can be recovered.
    pub window: Vec<Window>,
    /// Null where there is no WAL.
    pub last_wal: Option<LastWal>,
    /// WAL that waits for the archiver; absent where nobody was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<Backlog>,
    pub backups: Backups,
    /// Null where there was none.
    pub verification: Option<Verification>,
    /// Null where there was none.
    pub drill: Option<Drill>,
    pub expiry: Expiry,
    /// The timelines with their WAL and backups, and where in time each stands.
    pub history: History,
    /// What is wrong, and what to do about it.
    pub warnings: Vec<Finding>,
    /// The moment that all this is about.
    pub now: DateTime<Utc>,
}

/// The newest WAL in the archive.
#[derive(Debug, Clone, Serialize)]
pub struct LastWal {
    pub timeline: TimelineId,
    /// The segment with the highest number.
    pub segment: SegmentName,
    /// When the store got the timeline's newest segment, by its clock.
    pub stored_at: Option<DateTime<Utc>>,
}

/// Finished WAL that is not archived yet.
#[derive(Debug, Clone, Serialize)]
pub struct Backlog {
    /// Null where it could not be found out.
    pub files: Option<u64>,
    /// How long the oldest file has waited.
    pub oldest_seconds: Option<u64>,
    /// Why it could not be found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Backups {
    /// Those that can be restored.
    pub count: usize,
    /// Their bytes in the store.
    pub stored_bytes: u64,
    /// The newest of them.
    pub newest: Option<NewestBackup>,
    /// Those that cannot be restored.
    pub unrestorable: Vec<BackupId>,
    /// Those that run, wait for WAL, or were left behind.
    pub unfinished: Vec<BackupId>,
}

#[derive(Debug, Clone, Serialize)]
pub struct NewestBackup {
    pub id: BackupId,
    pub finished_at: DateTime<Utc>,
    pub stored_bytes: u64,
    /// When drills proved it, or failed to.
    pub proven: Proven,
}

/// How the last verification ended.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    pub finished_at: DateTime<Utc>,
    /// How many things were wrong.
    pub findings: u64,
    /// When a verification last found nothing wrong.
    pub last_clean_at: Option<DateTime<Utc>>,
}

/// The last drill of any backup.
#[derive(Debug, Clone, Serialize)]
pub struct Drill {
    pub backup: BackupId,
    pub started_at: DateTime<Utc>,
    pub passed: bool,
    /// From nothing to an open server, in milliseconds.
    pub recovery_ms: Option<u64>,
    /// The age of the newest replayed transaction when the drill began, in milliseconds.
    pub data_loss_ms: Option<u64>,
}

/// What the next expiry would delete.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Expiry {
    NoPolicy,
    Deletes {
        /// Backups, finished or not.
        backups: Vec<BackupId>,
        /// Their bytes in the store, as far as known.
        backup_bytes: u64,
        wal_segments: u64,
    },
    Refuses {
        why: String,
    },
}

/// Looks at the archive, and at the backlog of a server if one is given.
pub async fn run(
    options: &StatusOptions,
    connection: Option<&ConnInfo>,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<StatusReport> {
    let archive = Archive::open(store).await?;
    let (catalogue, verification, drills, backlog) = tokio::join!(
        catalogue::load(&archive),
        ledger::last_verification(&archive),
        drills::last_drills(&archive),
        backlog(options, connection, now)
    );
    let mut catalogue = catalogue?;
    let expiry = expiry(&catalogue, &options.policy, now);
    wal_changes::note_barriers(&archive, &mut catalogue, wal_changes::LOOKED_AT).await?;
    let times = TimeIndex::new(&archive, WHOLE_READS);
    let window = times.windows(&catalogue).await?;
    let verification = verification.map_err(|error| error.to_string());
    let drills = drills.map_err(|error| error.to_string());
    Ok(StatusReport {
        archive: store.location().to_string(),
        history: History::of(&catalogue, &window, now)?,
        system_identifier: catalogue.identity.system_identifier.to_string(),
        postgres_major: catalogue.identity.postgres_major,
        window,
        last_wal: last_wal(&catalogue),
        backups: backups(&catalogue),
        verification: verification.as_ref().ok().and_then(Option::as_ref).map(verified),
        drill: last_drill(&catalogue, drills.as_ref().ok().cloned()),
        warnings: warnings(
            store,
            catalogue,
            (verification, drills),
            backlog.as_ref(),
            options.limits,
            now,
        ),
        backlog: backlog.map(Backlog::of),
        expiry,
        now,
    })
}

/// As in the report, without the archive.
pub async fn backlog_alone(
    options: &StatusOptions,
    connection: Option<&ConnInfo>,
    now: DateTime<Utc>,
) -> Option<Backlog> {
    backlog(options, connection, now).await.map(Backlog::of)
}

/// Asks the server, or looks into its data directory.
async fn backlog(
    options: &StatusOptions,
    connection: Option<&ConnInfo>,
    now: DateTime<Utc>,
) -> Option<Fact<ReadyFiles>> {
    if let Some(connection) = connection {
        return Some(facts::ready_files(connection, options.timeout).await);
    }
    let pgdata = options.pgdata.as_deref()?;
    let files = data_directory::ready_files(pgdata).map_err(|error| error.to_string());
    Some(files.map(|(count, oldest)| ReadyFiles {
        count,
        first: None,
        oldest_age: oldest.map(|oldest| (now - oldest).to_std().unwrap_or_default()),
    }))
}

impl Backlog {
    fn of(ready: Fact<ReadyFiles>) -> Self {
        match ready {
            Ok(ready) => Self {
                files: Some(ready.count),
                oldest_seconds: ready.oldest_age.map(|age| age.as_secs()),
                unknown: None,
            },
            Err(why) => Self {
                files: None,
                oldest_seconds: None,
                unknown: Some(why),
            },
        }
    }
}

fn last_wal(catalogue: &Catalogue) -> Option<LastWal> {
    let wal = &catalogue.wal;
    let spans = wal
        .timelines()
        .filter_map(|timeline| Some((timeline, wal.span(timeline)?)));
    let (timeline, span) = spans.max_by_key(|(timeline, _)| *timeline)?;
    Some(LastWal {
        timeline,
        segment: span.last,
        stored_at: wal.newest_stored(timeline),
    })
}

fn backups(catalogue: &Catalogue) -> Backups {
    let newest = catalogue.backups.iter().max_by_key(|backup| backup.finished_at);
    Backups {
        count: catalogue.backups.len(),
        stored_bytes: catalogue.backups.iter().map(|backup| backup.stored_bytes).sum(),
        newest: newest.map(|backup| NewestBackup {
            id: backup.id.clone(),
            finished_at: backup.finished_at,
            stored_bytes: backup.stored_bytes,
            proven: Proven::of(backup.proof.as_ref()),
        }),
        unrestorable: catalogue
            .unrestorable
            .iter()
            .map(|entry| entry.id.clone())
            .collect(),
        unfinished: catalogue
            .unfinished
            .iter()
            .map(|entry| entry.id.clone())
            .collect(),
    }
}

fn verified(summary: &LedgerSummary) -> Verification {
    Verification {
        finished_at: summary.last.finished_at,
        findings: summary.last.findings_count,
        last_clean_at: summary.last_clean_at,
    }
}

fn last_drill(catalogue: &Catalogue, known: Option<Drills>) -> Option<Drill> {
    let none = Drills::none(catalogue.identity.system_identifier);
    let drills = catalogue.drills_with_proofs(known.unwrap_or(none));
    let last = drills.last()?;
    let (backup, drill) = (last.backup.clone(), &last.drill);
    let data_loss = drill.data_loss().map(|age| age.num_milliseconds());
    Some(Drill {
        backup,
        started_at: drill.started_at,
        passed: drill.passed(),
        recovery_ms: drill.recovery_ms(),
        data_loss_ms: data_loss.and_then(|ms| u64::try_from(ms).ok()),
    })
}

fn expiry(catalogue: &Catalogue, policy: &RetentionPolicy, now: DateTime<Utc>) -> Expiry {
    let plan = match judge::retention::preview(catalogue, policy, now) {
        Ok(plan) => plan,
        Err(error) if error.kind() == ErrorKind::Invalid => return Expiry::NoPolicy,
        Err(error) => {
            return Expiry::Refuses {
                why: error.to_string(),
            };
        }
    };
    let gone = || plan.backups.iter().filter(|fate| fate.action == Action::Delete);
    let wal = plan.wal.iter().filter(|fate| fate.action == Action::Delete);
    Expiry::Deletes {
        backups: gone().map(|fate| fate.id.clone()).collect(),
        backup_bytes: gone().filter_map(|fate| fate.stored_bytes).sum(),
        wal_segments: wal.map(|fate| fate.range.segments).sum(),
    }
}

/// What is wrong with the archive and the backlog, judged as `walship doctor` does.
fn warnings(
    store: &Store,
    catalogue: Catalogue,
    (verification, drills): (Fact<Option<LedgerSummary>>, Fact<Drills>),
    backlog: Option<&Fact<ReadyFiles>>,
    limits: Limits,
    now: DateTime<Utc>,
) -> Vec<Finding> {
    let not_asked = || "not asked".to_owned();
    let archive = ArchiveFacts {
        url: store.location().to_string(),
        identity: Ok(Some(catalogue.identity.clone())),
        catalogue: Ok(catalogue),
        verification,
        drills,
        probe: Err(not_asked()),
        delete: Err(not_asked()),
        versioning: Err(not_asked()),
        object_lock: Err(not_asked()),
        clock_ahead: None,
        last_archived: Err(not_asked()),
        server_lsn_after: None,
    };
    let backlog = backlog.and_then(|backlog| backlog.as_ref().ok());
    let mut found = judge_archive(archive, backlog, limits, now);
    found.retain(|finding| finding.level >= Level::Warning);
    found.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    found
}
