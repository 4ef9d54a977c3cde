//! How far the archived WAL leads from a backup, and whether the target lies within that.

use super::last_moment::LastMoment;
use super::{Request, Search, Target, alone};
use crate::error::{Error, Result};
use crate::format::wal_inventory::SegmentRange;
use crate::judge::catalogue::{Backup, Catalogue, needed_wal};
use crate::judge::recovery_plan::last_moment;
use crate::judge::timeline_chain::{Gap, Reach, TimelineChain};
use crate::pg::{Lsn, SegmentName, SegmentNumber, TimelineId};

pub(super) struct End {
    pub(super) target: Target,
    pub(super) last_segment: SegmentName,
    pub(super) reached_lsn: Lsn,
    pub(super) gap: Option<SegmentRange>,
    pub(super) notes: Vec<String>,
}

/// Whether the unbroken WAL leads to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    Yes,
    No,
    Unknown,
}

/// Checks the target against the WAL that follows the backup.
pub(super) fn find(
    catalogue: &Catalogue,
    request: &Request,
    chain: &TimelineChain<'_>,
    backup: &Backup,
) -> Result<End> {
    let reach = reach(catalogue, chain, backup)?;
    let last_segment = match reach.last_segment {
        Some(segment) if reach.end_lsn >= backup.stop_lsn => segment,
        _ => return Err(never_consistent(backup, &reach, chain)),
    };
    if let (Target::Time(time), Search::NothingLater(last)) = (&request.target, &request.search) {
        let end = LastMoment::new(catalogue, chain, backup, &reach, last.as_ref())?;
        if end.holds(*time) {
            let notes = vec![LastMoment::note(*time)];
            return Ok(End::new(end.target(backup), backup, last_segment, reach, notes));
        }
        if reach.gap.is_none() && !alone::is_released(catalogue, chain, &reach, backup) {
            return Err(end.refuse(*time, backup, last_segment));
        }
    }
    let reached = reached(request, &reach);
    if reached != Reached::Yes && !request.end_at_gap && alone::is_released(catalogue, chain, &reach, backup)
    {
        return Err(alone::refuse(catalogue, request, chain, backup));
    }
    let (target, notes) = match (&reach.gap, reached) {
        (_, Reached::Yes) => match &request.search {
            Search::Moment { later, last } => last_moment::position(backup, later, *last),
            _ => (
                request.target.clone(),
                in_the_last_segment(catalogue, request, &reach, last_segment),
            ),
        },
        (None, Reached::Unknown) => (request.target.clone(), open_end(request, &reach, last_segment)),
        (None, Reached::No) => return Err(beyond_the_end(request, &reach, last_segment)),
        (Some(gap), _) if gap.barrier.is_some() => return Err(at_a_barrier(request, gap)),
        (Some(gap), _) if !request.end_at_gap => {
            return Err(broken(request, chain, &reach, gap, last_segment));
        }
        (Some(gap), reached) => at_the_gap(request, &reach, gap, reached),
    };
    Ok(End::new(target, backup, last_segment, reach, notes))
}

impl End {
    /// PostgreSQL stops at the first consistent moment only when it reads another record. A standby's backup may end
    /// with the very last one, after a switch of the segment.
    fn new(
        target: Target,
        backup: &Backup,
        last_segment: SegmentName,
        reach: Reach,
        mut notes: Vec<String>,
    ) -> Self {
        let is_last = target == Target::Immediate && reach.end_lsn <= backup.stop_lsn;
        if is_last {
            notes.push(format!(
                "backup {} ends with the last record that can be replayed, {}: recovery ends there by itself, and the server \
                 opens for writing",
                backup.id, reach.end_lsn
            ));
        }
        Self {
            target: if is_last { Target::Latest } else { target },
            last_segment,
            reached_lsn: reach.end_lsn,
            gap: reach.gap.and_then(|gap| gap.lacks()),
            notes,
        }
    }
}

