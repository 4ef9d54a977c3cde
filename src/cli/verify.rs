//! `walship verify`.

use clap::Args;

/// Arguments of `walship verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Read only what was written since: a moment, or how long ago, such as 7d
    #[arg(long, value_name = "WHEN", conflicts_with = "full")]
    pub since: Option<String>,
    /// Read everything, whatever earlier runs found good
    #[arg(long)]
    pub full: bool,
    /// Most bytes a second to read from the store, such as 50MiB
    #[arg(long, value_name = "RATE")]
    pub max_rate: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
