//! Flags of `walship setup`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use chrono::Utc;
use clap::{Args, Subcommand};

use super::{Secret, SetupOptions, default_passfile, run};
use crate::cluster::server_command;
use crate::config::{Settings, parse_duration};
use crate::edge::print::print;
use crate::edge::runtime::{on_one_thread, open};
use crate::edge::{absolute, this_walship, variable};
use crate::error::{Error, Result};
use crate::server::ConnInfo;

/// The role's password, for those who do not want it in a file.
const PASSWORD_VARIABLE: &str = "WALSHIP_REPLICATION_PASSWORD";

/// Arguments of `walship setup`.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// What to set up.
    #[command(subcommand)]
    pub what: SetupCommand,
}

/// What to set up.
#[derive(Debug, Subcommand)]
pub enum SetupCommand {
    /// Show what a server lacks for archiving and replication, and why, as SQL and pg_hba.conf lines; or do it
    Primary(SetupPrimaryArgs),
}

/// Arguments of `walship setup primary`.
#[derive(Debug, Args)]
pub struct SetupPrimaryArgs {
    /// The server, as a superuser: a libpq connection string or URI; PGHOST, PGUSER and the rest count as well
    #[arg(short, long = "dbname", value_name = "CONNINFO")]
    pub dbname: Option<String>,
    /// Do it; at the end switch WAL and wait until the segment is in the archive
    #[arg(long)]
    pub apply: bool,
    /// The role that replicas log in as
    #[arg(long, value_name = "NAME", default_value = "replicator")]
    pub role: String,
    /// A network that replicas log in from, such as 10.0.0.5/32; may be given for each [default: this machine]
    #[arg(long, value_name = "CIDR")]
    pub replica_address: Vec<String>,
    /// A file with the role's password on its first line [default: WALSHIP_REPLICATION_PASSWORD, or a new one is made up]
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The password file that gets the role's password [default: PGPASSFILE, or ~/.pgpass]
    #[arg(long, value_name = "FILE")]
    pub passfile: Option<PathBuf>,
    /// Time for the segment to arrive in the archive
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "2m")]
    pub timeout: Duration,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl SetupArgs {
    pub fn run(&self, settings: &Settings) -> Result<ExitCode> {
        let SetupCommand::Primary(args) = &self.what;
        let options = args.options(settings)?;
        let report = on_one_thread(async {
            let info = ConnInfo::resolve_database(args.dbname.as_deref(), variable)?;
            let store = open(settings).await?;
            run(&options, &info, &store, Utc::now()).await
        })?;
        print(&report, args.json, ToString::to_string)
    }
}

impl SetupPrimaryArgs {
    fn options(&self, settings: &Settings) -> Result<SetupOptions> {
        let addresses = if self.replica_address.is_empty() {
            ["127.0.0.1/32", "::1/128"].map(str::to_owned).into()
        } else {
            self.replica_address.clone()
        };
        let passfile = self.passfile.clone().or_else(|| default_passfile(variable));
        Ok(SetupOptions {
            apply: self.apply,
            role: self.role.clone(),
            addresses,
            password: self.password()?,
            passfile: passfile.as_deref().map(absolute).transpose()?,
            archive_command: server_command(&this_walship(settings)?, "push %p"),
            round_trip_timeout: self.timeout,
        })
    }

    fn password(&self) -> Result<Option<Secret>> {
        if let Some(path) = &self.password_file {
            let shown = path.display();
            let text =
                std::fs::read_to_string(path).map_err(|error| Error::io(format!("read {shown}"), error))?;
            return Secret::given(&text, &shown.to_string()).map(Some);
        }
        match variable(PASSWORD_VARIABLE) {
            Some(text) if !text.is_empty() => Secret::given(&text, PASSWORD_VARIABLE).map(Some),
            _ => Ok(None),
        }
    }
}
