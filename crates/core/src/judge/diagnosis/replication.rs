//! Slots, standbys, and how a standby itself is doing.

use super::facts::{Facts, ServerFacts, ServerSettings, Slot, StandbyFacts};
use super::sync_names::SyncNames;
use super::{Check, Findings};
use crate::judge::catalogue::Catalogue;
use crate::pg::{Lsn, TimelineId};
use crate::text::{ByteSize, span};

/// A standby that is this far behind and does not say for how long gets a warning.
const FAR_BEHIND_BYTES: u64 = 1 << 30;
/// A standby that is more segments than this behind the archive gets a warning.
const BEHIND_ARCHIVE_SEGMENTS: u64 = 64;

pub(super) fn judge(server: &ServerFacts, facts: &Facts, findings: &mut Findings) {
    let settings = server.settings.as_ref().ok();
    if let Some(slots) = findings.known(Check::SlotsLost, &server.slots) {
        lost(slots, findings);
        inactive(slots, findings);
        limit(slots, settings, findings);
    }
    if let Some(standbys) = findings.known(Check::StandbysLag, &server.standbys) {
        lag(standbys, facts, findings);
        synchronous(standbys, settings, server.in_recovery, findings);
    }
    if server.in_recovery {
        standby(server, settings, facts, findings);
    }
}

fn drop_slot(name: &str) -> String {
    format!("SELECT pg_drop_replication_slot('{}')", name.replace('\'', "''"))
}

fn lost(slots: &[Slot], findings: &mut Findings) {
    let check = Check::SlotsLost;
    let mut all_well = true;
    for slot in slots {
        let lost = slot
            .invalidated
            .clone()
            .or_else(|| (slot.wal_status.as_deref() == Some("lost")).then(|| "wal_removed".to_owned()));
        if let Some(why) = lost {
            all_well = false;
            let message = format!(
                "slot {} is invalid ({why}): its standby cannot stream any more",
                slot.name
            );
            let fix = format!(
                "{}; if its standby has no restore_command = 'walship restore %f %p', seed it anew \
                 (walship basebackup --seed-replica)",
                drop_slot(&slot.name)
            );
            findings.problem(check, message, fix);
        } else if slot.wal_status.as_deref() == Some("unreserved") {
            all_well = false;
            let message = format!("slot {} is about to lose WAL that its standby needs", slot.name);
            let fix = "start the standby, or raise max_slot_wal_keep_size and SELECT pg_reload_conf()";
            findings.problem(check, message, fix);
        }
    }
    if all_well {
        findings.ok(check, format!("none of {}", slots.len()));
    }
}

fn inactive(slots: &[Slot], findings: &mut Findings) {
    let check = Check::SlotsInactive;
    let holding = slots.iter().filter(|slot| {
        !slot.active && slot.invalidated.is_none() && slot.wal_status.as_deref() != Some("lost")
    });
    let mut all_well = true;
    for slot in holding {
        let Some(bytes) = slot.retained_bytes else {
            continue;
        };
        all_well = false;
        let message = format!(
            "slot {} is not in use, and keeps {} of WAL in pg_wal",
            slot.name,
            ByteSize(bytes)
        );
        findings.warning(
            check,
            message,
            format!("start its standby, or {}", drop_slot(&slot.name)),
        );
    }
    if all_well {
        findings.ok(check, "none");
    }
}

fn limit(slots: &[Slot], settings: Option<&ServerSettings>, findings: &mut Findings) {
    let most = settings.and_then(|settings| settings.number("max_slot_wal_keep_size"));
    match most {
        Some(-1) if !slots.is_empty() => findings.warning(
            Check::SlotsLimit,
            "max_slot_wal_keep_size is -1: a standby that is away fills pg_wal until the server stops",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB' (less than the disk has) and SELECT pg_reload_conf(); \
             the standby then catches up from the archive",
        ),
        Some(-1) => findings.ok(Check::SlotsLimit, "no slots"),
        Some(mib) => findings.ok(Check::SlotsLimit, format!("{mib} MB")),
        None => findings.unknown(Check::SlotsLimit, "the server did not show max_slot_wal_keep_size"),
    }
}

fn lag(standbys: &[StandbyFacts], facts: &Facts, findings: &mut Findings) {
    let check = Check::StandbysLag;
    let followers = standbys.iter().filter(|standby| standby.state != "backup");
    let mut all_well = true;
    for standby in followers {
        let bytes = standby.lag_bytes.unwrap_or(0);
        let late = match standby.lag {
            Some(lag) => lag > facts.limits.standby_lag,
            None => bytes > FAR_BEHIND_BYTES,
        };
        if late {
            all_well = false;
            let time = standby
                .lag
                .map(|lag| format!("{} and ", span(lag)))
                .unwrap_or_default();
            findings.warning(
                check,
                format!(
                    "standby {} ({}) is {time}{} behind",
                    standby.name,
                    standby.state,
                    ByteSize(bytes)
                ),
                "look for long queries on it (max_standby_streaming_delay), a paused replay \
                 (SELECT pg_wal_replay_resume()), its disk and its network",
            );
        }
    }
    if all_well {
        findings.ok(check, format!("{} connected", standbys.len()));
    }
}

