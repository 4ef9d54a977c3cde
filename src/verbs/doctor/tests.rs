//! What the report makes of findings, and what is read of a server's environment.

use super::*;
use crate::judge::diagnosis::{Finding, Level};

fn report(levels: &[(Check, Level)], ignore: &[Check]) -> DoctorReport {
    let findings = levels.iter().map(|(check, level)| Finding {
        check: *check,
        level: *level,
        message: "found\nthis".to_owned(),
        fix: (*level > Level::Info).then(|| "do that".to_owned()),
    });
    DoctorReport::new(findings.collect(), ignore, chrono::DateTime::UNIX_EPOCH)
}

#[test]
fn the_exit_code_is_that_of_the_worst_finding() {
    use Level::{Info, Ok, Problem, Unknown, Warning};
    for (levels, code, promote) in [
        (vec![], 0, 0),
        (vec![Ok, Info], 0, 0),
        (vec![Ok, Unknown], 1, 2),
        (vec![Warning, Info], 1, 2),
        (vec![Warning, Problem, Ok], 2, 2),
    ] {
        let findings: Vec<_> = levels.iter().map(|level| (Check::Fsync, *level)).collect();
        let report = report(&findings, &[]);
        assert_eq!(
            (report.exit_code(), report.promote_exit_code()),
            (code, promote),
            "{levels:?}"
        );
    }
}

#[test]
fn the_first_line_is_the_summary_and_the_worst_comes_first() {
    let found = [
        (Check::Fsync, Level::Ok),
        (Check::BackupAge, Level::Warning),
        (Check::ArchiverFailing, Level::Problem),
    ];
    let text = report(&found, &[]).to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("walship PROBLEM: 1 problem, 1 warning: archiver.failing backups.age"),
        "{text}"
    );
    assert!(
        lines[1].starts_with("PROBLEM  archiver.failing  found this"),
        "{text}"
    );
    assert_eq!(lines[2].trim(), "fix: do that");
    assert!(lines[5].starts_with("ok       settings.fsync"), "{text}");
    assert!(
        report(&[], &[]).to_string().starts_with("walship OK: 0 checks"),
        "{text}"
    );
}

#[test]
fn ignored_findings_do_not_count_and_are_still_shown() {
    let report = report(&[(Check::Checksums, Level::Warning)], &[Check::Checksums]);
    assert_eq!(report.exit_code(), 0);
    assert!(
        report
            .to_string()
            .contains("info     settings.data_checksums  (ignored) found"),
        "{report}"
    );
}

#[test]
fn programs_get_ids_and_levels() {
    let report = report(&[(Check::ArchiverFailing, Level::Problem)], &[]);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["status"], "problem");
    assert_eq!(json["findings"][0]["id"], "archiver.failing");
    assert_eq!(json["findings"][0]["fix"], "do that");
}
