//! Flags of `walship repair`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{RepairOptions, run};
use crate::config::Settings;
use crate::edge::pgdata;
use crate::edge::print::print;
use crate::edge::runtime::{on_one_thread, open};
use crate::error::{Error, Result};
use crate::pg::WalName;

/// Arguments of `walship repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// The file of pg_wal whose stored object is damaged: a segment, .partial, .history or .backup
    pub name: WalName,
    /// The good copy [default: the file of that name in pg_wal of the data directory]
    #[arg(long, value_name = "FILE", conflicts_with = "pgdata")]
    pub from: Option<PathBuf>,
    /// The data directory [env: PGDATA]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl RepairArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        let json = self.json;
        let options = RepairOptions {
            name: self.name,
            from: self.local_copy()?,
            compression_level: settings.push.compression_level,
            memory_bytes: settings.push.memory.0 as usize,
        };
        let report = on_one_thread(async {
            let store = open(settings).await?;
            run(&options, &store).await
        })?;
        print(&report, json, ToString::to_string)
    }

    /// Where the good copy is.
    fn local_copy(self) -> Result<PathBuf> {
        if let Some(file) = self.from {
            return Ok(file);
        }
        let name = self.name;
        let pgdata = pgdata(self.pgdata).ok_or_else(|| {
            Error::invalid(format!(
                "it is not known where the good copy of {name} is; give --from FILE, or --pgdata DIR to take it from pg_wal"
            ))
        })?;
        Ok(pgdata.join("pg_wal").join(name.to_string()))
    }
}
