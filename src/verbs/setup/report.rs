//! What a server lacks, or what was done about it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::plan::{Fix, Item};
use super::round_trip::RoundTrip;
use crate::pg::Major;

/// What a server lacks, or what was done about it.
#[derive(Debug, Clone, Serialize)]
pub struct SetupReport {
    /// The server: role and hosts.
    pub server: String,
    pub postgres_major: Major,
    /// The path of its `pg_hba.conf`.
    pub hba_file: String,
    pub missing: Vec<Item>,
    pub applied: Vec<Item>,
    pub by_hand: Vec<Item>,
    /// Settings that take effect with the next restart.
    pub pending_restart: Vec<String>,
    /// The password file that has the role's new password.
    pub passfile: Option<PathBuf>,
    /// The `pg_hba.conf` that was replaced.
    pub hba_kept: Option<PathBuf>,
    pub round_trip: Option<RoundTrip>,
    /// The server's files are not on this machine.
    #[serde(skip)]
    pub remote: bool,
}

impl SetupReport {
    pub(super) fn new(server: String, major: Major, hba_file: String, missing: Vec<Item>) -> Self {
        Self {
            server,
            postgres_major: major,
            hba_file,
            missing,
            applied: Vec::new(),
            by_hand: Vec::new(),
            pending_restart: Vec::new(),
            passfile: None,
            hba_kept: None,
            round_trip: None,
            remote: false,
        }
    }

    fn write_item(&self, item: &Item, done: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let restart = if item.needs_restart {
            " (needs a restart)"
        } else {
            ""
        };
        writeln!(f, "-- {}{restart}", item.why)?;
        match &item.fix {
            Fix::Sql(sql) if item.name == "role" && !done => {
                writeln!(f, "{sql};  -- and a password for it: \\password in psql")
            }
            Fix::Sql(sql) => writeln!(f, "{sql};"),
            Fix::HbaLines(lines) => {
                let file = &self.hba_file;
                if done {
                    writeln!(f, "-- Added before all other lines of {file}:")?;
                } else {
                    writeln!(
                        f,
                        "-- Add, before all other lines of {file}, and then SELECT pg_reload_conf():"
                    )?;
                }
                lines.iter().try_for_each(|line| writeln!(f, "--   {line}"))
            }
            Fix::ByHand(how) => writeln!(f, "-- By hand: {how}"),
            Fix::Conflict(how) => writeln!(f, "-- CONFLICT: {how}"),
        }
    }

    fn write_restart(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pending_restart.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "-- A restart is needed for: {}. Then run walship setup primary --apply again: it sends a segment \
             into the archive and waits until it is there",
            self.pending_restart.join(", ")
        )
    }
}

impl fmt::Display for SetupReport {
    /// SQL with comments, for a person to read or to run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.applied.is_empty() {
            writeln!(f, "-- Done on {}:", self.server)?;
        }
        for item in &self.applied {
            self.write_item(item, true, f)?;
        }
        if let Some(path) = &self.passfile {
            writeln!(
                f,
                "-- The role's password is in {}: copy that line to the replicas",
                path.display()
            )?;
        }
        if let Some(path) = &self.hba_kept {
            writeln!(f, "-- The old pg_hba.conf is {}", path.display())?;
        }
        let shown_only = self.applied.is_empty() && self.by_hand.is_empty();
        let left = if shown_only { &self.missing } else { &self.by_hand };
        if !left.is_empty() {
            let server = &self.server;
            if shown_only {
                let conflict = left.iter().any(|item| matches!(item.fix, Fix::Conflict(_)));
                let then = if conflict {
                    "decide the conflict before --apply"
                } else {
                    "--apply does it"
                };
                writeln!(f, "-- {server} lacks this. Nothing was changed; {then}:")?;
            } else {
                writeln!(f, "-- Left for a person to do on {server}:")?;
            }
        }
        for item in left {
            self.write_item(item, false, f)?;
        }
        if self.missing.is_empty() {
            writeln!(f, "-- {}: nothing to do", self.server)?;
        }
        if self.remote && !self.missing.is_empty() {
            writeln!(
                f,
                "-- The server's files are not on this machine: the walship in archive_command must be there, with its \
                 configuration"
            )?;
        }
        if let Some(trip) = &self.round_trip {
            writeln!(
                f,
                "-- Archiving works: {} was in the archive {:.1} s after the switch",
                trip.segment, trip.seconds
            )?;
        }
        self.write_restart(f)
    }
}
