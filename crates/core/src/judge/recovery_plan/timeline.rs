//! Which timeline to follow, as a number: the one asked for, or the one that lives according to [`judge`]. PostgreSQL's
//! own `latest` (`findNewestTimeLine`, `timeline.c`) takes the one that began last, even if it is a copy's.
//!
//! A missing number ends PostgreSQL's search, but not this one: a lost history file must not make a recovery follow an
//! older timeline silently. For the same reason a timeline that has WAL but no readable history is an error, unless the
//! user says which timeline to follow.

use super::{Request, Target};
use crate::error::{Error, Result};
use crate::judge::branches::{Ambiguity, Judgement, judge};
use crate::judge::catalogue::{Backup, Catalogue};
use crate::judge::timeline_chain::TimelineChain;
use crate::pg::TimelineId;

/// The timeline to follow, with all it descends from.
pub(super) fn follow<'a>(
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
            refuse_retired(catalogue, timeline)?;
            chain_of(catalogue, timeline)
        }
        (None, Some(backup)) if request.target == Target::Immediate => {
            refuse_retired(catalogue, backup.stop_timeline)?;
            chain_of(catalogue, backup.stop_timeline)
        }
        (None, named) => latest(catalogue, request, named, notes),
    }
}

/// Judges between the timelines that descend from what a named backup holds.
pub(super) fn judge_from(catalogue: &Catalogue, named: Option<&Backup>) -> Judgement {
    judge(catalogue, |chain| {
        named.is_none_or(|backup| chain.can_start_from(backup))
    })
}

/// The timeline that lives; with a named backup, the one that lives among those that descend from it.
fn latest<'a>(
    catalogue: &'a Catalogue,
    request: &Request,
    named: Option<&Backup>,
    notes: &mut Vec<String>,
) -> Result<TimelineChain<'a>> {
    let judgement = judge_from(catalogue, named);
    can_be_followed(catalogue, oldest_of(&judgement))?;
    let followed = match &judgement.followed {
        Ok(followed) => *followed,
        Err(ambiguity) => before_they_parted(catalogue, request, ambiguity)?,
    };
    refuse_retired(catalogue, followed)?;
    let chain = chain_of(catalogue, followed).map_err(|error| choose(&error, followed))?;
    if let Some(backup) = named {
        if !chain.can_start_from(backup) {
            refuse_retired(catalogue, backup.stop_timeline)?;
            return chain_of(catalogue, backup.stop_timeline);
        }
        notes.extend(others(catalogue, backup, followed));
    }
    if request.target != Target::Immediate && judgement.followed.is_ok() {
        notes.extend(not_followed(catalogue, &judgement, &chain));
    }
    Ok(chain)
}

/// The timeline that a recovery without a named one follows; the ambiguity if only a person can choose.
///
/// # Errors
/// `Corrupt`, `Invalid` or `Conflict` if a history that matters is damaged or missing or disagrees with another;
/// `Invalid` if the timeline is retired.
pub fn followed(catalogue: &Catalogue) -> Result<std::result::Result<TimelineId, Ambiguity>> {
    let judgement = judge(catalogue, |_| true);
    can_be_followed(catalogue, oldest_of(&judgement))?;
    if let Ok(followed) = judgement.followed {
        refuse_retired(catalogue, followed)?;
    }
    Ok(judgement.followed)
}

fn oldest_of(judgement: &Judgement) -> TimelineId {
    match &judgement.followed {
        Ok(followed) => *followed,
        Err(ambiguity) => ambiguity
            .contenders
            .first()
            .map_or(TimelineId::FIRST, |oldest| oldest.timeline),
    }
}

/// Checks every timeline from this one on that has WAL or a history: the history must be known and agree with the
/// others.
fn can_be_followed(catalogue: &Catalogue, oldest: TimelineId) -> Result<()> {
    let later = catalogue
        .timelines()
        .into_iter()
        .rev()
        .filter(|timeline| *timeline >= oldest);
    for timeline in later.filter(|timeline| !catalogue.retired.contains_key(timeline)) {
        if catalogue.wal.newest(timeline).is_some()
            || catalogue.histories.contains_key(&timeline)
            || catalogue.unreadable_histories.contains_key(&timeline)
        {
            chain_of(catalogue, timeline).map_err(|error| choose(&error, timeline))?;
        }
    }
    Ok(())
}

