//! The drill's server. It is a child of this process and has a private socket; its log is a file that is read here.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::processes;
use super::scratch::postmaster;
use crate::error::{Error, Result};

/// A shutdown writes the content of `shared_buffers`. If it takes longer than this, something is wrong.
const STOP_LIMIT: Duration = Duration::from_mins(10);
const POLL: Duration = Duration::from_millis(20);
/// Only these last bytes of a log are looked at.
const LOG_TAIL: u64 = 256 << 10;
/// At most this many lines of the log are reported.
const TOLD_LINES: usize = 6;

#[derive(Debug)]
pub struct Server {
    child: Child,
    data: PathBuf,
    log: PathBuf,
    /// How much of the log was read for the progress.
    seen: u64,
}

/// How the wait for a server ended.
#[derive(Debug)]
pub enum Waited {
    /// It is open for writing.
    Open,
    /// It ended by itself.
    Ended,
}

impl Server {
    /// Starts `postgres` on a data directory.
    ///
    /// # Errors
    /// `Internal` where the program cannot be started.
    pub fn start(postgres: &Path, data: &Path, config_file: &Path, log: &Path) -> Result<Self> {
        let starting = |error| Error::io(format!("start {}", postgres.display()), error);
        let output = File::options()
            .append(true)
            .create(true)
            .open(log)
            .map_err(|error| Error::io(format!("open {}", log.display()), error))?;
        let mut command = Command::new(postgres);
        command
            .arg("-D")
            .arg(data)
            .arg("-c")
            .arg(format!("config_file={}", config_file.display()));
        clear_libpq(&mut command);
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(starting)?)
            .stderr(output)
            // A terminal's signals are meant for walship, not for the server.
            .process_group(0)
            .spawn()
            .map_err(starting)?;
        Ok(Self {
            child,
            data: data.to_owned(),
            log: log.to_owned(),
            seen: 0,
        })
    }

    /// Waits until the server has left recovery and is open for writing, or has ended. `restored` gets the number of
    /// segments that the server has newly fetched from the archive.
    ///
    /// # Errors
    /// `Internal` where the child or its log cannot be looked at.
    pub async fn wait_open(&mut self, restored: impl Fn(u64)) -> Result<Waited> {
        let mut looked = Instant::now();
        loop {
            let ended = self.child.try_wait();
            if ended
                .map_err(|error| Error::io("wait for the server", error))?
                .is_some()
            {
                return Ok(Waited::Ended);
            }
            if self.is_open() {
                return Ok(Waited::Open);
            }
            if looked.elapsed() > 10 * POLL {
                looked = Instant::now();
                restored(self.newly_restored()?);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Looks at the eighth line of `postmaster.pid`, as `pg_ctl` does (`AddToDataDirLockFile`). With `hot_standby` off
    /// it says `ready` only when recovery is over.
    fn is_open(&self) -> bool {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let pid = u32::try_from(postmaster(&self.data).unwrap_or(0)).ok();
        pid == Some(self.child.id()) && file.lines().nth(7).is_some_and(|status| status.trim() == "ready")
    }

    /// How many segments the log says were restored since the last look.
    fn newly_restored(&mut self) -> Result<u64> {
        let new = read_from(&self.log, self.seen)?;
        // A line that is being written is counted at the next look.
        let end = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.seen += end as u64;
        let text = String::from_utf8_lossy(new.get(..end).unwrap_or_default()).into_owned();
        Ok(text
            .lines()
            .filter(|line| line.contains("restored log file \"") && !line.contains(".history\""))
            .count() as u64)
    }

    /// Shuts the server down cleanly, because `pg_checksums` needs that.
    ///
    /// # Errors
    /// `Internal` where it does not end in time, or does not end cleanly.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal(Signal::INT);
        let begun = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(Error::internal(format!(
                        "the drill's server ended with {status} while it was shut down: {}",
                        log_text(&self.log)
                    )));
                }
                Ok(None) if begun.elapsed() > STOP_LIMIT => {
                    return Err(Error::internal(format!(
                        "the drill's server did not shut down within {} s",
                        STOP_LIMIT.as_secs()
                    )));
                }
                Ok(None) => tokio::time::sleep(POLL).await,
                Err(error) => return Err(Error::io("wait for the server", error)),
            }
        }
    }

    /// Ends the server, if it still runs, and everything that it has started, at once.
    pub async fn end(mut self) -> Result<()> {
        self.signal(Signal::QUIT);
        let child = &mut self.child;
        // A child that has ended keeps its number until it is waited for.
        let reaped = async {
            while matches!(child.try_wait(), Ok(None)) {
                tokio::time::sleep(POLL).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(20), reaped).await;
        processes::end_all_in(&self.data, None).await?;
        let _ = self.child.try_wait();
        Ok(())
    }

    fn signal(&mut self, signal: Signal) {
        // After it was waited for, its number may be another process's.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

/// Removes libpq's variables from a child's environment, so that it connects only where its arguments say.
pub fn clear_libpq(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
}

fn read_from(log: &Path, start: u64) -> Result<Vec<u8>> {
    let read = || {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|error: std::io::Error| Error::io(format!("read {}", log.display()), error))
}

/// The end of a log.
pub fn log_end(log: &Path) -> String {
    let length = log.metadata().map_or(0, |found| found.len());
    let bytes = read_from(log, length.saturating_sub(LOG_TAIL)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Why the server ended, by its log, in one line.
#[must_use]
pub fn log_text(log: &Path) -> String {
    reason_in(&log_end(log))
}

/// The lines that tell why: errors, messages of walship's restore, and the lines that belong to them.
fn reason_in(log: &str) -> String {
    let lines: Vec<&str> = log
        .lines()
        .filter_map(message)
        .filter(|line| !line.contains("the database system is starting up"))
        .collect();
    let first = lines.len().saturating_sub(TOLD_LINES);
    let told = lines.get(first..).unwrap_or_default();
    if told.is_empty() {
        return "its log does not say why".to_owned();
    }
    told.join("; ")
}

/// A line that tells why, without time and process; `None` for other lines.
fn message(line: &str) -> Option<&str> {
    if line.starts_with("walship: ") {
        return Some(line);
    }
    // Errors in a configuration file have only the level LOG.
    let of_settings = ["LOG:  invalid ", "LOG:  unrecognized ", "LOG:  parameter "];
    let levels = ["PANIC:  ", "FATAL:  ", "ERROR:  ", "DETAIL:  ", "HINT:  "];
    levels
        .iter()
        .chain(&of_settings)
        .find_map(|level| line.find(level).and_then(|at| line.get(at..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_log_is_what_went_wrong() {
        let log = "\
2026-11-25 19:00:00.000 UTC [12] LOG:  starting PostgreSQL 17.11
2026-11-25 19:00:00.100 UTC [15] FATAL:  the database system is starting up
walship: restore 000000010000000000000007: it is missing in the archive
2026-11-25 19:00:01.000 UTC [14] FATAL:  could not restore file \"000000010000000000000007\" from archive: child process exited with exit code 200
2026-11-25 19:00:01.000 UTC [12] LOG:  startup process (PID 14) exited with exit code 1
";
        let reason = reason_in(log);
        assert!(
            reason.starts_with("walship: restore 000000010000000000000007"),
            "{reason}"
        );
        assert!(
            reason.ends_with("exit code 200") && !reason.contains("starting"),
            "{reason}"
        );
        assert_eq!(reason_in("LOG:  x\n"), "its log does not say why");
    }
}
