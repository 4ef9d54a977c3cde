//! `walship drill`.

use std::path::PathBuf;

use clap::Args;

use super::TargetArgs;

/// Arguments of `walship drill`.
#[derive(Debug, Args)]
pub struct DrillArgs {
    /// The backup to prove [default: the newest one that fits the target]
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Where recovery stops.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Timeline to recover along: a number, or latest
    #[arg(long, value_name = "TIMELINE")]
    pub target_timeline: Option<String>,
    /// Your own checks, run in the recovered server: a statement that fails, returns no row, or has false or NULL in its first column fails the drill
    #[arg(long, value_name = "FILE")]
    pub sql: Option<PathBuf>,
    /// The database that --sql runs in
    #[arg(long, value_name = "NAME", default_value = "postgres", requires = "sql")]
    pub sql_database: String,
    /// Leave the scratch directory, with the server stopped, and print how to start it
    #[arg(long)]
    pub keep: bool,
    /// Only remove what killed drills and --keep left in drill.directory
    #[arg(long, conflicts_with_all = ["backup", "sql", "keep"])]
    pub clean: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
