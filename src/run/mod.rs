//! From arguments and settings to one command of the library, and from its report to the exit code:
//! one file for each command, and here what they share.

mod agent;
mod basebackup;
mod doctor;
mod drill;
mod expire;
mod keep;
mod list;
mod man;
mod patroni;
mod push;
mod recover;
mod repair;
mod restore;
mod seed;
mod setup;
mod status;
mod this_walship;
mod timeline;
mod verify;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory;
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use walship::config::Settings;
use walship::store::{Store, StoreOptions};
use walship::{Error, Result};

use crate::cli::{Cli, Command};

/// Runs the command.
pub fn command(command: Command, settings: &Settings) -> Result<ExitCode> {
    match command {
        Command::Push(args) => push::run(&args, settings),
        Command::Restore(args) => restore::run(args, settings),
        Command::Basebackup(args) => basebackup::run(&args, settings),
        Command::PatroniReplica(args) => patroni::replica(&args, settings),
        Command::PatroniBootstrap(args) => patroni::bootstrap(args, settings),
        Command::Recover(args) => recover::run(args, settings),
        Command::Drill(args) => drill::run(args, settings),
        Command::Status(args) => status::run(args, settings),
        Command::Agent(args) => agent::run(&args, settings),
        Command::List(args) => list::run(&args, settings),
        Command::Doctor(args) => doctor::run(args, settings),
        Command::Expire(args) => expire::run(&args, settings),
        Command::Keep(args) => keep::run(&args, settings),
        Command::Timeline(args) => timeline::run(&args, settings),
        Command::Setup(args) => setup::run(&args, settings),
        Command::Verify(args) => verify::run(&args, settings),
        Command::Repair(args) => repair::run(args, settings),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "walship", &mut script);
            write_out(&script)
        }
        Command::Man => man::run(),
    }
}

/// Prints a report as JSON, or as a person reads it.
fn print<T: Serialize>(report: &T, json: bool, text: impl FnOnce(&T) -> String) -> Result<ExitCode> {
    let text = if json {
        serde_json::to_string_pretty(report).map_err(|error| Error::defect("write JSON", error))?
    } else {
        text(report)
    };
    write_out(format!("{}\n", text.trim_end()).as_bytes())
}

fn write_out(bytes: &[u8]) -> Result<ExitCode> {
    match std::io::stdout()
        .write_all(bytes)
        .and_then(|()| std::io::stdout().flush())
    {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Whoever read it has read enough: `walship list | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Error::io("write to the standard output", error)),
    }
}

/// Opens the archive's store for a command that must end within `limit`.
async fn open_within(limit: Duration, settings: &Settings) -> Result<Store> {
    let timeouts = &settings.store;
    let limit = most_of(limit);
    let options = StoreOptions {
        operation_timeout: limit,
        connect_timeout: timeouts.connect_timeout.min(limit),
        request_timeout: timeouts.request_timeout.min(limit),
        ..timeouts.clone()
    };
    Store::open(&settings.archive()?, &options).await
}

/// The store gives up a little earlier than the command, for its message says more.
fn most_of(limit: Duration) -> Duration {
    limit.mul_f64(0.9)
}

async fn within<T>(limit: Duration, setting: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!(
            "gave up after {} s; the store is too slow, or {setting} too low",
            limit.as_secs_f64()
        )))
    })
}

/// Runs the work to its end. A call to the operating system that hangs, on a dead network file system,
/// is not waited for beyond the work's own time limits.
fn finish<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// For a process that lives for one file.
fn one_thread() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("start the runtime", error))
}

/// For commands that move whole clusters.
fn many_threads() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("start the runtime", error))
}

/// Where PostgreSQL's programs are looked for: `postgres.bin_dir`, and then `PATH`.
fn search_path(settings: &Settings) -> Result<Option<std::ffi::OsString>> {
    let path = std::env::var_os("PATH");
    let Some(bin_dir) = &settings.postgres.bin_dir else {
        return Ok(path);
    };
    let others = path.as_deref().map(std::env::split_paths).into_iter().flatten();
    std::env::join_paths(std::iter::once(bin_dir.clone()).chain(others))
        .map(Some)
        .map_err(|_| Error::invalid("postgres.bin_dir has a colon in it; give a directory without one"))
}

/// Resolves when the user, or the system, wants the command to end.
fn interrupted() -> Result<impl Future<Output = &'static str>> {
    let listen = |kind| signal(kind).map_err(|error| Error::io("listen for signals", error));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "interrupted",
            _ = terminate.recv() => "told to end (SIGTERM)",
            _ = hangup.recv() => "the terminal is gone (SIGHUP)",
        }
    })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(format!("find {}", path.display()), error))
}

fn text_of(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::invalid(format!("the path {} is not UTF-8", path.display())))
}
