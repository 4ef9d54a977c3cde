//! `walship setup primary`.

use std::process::ExitCode;

use chrono::Utc;
use walship::cluster::server_command;
use walship::config::{Settings, parse_duration};
use walship::server::ConnInfo;
use walship::store::Store;
use walship::verbs::setup::{self, Secret, SetupOptions, default_passfile};
use walship::{Error, Result};

use super::this_walship::this_walship;
use super::{absolute, finish, one_thread, print};
use crate::cli;

/// The role's password, where it shall not be in a file.
const PASSWORD_VARIABLE: &str = "WALSHIP_REPLICATION_PASSWORD";

pub(super) fn run(args: &cli::SetupArgs, settings: &Settings) -> Result<ExitCode> {
    let cli::SetupCommand::Primary(args) = &args.what;
    let options = setup_options(args, settings)?;
    let report = finish(one_thread()?, async {
        let info = ConnInfo::resolve_database(args.dbname.as_deref(), |name| std::env::var(name).ok())?;
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        setup::run(&options, &info, &store, Utc::now()).await
    })?;
    print(&report, args.json, ToString::to_string)
}

fn setup_options(args: &cli::SetupPrimaryArgs, settings: &Settings) -> Result<SetupOptions> {
    let environment = |name: &str| std::env::var(name).ok();
    let addresses = if args.replica_address.is_empty() {
        ["127.0.0.1/32", "::1/128"].map(str::to_owned).into()
    } else {
        args.replica_address.clone()
    };
    let passfile = args.passfile.clone().or_else(|| default_passfile(environment));
    let timeout =
        parse_duration(&args.timeout).map_err(|error| Error::invalid(format!("--timeout: {error}")))?;
    Ok(SetupOptions {
        apply: args.apply,
        role: args.role.clone(),
        addresses,
        password: password(args)?,
        passfile: passfile.as_deref().map(absolute).transpose()?,
        archive_command: server_command(&this_walship(settings)?, "push %p"),
        round_trip_timeout: timeout,
    })
}

fn password(args: &cli::SetupPrimaryArgs) -> Result<Option<Secret>> {
    if let Some(path) = &args.password_file {
        let shown = path.display();
        let text =
            std::fs::read_to_string(path).map_err(|error| Error::io(format!("read {shown}"), error))?;
        return Secret::given(&text, &shown.to_string()).map(Some);
    }
    match std::env::var(PASSWORD_VARIABLE) {
        Ok(text) if !text.is_empty() => Secret::given(&text, PASSWORD_VARIABLE).map(Some),
        _ => Ok(None),
    }
}
