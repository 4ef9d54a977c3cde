//! A list as people read it.

use std::fmt;

use chrono::{DateTime, Utc};

use super::{ListReport, ListedBackup, ListedTimeline, ListedUnfinished};
use crate::format::backup::BackupKind;
use crate::format::proof::Proven;
use crate::format::wal_inventory::SegmentRange;
use crate::judge::catalogue::UnfinishedState;
use crate::judge::window::{LatestIs, Window};
use crate::text::{ByteSize, counted, time_text, write_table};

impl fmt::Display for ListReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(backups) = &self.backups {
            self.write_backups(backups, f)?;
        }
        for entry in self.unrestorable.iter().flatten() {
            writeln!(f, "\nbackup {} CANNOT BE RESTORED: {}", entry.id, entry.reason)?;
        }
        for entry in self.unfinished.iter().flatten() {
            writeln!(f, "\nbackup {}: {}", entry.id, entry.describe())?;
        }
        if let Some(wal) = &self.wal {
            if self.backups.is_some() {
                writeln!(f)?;
            }
            self.write_wal(wal, f)?;
        }
        if let Some(window @ [_, ..]) = self.window.as_deref() {
            writeln!(f)?;
            self.write_window(window, f)?;
        }
        for mark in &self.retired {
            writeln!(f, "timeline {} was {mark}", mark.timeline)?;
        }
        if let Some(ambiguity) = &self.ambiguous {
            writeln!(
                f,
                "AMBIGUOUS: {ambiguity}. A recovery needs --target-timeline until the copy's timeline is retired (walship timeline retire N --reason \"…\")"
            )?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

impl ListReport {
    fn write_backups(&self, backups: &[ListedBackup], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if backups.is_empty() {
            let which = match self.unrestorable.as_deref() {
                None | Some([]) => "no backups",
                Some(_) => "no backups that can be restored",
            };
            return writeln!(f, "{which} in {}; take one with walship basebackup", self.url);
        }
        let headings = [
            "BACKUP",
            "LABEL",
            "KIND",
            "STARTED",
            "FINISHED",
            "START LSN",
            "STOP LSN",
            "TIMELINE",
            "POSTGRESQL",
            "SIZE",
            "STORED",
            "PROVEN",
            "RETENTION",
        ];
        let rows = backups.iter().map(|backup| {
            vec![
                backup.id.to_string(),
                label(&backup.label),
                kind(backup.kind).to_owned(),
                time(backup.started_at),
                time(backup.finished_at),
                backup.start_lsn.to_string(),
                backup.stop_lsn.to_string(),
                backup.timeline.to_string(),
                backup.postgres_version.clone(),
                ByteSize(backup.size_bytes).to_string(),
                ByteSize(backup.stored_bytes).to_string(),
                proven(&backup.proven),
                backup.retention.to_string(),
            ]
        });
        write_table(&headings, rows.collect(), f)
    }

    fn write_wal(&self, wal: &[ListedTimeline], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if wal.is_empty() {
            return writeln!(
                f,
                "no WAL in {}; set archive_command = 'walship push %p'",
                self.url
            );
        }
        let rows = wal.iter().map(|timeline| {
            vec![
                timeline.timeline.to_string(),
                timeline.first.to_string(),
                timeline.last.to_string(),
                timeline.segments.to_string(),
                if timeline.gaps.is_empty() {
                    "none".to_owned()
                } else {
                    timeline.gaps.len().to_string()
                },
            ]
        });
        write_table(
            &["TIMELINE", "FIRST SEGMENT", "LAST SEGMENT", "SEGMENTS", "GAPS"],
            rows.collect(),
            f,
        )?;
        for timeline in wal {
            for gap in &timeline.gaps {
                writeln!(f, "timeline {} LACKS {gap}", timeline.timeline)?;
            }
            for range in &timeline.given_up {
                let timeline = timeline.timeline;
                writeln!(f, "timeline {timeline}: retention has released {range}")?;
            }
        }
        for timeline in wal {
            write_branch(timeline, f)?;
        }
        for timeline in &self.timelines_without_wal {
            writeln!(f, "timeline {timeline} has no whole segment in the archive yet")?;
        }
        Ok(())
    }
}

impl ListReport {
    /// To the microsecond, because these are times to recover to.
    fn write_window(&self, window: &[Window], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = window.iter().map(|window| {
            let what = match window.latest_is {
                LatestIs::Commit => "last commit",
                LatestIs::StartOfBackup => "no commit until a backup",
                LatestIs::EndOfBackup => "end of the backup",
                LatestIs::Unknown => "not known",
            };
            vec![
                window.timeline.to_string(),
                time_text(window.earliest),
                window.latest.map_or_else(|| "?".to_owned(), time_text),
                what.to_owned(),
                window.last_segment.to_string(),
            ]
        });
        let headings = ["TIMELINE", "RECOVERABLE FROM", "TO", "WHICH IS", "LAST SEGMENT"];
        write_table(&headings, rows.collect(), f)?;
        for window in window {
            let (timeline, end) = (window.timeline, window.end_lsn);
            // A timeline's first segment is archived when it is full; a line above says that it is not there yet.
            let not_yet = |missing: &SegmentRange| {
                missing.first.timeline() == timeline && self.timelines_without_wal.contains(&timeline)
            };
            if let Some(why) = &window.barrier_is {
                writeln!(
                    f,
                    "timeline {timeline}: {why}; what follows can be recovered only from a backup after it"
                )?;
            }
            if let Some(missing) = window.missing.filter(|missing| !not_yet(missing)) {
                let word = window.damage.as_ref().map_or("MISSING", |_| "DAMAGED");
                writeln!(
                    f,
                    "timeline {timeline}: {missing} {word} at {end}, which ends what can be recovered before it"
                )?;
            }
        }
        Ok(())
    }
}

fn write_branch(timeline: &ListedTimeline, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Some(branch) = &timeline.branched_from else {
        return Ok(());
    };
    let parent = branch.timeline;
    write!(
        f,
        "timeline {} branched off timeline {parent} at {}",
        timeline.timeline, branch.lsn
    )?;
    match &branch.goes_on {
        None => writeln!(f),
        Some(range) => writeln!(
            f,
            "; timeline {parent} went on beyond it as another branch, from {} to {} ({} in the archive)",
            range.first,
            range.last,
            counted(range.segments, "segment")
        ),
    }
}

impl ListedUnfinished {
    fn describe(&self) -> String {
        let id = &self.id;
        match self.state {
            UnfinishedState::WaitingForWal => format!(
                "stored, but the WAL that it needs had not arrived; `walship basebackup --finish {id}` completes it"
            ),
            UnfinishedState::Started => {
                format!(
                    "not finished; the last sign of it is from {}",
                    time(self.last_sign)
                )
            }
            UnfinishedState::Remains => "only some of its objects are left".to_owned(),
        }
    }
}

/// To the second, which is enough to choose a backup. JSON has more digits.
fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A failure counts only if it came after the last success.
fn proven(proven: &Proven) -> String {
    match (proven.last_success, proven.last_failure) {
        (success, Some(failure)) if success < Some(failure) => format!("FAILED {}", time(failure)),
        (Some(success), _) => time(success),
        (None, _) => "never".to_owned(),
    }
}

fn kind(kind: BackupKind) -> &'static str {
    match kind {
        BackupKind::Full => "full",
    }
}

/// A label is any text; in a table it must stay on its line.
fn label(label: &str) -> String {
    label
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
