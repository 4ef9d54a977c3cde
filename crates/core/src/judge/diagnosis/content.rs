//! What the archive holds: backups and their age, the WAL and its gaps, the timelines.

use std::time::Duration;

use super::facts::{ArchiveFacts, Facts, ServerFacts};
use super::store::reason;
use super::{Check, Findings, branches};
use crate::format::ranges::RangeSet;
use crate::format::wal_inventory::SegmentRange;
use crate::judge::catalogue::{Backup, Catalogue, UnfinishedState};
use crate::judge::recovery_plan;
use crate::judge::timeline_chain::TimelineChain;
use crate::pg::{Lsn, SegmentName, SegmentSize, TimelineId, WalName};
use crate::text::span;

/// A running backup shows a sign of life every 30 s.
const HEARTBEAT_LOST: Duration = Duration::from_mins(10);
/// At most this many of a kind are named: a screen is small.
const NAMED: usize = 3;

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    let Ok(archive) = &facts.archive else { return };
    let Ok(catalogue) = &archive.catalogue else {
        let why = reason(&archive.catalogue);
        for check in [
            Check::BackupAge,
            Check::WalGaps,
            Check::WalTimeline,
            Check::WalBranches,
        ] {
            findings.unknown(check, format!("the archive was not listed: {why}"));
        }
        return;
    };
    let server = facts.server.as_ref().ok().filter(|server| is_of(archive, server));
    gaps(catalogue, server, findings);
    histories(catalogue, server, findings);
    branches::judge(catalogue, server, findings);
    if let Some(server) = server {
        timeline(catalogue, server, findings);
        ahead(archive, catalogue, server, findings);
    }
    age(catalogue, facts, findings);
    restorable(catalogue, findings);
    unfinished(catalogue, facts, findings);
}

/// Whether it is the server's archive: another cluster's timelines and positions say nothing about it.
fn is_of(archive: &ArchiveFacts, server: &ServerFacts) -> bool {
    match (&archive.identity, &server.cluster) {
        (Ok(Some(identity)), Ok(cluster)) => identity.check(*cluster, "").is_ok(),
        _ => false,
    }
}

fn listed<T: ToString>(items: impl ExactSizeIterator<Item = T>) -> String {
    let all = items.len();
    let mut names: Vec<String> = items.take(NAMED).map(|item| item.to_string()).collect();
    if all > NAMED {
        names.push(format!("{} more", all - NAMED));
    }
    names.join(", ")
}

/// A gap that no recovery from the newest backup can pass is a problem. One that only older backups meet is a warning.
/// What lies before the first backup is of no use anyhow.
fn gaps(catalogue: &Catalogue, server: Option<&ServerFacts>, findings: &mut Findings) {
    let check = Check::WalGaps;
    let push = |missing: &SegmentRange| {
        format!(
            "if pg_wal of a server still has it, run walship push pg_wal/{} in its data directory; otherwise take a new backup \
             now (walship basebackup)",
            missing.first
        )
    };
    let newest = catalogue.backups.last();
    let first = newest.and_then(|backup| first_gap(catalogue, server, backup));
    if let (Some(first), Some(backup)) = (&first, newest) {
        let Missing {
            missing,
            evidence,
            end,
            ..
        } = first;
        let ends = format!(
            "from the newest backup, {}, recovery ends at LSN {end}",
            backup.id
        );
        if first.is_barrier {
            let fix = "walship basebackup: only a new backup makes what is written now recoverable";
            findings.problem(check, format!("{evidence}: {ends}"), fix.to_owned());
        } else {
            let message = format!("{missing} is missing ({evidence}): {ends}");
            findings.problem(check, message, push(missing));
        }
    }
    let first_needed = catalogue.backups.iter().map(|backup| backup.start_lsn).min();
    let size = catalogue.wal.segment_size();
    let others: Vec<SegmentRange> = catalogue
        .wal
        .timelines()
        .flat_map(|timeline| catalogue.wal.gaps(timeline))
        .filter(|gap| !is_released(catalogue, gap))
        .filter(|gap| Some(gap.first) != first.as_ref().map(|first| first.missing.first))
        .filter(|gap| {
            let end = gap.last.number(size).map(|last| size.start_of(last.next()));
            first_needed.is_none_or(|needed| end.is_ok_and(|end| end > needed))
        })
        .collect();
    if !others.is_empty() {
        let message = format!(
            "the archive lacks {}; no recovery from an earlier backup can pass it",
            listed(others.iter())
        );
        findings.warning(check, message, others.first().map_or_else(String::new, push));
    } else if first.is_none() {
        findings.ok(check, "none");
    }
}

