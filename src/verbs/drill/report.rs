//! What `walship drill` did.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::settings::PORT;
use crate::cluster::shell_word;
use crate::config::duration_text;
use crate::edge::notify::JobReport;
use crate::error::{ErrorKind, Result};
use crate::format::keys::BackupId;
use crate::format::proof::{DrillRecord, Outcome, Stage};
use crate::text::{ByteSize, time_text};

#[derive(Debug, Clone, Serialize)]
pub struct DrillReport {
    pub backup: BackupId,
    /// Everything that was tried went well.
    pub passed: bool,
    /// What the archive keeps: docs/format.md.
    #[serde(flatten)]
    pub record: DrillRecord,
    /// From nothing to an open server, in milliseconds: the recovery time objective that was met.
    pub recovery_ms: Option<u64>,
    /// The age of the newest replayed transaction when the drill began, in milliseconds. If the primary had been lost
    /// at that moment, at most this much would have been lost.
    pub data_loss_ms: Option<u64>,
    /// Why the result is not in the archive; `None` where it is.
    pub not_recorded: Option<String>,
    /// What `--keep` left.
    pub kept: Option<Kept>,
    pub notes: Vec<String>,
    #[serde(skip)]
    not_recorded_kind: Option<ErrorKind>,
}

/// A scratch directory that was kept.
#[derive(Debug, Clone, Serialize)]
pub struct Kept {
    pub directory: PathBuf,
    /// The command that starts the server.
    pub start: String,
    /// The command that connects to the server.
    pub connect: String,
}

impl Kept {
    #[must_use]
    pub fn new(
        directory: PathBuf,
        postgres: &Path,
        data: &Path,
        socket_directory: &Path,
        user: &str,
    ) -> Self {
        let word = |path: &Path| shell_word(&path.to_string_lossy());
        let configuration = format!("config_file={}", directory.join("postgresql.conf").display());
        Self {
            start: format!(
                "{} -D {} -c {}",
                word(postgres),
                word(data),
                shell_word(&configuration)
            ),
            connect: format!(
                "psql -h {} -p {PORT} -U {}",
                word(socket_directory),
                shell_word(user)
            ),
            directory,
        }
    }
}

impl DrillReport {
    pub(super) fn new(
        backup: BackupId,
        record: DrillRecord,
        kept: Option<Kept>,
        notes: Vec<String>,
        recorded: Result<()>,
    ) -> Self {
        let not_recorded = recorded.err();
        Self {
            backup,
            passed: record.passed(),
            recovery_ms: record.recovery_ms(),
            data_loss_ms: record
                .data_loss()
                .and_then(|age| u64::try_from(age.num_milliseconds()).ok()),
            record,
            not_recorded_kind: not_recorded.as_ref().map(crate::Error::kind),
            not_recorded: not_recorded.map(|error| error.to_string()),
            kept,
            notes,
        }
    }

    /// The kind of the error that kept the result from being recorded, if one did.
    #[must_use]
    pub fn not_recorded_kind(&self) -> Option<ErrorKind> {
        self.not_recorded_kind
    }
}

impl JobReport for DrillReport {
    fn wrong(&self) -> Option<String> {
        let failure = self.record.failure.as_ref()?;
        Some(format!("backup {} failed its drill: {failure}", self.backup))
    }
}

impl fmt::Display for DrillReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.record;
        match &record.failure {
            None => writeln!(f, "Backup {} is proven, up to {}", self.backup, record.target)?,
            Some(failure) => writeln!(f, "Backup {} FAILED its drill: {failure}", self.backup)?,
        }
        if let Some(stage) = record.restore {
            writeln!(f, "  restore        {}", stage_text(stage))?;
        }
        if let Some(stage) = record.replay {
            write!(f, "  replay         {} of WAL", stage_text(stage))?;
            if let (Some(lsn), Some(timeline)) = (record.reached_lsn, record.timeline) {
                write!(f, ", to {lsn} on timeline {timeline}")?;
            }
            writeln!(f)?;
        }
        for check in &record.checks {
            let outcome = match check.outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            let took = duration_text(check.ms);
            writeln!(
                f,
                "  {:<13}  {took:>8}  {outcome}: {}",
                check.kind.name(),
                check.detail
            )?;
        }
        if let Some(ms) = self.recovery_ms {
            writeln!(f, "Recovery time (RTO): {}", duration_text(ms))?;
        }
        if let (Some(newest), Some(ms)) = (record.newest_commit, self.data_loss_ms) {
            writeln!(
                f,
                "Data loss (RPO): at most {}; the newest commit is of {}",
                duration_text(ms),
                time_text(newest)
            )?;
        } else if let Some(newest) = record.newest_commit {
            writeln!(
                f,
                "Data loss (RPO): only a drill without a target tells it; the newest commit replayed is of {}",
                time_text(newest)
            )?;
        } else if record.replay.is_some() {
            writeln!(
                f,
                "Data loss (RPO): unknown; no transaction ended in the WAL after the backup"
            )?;
        }
        if let Some(why) = &self.not_recorded {
            writeln!(f, "NOT RECORDED in the archive: {why}")?;
        }
        for note in &self.notes {
            writeln!(f, "Note: {note}")?;
        }
        if let Some(kept) = &self.kept {
            writeln!(
                f,
                "\nKept in {} (walship drill --clean removes it). Start its server:\n  {}\nConnect to it:\n  {}",
                kept.directory.display(),
                kept.start,
                kept.connect
            )?;
        }
        Ok(())
    }
}

fn stage_text(stage: Stage) -> String {
    format!("{:>8}  {}", duration_text(stage.ms), ByteSize(stage.bytes))
}

/// What `walship drill --clean` did.
#[derive(Debug, Clone, Serialize)]
pub struct CleanReport {
    /// Scratch directories.
    pub removed: Vec<PathBuf>,
}

impl fmt::Display for CleanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.removed.is_empty() {
            return writeln!(f, "nothing to remove");
        }
        for directory in &self.removed {
            writeln!(f, "removed {}", directory.display())?;
        }
        Ok(())
    }
}
