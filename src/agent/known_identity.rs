//! The archive's identity, as it was read a moment ago.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::archive::identity::Identity;

/// For so long it is believed without reading it again.
const AGE: Duration = Duration::from_secs(5);

/// What was read last, and when.
#[derive(Default)]
pub(super) struct KnownIdentity(Mutex<Option<(Identity, Instant)>>);

impl KnownIdentity {
    /// The identity, while it is believed.
    pub(super) fn get(&self) -> Option<Identity> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (identity, read) = known.as_ref()?;
        (read.elapsed() < AGE).then(|| identity.clone())
    }

    /// Takes note of what was read just now.
    pub(super) fn note(&self, identity: Identity) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((identity, Instant::now()));
    }
}
