//! `walship doctor`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `walship doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The server: a libpq connection string or URI; PGHOST, PGUSER and the rest count as well
    #[arg(short, long = "dbname", value_name = "CONNINFO")]
    pub dbname: Option<String>,
    /// The server's data directory on this machine [default: what the server says]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Only say whether this standby may be promoted: exit 0 if it may, 2 if not; for Patroni's pre_promote
    #[arg(long, conflicts_with = "pgdata")]
    pub before_promote: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
