//! Flags of `walship push`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use chrono::Utc;
use clap::Args;
use walship_client::protocol::What;
use walship_client::{Answer, Ask};

use super::{run, run_unfinished};
use crate::cluster::compressor::Compressor;
use crate::config::{Settings, cores};
use crate::edge::absolute;
use crate::edge::agent::{address_for, start, tell};
use crate::edge::print::print;
use crate::edge::runtime::{on_one_thread, open_within, within};
use crate::error::Result;
use crate::server::archive_status::is_behind;
use crate::server::data_directory::data_directory_of;

/// Arguments of `walship push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The file, as PostgreSQL gives it with %p: relative to the data directory
    pub path: PathBuf,
    /// Store the last segment of a server that is gone for good although it is not whole, beside the whole ones and
    /// under a name of its own
    #[arg(long)]
    pub unfinished: bool,
}

impl PushArgs {
    pub fn run(&self, settings: &Settings) -> Result<ExitCode> {
        if let Some(stored) = self.ask_agent(settings) {
            return stored.map(|()| ExitCode::SUCCESS);
        }
        let compressor = Compressor::new(
            settings.push.compression_level,
            settings.push.memory.0 as usize,
            cores(),
        );
        let limit = settings.push.timeout;
        let open = open_within(limit, settings);
        if self.unfinished {
            let work = async { run_unfinished(&self.path, &compressor, &open.await?, Utc::now()).await };
            let report = on_one_thread(within(limit, "push.timeout", work))?;
            return print(&report.key, false, |_| report.to_string());
        }
        let begun = Instant::now();
        let work = async { run(&self.path, &compressor, &open.await?, Utc::now()).await };
        let pushed = on_one_thread(within(limit, "push.timeout", work));
        let data_directory = data_directory_of(&self.path);
        tell(settings, &data_directory, What::Push, begun, &pushed);
        pushed?;
        if settings.agent.autostart && is_behind(&data_directory) {
            start(settings, &data_directory);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The agent's answer; `None` where no agent can be relied on.
    fn ask_agent(&self, settings: &Settings) -> Option<Result<()>> {
        if self.unfinished {
            return None;
        }
        let address = address_for(settings, &data_directory_of(&self.path)).ok()?;
        let file = std::fs::metadata(&self.path).ok().as_ref().map(Into::into)?;
        let path = absolute(&self.path).ok()?;
        match walship_client::ask(&address, Ask::Push { path, file }, settings.push.timeout)? {
            Ok(Answer::Stored) => Some(Ok(())),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
