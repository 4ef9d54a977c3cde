//! Flags of `walship keep`.

use std::process::ExitCode;

use chrono::{DateTime, NaiveDate, Utc};
use clap::Args;

use super::{Mark, run};
use crate::config::Settings;
use crate::edge::print::print;
use crate::edge::runtime::{on_one_thread, open};
use crate::error::Result;
use crate::format::keys::BackupId;
use crate::pg::parse_timestamp;

/// Arguments of `walship keep`.
#[derive(Debug, Args)]
pub struct KeepArgs {
    /// The backup, as walship list shows it
    #[arg(value_name = "ID")]
    pub id: BackupId,
    /// Keep it until this day begins (2027-01-01, in UTC) or this moment ("2027-01-01 12:00:00+01")
    #[arg(long, value_name = "DATE", value_parser = moment, conflicts_with_all = ["forever", "release"])]
    pub until: Option<DateTime<Utc>>,
    /// Keep it until it is released; the same as no flag
    #[arg(long, conflicts_with = "release")]
    pub forever: bool,
    /// Let the policy decide again
    #[arg(long)]
    pub release: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl KeepArgs {
    pub fn run(&self, settings: &Settings) -> Result<ExitCode> {
        let mark = if self.release {
            Mark::Release
        } else {
            Mark::Set(self.until)
        };
        let report = on_one_thread(async {
            let store = open(settings).await?;
            run(&self.id, mark, &store, Utc::now()).await
        })?;
        print(&report, self.json, ToString::to_string)
    }
}

/// A day means its first moment in UTC.
fn moment(text: &str) -> Result<DateTime<Utc>> {
    let day = text
        .parse::<NaiveDate>()
        .ok()
        .and_then(|day| day.and_hms_opt(0, 0, 0));
    day.map_or_else(|| parse_timestamp(text), |midnight| Ok(midnight.and_utc()))
}
