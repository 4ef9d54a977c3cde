//! Flags of `walship drill`.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::Utc;
use clap::Args;

use super::{DrillOptions, SqlFile, clean, run};
use crate::cluster::refuse_root_for;
use crate::config::Settings;
use crate::edge::exit::DRILL_FAILED;
use crate::edge::notify::told;
use crate::edge::print::print;
use crate::edge::runtime::{interrupted, on_many_threads, open};
use crate::edge::target::RequestArgs;
use crate::edge::{absolute, search_path, this_walship, watched};
use crate::error::{Error, Result};
use crate::judge::schedule::Job;

/// Arguments of `walship drill`.
#[derive(Debug, Args)]
pub struct DrillArgs {
    /// What to recover to.
    #[command(flatten)]
    pub request: RequestArgs,
    /// Your own checks, run in the recovered server: a statement that fails, returns no row, or has false or NULL in its first column fails the drill
    #[arg(long, value_name = "FILE")]
    pub sql: Option<PathBuf>,
    /// The database that --sql runs in
    #[arg(long, value_name = "NAME", default_value = "postgres", requires = "sql")]
    pub sql_database: String,
    /// Leave the scratch directory, with the server stopped, and print how to start it
    #[arg(long)]
    pub keep: bool,
    /// Only remove what killed drills and --keep left in drill.directory
    #[arg(long, conflicts_with_all = ["backup", "sql", "keep"])]
    pub clean: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl DrillArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        refuse_root_for("drill")?;
        let json = self.json;
        if self.clean {
            let directory = absolute(&settings.drill.directory)?;
            return print(&on_many_threads(clean(&directory))?, json, ToString::to_string);
        }
        let work = || {
            let options = self.options(settings)?;
            let report = on_many_threads(watched(async |progress| {
                let store = open(settings).await?;
                run(&options, &store, Utc::now(), progress, interrupted()?).await
            }))?;
            let code = match (report.passed, report.not_recorded_kind()) {
                (false, _) => DRILL_FAILED,
                (true, Some(kind)) => kind.exit_code(),
                (true, None) => 0,
            };
            Ok((report, code))
        };
        told(Job::Drill, settings, json, work)
    }

    fn options(self, settings: &Settings) -> Result<DrillOptions> {
        let drill = &settings.drill;
        Ok(DrillOptions {
            request: self.request.request(true, false),
            directory: absolute(&drill.directory)?,
            search_path: search_path(settings)?,
            user: drill.user.clone(),
            sql: self
                .sql
                .map(|path| sql_file(path, self.sql_database))
                .transpose()?,
            amcheck: drill.amcheck,
            keep: self.keep,
            timeout: drill.timeout,
            concurrency: settings.recover.concurrency,
            shared_buffers: drill.shared_buffers,
            preload_libraries: drill.preload_libraries.clone(),
            walship: this_walship(settings)?,
        })
    }
}

fn sql_file(path: PathBuf, database: String) -> Result<SqlFile> {
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Error::invalid(format!("read the SQL file {}: {error}", path.display())))?;
    Ok(SqlFile { path, text, database })
}
