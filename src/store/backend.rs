//! What a store can be, and the few calls all of them answer.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::directory::{Directory, Walk};
use super::faults::Faulty;
use super::manners::Manners;
use super::meter::Metered;
use super::object::{ObjectBody, ObjectInfo, Refused};
use super::s3::{Cursor as S3Cursor, S3};
use super::{Body, PutMode};
use crate::error::Result;

/// One of the stores. Keys are checked already; errors do not name the key yet.
#[derive(Debug, Clone)]
pub(super) enum Backend {
    Directory(Directory),
    S3(S3),
    Faulty(Faulty),
    Metered(Metered),
}

/// Where a listing goes on.
#[derive(Debug, Clone)]
pub(super) enum Cursor {
    Walk(Walk),
    S3(S3Cursor),
}

impl Backend {
    /// The same backend, what it has found of its place forgotten.
    pub(super) fn afresh(&self) -> Self {
        match self {
            Self::Directory(directory) => Self::Directory(directory.afresh()),
            Self::S3(s3) => Self::S3(s3.clone()),
            Self::Faulty(Faulty { inner, faults }) => Self::Faulty(Faulty {
                inner: Box::new(inner.afresh()),
                faults: faults.clone(),
            }),
            Self::Metered(Metered { inner, meter }) => Self::Metered(Metered {
                inner: Box::new(inner.afresh()),
                meter: meter.clone(),
            }),
        }
    }

