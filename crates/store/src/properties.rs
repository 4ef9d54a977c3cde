//! What a store tells about itself: versioning, object lock and its clock. For a diagnosis, never for a decision.

use chrono::{DateTime, TimeDelta, Utc};

use walship_core::Result;

/// A store's properties, as it tells them.
#[derive(Debug)]
pub struct StoreProperties {
    /// Whether the bucket keeps versions; none for a store that cannot.
    pub versioning: Result<Option<bool>>,
    /// How the bucket locks new objects; none where it does not.
    pub object_lock: Result<Option<String>>,
    /// Its clock, if an answer told the time.
    pub clock: Option<StoreClock>,
}

/// A store's clock, to the second, as an answer told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreClock {
    /// The second of the answer.
    pub(crate) told: DateTime<Utc>,
    /// This machine's time when it arrived.
    pub(crate) received: DateTime<Utc>,
}

impl StoreClock {
    /// The store's clock less this machine's.
    #[must_use]
    pub fn ahead(self) -> TimeDelta {
        // Fractions are cut off, so on average half a second more had passed.
        self.told + TimeDelta::milliseconds(500) - self.received
    }
}
