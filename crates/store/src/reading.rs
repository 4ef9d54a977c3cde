//! Reading again: the one place where a read that failed is repeated, whatever is read and however large it is.
//!
//! - **What passes** (an outage, a connection that breaks, a body that ends early) is tried again until the store's time
//!   for one call is over. The S3 client has used that time up where there was no answer at all; a body that broke off
//!   goes on where it ended ([`Object::chunk`]).
//! - **What is damaged** is read again twice: a bit may have flipped on its way here, and no store checks that over
//!   plain HTTP. What stays damaged is. Only whoever knows what the bytes should be can tell: [`look_again`].

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

/// How often something is read before it is called damaged.
const LOOKS: u32 = 3;

/// Time for repetitions that is left.
#[derive(Debug)]
pub(crate) struct Patience {
    left: Duration,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new(left: Duration) -> Self {
        Self {
            left,
            pause: PAUSES.0,
        }
    }

    fn spend(&mut self, since: Instant) {
        self.left = self.left.saturating_sub(since.elapsed());
    }

    /// Waits after a try that began then and failed, where there is time for another.
    ///
    /// # Errors
    /// The try's, where there is not.
    pub(crate) async fn outlast(&mut self, begun: Instant, error: Error) -> Result<()> {
        self.spend(begun);
        if self.wait(&error).await {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// Waits before the next try, where there is time for one.
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

/// Repeats a read that fails in passing, for this long.
pub(super) async fn patiently<T, F>(limit: Duration, mut read: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut patience = Patience::new(limit);
    loop {
        let begun = Instant::now();
        match Box::pin(read()).await {
            Err(error) => patience.outlast(begun, error).await?,
            read => return read,
        }
    }
}

/// Reads something, and what is found damaged (`Corrupt`) again: it may have been damaged on its way.
///
/// # Errors
/// Those of the last look.
pub async fn look_again<T, F>(mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut looks = 1;
    loop {
        match Box::pin(look()).await {
            Err(error) if error.kind() == ErrorKind::Corrupt && looks < LOOKS => {
                tracing::info!("{error}; it is read again, for it may have been damaged on its way");
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
    patience: Patience,
}

impl Object {
    /// An object whose reading has begun; `limit` is the time for one call of its store.
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
            patience: Patience::new(limit),
        }
    }

    /// The next piece, or `None` after the last. Pieces add up to [`ObjectInfo::size`] exactly. Where the bytes stop
    /// coming, or end too early, the rest is asked for again; only the time spent waiting for them is limited.
    ///
    /// # Errors
    /// `Unavailable` when that time is over, or where the object was replaced meanwhile. What was delivered before is
    /// then a part of the object.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let begun = Instant::now();
            let piece = self.piece().await;
            self.patience.spend(begun);
            match piece {
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    return Err(Error::unavailable(format!("read {}: {error}", self.url)));
                }
                Err(error) if self.patience.wait(&error).await => self.body = None,
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
                .get_rest(&self.info, self.received, self.patience.left);
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
