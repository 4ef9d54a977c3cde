//! Restores the tar streams of a backup, several parts at once.
//!
//! One thread reads the index and hands out parts; `concurrency` others each fetch a part, hash and
//! decompress it as it arrives, and write its files' bytes at their places. Memory holds, for each of
//! them, one piece from the store, one decompressed piece and zstd's window, and the names of the
//! part's files; never a part, and never the index.
//!
//! What is written before a part's hash was checked is worthless until then: `pg_control` stays set
//! aside until every part was checked and everything is durable.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::runtime::Handle;

use super::decompress::Decompressor;
use super::files::Files;
use super::index::Index;
use super::layout::Layout;
use super::part_writer::PartWriter;
use super::schedule::{PartJob, Schedule};
use crate::archive::backup::BackupRecord;
use crate::archive::keys::{BackupObject, Key};
use crate::commands::progress::Progress;
use crate::error::{Context, Error, Result};
use crate::store::Store;

/// How often a part is fetched whose bytes stop coming. The store asks again by itself until an answer
/// begins, but a body that breaks off it leaves to the caller, and in the thousands of parts of a
/// large backup one will. Writing a part twice gives the same files.
const ATTEMPTS: u32 = 3;

/// What is restored, and how.
#[derive(Debug)]
pub struct Extraction {
    /// Where the backup is.
    pub store: Store,
    /// The backup.
    pub record: Arc<BackupRecord>,
    /// Its index, surveyed.
    pub index: Index,
    /// Where it goes.
    pub layout: Layout,
    /// Parts in flight, at least 1.
    pub concurrency: usize,
    /// Counts bytes of tar.
    pub progress: Arc<Progress>,
}

/// Restores every stream into directories that exist. Nothing is synced yet.
///
/// # Errors
/// `Corrupt` and `NotFound`, naming the object; `Internal` where a file cannot be written.
pub async fn extract(extraction: Extraction) -> Result<()> {
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || {
        let files = Files::new(&extraction.layout);
        Workers {
            extraction: &extraction,
            files: &files,
            handle,
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
        .run()
    })
    .await
    .map_err(|error| Error::defect("restore the backup", error))?
}

/// The threads of one extraction.
struct Workers<'a> {
    extraction: &'a Extraction,
    files: &'a Files,
    handle: Handle,
    /// Set by the first thread that fails; the others then end early.
    failed: AtomicBool,
    /// Its error.
    failure: Mutex<Option<Error>>,
}

impl Workers<'_> {
    fn run(&self) -> Result<()> {
        // One part waits, so that no worker does.
        let (sender, receiver) = sync_channel(1);
        let receiver = Mutex::new(receiver);
        thread::scope(|scope| {
            for _ in 0..self.extraction.concurrency.max(1) {
                scope.spawn(|| self.work(&receiver));
            }
            self.note(self.hand_out(|job| {
                // The receiver outlives the sender.
                let _ = sender.send(job);
            }));
            drop(sender);
        });
        match lock(&self.failure).take() {
            Some(error) => Err(error),
            None => self.files.finish(),
        }
    }

    /// Walks through the index, making directories and empty files on the way.
    fn hand_out(&self, mut send: impl FnMut(PartJob)) -> Result<()> {
        let mut schedule = Schedule::new(&self.extraction.record, self.extraction.index.entries()?);
        while let Some(job) = schedule.next_part(&mut |entry| self.files.make(entry))? {
            if self.has_failed() {
                break;
            }
            send(job);
        }
        Ok(())
    }

    fn work(&self, jobs: &Mutex<Receiver<PartJob>>) {
        loop {
            let job = lock(jobs).recv();
            let Ok(job) = job else { return };
            // After a failure the parts are still taken, so that whoever hands them out never waits.
            if !self.has_failed() {
                self.note(self.restore(&job));
            }
        }
    }

    /// Keeps the first error: those after it may come of ending early.
    fn note(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            lock(&self.failure).get_or_insert(error);
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Restores one part.
    fn restore(&self, job: &PartJob) -> Result<()> {
        let record = &self.extraction.record;
        let stream = record
            .stream_key(job.stream)
            .ok_or_else(|| Error::defect("restore the backup", "a part of no stream"))?;
        let key = Key::Backup(record.id.clone(), BackupObject::Part(stream, job.number)).to_string();
        let mut counted = 0;
        let mut attempt = 1;
        loop {
            match self.fetch(&key, job, &mut counted) {
                Err(error) if error.is_retryable() && attempt < ATTEMPTS && !self.has_failed() => {
                    tracing::warn!(%error, attempt, "a part of the backup broke off and is fetched again");
                    attempt += 1;
                }
                Err(error) => return Err(error),
                Ok(()) => return self.files.finish_part(job),
            }
        }
    }

    /// Fetches and writes one part. `counted` is how much of it the progress has seen already.
    fn fetch(&self, key: &str, job: &PartJob, counted: &mut u64) -> Result<()> {
        let url = self.extraction.store.url_of(key);
        let reading = || format!("restore {url}");
        let mut object = self
            .handle
            .block_on(self.extraction.store.get(key))
            .context(reading)?;
        let mut writer = PartWriter::new(self.files, job);
        let mut decompressor = Decompressor::new()?;
        let mut written = 0;
        while let Some(stored) = self.handle.block_on(object.chunk()).context(reading)? {
            decompressor
                .feed(&stored, |bytes| {
                    written += bytes.len() as u64;
                    writer.write(bytes)
                })
                .map_err(|error| damaged(error, &url))?;
            self.extraction.progress.advance(written.saturating_sub(*counted));
            *counted = written.max(*counted);
            if self.has_failed() {
                return Err(Error::internal("another part failed"));
            }
        }
        decompressor
            .finish(&job.object)
            .and_then(|()| writer.finish())
            .map_err(|error| damaged(error, &url))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names a part that is not what it should be, and the way out.
pub(super) fn damaged(error: Error, url: &str) -> Error {
    if error.kind() != crate::ErrorKind::Corrupt {
        return error;
    }
    Error::corrupt(format!(
        "{url} is damaged: {error}; recover from another backup (--backup, see walship list backups)"
    ))
}

/// Makes everything below these directories durable: one `syncfs` for each file system, its errors
/// checked.
#[derive(Debug)]
pub struct Sync {
    directories: Vec<std::fs::File>,
}

impl Sync {
    /// To be opened before anything is written: Linux tells an open file only of the failures of
    /// writing back that came after it was opened.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn open<'a>(directories: impl Iterator<Item = &'a Path>) -> Result<Self> {
        let open = |directory: &Path| {
            std::fs::File::open(directory)
                .map_err(|error| Error::io(format!("open {}", directory.display()), error))
        };
        Ok(Self {
            directories: directories.map(open).collect::<Result<_>>()?,
        })
    }

    /// Syncs.
    ///
    /// # Errors
    /// As the operating system says, of everything that was not written since [`Sync::open`].
    pub fn finish(&self) -> Result<()> {
        self.directories.iter().try_for_each(|directory| {
            rustix::fs::syncfs(directory)
                .map_err(|error| Error::io("write what was restored to the disk (syncfs)", error.into()))
        })
    }
}
