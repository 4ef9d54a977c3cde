//! The commands that PostgreSQL runs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Arguments of `walship push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The file, as PostgreSQL gives it with %p: relative to the data directory
    pub path: PathBuf,
    /// Store the last segment of a server that is gone for good, though it is not whole: beside the whole ones, under a
    /// name of its own
    #[arg(long)]
    pub unfinished: bool,
}

/// Arguments of `walship restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The file's name, as PostgreSQL gives it with %f
    pub name: String,
    /// Where to put it, as PostgreSQL gives it with %p
    pub destination: PathBuf,
    /// The first segment of a hole at which recovery may end; recover --end-at-gap writes it
    #[arg(long, value_name = "SEGMENT")]
    pub accept_gap: Option<String>,
    /// Where tablespaces lie that the WAL makes: within the data directory (inside), or where it says, if nothing is in the way (checked); recover and basebackup --seed-replica write it
    #[arg(long, value_enum, value_name = "WHERE")]
    pub new_tablespaces: Option<NewTablespaces>,
}

/// Where tablespaces lie that the WAL makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NewTablespaces {
    /// Within the data directory.
    Inside,
    /// Where the WAL says.
    Checked,
}
