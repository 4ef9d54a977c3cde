//! Which histories of retired timelines a server in recovery is not shown.

use super::{Follower, Position, TargetTimeline};
use crate::pg::TimelineHistory;

/// Whether the history of a retired timeline is hidden from a server in recovery: from one that looks for the latest
/// timeline and would go over to this one. If it is not known what the server does (`None`), the history is hidden.
///
/// `is_starting`: the server has not opened for reading yet, and follows the latest timeline that it finds. Later,
/// PostgreSQL ignores a timeline that left before what was replayed (`rescanLatestTimeLine`), but must see its history:
/// otherwise a promotion could take its number (`findNewestTimeLine`; 14 to 18).
#[must_use]
pub fn is_hidden(history: &TimelineHistory, follower: Option<&Follower>, is_starting: bool) -> bool {
    let Some(follower) = follower else { return true };
    let is_past = |position: &Position| {
        history
            .end_of(position.timeline)
            .is_none_or(|end| position.lsn > end)
    };
    match follower.target {
        TargetTimeline::Number(number) => number == history.timeline(),
        TargetTimeline::Current => false,
        TargetTimeline::Latest => {
            history.timeline() > follower.start_of_search()
                && (is_starting || !follower.replayed.iter().any(is_past))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::judge::forks::Recovering;
    use crate::pg::{Lsn, TimelineId};

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    // Seen to fail: `judge/forks/hidden.rs`: `is_hidden` is always false
    #[test]
    fn a_retired_history_is_hidden_from_whoever_would_follow_it_and_from_nobody_else() {
        let history = TimelineHistory::parse(tli(2), b"1\t0/5000000\treason\n").unwrap();
        let hidden = |target, timeline: u32, lsn: u64, is_starting| {
            let follower = Follower {
                recovering: Recovering::Standby,
                target,
                replayed: vec![Position {
                    timeline: tli(timeline),
                    lsn: Lsn(lsn),
                }],
                histories: BTreeMap::new(),
            };
            is_hidden(&history, Some(&follower), is_starting)
        };
        let latest = TargetTimeline::Latest;
        // Before the fork, it would go over to it; past it only when it starts.
        assert!(hidden(latest, 1, 0x500_0000, false));
        assert!(hidden(latest, 1, 0x500_0000, true));
        assert!(!hidden(latest, 1, 0x500_0001, false));
        assert!(hidden(latest, 1, 0x500_0001, true));
        // One that is on it, or on a later one.
        assert!(!hidden(latest, 2, 0x600_0000, true));
        assert!(!hidden(latest, 3, 0x600_0000, true));
        // One whose timeline is named needs the number to be taken.
        for starting in [true, false] {
            assert!(!hidden(TargetTimeline::Number(tli(1)), 1, 0x400_0000, starting));
            assert!(hidden(TargetTimeline::Number(tli(2)), 1, 0x400_0000, starting));
            assert!(!hidden(TargetTimeline::Current, 1, 0x400_0000, starting));
        }
        assert!(is_hidden(&history, None, false));
    }
}
