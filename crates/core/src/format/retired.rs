//! `wal/<TLI>.retired.json`: the mark of a timeline that no server is to follow, such as a forgotten rehearsal's.
//!
//! The mark says nothing of the timelines that descend from it: each is retired by a mark of its own. The WAL of a
//! retired timeline stays until the retention policy releases it, like that of any branch that nothing was written to.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::keys::Key;
use super::{FORMAT_VERSION, Stored, record};
use crate::error::{Error, Result};
use crate::pg::TimelineId;

/// The longest reason, in bytes.
const REASON_LIMIT: usize = 1000;

/// The content of the mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    format_version: u32,
    /// The walship version that wrote it.
    walship: String,
    /// The timeline.
    pub timeline: TimelineId,
    /// When it was written, by the writer's clock.
    pub(crate) retired_at: DateTime<Utc>,
    /// Why, in somebody's words; one line.
    reason: String,
}

impl Retired {
    /// A mark that is set now.
    ///
    /// # Errors
    /// `Invalid` for a reason that is empty, too long or has control characters.
    pub fn new(timeline: TimelineId, reason: &str, now: DateTime<Utc>) -> Result<Self> {
        let reason = reason.trim();
        if reason.is_empty() || reason.len() > REASON_LIMIT || reason.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "give a reason of one line and at most {REASON_LIMIT} bytes: it is shown wherever the timeline is left out"
            )));
        }
        Ok(Self {
            format_version: FORMAT_VERSION,
            walship: env!("CARGO_PKG_VERSION").to_owned(),
            timeline,
            retired_at: now,
            reason: reason.to_owned(),
        })
    }
}

impl Stored for Retired {
    type Of = TimelineId;
    const LIMIT_BYTES: u64 = 64 << 10;

    fn key(timeline: &TimelineId) -> Key {
        Key::Retired(*timeline)
    }

    fn parse(bytes: &[u8], url: &str, timeline: &TimelineId) -> Result<Self> {
        let mark: Self = record::parse(bytes, url)?;
        if mark.timeline != *timeline {
            let other = mark.timeline;
            return Err(Error::corrupt(format!("{url} is the mark of timeline {other}")));
        }
        Ok(mark)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        record::to_bytes(self)
    }
}

impl std::fmt::Display for Retired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reason = self.reason.escape_debug();
        write!(
            f,
            "retired on {}: {reason}",
            crate::text::time_text(self.retired_at)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    #[test]
    fn a_mark_reads_back_as_it_was_written_and_only_for_its_timeline() {
        let mark = Retired::new(tli(2), " a rehearsal ", DateTime::UNIX_EPOCH).unwrap();
        let bytes = mark.to_bytes().unwrap();
        assert_eq!(Retired::parse(&bytes, "u", &tli(2)).unwrap(), mark);
        assert_eq!(mark.to_string(), "retired on 1970-01-01 00:00:00Z: a rehearsal");
        let other = Retired::parse(&bytes, "u", &tli(3)).unwrap_err();
        assert_eq!(other.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_reason_is_one_line() {
        for reason in ["", "  ", "two\nlines", &"x".repeat(REASON_LIMIT + 1)] {
            let refused = Retired::new(tli(2), reason, DateTime::UNIX_EPOCH).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Invalid, "{reason}");
        }
    }
}
