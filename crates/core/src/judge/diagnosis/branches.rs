//! The timelines: which of them lives, and whether that can be known.

use super::facts::ServerFacts;
use super::{Check, Findings};
use crate::judge::branches::{Begun, judge as judge_branches};
use crate::judge::catalogue::Catalogue;
use crate::pg::TimelineId;

pub(super) fn judge(catalogue: &Catalogue, server: Option<&ServerFacts>, findings: &mut Findings) {
    let check = Check::WalBranches;
    let judgement = judge_branches(catalogue, |_| true);
    let mut all_well = retired(catalogue, server, findings);
    if let Err(ambiguity) = &judgement.followed {
        all_well = false;
        let names: Vec<_> = ambiguity
            .contenders
            .iter()
            .map(|one| one.timeline.to_string())
            .collect();
        findings.problem(
            check,
            format!("{ambiguity}. Until somebody says which of them lives, a recovery needs --target-timeline"),
            format!(
                "walship timeline retire {} --reason \"…\" (the one of the copy), and stop its server or switch its archiving off",
                names.join(" or ")
            ),
        );
    }
    let server_on = server.and_then(|server| server.timeline.as_ref().ok().copied());
    for begun in &judgement.begun {
        all_well &= !begun.left_a_living_one;
        let (timeline, message) = (begun.timeline, begun.to_string());
        match begun {
            Begun { left_a_living_one: false, .. } => {
                findings.info(check, format!("{message}: a recovery ends there"));
            }
            _ if server_on == Some(timeline) => findings.warning(
                check,
                format!("{message}, while the timeline it left has WAL beyond that: until a segment arrives, a recovery follows the old timeline"),
                "SELECT pg_switch_wal(); then a base backup (walship basebackup)",
            ),
            _ => findings.warning(
                check,
                format!("{message}, while the timeline it left has WAL beyond that: a recovery follows the old timeline"),
                format!(
                    "if its server took the place of the old one: SELECT pg_switch_wal() there, then walship basebackup; if it \
                     was a copy: walship timeline retire {timeline} --reason \"…\""
                ),
            ),
        }
    }
    for tail in &judgement.tails {
        findings.info(check, tail.to_string());
    }
    if all_well {
        let followed = judgement.followed.unwrap_or(TimelineId::FIRST);
        findings.ok(check, format!("recoveries follow timeline {followed}"));
    }
}

/// Whether no server writes on a retired timeline.
fn retired(catalogue: &Catalogue, server: Option<&ServerFacts>, findings: &mut Findings) -> bool {
    let check = Check::WalBranches;
    let server_on = server.and_then(|server| server.timeline.as_ref().ok().copied());
    let mut all_well = true;
    for (timeline, mark) in &catalogue.retired {
        if server_on == Some(*timeline) {
            all_well = false;
            findings.problem(
                check,
                format!("this server is on timeline {timeline}, which was {mark}: no standby and no recovery follows it"),
                format!("if it lives: walship timeline reinstate {timeline}; otherwise stop this server"),
            );
        } else if catalogue
            .wal
            .newest_stored(*timeline)
            .is_some_and(|stored| stored > mark.retired_at)
        {
            all_well = false;
            findings.warning(
                check,
                format!("WAL of timeline {timeline} was stored after it was {mark}"),
                "find the server that archives it, and stop it or set archive_mode = off there",
            );
        } else {
            findings.info(check, format!("timeline {timeline} was {mark}"));
        }
    }
    all_well
}
