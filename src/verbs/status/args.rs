//! Flags of `walship status`.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::Utc;
use clap::Args;

use super::{StatusOptions, metrics, picture, run};
use crate::config::Settings;
use crate::edge::exit::STATUS_WARNS;
use crate::edge::print::{print, write_out};
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
    /// Print it as metrics, for node_exporter's textfile collector; exit 0 whatever it warns of
    #[arg(long, conflicts_with = "json")]
    pub prometheus: bool,
    /// Also draw the recoverable history into this file, as SVG: timelines, WAL with its gaps, backups and their proofs,
    /// and what can be recovered now
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl StatusArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        let given = self.dbname.as_deref();
        let connection = given.map(|given| ConnInfo::resolve_database(Some(given), variable));
        let connection = connection.transpose()?;
        let options = StatusOptions::of(settings, pgdata(self.pgdata));
        let looked = on_many_threads(async {
            let store = open(settings).await?;
            run(&options, connection.as_ref(), &store, Utc::now()).await
        });
        if let (Some(file), Ok(report)) = (&self.svg, &looked) {
            picture::write(report, file)?;
        }
        if self.prometheus {
            let archive = settings.archive()?.to_string();
            write_out(metrics::text(&archive, looked.as_ref().ok())?.as_bytes())?;
            // The metrics say that it failed; the error says why.
            return looked.map(|_| ExitCode::SUCCESS);
        }
        let report = looked?;
        let printed = print(&report, self.json, ToString::to_string)?;
        Ok(if report.warnings.is_empty() {
            printed
        } else {
            STATUS_WARNS.into()
        })
    }
}

impl StatusOptions {
    /// As the settings have it; `pgdata` is the server's data directory on this machine.
    pub fn of(settings: &Settings, pgdata: Option<PathBuf>) -> Self {
        Self {
            policy: settings.retention,
            limits: limits(settings),
            pgdata,
            timeout: settings.doctor.timeout,
        }
    }
}
