//! Arguments -> settings -> command -> exit code.

mod man;
mod patroni;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use self::patroni::as_clap_takes_them;
use crate::agent::AgentArgs;
use crate::config::{Settings, Sources, StandbyFailure};
use crate::edge::exit::Caller;
use crate::edge::logging;
use crate::edge::print::{report, say, write_out};
use crate::edge::scheduled;
use crate::error::{Error, ErrorKind, Result};
use crate::server::data_directory::{RecoverySignal, recovery_signal};
use crate::verbs::basebackup::BasebackupArgs;
use crate::verbs::doctor::DoctorArgs;
use crate::verbs::drill::DrillArgs;
use crate::verbs::expire::ExpireArgs;
use crate::verbs::keep::KeepArgs;
use crate::verbs::list::ListArgs;
use crate::verbs::patroni::{PatroniBootstrapArgs, PatroniReplicaArgs};
use crate::verbs::push::PushArgs;
use crate::verbs::recover::RecoverArgs;
use crate::verbs::repair::RepairArgs;
use crate::verbs::restore::RestoreArgs;
use crate::verbs::schedule::ScheduleArgs;
use crate::verbs::setup::SetupArgs;
use crate::verbs::status::StatusArgs;
use crate::verbs::timeline::TimelineArgs;
use crate::verbs::verify::VerifyArgs;

/// Keeps a PostgreSQL cluster recoverable to any moment from an object store.
#[derive(Debug, Parser)]
#[command(
    name = "walship",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What is the same for every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// In --help, the global flags come after the command's own and before --help and --version.
const LAST: usize = 900;

/// Flags that every command takes.
#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// Configuration file [env: WALSHIP_CONFIG] [default: /etc/walship/walship.toml if it is there]
    #[arg(long, global = true, display_order = LAST, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// URL of the archive: s3://bucket/prefix or file:///path [env: WALSHIP_ARCHIVE]
    #[arg(long, global = true, display_order = LAST, value_name = "URL")]
    pub archive: Option<String>,
    /// What is logged to stderr: error, warn, info, debug or trace [env: WALSHIP_LOG_LEVEL] [default: warn]
    #[arg(long, global = true, display_order = LAST, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Format of what is logged: text or json [env: WALSHIP_LOG_FORMAT] [default: text]
    #[arg(long, global = true, display_order = LAST, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Run by this process, an agent that keeps a schedule: ends with it
    #[arg(long, global = true, value_name = "PID", hide = true)]
    pub scheduled_by: Option<i32>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Store one file of pg_wal; for archive_command = 'walship push %p'
    Push(PushArgs),
    /// Deliver one verified file; for restore_command = 'walship restore %f %p'
    Restore(RestoreArgs),
    /// Take a base backup, or seed a replica
    Basebackup(BasebackupArgs),
    /// Make a Patroni replica from the archive, where that is the better source; for create_replica_methods
    PatroniReplica(PatroniReplicaArgs),
    /// Make a Patroni cluster from an archive, as a clone or anew; for Patroni's bootstrap method
    PatroniBootstrap(PatroniBootstrapArgs),
    /// Restore a backup into an empty directory, ready to recover to a target
    Recover(RecoverArgs),
    /// Prove a backup: restore it aside, replay the WAL with a real server, check the data
    Drill(DrillArgs),
    /// Show on one screen what there is, what it is worth, and what is wrong
    Status(StatusArgs),
    /// Show the backups and the WAL in the archive
    List(ListArgs),
    /// Check server, archive and this machine; exit 0 if all is well, 1 for warnings, 2 for problems
    Doctor(DoctorArgs),
    /// Delete the backups and the WAL that the retention policy does not keep
    Expire(ExpireArgs),
    /// Keep a backup whatever the retention policy says
    Keep(KeepArgs),
    /// Show the timelines in the archive, and say which of them nobody may follow
    Timeline(TimelineArgs),
    /// Prepare a server for archiving and replication
    Setup(SetupArgs),
    /// Read what is stored, check it, and say what it is worth
    Verify(VerifyArgs),
    /// Replace a damaged WAL file in the archive by a good local copy
    Repair(RepairArgs),
    /// Store WAL ahead of the archiver, fetch it ahead of recovery, and run the schedule, as a long-lived process
    Agent(AgentArgs),
    /// Show what the agent runs by itself, how that ended, and what comes next
    Schedule(ScheduleArgs),
    /// Print the completion script of a shell
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, with every command
    Man,
}

