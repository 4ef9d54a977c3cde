//! `walship repair`.

use std::path::PathBuf;
use std::process::ExitCode;

use walship::config::Settings;
use walship::pg::WalName;
use walship::store::Store;
use walship::verbs::repair::{self, RepairOptions};
use walship::{Error, Result};

use super::{finish, one_thread, print};
use crate::cli;

pub(super) fn run(args: cli::RepairArgs, settings: &Settings) -> Result<ExitCode> {
    let json = args.json;
    let name: WalName = args.name.parse()?;
    let options = RepairOptions {
        name,
        from: local_copy(args, name)?,
        compression_level: settings.push.compression_level,
        memory_bytes: settings.push.memory.0 as usize,
    };
    let report = finish(one_thread()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        repair::run(&options, &store).await
    })?;
    print(&report, json, ToString::to_string)
}

/// Where the good copy is.
fn local_copy(args: cli::RepairArgs, name: WalName) -> Result<PathBuf> {
    if let Some(file) = args.from {
        return Ok(file);
    }
    let pgdata = args
        .pgdata
        .or_else(|| std::env::var_os("PGDATA").map(PathBuf::from))
        .ok_or_else(|| {
            Error::invalid(format!(
                "where the good copy of {name} is was not said; give --from FILE, or --pgdata DIR to take it from its pg_wal"
            ))
        })?;
    Ok(pgdata.join("pg_wal").join(name.to_string()))
}
