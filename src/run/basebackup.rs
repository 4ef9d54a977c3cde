//! `walship basebackup`.

use std::process::ExitCode;
use std::sync::Arc;

use walship::config::{BackupMethod, Settings};
use walship::progress::Progress;
use walship::server::ConnInfo;
use walship::store::Store;
use walship::verbs::basebackup::{self, BasebackupOptions, MAX_RATE_KIB, Method, PartSettings};
use walship::{Error, Result};

use super::{finish, many_threads, print};
use crate::cli::{self, Checkpoint};
use crate::progress_bar;

pub(super) fn run(args: &cli::BasebackupArgs, settings: &Settings) -> Result<ExitCode> {
    if let Some(pgdata) = &args.seed.pgdata {
        return super::seed::run(pgdata, args, settings);
    }
    let wal_timeout = settings.backup.wal_timeout;
    let progress = Arc::new(Progress::default());
    let report = finish(many_threads()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        let work = async {
            if let Some(id) = &args.finish {
                return basebackup::finish(&id.parse()?, wal_timeout, &store, &progress).await;
            }
            let connection = ConnInfo::resolve(args.dbname.as_deref(), |name| std::env::var(name).ok())?;
            basebackup::run(&backup_options(args, settings)?, &connection, &store, &progress).await
        };
        progress_bar::watch(&progress, Box::pin(work)).await
    })?;
    print(&report, args.json, |report| report.id.to_string())
}

fn backup_options(args: &cli::BasebackupArgs, settings: &Settings) -> Result<BasebackupOptions> {
    let backup = &settings.backup;
    let method = match backup.method {
        BackupMethod::Stream => Method::Stream,
        BackupMethod::Local => {
            let info = ConnInfo::resolve_database(args.dbname.as_deref(), |name| std::env::var(name).ok())?;
            Method::Local(Box::new(info))
        }
    };
    Ok(BasebackupOptions {
        method,
        label: args.label.clone(),
        fast_checkpoint: args.checkpoint == Checkpoint::Fast,
        max_rate_kib: max_rate_kib(settings)?,
        session: session(args),
        new_archive: args.new_archive,
        wal_timeout: backup.wal_timeout,
        parts: PartSettings::new(backup.compression_level, backup.concurrency, backup.part_size.0),
    })
}

/// For questions in SQL: to the database that was named, else to the one that every cluster has.
fn session(args: &cli::BasebackupArgs) -> Option<Box<ConnInfo>> {
    let environment = |name: &str| match name {
        "PGDATABASE" => std::env::var(name).ok().or_else(|| Some("postgres".to_owned())),
        _ => std::env::var(name).ok(),
    };
    ConnInfo::resolve_database(args.dbname.as_deref(), environment)
        .ok()
        .map(Box::new)
}

/// `backup.max_rate`, as the server takes it.
pub(super) fn max_rate_kib(settings: &Settings) -> Result<Option<u32>> {
    match settings.backup.max_rate {
        None => Ok(None),
        Some(rate) => {
            let kib = u32::try_from(rate.0 >> 10)
                .ok()
                .filter(|kib| MAX_RATE_KIB.contains(kib));
            kib.map(Some)
                .ok_or_else(|| Error::invalid("backup.max_rate, or --max-rate, must be from 32KiB to 1GiB"))
        }
    }
}
