//! The schedule as people read it: 80 columns wide.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{JobReport, ScheduleReport};
use crate::text::{span, write_table};

const WIDTH: usize = 80;
/// A cron expression is cut after this many characters. JSON has all of it.
const PATTERN: usize = 18;
const INDENT: &str = "  ";

impl fmt::Display for ScheduleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.jobs.is_empty() {
            return wrapped(
                f,
                "",
                "Nothing is planned. Set schedule.basebackup = \"30 2 * * *\" or the like, see docs/schedule.md.",
            );
        }
        let rows = self.jobs.iter().map(|job| {
            vec![
                job.job.to_string(),
                planned(job),
                self.last(job),
                result(job),
                self.next(job),
            ]
        });
        let headings = ["JOB", "SCHEDULE", "LAST RUN", "RESULT", "NEXT RUN"];
        write_table(&headings, rows.collect(), f)?;
        for job in &self.jobs {
            self.write_notes(job, f)?;
        }
        if !self.agent_answers {
            wrapped(
                f,
                "",
                "No agent answers: nothing is run. Start one with walship agent --pgdata DIR.",
            )?;
        }
        Ok(())
    }
}

impl ScheduleReport {
    fn ago(&self, moment: DateTime<Utc>) -> String {
        let ago = (self.now - moment).to_std().unwrap_or(Duration::ZERO);
        format!("{} ago", span(ago))
    }

    fn last(&self, job: &JobReport) -> String {
        let began = job.past.started_at;
        began.map_or_else(|| "–".to_owned(), |began| self.ago(began))
    }

    fn next(&self, job: &JobReport) -> String {
        match job.next_at {
            None if job.on_events => "on events".to_owned(),
            None => "–".to_owned(),
            Some(next) if next <= self.now => "now".to_owned(),
            Some(next) => self.timetable.shown(next),
        }
    }

    /// What does not fit into the table.
    fn write_notes(&self, job: &JobReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = job.job;
        if job.succeeded == Some(false) {
            let why = job.past.why.map_or_else(String::new, |why| format!(" ({why})"));
            let said = job.past.said.as_deref().unwrap_or("it said nothing");
            wrapped(f, INDENT, &format!("{name}{why}: {said}"))?;
            let success = match job.past.succeeded_at {
                Some(at) => format!("{name} last succeeded {}", self.ago(at)),
                None => format!("{name} has never succeeded"),
            };
            wrapped(f, INDENT, &success)?;
        }
        if let Some(left_out) = &job.past.left_out {
            let at = self.ago(left_out.at);
            wrapped(f, INDENT, &format!("{name} was left out {at}: {}", left_out.why))?;
        }
        Ok(())
    }
}

fn planned(job: &JobReport) -> String {
    match &job.pattern {
        None if job.on_events => "on events".to_owned(),
        None => "no more".to_owned(),
        Some(pattern) if pattern.chars().count() > PATTERN => {
            let cut: String = pattern.chars().take(PATTERN - 1).collect();
            format!("{cut}…")
        }
        Some(pattern) => pattern.clone(),
    }
}

fn result(job: &JobReport) -> String {
    match (job.past.process_id, job.succeeded, job.past.exit_code) {
        (Some(_), ..) => "runs".to_owned(),
        (None, None, _) => "–".to_owned(),
        (None, Some(true), Some(0)) => "ok".to_owned(),
        (None, Some(true), _) => "ok, warnings".to_owned(),
        (None, Some(false), Some(code)) if code > 128 => format!("signal {}", code - 128),
        (None, Some(false), Some(code)) => format!("exit code {code}"),
        (None, Some(false), None) => "cut off".to_owned(),
    }
}

/// Lines of words, each begun with `indent`.
fn wrapped(f: &mut fmt::Formatter<'_>, indent: &str, text: &str) -> fmt::Result {
    let mut row = indent.to_owned();
    for word in text.split_whitespace() {
        let is_new = row.trim().is_empty();
        if !is_new && row.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(f, "{row}")?;
            row = format!("{indent}{indent}");
        } else if !is_new {
            row.push(' ');
        }
        row.push_str(word);
    }
    writeln!(f, "{row}")
}
