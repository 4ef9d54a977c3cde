//! Flags of `walship expire`.

use std::process::ExitCode;

use chrono::Utc;
use clap::Args;

use super::{ExpireOptions, run};
use crate::config::Settings;
use crate::edge::print::print;
use crate::edge::runtime::{on_many_threads, open};
use crate::edge::watched;
use crate::error::{ErrorKind, Result};

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
        let report = on_many_threads(watched(async |progress| {
            let store = open(settings).await?;
            run(&options, &store, Utc::now(), progress).await
        }))?;
        let printed = print(&report, self.json, ToString::to_string)?;
        Ok(if report.left_something() {
            ErrorKind::Denied.exit_code().into()
        } else {
            printed
        })
    }
}
