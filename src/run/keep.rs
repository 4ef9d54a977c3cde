//! `walship keep`.

use std::process::ExitCode;

use chrono::{DateTime, NaiveDate, Utc};
use walship::Result;
use walship::config::Settings;
use walship::pg::parse_timestamp;
use walship::store::Store;
use walship::verbs::keep::{self, Mark};

use super::{finish, one_thread, print};
use crate::cli;

pub(super) fn run(args: &cli::KeepArgs, settings: &Settings) -> Result<ExitCode> {
    let id = args.id.parse()?;
    let mark = if args.release {
        Mark::Release
    } else {
        Mark::Set(args.until.as_deref().map(moment).transpose()?)
    };
    let report = finish(one_thread()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        keep::run(&id, mark, &store, Utc::now()).await
    })?;
    print(&report, args.json, ToString::to_string)
}

/// A day means its first moment in UTC.
fn moment(text: &str) -> Result<DateTime<Utc>> {
    let day = text
        .parse::<NaiveDate>()
        .ok()
        .and_then(|day| day.and_hms_opt(0, 0, 0));
    day.map_or_else(|| parse_timestamp(text), |midnight| Ok(midnight.and_utc()))
}
