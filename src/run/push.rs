//! `walship push`.

use std::process::ExitCode;

use chrono::Utc;
use walship::Result;
use walship::commands::push::{self, PushOptions};
use walship::config::Settings;

use super::{finish, one_thread, open_within, within};
use crate::cli;

pub(super) fn run(args: cli::PushArgs, settings: &Settings) -> Result<ExitCode> {
    let options = PushOptions {
        path: args.path,
        compression_level: settings.push.compression_level,
        memory_bytes: settings.push.memory_bytes,
    };
    let limit = settings.push.timeout;
    let work = async {
        let store = open_within(limit, settings).await?;
        push::run(&options, &store, Utc::now()).await
    };
    finish(one_thread()?, within(limit, "push.timeout", work))?;
    Ok(ExitCode::SUCCESS)
}
