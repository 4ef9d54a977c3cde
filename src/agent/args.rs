//! Flags of `walship agent`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use walship_client::{Address, Answer, Ask};

use super::schedule::ScheduleOptions;
use super::{AgentOptions, detach, run};
use crate::cluster::compressor::Compressor;
use crate::config::{Settings, cores};
use crate::edge::agent::address_for;
use crate::edge::pgdata;
use crate::edge::runtime::{on_many_threads, open};
use crate::error::{Error, Result};

/// How long `--ping` waits.
const PING: Duration = Duration::from_secs(3);

/// Arguments of `walship agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The data directory to serve [env: PGDATA]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Only say whether an agent answers: exit code 0 if one does
    #[arg(long)]
    pub ping: bool,
    /// Started by this process, a push or restore: ends when idle, and with its server
    #[arg(long, value_name = "PID", hide = true)]
    pub started_by: Option<i32>,
}

impl AgentArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        let data_directory = data_directory(self.pgdata)?;
        if let Some(starter) = self.started_by {
            detach(&data_directory, starter)?;
        }
        let address = address_for(settings, &data_directory)?;
        if self.ping {
            return match walship_client::ask(&address, Ask::Ping, PING) {
                Some(Ok(Answer::Alive)) => Ok(ExitCode::SUCCESS),
                _ => Err(Error::unavailable(format!(
                    "no agent answers at {}; start one with walship agent",
                    address.socket.display()
                ))),
            };
        }
        let idle_timeout = self.started_by.map(|_| settings.agent.idle_timeout);
        let options = options(idle_timeout, settings, address, data_directory)?;
        let reason = on_many_threads(async { run(options, open(settings).await?, ready).await })?;
        tracing::info!("the agent ends: {reason}");
        Ok(ExitCode::SUCCESS)
    }
}

fn options(
    idle_timeout: Option<Duration>,
    settings: &Settings,
    address: Address,
    data_directory: PathBuf,
) -> Result<AgentOptions> {
    let program = std::env::current_exe().map_err(|error| Error::io("find this program", error))?;
    let configuration = settings.to_reproduce().0.map(Path::to_owned);
    // An agent that a push started ends when idle, and would keep no schedule.
    let schedule = match idle_timeout {
        None => ScheduleOptions::new(settings, &data_directory)?,
        Some(_) => None,
    };
    Ok(AgentOptions {
        schedule,
        address,
        data_directory,
        compressor: Compressor::new(
            settings.push.compression_level,
            settings.push.memory.0 as usize,
            cores(),
        ),
        push_timeout: settings.push.timeout,
        lookahead: settings.agent.lookahead,
        prefetch: settings.agent.prefetch,
        idle_timeout,
        files: std::iter::once(program).chain(configuration).collect(),
    })
}

fn data_directory(flag: Option<PathBuf>) -> Result<PathBuf> {
    let given = pgdata(flag)
        .ok_or_else(|| Error::invalid("no data directory is named; give --pgdata DIR, or set PGDATA"))?;
    let found = std::fs::canonicalize(&given)
        .map_err(|error| Error::io(format!("find the data directory {}", given.display()), error))?;
    if !found.join("global/pg_control").exists() {
        return Err(Error::invalid(format!(
            "{} is not a data directory: it has no global/pg_control; give the cluster's data directory",
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
