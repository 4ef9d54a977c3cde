//! Which backups stay, and why.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use super::histories::Histories;
use super::{Action, BackupFate, GRACE, PENDING_GRACE, Reason, RetentionPolicy, before, periods};
use crate::error::Result;
use crate::format::keys::BackupId;
use crate::judge::catalogue::{Backup, Catalogue, Unfinished, UnfinishedState, Unrestorable};
use crate::judge::timeline_chain::TimelineChain;
use crate::pg::TimelineId;

/// The decision on the backups.
#[derive(Debug)]
pub(super) struct Choice {
    /// Every backup there is, in the order of the ids.
    pub(super) fates: Vec<BackupFate>,
    /// The backups from which recovery goes on to any later moment.
    pub(super) points_in_time: BTreeSet<BackupId>,
}

/// Decides for every backup.
///
/// # Errors
/// `Invalid` for positions that no segment has.
pub(super) fn choose(
    catalogue: &Catalogue,
    histories: &Histories<'_>,
    policy: &RetentionPolicy,
    now: DateTime<Utc>,
) -> Result<Choice> {
    let mut chooser = Chooser {
        catalogue,
        histories,
        reasons: BTreeMap::new(),
    };
    if let Some(window) = policy.window {
        chooser.window(before(now, window))?;
    }
    chooser.newest(policy);
    let points_in_time: BTreeSet<_> = chooser.reasons.keys().cloned().collect();
    for (id, reasons) in periods::choose(policy, &catalogue.backups) {
        chooser.reasons.entry(id).or_default().extend(reasons);
    }
    for backup in catalogue.readable() {
        let keep = backup.keep.as_ref().filter(|keep| keep.holds_at(now));
        if let Some(keep) = keep {
            chooser.add(backup, Reason::Kept { until: keep.until });
        }
    }
    let mut fates: Vec<_> = catalogue
        .backups
        .iter()
        .map(|backup| chooser.fate(backup, &points_in_time))
        .collect();
    let oldest = chooser.oldest(&points_in_time);
    fates.extend(
        catalogue
            .unrestorable
            .iter()
            .map(|entry| chooser.unrestorable(entry, oldest)),
    );
    fates.extend(catalogue.unfinished.iter().map(|entry| {
        let newer_exists = catalogue.backups.iter().any(|backup| backup.id > entry.id);
        unfinished(entry, newer_exists, policy, now)
    }));
    fates.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(Choice {
        fates,
        points_in_time,
    })
}

struct Chooser<'a> {
    catalogue: &'a Catalogue,
    histories: &'a Histories<'a>,
    reasons: BTreeMap<BackupId, Vec<Reason>>,
}

