//! `walship drill`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use chrono::Utc;
use walship::cluster::refuse_root_for;
use walship::config::Settings;
use walship::judge::recovery_plan::{Request, Search};
use walship::progress::Progress;
use walship::store::Store;
use walship::verbs::drill::{self, DrillOptions, SqlFile};
use walship::{Error, Result};

use super::recover::{target, target_timeline};
use super::this_walship::this_walship;
use super::{absolute, finish, interrupted, many_threads, print, search_path};
use crate::exit::DRILL_FAILED;
use crate::{cli, progress_bar};

pub(super) fn run(args: cli::DrillArgs, settings: &Settings) -> Result<ExitCode> {
    refuse_root_for("drill")?;
    let json = args.json;
    if args.clean {
        let report = finish(
            many_threads()?,
            drill::clean(&absolute(&settings.drill.directory)?),
        )?;
        return print(&report, json, ToString::to_string);
    }
    let options = options(args, settings)?;
    let progress = Arc::new(Progress::default());
    let report = finish(many_threads()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        let interrupted = interrupted()?;
        let work = drill::run(&options, &store, Utc::now(), &progress, interrupted);
        progress_bar::watch(&progress, Box::pin(work)).await
    })?;
    let printed = print(&report, json, ToString::to_string)?;
    Ok(match (report.passed, report.not_recorded_kind()) {
        (false, _) => DRILL_FAILED.into(),
        (true, Some(kind)) => kind.exit_code().into(),
        (true, None) => printed,
    })
}

fn options(args: cli::DrillArgs, settings: &Settings) -> Result<DrillOptions> {
    let drill = &settings.drill;
    Ok(DrillOptions {
        request: Request {
            target: target(args.target)?,
            inclusive: true,
            timeline: target_timeline(args.target_timeline.as_deref())?,
            backup: args.backup.as_deref().map(str::parse).transpose()?,
            end_at_gap: false,
            search: Search::NotMade,
        },
        directory: absolute(&drill.directory)?,
        search_path: search_path(settings)?,
        user: drill.user.clone(),
        sql: args
            .sql
            .map(|path| sql_file(path, args.sql_database))
            .transpose()?,
        amcheck: drill.amcheck,
        keep: args.keep,
        timeout: drill.timeout,
        concurrency: settings.recover.concurrency,
        shared_buffers: drill.shared_buffers,
        preload_libraries: drill.preload_libraries.clone(),
        walship: this_walship(settings)?,
    })
}

fn sql_file(path: PathBuf, database: String) -> Result<SqlFile> {
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Error::invalid(format!("read the SQL file {}: {error}", path.display())))?;
    Ok(SqlFile { path, text, database })
}
