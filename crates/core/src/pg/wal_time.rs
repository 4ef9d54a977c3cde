//! PostgreSQL's clock as it stands in the WAL (`TimestampTz`, `src/include/datatype/timestamp.h`, the
//! same in PostgreSQL 14 to 18).

use std::fmt;

use chrono::{DateTime, Utc};

/// Microseconds from 2000-01-01 00:00 UTC, printed as `pg_waldump` does in UTC:
/// `2026-11-23 13:08:15.123456 UTC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WalTime(pub i64);

impl WalTime {
    /// 2000-01-01 00:00 UTC in seconds from 1970.
    const EPOCH_SECONDS: i64 = 946_684_800;

    /// The same moment on chrono's calendar; `None` beyond it, about 260,000 years away.
    #[must_use]
    pub fn to_utc(self) -> Option<DateTime<Utc>> {
        let micros = self.0.checked_add(Self::EPOCH_SECONDS * 1_000_000)?;
        DateTime::from_timestamp_micros(micros)
    }
}

impl From<DateTime<Utc>> for WalTime {
    fn from(moment: DateTime<Utc>) -> Self {
        Self(
            moment
                .timestamp_micros()
                .saturating_sub(Self::EPOCH_SECONDS * 1_000_000),
        )
    }
}

impl fmt::Display for WalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_utc() {
            Some(moment) => moment.format("%Y-%m-%d %H:%M:%S%.6f UTC").fmt(f),
            None => write!(f, "{} microseconds from 2000-01-01 UTC", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_moment_leads_there_and_back(micros: i64) {
            let _ = WalTime(micros).to_string();
            if let Some(moment) = WalTime(micros).to_utc() {
                prop_assert_eq!(WalTime::from(moment), WalTime(micros));
            }
        }
    }

    #[test]
    fn it_counts_from_the_year_2000() {
        assert_eq!(WalTime(0).to_string(), "2000-01-01 00:00:00.000000 UTC");
        assert_eq!(
            WalTime(848_754_495_123_456).to_string(),
            "2026-11-23 13:08:15.123456 UTC"
        );
    }
}
