//! The archive, as it was found a moment ago.
//!
//! What is believed for [`AGE`] is that a store is this archive's: its identity, and on a file system the very
//! directory that it was read from. Both go together, so that nothing is written to a directory of which the identity
//! was not read. Who stores looks again before anybody is told that something is stored (`identity::confirm`).

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::format::identity::Identity;
use crate::store::Store;

/// For so long it is believed without reading the identity again, and a directory is held without being used.
const AGE: Duration = Duration::from_secs(5);

/// What was found last, and when.
pub(super) struct KnownArchive {
    store: Store,
    found: Mutex<Option<Found>>,
}

struct Found {
    store: Store,
    identity: Identity,
    at: Instant,
}

impl Found {
    fn is_believed(&self) -> bool {
        self.at.elapsed() < AGE
    }
}

impl KnownArchive {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            found: Mutex::default(),
        }
    }

    /// A store to work with, and the identity that was read from it, while that is believed.
    pub(super) fn look(&self) -> (Store, Option<Identity>) {
        match self.lock().as_ref().filter(|found| found.is_believed()) {
            Some(found) => (found.store.clone(), Some(found.identity.clone())),
            None => (self.store.afresh(), None),
        }
    }

    /// Takes note of the identity that was read from this store just now.
    pub(super) fn note(&self, store: &Store, identity: Identity) {
        *self.lock() = Some(Found {
            store: store.clone(),
            identity,
            at: Instant::now(),
        });
    }

    /// After a failure, whatever it was, everything is found anew.
    pub(super) fn forget(&self) {
        *self.lock() = None;
    }

    /// Lets go of a directory that is not used, so that its file system can be unmounted.
    pub(super) async fn tidy(&self) -> Infallible {
        loop {
            tokio::time::sleep(AGE).await;
            self.lock().take_if(|found| !found.is_believed());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
