//! Where archives live: an S3 bucket and prefix, or a directory.
//!
//! One concrete [`Store`] outside, a small trait inside (`backend.rs`). Every backend, and the layers over them
//! (`layers/`), pass the same contract suite (`tests/integration/store_contract.rs`).
//!
//! # What holds on every store
//! - A put returns only after the object is durable, and is atomic: readers and a crash see the
//!   whole object or nothing (with [`PutMode::Replace`]: the old one).
//! - Of any number of writers that create one key, at most one succeeds and its bytes stay; the
//!   others get `Conflict`. Where the server ignores conditional puts this does not hold, and
//!   [`Store::probe_conditional_writes`] says so.
//! - A put that failed with `Unavailable` is *ambiguous*: the object may be there, now or a moment
//!   later. A create that was sent twice because its first answer got lost is reported as
//!   `Conflict`, so a caller that gets `Conflict` compares the object with what it wanted to store.
//! - `NotFound` means that the server answered and said that this key does not exist. A bucket or
//!   directory that does not exist, an answer that is not S3's, and a server that cannot be
//!   reached are errors of other kinds.
//! - Every call ends within the limits of [`StoreOptions`].
//! - A directory store works in the directory that its path led to at the first call. If the path leads elsewhere
//!   later, calls fail (`Invalid`): no put is acknowledged, nothing is called missing, no listing ends. What an S3
//!   server has behind a bucket's name may change without a sign, so a caller that relies on it reads `walship.json`
//!   again.

mod backend;
mod body_writer;
mod directory;
mod key;
mod layers;
mod location;
mod object;
mod options;
mod properties;
mod reading;
mod s3;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use tokio::time::Instant;

pub use self::backend::Turn;
use self::backend::{Backend, Depth, Pages};
pub use self::body_writer::BodyWriter;
use self::directory::Directory;
#[cfg(feature = "faults")]
pub use self::layers::faults::{FaultKind, Faults, Operation};
pub use self::layers::meter::{Meter, Observer};
pub use self::location::Location;
pub use self::object::{Body, BodyContent, BodyReader, ObjectInfo, Page, PutMode, Refused, Version};
pub use self::options::{Environment, S3Options, StoreOptions};
pub use self::properties::{StoreClock, StoreProperties};
pub use self::reading::{Object, read_again_if_damaged};
use self::reading::{RetryTime, with_retries};
use self::s3::S3;
use walship_core::error::Context;
use walship_core::format::keys::NEVER_WRITTEN_KEY;
pub use walship_core::format::keys::PROBE_KEY;
use walship_core::{Error, ErrorKind, Result};

/// What the probe's object says to a person who finds it.
const PROBE_TEXT: &str =
    "walship writes this to learn whether the store refuses to create what exists; leave it here\n";

/// As many keys as `DeleteObjects` takes.
const DELETE_BATCH: usize = 1000;

/// A handle to one archive's store; clones share connections.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    location: Location,
    backend: Arc<dyn Backend>,
    /// How long a read with a passing failure is repeated.
    retry_time: Duration,
}

