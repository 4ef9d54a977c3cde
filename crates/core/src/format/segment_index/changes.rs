//! What a segment's records change of the conditions of a recovery, as its index keeps it: bounded, and
//! with a word where there is more.

use serde::{Deserialize, Serialize};

use crate::pg::{Lsn, WalChange, WalLevel};

/// So many changes are kept at most.
pub(crate) const CHANGES: usize = 32;
/// So long they may be together as JSON, in bytes.
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
    /// Whether there are more, or such that are not known.
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

    /// Checkpoints are many. Of most, only a `wal_level` that was not known yet is kept.
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
        // A path that is no text cannot be kept either.
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
