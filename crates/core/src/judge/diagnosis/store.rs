//! The archive's store: whether it answers, what the credentials may do, how it treats existing objects, and its clock.

use chrono::TimeDelta;

use super::facts::{ArchiveFacts, Facts};
use super::{Check, Fact, Findings};
use crate::format::remembered::how_a_copy_may_archive;

/// S3 refuses requests that are a quarter of an hour off.
const STORE_CLOCK_WARNING: TimeDelta = TimeDelta::seconds(60);
const STORE_CLOCK_PROBLEM: TimeDelta = TimeDelta::minutes(5);
/// `--target-time` uses the server's clock.
const SERVER_CLOCK_WARNING: TimeDelta = TimeDelta::seconds(5);
const SERVER_CLOCK_PROBLEM: TimeDelta = TimeDelta::minutes(5);

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    if let Ok(server) = &facts.server {
        clock(
            Check::ClockServer,
            server.clock_ahead,
            [SERVER_CLOCK_WARNING, SERVER_CLOCK_PROBLEM],
            "the server's",
            findings,
        );
    }
    let archive = match &facts.archive {
        Ok(archive) => archive,
        Err(why) => {
            return findings.problem(
                Check::ArchiveReachable,
                why,
                "archive = \"s3://bucket/prefix\" in /etc/walship/walship.toml, or WALSHIP_ARCHIVE",
            );
        }
    };
    reachable(archive, facts, findings);
    identity(archive, facts, findings);
    permissions(archive, facts, findings);
    conditional_writes(archive, findings);
    versions(archive, facts, findings);
    if let Some(ahead) = archive.clock_ahead {
        let limits = [STORE_CLOCK_WARNING, STORE_CLOCK_PROBLEM];
        clock(Check::ClockStore, ahead, limits, "the store's", findings);
    }
}

fn reachable(archive: &ArchiveFacts, facts: &Facts, findings: &mut Findings) {
    let check = Check::ArchiveReachable;
    let url = &archive.url;
    let remembered = facts.host.remembered.as_ref().ok();
    match (&archive.identity, remembered.and_then(|(_, remembered)| remembered.archive.as_ref())) {
        (Ok(Some(_)), _) => findings.ok(check, url),
        (Ok(None), Some(mark)) => findings.problem(
            check,
            format!(
                "there is no archive at {url}: walship.json is missing; this cluster writes to the one that was begun at {}, {}",
                mark.created_at, mark.archive
            ),
            "mount it, or correct the URL; to begin a new archive here, walship basebackup --new-archive",
        ),
        (Ok(None), None) => findings.problem(
            check,
            format!("there is no archive at {url}: walship.json is missing"),
            "check the URL; if nothing was archived yet, set archive_command = 'walship push %p' and take a backup \
             (walship basebackup)",
        ),
        (Err(why), _) => findings.problem(
            check,
            why,
            "see whether the store runs and this machine reaches it; check the archive's URL, s3.endpoint and the \
             credentials (s3:GetObject)",
        ),
    }
}

fn identity(archive: &ArchiveFacts, facts: &Facts, findings: &mut Findings) {
    let check = Check::ArchiveIdentity;
    let Ok(Some(identity)) = &archive.identity else {
        return findings.unknown(check, "walship.json was not read");
    };
    if let Ok((place, remembered)) = &facts.host.remembered
        && let Err(error) = remembered.check(identity, &archive.url, place)
    {
        if remembered.is_copy_of(identity) {
            let what = format!(
                "this server is a copy of another, made from the archive {}, and must not write to that archive",
                archive.url
            );
            let fix = how_a_copy_may_archive(place);
            return findings.problem(check, what, fix);
        }
        let fix = "correct the archive's URL here, or in archive_command; docs/configuration.md says how an archive moves";
        return findings.problem(check, error.to_string(), fix);
    }
    let cluster = match &facts.server {
        Ok(server) => findings.known(check, &server.cluster),
        Err(_) => return findings.unknown(check, "the server does not answer"),
    };
    let Some(cluster) = cluster else { return };
    match identity.check(*cluster, &archive.url) {
        Ok(()) => findings.ok(
            check,
            format!(
                "system identifier {}, PostgreSQL {}",
                identity.system_identifier, identity.postgres_major
            ),
        ),
        Err(error) => findings.problem(
            check,
            error.to_string(),
            "give this cluster an archive URL of its own (archive in walship.toml) and run walship basebackup",
        ),
    }
}

