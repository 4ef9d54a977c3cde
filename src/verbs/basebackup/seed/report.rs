//! What seeding did, and what comes next.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::slot::Slot;
use super::start::Started;
use super::{SeedOptions, Seeded};
use crate::cluster::StandbySettings;
use crate::cluster::primary::Primary;
use crate::cluster::seed_source::Source;
use crate::format::keys::BackupId;
use crate::pg::TimelineId;
use crate::text::ByteSize;

/// What seeding did, and what comes next.
#[derive(Debug, Clone, Serialize)]
pub struct SeedReport {
    /// The replica's data directory.
    pub pgdata: PathBuf,
    /// `primary` or `archive`.
    pub source: &'static str,
    /// Why that one.
    pub reason: String,
    /// The backup that was restored; `None` where the primary was copied.
    pub backup: Option<BackupId>,
    /// Bytes that were restored or copied.
    pub size_bytes: u64,
    /// The server it follows: role and hosts.
    pub primary: String,
    /// The timeline of that server.
    pub timeline: TimelineId,
    pub primary_conninfo: Option<String>,
    pub slot: Option<String>,
    pub restore_command: String,
    /// What somebody has to know or do.
    pub notes: Vec<String>,
    pub start_command: String,
    /// How far it came; `None` where it was not to be started.
    pub started: Option<Started>,
}

pub(super) fn new(
    options: &SeedOptions,
    primary: &Primary,
    source: &Source,
    slot: Option<&Slot>,
    settings: StandbySettings,
    seeded: Seeded,
) -> SeedReport {
    let mut notes = Vec::new();
    let (word, reason) = match source {
        Source::Primary { reason, note, .. } => {
            notes.extend(note.clone());
            ("primary", reason)
        }
        Source::Archive { reason, .. } => ("archive", reason),
    };
    let (backup, size_bytes, more, start_command) = match seeded {
        Seeded::Copied(copied) => (None, copied.size_bytes, copied.notes, copied.start_command),
        Seeded::Restored(restored) => (
            Some(restored.backup),
            restored.size_bytes,
            restored.notes,
            restored.start_command,
        ),
    };
    notes.extend(more);
    notes.extend(slot_notes(primary, slot));
    SeedReport {
        pgdata: options.pgdata.clone(),
        source: word,
        reason: reason.clone(),
        backup,
        size_bytes,
        primary: primary.shown.clone(),
        timeline: primary.timeline,
        primary_conninfo: settings.primary_conninfo,
        slot: settings.primary_slot_name,
        restore_command: settings.restore_command,
        notes,
        start_command,
        started: None,
    }
}

fn slot_notes(primary: &Primary, slot: Option<&Slot>) -> Vec<String> {
    let mut notes = Vec::new();
    if primary.is_standby {
        notes.push(format!(
            "{} is a standby itself: this replica follows it, and gets what it has replayed",
            primary.shown
        ));
    }
    let Some(slot) = slot else {
        return notes;
    };
    if slot.was_there {
        notes.push(format!(
            "the slot {} was there and kept no WAL; walship created it anew",
            slot.name
        ));
    }
    if primary.slot_keeps == "-1" {
        notes.push(format!(
            "while the replica is away, its slot makes {} keep all WAL, until the disk is full \
             (max_slot_wal_keep_size = -1). Set a limit: beyond it the replica goes on from the archive",
            primary.shown
        ));
    }
    notes
}

impl fmt::Display for SeedReport {
    /// For the person who will start the server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = ByteSize(self.size_bytes);
        let pgdata = self.pgdata.display();
        match &self.backup {
            Some(backup) => writeln!(f, "Restored backup {backup} ({size}) into {pgdata} as a standby")?,
            None => writeln!(f, "Copied {} ({size}) into {pgdata} as a standby", self.primary)?,
        }
        writeln!(f, "  from the {}: {}", self.source, self.reason)?;
        writeln!(f, "  follows {} on timeline {}", self.primary, self.timeline)?;
        match &self.slot {
            Some(slot) => writeln!(f, "  through the slot {slot}")?,
            None => writeln!(f, "  without a slot")?,
        }
        writeln!(
            f,
            "  and, if the primary has not kept the WAL that it needs, the archive: {}",
            self.restore_command
        )?;
        for note in &self.notes {
            writeln!(f, "Note: {note}")?;
        }
        match &self.started {
            Some(started) => writeln!(f, "{started}"),
            None => writeln!(f, "\nStart it:\n  {}", self.start_command),
        }
    }
}
