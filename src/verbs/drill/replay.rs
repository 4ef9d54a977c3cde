//! The scratch directory and its server: the replay, how far it came, the checks, and the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::DrillOptions;
use super::checks::Access;
use super::programs::Programs;
use super::report::Kept;
use super::scratch::Scratch;
use super::server::{Server, Waited, log_end, log_text};
use super::settings::{HBA, ServerSettings, postgresql_conf};
use crate::error::{Error, Result};
use crate::format::proof::{Check, Outcome};
use crate::judge::recovery_plan::Plan;
use crate::pg::{ControlFile, Lsn, Major, SegmentSize, WalName};
use crate::progress::Progress;
use crate::server::data_directory::read_control_file;
use crate::verbs::drill::checks;

/// The usual superuser, and databases that almost every cluster has.
const USER: &str = "postgres";
const DATABASES: [&str; 2] = ["postgres", "template1"];
/// If the data need larger settings, that becomes known only during replay, and the server is started again.
const STARTS: u32 = 5;

/// A drill's scratch directory, with the server in it.
#[derive(Debug)]
pub struct Workspace {
    scratch: Scratch,
    programs: Programs,
    server: Option<Server>,
    start_lsn: Lsn,
    end_lsn: Lsn,
    segment: SegmentSize,
}

/// Where replay ended.
#[derive(Debug)]
pub struct Reached {
    pub lsn: Lsn,
    /// When the last replayed transaction ended.
    pub newest_commit: Option<DateTime<Utc>>,
    /// The superuser that was asked as.
    pub user: String,
}

impl Workspace {
    #[must_use]
    pub fn new(scratch: Scratch, programs: Programs, plan: &Plan, segment: SegmentSize) -> Self {
        Self {
            scratch,
            programs,
            server: None,
            start_lsn: plan.backup.start_lsn,
            end_lsn: plan.end_lsn,
            segment,
        }
    }

    #[must_use]
    pub fn postgres_version(&self) -> &str {
        &self.programs.version
    }

