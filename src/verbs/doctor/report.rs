//! The diagnosis for people, for programs, and for Nagios.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::edge::notify::JobReport;
use crate::judge::diagnosis::{Check, Finding, Level};
use crate::text::{counted, time_text};

#[derive(Debug, Clone, Serialize)]
pub struct DoctorReport {
    /// The most serious level found.
    pub status: Level,
    /// One line.
    pub summary: String,
    /// By this machine's clock.
    pub checked_at: DateTime<Utc>,
    /// Everything that was looked at, the most serious first.
    pub findings: Vec<Finding>,
}

impl DoctorReport {
    pub(super) fn new(mut findings: Vec<Finding>, ignore: &[Check], now: DateTime<Utc>) -> Self {
        for finding in &mut findings {
            if ignore.contains(&finding.check) && finding.level > Level::Info {
                finding.level = Level::Info;
                finding.message = format!("(ignored) {}", finding.message);
            }
        }
        // Stable: within a level the order of the checks stays.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.level.max(Level::Info)));
        let status = findings
            .iter()
            .map(|finding| finding.level)
            .max()
            .filter(|level| *level > Level::Info)
            .unwrap_or(Level::Ok);
        Self {
            status,
            summary: summary(status, &findings),
            checked_at: now,
            findings,
        }
    }

    /// For Nagios: 0 is well, 1 a warning, 2 a problem. What could not be looked at counts as a warning, because
    /// silence is not health.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.status {
            Level::Ok | Level::Info => 0,
            Level::Unknown | Level::Warning => 1,
            Level::Problem => 2,
        }
    }

    /// 0 if the standby may be promoted, 2 if not: anything but 0 in [`DoctorReport::exit_code`] refuses.
    #[must_use]
    pub fn promote_exit_code(&self) -> u8 {
        if self.exit_code() == 0 { 0 } else { 2 }
    }
}

fn summary(status: Level, findings: &[Finding]) -> String {
    let of = |level: Level| findings.iter().filter(move |finding| finding.level == level);
    let word = match status {
        Level::Ok | Level::Info => return format!("OK: {} checks, nothing is wrong", findings.len()),
        Level::Unknown | Level::Warning => "WARNING",
        Level::Problem => "PROBLEM",
    };
    let mut names: Vec<&str> = Vec::new();
    for level in [Level::Problem, Level::Warning, Level::Unknown] {
        for finding in of(level) {
            if !names.contains(&finding.check.id()) {
                names.push(finding.check.id());
            }
        }
    }
    let unknown = match of(Level::Unknown).count() {
        0 => String::new(),
        count => format!(", {count} not known"),
    };
    format!(
        "{word}: {}, {}{unknown}: {}",
        counted(of(Level::Problem).count() as u64, "problem"),
        counted(of(Level::Warning).count() as u64, "warning"),
        names.join(" ")
    )
}

impl JobReport for DoctorReport {
    fn wrong(&self) -> Option<String> {
        // The most serious are the first. What is a warning is looked up.
        let problems = || {
            self.findings
                .iter()
                .filter(|finding| finding.level == Level::Problem)
        };
        let first = problems().next()?;
        let more = match problems().count() - 1 {
            0 => String::new(),
            more => format!("; and {}", counted(more as u64, "more problem")),
        };
        Some(format!("{}: {}{more}", first.check, one_line(&first.message)))
    }
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "walship {} ({})", self.summary, time_text(self.checked_at))?;
        let width = self
            .findings
            .iter()
            .map(|finding| finding.check.id().len())
            .max()
            .unwrap_or(0);
        for finding in &self.findings {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Info => "info",
                Level::Unknown => "unknown",
                Level::Warning => "WARNING",
                Level::Problem => "PROBLEM",
            };
            writeln!(
                f,
                "{level:<7}  {:<width$}  {}",
                finding.check,
                one_line(&finding.message)
            )?;
            if let Some(fix) = &finding.fix {
                writeln!(f, "{:<7}  {:<width$}  fix: {}", "", "", one_line(fix))?;
            }
        }
        Ok(())
    }
}

/// Names and messages from elsewhere must not break the line.
fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(clean).collect()
}
