//! The agent's side: a socket, and an answer for each client.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempPath;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::archiver::{Archiver, ArchiverOptions};
use super::life::{Activity, Life};
use super::metrics::{Metrics, Work};
use super::prefetch::{Prefetcher, is_destination_of};
use super::schedule::{Schedule, ScheduleOptions};
use super::spool::Spool;
use crate::cluster::compressor::Compressor;
use crate::edge::runtime::on_one_thread;
use crate::error::{Error, Result};
use crate::server::data_directory::RecoverySignal;
use crate::store::Store;
use crate::verbs::restore::RestoreOptions;
use walship_client::Address;
use walship_client::make_folder;
use walship_client::protocol::{Ask, LINE_LIMIT, Reply, Request, SIGN_OF_LIFE, SILENCE, What, line, parse};

#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Where it listens, and for whom.
    pub address: Address,
    /// The data directory it serves.
    pub data_directory: PathBuf,
    /// What compresses WAL.
    pub compressor: Arc<Compressor>,
    /// Time after which the agent gives up storing one file.
    pub push_timeout: Duration,
    /// Files that are worked on at the same time, the one that was asked for included.
    pub lookahead: usize,
    /// Segments that are fetched ahead of recovery.
    pub prefetch: usize,
    /// It ends after this time without a request, and with its server; with none it does neither.
    pub idle_timeout: Option<Duration>,
    /// Files whose change ends it: the program, the configuration.
    pub files: Vec<PathBuf>,
    /// The jobs that it runs, if there are any.
    pub schedule: Option<ScheduleOptions>,
}

struct Agent {
    address: Address,
    data_directory: PathBuf,
    archiver: Arc<Archiver>,
    prefetcher: Arc<Prefetcher>,
    activity: Arc<Activity>,
    work: Work,
}

