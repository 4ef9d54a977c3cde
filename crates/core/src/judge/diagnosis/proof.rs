//! Whether the archive was verified, and whether a backup was drilled.
//!
//! If nothing was ever verified or drilled, that is information. Once somebody has begun with it, it must go on.

use chrono::{DateTime, Utc};

use super::facts::{ArchiveFacts, Facts};
use super::{Check, Findings};
use crate::format::drills::ArchiveDrill;
use crate::format::ledger::LedgerSummary;
use crate::judge::catalogue::Catalogue;
use crate::text::span;

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    let Ok(archive) = &facts.archive else { return };
    match &archive.verification {
        Ok(Some(summary)) => verified(summary, facts, findings),
        Ok(None) => findings.info(Check::Verified, "never (walship verify)"),
        // Another finding says already that the archive does not answer.
        Err(why) => findings.unknown(Check::Verified, why),
    }
    if let Ok(catalogue) = &archive.catalogue {
        drilled(archive, catalogue, facts, findings);
    }
}

fn verified(summary: &LedgerSummary, facts: &Facts, findings: &mut Findings) {
    let check = Check::Verified;
    let since = |moment: DateTime<Utc>| span((facts.now - moment).to_std().unwrap_or_default());
    let last = &summary.last;
    if last.findings_count > 0 {
        let first = last.findings.first();
        let named = first.map_or_else(String::new, |first| {
            format!(", such as {}: {}", first.key, first.what)
        });
        let message = format!(
            "the last verification, {} ago, found {} wrong{named}",
            since(last.finished_at),
            last.findings_count
        );
        return findings.problem(
            check,
            message,
            "walship verify names them all; walship repair mends WAL; take a new backup \
             (walship basebackup)",
        );
    }
    match summary
        .last_clean_at
        .map(|moment| (facts.now - moment).to_std().unwrap_or_default())
    {
        Some(age) if age <= facts.limits.verify_age => findings.ok(check, format!("{} ago", span(age))),
        Some(age) => findings.warning(
            check,
            format!("the archive was last verified {} ago", span(age)),
            "walship verify (from a timer)",
        ),
        None => findings.warning(
            check,
            "the archive was never verified as a whole",
            "walship verify (from a timer)",
        ),
    }
}

fn drilled(archive: &ArchiveFacts, catalogue: &Catalogue, facts: &Facts, findings: &mut Findings) {
    let check = Check::Drilled;
    let drills = match &archive.drills {
        Ok(drills) => catalogue.drills_with_proofs(drills.clone()),
        Err(why) => return findings.unknown(check, why),
    };
    let (passed, failed) = (drills.last_success, drills.last_failure);
    let fix = "walship drill";
    let began = |known: &ArchiveDrill| known.drill.started_at;
    if let Some(failed) = failed
        && passed
            .as_ref()
            .is_none_or(|passed| began(passed) < began(&failed))
    {
        let why = failed.drill.failure.as_deref().unwrap_or("no reason is recorded");
        return findings.problem(
            check,
            format!("the last drill, of backup {}, failed: {why}", failed.backup),
            fix,
        );
    }
    let Some(passed) = passed else {
        return findings.info(check, "never (walship drill)");
    };
    let age = (facts.now - began(&passed)).to_std().unwrap_or_default();
    if age > facts.limits.drill_age {
        findings.warning(
            check,
            format!("the last drill that passed was {} ago", span(age)),
            fix,
        );
    } else {
        findings.ok(check, format!("{} ago", span(age)));
    }
}