/// How far the archived WAL leads from a backup.
pub(crate) fn reach(catalogue: &Catalogue, chain: &TimelineChain<'_>, backup: &Backup) -> Result<Reach> {
    let timeline = chain.timeline();
    // What is damaged was there once.
    let damaged = catalogue.damage.last(timeline, catalogue.wal.segment_size());
    let known = known_until(catalogue, timeline).max(damaged);
    let sound = catalogue.sound_wal()?;
    let mut reach = chain.reach(&sound, backup.start_lsn, known)?;
    if let Some(gap) = reach.gap.as_mut().filter(|gap| gap.barrier.is_none()) {
        gap.damage = catalogue.damage.of_first(&gap.missing).map(str::to_owned);
    }
    Ok(reach)
}

/// The last segment of a timeline that something else in the archive names: a backup's record, or a timeline that
/// branched off later. It shows that an archive lost the end of its WAL.
pub(crate) fn known_until(catalogue: &Catalogue, timeline: TimelineId) -> Option<SegmentNumber> {
    let size = catalogue.wal.segment_size();
    // If a promotion happened during a backup, it needs the segment of the fork on the new timeline only.
    let needed = |backup: &Backup| {
        let mut ranges = backup.wal_ranges.clone();
        ranges.retain(|range| range.end_lsn > range.start_lsn);
        needed_wal(&ranges, size)
    };
    let backups = catalogue
        .readable()
        .flat_map(needed)
        .filter(|needed| needed.timeline == timeline)
        .filter_map(|needed| needed.end.0.checked_sub(1).map(SegmentNumber));
    // The segment of the fork itself may never have been completed.
    let forks = catalogue
        .histories
        .values()
        .filter_map(|history| history.end_of(timeline))
        .filter_map(|fork| size.segment_of(fork).0.checked_sub(1).map(SegmentNumber));
    backups.chain(forks).max()
}

fn reached(request: &Request, reach: &Reach) -> Reached {
    let certain = |yes| if yes { Reached::Yes } else { Reached::No };
    match (&request.target, &request.search) {
        (Target::Immediate, _) => Reached::Yes,
        (Target::Lsn(lsn), _) => certain(*lsn < reach.end_lsn),
        (Target::Time(_) | Target::Xid(_) | Target::Name(_), Search::Found(record)) => {
            certain(record.end_lsn <= reach.end_lsn)
        }
        (Target::Time(_), Search::Moment { later, .. }) => certain(later.end_lsn <= reach.end_lsn),
        (Target::Xid(_) | Target::Name(_), Search::Absent) | (Target::Time(_), Search::NothingLater(_)) => {
            Reached::No
        }
        (Target::Latest, _) => certain(reach.gap.is_none()),
        (Target::Time(_) | Target::Xid(_) | Target::Name(_), _) => Reached::Unknown,
    }
}

/// PostgreSQL stops at the first record that begins at or after the position. The last segment may have none.
fn in_the_last_segment(
    catalogue: &Catalogue,
    request: &Request,
    reach: &Reach,
    last_segment: SegmentName,
) -> Vec<String> {
    match request.target {
        Target::Lsn(lsn)
            if lsn.0
                >= reach
                    .end_lsn
                    .0
                    .saturating_sub(catalogue.wal.segment_size().bytes()) =>
        {
            vec![format!(
                "{lsn} lies in the last archived segment, {last_segment}. If no record begins there or after it, \
             PostgreSQL says \"recovery ended before configured recovery target was reached\""
            )]
        }
        _ => Vec::new(),
    }
}

/// What the user should know of a target that nobody looked up.
fn open_end(request: &Request, reach: &Reach, last_segment: SegmentName) -> Vec<String> {
    let end = reach.end_lsn;
    let why = match request.target {
        Target::Time(_) => format!(
            "the latest moment that can be reached is not known yet: the archived WAL ends at LSN {end} ({last_segment}), \
             and only replaying it shows whether it holds a commit after the target"
        ),
        _ => format!(
            "nobody looked whether {} follows the end of the backup, in the WAL up to LSN {end}",
            request.target
        ),
    };
    vec![format!(
        "{why}. If not, PostgreSQL says \"recovery ended before configured recovery target was reached\""
    )]
}

