//! `walship doctor` against faults that are planted, one by one, on real servers and stores.

mod archive;
mod primary;
mod promotion;
mod standby;
mod store;

use std::fmt::Write as _;
use std::fs::{File, FileTimes, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use walship_core::pg::Major;

use crate::server::archiving_primary;
use crate::support::postgres::Cluster;
use crate::support::stores::Place;
use crate::support::walship::{Walship, binary};

pub const PATIENCE: Duration = Duration::from_mins(2);
/// How long a planted fault may take to show, as a setting that is reloaded does.
const TO_SHOW: Duration = Duration::from_secs(25);

/// walship with a cluster's connection in its environment.
pub fn beside(cluster: &Cluster, walship: &Walship) -> Walship {
    walship
        .clone()
        .env("PGHOST", cluster.socket_dir())
        .env("PGPORT", cluster.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres")
        // How full this machine's disk is, is no matter of the tests.
        .env("WALSHIP_DOCTOR_IGNORE", "host.pg_wal_space")
}

/// A primary with nothing wrong: it archives, and a backup is in the archive.
pub fn healthy_primary(major: Major, place: &Place) -> (Cluster, Walship) {
    let walship = Walship::at(place);
    let mut cluster = archiving_primary(major, &walship);
    // What the tests' clusters are made without, for speed.
    cluster.stop(crate::support::postgres::Stop::Fast);
    cluster.run_program(
        "pg_checksums",
        &["--enable", "-D", cluster.data_dir().to_str().unwrap()],
    );
    for (name, value) in [
        ("fsync", "on"),
        ("archive_timeout", "60"),
        ("max_slot_wal_keep_size", "64MB"),
        ("checkpoint_timeout", "1h"),
    ] {
        cluster.set(name, value);
    }
    cluster.start();
    cluster.sql("create table t (i int)");
    let walship = beside(&cluster, &walship);
    walship.run(&["basebackup"]).succeeded();
    (cluster, walship)
}

/// One run of the doctor.
#[derive(Debug)]
pub struct Visit {
    pub code: i32,
    pub report: Value,
    pub took: Duration,
}

pub fn visit(walship: &Walship, args: &[&str]) -> Visit {
    let begun = Instant::now();
    let args: Vec<&str> = ["doctor", "--json"].iter().chain(args).copied().collect();
    let output = walship.run(&args);
    let report = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"));
    Visit {
        code: output.code.unwrap(),
        report,
        took: begun.elapsed(),
    }
}

impl Visit {
    pub fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().unwrap()
    }

    /// The finding of this check at this level.
    pub fn find(&self, check: &str, level: &str) -> Option<&Value> {
        let mut findings = self.findings().iter();
        findings.find(|finding| finding["id"] == check && finding["level"] == level)
    }

    /// Everything that is not well.
    pub fn wrong(&self) -> Vec<String> {
        let wrong = self
            .findings()
            .iter()
            .filter(|finding| !matches!(finding["level"].as_str(), Some("ok" | "info")));
        wrong
            .map(|finding| format!("{} {}", finding["level"], finding["id"]))
            .collect()
    }
}

/// Plants faults and collects those that were not found, so that one run tells about all.
#[derive(Default)]
pub struct Ward {
    planted: usize,
    missed: String,
}

impl Ward {
    /// Runs the doctor until it finds this, with a fix that has these words; the fault is in place.
    pub fn expect(&mut self, fault: &str, walship: &Walship, (check, level, fix): (&str, &str, &str)) {
        self.planted += 1;
        let deadline = Instant::now() + TO_SHOW;
        loop {
            let visit = visit(walship, &[]);
            let found = visit.find(check, level);
            let named =
                found.is_some_and(|finding| finding["fix"].as_str().unwrap_or_default().contains(fix));
            let counts = visit.code == if level == "problem" { 2 } else { 1 } || visit.code == 2;
            if named && counts {
                return;
            }
            if Instant::now() > deadline {
                let _ = writeln!(
                    self.missed,
                    "{fault}: no {level} of {check} with the fix {fix:?}; exit {}, wrong: {:?}, found: {found:?}",
                    visit.code,
                    visit.wrong()
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs the doctor until it finds nothing wrong: every fault was taken back.
    pub fn healed(&mut self, walship: &Walship) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let visit = visit(walship, &[]);
            if visit.code == 0 {
                return;
            }
            if Instant::now() > deadline {
                let _ = writeln!(self.missed, "not healed: {:#?}", visit.wrong());
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[track_caller]
    pub fn discharge(self, at_least: usize) {
        assert!(
            self.missed.is_empty(),
            "of {} faults:\n{}",
            self.planted,
            self.missed
        );
        assert!(self.planted >= at_least, "{} faults", self.planted);
    }
}

/// The archive command of the tests' servers.
pub fn push_command() -> String {
    format!("{} push %p", binary().display())
}

pub fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// As if it had been written eleven minutes ago.
pub fn made_old(path: &Path) {
    let then = SystemTime::now() - Duration::from_mins(11);
    let file = File::options().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(then)).unwrap();
}
