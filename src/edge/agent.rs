//! The agent for the commands that PostgreSQL runs: its address, and how one is started.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use walship_client::protocol::What;
use walship_client::{Address, Archive, make_folder};

use super::{absolute, this_walship};
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::server::data_directory::postmaster_pid;
use crate::store::Location;

/// If the log was written to within this time, no second agent is started.
const STARTING: Duration = Duration::from_secs(10);

/// A log that has grown beyond this many bytes is begun anew.
const LOG_LIMIT: u64 = 1 << 20;

/// The address of the agent for this data directory and these settings.
pub fn address_for(settings: &Settings, data_directory: &Path) -> Result<Address> {
    let location = settings.archive()?;
    let archive = Archive {
        url: &location.to_string(),
        route: &settings.store.s3.route(),
        directory: match &location {
            Location::Directory(root) => Some(root),
            Location::S3 { .. } => None,
        },
    };
    Address::new(&archive, data_directory, settings.agent.socket.as_deref())
}

/// Tells the agent, if one runs, what this process did by itself since `begun`.
pub fn tell<T>(settings: &Settings, data_directory: &Path, what: What, begun: Instant, done: &Result<T>) {
    if let Ok(address) = address_for(settings, data_directory) {
        let failure = done.as_ref().err().map(Error::kind);
        walship_client::tell(&address, what, begun.elapsed(), failure);
    }
}

/// Starts an agent. The caller has done its own work, so a failure is only a warning.
pub fn start(settings: &Settings, data_directory: &Path) {
    let started = || {
        let data_directory = absolute(data_directory)?;
        let address = address_for(settings, &data_directory)?;
        spawn(&address, &data_directory, &this_walship(settings)?)
    };
    if let Err(error) = started() {
        tracing::warn!("an agent could not be started: {error}");
    }
}

/// Starts an agent for this data directory; `words` start this program with the same settings. It detaches itself, and
/// writes a log beside its socket. Returns at once. Does nothing if one was started in the last seconds.
///
/// # Errors
/// `Invalid` where the postmaster is process 1, which would have to reap it; `Denied` and `Internal`
/// where its folder, its log or its process cannot be made.
fn spawn(address: &Address, data_directory: &Path, words: &[String]) -> Result<()> {
    if postmaster_pid(data_directory) == Some(1) {
        return Err(Error::invalid(
            "the postmaster is process 1 and would have to reap the agent; start walship agent as a process of its own",
        ));
    }
    make_folder(&address.socket)?;
    let path = address.socket.with_extension("log");
    if std::fs::metadata(&path).is_ok_and(|metadata| is_recent(&metadata)) {
        return Ok(());
    }
    let log = log(&path)?;
    log.set_modified(SystemTime::now())
        .map_err(|error| Error::io("note the agent's start", error))?;
    let copy = log
        .try_clone()
        .map_err(|error| Error::io("open the agent's log", error))?;
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Error::internal("no words to start the agent with"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args([
            "agent",
            "--started-by",
            &std::process::id().to_string(),
            "--pgdata",
        ])
        .arg(data_directory)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(copy)
        .stderr(log);
    // Not waited for: it outlives this process.
    command
        .spawn()
        .map(drop)
        .map_err(|error| Error::io("start an agent", error))
}

fn is_recent(log: &Metadata) -> bool {
    let age = log.modified().ok().and_then(|modified| modified.elapsed().ok());
    age.is_some_and(|age| age < STARTING)
}

fn log(path: &Path) -> Result<File> {
    let is_long = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_LIMIT);
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    if is_long {
        options.write(true).truncate(true);
    } else {
        options.append(true);
    }
    options
        .open(path)
        .map_err(|error| Error::io(format!("open {}", path.display()), error))
}