/// The user accepts that recovery ends at the gap.
fn at_the_gap(request: &Request, reach: &Reach, gap: &Gap, reached: Reached) -> (Target, Vec<String>) {
    let ends = match &gap.damage {
        Some(_) => format!("recovery ends at LSN {}, where {gap}", reach.end_lsn),
        None => format!(
            "recovery ends at LSN {}, where {} is missing in the archive ({})",
            reach.end_lsn, gap.missing, gap.evidence
        ),
    };
    match (&request.target, reached) {
        (Target::Latest, _) => (Target::Latest, vec![ends]),
        (target, Reached::No) => (Target::Latest, vec![format!("{ends}, before {target}")]),
        (target, _) => {
            let note = format!(
                "{ends}, at the latest. If that is before {target}, PostgreSQL says \"recovery ended before configured \
                 recovery target was reached\": then recover with --end-at-gap and without a target"
            );
            (target.clone(), vec![note])
        }
    }
}

fn beyond_the_end(request: &Request, reach: &Reach, last_segment: SegmentName) -> Error {
    let where_it_is = match &request.target {
        Target::Xid(_) | Target::Name(_) => "is not in",
        _ => "lies beyond",
    };
    Error::invalid(format!(
        "{} {where_it_is} the archived WAL, whose last contiguous position on timeline {} is LSN {}, the end of {last_segment}; \
         if it happened only just now, wait until its segment is archived (SELECT pg_switch_wal())",
        request.target,
        last_segment.timeline(),
        reach.end_lsn
    ))
}

fn at_a_barrier(request: &Request, gap: &Gap) -> Error {
    Error::corrupt(format!(
        "before {} is reached, {} ({}). Choose a target before that position (walship list shows the latest moment), or restore a \
         backup that was taken after it",
        request.target, gap.evidence, gap.missing.first
    ))
}

fn broken(
    request: &Request,
    chain: &TimelineChain<'_>,
    reach: &Reach,
    gap: &Gap,
    last_segment: SegmentName,
) -> Error {
    // If a timeline's first WAL is missing, its parent may have gone on. The nearest parent loses least.
    let missing = gap.missing.first.timeline();
    let other_chain = match chain.parent_of(missing) {
        Some(parent) if missing != last_segment.timeline() => format!(
            ", follow timeline {parent} alone with --target-timeline {parent} (without what happened on timeline {missing})"
        ),
        _ => String::new(),
    };
    let mend = match &gap.damage {
        None => "Find the missing WAL (pg_wal of the old servers) and push it".to_owned(),
        Some(_) => format!(
            "Mend it with walship repair {} (pg_wal of the old servers), run walship verify again if you think it is sound",
            gap.missing.first
        ),
    };
    Error::corrupt(format!(
        "the archived WAL has a gap on the way to {}: {gap}. Without a break it leads to LSN {}, the end of \
         {last_segment}. {mend}, choose a target before the gap{other_chain}, or accept with walship recover --end-at-gap that \
         recovery ends there",
        request.target, reach.end_lsn
    ))
}

fn never_consistent(backup: &Backup, reach: &Reach, chain: &TimelineChain<'_>) -> Error {
    let missing = reach
        .gap
        .as_ref()
        .map_or_else(String::new, |gap| format!(": {gap}"));
    Error::corrupt(format!(
        "along timeline {} backup {} cannot become consistent: its WAL ends at LSN {}, before its end at {}{missing}; \
         archive the missing WAL if a server still has it, or follow another timeline with --target-timeline",
        chain.timeline(),
        backup.id,
        reach.end_lsn,
        backup.stop_lsn
    ))
}
