//! One timeline: its name, the backups above its bar, the WAL, and words below.

use super::scale::Scale;
use super::tips;
use super::words::{Elements, Place, Rows, width};
use crate::judge::history_picture::{Lane, Mark, MarkState, Stretch, StretchKind};
use crate::pg::TimelineId;
use crate::text::counted;

const NAME_HEIGHT: f64 = 18.0;
const WORDS_HEIGHT: f64 = 14.0;
const MARK_HEIGHT: f64 = 13.0;
const BAR_HEIGHT: f64 = 14.0;
const BRACKET_HEIGHT: f64 = 10.0;
const GAP_BELOW: f64 = 12.0;
const ROWS_ABOVE: usize = 3;
const ROWS_BELOW: usize = 3;
/// What matters is at least this wide, however short it was.
const GAP_WIDTH: f64 = 5.0;
const SMALL: f64 = 11.0;
/// What is usual is named only where there are few of it; the key has the sign.
const FEW: usize = 3;

/// Where a lane's bar is, for the lines of the forks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bar {
    pub(super) timeline: TimelineId,
    pub(super) middle: f64,
}

/// A lane that was drawn.
#[derive(Debug)]
pub(super) struct Drawn {
    pub(super) elements: Elements,
    /// The bands, which lie behind everything.
    pub(super) bands: Elements,
    pub(super) bar: Bar,
    pub(super) bottom: f64,
}

/// What all lanes have in common.
#[derive(Debug)]
pub(super) struct Sheet<'a> {
    pub(super) scale: &'a Scale,
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) ids: &'a str,
    pub(super) followed: Option<TimelineId>,
}

/// A text and the place that was found for it.
struct Label {
    place: Place,
    class: &'static str,
    text: String,
}

/// Draws a lane below `top`.
pub(super) fn draw(lane: &Lane, sheet: &Sheet<'_>, top: f64) -> Drawn {
    let mut elements = Elements::default();
    let mut bands = Elements::default();
    name(lane, sheet, top, &mut elements);
    let (above, rows_above) = words_above(lane, sheet);
    let glyphs = glyph_rows(lane);
    let marks = if lane.backups.is_empty() { 0.0 } else { MARK_HEIGHT };
    let bar =
        top + NAME_HEIGHT + rows_above as f64 * WORDS_HEIGHT + glyphs as f64 * MARK_HEIGHT + marks + 4.0;
    recoverable(lane, sheet, bar, &mut bands, &mut elements);
    wal(lane, sheet, bar, &mut elements);
    for mark in &lane.backups {
        backup(mark, sheet.scale.x(mark.period.until), bar, &mut elements);
    }
    let over_glyphs = bar - marks - glyphs as f64 * MARK_HEIGHT - 6.0;
    for label in above {
        let y = over_glyphs - label.place.row as f64 * WORDS_HEIGHT;
        elements.text(label.place.x, y, "middle", label.class, &label.text);
    }
    let (below, rows_below) = words_below(lane, sheet);
    let below_bar = bar + BAR_HEIGHT + BRACKET_HEIGHT;
    for label in below {
        let y = below_bar + label.place.row as f64 * WORDS_HEIGHT + 10.0;
        elements.text(label.place.x, y, "middle", label.class, &label.text);
    }
    Drawn {
        elements,
        bands,
        bar: Bar {
            timeline: lane.timeline,
            middle: bar + BAR_HEIGHT / 2.0,
        },
        bottom: below_bar + rows_below as f64 * WORDS_HEIGHT + GAP_BELOW,
    }
}

/// The timeline's name, and as much more as the line holds.
fn name(lane: &Lane, sheet: &Sheet<'_>, top: f64, elements: &mut Elements) {
    let name = format!("Timeline {}", lane.timeline);
    let mut left = sheet.right - sheet.left - width(&name, 13.0);
    let mut more = String::new();
    for part in name_parts(lane, sheet) {
        let part = format!(" · {part}");
        left -= width(&part, SMALL);
        if left < 0.0 {
            break;
        }
        more.push_str(&part);
    }
    let (x, y) = (sheet.left, top + 12.0);
    elements.add(format_args!(
        r#"<text x="{x:.1}" y="{y:.1}"><tspan class="strong">{name}</tspan><tspan class="soft small">{}</tspan></text>"#,
        super::words::escaped(&more)
    ));
}

