//! `walship list`.

use clap::{Args, ValueEnum};

/// Arguments of `walship list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this part
    #[arg(value_enum)]
    pub part: Option<ListPart>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// A part of what `walship list` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListPart {
    /// The base backups.
    Backups,
    /// The WAL of each timeline.
    Wal,
}
