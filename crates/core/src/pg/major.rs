//! PostgreSQL's major versions, and the numbers by which its files tell them apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A major version that walship supports, printed as its number: `17`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u16", try_from = "u16")]
pub enum Major {
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

impl Major {
    /// Every supported version, oldest first.
    pub const ALL: [Self; 5] = [Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The version with this number.
    ///
    /// # Errors
    /// `Invalid` for a version walship does not know.
    pub fn new(number: u16) -> Result<Self> {
        Self::find(|major| major.number() == number).ok_or_else(|| {
            Error::invalid(format!(
                "PostgreSQL {number} is not supported; this walship works with PostgreSQL 14 to 18"
            ))
        })
    }

    /// The version's number: 17.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }

    /// The number at the start of each WAL page (`XLOG_PAGE_MAGIC`,
    /// `src/include/access/xlog_internal.h` of each version).
    #[must_use]
    pub fn wal_magic(self) -> u16 {
        match self {
            Self::V14 => 0xD10D,
            Self::V15 => 0xD110,
            Self::V16 => 0xD113,
            Self::V17 => 0xD116,
            Self::V18 => 0xD118,
        }
    }

    /// The version whose WAL pages start with this number, if walship knows it.
    #[must_use]
    pub fn of_wal_magic(magic: u16) -> Option<Self> {
        Self::find(|major| major.wal_magic() == magic)
    }

    /// The version of the system catalogues (`CATALOG_VERSION_NO`, `src/include/catalog/catversion.h`),
    /// which does not change after a major version's first release.
    #[must_use]
    pub fn catalog_version(self) -> u32 {
        match self {
            Self::V14 => 202_107_181,
            Self::V15 => 202_209_061,
            Self::V16 => 202_307_071,
            Self::V17 => 202_406_281,
            Self::V18 => 202_506_291,
        }
    }

    /// The version with this `CATALOG_VERSION_NO`, if walship knows it. Beta releases and forks have
    /// numbers of their own.
    #[must_use]
    pub fn of_catalog_version(catalog_version: u32) -> Option<Self> {
        Self::find(|major| major.catalog_version() == catalog_version)
    }

    fn find(matches: impl Fn(Self) -> bool) -> Option<Self> {
        Self::ALL.into_iter().find(|major| matches(*major))
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl FromStr for Major {
    type Err = Error;

    /// Reads the content of `PG_VERSION`: the number, and perhaps a newline.
    fn from_str(text: &str) -> Result<Self> {
        let number = text.trim_end().parse().map_err(|_| {
            Error::invalid(format!(
                "{text:?} is not a PostgreSQL major version; give its number, like 17"
            ))
        })?;
        Self::new(number)
    }
}

impl From<Major> for u16 {
    fn from(major: Major) -> Self {
        major.number()
    }
}

impl TryFrom<u16> for Major {
    type Error = Error;

    fn try_from(number: u16) -> Result<Self> {
        Self::new(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_leads_back_to_its_version() {
        for major in Major::ALL {
            assert_eq!(Major::new(major.number()).unwrap(), major);
            assert_eq!(major.to_string().parse::<Major>().unwrap(), major);
            assert_eq!(Major::of_wal_magic(major.wal_magic()), Some(major));
            assert_eq!(Major::try_from(u16::from(major)).unwrap(), major);
            assert_eq!(Major::of_catalog_version(major.catalog_version()), Some(major));
        }
    }

    #[test]
    fn a_version_walship_does_not_know_is_refused() {
        assert!(Major::new(13).is_err() && Major::new(19).is_err());
        assert!("17.2".parse::<Major>().is_err() && "".parse::<Major>().is_err());
        assert_eq!("17\n".parse::<Major>().unwrap(), Major::V17);
        assert_eq!(Major::of_wal_magic(0), None);
    }
}