/// Serves until it is told to end (SIGTERM, SIGINT) or has a reason of its own, which it returns.
/// `ready` is called when clients can connect. What it does is counted in `work`, which `metrics` may show.
///
/// # Errors
/// `Conflict` where another agent listens there; `Denied` for a directory that others can write;
/// `Internal` where the socket cannot be made.
pub async fn run(
    options: AgentOptions,
    store: Store,
    work: Work,
    metrics: Option<Arc<Metrics>>,
    ready: impl FnOnce(),
) -> Result<String> {
    let (socket, listener) = Socket::bind(&options.address.socket)?;
    let spool = Spool::open(&options.data_directory, &options.address.name)?;
    let archiver = ArchiverOptions {
        compressor: options.compressor,
        timeout: options.push_timeout,
        ahead: options.lookahead,
    };
    let data_directory = options.data_directory.clone();
    let mut files = options.files;
    // Once its socket is removed or replaced, no client reaches the agent any more.
    files.push(options.address.socket.clone());
    let life = Life::new(&data_directory, files, options.idle_timeout);
    let activity = Activity::new();
    let open = |schedule| Schedule::open(schedule, store.clone(), Arc::clone(&activity));
    let schedule = options.schedule.map(open).transpose()?;
    if let (Some(metrics), Some(schedule)) = (&metrics, &schedule) {
        metrics.follow(Arc::clone(schedule));
    }
    let agent = Arc::new(Agent {
        address: options.address,
        archiver: Archiver::new(store.clone(), archiver, data_directory.clone()),
        prefetcher: Prefetcher::new(store, spool, options.prefetch),
        data_directory,
        activity,
        work,
    });
    if let Some(metrics) = metrics {
        show(metrics)?;
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| Error::io("await signals", error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| Error::io("await signals", error))?;
    // On a thread of its own: the schedule writes its state durably, and no client waits for that.
    let accepting = tokio::spawn(accept(listener, Arc::clone(&agent)));
    ready();
    let reason = tokio::select! {
        reason = life.over(&agent.activity) => reason,
        _ = terminate.recv() => "it was told to".to_owned(),
        _ = interrupt.recv() => "it was told to".to_owned(),
        never = agent.prefetcher.drop_unused() => match never {},
        never = agent.archiver.release_unused() => match never {},
        // On this thread, which lives as long as the agent: the kernel ends the jobs with it.
        never = keep(schedule.as_ref()) => match never {},
    };
    // Whoever asks from now on does the work itself, without waiting for the jobs to end.
    accepting.abort();
    drop(socket);
    if let Some(schedule) = &schedule {
        schedule.end().await;
    }
    agent.prefetcher.close();
    Ok(reason)
}

/// Shows metrics until the process ends, on a thread of their own: a look through a large archive must not keep a client
/// waiting.
fn show(metrics: Arc<Metrics>) -> Result<()> {
    let showing = move || -> Result<()> { on_one_thread(async { match Box::pin(metrics.run()).await {} }) };
    let thread = std::thread::Builder::new().name("metrics".to_owned());
    thread
        .spawn(showing)
        .map(drop)
        .map_err(|error| Error::io("start a thread", error))
}

async fn keep(schedule: Option<&Arc<Schedule>>) -> Infallible {
    match schedule {
        Some(schedule) => schedule.keep().await,
        None => std::future::pending().await,
    }
}

async fn accept(listener: UnixListener, agent: Arc<Agent>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = Arc::clone(&agent);
                tokio::spawn(async move {
                    agent.activity.note();
                    agent.serve(stream).await;
                    agent.activity.note();
                });
            }
            // Too many open files, say: those in use will be closed.
            Err(error) => {
                tracing::warn!("accept a client: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Agent {
    /// Answers one request; whatever goes wrong with the client ends the conversation.
    async fn serve(&self, stream: UnixStream) -> Option<()> {
        let own = rustix::process::geteuid().as_raw();
        if stream.peer_cred().ok()?.uid() != own {
            return None;
        }
        let mut stream = BufReader::new(stream);
        let mut text = Vec::new();
        let mut limited = (&mut stream).take(LINE_LIMIT);
        let reading = limited.read_until(b'\n', &mut text);
        tokio::time::timeout(SILENCE, reading).await.ok()?.ok()?;
        let request: Request = parse(&text).ok()?;
        let mut stream = stream.into_inner();
        if self.address.fingerprint().as_ref() != Some(&request.fingerprint) {
            return send(&mut stream, &Reply::Foreign).await;
        }
        if let Ask::Done {
            what,
            millis,
            failure,
        } = request.ask
        {
            // The client has hung up.
            self.work.count(what, Duration::from_millis(millis), failure);
            return None;
        }
        send(&mut stream, &Reply::Working).await?;
        let mut work = Box::pin(self.answer(request.ask));
        let (reply, file) = loop {
            match tokio::time::timeout(SIGN_OF_LIFE, &mut work).await {
                Ok(answer) => break answer,
                Err(_) => send(&mut stream, &Reply::Working).await?,
            }
        };
        send(&mut stream, &reply).await?;
        if file.is_some() {
            // The client renames the file and hangs up; a file that it left is removed.
            let mut end = [0];
            let _ = tokio::time::timeout(SILENCE * 2, stream.read(&mut end)).await;
        }
        Some(())
    }

    async fn answer(&self, ask: Ask) -> (Reply, Option<TempPath>) {
        let begun = Instant::now();
        match ask {
            Ask::Ping | Ask::Done { .. } => (Reply::Alive, None),
            Ask::Push { path, file } => {
                let reply = self.archiver.push(&path, file).await;
                self.count(What::Push, begun, &reply);
                (reply, None)
            }
            Ask::Restore {
                name,
                destination,
                accepted_gap,
                retry_millis,
            } => {
                if !is_destination_of(&self.data_directory, &destination) {
                    return (Reply::Foreign, None);
                }
                let options = RestoreOptions {
                    name,
                    destination,
                    signal: RecoverySignal::None,
                    retry_timeout: Duration::from_millis(retry_millis),
                    accepted_gap,
                };
                let (reply, file) = self.prefetcher.restore(options).await;
                self.count(What::Restore, begun, &reply);
                (reply, file)
            }
        }
    }

    /// Counts an answer. After those that the client does not rely on, it does the work, and tells.
    fn count(&self, what: What, begun: Instant, reply: &Reply) {
        match reply {
            Reply::Stored | Reply::Ready { .. } => self.work.count(what, begun.elapsed(), None),
            Reply::Failed { kind, .. } if walship_client::is_relied_on(*kind) => {
                self.work.count(what, begun.elapsed(), Some(*kind));
            }
            _ => {}
        }
    }
}

async fn send(stream: &mut UnixStream, reply: &Reply) -> Option<()> {
    let bytes = line(reply).ok()?;
    tokio::time::timeout(SILENCE, stream.write_all(&bytes))
        .await
        .ok()?
        .ok()
}

/// The socket, and the lock that keeps a second agent away.
struct Socket {
    path: PathBuf,
    inode: u64,
    _lock: File,
}

impl Socket {
    fn bind(path: &Path) -> Result<(Self, UnixListener)> {
        make_folder(path)?;
        let lock = lock(&path.with_extension("lock"))?;
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("remove {}", path.display()), error)),
        }
        let listener = UnixListener::bind(path)
            .map_err(|error| Error::io(format!("listen on {}", path.display()), error))?;
        let bound = std::fs::metadata(path)
            .map_err(|error| Error::io(format!("look at {}", path.display()), error))?;
        let socket = Self {
            path: path.to_owned(),
            inode: bound.ino(),
            _lock: lock,
        };
        Ok((socket, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another agent's socket may be there by now.
        if std::fs::metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Holds a file that only one agent can hold.
pub(super) fn lock(path: &Path) -> Result<File> {
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let file = opened.map_err(|error| Error::io(format!("open {}", path.display()), error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::conflict(format!(
            "another agent of this data directory and archive is running (it holds {})",
            path.display()
        ))),
        Err(error) => Err(Error::io(format!("lock {}", path.display()), error.into())),
    }
}
