//! walship's format, as `docs/format.md` specifies it. Pure: no I/O, no clock, no environment.

pub mod assessment;
pub mod backup;
pub mod barriers;
pub mod branches;
pub mod catalogue;
pub mod codec;
pub mod copy_settings;
pub mod damage;
pub mod demands;
pub mod diagnosis;
pub mod drills;
pub mod file_index;
pub mod forks;
pub mod identity;
pub mod keep;
pub mod keys;
pub mod ledger;
pub mod lineage;
pub mod proof;
pub mod ranges;
pub mod record;
pub mod recovery_plan;
pub mod released;
pub mod remembered;
pub mod retention;
pub mod retired;
pub mod seed_source;
pub mod segment_index;
pub mod tar_stream;
pub mod timeline_chain;
pub mod wal_inventory;
pub mod window;

use serde::Serialize;

use crate::error::{Error, Result};

/// The version of the archive's format that this walship writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;

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

/// A moment for people, in a form that PostgreSQL and `--target-time` take back.
#[must_use]
pub fn time_text(moment: chrono::DateTime<chrono::Utc>) -> String {
    // PostgreSQL knows no more than microseconds.
    let text = moment.format("%Y-%m-%d %H:%M:%S%.6f").to_string();
    format!("{}Z", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A SHA-256 as JSON holds it: 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Sha256Sum(pub [u8; 32]);

impl Sha256Sum {
    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Its first eight bytes, big-endian: what some keys carry.
    #[must_use]
    pub fn first_eight(&self) -> u64 {
        self.0.first_chunk().map_or(0, |start| u64::from_be_bytes(*start))
    }
}

impl std::fmt::Display for Sha256Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl From<Sha256Sum> for String {
    fn from(sum: Sha256Sum) -> Self {
        sum.to_string()
    }
}

impl TryFrom<String> for Sha256Sum {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let bad = || Error::corrupt(format!("{text:?} is not a SHA-256 in hexadecimal"));
        let mut sum = [0; 32];
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 64 || !text.bytes().all(is_digit) {
            return Err(bad());
        }
        for (byte, digits) in sum.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(Self(sum))
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
    fn a_hash_is_64_hexadecimal_digits_and_nothing_else() {
        let text = "00ff".repeat(16);
        let sum = Sha256Sum::try_from(text.clone()).unwrap();
        assert_eq!(sum.0[..2], [0, 0xff]);
        assert_eq!(String::from(sum), text);
        for wrong in [
            &text[..62],
            &format!("{text}00"),
            &text.replace('f', "g"),
            &text.replace('f', "F"),
            &text.replace("00", "+0"),
            &format!("é{}", &text[2..]),
            "",
        ] {
            assert!(Sha256Sum::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