impl Store {
    /// Prepares access. Nothing is created and the store is not asked anything; credentials are
    /// looked for at the first call.
    ///
    /// # Errors
    /// `Invalid` for settings that cannot work.
    pub async fn open(location: &Location, options: &StoreOptions) -> Result<Self> {
        let backend: Arc<dyn Backend> = match location {
            Location::Directory(path) => Arc::new(Directory::new(path.clone(), options)),
            Location::S3 { bucket, prefix } => Arc::new(S3::open(bucket, prefix, options).await?),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                location: location.clone(),
                backend,
                retry_time: options.operation_timeout,
            }),
        })
    }

    fn over(&self, backend: Arc<dyn Backend>, retry_time: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                location: self.inner.location.clone(),
                backend,
                retry_time,
            }),
        }
    }

    /// The same store, failing as scripted. Reads are not repeated, unless [`Store::with_retry_time`] says so.
    #[must_use]
    #[cfg(feature = "faults")]
    pub fn with_faults(&self, faults: Faults) -> Self {
        let inner = Arc::clone(&self.inner.backend);
        self.over(Arc::new(layers::faults::Faulty { inner, faults }), Duration::ZERO)
    }

    /// The same store, which repeats a read with a passing failure for this long instead of the time for one call.
    #[must_use]
    pub fn with_retry_time(&self, retry_time: Duration) -> Self {
        self.over(Arc::clone(&self.inner.backend), retry_time)
    }

    /// The same store, its requests counted and its reading held to the meter's rate.
    #[must_use]
    pub fn with_meter(&self, meter: Meter) -> Self {
        let inner = Arc::clone(&self.inner.backend);
        self.over(
            Arc::new(layers::meter::Metered { inner, meter }),
            self.inner.retry_time,
        )
    }

    /// The same store for a process that runs long. A directory is looked up by its path again at the first call, and
    /// held from then on. On S3 nothing changes.
    #[must_use]
    pub fn reopened(&self) -> Self {
        self.over(self.inner.backend.reopened(), self.inner.retry_time)
    }

    /// The archive's URL.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.inner.location
    }

    /// A key's full URL, for messages.
    #[must_use]
    pub fn url_of(&self, key: &str) -> String {
        format!("{}/{key}", self.inner.location)
    }

    /// Makes the archive's directory if only the last part of its path is missing. Only the creation of an archive
    /// calls this: if the archive's file system is not mounted, nothing must be written to the disk below. Buckets are
    /// never created, so on S3 this does nothing.
    ///
    /// # Errors
    /// `Invalid` if the parent directory does not exist; `Denied` without permission.
    pub async fn create_root(&self) -> Result<()> {
        let created = self.inner.backend.place().create().await;
        created.context(|| format!("prepare {}", self.inner.location))
    }

    /// Stores an object.
    ///
    /// # Errors
    /// `Conflict` if `mode` is [`PutMode::Create`] and the key exists; an earlier attempt of this same call may have
    /// created it, so compare. `Conflict` too if `mode` is [`PutMode::ReplaceIf`] and the object is another version, or
    /// gone. `Corrupt` if the bytes that an S3 server got, or that were read from a temporary file, do not have the body's
    /// SHA-256 (nothing is stored). `Unavailable` if the deadline passes; the object may be stored nevertheless.
    pub async fn put(&self, key: &str, body: &Body, mode: PutMode) -> Result<()> {
        key::check(key)?;
        let stored = self.inner.backend.put(key, body, mode).await;
        stored.context(|| format!("store {}", self.url_of(key)))
    }

    /// Creates an object, but not before `turn` ends. As much as possible is done meanwhile: in a directory everything
    /// but giving the file its name, on S3 sending all but the last byte.
    ///
    /// # Errors
    /// As [`Store::put`] for [`PutMode::Create`]; the error of `turn`, and then nothing is stored.
    pub async fn create_in_turn(&self, key: &str, body: &Body, turn: Turn<'_>) -> Result<()> {
        key::check(key)?;
        let stored = self.inner.backend.create_in_turn(key, body, turn).await;
        stored.context(|| format!("store {}", self.url_of(key)))
    }

    /// Begins to read an object.
    ///
    /// # Errors
    /// `NotFound` if the key is proven missing; `Invalid` if the bucket or directory is; `Unavailable` when the time
    /// for one call is over.
    pub async fn get(&self, key: &str) -> Result<Object> {
        key::check(key)?;
        let url = self.url_of(key);
        let Inner {
            backend, retry_time, ..
        } = &*self.inner;
        let opened = with_retries(*retry_time, || backend.get(key)).await;
        let opened = opened.context(|| format!("read {url}"))?;
        Ok(Object::new(opened, backend, url, *retry_time))
    }

    /// Reads a small object whole.
    ///
    /// # Errors
    /// As [`Store::get`] and [`Object::chunk`]; `Corrupt` if it is larger than `limit` bytes.
    pub async fn read(&self, key: &str, limit: u64) -> Result<Bytes> {
        let read = async || self.get(key).await?.read_to_end(limit).await;
        // If it is replaced while it is read, it is read again from its start.
        with_retries(self.inner.retry_time, read).await
    }

    /// Reads the last bytes of an object, at most `length`, and describes the whole object.
    ///
    /// # Errors
    /// As [`Store::get`] and [`Object::chunk`].
    pub async fn read_tail(&self, key: &str, length: usize) -> Result<(ObjectInfo, Bytes)> {
        key::check(key)?;
        let read = with_retries(self.inner.retry_time, async || {
            self.read_tail_once(key, length).await
        })
        .await;
        read.context(|| format!("read the end of {}", self.url_of(key)))
    }

    async fn read_tail_once(&self, key: &str, length: usize) -> Result<(ObjectInfo, Bytes)> {
        let (info, sent, mut body) = self.inner.backend.get_tail(key, length as u64).await?;
        let mut received = 0;
        // A server that does not know ranges sends the whole object.
        let mut last = BytesMut::new();
        while let Some(piece) = body.next().await? {
            received += piece.len() as u64;
            last.extend_from_slice(&piece);
            if last.len() > length {
                last.advance(last.len() - length);
            }
        }
        if received != sent {
            return Err(Error::unavailable(format!(
                "the store announced {sent} bytes and sent {received}; try again"
            )));
        }
        Ok((info, last.freeze()))
    }

    /// Looks at an object without reading it; `None` if the key is proven missing.
    ///
    /// # Errors
    /// As [`Store::get`], without `NotFound`.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        key::check(key)?;
        let looked = with_retries(self.inner.retry_time, || self.inner.backend.head(key)).await;
        looked.context(|| format!("look at {}", self.url_of(key)))
    }

    /// Lists the objects whose keys begin with `prefix` (any string; end it in `/` for a folder)
    /// and come after `start_after`, a page at a time. Nothing is sent before [`Listing::next`].
    ///
    /// The order is the server's. It is bytewise on most; SeaweedFS puts `a/b` before `a-b`, so
    /// that `start_after` means what it says only among keys of the same folder, and it skips a
    /// folder whose bare name is given (`a` or `a/` instead of a key in it).
    #[must_use]
    pub fn list(&self, prefix: &str, start_after: Option<&str>) -> Listing {
        self.listing(prefix, start_after, Depth::All)
    }

    /// Lists what lies directly in a folder (`""`, or a prefix that ends in `/`): its objects, and the folders in it.
    #[must_use]
    pub fn list_folder(&self, folder: &str) -> FolderListing {
        FolderListing(self.listing(folder, None, Depth::Folder))
    }

    fn listing(&self, prefix: &str, start_after: Option<&str>, depth: Depth) -> Listing {
        Listing {
            store: self.clone(),
            url: self.url_of(prefix),
            state: match key::check_prefix(prefix) {
                Ok(()) => State::Next(self.inner.backend.list(prefix, start_after, depth)),
                Err(error) => State::Refused(error),
            },
        }
    }

    /// Deletes objects, durably. Keys that do not exist count as deleted. Each 1000 keys have the time limit of one
    /// call.
    ///
    /// # Errors
    /// The first failure; which of the other keys are gone is then not known.
    pub async fn delete(&self, keys: &[String]) -> Result<()> {
        match self.delete_where_allowed(keys).await?.into_iter().next() {
            None => Ok(()),
            Some(refused) => Err(refused
                .error
                .context(format!("delete from {}: {}", self.inner.location, refused.key))),
        }
    }

    /// As [`Store::delete`], but if the store refuses to delete some objects (a lock, a missing permission), the others
    /// are deleted and those are returned.
    ///
    /// # Errors
    /// A failure of a whole call; which of its 1000 keys are gone is then not known.
    pub async fn delete_where_allowed(&self, keys: &[String]) -> Result<Vec<Refused>> {
        keys.iter().try_for_each(|key| key::check(key))?;
        let mut refused = Vec::new();
        for batch in keys.chunks(DELETE_BATCH) {
            let deleted = self.inner.backend.delete(batch).await;
            refused.extend(deleted.context(|| format!("delete from {}", self.inner.location))?);
        }
        Ok(refused)
    }

    /// The time by the clock that dates [`ObjectInfo::modified`], to the second.
    ///
    /// # Errors
    /// As [`Listing::next`]; in a directory as [`Store::put`], because a new file is made to learn it.
    pub async fn clock(&self) -> Result<DateTime<Utc>> {
        let asked = with_retries(self.inner.retry_time, || self.inner.backend.place().clock()).await;
        asked.context(|| format!("ask for the time at {}", self.inner.location))
    }

    /// Whether the store refuses to create a key that exists: creates [`PROBE_KEY`] twice.
    ///
    /// # Errors
    /// As [`Store::put`], without `Conflict`.
    pub async fn probe_conditional_writes(&self) -> Result<bool> {
        let body = Body::from_bytes(PROBE_TEXT);
        // One refusal is proof enough: the object exists from an earlier probe.
        for _ in 0..2 {
            match self.put(PROBE_KEY, &body, PutMode::Create).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Conflict => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Whether the store refuses to replace an object whose version is not the one that the put names.
    ///
    /// # Errors
    /// As [`Store::put`], without `Conflict`.
    pub async fn probe_conditional_replaces(&self) -> Result<bool> {
        let body = Body::from_bytes(PROBE_TEXT);
        match self.put(PROBE_KEY, &body, PutMode::Create).await {
            Err(error) if error.kind() != ErrorKind::Conflict => return Err(error),
            _ => {}
        }
        let never = Version("\"00000000000000000000000000000000\"".to_owned());
        match self.put(PROBE_KEY, &body, PutMode::ReplaceIf(never)).await {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(true),
            // A server that does not know the header may say so.
            Err(error) if error.kind() == ErrorKind::Invalid => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The store's properties, as it tells them; each of them may be denied.
    pub async fn properties(&self) -> StoreProperties {
        self.inner.backend.place().properties().await
    }

    /// Whether deletions are allowed, found out by deleting a key that never exists. In a bucket that keeps versions
    /// even that leaves a delete marker, so ask [`Store::properties`] first.
    ///
    /// # Errors
    /// As [`Store::delete`].
    pub async fn probe_delete(&self) -> Result<()> {
        let allowed = self.inner.backend.place().probe_delete(NEVER_WRITTEN_KEY).await;
        allowed.context(|| format!("see whether deleting is allowed in {}", self.inner.location))
    }
}

/// The object was replaced since its reading began.
fn replaced() -> Error {
    Error::conflict("it was replaced while it was read; try again")
}

/// A listing in progress.
#[derive(Debug)]
pub struct Listing {
    store: Store,
    url: String,
    state: State,
}

#[derive(Debug)]
enum State {
    Next(Box<dyn Pages>),
    Finished,
    Refused(Error),
    /// After an error, nothing may look like the end of the listing.
    Failed,
}

impl Listing {
    /// The next page, never an empty one, or `None` after the last. Keys are relative to the
    /// archive's URL. Foreign keys are passed on as they are.
    ///
    /// # Errors
    /// `Invalid` if the bucket or the directory does not exist; otherwise as [`Store::get`]. A
    /// listing that failed does not go on.
    pub async fn next(&mut self) -> Result<Option<Vec<ObjectInfo>>> {
        Ok(self.next_page().await?.map(|page| page.objects))
    }

    /// Whether the last page was given.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished)
    }

    async fn next_page(&mut self) -> Result<Option<Page>> {
        loop {
            let mut pages = match std::mem::replace(&mut self.state, State::Failed) {
                State::Next(pages) => pages,
                State::Finished => {
                    self.state = State::Finished;
                    return Ok(None);
                }
                State::Refused(error) => return Err(error),
                State::Failed => {
                    return Err(Error::internal(format!(
                        "the listing of {} failed before",
                        self.url
                    )));
                }
            };
            let mut retry_time = RetryTime::new(self.store.inner.retry_time);
            let page = loop {
                let begun = Instant::now();
                match pages.next().await {
                    Err(error) => retry_time
                        .pause_or_fail(begun, error)
                        .await
                        .context(|| format!("list {}", self.url))?,
                    Ok(page) => break page,
                }
            };
            self.state = if pages.is_finished() {
                State::Finished
            } else {
                State::Next(pages)
            };
            if !page.is_empty() {
                return Ok(Some(page));
            }
        }
    }
}

/// A listing of one folder in progress.
#[derive(Debug)]
pub struct FolderListing(Listing);

impl FolderListing {
    /// The next page, never an empty one, or `None` after the last.
    ///
    /// # Errors
    /// As [`Listing::next`].
    pub async fn next(&mut self) -> Result<Option<Page>> {
        self.0.next_page().await
    }
}
