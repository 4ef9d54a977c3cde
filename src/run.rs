//! From arguments and settings to one command of the library, and from its report to the exit code.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use clap::CommandFactory;
use serde::Serialize;
use tokio::runtime::Runtime;
use walship::archive::recovery_plan::{Request, Search, Target};
use walship::commands::basebackup::{self, BasebackupOptions, MAX_RATE_KIB, PartSettings};
use walship::commands::list::{self, ListPart};
use walship::commands::progress::Progress;
use walship::commands::push::{self, PushOptions};
use walship::commands::recover::{self, ArchiveMode, RecoverOptions, TargetAction};
use walship::commands::restore::{self, RestoreOptions, RestoreReport};
use walship::config::{DEFAULT_FILE, Settings};
use walship::pg::data_directory::{RecoverySignal, recovery_signal};
use walship::pg::{ConnInfo, parse_timestamp};
use walship::store::{Location, Store, StoreOptions};
use walship::{Error, Result};

use crate::cli::{self, Checkpoint, Cli, Command};
use crate::exit;
use crate::progress_bar;

/// Runs the command.
pub fn command(command: Command, settings: &Settings) -> Result<ExitCode> {
    match command {
        Command::Push(args) => push(args, settings),
        Command::Restore(args) => restore(args, settings),
        Command::Basebackup(args) => basebackup(&args, settings),
        Command::Recover(args) => recover(args, settings),
        Command::List(args) => list(&args, settings),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "walship", &mut script);
            write_out(&script)
        }
        Command::Man => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
            rendered.map_err(|error| Error::io("make the manual page", error))?;
            write_out(&page)
        }
    }
}

fn push(args: cli::PushArgs, settings: &Settings) -> Result<ExitCode> {
    let options = PushOptions {
        path: args.path,
        compression_level: settings.push.compression_level,
        memory_bytes: settings.push.memory_bytes,
    };
    let limit = settings.push.timeout;
    let work = async {
        let store = open_within(limit, settings).await?;
        push::run(&options, &store, Utc::now()).await
    };
    finish(one_thread()?, within(limit, "push.timeout", work))?;
    Ok(ExitCode::SUCCESS)
}

fn restore(args: cli::RestoreArgs, settings: &Settings) -> Result<ExitCode> {
    // PostgreSQL runs restore_command in the data directory.
    let signal = recovery_signal(Path::new("."))?;
    let (limit, setting) = match signal {
        RecoverySignal::Standby => (settings.restore.standby_timeout, "restore.standby_timeout"),
        RecoverySignal::Recovery | RecoverySignal::None => (settings.restore.timeout, "restore.timeout"),
    };
    let options = RestoreOptions {
        name: args.name,
        destination: args.destination,
        signal,
        retry_timeout: most_of(limit),
        accepted_gap: args.accept_gap.as_deref().map(str::parse).transpose()?,
    };
    let work = async {
        let store = open_within(limit, settings).await?;
        restore::run(&options, &store).await
    };
    match finish(one_thread()?, within(limit, setting, work))? {
        RestoreReport::Delivered => Ok(ExitCode::SUCCESS),
        RestoreReport::Absent(reason) => {
            tracing::info!("{reason}");
            Ok(exit::ABSENT.into())
        }
    }
}

fn basebackup(args: &cli::BasebackupArgs, settings: &Settings) -> Result<ExitCode> {
    let wal_timeout = settings.backup.wal_timeout;
    let progress = Arc::new(Progress::default());
    let report = finish(many_threads()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        let work = async {
            if let Some(id) = &args.finish {
                return basebackup::finish(&id.parse()?, wal_timeout, &store, &progress).await;
            }
            let connection = ConnInfo::resolve(args.dbname.as_deref(), |name| std::env::var(name).ok())?;
            basebackup::run(&backup_options(args, settings)?, &connection, &store, &progress).await
        };
        progress_bar::watch(&progress, Box::pin(work)).await
    })?;
    print(&report, args.json, |report| report.id.to_string())
}

fn backup_options(args: &cli::BasebackupArgs, settings: &Settings) -> Result<BasebackupOptions> {
    let backup = &settings.backup;
    let max_rate_kib =
        match backup.max_rate {
            None => None,
            Some(rate) => {
                let kib = u32::try_from(rate.0 >> 10)
                    .ok()
                    .filter(|kib| MAX_RATE_KIB.contains(kib));
                Some(kib.ok_or_else(|| {
                    Error::invalid("backup.max_rate, or --max-rate, must be from 32kB to 1GB")
                })?)
            }
        };
    Ok(BasebackupOptions {
        label: args.label.clone(),
        fast_checkpoint: args.checkpoint == Checkpoint::Fast,
        max_rate_kib,
        wal_timeout: backup.wal_timeout,
        parts: PartSettings::new(backup.compression_level, backup.concurrency, backup.part_bytes),
    })
}

