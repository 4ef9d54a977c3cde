//! `ledger/drills.json`: how the archive's last drills ended, of whichever backup.
//!
//! A backup's own `proof.json` is deleted with the backup; this stays.

use serde::{Deserialize, Serialize};

use super::identity::decimal;
use super::keys::{BackupId, Key, LedgerObject};
use super::proof::DrillRecord;
use super::{FORMAT_VERSION, Stored, record};
use crate::error::{Error, Result};

/// The last drills of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drills {
    format_version: u32,
    #[serde(with = "decimal")]
    system_identifier: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_success: Option<ArchiveDrill>,
    /// The last one that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<ArchiveDrill>,
}

/// A drill, and the backup that it was of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveDrill {
    /// The backup; it may be gone.
    pub backup: BackupId,
    /// How it went.
    pub drill: DrillRecord,
}

impl Drills {
    /// No drill of the archive of this cluster.
    #[must_use]
    pub fn none(system_identifier: u64) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            system_identifier,
            last_success: None,
            last_failure: None,
        }
    }

    /// Adds a drill, unless a later one that ended likewise is known.
    #[must_use]
    pub fn with(mut self, backup: &BackupId, drill: &DrillRecord) -> Self {
        let half = if drill.passed() {
            &mut self.last_success
        } else {
            &mut self.last_failure
        };
        if half
            .as_ref()
            .is_none_or(|known| known.drill.started_at <= drill.started_at)
        {
            let (backup, mut drill) = (backup.clone(), drill.clone());
            drill.shorten();
            *half = Some(ArchiveDrill { backup, drill });
        }
        self
    }

    /// The drill that began last.
    #[must_use]
    pub fn last(&self) -> Option<&ArchiveDrill> {
        let both = [&self.last_success, &self.last_failure];
        both.into_iter()
            .flatten()
            .max_by_key(|known| known.drill.started_at)
    }
}

impl Stored for Drills {
    /// The system identifier of the archive's cluster.
    type Of = u64;
    const LIMIT_BYTES: u64 = 1 << 20;

    fn key(_: &u64) -> Key {
        Key::Ledger(LedgerObject::Drills)
    }

    fn parse(bytes: &[u8], url: &str, system_identifier: &u64) -> Result<Self> {
        let drills: Self = record::parse(bytes, url)?;
        if drills.system_identifier != *system_identifier {
            return Err(Error::corrupt(format!(
                "{url} is of the cluster {}",
                drills.system_identifier
            )));
        }
        Ok(drills)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        record::to_bytes(self)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::ErrorKind;

    fn drill(second: i64, failure: Option<&str>) -> DrillRecord {
        let moment = DateTime::from_timestamp(second, 0).unwrap();
        let mut drill = DrillRecord::begun(moment, "db1".to_owned(), "the end".to_owned());
        drill.failure = failure.map(str::to_owned);
        drill
    }

    // Seen to fail: `format/drills.rs`: the earlier drill is replaced whatever its time
    #[test]
    fn an_older_drill_never_takes_the_place_of_a_later_one() {
        let id: BackupId = "20261123T041500Z".parse().unwrap();
        let drills = Drills::none(7)
            .with(&id, &drill(200, None))
            .with(&id, &drill(100, Some("a gap")))
            .with(&id, &drill(50, None));
        assert_eq!(drills.last_success.as_ref().unwrap().drill, drill(200, None));
        assert!(drills.last().unwrap().drill.passed());
        let bytes = drills.to_bytes().unwrap();
        assert_eq!(Drills::parse(&bytes, "u", &7).unwrap(), drills);
        assert_eq!(
            Drills::parse(&bytes, "u", &8).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        let later = drills.with(&id, &drill(300, Some("a gap")));
        assert!(!later.last().unwrap().drill.passed());
    }
}
