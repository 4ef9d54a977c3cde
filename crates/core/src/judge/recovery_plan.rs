//! Which backup to restore and which timeline to follow for a recovery target, decided before a byte is written. A
//! target that cannot be reached is refused here, and the message says what can be reached.

mod alone;
mod base;
mod common_past;
mod end;
mod last_moment;
#[cfg(test)]
pub(super) mod tests;
mod timeline;

use std::fmt;

use chrono::{DateTime, Utc};

pub(crate) use self::alone::is_released;
pub use self::common_past::{CommonPast, common_past};
pub(crate) use self::end::reach;
pub use self::timeline::{ambiguous, chain_of};
use super::catalogue::{Backup, Catalogue};
use super::demands::Demands;
use super::timeline_chain::{Reach, TimelineChain};
use super::window::LastEnds;
use crate::error::{Error, Result};
use crate::format::keys::BackupId;
use crate::format::proof::TO_THE_END;
use crate::format::wal_inventory::SegmentRange;
use crate::pg::{Lsn, NewTablespace, SegmentName, TimelineId};
use crate::text::time_text;

pub(crate) use self::end::known_until;
pub use self::timeline::followed;

/// Where recovery stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The end of the archived WAL.
    Latest,
    /// A moment: after the last commit that is not later.
    Time(DateTime<Utc>),
    /// A position.
    Lsn(Lsn),
    /// The commit or abort of a transaction.
    Xid(u32),
    /// A restore point.
    Name(String),
    /// The first consistent moment: the end of the backup.
    Immediate,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where recovery stops.
    pub target: Target,
    /// Whether the target itself is still replayed, as `recovery_target_inclusive` has it.
    pub inclusive: bool,
    /// The timeline to follow. `None`: the latest.
    pub timeline: Option<TimelineId>,
    /// The backup to start from. `None`: the newest one that fits.
    pub backup: Option<BackupId>,
    /// Accept that recovery ends where WAL is missing.
    pub end_at_gap: bool,
    /// What a search of the archived WAL for the target's record found.
    pub search: Search,
}

/// What is known of the record that ends the recovery: a transaction's end, a restore point, or the
/// first record later than a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// Nobody looked for it.
    NotMade,
    /// The archived WAL has it.
    Found(FoundRecord),
    /// The first end of a transaction that is later than the moment, and the last record before it that is not later:
    /// the end or the preparation of a transaction, or a restore point.
    Moment {
        /// The later one.
        later: FoundRecord,
        /// The position of the last one that is not later; `None` if there is none.
        last: Option<Lsn>,
    },
    /// It is not in the unbroken WAL that can be replayed.
    Absent,
    /// Nothing in the unbroken WAL that can be replayed is later than the moment. These ends of transactions come last
    /// in it; `None` if no transaction ended after the backup.
    NothingLater(Option<LastEnds>),
}

/// A record of the archived WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRecord {
    /// The timeline whose segment holds it.
    pub timeline: TimelineId,
    /// Position of its first byte.
    pub lsn: Lsn,
    /// Position after its last byte.
    pub end_lsn: Lsn,
    /// When it was written, by the server's clock.
    pub time: DateTime<Utc>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The backup to restore.
    pub backup: Backup,
    /// The timeline to follow, for `recovery_target_timeline`.
    pub timeline: TimelineId,
    /// Where recovery stops, for `recovery_target_*`. `Latest` if the requested target lies beyond a gap at which
    /// recovery may end; a position if it is the very last moment of the archive.
    pub target: Target,
    /// Whether the target itself is still replayed: as requested, but always if walship chose the target.
    pub inclusive: bool,
    /// The last segment of the unbroken WAL from the backup on.
    pub last_segment: SegmentName,
    /// The position after that segment: replay ends there at the latest.
    pub end_lsn: Lsn,
    /// The WAL that is missing after `last_segment` although there was more: recovery ends there, or before. `restore`
    /// must know it, because PostgreSQL may read ahead of its target, and `restore` otherwise takes a gap for an error.
    pub gap: Option<SegmentRange>,
    /// Why this backup, in one sentence.
    pub reason: String,
    /// What else the user should know.
    pub notes: Vec<String>,
    /// The settings that the replayed WAL demands; empty if nobody looked for them.
    pub demands: Demands,
    /// The tablespaces that replay makes outside the data directory; empty if nobody looked for them.
    pub new_tablespaces: Vec<NewTablespace>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str(TO_THE_END),
            Self::Time(time) => write!(f, "time {}", time_text(*time)),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point \"{}\"", name.escape_debug()),
            Self::Immediate => f.write_str("the first consistent moment"),
        }
    }
}

