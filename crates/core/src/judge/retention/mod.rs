//! Retention: which backups and which WAL stay, and why; decided here, done by `walship expire`.
//!
//! A plan names a reason for everything that is kept and everything that is deleted. Whatever is in
//! doubt (a record, a history or a mark that cannot be read) makes the whole plan an error.
//!
//! # Whose clock
//! `now` is the earlier of the store's clock and this machine's: every rule keeps more at an earlier moment. The last
//! sign of an unfinished backup, and when WAL was stored, are by the store's clock alone. The ends of backups, the
//! promised moments and the recovery targets are by the database server's clock.
//!
//! # Timelines
//! Timelines are followed through their histories. From each backup that the window or the number of newest backups
//! keeps, recovery can go on: all WAL after it stays, on every timeline that descends from it. Other backups stand
//! alone: they keep only the WAL that they cannot be restored without.

mod choose;
mod histories;
mod periods;
mod policy;
#[cfg(test)]
mod tests;
mod wal;

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

pub use self::policy::RetentionPolicy;
use super::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::format::backup::WalRange;
use crate::format::keys::BackupId;
use crate::format::released::TimelineRanges;
use crate::format::wal_inventory::SegmentRange;
use crate::pg::{Lsn, TimelineId};
use crate::text::time_text;

/// How long after its last sign an incomplete backup counts as running.
const GRACE: TimeDelta = TimeDelta::days(1);
/// How long a complete copy waits for its WAL, at least.
const PENDING_GRACE: TimeDelta = TimeDelta::days(7);
/// How long WAL of a branch stays after its newest WAL was stored, at least.
const BRANCH_GRACE: TimeDelta = TimeDelta::days(7);

/// What stays and what goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetentionPlan {
    /// The moment for which it was made.
    pub now: DateTime<Utc>,
    /// Every moment from here on is promised; `None` if the policy has no window.
    pub window_start: Option<DateTime<Utc>>,
    /// Every backup there is, finished or not, in the order of the ids.
    pub backups: Vec<BackupFate>,
    /// Every WAL segment there is, in ranges.
    pub wal: Vec<WalFate>,
    /// The segments that may go, including absent ones.
    #[serde(skip)]
    pub deletable_wal: TimelineRanges,
}

/// What happens to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It stays. A backup: with all WAL after it.
    Keep,
    /// A backup stays with only the WAL that it cannot be restored without.
    KeepStandAlone,
    /// It goes.
    Delete,
}

/// What happens to a backup, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupFate {
    /// Its id.
    pub id: BackupId,
    /// When it ended; `None` if it never did, or that cannot be known.
    pub finished_at: Option<DateTime<Utc>>,
    /// Its bytes in the store, where known.
    pub stored_bytes: Option<u64>,
    /// What happens to it.
    pub action: Action,
    /// Why, at least one.
    pub reasons: Vec<Reason>,
}

/// Why a backup stays or goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum Reason {
    /// It ended within the window.
    InWindow,
    /// The newest of a timeline's chain that ended before the window: the window's first moment is recovered from it.
    WindowStart {
        /// The timeline.
        timeline: TimelineId,
    },
    /// The newest one always stays.
    Newest,
    /// One of the newest.
    AmongNewest {
        /// How many of the newest stay.
        keep_backups: u32,
    },
    /// The newest of a day.
    Daily {
        /// `2026-11-23`.
        period: String,
    },
    /// The newest of a week.
    Weekly {
        /// `2026-W48`.
        period: String,
    },
    /// The newest of a month.
    Monthly {
        /// `2026-11`.
        period: String,
    },
    /// The newest of a year.
    Yearly {
        /// `2026`.
        period: String,
    },
    /// `walship keep` marked it.
    Kept {
        /// Until when; for ever where absent.
        until: Option<DateTime<Utc>>,
    },
    /// It has a record and cannot be restored.
    Unrestorable {
        /// Why.
        why: String,
    },
    /// It runs.
    Running {
        /// When there was a sign of it.
        last_sign: DateTime<Utc>,
    },
    /// Everything is there but its WAL.
    WaitingForWal,
    /// Another run may still be deleting what is left of it.
    FreshRemains {
        /// When the newest of its objects was stored.
        last_sign: DateTime<Utc>,
    },
    /// No rule keeps it.
    NotNeeded,
    /// No rule keeps it, and the mark of `walship keep` holds no longer.
    KeepIsOver {
        /// Until when it held.
        until: Option<DateTime<Utc>>,
    },
    /// It was begun and never finished.
    NeverFinished {
        /// When there was a last sign of it.
        last_sign: DateTime<Utc>,
    },
    /// Only remains of it are left.
    Remains,
    /// Its `backup.json` is gone, and walship has not deleted it.
    LostRecord {
        /// How that is known.
        why: String,
    },
}