    /// At most this much WAL is to be replayed.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        self.bytes_to(self.end_lsn)
    }

    /// How much WAL there is from the backup's start to a position.
    #[must_use]
    pub fn bytes_to(&self, lsn: Lsn) -> u64 {
        lsn.0.saturating_sub(self.start_lsn.0)
    }

    /// Starts the server and waits until it has replayed and is open. Returns how long that took, or what speaks
    /// against the archive.
    ///
    /// # Errors
    /// What prevents the server from running, other than the archive.
    pub async fn replay(
        &mut self,
        options: &DrillOptions,
        progress: &Arc<Progress>,
    ) -> Result<std::result::Result<Duration, String>> {
        let begun = Instant::now();
        let mut control = self.control()?;
        for _ in 0..STARTS {
            self.start(options, &control)?;
            let Some(server) = &mut self.server else { break };
            let segment = self.segment.bytes();
            match server
                .wait_open(|segments| progress.advance(segments * segment))
                .await?
            {
                Waited::Open => return Ok(Ok(begun.elapsed())),
                Waited::Ended => {}
            }
            let demanded = self.control()?;
            if demanded.max_prepared_transactions <= control.max_prepared_transactions {
                break;
            }
            control = demanded;
        }
        let log = self.log();
        let reason = log_text(&log);
        match outside_cause(&log_end(&log)) {
            Some(cause) => Err(Error::internal(format!("{cause}: {reason}"))),
            None => Ok(Err(format!(
                "replay ended early: {reason}{}",
                hint(&reason).unwrap_or_default()
            ))),
        }
    }

    fn control(&self) -> Result<ControlFile> {
        let data = self.scratch.data();
        read_control_file(&data)?
            .ok_or_else(|| Error::internal(format!("{} has no global/pg_control", data.display())))
    }

    /// The last WAL file that walship could not deliver to the server.
    pub fn refused(&self) -> Option<WalName> {
        refused_in(&log_end(&self.log()))
    }

    fn log(&self) -> PathBuf {
        self.scratch.path().join("server.log")
    }

    fn start(&mut self, options: &DrillOptions, control: &ControlFile) -> Result<()> {
        let scratch = &self.scratch;
        let conf = postgresql_conf(&ServerSettings {
            major: control.major,
            socket_directory: &scratch.socket_directory(),
            hba_file: &scratch.write("pg_hba.conf", HBA.as_bytes())?,
            ident_file: &scratch.write("pg_ident.conf", b"")?,
            control,
            shared_buffers: options.shared_buffers,
            preload_libraries: &options.preload_libraries,
            version: &self.programs.version,
        });
        let conf = scratch.write("postgresql.conf", conf.as_bytes())?;
        self.server = Some(Server::start(
            self.programs.postgres(),
            &scratch.data(),
            &conf,
            &self.log(),
        )?);
        Ok(())
    }

    fn access<'a>(&self, socket_directory: &'a Path, user: &'a str, options: &DrillOptions) -> Access<'a> {
        Access {
            socket_directory,
            user,
            major: Major::of_version(&self.programs.version),
            limit: options.timeout,
        }
    }

    /// Asks the open server where replay ended.
    ///
    /// # Errors
    /// `Invalid` where there is no superuser to ask as.
    pub async fn reached(&self, options: &DrillOptions) -> Result<Reached> {
        let user = user(options);
        let socket_directory = self.scratch.socket_directory();
        let access = self.access(&socket_directory, user, options);
        let mut refused = None;
        for database in DATABASES {
            let mut connection = match access.connect(database).await {
                Ok(connection) => connection,
                Err(error) => {
                    refused = Some(error);
                    continue;
                }
            };
            let rows = connection.simple_query(QUESTION).await?;
            connection.close().await;
            let [Some(superuser), Some(lsn), newest_commit] = rows
                .into_iter()
                .next()
                .and_then(|row| <[Option<String>; 3]>::try_from(row).ok())
                .unwrap_or_default()
            else {
                return Err(Error::internal(
                    "the drill's server does not say where replay ended",
                ));
            };
            if superuser != "t" {
                return Err(no_superuser(user, "it is not one"));
            }
            let newest_commit = newest_commit.map(|text| text.parse());
            return Ok(Reached {
                lsn: lsn.parse()?,
                newest_commit: newest_commit
                    .transpose()
                    .map_err(|error| Error::internal(format!("read the time of the last commit: {error}")))?,
                user: user.to_owned(),
            });
        }
        let why = refused.map(|error| error.to_string()).unwrap_or_default();
        Err(no_superuser(user, &why))
    }

    /// Checks the data, and shuts the server down for the last check. Returns what speaks against the data.
    ///
    /// # Errors
    /// The server does not shut down.
    pub async fn check(
        &mut self,
        options: &DrillOptions,
        user: &str,
        progress: &Arc<Progress>,
        done: &mut Vec<Check>,
    ) -> Result<Option<String>> {
        let socket_directory = self.scratch.socket_directory();
        let access = self.access(&socket_directory, user, options);
        if let Some(file) = &options.sql {
            progress.phase("run the SQL checks");
            done.push(checks::sql(access, file).await);
        }
        if options.amcheck {
            progress.phase("run pg_amcheck");
            let directory = self.scratch.path();
            done.push(checks::amcheck(access, &self.programs, directory, options.concurrency).await);
        }
        let enabled = self.control()?.data_checksum_version > 0;
        if let Some(server) = &mut self.server {
            server.stop().await?;
        }
        progress.phase("run pg_checksums");
        let data = self.scratch.data();
        done.push(checks::checksums(&self.programs, &data, self.scratch.path(), enabled).await);
        Ok(failures(done))
    }

    /// Ends the server and removes the directory.
    pub async fn remove(self) -> Result<()> {
        let ended = match self.server {
            Some(server) => server.end().await,
            None => Ok(()),
        };
        // This looks once more for processes that still run.
        self.scratch.remove().await.or(ended)
    }

    /// Ends the server and leaves the directory for `--keep`.
    pub async fn keep(self, options: &DrillOptions) -> Result<Kept> {
        if let Some(server) = self.server {
            server.end().await?;
        }
        let (data, socket_directory) = (self.scratch.data(), self.scratch.socket_directory());
        let directory = self.scratch.keep()?;
        Ok(Kept::new(
            directory,
            self.programs.postgres(),
            &data,
            &socket_directory,
            user(options),
        ))
    }
}

