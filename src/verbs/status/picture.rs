//! The picture of the recoverable history as SVG: values in, text out. It needs nothing from elsewhere and no script, is
//! legible without colour, light and dark, on a screen and on paper, and says in words what it shows.
//!
//! It is laid out for a width in pixels. What has no room for its words has them when it is pointed at.
#![allow(clippy::cast_precision_loss)] // a pixel needs no more

mod key;
mod lane;
mod scale;
mod tips;
mod words;

use std::path::Path;
use std::time::Duration;

use self::lane::{Bar, Drawn, Sheet};
use self::scale::{Fold, NAMED_FOLDS, Scale, Tick};
use self::words::{Elements, Rows, escaped, width, wrapped};
use super::StatusReport;
use super::text::window_text;
use crate::edge::replace_file;
use crate::error::{Error, Result};
use crate::judge::history_picture::{History, StretchKind};
use crate::text::{counted, span};

/// Fit for a screen, and for a page across.
pub const WIDE: f64 = 1200.0;
const MARGIN: f64 = 14.0;
const LINE: f64 = 17.0;
const SIZE: f64 = 12.0;
const SMALL: f64 = 11.0;
const NOW: &str = "now";
/// At most this many of a kind are told in words.
const TOLD: usize = 3;
const STYLE: &str = include_str!("picture/style.css");

/// The picture of a report.
#[must_use]
pub fn svg(report: &StatusReport, width: f64) -> String {
    let picture = Picture {
        report,
        history: &report.history,
        left: MARGIN,
        right: width - MARGIN,
        ids: format!("wh{width:.0}"),
    };
    picture.draw(width)
}

/// Writes the picture of a report into a file, which is there as a whole or not at all.
///
/// # Errors
/// `Internal`, naming the file.
pub fn write(report: &StatusReport, path: &Path) -> Result<()> {
    replace_file(path, svg(report, WIDE).as_bytes(), 0o644)
        .map_err(|error| Error::io(format!("write the picture {}", path.display()), error))
}

struct Picture<'a> {
    report: &'a StatusReport,
    history: &'a History,
    left: f64,
    right: f64,
    /// What the ids in it begin with, so that two pictures can stand on one page.
    ids: String,
}

