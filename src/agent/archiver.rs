//! Storing WAL ahead of PostgreSQL's archiver.
//!
//! Files are read, hashed, compressed and transferred several at a time, and stored one after the
//! other in the archiver's order: each gets its name only when the one before it is durable. Whoever
//! meets different content under a name stops there, and with it everything behind it, as a lone
//! archiver would. So two primaries that look ahead into one archive cannot interleave their
//! histories.
//!
//! Work begins only when the archiver asks: an agent whose `archive_command` was taken away stores
//! nothing. What was stored ahead is told to the archiver only where the file is still the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::sync::watch;

use super::known_identity::KnownIdentity;
use super::protocol::{FileIdentity, Reply};
use super::ready::{Place, waiting};
use crate::commands::push::{self, Compressor};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::WalName;
use crate::store::Store;

/// For so long a look into `archive_status` is believed; a new file may have come before the others.
const LOOK_AGE: Duration = Duration::from_secs(1);

/// How to store.
#[derive(Debug, Clone)]
pub(super) struct ArchiverOptions {
    pub(super) compressor: Arc<Compressor>,
    pub(super) timeout: Duration,
    /// Files that are worked on at the same time.
    pub(super) ahead: usize,
}

/// Stores files for clients, and ahead of them.
pub(super) struct Archiver {
    store: Store,
    options: ArchiverOptions,
    data_directory: PathBuf,
    identity: KnownIdentity,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    jobs: BTreeMap<Place, Job>,
    waiting: Vec<WalName>,
    /// What the archiver asked for last.
    asked: Option<WalName>,
    looked: Option<Instant>,
}

/// One file on its way into the archive, or there.
struct Job {
    file: FileIdentity,
    outcome: watch::Receiver<Option<Outcome>>,
}

#[derive(Debug, Clone)]
enum Outcome {
    Stored,
    Failed(ErrorKind, String),
}

impl Job {
    fn is_running(&self) -> bool {
        self.outcome.borrow().is_none() && self.outcome.has_changed().is_ok()
    }

    fn is_stored(&self) -> bool {
        matches!(*self.outcome.borrow(), Some(Outcome::Stored))
    }
}

