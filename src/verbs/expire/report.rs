//! What an expiry planned and did, for people and for programs.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::edge::notify::JobReport;
use crate::error::Result;
use crate::format::keys::Key;
use crate::judge::retention::{Action, BackupFate, RetentionPlan, WalFate};
use crate::store::Store;
use crate::text::{ByteSize, counted, write_table};

/// At most this many of the objects that could not be deleted are named.
const NAMED: usize = 20;

#[derive(Debug, Clone, Serialize)]
pub struct ExpireReport {
    /// Nothing was deleted: `deleted` says what would be.
    pub dry_run: bool,
    #[serde(flatten)]
    pub plan: RetentionPlan,
    /// What was deleted. A dry run counts WAL only.
    pub deleted: Deleted,
    /// How many objects the store refused to delete.
    pub left_objects: u64,
    /// The first [`NAMED`] of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<LeftObject>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    #[serde(skip)]
    url: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// Backups, finished or not.
    pub backups: u64,
    /// Objects, of backups and of WAL.
    pub objects: u64,
    /// Their bytes in the store.
    pub stored_bytes: u64,
}

/// An object that the store refused to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftObject {
    pub key: String,
    pub why: String,
}

impl Deleted {
    pub(super) fn count(&mut self, objects: &[(Key, u64)]) {
        self.objects += objects.len() as u64;
        self.stored_bytes += objects.iter().map(|(_, bytes)| bytes).sum::<u64>();
    }
}

impl ExpireReport {
    pub(super) fn new(dry_run: bool, plan: RetentionPlan, notes: Vec<String>, store: &Store) -> Self {
        Self {
            dry_run,
            plan,
            deleted: Deleted::default(),
            left_objects: 0,
            left: Vec::new(),
            notes,
            url: store.location().to_string(),
        }
    }

    /// Whether something is still there that should have been deleted.
    #[must_use]
    pub fn left_something(&self) -> bool {
        self.left_objects > 0
    }

    /// Deletes objects, each given with its size. Returns whether all were deleted, and the bytes of those that were.
    pub(super) async fn delete(&mut self, objects: &[(Key, u64)], store: &Store) -> Result<(bool, u64)> {
        let keys: Vec<String> = objects.iter().map(|(key, _)| key.to_string()).collect();
        let refused = store.delete_where_allowed(&keys).await?;
        let all = refused.is_empty();
        let stays = |key: &String| refused.iter().any(|left| left.key == *key);
        let gone = objects.iter().zip(&keys).filter(|(_, key)| !stays(key));
        let gone: Vec<_> = gone.map(|(object, _)| object.clone()).collect();
        let before = self.deleted.stored_bytes;
        self.deleted.count(&gone);
        self.left_objects += refused.len() as u64;
        let room = NAMED.saturating_sub(self.left.len());
        self.left
            .extend(refused.into_iter().take(room).map(|left| LeftObject {
                key: left.key,
                why: left.error.to_string(),
            }));
        Ok((all, self.deleted.stored_bytes - before))
    }

    fn summary(&self) -> String {
        let deleted = |fate: &&BackupFate| fate.action == Action::Delete;
        let planned = self.plan.backups.iter().filter(deleted).count();
        let bytes = ByteSize(self.deleted.stored_bytes);
        if self.dry_run {
            let stored = self.plan.backups.iter().filter(deleted);
            let stored = stored.filter_map(|fate| fate.stored_bytes).sum::<u64>();
            return format!(
                "Would delete {} ({}) and {} ({bytes}) from {}; nothing was deleted.",
                counted(planned as u64, "backup"),
                ByteSize(stored),
                counted(self.deleted.objects, "WAL file"),
                self.url
            );
        }
        format!(
            "Deleted {} and {} in all ({bytes}) from {}.",
            counted(self.deleted.backups, "backup"),
            counted(self.deleted.objects, "object"),
            self.url
        )
    }
}

impl JobReport for ExpireReport {
    fn wrong(&self) -> Option<String> {
        let first = self.left.first()?;
        Some(format!(
            "{} could not be deleted, such as {}: {}",
            counted(self.left_objects, "object"),
            first.key,
            first.why
        ))
    }
}

impl fmt::Display for ExpireReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(start) = self.plan.window_start {
            writeln!(f, "the window begins at {}\n", time(start))?;
        }
        if self.plan.backups.is_empty() {
            writeln!(f, "no backups in {}", self.url)?;
        } else {
            let rows = self.plan.backups.iter().map(backup_row).collect();
            write_table(&["BACKUP", "FINISHED", "STORED", "WHAT", "WHY"], rows, f)?;
        }
        if !self.plan.wal.is_empty() {
            writeln!(f)?;
            let rows = self.plan.wal.iter().map(wal_row).collect();
            let headings = [
                "TIMELINE",
                "FIRST SEGMENT",
                "LAST SEGMENT",
                "SEGMENTS",
                "WHAT",
                "WHY",
            ];
            write_table(&headings, rows, f)?;
        }
        writeln!(f, "\n{}", self.summary())?;
        if self.left_something() {
            writeln!(
                f,
                "COULD NOT BE DELETED: {} objects; a later run tries again",
                self.left_objects
            )?;
        }
        for left in &self.left {
            writeln!(f, "  {}: {}", left.key, left.why)?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

fn backup_row(fate: &BackupFate) -> Vec<String> {
    let reasons: Vec<_> = fate.reasons.iter().map(ToString::to_string).collect();
    vec![
        fate.id.to_string(),
        fate.finished_at.map_or_else(|| "-".to_owned(), time),
        fate.stored_bytes
            .map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string()),
        fate.action.to_string(),
        reasons.join(", "),
    ]
}

fn wal_row(fate: &WalFate) -> Vec<String> {
    vec![
        fate.range.first.timeline().to_string(),
        fate.range.first.to_string(),
        fate.range.last.to_string(),
        fate.range.segments.to_string(),
        fate.action.to_string(),
        fate.reason.to_string(),
    ]
}

fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%SZ").to_string()
}
