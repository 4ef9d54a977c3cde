//! A store whose requests are counted and whose reading is held to a rate: a wrapper over the same
//! backend interface.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::{Backend, Depth, Incoming, Pages, Place};
use crate::object::{ObjectInfo, Page, Refused};
use crate::{Body, PutMode};
use walship_core::{Error, ErrorKind, Result};

/// Counts what is asked of a store, and slows reading down to a rate. Clones share both.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    read_bytes: AtomicU64,
    pace: Option<Pace>,
    observer: Option<Arc<dyn Observer>>,
}

/// Is told of each request.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A request of this kind (`put`, `get`, `head`, `list`, `delete`) was answered, or failed, after this time. The
    /// store's own repetitions are one request, and a body is read after it.
    fn answered(&self, operation: &'static str, failure: Option<ErrorKind>, took: Duration);
}

/// When the next byte may be asked for. Each piece moves this on by the time that the rate allows for it.
#[derive(Debug)]
struct Pace {
    bytes_per_second: u64,
    next: Mutex<Instant>,
}

impl Meter {
    /// A meter that lets at most this many bytes of objects through in a second, on average; `None` sets no limit.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self(Arc::new(Counters {
            pace: bytes_per_second.map(|rate| Pace {
                bytes_per_second: rate.max(1),
                next: Mutex::new(Instant::now()),
            }),
            ..Counters::default()
        }))
    }

    /// A meter without a limit that tells `observer` of each request.
    #[must_use]
    pub fn observed_by(observer: Arc<dyn Observer>) -> Self {
        Self(Arc::new(Counters {
            observer: Some(observer),
            ..Counters::default()
        }))
    }

    /// How many requests were made. The store's own repetitions are not counted.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// How many bytes of objects were read.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.0.read_bytes.load(Ordering::Relaxed)
    }

    async fn ask<T>(&self, operation: &'static str, request: impl Future<Output = Result<T>>) -> Result<T> {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let answer = request.await;
        if let Some(observer) = &self.0.observer {
            observer.answered(operation, answer.as_ref().err().map(Error::kind), begun.elapsed());
        }
        answer
    }

    async fn count(&self, bytes: u64) {
        self.0.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(pace) = &self.0.pace {
            tokio::time::sleep(pace.pause(bytes)).await;
        }
    }
}

impl Pace {
    /// How long a reader waits after it read this many bytes.
    fn pause(&self, bytes: u64) -> Duration {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let takes = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // Time in which nothing was read is not saved up.
        *next = (*next).max(now) + takes;
        next.saturating_duration_since(now)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Metered {
    pub(crate) inner: Arc<dyn Backend>,
    pub(crate) meter: Meter,
}

impl Metered {
    fn metered(&self, inner: Box<dyn Incoming>) -> Box<dyn Incoming> {
        let meter = self.meter.clone();
        Box::new(MeteredBody { inner, meter })
    }
}

#[async_trait]
impl Backend for Metered {
    fn reopened(&self) -> Arc<dyn Backend> {
        Arc::new(Self {
            inner: self.inner.reopened(),
            meter: self.meter.clone(),
        })
    }

    fn place(&self) -> &dyn Place {
        self.inner.place()
    }

    async fn put(&self, key: &str, body: &Body, mode: PutMode) -> Result<()> {
        self.meter.ask("put", self.inner.put(key, body, mode)).await
    }

    async fn get(&self, key: &str) -> Result<(ObjectInfo, Box<dyn Incoming>)> {
        let (info, body) = self.meter.ask("get", self.inner.get(key)).await?;
        Ok((info, self.metered(body)))
    }

    async fn get_rest(
        &self,
        object: &ObjectInfo,
        from: u64,
        retry_time: Duration,
    ) -> Result<Box<dyn Incoming>> {
        let getting = self.inner.get_rest(object, from, retry_time);
        let rest = self.meter.ask("get", getting).await?;
        Ok(self.metered(rest))
    }

    async fn get_tail(&self, key: &str, length: u64) -> Result<(ObjectInfo, u64, Box<dyn Incoming>)> {
        let (info, sent, body) = self.meter.ask("get", self.inner.get_tail(key, length)).await?;
        Ok((info, sent, self.metered(body)))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        self.meter.ask("head", self.inner.head(key)).await
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, depth: Depth) -> Box<dyn Pages> {
        Box::new(MeteredPages {
            inner: self.inner.list(prefix, start_after, depth),
            meter: self.meter.clone(),
        })
    }

    async fn delete(&self, keys: &[String]) -> Result<Vec<Refused>> {
        self.meter.ask("delete", self.inner.delete(keys)).await
    }
}

/// A body whose bytes are counted and held to the rate.
#[derive(Debug)]
pub(crate) struct MeteredBody {
    inner: Box<dyn Incoming>,
    meter: Meter,
}

#[async_trait]
impl Incoming for MeteredBody {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let piece = self.inner.next().await?;
        if let Some(piece) = &piece {
            self.meter.count(piece.len() as u64).await;
        }
        Ok(piece)
    }
}

/// A listing whose pages are counted.
#[derive(Debug)]
struct MeteredPages {
    inner: Box<dyn Pages>,
    meter: Meter,
}

#[async_trait]
impl Pages for MeteredPages {
    async fn next(&mut self) -> Result<Page> {
        self.meter.ask("list", self.inner.next()).await
    }

    fn is_finished(&self) -> bool {
        self.inner.is_finished()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_add_up_to_the_rate_whoever_reads() {
        let meter = Meter::new(Some(1000));
        let pace = meter.0.pace.as_ref().unwrap();
        let first = pace.pause(500);
        let second = meter.clone().0.pace.as_ref().unwrap().pause(1500);
        assert!(first <= Duration::from_millis(500) && first > Duration::from_millis(400));
        assert!(second <= Duration::from_secs(2) && second > Duration::from_millis(1800));
        assert_eq!(
            Pace {
                bytes_per_second: 1,
                next: Mutex::new(Instant::now())
            }
            .pause(0),
            Duration::ZERO
        );
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let long_ago = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
        let pace = Pace {
            bytes_per_second: 1000,
            next: Mutex::new(long_ago),
        };
        assert!(pace.pause(1000) > Duration::from_millis(900));
    }
}
