//! Which backup to restore and which timeline to follow for a recovery target, decided before a byte
//! is written. What cannot be reached is refused here, with what can be reached instead.

use std::fmt;

use chrono::{DateTime, Utc};

use super::catalogue::{Backup, Catalogue};
use super::keys::BackupId;
use super::wal_inventory::SegmentRange;
use crate::error::{Error, Result};
use crate::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, WalName};

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

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the end of the archived WAL"),
            Self::Immediate => f.write_str("the end of the backup"),
            Self::Time(time) => f.write_str(&text_of(*time)),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point \"{}\"", name.escape_debug()),
        }
    }
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
    /// What a search of the archived WAL for the target's record said.
    pub search: Search,
}

/// What is known of the record that ends the recovery: a transaction's end, a restore point, or the
/// first record later than a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// Nobody looked for it.
    NotMade,
    /// It is there.
    Found(FoundRecord),
    /// It is not in the unbroken WAL that can be replayed.
    Absent,
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
    /// Where recovery stops, for `recovery_target_*`. `Latest` where the requested one lies beyond a
    /// gap at which recovery may end.
    pub target: Target,
    /// The last segment of the unbroken WAL from the backup on.
    pub last_segment: SegmentName,
    /// The position after that segment: what can be replayed ends there at the latest.
    pub end_lsn: Lsn,
    /// The WAL that is missing after `last_segment`, where more follows: recovery ends there and
    /// `restore` must be told so, for it takes a hole for an error.
    pub gap: Option<SegmentRange>,
    /// Why this backup, in one sentence.
    pub reason: String,
    /// What else the user should know.
    pub notes: Vec<String>,
}

/// Decides how to reach a target.
///
/// # Errors
/// `Invalid` for a target that cannot be reached, `NotFound` for a backup the archive lacks, `Corrupt`
/// where WAL or a record that is needed is missing or damaged.
pub fn plan(catalogue: &Catalogue, request: &Request, now: DateTime<Utc>) -> Result<Plan> {
    if let Target::Time(time) = request.target
        && time > now
    {
        return Err(Error::invalid(format!(
            "the target {} is in the future; it is {} now",
            text_of(time),
            text_of(now)
        )));
    }
    let path = Path::choose(catalogue, request)?;
    let (backup, reason) = choose_backup(catalogue, request, &path)?;
    let reach = path.reach(catalogue, backup)?;
    let mut plan = Plan {
        backup: backup.clone(),
        timeline: path.timeline(),
        target: request.target.clone(),
        last_segment: reach.last,
        end_lsn: reach.end_lsn,
        gap: None,
        reason,
        notes: notes_on_the_rest(catalogue),
    };
    check_reach(&mut plan, &reach, catalogue, request, &path)?;
    Ok(plan)
}

/// A timeline and everything it came from.
struct Path {
    history: TimelineHistory,
}

impl Path {
    /// The requested timeline, else the latest that there is or that the requested backup leads to.
    fn choose(catalogue: &Catalogue, request: &Request) -> Result<Self> {
        let known = catalogue.timelines();
        if let Some(timeline) = request.timeline {
            if !known.contains(&timeline) {
                let known: Vec<_> = known.iter().map(ToString::to_string).collect();
                return Err(Error::invalid(format!(
                    "the archive has no timeline {timeline}; it has: {}",
                    known.join(", ")
                )));
            }
            return Self::of(catalogue, timeline);
        }
        let named = request
            .backup
            .as_ref()
            .and_then(|id| catalogue.backups.iter().find(|backup| backup.id == *id));
        let mut latest_first = known.iter().rev();
        match (named, latest_first.next()) {
            (_, None) => Err(Error::invalid(
                "the archive holds no WAL; nothing can be recovered from it",
            )),
            (None, Some(latest)) => Self::of(catalogue, *latest),
            (Some(backup), Some(latest)) => {
                let paths = std::iter::once(latest)
                    .chain(latest_first)
                    .map(|timeline| Self::of(catalogue, *timeline));
                let leads_there = |path: &Result<Self>| path.as_ref().is_ok_and(|path| path.holds(backup));
                paths
                    .into_iter()
                    .find(leads_there)
                    .unwrap_or_else(|| Self::of(catalogue, backup.stop_timeline))
            }
        }
    }