    pub(super) async fn create_root(&self) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.create_root().await,
            Self::S3(_) => Ok(()),
            Self::Faulty(faulty) => Box::pin(faulty.inner.create_root()).await,
            Self::Metered(metered) => Box::pin(metered.inner.create_root()).await,
        }
    }

    pub(super) async fn put(&self, key: &str, body: &Body, mode: PutMode) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.put(key, body, mode).await,
            Self::S3(s3) => s3.put(key, body, mode).await,
            Self::Faulty(faulty) => Box::pin(faulty.put(key, body, mode)).await,
            Self::Metered(metered) => Box::pin(metered.put(key, body, mode)).await,
        }
    }

    pub(super) async fn create_in_turn(
        &self,
        key: &str,
        body: &Body,
        turn: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.create_in_turn(key, body, turn).await,
            Self::S3(s3) => s3.create_in_turn(key, body, turn).await,
            Self::Faulty(_) | Self::Metered(_) => {
                turn.await?;
                self.put(key, body, PutMode::Create).await
            }
        }
    }

    pub(super) async fn get(&self, key: &str) -> Result<(ObjectInfo, ObjectBody)> {
        match self {
            Self::Directory(directory) => directory
                .get(key)
                .await
                .map(|(info, body)| (info, ObjectBody::File(body))),
            Self::S3(s3) => s3.get(key).await.map(|(info, body)| (info, ObjectBody::S3(body))),
            Self::Faulty(faulty) => Box::pin(faulty.get(key)).await,
            Self::Metered(metered) => Box::pin(metered.get(key)).await,
        }
    }

    /// The bytes of an object that was opened before, from here on, with so much patience for them.
    ///
    /// # Errors
    /// `Conflict` where it is another object by now.
    pub(super) async fn get_rest(
        &self,
        object: &ObjectInfo,
        from: u64,
        patience: Duration,
    ) -> Result<ObjectBody> {
        match self {
            Self::Directory(directory) => directory.get_rest(object, from).await.map(ObjectBody::File),
            Self::S3(s3) => s3.get_rest(object, from, patience).await.map(ObjectBody::S3),
            Self::Faulty(faulty) => Box::pin(faulty.get_rest(object, from, patience)).await,
            Self::Metered(metered) => Box::pin(metered.get_rest(object, from, patience)).await,
        }
    }

    /// The whole object's description, how many bytes come, and those bytes: the object's last ones, at
    /// most `length`, unless the server sends more.
    pub(super) async fn get_tail(&self, key: &str, length: u64) -> Result<(ObjectInfo, u64, ObjectBody)> {
        match self {
            Self::Directory(directory) => {
                let (info, body) = directory.get_tail(key, length).await?;
                let sent = info.size.min(length);
                Ok((info, sent, ObjectBody::File(body)))
            }
            Self::S3(s3) => {
                let (info, sent, body) = s3.get_tail(key, length).await?;
                Ok((info, sent, ObjectBody::S3(body)))
            }
            Self::Faulty(faulty) => Box::pin(faulty.get_tail(key, length)).await,
            Self::Metered(metered) => Box::pin(metered.get_tail(key, length)).await,
        }
    }

    pub(super) async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        match self {
            Self::Directory(directory) => directory.head(key).await,
            Self::S3(s3) => s3.head(key).await,
            Self::Faulty(faulty) => Box::pin(faulty.head(key)).await,
            Self::Metered(metered) => Box::pin(metered.head(key)).await,
        }
    }

    /// Where a listing begins; nothing is asked yet.
    pub(super) fn cursor(&self, prefix: &str, start_after: Option<&str>) -> Cursor {
        match self {
            Self::Directory(directory) => Cursor::Walk(directory.walk(prefix, start_after)),
            Self::S3(_) => Cursor::S3(S3Cursor::new(prefix, start_after)),
            Self::Faulty(Faulty { inner, .. }) | Self::Metered(Metered { inner, .. }) => {
                inner.cursor(prefix, start_after)
            }
        }
    }

    /// A page, and where the next one begins if there is one. A page may be empty.
    pub(super) async fn page(&self, cursor: Cursor) -> Result<(Vec<ObjectInfo>, Option<Cursor>)> {
        match (self, cursor) {
            (Self::Faulty(faulty), cursor) => Box::pin(faulty.page(cursor)).await,
            (Self::Metered(metered), cursor) => Box::pin(metered.page(cursor)).await,
            (Self::Directory(directory), Cursor::Walk(walk)) => {
                let (page, walk) = directory.page(walk).await?;
                Ok((page, walk.map(Cursor::Walk)))
            }
            (Self::S3(s3), Cursor::S3(cursor)) => {
                let (page, cursor) = s3.page(cursor).await?;
                Ok((page, cursor.map(Cursor::S3)))
            }
            (Self::Directory(_), Cursor::S3(_)) | (Self::S3(_), Cursor::Walk(_)) => Err(
                crate::Error::internal("a listing changed its store; please report it"),
            ),
        }
    }

    pub(super) async fn manners(&self) -> Manners {
        match self {
            Self::Directory(_) => Manners {
                versioning: Ok(None),
                object_lock: Ok(None),
                clock: None,
            },
            Self::S3(s3) => s3.manners().await,
            Self::Faulty(Faulty { inner, .. }) | Self::Metered(Metered { inner, .. }) => {
                Box::pin(inner.manners()).await
            }
        }
    }

    /// Whether deletions are allowed, without deleting anything.
    pub(super) async fn probe_delete(&self, missing_key: &str) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.probe_delete().await,
            Self::S3(s3) => {
                let refused = s3.delete(&[missing_key.to_owned()]).await?;
                refused
                    .into_iter()
                    .next()
                    .map_or(Ok(()), |refused| Err(refused.error))
            }
            Self::Faulty(Faulty { inner, .. }) | Self::Metered(Metered { inner, .. }) => {
                Box::pin(inner.probe_delete(missing_key)).await
            }
        }
    }

    /// Deletes at most [`super::DELETE_BATCH`] objects; those that the store does not let go.
    pub(super) async fn delete(&self, keys: &[String]) -> Result<Vec<Refused>> {
        match self {
            Self::Directory(directory) => directory.delete(keys).await,
            Self::S3(s3) => s3.delete(keys).await,
            Self::Faulty(faulty) => Box::pin(faulty.delete(keys)).await,
            Self::Metered(metered) => Box::pin(metered.delete(keys)).await,
        }
    }
    /// What the store's clock says.
    pub(super) async fn clock(&self) -> Result<DateTime<Utc>> {
        match self {
            Self::Directory(directory) => directory.clock().await,
            Self::S3(s3) => s3.clock().await,
            Self::Faulty(Faulty { inner, .. }) | Self::Metered(Metered { inner, .. }) => {
                Box::pin(inner.clock()).await
            }
        }
    }
}
