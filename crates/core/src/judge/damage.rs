//! What the last verifications found damaged and what is still there. It counts wherever an archive is judged, before a
//! byte is restored. A finding is about the very object that was read: it does not count for an object that was
//! repaired or replaced since, and the next `walship verify` drops it if the object is sound again.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::catalogue::Catalogue;
use crate::error::Result;
use crate::format::keys::{BackupId, Key};
use crate::format::ledger::{LedgerFinding, LedgerSummary};
use crate::format::wal_inventory::{SegmentRange, WalInventory};
use crate::pg::{SegmentName, SegmentNumber, SegmentSize, TimelineId};
use crate::text::time_text;

/// What verify found wrong, not yet compared with the store's listing.
#[derive(Debug, Clone, Default)]
pub struct Found {
    by_key: BTreeMap<String, LedgerFinding>,
    at: Option<DateTime<Utc>>,
}

impl Found {
    /// What a summary tells.
    #[must_use]
    pub fn in_summary(summary: &LedgerSummary) -> Self {
        let damage = summary.damage.iter();
        Self {
            by_key: damage.map(|found| (found.key.clone(), found.clone())).collect(),
            at: Some(summary.last.finished_at),
        }
    }

    /// What is wrong with a listed object, if it is the one that was read.
    #[must_use]
    pub fn of(&self, key: &str, size: u64, modified: DateTime<Utc>, version: &str) -> Option<String> {
        let found = self.by_key.get(key)?;
        let seen = found.seen.as_ref()?;
        let is_this = seen.size == size && seen.modified == modified && seen.version == version;
        let at = self.at.map(time_text).unwrap_or_default();
        is_this.then(|| format!("walship verify of {at} found it damaged: {}", found.what))
    }
}

/// Damage that is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Damage {
    /// The segments, and what is wrong with each.
    pub wal: BTreeMap<SegmentName, String>,
    /// The backups with damaged objects or another history's WAL, and what is wrong with each.
    pub backups: BTreeMap<BackupId, String>,
    /// Why nothing is known: the notes of verify cannot be used.
    pub unknown: Option<String>,
}

impl Damage {
    /// Notes what is wrong with a WAL object.
    pub fn add_wal(&mut self, key: &str, what: String) {
        if let Ok(Key::Segment(segment)) = key.parse() {
            self.wal.insert(segment, what);
        }
    }

    /// The last damaged segment of a timeline: it was there, so the timeline went that far.
    pub(crate) fn last(&self, timeline: TimelineId, size: SegmentSize) -> Option<SegmentNumber> {
        let segments = self.wal.keys().filter(|segment| segment.timeline() == timeline);
        segments.filter_map(|segment| segment.number(size).ok()).max()
    }

    /// What is wrong with the first segment of a range that cannot be used, if it is damaged.
    #[must_use]
    pub fn of_first(&self, range: &SegmentRange) -> Option<&str> {
        self.wal.get(&range.first).map(String::as_str)
    }

    fn sound(&self, wal: &WalInventory) -> Result<WalInventory> {
        let mut sound = wal.clone();
        let size = wal.segment_size();
        for segment in self.wal.keys() {
            let number = segment.number(size)?;
            sound.remove(SegmentRange::new(segment.timeline(), number, number, size)?)?;
        }
        Ok(sound)
    }
}

impl Catalogue {
    /// The archived WAL without the segments that are known to be damaged.
    ///
    /// # Errors
    /// `Invalid` for a segment that no cluster has.
    pub fn sound_wal(&self) -> Result<std::borrow::Cow<'_, WalInventory>> {
        if self.damage.wal.is_empty() {
            return Ok(std::borrow::Cow::Borrowed(&self.wal));
        }
        self.damage.sound(&self.wal).map(std::borrow::Cow::Owned)
    }
}
