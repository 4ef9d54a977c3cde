//! `walship restore`.

use std::process::ExitCode;
use std::time::Duration;

use walship::cluster::tablespaces::{NewTablespaces, see_to};
use walship::config::Settings;
use walship::server::data_directory::{RecoverySignal, data_directory_of};
use walship::verbs::restore::{self, RestoreOptions, RestoreReport};
use walship::{ErrorKind, Result};
use walship_client::{Answer, Ask};

use super::agent::address_for;
use super::{absolute, finish, most_of, one_thread, open_within, within};
use crate::{cli, exit};

pub(super) fn run(args: cli::RestoreArgs, settings: &Settings) -> Result<ExitCode> {
    let signal = restore::asker(&args.destination)?;
    let (limit, setting) = match signal {
        RecoverySignal::Standby => (settings.restore.standby_timeout, "restore.standby_timeout"),
        RecoverySignal::Recovery | RecoverySignal::None => (settings.restore.timeout, "restore.timeout"),
    };
    let new_tablespaces = args.new_tablespaces.map(|place| match place {
        cli::NewTablespaces::Inside => NewTablespaces::Inside,
        cli::NewTablespaces::Checked => NewTablespaces::Checked,
    });
    let options = RestoreOptions {
        name: args.name,
        destination: args.destination,
        signal,
        retry_timeout: most_of(limit),
        accepted_gap: args.accept_gap.as_deref().map(str::parse).transpose()?,
    };
    if let Some(reason) = restore::without_asking(&options)? {
        tracing::info!("{reason}");
        return Ok(exit::ABSENT.into());
    }
    let answer = ask_agent(&options, limit, settings);
    let asked = answer.is_some();
    let report = if let Some(answer) = answer {
        answer?
    } else {
        let work = async {
            let store = open_within(limit, settings).await?;
            restore::run(&options, &store).await
        };
        finish(one_thread()?, within(limit, setting, work))?
    };
    match report {
        RestoreReport::Delivered => {
            if let Some(what) = new_tablespaces.filter(|_| signal != RecoverySignal::None) {
                let data = data_directory_of(&options.destination);
                match see_to(&options.name, &options.destination, &data, what) {
                    // A standby must not live on: it would stream the same.
                    Err(error) if error.kind() == ErrorKind::Conflict => {
                        tracing::error!("{error}");
                        return Ok(exit::RESTORE_FAILED.into());
                    }
                    seen => seen?,
                }
            }
            if !asked && settings.agent.autostart && signal != RecoverySignal::None {
                super::agent::start(settings, &data_directory_of(&options.destination));
            }
            Ok(ExitCode::SUCCESS)
        }
        RestoreReport::Absent(reason) => {
            tracing::info!("{reason}");
            Ok(exit::ABSENT.into())
        }
        // PostgreSQL is told the same, but nobody would look for the reason.
        RestoreReport::Withheld(reason) => {
            tracing::warn!("{reason}");
            Ok(exit::ABSENT.into())
        }
    }
}

/// What an agent says of the file, and has ready; `None` where there is none to be relied on.
fn ask_agent(
    options: &RestoreOptions,
    limit: Duration,
    settings: &Settings,
) -> Option<Result<RestoreReport>> {
    let destination = absolute(&options.destination).ok()?;
    let address = address_for(settings, &data_directory_of(&options.destination)).ok()?;
    let ask = Ask::Restore {
        name: options.name.clone(),
        destination,
        accepted_gap: options.accepted_gap,
        retry_millis: options.retry_timeout.as_millis() as u64,
    };
    match walship_client::ask(&address, ask, limit)? {
        // Whoever asks gives the name, so that an agent that wakes up late changes nothing.
        Ok(Answer::Ready(file)) => match file.deliver(&options.destination) {
            Ok(()) => Some(Ok(RestoreReport::Delivered)),
            Err(error) => {
                tracing::info!("what the agent has ready could not be delivered: {error}");
                None
            }
        },
        Ok(Answer::Absent(reason)) => Some(Ok(RestoreReport::Absent(reason))),
        Ok(Answer::Withheld(reason)) => Some(Ok(RestoreReport::Withheld(reason))),
        Ok(Answer::Stored | Answer::Alive) => None,
        Err(error) => Some(Err(error)),
    }
}
