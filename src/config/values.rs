//! How values are written: durations, counts and words.

use std::str::FromStr;
use std::time::Duration;

use super::{BackupMethod, LogFormat, StandbyFailure};
use crate::text::split_number;

/// Reads a duration: a whole number and a unit, `ms`, `s`, `m`, `h` or `d`, such as `30s`. At most
/// 3650 days; zero is refused, for nothing here may wait for no time or for ever.
///
/// # Errors
/// A sentence for the user.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_number(text);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let milliseconds = number.and_then(|number| number.checked_mul(unit_ms)).unwrap_or(0);
    if milliseconds == 0 || milliseconds > 3650 * 86_400_000 {
        return Err(format!(
            "\"{text}\" is no duration walship can use; write 500ms, 30s, 5m, 2h or 14d"
        ));
    }
    Ok(Duration::from_millis(milliseconds))
}

/// A time span for people: `840 ms`, `12.3 s`, `4 min 5 s`, `3 h 20 min`, `12 d 4 h`.
#[must_use]
pub fn duration_text(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..60 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// How many of something to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count(pub(super) u32);

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.parse().ok().filter(|count| *count <= 10_000);
        count
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is no number to keep; write a whole one from 0 to 10000"))
    }
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("choose text or json"),
        }
    }
}

impl FromStr for BackupMethod {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "stream" => Ok(Self::Stream),
            "local" => Ok(Self::Local),
            _ => Err("choose stream or local"),
        }
    }
}

impl FromStr for StandbyFailure {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "continue" => Ok(Self::Continue),
            "stop" => Ok(Self::Stop),
            _ => Err("choose continue or stop"),
        }
    }
}
