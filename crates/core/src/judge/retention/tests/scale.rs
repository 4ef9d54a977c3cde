//! Memory does not grow with the number of objects. Slow in a debug build, so it is run by hand:
//! `cargo test --lib -- --ignored --nocapture a_million`.

use chrono::TimeDelta;

use super::scene::Scene;
use super::*;
use crate::format::keys::Key;
use crate::judge::fixture::{SIZE, segment};
use crate::pg::SegmentNumber;

const SEGMENTS: u64 = 1_000_000;

/// The resident memory of this process, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "takes half a minute in a debug build"]
#[allow(clippy::print_stderr)]
fn a_million_segments_are_listed_planned_and_looked_through_in_bounded_memory() {
    let before = resident_kib();
    let begun = std::time::Instant::now();
    // 114 years of hours, a backup each week.
    let mut scene = Scene::new().wal(1, 0..=SEGMENTS - 1);
    for week in 0..SEGMENTS / 168 {
        scene = scene.backup(1, week * 168);
    }
    let policy = RetentionPolicy {
        window: Some(TimeDelta::days(3650)),
        monthly: Some(600),
        yearly: Some(100),
        ..RetentionPolicy::default()
    };
    let plan = scene.plan(&policy, SEGMENTS).unwrap();
    let planned = begun.elapsed();
    let mut deletable = 0;
    for number in 0..SEGMENTS {
        let key: Key = Key::Segment(segment(1, number)).to_string().parse().unwrap();
        let name = key.segment().unwrap();
        let number = name.number(SIZE).unwrap();
        deletable += u64::from(plan.deletable_wal.contains(name.timeline(), number));
    }
    let grown = resident_kib().saturating_sub(before);
    let (backups, stretches) = (plan.backups.len(), plan.wal.len());
    eprintln!(
        "{SEGMENTS} segments, {backups} backups: {stretches} stretches, {deletable} deletable; \
         planned in {planned:?}, all in {:?}; {grown} KiB more",
        begun.elapsed()
    );
    let kept: u64 = plan
        .wal
        .iter()
        .filter(|fate| fate.action == Action::Keep)
        .map(|fate| fate.range.segments)
        .sum();
    assert_eq!(kept + deletable, SEGMENTS);
    assert!(
        !plan
            .deletable_wal
            .contains(plan.wal[0].range.first.timeline(), SegmentNumber(SEGMENTS))
    );
    assert!(grown < 32 << 10, "{grown} KiB");
}
