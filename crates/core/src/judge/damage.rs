//! What the last verifications found wrong, and is still there: it counts wherever an archive is judged, before a byte
//! is restored. A finding speaks of the very object that was read; one that was repaired or replaced since is not judged
//! by it, and one that reads well again is forgotten by the next `walship verify`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::catalogue::Catalogue;
use crate::error::Result;
use crate::format::keys::{BackupId, Key};
use crate::format::ledger::{LedgerFinding, LedgerSummary};
use crate::format::wal_inventory::{SegmentRange, WalInventory};
use crate::pg::{SegmentName, SegmentNumber, SegmentSize, TimelineId};
use crate::text::time_text;

/// What verify found wrong, before it is compared with what the store shows.
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

    /// What is wrong with the object that the store shows, if that is the one that was read.
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
    /// The backups with objects that are damaged, or on another history's WAL, and what is wrong with each.
    pub backups: BTreeMap<BackupId, String>,
    /// Why nothing is known, where that is so: what verify noted cannot be used.
    pub unknown: Option<String>,
}

impl Damage {
    /// Notes what is known of a WAL object.
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

    /// Of a stretch of WAL that cannot be used: what is damaged in its first segment, if that is why.
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
    /// The WAL that can be replayed: what is there, without what is known to be damaged.
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
