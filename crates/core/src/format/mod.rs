//! walship's format, as `docs/format.md` specifies it: keys, records, indexes, and the bytes of each object.

pub mod backup;
pub mod barriers;
pub mod codec;
pub mod drills;
pub mod file_index;
pub mod frames;
pub mod identity;
pub mod keep;
pub mod keys;
pub mod ledger;
pub mod lineage;
pub mod proof;
pub mod ranges;
pub mod record;
pub mod released;
pub mod remembered;
pub mod retired;
pub mod segment_index;
pub mod tar_stream;
pub mod wal_inventory;

use serde::Serialize;

pub use self::record::Stored;
use crate::error::{Error, Result};
use crate::text::{from_hex, hex};

/// The version of the archive's format that this walship writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;

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
        from_lower_case(&text)
            .map(Self)
            .ok_or_else(|| Error::corrupt(format!("{text:?} is not a SHA-256 in hexadecimal")))
    }
}

/// The 128-bit XXH3 of a file's bytes, as JSON holds it: 32 lower-case hexadecimal digits, as `xxh128sum` prints it.
/// It tells whether bytes changed by accident. It does not withstand somebody who changes them on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Xxh3Sum(pub u128);

impl Xxh3Sum {
    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(twox_hash::XxHash3_128::oneshot(bytes))
    }

    /// Its first eight bytes: what the key of a `.partial` file carries.
    #[must_use]
    pub const fn first_eight(&self) -> u64 {
        (self.0 >> 64) as u64
    }
}

impl std::fmt::Display for Xxh3Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<Xxh3Sum> for String {
    fn from(sum: Xxh3Sum) -> Self {
        sum.to_string()
    }
}

impl TryFrom<String> for Xxh3Sum {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        from_lower_case(&text)
            .map(|bytes| Self(u128::from_be_bytes(bytes)))
            .ok_or_else(|| Error::corrupt(format!("{text:?} is not an XXH3 of 128 bits in hexadecimal")))
    }
}

/// The bytes of a hash in lower-case hexadecimal.
fn from_lower_case<const LENGTH: usize>(text: &str) -> Option<[u8; LENGTH]> {
    let is_lower_case = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    from_hex(text).filter(|_| is_lower_case)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf abc | xxh128sum`
    #[test]
    fn an_xxh3_is_written_as_xxh128sum_prints_it() {
        let sum = Xxh3Sum::of(b"abc");
        assert_eq!(sum.to_string(), "06b05ab6733a618578af5f94892f3950");
        assert_eq!(Xxh3Sum::try_from(sum.to_string()).unwrap(), sum);
        assert!(Xxh3Sum::try_from("06B05AB6733a618578af5f94892f3950".to_owned()).is_err());
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