/// One row: whether the user is a superuser, where replay ended, and when the last transaction ended.
const QUESTION: &str = "SELECT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user), \
     pg_catalog.pg_last_wal_replay_lsn(), \
     pg_catalog.to_char(pg_catalog.pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

fn no_superuser(user: &str, why: &str) -> Error {
    Error::invalid(format!(
        "the drill needs a superuser of the restored cluster, and {user} cannot be used: {why}; set drill.user to the \
         name of one"
    ))
}

fn user(options: &DrillOptions) -> &str {
    options.user.as_deref().unwrap_or(USER)
}

/// Every check that failed, in one line.
fn failures(checks: &[Check]) -> Option<String> {
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check.outcome == Outcome::Failed)
        .map(|check| format!("{}: {}", check.kind.name(), check.detail))
        .collect();
    (!failed.is_empty()).then(|| failed.join("; "))
}

/// Why the server ended, if the cause says nothing about the archive.
fn outside_cause(log: &str) -> Option<&'static str> {
    // PostgreSQL and walship restore begin this with different letters.
    if log.to_lowercase().contains("no space left on") {
        return Some("the scratch directory ran full; set drill.directory to a larger place");
    }
    if log.contains("terminated by signal 9") {
        return Some("the drill's server was killed, perhaps because memory ran out");
    }
    // Every start of a cluster logs this first (`StartupXLOG`).
    (!log.contains("database system was ")).then_some("the drill's server did not start")
}

/// The last file that `walship restore` could not deliver, by the log.
fn refused_in(log: &str) -> Option<WalName> {
    let named = log
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("walship: restore "))?;
    named.split(':').next()?.parse().ok()
}

fn hint(reason: &str) -> Option<&'static str> {
    let registers = reason.contains("resource manager with ID");
    registers.then_some("; the WAL has records of an extension: name its library in drill.preload_libraries")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::proof::CheckKind;

    #[test]
    fn causes_on_this_machine_are_not_blamed_on_the_archive() {
        let begun = "LOG:  database system was interrupted; last known up at 2026-11-25\n";
        assert_eq!(
            outside_cause(&format!("{begun}FATAL:  could not restore file")),
            None
        );
        let full = format!("{begun}FATAL:  could not write to file: No space left on device");
        assert!(outside_cause(&full).unwrap().contains("drill.directory"));
        let restore =
            "walship: restore 000000010000000000000006: write a file in pg_wal: no space left on the device";
        let full = format!("{begun}{restore}; free some and run it again\nFATAL:  could not restore file");
        assert!(outside_cause(&full).unwrap().contains("drill.directory"));
        assert!(outside_cause("FATAL:  could not map anonymous shared memory").is_some());
        let killed = format!("{begun}LOG:  startup process (PID 7) was terminated by signal 9: Killed");
        assert!(outside_cause(&killed).unwrap().contains("memory"));
    }

    #[test]
    fn the_file_that_was_refused_is_known() {
        let refused = "walship: restore 000000010000000000000006: gave up on http://x: HTTP 503\nFATAL:  could not restore";
        let log = format!("walship: restore 000000010000000000000005: x\n{refused}");
        assert_eq!(refused_in(&log).unwrap().to_string(), "000000010000000000000006");
        assert_eq!(refused_in("FATAL:  could not restore file"), None);
        assert_eq!(refused_in("walship: restore x: no name"), None);
    }

    #[test]
    fn failed_checks_make_the_failure_and_skipped_ones_do_not() {
        let check = |kind, outcome, detail: &str| Check {
            kind,
            outcome,
            ms: 0,
            detail: detail.to_owned(),
        };
        let mut checks = vec![
            check(CheckKind::Sql, Outcome::Passed, "a"),
            check(CheckKind::Amcheck, Outcome::Skipped, "b"),
        ];
        assert_eq!(failures(&checks), None);
        checks.push(check(CheckKind::Checksums, Outcome::Failed, "block 7"));
        assert_eq!(failures(&checks).unwrap(), "pg_checksums: block 7");
    }
}