fn synchronous(
    standbys: &[StandbyFacts],
    settings: Option<&ServerSettings>,
    in_recovery: bool,
    findings: &mut Findings,
) {
    let check = Check::StandbysSynchronous;
    let Some(text) = settings.and_then(|settings| settings.get("synchronous_standby_names")) else {
        return findings.unknown(check, "the server did not show synchronous_standby_names");
    };
    let Some(wanted) = SyncNames::parse(text).filter(|_| !in_recovery) else {
        return findings.ok(check, if text.is_empty() { "none asked for" } else { text });
    };
    let streaming = standbys.iter().filter(|standby| standby.state == "streaming");
    let counting = streaming.filter(|standby| wanted.counts(&standby.name)).count();
    let absent: Vec<&str> = wanted
        .names
        .iter()
        .filter(|name| {
            *name != "*"
                && !standbys
                    .iter()
                    .any(|standby| standby.name.eq_ignore_ascii_case(name))
        })
        .map(String::as_str)
        .collect();
    let fix = "start the standby with that application_name in its primary_conninfo, or take it out: ALTER SYSTEM SET \
               synchronous_standby_names = '…' and SELECT pg_reload_conf()";
    if counting < wanted.needed {
        let message = format!(
            "synchronous_standby_names = {text:?} asks for {}, but {counting} stream: commits wait for ever",
            wanted.needed
        );
        findings.problem(check, message, fix);
    } else if absent.is_empty() {
        findings.ok(check, text);
    } else {
        let message = format!("no standby is connected as {}", absent.join(", "));
        findings.warning(check, message, fix);
    }
}

fn standby(server: &ServerFacts, settings: Option<&ServerSettings>, facts: &Facts, findings: &mut Findings) {
    let restore_command = settings.and_then(|settings| settings.get("restore_command"));
    let restores = restore_command.is_some_and(|command| !command.is_empty());
    if let Some(streams) = findings.known(Check::StandbySource, &server.streams) {
        let check = Check::StandbySource;
        match (*streams, restores) {
            (true, _) => findings.ok(check, "streams"),
            (false, true) => findings.warning(
                check,
                "it does not stream: it follows only through the archive",
                "look in its log for \"could not connect to the primary server\" and at primary_conninfo",
            ),
            (false, false) => findings.problem(
                check,
                "it neither streams nor has a restore_command: it stands still",
                "set primary_conninfo, and restore_command = 'walship restore %f %p'",
            ),
        }
    }
    let check = Check::StandbyRestoreCommand;
    let fix = "ALTER SYSTEM SET restore_command = 'walship restore %f %p' and SELECT pg_reload_conf()";
    match restore_command {
        Some(command) if command.contains("walship") && command.contains("restore") => {
            findings.ok(check, command);
        }
        Some("") => findings.warning(
            check,
            "restore_command is empty: when the primary has recycled WAL that this standby lacks, the standby is lost",
            fix,
        ),
        Some(command) => findings.warning(check, format!("{command:?} is not walship"), fix),
        None => findings.unknown(check, "the server did not show it"),
    }
    let check = Check::StandbyTimeline;
    match settings.and_then(|settings| settings.get("recovery_target_timeline")) {
        Some("latest") => findings.ok(check, "latest"),
        Some(other) => findings.warning(
            check,
            format!("recovery_target_timeline is {other:?}: it does not follow a promotion"),
            "ALTER SYSTEM SET recovery_target_timeline = 'latest'; then restart the standby",
        ),
        None => findings.unknown(check, "the server did not show it"),
    }
    replay(server, facts, findings);
}

fn replay(server: &ServerFacts, facts: &Facts, findings: &mut Findings) {
    let check = Check::StandbyReplay;
    match &server.replay_paused {
        Ok(true) => {
            let message = "replay is paused";
            return findings.warning(check, message, "SELECT pg_wal_replay_resume()");
        }
        Ok(false) => {}
        Err(why) => return findings.unknown(check, why),
    }
    let catalogue = facts
        .archive
        .as_ref()
        .ok()
        .and_then(|archive| archive.catalogue.as_ref().ok());
    if let (Some(catalogue), Ok(timeline), Ok(lsn)) = (catalogue, &server.timeline, &server.lsn)
        && let Some(segments) = behind(catalogue, *timeline, *lsn)
    {
        let message = format!("replay is {segments} archived segments behind");
        let fix =
            "look in its log for what restore_command says, and for long queries (max_standby_archive_delay)";
        return findings.warning(check, message, fix);
    }
    let at = server.lsn.as_ref().map(|lsn| format!(" up to {lsn}"));
    findings.ok(check, format!("replays{}", at.unwrap_or_default()));
}

fn behind(catalogue: &Catalogue, timeline: TimelineId, lsn: Lsn) -> Option<u64> {
    let newest = catalogue.wal.newest(timeline)?;
    let replayed = catalogue.wal.segment_size().segment_of(lsn);
    let segments = newest.0.saturating_sub(replayed.0);
    (segments > BEHIND_ARCHIVE_SEGMENTS).then_some(segments)
}
