//! `walship repair`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `walship repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// The file of pg_wal whose stored object is damaged: a segment, .partial, .history or .backup
    pub name: String,
    /// The good copy [default: the file of that name in pg_wal of the data directory]
    #[arg(long, value_name = "FILE", conflicts_with = "pgdata")]
    pub from: Option<PathBuf>,
    /// The data directory [env: PGDATA]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
