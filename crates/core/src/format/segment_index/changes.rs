//! The changes of a recovery's conditions that a segment's index keeps: a bounded number, and whether there are more.

use serde::{Deserialize, Serialize};

use crate::pg::{Lsn, WalChange, WalLevel};

/// At most this many changes are kept.
pub(crate) const CHANGES: usize = 32;
/// The longest that all of them may be as JSON, in bytes.
const CHANGES_BYTES: usize = 8 << 10;

/// A record that changes something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The position of the record.
    pub lsn: Lsn,
    /// What it changes.
    #[serde(flatten)]
    pub change: WalChange,
}

#[derive(Debug, Default)]
pub(super) struct ChangesTally {
    pub(super) kept: Vec<Change>,
    /// Whether there are more, or unknown ones.
    pub(super) more: bool,
    bytes: usize,
    level: Option<WalLevel>,
}

impl ChangesTally {
    pub(super) fn add(&mut self, lsn: Lsn, change: WalChange) {
        if let Some(change) = self.worth_keeping(change) {
            self.keep(Change { lsn, change });
        }
    }

    /// There are many checkpoints. Of most, only a `wal_level` that was not known yet is kept.
    fn worth_keeping(&mut self, change: WalChange) -> Option<WalChange> {
        match change {
            WalChange::Parameters(parameters) => {
                self.level = Some(parameters.wal_level);
                Some(change)
            }
            WalChange::Checkpoint(checkpoint) if checkpoint.timeline == checkpoint.previous => {
                self.new_level(checkpoint.wal_level?)
            }
            WalChange::WalLevel { wal_level } => self.new_level(wal_level),
            other => Some(other),
        }
    }

    fn new_level(&mut self, wal_level: WalLevel) -> Option<WalChange> {
        let before = self.level.replace(wal_level);
        (before != Some(wal_level)).then_some(WalChange::WalLevel { wal_level })
    }

    fn keep(&mut self, change: Change) {
        // A path that is not UTF-8 cannot be kept either.
        let length = serde_json::to_vec(&change).map_or(usize::MAX, |text| text.len());
        let is_unread = change.change == WalChange::Unread;
        self.bytes = self.bytes.saturating_add(length);
        if self.more || is_unread || self.kept.len() >= CHANGES || self.bytes > CHANGES_BYTES {
            self.more = true;
        } else {
            self.kept.push(change);
        }
    }
}
