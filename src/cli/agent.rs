//! `walship agent`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `walship agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The data directory to serve [env: PGDATA]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Only say whether an agent answers: exit code 0 if one does
    #[arg(long)]
    pub ping: bool,
    /// Started by this process, a push or restore: ends when idle, and with its server
    #[arg(long, value_name = "PID", hide = true)]
    pub started_by: Option<i32>,
}
