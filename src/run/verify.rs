//! `walship verify`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use walship::config::{Settings, parse_duration};
use walship::pg::parse_timestamp;
use walship::progress::Progress;
use walship::store::Store;
use walship::verbs::verify::{self, VerifyOptions};
use walship::{Error, ErrorKind, Result};

use super::{finish, many_threads, print};
use crate::{cli, progress_bar};

/// What seems wrong is looked at again after this time: a push that runs ahead of another ends in it.
const SETTLE: Duration = Duration::from_secs(5);

pub(super) fn run(args: &cli::VerifyArgs, settings: &Settings) -> Result<ExitCode> {
    let now = Utc::now();
    let options = VerifyOptions {
        full: args.full,
        since: args.since.as_deref().map(|text| since(text, now)).transpose()?,
        recheck: settings.verify.recheck,
        concurrency: settings.verify.concurrency,
        max_rate: settings.verify.max_rate.map(|rate| rate.0),
        settle: SETTLE,
    };
    let progress = Arc::new(Progress::default());
    let report = finish(many_threads()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        let work = verify::run(&options, &store, now, &progress);
        progress_bar::watch(&progress, Box::pin(work)).await
    })?;
    let printed = print(&report, args.json, ToString::to_string)?;
    if report.is_clean {
        return Ok(printed);
    }
    Ok(ErrorKind::Corrupt.exit_code().into())
}

/// A moment, or how long ago it was.
fn since(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    if let Ok(ago) = parse_duration(text) {
        let ago = TimeDelta::from_std(ago).ok();
        return ago
            .and_then(|ago| now.checked_sub_signed(ago))
            .ok_or_else(|| Error::invalid(format!("--since {text} lies too far back; leave it out")));
    }
    parse_timestamp(text).map_err(|error| error.context("--since takes a time such as 7d, or a moment"))
}
