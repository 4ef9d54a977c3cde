//! `backups/<id>/proof.json`: what the drills of a backup showed.
//!
//! Mutable by design: each drill reads it, replaces its own half and writes it back. It decides
//! nothing, so a damaged one counts as none.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::keys::{BackupId, BackupObject, Key};
use super::{FORMAT_VERSION, Stored, record};
use crate::error::{Error, Result};
use crate::pg::{Lsn, TimelineId};

/// The target of a recovery that has none, as it is written.
pub(crate) const TO_THE_END: &str = "the end of the archived WAL";
/// At most this many bytes of a text are kept: a server's complaint can be long.
const TEXT_LIMIT: usize = 2000;

/// What the drills of a backup showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    format_version: u32,
    backup: BackupId,
    /// The last drill that passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<DrillRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_failure: Option<DrillRecord>,
}

/// One drill: a backup restored, replayed and checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillRecord {
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When its last check was done.
    pub finished_at: DateTime<Utc>,
    /// The machine it ran on.
    pub host: String,
    /// The version of the walship that made it.
    walship: String,
    /// Where recovery was to end.
    pub target: String,
    /// The version of the server that replayed it; none where it did not come to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres_version: Option<String>,
    /// Restoring the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Stage>,
    /// Starting the server and replaying the WAL, until it was open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Stage>,
    /// The timeline that recovery followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// Where replay ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached_lsn: Option<Lsn>,
    /// When the last transaction that was replayed had ended; none where the WAL had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_commit: Option<DateTime<Utc>>,
    /// What was looked at in the open server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// Why it failed; none where it passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// How much was done, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Bytes of the backup, or of WAL.
    pub bytes: u64,
    /// Milliseconds.
    pub ms: u64,
}

/// A check of the restored data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Which.
    pub kind: CheckKind,
    /// What came of it.
    pub outcome: Outcome,
    /// Milliseconds.
    pub ms: u64,
    /// What was seen, or why it was left out.
    pub detail: String,
}

/// What looks at the restored data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// The user's own statements.
    Sql,
    /// `pg_amcheck`: tables and indexes of every database.
    Amcheck,
    /// `pg_checksums`: every page.
    Checksums,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All is well.
    Passed,
    /// Something is wrong with the data.
    Failed,
    /// It could not be made here.
    Skipped,
}

impl CheckKind {
    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sql => "SQL",
            Self::Amcheck => "pg_amcheck",
            Self::Checksums => "pg_checksums",
        }
    }
}

impl DrillRecord {
    /// A drill by this walship that has just begun.
    #[must_use]
    pub fn begun(started_at: DateTime<Utc>, host: String, target: String) -> Self {
        Self {
            started_at,
            finished_at: started_at,
            host,
            walship: env!("CARGO_PKG_VERSION").to_owned(),
            target,
            postgres_version: None,
            restore: None,
            replay: None,
            timeline: None,
            reached_lsn: None,
            newest_commit: None,
            checks: Vec::new(),
            failure: None,
        }
    }

    /// Whether nothing that was tried failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failure.is_none()
    }

    /// Cuts long texts to what is stored.
    pub(super) fn shorten(&mut self) {
        let checks = self.checks.iter_mut().map(|check| &mut check.detail);
        checks.chain(&mut self.failure).for_each(shorten);
    }

    /// How long it took from nothing to an open server, in milliseconds.
    #[must_use]
    pub fn recovery_ms(&self) -> Option<u64> {
        Some(self.restore?.ms + self.replay?.ms)
    }

    /// How old the newest replayed transaction was when the drill began. If the primary had been lost then, no more
    /// than this would have been lost. `None` for a drill to an earlier target, which does not tell.
    #[must_use]
    pub fn data_loss(&self) -> Option<TimeDelta> {
        if self.target != TO_THE_END {
            return None;
        }
        let age = self.started_at - self.newest_commit?;
        // Two machines' clocks.
        Some(age.max(TimeDelta::zero()))
    }
}

impl Proof {
    /// What is known after one more drill.
    #[must_use]
    pub fn after(before: Option<Self>, backup: &BackupId, mut drill: DrillRecord) -> Self {
        let mut proof = before.unwrap_or_else(|| Self {
            format_version: FORMAT_VERSION,
            backup: backup.clone(),
            last_success: None,
            last_failure: None,
        });
        drill.shorten();
        if drill.passed() {
            proof.last_success = Some(drill);
        } else {
            proof.last_failure = Some(drill);
        }
        proof
    }
}

impl Stored for Proof {
    type Of = BackupId;
    const LIMIT_BYTES: u64 = 1 << 20;

    fn key(backup: &BackupId) -> Key {
        backup.key(BackupObject::Proof)
    }

    fn parse(bytes: &[u8], url: &str, id: &BackupId) -> Result<Self> {
        let proof: Self = record::parse(bytes, url)?;
        if proof.backup != *id {
            return Err(Error::corrupt(format!(
                "{url} is that of backup {}",
                proof.backup
            )));
        }
        Ok(proof)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        record::to_bytes(self)
    }
}

