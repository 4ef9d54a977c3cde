//! The screen as people read it: 80 columns wide, and no longer than it must be.

use std::fmt::{self, Write as _};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Backlog, Backups, Drill, Expiry, StatusReport, Verification};
use crate::config::duration_text;
use crate::judge::diagnosis::Level;
use crate::judge::window::{LatestIs, Window};
use crate::text::{ByteSize, counted, span};

/// Where the second column begins.
const COLUMN: usize = 14;
const WIDTH: usize = 80;
/// At most this many of a kind are shown, because a screen is small. `walship list` and `walship doctor` show them all.
const SHOWN: usize = 3;

impl fmt::Display for StatusReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "Archive", &self.archive)?;
        let cluster = format!(
            "PostgreSQL {}, system identifier {}",
            self.postgres_major, self.system_identifier
        );
        line(f, "Cluster", &cluster)?;
        // The newest timelines matter most.
        let hidden = self.window.len().saturating_sub(SHOWN);
        for window in self.window.iter().skip(hidden) {
            line(f, "Recoverable", &window_text(window))?;
        }
        if self.window.is_empty() {
            line(f, "Recoverable", "nothing")?;
        }
        line(f, "Last WAL", &self.last_wal_text())?;
        if let Some(backlog) = &self.backlog {
            line(f, "Backlog", &backlog_text(backlog))?;
        }
        line(f, "Backups", &self.backups_text(&self.backups))?;
        line(f, "Verified", &self.verified_text(self.verification.as_ref()))?;
        line(f, "Last drill", &self.drill_text(self.drill.as_ref()))?;
        line(f, "Next expiry", &expiry_text(&self.expiry))?;
        self.write_warnings(f)
    }
}

impl StatusReport {
    fn ago(&self, moment: DateTime<Utc>) -> String {
        // The moment may seem to come, because two machines' clocks differ.
        format!(
            "{} ago",
            span((self.now - moment).to_std().unwrap_or(Duration::ZERO))
        )
    }

    fn last_wal_text(&self) -> String {
        match &self.last_wal {
            None => "none; set archive_command = 'walship push %p'".to_owned(),
            Some(last) => match last.stored_at {
                Some(stored_at) => format!("{}, stored {}", last.segment, self.ago(stored_at)),
                None => last.segment.to_string(),
            },
        }
    }

    fn backups_text(&self, backups: &Backups) -> String {
        let mut text = match &backups.newest {
            None => "none that can be restored; take one with walship basebackup".to_owned(),
            Some(newest) => format!(
                "{}, {} stored; the newest, {}, ended {}",
                backups.count,
                ByteSize(backups.stored_bytes),
                newest.id,
                self.ago(newest.finished_at)
            ),
        };
        // Writing to a String cannot fail.
        for (ids, what) in [
            (&backups.unrestorable, "cannot be restored"),
            (&backups.unfinished, "not finished"),
        ] {
            if !ids.is_empty() {
                let _ = write!(text, "; {} {what}", ids.len());
            }
        }
        text
    }

    fn verified_text(&self, verification: Option<&Verification>) -> String {
        match verification {
            None => "never; walship verify does it".to_owned(),
            Some(last) if last.findings == 0 => format!("{}, nothing wrong", self.ago(last.finished_at)),
            Some(last) => format!("{}: {} FOUND WRONG", self.ago(last.finished_at), last.findings),
        }
    }

    fn drill_text(&self, drill: Option<&Drill>) -> String {
        let Some(drill) = drill else {
            return "never; walship drill does it".to_owned();
        };
        let mut text = format!(
            "{}, backup {} {}",
            self.ago(drill.started_at),
            drill.backup,
            if drill.passed { "passed" } else { "FAILED" }
        );
        for (ms, what) in [
            (drill.recovery_ms, "recovery took"),
            (drill.data_loss_ms, "data loss at most"),
        ] {
            if let Some(ms) = ms {
                let _ = write!(text, "; {what} {}", duration_text(ms));
            }
        }
        text
    }

    fn write_warnings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.warnings.is_empty() {
            return line(f, "Warnings", "none");
        }
        for warning in self.warnings.iter().take(SHOWN) {
            let label = if warning.level == Level::Problem {
                "PROBLEM"
            } else {
                "WARNING"
            };
            match &warning.fix {
                Some(fix) => line(f, label, &format!("{}: {fix}", warning.message))?,
                None => line(f, label, &warning.message)?,
            }
        }
        match self.warnings.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => line(f, "", &format!("and {more} more: see walship doctor")),
        }
    }
}

pub(super) fn window_text(window: &Window) -> String {
    let earliest = time(window.earliest);
    let latest = match (window.latest, window.latest_is) {
        (Some(latest), LatestIs::Commit) => time(latest),
        (Some(latest), _) => format!("{} (no commit since)", time(latest)),
        (None, LatestIs::EndOfBackup) => {
            return format!(
                "the end of backup {}, timeline {}",
                window.first_backup, window.timeline
            );
        }
        (None, _) => format!("the end of {}", window.last_segment),
    };
    let barrier = window
        .barrier
        .map_or_else(String::new, |lsn| format!("; no recovery crosses LSN {lsn}"));
    format!("{earliest} to {latest}, timeline {}{barrier}", window.timeline)
}

fn backlog_text(backlog: &Backlog) -> String {
    match (backlog.files, backlog.oldest_seconds, &backlog.unknown) {
        (Some(0), _, _) => "none".to_owned(),
        (Some(files), Some(seconds), _) => format!(
            "{}, the oldest waits for {}",
            counted(files, "file"),
            span(Duration::from_secs(seconds))
        ),
        (Some(files), None, _) => counted(files, "file"),
        (None, _, why) => format!("unknown: {}", why.as_deref().unwrap_or_default()),
    }
}

fn expiry_text(expiry: &Expiry) -> String {
    match expiry {
        Expiry::NoPolicy => "no retention policy is set here, so everything is kept".to_owned(),
        Expiry::Refuses { why } => format!("refuses: {why}"),
        Expiry::Deletes {
            backups,
            backup_bytes,
            wal_segments,
        } => match (backups.len(), wal_segments) {
            (0, 0) => "deletes nothing now".to_owned(),
            (0, segments) => format!("deletes {}", counted(*segments, "WAL segment")),
            (count, segments) => format!(
                "deletes {} ({}) and {}",
                counted(count as u64, "backup"),
                ByteSize(*backup_bytes),
                counted(*segments, "WAL segment")
            ),
        },
    }
}

/// To the second. JSON has more digits.
fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Writes a label and its text, in as many lines as it takes.
fn line(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    let mut label = label;
    let mut row = String::new();
    for word in text.split_whitespace() {
        let length = row.chars().count() + usize::from(!row.is_empty()) + word.chars().count();
        if !row.is_empty() && length > WIDTH - COLUMN {
            writeln!(f, "{label:<COLUMN$}{row}")?;
            (label, row) = ("", String::new());
        }
        if !row.is_empty() {
            row.push(' ');
        }
        row.push_str(word);
    }
    writeln!(f, "{label:<COLUMN$}{row}")
}
