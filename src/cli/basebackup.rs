//! `walship basebackup`.

use clap::{Args, ValueEnum};

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
    /// Most bytes a second the server may send, such as 100MiB; 32KiB to 1GiB
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
