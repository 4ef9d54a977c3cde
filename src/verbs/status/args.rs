//! Flags of `walship status`.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::Utc;
use clap::Args;

use super::{StatusOptions, run};
use crate::config::Settings;
use crate::edge::exit::STATUS_WARNS;
use crate::edge::print::print;
use crate::edge::runtime::{on_many_threads, open};
use crate::edge::{limits, pgdata, variable};
use crate::error::Result;
use crate::server::ConnInfo;

/// Arguments of `walship status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Ask this server for the WAL that waits for its archiver: a libpq connection string or URI
    #[arg(short, long = "dbname", value_name = "CONNINFO")]
    pub dbname: Option<String>,
    /// Look for that WAL in this data directory instead [env: PGDATA]
    #[arg(long, value_name = "DIR", conflicts_with = "dbname")]
    pub pgdata: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl StatusArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        let given = self.dbname.as_deref();
        let connection = given.map(|given| ConnInfo::resolve_database(Some(given), variable));
        let connection = connection.transpose()?;
        let options = StatusOptions {
            policy: settings.retention,
            limits: limits(settings),
            pgdata: pgdata(self.pgdata),
            timeout: settings.doctor.timeout,
        };
        let report = on_many_threads(async {
            let store = open(settings).await?;
            run(&options, connection.as_ref(), &store, Utc::now()).await
        })?;
        let printed = print(&report, self.json, ToString::to_string)?;
        Ok(if report.warnings.is_empty() {
            printed
        } else {
            STATUS_WARNS.into()
        })
    }
}