/// What is said beside the name, the more important parts first.
fn name_parts(lane: &Lane, sheet: &Sheet<'_>) -> Vec<String> {
    let mut parts = Vec::new();
    if lane.retired.is_some() {
        parts.push("retired".to_owned());
    } else if lane.unreadable.is_some() {
        parts.push("its history cannot be read".to_owned());
    } else if sheet.followed == Some(lane.timeline) {
        parts.push("followed".to_owned());
    }
    let of = |kind| lane.stretches.iter().filter(move |stretch| stretch.kind == kind);
    match of(StretchKind::Gap).count() {
        0 => {}
        count => parts.push(counted(count as u64, "gap")),
    }
    let held = of(StretchKind::Archived).chain(of(StretchKind::Damaged));
    match held.map(|stretch| stretch.segments.segments).sum() {
        0 => parts.push("nothing archived".to_owned()),
        segments => parts.push(counted(segments, "segment")),
    }
    if !lane.backups.is_empty() {
        parts.push(counted(lane.backups.len() as u64, "backup"));
    }
    if let Some(fork) = lane.fork {
        parts.push(format!("left timeline {} at {}", fork.timeline, fork.lsn));
    }
    parts
}

/// The band and the bracket of what can be recovered.
fn recoverable(lane: &Lane, sheet: &Sheet<'_>, bar: f64, bands: &mut Elements, elements: &mut Elements) {
    for period in &lane.recoverable {
        let (from, until) = (sheet.scale.x(period.from), sheet.scale.x(period.until));
        let (from, until) = (from - 1.0, until.max(from + 2.0) + 1.0);
        let (y, height) = (
            bar - MARK_HEIGHT - 4.0,
            MARK_HEIGHT + BAR_HEIGHT + BRACKET_HEIGHT + 2.0,
        );
        let tip = format!(
            "can be recovered: {}, timeline {}",
            tips::period(*period),
            lane.timeline
        );
        bands.group(
            &tip,
            &format!(
                r#"<rect x="{from:.1}" y="{y:.1}" width="{:.1}" height="{height:.1}" class="band"/>"#,
                until - from
            ),
        );
        let under = bar + BAR_HEIGHT + BRACKET_HEIGHT - 4.0;
        elements.add(format_args!(
            r#"<path d="M{from:.1} {:.1}V{under:.1}H{until:.1}V{:.1}" class="bracket"/>"#,
            under - 4.0,
            under - 4.0
        ));
    }
}

