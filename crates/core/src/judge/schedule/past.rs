//! What happened so far, as it stands in the agent's state file (`docs/schedule.md`).

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::{Job, Next, Outcome, Why};
use crate::error::{Error, Result};

/// The version of the state file that this walship writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Extra backups are remembered for this time.
const REMEMBERED: TimeDelta = TimeDelta::days(2);
/// At most this many characters of what a job said are kept.
const SAID: usize = 400;

/// What is noted of a run that had not ended when its agent did.
pub const WITH_ITS_AGENT: &str = "the agent ended while it ran";

/// What happened to all jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The archive's URL, for people.
    pub archive: String,
    /// The data directory, for people.
    pub data_directory: String,
    /// When backups that no slot asked for began, in the last two days.
    #[serde(default)]
    pub extra_at: Vec<DateTime<Utc>>,
    /// The jobs that were ever planned.
    #[serde(default)]
    pub jobs: BTreeMap<Job, JobPast>,
}

/// What happened to one job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobPast {
    /// Neither this slot nor an earlier one is run any more.
    pub settled_slot: Option<DateTime<Utc>>,
    /// Tries that failed since it last succeeded or was given up.
    #[serde(default)]
    pub failed_tries: u32,
    /// When its last run began.
    pub started_at: Option<DateTime<Utc>>,
    /// When its last run ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// When a run that succeeded last ended.
    pub succeeded_at: Option<DateTime<Utc>>,
    /// The exit code of its last run; 128 and the signal where one ended it; null where the agent ended first.
    pub exit_code: Option<i32>,
    /// Why its last run was started.
    pub why: Option<Why>,
    /// The last line that its last run wrote to stderr.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// The process that runs it; absent while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_id: Option<u32>,
    /// The last slot that was not run, if no run came after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
}

/// A slot that was settled without a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// When that was decided.
    pub at: DateTime<Utc>,
    /// Why, for people.
    pub why: String,
}

impl ScheduleState {
    /// Nothing happened yet.
    #[must_use]
    pub fn new(archive: String, data_directory: String) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            archive,
            data_directory,
            extra_at: Vec::new(),
            jobs: BTreeMap::new(),
        }
    }

    /// Reads a state file.
    ///
    /// # Errors
    /// `Corrupt` where it is not one, `Invalid` where a later walship wrote it.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let not_one = |error| Error::corrupt(format!("it is not a state of walship's schedule: {error}"));
        let state: Self = serde_json::from_slice(bytes).map_err(not_one)?;
        if state.format_version > FORMAT_VERSION {
            return Err(Error::invalid(format!(
                "it has format version {}, and this walship knows {FORMAT_VERSION}; use the newer walship, or remove the file",
                state.format_version
            )));
        }
        Ok(state)
    }

    /// The state file's content.
    ///
    /// # Errors
    /// `Internal` for a defect.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let bytes = serde_json::to_vec_pretty(self);
        let mut bytes = bytes.map_err(|error| Error::defect("write the state of the schedule", error))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// What happened to a job.
    #[must_use]
    pub fn of(&self, job: Job) -> JobPast {
        self.jobs.get(&job).cloned().unwrap_or_default()
    }

    /// Slots of a job that is planned for the first time count from now on.
    pub fn planned(&mut self, job: Job, now: DateTime<Utc>) {
        self.jobs.entry(job).or_default().settled_slot.get_or_insert(now);
    }

    /// A run begins.
    pub fn begun(&mut self, job: Job, next: Next, process_id: u32, now: DateTime<Utc>) {
        if matches!(next.why, Why::Gap | Why::NewTimeline) {
            self.extra_at.retain(|at| (now - *at).abs() < REMEMBERED);
            self.extra_at.push(now);
        }
        let past = self.jobs.entry(job).or_default();
        past.settle(next);
        past.started_at = Some(now);
        past.why = Some(next.why);
        past.process_id = Some(process_id);
        past.left_out = None;
    }

    /// A run ended, or could not even begin.
    pub fn ended(
        &mut self,
        job: Job,
        exit_code: Option<i32>,
        said: Option<&str>,
        now: DateTime<Utc>,
    ) -> Outcome {
        let past = self.jobs.entry(job).or_default();
        past.process_id = None;
        past.ended_at = Some(now);
        past.exit_code = exit_code;
        past.said = said.map(|said| said.chars().take(SAID).collect());
        let outcome = job.outcome(exit_code);
        past.failed_tries = match outcome {
            Outcome::TryAgain => past.failed_tries.saturating_add(1),
            Outcome::Succeeded | Outcome::Failed => 0,
        };
        if outcome == Outcome::Succeeded {
            past.succeeded_at = Some(now);
        }
        outcome
    }

    /// A slot passes without a run.
    pub fn left_out(&mut self, job: Job, next: Next, why: String, now: DateTime<Utc>) {
        let past = self.jobs.entry(job).or_default();
        past.settle(next);
        past.failed_tries = 0;
        past.left_out = Some(LeftOut { at: now, why });
    }

    /// Runs that had not ended when the agent did: they ended with it.
    pub fn interrupted(&mut self, now: DateTime<Utc>) -> Vec<Job> {
        let cut = |(job, past): (&Job, &JobPast)| past.process_id.map(|_| *job);
        let cut: Vec<Job> = self.jobs.iter().filter_map(cut).collect();
        for job in &cut {
            self.ended(*job, None, Some(WITH_ITS_AGENT), now);
        }
        cut
    }
}

impl JobPast {
    fn settle(&mut self, next: Next) {
        if let Some(slot) = next.slot {
            self.settled_slot = Some(slot);
        }
        if next.why != Why::Retry {
            self.failed_tries = 0;
        }
    }

    /// How its last run ended; `None` where there was none, or while it runs.
    #[must_use]
    pub fn outcome(&self, job: Job) -> Option<Outcome> {
        (self.ended_at.is_some() && self.process_id.is_none()).then(|| job.outcome(self.exit_code))
    }
}