impl Archiver {
    pub(super) fn new(store: Store, options: ArchiverOptions, data_directory: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            store,
            options,
            data_directory,
            identity: KnownIdentity::default(),
            state: Mutex::default(),
        })
    }

    /// Answers once the file is durable in the archive, or that failed.
    pub(super) async fn push(self: &Arc<Self>, path: &Path, file: FileIdentity) -> Reply {
        let name = path.file_name().and_then(|name| name.to_str()).map(str::parse);
        let (Some(Ok(name)), Some(directory)) = (name, path.parent()) else {
            return Reply::Foreign;
        };
        let ours = std::fs::canonicalize(self.data_directory.join("pg_wal"));
        if ours.ok() != std::fs::canonicalize(directory).ok() {
            return Reply::Foreign;
        }
        let mut outcome = self.job(name, path, file);
        self.lock().asked = Some(name);
        self.look_ahead();
        let ended = outcome
            .wait_for(Option::is_some)
            .await
            .map(|outcome| outcome.clone());
        match ended {
            Ok(Some(Outcome::Stored)) => Reply::Stored,
            Ok(Some(Outcome::Failed(kind, message))) => Reply::Failed { kind, message },
            Ok(None) | Err(_) => Error::internal("the agent's work ended without an outcome").into(),
        }
    }

    /// The job of this file: the one that runs or has succeeded, else a new one.
    fn job(
        self: &Arc<Self>,
        name: WalName,
        path: &Path,
        file: FileIdentity,
    ) -> watch::Receiver<Option<Outcome>> {
        let mut state = self.lock();
        match state.jobs.get(&name.into()) {
            Some(job) if job.file == file && (job.is_running() || job.is_stored()) => job.outcome.clone(),
            _ => self.start(&mut state, name, path.to_owned(), file, None),
        }
    }

    /// Begins to store what waits behind the file that the archiver asked for last, as far ahead as is
    /// allowed.
    fn look_ahead(self: &Arc<Self>) {
        let mut state = self.lock();
        if !self.look(&mut state) {
            return;
        }
        let asked = state.asked;
        let behind = state.waiting.iter().skip_while(|name| Some(**name) != asked);
        let window: Vec<WalName> = behind.take(self.options.ahead).copied().collect();
        let mut before: Option<watch::Receiver<Option<Outcome>>> = None;
        for name in window {
            if let Some(job) = state.jobs.get(&name.into()) {
                if !job.is_running() && !job.is_stored() {
                    // Nothing is stored beyond a failure until the archiver has asked for it again.
                    return;
                }
                before = Some(job.outcome.clone());
                continue;
            }
            // The archiver asks for the first one itself, and that is where everything begins.
            let Some(turn) = before.take() else {
                return;
            };
            let path = self.data_directory.join("pg_wal").join(name.to_string());
            let Ok(metadata) = std::fs::metadata(&path) else {
                return;
            };
            let file = FileIdentity::from(&metadata);
            before = Some(self.start(&mut state, name, path, file, Some(turn)));
        }
    }

    /// Looks for what waits, if the last look is too old, and forgets what no longer does.
    fn look(&self, state: &mut State) -> bool {
        let is_fresh = state.looked.is_some_and(|looked| looked.elapsed() < LOOK_AGE);
        let started = state
            .waiting
            .iter()
            .all(|name| state.jobs.contains_key(&(*name).into()));
        if is_fresh && !started {
            return true;
        }
        match waiting(&self.data_directory) {
            Ok(names) => {
                let places: std::collections::BTreeSet<Place> =
                    names.iter().map(|name| (*name).into()).collect();
                state
                    .jobs
                    .retain(|place, job| job.is_running() || places.contains(place));
                state.waiting = names;
                state.looked = Some(Instant::now());
                true
            }
            Err(error) => {
                tracing::warn!("look ahead: {error}");
                false
            }
        }
    }

    fn start(
        self: &Arc<Self>,
        state: &mut State,
        name: WalName,
        path: PathBuf,
        file: FileIdentity,
        turn: Option<watch::Receiver<Option<Outcome>>>,
    ) -> watch::Receiver<Option<Outcome>> {
        let (sender, outcome) = watch::channel(None);
        let job = Job {
            file,
            outcome: outcome.clone(),
        };
        state.jobs.insert(name.into(), job);
        let archiver = Arc::clone(self);
        tokio::spawn(async move {
            let stored = archiver.store(path, file, turn).await;
            let ended = match stored {
                Ok(()) => Outcome::Stored,
                Err(error) => Outcome::Failed(error.kind(), error.to_string()),
            };
            sender.send_replace(Some(ended));
        });
        outcome
    }

    async fn store(
        &self,
        path: PathBuf,
        file: FileIdentity,
        turn: Option<watch::Receiver<Option<Outcome>>>,
    ) -> Result<()> {
        let known = self.identity.get();
        let is_known = known.is_some();
        let limit = self.options.timeout;
        let over = time_over(turn.clone(), limit);
        let compressor = &self.options.compressor;
        let pushing = push::run_in_turn(&path, compressor, &self.store, Utc::now(), known, turn.map(after));
        let identity = tokio::select! {
            pushed = pushing => pushed,
            () = over => Err(Error::unavailable(format!(
                "gave up after {} s; the store is too slow, or push.timeout too low",
                limit.as_secs_f64()
            ))),
        }?;
        if !is_known {
            self.identity.note(identity);
        }
        match std::fs::metadata(&path) {
            Ok(metadata) if FileIdentity::from(&metadata) == file => Ok(()),
            _ => Err(Error::internal(format!(
                "{} changed while it was stored",
                path.display()
            ))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves when a file has had its time. What it waits for the ones before it is theirs.
async fn time_over(turn: Option<watch::Receiver<Option<Outcome>>>, limit: Duration) {
    if let Some(mut before) = turn {
        let _ = before.wait_for(Option::is_some).await;
    }
    tokio::time::sleep(limit).await;
}

/// Waits until the file before this one is durable.
async fn after(mut before: watch::Receiver<Option<Outcome>>) -> Result<()> {
    match before.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(Outcome::Stored)) => Ok(()),
        _ => Err(Error::internal("the file before it was not stored")),
    }
}
