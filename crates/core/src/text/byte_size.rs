//! Sizes, as people write and read them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes: `8MiB`, `32MB`, `100kB`. As in PostgreSQL, every unit is a power of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split_number(text);
        let shift = match unit {
            "" | "B" => Some(0),
            "k" | "kB" | "KB" | "KiB" => Some(10),
            "M" | "MB" | "MiB" => Some(20),
            "G" | "GB" | "GiB" => Some(30),
            "T" | "TB" | "TiB" => Some(40),
            _ => None,
        };
        let bytes = number
            .zip(shift)
            .and_then(|(number, shift)| number.checked_mul(1 << shift));
        bytes.map(Self).ok_or_else(|| {
            format!("\"{text}\" is not a size; write a number of bytes, or 100KiB, 8MiB, 1GiB")
        })
    }
}

impl fmt::Display for ByteSize {
    /// For people: with one decimal, rounded down.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.iter().find(|(_, shift)| self.0 >> shift > 0) {
            Some((unit, shift)) => {
                // In u128, because ten times a size may not fit in 64 bits.
                let tenths = (u128::from(self.0) * 10) >> shift;
                f.pad(&format!("{}.{} {unit}", tenths / 10, tenths % 10))
            }
            None => f.pad(&format!("{} B", self.0)),
        }
    }
}

/// A number, and the unit after it.
pub fn split_number(text: &str) -> (Option<u64>, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    (number.parse().ok(), unit.trim_start())
}
