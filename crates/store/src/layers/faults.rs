//! A store that fails on demand, for tests and drills: a wrapper over the same backend interface.
//!
//! Faults are a script. Each strikes once, at the first call it fits, in the order in which they
//! were given; with an empty script the wrapped store behaves like the one inside.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::{Backend, Depth, Incoming, Pages, Place};
use crate::object::{ObjectInfo, Page, Refused};
use crate::{Body, PutMode};
use walship_core::{Error, ErrorKind, Result};

/// A call of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `put`.
    Put,
    /// `get`, `read` and `read_tail`, and the rest of a body that broke off.
    Get,
    /// `head`.
    Head,
    /// Each page of a listing; it has no key, so only faults for any key fit.
    List,
    /// `delete`, if one of the keys fits.
    Delete,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The call fails with this kind and does nothing.
    Before(ErrorKind),
    /// The call does its work and then fails as `Unavailable`: the outcome is not known.
    After,
    /// The first bit is flipped in what is read.
    Corrupt,
    /// One bit is flipped in what is read: of this byte, counted from where the reading begins.
    Flip {
        /// The byte.
        byte: u64,
        /// The bit in it, 0 to 7.
        bit: u8,
    },
    /// The body that is read ends in its middle.
    Short,
    /// The call begins after this time.
    Delay(Duration),
    /// A deletion leaves the objects that fit, and deletes the others.
    Refuse,
}

/// A fault that strikes once.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    operation: Operation,
    /// What the key must contain; the empty text fits every key.
    key: String,
    kind: FaultKind,
}

/// A script of faults; clones share it, so that faults can be added while the store is in use.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Vec<Fault>>>);

impl Faults {
    /// Adds a fault: it strikes the first call of this sort whose key contains `key`.
    pub fn add(&self, operation: Operation, key: &str, kind: FaultKind) {
        let key = key.to_owned();
        self.lock().push(Fault { operation, key, kind });
    }

    /// How many faults have not struck yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.lock().len()
    }

    fn take(&self, operation: Operation, keys: &[&str]) -> Option<Fault> {
        let mut faults = self.lock();
        let fits = |fault: &Fault| {
            let fitting_key = keys.iter().any(|key| key.contains(&fault.key)) || fault.key.is_empty();
            fault.operation == operation && fitting_key
        };
        let index = faults.iter().position(fits)?;
        Some(faults.remove(index))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Faulty {
    pub(crate) inner: Arc<dyn Backend>,
    pub(crate) faults: Faults,
}

/// What is left to do around the call itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rest {
    Nothing,
    FailAfter,
    Corrupt,
    Flip(u64, u8),
    Short,
    /// The objects whose keys contain this are not deleted.
    Refuse(String),
}

#[async_trait]
impl Backend for Faulty {
    fn reopened(&self) -> Arc<dyn Backend> {
        Arc::new(Self {
            inner: self.inner.reopened(),
            faults: self.faults.clone(),
        })
    }

    fn place(&self) -> &dyn Place {
        self.inner.place()
    }

    async fn put(&self, key: &str, body: &Body, mode: PutMode) -> Result<()> {
        let rest = self.faults.strike(Operation::Put, &[key]).await?;
        self.inner.put(key, body, mode).await?;
        finish(&rest)
    }

    async fn get(&self, key: &str) -> Result<(ObjectInfo, Box<dyn Incoming>)> {
        let rest = self.faults.strike(Operation::Get, &[key]).await?;
        let (info, body) = self.inner.get(key).await?;
        finish(&rest)?;
        let body = struck(&rest, body, info.size);
        Ok((info, body))
    }

    async fn get_rest(
        &self,
        object: &ObjectInfo,
        from: u64,
        retry_time: Duration,
    ) -> Result<Box<dyn Incoming>> {
        let rest = self.faults.strike(Operation::Get, &[&object.key]).await?;
        let body = self.inner.get_rest(object, from, retry_time).await?;
        finish(&rest)?;
        Ok(struck(&rest, body, object.size - from))
    }

