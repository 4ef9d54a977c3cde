//! A progress bar for long work, when stderr is a terminal.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::progress::Progress;

const REDRAW: Duration = Duration::from_millis(100);

/// Runs `work` with counters of its own, and draws them meanwhile if anybody can see it.
pub async fn watched<T>(work: impl AsyncFnOnce(&Arc<Progress>) -> T) -> T {
    let progress = Arc::new(Progress::default());
    let mut work = Box::pin(work(&progress));
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let bar = ProgressBar::no_length();
    let mut redraw = tokio::time::interval(REDRAW);
    loop {
        tokio::select! {
            result = &mut work => {
                bar.finish_and_clear();
                return result;
            }
            _ = redraw.tick() => draw(&bar, &progress),
        }
    }
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    let now = progress.snapshot();
    let template = if now.total_bytes > 0 {
        "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"
    } else {
        "{msg} {spinner} {bytes}, {bytes_per_sec}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    // The server's estimate may fall short; a bar beyond its end would be a lie.
    if now.total_bytes > 0 {
        bar.set_length(now.total_bytes.max(now.done_bytes));
    }
    bar.set_message(now.phase);
    bar.set_position(now.done_bytes);
    bar.tick();
}
