//! `walship restore`.

use std::path::Path;
use std::process::ExitCode;

use walship::Result;
use walship::commands::restore::{self, RestoreOptions, RestoreReport};
use walship::config::Settings;
use walship::pg::data_directory::{RecoverySignal, recovery_signal};

use super::{finish, most_of, one_thread, open_within, within};
use crate::{cli, exit};

pub(super) fn run(args: cli::RestoreArgs, settings: &Settings) -> Result<ExitCode> {
    // PostgreSQL runs restore_command in the data directory.
    let signal = recovery_signal(Path::new("."))?;
    let (limit, setting) = match signal {
        RecoverySignal::Standby => (settings.restore.standby_timeout, "restore.standby_timeout"),
        RecoverySignal::Recovery | RecoverySignal::None => (settings.restore.timeout, "restore.timeout"),
    };
    let options = RestoreOptions {
        name: args.name,
        destination: args.destination,
        signal,
        retry_timeout: most_of(limit),
        accepted_gap: args.accept_gap.as_deref().map(str::parse).transpose()?,
    };
    let work = async {
        let store = open_within(limit, settings).await?;
        restore::run(&options, &store).await
    };
    match finish(one_thread()?, within(limit, setting, work))? {
        RestoreReport::Delivered => Ok(ExitCode::SUCCESS),
        RestoreReport::Absent(reason) => {
            tracing::info!("{reason}");
            Ok(exit::ABSENT.into())
        }
    }
}
