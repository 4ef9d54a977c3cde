//! Flags of `walship doctor`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Deadline, DoctorOptions, HostOptions, before_promote, run};
use crate::config::Settings;
use crate::edge::notify::told;
use crate::edge::print::print;
use crate::edge::runtime::{on_many_threads, open_within};
use crate::edge::{limits, variable};
use crate::error::Result;
use crate::judge::schedule::Job;
use crate::server::ConnInfo;
use crate::store::Location;

/// Arguments of `walship doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The server: a libpq connection string or URI; PGHOST, PGUSER and the rest count as well
    #[arg(short, long = "dbname", value_name = "CONNINFO")]
    pub dbname: Option<String>,
    /// The server's data directory on this machine [default: what the server says]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Only say whether this standby may be promoted: exit 0 if it may, 2 if not; for Patroni's pre_promote
    #[arg(long, conflicts_with = "pgdata")]
    pub before_promote: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl DoctorArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        let given = self.dbname.as_deref();
        let connection = ConnInfo::resolve_database(given, variable)?;
        let timeout = settings.doctor.timeout;
        if self.before_promote {
            let replication = ConnInfo::resolve(given, variable).ok();
            let report = on_many_threads(async {
                let deadline = Deadline::after(timeout);
                let store = Box::pin(open_within(timeout, settings));
                let before = before_promote(deadline, &connection, replication.as_ref(), store);
                Ok(Box::pin(before).await)
            })?;
            print(&report, self.json, ToString::to_string)?;
            return Ok(report.promote_exit_code().into());
        }
        let options = DoctorOptions::of(settings, self.pgdata.clone());
        let work = || {
            let report = on_many_threads(async {
                let deadline = Deadline::after(timeout);
                let store = Box::pin(open_within(timeout, settings));
                Ok(run(options, deadline, &connection, store).await)
            })?;
            let code = report.exit_code();
            Ok((report, code))
        };
        told(Job::Doctor, settings, self.json, work)
    }
}

impl DoctorOptions {
    /// As the settings have it; `pgdata` is the server's data directory on this machine.
    pub fn of(settings: &Settings, pgdata: Option<PathBuf>) -> Self {
        let doctor = &settings.doctor;
        Self {
            pgdata,
            limits: limits(settings),
            expires: settings.expires(),
            ignore: doctor.ignore.clone(),
            host: HostOptions {
                config_file: settings.file().map(PathBuf::from),
                archive_directory: match settings.archive() {
                    Ok(Location::Directory(path)) => Some(path),
                    Ok(Location::S3 { .. }) | Err(_) => None,
                },
                aws_credentials: aws_credentials(),
            },
        }
    }
}

/// Where the AWS tools keep credentials.
fn aws_credentials() -> Option<PathBuf> {
    let named = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".aws/credentials")))
}
