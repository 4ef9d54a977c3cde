//! Flags of `walship restore`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use walship_client::protocol::What;
use walship_client::{Answer, Ask};

use super::{RestoreOptions, RestoreReport, asker, run, without_asking};
use crate::cluster::tablespaces::{NewTablespaces, see_to};
use crate::config::Settings;
use crate::edge::agent::{address_for, start, tell};
use crate::edge::runtime::{most_of, on_one_thread, open_within, within};
use crate::edge::{absolute, exit};
use crate::error::{ErrorKind, Result};
use crate::server::data_directory::{RecoverySignal, data_directory_of};

/// Arguments of `walship restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The file's name, as PostgreSQL gives it with %f
    pub name: String,
    /// Where to put it, as PostgreSQL gives it with %p
    pub destination: PathBuf,
    /// The first segment of a gap at which recovery may end; recover --end-at-gap writes it
    #[arg(long, value_name = "SEGMENT")]
    pub accept_gap: Option<String>,
    /// Where tablespaces go that the WAL creates: into the data directory (inside), or where the WAL says, if nothing is in the way (checked); recover and basebackup --seed-replica write it
    #[arg(long, value_enum, value_name = "WHERE")]
    pub new_tablespaces: Option<NewTablespaces>,
}

impl RestoreArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        let signal = asker(&self.destination)?;
        let (limit, setting) = match signal {
            RecoverySignal::Standby => (settings.restore.standby_timeout, "restore.standby_timeout"),
            RecoverySignal::Recovery | RecoverySignal::None => (settings.restore.timeout, "restore.timeout"),
        };
        let options = RestoreOptions {
            name: self.name,
            destination: self.destination,
            signal,
            retry_timeout: most_of(limit),
            accepted_gap: self.accept_gap.as_deref().map(str::parse).transpose()?,
        };
        if let Some(reason) = without_asking(&options)? {
            tracing::info!("{reason}");
            return Ok(exit::ABSENT.into());
        }
        let answer = ask_agent(&options, limit, settings);
        let asked = answer.is_some();
        let report = if let Some(answer) = answer {
            answer?
        } else {
            let begun = Instant::now();
            let work = async { run(&options, &open_within(limit, settings).await?).await };
            let restored = on_one_thread(within(limit, setting, work));
            if !matches!(
                restored,
                Ok(RestoreReport::Absent(_) | RestoreReport::Withheld(_))
            ) {
                let data_directory = data_directory_of(&options.destination);
                tell(settings, &data_directory, What::Restore, begun, &restored);
            }
            restored?
        };
        match report {
            RestoreReport::Delivered => {
                if let Some(what) = self.new_tablespaces.filter(|_| signal != RecoverySignal::None) {
                    let data = data_directory_of(&options.destination);
                    match see_to(&options.name, &options.destination, &data, what) {
                        // The standby must end: otherwise it would get the same WAL by streaming.
                        Err(error) if error.kind() == ErrorKind::Conflict => {
                            tracing::error!("{error}");
                            return Ok(exit::RESTORE_FAILED.into());
                        }
                        seen => seen?,
                    }
                }
                if !asked && settings.agent.autostart && signal != RecoverySignal::None {
                    start(settings, &data_directory_of(&options.destination));
                }
                Ok(ExitCode::SUCCESS)
            }
            RestoreReport::Absent(reason) => {
                tracing::info!("{reason}");
                Ok(exit::ABSENT.into())
            }
            // PostgreSQL is told the same, but people would not look for the reason.
            RestoreReport::Withheld(reason) => {
                tracing::warn!("{reason}");
                Ok(exit::ABSENT.into())
            }
        }
    }
}

/// The agent's answer; `None` where no agent can be relied on.
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
        // This process gives the file its name, not the agent: an agent that wakes up late changes nothing.
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
