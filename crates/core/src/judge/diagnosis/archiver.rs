//! The archiver: whether it runs, whether it fails, what waits for it, and where its files arrive.

use std::time::Duration;

use super::facts::{ArchiverFacts, Facts, ReadyFiles, ServerFacts};
use super::{Check, Findings};
use crate::text::span;

/// A failure soon after a success may be a passing one.
const RECENT_SUCCESS: Duration = Duration::from_mins(5);
/// The archiver tries again at least once a minute, so its counters move.
const SILENCE: Duration = Duration::from_mins(2);

pub(super) fn judge(server: &ServerFacts, facts: &Facts, findings: &mut Findings) {
    if server.archives() != Some(true) {
        return;
    }
    running(server, facts, findings);
    if let Some(archiver) = findings.known(Check::ArchiverFailing, &server.archiver) {
        failing(archiver, findings);
    }
    if let Some(ready) = findings.known(Check::ArchiverBacklog, &server.ready) {
        backlog(ready, facts, findings);
    }
    arrives(facts, findings);
}

/// If `archive_command` ends above 125 or by a signal, the archiver ends too, for half a minute, and `pg_stat_archiver`
/// counts nothing (measured on PostgreSQL 17).
fn running(server: &ServerFacts, facts: &Facts, findings: &mut Findings) {
    let check = Check::ArchiverRunning;
    let fix = "look in the server's log for \"archive command failed with exit code\" or \"was terminated by signal\": \
               above 125 the archiver ends too; set archive_command 'walship push %p', which never does that";
    let Some(runs) = findings.known(check, &server.archiver_runs) else {
        return;
    };
    if let (Ok(archiver), Ok(ready)) = (&server.archiver, &server.ready)
        && let Some(waiting) = stuck(archiver, ready, facts.limits.push_time)
    {
        let message = format!(
            "files have waited for {} and pg_stat_archiver counts neither a success nor a failure: archive_command hangs, \
             or the archiver dies with it",
            span(waiting)
        );
        return findings.problem(check, message, fix);
    }
    match (*runs, server.ready.as_ref().map_or(0, |ready| ready.count)) {
        (true, _) => findings.ok(check, "yes"),
        (false, 0) => findings.warning(check, "there is no archiver process", fix),
        (false, waiting) => {
            let message = format!("there is no archiver process, and {waiting} files wait for it");
            findings.problem(check, message, fix);
        }
    }
}

/// How long files have waited while no counter moved.
fn stuck(archiver: &ArchiverFacts, ready: &ReadyFiles, push_time: Duration) -> Option<Duration> {
    let oldest = ready.oldest_age?;
    let last_sign = [archiver.last_archived_age, archiver.last_failed_age]
        .into_iter()
        .flatten()
        .min();
    let silent = last_sign.is_none_or(|age| age > SILENCE + push_time);
    (silent && oldest > SILENCE + push_time).then_some(oldest)
}

fn failing(archiver: &ArchiverFacts, findings: &mut Findings) {
    let check = Check::ArchiverFailing;
    let (Some(failed), Some(failed_age)) = (&archiver.last_failed, archiver.last_failed_age) else {
        return findings.ok(check, last_success(archiver));
    };
    if archiver.last_archived_age.is_some_and(|age| age <= failed_age) {
        return findings.ok(check, last_success(archiver));
    }
    let since = archiver.last_archived_age.map_or_else(
        || "nothing was ever archived".to_owned(),
        |age| format!("nothing was archived for {}", span(age)),
    );
    let message = format!(
        "archive_command fails: {since}; the last failure was {} ago, on {failed} ({} in all)",
        span(failed_age),
        archiver.failed_count
    );
    let fix = format!(
        "the reason is in the server's log, in lines that begin with \"walship:\"; or run walship push pg_wal/{failed} \
         in the data directory as the server's user"
    );
    if archiver.last_archived_age.is_some_and(|age| age < RECENT_SUCCESS) {
        findings.warning(check, message, fix);
    } else {
        findings.problem(check, message, fix);
    }
}

fn last_success(archiver: &ArchiverFacts) -> String {
    match (&archiver.last_archived, archiver.last_archived_age) {
        (Some(file), Some(age)) => format!("no; {file} was archived {} ago", span(age)),
        _ => "no; nothing was archived yet".to_owned(),
    }
}

pub(super) fn backlog(ready: &ReadyFiles, facts: &Facts, findings: &mut Findings) {
    let check = Check::ArchiverBacklog;
    let limit = facts.limits.archive_delay;
    let age = ready.oldest_age.unwrap_or_default();
    let waiting = format!(
        "{} files wait to be archived, the oldest since {}",
        ready.count,
        span(age)
    );
    let fix = "if archiver.failing is ok, the store is slower than the server writes: see the time of \
               walship push in the server's log, and push.compression_level and the network";
    if age > limit * 12 {
        findings.problem(check, waiting, fix);
    } else if age > limit {
        findings.warning(check, waiting, fix);
    } else if ready.count == 0 {
        findings.ok(check, "nothing waits");
    } else {
        findings.ok(check, waiting);
    }
}

/// Proves that `archive_command` and doctor use the same archive.
fn arrives(facts: &Facts, findings: &mut Findings) {
    let check = Check::ArchiverArrives;
    let Ok(archive) = &facts.archive else {
        return findings.unknown(check, "no archive is configured");
    };
    match findings.known(check, &archive.last_archived) {
        None => {}
        Some(None) => findings.info(check, "the server has not archived anything yet"),
        Some(Some((name, true))) => findings.ok(check, format!("{name} is here")),
        Some(Some((name, false))) => findings.problem(
            check,
            format!(
                "the server says that it archived {name}, but {} does not have it",
                archive.url
            ),
            "its archive_command stores elsewhere, or nothing: compare settings.archive_command and WALSHIP_ARCHIVE in \
             the server's environment with this archive's URL",
        ),
    }
}
