//! What the server of a data directory follows, as far as the directory and the archive tell: the facts for the rule
//! of `judge::forks`.
//!
//! Its settings are read from its files: they are those that it was started with, unless the files have changed since.
//! A standby may look for new timelines at any moment. So the archive is asked at each segment, after the segment was
//! fetched: a segment that an old primary stored after the new timeline's history is then never taken for the common
//! past.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::retired;
use crate::archive::{Archive, stored_wal};
use crate::error::{Error, Result};
use crate::judge::forks::{Follower, Position, Recovering, TargetTimeline, Visible};
use crate::pg::{ControlFile, TimelineHistory, TimelineId, WalName};
use crate::server::data_directory::{kept_histories, read_control_file};
use crate::server::server_settings::{Setting, setting_of_server};

/// The server that asks for a segment of this timeline; `None` where it cannot be known what it follows.
///
/// # Errors
/// `Internal` where a file of the data directory cannot be read; `Corrupt` for a history that is damaged; as the store.
pub(super) async fn follower(
    recovering: Recovering,
    directory: &Path,
    segment: TimelineId,
    archive: &Archive,
) -> Result<Option<Follower>> {
    let Some(control) = read_control_file(directory)? else {
        return Ok(None);
    };
    let target = match setting_of_server(directory, "recovery_target_timeline")? {
        Setting::Known(None) => Some(TargetTimeline::default()),
        Setting::Known(Some(value)) => TargetTimeline::parse(&value),
        Setting::Unknown => None,
    };
    let Some(target) = target else {
        return Ok(None);
    };
    let pg_wal = directory.join("pg_wal");
    let histories = Histories {
        kept: kept_histories(&pg_wal)?,
        pg_wal,
        archive,
    };
    let mut follower = Follower {
        recovering,
        target,
        replayed: replayed(&control),
        histories: BTreeMap::new(),
    };
    let search = follower.start_of_search();
    let mut wanted: BTreeSet<TimelineId> = follower
        .replayed
        .iter()
        .map(|position| position.timeline)
        .collect();
    if let TargetTimeline::Number(number) = target {
        wanted.insert(number);
    }
    for number in wanted.into_iter().filter(|number| *number > segment) {
        if let Some(visible) = histories.find(number).await? {
            follower.histories.insert(number, visible);
        }
    }
    if target == TargetTimeline::Latest {
        let from = match recovering {
            Recovering::Standby => search.max(segment),
            Recovering::ToTarget => search,
        };
        // Retired timelines at the end are hidden from the server, or it ignores them.
        let chain = retired::without_the_last(histories.chain(from, recovering).await?, archive).await?;
        follower.histories.extend(chain);
    }
    Ok(Some(follower))
}

fn replayed(control: &ControlFile) -> Vec<Position> {
    let checkpoint = Position {
        timeline: control.timeline,
        lsn: control.checkpoint,
    };
    let minimum = control.min_recovery_timeline.map(|timeline| Position {
        timeline,
        lsn: control.min_recovery_point,
    });
    std::iter::once(checkpoint).chain(minimum).collect()
}

/// Where the server looks for histories: in the archive, then in `pg_wal`.
struct Histories<'a> {
    pg_wal: PathBuf,
    kept: BTreeSet<TimelineId>,
    archive: &'a Archive,
}

impl Histories<'_> {
    async fn find(&self, timeline: TimelineId) -> Result<Option<Visible>> {
        if self.kept.contains(&timeline) {
            let path = self.pg_wal.join(WalName::History(timeline).to_string());
            let failed = |error| Error::io(format!("read {}", path.display()), error);
            let content = std::fs::read(&path).map_err(failed)?;
            let history = TimelineHistory::parse(timeline, &content)
                .map_err(|error| error.context(format!("read {}", path.display())))?;
            return Ok(Some(Visible { history, kept: true }));
        }
        let stored = stored_wal::read_history(self.archive, timeline).await?;
        Ok(stored.map(|history| Visible { history, kept: false }))
    }

    /// The histories after this timeline up to the first that is missing. A recovery has a copy of the one that it
    /// follows, so the search for it ends with the last copy.
    async fn chain(&self, from: TimelineId, recovering: Recovering) -> Result<BTreeMap<TimelineId, Visible>> {
        let mut chain = BTreeMap::new();
        let mut last = from.get();
        while let Some(number) = last.checked_add(1) {
            last = number;
            let timeline = TimelineId::new(number)?;
            if recovering == Recovering::ToTarget && self.kept.range(timeline..).next().is_none() {
                break;
            }
            let Some(visible) = self.find(timeline).await? else {
                break;
            };
            chain.insert(timeline, visible);
        }
        Ok(chain)
    }
}
