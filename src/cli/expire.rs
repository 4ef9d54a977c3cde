//! `walship expire` and `walship keep`.

use clap::Args;

/// Arguments of `walship expire`. What is kept stands in the configuration, in [retention].
#[derive(Debug, Args)]
pub struct ExpireArgs {
    /// Only show what would be kept and deleted, and why
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `walship keep`.
#[derive(Debug, Args)]
pub struct KeepArgs {
    /// The backup, as walship list shows it
    #[arg(value_name = "ID")]
    pub id: String,
    /// Keep it until this day begins (2027-01-01, in UTC) or this moment ("2027-01-01 12:00:00+01")
    #[arg(long, value_name = "DATE", conflicts_with_all = ["forever", "release"])]
    pub until: Option<String>,
    /// Keep it until it is released; the same as no flag
    #[arg(long, conflicts_with = "release")]
    pub forever: bool,
    /// Let the policy decide again
    #[arg(long)]
    pub release: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
