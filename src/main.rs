//! Arguments -> settings -> command -> exit code.
#![allow(clippy::print_stderr)] // the binary prints, the library does not

mod cli;
mod exit;
mod logging;
mod progress_bar;
mod run;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use walship::config::{Settings, Sources, StandbyFailure};
use walship::server::data_directory::{RecoverySignal, recovery_signal};
use walship::{Error, ErrorKind, Result};

use cli::{Cli, Command, GlobalArgs, as_clap_takes_them};
use exit::Caller;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let guess = Caller::guess(&arguments);
    exit_on_panic(guess);
    let cli = match Cli::try_parse_from(as_clap_takes_them(arguments, Cli::command)) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            print_usage_error(&error, guess);
            return guess.failure(ErrorKind::Invalid, on_standby()).into();
        }
        Err(help_or_version) => {
            // Nothing can be done where even the output is closed.
            let _ = help_or_version.print();
            return ExitCode::SUCCESS;
        }
    };
    let caller = Caller::of(&cli.command);
    exit_on_panic(caller);
    let (result, standby_failure) = match settings(&cli) {
        Ok(settings) => (
            run::command(cli.command, &settings),
            settings.restore.standby_failure,
        ),
        Err(error) => (Err(error), StandbyFailure::Continue),
    };
    result.unwrap_or_else(|error| {
        report(&error);
        let outlive = standby_failure == StandbyFailure::Continue && on_standby();
        caller.failure(error.kind(), outlive).into()
    })
}

/// Whether this was started by a standby. PostgreSQL runs `restore_command` in the data directory.
fn on_standby() -> bool {
    matches!(recovery_signal(Path::new(".")), Ok(RecoverySignal::Standby))
}

fn settings(cli: &Cli) -> Result<Settings> {
    // What prints a part of walship itself works whatever is configured.
    if matches!(cli.command, Command::Completions { .. } | Command::Man) {
        return Settings::load(&Sources {
            config_flag: Some("/dev/null".into()),
            ..Sources::default()
        });
    }
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
    if let Command::Basebackup(args) = &cli.command {
        flags.extend([
            ("backup.method", &args.method),
            ("backup.max_rate", &args.max_rate),
            ("backup.wal_timeout", &args.wal_timeout),
        ]);
    }
    if let Command::Verify(args) = &cli.command {
        flags.push(("verify.max_rate", &args.max_rate));
    }
    if let Command::PatroniReplica(args) = &cli.command {
        flags.extend([
            ("seed.archive_wal_limit", &args.archive_wal_limit),
            ("seed.archive_wal_percent", &args.archive_wal_percent),
        ]);
    }
    let settings = Settings::load(&Sources {
        config_flag: config.clone(),
        flags: flags
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.clone()?)))
            .collect(),
        environment: environment()?,
    })?;
    logging::start(settings.log.level, settings.log.format);
    Ok(settings)
}

fn environment() -> Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::new();
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => drop(environment.insert(name, value)),
            // To pass over a setting silently would mean to use another.
            (Ok(name), Err(_)) if name.starts_with("WALSHIP_") => {
                return Err(Error::invalid(format!(
                    "the environment variable {name} is not UTF-8"
                )));
            }
            _ => {}
        }
    }
    Ok(environment)
}

/// One line for whoever must act on it. Settings that cannot be read are reported before logging
/// starts, and then always as text.
fn report(error: &Error) {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{error}");
    } else {
        say(&format!("walship: {error}"));
    }
}

/// For a person all that clap has to say, for PostgreSQL's log one line of it.
fn print_usage_error(error: &clap::Error, caller: Caller) {
    let text = error.to_string();
    let first = text
        .lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ");
    say(&match caller {
        Caller::Shell | Caller::Monitor => text.trim_end().to_owned(),
        Caller::ArchiveCommand => format!("walship: {first}; write archive_command = 'walship push %p'"),
        Caller::RestoreCommand => {
            format!("walship: {first}; write restore_command = 'walship restore %f %p'")
        }
    });
}

/// Says it on stderr if that can be written. `eprintln!` would panic where it cannot, as on a full
/// disk, and PostgreSQL's archiver does not survive the signal that a panic in a panic ends with.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A defect must not look like an answer: PostgreSQL takes a crash of `restore` for what it is only
/// if the exit code says so.
fn exit_on_panic(caller: Caller) {
    std::panic::set_hook(Box::new(move |panic| {
        say(&format!("walship: internal error, please report it: {panic}"));
        std::process::exit(caller.failure(ErrorKind::Internal, on_standby()).into());
    }));
}
