//! Moments as PostgreSQL writes them.

use chrono::{DateTime, Utc};

use crate::error::{Error, Result};

/// Reads a moment as psql prints a `timestamptz` (`2026-11-23 04:15:00.123456+01`) or as ISO 8601
/// has it (`2026-11-23T03:15:00Z`). It must name its time zone, so that nobody has to guess during a
/// recovery whose local time was meant. Parts of a second below a microsecond, which
/// PostgreSQL does not have, are cut off.
///
/// # Errors
/// `Invalid`, with an example.
pub fn parse_timestamp(text: &str) -> Result<DateTime<Utc>> {
    const FORMATS: [&str; 4] = [
        "%Y-%m-%d %H:%M:%S%.f%#z",
        "%Y-%m-%d %H:%M%#z",
        "%Y-%m-%dT%H:%M:%S%.f%#z",
        "%Y-%m-%dT%H:%M%#z",
    ];
    let text = text.trim();
    // The only zone whose name every system writes alike.
    let with_offset = match text.strip_suffix("UTC").or_else(|| text.strip_suffix('Z')) {
        Some(moment) => format!("{}+00", moment.trim_end()),
        None => text.to_owned(),
    };
    let moment = FORMATS
        .iter()
        .find_map(|format| DateTime::parse_from_str(&with_offset, format).ok());
    moment
        .and_then(|moment| DateTime::from_timestamp_micros(moment.timestamp_micros()))
        .ok_or_else(|| {
            Error::invalid(format!(
                "\"{text}\" is not a time with a time zone; write it like \"2026-11-23 04:15:00+01\" or 2026-11-23T03:15:00Z"
            ))
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moments_read_as_psql_and_iso_8601_write_them() {
        let expected = "2026-11-23T03:15:00Z".parse::<DateTime<Utc>>().unwrap();
        for text in [
            "2026-11-23 04:15:00+01",
            "2026-11-23 04:15:00+01:00",
            "2026-11-23 04:15+0100",
            "2026-11-23T03:15:00Z",
            "2026-11-23T03:15Z",
            "2026-11-23 03:15:00 UTC",
            "2026-11-22 22:15:00.000-05",
        ] {
            assert_eq!(parse_timestamp(text).unwrap(), expected, "{text}");
        }
        let fraction = parse_timestamp("2026-11-23 13:44:38.123456+00").unwrap();
        assert_eq!(fraction.timestamp_subsec_micros(), 123_456);
    }

    #[test]
    fn a_moment_without_a_time_zone_is_refused() {
        for text in [
            "",
            "now",
            "yesterday",
            "2026-11-23",
            "2026-11-23 04:15:00",
            "2026-13-01 00:00:00Z",
            "04:15:00+01",
        ] {
            assert!(
                parse_timestamp(text)
                    .unwrap_err()
                    .to_string()
                    .contains("time zone"),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_timestamp_parser_panic(text: String) {
            let _ = parse_timestamp(&text);
        }

        #[test]
        fn every_moment_reads_back_as_iso_8601_has_it(micros in 0i64..4_000_000_000_000_000) {
            let moment = DateTime::<Utc>::from_timestamp_micros(micros).unwrap();
            prop_assert_eq!(parse_timestamp(&moment.to_rfc3339()).unwrap(), moment);
        }
    }
}
