//! Flags of `walship basebackup --seed-replica`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chrono::Utc;
use clap::Args;

use super::super::args::{BasebackupArgs, Checkpoint, max_rate_kib};
use super::{SeedOptions, run};
use crate::cluster::seed_source::SeedSource;
use crate::cluster::{self, TablespaceMapping};
use crate::config::Settings;
use crate::edge::print::print;
use crate::edge::runtime::{interrupted, on_many_threads, open};
use crate::edge::{absolute, search_path, this_walship, variable, watched};
use crate::error::Result;
use crate::pg::SlotName;
use crate::server::ConnInfo;

/// How a replica is made.
#[derive(Debug, Args)]
#[command(next_help_heading = "Seeding a replica")]
pub struct SeedArgs {
    /// The replica's data directory: empty or missing
    #[arg(long, value_name = "DIR", requires = "seed_replica")]
    pub pgdata: Option<PathBuf>,
    /// Where the data comes from. auto: the archive if there is little WAL since its newest backup, or else the primary
    #[arg(long, value_enum, default_value_t = SeedSource::Auto, requires = "seed_replica")]
    pub from: SeedSource,
    /// The replica's slot on the primary, made if it is not there or keeps no WAL [default: walship_ and this machine's name]
    #[arg(long, value_name = "NAME", requires = "seed_replica")]
    pub slot: Option<SlotName>,
    /// Stream without a slot
    #[arg(long, requires = "seed_replica", conflicts_with = "slot")]
    pub no_slot: bool,
    /// Put a tablespace elsewhere; may be given for each
    #[arg(long, value_name = "OLD=NEW", requires = "seed_replica")]
    pub tablespace_mapping: Vec<TablespaceMapping>,
    /// Start the replica, and wait until it streams
    #[arg(long, requires = "seed_replica")]
    pub start: bool,
}

impl SeedArgs {
    pub(in crate::verbs::basebackup) fn run(
        &self,
        pgdata: &Path,
        args: &BasebackupArgs,
        settings: &Settings,
    ) -> Result<ExitCode> {
        cluster::refuse_root_for("basebackup --seed-replica")?;
        let options = self.options(pgdata, args, settings)?;
        let report = on_many_threads(watched(async |progress| {
            let info = ConnInfo::resolve(args.dbname.as_deref(), variable)?;
            let store = open(settings).await?;
            run(&options, &info, &store, Utc::now(), progress, interrupted()?).await
        }))?;
        print(&report, args.json, ToString::to_string)
    }

    fn options(&self, pgdata: &Path, args: &BasebackupArgs, settings: &Settings) -> Result<SeedOptions> {
        let machine = rustix::system::uname();
        let machine = SlotName::of_machine(&machine.nodename().to_string_lossy());
        let slot = (!self.no_slot).then(|| self.slot.clone().unwrap_or_else(|| machine.clone()));
        Ok(SeedOptions {
            pgdata: absolute(pgdata)?,
            from: self.from,
            name: slot.as_ref().unwrap_or(&machine).to_string(),
            slot,
            tablespace_mappings: self.tablespace_mapping.clone(),
            fast_checkpoint: args.checkpoint == Checkpoint::Fast,
            max_rate_kib: max_rate_kib(settings)?,
            concurrency: settings.recover.concurrency,
            archive_wal: settings.seed.archive_wal(),
            start: self.start.then_some(settings.seed.start_timeout),
            walship: this_walship(settings)?,
            search_path: search_path(settings)?,
        })
    }
}
