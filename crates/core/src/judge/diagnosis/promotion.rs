//! Whether a standby may be promoted: not while the archive cannot be asked, and not while it holds
//! WAL that this standby has not replayed.
//!
//! During a promotion PostgreSQL takes every failure of `restore_command` on a standby for the end of
//! the WAL, so an outage in that moment would end it early, and could give the new timeline a number
//! that is taken.

use std::collections::BTreeMap;

use super::{Check, Fact, Finding, Findings};
use crate::format::wal_inventory::WalInventory;
use crate::pg::{ClusterIdentity, Lsn, SegmentName, TimelineHistory, TimelineId};

/// Where a standby is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyPosition {
    /// Whether it is a standby at all.
    pub in_recovery: bool,
    /// Whose standby it is.
    pub cluster: ClusterIdentity,
    /// The timeline it replays.
    pub timeline: TimelineId,
    /// Up to where it has the WAL: replayed, or received by streaming, which a promotion replays too.
    pub lsn: Lsn,
}

/// What the archive has beyond a standby's position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreplayed {
    /// Nothing.
    Nothing,
    /// Only the position's own segment is there: its records must be read to know whether all of them were replayed.
    LookInto(SegmentName),
    /// Whole segments, without a break up to this one.
    Until(SegmentName),
    /// Segments from `later` on, after one that is missing.
    AfterGap {
        /// What is missing.
        missing: SegmentName,
        /// What is there.
        later: SegmentName,
    },
    /// Another server began a timeline of its own, at this position or later.
    Child {
        /// That timeline.
        timeline: TimelineId,
        /// Where it left this standby's.
        fork: Lsn,
    },
}

/// What is known when the promotion is judged.
#[derive(Debug)]
pub struct PromotionFacts {
    /// The standby, or why it cannot be asked.
    pub standby: Fact<StandbyPosition>,
    /// What the archive, which is this cluster's, has beyond the standby's position, or why that is
    /// not known. Not `LookInto`.
    pub unreplayed: Fact<Unreplayed>,
}

/// What the archive has beyond a position: `wal` from the position's segment on, and the histories of
/// other timelines.
///
/// # Errors
/// `Invalid` for a position beyond the last segment.
pub fn unreplayed(
    position: &StandbyPosition,
    wal: &WalInventory,
    histories: &BTreeMap<TimelineId, TimelineHistory>,
) -> crate::Result<Unreplayed> {
    let StandbyPosition { timeline, lsn, .. } = *position;
    for (child, history) in histories {
        // A timeline that left before this position is a branch that this standby does not follow.
        if let Some(fork) = history.end_of(timeline).filter(|fork| *fork >= lsn) {
            return Ok(Unreplayed::Child {
                timeline: *child,
                fork,
            });
        }
    }
    let size = wal.segment_size();
    let current = size.segment_of(lsn);
    let name = |number| SegmentName::new(timeline, number, size);
    match wal.contiguous_from(timeline, current) {
        Some(last) if last == current && lsn > size.start_of(current) => {
            Ok(Unreplayed::LookInto(name(last)?))
        }
        Some(last) => Ok(Unreplayed::Until(name(last)?)),
        None => match wal.first_from(timeline, current) {
            None => Ok(Unreplayed::Nothing),
            Some(later) => Ok(Unreplayed::AfterGap {
                missing: name(current)?,
                later: name(later)?,
            }),
        },
    }
}

/// Says whether the standby may be promoted: it may if no finding is a problem.
#[must_use]
pub fn judge_promotion(facts: &PromotionFacts) -> Vec<Finding> {
    let mut findings = Findings::default();
    match &facts.standby {
        Err(why) => findings.problem(
            Check::PromoteStandby,
            why,
            "run it on the standby, with its local connection: walship doctor --before-promote -d host=/var/run/postgresql",
        ),
        Ok(standby) if !standby.in_recovery => findings.problem(
            Check::PromoteStandby,
            "this server is not a standby: there is nothing to promote",
            "connect to the standby (-d)",
        ),
        Ok(standby) => {
            let message = format!("timeline {}, WAL up to {}", standby.timeline, standby.lsn);
            findings.ok(Check::PromoteStandby, message);
        }
    }
    match &facts.unreplayed {
        Err(why) => findings.problem(
            Check::PromoteArchive,
            why,
            "bring the store back, then promote; to promote without the archive, and lose what only it has, skip this \
             check",
        ),
        Ok(unreplayed) => {
            findings.ok(Check::PromoteArchive, "reachable");
            replayed(*unreplayed, &mut findings);
        }
    }
    findings.0
}

fn replayed(unreplayed: Unreplayed, findings: &mut Findings) {
    let check = Check::PromoteReplayed;
    let wait = "wait: the standby asks for it every few seconds (see its log); then promote";
    match unreplayed {
        Unreplayed::Nothing => findings.ok(check, "the archive has nothing that this standby lacks"),
        Unreplayed::LookInto(segment) => {
            findings.problem(check, format!("{segment} was not read"), "run it again");
        }
        Unreplayed::Until(last) => findings.problem(
            check,
            format!("the archive has WAL up to the end of {last} that this standby has not replayed"),
            wait,
        ),
        Unreplayed::AfterGap { missing, later } => findings.problem(
            check,
            format!("the archive has {later}, which this standby has not replayed, but not {missing} before it"),
            format!(
                "if pg_wal of the old primary has it, run walship push pg_wal/{missing} in its data directory (push --unfinished if \
                 that was its last one); otherwise what comes after it is lost"
            ),
        ),
        Unreplayed::Child { timeline, fork } => findings.problem(
            check,
            format!("another server went on from LSN {fork} on timeline {timeline}, which this standby has not followed"),
            "let it follow (recovery_target_timeline = 'latest'). If that timeline was retired, let this standby replay beyond that \
             LSN first, or its promotion may take the same number. A promotion now begins a second branch",
        ),
    }
}
