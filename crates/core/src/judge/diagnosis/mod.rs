//! What is wrong with a server, its archive and this machine: facts in, findings out. `walship doctor` gathers the
//! facts; nothing is asked here.
//!
//! A fact that could not be found out is there with its reason ([`Fact`]), so a question that fails never hides the
//! answer to another.

mod archive_command;
mod archiver;
mod branches;
mod checks;
mod content;
pub mod facts;
mod host;
mod promotion;
mod proof;
mod replication;
mod settings;
mod store;
mod sync_names;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::Serialize;

pub use archive_command::ArchiveCommand;
pub use checks::Check;
pub use content::gap_after_newest_backup;
pub use promotion::{PromotionFacts, StandbyPosition, Unreplayed, judge_promotion, unreplayed};

use chrono::{DateTime, Utc};
use facts::{ArchiveFacts, Facts, HostFacts, ReadyFiles};

/// A fact, or why it is not known.
pub type Fact<T> = std::result::Result<T, String>;

/// How serious a finding is, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing, and no fault.
    Info,
    /// It could not be checked.
    Unknown,
    /// Something for a person to repair in working hours.
    Warning,
    /// Data, or the ability to recover it, is at stake.
    Problem,
}

/// One line of the diagnosis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    #[serde(rename = "id")]
    pub check: Check,
    /// How serious it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do about it, as a command or a setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

/// Where a finding begins to be a warning.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Age of the newest backup; twice as much is a problem.
    pub backup_age: Duration,
    /// How long a finished segment may wait for the archiver; twelve times as much is a problem.
    pub archive_delay: Duration,
    /// How far a standby may lag behind.
    pub standby_lag: Duration,
    /// Age of the last verification that found nothing wrong.
    pub verify_age: Duration,
    /// Age of the last drill that passed.
    pub drill_age: Duration,
    /// How long one push may take. The archiver may be silent for that long.
    pub push_time: Duration,
}

/// Looks at everything.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings::default();
    match &facts.server {
        Ok(server) => {
            findings.ok(Check::ServerReachable, server.description());
            settings::judge(server, facts, &mut findings);
            archiver::judge(server, facts, &mut findings);
            replication::judge(server, facts, &mut findings);
        }
        Err(why) => findings.problem(
            Check::ServerReachable,
            why,
            "start the server, or say where it is with -d, PGHOST and PGPORT",
        ),
    }
    store::judge(facts, &mut findings);
    content::judge(facts, &mut findings);
    proof::judge(facts, &mut findings);
    host::judge(facts, &mut findings);
    findings.0
}

/// Looks only at what an archive holds, at its verifications and drills, and at the WAL that waits for it: nothing is
/// asked of a server or this machine.
#[must_use]
pub fn judge_archive(
    archive: ArchiveFacts,
    ready: Option<&ReadyFiles>,
    limits: Limits,
    now: DateTime<Utc>,
) -> Vec<Finding> {
    let not_asked = || "not asked".to_owned();
    let facts = Facts {
        now,
        limits,
        server: Err(not_asked()),
        archive: Ok(archive),
        host: HostFacts {
            pg_wal_space: Err(not_asked()),
            exposed_files: Err(not_asked()),
            user: String::new(),
            owner: Err(not_asked()),
            program: Err(not_asked()),
            command_archive: Err(not_asked()),
            remembered: Err(not_asked()),
        },
        expires: false,
    };
    let mut findings = Findings::default();
    if let Some(ready) = ready {
        archiver::backlog(ready, &facts, &mut findings);
    }
    content::judge(&facts, &mut findings);
    proof::judge(&facts, &mut findings);
    findings.0
}

impl Findings {
    fn add(&mut self, check: Check, level: Level, message: impl Into<String>, fix: Option<String>) {
        self.0.push(Finding {
            check,
            level,
            message: message.into(),
            fix,
        });
    }

    fn ok(&mut self, check: Check, message: impl Into<String>) {
        self.add(check, Level::Ok, message, None);
    }

    fn info(&mut self, check: Check, message: impl Into<String>) {
        self.add(check, Level::Info, message, None);
    }

    fn unknown(&mut self, check: Check, why: impl Into<String>) {
        self.add(check, Level::Unknown, why, None);
    }

    fn warning(&mut self, check: Check, message: impl Into<String>, fix: impl Into<String>) {
        self.add(check, Level::Warning, message, Some(fix.into()));
    }

    fn problem(&mut self, check: Check, message: impl Into<String>, fix: impl Into<String>) {
        self.add(check, Level::Problem, message, Some(fix.into()));
    }

    /// The fact, or a finding that says why it is not known.
    fn known<'a, T>(&mut self, check: Check, fact: &'a Fact<T>) -> Option<&'a T> {
        match fact {
            Ok(fact) => Some(fact),
            Err(why) => {
                let fix = why.contains("permission denied").then(|| {
                    "as a superuser: GRANT pg_monitor TO the role that doctor connects as".to_owned()
                });
                self.add(check, Level::Unknown, why, fix);
                None
            }
        }
    }
}
