//! Where archives live: an S3 bucket and prefix, or a directory.
//!
//! One concrete [`Store`] outside, a small backend enum inside. Every backend, and the
//! fault-injecting wrapper, passes the same contract suite (`tests/store_contract.rs`).
//!
//! # What holds on every store
//! - A put returns only after the object is durable, and is atomic: readers and a crash see the
//!   whole object or nothing (with [`PutMode::Replace`]: the old one).
//! - Of any number of writers that create one key, at most one succeeds and its bytes stay; the
//!   others get `Conflict`. Where the server ignores conditional puts this does not hold, and
//!   [`Store::probe_conditional_writes`] says so.
//! - A put that failed with `Unavailable` is *ambiguous*: the object may be there, now or a moment
//!   later. A create that was sent twice because its first answer got lost is reported as
//!   `Conflict`, so a caller that gets `Conflict` compares what is there with what it wanted.
//! - `NotFound` means that the server answered and said that this key does not exist. A bucket or
//!   directory that does not exist, an answer that is not S3's, and a server that cannot be
//!   reached are errors of other kinds.
//! - Every call ends within the limits of [`StoreOptions`].

mod body_writer;
mod location;
mod object;
mod options;

use std::sync::Arc;

use bytes::Bytes;

pub use self::body_writer::BodyWriter;
pub use self::location::Location;
pub use self::object::{Body, BodyContent, Object, ObjectInfo, PutMode};
pub use self::options::{S3Options, StoreOptions};
use crate::error::Result;

/// The key that [`Store::probe_conditional_writes`] writes, beside `walship.json`. It stays there:
/// deleting it could make a concurrent probe fail.
pub const PROBE_KEY: &str = "walship.probe";

/// A handle to one archive's store; clones share connections.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    location: Location,
}

impl Store {
    /// Prepares access. Nothing is created and, for S3, nothing is sent.
    ///
    /// # Errors
    /// `Invalid` for settings that cannot work; `Denied` if no credentials can be found.
    #[expect(clippy::unused_async)]
    pub async fn open(location: &Location, options: &StoreOptions) -> Result<Self> {
        let _ = (location, options);
        todo!()
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

    /// Makes the archive's directory if only the last part of its path is missing; for whoever
    /// creates an archive. Nothing else creates it: an archive on a file system that is not mounted
    /// must not come to life on the disk below. Buckets are never created, so on S3 this does nothing.
    ///
    /// # Errors
    /// `Invalid` if the parent directory does not exist; `Denied` without permission.
    #[expect(clippy::unused_async)]
    pub async fn create_root(&self) -> Result<()> {
        todo!()
    }

    /// Stores an object.
    ///
    /// # Errors
    /// `Conflict` if `mode` is [`PutMode::Create`] and the key exists, or may have been created by
    /// an earlier attempt of this same call: compare. `Corrupt` if the bytes that arrived do not
    /// have the body's SHA-256 (nothing is stored). `Unavailable` if the deadline passes; the
    /// object may be there nevertheless.
    #[expect(clippy::unused_async)]
    pub async fn put(&self, key: &str, body: &Body, mode: PutMode) -> Result<()> {
        let _ = (key, body, mode);
        todo!()
    }

    /// Begins to read an object.
    ///
    /// # Errors
    /// `NotFound` if the key is proven missing; `Invalid` if the bucket or directory is.
    #[expect(clippy::unused_async)]
    pub async fn get(&self, key: &str) -> Result<Object> {
        let _ = key;
        todo!()
    }

    /// Reads a small object whole.
    ///
    /// # Errors
    /// As [`Store::get`] and [`Object::chunk`]; `Corrupt` if it is larger than `limit` bytes.
    pub async fn read(&self, key: &str, limit: u64) -> Result<Bytes> {
        self.get(key).await?.read_to_end(limit).await
    }

    /// Looks at an object without reading it; `None` if the key is proven missing.
    ///
    /// # Errors
    /// As [`Store::get`], without `NotFound`.
    #[expect(clippy::unused_async)]
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let _ = key;
        todo!()
    }

    /// Lists the objects whose keys begin with `prefix` (any string; end it in `/` for a folder)
    /// and come after `start_after`, a page at a time. Nothing is sent before [`Listing::next`].
    ///
    /// The order is the server's. It is bytewise on most; SeaweedFS puts `a/b` before `a-b`, so
    /// that `start_after` means what it says only among keys of the same folder.
    #[must_use]
    pub fn list(&self, prefix: &str, start_after: Option<&str>) -> Listing {
        let _ = (prefix, start_after);
        todo!()
    }

    /// Deletes objects, durably. Keys that do not exist count as deleted.
    ///
    /// # Errors
    /// The first failure; which of the other keys are gone is then not known.
    #[expect(clippy::unused_async)]
    pub async fn delete(&self, keys: &[String]) -> Result<()> {
        let _ = keys;
        todo!()
    }

    /// Whether the store refuses to create a key that exists: creates [`PROBE_KEY`] twice.
    ///
    /// # Errors
    /// As [`Store::put`], without `Conflict`.
    pub async fn probe_conditional_writes(&self) -> Result<bool> {
        todo!()
    }
}

/// A listing in progress.
#[derive(Debug)]
pub struct Listing {}

impl Listing {
    /// The next page, never an empty one, or `None` after the last. Keys are relative to the
    /// archive's URL and passed on as they are, whoever wrote them.
    ///
    /// # Errors
    /// `Invalid` if the bucket or the directory does not exist; otherwise as [`Store::get`].
    #[expect(clippy::unused_async)]
    pub async fn next(&mut self) -> Result<Option<Vec<ObjectInfo>>> {
        todo!()
    }
}
