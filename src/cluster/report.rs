//! The report of `walship recover`: what it did, and what to do next.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::configuration::ConfigurationReport;
use super::settings::TargetAction;
use crate::format::keys::BackupId;
use crate::judge::recovery_plan::Target;
use crate::pg::TimelineId;
use crate::text::ByteSize;

/// What `walship recover` did, and what comes next.
#[derive(Debug, Clone, Serialize)]
pub struct RecoverReport {
    pub backup: BackupId,
    pub reason: String,
    /// PostgreSQL's version in it, such as `17.11`.
    pub postgres_version: String,
    pub pgdata: PathBuf,
    /// The tablespaces outside the data directory.
    pub tablespaces: Vec<RestoredTablespace>,
    /// Bytes of the restored tar streams.
    pub size_bytes: u64,
    #[serde(serialize_with = "as_text")]
    pub target: Target,
    pub timeline: TimelineId,
    /// What happens at the target; none without one.
    pub action: Option<TargetAction>,
    #[serde(skip)]
    pub archive: String,
    /// Why the recovered server does not archive; none where it archives as configured.
    pub archiving_off: Option<String>,
    /// Why its own configuration may keep it from archiving though it is meant to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archiving_not_configured: Option<String>,
    /// Configuration files outside the data directory.
    pub configuration: ConfigurationReport,
    /// What the administrator must know or do.
    pub notes: Vec<String>,
    /// The command that starts the server.
    pub start_command: String,
    /// How to see that recovery has reached its target, and what to do then.
    pub next: String,
}

/// A tablespace that was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredTablespace {
    pub oid: u32,
    pub location: PathBuf,
    pub directory: PathBuf,
}

fn as_text<S: serde::Serializer>(target: &Target, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(target)
}

/// What PostgreSQL logs where it does not reach the target.
const NOT_REACHED: &str = "\"recovery ended before configured recovery target was reached\"";

/// How to see that recovery is over, and what to do then. Does not repeat the notes.
#[must_use]
pub fn next_steps(target: &Target, action: Option<TargetAction>, notes: &[String]) -> String {
    let wait = if notes.iter().any(|note| note.contains(NOT_REACHED)) {
        String::new()
    } else {
        format!(" If the log says {NOT_REACHED}, the archived WAL ends before the target.")
    };
    match (target, action.unwrap_or_default()) {
        (Target::Latest, _) => {
            "The server replays all archived WAL and then opens for writing, on a new timeline: \
                             SELECT pg_is_in_recovery() is false then."
                .to_owned()
        }
        (_, TargetAction::Pause) => format!(
            "At the target the server stays readable and waits: SELECT pg_get_wal_replay_pause_state() is \
             'paused' then. Look at the data; to open it for writing, on a new timeline: SELECT \
             pg_wal_replay_resume(). If a SELECT waits, the next transaction in the WAL (a DROP, say) already \
             holds its lock: SET lock_timeout = '2s'; the table is there once recovery goes on. For a later \
             target stop it, and recover again.{wait}"
        ),
        (_, TargetAction::Promote) => format!(
            "At the target the server opens for writing, on a new timeline: SELECT pg_is_in_recovery() is \
             false then.{wait}"
        ),
        (_, TargetAction::Shutdown) => format!(
            "At the target the server shuts down, and its log says so. To go on, remove or change the \
             recovery_target settings in postgresql.auto.conf.{wait}"
        ),
    }
}

fn paths(paths: &[PathBuf]) -> String {
    let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    shown.join(", ")
}

impl fmt::Display for RecoverReport {
    /// For a person who will start the server next.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Restored backup {} (PostgreSQL {}, {}) into {}",
            self.backup,
            self.postgres_version,
            ByteSize(self.size_bytes),
            self.pgdata.display()
        )?;
        writeln!(f, "  {}", self.reason)?;
        for tablespace in &self.tablespaces {
            let (old, new) = (tablespace.location.display(), tablespace.directory.display());
            writeln!(f, "  tablespace {} ({old}) into {new}", tablespace.oid)?;
        }
        if !self.configuration.restored.is_empty() {
            writeln!(f, "  put back: {}", paths(&self.configuration.restored))?;
        }
        if !self.configuration.kept.is_empty() {
            writeln!(f, "  left as they are: {}", paths(&self.configuration.kept))?;
        }
        write!(
            f,
            "Recovery ends at {}, on timeline {}",
            self.target, self.timeline
        )?;
        if let Some(action) = self.action {
            write!(f, "; then: {}", action.as_str())?;
        }
        writeln!(f)?;
        match (&self.archiving_off, &self.archiving_not_configured) {
            (Some(reason), _) => writeln!(f, "Archiving is off (archive_mode = off): {reason}")?,
            (None, Some(why)) => writeln!(f, "Archiving follows the copy's configuration: {why}")?,
            (None, None) => writeln!(
                f,
                "Archiving is ON, into {}, as configured. If the source of this copy still runs, recover with \
                 --archive-mode off instead",
                self.archive
            )?,
        }
        for note in &self.notes {
            writeln!(f, "Note: {note}")?;
        }
        writeln!(f, "\nStart the server:\n  {}\n{}", self.start_command, self.next)
    }
}
