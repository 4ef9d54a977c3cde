//! `backups/<id>/keep.json`: the mark of a backup that is kept whatever the retention policy says.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::keys::{BackupId, BackupObject, Key};
use super::{FORMAT_VERSION, Stored, record};
use crate::error::{Error, Result};

/// The content of `keep.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    format_version: u32,
    /// The walship version that wrote it.
    walship: String,
    backup: BackupId,
    /// When it was written, by the writer's clock.
    kept_at: DateTime<Utc>,
    /// From when on the policy decides again; for ever where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
}

impl Keep {
    /// A mark of a backup that is set now.
    #[must_use]
    pub fn new(backup: &BackupId, until: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            walship: env!("CARGO_PKG_VERSION").to_owned(),
            backup: backup.clone(),
            kept_at: now,
            until,
        }
    }

    /// Whether the backup must be kept at a moment.
    #[must_use]
    pub fn holds_at(&self, now: DateTime<Utc>) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Stored for Keep {
    type Of = BackupId;
    const LIMIT_BYTES: u64 = 64 << 10;

    fn key(backup: &BackupId) -> Key {
        backup.key(BackupObject::Keep)
    }

    fn parse(bytes: &[u8], url: &str, id: &BackupId) -> Result<Self> {
        let keep: Self = record::parse(bytes, url)?;
        if keep.backup != *id {
            return Err(Error::corrupt(format!(
                "{url} is the mark of backup {}",
                keep.backup
            )));
        }
        Ok(keep)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        record::to_bytes(self)
    }
}

impl std::fmt::Display for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.until {
            None => f.write_str("for ever"),
            Some(until) => write!(f, "until {}", crate::text::time_text(until)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_mark_holds_until_its_moment_and_reads_back_as_it_was_written() {
        let moment = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let id = BackupId::at(moment(0));
        let until = Keep::new(&id, Some(moment(100)), moment(0));
        assert!(until.holds_at(moment(99)) && !until.holds_at(moment(100)));
        assert!(Keep::new(&id, None, moment(0)).holds_at(moment(i64::from(u32::MAX))));
        assert_eq!(Keep::parse(&until.to_bytes().unwrap(), "u", &id).unwrap(), until);
    }

    #[test]
    fn what_cannot_be_understood_is_an_error() {
        let of_version =
            |version: u32| record::to_bytes(&serde_json::json!({"format_version": version})).unwrap();
        let id = BackupId::at(DateTime::UNIX_EPOCH);
        for (bytes, kind) in [
            (Vec::new(), ErrorKind::Corrupt),
            (b"{}".to_vec(), ErrorKind::Corrupt),
            (of_version(1), ErrorKind::Corrupt),
            (of_version(2), ErrorKind::Invalid),
        ] {
            assert_eq!(
                Keep::parse(&bytes, "u", &id).unwrap_err().kind(),
                kind,
                "{bytes:?}"
            );
        }
    }
}
