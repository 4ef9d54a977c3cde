//! The ledger of `walship verify`: which object was read and found good, when, and how the runs ended.
//!
//! It saves work and proves nothing. An entry counts only while the store shows the very object that was read. A part
//! of the ledger that is damaged, of another archive or of a newer format is ignored.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::barriers::Barriers;
use super::identity::decimal;
use super::keys::{BackupId, Key, LedgerObject};
use super::{FORMAT_VERSION, Sha256Sum, Stored, record};
use crate::error::{Error, Result};

/// The version of the ledger's format that this walship writes, and the newest it reads.
const LEDGER_VERSION: u32 = 1;
/// At most this many findings are kept in the summary.
const FINDINGS_KEPT: usize = 200;
/// At most this many damaged objects are remembered.
const DAMAGE_KEPT: usize = 10_000;
const LEVEL: i32 = 3;

/// One part of the ledger, such as that of one folder of WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Which part it is.
    pub object: LedgerObject,
    /// The archive's cluster.
    pub system_identifier: u64,
    /// Of a backup: the record whose files were compared with PostgreSQL's manifest.
    pub compared: Option<Sha256Sum>,
    /// What was read and found good, by key.
    pub entries: BTreeMap<String, Entry>,
}

/// An object that was read and found good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its size in the store, in bytes.
    pub size: u64,
    /// When it was written, as the store says.
    pub modified: DateTime<Utc>,
    /// Which version of the object it is, in the store's own words.
    pub version: String,
    /// When it was read.
    pub verified_at: DateTime<Utc>,
}

impl Entry {
    /// Whether it is of the object that the store shows now.
    #[must_use]
    pub fn is_of(&self, size: u64, modified: DateTime<Utc>, version: &str) -> bool {
        self.size == size && self.modified == modified && self.version == version && !version.is_empty()
    }
}

/// The first line of a stored shard.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    ledger_version: u32,
    walship: String,
    #[serde(with = "decimal")]
    system_identifier: u64,
    shard: String,
    entries: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compared: Option<Sha256Sum>,
}

/// The part of the first line that every version shares.
#[derive(Deserialize)]
struct Versioned {
    ledger_version: u32,
}

/// Every other line of a stored shard.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    key: String,
    #[serde(flatten)]
    entry: Entry,
}

impl Shard {
    /// A part in which nothing was noted yet.
    #[must_use]
    pub fn new(object: LedgerObject, system_identifier: u64) -> Self {
        Self {
            object,
            system_identifier,
            compared: None,
            entries: BTreeMap::new(),
        }
    }
}

/// JSON lines in one zstd frame with a checksum.
impl Stored for Shard {
    /// Which part it is, and the system identifier of the archive's cluster.
    type Of = (LedgerObject, u64);
    const LIMIT_BYTES: u64 = 256 << 20;

    fn key((object, _): &Self::Of) -> Key {
        Key::Ledger(object.clone())
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let defect = |error: std::io::Error| Error::io("write the ledger", error);
        let mut frame = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).map_err(defect)?;
        frame.include_checksum(true).map_err(defect)?;
        let header = Header {
            ledger_version: LEDGER_VERSION,
            walship: env!("CARGO_PKG_VERSION").to_owned(),
            system_identifier: self.system_identifier,
            shard: self.object.to_string(),
            entries: self.entries.len(),
            compared: self.compared,
        };
        write_line(&mut frame, &header)?;
        for (key, entry) in &self.entries {
            let line = Line {
                key: key.clone(),
                entry: entry.clone(),
            };
            write_line(&mut frame, &line)?;
        }
        frame.finish().map_err(defect)
    }

    fn parse(bytes: &[u8], _: &str, (object, system_identifier): &Self::Of) -> Result<Self> {
        let damaged = |what: &dyn std::fmt::Display| Error::corrupt(format!("it is damaged: {what}"));
        let mut text = String::new();
        zstd::stream::read::Decoder::new(bytes)
            .and_then(|mut frame| frame.read_to_string(&mut text))
            .map_err(|error| damaged(&error))?;
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let Versioned { ledger_version } = serde_json::from_str(first).map_err(|error| damaged(&error))?;
        if ledger_version > LEDGER_VERSION {
            return Err(Error::invalid(format!(
                "it has version {ledger_version}, and this walship reads up to {LEDGER_VERSION}"
            )));
        }
        let header: Header = serde_json::from_str(first).map_err(|error| damaged(&error))?;
        if header.shard != object.to_string() || header.system_identifier != *system_identifier {
            return Err(Error::corrupt(format!(
                "it is {} of the cluster {}",
                header.shard, header.system_identifier
            )));
        }
        let entries: BTreeMap<String, Entry> = lines
            .map(|line| serde_json::from_str(line).map(|line: Line| (line.key, line.entry)))
            .collect::<Result<_, _>>()
            .map_err(|error| damaged(&error))?;
        if entries.len() != header.entries {
            return Err(damaged(&format!(
                "it has {} entries instead of {}",
                entries.len(),
                header.entries
            )));
        }
        Ok(Self {
            object: object.clone(),
            system_identifier: *system_identifier,
            compared: header.compared,
            entries,
        })
    }
}

