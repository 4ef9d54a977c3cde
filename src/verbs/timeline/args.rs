//! Flags of `walship timeline`.

use std::process::ExitCode;

use chrono::Utc;
use clap::{Args, Subcommand};

use super::{list, reinstate, retire};
use crate::config::Settings;
use crate::edge::print::print;
use crate::edge::runtime::{on_many_threads, open};
use crate::error::Result;
use crate::pg::TimelineId;

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
    /// Show the timelines in the archive, where they branched off, how far each goes, and which one a recovery follows
    List {
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Mark a timeline that nobody is to follow, such as a forgotten rehearsal's; nothing of it is deleted
    Retire(RetireArgs),
    /// Take the mark away again
    #[command(visible_alias = "unretire")]
    Reinstate {
        /// The timeline, as walship timeline list shows it
        #[arg(value_name = "TIMELINE")]
        timeline: TimelineId,
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
    pub timeline: TimelineId,
    /// Why, in one line; shown wherever the timeline is left out
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl TimelineArgs {
    pub fn run(&self, settings: &Settings) -> Result<ExitCode> {
        on_many_threads(async {
            let store = open(settings).await?;
            match &self.command {
                TimelineCommand::List { json } => print(&list(&store).await?, *json, ToString::to_string),
                TimelineCommand::Retire(args) => {
                    let report = retire(args.timeline, &args.reason, &store, Utc::now()).await?;
                    print(&report, args.json, ToString::to_string)
                }
                TimelineCommand::Reinstate { timeline, json } => {
                    let report = reinstate(*timeline, &store).await?;
                    print(&report, *json, ToString::to_string)
                }
            }
        })
    }
}
