//! The archive: its identity, its catalogue, its WAL, its backups' parts, and the small records beside them.

mod branch_ends;
pub mod catalogue;
pub mod drills;
pub mod find_record;
#[cfg(test)]
pub(crate) mod fixture;
pub mod identity;
pub mod ledger;
pub mod lineage;
pub mod parts;
pub(crate) mod records;
pub mod stored_wal;
pub mod time_index;
pub mod wal_changes;
pub(crate) mod wal_object;
mod writing;

pub use self::writing::{Created, Same};
use crate::error::Result;
use crate::format::identity::Identity;
use crate::store::Store;

/// An archive: where it is, and whose. What is written to it goes through it (`writing.rs`), but for `walship.json`, with
/// which one begins, and the notes of `ledger/`.
#[derive(Debug, Clone)]
pub struct Archive {
    store: Store,
    identity: Identity,
}

impl Archive {
    /// The archive at this place.
    ///
    /// # Errors
    /// As [`identity::require`].
    pub async fn open(store: &Store) -> Result<Self> {
        Ok(Self::of(store, identity::require(store).await?))
    }

    /// An archive that was opened before.
    #[must_use]
    pub fn of(store: &Store, identity: Identity) -> Self {
        Self {
            store: store.clone(),
            identity,
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
}
