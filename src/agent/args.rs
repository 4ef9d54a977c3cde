//! Flags of `walship agent`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use walship_client::{Address, Answer, Ask};

use super::metrics::{Metrics, MetricsOptions, Work};
use super::schedule::ScheduleOptions;
use super::{AgentOptions, detach, run};
use crate::cluster::compressor::Compressor;
use crate::config::{Settings, cores};
use crate::edge::agent::address_for;
use crate::edge::runtime::{interrupted, on_many_threads, open};
use crate::edge::{pgdata, variable};
use crate::error::{Error, Result};
use crate::server::ConnInfo;
use crate::store::{Meter, Store};
use crate::verbs::doctor::DoctorOptions;
use crate::verbs::status::StatusOptions;

/// How long `--ping` waits.
const PING: Duration = Duration::from_secs(3);

/// Arguments of `walship agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The data directory to serve; without one it only shows metrics [env: PGDATA]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// The server, for metrics, doctor's checks and scheduled backups: a libpq connection string or URI
    #[arg(short, long = "dbname", value_name = "CONNINFO")]
    pub dbname: Option<String>,
    /// Only say whether an agent answers: exit code 0 if one does
    #[arg(long)]
    pub ping: bool,
    /// Started by this process, a push or restore: ends when idle, and with its server
    #[arg(long, value_name = "PID", hide = true)]
    pub started_by: Option<i32>,
}

impl AgentArgs {
    pub fn run(self, settings: &Settings) -> Result<ExitCode> {
        let dbname = self.dbname.as_deref();
        if pgdata(self.pgdata.clone()).is_none() && settings.metrics.listen.is_some() && !self.ping {
            return show_only(dbname, settings);
        }
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
        // An agent that was started by itself comes and goes.
        let shown = match self.started_by {
            None => metrics_options(dbname, settings, Some(&data_directory))?,
            Some(_) => None,
        };
        let options = options(dbname, idle_timeout, settings, address, data_directory)?;
        let reason = on_many_threads(async {
            let (work, store) = (Work::new(), open(settings).await?);
            let Some(shown) = shown else {
                return Box::pin(run(options, store, work, None, ready)).await;
            };
            let (store, metrics) = observed(shown, &store, &work);
            Box::pin(run(options, store, work, Some(metrics), ready)).await
        })?;
        tracing::info!("the agent ends: {reason}");
        Ok(ExitCode::SUCCESS)
    }
}

/// On a host that has only the archive, or only a connection to the server.
fn show_only(dbname: Option<&str>, settings: &Settings) -> Result<ExitCode> {
    let shown = metrics_options(dbname, settings, None)?;
    let shown = shown.ok_or_else(|| Error::internal("there are no metrics to show"))?;
    let reason = on_many_threads(async {
        let work = Work::new();
        let (_, metrics) = observed(shown, &open(settings).await?, &work);
        let interrupted = interrupted()?;
        ready();
        tokio::select! {
            never = metrics.run() => match never {},
            reason = interrupted => Ok(reason),
        }
    })?;
    tracing::info!("the agent ends: {reason}");
    Ok(ExitCode::SUCCESS)
}

/// The store with its requests counted, and the metrics that show them.
fn observed(shown: MetricsOptions, store: &Store, work: &Work) -> (Store, Arc<Metrics>) {
    let store = store.with_meter(Meter::observed_by(work.observer()));
    let metrics = Metrics::new(shown, store.clone(), work);
    (store, metrics)
}

fn metrics_options(
    dbname: Option<&str>,
    settings: &Settings,
    data_directory: Option<&Path>,
) -> Result<Option<MetricsOptions>> {
    let shown = &settings.metrics;
    let Some(listen) = shown.listen else {
        return Ok(None);
    };
    let server = (dbname.is_some() || shown.postgres).then(|| ConnInfo::resolve_database(dbname, variable));
    let server = server.transpose()?;
    let pgbouncer = shown.pgbouncer.as_deref();
    let pgbouncer = pgbouncer.map(|given| ConnInfo::resolve_pgbouncer_console(given, variable));
    let data_directory = data_directory.map(Path::to_owned);
    let wal = data_directory
        .as_ref()
        .map(|directory| ("pg_wal", directory.join("pg_wal")));
    let drill = ("drill", settings.drill.directory.clone());
    Ok(Some(MetricsOptions {
        listen,
        hosts: shown.hosts.clone(),
        interval: shown.interval,
        status: StatusOptions::of(settings, data_directory.clone()),
        doctor: DoctorOptions::of(settings, data_directory),
        doctor_timeout: settings.doctor.timeout,
        postgres: server.clone().filter(|_| shown.postgres),
        server,
        slow_query: shown.slow_query,
        pgbouncer: pgbouncer.transpose()?,
        pgbouncer_log: shown.pgbouncer_log.clone(),
        directories: wal.into_iter().chain([drill]).collect(),
    }))
}

fn options(
    dbname: Option<&str>,
    idle_timeout: Option<Duration>,
    settings: &Settings,
    address: Address,
    data_directory: PathBuf,
) -> Result<AgentOptions> {
    let program = std::env::current_exe().map_err(|error| Error::io("find this program", error))?;
    let configuration = settings.to_reproduce().0.map(Path::to_owned);
    // An agent that a push started ends when idle, and would keep no schedule.
    let schedule = match idle_timeout {
        None => ScheduleOptions::new(settings, &data_directory, dbname)?,
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
        .ok_or_else(|| Error::invalid("no data directory is named; give --pgdata DIR, or set PGDATA; to show metrics alone, set metrics.listen"))?;
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
