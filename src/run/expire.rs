//! `walship expire`.

use std::process::ExitCode;
use std::sync::Arc;

use chrono::Utc;
use walship::config::Settings;
use walship::progress::Progress;
use walship::store::Store;
use walship::verbs::expire::{self, ExpireOptions};
use walship::{ErrorKind, Result};

use super::{finish, one_thread, print};
use crate::{cli, progress_bar};

pub(super) fn run(args: &cli::ExpireArgs, settings: &Settings) -> Result<ExitCode> {
    let options = ExpireOptions {
        policy: settings.retention,
        dry_run: args.dry_run,
    };
    let progress = Arc::new(Progress::default());
    let report = finish(one_thread()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        let work = expire::run(&options, &store, Utc::now(), &progress);
        progress_bar::watch(&progress, Box::pin(work)).await
    })?;
    let printed = print(&report, args.json, ToString::to_string)?;
    Ok(if report.left_something() {
        ErrorKind::Denied.exit_code().into()
    } else {
        printed
    })
}
