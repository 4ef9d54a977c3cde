//! Which timeline to follow: the one asked for, or the latest, as PostgreSQL's `latest` finds it
//! (`findNewestTimeLine`, `timeline.c`), but written down as a number.
//!
//! A gap in the numbers does not end the search, as it would PostgreSQL's: a lost history file must not
//! make a recovery follow an older timeline silently. For the same reason a timeline that has WAL
//! but no readable history is an error, unless the user says which timeline to follow.

use super::{Request, Target};
use crate::archive::catalogue::{Backup, Catalogue};
use crate::archive::timeline_chain::TimelineChain;
use crate::error::{Error, Result};
use crate::pg::TimelineId;

/// The timeline to follow, with all it descends from.
pub(super) fn follow<'a>(
    catalogue: &'a Catalogue,
    request: &Request,
    named: Option<&Backup>,
    notes: &mut Vec<String>,
) -> Result<TimelineChain<'a>> {
    let chain = chosen(catalogue, request, named, notes)?;
    if request.timeline.is_none() && request.target != Target::Immediate {
        notes.extend(living_parent(catalogue, &chain));
    }
    Ok(chain)
}

fn chosen<'a>(
    catalogue: &'a Catalogue,
    request: &Request,
    named: Option<&Backup>,
    notes: &mut Vec<String>,
) -> Result<TimelineChain<'a>> {
    match (request.timeline, named) {
        (Some(timeline), _) => {
            if !catalogue.timelines().contains(&timeline) {
                return Err(unknown(catalogue, timeline));
            }
            chain_of(catalogue, timeline)
        }
        (None, Some(backup)) if request.target == Target::Immediate => {
            chain_of(catalogue, backup.stop_timeline)
        }
        (None, Some(backup)) => latest_after(catalogue, backup, notes),
        (None, None) => {
            let latest = catalogue
                .timelines()
                .into_iter()
                .max()
                .unwrap_or(TimelineId::FIRST);
            chain_of(catalogue, latest).map_err(|error| choose(&error, latest))
        }
    }
}

/// The latest timeline that descends from what the backup holds.
fn latest_after<'a>(
    catalogue: &'a Catalogue,
    backup: &Backup,
    notes: &mut Vec<String>,
) -> Result<TimelineChain<'a>> {
    for timeline in catalogue.timelines().into_iter().rev() {
        if timeline < backup.stop_timeline {
            break;
        }
        let chain = chain_of(catalogue, timeline).map_err(|error| choose(&error, timeline))?;
        if chain.can_start_from(backup) {
            return Ok(chain);
        }
        notes.push(format!(
            "timeline {timeline} is newer than the one followed, but does not descend from backup {}",
            backup.id
        ));
    }
    chain_of(catalogue, backup.stop_timeline)
}

/// After a failover the old timeline ends. One that was written to after its child may be the living one, and
/// the child a copy's that was never meant to follow it.
fn living_parent(catalogue: &Catalogue, chain: &TimelineChain<'_>) -> Option<String> {
    let (wal, child) = (&catalogue.wal, chain.timeline());
    let parent = chain.parent_of(child)?;
    let fork = chain.leaves(parent)?;
    let goes_beyond = wal.newest(parent)? > wal.segment_size().segment_of(fork);
    (goes_beyond && wal.newest_stored(parent) > wal.newest_stored(child)).then(|| {
        format!(
            "WAL of timeline {parent} was archived after the newest of timeline {child}, which left it at LSN {fork}: if \
             {parent} is the one that lives, and {child} a copy's, follow it with --target-timeline {parent}"
        )
    })
}

/// A timeline, with all it descends from.
pub(crate) fn chain_of(catalogue: &Catalogue, timeline: TimelineId) -> Result<TimelineChain<'_>> {
    if let Some(reason) = catalogue.unreadable_histories.get(&timeline) {
        return Err(Error::corrupt(format!(
            "the history of timeline {timeline} cannot be read: {reason}"
        )));
    }
    let history = catalogue.histories.get(&timeline).ok_or_else(|| {
        Error::invalid(format!(
            "the history of timeline {timeline} is not in the archive, so where it comes from is unknown; \
             archive it from a server of that timeline with walship push pg_wal/{:08X}.history",
            timeline.get()
        ))
    })?;
    for ancestor in history.ancestors() {
        if let Some(known) = catalogue.histories.get(&ancestor.timeline) {
            history.extends(known)?;
        }
    }
    Ok(TimelineChain::new(history, catalogue.wal.segment_size()))
}

fn choose(error: &Error, latest: TimelineId) -> Error {
    let kind = error.kind();
    Error::new(
        kind,
        format!(
            "{error}. It is the latest timeline; to follow another, give --target-timeline (not {latest})"
        ),
    )
}

fn unknown(catalogue: &Catalogue, timeline: TimelineId) -> Error {
    let known: Vec<_> = catalogue.timelines().iter().map(TimelineId::to_string).collect();
    Error::invalid(format!(
        "timeline {timeline} is not in the archive; it has {}",
        if known.is_empty() {
            "none yet".to_owned()
        } else {
            known.join(", ")
        }
    ))
}
