//! What every kind of store answers. Whoever adds one (another cloud, a mirror) implements these four traits, opens it in
//! [`crate::Store::open`], and runs the contract suite (`tests/integration/store_contract.rs`).

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use walship_core::Result;

use crate::manners::Manners;
use crate::object::{Body, ObjectInfo, PutMode, Refused};

/// What has to happen before an object is stored.
pub type Turn<'a> = std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A kind of store, or a layer over one. Keys are checked already; errors do not name the key yet.
#[async_trait]
pub(crate) trait Backend: Debug + Send + Sync {
    /// The same store, what it has found of its place forgotten.
    fn afresh(&self) -> Arc<dyn Backend>;

    /// Where it keeps its objects; a layer has its store's.
    fn place(&self) -> &dyn Place;

    async fn put(&self, key: &str, body: &Body, mode: PutMode) -> Result<()>;

    /// Creates an object once its turn has come.
    async fn create_in_turn(&self, key: &str, body: &Body, turn: Turn<'_>) -> Result<()> {
        turn.await?;
        self.put(key, body, PutMode::Create).await
    }

    async fn get(&self, key: &str) -> Result<(ObjectInfo, Box<dyn Incoming>)>;

    /// The bytes of an object that was opened before, from here on, with so much patience for them.
    ///
    /// # Errors
    /// `Conflict` where it is another object by now.
    async fn get_rest(&self, object: &ObjectInfo, from: u64, patience: Duration)
    -> Result<Box<dyn Incoming>>;

    /// The whole object's description, how many bytes come, and those bytes: the object's last ones, at
    /// most `length`, unless the server sends more.
    async fn get_tail(&self, key: &str, length: u64) -> Result<(ObjectInfo, u64, Box<dyn Incoming>)>;

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>>;

    /// A listing; nothing is asked yet.
    fn list(&self, prefix: &str, start_after: Option<&str>) -> Box<dyn Pages>;

    /// Deletes at most [`super::DELETE_BATCH`] objects; those that the store does not let go.
    async fn delete(&self, keys: &[String]) -> Result<Vec<Refused>>;
}

/// A bucket, or a directory. No layer comes between these calls and it.
#[async_trait]
pub(crate) trait Place: Send + Sync {
    /// Makes it, where that can be.
    async fn create(&self) -> Result<()>;

    async fn manners(&self) -> Manners;

    /// Whether deletions are allowed, without deleting anything.
    async fn probe_delete(&self, missing_key: &str) -> Result<()>;

    /// What its clock says.
    async fn clock(&self) -> Result<DateTime<Utc>>;
}

/// The bytes of an object on their way here.
#[async_trait]
pub(crate) trait Incoming: Debug + Send {
    /// The next piece; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>>;
}

/// A listing on its way here.
#[async_trait]
pub(crate) trait Pages: Debug + Send {
    /// The next page, which may be empty. One that failed may be asked for again.
    async fn next(&mut self) -> Result<Vec<ObjectInfo>>;

    /// Whether there is none any more.
    fn is_finished(&self) -> bool;
}