    fn of(catalogue: &Catalogue, timeline: TimelineId) -> Result<Self> {
        if timeline == TimelineId::FIRST {
            return Ok(Self {
                history: TimelineHistory::root(timeline),
            });
        }
        if let Some(history) = catalogue.histories.get(&timeline) {
            return Ok(Self {
                history: history.clone(),
            });
        }
        let why = catalogue
            .unreadable_histories
            .get(&timeline)
            .map_or("is missing in the archive", String::as_str);
        Err(Error::corrupt(format!(
            "the history of timeline {timeline} {why}, so what led to it cannot be known; \
             put {} back (a server that was on that timeline has it in pg_wal), or choose another --target-timeline",
            WalName::History(timeline)
        )))
    }

    fn timeline(&self) -> TimelineId {
        self.history.timeline()
    }

    /// Whether a position of a timeline lies on the way here.
    fn passes(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        timeline == self.timeline() || self.history.end_of(timeline).is_some_and(|end| lsn <= end)
    }

    /// Whether a backup became consistent on the way here.
    fn holds(&self, backup: &Backup) -> bool {
        self.passes(backup.stop_timeline, backup.stop_lsn)
    }

    /// How far the archived WAL leads without a break from a backup on.
    fn reach(&self, catalogue: &Catalogue, backup: &Backup) -> Result<Reach> {
        let wal = &catalogue.wal;
        let size = wal.segment_size();
        let mut next = size.segment_of(backup.start_lsn);
        let mut timelines = self
            .history
            .ancestors()
            .iter()
            .map(|ancestor| (ancestor.timeline, Some(ancestor.end)));
        let mut stages: Vec<_> = timelines.by_ref().collect();
        stages.push((self.timeline(), None));
        let mut last = None;
        for (timeline, end) in stages
            .into_iter()
            .skip_while(|(timeline, _)| *timeline != backup.start_timeline)
        {
            // The segment in which a timeline ends counts in the child's version.
            let end = end.map(|end| size.segment_of(end));
            if end.is_some_and(|end| next >= end) {
                continue;
            }
            let held = wal.contiguous_from(timeline, next);
            if let Some(held) = held {
                last = Some((
                    timeline,
                    end.map_or(held, |end| held.min(SegmentNumber(end.0 - 1))),
                ));
                next = held.next();
            }
            match end {
                Some(end) if held.is_some() && next >= end => next = end,
                Some(end) => {
                    let until = wal.first_from(timeline, next).unwrap_or(end).min(end);
                    return Reach::new(last, Some((timeline, next, until)), size);
                }
                None => {
                    let later = wal.first_from(timeline, next);
                    // A timeline that has a history and no first segment has begun elsewhere.
                    let hole = later.or((held.is_none()).then(|| next.next()));
                    return Reach::new(last, hole.map(|until| (timeline, next, until)), size);
                }
            }
        }
        Reach::new(last, None, size)
    }
}

/// How far the archived WAL leads without a break.
struct Reach {
    last: SegmentName,
    end_lsn: Lsn,
    gap: Option<SegmentRange>,
}

impl Reach {
    /// `gap` is a timeline, the first missing segment, and the first one after it that is there.
    fn new(
        last: Option<(TimelineId, SegmentNumber)>,
        gap: Option<(TimelineId, SegmentNumber, SegmentNumber)>,
        size: SegmentSize,
    ) -> Result<Self> {
        let (timeline, number) =
            last.ok_or_else(|| Error::corrupt("the archive lacks the first WAL segment the backup needs"))?;
        let gap = gap
            .map(|(timeline, first, until)| {
                SegmentRange::new(
                    timeline,
                    first,
                    SegmentNumber(until.0.saturating_sub(1).max(first.0)),
                    size,
                )
            })
            .transpose()?;
        Ok(Self {
            last: SegmentName::new(timeline, number, size)?,
            end_lsn: size.start_of(number.next()),
            gap,
        })
    }
}

