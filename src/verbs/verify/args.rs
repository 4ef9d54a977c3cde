//! Flags of `walship verify`.

use std::process::ExitCode;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;

use super::{VerifyOptions, run};
use crate::config::{Settings, parse_duration};
use crate::edge::notify::told;
use crate::edge::runtime::{on_many_threads, open};
use crate::edge::watched;
use crate::error::{Error, ErrorKind, Result};
use crate::judge::schedule::Job;
use crate::pg::parse_timestamp;

/// After this time, objects that seem wrong are looked at again. A push that runs ahead of another ends within it.
const SECOND_LOOK_AFTER: Duration = Duration::from_secs(5);

/// Arguments of `walship verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Read only what was written since: a moment, or how long ago, such as 7d
    #[arg(long, value_name = "WHEN", conflicts_with = "full")]
    pub since: Option<String>,
    /// Read everything, even what earlier runs found good
    #[arg(long)]
    pub full: bool,
    /// Most bytes a second to read from the store, such as 50MiB
    #[arg(long, value_name = "RATE")]
    pub max_rate: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl VerifyArgs {
    /// The settings that are flags here, by key.
    pub fn settings(&self) -> [(&'static str, &Option<String>); 1] {
        [("verify.max_rate", &self.max_rate)]
    }

    /// Exit code 7 where something is damaged or missing.
    pub fn run(&self, settings: &Settings) -> Result<ExitCode> {
        let now = Utc::now();
        let options = VerifyOptions {
            full: self.full,
            since: self.since.as_deref().map(|text| since(text, now)).transpose()?,
            recheck: settings.verify.recheck,
            concurrency: settings.verify.concurrency,
            max_rate: settings.verify.max_rate.map(|rate| rate.0),
            second_look_after: SECOND_LOOK_AFTER,
        };
        let work = || {
            let report = on_many_threads(watched(async |progress| {
                let store = open(settings).await?;
                run(&options, &store, now, progress).await
            }))?;
            let code = (!report.is_clean).then(|| ErrorKind::Corrupt.exit_code());
            Ok((report, code.unwrap_or_default()))
        };
        told(Job::Verify, settings, self.json, work)
    }
}

/// A moment, or how long ago it was.
fn since(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    if let Ok(ago) = parse_duration(text) {
        let ago = TimeDelta::from_std(ago).ok();
        return ago
            .and_then(|ago| now.checked_sub_signed(ago))
            .ok_or_else(|| Error::invalid(format!("--since {text} is too long ago; leave it out")));
    }
    parse_timestamp(text).map_err(|error| error.context("--since takes a time such as 7d, or a moment"))
}
