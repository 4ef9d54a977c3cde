//! One run of a job: a process, what it says, and how it ends.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::config::Settings;
use crate::edge::notify::End;
use crate::edge::print::say;
use crate::edge::scheduled;
use crate::edge::variable;
use crate::error::{Error, Result};
use crate::judge::schedule::{Job, WITH_ITS_AGENT, Why};
use crate::server::data_directory::postmaster;

/// This much of a report is kept, and of what a job logs.
const REPORT_BYTES: u64 = 1 << 20;
const LOG_BYTES: usize = 64 << 10;
/// A line of the log is cut after this many bytes.
const LINE_BYTES: u64 = 8 << 10;

/// Starts jobs.
#[derive(Debug)]
pub(super) struct Launcher {
    settings: Settings,
    data_directory: PathBuf,
    dbname: Option<String>,
}

/// A job that runs. Killed when it is dropped.
pub(super) struct Started {
    child: Child,
}

/// How a job ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// 128 and the signal where one ended it; `None` where that is not known.
    pub(super) exit_code: Option<i32>,
    signal: Option<i32>,
    /// The last of what it wrote to stderr.
    log: String,
    /// What it printed: its report as JSON.
    report: String,
}

impl Launcher {
    pub(super) fn new(settings: &Settings, data_directory: &Path, dbname: Option<String>) -> Self {
        Self {
            settings: settings.clone(),
            data_directory: data_directory.to_owned(),
            dbname,
        }
    }

    /// Starts a job. To be called on a thread that lives as long as the agent: the kernel ends the job with it.
    pub(super) fn start(&self, job: Job, why: Why) -> Result<Started> {
        let label = format!("walship agent, {why}");
        let mut words = vec![job.name(), "--json"];
        if job == Job::Basebackup {
            words.extend(["--label", &label]);
        }
        let asks_the_server = matches!(job, Job::Basebackup | Job::Doctor);
        let dbname = self.dbname.as_deref().filter(|_| asks_the_server);
        words.extend(dbname.into_iter().flat_map(|dbname| ["--dbname", dbname]));
        let mut command = scheduled::command(&self.settings, &words)?;
        if asks_the_server && dbname.is_none() {
            command.envs(self.server());
        }
        let mut command = Command::from(command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command
            .spawn()
            .map_err(|error| Error::io(format!("start walship {job}"), error))?;
        Ok(Started { child })
    }

    /// Where the server of the data directory listens, if the environment does not say which server to ask.
    fn server(&self) -> Vec<(&'static str, String)> {
        let is_named = ["PGHOST", "PGHOSTADDR", "PGSERVICE"]
            .into_iter()
            .any(|name| variable(name).is_some_and(|value| !value.is_empty()));
        let server = postmaster(&self.data_directory).filter(|server| !server.socket_directory.is_empty());
        match server {
            Some(server) if !is_named => {
                vec![("PGHOST", server.socket_directory), ("PGPORT", server.port)]
            }
            _ => Vec::new(),
        }
    }
}

impl Started {
    pub(super) fn process_id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Waits for its end. Once `ending` says so it is told to end, and killed after `grace`.
    pub(super) async fn wait(mut self, mut ending: watch::Receiver<bool>, grace: Duration) -> Ended {
        let stdout = self.child.stdout.take();
        let stderr = self.child.stderr.take();
        let printed = tokio::spawn(async move { read_report(stdout).await });
        let logged = tokio::spawn(async move { pass_log_on(stderr).await });
        let status = tokio::select! {
            status = self.child.wait() => status,
            () = async { drop(ending.wait_for(|ending| *ending).await) } => self.end(grace).await,
        };
        // What it started may hold its outputs open.
        let soon = Duration::from_secs(2);
        let printed = tokio::time::timeout(soon, printed).await;
        let logged = tokio::time::timeout(soon, logged).await;
        let (exit_code, signal) = match status {
            Ok(status) => (code_of(status), status.signal()),
            Err(_) => (None, None),
        };
        Ended {
            exit_code,
            signal,
            log: logged.ok().and_then(Result::ok).unwrap_or_default(),
            report: printed.ok().and_then(Result::ok).unwrap_or_default(),
        }
    }

    async fn end(&mut self, grace: Duration) -> std::io::Result<ExitStatus> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(process) = id.and_then(Pid::from_raw) {
            // Fails only where it has ended.
            let _ = kill_process(process, Signal::TERM);
        }
        if let Ok(status) = tokio::time::timeout(grace, self.child.wait()).await {
            return status;
        }
        self.child.kill().await?;
        self.child.wait().await
    }
}

/// As shells have it.
fn code_of(status: ExitStatus) -> Option<i32> {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
}

async fn read_report(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else {
        return String::new();
    };
    let mut bytes = Vec::new();
    // What breaks off is kept as far as it came.
    let _ = (&mut from).take(REPORT_BYTES).read_to_end(&mut bytes).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes each line into the agent's log, and keeps the last ones.
async fn pass_log_on(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = String::new();
    let Some(from) = from else { return kept };
    let mut from = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut from).take(LINE_BYTES);
        match limited.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return kept,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        say(line);
        kept.push_str(line);
        kept.push('\n');
        if kept.len() > LOG_BYTES {
            let from = kept.len() - LOG_BYTES / 2;
            let line = kept.get(from..).and_then(|rest| rest.find('\n'));
            kept.drain(..line.map_or(0, |line| from + line + 1));
        }
    }
}

impl Ended {
    /// It could not be started.
    pub(super) fn not_begun(error: &Error) -> Self {
        Self {
            exit_code: Some(error.kind().exit_code().into()),
            signal: None,
            log: format!("{error}\n"),
            report: String::new(),
        }
    }

    /// It ran when its agent ended, and nobody saw how.
    pub(super) fn with_its_agent() -> Self {
        Self {
            exit_code: None,
            signal: None,
            log: format!("{WITH_ITS_AGENT}\n"),
            report: String::new(),
        }
    }

    /// The last line that it wrote to stderr.
    pub(super) fn last_line(&self) -> Option<&str> {
        self.log.lines().rev().find(|line| !line.trim().is_empty())
    }

    /// What others are told of it.
    pub(super) fn told(&self) -> End<'_> {
        End {
            exit_code: self.exit_code,
            report: &self.report,
            log: &self.log,
        }
    }

    /// How it ended, for people.
    pub(super) fn text(&self) -> String {
        match (self.signal, self.exit_code) {
            (Some(signal), _) => format!("was ended by signal {signal}"),
            (None, Some(0)) => "is done".to_owned(),
            (None, Some(code)) => format!("ended with exit code {code}"),
            (None, None) => "ended, and nobody knows how".to_owned(),
        }
    }
}