/// What ends every recovery from the newest backup although WAL goes on behind it, if anything does. Only a new backup
/// makes what is written now recoverable, unless the missing WAL comes after all.
#[must_use]
pub fn gap_after_newest_backup(catalogue: &Catalogue) -> Option<String> {
    let newest = catalogue.backups.last()?;
    let Missing {
        missing,
        evidence,
        end,
        is_barrier,
    } = first_gap(catalogue, None, newest)?;
    let what = if is_barrier {
        evidence
    } else {
        format!("{missing} is missing ({evidence})")
    };
    Some(format!(
        "{what}: from the newest backup, {}, recovery ends at LSN {end}",
        newest.id
    ))
}

/// Whether retention has released all of it.
fn is_released(catalogue: &Catalogue, gap: &SegmentRange) -> bool {
    let size = catalogue.wal.segment_size();
    let (Ok(from), Ok(to)) = (gap.first.number(size), gap.last.number(size)) else {
        return false;
    };
    let mut lost = RangeSet::default();
    lost.insert_range(from.0, to.0);
    if let Some(released) = catalogue.released.of(gap.first.timeline()) {
        lost.subtract(released);
    }
    lost.is_empty()
}

/// What ends every recovery from a backup.
struct Missing {
    missing: SegmentRange,
    evidence: String,
    end: Lsn,
    is_barrier: bool,
}

/// The first gap after a backup: along the server's timeline, or the one that a recovery follows, or the backup's own.
fn first_gap(catalogue: &Catalogue, server: Option<&ServerFacts>, backup: &Backup) -> Option<Missing> {
    let timeline = server
        .and_then(|server| server.timeline.as_ref().ok().copied())
        .or_else(|| recovery_plan::followed(catalogue).ok()?.ok())
        .unwrap_or(backup.stop_timeline);
    let size = catalogue.wal.segment_size();
    let chain = |timeline: &TimelineId| {
        let history = catalogue.histories.get(timeline)?;
        Some(TimelineChain::new(history, size)).filter(|chain| chain.can_start_from(backup))
    };
    let chain = chain(&timeline).or_else(|| chain(&backup.stop_timeline))?;
    let sound = catalogue.sound_wal().ok()?;
    let damaged = catalogue.damage.last(chain.timeline(), size);
    let reach = chain.reach(&sound, backup.start_lsn, damaged).ok()?;
    let gap = reach
        .gap
        .filter(|gap| gap.barrier.is_some() || !is_written_now(gap.missing.first, server, size))?;
    let evidence = match catalogue.damage.of_first(&gap.missing) {
        Some(damage) if gap.barrier.is_none() => format!("it is there, but {damage}"),
        _ => gap.evidence,
    };
    Some(Missing {
        missing: gap.missing,
        evidence,
        end: reach.end_lsn,
        is_barrier: gap.barrier.is_some(),
    })
}

/// Whether the server has not finished this segment yet: after a promotion the history is archived at once,
/// and the first segment of the new timeline when it is full.
fn is_written_now(segment: SegmentName, server: Option<&ServerFacts>, size: SegmentSize) -> bool {
    let Some(server) = server.filter(|server| !server.in_recovery) else {
        return false;
    };
    let (Ok(timeline), Ok(lsn), Ok(number)) = (&server.timeline, &server.lsn, segment.number(size)) else {
        return false;
    };
    segment.timeline() == *timeline && *lsn < size.start_of(number.next())
}

fn histories(catalogue: &Catalogue, server: Option<&ServerFacts>, findings: &mut Findings) {
    let check = Check::WalHistories;
    let mut all_well = true;
    for (timeline, why) in &catalogue.unreadable_histories {
        all_well = false;
        let file = WalName::History(*timeline);
        let message = format!("{file} cannot be read: {why}");
        let fix = format!(
            "put the damaged object aside (walship repair), then run in the data directory of a server that has the file: \
             walship push pg_wal/{file}"
        );
        findings.problem(check, message, fix);
    }
    let own = server.and_then(|server| server.timeline.as_ref().ok());
    let later = |timeline: &TimelineId| *timeline > TimelineId::FIRST && Some(timeline) != own;
    for timeline in catalogue.timelines().into_iter().filter(later) {
        let is_known = catalogue.histories.contains_key(&timeline)
            || catalogue.unreadable_histories.contains_key(&timeline)
            || catalogue.retired.contains_key(&timeline)
            // Its descendants' histories name it.
            || catalogue.histories.values().any(|history| history.end_of(timeline).is_some());
        if !is_known && catalogue.wal.newest(timeline).is_some() {
            all_well = false;
            let file = WalName::History(timeline);
            let message = format!(
                "the archive has WAL of timeline {timeline}, but not {file}: no recovery can follow it"
            );
            let fix = format!(
                "run in the data directory of a server that has the file: walship push pg_wal/{file}"
            );
            findings.problem(check, message, fix);
        }
    }
    if let Some(timeline) = own
        && !catalogue.histories.contains_key(timeline)
        && !catalogue.unreadable_histories.contains_key(timeline)
    {
        all_well = false;
        let file = WalName::History(*timeline);
        let message = format!(
            "the server is on timeline {timeline}, but {file} is not in the archive: no recovery can follow it"
        );
        let fix = format!("run in the server's data directory: walship push pg_wal/{file}");
        findings.problem(check, message, fix);
    }
    if !all_well {
        return;
    }
    // With a server, its own timeline is compared with the archive's.
    match recovery_plan::followed(catalogue) {
        Err(error) if server.is_none() && !catalogue.timelines().is_empty() => findings.problem(
            check,
            format!("a recovery without --target-timeline is refused: {error}"),
            "walship timeline list shows the timelines; put the history into the archive, or remove a mark (walship timeline reinstate)",
        ),
        _ => findings.ok(check, "complete"),
    }
}

