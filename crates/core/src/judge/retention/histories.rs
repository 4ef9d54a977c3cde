//! The timelines of an archive, each with its chain. If one is not known, nothing may be deleted.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::judge::branches::judge;
use crate::judge::catalogue::{Backup, Catalogue};
use crate::judge::timeline_chain::TimelineChain;
use crate::pg::{Lsn, TimelineHistory, TimelineId};

/// The histories of all timelines that anything in the archive belongs to.
#[derive(Debug)]
pub(super) struct Histories<'a> {
    catalogue: &'a Catalogue,
    histories: BTreeMap<TimelineId, TimelineHistory>,
}

impl<'a> Histories<'a> {
    /// # Errors
    /// `Corrupt` for a history that cannot be read or is missing, `Conflict` for two that disagree.
    pub(super) fn of(catalogue: &'a Catalogue) -> Result<Self> {
        if let Some((timeline, reason)) = catalogue.unreadable_histories.first_key_value() {
            return Err(Error::corrupt(format!(
                "the history of timeline {timeline} cannot be read, so it is not known what its WAL is needed for; nothing \
                 was deleted: {reason}"
            )));
        }
        let mut histories = BTreeMap::new();
        for timeline in timelines(catalogue) {
            let history = history(catalogue, timeline)?;
            for ancestor in history.ancestors() {
                if let Some(known) = catalogue.histories.get(&ancestor.timeline) {
                    history
                        .extends(known)
                        .map_err(|error| error.context("nothing was deleted"))?;
                }
            }
            histories.insert(timeline, history);
        }
        Ok(Self { catalogue, histories })
    }

    /// Every timeline, in ascending order.
    pub(super) fn timelines(&self) -> impl Iterator<Item = TimelineId> {
        self.histories.keys().copied()
    }

    /// The timelines that may live: the one that a recovery follows, or those between which only a person can choose;
    /// and the latest that is not retired.
    pub(super) fn living(&self) -> Vec<TimelineId> {
        let retired = &self.catalogue.retired;
        let latest = self
            .timelines()
            .filter(|timeline| !retired.contains_key(timeline))
            .last();
        let mut living = match judge(self.catalogue, |_| true).followed {
            Ok(followed) => vec![followed],
            Err(ambiguity) => ambiguity
                .contenders
                .iter()
                .map(|contender| contender.timeline)
                .collect(),
        };
        living.extend(latest.or_else(|| self.timelines().last()));
        living.sort_unstable();
        living.dedup();
        living
    }

    pub(super) fn chain(&self, timeline: TimelineId) -> Option<TimelineChain<'_>> {
        let history = self.histories.get(&timeline)?;
        Some(TimelineChain::new(history, self.catalogue.wal.segment_size()))
    }

    pub(super) fn chains(&self) -> impl Iterator<Item = TimelineChain<'_>> {
        self.timelines().filter_map(|timeline| self.chain(timeline))
    }

    /// The last position at which another timeline left this one.
    pub(super) fn last_fork(&self, timeline: TimelineId) -> Option<Lsn> {
        self.histories
            .values()
            .filter_map(|history| history.end_of(timeline))
            .max()
    }
}

fn timelines(catalogue: &Catalogue) -> Vec<TimelineId> {
    let of_backup = |backup: &Backup| [backup.start_timeline, backup.stop_timeline];
    let mut timelines = catalogue.timelines();
    timelines.extend(catalogue.readable().flat_map(of_backup));
    timelines.sort_unstable();
    timelines.dedup();
    timelines
}

/// A timeline's own history, or the same from the beginning of a descendant's.
fn history(catalogue: &Catalogue, timeline: TimelineId) -> Result<TimelineHistory> {
    let own = catalogue.histories.get(&timeline).cloned();
    let from_descendant = || {
        let mut descendants = catalogue.histories.values();
        descendants.find_map(|history| history.of_ancestor(timeline))
    };
    own.or_else(from_descendant).ok_or_else(|| {
        Error::corrupt(format!(
            "the history of timeline {timeline} is not in the archive, so it is not known what its WAL is needed for; nothing \
             was deleted. Archive it from a server of that timeline with walship push pg_wal/{:08X}.history",
            timeline.get()
        ))
    })
}
