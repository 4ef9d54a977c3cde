//! `walship patroni-replica` and `walship patroni-bootstrap`.

use std::process::ExitCode;
use std::sync::Arc;

use chrono::Utc;
use walship::Result;
use walship::cluster::tablespaces::NewTablespaces;
use walship::cluster::{
    self, ArchiveMode, RecoverOptions, SourceConfiguration, StandbyOptions, StandbySettings,
    TablespaceMapping, restore_command,
};
use walship::config::Settings;
use walship::judge::recovery_plan::{Request, Search};
use walship::progress::Progress;
use walship::server::ConnInfo;
use walship::store::Store;
use walship::verbs::patroni_bootstrap::{self, Relation};
use walship::verbs::seed::{self, ArchiveSeed};

use super::recover::{target, target_timeline};
use super::this_walship::this_walship;
use super::{absolute, finish, many_threads, search_path, write_out};
use crate::cli::{PatroniArgs, PatroniBootstrapArgs, PatroniReplicaArgs};
use crate::progress_bar;

/// `patroni-replica`: Patroni goes on with its next method, as after every code but 0.
const NOT_BETTER: u8 = 1;

pub(super) fn replica(args: &PatroniReplicaArgs, settings: &Settings) -> Result<ExitCode> {
    cluster::refuse_root_for("patroni-replica")?;
    warn_of_unknown(&args.patroni);
    let options = StandbyOptions {
        pgdata: absolute(&args.patroni.datadir)?,
        tablespace_mappings: tablespace_mappings(&args.patroni)?,
        concurrency: settings.recover.concurrency,
        // Patroni writes its own.
        settings: StandbySettings {
            restore_command: restore_command(&this_walship(settings)?, None, NewTablespaces::Checked),
            ..StandbySettings::default()
        },
        search_path: search_path(settings)?,
    };
    let progress = Arc::new(Progress::default());
    let seeded = finish(many_threads()?, async {
        let info = match args.connstring.trim() {
            "" => None,
            given => Some(ConnInfo::resolve(Some(given), |name| std::env::var(name).ok())?),
        };
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        let limits = settings.seed.archive_wal();
        let work = seed::from_archive(&options, limits, info.as_ref(), &store, Utc::now(), &progress);
        progress_bar::watch(&progress, Box::pin(work)).await
    })?;
    match seeded {
        ArchiveSeed::Restored(standby, reason) => {
            let notes: String = standby
                .notes
                .iter()
                .map(|note| format!("walship: note: {note}\n"))
                .collect();
            let said = format!("walship: restored backup {} ({reason})\n{notes}", standby.backup);
            write_out(said.as_bytes())
        }
        ArchiveSeed::NotBetter(reason) => {
            write_out(format!("walship: left to the next method of Patroni: {reason}\n").as_bytes())?;
            Ok(NOT_BETTER.into())
        }
    }
}

pub(super) fn bootstrap(args: PatroniBootstrapArgs, settings: &Settings) -> Result<ExitCode> {
    cluster::refuse_root_for("patroni-bootstrap")?;
    warn_of_unknown(&args.patroni);
    let source_settings = match &args.source_archive {
        Some(url) => settings.with_archive(url),
        None => settings.clone(),
    };
    let is_clone = args.source_archive.is_some();
    let options = recover_options(args, &source_settings)?;
    let progress = Arc::new(Progress::default());
    let report = finish(many_threads()?, async {
        let source = Store::open(&source_settings.archive()?, &settings.store).await?;
        let relation = if is_clone {
            Relation::Clone(Store::open(&settings.archive()?, &settings.store).await?)
        } else {
            Relation::Successor
        };
        let work = patroni_bootstrap::run(options, &source, &relation, Utc::now(), &progress);
        progress_bar::watch(&progress, Box::pin(work)).await
    })?;
    write_out(format!("walship: {report}\n").as_bytes())
}

/// `source` are the settings that find the archive to recover from.
fn recover_options(args: PatroniBootstrapArgs, source: &Settings) -> Result<RecoverOptions> {
    Ok(RecoverOptions {
        pgdata: absolute(&args.patroni.datadir)?,
        request: Request {
            target: target(args.target)?,
            inclusive: args.target_inclusive.unwrap_or(true),
            timeline: target_timeline(args.target_timeline.as_deref())?,
            backup: args.backup.as_deref().map(str::parse).transpose()?,
            end_at_gap: false,
            search: Search::NotMade,
        },
        action: None,
        tablespace_mappings: tablespace_mappings(&args.patroni)?,
        archive_mode: ArchiveMode::Auto,
        configuration: SourceConfiguration::Kept,
        concurrency: source.recover.concurrency,
        walship: this_walship(source)?,
        search_path: search_path(source)?,
    })
}

fn tablespace_mappings(args: &PatroniArgs) -> Result<Vec<TablespaceMapping>> {
    args.tablespace_mapping.iter().map(|text| text.parse()).collect()
}

fn warn_of_unknown(args: &PatroniArgs) {
    for flag in &args.unknown {
        tracing::warn!("--{flag} is not known to walship and passed over");
    }
}
