//! What a verification found, for people and for programs.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Finding, FindingKind};
use crate::edge::notify::JobReport;
use crate::format::ledger::LedgerScope;
use crate::judge::assessment::{BackupWorth, End, Lost};
use crate::text::{ByteSize, counted, time_text};

/// At most this many findings are shown to people.
const SHOWN: usize = 20;

/// What `walship verify` found.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // where the name says everything
pub struct VerifyReport {
    /// The archive.
    pub url: String,
    /// Nothing is wrong.
    pub is_clean: bool,
    pub started_at: DateTime<Utc>,
    pub finished_at: DateTime<Utc>,
    pub scope: LedgerScope,
    /// The moment that was given with `--since`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// Objects of the archive.
    pub objects: u64,
    pub read_objects: u64,
    pub read_bytes: u64,
    /// Requests to the store.
    pub requests: u64,
    /// Objects that no run has read yet.
    pub unread_objects: u64,
    /// Every object was read at this moment or later; absent where some never were.
    pub all_read_since: Option<DateTime<Utc>>,
    pub findings: Vec<Finding>,
    /// How many findings there are beyond those in `findings`.
    pub more_findings: u64,
    /// What each backup is worth.
    pub backups: Vec<BackupWorth>,
    /// What is out of reach.
    pub lost: Vec<Lost>,
    pub notes: Vec<String>,
}

impl JobReport for VerifyReport {
    fn wrong(&self) -> Option<String> {
        let first = self.findings.first()?;
        let more = match self.findings.len() as u64 + self.more_findings - 1 {
            0 => String::new(),
            more => format!("; and {}", counted(more, "more finding")),
        };
        Some(format!("{}: {}{more}", first.key, first.what))
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_summary(f)?;
        self.write_findings(f)?;
        for backup in &self.backups {
            write_backup(backup, f)?;
        }
        for lost in &self.lost {
            write_lost(lost, f)?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

impl VerifyReport {
    fn write_summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = if self.is_clean {
            "is as it should be".to_owned()
        } else {
            format!("IS DAMAGED: {}", self.findings.len() as u64 + self.more_findings)
        };
        writeln!(f, "{} {result}", self.url)?;
        write!(
            f,
            "{} objects, {} of them read now ({})",
            self.objects,
            self.read_objects,
            ByteSize(self.read_bytes)
        )?;
        if self.unread_objects > 0 {
            write!(f, ", {} older ones never", self.unread_objects)?;
        }
        match self.all_read_since {
            Some(since) if self.read_objects < self.objects => {
                writeln!(f, ", every one since {}", time_text(since))
            }
            _ => writeln!(f),
        }
    }

    fn write_findings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.findings.is_empty() {
            writeln!(f)?;
        }
        for finding in self.findings.iter().take(SHOWN) {
            let word = match finding.kind {
                FindingKind::Damaged => "DAMAGED",
                FindingKind::Missing => "MISSING",
                FindingKind::OtherHistory => "OTHER HISTORY",
                FindingKind::Uncrossable => "OUT OF REACH",
            };
            writeln!(f, "{word} {}: {}", finding.key, finding.what)?;
            match (&finding.name, finding.kind) {
                (Some(name), FindingKind::Damaged) => writeln!(
                    f,
                    "        if a server still has it: walship repair {name} --from FILE"
                )?,
                (Some(name), FindingKind::Missing) => writeln!(
                    f,
                    "        if a server still has it: walship push .../pg_wal/{name}"
                )?,
                (None, FindingKind::OtherHistory) => writeln!(
                    f,
                    "        two servers of this cluster have archived here; give the right one an archive of its own, and take \
                     a backup there"
                )?,
                (_, FindingKind::OtherHistory | FindingKind::Uncrossable) | (None, _) => {}
            }
        }
        let more = self.findings.len().saturating_sub(SHOWN) as u64 + self.more_findings;
        if more > 0 {
            writeln!(f, "and {more} more, see --json")?;
        }
        if !self.findings.is_empty() && !self.backups.is_empty() {
            writeln!(f)?;
        }
        Ok(())
    }
}

fn write_backup(backup: &BackupWorth, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let Some(reason) = &backup.unrestorable {
        return writeln!(f, "backup {} CANNOT BE RESTORED: {reason}", backup.id);
    }
    write!(f, "backup {} can be restored", backup.id)?;
    if let Some(finished) = backup.finished_at {
        write!(f, ", from {}", time_text(finished))?;
    }
    let leads: Vec<_> = backup
        .leads_to
        .iter()
        .map(|leads| {
            let end = match leads.end {
                End::EndOfWal => "the end of its WAL",
                End::Released => "its own end, because retention released what follows",
                End::Lost => "where WAL is damaged or missing",
            };
            format!("to LSN {} on timeline {}, {end}", leads.end_lsn, leads.timeline)
        })
        .collect();
    let space = if leads.is_empty() { "" } else { " " };
    writeln!(f, "{space}{}", leads.join("; "))
}

fn write_lost(lost: &Lost, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let timelines: Vec<_> = lost.timelines.iter().map(ToString::to_string).collect();
    write!(
        f,
        "OUT OF REACH on timeline {}: everything from LSN {} (segment {}) on",
        timelines.join(", "),
        lost.from_lsn,
        lost.segments
    )?;
    match &lost.again_from {
        Some(again) => writeln!(
            f,
            ", until backup {} at {} (LSN {})",
            again.backup,
            time_text(again.finished_at),
            again.stop_lsn
        ),
        None => writeln!(f, "; take a new backup now"),
    }
}
