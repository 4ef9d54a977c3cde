//! `walship list`.

use std::process::ExitCode;

use chrono::Utc;
use walship::Result;
use walship::commands::list::{self, ListPart};
use walship::config::Settings;
use walship::store::Store;

use super::{finish, one_thread, print};
use crate::cli;

pub(super) fn run(args: &cli::ListArgs, settings: &Settings) -> Result<ExitCode> {
    let part = match args.part {
        None => ListPart::All,
        Some(cli::ListPart::Backups) => ListPart::Backups,
        Some(cli::ListPart::Wal) => ListPart::Wal,
    };
    let report = finish(one_thread()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        list::run(part, &store, &settings.retention, Utc::now()).await
    })?;
    print(&report, args.json, ToString::to_string)
}
