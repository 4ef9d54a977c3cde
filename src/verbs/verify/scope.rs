//! Which objects a run reads.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::format::ledger::{Entry, is_due};
use crate::store::ObjectInfo;

#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    /// The moment of this run.
    pub(super) now: DateTime<Utc>,
    /// Only what was written at this moment or later.
    pub(super) since: Option<DateTime<Utc>>,
    /// Within this time every object is read again.
    pub(super) recheck: Duration,
}

/// What to do with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is known to be good.
    Known(Entry),
    Read,
    /// It was never read, and is too old for this run.
    PassOver,
}

impl Scope {
    pub(super) fn judge(&self, info: &ObjectInfo, known: Option<&Entry>) -> Verdict {
        let known = known.filter(|entry| entry.is_of(info.size, info.modified, info.version.as_str()));
        let is_wanted = self.since.is_none_or(|since| info.modified >= since);
        match known {
            Some(entry) if !is_wanted || !is_due(&info.key, entry.verified_at, self.now, self.recheck) => {
                Verdict::Known(entry.clone())
            }
            _ if is_wanted => Verdict::Read,
            _ => Verdict::PassOver,
        }
    }
}
