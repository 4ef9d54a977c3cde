//! Grandfather, father, son: the newest backup of each day, week, month or year.
//!
//! Days begin at midnight UTC, weeks on Monday (ISO 8601). Only periods that have a backup count, so that a pause in
//! the backups does not use up what was promised. The *newest* backup of a period is kept, so the choice moves while
//! the period lasts and stays when it is over.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, Utc};

use super::{Reason, RetentionPolicy};
use crate::format::keys::BackupId;
use crate::judge::catalogue::Backup;

type PeriodOf = fn(DateTime<Utc>) -> String;
type ReasonFor = fn(String) -> Reason;

/// The backups that stay for their periods, each with the reasons.
pub(super) fn choose(policy: &RetentionPolicy, backups: &[Backup]) -> BTreeMap<BackupId, Vec<Reason>> {
    let rules: [(Option<u32>, PeriodOf, ReasonFor); 4] = [
        (
            policy.daily,
            |time| time.format("%Y-%m-%d").to_string(),
            |period| Reason::Daily { period },
        ),
        (
            policy.weekly,
            |time| {
                let week = time.iso_week();
                format!("{}-W{:02}", week.year(), week.week())
            },
            |period| Reason::Weekly { period },
        ),
        (
            policy.monthly,
            |time| time.format("%Y-%m").to_string(),
            |period| Reason::Monthly { period },
        ),
        (
            policy.yearly,
            |time| time.format("%Y").to_string(),
            |period| Reason::Yearly { period },
        ),
    ];
    let mut newest_first: Vec<&Backup> = backups.iter().collect();
    newest_first.sort_by_key(|backup| std::cmp::Reverse((backup.finished_at, &backup.id)));
    let mut chosen: BTreeMap<BackupId, Vec<Reason>> = BTreeMap::new();
    for (count, period_of, reason) in rules {
        let mut seen = BTreeSet::new();
        for backup in &newest_first {
            let period = period_of(backup.finished_at);
            if seen.contains(&period) {
                continue;
            }
            if seen.len() >= count.unwrap_or(0) as usize {
                break;
            }
            seen.insert(period.clone());
            chosen.entry(backup.id.clone()).or_default().push(reason(period));
        }
    }
    chosen
}
