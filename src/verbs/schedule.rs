//! `walship schedule`: what the agent of a data directory runs by itself, how that ended, and what comes next.
//!
//! It reads what the agent noted, and reckons with the settings that it finds itself. With other settings than the
//! agent's it tells of another schedule.

mod args;
mod text;

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub use self::args::ScheduleArgs;
use crate::config::{OnEvent, Settings};
use crate::edge::schedule::{StateFile, Timetable};
use crate::error::Result;
use crate::judge::schedule::{Job, JobPast, Outcome, Why};

/// What is planned, and what became of it.
#[derive(Debug, Serialize)]
pub struct ScheduleReport {
    /// The file in which the agent notes how its jobs ended.
    pub state_file: PathBuf,
    /// Whether an agent answers. Without one nothing is run.
    pub agent_answers: bool,
    /// The jobs that are planned, or were once run.
    pub jobs: Vec<JobReport>,
    /// The moment that all this is about.
    pub now: DateTime<Utc>,
    #[serde(skip)]
    timetable: Timetable,
}

/// One job.
#[derive(Debug, Serialize)]
pub struct JobReport {
    /// Which one.
    pub job: Job,
    /// When it is run, as a cron expression; null where it is not.
    pub pattern: Option<String>,
    /// Whether an event leads to it as well.
    pub on_events: bool,
    /// When it is run next; null where that is not planned.
    pub next_at: Option<DateTime<Utc>>,
    /// Why it will be run then.
    pub next_why: Option<Why>,
    /// Whether its last run succeeded; null where there was none, or while it runs.
    pub succeeded: Option<bool>,
    /// What happened so far.
    #[serde(flatten)]
    pub past: JobPast,
}

/// Reads what happened, and reckons what comes.
///
/// # Errors
/// `Corrupt`, `Invalid` and `Internal` where the state cannot be read.
fn run(
    settings: &Settings,
    file: &StateFile,
    agent_answers: bool,
    now: DateTime<Utc>,
) -> Result<ScheduleReport> {
    let state = file.read()?;
    let timetable = Timetable::new(settings)?;
    let schedule = &settings.schedule;
    let has_events = [schedule.on_gap, schedule.on_new_timeline].contains(&OnEvent::Basebackup);
    let job = |job| {
        let past = state.of(job);
        let next = timetable.next(job, &past, now);
        let outcome = past.outcome(job);
        JobReport {
            job,
            pattern: timetable.plan.patterns.get(&job).map(ToString::to_string),
            on_events: job == Job::Basebackup && has_events,
            next_at: next.map(|next| next.at),
            next_why: next.map(|next| next.why),
            succeeded: outcome.map(|outcome| outcome == Outcome::Succeeded),
            past,
        }
    };
    let is_shown = |job: &JobReport| job.pattern.is_some() || job.on_events || job.past.started_at.is_some();
    Ok(ScheduleReport {
        jobs: Job::ALL.into_iter().map(job).filter(is_shown).collect(),
        state_file: file.path().to_owned(),
        agent_answers,
        now,
        timetable,
    })
}
