//! `walship basebackup`.

use std::path::PathBuf;

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
        conflicts_with_all = ["finish", "seed_replica"]
    )]
    pub label: String,
    /// Whether the checkpoint at the start is made at once or spread over time
    #[arg(long, value_enum, default_value_t = Checkpoint::Fast, conflicts_with = "finish")]
    pub checkpoint: Checkpoint,
    /// Read the server's files over the replication protocol (stream) or from the data directory here (local) [default: stream]
    #[arg(long, value_name = "METHOD", conflicts_with_all = ["finish", "seed_replica"])]
    pub method: Option<String>,
    /// Most bytes a second to read from the server, such as 100MiB; 32KiB to 1GiB
    #[arg(long, value_name = "RATE", conflicts_with = "finish")]
    pub max_rate: Option<String>,
    /// Time to wait for the WAL the backup needs [default: 5m]
    #[arg(long, value_name = "DURATION", conflicts_with = "seed_replica")]
    pub wal_timeout: Option<String>,
    /// Begin a new archive, though this cluster has had one before; it remembers the new one from then on
    #[arg(long, conflicts_with_all = ["finish", "seed_replica"])]
    pub new_archive: bool,
    /// Complete a backup whose WAL had not arrived in time
    #[arg(long, value_name = "ID", conflicts_with_all = ["dbname", "seed_replica"])]
    pub finish: Option<String>,
    /// Make a ready standby in --pgdata, and store nothing
    #[arg(long, requires = "pgdata", help_heading = "Seeding a replica")]
    pub seed_replica: bool,
    /// How a replica is made.
    #[command(flatten)]
    pub seed: SeedArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// How a replica is made.
#[derive(Debug, Args)]
#[command(next_help_heading = "Seeding a replica")]
pub struct SeedArgs {
    /// The replica's data directory: empty or missing
    #[arg(long, value_name = "DIR", requires = "seed_replica")]
    pub pgdata: Option<PathBuf>,
    /// Where the data comes from: the archive where there is little WAL since its newest backup, else the primary (auto)
    #[arg(long, value_enum, default_value_t = SeedSource::Auto, requires = "seed_replica")]
    pub from: SeedSource,
    /// The replica's slot on the primary, made if it is not there or keeps no WAL [default: walship_ and this machine's name]
    #[arg(long, value_name = "NAME", requires = "seed_replica")]
    pub slot: Option<String>,
    /// Stream without a slot
    #[arg(long, requires = "seed_replica", conflicts_with = "slot")]
    pub no_slot: bool,
    /// Put a tablespace elsewhere; may be given for each
    #[arg(long, value_name = "OLD=NEW", requires = "seed_replica")]
    pub tablespace_mapping: Vec<String>,
    /// Start the replica, and wait until it streams
    #[arg(long, requires = "seed_replica")]
    pub start: bool,
}

/// Where a replica's data comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SeedSource {
    /// From the archive where there is little WAL since its newest backup, else from the primary.
    Auto,
    /// From the server, with pg_basebackup.
    Primary,
    /// From the archive, without load on the server.
    Archive,
}

/// How the checkpoint at the start of a base backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Checkpoint {
    /// At once, at the cost of a burst of writes.
    Fast,
    /// Spread over checkpoint_completion_target.
    Spread,
}
