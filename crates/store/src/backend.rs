//! What every kind of store implements. `ARCHITECTURE.md`, "Where would one add Google Cloud Storage?", has the way to
//! another one.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use walship_core::Result;

use crate::object::{Body, ObjectInfo, Page, PutMode, Refused};
use crate::properties::StoreProperties;

/// What has to happen before an object is stored.
pub type Turn<'a> = std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A kind of store, or a layer over one. Keys are checked already; errors do not name the key yet.
#[async_trait]
pub(crate) trait Backend: Debug + Send + Sync {
    /// The same store, which looks up its place again.
    fn reopened(&self) -> Arc<dyn Backend>;

    /// Where it keeps its objects; a layer has its store's.
    fn place(&self) -> &dyn Place;

    async fn put(&self, key: &str, body: &Body, mode: PutMode) -> Result<()>;

    /// Creates an object once its turn has come.
    async fn create_in_turn(&self, key: &str, body: &Body, turn: Turn<'_>) -> Result<()> {
        turn.await?;
        self.put(key, body, PutMode::Create).await
    }

    async fn get(&self, key: &str) -> Result<(ObjectInfo, Box<dyn Incoming>)>;

    /// The bytes from `from` on of an object that was opened before; `retry_time` limits the waiting for them.
    ///
    /// # Errors
    /// `Conflict` if the object was replaced meanwhile.
    async fn get_rest(
        &self,
        object: &ObjectInfo,
        from: u64,
        retry_time: Duration,
    ) -> Result<Box<dyn Incoming>>;

    /// The whole object's description, how many bytes come, and those bytes: the object's last ones. At most `length`,
    /// unless the server sends more.
    async fn get_tail(&self, key: &str, length: u64) -> Result<(ObjectInfo, u64, Box<dyn Incoming>)>;

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>>;

    /// A listing; nothing is asked yet.
    fn list(&self, prefix: &str, start_after: Option<&str>, depth: Depth) -> Box<dyn Pages>;

    /// Deletes at most [`super::DELETE_BATCH`] objects; returns those that the store refuses to delete.
    async fn delete(&self, keys: &[String]) -> Result<Vec<Refused>>;
}

/// How far down a listing looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// At every object.
    All,
    /// At objects without a slash behind the prefix; of the others only at the folders that they are in.
    Folder,
}

/// A bucket, or a directory. No layer comes between these calls and it.
#[async_trait]
pub(crate) trait Place: Send + Sync {
    /// Makes it, where that can be.
    async fn create(&self) -> Result<()>;

    async fn properties(&self) -> StoreProperties;

    /// Whether deletions are allowed, without deleting anything.
    async fn probe_delete(&self, missing_key: &str) -> Result<()>;

    /// The time by its clock.
    async fn clock(&self) -> Result<DateTime<Utc>>;
}

/// The bytes of an object that is being read.
#[async_trait]
pub(crate) trait Incoming: Debug + Send {
    /// The next piece; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>>;
}

/// A listing in progress.
#[async_trait]
pub(crate) trait Pages: Debug + Send {
    /// The next page, which may be empty. One that failed may be asked for again.
    async fn next(&mut self) -> Result<Page>;

    /// Whether the last page was given.
    fn is_finished(&self) -> bool;
}