fn write_line(output: &mut impl Write, line: &impl Serialize) -> Result<()> {
    let mut json = serde_json::to_vec(line).map_err(|error| Error::defect("write JSON", error))?;
    json.push(b'\n');
    output
        .write_all(&json)
        .map_err(|error| Error::io("write the ledger", error))
}

/// Whether an unchanged object that was read at `verified_at` is to be read again by now. Each object has its own
/// moment in every period, so that the reading is spread evenly.
#[must_use]
pub fn is_due(key: &str, verified_at: DateTime<Utc>, now: DateTime<Utc>, period: Duration) -> bool {
    let period = i64::try_from(period.as_millis()).unwrap_or(i64::MAX).max(1);
    // Below the period, which is an i64.
    let phase = (Sha256Sum::of(key.as_bytes()).first_eight() % period.cast_unsigned()).cast_signed();
    let rounds = |moment: DateTime<Utc>| (moment.timestamp_millis() - phase).div_euclid(period);
    // A clock that was put back proves nothing.
    verified_at > now || rounds(now) > rounds(verified_at)
}

/// The content of `ledger/summary.json`: how the last runs ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerSummary {
    /// The archive's format version.
    pub format_version: u32,
    /// The walship version that wrote it.
    pub walship: String,
    /// The archive's cluster.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// The last run that came to its end.
    pub last: LedgerRun,
    /// When the last run that found nothing wrong ended.
    pub last_clean_at: Option<DateTime<Utc>>,
    /// When the last run with `--full` ended, clean or not.
    pub last_full_at: Option<DateTime<Utc>>,
    /// Everything that is known to be damaged: found by the last run, or by earlier ones that looked at more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damage: Vec<LedgerFinding>,
    /// The records that no recovery crosses, and how far the WAL was searched for them.
    #[serde(default)]
    pub barriers: Barriers,
}

/// One run of `walship verify`, from beginning to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRun {
    /// When it began, by the clock of the machine it ran on.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// How much it looked at.
    pub scope: LedgerScope,
    /// Objects of the archive.
    pub objects: u64,
    /// Objects that were read in this run.
    pub read_objects: u64,
    /// Bytes that were read in this run.
    pub read_bytes: u64,
    /// Every object was read at this moment or later; absent where some never were.
    pub all_read_since: Option<DateTime<Utc>>,
    /// How many things were wrong. 0: the archive was clean.
    pub findings_count: u64,
    /// What was wrong: the first ones.
    pub findings: Vec<LedgerFinding>,
    /// The backups that could not be restored.
    pub unrestorable: Vec<BackupId>,
}

/// How much a run looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LedgerScope {
    /// Everything was read.
    Full,
    /// What was new, changed or due again was read.
    New,
    /// What was new, changed or due again was read, if it was written since a moment.
    Since,
}

/// Something that was wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerFinding {
    /// The object's key.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
    /// The object that was read; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
}

/// Which object a finding is about, as the store showed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its size, in bytes.
    pub size: u64,
    /// When it was written.
    pub modified: DateTime<Utc>,
    /// Which version of it.
    pub version: String,
}

impl LedgerSummary {
    /// The summary after a run, made from the summary `before` it. `since`: the run passed over what was written before
    /// this moment, so what is known of that stays.
    #[must_use]
    pub fn after(
        mut run: LedgerRun,
        before: Option<&Self>,
        since: Option<DateTime<Utc>>,
        system_identifier: u64,
    ) -> Self {
        let of_objects = |finding: &&LedgerFinding| finding.seen.is_some();
        let mut damage: Vec<_> = run.findings.iter().filter(of_objects).cloned().collect();
        if let (Some(before), Some(since)) = (before, since) {
            let passed_over = |finding: &&LedgerFinding| {
                let is_old = finding.seen.as_ref().is_some_and(|seen| seen.modified < since);
                is_old && !run.findings.iter().any(|found| found.key == finding.key)
            };
            damage.extend(before.damage.iter().filter(passed_over).cloned());
        }
        damage.truncate(DAMAGE_KEPT);
        run.findings.truncate(FINDINGS_KEPT);
        let ended = run.finished_at;
        let is_clean = run.findings_count == 0 && run.scope != LedgerScope::Since;
        let is_full = run.scope == LedgerScope::Full;
        Self {
            format_version: FORMAT_VERSION,
            walship: env!("CARGO_PKG_VERSION").to_owned(),
            system_identifier,
            last_clean_at: is_clean
                .then_some(ended)
                .or_else(|| before.and_then(|before| before.last_clean_at)),
            last_full_at: is_full
                .then_some(ended)
                .or_else(|| before.and_then(|before| before.last_full_at)),
            last: run,
            damage,
            barriers: Barriers::default(),
        }
    }
}

impl Stored for LedgerSummary {
    /// The system identifier of the archive's cluster.
    type Of = u64;
    const LIMIT_BYTES: u64 = 16 << 20;

    fn key(_: &u64) -> Key {
        Key::Ledger(LedgerObject::Summary)
    }

    fn parse(bytes: &[u8], url: &str, system_identifier: &u64) -> Result<Self> {
        let summary: Self = record::parse(bytes, url)?;
        if summary.system_identifier != *system_identifier {
            return Err(Error::corrupt(format!(
                "{url} is of the cluster {}",
                summary.system_identifier
            )));
        }
        Ok(summary)
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        record::to_bytes(self)
    }
}

#[cfg(test)]
mod tests;
