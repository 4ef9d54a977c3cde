//! The server's settings on which archiving, backups and recovery depend.

use super::archive_command::{self, ArchiveCommand};
use super::facts::{Facts, ServerFacts, ServerSettings};
use super::{Check, Findings};
use crate::format::remembered::how_a_copy_may_archive;

/// More than this between two archived segments of an idle server, in seconds, is a warning.
const LONG_ARCHIVE_TIMEOUT: i64 = 3600;
/// A base backup takes one sender; a standby that connects again takes a second for a moment.
const SPARE_SENDERS: i64 = 2;

pub(super) fn judge(server: &ServerFacts, facts: &Facts, findings: &mut Findings) {
    let Some(settings) = findings.known(Check::WalLevel, &server.settings) else {
        return;
    };
    wal_level(settings, findings);
    archive_mode(server, settings, facts, findings);
    if server.archives() == Some(true) {
        command(settings, facts, findings);
        archive_timeout(settings, findings);
    }
    senders(server, settings, findings);
    durability(settings, findings);
    checksums(settings, findings);
    if let Some(value) = settings.get("summarize_wal") {
        // walship takes whole backups; nothing is at stake.
        findings.info(Check::SummarizeWal, value);
    }
    pending_restart(settings, findings);
}

fn alter(name: &str, value: &str) -> String {
    format!("ALTER SYSTEM SET {name} = {value}")
}

fn wal_level(settings: &ServerSettings, findings: &mut Findings) {
    match settings.get("wal_level") {
        Some("minimal") => findings.problem(
            Check::WalLevel,
            "wal_level is minimal: neither archiving nor a base backup is possible",
            alter("wal_level", "replica; then restart the server"),
        ),
        Some(level) => findings.ok(Check::WalLevel, level),
        None => findings.unknown(Check::WalLevel, "the server did not show it"),
    }
}

fn archive_mode(server: &ServerFacts, settings: &ServerSettings, facts: &Facts, findings: &mut Findings) {
    let copy = facts.host.remembered.as_ref().ok();
    let copy = copy.filter(|(_, remembered)| remembered.clone.is_some() && remembered.archive.is_none());
    match settings.get("archive_mode") {
        Some("off") if let Some((place, _)) = copy => findings.warning(
            Check::ArchiveMode,
            "archive_mode is off because this server is a copy of another: its WAL is not archived",
            how_a_copy_may_archive(place),
        ),
        Some("off") if server.in_recovery => findings.warning(
            Check::ArchiveMode,
            "archive_mode is off: nothing is archived from the moment this standby is promoted",
            alter("archive_mode", "on; then restart the server"),
        ),
        Some("off") => findings.problem(
            Check::ArchiveMode,
            "archive_mode is off: no WAL is archived",
            alter(
                "archive_mode",
                "on; then restart the server (walship setup primary shows all that is needed)",
            ),
        ),
        Some("on") if server.in_recovery => {
            findings.ok(
                Check::ArchiveMode,
                "on: this standby archives once it is promoted",
            );
        }
        Some(mode) => findings.ok(Check::ArchiveMode, mode),
        None => findings.unknown(Check::ArchiveMode, "the server did not show it"),
    }
}

fn command(settings: &ServerSettings, facts: &Facts, findings: &mut Findings) {
    let check = Check::ArchiveCommand;
    let fix = format!(
        "{} and SELECT pg_reload_conf()",
        alter("archive_command", "'walship push %p'")
    );
    if let Some(library) = settings
        .get("archive_library")
        .filter(|library| !library.is_empty())
    {
        return findings.problem(
            check,
            format!("archive_library is {library:?}, so archive_command is not used"),
            "ALTER SYSTEM RESET archive_library and SELECT pg_reload_conf()",
        );
    }
    let text = match settings.get("archive_command") {
        // PostgreSQL shows this where archive_mode is off.
        Some("" | "(disabled)") => {
            let message = "archive_command is empty: WAL piles up in pg_wal and nothing is archived";
            return findings.problem(check, message, fix);
        }
        Some(text) => text,
        None => return findings.unknown(check, "the server did not show it"),
    };
    let arrives = facts.archive.as_ref().ok().and_then(|archive| {
        let last = archive.last_archived.as_ref().ok()?.as_ref()?;
        Some(last.1)
    });
    match ArchiveCommand::parse(text) {
        Some(command) => archive_command::judge(&command, text, facts, findings),
        // Perhaps a script around walship: what else it does cannot be seen.
        None if arrives == Some(true) => findings.warning(
            check,
            format!("{text:?} does not run walship itself, but its last file is in this archive"),
            fix,
        ),
        None => findings.problem(check, format!("{text:?} does not run walship"), fix),
    }
}

