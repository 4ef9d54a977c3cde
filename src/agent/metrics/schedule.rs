//! The jobs that the agent runs, as metrics.

use chrono::{DateTime, Utc};

use crate::agent::schedule::JobStatus;
use crate::edge::exposition::{Family, truth};

pub(super) fn families(jobs: &[JobStatus]) -> Vec<Family> {
    let of = |name, help, value: fn(&JobStatus) -> Option<f64>| {
        let samples = jobs
            .iter()
            .filter_map(|job| Some((vec![("command", job.job.to_string())], value(job)?)));
        Family::gauge(name, help).with(samples)
    };
    vec![
        of(
            "walship_schedule_interval_seconds",
            "Longest time between two runs",
            |job| Some(job.interval_seconds? as f64),
        ),
        of(
            "walship_schedule_next_timestamp_seconds",
            "When the job runs next",
            |job| seconds(job.next),
        ),
        of("walship_schedule_running", "Whether the job runs", |job| {
            Some(truth(job.running))
        }),
        of(
            "walship_schedule_last_start_timestamp_seconds",
            "When the last run began",
            |job| seconds(job.last_start),
        ),
        of(
            "walship_schedule_last_end_timestamp_seconds",
            "When the last run ended",
            |job| seconds(job.last_end),
        ),
        of(
            "walship_schedule_last_success_timestamp_seconds",
            "When a run that succeeded last ended",
            |job| seconds(job.last_success),
        ),
        of(
            "walship_schedule_last_exit_code",
            "Exit code of the last run; -1 where it ended with its agent",
            |job| {
                let cut_off = job.last_end.filter(|_| !job.running).map(|_| -1);
                job.last_exit_code.or(cut_off).map(f64::from)
            },
        ),
    ]
}

fn seconds(at: Option<DateTime<Utc>>) -> Option<f64> {
    Some(at?.timestamp() as f64)
}
