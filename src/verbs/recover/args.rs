//! Flags of `walship recover`.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::Utc;
use clap::Args;

use crate::cluster::{
    self, ArchiveMode, RecoverOptions, SourceConfiguration, TablespaceMapping, TargetAction,
};
use crate::config::Settings;
use crate::edge::print::print;
use crate::edge::runtime::{on_many_threads, open};
use crate::edge::target::RequestArgs;
use crate::edge::{absolute, search_path, this_walship, variable, watched};
use crate::error::Result;
use crate::store::Location;

/// Arguments of `walship recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The data directory to make: empty or missing
    #[arg(long, value_name = "DIR")]
    pub pgdata: PathBuf,
    /// What to recover to.
    #[command(flatten)]
    pub request: RequestArgs,
    /// Whether the target itself is still replayed
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new())]
    pub target_inclusive: Option<bool>,
    /// What the server does at the target [default: pause, as in PostgreSQL]
    #[arg(long, value_enum, value_name = "ACTION")]
    pub target_action: Option<TargetAction>,
    /// Put a tablespace elsewhere; may be given for each
    #[arg(long, value_name = "OLD=NEW")]
    pub tablespace_mapping: Vec<TablespaceMapping>,
    /// Whether the recovered server archives. on (or keep): as configured, for a server that takes its source's place;
    /// off: for a copy; auto: off, because nobody can see whether the source is gone for good
    #[arg(long, value_enum, default_value_t = ArchiveMode::Auto)]
    pub archive_mode: ArchiveMode,
    /// Accept that recovery ends where WAL is missing in the archive
    #[arg(long)]
    pub end_at_gap: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl RecoverArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        cluster::refuse_root()?;
        let json = self.json;
        let options = self.options(settings)?;
        let mut report = on_many_threads(watched(async |progress| {
            let store = open(settings).await?;
            cluster::recover(&options, &store, Utc::now(), progress).await
        }))?;
        let has_credentials = match settings.archive()? {
            Location::S3 { .. } => variable("AWS_ACCESS_KEY_ID").is_some(),
            Location::Directory(_) => false,
        };
        if has_credentials {
            report.notes.push(
                "the AWS credentials came from the environment and are written nowhere: \
                 start the server with the same AWS_… variables, or give its user a profile"
                    .to_owned(),
            );
        }
        print(&report, json, ToString::to_string)
    }

    fn options(self, settings: &Settings) -> Result<RecoverOptions> {
        Ok(RecoverOptions {
            pgdata: absolute(&self.pgdata)?,
            request: self
                .request
                .request(self.target_inclusive.unwrap_or(true), self.end_at_gap),
            action: self.target_action,
            tablespace_mappings: self.tablespace_mapping,
            archive_mode: self.archive_mode,
            configuration: SourceConfiguration::Kept,
            concurrency: settings.recover.concurrency,
            walship: this_walship(settings)?,
            search_path: search_path(settings)?,
        })
    }
}
