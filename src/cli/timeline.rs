//! `walship timeline`.

use clap::{Args, Subcommand};

/// Arguments of `walship timeline`.
#[derive(Debug, Args)]
pub struct TimelineArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TimelineCommand,
}

/// What can be done with timelines.
#[derive(Debug, Subcommand)]
pub enum TimelineCommand {
    /// Show the timelines in the archive, where they parted, how far each goes, and which one a recovery follows
    List {
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Mark a timeline that nobody shall follow, such as a forgotten rehearsal's; nothing of it is deleted
    Retire(RetireArgs),
    /// Take the mark away again
    #[command(visible_alias = "unretire")]
    Reinstate {
        /// The timeline, as walship timeline list shows it
        #[arg(value_name = "TIMELINE")]
        timeline: u32,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `walship timeline retire`.
#[derive(Debug, Args)]
pub struct RetireArgs {
    /// The timeline, as walship timeline list shows it
    #[arg(value_name = "TIMELINE")]
    pub timeline: u32,
    /// Why, in one line; shown wherever the timeline is left out
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