impl Chooser<'_> {
    fn add(&mut self, backup: &Backup, reason: Reason) {
        let reasons = self.reasons.entry(backup.id.clone()).or_default();
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }

    /// Every moment after `cutoff` stays reachable, on every timeline that has such moments.
    fn window(&mut self, cutoff: DateTime<Utc>) -> Result<()> {
        let catalogue = self.catalogue;
        for backup in &catalogue.backups {
            if backup.ended_by() > cutoff {
                self.add(backup, Reason::InWindow);
            }
        }
        let living = self.histories.living();
        for timeline in self.histories.timelines() {
            // A segment is stored after all that happened in it.
            let stored = catalogue.wal.newest_stored(timeline);
            let has_moments = stored.is_some_and(|stored| stored > cutoff);
            if !has_moments && !living.contains(&timeline) {
                continue;
            }
            let Some(chain) = self.histories.chain(timeline) else {
                continue;
            };
            for backup in newest_first(catalogue, &chain) {
                if backup.ended_by() <= cutoff && self.leads_on(backup, &chain)? {
                    self.add(backup, Reason::WindowStart { timeline });
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether retention has released nothing that a recovery from the backup along this chain would read.
    fn leads_on(&self, backup: &Backup, chain: &TimelineChain<'_>) -> Result<bool> {
        let reach = chain.reach(&self.catalogue.wal, backup.start_lsn, None)?;
        let size = self.catalogue.wal.segment_size();
        let missing = match reach.gap {
            Some(gap) => (gap.missing.first.timeline(), gap.missing.first.number(size)?),
            None => (chain.timeline(), size.segment_of(reach.end_lsn)),
        };
        Ok(!self.catalogue.released.contains(missing.0, missing.1))
    }

    /// The newest backups of each living timeline's chain, and the newest of all: the latest timeline may be one that
    /// nobody meant to begin.
    fn newest(&mut self, policy: &RetentionPolicy) {
        let catalogue = self.catalogue;
        let count = policy.newest();
        let living = self.histories.living();
        let chains = living
            .iter()
            .filter_map(|timeline| self.histories.chain(*timeline));
        let mut lists: Vec<_> = chains.map(|chain| newest_first(catalogue, &chain)).collect();
        let mut of_all: Vec<&Backup> = catalogue.backups.iter().collect();
        of_all.sort_by_key(|backup| std::cmp::Reverse((backup.finished_at, &backup.id)));
        lists.push(of_all);
        for backups in lists {
            for (backup, rank) in backups.into_iter().take(count).zip(1_u32..) {
                let reason = if rank == 1 {
                    Reason::Newest
                } else {
                    Reason::AmongNewest {
                        keep_backups: count as u32,
                    }
                };
                self.add(backup, reason);
            }
        }
    }

    fn fate(&self, backup: &Backup, points_in_time: &BTreeSet<BackupId>) -> BackupFate {
        let reasons = self.reasons.get(&backup.id).cloned().unwrap_or_default();
        let (action, reasons) = if reasons.is_empty() {
            (Action::Delete, vec![expired(backup)])
        } else if points_in_time.contains(&backup.id) {
            (Action::Keep, reasons)
        } else {
            (Action::KeepStandAlone, reasons)
        };
        BackupFate {
            id: backup.id.clone(),
            finished_at: Some(backup.finished_at),
            stored_bytes: Some(backup.stored_bytes),
            action,
            reasons,
        }
    }

    /// The end of the oldest backup from which recovery goes on.
    fn oldest(&self, points_in_time: &BTreeSet<BackupId>) -> Option<DateTime<Utc>> {
        let kept = self
            .catalogue
            .backups
            .iter()
            .filter(|backup| points_in_time.contains(&backup.id));
        kept.map(|backup| backup.finished_at).min()
    }

    /// It counts for no promise, and goes when a whole one would go. Until then somebody may still bring back what is
    /// missing.
    fn unrestorable(&self, entry: &Unrestorable, oldest: Option<DateTime<Utc>>) -> BackupFate {
        let finished_at = entry.backup.as_ref().map(|backup| backup.finished_at);
        let mut reasons = self.reasons.get(&entry.id).cloned().unwrap_or_default();
        let is_older = finished_at.zip(oldest).is_some_and(|(own, oldest)| own < oldest);
        let action = if reasons.is_empty() && is_older {
            Action::Delete
        } else {
            Action::KeepStandAlone
        };
        reasons.push(Reason::Unrestorable {
            why: entry.reason.clone(),
        });
        BackupFate {
            id: entry.id.clone(),
            finished_at,
            stored_bytes: entry.backup.as_ref().map(|backup| backup.stored_bytes),
            action,
            reasons,
        }
    }
}

fn expired(backup: &Backup) -> Reason {
    match &backup.keep {
        Some(keep) => Reason::KeepIsOver { until: keep.until },
        None => Reason::NotNeeded,
    }
}

/// The backups from which a recovery can go along this chain; positions on one chain are in the order of time.
fn newest_first<'a>(catalogue: &'a Catalogue, chain: &TimelineChain<'_>) -> Vec<&'a Backup> {
    let mut backups: Vec<&Backup> = catalogue
        .backups
        .iter()
        .filter(|backup| chain.can_start_from(backup))
        .collect();
    backups.sort_by_key(|backup| std::cmp::Reverse((backup.stop_lsn, backup.finished_at)));
    backups
}

fn unfinished(
    entry: &Unfinished,
    newer_exists: bool,
    policy: &RetentionPolicy,
    now: DateTime<Utc>,
) -> BackupFate {
    let last_sign = entry.last_sign;
    let silent_for = |grace: TimeDelta| last_sign <= before(now, grace);
    let pending_grace = policy.window.unwrap_or_default().max(PENDING_GRACE);
    let (keep, reason) = match entry.state {
        _ if let Some(why) = entry.lost_record(now) => (true, Reason::LostRecord { why }),
        UnfinishedState::WaitingForWal if silent_for(pending_grace) && newer_exists => {
            (false, Reason::NeverFinished { last_sign })
        }
        UnfinishedState::WaitingForWal => (true, Reason::WaitingForWal),
        UnfinishedState::Started if silent_for(GRACE) => (false, Reason::NeverFinished { last_sign }),
        UnfinishedState::Started => (true, Reason::Running { last_sign }),
        UnfinishedState::Remains if silent_for(GRACE) => (false, Reason::Remains),
        UnfinishedState::Remains => (true, Reason::FreshRemains { last_sign }),
    };
    BackupFate {
        id: entry.id.clone(),
        finished_at: None,
        stored_bytes: None,
        action: if keep {
            Action::KeepStandAlone
        } else {
            Action::Delete
        },
        reasons: vec![reason],
    }
}

/// The oldest of these backups from which recovery leads along this chain.
pub(super) fn lead_to<'a>(
    catalogue: &'a Catalogue,
    points_in_time: &BTreeSet<BackupId>,
    chain: &TimelineChain<'_>,
) -> Option<&'a Backup> {
    newest_first(catalogue, chain)
        .into_iter()
        .rfind(|backup| points_in_time.contains(&backup.id))
}

/// Whether a timeline's WAL may go although no point-in-time backup lies after it: it is a branch to which nothing was
/// written for long.
pub(super) fn is_dead(
    catalogue: &Catalogue,
    living: &[TimelineId],
    timeline: TimelineId,
    cutoff: DateTime<Utc>,
) -> bool {
    let newest = catalogue.wal.newest_stored(timeline);
    !living.contains(&timeline) && newest.is_some_and(|newest| newest <= cutoff)
}