/// The newest backup that surely precedes the target, or the requested one if it does.
fn choose_backup<'a>(
    catalogue: &'a Catalogue,
    request: &Request,
    path: &Path,
) -> Result<(&'a Backup, String)> {
    let precedes = |backup: &Backup| precedes(backup, request, path);
    if let Some(id) = &request.backup {
        let backup = requested(catalogue, id)?;
        if !path.holds(backup) {
            return Err(Error::invalid(format!(
                "backup {id} ended on timeline {} at {}, which timeline {} does not come from; \
                 choose another backup or --target-timeline",
                backup.stop_timeline,
                backup.stop_lsn,
                path.timeline()
            )));
        }
        if !precedes(backup)? {
            return Err(too_early(request, std::iter::once(backup)));
        }
        return Ok((backup, "asked for".to_owned()));
    }
    let mut newest: Option<&Backup> = None;
    for backup in catalogue.backups.iter().filter(|backup| path.holds(backup)) {
        if precedes(backup)? && newest.is_none_or(|newest| newest.stop_lsn <= backup.stop_lsn) {
            newest = Some(backup);
        }
    }
    let before = match request.target {
        Target::Latest | Target::Immediate => "the newest backup",
        _ => "the newest backup that ended before the target",
    };
    match newest {
        Some(backup) => Ok((
            backup,
            format!("{before} on the way to timeline {}", path.timeline()),
        )),
        None => Err(no_backup(catalogue, request, path)),
    }
}

fn precedes(backup: &Backup, request: &Request, path: &Path) -> Result<bool> {
    Ok(match (&request.target, request.search) {
        (Target::Latest | Target::Immediate, _) => true,
        (Target::Time(time), _) => backup.finished_at <= *time,
        (Target::Lsn(lsn), _) => backup.stop_lsn <= *lsn,
        (Target::Xid(_) | Target::Name(_), Search::Found(record)) => {
            path.passes(record.timeline, record.lsn) && backup.stop_lsn <= record.lsn
        }
        (target @ (Target::Xid(_) | Target::Name(_)), Search::Absent) => {
            return Err(Error::invalid(format!(
                "{target} is not in the archived WAL that can be replayed to timeline {}; \
                 if it happened only just now, wait until its segment is archived (SELECT pg_switch_wal())",
                path.timeline()
            )));
        }
        // Without a search nothing is certain; the user has chosen the backup.
        (Target::Xid(_) | Target::Name(_), Search::NotMade) => request.backup.is_some(),
    })
}

fn requested<'a>(catalogue: &'a Catalogue, id: &BackupId) -> Result<&'a Backup> {
    if let Some(backup) = catalogue.backups.iter().find(|backup| backup.id == *id) {
        return Ok(backup);
    }
    if let Some(entry) = catalogue.unrestorable.iter().find(|entry| entry.id == *id) {
        return Err(Error::corrupt(format!(
            "backup {id} cannot be restored: {}",
            entry.reason
        )));
    }
    if catalogue.unfinished.iter().any(|entry| entry.id == *id) {
        return Err(Error::unfinished(format!(
            "backup {id} is not finished; if it waits for WAL, `walship basebackup --finish {id}` completes it"
        )));
    }
    let known: Vec<_> = catalogue
        .backups
        .iter()
        .map(|backup| backup.id.to_string())
        .collect();
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    Err(Error::not_found(format!(
        "the archive has no backup {id}; it has: {known}"
    )))
}

fn no_backup(catalogue: &Catalogue, request: &Request, path: &Path) -> Error {
    let mut on_path = catalogue
        .backups
        .iter()
        .filter(|backup| path.holds(backup))
        .peekable();
    if on_path.peek().is_some() {
        return too_early(request, on_path);
    }
    let elsewhere = if catalogue.backups.is_empty() && catalogue.unrestorable.is_empty() {
        "take one with `walship basebackup`".to_owned()
    } else {
        let ids = catalogue
            .readable()
            .map(|backup| format!("{} (timeline {})", backup.id, backup.stop_timeline));
        format!(
            "there are: {}; see `walship list`",
            ids.collect::<Vec<_>>().join(", ")
        )
    };
    Error::invalid(format!(
        "the archive has no restorable backup on the way to timeline {}; {elsewhere}",
        path.timeline()
    ))
}