    async fn get_tail(&self, key: &str, length: u64) -> Result<(ObjectInfo, u64, Box<dyn Incoming>)> {
        let rest = self.faults.strike(Operation::Get, &[key]).await?;
        let (info, sent, body) = self.inner.get_tail(key, length).await?;
        finish(&rest)?;
        Ok((info, sent, struck(&rest, body, sent)))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let rest = self.faults.strike(Operation::Head, &[key]).await?;
        let info = self.inner.head(key).await?;
        finish(&rest).map(|()| info)
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, depth: Depth) -> Box<dyn Pages> {
        Box::new(FaultyPages {
            inner: self.inner.list(prefix, start_after, depth),
            faults: self.faults.clone(),
        })
    }

    async fn delete(&self, keys: &[String]) -> Result<Vec<Refused>> {
        let names: Vec<&str> = keys.iter().map(String::as_str).collect();
        match self.faults.strike(Operation::Delete, &names).await? {
            Rest::Refuse(part) => {
                let (held, others): (Vec<_>, Vec<_>) =
                    keys.iter().cloned().partition(|key| key.contains(&part));
                let mut refused = self.inner.delete(&others).await?;
                refused.extend(held.into_iter().map(|key| Refused {
                    key,
                    error: Error::denied("a fault keeps the object"),
                }));
                Ok(refused)
            }
            rest => {
                let refused = self.inner.delete(keys).await?;
                finish(&rest).map(|()| refused)
            }
        }
    }
}

impl Faults {
    async fn strike(&self, operation: Operation, keys: &[&str]) -> Result<Rest> {
        let Some(fault) = self.take(operation, keys) else {
            return Ok(Rest::Nothing);
        };
        match fault.kind {
            FaultKind::Before(kind) => Err(Error::new(kind, "a fault was injected before the call")),
            FaultKind::After => Ok(Rest::FailAfter),
            FaultKind::Corrupt => Ok(Rest::Corrupt),
            FaultKind::Flip { byte, bit } => Ok(Rest::Flip(byte, bit)),
            FaultKind::Short => Ok(Rest::Short),
            FaultKind::Refuse => Ok(Rest::Refuse(fault.key)),
            FaultKind::Delay(time) => {
                tokio::time::sleep(time).await;
                Ok(Rest::Nothing)
            }
        }
    }
}

fn finish(rest: &Rest) -> Result<()> {
    if *rest == Rest::FailAfter {
        return Err(Error::unavailable("a fault was injected after the call"));
    }
    Ok(())
}

/// A body of this many bytes that is read as the fault has it.
fn struck(rest: &Rest, inner: Box<dyn Incoming>, length: u64) -> Box<dyn Incoming> {
    let (flip, left) = match rest {
        Rest::Nothing | Rest::FailAfter | Rest::Refuse(_) => return inner,
        Rest::Corrupt => (Some((0, 0)), u64::MAX),
        Rest::Flip(byte, bit) => (Some((*byte, *bit)), u64::MAX),
        Rest::Short => (None, length / 2),
    };
    Box::new(FaultyBody { inner, flip, left })
}

/// A body that is read damaged or cut.
#[derive(Debug)]
pub(crate) struct FaultyBody {
    inner: Box<dyn Incoming>,
    /// The number of bytes before the one to be flipped, and the bit in it.
    flip: Option<(u64, u8)>,
    left: u64,
}

#[async_trait]
impl Incoming for FaultyBody {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(mut piece) = self.inner.next().await? else {
            return Ok(None);
        };
        piece.truncate(self.left as usize);
        self.left -= piece.len() as u64;
        if piece.is_empty() {
            return Ok(None);
        }
        if let Some((before, bit)) = self.flip.take() {
            let mut bytes = piece.to_vec();
            match usize::try_from(before).ok().and_then(|at| bytes.get_mut(at)) {
                Some(struck) => *struck ^= 1 << bit,
                None => self.flip = Some((before - piece.len() as u64, bit)),
            }
            piece = bytes.into();
        }
        Ok(Some(piece))
    }
}

/// A listing each of whose pages may fail.
#[derive(Debug)]
struct FaultyPages {
    inner: Box<dyn Pages>,
    faults: Faults,
}

#[async_trait]
impl Pages for FaultyPages {
    async fn next(&mut self) -> Result<Page> {
        let rest = self.faults.strike(Operation::List, &[]).await?;
        finish(&rest)?;
        self.inner.next().await
    }

    fn is_finished(&self) -> bool {
        self.inner.is_finished()
    }
}
