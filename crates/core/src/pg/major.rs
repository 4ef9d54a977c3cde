//! PostgreSQL's major versions, and the numbers by which its files tell them apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A major version, printed and stored as its number: `17`. It need not be one that walship supports: a server and an
/// archive may be of a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Major(u32);

impl Major {
    /// PostgreSQL 14.
    pub const V14: Self = Self(14);
    /// PostgreSQL 15.
    pub const V15: Self = Self(15);
    /// PostgreSQL 16.
    pub const V16: Self = Self(16);
    /// PostgreSQL 17.
    pub const V17: Self = Self(17);
    /// PostgreSQL 18.
    pub const V18: Self = Self(18);

    /// Every supported version, oldest first.
    pub const ALL: [Self; 5] = [Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The version's number: 17.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// The major version at the start of `18.6 (Debian 18.6-1)`, `19devel` or `17beta1`.
    #[must_use]
    pub fn of_version(version: &str) -> Option<Self> {
        let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().map(Self).ok()
    }

    /// This version, if walship supports it.
    ///
    /// # Errors
    /// `Invalid` for one that it does not.
    pub fn supported(self) -> Result<Self> {
        if Self::ALL.contains(&self) {
            return Ok(self);
        }
        Err(Error::invalid(format!(
            "PostgreSQL {self} is not supported; this walship works with PostgreSQL 14 to 18"
        )))
    }

    /// Whether base backups work as from 15 on: the options of `BASE_BACKUP` stand in parentheses, it sends one typed
    /// stream, and the functions are `pg_backup_start` and `pg_backup_stop`.
    #[must_use]
    pub fn has_new_base_backup(self) -> bool {
        self >= Self::V15
    }

    /// Whether a server can summarize its WAL, for incremental backups (`summarize_wal`, `pg_wal/summaries`).
    #[must_use]
    pub fn has_wal_summaries(self) -> bool {
        self >= Self::V17
    }

    /// The number at the start of each WAL page (`XLOG_PAGE_MAGIC`,
    /// `src/include/access/xlog_internal.h` of each version), if walship knows it.
    #[must_use]
    pub fn wal_magic(self) -> Option<u16> {
        match self {
            Self::V14 => Some(0xD10D),
            Self::V15 => Some(0xD110),
            Self::V16 => Some(0xD113),
            Self::V17 => Some(0xD116),
            Self::V18 => Some(0xD118),
            _ => None,
        }
    }

    /// The version whose WAL pages start with this number, if walship knows it.
    pub(crate) fn of_wal_magic(magic: u16) -> Option<Self> {
        let mut known = Self::ALL.into_iter();
        known.find(|major| major.wal_magic() == Some(magic))
    }

    /// The version whose system catalogues have this number (`CATALOG_VERSION_NO`, `src/include/catalog/catversion.h`),
    /// which does not change after a major version's first release. Beta releases and forks have numbers of their own.
    pub(crate) fn of_catalog_version(catalog_version: u32) -> Option<Self> {
        match catalog_version {
            202_107_181 => Some(Self::V14),
            202_209_061 => Some(Self::V15),
            202_307_071 => Some(Self::V16),
            202_406_281 => Some(Self::V17),
            202_506_291 => Some(Self::V18),
            _ => None,
        }
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Major {
    type Err = Error;

    /// Reads the content of `PG_VERSION`: the number, and perhaps a newline.
    fn from_str(text: &str) -> Result<Self> {
        text.trim_end().parse().map(Self).map_err(|_| {
            Error::invalid(format!(
                "{text:?} is not a PostgreSQL major version; give its number, like 17"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_leads_back_to_its_version() {
        let catalogues = [202_107_181, 202_209_061, 202_307_071, 202_406_281, 202_506_291];
        for (major, catalog_version) in Major::ALL.into_iter().zip(catalogues) {
            assert_eq!(major.supported().unwrap(), major);
            assert_eq!(major.to_string().parse::<Major>().unwrap(), major);
            assert_eq!(major.wal_magic().and_then(Major::of_wal_magic), Some(major));
            let json = serde_json::to_string(&major).unwrap();
            assert_eq!(json, major.number().to_string());
            assert_eq!(serde_json::from_str::<Major>(&json).unwrap(), major);
            assert_eq!(Major::of_catalog_version(catalog_version), Some(major));
        }
    }

    #[test]
    fn a_version_walship_does_not_know_is_refused() {
        for unknown in ["13", "19"] {
            let unknown: Major = unknown.parse().unwrap();
            assert!(unknown.supported().is_err() && unknown.wal_magic().is_none());
        }
        assert!("17.2".parse::<Major>().is_err() && "".parse::<Major>().is_err());
        assert_eq!("17\n".parse::<Major>().unwrap(), Major::V17);
        assert_eq!(Major::of_wal_magic(0), None);
        assert_eq!(Major::of_catalog_version(0), None);
    }

    #[test]
    fn the_major_version_is_read_from_any_build() {
        for (version, major) in [
            ("18.6 (Debian 18.6-1)", Some(18)),
            ("19devel", Some(19)),
            ("14.23", Some(14)),
            ("9.6.24", Some(9)),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(Major::of_version(version).map(Major::number), major, "{version}");
        }
    }
}
