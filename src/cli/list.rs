//! `walship list`.

use clap::{Args, ValueEnum};

/// Arguments of `walship list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this part
    #[arg(value_enum)]
    pub part: Option<ListPart>,
    /// With wal: the segments that hold this moment, such as "2026-11-23 04:15:00+01" or 2026-11-23T03:15:00Z
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
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
