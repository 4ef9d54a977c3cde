//! How a store treats what is in it, and what time it has: for a diagnosis, never for a decision.

use chrono::{DateTime, TimeDelta, Utc};

use walship_core::Result;

/// What a store says of itself.
#[derive(Debug)]
pub struct Manners {
    /// Whether the bucket keeps versions; none where the store has no such thing.
    pub versioning: Result<Option<bool>>,
    /// How the bucket locks new objects; none where it does not.
    pub object_lock: Result<Option<String>>,
    /// Its clock, where an answer told the time.
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
        // The second is cut off: on average half of it had passed.
        self.told + TimeDelta::milliseconds(500) - self.received
    }
}
