//! `walship agent`, and asking one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use walship::agent::{self, AgentOptions};
use walship::cluster::compressor::Compressor;
use walship::config::Settings;
use walship::store::Location;
use walship::store::Store;
use walship::{Error, Result};
use walship_client::{Address, Answer, Archive, Ask};

use super::this_walship::this_walship;
use super::{absolute, finish, many_threads};
use crate::cli;

/// How long `--ping` waits.
const PING: Duration = Duration::from_secs(3);

pub(super) fn run(args: &cli::AgentArgs, settings: &Settings) -> Result<ExitCode> {
    let data_directory = data_directory(args)?;
    if let Some(starter) = args.started_by {
        agent::detach(&data_directory, starter)?;
    }
    let address = address_for(settings, &data_directory)?;
    if args.ping {
        return match walship_client::ask(&address, Ask::Ping, PING) {
            Some(Ok(Answer::Alive)) => Ok(ExitCode::SUCCESS),
            _ => Err(Error::unavailable(format!(
                "no agent answers at {}; start one with walship agent",
                address.socket.display()
            ))),
        };
    }
    let options = options(args, settings, address, data_directory)?;
    let reason = finish(many_threads()?, async {
        let store = Store::open(&settings.archive()?, &settings.store).await?;
        agent::run(options, store, ready).await
    })?;
    tracing::info!("the agent ends: {reason}");
    Ok(ExitCode::SUCCESS)
}

/// The agent's address for whoever works in this data directory with these settings.
pub(super) fn address_for(settings: &Settings, data_directory: &Path) -> Result<Address> {
    let location = settings.archive()?;
    let archive = Archive {
        url: &location.to_string(),
        way: &settings.store.s3.way(),
        directory: match &location {
            Location::Directory(root) => Some(root),
            Location::S3 { .. } => None,
        },
    };
    Address::new(&archive, data_directory, settings.agent.socket.as_deref())
}

/// Starts an agent. Whoever asks has done its own work: a failure is only said.
pub(super) fn start(settings: &Settings, data_directory: &Path) {
    let started = || {
        let data_directory = absolute(data_directory)?;
        let address = address_for(settings, &data_directory)?;
        agent::start(&address, &data_directory, &this_walship(settings)?)
    };
    if let Err(error) = started() {
        tracing::warn!("an agent could not be started: {error}");
    }
}

fn options(
    args: &cli::AgentArgs,
    settings: &Settings,
    address: Address,
    data_directory: PathBuf,
) -> Result<AgentOptions> {
    let program = std::env::current_exe().map_err(|error| Error::io("find this program", error))?;
    let configuration = settings.to_reproduce().0.map(Path::to_owned);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(AgentOptions {
        address,
        data_directory,
        compressor: Compressor::new(
            settings.push.compression_level,
            settings.push.memory.0 as usize,
            cores.min(settings.agent.lookahead),
        ),
        push_timeout: settings.push.timeout,
        lookahead: settings.agent.lookahead,
        prefetch: settings.agent.prefetch,
        idle_timeout: args.started_by.map(|_| settings.agent.idle_timeout),
        files: std::iter::once(program).chain(configuration).collect(),
    })
}

fn data_directory(args: &cli::AgentArgs) -> Result<PathBuf> {
    let given = args
        .pgdata
        .clone()
        .or_else(|| std::env::var_os("PGDATA").map(PathBuf::from));
    let given = given
        .ok_or_else(|| Error::invalid("no data directory is named; give --pgdata DIR, or set PGDATA"))?;
    let found = std::fs::canonicalize(&given)
        .map_err(|error| Error::io(format!("find the data directory {}", given.display()), error))?;
    if !found.join("global/pg_control").exists() {
        return Err(Error::invalid(format!(
            "{} is no data directory: it has no global/pg_control; give the cluster's data directory",
            found.display()
        )));
    }
    Ok(found)
}

/// Tells systemd (`Type=notify`) that clients can connect: `sd_notify(3)`.
fn ready() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let bytes = path.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let told = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = told {
        tracing::warn!("tell systemd that the agent is ready: {error}");
    }
}
