//! Retention in the list: marks, backups that stand alone, and what the next expiry would do by this machine's policy.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::format::ranges::RangeSet;
use crate::format::released::TimelineRanges;
use crate::format::wal_inventory::{SegmentRange, WalInventory};
use crate::judge;
use crate::judge::catalogue::{Backup, Catalogue};
use crate::judge::retention::{Action, Reason, RetentionPlan, RetentionPolicy};
use crate::pg::{SegmentNumber, TimelineId};

/// A backup's mark, and what the next expiry would do with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedRetention {
    /// The WAL after it was released: only its own end can be recovered.
    pub stand_alone: bool,
    /// The mark of `walship keep`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<ListedMark>,
    /// What the next `walship expire` does with it, by the policy that is configured here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Action>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
}

/// A mark of `walship keep`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedMark {
    /// Until when it holds; for ever where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
}

/// The plan of an expiry by this machine's policy, or why there would be none.
pub(super) fn plan(
    catalogue: &Catalogue,
    policy: &RetentionPolicy,
    now: DateTime<Utc>,
) -> Result<Option<RetentionPlan>, String> {
    if policy.check().is_err() {
        return Ok(None);
    }
    let plan = judge::retention::preview(catalogue, policy, now);
    plan.map(Some)
        .map_err(|error| format!("walship expire would refuse: {error}"))
}

impl ListedRetention {
    pub(super) fn of(backup: &Backup, catalogue: &Catalogue, plan: Option<&RetentionPlan>) -> Self {
        let fate = plan.and_then(|plan| plan.backups.iter().find(|fate| fate.id == backup.id));
        Self {
            stand_alone: catalogue.stands_alone(backup),
            mark: backup.keep.as_ref().map(|keep| ListedMark { until: keep.until }),
            next: fate.map(|fate| fate.action),
            reasons: fate.map(|fate| fate.reasons.clone()).unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for ListedRetention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut words: Vec<String> = Vec::new();
        if self.stand_alone {
            words.push("stands alone".to_owned());
        }
        if self.next == Some(Action::Delete) {
            words.push("EXPIRES".to_owned());
        }
        words.extend(self.reasons.iter().map(ToString::to_string));
        if let (Some(mark), None) = (&self.mark, self.next) {
            words.push(Reason::Kept { until: mark.until }.to_string());
        }
        f.write_str(&words.join(", "))
    }
}

/// The gaps of a timeline: first those that were lost, then those that were released.
pub(super) fn gaps(
    wal: &WalInventory,
    timeline: TimelineId,
    released: &TimelineRanges,
) -> (Vec<SegmentRange>, Vec<SegmentRange>) {
    let held = wal.held(timeline);
    let mut gaps = RangeSet::default();
    if let (Some(first), Some(last)) = (held.first(), held.last()) {
        gaps.insert_range(first, last);
    }
    gaps.subtract(&held);
    let released = released
        .of(timeline)
        .map(|ranges| gaps.intersection(ranges))
        .unwrap_or_default();
    gaps.subtract(&released);
    let named = |ranges: &RangeSet| {
        let ranges = ranges.iter().filter_map(|(first, last)| {
            let (first, last) = (SegmentNumber(first), SegmentNumber(last));
            SegmentRange::new(timeline, first, last, wal.segment_size()).ok()
        });
        ranges.collect()
    };
    (named(&gaps), named(&released))
}
