//! Stores WAL ahead of PostgreSQL's archiver.
//!
//! Files are read, hashed, compressed and transferred several at a time, and stored one after the other in the
//! archiver's order: each gets its name only when the one before it is durable. If another content has a name already,
//! the agent stops at that file and stores nothing behind it, as a lone archiver would. So two primaries whose agents
//! look ahead into one archive cannot interleave their histories.
//!
//! A file counts as stored only when the archive was confirmed after the file was durable: the archive may go away
//! between the reading of its identity and a write.
//!
//! Work begins only when the archiver asks: an agent whose `archive_command` was taken away stores
//! nothing. A file that was stored ahead is reported to the archiver as stored only if it is still the same file.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::sync::watch;

use super::known_archive::KnownArchive;
use crate::cluster::compressor::Compressor;
use crate::error::{Error, ErrorKind, Result};
use crate::pg::WalName;
use crate::server::archive_status::{ArchiverOrder, waiting};
use crate::store::{Store, Turn};
use crate::verbs::push;
use walship_client::protocol::{FileIdentity, Reply};

/// For this time a look into `archive_status` is used; then a new file may have come that sorts before the others.
const LOOK_AGE: Duration = Duration::from_secs(1);

/// A look that took long is used for this many times as long, so that looking takes at most a twentieth of the time.
const LOOK_SHARE: u32 = 20;

/// Files that one look remembers. When all of them are begun, the next look comes at once.
const LOOK_FILES: usize = 1000;

#[derive(Debug, Clone)]
pub(super) struct ArchiverOptions {
    pub(super) compressor: Arc<Compressor>,
    pub(super) timeout: Duration,
    /// Files that are worked on at the same time.
    pub(super) ahead: usize,
}

/// Stores files for clients, and ahead of them.
pub(super) struct Archiver {
    options: ArchiverOptions,
    data_directory: PathBuf,
    /// Not shared with the prefetcher: an archive is checked more before something is stored in it.
    archive: KnownArchive,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    jobs: BTreeMap<ArchiverOrder, Job>,
    waiting: Vec<WalName>,
    /// What the archiver asked for last.
    asked: Option<WalName>,
    /// Until when the last look is used.
    next_look: Option<Instant>,
}

/// One file on its way into the archive, or there.
struct Job {
    file: FileIdentity,
    outcome: watch::Receiver<Option<Outcome>>,
}

#[derive(Debug, Clone)]
enum Outcome {
    /// It is durable in the store, so the next one may follow. The archive is still to be confirmed.
    Durable,
    /// It is in the archive.
    Stored,
    Failed(ErrorKind, String),
}

impl Outcome {
    fn is_final(&self) -> bool {
        matches!(self, Self::Stored | Self::Failed(..))
    }
}

impl Job {
    fn is_running(&self) -> bool {
        let is_final = self.outcome.borrow().as_ref().is_some_and(Outcome::is_final);
        !is_final && self.outcome.has_changed().is_ok()
    }

    fn is_stored(&self) -> bool {
        matches!(*self.outcome.borrow(), Some(Outcome::Stored))
    }
}

impl Archiver {
    pub(super) fn new(store: Store, options: ArchiverOptions, data_directory: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            options,
            data_directory,
            archive: KnownArchive::new(store),
            state: Mutex::default(),
        })
    }

    /// Answers when the file is durable in the archive, or storing it failed.
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
            .wait_for(|outcome| outcome.as_ref().is_some_and(Outcome::is_final))
            .await
            .map(|outcome| outcome.clone());
        match ended {
            Ok(Some(Outcome::Stored)) => Reply::Stored,
            Ok(Some(Outcome::Failed(kind, message))) => Reply::Failed { kind, message },
            Ok(_) | Err(_) => Error::internal("the agent's work ended without an outcome").into(),
        }
    }

    /// The job of this file: one that runs or has succeeded, else a new one.
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

    /// Begins to store the files that wait behind the one that the archiver asked for last, as far ahead as is allowed.
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
            // Everything begins with the first file, and the archiver asks for that itself.
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

    /// Lists the files that wait, if the last list is too old, and forgets those that no longer do.
    fn look(&self, state: &mut State) -> bool {
        let begun = Instant::now();
        let is_fresh = state.next_look.is_some_and(|next| begun < next);
        let started = state
            .waiting
            .iter()
            .all(|name| state.jobs.contains_key(&(*name).into()));
        if is_fresh && !started {
            return true;
        }
        match waiting(&self.data_directory, LOOK_FILES) {
            Ok(names) => {
                let places: std::collections::BTreeSet<ArchiverOrder> =
                    names.iter().map(|name| (*name).into()).collect();
                state
                    .jobs
                    .retain(|place, job| job.is_running() || places.contains(place));
                state.waiting = names;
                let age = LOOK_AGE.max(begun.elapsed() * LOOK_SHARE);
                state.next_look = Some(begun + age);
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
            let durable = || drop(sender.send_replace(Some(Outcome::Durable)));
            let ended = match archiver.store(path, file, turn, durable).await {
                Ok(()) => Outcome::Stored,
                Err(error) => {
                    archiver.archive.forget();
                    Outcome::Failed(error.kind(), error.to_string())
                }
            };
            sender.send_replace(Some(ended));
        });
        outcome
    }

    /// Stores a file; `durable` is called when it is in the store. It counts as archived only if the archive was still
    /// there after that.
    async fn store(
        &self,
        path: PathBuf,
        file: FileIdentity,
        turn: Option<watch::Receiver<Option<Outcome>>>,
        durable: impl FnOnce(),
    ) -> Result<()> {
        let (store, known) = self.archive.look();
        let limit = self.options.timeout;
        let over = time_over(turn.clone(), limit);
        let compressor = &self.options.compressor;
        let storing = async {
            let turn = turn.map(|turn| Box::pin(after(turn)) as Turn<'_>);
            let archive = push::run_in_turn(&path, compressor, &store, Utc::now(), known, turn).await?;
            match std::fs::metadata(&path) {
                Ok(metadata) if FileIdentity::from(&metadata) == file => durable(),
                _ => {
                    let path = path.display();
                    return Err(Error::internal(format!("{path} changed while it was stored")));
                }
            }
            archive.confirm().await?;
            self.archive.note(archive);
            Ok(())
        };
        tokio::select! {
            stored = storing => stored,
            () = over => Err(Error::unavailable(format!(
                "gave up after {} s; the store is too slow, or push.timeout too low",
                limit.as_secs_f64()
            ))),
        }
    }

    /// Lets go of an archive, and of memory, that is not used.
    pub(super) async fn release_unused(&self) -> Infallible {
        tokio::join!(
            self.archive.release_unused(),
            self.options.compressor.release_unused()
        )
        .0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves when the time for a file is over. It starts when the files before it are stored.
async fn time_over(turn: Option<watch::Receiver<Option<Outcome>>>, limit: Duration) {
    if let Some(mut before) = turn {
        let _ = before.wait_for(Option::is_some).await;
    }
    tokio::time::sleep(limit).await;
}

/// Waits until the file before this one is durable.
async fn after(mut before: watch::Receiver<Option<Outcome>>) -> Result<()> {
    match before.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(Outcome::Durable | Outcome::Stored)) => Ok(()),
        _ => Err(Error::internal("the file before it was not stored")),
    }
}