/// What happens to a range of WAL, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalFate {
    /// The segments, on one timeline.
    #[serde(flatten)]
    pub range: SegmentRange,
    /// What happens to them.
    pub action: Action,
    /// Why.
    #[serde(flatten)]
    pub reason: WalReason,
}

/// Why WAL stays or goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum WalReason {
    /// Recovery from this backup, and from later ones, reads it.
    Recovery {
        /// The oldest backup it is needed for.
        from_backup: BackupId,
    },
    /// A backup cannot be restored, or completed, without it.
    Backup {
        /// The backup.
        backup: BackupId,
    },
    /// A backup is starting, and which WAL it will need is not known yet.
    BackupStarts {
        /// The backup.
        backup: BackupId,
    },
    /// No backup leads to it, and nothing says that none will.
    NoBackup,
    /// It lies before a backup that recovery starts from.
    BeforeBackup {
        /// The backup.
        backup: BackupId,
    },
    /// It lies on a branch that no kept backup leads to, and nothing was stored there for long.
    DeadBranch {
        /// When the branch's newest WAL was stored.
        last_stored: Option<DateTime<Utc>>,
    },
}

/// Which WAL an unfinished backup needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnfinishedWal {
    /// These ranges: it waits for them.
    Ranges(Vec<WalRange>),
    /// Nothing before this position: it runs.
    From {
        /// The timeline of the position.
        timeline: TimelineId,
        /// The position.
        lsn: Lsn,
    },
    /// It runs, and what it needs is not known yet.
    Unknown,
    /// The object that says it cannot be read.
    Unreadable(String),
}

/// Which WAL each unfinished backup needs. One without an entry needs none.
pub type UnfinishedWals = BTreeMap<BackupId, UnfinishedWal>;

