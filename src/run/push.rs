//! `walship push`.

use std::path::Path;
use std::process::ExitCode;

use chrono::Utc;
use walship::Result;
use walship::agent;
use walship::cluster::compressor::Compressor;
use walship::config::Settings;
use walship::server::data_directory::data_directory_of;
use walship::verbs::push;
use walship_client::{Answer, Ask};

use super::agent::address_for;
use super::{absolute, finish, one_thread, open_within, print, within};
use crate::cli;

pub(super) fn run(args: &cli::PushArgs, settings: &Settings) -> Result<ExitCode> {
    if args.unfinished {
        return unfinished(&args.path, settings);
    }
    if let Some(stored) = ask_agent(&args.path, settings) {
        return stored.map(|()| ExitCode::SUCCESS);
    }
    let data_directory = data_directory_of(&args.path);
    let compressor = Compressor::new(
        settings.push.compression_level,
        settings.push.memory.0 as usize,
        1,
    );
    let limit = settings.push.timeout;
    let work = async {
        let store = open_within(limit, settings).await?;
        push::run(&args.path, &compressor, &store, Utc::now()).await
    };
    finish(one_thread()?, within(limit, "push.timeout", work))?;
    if settings.agent.autostart && agent::is_behind(&data_directory) {
        super::agent::start(settings, &data_directory);
    }
    Ok(ExitCode::SUCCESS)
}

/// For the rescue of a server that is gone.
fn unfinished(path: &Path, settings: &Settings) -> Result<ExitCode> {
    let compressor = Compressor::new(
        settings.push.compression_level,
        settings.push.memory.0 as usize,
        1,
    );
    let limit = settings.push.timeout;
    let work = async {
        let store = open_within(limit, settings).await?;
        push::run_unfinished(path, &compressor, &store, Utc::now()).await
    };
    let report = finish(one_thread()?, within(limit, "push.timeout", work))?;
    print(&report.key, false, |_| report.to_string())
}

/// What an agent says of the file; `None` where there is none to be relied on.
fn ask_agent(path: &Path, settings: &Settings) -> Option<Result<()>> {
    let address = address_for(settings, &data_directory_of(path)).ok()?;
    let file = std::fs::metadata(path).ok().as_ref().map(Into::into)?;
    let path = absolute(path).ok()?;
    match walship_client::ask(&address, Ask::Push { path, file }, settings.push.timeout)? {
        Ok(Answer::Stored) => Some(Ok(())),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    }
}
