//! What the signs mean: those that occur.

use super::lane::{failed, kept, shape, tick};
use super::words::{Elements, width};
use crate::judge::catalogue::UnfinishedState;
use crate::judge::history_picture::{History, MarkState, StretchKind};

const LINE: f64 = 20.0;
const SIGN: f64 = 24.0;

/// Draws the key below `top`; where it ends.
pub(super) fn draw(
    history: &History,
    ids: &str,
    left: f64,
    right: f64,
    top: f64,
    body: &mut Elements,
) -> f64 {
    let (mut x, mut y) = (left, top + LINE - 6.0);
    for (is_needed, sign, words) in entries(history, ids) {
        if !is_needed {
            continue;
        }
        let room = SIGN + width(words, 11.0) + 16.0;
        if x > left && x + room > right {
            (x, y) = (left, y + LINE);
        }
        body.0.push_str(&sign(x + 8.0, y));
        body.text(x + SIGN, y, "start", "small", words);
        x += room;
    }
    y + 6.0
}

type Sign<'a> = Box<dyn Fn(f64, f64) -> String + 'a>;

/// Every sign, whether it occurs, and what it means.
fn entries<'a>(history: &'a History, ids: &'a str) -> Vec<(bool, Sign<'a>, &'static str)> {
    let has_stretch = |kind| {
        let mut all = history.lanes.iter().flat_map(|lane| &lane.stretches);
        all.any(|stretch| stretch.kind == kind)
    };
    let has_mark = |is: fn(&MarkState) -> bool| history.backups().any(|mark| is(&mark.state));
    let mark = |state: MarkState| -> Sign<'a> { Box::new(move |x, y| shape(&state, x, y)) };
    let drawn = |draw: fn(f64, f64) -> String| -> Sign<'a> { Box::new(draw) };
    let hatched = |pattern: &'static str| -> Sign<'a> {
        Box::new(move |x, y| {
            format!(
                r#"<rect x="{0:.1}" y="{1:.1}" width="16" height="12" class="bad-paper"/><rect x="{0:.1}" y="{1:.1}" width="16" height="12" fill="url(#{ids}-{pattern})" class="outline"/>"#,
                x - 8.0,
                y - 10.0
            )
        })
    };
    let reason = String::new();
    let state = UnfinishedState::Started;
    vec![
        (has_stretch(StretchKind::Archived), drawn(bar), "archived WAL"),
        (
            has_stretch(StretchKind::Gap),
            hatched("gap"),
            "gap: WAL is missing",
        ),
        (
            has_stretch(StretchKind::Damaged),
            hatched("damaged"),
            "damaged WAL",
        ),
        (
            has_stretch(StretchKind::Released),
            drawn(released),
            "released by retention",
        ),
        (
            history.lanes.iter().any(|lane| !lane.recoverable.is_empty()),
            drawn(band),
            "can be recovered",
        ),
        (
            history.lanes.iter().any(|lane| lane.fork.is_some()),
            drawn(fork),
            "a timeline leaves another",
        ),
        (
            has_mark(|state| *state == MarkState::Restorable),
            mark(MarkState::Restorable),
            "backup",
        ),
        (
            has_mark(|state| *state == MarkState::StandsAlone),
            mark(MarkState::StandsAlone),
            "backup that stands alone",
        ),
        (
            has_mark(|state| matches!(state, MarkState::Unrestorable { .. })),
            mark(MarkState::Unrestorable { reason }),
            "backup that cannot be restored",
        ),
        (
            has_mark(|state| matches!(state, MarkState::Unfinished { .. })),
            mark(MarkState::Unfinished { state }),
            "unfinished backup",
        ),
        (
            history.backups().any(|mark| mark.proven.last_success.is_some()),
            drawn(tick),
            "proven by a drill",
        ),
        (
            history.backups().any(|mark| mark.proven.last_failure.is_some()),
            drawn(failed),
            "its last drill failed",
        ),
        (
            history.backups().any(|mark| mark.kept.is_some()),
            drawn(kept),
            "kept",
        ),
    ]
}

fn bar(x: f64, y: f64) -> String {
    format!(
        r#"<rect x="{:.1}" y="{:.1}" width="16" height="10" class="wal"/>"#,
        x - 8.0,
        y - 9.0
    )
}

fn released(x: f64, y: f64) -> String {
    format!(
        r#"<path d="M{:.1} {:.1}h18" class="released"/>"#,
        x - 9.0,
        y - 4.0
    )
}

fn band(x: f64, y: f64) -> String {
    format!(
        r#"<rect x="{0:.1}" y="{1:.1}" width="16" height="12" class="band"/><path d="M{0:.1} {2:.1}v4h16v-4" class="bracket"/>"#,
        x - 8.0,
        y - 10.0,
        y - 2.0
    )
}

fn fork(x: f64, y: f64) -> String {
    format!(
        r#"<path d="M{0:.1} {1:.1}V{2:.1}h12" class="fork"/><circle cx="{0:.1}" cy="{1:.1}" r="3" class="fork-dot"/>"#,
        x - 5.0,
        y - 9.0,
        y - 1.0
    )
}
