//! The command line: clap definitions, no logic. One file for each command.
#![allow(clippy::doc_markdown, rustdoc::bare_urls)] // what stands in a comment here is shown by --help as it is

mod agent;
mod basebackup;
mod doctor;
mod drill;
mod expire;
mod list;
mod patroni;
mod recover;
mod repair;
mod setup;
mod status;
mod timeline;
mod verify;
mod wal;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use agent::AgentArgs;
pub use basebackup::{BasebackupArgs, Checkpoint, SeedSource};
pub use doctor::DoctorArgs;
pub use drill::DrillArgs;
pub use expire::{ExpireArgs, KeepArgs};
pub use list::{ListArgs, ListPart};
pub use patroni::{PatroniArgs, PatroniBootstrapArgs, PatroniReplicaArgs, as_clap_takes_them};
pub use recover::{ArchiveMode, RecoverArgs, TargetAction, TargetArgs};
pub use repair::RepairArgs;
pub use setup::{SetupArgs, SetupCommand, SetupPrimaryArgs};
pub use status::StatusArgs;
pub use timeline::{TimelineArgs, TimelineCommand};
pub use verify::VerifyArgs;
pub use wal::{NewTablespaces, PushArgs, RestoreArgs};

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

/// In --help, what every command takes comes after what is the command's own; before --help and --version.
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
    /// Show the timelines in the archive, and say which of them nobody shall follow
    Timeline(TimelineArgs),
    /// Prepare a server for archiving and replication
    Setup(SetupArgs),
    /// Read what is stored, check it, and say what it is worth
    Verify(VerifyArgs),
    /// Replace a damaged WAL file in the archive by a good local copy
    Repair(RepairArgs),
    /// Store WAL ahead of the archiver and fetch it ahead of recovery, as a long-lived process
    Agent(AgentArgs),
    /// Print the completion script of a shell
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, with every command
    Man,
}
