//! The archive, as it was found a moment ago.
//!
//! For [`AGE`] a store is taken for this archive's: the identity is kept, and on a file system the directory that it
//! was read from. Both are kept together, so that nothing is written to a directory whose identity was not read. Before
//! anybody is told that something is stored, [`Archive::confirm`] looks again.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::archive::Archive;
use crate::store::Store;

/// For this time the identity is not read again, and a directory is held without being used.
const AGE: Duration = Duration::from_secs(5);

/// What was found last, and when.
pub(super) struct KnownArchive {
    store: Store,
    found: Mutex<Option<Found>>,
}

struct Found {
    archive: Archive,
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

    /// A store to work with, and the archive that was found there, if that is not too old.
    pub(super) fn look(&self) -> (Store, Option<Archive>) {
        match self.lock().as_ref().filter(|found| found.is_believed()) {
            Some(found) => (found.archive.store().clone(), Some(found.archive.clone())),
            None => (self.store.reopened(), None),
        }
    }

    /// Notes the archive that was opened, or confirmed, just now.
    pub(super) fn note(&self, archive: Archive) {
        *self.lock() = Some(Found {
            archive,
            at: Instant::now(),
        });
    }

    /// After any failure everything is looked up again.
    pub(super) fn forget(&self) {
        *self.lock() = None;
    }

    /// Lets go of a directory that is not used, so that its file system can be unmounted.
    pub(super) async fn release_unused(&self) -> Infallible {
        loop {
            tokio::time::sleep(AGE).await;
            self.lock().take_if(|found| !found.is_believed());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
