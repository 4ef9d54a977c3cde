//! The command line: clap definitions, no logic.
#![allow(clippy::doc_markdown, rustdoc::bare_urls)] // what stands in a comment here is shown by --help as it is

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

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

/// Flags that every command takes.
#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// Configuration file [env: WALSHIP_CONFIG] [default: /etc/walship/walship.toml if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// URL of the archive: s3://bucket/prefix or file:///path [env: WALSHIP_ARCHIVE]
    #[arg(long, global = true, value_name = "URL")]
    pub archive: Option<String>,
    /// What is logged to stderr: error, warn, info, debug or trace [env: WALSHIP_LOG_LEVEL] [default: warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Format of what is logged: text or json [env: WALSHIP_LOG_FORMAT] [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Store one file of pg_wal; for archive_command = 'walship push %p'
    Push(PushArgs),
    /// Deliver one verified file; for restore_command = 'walship restore %f %p'
    Restore(RestoreArgs),
    /// Take a base backup over the replication protocol
    Basebackup(BasebackupArgs),
    /// Restore a backup into an empty directory, ready to recover to a target
    Recover(RecoverArgs),
    /// Show the backups and the WAL in the archive
    List(ListArgs),
    /// Print the completion script of a shell
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

/// Arguments of `walship push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The file, as PostgreSQL gives it with %p: relative to the data directory
    pub path: PathBuf,
}

/// Arguments of `walship restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The file's name, as PostgreSQL gives it with %f
    pub name: String,
    /// Where to put it, as PostgreSQL gives it with %p
    pub destination: PathBuf,
    /// The first segment of a hole at which recovery may end; recover --end-at-gap writes it
    #[arg(long, value_name = "SEGMENT")]
    pub accept_gap: Option<String>,
}

/// Arguments of `walship basebackup`.
#[derive(Debug, Args)]
pub struct BasebackupArgs {
    /// The server: a libpq connection string or URI; PGHOST, PGUSER and the rest count as well
    #[arg(short, long = "dbname", value_name = "CONNINFO")]
    pub dbname: Option<String>,
    /// A label for people
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "walship base backup",
        conflicts_with = "finish"
    )]
    pub label: String,
    /// Whether the checkpoint at the start is made at once or spread over time
    #[arg(long, value_enum, default_value_t = Checkpoint::Fast, conflicts_with = "finish")]
    pub checkpoint: Checkpoint,
    /// Most bytes a second the server may send, such as 100MiB; 32kB to 1GiB
    #[arg(long, value_name = "RATE", conflicts_with = "finish")]
    pub max_rate: Option<String>,
    /// Time to wait for the WAL the backup needs [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub wal_timeout: Option<String>,
    /// Complete a backup whose WAL had not arrived in time
    #[arg(long, value_name = "ID", conflicts_with = "dbname")]
    pub finish: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// How the checkpoint at the start of a base backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Checkpoint {
    /// At once, at the cost of a burst of writes.
    Fast,
    /// Spread over checkpoint_completion_target.
    Spread,
}

/// Arguments of `walship recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The data directory to make: empty or missing
    #[arg(long, value_name = "DIR")]
    pub pgdata: PathBuf,
    /// The backup to start from [default: the newest one that fits the target]
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Where recovery stops.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Timeline to recover along: a number, or latest
    #[arg(long, value_name = "TIMELINE")]
    pub target_timeline: Option<String>,
    /// Whether the target itself is still replayed
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new())]
    pub target_inclusive: Option<bool>,
    /// What the server does at the target [default: pause, as in PostgreSQL]
    #[arg(long, value_enum, value_name = "ACTION")]
    pub target_action: Option<TargetAction>,
    /// Put a tablespace elsewhere; may be given for each
    #[arg(long, value_name = "OLD=NEW")]
    pub tablespace_mapping: Vec<String>,
    /// Whether the recovered server archives: off where the source is seen to be alive (auto), as configured (keep), or not (off)
    #[arg(long, value_enum, default_value_t = ArchiveMode::Auto)]
    pub archive_mode: ArchiveMode,
    /// Accept that recovery ends where WAL is missing in the archive
    #[arg(long)]
    pub end_at_gap: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Where recovery stops: at most one of these; the end of the archived WAL otherwise.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// A moment, such as "2026-11-23 04:15:00+01" or 2026-11-23T03:15:00Z
    #[arg(long, value_name = "TIME")]
    pub target_time: Option<String>,
    /// A position in the WAL, such as 16/B374D848
    #[arg(long, value_name = "LSN")]
    pub target_lsn: Option<String>,
    /// A transaction
    #[arg(long, value_name = "XID")]
    pub target_xid: Option<String>,
    /// A restore point made with pg_create_restore_point
    #[arg(long, value_name = "NAME")]
    pub target_name: Option<String>,
    /// The first consistent moment: the end of the backup
    #[arg(long)]
    pub target_immediate: bool,
}

/// `recovery_target_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TargetAction {
    /// Stay readable and wait for a decision.
    Pause,
    /// Open for writing, on a new timeline.
    Promote,
    /// Shut down.
    Shutdown,
}

/// `archive_mode` of the recovered server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArchiveMode {
    /// Off where the archive shows that the source is alive.
    Auto,
    /// As the configuration has it.
    Keep,
    /// Off.
    Off,
}

/// Arguments of `walship list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this part
    #[arg(value_enum)]
    pub part: Option<ListPart>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// A part of what `walship list` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListPart {
    /// The base backups.
    Backups,
    /// The WAL of each timeline.
    Wal,
}
