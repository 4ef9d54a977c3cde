//! Backups that stand alone: retention has released the WAL after them, so only their own end can be reached. Any other
//! target is refused, and the message says what can be reached.

use super::{Request, Target, end};
use crate::error::{Error, Result};
use crate::format::keys::BackupId;
use crate::judge::catalogue::{Backup, Catalogue};
use crate::judge::timeline_chain::{Reach, TimelineChain};
use crate::text::time_text;

/// At most this many stand-alone backups are named.
const SHOWN: usize = 10;

/// The request, with the backup's own end as the target if it names a stand-alone backup and no target.
pub(super) fn at_its_end(catalogue: &Catalogue, request: &Request) -> (Request, Option<String>) {
    let as_it_is = || (request.clone(), None);
    if request.target != Target::Latest || request.timeline.is_some() || request.end_at_gap {
        return as_it_is();
    }
    let Some(backup) = request.backup.as_ref().and_then(|id| find(catalogue, id)) else {
        return as_it_is();
    };
    if !catalogue.stands_alone(backup) {
        return as_it_is();
    }
    let note = format!(
        "backup {} stands alone: retention has released the WAL after it, so it is recovered to its own end, {}",
        backup.id,
        time_text(backup.finished_at)
    );
    let request = Request {
        target: Target::Immediate,
        ..request.clone()
    };
    (request, Some(note))
}

/// Whether retention has released the WAL at which recovery ends.
pub(crate) fn is_released(
    catalogue: &Catalogue,
    chain: &TimelineChain<'_>,
    reach: &Reach,
    backup: &Backup,
) -> bool {
    match &reach.gap {
        Some(gap) => {
            let first = gap.missing.first;
            let number = first.number(catalogue.wal.segment_size());
            number.is_ok_and(|number| catalogue.released.contains(first.timeline(), number))
        }
        // A newer timeline may end there because nothing more was written to it.
        None => chain.timeline() == backup.stop_timeline && catalogue.stands_alone(backup),
    }
}

/// Refuses a target in released WAL, or beyond it.
pub(super) fn refuse(
    catalogue: &Catalogue,
    request: &Request,
    chain: &TimelineChain<'_>,
    backup: &Backup,
) -> Error {
    let id = &backup.id;
    let reachable = match reachable(catalogue, chain) {
        Ok(reachable) => reachable,
        Err(error) => return error,
    };
    Error::invalid(format!(
        "{} cannot be reached: retention has released the WAL after backup {id}, which ended at {}. What can be \
         reached on timeline {}: {reachable}",
        request.target,
        time_text(backup.finished_at),
        chain.timeline()
    ))
}

/// What can be reached along a timeline, in words.
fn reachable(catalogue: &Catalogue, chain: &TimelineChain<'_>) -> Result<String> {
    let mut alone = Vec::new();
    let mut first: Option<&Backup> = None;
    for backup in &catalogue.backups {
        if !chain.can_start_from(backup) {
            continue;
        }
        let reach = end::reach(catalogue, chain, backup)?;
        if is_released(catalogue, chain, &reach, backup) {
            alone.push(backup);
        } else if first.is_none_or(|first| backup.stop_lsn < first.stop_lsn) {
            first = Some(backup);
        }
    }
    let mut words = Vec::new();
    if let Some(first) = first {
        words.push(format!(
            "every moment from {} (backup {}) on",
            time_text(first.finished_at),
            first.id
        ));
    }
    let more = alone.len().saturating_sub(SHOWN);
    words.extend(alone.iter().rev().take(SHOWN).map(|backup| {
        format!(
            "{} (--backup {} --target-immediate)",
            time_text(backup.finished_at),
            backup.id
        )
    }));
    if more > 0 {
        words.push(format!("{more} older ones (walship list backups)"));
    }
    Ok(words.join("; "))
}

fn find<'a>(catalogue: &'a Catalogue, id: &BackupId) -> Option<&'a Backup> {
    catalogue.backups.iter().find(|backup| backup.id == *id)
}