/// The bar: what is there, what was released, what is damaged or missing, and what no recovery crosses.
fn wal(lane: &Lane, sheet: &Sheet<'_>, bar: f64, elements: &mut Elements) {
    let middle = bar + BAR_HEIGHT / 2.0;
    for one in drawn(lane, sheet, StretchKind::Released, 1.0) {
        let sign = format!(
            r#"<path d="M{:.1} {middle:.1}H{:.1}" class="released"/>"#,
            one.from, one.until
        );
        elements.group(&tips::of_stretches(&one.stretches), &sign);
    }
    for one in drawn(lane, sheet, StretchKind::Archived, 1.5) {
        elements.group(
            &tips::of_stretches(&one.stretches),
            &rect(&one, bar, BAR_HEIGHT, r#"class="wal""#),
        );
    }
    for (kind, pattern) in [(StretchKind::Damaged, "damaged"), (StretchKind::Gap, "gap")] {
        for one in drawn(lane, sheet, kind, GAP_WIDTH) {
            let (top, height) = (bar - 2.0, BAR_HEIGHT + 4.0);
            let paper = rect(&one, top, height, r#"class="bad-paper""#);
            let fill = format!(r#"fill="url(#{}-{pattern})" class="outline""#, sheet.ids);
            elements.group(
                &tips::of_stretches(&one.stretches),
                &(paper + &rect(&one, top, height, &fill)),
            );
        }
    }
    for barrier in &lane.barriers {
        let x = sheet.scale.x(barrier.at);
        let sign = format!(
            r#"<path d="M{x:.1} {:.1}V{:.1}" class="barrier"/>"#,
            bar - 5.0,
            bar + BAR_HEIGHT + 5.0
        );
        elements.group(&barrier.reason, &sign);
    }
    if let Some(last) = lane.last {
        let x = sheet.scale.x(last.at);
        let stored = last.stored_at.map(|at| format!(", stored {}", tips::second(at)));
        let sign = format!(
            r#"<path d="M{x:.1} {:.1}V{:.1}" class="end"/>"#,
            bar - 3.0,
            bar + BAR_HEIGHT + 3.0
        );
        let tip = format!(
            "last archived segment: {}{}",
            last.segment,
            stored.unwrap_or_default()
        );
        elements.group(&tip, &sign);
    }
}

fn rect(one: &Together<'_>, top: f64, height: f64, attributes: &str) -> String {
    format!(
        r#"<rect x="{:.1}" y="{top:.1}" width="{:.1}" height="{height:.1}" {attributes}/>"#,
        one.from,
        one.until - one.from
    )
}

/// Stretches of one kind that lie within a pixel of each other.
struct Together<'a> {
    stretches: Vec<&'a Stretch>,
    from: f64,
    until: f64,
}

fn drawn<'a>(lane: &'a Lane, sheet: &Sheet<'_>, kind: StretchKind, narrowest: f64) -> Vec<Together<'a>> {
    let mut all: Vec<Together<'a>> = Vec::new();
    for stretch in lane.stretches.iter().filter(|stretch| stretch.kind == kind) {
        let (from, until) = (
            sheet.scale.x(stretch.period.from),
            sheet.scale.x(stretch.period.until),
        );
        let more = ((narrowest - (until - from)) / 2.0).max(0.0);
        let (from, until) = (from - more, until + more);
        match all.last_mut() {
            Some(last) if from < last.until + 1.0 => {
                last.until = last.until.max(until);
                last.stretches.push(stretch);
            }
            _ => all.push(Together {
                stretches: vec![stretch],
                from,
                until,
            }),
        }
    }
    all
}

/// How many rows of signs stand above the marks: proof, and keep.
fn glyph_rows(lane: &Lane) -> usize {
    let rows = |mark: &Mark| usize::from(has_drill(mark)) + usize::from(mark.kept.is_some());
    lane.backups.iter().map(rows).max().unwrap_or(0)
}

fn has_drill(mark: &Mark) -> bool {
    mark.proven.last_success.is_some() || mark.proven.last_failure.is_some()
}

/// Whether the last drill of a backup passed.
fn is_proven(mark: &Mark) -> bool {
    mark.proven.last_success.is_some() && mark.proven.last_success >= mark.proven.last_failure
}

/// A backup: its mark, which stands on the bar, and signs above it.
fn backup(mark: &Mark, x: f64, bar: f64, elements: &mut Elements) {
    let y = bar - 3.0;
    let mut inside = shape(&mark.state, x, y);
    let mut sign = y - MARK_HEIGHT - 1.0;
    if has_drill(mark) {
        inside += &(if is_proven(mark) {
            tick(x, sign)
        } else {
            failed(x, sign)
        });
        sign -= MARK_HEIGHT;
    }
    if mark.kept.is_some() {
        inside += &kept(x, sign);
    }
    elements.group(&tips::of_mark(mark), &inside);
}

/// The mark of a backup, above `y`.
pub(super) fn shape(state: &MarkState, x: f64, y: f64) -> String {
    let top = y - 10.0;
    let triangle = |class: &str| {
        format!(
            r#"<path d="M{:.1} {top:.1}H{:.1}L{x:.1} {y:.1}Z" class="{class}"/>"#,
            x - 6.0,
            x + 6.0
        )
    };
    match state {
        MarkState::Restorable => triangle("restorable"),
        MarkState::StandsAlone => triangle("alone"),
        MarkState::Unrestorable { .. } => format!(
            r#"<path d="M{a:.1} {top:.1}L{b:.1} {y:.1}M{b:.1} {top:.1}L{a:.1} {y:.1}" class="cross"/>"#,
            a = x - 5.0,
            b = x + 5.0
        ),
        MarkState::Unfinished { .. } => format!(
            r#"<circle cx="{x:.1}" cy="{:.1}" r="5" class="unfinished"/>"#,
            y - 5.0
        ),
    }
}

/// A tick above `y`: proven.
pub(super) fn tick(x: f64, y: f64) -> String {
    format!(
        r#"<path d="M{:.1} {:.1}L{:.1} {:.1}L{:.1} {:.1}" class="tick"/>"#,
        x - 4.5,
        y - 4.0,
        x - 1.0,
        y,
        x + 5.0,
        y - 8.0
    )
}

/// An exclamation mark above `y`: the last drill failed.
pub(super) fn failed(x: f64, y: f64) -> String {
    format!(
        r#"<path d="M{x:.1} {:.1}V{:.1}M{x:.1} {:.1}V{y:.1}" class="failed"/>"#,
        y - 10.0,
        y - 4.0,
        y - 2.0
    )
}

/// A lock above `y`: kept.
pub(super) fn kept(x: f64, y: f64) -> String {
    format!(
        r#"<path d="M{:.1} {:.1}h8v5.5h-8zm1.5 0v-2a2.5 2.5 0 0 1 5 0v2" class="kept"/>"#,
        x - 4.0,
        y - 5.5
    )
}

/// Words above the marks, the more important ones first, and how many rows they take.
fn words_above(lane: &Lane, sheet: &Sheet<'_>) -> (Vec<Label>, usize) {
    let mut wanted: Vec<(u8, &Mark, &'static str, String)> = Vec::new();
    let newest_proof = lane
        .backups
        .iter()
        .filter_map(|mark| mark.proven.last_success)
        .max();
    for mark in &lane.backups {
        match &mark.state {
            MarkState::Unrestorable { .. } => {
                wanted.push((0, mark, "alarm small", "cannot be restored".to_owned()));
            }
            MarkState::Unfinished { state } => {
                wanted.push((1, mark, "small", tips::unfinished(*state).to_owned()));
            }
            MarkState::StandsAlone => wanted.push((4, mark, "soft small", "stands alone".to_owned())),
            MarkState::Restorable => {}
        }
        if has_drill(mark) && !is_proven(mark) {
            wanted.push((2, mark, "alarm small", "drill failed".to_owned()));
        } else if let Some(proof) = mark
            .proven
            .last_success
            .filter(|proof| Some(*proof) == newest_proof)
        {
            let words = format!("proven {}", proof.format("%Y-%m-%d"));
            wanted.push((3, mark, "good-words small", words));
        }
        if mark.kept.is_some() {
            wanted.push((5, mark, "soft small", "kept".to_owned()));
        }
    }
    let count =
        |wanted: &[(u8, &Mark, &str, String)], rank| wanted.iter().filter(|one| one.0 == rank).count();
    for usual in [4, 5] {
        if count(&wanted, usual) > FEW {
            wanted.retain(|(rank, ..)| *rank != usual);
        }
    }
    wanted.sort_by_key(|(rank, mark, ..)| (*rank, std::cmp::Reverse(mark.period.until)));
    let wanted = wanted
        .into_iter()
        .map(|(_, mark, class, text)| (sheet.scale.x(mark.period.until), class, text));
    placed(wanted, ROWS_ABOVE, sheet)
}

/// Words below the bar, the more important ones first, and how many rows they take.
fn words_below(lane: &Lane, sheet: &Sheet<'_>) -> (Vec<Label>, usize) {
    let mut wanted: Vec<(f64, &'static str, String)> = Vec::new();
    for kind in [StretchKind::Gap, StretchKind::Damaged] {
        for one in drawn(lane, sheet, kind, GAP_WIDTH) {
            let segments = one
                .stretches
                .iter()
                .map(|stretch| stretch.segments.segments)
                .sum();
            let words = match (kind, one.stretches.len() as u64) {
                (StretchKind::Gap, count) if count > 1 => counted(count, "gap"),
                _ => tips::kind_words(kind).to_owned(),
            };
            let words = format!("{words}: {}", counted(segments, "segment"));
            wanted.push((f64::midpoint(one.from, one.until), "alarm small", words));
        }
    }
    for barrier in &lane.barriers {
        wanted.push((
            sheet.scale.x(barrier.at),
            "alarm small",
            "no recovery crosses this".to_owned(),
        ));
    }
    let longest = lane.recoverable.iter().max_by_key(|period| period.length());
    if let Some(period) = longest {
        let x = f64::midpoint(sheet.scale.x(period.from), sheet.scale.x(period.until));
        wanted.push((x, "good-words small", "recoverable".to_owned()));
    }
    let released = drawn(lane, sheet, StretchKind::Released, 1.0);
    let widest = released
        .iter()
        .max_by(|one, other| (one.until - one.from).total_cmp(&(other.until - other.from)));
    if let Some(one) = widest {
        wanted.push((
            f64::midpoint(one.from, one.until),
            "soft small",
            "released".to_owned(),
        ));
    }
    if let Some(last) = lane.last {
        let at = last.stored_at.unwrap_or(last.at);
        wanted.push((
            sheet.scale.x(last.at),
            "soft small",
            format!("last archived {}", tips::minute(at)),
        ));
    }
    placed(wanted.into_iter(), ROWS_BELOW, sheet)
}

fn placed(
    wanted: impl Iterator<Item = (f64, &'static str, String)>,
    most: usize,
    sheet: &Sheet<'_>,
) -> (Vec<Label>, usize) {
    let mut rows = Rows::new(most, sheet.left, sheet.right);
    let labels = wanted.filter_map(|(x, class, text)| {
        let place = rows.place(x, width(&text, SMALL))?;
        Some(Label { place, class, text })
    });
    let labels = labels.collect();
    (labels, rows.used())
}