fn permissions(archive: &ArchiveFacts, facts: &Facts, findings: &mut Findings) {
    match &archive.catalogue {
        Ok(_) => findings.ok(Check::ArchiveList, "allowed"),
        // Without an archive there is nothing to list.
        Err(why) if matches!(archive.identity, Ok(None)) => findings.unknown(Check::ArchiveList, why),
        Err(why) => findings.problem(
            Check::ArchiveList,
            why,
            "allow s3:ListBucket on the bucket, and s3:GetObject on the archive's objects; for a very large archive raise \
             doctor.timeout",
        ),
    }
    match &archive.probe {
        Ok(_) => findings.ok(Check::ArchiveWrite, "allowed"),
        Err(why) => findings.problem(
            Check::ArchiveWrite,
            why,
            "allow s3:PutObject on the archive's objects (in a directory: make it writable for the server's user)",
        ),
    }
    if !facts.expires {
        return findings.ok(Check::ArchiveDelete, "not needed: no retention is set here");
    }
    match &archive.delete {
        Ok(Some(())) => findings.ok(Check::ArchiveDelete, "allowed"),
        Ok(None) => findings.info(
            Check::ArchiveDelete,
            "not tried: the bucket keeps versions, and each try would leave a delete marker",
        ),
        Err(why) => findings.problem(
            Check::ArchiveDelete,
            why,
            "allow s3:DeleteObject on the archive's objects, or remove the [retention] settings here and expire elsewhere",
        ),
    }
}

fn conditional_writes(archive: &ArchiveFacts, findings: &mut Findings) {
    let check = Check::ConditionalWrites;
    let Ok(honoured) = archive.probe else {
        return findings.unknown(check, "the probe could not be written");
    };
    let recorded = match &archive.identity {
        Ok(Some(identity)) => Some(identity.conditional_writes),
        _ => None,
    };
    match (honoured, recorded) {
        (true, Some(false)) => findings.info(
            check,
            "honoured now; but walship.json says that they were not, so every push looks first",
        ),
        (true, _) => findings.ok(check, "honoured"),
        (false, Some(true)) => findings.problem(
            check,
            "walship.json says that the store refuses to overwrite, but it does not: this is a copy of an archive, or the \
             store has changed. Two primaries could overwrite each other's WAL",
            "move the archive to a store that honours If-None-Match, or set \"conditional_writes\": false in walship.json",
        ),
        (false, _) => findings.warning(
            check,
            "the store ignores conditional writes: two primaries that write at the same moment can overwrite each other's WAL",
            "use a store that honours If-None-Match",
        ),
    }
}

fn versions(archive: &ArchiveFacts, facts: &Facts, findings: &mut Findings) {
    let asked = |findings: &mut Findings, check, why: &str| {
        findings.info(check, format!("not known: {why}"));
    };
    match &archive.versioning {
        Ok(Some(true)) => findings.info(
            Check::Versioning,
            "the bucket keeps versions: what expire deletes takes space until a lifecycle rule removes old versions",
        ),
        Ok(Some(false)) => findings.ok(Check::Versioning, "off"),
        Ok(None) => {}
        Err(why) => asked(findings, Check::Versioning, why),
    }
    match &archive.object_lock {
        Ok(Some(lock)) if facts.expires => findings.warning(
            Check::ObjectLock,
            format!("the bucket locks new objects ({lock}): expire cannot free space before the lock ends"),
            "set [retention] keep_window at least as long as the lock",
        ),
        Ok(Some(lock)) => findings.info(
            Check::ObjectLock,
            format!("the bucket locks new objects ({lock})"),
        ),
        Ok(None) if archive.versioning == Ok(None) => {}
        Ok(None) => findings.ok(Check::ObjectLock, "off"),
        Err(why) => asked(findings, Check::ObjectLock, why),
    }
}

fn clock(check: Check, ahead: TimeDelta, limits: [TimeDelta; 2], whose: &str, findings: &mut Findings) {
    let [warning, problem] = limits;
    let off = ahead.abs();
    if off <= warning {
        return findings.ok(check, "agrees with this machine's");
    }
    let side = if ahead > TimeDelta::zero() {
        "ahead of"
    } else {
        "behind"
    };
    let message = format!("{whose} clock is {} s {side} this machine's", off.num_seconds());
    let fix = "set the clocks by NTP: timedatectl set-ntp true, on each machine that is off";
    if off > problem {
        findings.problem(check, message, fix);
    } else {
        findings.warning(check, message, fix);
    }
}

/// Why something is not known.
pub(super) fn reason<T>(fact: &Fact<T>) -> &str {
    fact.as_ref().err().map_or("", String::as_str)
}
