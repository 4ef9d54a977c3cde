//! Fetches WAL ahead of recovery.
//!
//! While a server recovers and asks for one segment after the other, the next segments of its timeline are fetched in
//! parallel into the spool and verified there. Whether one may be delivered (identity, header, the fork rule) is
//! decided when it is asked for. Absence is never remembered: a missing segment and a history are looked up each time.
//! For a client that reads backwards, or outside of recovery, as `pg_rewind` does, nothing is fetched ahead.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempPath;
use tokio::task::JoinHandle;

use super::known_archive::KnownArchive;
use super::spool::Spool;
use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::pg::{SegmentName, SegmentSize, WalName};
use crate::server::data_directory::RecoverySignal;
use crate::store::Store;
use crate::verbs::restore::{self, Fetched, Obtained, RestoreOptions, VerifiedFile};
use walship_client::protocol::Reply;

/// Segments that nobody asked for in this time are dropped.
const IDLE: Duration = Duration::from_mins(1);

/// Fetches files for clients, and ahead of them.
pub(super) struct Prefetcher {
    spool: Spool,
    /// Segments that are fetched or stand ready at the same time.
    ahead: usize,
    /// How many files got a name so far.
    named: AtomicU64,
    archive: KnownArchive,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last segment that was delivered.
    last: Option<SegmentName>,
    /// How many were delivered in sequence.
    in_sequence: u32,
    fetching: BTreeMap<SegmentName, JoinHandle<Result<Option<Fetched>>>>,
    asked: Option<Instant>,
}

impl State {
    fn stop(&mut self) {
        for (_, job) in std::mem::take(&mut self.fetching) {
            job.abort();
        }
    }
}

impl Prefetcher {
    pub(super) fn new(store: Store, spool: Spool, ahead: usize) -> Arc<Self> {
        Arc::new(Self {
            spool,
            ahead,
            named: AtomicU64::new(0),
            archive: KnownArchive::new(store),
            state: Mutex::default(),
        })
    }

    /// Obtains one file for a client; the file is removed when what is returned with the reply is
    /// dropped, unless the client renamed it before.
    pub(super) async fn restore(self: &Arc<Self>, mut options: RestoreOptions) -> (Reply, Option<TempPath>) {
        self.lock().asked = Some(Instant::now());
        let obtained = async {
            options.signal = restore::asker(&options.destination)?;
            let name = options.name.parse()?;
            let ahead = match name {
                WalName::Segment(segment) => self.take(segment).await,
                _ => None,
            };
            let (store, ahead) = match ahead {
                Some(fetched) => {
                    let archive = self.known().await?;
                    (archive.store().clone(), Some((fetched, archive)))
                }
                None => (self.archive.look().0, None),
            };
            let folder = self.spool.folder()?;
            let obtained = restore::obtain(&options, &store, folder, ahead).await?;
            if let (Obtained::File(_), WalName::Segment(segment)) = (&obtained, name) {
                self.delivered(segment, options.signal).await;
            }
            Ok::<_, Error>(obtained)
        };
        match obtained.await {
            Ok(Obtained::File(file)) => match self.stand_ready(file) {
                Ok(file) => (
                    Reply::Ready {
                        file: file.to_path_buf(),
                    },
                    Some(file),
                ),
                Err(error) => (error.into(), None),
            },
            Ok(Obtained::Absent(reason)) => (Reply::Absent { reason }, None),
            Ok(Obtained::Withheld(reason)) => (Reply::Withheld { reason }, None),
            Err(error) => {
                self.archive.forget();
                (error.into(), None)
            }
        }
    }

    /// Gives a verified file a name of its own in the spool.
    fn stand_ready(&self, file: VerifiedFile) -> Result<TempPath> {
        let number = self.named.fetch_add(1, Ordering::Relaxed);
        let path = self.spool.folder()?.join(number.to_string());
        file.deliver(&path)?;
        TempPath::try_from_path(&path).map_err(|error| Error::io(format!("find {}", path.display()), error))
    }

    /// Drops files that nobody asks for any more, because the recovery has ended or the standby streams.
    pub(super) async fn drop_unused(&self) -> Infallible {
        let forgotten = async {
            loop {
                tokio::time::sleep(IDLE / 4).await;
                let mut state = self.lock();
                if state.asked.is_none_or(|asked| asked.elapsed() > IDLE) {
                    state.stop();
                }
            }
        };
        tokio::select! {
            never = forgotten => never,
            never = self.archive.release_unused() => never,
        }
    }

    /// Ends all fetching, and removes the files that stand ready.
    pub(super) fn close(&self) {
        self.lock().stop();
        self.spool.close();
    }

    /// This segment, if it was fetched; `None` where it has to be fetched now. If it was not among the expected ones,
    /// everything fetched is dropped.
    async fn take(&self, segment: SegmentName) -> Option<Fetched> {
        let job = {
            let mut state = self.lock();
            let job = state.fetching.remove(&segment);
            if job.is_none()
                && state
                    .fetching
                    .keys()
                    .any(|next| next.timeline() == segment.timeline())
            {
                state.stop();
            }
            job
        };
        // A failure does not matter here: the request fetches again, and reports.
        job?.await.ok()?.ok()?
    }

    /// Notes a delivery, and fetches the following segments where a recovery goes forward.
    async fn delivered(self: &Arc<Self>, segment: SegmentName, signal: RecoverySignal) {
        let Ok(archive) = self.known().await else {
            return;
        };
        let size = archive.identity().segment_bytes;
        let mut state = self.lock();
        let follows = |last: SegmentName| {
            let (last, this) = (last.number(size).ok()?, segment.number(size).ok()?);
            Some(this == last.next() || this == last)
        };
        let goes_on = state.last.is_some_and(|last| follows(last) == Some(true));
        state.in_sequence = if goes_on { state.in_sequence + 1 } else { 0 };
        state.last = Some(segment);
        if signal == RecoverySignal::None || state.in_sequence == 0 {
            state.stop();
            return;
        }
        let wanted = self.next_of(segment, size);
        state.fetching.retain(|fetched, job| {
            let keep = wanted.contains(fetched);
            if !keep {
                job.abort();
            }
            keep
        });
        for next in wanted {
            let (prefetcher, archive) = (Arc::clone(self), archive.clone());
            state.fetching.entry(next).or_insert_with(|| {
                tokio::spawn(async move {
                    let folder = prefetcher.spool.folder()?;
                    restore::fetch_ahead(next, &archive, folder).await
                })
            });
        }
    }

    /// The segments after this one on its timeline.
    fn next_of(&self, segment: SegmentName, size: SegmentSize) -> Vec<SegmentName> {
        let mut next = Vec::new();
        let Ok(mut number) = segment.number(size) else {
            return next;
        };
        for _ in 0..self.ahead {
            number = number.next();
            if let Ok(name) = SegmentName::new(segment.timeline(), number, size) {
                next.push(name);
            }
        }
        next
    }

    /// The archive, opened again if the last look is too old.
    async fn known(&self) -> Result<Archive> {
        let (store, known) = self.archive.look();
        if let Some(archive) = known {
            return Ok(archive);
        }
        let archive = Archive::open(&store).await?;
        self.archive.note(archive.clone());
        Ok(archive)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The folder of `pg_wal` that a destination is in, if it is this data directory's.
pub(super) fn is_destination_of(data_directory: &Path, destination: &Path) -> bool {
    let pg_wal = std::fs::canonicalize(data_directory.join("pg_wal")).ok();
    pg_wal.is_some()
        && pg_wal
            == destination
                .parent()
                .and_then(|parent| std::fs::canonicalize(parent).ok())
}
