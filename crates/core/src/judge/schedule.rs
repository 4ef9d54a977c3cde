//! Which job is due: what was planned, what happened so far and the moment go in, and what to start comes out.
//!
//! A *slot* is a moment that a cron expression names. What holds:
//! - Of all slots that passed while nobody could run them, the last one is run, once.
//! - A slot is settled when its job starts, and is never run again, not even when the clock goes back a little.
//! - A job that failed is tried again a few times, after growing pauses, until its next slot comes.
//! - The same slot is always put off by the same time (jitter), and at most half-way to the slot after it.

mod past;
mod pattern;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::past::{FORMAT_VERSION, JobPast, LeftOut, ScheduleState, WITH_ITS_AGENT};
pub use self::pattern::Pattern;
use crate::format::keys::BackupId;

/// A job that failed is tried again after these pauses, and then no more before its next slot.
pub const PAUSES: [TimeDelta; 3] = [
    TimeDelta::minutes(1),
    TimeDelta::minutes(5),
    TimeDelta::minutes(15),
];

/// A run that begins this much later than planned was missed.
const LATE: TimeDelta = TimeDelta::minutes(2);

/// A clock that went back by no more than this was put right. A moment further ahead was noted by a clock that was wrong.
const PUT_RIGHT: TimeDelta = TimeDelta::hours(1);

/// Extra backups are counted within this time.
const DAY: TimeDelta = TimeDelta::days(1);

/// A running backup shows a sign of life every 30 s. One that is silent for this long has ended.
const SILENT: TimeDelta = TimeDelta::minutes(3);

/// The clocks of two hosts agree to within this.
const CLOCKS_AGREE: TimeDelta = TimeDelta::minutes(1);

/// The longest pause is looked for among this many runs, and within [`FAR`].
const RUNS: usize = 3000;
const FAR: TimeDelta = TimeDelta::days(800);

/// A command that is run on a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// `walship basebackup`.
    Basebackup,
    /// `walship expire`.
    Expire,
    /// `walship verify`.
    Verify,
    /// `walship drill`.
    Drill,
    /// `walship doctor`.
    Doctor,
}

impl Job {
    /// Every job.
    pub const ALL: [Self; 5] = [
        Self::Basebackup,
        Self::Expire,
        Self::Verify,
        Self::Drill,
        Self::Doctor,
    ];

    /// The command's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Basebackup => "basebackup",
            Self::Expire => "expire",
            Self::Verify => "verify",
            Self::Drill => "drill",
            Self::Doctor => "doctor",
        }
    }

    /// What an exit code of the command means for its schedule (`docs/exit-codes.md`).
    #[must_use]
    pub fn outcome(self, exit_code: Option<i32>) -> Outcome {
        match (self, exit_code) {
            // Doctor's 1 is a warning: it did its work.
            (_, Some(0)) | (Self::Doctor, Some(1)) => Outcome::Succeeded,
            // What a verification, a drill or doctor found does not go away by running it again. Expiry did the rest where
            // the store did not let go of something. A backup that waits for its WAL is stored.
            (Self::Verify, Some(7))
            | (Self::Drill, Some(9))
            | (Self::Expire, Some(6))
            | (Self::Basebackup, Some(8))
            | (Self::Doctor, Some(2)) => Outcome::Failed,
            _ => Outcome::TryAgain,
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did its work.
    Succeeded,
    /// It failed, or found something wrong, and would again.
    Failed,
    /// It failed, and may succeed later.
    TryAgain,
}

/// Why a job is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Its time has come.
    Scheduled,
    /// Its time came while nobody could run it.
    Missed,
    /// It failed before.
    Retry,
    /// WAL is missing after the newest backup.
    Gap,
    /// There is no backup of the server's timeline.
    NewTimeline,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheduled => "scheduled",
            Self::Missed => "missed before",
            Self::Retry => "tried again",
            Self::Gap => "after a gap in the WAL",
            Self::NewTimeline => "on a new timeline",
        })
    }
}

/// When a job is started next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// When it is due. A moment that has passed means now.
    pub at: DateTime<Utc>,
    /// The slot that is settled by it; `None` for another try.
    pub slot: Option<DateTime<Utc>>,
    /// Why.
    pub why: Why,
}

/// What is to be run, and when.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// When each job is run. A job without an entry is not.
    pub patterns: BTreeMap<Job, Pattern>,
    /// A run is put off by less than this.
    pub jitter: Duration,
    /// Hosts with different seeds put the same slot off differently.
    pub seed: String,
}

impl Plan {
    /// The jobs that are due now, each at most once, and none of those that run.
    #[must_use]
    pub fn due<Tz: TimeZone>(
        &self,
        state: &ScheduleState,
        running: &BTreeSet<Job>,
        now: DateTime<Utc>,
        zone: &Tz,
    ) -> Vec<(Job, Next)> {
        let free = Job::ALL.into_iter().filter(|job| !running.contains(job));
        let next = free.filter_map(|job| Some((job, self.next(job, &state.of(job), now, zone)?)));
        next.filter(|(_, next)| next.at <= now).collect()
    }

