//! Flags of `walship schedule`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use walship_client::{Answer, Ask};

use super::run;
use crate::config::Settings;
use crate::edge::agent::address_for;
use crate::edge::pgdata;
use crate::edge::print::print;
use crate::edge::schedule::StateFile;
use crate::error::{Error, Result};

/// How long the agent is waited for.
const PING: Duration = Duration::from_secs(3);

/// Arguments of `walship schedule`.
#[derive(Debug, Args)]
pub struct ScheduleArgs {
    /// The data directory that the agent serves [env: PGDATA]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl ScheduleArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        let data_directory = pgdata(self.pgdata)
            .ok_or_else(|| Error::invalid("no data directory is named; give --pgdata DIR, or set PGDATA"))?;
        let file = StateFile::of(settings, &data_directory)?;
        let address = address_for(settings, &data_directory)?;
        let answer = walship_client::ask(&address, Ask::Ping, PING);
        let answers = matches!(answer, Some(Ok(Answer::Alive)));
        let report = run(settings, &file, answers, Utc::now())?;
        print(&report, self.json, ToString::to_string)
    }
}