/// The target lies before the end of every one of these backups.
fn too_early<'a>(request: &Request, backups: impl Iterator<Item = &'a Backup>) -> Error {
    let Some(first) = backups.min_by_key(|backup| backup.stop_lsn) else {
        return Error::invalid("the archive has no backup");
    };
    Error::invalid(format!(
        "{} lies before the end of backup {}, the first that could lead there: \
         the earliest it can reach is {}, at {}",
        request.target,
        first.id,
        text_of(first.finished_at),
        first.stop_lsn
    ))
}

/// Whether the unbroken WAL leads to the target, as far as can be known without reading it.
fn check_reach(
    plan: &mut Plan,
    reach: &Reach,
    catalogue: &Catalogue,
    request: &Request,
    path: &Path,
) -> Result<()> {
    let certain = match (&request.target, request.search) {
        (Target::Immediate, _) => Some(true),
        (Target::Latest, _) => Some(reach.gap.is_none()),
        // Recovery stops at the first record at or after the position, so there must be one.
        (Target::Lsn(lsn), _) => Some(*lsn < reach.end_lsn),
        (Target::Xid(_) | Target::Name(_), Search::Found(record)) => Some(record.end_lsn <= reach.end_lsn),
        (Target::Xid(_) | Target::Name(_), _) => None,
        // All that was committed before a later backup's end lies before that end.
        (Target::Time(time), _) => catalogue
            .readable()
            .any(|later| path.holds(later) && later.stop_lsn <= reach.end_lsn && later.finished_at >= *time)
            .then_some(true),
    };
    if certain == Some(true) {
        return Ok(());
    }
    if let Some(gap) = reach.gap {
        if !request.end_at_gap {
            return Err(hole(gap, reach, &request.target));
        }
        plan.gap = Some(gap);
        plan.notes.push(format!(
            "recovery ends where WAL is missing: {gap}; the last position before is {}",
            reach.end_lsn
        ));
        if certain == Some(false) {
            plan.target = Target::Latest;
        }
    } else if certain == Some(false) {
        return Err(Error::invalid(format!(
            "{} lies beyond the archived WAL of timeline {}, which ends at {} with {}; \
             if it happened only just now, wait until its segment is archived (SELECT pg_switch_wal())",
            request.target,
            path.timeline(),
            reach.end_lsn,
            reach.last
        )));
    }
    if certain.is_none() {
        plan.notes.push(format!(
            "whether the archived WAL, which ends at {}, reaches {} is known only when it is replayed: \
             if PostgreSQL says \"recovery ended before configured recovery target was reached\", \
             the last commit in the archive is older",
            reach.end_lsn, request.target
        ));
    }
    Ok(())
}

fn hole(gap: SegmentRange, reach: &Reach, target: &Target) -> Error {
    let (missing, held) = (gap.first.timeline(), reach.last.timeline());
    let other_timeline = if missing == held {
        String::new()
    } else {
        format!(
            " (timeline {missing} has a history and not its first segment: --target-timeline {held} does without it)"
        )
    };
    Error::corrupt(format!(
        "the archived WAL has a hole before {target} could be reached: {gap} is missing{other_timeline}. \
         Without a break it leads to {}, the end of {}. Find the missing WAL (pg_wal of the old servers) and push it, \
         choose a target before the hole, or accept with --end-at-gap that recovery ends there",
        reach.end_lsn, reach.last
    ))
}

fn notes_on_the_rest(catalogue: &Catalogue) -> Vec<String> {
    let unrestorable = catalogue.unrestorable.iter();
    unrestorable
        .map(|entry| format!("backup {} was passed over: {}", entry.id, entry.reason))
        .collect()
}

fn text_of(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S%.f UTC").to_string()
}
