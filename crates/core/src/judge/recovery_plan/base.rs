//! Which backup to start from: the newest one that surely ended before the target.

use chrono::{DateTime, Utc};

use super::{Request, Search, Target};
use crate::error::{Error, Result};
use crate::judge::catalogue::{Backup, Catalogue, Unfinished, UnfinishedState};
use crate::judge::timeline_chain::TimelineChain;
use crate::pg::Lsn;
use crate::text::time_text;

/// At most this many ids are listed if a wrong one was given.
const IDS_SHOWN: usize = 10;

/// By when a backup must have ended. Its end is the first moment at which it is consistent, so no earlier target can be
/// reached from it.
enum Limit {
    /// The target comes after every backup, or nobody knows where it is.
    None,
    /// The backup must have finished by then; `inclusive` as in the request.
    Finished { by: DateTime<Utc>, inclusive: bool },
    /// The backup must end at or before this position.
    Stopped(Lsn),
}

impl Limit {
    fn of(request: &Request) -> Self {
        match (&request.target, &request.search) {
            (Target::Time(time), _) => Self::Finished {
                by: *time,
                inclusive: request.inclusive,
            },
            (Target::Lsn(lsn), _) => Self::Stopped(*lsn),
            (Target::Xid(_) | Target::Name(_), Search::Found(record)) => Self::Stopped(record.lsn),
            _ => Self::None,
        }
    }

    /// A commit within the backup is never later than the backup's end. A commit at that very microsecond may lie
    /// within the backup, and an exclusive target would stop before it.
    fn allows(&self, backup: &Backup) -> bool {
        match self {
            Self::None => true,
            Self::Finished { by, inclusive: true } => backup.finished_at <= *by,
            Self::Finished { by, inclusive: false } => backup.finished_at < *by,
            Self::Stopped(lsn) => backup.stop_lsn <= *lsn,
        }
    }

    /// Where a backup ends, in the terms of the target.
    fn end_of(&self, backup: &Backup) -> String {
        match self {
            Self::Finished { .. } => time_text(backup.finished_at),
            Self::Stopped(_) | Self::None => format!("LSN {}", backup.stop_lsn),
        }
    }
}

/// The backup that was asked for by its id, if one was.
pub(super) fn named<'a>(catalogue: &'a Catalogue, request: &Request) -> Result<Option<&'a Backup>> {
    let Some(id) = &request.backup else {
        return Ok(None);
    };
    if let Some(backup) = catalogue.backups.iter().find(|backup| backup.id == *id) {
        return Ok(Some(backup));
    }
    if let Some(damaged) = catalogue.unrestorable.iter().find(|entry| entry.id == *id) {
        return Err(Error::corrupt(format!(
            "backup {id} cannot be restored: {}; choose another, see walship list backups",
            damaged.reason
        )));
    }
    if let Some(unfinished) = catalogue.unfinished.iter().find(|entry| entry.id == *id) {
        return Err(still_unfinished(unfinished));
    }
    let mut ids: Vec<_> = catalogue
        .backups
        .iter()
        .map(|backup| backup.id.to_string())
        .collect();
    ids.reverse();
    let more = ids.len().saturating_sub(IDS_SHOWN);
    ids.truncate(IDS_SHOWN);
    Err(Error::not_found(match (ids.is_empty(), more) {
        (true, _) => format!("backup {id} is not in the archive, nor is any other that can be restored"),
        (false, 0) => format!("backup {id} is not in the archive; it has {}", ids.join(", ")),
        (false, _) => format!(
            "backup {id} is not in the archive; it has {} and {more} older ones",
            ids.join(", ")
        ),
    }))
}

fn still_unfinished(backup: &Unfinished) -> Error {
    let id = &backup.id;
    Error::unfinished(match backup.state {
        UnfinishedState::WaitingForWal => format!(
            "backup {id} is stored, but the WAL it needs had not arrived; complete it with walship basebackup --finish {id}"
        ),
        UnfinishedState::Started => format!(
            "backup {id} is still being taken, or was left behind; choose another, see walship list backups"
        ),
        UnfinishedState::Remains => {
            format!("only remains are left of backup {id}; choose another, see walship list backups")
        }
    })
}

pub(super) fn no_backup(catalogue: &Catalogue) -> Error {
    if let Some(damaged) = catalogue.unrestorable.last() {
        return Error::corrupt(format!(
            "the archive has no backup that can be restored; the newest of {} that cannot is {}: {}",
            catalogue.unrestorable.len(),
            damaged.id,
            damaged.reason
        ));
    }
    match catalogue.unfinished.last() {
        Some(unfinished) => still_unfinished(unfinished).context("the archive has no finished backup"),
        None => Error::invalid("the archive has no backup; take one with walship basebackup"),
    }
}