/// The oldest contender, if the target lies in the past that all of them share; otherwise only a person can choose.
fn before_they_parted(catalogue: &Catalogue, request: &Request, ambiguity: &Ambiguity) -> Result<TimelineId> {
    let lies_before = match request.target {
        Target::Lsn(lsn) => lsn < ambiguity.parted.lsn,
        Target::Immediate => same_newest_backup(catalogue, ambiguity),
        _ => false,
    };
    let oldest = ambiguity.contenders.first().filter(|_| lies_before);
    oldest
        .map(|oldest| oldest.timeline)
        .ok_or_else(|| ambiguous(ambiguity))
}

/// Whether all contenders have the same newest backup.
fn same_newest_backup(catalogue: &Catalogue, ambiguity: &Ambiguity) -> bool {
    let newest = ambiguity.contenders.iter().map(|contender| {
        let chain = chain_of(catalogue, contender.timeline).ok()?;
        let backups = catalogue
            .backups
            .iter()
            .filter(|backup| chain.can_start_from(backup));
        backups
            .max_by_key(|backup| (backup.stop_lsn, backup.finished_at))
            .map(|backup| &backup.id)
    });
    let mut newest = newest.collect::<Vec<_>>();
    newest.dedup();
    newest.len() == 1
}

/// Why only a person can choose.
#[must_use]
pub fn ambiguous(ambiguity: &Ambiguity) -> Error {
    let timelines: Vec<_> = ambiguity
        .contenders
        .iter()
        .map(|contender| format!("--target-timeline {}", contender.timeline))
        .collect();
    Error::conflict(format!(
        "{ambiguity}. Only you can know which of them is the cluster's own: give {}; and retire a copy's timeline for good \
         (walship timeline retire N --reason \"…\")",
        timelines.join(" or ")
    ))
}

/// Notes on the timelines that are not followed.
fn not_followed(catalogue: &Catalogue, judgement: &Judgement, chain: &TimelineChain<'_>) -> Vec<String> {
    let begun = judgement
        .begun
        .iter()
        .filter(|begun| !chain.descends_from(begun.timeline))
        .map(|begun| {
            format!(
                "{begun}: what happened on it is not recovered; timeline {} is followed",
                chain.timeline()
            )
        });
    let tails = judgement
        .tails
        .iter()
        .filter(|tail| tail.left_by == chain.timeline())
        .map(|tail| {
            format!(
                "{tail}; to recover them instead, give --target-timeline {}",
                tail.timeline
            )
        });
    let retired = catalogue
        .retired
        .iter()
        .filter(|(timeline, _)| **timeline > chain.timeline());
    let retired =
        retired.map(|(timeline, mark)| format!("timeline {timeline} is not followed: it was {mark}"));
    begun.chain(tails).chain(retired).collect()
}

/// Later timelines that do not descend from a backup.
fn others(catalogue: &Catalogue, backup: &Backup, followed: TimelineId) -> Vec<String> {
    let later = catalogue
        .histories
        .keys()
        .rev()
        .take_while(|timeline| **timeline > followed);
    let later = later.filter(|timeline| !catalogue.retired.contains_key(timeline));
    let strangers = later
        .filter(|timeline| chain_of(catalogue, **timeline).is_ok_and(|chain| !chain.can_start_from(backup)));
    let note = |timeline: &TimelineId| {
        format!(
            "timeline {timeline} is newer than the one followed, but does not descend from backup {}",
            backup.id
        )
    };
    strangers.map(note).collect()
}

fn refuse_retired(catalogue: &Catalogue, timeline: TimelineId) -> Result<()> {
    match catalogue.retired.get(&timeline) {
        None => Ok(()),
        Some(mark) => Err(Error::invalid(format!(
            "timeline {timeline} was {mark}; to follow it all the same, first remove the mark: walship timeline reinstate \
             {timeline}"
        ))),
    }
}

/// A timeline, with all it descends from.
pub fn chain_of(catalogue: &Catalogue, timeline: TimelineId) -> Result<TimelineChain<'_>> {
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
            "{error}. It is the latest timeline; to follow another, give --target-timeline (not {latest}); if no server needs it, \
             retire it: walship timeline retire {latest} --reason \"…\""
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