impl Picture<'_> {
    fn draw(&self, width: f64) -> String {
        let mut body = Elements::default();
        let mut y = self.head(&mut body);
        if !self.history.lanes.is_empty() {
            y = self.lanes(&mut body, y);
            y = key::draw(self.history, &self.ids, self.left, self.right, y, &mut body);
            y = self.paragraph(
                &mut body,
                y + 4.0,
                "soft",
                "Where no moment is known, WAL stands between the known ones by its position. Times are UTC.",
            );
        }
        self.whole(&body.0, width, y + 6.0)
    }

    fn whole(&self, body: &str, width: f64, height: f64) -> String {
        let ids = &self.ids;
        let mut all = Elements::default();
        all.add(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="walship-history" role="img" aria-labelledby="{ids}-title {ids}-desc" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" font-family="sans-serif" font-size="12">"#
        ));
        all.add(format_args!(
            r#"<title id="{ids}-title">{}</title>"#,
            escaped(&format!("What can be recovered from {}", self.report.archive))
        ));
        all.add(format_args!(
            r#"<desc id="{ids}-desc">{}</desc>"#,
            escaped(&self.description())
        ));
        all.add(format_args!("<style>{STYLE}</style>"));
        all.add(format_args!(
            r#"<defs><pattern id="{ids}-gap" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path d="M0 0V6" class="hatch"/></pattern><pattern id="{ids}-damaged" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path d="M0 0V6M0 0H6" class="hatch"/></pattern></defs>"#
        ));
        all.add(format_args!(
            r#"<rect width="{width:.0}" height="{height:.0}" class="paper"/>"#
        ));
        all.0.push_str(body);
        all.0.push_str("</svg>\n");
        all.0
    }

    /// Title and sentences; where they end.
    fn head(&self, body: &mut Elements) -> f64 {
        body.text(self.left, MARGIN + 14.0, "start", "head", "What can be recovered");
        let of = format!(
            "{}, as of {}",
            self.report.archive,
            tips::second(self.history.now)
        );
        let mut y = self.paragraph(body, MARGIN + 20.0, "soft", &of);
        for (class, sentence) in self.sentences() {
            y = self.paragraph(body, y, class, &sentence);
        }
        y + 8.0
    }

    /// What matters, in words.
    fn sentences(&self) -> Vec<(&'static str, String)> {
        let mut all = Vec::new();
        let hidden = self.report.window.len().saturating_sub(TOLD);
        for window in self.report.window.iter().skip(hidden) {
            all.push(("strong", format!("Recoverable: {}.", window_text(window))));
        }
        if hidden > 0 {
            all.push((
                "soft",
                format!("{} before.", counted(hidden as u64, "more period")),
            ));
        }
        if self.report.window.is_empty() {
            all.push((
                "alarm",
                format!("Nothing can be recovered: {}.", self.why_nothing()),
            ));
        }
        all.extend(
            self.lost(StretchKind::Gap, "Missing WAL")
                .map(|lost| ("alarm", lost)),
        );
        all.extend(
            self.lost(StretchKind::Damaged, "Damaged WAL")
                .map(|lost| ("alarm", lost)),
        );
        all
    }

    fn why_nothing(&self) -> &'static str {
        let has_wal = self.report.last_wal.is_some();
        let has_backup = self.history.backups().next().is_some();
        match (has_wal, has_backup) {
            (false, false) => {
                "the archive is empty; set archive_command = 'walship push %p', then take a backup with walship basebackup"
            }
            (true, false) => "there is WAL, but no base backup; take one with walship basebackup",
            (_, true) => {
                "no backup can be restored; walship list says why, walship basebackup takes a new one"
            }
        }
    }

    /// The stretches of WAL that no recovery crosses, and what they are called.
    fn lost(&self, kind: StretchKind, what: &str) -> Option<String> {
        let stretches = || self.history.lanes.iter().flat_map(|lane| &lane.stretches);
        let lost = || stretches().filter(|stretch| stretch.kind == kind);
        let named: Vec<_> = lost().take(TOLD).map(|lost| lost.segments.to_string()).collect();
        let more = match lost().count() - named.len() {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        (!named.is_empty()).then(|| format!("{what}, which no recovery crosses: {}{more}.", named.join(", ")))
    }

    /// What the picture shows, for those who do not see it.
    fn description(&self) -> String {
        let mut all: Vec<_> = self
            .sentences()
            .into_iter()
            .map(|(_, sentence)| sentence)
            .collect();
        all.push(format!(
            "Timelines: {}. Backups: {}, of which {} cannot be restored and {} are not finished.",
            self.history.lanes.len(),
            self.history.backups().count(),
            self.report.backups.unrestorable.len(),
            self.report.backups.unfinished.len()
        ));
        for lane in &self.history.lanes {
            all.extend(
                lane.fork
                    .map(|fork| format!("{}.", tips::of_fork(lane, fork).replace('\n', "; "))),
            );
        }
        all.join(" ")
    }

    /// Text in as many lines as it takes; where it ends.
    fn paragraph(&self, body: &mut Elements, top: f64, class: &str, text: &str) -> f64 {
        let mut y = top;
        for line in wrapped(text, SIZE, self.right - self.left) {
            y += LINE;
            body.text(self.left, y - 4.0, "start", class, &line);
        }
        y
    }

    /// The axis and the lanes; where they end.
    fn lanes(&self, body: &mut Elements, top: f64) -> f64 {
        let scale = Scale::new(&self.history.periods, self.left, self.right);
        let sheet = Sheet {
            scale: &scale,
            left: self.left,
            right: self.right,
            ids: &self.ids,
            followed: self.history.followed,
        };
        let axis = top + 34.0;
        let mut y = axis + 8.0;
        let mut drawn: Vec<Drawn> = Vec::new();
        for lane in &self.history.lanes {
            let one = lane::draw(lane, &sheet, y);
            y = one.bottom;
            drawn.push(one);
        }
        self.axis(body, &scale, axis, y);
        for one in &drawn {
            body.0.push_str(&one.bands.0);
        }
        let bars: Vec<Bar> = drawn.iter().map(|one| one.bar).collect();
        let dots = self.forks(body, &scale, &bars);
        for one in &drawn {
            body.0.push_str(&one.elements.0);
        }
        body.0.push_str(&dots.0);
        y
    }

    /// Draws the lines from the parents to their children; the dots at their ends, which lie on the bars.
    fn forks(&self, body: &mut Elements, scale: &Scale, bars: &[Bar]) -> Elements {
        let mut dots = Elements::default();
        let bar_of = |timeline| {
            bars.iter()
                .find(|bar| bar.timeline == timeline)
                .map(|bar| bar.middle)
        };
        for lane in &self.history.lanes {
            let (Some(fork), Some(child)) = (lane.fork, bar_of(lane.timeline)) else {
                continue;
            };
            let (left, begins) = (scale.x(fork.left_at), scale.x(fork.begins_at));
            // Nothing may be left of the parent.
            let parent = bar_of(fork.timeline).unwrap_or(child - 24.0);
            let line = format!(
                r#"<path d="M{left:.1} {parent:.1}V{child:.1}" class="fork"/><path d="M{left:.1} {child:.1}H{begins:.1}" class="fork later"/>"#
            );
            let ends = format!(
                r#"<circle cx="{left:.1}" cy="{parent:.1}" r="3.5" class="fork-dot"/><circle cx="{begins:.1}" cy="{child:.1}" r="3.5" class="fork-dot"/>"#
            );
            let tip = tips::of_fork(lane, fork);
            body.group(&tip, &line);
            dots.group(&tip, &ends);
        }
        dots
    }

    /// The axis with its moments, and thin lines down through the lanes.
    fn axis(&self, body: &mut Elements, scale: &Scale, axis: f64, bottom: f64) {
        let mut rows = Rows::new(1, self.left, self.right);
        let now = Tick {
            at: self.history.now,
            label: NOW.to_owned(),
            context: String::new(),
        };
        let mut shown: Vec<(f64, Tick)> = Vec::new();
        let mut show = |tick: Tick, rows: &mut Rows| {
            let room = width(&tick.label, SIZE).max(width(&tick.context, SMALL));
            let place = rows.place(scale.x(tick.at), room);
            shown.extend(place.map(|place| (place.x, tick)));
        };
        show(now, &mut rows);
        // A few folds are named before the moments, many only where there is room.
        let folds: Vec<_> = scale.folds().collect();
        if folds.len() <= NAMED_FOLDS {
            for fold in &folds {
                Self::fold(body, fold, axis, &mut rows);
            }
        }
        for tick in scale.ticks() {
            show(tick, &mut rows);
        }
        if folds.len() > NAMED_FOLDS {
            for fold in &folds {
                Self::fold(body, fold, axis, &mut rows);
            }
        }
        shown.sort_by_key(|(_, tick)| tick.at);
        let mut context = String::new();
        for (middle, tick) in &shown {
            let (x, class) = (scale.x(tick.at), if tick.label == NOW { "now" } else { "grid" });
            body.add(format_args!(
                r#"<path d="M{x:.1} {axis:.1}V{bottom:.1}" class="{class}"/>"#
            ));
            body.text(*middle, axis - 22.0, "middle", "small", &tick.label);
            if tick.context != context && !tick.context.is_empty() {
                context.clone_from(&tick.context);
                body.text(*middle, axis - 8.0, "middle", "soft small", &tick.context);
            }
        }
        let begins = std::iter::once(self.left).chain(folds.iter().map(|fold| fold.right));
        let ends = folds.iter().map(|fold| fold.left).chain([self.right]);
        for (from, until) in begins.zip(ends) {
            body.add(format_args!(
                r#"<path d="M{from:.1} {axis:.1}H{until:.1}" class="axis"/>"#
            ));
        }
    }

    /// The sign of time that is left out, with its length where there is room.
    fn fold(body: &mut Elements, fold: &Fold, axis: f64, rows: &mut Rows) {
        let words = span(fold.period.length().to_std().unwrap_or(Duration::ZERO));
        let middle = f64::midpoint(fold.left, fold.right);
        let tip = format!(
            "{words} without anything archived are left out: {}",
            tips::period(fold.period)
        );
        let mut inside = format!(
            r#"<path d="M{0:.1} {1:.1}l4 4l-4 4l4 4M{2:.1} {1:.1}l4 4l-4 4l4 4" class="fold"/>"#,
            middle - 5.0,
            axis - 6.0,
            middle + 1.0
        );
        if let Some(place) = rows.place(middle, width(&words, SMALL)) {
            let named = format!(
                r#"<text x="{:.1}" y="{:.1}" text-anchor="middle" class="soft small">{words}</text>"#,
                place.x,
                axis - 22.0
            );
            inside.push_str(&named);
        }
        body.group(&tip, &inside);
    }
}

#[cfg(test)]
mod tests;
