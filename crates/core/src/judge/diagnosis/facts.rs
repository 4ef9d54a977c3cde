//! What is known of the server, the archive and this machine when the diagnosis is made.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Fact, Limits};
use crate::format::drills::Drills;
use crate::format::identity::Identity;
use crate::format::ledger::LedgerSummary;
use crate::format::remembered::Remembered;
use crate::judge::catalogue::Catalogue;
use crate::pg::{ClusterIdentity, Lsn, Major, TimelineId, WalName};

/// Everything.
#[derive(Debug, Clone)]
pub struct Facts {
    /// This machine's time.
    pub now: DateTime<Utc>,
    /// Where warnings begin.
    pub limits: Limits,
    /// The server, or why it cannot be asked.
    pub server: Fact<ServerFacts>,
    /// The archive, or why none is configured.
    pub archive: Fact<ArchiveFacts>,
    /// This machine.
    pub host: HostFacts,
    /// Whether retention is configured here: then this host deletes.
    pub expires: bool,
}

/// What the server says.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// Its major version.
    pub major: Major,
    /// Whether it is a standby, or recovers.
    pub in_recovery: bool,
    /// Its clock less this machine's.
    pub clock_ahead: TimeDelta,
    /// Whose server it is.
    pub cluster: Fact<ClusterIdentity>,
    /// The timeline it writes, or replays.
    pub timeline: Fact<TimelineId>,
    /// How far it has written; on a standby, how far it has replayed.
    pub lsn: Fact<Lsn>,
    /// The settings that matter.
    pub settings: Fact<ServerSettings>,
    /// `pg_stat_archiver`.
    pub archiver: Fact<ArchiverFacts>,
    /// Whether there is an archiver process.
    pub archiver_runs: Fact<bool>,
    /// The files that wait for it.
    pub ready: Fact<ReadyFiles>,
    /// `pg_replication_slots`.
    pub slots: Fact<Vec<Slot>>,
    /// `pg_stat_replication`.
    pub standbys: Fact<Vec<StandbyFacts>>,
    /// On a standby: whether it streams.
    pub streams: Fact<bool>,
    /// On a standby: whether replay is paused.
    pub replay_paused: Fact<bool>,
    /// Average bytes of WAL a second; `None` if the statistics are less than an hour old.
    pub wal_rate: Fact<Option<f64>>,
}

impl ServerFacts {
    /// `PostgreSQL 17, primary, timeline 1`.
    pub(crate) fn description(&self) -> String {
        let role = if self.in_recovery { "standby" } else { "primary" };
        let timeline = self
            .timeline
            .as_ref()
            .map(|timeline| format!(", timeline {timeline}"));
        format!(
            "PostgreSQL {}, {role}{}",
            self.major,
            timeline.unwrap_or_default()
        )
    }

    /// Whether its archiver archives: a standby's only with `archive_mode = always`.
    pub(crate) fn archives(&self) -> Option<bool> {
        let settings = self.settings.as_ref().ok()?;
        Some(match settings.get("archive_mode")? {
            "off" => false,
            "always" => true,
            _ => !self.in_recovery,
        })
    }
}

/// Settings of the server, as `pg_settings` has them.
#[derive(Debug, Clone, Default)]
pub struct ServerSettings {
    /// Values by name, in the setting's base unit.
    pub values: BTreeMap<String, String>,
    /// Those that wait for a restart.
    pub pending_restart: Vec<String>,
}

impl ServerSettings {
    /// A value; `None` if this version has no such setting, or the role may not see it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.get(name)?.parse().ok()
    }
}

/// `pg_stat_archiver`. Ages are by the server's clock.
#[derive(Debug, Clone, Default)]
pub struct ArchiverFacts {
    /// The last file that was archived.
    pub last_archived: Option<String>,
    /// How long ago.
    pub last_archived_age: Option<Duration>,
    /// The last file that failed.
    pub last_failed: Option<String>,
    /// How long ago.
    pub last_failed_age: Option<Duration>,
    /// How many attempts failed.
    pub failed_count: u64,
}

/// The `.ready` files of `archive_status`.
#[derive(Debug, Clone, Default)]
pub struct ReadyFiles {
    /// How many.
    pub count: u64,
    /// The first one's name.
    pub first: Option<String>,
    /// How long the oldest one has waited.
    pub oldest_age: Option<Duration>,
}

/// A replication slot.
#[derive(Debug, Clone, Default)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Whether someone uses it.
    pub active: bool,
    /// `wal_status`.
    pub wal_status: Option<String>,
    /// WAL it holds back.
    pub retained_bytes: Option<u64>,
    /// Why it can no longer be used, in PostgreSQL's words.
    pub invalidated: Option<String>,
}

/// A standby, or another receiver of WAL, as the server sees it.
#[derive(Debug, Clone, Default)]
pub struct StandbyFacts {
    /// Its `application_name`.
    pub name: String,
    /// `streaming`, `catchup`, `backup`…
    pub state: String,
    /// WAL it has not replayed.
    pub lag_bytes: Option<u64>,
    /// How long its replay is behind; `None` if it is idle.
    pub lag: Option<Duration>,
}

/// What the archive says.
#[derive(Debug, Clone)]
pub struct ArchiveFacts {
    /// Its URL.
    pub url: String,
    /// `walship.json`; `None` if it certainly does not exist.
    pub identity: Fact<Option<Identity>>,
    /// What it holds.
    pub catalogue: Fact<Catalogue>,
    /// How the last verification ended; `None` if there was none.
    pub verification: Fact<Option<LedgerSummary>>,
    /// How the last drills ended, even if their backups are gone.
    pub drills: Fact<Drills>,
    /// Whether the store refuses a second creation of the probe.
    pub probe: Fact<bool>,
    /// Whether the probe could be deleted; `Ok(None)` if that was not tried, because it would leave traces.
    pub delete: Fact<Option<()>>,
    /// Whether the bucket keeps versions; `None` if the store has no versions.
    pub versioning: Fact<Option<bool>>,
    /// How the bucket locks objects; `None` if it does not.
    pub object_lock: Fact<Option<String>>,
    /// Its clock less this machine's; `None` if the store does not give the time.
    pub clock_ahead: Option<TimeDelta>,
    /// Whether the file that the server archived last is there; `None` if the server archived nothing.
    pub last_archived: Fact<Option<(WalName, bool)>>,
    /// How far the server had written after the archive was listed.
    pub server_lsn_after: Option<Lsn>,
}

/// What this machine says.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Space in the file system of `pg_wal`.
    pub pg_wal_space: Fact<Space>,
    /// Files that others can read or change, with what to do.
    pub exposed_files: Fact<Vec<ExposedFile>>,
    /// Who runs this.
    pub user: String,
    /// Who owns the data directory.
    pub owner: Fact<String>,
    /// Whether the program that `archive_command` names is there.
    pub program: Fact<ProgramState>,
    /// The archive that `archive_command` finds with the server's own environment.
    pub command_archive: Fact<String>,
    /// The server's data directory, and which archive that remembers.
    pub remembered: Fact<(String, Remembered)>,
}

/// Space in a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can be written.
    pub free_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
}

/// The program of an `archive_command`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramState {
    /// It can be run.
    Runs,
    /// It is not there.
    Missing,
    /// It is there but cannot be run.
    NotExecutable,
}

/// A file with too open permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExposedFile {
    /// Its path.
    pub path: String,
    /// Whether others can change it; otherwise they can read a secret.
    pub writable: bool,
}
