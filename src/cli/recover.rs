//! `walship recover`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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
    /// Whether the recovered server archives: on (or keep), as configured, where it takes its source's place; off in a copy;
    /// auto: off unless the source is surely gone, which cannot be seen
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
    /// A moment, such as "2026-11-23 04:15:00+01" or 2026-11-23T03:15:00Z. PostgreSQL is given the position of the last
    /// transaction that ended, or was prepared, until then, for by itself it goes on up to the next commit
    #[arg(long, value_name = "TIME")]
    pub target_time: Option<String>,
    /// A position in the WAL, such as 16/B374D848
    #[arg(long, value_name = "LSN")]
    pub target_lsn: Option<String>,
    /// A transaction's number (xid), such as 743
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
    /// Off, unless it is sure that the source is gone.
    Auto,
    /// As the configuration has it, for it takes its source's place.
    #[value(alias = "keep")]
    On,
    /// Off.
    Off,
}
