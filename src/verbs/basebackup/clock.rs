//! The database server's clock, as far as a backup shows it.
//!
//! Replication connections have no `now()`. But the server gives `backup_label` an `mtime` while it sends: the second
//! in which it wrote the file, a moment before it arrives here.

use chrono::{DateTime, TimeDelta, Utc};

/// Clocks that differ by at most this much count as equal, because the `mtime` has whole seconds and the bytes take a
/// moment. A backup may be dated too early by this much.
const TOLERANCE: TimeDelta = TimeDelta::seconds(2);

/// How far the server's clock is from this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ServerClock {
    /// What must be added to this machine's time; zero where the clocks agree.
    ahead: TimeDelta,
}

impl ServerClock {
    /// Learns the difference from a file written at `mtime`, in seconds of the server's clock, that
    /// arrived at `received` by this machine's.
    ///
    /// If other bytes came before it in the stream, it may have waited for as long as an upload takes. Then `at_once`
    /// is false, and a server's clock that seems to be behind is no proof that it is.
    pub(super) fn observe(mtime: i64, received: DateTime<Utc>, at_once: bool) -> Self {
        // Rather a second late than early, because no moment before the end of a backup can be recovered.
        let written = DateTime::from_timestamp(mtime, 0).map(|second| second + TimeDelta::seconds(1));
        let ahead = written.map_or_else(TimeDelta::zero, |written| written - received);
        let may_be_late = !at_once && ahead < TimeDelta::zero();
        Self {
            ahead: if may_be_late || ahead.abs() <= TOLERANCE {
                TimeDelta::zero()
            } else {
                ahead
            },
        }
    }

    /// The server's time at a moment of this machine's clock.
    pub(super) fn time_of(self, local: DateTime<Utc>) -> DateTime<Utc> {
        local + self.ahead
    }

    pub(super) fn warn_if_off(self) {
        if self.ahead != TimeDelta::zero() {
            tracing::warn!(
                "the database server's clock is {} s {} this machine's; the backup's times are by the server's. \
                 Set both clocks by NTP",
                self.ahead.num_seconds().abs(),
                if self.ahead > TimeDelta::zero() {
                    "ahead of"
                } else {
                    "behind"
                }
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(milliseconds).unwrap()
    }

    #[test]
    fn clocks_that_agree_are_left_alone() {
        // The file was written late in its second, or early in it; it arrived up to two seconds later.
        for received in [1_000_000, 1_000_999, 1_002_900] {
            let clock = ServerClock::observe(1000, at(received), true);
            assert_eq!(clock.time_of(at(5_000_123)), at(5_000_123), "{received}");
        }
    }

    #[test]
    fn a_difference_beyond_the_tolerance_is_applied_and_rounded_up() {
        for (ahead_seconds, received) in [(3600, 1_000_000), (-90, 1_000_900), (5, 1_000_500_i64)] {
            let true_server_time = received + ahead_seconds * 1000;
            let clock = ServerClock::observe(true_server_time.div_euclid(1000), at(received), true);
            let seen = clock.time_of(at(received)).timestamp_millis();
            assert!(
                (true_server_time..=true_server_time + 1000).contains(&seen),
                "{ahead_seconds}: {seen}"
            );
        }
    }

    #[test]
    fn a_time_beyond_the_calendar_is_ignored() {
        assert_eq!(
            ServerClock::observe(i64::MAX, at(0), true),
            ServerClock::default()
        );
    }

    #[test]
    fn a_file_that_was_kept_waiting_makes_no_backup_end_earlier() {
        // The clocks agree; an upload stalled for a minute before the file was read.
        let clock = ServerClock::observe(1000, at(1_060_000), false);
        assert_eq!(clock.time_of(at(1_070_000)), at(1_070_000));
        // Waiting cannot make it seem ahead.
        let clock = ServerClock::observe(1060, at(1_000_000), false);
        assert!(clock.time_of(at(1_010_000)) >= at(1_070_000));
    }
}