impl Request {
    /// A recovery to this target, with every default.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            inclusive: true,
            timeline: None,
            backup: None,
            end_at_gap: false,
            search: Search::NotMade,
        }
    }
}

/// Decides how to reach a target.
///
/// # Errors
/// `Invalid` for a target that cannot be reached, `NotFound` for a backup the archive lacks,
/// `Conflict` for histories that disagree, `Unfinished` for a backup whose WAL has not arrived, `Corrupt` if WAL or a
/// record that is needed is missing or damaged.
pub fn plan(catalogue: &Catalogue, request: &Request, now: DateTime<Utc>) -> Result<Plan> {
    let (request, alone) = &alone::at_its_end(catalogue, request);
    let Start {
        backup,
        chain,
        mut notes,
    } = start(catalogue, request, now)?;
    let end = end::find(catalogue, request, &chain, backup)?;
    notes.extend(alone.clone());
    notes.extend(end.notes);
    Ok(Plan {
        timeline: chain.timeline(),
        inclusive: request.inclusive || end.target != request.target,
        target: end.target,
        last_segment: end.last_segment,
        end_lsn: end.reached_lsn,
        gap: end.gap,
        reason: base::reason(backup, request),
        notes,
        backup: backup.clone(),
        demands: Demands::default(),
        new_tablespaces: Vec::new(),
    })
}

/// Where a recovery starts, and which timelines it follows.
#[derive(Debug)]
pub struct Start<'a> {
    /// The backup.
    pub backup: &'a Backup,
    /// The timelines.
    pub chain: TimelineChain<'a>,
    notes: Vec<String>,
}

impl Start<'_> {
    /// How far the archived WAL leads from a backup along this recovery's timelines.
    ///
    /// # Errors
    /// `Invalid` for positions that no segment has.
    pub fn reach(&self, catalogue: &Catalogue, backup: &Backup) -> Result<Reach> {
        end::reach(catalogue, &self.chain, backup)
    }
}

/// The part of [`plan`] that does not look at the WAL: which backup, which timeline.
///
/// # Errors
/// As [`plan`].
pub fn start<'a>(catalogue: &'a Catalogue, request: &Request, now: DateTime<Utc>) -> Result<Start<'a>> {
    let (request, alone) = &alone::at_its_end(catalogue, request);
    refuse_future(request, now)?;
    let named = base::named(catalogue, request)?;
    if named.is_none() && catalogue.backups.is_empty() {
        return Err(base::no_backup(catalogue));
    }
    let mut notes: Vec<_> = alone.clone().into_iter().collect();
    let chain = timeline::follow(catalogue, request, named, &mut notes)?;
    let backup = match named {
        Some(backup) => base::check(backup, catalogue, request, &chain)?,
        None => base::newest(catalogue, request, &chain, &mut notes)?,
    };
    let chain = match (&request.target, request.timeline) {
        // Nothing after the backup's end is replayed, so no later timeline is needed.
        (Target::Immediate, None) => timeline::chain_of(catalogue, backup.stop_timeline)?,
        _ => chain,
    };
    Ok(Start { backup, chain, notes })
}

fn refuse_future(request: &Request, now: DateTime<Utc>) -> Result<()> {
    match request.target {
        Target::Time(time) if time > now => Err(Error::invalid(format!(
            "target time {} lies in the future, now it is {}; check the time and its zone",
            time_text(time),
            time_text(now)
        ))),
        _ => Ok(()),
    }
}