    /// When a job is started next, if it is planned or is to be tried again.
    #[must_use]
    pub fn next<Tz: TimeZone>(
        &self,
        job: Job,
        past: &JobPast,
        now: DateTime<Utc>,
        zone: &Tz,
    ) -> Option<Next> {
        let slot = self
            .patterns
            .get(&job)
            .and_then(|pattern| self.next_slot(job, pattern, past, now, zone));
        let retry = next_try(past, now);
        match (slot, retry) {
            (Some(slot), Some(retry)) if retry.at < slot.at => Some(retry),
            (slot, retry) => slot.or(retry),
        }
    }

    fn next_slot<Tz: TimeZone>(
        &self,
        job: Job,
        pattern: &Pattern,
        past: &JobPast,
        now: DateTime<Utc>,
        zone: &Tz,
    ) -> Option<Next> {
        let settled = past.settled_slot.filter(|slot| *slot <= now + PUT_RIGHT);
        let first = pattern.after(settled.unwrap_or(now), zone)?;
        // Of several that passed, the last one.
        let last = (first <= now).then(|| pattern.last_until(now, zone)).flatten();
        let slot = last.map_or(first, |last| last.max(first));
        let at = slot + self.put_off(job, pattern, slot, zone);
        let why = if at + LATE < now {
            Why::Missed
        } else {
            Why::Scheduled
        };
        Some(Next {
            at,
            slot: Some(slot),
            why,
        })
    }

    /// By how much a slot is put off: always the same, less than the jitter, and at most half-way to the next slot, which
    /// would otherwise replace it.
    fn put_off<Tz: TimeZone>(
        &self,
        job: Job,
        pattern: &Pattern,
        slot: DateTime<Utc>,
        zone: &Tz,
    ) -> TimeDelta {
        let jitter = TimeDelta::from_std(self.jitter).unwrap_or(DAY);
        let until_next = pattern.after(slot, zone).map(|next| (next - slot) / 2);
        let limit = until_next.map_or(jitter, |until| until.min(jitter));
        let Some(limit) = u64::try_from(limit.num_milliseconds())
            .ok()
            .filter(|limit| *limit > 0)
        else {
            return TimeDelta::zero();
        };
        let mut hash = Sha256::new();
        hash.update(&self.seed);
        hash.update([0]);
        hash.update(job.name());
        hash.update(slot.timestamp().to_be_bytes());
        let hash = hash.finalize();
        let number = hash
            .iter()
            .take(8)
            .fold(0, |number, byte| (number << 8) | u64::from(*byte));
        TimeDelta::milliseconds((number % limit) as i64)
    }

    /// The longest time between two runs of a job that follow each other from `now` on.
    #[must_use]
    pub fn longest_pause<Tz: TimeZone>(&self, job: Job, now: DateTime<Utc>, zone: &Tz) -> Option<TimeDelta> {
        let pattern = self.patterns.get(&job)?;
        let mut slot = pattern.after(now, zone)?;
        let mut longest = None;
        for _ in 0..RUNS {
            let Some(next) = pattern.after(slot, zone) else {
                break;
            };
            longest = longest.max(Some(next - slot));
            slot = next;
            if slot - now > FAR {
                break;
            }
        }
        longest
    }
}

/// When a job that failed is tried again.
fn next_try(past: &JobPast, now: DateTime<Utc>) -> Option<Next> {
    let pause = PAUSES.get(past.failed_tries.checked_sub(1)? as usize)?;
    let at = match past.ended_at {
        Some(ended) if ended <= now + PUT_RIGHT => ended + *pause,
        _ => now,
    };
    Some(Next {
        at,
        slot: None,
        why: Why::Retry,
    })
}

/// Whether one more extra backup may be taken, where `taken_at` tells when the others began.
#[must_use]
pub fn may_take_extra(taken_at: &[DateTime<Utc>], limit: u32, now: DateTime<Utc>) -> bool {
    // One that seems to come was noted by another clock, and counts as well.
    let recent = taken_at.iter().filter(|at| (now - **at).abs() < DAY);
    recent.count() < limit as usize
}

/// A backup that somebody began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunBackup {
    /// Its id, which tells when it began.
    pub id: BackupId,
    /// Whether it is complete.
    pub is_finished: bool,
    /// The last sign of it, by the store's clock.
    pub last_sign: DateTime<Utc>,
}

impl BegunBackup {
    /// Whether it shows that it is being taken.
    #[must_use]
    pub fn lives(&self, now: DateTime<Utc>) -> bool {
        !self.is_finished && now - self.last_sign < SILENT
    }
}

/// What other hosts' backups mean for one that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elsewhere {
    /// Nobody takes one.
    No,
    /// One is being taken: wait for its end.
    Running(BackupId),
    /// One was taken since.
    Taken(BackupId),
}

/// Whether a backup that is due is taken by somebody else, or was taken since the moment that made it due. Without such a
/// moment none that was taken counts.
#[must_use]
pub fn elsewhere(begun: &[BegunBackup], since: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Elsewhere {
    let counts =
        |backup: &&BegunBackup| since.is_some_and(|since| backup.id.moment() >= since - CLOCKS_AGREE);
    if let Some(taken) = begun.iter().filter(|backup| backup.is_finished).find(counts) {
        return Elsewhere::Taken(taken.id.clone());
    }
    let running = begun.iter().find(|backup| backup.lives(now));
    running.map_or(Elsewhere::No, |running| Elsewhere::Running(running.id.clone()))
}