impl Command {
    fn run(self, settings: &Settings) -> Result<ExitCode> {
        match self {
            Self::Push(args) => args.run(settings),
            Self::Restore(args) => args.run(settings),
            Self::Basebackup(args) => args.run(settings),
            Self::PatroniReplica(args) => args.run(settings),
            Self::PatroniBootstrap(args) => args.run(settings),
            Self::Recover(args) => args.run(settings),
            Self::Drill(args) => args.run(settings),
            Self::Status(args) => args.run(settings),
            Self::Agent(args) => args.run(settings),
            Self::Schedule(args) => args.run(settings),
            Self::List(args) => args.run(settings),
            Self::Doctor(args) => args.run(settings),
            Self::Expire(args) => args.run(settings),
            Self::Keep(args) => args.run(settings),
            Self::Timeline(args) => args.run(settings),
            Self::Setup(args) => args.run(settings),
            Self::Verify(args) => args.run(settings),
            Self::Repair(args) => args.run(settings),
            Self::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "walship", &mut script);
                write_out(&script)
            }
            Self::Man => man::run(),
        }
    }

    fn caller(&self) -> Caller {
        match self {
            Self::Push(_) => Caller::ArchiveCommand,
            Self::Restore(_) => Caller::RestoreCommand,
            Self::Doctor(_) => Caller::Monitor,
            _ => Caller::Shell,
        }
    }
}

/// The program.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let guess = Caller::guess(&arguments, |word| Cli::command().find_subcommand(word).is_some());
    exit_on_panic(guess);
    let cli = match Cli::try_parse_from(as_clap_takes_them(arguments, Cli::command)) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            print_usage_error(&error, guess);
            return guess.failure(ErrorKind::Invalid, on_standby()).into();
        }
        Err(help_or_version) => {
            // Nothing can be done if even the output is closed.
            let _ = help_or_version.print();
            return ExitCode::SUCCESS;
        }
    };
    let caller = cli.command.caller();
    exit_on_panic(caller);
    let begun = cli.global.scheduled_by.map_or(Ok(()), scheduled::end_with);
    let (result, standby_failure) = match begun.and_then(|()| settings(&cli)) {
        Ok(settings) => (cli.command.run(&settings), settings.restore.standby_failure),
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
    // Completions and the manual page work with any configuration.
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
        scheduled_by: _,
    } = &cli.global;
    let mut flags = vec![
        ("archive", archive),
        ("log.level", log_level),
        ("log.format", log_format),
    ];
    match &cli.command {
        Command::Basebackup(args) => flags.extend(args.settings()),
        Command::Verify(args) => flags.extend(args.settings()),
        Command::PatroniReplica(args) => flags.extend(args.settings()),
        _ => {}
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
    // The agent tells of the jobs that it runs.
    Ok(match cli.global.scheduled_by {
        Some(_) => settings.silenced(),
        None => settings,
    })
}

fn environment() -> Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::new();
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => drop(environment.insert(name, value)),
            // Skipping a setting silently would mean using another.
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

/// A person gets clap's whole message, PostgreSQL's log one line of it.
fn print_usage_error(error: &clap::Error, caller: Caller) {
    let text = error.to_string();
    let first = text
        .lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ");
    say(&match caller {
        // What the value's own parser says is all there is to say.
        Caller::Shell | Caller::Monitor if error.kind() == clap::error::ErrorKind::ValueValidation => {
            format!("walship: {first}")
        }
        Caller::Shell | Caller::Monitor => text.trim_end().to_owned(),
        Caller::ArchiveCommand => format!("walship: {first}; write archive_command = 'walship push %p'"),
        Caller::RestoreCommand => {
            format!("walship: {first}; write restore_command = 'walship restore %f %p'")
        }
    });
}

/// A defect must not look like an answer: PostgreSQL recognises a crash of `restore` only by the exit code.
fn exit_on_panic(caller: Caller) {
    std::panic::set_hook(Box::new(move |panic| {
        say(&format!("walship: internal error, please report it: {panic}"));
        std::process::exit(caller.failure(ErrorKind::Internal, on_standby()).into());
    }));
}
