//! What Prometheus scrapes from the agent.
//!
//! - A scrape asks no store. The archive is looked at every `metrics.interval`, and when that was is a metric.
//! - PostgreSQL and PgBouncer are asked in a scrape, over one connection each, at most once a second and for at most
//!   some seconds, however many ask.
//! - Archiving waits for none of it.

mod host;
mod http;
mod pgbouncer;
mod postgres;
mod schedule;
mod work;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use prometheus_client::registry::Registry;

use self::host::Host;
use self::pgbouncer::{Console, Log};
use self::postgres::Server;
pub(super) use self::work::Work;
use super::schedule::Schedule;
use crate::edge::exposition::{Board, Family, Format, word};
use crate::error::{Error, Result};
use crate::server::ConnInfo;
use crate::store::Store;
use crate::verbs::doctor::{self, Deadline, DoctorOptions};
use crate::verbs::status::{self, StatusOptions};

/// PostgreSQL and PgBouncer are not asked again within this time.
const FRESH: Duration = Duration::from_secs(1);
/// How long one look at the archive may take.
const LOOK_TIME: Duration = Duration::from_mins(3);
/// Doctor writes and deletes an object to see whether it may, so it looks more rarely than status.
const DOCTOR_EVERY: u32 = 10;

/// What is shown, and where.
#[derive(Debug)]
pub(super) struct MetricsOptions {
    pub(super) listen: SocketAddr,
    /// Names, besides addresses and localhost, by which it may be asked.
    pub(super) hosts: Vec<String>,
    /// How often the archive is looked at.
    pub(super) interval: Duration,
    pub(super) status: StatusOptions,
    /// The server, where one is named.
    pub(super) server: Option<ConnInfo>,
    /// For a named server.
    pub(super) doctor: DoctorOptions,
    pub(super) doctor_timeout: Duration,
    /// Whether the server is asked for PostgreSQL's own metrics.
    pub(super) postgres: Option<ConnInfo>,
    pub(super) slow_query: Duration,
    pub(super) pgbouncer: Option<ConnInfo>,
    pub(super) pgbouncer_log: Option<PathBuf>,
    /// File systems whose free space is shown, by what they are for.
    pub(super) directories: Vec<(&'static str, PathBuf)>,
}

pub(super) struct Metrics {
    options: MetricsOptions,
    store: Store,
    registry: Registry,
    archive: Board,
    doctor: Board,
    jobs: Board,
    /// What the agent runs by itself.
    schedule: OnceLock<Arc<Schedule>>,
    /// What a scrape asks for.
    now: Board,
    /// What takes the server longer.
    on_disk: Board,
    sources: tokio::sync::Mutex<Sources>,
    sized: Option<tokio::sync::Mutex<Server>>,
    /// Why the archive could not be looked at.
    unready: Mutex<Option<String>>,
}

/// Whom a scrape asks.
struct Sources {
    host: Host,
    server: Option<Server>,
    console: Option<Console>,
    log: Option<Log>,
    asked: Option<Instant>,
}

impl Metrics {
    pub(super) fn new(options: MetricsOptions, store: Store, work: &Work) -> Arc<Self> {
        let server = || {
            let info = options.postgres.clone()?;
            Some(Server::new(info, options.slow_query))
        };
        let sources = Sources {
            host: Host::new(options.directories.clone()),
            server: server(),
            console: options.pgbouncer.clone().map(Console::new),
            log: options.pgbouncer_log.clone().map(Log::new),
            asked: None,
        };
        let sized = server().map(tokio::sync::Mutex::new);
        let [archive, doctor, jobs, now, on_disk] = std::array::from_fn(|_| Board::default());
        let mut registry = Registry::default();
        for board in [&now, &on_disk] {
            registry.register_collector(Box::new(board.clone()));
        }
        let label = ("archive".into(), store.location().to_string().into());
        let own = registry.sub_registry_with_label(label);
        for board in [&archive, &doctor, &jobs] {
            own.register_collector(Box::new(board.clone()));
        }
        work.register(own);
        Arc::new(Self {
            options,
            store,
            registry,
            archive,
            doctor,
            jobs,
            schedule: OnceLock::new(),
            now,
            on_disk,
            sources: tokio::sync::Mutex::new(sources),
            sized,
            unready: Mutex::new(Some("the archive was not looked at yet".to_owned())),
        })
    }

    /// From now on these jobs are shown, too.
    pub(super) fn follow(&self, schedule: Arc<Schedule>) {
        let _ = self.schedule.set(schedule);
    }

