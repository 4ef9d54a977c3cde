//! Timelines that somebody retired are hidden from a server that would follow them.
//!
//! PostgreSQL learns which timelines there are by asking for their histories one after the other, up to the first that
//! is missing (`findNewestTimeLine`, `timeline.c`, 14 to 18). It does so to follow the latest one, and at the end of
//! each recovery to take the next number. If a history is absent, PostgreSQL does not follow that timeline, but it also
//! takes its number for a new one, whose WAL could never be archived. So a retired timeline's history is absent only
//! for a server that would follow it.

use std::collections::{BTreeMap, BTreeSet};

use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::format::keys::{Key, WAL_PREFIX, after_timeline};
use crate::format::retired::Retired;
use crate::judge::forks::hidden::is_hidden;
use crate::judge::forks::{Follower, Recovering, TargetTimeline};
use crate::pg::{TimelineHistory, TimelineId, WalName};

/// Why a stored history is absent for the server that asks; `None` where the server gets it. `is_starting`: the server
/// has not opened for reading yet. `is_kept`: its `pg_wal` has a copy.
///
/// # Errors
/// As the store; `Corrupt` for a mark that is damaged.
pub(super) async fn hides(
    mark: &Retired,
    history: &TimelineHistory,
    follower: Option<&Follower>,
    is_starting: bool,
    is_kept: bool,
    archive: &Archive,
) -> Result<Option<String>> {
    let timeline = history.timeline();
    if !is_hidden(history, follower, is_starting) {
        return Ok(None);
    }
    if has_later_timeline(timeline, archive).await? {
        // A server that looks for the latest timeline finds the later one only if it finds this one first.
        return Ok(None);
    }
    let way_out = if is_kept {
        let file = WalName::History(timeline);
        format!(
            "; PostgreSQL takes its own copy instead: stop the server, remove pg_wal/{file} and start it again"
        )
    } else {
        String::new()
    };
    Ok(Some(withheld(timeline, mark) + &way_out))
}

/// Why a segment of a retired timeline is not for a standby that would switch to that timeline.
///
/// # Errors
/// `Invalid` for a recovery, which would end there; as the store; `Corrupt` for a mark that is damaged.
pub(super) async fn refuses(
    timeline: TimelineId,
    follower: &Follower,
    archive: &Archive,
) -> Result<Option<String>> {
    let is_on_it = timeline <= follower.start_of_search();
    if is_on_it || matches!(follower.target, TargetTimeline::Number(_)) {
        return Ok(None);
    }
    let Some(mark) = archive.find::<Retired>(&timeline).await? else {
        return Ok(None);
    };
    match follower.recovering {
        Recovering::Standby => Ok(Some(withheld(timeline, &mark))),
        Recovering::ToTarget => Err(Error::invalid(format!(
            "timeline {timeline} was {mark}; set recovery_target_timeline to the timeline to recover along, and remove \
             {timeline}'s history from pg_wal"
        ))),
    }
}

/// These timelines without the retired ones at the end: what a server finds from which retired ones are hidden.
///
/// # Errors
/// As the store; `Corrupt` for a mark that is damaged.
pub(super) async fn without_the_last<T>(
    mut found: BTreeMap<TimelineId, T>,
    archive: &Archive,
) -> Result<BTreeMap<TimelineId, T>> {
    while let Some(last) = found.last_entry() {
        if archive.find::<Retired>(last.key()).await?.is_none() {
            break;
        }
        last.remove();
    }
    Ok(found)
}

fn withheld(timeline: TimelineId, mark: &Retired) -> String {
    format!(
        "timeline {timeline} is in the archive and withheld because it was {mark} (walship timeline reinstate {timeline} \
         takes that back)"
    )
}

/// Whether the archive has the history of a later timeline that is not retired.
async fn has_later_timeline(timeline: TimelineId, archive: &Archive) -> Result<bool> {
    let mut listing = archive.store().list(WAL_PREFIX, Some(&after_timeline(timeline)));
    let mut later = BTreeSet::new();
    while let Some(page) = listing.next().await? {
        later.extend(page.into_iter().filter_map(|object| match object.key.parse() {
            Ok(Key::History(found)) if found > timeline => Some(found),
            _ => None,
        }));
    }
    for found in later {
        if archive.find::<Retired>(&found).await?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}
