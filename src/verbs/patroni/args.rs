//! Flags of `walship patroni-replica` and `walship patroni-bootstrap`.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::Utc;
use clap::{ArgAction, Args};

use super::bootstrap::{self, Relation};
use super::replica::{ArchiveSeed, from_archive};
use crate::cluster::tablespaces::NewTablespaces;
use crate::cluster::{
    self, ArchiveMode, RecoverOptions, SourceConfiguration, StandbyOptions, StandbySettings,
    TablespaceMapping, restore_command,
};
use crate::config::Settings;
use crate::edge::print::write_out;
use crate::edge::runtime::{on_many_threads, open};
use crate::edge::target::RequestArgs;
use crate::edge::{absolute, search_path, this_walship, variable, watched};
use crate::error::Result;
use crate::server::ConnInfo;

/// `patroni-replica`: Patroni goes on with its next method, as after every code but 0.
const NOT_BETTER: u8 = 1;

/// Arguments of `walship patroni-replica`.
#[derive(Debug, Args)]
pub struct PatroniReplicaArgs {
    /// The member to follow, from Patroni; empty where there is none
    #[arg(long, value_name = "CONNINFO", default_value = "", hide_default_value = true)]
    pub connstring: String,
    /// Leave it to Patroni's next method if there is more WAL than this since the backup [default: 10GiB]
    #[arg(long, value_name = "SIZE")]
    pub archive_wal_limit: Option<String>,
    /// Likewise if there is more than this percentage of the backup's size [default: 30]
    #[arg(long, value_name = "PERCENT")]
    pub archive_wal_percent: Option<String>,
    /// What every call by Patroni has.
    #[command(flatten)]
    pub patroni: PatroniArgs,
}

/// Arguments of `walship patroni-bootstrap`.
#[derive(Debug, Args)]
pub struct PatroniBootstrapArgs {
    /// Clone the cluster of this archive; the new cluster's own is the one in the settings, new and empty
    #[arg(
        long,
        value_name = "URL",
        required_unless_present = "replace_source",
        conflicts_with = "replace_source"
    )]
    pub source_archive: Option<String>,
    /// Recover the cluster of the archive in the settings, which is gone, and go on archiving there
    #[arg(long)]
    pub replace_source: bool,
    /// What to recover to.
    #[command(flatten)]
    pub request: RequestArgs,
    /// Whether the target itself is still replayed
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new())]
    pub target_inclusive: Option<bool>,
    /// What every call by Patroni has.
    #[command(flatten)]
    pub patroni: PatroniArgs,
}

/// What Patroni passes to every method, and what is the same for all of them.
#[derive(Debug, Args)]
pub struct PatroniArgs {
    /// The data directory to make, from Patroni
    #[arg(long, value_name = "DIR")]
    pub datadir: PathBuf,
    /// The cluster's name, from Patroni
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub scope: String,
    /// Always "replica", from Patroni
    #[arg(long, hide = true)]
    pub role: Option<String>,
    /// For Patroni itself
    #[arg(long, hide = true)]
    pub no_leader: Option<String>,
    /// For Patroni itself
    #[arg(long, hide = true)]
    pub keep_data: Option<String>,
    /// Put a tablespace elsewhere; several are separated by commas
    #[arg(long, value_name = "OLD=NEW", value_delimiter = ',')]
    pub tablespace_mapping: Vec<TablespaceMapping>,
    /// A flag that walship does not know, by name.
    #[arg(long, hide = true)]
    pub unknown: Vec<String>,
}

impl PatroniReplicaArgs {
    /// The settings that are flags here, by key.
    pub fn settings(&self) -> [(&'static str, &Option<String>); 2] {
        [
            ("seed.archive_wal_limit", &self.archive_wal_limit),
            ("seed.archive_wal_percent", &self.archive_wal_percent),
        ]
    }

    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        cluster::refuse_root_for("patroni-replica")?;
        self.patroni.warn_of_unknown();
        let options = StandbyOptions {
            pgdata: absolute(&self.patroni.datadir)?,
            tablespace_mappings: self.patroni.tablespace_mapping,
            concurrency: settings.recover.concurrency,
            // Patroni writes its own.
            settings: StandbySettings {
                restore_command: restore_command(&this_walship(settings)?, None, NewTablespaces::Checked),
                ..StandbySettings::default()
            },
            search_path: search_path(settings)?,
        };
        let seeded = on_many_threads(watched(async |progress| {
            let info = match self.connstring.trim() {
                "" => None,
                given => Some(ConnInfo::resolve(Some(given), variable)?),
            };
            let store = open(settings).await?;
            let limits = settings.seed.archive_wal();
            from_archive(&options, limits, info.as_ref(), &store, Utc::now(), progress).await
        }))?;
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
}

impl PatroniBootstrapArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        cluster::refuse_root_for("patroni-bootstrap")?;
        self.patroni.warn_of_unknown();
        let source_settings = match &self.source_archive {
            Some(url) => settings.with_archive(url),
            None => settings.clone(),
        };
        let is_clone = self.source_archive.is_some();
        let options = self.options(&source_settings)?;
        let report = on_many_threads(watched(async |progress| {
            let source = open(&source_settings).await?;
            let relation = if is_clone {
                Relation::Clone(open(settings).await?)
            } else {
                Relation::Successor
            };
            bootstrap::run(options, &source, &relation, Utc::now(), progress).await
        }))?;
        write_out(format!("walship: {report}\n").as_bytes())
    }

    /// `source` has the settings of the archive to recover from.
    fn options(self, source: &Settings) -> Result<RecoverOptions> {
        Ok(RecoverOptions {
            pgdata: absolute(&self.patroni.datadir)?,
            request: self.request.request(self.target_inclusive.unwrap_or(true), false),
            action: None,
            tablespace_mappings: self.patroni.tablespace_mapping,
            archive_mode: ArchiveMode::Auto,
            configuration: SourceConfiguration::Kept,
            concurrency: source.recover.concurrency,
            walship: this_walship(source)?,
            search_path: search_path(source)?,
        })
    }
}

impl PatroniArgs {
    fn warn_of_unknown(&self) {
        for flag in &self.unknown {
            tracing::warn!("walship does not know --{flag} and ignores it");
        }
    }
}
