//! `walship status`.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::Utc;
use walship::Result;
use walship::config::Settings;
use walship::server::ConnInfo;
use walship::store::Store;
use walship::verbs::status::{self, StatusOptions};

use super::{doctor::limits, finish, one_thread, print};
use crate::cli;
use crate::exit::STATUS_WARNS;

pub(super) fn run(args: cli::StatusArgs, settings: &Settings) -> Result<ExitCode> {
    let environment = |name: &str| std::env::var(name).ok();
    let connection = args
        .dbname
        .as_deref()
        .map(|given| ConnInfo::resolve_database(Some(given), environment))
        .transpose()?;
    let from_environment = std::env::var_os("PGDATA").filter(|path| !path.is_empty());
    let options = StatusOptions {
        policy: settings.retention,
        limits: limits(settings),
        pgdata: args.pgdata.or_else(|| from_environment.map(PathBuf::from)),
        timeout: settings.doctor.timeout,
    };
    let report = finish(one_thread()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        status::run(&options, connection.as_ref(), &store, Utc::now()).await
    })?;
    let printed = print(&report, args.json, ToString::to_string)?;
    Ok(if report.warnings.is_empty() {
        printed
    } else {
        STATUS_WARNS.into()
    })
}
