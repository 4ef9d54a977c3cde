//! `walship setup`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Arguments of `walship setup`.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// What to set up.
    #[command(subcommand)]
    pub what: SetupCommand,
}

/// What to set up.
#[derive(Debug, Subcommand)]
pub enum SetupCommand {
    /// Show what a server lacks for archiving and replication, and why, as SQL and pg_hba.conf lines; or do it
    Primary(SetupPrimaryArgs),
}

/// Arguments of `walship setup primary`.
#[derive(Debug, Args)]
pub struct SetupPrimaryArgs {
    /// The server, as a superuser: a libpq connection string or URI; PGHOST, PGUSER and the rest count as well
    #[arg(short, long = "dbname", value_name = "CONNINFO")]
    pub dbname: Option<String>,
    /// Do it; at the end switch WAL and see the segment arrive in the archive
    #[arg(long)]
    pub apply: bool,
    /// The role that replicas log in as
    #[arg(long, value_name = "NAME", default_value = "replicator")]
    pub role: String,
    /// A network that replicas log in from, such as 10.0.0.5/32; may be given for each [default: this machine]
    #[arg(long, value_name = "CIDR")]
    pub replica_address: Vec<String>,
    /// A file with the role's password on its first line [default: WALSHIP_REPLICATION_PASSWORD, or a new one is made up]
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The password file that gets the role's password [default: PGPASSFILE, or ~/.pgpass]
    #[arg(long, value_name = "FILE")]
    pub passfile: Option<PathBuf>,
    /// Time for the segment to arrive in the archive
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    pub timeout: String,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
