//! `walship doctor`.

use std::path::PathBuf;
use std::process::ExitCode;

use walship::Result;
use walship::config::Settings;
use walship::judge::diagnosis::Limits;
use walship::server::ConnInfo;
use walship::server::deadline::Deadline;
use walship::store::Location;
use walship::verbs::doctor::{self, DoctorOptions, HostOptions};

use super::{finish, many_threads, open_within, print};
use crate::cli;

pub(super) fn run(args: cli::DoctorArgs, settings: &Settings) -> Result<ExitCode> {
    let environment = |name: &str| std::env::var(name).ok();
    let given = args.dbname.as_deref();
    let connection = ConnInfo::resolve_database(given, environment)?;
    let options = options(args.pgdata, settings);
    let (report, code) = finish(many_threads()?, async {
        let deadline = Deadline::after(options.timeout);
        let store = Box::pin(open_within(options.timeout, settings));
        if args.before_promote {
            let replication = ConnInfo::resolve(given, environment).ok();
            let before = doctor::before_promote(deadline, &connection, replication.as_ref(), store);
            let report = Box::pin(before).await;
            let code = report.promote_exit_code();
            return (report, code);
        }
        let report = doctor::run(options, deadline, &connection, store).await;
        let code = report.exit_code();
        (report, code)
    });
    print(&report, args.json, ToString::to_string)?;
    Ok(code.into())
}

fn options(pgdata: Option<PathBuf>, settings: &Settings) -> DoctorOptions {
    let doctor = &settings.doctor;
    DoctorOptions {
        pgdata,
        timeout: doctor.timeout,
        limits: limits(settings),
        expires: settings.expires(),
        ignore: doctor.ignore.clone(),
        host: HostOptions {
            config_file: settings.file().map(PathBuf::from),
            archive_directory: match settings.archive() {
                Ok(Location::Directory(path)) => Some(path),
                _ => None,
            },
            aws_credentials: aws_credentials(),
        },
    }
}

/// Where warnings begin.
pub(super) fn limits(settings: &Settings) -> Limits {
    Limits {
        backup_age: settings.doctor.max_backup_age,
        archive_delay: settings.doctor.max_archive_delay,
        standby_lag: settings.doctor.max_standby_lag,
        verify_age: settings.doctor.max_verify_age,
        drill_age: settings.doctor.max_drill_age,
        push_time: settings.push.timeout,
    }
}

/// Where the AWS tools keep credentials.
fn aws_credentials() -> Option<PathBuf> {
    let named = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".aws/credentials")))
}
