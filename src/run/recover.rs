//! `walship recover`.

use std::process::ExitCode;
use std::sync::Arc;

use chrono::Utc;
use walship::cluster::{self, ArchiveMode, RecoverOptions, SourceConfiguration, TargetAction};
use walship::config::Settings;
use walship::judge::recovery_plan::{Request, Search, Target};
use walship::pg::{TimelineId, parse_timestamp};
use walship::progress::Progress;
use walship::store::{Location, Store};
use walship::{Error, Result};

use super::this_walship::this_walship;
use super::{absolute, finish, many_threads, print, search_path};
use crate::{cli, progress_bar};

pub(super) fn run(args: cli::RecoverArgs, settings: &Settings) -> Result<ExitCode> {
    cluster::refuse_root()?;
    let json = args.json;
    let options = recover_options(args, settings)?;
    let progress = Arc::new(Progress::default());
    let mut report = finish(many_threads()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        let work = cluster::run(&options, &store, Utc::now(), &progress);
        progress_bar::watch(&progress, Box::pin(work)).await
    })?;
    if std::env::var_os("AWS_ACCESS_KEY_ID").is_some() && matches!(settings.archive()?, Location::S3 { .. }) {
        report.notes.push(
            "the AWS credentials came from the environment and are written nowhere: \
             start the server with the same AWS_… variables, or give its user a profile"
                .to_owned(),
        );
    }
    print(&report, json, ToString::to_string)
}

fn recover_options(args: cli::RecoverArgs, settings: &Settings) -> Result<RecoverOptions> {
    Ok(RecoverOptions {
        pgdata: absolute(&args.pgdata)?,
        request: Request {
            target: target(args.target)?,
            inclusive: args.target_inclusive.unwrap_or(true),
            timeline: target_timeline(args.target_timeline.as_deref())?,
            backup: args.backup.as_deref().map(str::parse).transpose()?,
            end_at_gap: args.end_at_gap,
            search: Search::NotMade,
        },
        action: args.target_action.map(|action| match action {
            cli::TargetAction::Pause => TargetAction::Pause,
            cli::TargetAction::Promote => TargetAction::Promote,
            cli::TargetAction::Shutdown => TargetAction::Shutdown,
        }),
        tablespace_mappings: args
            .tablespace_mapping
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_>>()?,
        archive_mode: match args.archive_mode {
            cli::ArchiveMode::Auto => ArchiveMode::Auto,
            cli::ArchiveMode::On => ArchiveMode::On,
            cli::ArchiveMode::Off => ArchiveMode::Off,
        },
        configuration: SourceConfiguration::Kept,
        concurrency: settings.recover.concurrency,
        walship: this_walship(settings)?,
        search_path: search_path(settings)?,
    })
}

/// None for the latest one.
pub(super) fn target_timeline(text: Option<&str>) -> Result<Option<TimelineId>> {
    match text {
        None | Some("latest") => Ok(None),
        Some(number) => number.parse().map(Some),
    }
}

pub(super) fn target(args: cli::TargetArgs) -> Result<Target> {
    Ok(match args {
        cli::TargetArgs {
            target_time: Some(time),
            ..
        } => Target::Time(parse_timestamp(&time)?),
        cli::TargetArgs {
            target_lsn: Some(lsn),
            ..
        } => Target::Lsn(lsn.parse()?),
        cli::TargetArgs {
            target_xid: Some(xid),
            ..
        } => Target::Xid(transaction_id(&xid)?),
        cli::TargetArgs {
            target_name: Some(name),
            ..
        } => Target::Name(name),
        cli::TargetArgs {
            target_immediate: true,
            ..
        } => Target::Immediate,
        _ => Target::Latest,
    })
}

/// Of a 64-bit id, as `pg_current_xact_id()` gives it, the low half counts, as for
/// `recovery_target_xid` (`check_recovery_target_xid`, `xlogrecovery.c`).
fn transaction_id(text: &str) -> Result<u32> {
    let id = text.parse::<u64>().map_err(|_| {
        Error::invalid(format!(
            "\"{text}\" is not a transaction id; give its number in decimal"
        ))
    })?;
    let low = id as u32;
    if u64::from(low) != id {
        tracing::warn!(
            "the WAL has only the lower 32 bits of a transaction's number: of {id} that is {low}, which an earlier transaction may \
             have had as well; see below when the one that was found ended"
        );
    }
    Ok(low)
}
