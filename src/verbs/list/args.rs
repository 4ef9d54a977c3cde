//! Flags of `walship list`.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::Args;

use super::{ListPart, at, run};
use crate::config::Settings;
use crate::edge::print::print;
use crate::edge::runtime::{on_many_threads, open};
use crate::error::{Error, Result};
use crate::pg::parse_timestamp;

/// Arguments of `walship list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this part
    #[arg(value_enum)]
    pub part: Option<ListPart>,
    /// With wal: show the segments that hold this moment, such as "2026-11-23 04:15:00+01" or 2026-11-23T03:15:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp)]
    pub at: Option<DateTime<Utc>>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl ListArgs {
    pub fn run(&self, settings: &Settings) -> Result<ExitCode> {
        if let Some(time) = self.at {
            return self.at(time, settings);
        }
        let report = on_many_threads(async {
            let store = open(settings).await?;
            run(self.part, &store, &settings.retention, Utc::now()).await
        })?;
        print(&report, self.json, ToString::to_string)
    }

    fn at(&self, time: DateTime<Utc>, settings: &Settings) -> Result<ExitCode> {
        if self.part != Some(ListPart::Wal) {
            return Err(Error::invalid(
                "--at shows the WAL of a moment; write walship list wal --at TIME",
            ));
        }
        let report = on_many_threads(async {
            let store = open(settings).await?;
            at(time, &store).await
        })?;
        print(&report, self.json, ToString::to_string)
    }
}
