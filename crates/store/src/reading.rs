//! Reading again: every read that failed is repeated here, whatever its size.
//!
//! - **A passing failure** (an outage, a connection that breaks, a body that ends early) is tried again until the
//!   store's time for one call is over. Where there was no answer at all, the S3 client has used up that time already.
//!   A body that broke off goes on where it ended ([`Object::chunk`]).
//! - **Damaged bytes** are read again twice: a bit may have flipped on its way here, and over plain HTTP no store
//!   checks that. If the bytes are still damaged then, so is the object. Only a caller that knows what the bytes should
//!   be can tell, so it calls [`read_again_if_damaged`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::backend::{Backend, Incoming};
use super::object::ObjectInfo;
use super::options::StoreOptions;
use walship_core::error::Context;
use walship_core::{Error, ErrorKind, Result};

/// The pause before the first repetition, doubled by each one, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How often bytes are read before they are called damaged.
const LOOKS: u32 = 3;

/// How much time is left for repetitions.
#[derive(Debug)]
pub(crate) struct RetryTime {
    left: Duration,
    pause: Duration,
}

impl RetryTime {
    pub(crate) fn new(left: Duration) -> Self {
        Self {
            left,
            pause: PAUSES.0,
        }
    }

    fn spend(&mut self, since: Instant) {
        self.left = self.left.saturating_sub(since.elapsed());
    }

    /// Waits after an attempt that began at `begun` and failed, if there is time for another one.
    ///
    /// # Errors
    /// The attempt's, if there is none.
    pub(crate) async fn pause_or_fail(&mut self, begun: Instant, error: Error) -> Result<()> {
        self.spend(begun);
        if self.wait(&error).await {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// Waits before the next attempt, if there is time for one.
    async fn wait(&mut self, error: &Error) -> bool {
        if !error.is_retryable() || self.left <= self.pause {
            return false;
        }
        tracing::debug!(%error, "read again");
        sleep(self.pause).await;
        self.left -= self.pause;
        self.pause = (self.pause * 2).min(PAUSES.1);
        true
    }
}

/// Repeats a read for this long while its failures are passing ones.
pub(super) async fn with_retries<T, F>(limit: Duration, mut read: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut retry_time = RetryTime::new(limit);
    loop {
        let begun = Instant::now();
        match Box::pin(read()).await {
            Err(error) => retry_time.pause_or_fail(begun, error).await?,
            read => return read,
        }
    }
}

/// Reads something, and reads it again if it is damaged (`Corrupt`): it may have been damaged on its way.
///
/// # Errors
/// The last read's.
pub async fn read_again_if_damaged<T, F>(mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut looks = 1;
    loop {
        match Box::pin(look()).await {
            Err(error) if error.kind() == ErrorKind::Corrupt && looks < LOOKS => {
                tracing::info!("{error}; it is read again, because it may have been damaged on its way");
                looks += 1;
            }
            looked => return looked,
        }
    }
}

/// An object that is being read, a piece at a time.
#[derive(Debug)]
pub struct Object {
    /// What the store said about it when the reading began.
    pub info: ObjectInfo,
    backend: Arc<dyn Backend>,
    /// Absent after it broke off.
    body: Option<Box<dyn Incoming>>,
    url: String,
    received: u64,
    retry_time: RetryTime,
}

impl Object {
    /// `limit` is the time for one call of the object's store.
    pub(super) fn new(
        (info, body): (ObjectInfo, Box<dyn Incoming>),
        backend: &Arc<dyn Backend>,
        url: String,
        limit: Duration,
    ) -> Self {
        let limit = if limit.is_zero() {
            limit
        } else {
            StoreOptions::with_body(limit, info.size)
        };
        Self {
            info,
            backend: Arc::clone(backend),
            body: Some(body),
            url,
            received: 0,
            retry_time: RetryTime::new(limit),
        }
    }

    /// The next piece, or `None` after the last. Pieces add up to [`ObjectInfo::size`] exactly. Where the bytes stop
    /// coming, or end too early, the rest is asked for again; only the time spent waiting for them is limited.
    ///
    /// # Errors
    /// `Unavailable` when that time is over, or if the object was replaced meanwhile. The pieces before are then only a
    /// part of the object.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let begun = Instant::now();
            let piece = self.piece().await;
            self.retry_time.spend(begun);
            match piece {
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    return Err(Error::unavailable(format!("read {}: {error}", self.url)));
                }
                Err(error) if self.retry_time.wait(&error).await => self.body = None,
                piece => return piece.context(|| format!("read {}", self.url)),
            }
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>> {
        let body = if let Some(body) = &mut self.body {
            body
        } else {
            let rest = self
                .backend
                .get_rest(&self.info, self.received, self.retry_time.left);
            self.body.insert(rest.await?)
        };
        let piece = body.next().await?;
        let length = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        let ended_early = piece.is_none() && self.received < self.info.size;
        if ended_early || self.received + length > self.info.size {
            return Err(Error::unavailable(format!(
                "the store announced {} bytes and sent {}; try again",
                self.info.size,
                self.received + length
            )));
        }
        self.received += length;
        Ok(piece)
    }

    /// All that is left, in one piece.
    ///
    /// # Errors
    /// As [`Object::chunk`]; `Corrupt` if the object is larger than `limit` bytes.
    pub async fn read_to_end(mut self, limit: u64) -> Result<Bytes> {
        if self.info.size > limit {
            return Err(Error::corrupt(format!(
                "{} has {} bytes, and no object of this kind has more than {limit}",
                self.url, self.info.size
            )));
        }
        let Some(first) = self.chunk().await? else {
            return Ok(Bytes::new());
        };
        let Some(second) = self.chunk().await? else {
            return Ok(first);
        };
        let mut all = Vec::with_capacity(self.info.size as usize);
        all.extend_from_slice(&first);
        all.extend_from_slice(&second);
        while let Some(piece) = self.chunk().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }
}