fn timeline(catalogue: &Catalogue, server: &ServerFacts, findings: &mut Findings) {
    let check = Check::WalTimeline;
    let Some(own) = findings.known(check, &server.timeline) else {
        return;
    };
    let known = catalogue.timelines();
    match known.iter().rfind(|known| !catalogue.retired.contains_key(known)) {
        Some(newest) if newest > own => findings.warning(
            check,
            format!(
                "the archive has timeline {newest}, but this server is on {own}: another server was promoted, or a copy archives here"
            ),
            "if this is the old primary, stop it and make it a standby (pg_rewind); a copy needs archive_mode = off",
        ),
        _ => findings.ok(check, format!("{own}, the archive's newest")),
    }
}

/// A whole segment in the archive must not end beyond the server's own position.
fn ahead(archive: &ArchiveFacts, catalogue: &Catalogue, server: &ServerFacts, findings: &mut Findings) {
    let check = Check::WalAhead;
    let (false, Ok(timeline), Some(lsn)) = (server.in_recovery, &server.timeline, archive.server_lsn_after)
    else {
        return;
    };
    let size = catalogue.wal.segment_size();
    let Some(newest) = catalogue.wal.newest(*timeline) else {
        return;
    };
    let end = size.start_of(newest.next());
    if end > lsn {
        let message = format!(
            "the archive has timeline {timeline} up to LSN {end}, but this server has written only up to {lsn}: it was \
             restored without recovery, or another server archives here too"
        );
        let fix = "find the other server and stop one of them; recover a lost server with walship recover, which begins \
                   a new timeline";
        findings.problem(check, message, fix);
    } else {
        findings.ok(check, "nothing that this server has not written");
    }
}

fn age(catalogue: &Catalogue, facts: &Facts, findings: &mut Findings) {
    let check = Check::BackupAge;
    let fix = "walship basebackup (from a timer: once a day)";
    let Some(newest) = catalogue.backups.iter().max_by_key(|backup| backup.taken_at()) else {
        let message = "there is no backup that can be restored";
        return findings.problem(check, message, fix);
    };
    let age = (facts.now - newest.taken_at()).to_std().unwrap_or_default();
    let message = format!("the newest backup, {}, is {} old", newest.id, span(age));
    let limit = facts.limits.backup_age;
    if age > limit * 2 {
        findings.problem(check, message, fix);
    } else if age > limit {
        findings.warning(check, message, fix);
    } else {
        findings.ok(check, message);
    }
}

fn restorable(catalogue: &Catalogue, findings: &mut Findings) {
    let check = Check::BackupsRestorable;
    for entry in catalogue.unrestorable.iter().take(NAMED) {
        let message = format!("backup {} cannot be restored: {}", entry.id, entry.reason);
        findings.problem(check, message, "take a new one now: walship basebackup");
    }
    if catalogue.unrestorable.is_empty() {
        findings.ok(check, format!("{}", catalogue.backups.len()));
    }
}

fn unfinished(catalogue: &Catalogue, facts: &Facts, findings: &mut Findings) {
    let check = Check::BackupsUnfinished;
    let mut all_well = true;
    for entry in catalogue.unfinished.iter().rev().take(NAMED) {
        all_well = false;
        let id = &entry.id;
        let silent = (facts.now - entry.last_sign).to_std().unwrap_or_default();
        match entry.state {
            UnfinishedState::WaitingForWal => findings.warning(
                check,
                format!("backup {id} is stored, but its WAL had not arrived"),
                format!("walship basebackup --finish {id}"),
            ),
            UnfinishedState::Started if silent < HEARTBEAT_LOST => {
                findings.info(check, format!("backup {id} runs"));
            }
            UnfinishedState::Started => findings.warning(
                check,
                format!("backup {id} was begun and showed no sign of life for {}", span(silent)),
                "take a new one: walship basebackup; walship expire removes what is left, unless walship verify says that the backup was whole",
            ),
            UnfinishedState::Remains => findings.info(check, format!("only remains are left of backup {id}")),
        }
    }
    if all_well {
        findings.ok(check, "none");
    }
}