    /// Looks at the archive and answers scrapes, for ever.
    pub(super) async fn run(self: &Arc<Self>) -> Infallible {
        tokio::select! {
            never = self.watch() => never,
            never = http::serve(self.options.listen, Arc::clone(self)) => never,
        }
    }

    async fn watch(&self) -> Infallible {
        let mut last = Vec::new();
        for round in (0..DOCTOR_EVERY).cycle() {
            tokio::join!(self.look(&mut last), self.size(), async {
                if round == 0 {
                    self.examine().await;
                }
            });
            tokio::time::sleep(self.options.interval).await;
        }
        std::future::pending().await
    }

    /// Looks at the archive. Where that fails, `last` is what was known.
    async fn look(&self, last: &mut Vec<Family>) {
        let options = &self.options;
        // A data directory on this machine tells what waits even while its server is down.
        let asked = options
            .server
            .as_ref()
            .filter(|_| options.status.pgdata.is_none());
        let store = self.store.reopened();
        let looking = status::run(&options.status, asked, &store, Utc::now());
        let looked = tokio::time::timeout(LOOK_TIME, looking)
            .await
            .unwrap_or_else(|_| {
                let limit = LOOK_TIME.as_secs();
                Err(Error::unavailable(format!(
                    "the archive was not looked through within {limit} s"
                )))
            });
        let mut families = match &looked {
            Ok(report) => {
                *last = status::metrics::families(report);
                last.clone()
            }
            Err(_) => last.clone(),
        };
        // That grows while the archive is away.
        let backlog = match &looked {
            Ok(report) => report.backlog.clone(),
            Err(_) => status::backlog_alone(&options.status, asked, Utc::now()).await,
        };
        families.extend(status::metrics::backlog(backlog.as_ref()));
        families.push(status::metrics::looked(looked.is_ok()));
        self.archive.put(families);
        let why = looked.err().map(|error| error.to_string());
        if let Some(why) = &why {
            tracing::warn!("look at the archive for its metrics: {why}");
        }
        *self.unready.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    async fn size(&self) {
        if let Some(server) = &self.sized {
            self.on_disk.put(server.lock().await.sizes().await);
        }
    }

    async fn examine(&self) {
        let Some(server) = &self.options.server else {
            return;
        };
        let deadline = Deadline::after(self.options.doctor_timeout);
        let store = async { Ok(self.store.reopened()) };
        let report = doctor::run(self.options.doctor.clone(), deadline, server, store).await;
        // A check has a finding for each slot and each standby. The worst one counts, and comes first.
        let mut checks = std::collections::BTreeMap::new();
        for finding in &report.findings {
            checks
                .entry(finding.check.id())
                .or_insert_with(|| word(&finding.level));
        }
        let checks = checks.into_iter();
        let checks = checks.map(|(check, level)| (vec![("check", check.to_owned()), ("level", level)], 1.0));
        let at = report.checked_at.timestamp() as f64;
        self.doctor.put(vec![
            Family::gauge("walship_doctor_check", "What walship doctor says of each check").with(checks),
            Family::gauge("walship_doctor_timestamp_seconds", "When doctor looked last").of(Some(at)),
        ]);
    }

    /// Everything, of this moment.
    async fn scrape(&self, format: Format) -> Result<String> {
        let mut sources = self.sources.lock().await;
        if sources.asked.is_none_or(|asked| asked.elapsed() >= FRESH) {
            self.now.put(sources.ask().await);
            sources.asked = Some(Instant::now());
        }
        drop(sources);
        if let Some(schedule) = self.schedule.get() {
            self.jobs.put(schedule::families(&schedule.snapshot()));
        }
        format.write(&self.registry)
    }

    fn hosts(&self) -> &[String] {
        &self.options.hosts
    }

    /// Whether the archive was reached the last time, or why not.
    fn readiness(&self) -> std::result::Result<(), String> {
        let why = self
            .unready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        why.map_or(Ok(()), Err)
    }
}

impl Sources {
    async fn ask(&mut self) -> Vec<Family> {
        let Self {
            host,
            server,
            console,
            log,
            ..
        } = self;
        let asking_server = async {
            match server {
                Some(server) => server.now().await,
                None => Vec::new(),
            }
        };
        let asking_console = async {
            match console {
                Some(console) => console.now().await,
                None => Vec::new(),
            }
        };
        let (server, console) = tokio::join!(asking_server, asking_console);
        let log = log.as_mut().map(Log::now);
        let mut families = host.now().await;
        families.extend(server.into_iter().chain(console).chain(log.unwrap_or_default()));
        families
    }
}