fn archive_timeout(settings: &ServerSettings, findings: &mut Findings) {
    let check = Check::ArchiveTimeout;
    let fix = format!("{} and SELECT pg_reload_conf()", alter("archive_timeout", "60"));
    match settings.number("archive_timeout") {
        Some(0) => findings.warning(
            check,
            "archive_timeout is 0: the last writes of a quiet server are not archived until a segment of WAL is full",
            fix,
        ),
        Some(seconds) if seconds > LONG_ARCHIVE_TIMEOUT => findings.warning(
            check,
            format!("archive_timeout is {seconds} s: if the server is lost, the writes of that time can be lost with it"),
            fix,
        ),
        Some(seconds) => findings.ok(check, format!("{seconds} s")),
        None => findings.unknown(check, "the server did not show it"),
    }
}

fn senders(server: &ServerFacts, settings: &ServerSettings, findings: &mut Findings) {
    let check = Check::MaxWalSenders;
    let Some(most) = settings.number("max_wal_senders") else {
        return findings.unknown(check, "the server did not show it");
    };
    let used = server
        .standbys
        .as_ref()
        .map_or(0, |standbys| i64::try_from(standbys.len()).unwrap_or(i64::MAX));
    let fix = alter(
        "max_wal_senders",
        &format!("{}; then restart the server", (used + SPARE_SENDERS).max(10)),
    );
    if most == 0 {
        let message = "max_wal_senders is 0: neither a base backup nor a standby is possible";
        findings.problem(check, message, fix);
    } else if most - used < SPARE_SENDERS {
        let message = format!("{used} of {most} WAL senders are in use: a base backup may find none free");
        findings.warning(check, message, fix);
    } else {
        findings.ok(check, format!("{used} of {most} in use"));
    }
}

fn durability(settings: &ServerSettings, findings: &mut Findings) {
    match settings.get("fsync") {
        Some("off") => findings.problem(
            Check::Fsync,
            "fsync is off: a crash of the machine destroys the cluster",
            format!("{} and SELECT pg_reload_conf()", alter("fsync", "on")),
        ),
        Some(value) => findings.ok(Check::Fsync, value),
        None => findings.unknown(Check::Fsync, "the server did not show it"),
    }
    match settings.get("full_page_writes") {
        Some("off") => findings.warning(
            Check::FullPageWrites,
            "full_page_writes is off: a crash can leave torn pages, and no backup can be taken from a standby",
            format!("{} and SELECT pg_reload_conf()", alter("full_page_writes", "on")),
        ),
        Some(value) => findings.ok(Check::FullPageWrites, value),
        None => findings.unknown(Check::FullPageWrites, "the server did not show it"),
    }
}

fn checksums(settings: &ServerSettings, findings: &mut Findings) {
    match settings.get("data_checksums") {
        Some("off") => findings.warning(
            Check::Checksums,
            "data checksums are off: damage by the disk goes unnoticed, into the backups too",
            "stop the server, run pg_checksums --enable -D DATA_DIRECTORY, and start it",
        ),
        Some(value) => findings.ok(Check::Checksums, value),
        None => findings.unknown(Check::Checksums, "the server did not show it"),
    }
}

fn pending_restart(settings: &ServerSettings, findings: &mut Findings) {
    if settings.pending_restart.is_empty() {
        return findings.ok(Check::PendingRestart, "none");
    }
    findings.warning(
        Check::PendingRestart,
        format!(
            "changed and not in effect: {}",
            settings.pending_restart.join(", ")
        ),
        "restart the server",
    );
}
