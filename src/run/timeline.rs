//! `walship timeline`.

use std::process::ExitCode;

use chrono::Utc;
use walship::Result;
use walship::config::Settings;
use walship::pg::TimelineId;
use walship::store::Store;
use walship::verbs::timeline;

use super::{finish, many_threads, print};
use crate::cli::{TimelineArgs, TimelineCommand};

pub(super) fn run(args: &TimelineArgs, settings: &Settings) -> Result<ExitCode> {
    finish(many_threads()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        match &args.command {
            TimelineCommand::List { json } => {
                let report = timeline::list(&store).await?;
                print(&report, *json, ToString::to_string)
            }
            TimelineCommand::Retire(args) => {
                let timeline = TimelineId::new(args.timeline)?;
                let report = timeline::retire(timeline, &args.reason, &store, Utc::now()).await?;
                print(&report, args.json, ToString::to_string)
            }
            TimelineCommand::Reinstate { timeline, json } => {
                let report = timeline::reinstate(TimelineId::new(*timeline)?, &store).await?;
                print(&report, *json, ToString::to_string)
            }
        }
    })
}
