//! This machine: space, files that others can read or change, and who runs doctor.

use std::time::Duration;

use super::facts::{ExposedFile, Facts, Space};
use super::{Check, Findings};
use crate::text::{ByteSize, span};

/// Shares of the file system that are free, in hundredths.
const FREE_WARNING: u64 = 10;
const FREE_PROBLEM: u64 = 4;
/// How long `pg_wal` may grow before the disk is full, if archiving stops now.
const TIME_WARNING: Duration = Duration::from_hours(12);

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    space(facts, findings);
    let check = Check::Permissions;
    if let Some(files) = findings.known(check, &facts.host.exposed_files) {
        for file in files {
            exposed(file, findings);
        }
        if files.is_empty() {
            findings.ok(check, "others can change no file and read no secret");
        }
    }
    let host = &facts.host;
    match &host.owner {
        Ok(owner) if *owner != host.user => findings.info(
            Check::User,
            format!(
                "doctor runs as {}, but the server as {owner}, which may have other credentials (sudo -u {owner} walship doctor)",
                host.user
            ),
        ),
        Ok(_) => findings.ok(Check::User, format!("{}, as the server", host.user)),
        Err(why) => findings.info(Check::User, format!("{} ({why})", host.user)),
    }
}

fn space(facts: &Facts, findings: &mut Findings) {
    let check = Check::PgWalSpace;
    let Space {
        free_bytes,
        total_bytes,
    } = match &facts.host.pg_wal_space {
        Ok(space) => *space,
        // From another machine it cannot be seen.
        Err(why) => return findings.info(check, format!("not looked at: {why}")),
    };
    let rate = facts
        .server
        .as_ref()
        .ok()
        .and_then(|server| *server.wal_rate.as_ref().ok()?);
    #[allow(clippy::cast_precision_loss)] // for people
    let lasts = rate
        .filter(|rate| *rate > 0.0)
        .and_then(|rate| Duration::try_from_secs_f64(free_bytes as f64 / rate).ok());
    let so_long = lasts.map_or_else(String::new, |time| {
        format!(", room for {} of WAL at the average rate", span(time))
    });
    let message = format!(
        "{} of {} are free{so_long}",
        ByteSize(free_bytes),
        ByteSize(total_bytes)
    );
    let fix = "make room, or give pg_wal a larger file system; see slots.inactive and archiver.failing for what keeps WAL";
    let share = |percent: u64| total_bytes / 100 * percent;
    if free_bytes < share(FREE_PROBLEM) {
        findings.problem(check, message, fix);
    } else if free_bytes < share(FREE_WARNING) || lasts.is_some_and(|time| time < TIME_WARNING) {
        findings.warning(check, message, fix);
    } else {
        findings.ok(check, message);
    }
}

fn exposed(file: &ExposedFile, findings: &mut Findings) {
    let path = &file.path;
    if file.writable {
        let message = format!("others can change {path}, and so where WAL goes");
        findings.problem(Check::Permissions, message, format!("chmod go-w {path}"));
    } else {
        let message = format!("others can read the secrets in {path}");
        findings.warning(Check::Permissions, message, format!("chmod 0600 {path}"));
    }
}
