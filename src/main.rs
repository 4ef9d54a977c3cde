//! Arguments -> settings -> command -> exit code.
#![allow(clippy::print_stdout, clippy::print_stderr)] // the binary prints, the library does not

mod cli;
mod exit;
mod logging;
mod progress_bar;
mod run;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use walship::config::{Settings, Sources};
use walship::{Error, ErrorKind, Result};

use cli::{Cli, GlobalArgs};
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
    match settings(&cli).and_then(|settings| run::command(cli.command, &settings)) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            caller.failure(error.kind())
        }
    }
}

fn settings(cli: &Cli) -> Result<Settings> {
    let GlobalArgs {
        config,
        archive,
        log_level,
        log_format,
    } = &cli.global;
    let mut flags = vec![
        ("archive", archive),
        ("log.level", log_level),
        ("log.format", log_format),
    ];
    if let cli::Command::Basebackup(args) = &cli.command {
        flags.extend([
            ("backup.max_rate", &args.max_rate),
            ("backup.wal_timeout", &args.wal_timeout),
        ]);
    }
    let environment: BTreeMap<_, _> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let settings = Settings::load(&Sources {
        config_flag: config.clone(),
        flags: flags
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.clone()?)))
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
