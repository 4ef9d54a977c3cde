//! Arguments -> settings -> command -> exit code.
#![allow(clippy::print_stdout, clippy::print_stderr)] // the one place that prints

mod cli;
mod exit;
mod logging;
mod progress_bar;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use chrono::Utc;
use clap::{CommandFactory, Parser};
use tokio::runtime::Runtime;
use walship::commands::push::PushOptions;
use walship::commands::restore::{RestoreOptions, RestoreReport};
use walship::commands::{push, restore};
use walship::config::{Settings, Sources, StandbyFailure};
use walship::pg::data_directory::{RecoverySignal, recovery_signal};
use walship::store::{Store, StoreOptions};
use walship::{Error, ErrorKind, Result};

use cli::{Cli, Command, GlobalArgs};
use exit::Caller;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let caller = Caller::of(&arguments);
    exit_on_panic(caller);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; nothing can be done where even stderr is closed.
            let _ = error.print();
            return if error.use_stderr() {
                caller.failure(ErrorKind::Invalid)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let command = cli.command;
    match settings(cli.global).and_then(|settings| run(command, &settings)) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            caller.failure(error.kind())
        }
    }
}

fn run(command: Command, settings: &Settings) -> Result<ExitCode> {
    match command {
        Command::Push(args) => run_push(args, settings),
        Command::Restore(args) => run_restore(args, settings),
        Command::Basebackup(_) | Command::Recover(_) | Command::List(_) => Err(Error::internal("not yet")),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "walship", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => {
            let page = clap_mangen::Man::new(Cli::command());
            page.render(&mut std::io::stdout())
                .map_err(|error| Error::io("write the manual page", error))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_push(args: cli::PushArgs, settings: &Settings) -> Result<ExitCode> {
    let options = PushOptions {
        path: args.path,
        compression_level: settings.push.compression_level,
        memory_bytes: settings.push.memory_bytes,
    };
    let limit = settings.push.timeout;
    single_threaded()?.block_on(async {
        let store = open_within(limit, settings).await?;
        within(limit, "push", push::run(&options, &store, Utc::now())).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn run_restore(args: cli::RestoreArgs, settings: &Settings) -> Result<ExitCode> {
    // PostgreSQL runs restore_command in the data directory.
    let signal = recovery_signal(Path::new("."));
    let limit = match signal {
        RecoverySignal::Standby => settings.restore.standby_timeout,
        RecoverySignal::Recovery | RecoverySignal::None => settings.restore.timeout,
    };
    let options = RestoreOptions {
        name: args.name,
        destination: args.destination,
        signal,
        hole_timeout: most_of(limit),
        accepted_gap: args.accept_gap.as_deref().map(str::parse).transpose()?,
    };
    let result = single_threaded()?.block_on(async {
        let store = open_within(limit, settings).await?;
        within(limit, "restore", restore::run(&options, &store)).await
    });
    match result {
        Ok(RestoreReport::Delivered) => Ok(ExitCode::SUCCESS),
        Ok(RestoreReport::Absent(reason)) => {
            tracing::info!("{reason}");
            Ok(exit::ABSENT.into())
        }
        // A standby outlives the failure: it streams, or asks again in a few seconds.
        Err(error)
            if signal == RecoverySignal::Standby
                && settings.restore.standby_failure == StandbyFailure::Continue =>
        {
            report(&error);
            Ok(exit::ABSENT.into())
        }
        Err(error) => Err(error),
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

async fn within<T>(limit: Duration, command: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!(
            "{command}: gave up after {} s without an end in sight; the store is too slow, or the limit too low ({command}.timeout)",
            limit.as_secs_f64()
        )))
    })
}

fn single_threaded() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("start the runtime", error))
}

fn settings(global: GlobalArgs) -> Result<Settings> {
    let flags = [
        ("archive", global.archive),
        ("log.level", global.log_level),
        ("log.format", global.log_format),
    ];
    let environment: BTreeMap<_, _> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let settings = Settings::load(&Sources {
        config_flag: global.config,
        flags: flags
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect(),
        environment,
    })?;
    logging::start(settings.log_level, settings.log_format);
    Ok(settings)
}

/// One line for whoever must act on it. Settings that cannot be read are reported before logging
/// starts, and then always as text.
fn report(error: &Error) {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{error}");
    } else {
        eprintln!("walship: {error}");
    }
}

/// A defect must not look like an answer: PostgreSQL takes a crash of `restore` for what it is only
/// if the exit code says so.
fn exit_on_panic(caller: Caller) {
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("walship: internal error, please report it: {panic}");
        std::process::exit(caller.panic_code());
    }));
}
