//! Flags of `walship basebackup`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::seed::SeedArgs;
use super::{BasebackupOptions, MAX_RATE_KIB, Method, PartSettings, finish, run};
use crate::config::{BackupMethod, Settings};
use crate::edge::notify::told;
use crate::edge::runtime::{on_many_threads, open};
use crate::edge::{variable, watched};
use crate::error::{Error, Result};
use crate::format::keys::BackupId;
use crate::judge::schedule::Job;
use crate::server::ConnInfo;

/// Arguments of `walship basebackup`.
#[derive(Debug, Args)]
pub struct BasebackupArgs {
    /// The server: a libpq connection string or URI; PGHOST, PGUSER and the rest count as well
    #[arg(short, long = "dbname", value_name = "CONNINFO")]
    pub dbname: Option<String>,
    /// A label for people
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "walship base backup",
        conflicts_with_all = ["finish", "seed_replica"]
    )]
    pub label: String,
    /// Whether the checkpoint at the start is made at once or spread over time
    #[arg(long, value_enum, default_value_t = Checkpoint::Fast, conflicts_with = "finish")]
    pub checkpoint: Checkpoint,
    /// Read the server's files from its data directory (local), over the replication protocol (stream), or from the
    /// directory where it is here and may be read (auto) [default: auto]
    #[arg(long, value_name = "METHOD", conflicts_with_all = ["finish", "seed_replica"])]
    pub method: Option<String>,
    /// Most bytes a second to read from the server, such as 100MiB; 32KiB to 1GiB
    #[arg(long, value_name = "RATE", conflicts_with = "finish")]
    pub max_rate: Option<String>,
    /// Time to wait for the WAL the backup needs [default: 5m]
    #[arg(long, value_name = "DURATION", conflicts_with = "seed_replica")]
    pub wal_timeout: Option<String>,
    /// Begin a new archive although this cluster has had one before; it remembers the new one from then on
    #[arg(long, conflicts_with_all = ["finish", "seed_replica"])]
    pub new_archive: bool,
    /// Complete a backup whose WAL had not arrived in time
    #[arg(long, value_name = "ID", conflicts_with_all = ["dbname", "seed_replica"])]
    pub finish: Option<BackupId>,
    /// Make a ready standby in --pgdata, and store nothing
    #[arg(long, requires = "pgdata", help_heading = "Seeding a replica")]
    pub seed_replica: bool,
    /// How a replica is made.
    #[command(flatten)]
    pub seed: SeedArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// How the checkpoint at the start of a base backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Checkpoint {
    /// At once, at the cost of a burst of writes.
    Fast,
    /// Spread over checkpoint_completion_target.
    Spread,
}

impl BasebackupArgs {
    /// The settings that are flags here, by key.
    pub fn settings(&self) -> [(&'static str, &Option<String>); 3] {
        [
            ("backup.method", &self.method),
            ("backup.max_rate", &self.max_rate),
            ("backup.wal_timeout", &self.wal_timeout),
        ]
    }

    pub fn run(&self, settings: &Settings) -> Result<ExitCode> {
        if let Some(pgdata) = &self.seed.pgdata {
            return self.seed.run(pgdata, self, settings);
        }
        let wal_timeout = settings.backup.wal_timeout;
        let work = || {
            let report = on_many_threads(watched(async |progress| {
                let store = open(settings).await?;
                if let Some(id) = &self.finish {
                    return finish(id, wal_timeout, &store, progress).await;
                }
                let connection = ConnInfo::resolve(self.dbname.as_deref(), variable)?;
                run(&self.options(settings)?, &connection, &store, progress).await
            }))?;
            Ok((report, 0))
        };
        told(Job::Basebackup, settings, self.json, work)
    }

    fn options(&self, settings: &Settings) -> Result<BasebackupOptions> {
        let backup = &settings.backup;
        let method = match backup.method {
            BackupMethod::Auto => Method::Auto(self.session().ok()),
            BackupMethod::Stream => Method::Stream,
            BackupMethod::Local => Method::Local(self.session()?),
        };
        Ok(BasebackupOptions {
            method,
            label: self.label.clone(),
            fast_checkpoint: self.checkpoint == Checkpoint::Fast,
            max_rate_kib: max_rate_kib(settings)?,
            session: self.session().ok(),
            new_archive: self.new_archive,
            wal_timeout: backup.wal_timeout,
            parts: PartSettings::new(backup.compression_level, backup.concurrency, backup.part_size.0),
        })
    }

    /// For questions in SQL: to the database that was named, or to `postgres`, which every cluster has.
    fn session(&self) -> Result<Box<ConnInfo>> {
        let environment = |name: &str| match name {
            "PGDATABASE" => variable(name).or_else(|| Some("postgres".to_owned())),
            _ => variable(name),
        };
        ConnInfo::resolve_database(self.dbname.as_deref(), environment).map(Box::new)
    }
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
