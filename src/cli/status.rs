//! `walship status`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `walship status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Ask this server for the WAL that waits for its archiver: a libpq connection string or URI
    #[arg(short, long = "dbname", value_name = "CONNINFO")]
    pub dbname: Option<String>,
    /// Or look for that WAL in this data directory [env: PGDATA]
    #[arg(long, value_name = "DIR", conflicts_with = "dbname")]
    pub pgdata: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