/// The plan of an expiry that would run now, only for display: what unfinished backups need is not looked up.
///
/// # Errors
/// As [`plan`].
pub fn preview(catalogue: &Catalogue, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<RetentionPlan> {
    plan(catalogue, &UnfinishedWals::new(), policy, now)
}

/// Decides what stays and what goes. `now`: see the module.
///
/// # Errors
/// `Invalid` for a policy that keeps nothing; `Corrupt` or `Conflict`, naming what is in doubt, if something that must
/// be known cannot be read.
pub fn plan(
    catalogue: &Catalogue,
    unfinished: &UnfinishedWals,
    policy: &RetentionPolicy,
    now: DateTime<Utc>,
) -> Result<RetentionPlan> {
    policy.check()?;
    refuse_doubt(catalogue, unfinished)?;
    let histories = histories::Histories::of(catalogue)?;
    let choice = choose::choose(catalogue, &histories, policy, now)?;
    let branch_cutoff = before(now, policy.window.unwrap_or_default().max(BRANCH_GRACE));
    let wal = wal::choose(catalogue, &histories, &choice, unfinished, branch_cutoff)?;
    Ok(RetentionPlan {
        now,
        window_start: policy.window.map(|window| before(now, window)),
        backups: choice.fates,
        wal: wal.fates,
        deletable_wal: wal.deletable,
    })
}

/// A moment earlier by `time`; at most the beginning of time.
fn before(moment: DateTime<Utc>, time: TimeDelta) -> DateTime<Utc> {
    moment
        .checked_sub_signed(time)
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}

fn refuse_doubt(catalogue: &Catalogue, unfinished: &UnfinishedWals) -> Result<()> {
    let unreadable = catalogue.unrestorable.iter().find(|entry| entry.backup.is_none());
    if let Some(entry) = unreadable {
        return Err(Error::corrupt(format!(
            "the record of backup {} cannot be used, so it is not known what the backup needs; nothing was deleted: {}. See \
             walship verify; if the backup is worth nothing, delete its backup.json by hand",
            entry.id, entry.reason
        )));
    }
    if let Some((id, why)) = catalogue.unreadable_keeps.first_key_value() {
        return Err(Error::corrupt(format!(
            "the mark of backup {id} that says whether it is kept cannot be read; nothing was deleted: {why}. Set it anew with \
             walship keep {id}, or remove it with walship keep {id} --release"
        )));
    }
    for (id, wal) in unfinished {
        if let UnfinishedWal::Unreadable(why) = wal {
            return Err(Error::corrupt(format!(
                "which WAL the unfinished backup {id} needs cannot be read; nothing was deleted: {why}. If it is not worth \
                 completing, delete its pending.json by hand"
            )));
        }
    }
    Ok(())
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::KeepStandAlone => "stand alone",
            Self::Delete => "DELETE",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InWindow => f.write_str("in the window"),
            Self::WindowStart { timeline } => write!(f, "start of the window on timeline {timeline}"),
            Self::Newest => f.write_str("newest"),
            Self::AmongNewest { keep_backups } => write!(f, "among the {keep_backups} newest"),
            Self::Daily { period } => write!(f, "daily {period}"),
            Self::Weekly { period } => write!(f, "weekly {period}"),
            Self::Monthly { period } => write!(f, "monthly {period}"),
            Self::Yearly { period } => write!(f, "yearly {period}"),
            Self::Kept { until: None } => f.write_str("kept for ever"),
            Self::Kept { until: Some(until) } => write!(f, "kept until {}", time_text(*until)),
            Self::Unrestorable { why } => write!(f, "cannot be restored: {why}"),
            Self::Running { last_sign } => write!(f, "runs, last sign {}", time_text(*last_sign)),
            Self::WaitingForWal => f.write_str("waits for its WAL"),
            Self::FreshRemains { last_sign } => {
                write!(f, "remains, the newest stored {}", time_text(*last_sign))
            }
            Self::NotNeeded => f.write_str("no rule keeps it"),
            Self::KeepIsOver { until } => match until {
                Some(until) => write!(f, "was kept until {}", time_text(*until)),
                None => f.write_str("no rule keeps it"),
            },
            Self::NeverFinished { last_sign } => {
                write!(f, "was never finished, last sign {}", time_text(*last_sign))
            }
            Self::Remains => f.write_str("remains of a deleted backup"),
            Self::LostRecord { why } => write!(
                f,
                "its backup.json is lost, because {why}: bring it back, or delete the rest by hand"
            ),
        }
    }
}

impl fmt::Display for WalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recovery { from_backup } => write!(f, "recovery from backup {from_backup} on"),
            Self::Backup { backup } => write!(f, "backup {backup} needs it"),
            Self::BackupStarts { backup } => {
                write!(
                    f,
                    "it is not known which WAL backup {backup} needs; it goes at a later run"
                )
            }
            Self::NoBackup => f.write_str("no kept backup leads to it; it stays for a while"),
            Self::BeforeBackup { backup } => write!(f, "before backup {backup}"),
            Self::DeadBranch { last_stored } => match last_stored {
                Some(stored) => write!(
                    f,
                    "a branch no backup leads to, its newest stored {}",
                    time_text(*stored)
                ),
                None => f.write_str("a branch no backup leads to"),
            },
        }
    }
}