/// Refuses a named backup that does not lead to the target.
pub(super) fn check<'a>(
    backup: &'a Backup,
    catalogue: &Catalogue,
    request: &Request,
    chain: &TimelineChain<'_>,
) -> Result<&'a Backup> {
    if !chain.can_start_from(backup) {
        return Err(not_on_the_chain(backup, chain));
    }
    let limit = Limit::of(request);
    if limit.allows(backup) {
        return Ok(backup);
    }
    let instead = newest_allowed(catalogue, &limit, chain).map_or_else(
        || "no backup ended before it".to_owned(),
        |other| format!("the newest backup before it is {}", other.id),
    );
    Err(Error::invalid(format!(
        "backup {} ended at {}, after the target, {}{}; {instead}",
        backup.id,
        limit.end_of(backup),
        request.target,
        position(request)
    )))
}

fn not_on_the_chain(backup: &Backup, chain: &TimelineChain<'_>) -> Error {
    let (id, on, followed) = (&backup.id, backup.stop_timeline, chain.timeline());
    Error::invalid(match chain.leaves(on) {
        Some(fork) => format!(
            "backup {id} ended on timeline {on} at LSN {}, and the chain of timeline {followed} left that timeline earlier, at {fork}; \
             choose an earlier backup, or --target-timeline {on}",
            backup.stop_lsn
        ),
        None => format!(
            "backup {id} is on timeline {on}, from which timeline {followed} does not descend; \
             choose another backup, or --target-timeline {on}"
        ),
    })
}

/// The newest backup that leads to the target.
pub(super) fn newest<'a>(
    catalogue: &'a Catalogue,
    request: &Request,
    chain: &TimelineChain<'_>,
    notes: &mut Vec<String>,
) -> Result<&'a Backup> {
    if matches!(request.target, Target::Xid(_) | Target::Name(_)) && request.search == Search::NotMade {
        return Err(Error::internal(format!(
            "nobody looked up where {} lies; give --backup",
            request.target
        )));
    }
    let limit = Limit::of(request);
    let backup = newest_allowed(catalogue, &limit, chain)
        .ok_or_else(|| too_early(catalogue, request, &limit, chain))?;
    notes.extend(skipped(catalogue, backup));
    Ok(backup)
}

/// Positions on one chain are in the order of time, whatever the servers' clocks say.
fn newest_allowed<'a>(
    catalogue: &'a Catalogue,
    limit: &Limit,
    chain: &TimelineChain<'_>,
) -> Option<&'a Backup> {
    catalogue
        .backups
        .iter()
        .filter(|backup| chain.can_start_from(backup) && limit.allows(backup))
        .max_by_key(|backup| (backup.stop_lsn, backup.finished_at))
}

fn too_early(catalogue: &Catalogue, request: &Request, limit: &Limit, chain: &TimelineChain<'_>) -> Error {
    let of_chain = catalogue
        .backups
        .iter()
        .filter(|backup| chain.can_start_from(backup));
    let Some(first) = of_chain.min_by_key(|backup| (backup.stop_lsn, backup.finished_at)) else {
        return Error::invalid(format!(
            "no backup leads to timeline {}{}; give --target-timeline for another, \
             or take a backup of a server on that timeline",
            chain.timeline(),
            if request.timeline.is_none() {
                ", the latest in the archive"
            } else {
                ""
            },
        ));
    };
    Error::invalid(format!(
        "{}{} lies before the end of the first backup, {}: the earliest that can be reached is {}",
        request.target,
        position(request),
        first.id,
        limit.end_of(first)
    ))
}

/// Where a search found the target.
fn position(request: &Request) -> String {
    match (&request.target, &request.search) {
        (Target::Xid(_), Search::Found(record)) => {
            format!(" (at LSN {}, {})", record.lsn, time_text(record.time))
        }
        // A name may be used again: PostgreSQL ends at the first one that it meets.
        (Target::Name(_), Search::Found(record)) => format!(
            " (at LSN {}, {}: the first of that name from there on)",
            record.lsn,
            time_text(record.time)
        ),
        _ => String::new(),
    }
}

/// Newer backups that cannot be restored and so were not chosen. Ids are in the order of the backups' starts.
fn skipped(catalogue: &Catalogue, chosen: &Backup) -> Option<String> {
    let skipped: Vec<_> = catalogue
        .unrestorable
        .iter()
        .filter(|entry| entry.id > chosen.id)
        .map(|entry| format!("{} ({})", entry.id, entry.reason))
        .collect();
    (!skipped.is_empty()).then(|| format!("passed over, because they cannot be used: {}", skipped.join("; ")))
}

/// Why this backup, in one sentence.
pub(super) fn reason(backup: &Backup, request: &Request) -> String {
    let id = &backup.id;
    if request.backup.is_some() {
        return format!("backup {id}, as asked for with --backup");
    }
    match Limit::of(request) {
        Limit::None => format!("backup {id} is the newest on the way to {}", request.target),
        limit => format!(
            "backup {id} is the newest that ended before {}{}: at {}",
            request.target,
            position(request),
            limit.end_of(backup)
        ),
    }
}