fn shorten(text: &mut String) {
    if text.len() > TEXT_LIMIT {
        text.truncate(text.floor_char_boundary(TEXT_LIMIT));
        text.push('…');
    }
}

/// What drills showed of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Proven {
    /// When the last one that passed began; none where none did.
    pub last_success: Option<DateTime<Utc>>,
    /// When the last one that failed began; none where none did.
    pub last_failure: Option<DateTime<Utc>>,
}

impl Proven {
    /// From a proof, if there is one.
    #[must_use]
    pub fn of(proof: Option<&Proof>) -> Self {
        let Some(proof) = proof else {
            return Self::default();
        };
        let began = |drill: &Option<DrillRecord>| drill.as_ref().map(|drill| drill.started_at);
        Self {
            last_success: began(&proof.last_success),
            last_failure: began(&proof.last_failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn id() -> BackupId {
        "20261123T000000Z".parse().unwrap()
    }

    fn drill(second: i64, failure: Option<&str>) -> DrillRecord {
        let moment = |second| DateTime::from_timestamp(second, 0).unwrap();
        DrillRecord {
            started_at: moment(second),
            finished_at: moment(second + 9),
            host: "db1".to_owned(),
            walship: "0.1.0".to_owned(),
            target: TO_THE_END.to_owned(),
            postgres_version: Some("17.11".to_owned()),
            restore: Some(Stage {
                bytes: 1 << 30,
                ms: 4000,
            }),
            replay: Some(Stage {
                bytes: 1 << 24,
                ms: 1500,
            }),
            timeline: Some(TimelineId::FIRST),
            reached_lsn: Some(Lsn(0x300_0028)),
            newest_commit: Some(moment(second - 60)),
            checks: vec![Check {
                kind: CheckKind::Amcheck,
                outcome: Outcome::Passed,
                ms: 700,
                detail: "2 databases".to_owned(),
            }],
            failure: failure.map(str::to_owned),
        }
    }

    /// The drill that began last.
    fn last(proof: &Proof) -> Option<&DrillRecord> {
        let both = [&proof.last_success, &proof.last_failure];
        both.into_iter().flatten().max_by_key(|drill| drill.started_at)
    }

    // Seen to fail: `format/proof.rs`: the success is dropped
    #[test]
    fn a_success_and_a_failure_are_kept_beside_each_other() {
        let proof = Proof::after(None, &id(), drill(100, None));
        let proof = Proof::after(Some(proof), &id(), drill(200, Some("a gap")));
        assert_eq!(proof.last_success, Some(drill(100, None)));
        assert_eq!(last(&proof), Some(&drill(200, Some("a gap"))));
        let proof = Proof::after(Some(proof), &id(), drill(300, None));
        assert_eq!(last(&proof), Some(&drill(300, None)));
        assert_eq!(proof.last_failure, Some(drill(200, Some("a gap"))));
        assert_eq!(
            Proof::parse(&proof.to_bytes().unwrap(), "u", &id()).unwrap(),
            proof
        );
        let other = "20261124T000000Z".parse().unwrap();
        let of_other = Proof::parse(&proof.to_bytes().unwrap(), "u", &other).unwrap_err();
        assert_eq!(of_other.kind(), ErrorKind::Corrupt, "{of_other}");
    }

    // Seen to fail: `format/proof.rs`: `data_loss` does not look at the target
    #[test]
    fn the_figures_come_from_the_stages_and_the_newest_commit() {
        let record = drill(100, None);
        assert_eq!(record.recovery_ms(), Some(5500));
        assert_eq!(record.data_loss(), Some(TimeDelta::seconds(60)));
        let ahead = DrillRecord {
            newest_commit: Some(record.finished_at),
            ..record.clone()
        };
        assert_eq!(ahead.data_loss(), Some(TimeDelta::zero()));
        let to_a_target = DrillRecord {
            target: "time 2026-11-23 12:00:00Z".to_owned(),
            ..record.clone()
        };
        assert_eq!(to_a_target.data_loss(), None);
        assert_eq!(
            DrillRecord {
                replay: None,
                ..record
            }
            .recovery_ms(),
            None
        );
    }

    #[test]
    fn what_a_later_walship_adds_is_passed_over_and_a_later_format_refused() {
        let proof = serde_json::to_value(Proof::after(None, &id(), drill(1, None))).unwrap();
        let with = |name: &str, value: u32| {
            let mut changed = proof.clone();
            changed[name] = value.into();
            Proof::parse(&record::to_bytes(&changed).unwrap(), "u", &id())
        };
        assert_eq!(last(&with("later", 1).unwrap()), Some(&drill(1, None)));
        assert_eq!(with("format_version", 2).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(
            Proof::parse(b"{", "u", &id()).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
    }

    #[test]
    fn a_long_complaint_is_cut_between_characters() {
        let proof = Proof::after(None, &id(), drill(1, Some(&"ü".repeat(TEXT_LIMIT))));
        let kept = proof.last_failure.unwrap().failure.unwrap();
        assert!(
            kept.len() <= TEXT_LIMIT + '…'.len_utf8() && kept.ends_with("ü…"),
            "{kept}"
        );
    }
}
