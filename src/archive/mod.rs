//! The archive: its identity, its catalogue, its WAL, its backups' parts, and the small objects beside them.

mod branch_ends;
pub mod catalogue;
pub mod drills;
pub mod find_record;
#[cfg(test)]
pub(crate) mod fixture;
mod identity;
pub mod ledger;
pub mod lineage;
pub mod parts;
mod reading;
pub mod stored_wal;
pub mod time_index;
pub mod wal_changes;
pub(crate) mod wal_listing;
pub(crate) mod wal_object;
mod writing;

use std::sync::Arc;

pub(crate) use self::writing::body;
pub use self::writing::{Created, Same};
use crate::error::Result;
use crate::format::identity::Identity;
use crate::format::keys::Key;
use crate::store::{Object, ObjectInfo, Store};

/// An archive: where it is, and whose. It is opened once for each command (`identity.rs`). `reading.rs` reads small
/// objects, and `writing.rs` writes all objects.
#[derive(Debug, Clone)]
pub struct Archive {
    store: Store,
    identity: Arc<Identity>,
}

impl Archive {
    /// The archive at this place, which has this identity.
    #[must_use]
    pub fn of(store: &Store, identity: Identity) -> Self {
        Self {
            store: store.clone(),
            identity: Arc::new(identity),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.store.location().to_string()
    }

    /// An object's URL, for messages.
    pub(crate) fn url_of(&self, key: &Key) -> String {
        self.store.url_of(&key.to_string())
    }

    /// As [`Store::head`].
    pub(crate) async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        self.store.head(&key.to_string()).await
    }

    /// As [`Store::get`].
    pub(crate) async fn get(&self, key: &Key) -> Result<Object> {
        self.store.get(&key.to_string()).await
    }

    /// As [`Store::delete`].
    pub(crate) async fn delete(&self, keys: &[Key]) -> Result<()> {
        let keys: Vec<_> = keys.iter().map(Key::to_string).collect();
        self.store.delete(&keys).await
    }
}
