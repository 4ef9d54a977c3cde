//! `walship list`.

use std::process::ExitCode;

use chrono::Utc;
use walship::config::Settings;
use walship::pg::parse_timestamp;
use walship::store::Store;
use walship::verbs::list::{self, ListPart};
use walship::{Error, Result};

use super::{finish, one_thread, print};
use crate::cli;

pub(super) fn run(args: &cli::ListArgs, settings: &Settings) -> Result<ExitCode> {
    let part = match args.part {
        None => ListPart::All,
        Some(cli::ListPart::Backups) => ListPart::Backups,
        Some(cli::ListPart::Wal) => ListPart::Wal,
    };
    if let Some(time) = &args.at {
        return at(time, part, args.json, settings);
    }
    let report = finish(one_thread()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        list::run(part, &store, &settings.retention, Utc::now()).await
    })?;
    print(&report, args.json, ToString::to_string)
}

fn at(time: &str, part: ListPart, json: bool, settings: &Settings) -> Result<ExitCode> {
    let time = parse_timestamp(time)?;
    if part != ListPart::Wal {
        return Err(Error::invalid(
            "--at shows the WAL of a moment; write walship list wal --at TIME",
        ));
    }
    let report = finish(one_thread()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        list::at(time, &store).await
    })?;
    print(&report, json, ToString::to_string)
}
