//! Text for people and for records: sizes, moments, spans of time, hexadecimal digits, tables.

use std::time::Duration;

mod byte_size;
mod counted;
mod table;

pub use byte_size::{ByteSize, split_number};
pub use counted::counted;
pub use table::write_table;

/// A SHA-256, or any bytes, in lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The bytes that an even number of hexadecimal digits stands for.
pub(crate) fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[high, low]| Some((digit(*high)? << 4) | digit(*low)?))
        .collect()
}

/// A moment for people, in a form that PostgreSQL and `--target-time` take back.
#[must_use]
pub fn time_text(moment: chrono::DateTime<chrono::Utc>) -> String {
    // PostgreSQL's times end at microseconds.
    let text = moment.format("%Y-%m-%d %H:%M:%S%.6f").to_string();
    format!("{}Z", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A span of time for people: `3 h`, `26 min`, `4 days`.
#[must_use]
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_shown_in_utc_with_no_more_digits_than_it_has() {
        for (micros, text) in [
            (1_796_010_300_000_000, "2026-11-30 03:45:00Z"),
            (1_796_010_300_250_000, "2026-11-30 03:45:00.25Z"),
            (1_796_010_310_000_001, "2026-11-30 03:45:10.000001Z"),
        ] {
            let moment = chrono::DateTime::from_timestamp_micros(micros).unwrap();
            assert_eq!(time_text(moment), text);
            assert_eq!(crate::pg::parse_timestamp(text).unwrap(), moment);
        }
    }

    #[test]
    fn a_span_is_said_in_the_unit_people_would_choose() {
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7199, "119 min"),
            (7200, "2 h"),
            (172_799, "47 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
