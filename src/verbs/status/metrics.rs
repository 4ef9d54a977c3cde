//! What `status` shows, as metrics.

use std::collections::BTreeSet;

use prometheus_client::registry::Registry;

use super::{Backlog, Expiry, StatusReport};
use crate::edge::exposition::{Board, Family, Format, truth, word};
use crate::error::Result;

/// The metrics of this report but for [`looked`] and [`backlog`]. What is not known is left out.
#[must_use]
pub fn families(report: &StatusReport) -> Vec<Family> {
    let mut all = vec![info(report)];
    all.push(
        Family::gauge(
            "walship_status_timestamp_seconds",
            "When the archive was last looked at with success",
        )
        .of(Some(report.now.timestamp() as f64)),
    );
    all.extend(wal(report));
    all.extend(backups(report));
    all.extend(proofs(report));
    all.extend(expiry(&report.expiry));
    // A check may have several findings.
    let warnings: BTreeSet<_> = report
        .warnings
        .iter()
        .map(|finding| {
            vec![
                ("check", finding.check.id().to_owned()),
                ("level", word(&finding.level)),
            ]
        })
        .collect();
    let warnings = warnings.into_iter().map(|labels| (labels, 1.0));
    all.push(Family::gauge("walship_warnings", "What is wrong, as walship status says").with(warnings));
    all
}

/// Whether the last look at the archive succeeded.
#[must_use]
pub fn looked(succeeded: bool) -> Family {
    Family::gauge(
        "walship_status_success",
        "Whether the last look at the archive succeeded",
    )
    .of(Some(truth(succeeded)))
}

/// What waits for the archiver, which can be told even while the archive is away.
#[must_use]
pub fn backlog(backlog: Option<&Backlog>) -> [Family; 2] {
    let files = backlog.and_then(|backlog| backlog.files);
    // Nothing that waits has waited for no time.
    let oldest = files.map(|_| backlog.and_then(|backlog| backlog.oldest_seconds).unwrap_or(0));
    [
        Family::gauge(
            "walship_archive_ready_files",
            "Finished WAL that waits for PostgreSQL's archiver",
        )
        .of(files.map(|files| files as f64)),
        Family::gauge(
            "walship_archive_oldest_ready_seconds",
            "How long the oldest of it has waited",
        )
        .of(oldest.map(|seconds| seconds as f64)),
    ]
}

/// For node_exporter's textfile collector. Where there is no report, that is what it says.
pub(super) fn text(archive: &str, report: Option<&StatusReport>) -> Result<String> {
    let board = Board::default();
    let mut families = report.map(families).unwrap_or_default();
    families.extend(backlog(report.and_then(|report| report.backlog.as_ref())));
    families.push(looked(report.is_some()));
    board.put(families);
    let mut registry = Registry::default();
    registry
        .sub_registry_with_label(("archive".into(), archive.to_owned().into()))
        .register_collector(Box::new(board));
    Format::Text.write(&registry)
}

fn info(report: &StatusReport) -> Family {
    let timeline = report.last_wal.as_ref().map(|wal| wal.timeline.to_string());
    let labels = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("system_identifier", report.system_identifier.clone()),
        ("postgres_major", report.postgres_major.to_string()),
        ("timeline", timeline.unwrap_or_default()),
    ];
    Family::gauge("walship_info", "This walship and the cluster of its archive").with([(labels, 1.0)])
}

fn wal(report: &StatusReport) -> Vec<Family> {
    let stored = report.last_wal.as_ref().and_then(|wal| wal.stored_at);
    let gaps = report
        .window
        .iter()
        .filter(|window| window.missing.is_some() && !window.released);
    let newest = report
        .window
        .iter()
        .max_by_key(|window| (window.latest, window.earliest));
    vec![
        Family::gauge(
            "walship_archive_last_segment_timestamp_seconds",
            "When the store got the newest segment",
        )
        .of(stored.map(|at| at.timestamp() as f64)),
        Family::gauge("walship_wal_gaps", "Places after a backup where WAL is missing")
            .of(Some(gaps.count() as f64)),
        Family::gauge(
            "walship_recoverable_start_timestamp_seconds",
            "The earliest moment of the newest period to which the cluster can be recovered",
        )
        .of(newest.map(|window| window.earliest.timestamp() as f64)),
        Family::gauge(
            "walship_recoverable_end_timestamp_seconds",
            "The latest moment of that period",
        )
        .of(newest.and_then(|window| Some(window.latest?.timestamp() as f64))),
    ]
}

fn backups(report: &StatusReport) -> Vec<Family> {
    let backups = &report.backups;
    let newest = backups.newest.as_ref();
    let by_state = [
        ("restorable", backups.count),
        ("unrestorable", backups.unrestorable.len()),
        ("unfinished", backups.unfinished.len()),
    ];
    let by_state = by_state.map(|(state, count)| (vec![("state", state.to_owned())], count as f64));
    vec![
        Family::gauge("walship_backups", "Base backups in the archive").with(by_state),
        Family::gauge(
            "walship_backups_stored_bytes",
            "What the restorable backups take in the store",
        )
        .of(Some(backups.stored_bytes as f64)),
        Family::gauge(
            "walship_backup_last_success_timestamp_seconds",
            "When the newest base backup ended",
        )
        .of(newest.map(|backup| backup.finished_at.timestamp() as f64)),
        Family::gauge(
            "walship_backup_stored_bytes",
            "What the newest base backup takes in the store",
        )
        .of(newest.map(|backup| backup.stored_bytes as f64)),
    ]
}

fn proofs(report: &StatusReport) -> Vec<Family> {
    let verification = report.verification.as_ref();
    let drill = report.drill.as_ref();
    let seconds = |ms: Option<u64>| ms.map(|ms| ms as f64 / 1000.0);
    vec![
        Family::gauge(
            "walship_verify_last_timestamp_seconds",
            "When the last verification ended",
        )
        .of(verification.map(|last| last.finished_at.timestamp() as f64)),
        Family::gauge(
            "walship_verify_last_clean_timestamp_seconds",
            "When a verification last found nothing wrong",
        )
        .of(verification.and_then(|last| Some(last.last_clean_at?.timestamp() as f64))),
        Family::gauge(
            "walship_verify_findings",
            "What the last verification found wrong",
        )
        .of(verification.map(|last| last.findings as f64)),
        Family::gauge(
            "walship_drill_last_timestamp_seconds",
            "When the last drill began",
        )
        .of(drill.map(|last| last.started_at.timestamp() as f64)),
        Family::gauge("walship_drill_last_success", "Whether the last drill passed")
            .of(drill.map(|last| truth(last.passed))),
        Family::gauge(
            "walship_drill_recovery_seconds",
            "How long the last drill took to an open server",
        )
        .of(drill.and_then(|last| seconds(last.recovery_ms))),
        Family::gauge(
            "walship_drill_data_loss_seconds",
            "Age of the newest transaction in the last drill",
        )
        .of(drill.and_then(|last| seconds(last.data_loss_ms))),
    ]
}

fn expiry(expiry: &Expiry) -> Vec<Family> {
    let (backups, segments) = match expiry {
        Expiry::Deletes {
            backups,
            wal_segments,
            ..
        } => (Some(backups.len() as f64), Some(*wal_segments as f64)),
        Expiry::NoPolicy | Expiry::Refuses { .. } => (None, None),
    };
    vec![
        Family::gauge(
            "walship_expire_deletable_backups",
            "Backups that the next expire would delete",
        )
        .of(backups),
        Family::gauge(
            "walship_expire_deletable_segments",
            "Segments that the next expire would delete",
        )
        .of(segments),
    ]
}