fn recover(args: cli::RecoverArgs, settings: &Settings) -> Result<ExitCode> {
    recover::refuse_root()?;
    let json = args.json;
    let options = recover_options(args, settings)?;
    let progress = Arc::new(Progress::default());
    let mut report = finish(many_threads()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        let work = recover::run(&options, &store, Utc::now(), &progress);
        progress_bar::watch(&progress, Box::pin(work)).await
    })?;
    if std::env::var_os("AWS_ACCESS_KEY_ID").is_some() && matches!(settings.archive()?, Location::S3 { .. }) {
        report.notes.push(
            "the AWS credentials came from the environment and are written nowhere: \
             start the server with the same AWS_… variables, or give its user a profile"
                .to_owned(),
        );
    }
    print(&report, json, ToString::to_string)
}

fn recover_options(args: cli::RecoverArgs, settings: &Settings) -> Result<RecoverOptions> {
    let timeline = match args.target_timeline.as_deref() {
        None | Some("latest") => None,
        Some(number) => Some(number.parse()?),
    };
    Ok(RecoverOptions {
        pgdata: absolute(&args.pgdata)?,
        request: Request {
            target: target(args.target)?,
            inclusive: args.target_inclusive.unwrap_or(true),
            timeline,
            backup: args.backup.as_deref().map(str::parse).transpose()?,
            end_at_gap: args.end_at_gap,
            search: Search::NotMade,
        },
        action: args.target_action.map(|action| match action {
            cli::TargetAction::Pause => TargetAction::Pause,
            cli::TargetAction::Promote => TargetAction::Promote,
            cli::TargetAction::Shutdown => TargetAction::Shutdown,
        }),
        tablespace_mappings: args
            .tablespace_mapping
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_>>()?,
        archive_mode: match args.archive_mode {
            cli::ArchiveMode::Auto => ArchiveMode::Auto,
            cli::ArchiveMode::Keep => ArchiveMode::Keep,
            cli::ArchiveMode::Off => ArchiveMode::Off,
        },
        concurrency: settings.recover_concurrency,
        walship: this_walship(settings)?,
        search_path: std::env::var_os("PATH"),
    })
}

fn target(args: cli::TargetArgs) -> Result<Target> {
    Ok(match args {
        cli::TargetArgs {
            target_time: Some(time),
            ..
        } => Target::Time(parse_timestamp(&time)?),
        cli::TargetArgs {
            target_lsn: Some(lsn),
            ..
        } => Target::Lsn(lsn.parse()?),
        cli::TargetArgs {
            target_xid: Some(xid),
            ..
        } => Target::Xid(transaction_id(&xid)?),
        cli::TargetArgs {
            target_name: Some(name),
            ..
        } => Target::Name(name),
        cli::TargetArgs {
            target_immediate: true,
            ..
        } => Target::Immediate,
        _ => Target::Latest,
    })
}

/// Of a 64-bit id, as `pg_current_xact_id()` gives it, the low half counts, as for
/// `recovery_target_xid` (`check_recovery_target_xid`, `xlogrecovery.c`).
fn transaction_id(text: &str) -> Result<u32> {
    text.parse::<u64>().map(|id| id as u32).map_err(|_| {
        Error::invalid(format!(
            "\"{text}\" is not a transaction id; give its number in decimal"
        ))
    })
}

/// What tells the AWS SDK where and as whom to work, and is no secret.
const AWS_VARIABLES: [&str; 7] = [
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
];

/// The words that start this program with the same settings, for the recovered server's
/// `restore_command`. What was not read from the file travels as environment variables; none of them
/// is a secret, and credentials stay where they are.
fn this_walship(settings: &Settings) -> Result<Vec<String>> {
    let (file, mut variables) = settings.to_reproduce();
    let aws: Vec<_> = AWS_VARIABLES
        .iter()
        .filter_map(|name| Some((*name, std::env::var(name).ok()?)))
        .collect();
    if matches!(settings.archive()?, Location::S3 { .. }) {
        variables.extend(
            aws.iter()
                .map(|(name, value)| ((*name).to_owned(), value.as_str())),
        );
    }
    let mut words = Vec::new();
    if !variables.is_empty() {
        words.push("env".to_owned());
        words.extend(variables.iter().map(|(name, value)| format!("{name}={value}")));
    }
    let program = std::env::current_exe().map_err(|error| Error::io("find this program", error))?;
    words.push(text_of(&program)?);
    if let Some(file) = file.filter(|file| *file != Path::new(DEFAULT_FILE)) {
        words.extend(["--config".to_owned(), text_of(&absolute(file)?)?]);
    }
    Ok(words)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(format!("find {}", path.display()), error))
}

fn text_of(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::invalid(format!("the path {} is not UTF-8", path.display())))
}

fn list(args: &cli::ListArgs, settings: &Settings) -> Result<ExitCode> {
    let part = match args.part {
        None => ListPart::All,
        Some(cli::ListPart::Backups) => ListPart::Backups,
        Some(cli::ListPart::Wal) => ListPart::Wal,
    };
    let report = finish(one_thread()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        list::run(part, &store).await
    })?;
    print(&report, args.json, ToString::to_string)
}

/// Prints a report as JSON, or as a person reads it.
fn print<T: Serialize>(report: &T, json: bool, text: impl FnOnce(&T) -> String) -> Result<ExitCode> {
    let text = if json {
        serde_json::to_string_pretty(report)
            .map_err(|error| Error::internal(format!("write JSON: {error}; this is a defect in walship")))?
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
