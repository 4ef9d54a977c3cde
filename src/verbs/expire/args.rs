//! Flags of `walship expire`.

use std::process::ExitCode;

use chrono::Utc;
use clap::Args;

use super::{ExpireOptions, run};
use crate::config::Settings;
use crate::edge::notify::told;
use crate::edge::runtime::{on_many_threads, open};
use crate::edge::watched;
use crate::error::{ErrorKind, Result};
use crate::judge::schedule::Job;

/// Arguments of `walship expire`. The configuration, section retention, says what is kept.
#[derive(Debug, Args)]
pub struct ExpireArgs {
    /// Only show what would be kept and deleted, and why
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl ExpireArgs {
    /// Exit code 6 where something could not be deleted.
    pub fn run(&self, settings: &Settings) -> Result<ExitCode> {
        let options = ExpireOptions {
            policy: settings.retention,
            dry_run: self.dry_run,
        };
        let work = || {
            let report = on_many_threads(watched(async |progress| {
                let store = open(settings).await?;
                run(&options, &store, Utc::now(), progress).await
            }))?;
            let code = report.left_something().then(|| ErrorKind::Denied.exit_code());
            Ok((report, code.unwrap_or_default()))
        };
        // A preview is nobody's job.
        let settings = &if self.dry_run {
            settings.clone().silenced()
        } else {
            settings.clone()
        };
        told(Job::Expire, settings, self.json, work)
    }
}
