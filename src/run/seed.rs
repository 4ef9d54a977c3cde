//! `walship basebackup --seed-replica`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use chrono::Utc;
use walship::Result;
use walship::cluster;
use walship::config::Settings;
use walship::pg::SlotName;
use walship::progress::Progress;
use walship::server::ConnInfo;
use walship::store::Store;
use walship::verbs::seed::{self, From, SeedOptions};

use super::basebackup::max_rate_kib;
use super::this_walship::this_walship;
use super::{absolute, finish, interrupted, many_threads, print, search_path};
use crate::cli::{self, Checkpoint, SeedSource};
use crate::progress_bar;

pub(super) fn run(pgdata: &Path, args: &cli::BasebackupArgs, settings: &Settings) -> Result<ExitCode> {
    cluster::refuse_root_for("basebackup --seed-replica")?;
    let options = seed_options(pgdata, args, settings)?;
    let progress = Arc::new(Progress::default());
    let report = finish(many_threads()?, async {
        let info = ConnInfo::resolve(args.dbname.as_deref(), |name| std::env::var(name).ok())?;
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        let interrupted = interrupted()?;
        let work = seed::run(&options, &info, &store, Utc::now(), &progress, interrupted);
        progress_bar::watch(&progress, Box::pin(work)).await
    })?;
    print(&report, args.json, ToString::to_string)
}

fn seed_options(pgdata: &Path, args: &cli::BasebackupArgs, settings: &Settings) -> Result<SeedOptions> {
    let seed = &args.seed;
    let machine = rustix::system::uname();
    let machine = SlotName::of_machine(&machine.nodename().to_string_lossy());
    let slot = match &seed.slot {
        _ if seed.no_slot => None,
        Some(name) => Some(name.parse()?),
        None => Some(machine.clone()),
    };
    Ok(SeedOptions {
        pgdata: absolute(pgdata)?,
        from: match seed.from {
            SeedSource::Auto => From::Auto,
            SeedSource::Primary => From::Primary,
            SeedSource::Archive => From::Archive,
        },
        name: slot.as_ref().unwrap_or(&machine).to_string(),
        slot,
        tablespace_mappings: seed
            .tablespace_mapping
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_>>()?,
        fast_checkpoint: args.checkpoint == Checkpoint::Fast,
        max_rate_kib: max_rate_kib(settings)?,
        concurrency: settings.recover.concurrency,
        archive_wal: settings.seed.archive_wal(),
        start: seed.start.then_some(settings.seed.start_timeout),
        walship: this_walship(settings)?,
        search_path: search_path(settings)?,
    })
}
