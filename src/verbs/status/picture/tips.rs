//! What is said of a thing when it is pointed at.

use chrono::{DateTime, Utc};

use crate::judge::catalogue::UnfinishedState;
use crate::judge::history_picture::{Fork, Lane, Mark, MarkState, Period, Stretch, StretchKind};
use crate::text::{ByteSize, counted};

/// To the second; tooltips and JSON have no more use for.
pub(super) fn second(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// To the minute.
pub(super) fn minute(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%MZ").to_string()
}

/// A period, with its day once where it is one day.
pub(super) fn period(period: Period) -> String {
    let (from, until) = (second(period.from), second(period.until));
    if from == until {
        return from;
    }
    let same_day = period.from.date_naive() == period.until.date_naive();
    let until = if same_day {
        period.until.format("%H:%M:%SZ").to_string()
    } else {
        until
    };
    format!("{} to {until}", from.trim_end_matches('Z'))
}

pub(super) fn of_mark(mark: &Mark) -> String {
    let mut lines = vec![
        format!("backup {}: {}", mark.id, state(mark)),
        period(mark.period),
    ];
    if !mark.label.is_empty() {
        lines.push(format!("label {}", mark.label));
    }
    if let Some(bytes) = mark.stored_bytes {
        lines.push(format!("{} stored", ByteSize(bytes)));
    }
    lines.push(proof(mark));
    if let Some(kept) = &mark.kept {
        lines.push(format!("kept {kept}"));
    }
    lines.join("\n")
}

fn state(mark: &Mark) -> String {
    match &mark.state {
        MarkState::Restorable => "can be restored".to_owned(),
        MarkState::StandsAlone => "can be restored to its own end, and stands alone".to_owned(),
        MarkState::Unrestorable { reason } => format!("CANNOT BE RESTORED: {reason}"),
        MarkState::Unfinished { state } => unfinished(*state).to_owned(),
    }
}

/// How far an unfinished backup came.
pub(super) fn unfinished(state: UnfinishedState) -> &'static str {
    match state {
        UnfinishedState::WaitingForWal => "waits for its WAL",
        UnfinishedState::Started => "not finished",
        UnfinishedState::Remains => "remains of a deletion",
    }
}

fn proof(mark: &Mark) -> String {
    let proven = &mark.proven;
    match (proven.last_success, proven.last_failure) {
        (None, None) => "no drill yet".to_owned(),
        (Some(success), None) => format!("proven by a drill on {}", second(success)),
        (None, Some(failure)) => format!("the drill on {} FAILED", second(failure)),
        (Some(success), Some(failure)) => format!(
            "proven by a drill on {}; the one on {} FAILED",
            second(success),
            second(failure)
        ),
    }
}

/// Stretches of one kind that are drawn as one.
pub(super) fn of_stretches(all: &[&Stretch]) -> String {
    let (Some(first), Some(last)) = (all.first(), all.last()) else {
        return String::new();
    };
    let segments: u64 = all.iter().map(|stretch| stretch.segments.segments).sum();
    let words = match (first.kind, all.len() as u64) {
        (kind, 1) => kind_words(kind).to_owned(),
        (StretchKind::Gap, count) => counted(count, "gap"),
        (kind, count) => format!("{}, {count} times", kind_words(kind)),
    };
    format!(
        "{words}: {}\n{} to {}\nabout {}",
        counted(segments, "segment"),
        first.segments.first,
        last.segments.last,
        period(Period {
            from: first.period.from,
            until: last.period.until,
        })
    )
}

/// What a kind of stretch is called.
pub(super) fn kind_words(kind: StretchKind) -> &'static str {
    match kind {
        StretchKind::Archived => "archived",
        StretchKind::Released => "released",
        StretchKind::Damaged => "damaged",
        StretchKind::Gap => "gap",
    }
}

pub(super) fn of_fork(lane: &Lane, fork: Fork) -> String {
    let left = format!(
        "timeline {} left timeline {} at LSN {}, about {}",
        lane.timeline,
        fork.timeline,
        fork.lsn,
        second(fork.left_at)
    );
    if fork.begins_at > fork.left_at {
        return format!("{left}\nit began about {}", second(fork.begins_at));
    }
    left
}
