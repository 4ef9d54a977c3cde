//! Every object key of an archive: the one place where keys are built and parsed.
//!
//! Keys are relative to the archive's URL. Each key has only one spelling that parses, so a
//! listing can be trusted to name what walship wrote; anything else in an archive is foreign and left alone.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pg::{SegmentName, SegmentSize, TimelineId, WalName};

/// All WAL objects start with this.
pub const WAL_PREFIX: &str = "wal/";
/// All objects of base backups start with this.
pub const BACKUPS_PREFIX: &str = "backups/";
/// All objects of the ledger (what was verified when) start with this.
pub const LEDGER_PREFIX: &str = "ledger/";
/// What a store is probed with, beside `walship.json`. It stays there: deleting it could make a concurrent probe fail.
pub const PROBE_KEY: &str = "walship.probe";
/// A key that nothing ever writes. Deleting it shows whether deleting is allowed.
pub const NEVER_WRITTEN_KEY: &str = "walship.probe.none";
/// Objects that `walship repair` replaced are kept below this.
const DAMAGED_PREFIX: &str = "damaged/";
const RETIRED_SUFFIX: &str = ".retired.json";

/// An object of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// `walship.json`: whose archive this is.
    Identity,
    /// `retention.json`: the WAL that retention has released; replaced.
    Retention,
    /// A whole WAL segment.
    Segment(SegmentName),
    /// The incomplete last segment of a timeline. Two promotions may each make one with different
    /// content, so the key carries the content's hash.
    Partial {
        /// The segment it is the beginning of.
        segment: SegmentName,
        /// The first eight bytes of the content's XXH3, big-endian.
        xxh3_start: u64,
    },
    /// A timeline's history file.
    History(TimelineId),
    /// The mark of a timeline that no server is to follow; replaced.
    Retired(TimelineId),
    /// A backup history file.
    BackupHistory {
        /// The segment in which the backup started.
        segment: SegmentName,
        /// Offset of the start position in that segment, in bytes.
        offset: u32,
    },
    /// An object of a base backup.
    Backup(BackupId, BackupObject),
    /// What was verified when.
    Ledger(LedgerObject),
    /// An object as it was before it was repaired.
    Damaged {
        /// The object.
        original: Box<Key>,
        /// The first eight bytes of the SHA-256 of its bytes as they were stored, big-endian.
        sha256_start: u64,
    },
}

/// A part of the ledger. One for each folder of WAL and for each backup, so that none of them grows with
/// the archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LedgerObject {
    /// `summary.json`: how the last runs ended.
    Summary,
    /// `drills.json`: how the last drills ended.
    Drills,
    /// The timelines' histories.
    Histories,
    /// What lies in the folder of one log number of a timeline.
    Wal(WalFolder),
    /// The objects of a base backup.
    Backup(BackupId),
}

/// Neighbouring folders of WAL have at most this many segments: as many as one folder has where segments are smallest.
const NEIGHBOURS: u64 = 4096;

/// The folder of one log number of a timeline: `wal/00000001/0000000100000003/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalFolder {
    pub(crate) timeline: TimelineId,
    pub(crate) log: u32,
}

impl WalFolder {
    /// The folder in which a segment lies, with its `.partial` and `.backup` files.
    #[must_use]
    pub fn of(segment: SegmentName) -> Self {
        Self {
            timeline: segment.timeline(),
            log: segment.log(),
        }
    }

    /// The keys of all objects in the folder start with this.
    #[must_use]
    pub fn prefix(self) -> String {
        format!("{WAL_PREFIX}{}/", self.path())
    }

    /// The folder of this prefix, if it is one.
    #[must_use]
    pub fn of_prefix(prefix: &str) -> Option<Self> {
        let (_, folder) = prefix
            .strip_prefix(WAL_PREFIX)?
            .strip_suffix('/')?
            .split_once('/')?;
        Self::parse(folder).filter(|folder| folder.prefix() == prefix)
    }

    fn parse(name: &str) -> Option<Self> {
        Some(Self {
            timeline: TimelineId::new(u32::from_str_radix(name.get(..8)?, 16).ok()?).ok()?,
            log: u32::from_str_radix(name.get(8..)?, 16).ok()?,
        })
    }

    /// The keys in the folder start with this, and those in its neighbours: as many folders as have at most
    /// 4096 segments together.
    #[must_use]
    pub fn neighbourhood(self, size: SegmentSize) -> String {
        let folders = NEIGHBOURS / size.segments_per_log();
        // Without one digit at the end there are 16 folders, without two there are 256.
        match folders.checked_ilog(16) {
            None | Some(0) => self.prefix(),
            Some(digits) => {
                let path = self.path();
                let kept = path.get(..path.len() - digits as usize);
                format!("{WAL_PREFIX}{}", kept.unwrap_or(&path))
            }
        }
    }

    fn path(self) -> String {
        let timeline = self.timeline.get();
        format!("{timeline:08X}/{timeline:08X}{:08X}", self.log)
    }
}

/// One of the objects a base backup is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BackupObject {
    /// `started.json`, the first.
    Started,
    /// `alive.json`, the heartbeat; replaced while the backup runs.
    Alive,
    /// `backup.json`, the last: the backup exists when this exists.
    Record,
    /// `pending.json`: the record of a backup whose WAL has not all arrived yet.
    Pending,
    /// `keep.json`: kept whatever the policy says; replaced.
    Keep,
    /// PostgreSQL's `backup_manifest`, untouched.
    Manifest,
    /// The index of the tar streams' members.
    Files,
    /// The configuration files that live outside the data directory.
    Configuration,
    /// `proof.json`: what drills showed; replaced by each.
    Proof,
    /// A part of a tar stream, numbered from 1.
    Part(Stream, u32),
}

/// One of the tar streams a base backup is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// The data directory.
    Base,
    /// The tablespace with this OID.
    Tablespace(u32),
}

impl Key {
    /// Where a file of `pg_wal` is stored.
    ///
    /// # Errors
    /// `Invalid` for a `.partial`, whose key needs its content's hash: see [`Key::Partial`].
    pub fn of_wal(name: WalName) -> Result<Self> {
        match name {
            WalName::Segment(segment) => Ok(Self::Segment(segment)),
            WalName::History(timeline) => Ok(Self::History(timeline)),
            WalName::Backup { segment, offset } => Ok(Self::BackupHistory { segment, offset }),
            WalName::Partial(_) => Err(Error::invalid(format!(
                "the key of {name} carries its content's hash"
            ))),
        }
    }
}

impl Key {
    /// The segment of a WAL file, of a `.partial` or of a `.backup` file.
    #[must_use]
    pub fn segment(&self) -> Option<SegmentName> {
        match self {
            Self::Segment(segment) | Self::Partial { segment, .. } | Self::BackupHistory { segment, .. } => {
                Some(*segment)
            }
            _ => None,
        }
    }
}

/// All segments of a timeline, and its `.partial` and `.backup` files, start with this.
#[must_use]
pub fn timeline_prefix(timeline: TimelineId) -> String {
    format!("{WAL_PREFIX}{:08X}/", timeline.get())
}

/// The timeline whose prefix this is, if it is one.
#[must_use]
pub fn timeline_of_prefix(prefix: &str) -> Option<TimelineId> {
    let name = prefix.strip_prefix(WAL_PREFIX)?.strip_suffix('/')?;
    let timeline = TimelineId::new(u32::from_str_radix(name, 16).ok()?).ok()?;
    (timeline_prefix(timeline) == prefix).then_some(timeline)
}

/// Where a listing starts that passes over a timeline: it sorts after all keys of the timeline, and before those of
/// every later one.
#[must_use]
pub fn after_timeline(timeline: TimelineId) -> String {
    // `~` comes after both characters that can follow a timeline in a key, `/` and `.`.
    format!("{WAL_PREFIX}{:08X}~", timeline.get())
}

/// All `.partial` and `.backup` objects of a segment start with this, and nothing else does.
#[must_use]
pub fn segment_siblings_prefix(segment: SegmentName) -> String {
    format!("{}{segment}.", log_prefix(segment))
}

/// Sorts before a segment's key and after its predecessor's: a listing that starts after it begins with the segment.
#[must_use]
pub fn before_segment(segment: SegmentName) -> String {
    format!("{}{segment}", log_prefix(segment))
}

/// All objects of a base backup start with this.
#[must_use]
pub fn backup_prefix(id: &BackupId) -> String {
    format!("{BACKUPS_PREFIX}{id}/")
}

/// The keys of a segment, and of all others of its log file, start with this.
#[must_use]
pub fn log_prefix(segment: SegmentName) -> String {
    WalFolder::of(segment).prefix()
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("walship.json"),
            Self::Retention => f.write_str("retention.json"),
            Self::Segment(segment) => write!(f, "{}{segment}.zst", log_prefix(*segment)),
            Self::Partial { segment, xxh3_start } => {
                write!(
                    f,
                    "{}{segment}.{xxh3_start:016x}.partial.zst",
                    log_prefix(*segment)
                )
            }
            Self::History(timeline) => write!(f, "{WAL_PREFIX}{:08X}.history.zst", timeline.get()),
            Self::Retired(timeline) => write!(f, "{WAL_PREFIX}{:08X}{RETIRED_SUFFIX}", timeline.get()),
            Self::BackupHistory { segment, offset } => {
                write!(f, "{}{segment}.{offset:08X}.backup.zst", log_prefix(*segment))
            }
            Self::Backup(id, object) => write!(f, "{}{object}", backup_prefix(id)),
            Self::Ledger(object) => write!(f, "{LEDGER_PREFIX}{object}"),
            Self::Damaged {
                original,
                sha256_start,
            } => write!(f, "{DAMAGED_PREFIX}{original}.{sha256_start:016x}"),
        }
    }
}

impl fmt::Display for LedgerObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Summary => f.write_str("summary.json"),
            Self::Drills => f.write_str("drills.json"),
            Self::Histories => f.write_str("histories.zst"),
            Self::Wal(folder) => write!(f, "{WAL_PREFIX}{}.zst", folder.path()),
            Self::Backup(id) => write!(f, "{BACKUPS_PREFIX}{id}.zst"),
        }
    }
}

impl fmt::Display for BackupObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("started.json"),
            Self::Alive => f.write_str("alive.json"),
            Self::Record => f.write_str("backup.json"),
            Self::Pending => f.write_str("pending.json"),
            Self::Keep => f.write_str("keep.json"),
            Self::Manifest => f.write_str("manifest.zst"),
            Self::Files => f.write_str("files.zst"),
            Self::Configuration => f.write_str("configuration.tar.zst"),
            Self::Proof => f.write_str("proof.json"),
            Self::Part(Stream::Base, number) => write!(f, "base/{number:06}.tar.zst"),
            Self::Part(Stream::Tablespace(oid), number) => write!(f, "{oid}/{number:06}.tar.zst"),
        }
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // Parses loosely, then accepts only the spelling that prints back the same.
        parse(text)
            .filter(|key| key.to_string() == text)
            .ok_or_else(|| Error::invalid(format!("{text:?} is not a key of a walship archive")))
    }
}

fn parse(text: &str) -> Option<Key> {
    match text {
        "walship.json" => return Some(Key::Identity),
        "retention.json" => return Some(Key::Retention),
        _ => {}
    }
    if let Some(rest) = text.strip_prefix(WAL_PREFIX) {
        if let Some(timeline) = rest.strip_suffix(RETIRED_SUFFIX) {
            let timeline = u32::from_str_radix(timeline, 16).ok()?;
            return TimelineId::new(timeline).ok().map(Key::Retired);
        }
        return parse_wal(rest.rsplit('/').next()?.strip_suffix(".zst")?);
    }
    if let Some(rest) = text.strip_prefix(LEDGER_PREFIX) {
        return parse_ledger_object(rest).map(Key::Ledger);
    }
    if let Some(rest) = text.strip_prefix(DAMAGED_PREFIX) {
        let (original, hash) = rest.rsplit_once('.')?;
        // What is kept is never itself replaced.
        let original = parse(original).filter(|key| !matches!(key, Key::Damaged { .. }))?;
        return Some(Key::Damaged {
            original: Box::new(original),
            sha256_start: u64::from_str_radix(hash, 16).ok()?,
        });
    }
    let (id, object) = text.strip_prefix(BACKUPS_PREFIX)?.split_once('/')?;
    Some(Key::Backup(id.parse().ok()?, parse_backup_object(object)?))
}

fn parse_wal(name: &str) -> Option<Key> {
    if let Some((segment, hash)) = name
        .strip_suffix(".partial")
        .and_then(|stem| stem.split_once('.'))
    {
        let xxh3_start = u64::from_str_radix(hash, 16).ok()?;
        return Some(Key::Partial {
            segment: segment.parse().ok()?,
            xxh3_start,
        });
    }
    Key::of_wal(name.parse().ok()?).ok()
}

fn parse_ledger_object(text: &str) -> Option<LedgerObject> {
    if text == "summary.json" {
        return Some(LedgerObject::Summary);
    }
    if text == "drills.json" {
        return Some(LedgerObject::Drills);
    }
    let stem = text.strip_suffix(".zst")?;
    if stem == "histories" {
        return Some(LedgerObject::Histories);
    }
    if let Some(id) = stem.strip_prefix(BACKUPS_PREFIX) {
        return Some(LedgerObject::Backup(id.parse().ok()?));
    }
    let (_, folder) = stem.strip_prefix(WAL_PREFIX)?.split_once('/')?;
    WalFolder::parse(folder).map(LedgerObject::Wal)
}

fn parse_backup_object(text: &str) -> Option<BackupObject> {
    Some(match text {
        "started.json" => BackupObject::Started,
        "alive.json" => BackupObject::Alive,
        "backup.json" => BackupObject::Record,
        "pending.json" => BackupObject::Pending,
        "keep.json" => BackupObject::Keep,
        "manifest.zst" => BackupObject::Manifest,
        "files.zst" => BackupObject::Files,
        "configuration.tar.zst" => BackupObject::Configuration,
        "proof.json" => BackupObject::Proof,
        _ => {
            let (stream, part) = text.split_once('/')?;
            let stream = match stream {
                "base" => Stream::Base,
                oid => Stream::Tablespace(oid.parse().ok()?),
            };
            BackupObject::Part(stream, part.strip_suffix(".tar.zst")?.parse().ok()?)
        }
    })
}

/// A base backup's id: the moment it was started, in UTC, to the second: `20261123T041500Z`.
/// Orders by that moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BackupId(String);

const BACKUP_ID_FORMAT: &str = "%Y%m%dT%H%M%SZ";

impl BackupId {
    /// The id of a backup started at this moment.
    #[must_use]
    pub fn at(moment: DateTime<Utc>) -> Self {
        Self(moment.format(BACKUP_ID_FORMAT).to_string())
    }

    /// That moment, by the clock of the machine that took the backup.
    #[must_use]
    pub fn moment(&self) -> DateTime<Utc> {
        let read = NaiveDateTime::parse_from_str(&self.0, BACKUP_ID_FORMAT);
        // Every id was made from a moment, or parsed as one.
        read.map_or(DateTime::UNIX_EPOCH, |moment| moment.and_utc())
    }
}

impl BackupId {
    /// Where an object of the backup stands.
    #[must_use]
    pub fn key(&self, object: BackupObject) -> Key {
        Key::Backup(self.clone(), object)
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        NaiveDateTime::parse_from_str(text, BACKUP_ID_FORMAT)
            .ok()
            .map(|moment| Self::at(moment.and_utc()))
            .filter(|id| id.0 == text)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "{text:?} is not a backup's id; ids look like 20261123T041500Z, see `walship list backups`"
                ))
            })
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

impl TryFrom<String> for BackupId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pg::{SegmentNumber, SegmentSize};

    fn any_key() -> impl Strategy<Value = Key> {
        let segment = (1..u32::MAX, 0..u64::from(u32::MAX)).prop_map(|(timeline, number)| {
            let timeline = TimelineId::new(timeline).unwrap();
            SegmentName::new(timeline, SegmentNumber(number), SegmentSize::DEFAULT).unwrap()
        });
        let id = (0..4_000_000_000i64)
            .prop_map(|seconds| BackupId::at(DateTime::from_timestamp(seconds, 0).unwrap()));
        let object = (0..11, any::<u32>(), any::<u32>()).prop_map(|(kind, oid, number)| match kind {
            0 => BackupObject::Started,
            1 => BackupObject::Alive,
            2 => BackupObject::Record,
            3 => BackupObject::Manifest,
            4 => BackupObject::Files,
            5 => BackupObject::Configuration,
            6 => BackupObject::Proof,
            7 => BackupObject::Part(Stream::Base, number),
            8 => BackupObject::Keep,
            9 => BackupObject::Pending,
            _ => BackupObject::Part(Stream::Tablespace(oid), number),
        });
        prop_oneof![
            Just(Key::Identity),
            Just(Key::Retention),
            segment.clone().prop_map(Key::Segment),
            (segment.clone(), any::<u64>())
                .prop_map(|(segment, xxh3_start)| Key::Partial { segment, xxh3_start }),
            (1..u32::MAX).prop_map(|timeline| Key::History(TimelineId::new(timeline).unwrap())),
            (segment.clone(), any::<u32>())
                .prop_map(|(segment, offset)| Key::BackupHistory { segment, offset }),
            (id.clone(), object).prop_map(|(id, object)| Key::Backup(id, object)),
            Just(Key::Ledger(LedgerObject::Summary)),
            Just(Key::Ledger(LedgerObject::Drills)),
            Just(Key::Ledger(LedgerObject::Histories)),
            segment
                .clone()
                .prop_map(|segment| Key::Ledger(LedgerObject::Wal(WalFolder::of(segment)))),
            id.prop_map(|id| Key::Ledger(LedgerObject::Backup(id))),
            (segment, any::<u64>()).prop_map(|(segment, sha256_start)| Key::Damaged {
                original: Box::new(Key::Segment(segment)),
                sha256_start
            }),
        ]
    }

    proptest! {
        #[test]
        fn every_key_reads_back_as_it_prints(key in any_key()) {
            prop_assert_eq!(key.to_string().parse::<Key>().unwrap(), key);
        }

        #[test]
        fn no_text_makes_the_key_parser_panic(text: String) {
            let _ = text.parse::<Key>();
        }

        #[test]
        fn only_one_spelling_of_a_key_parses(
            text in "(wal|backups)/([0-9A-F]{8}/){0,2}[0-9A-Za-z.]{1,40}"
        ) {
            if let Ok(key) = text.parse::<Key>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }

    #[test]
    fn folders_of_wal_are_known_by_their_one_spelling() {
        let segment: SegmentName = "0000000A0000004E0000002A".parse().unwrap();
        let folder = WalFolder::of(segment);
        assert_eq!(WalFolder::of_prefix(&log_prefix(segment)), Some(folder));
        let timeline = segment.timeline();
        assert_eq!(timeline_of_prefix(&timeline_prefix(timeline)), Some(timeline));
        for foreign in [
            "wal/0000000a/",
            "wal/000000A/",
            "wal/+000000A/",
            "wal/00000000/",
            "wal/0000000A",
            "backups/0000000A/",
            "wal/0000000A/0000000B0000004E/",
            "wal/0000000A/0000000a0000004E/",
            "wal/0000000A/0000000A+000004E/",
            "wal/0000000A/0000000A0000004E",
            "wal/0000000A/0000000A0000004E0/",
            "wal/0000000A/0000000\u{e9}000004E/",
            "wal//0000000A0000004E/",
        ] {
            assert_eq!(WalFolder::of_prefix(foreign), None, "{foreign}");
            assert_eq!(timeline_of_prefix(foreign), None, "{foreign}");
        }
    }

    // Seen to fail: `format/keys.rs`: one digit less whatever the size
    #[test]
    fn neighbouring_folders_have_a_page_of_segments_or_a_few() {
        let segment: SegmentName = "000000010000014E00000001".parse().unwrap();
        for (mib, start) in [
            (1, "wal/00000001/000000010000014E/"),
            (2, "wal/00000001/000000010000014E/"),
            (16, "wal/00000001/000000010000014"),
            (64, "wal/00000001/000000010000014"),
            (256, "wal/00000001/00000001000001"),
            (1024, "wal/00000001/00000001000001"),
        ] {
            let size = SegmentSize::new(mib << 20).unwrap();
            assert_eq!(WalFolder::of(segment).neighbourhood(size), start, "{mib} MiB");
            assert!(Key::Segment(segment).to_string().starts_with(start));
        }
    }

    #[test]
    fn keys_are_spelled_as_the_format_says() {
        let segment: SegmentName = "00000001000000030000002A".parse().unwrap();
        let id: BackupId = "20261123T041500Z".parse().unwrap();
        for (key, text) in [
            (
                Key::Segment(segment),
                "wal/00000001/0000000100000003/00000001000000030000002A.zst",
            ),
            (
                Key::History(TimelineId::new(2).unwrap()),
                "wal/00000002.history.zst",
            ),
            (
                Key::BackupHistory {
                    segment,
                    offset: 0x28,
                },
                "wal/00000001/0000000100000003/00000001000000030000002A.00000028.backup.zst",
            ),
            (
                Key::Partial {
                    segment,
                    xxh3_start: 0xAB,
                },
                "wal/00000001/0000000100000003/00000001000000030000002A.00000000000000ab.partial.zst",
            ),
            (
                Key::Backup(id.clone(), BackupObject::Part(Stream::Base, 1)),
                "backups/20261123T041500Z/base/000001.tar.zst",
            ),
            (
                Key::Backup(id.clone(), BackupObject::Part(Stream::Tablespace(16384), 12)),
                "backups/20261123T041500Z/16384/000012.tar.zst",
            ),
            (
                Key::Ledger(LedgerObject::Wal(WalFolder::of(segment))),
                "ledger/wal/00000001/0000000100000003.zst",
            ),
            (
                Key::Ledger(LedgerObject::Backup(id)),
                "ledger/backups/20261123T041500Z.zst",
            ),
            (
                Key::Damaged {
                    original: Box::new(Key::Segment(segment)),
                    sha256_start: 0xAB,
                },
                "damaged/wal/00000001/0000000100000003/00000001000000030000002A.zst.00000000000000ab",
            ),
        ] {
            assert_eq!(key.to_string(), text);
            assert_eq!(text.parse::<Key>().unwrap(), key);
        }
    }

    proptest! {
        #[test]
        fn after_a_timeline_come_later_timelines_only(key in any_key(), timeline in 1..u32::MAX) {
            let timeline = TimelineId::new(timeline).unwrap();
            let of_key = match &key {
                Key::Segment(segment) | Key::Partial { segment, .. } | Key::BackupHistory { segment, .. } => segment.timeline(),
                Key::History(timeline) => *timeline,
                _ => return Ok(()),
            };
            prop_assert_eq!(key.to_string() > after_timeline(timeline), of_key > timeline);
        }
    }

    #[test]
    fn every_object_of_a_backup_has_its_key() {
        for object in [
            "started.json",
            "alive.json",
            "pending.json",
            "backup.json",
            "keep.json",
            "proof.json",
            "manifest.zst",
            "files.zst",
            "configuration.tar.zst",
            "base/000001.tar.zst",
            "16384/000002.tar.zst",
        ] {
            let text = format!("backups/20261123T041500Z/{object}");
            let key: Key = text.parse().unwrap();
            assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn what_belongs_to_a_segment_and_a_timeline_is_known_by_its_key() {
        let name = "00000001000000030000002A";
        let folder = "wal/00000001/0000000100000003";
        assert_eq!(timeline_prefix(TimelineId::FIRST), "wal/00000001/");
        for end in ["zst", "0123456789abcdef.partial.zst", "00000028.backup.zst"] {
            let text = format!("{folder}/{name}.{end}");
            let key: Key = text.parse().unwrap();
            assert_eq!(key.segment(), Some(name.parse().unwrap()), "{text}");
            assert!(text.starts_with(&timeline_prefix(TimelineId::FIRST)));
        }
        let history: Key = "wal/00000002.history.zst".parse().unwrap();
        assert_eq!(history.segment(), None);
    }

    #[test]
    fn the_siblings_of_a_segment_begin_alike() {
        let prefix = segment_siblings_prefix("00000001000000030000002A".parse().unwrap());
        assert_eq!(prefix, "wal/00000001/0000000100000003/00000001000000030000002A.");
    }

    #[test]
    fn a_segment_in_the_wrong_folder_is_foreign() {
        for text in [
            "wal/00000002/0000000100000003/00000001000000030000002A.zst",
            "ledger/wal/00000002/0000000100000003.zst",
            "ledger/wal/00000001/000000010000000é.zst",
            "damaged/damaged/walship.json.00000000000000ab.00000000000000ab",
            "wal/00000001/0000000100000004/00000001000000030000002A.zst",
            "wal/00000001000000030000002A.zst",
            "wal/00000001/0000000100000003/00000001000000030000002A",
            "backups/20261123T041500Z/base/1.tar.zst",
            "backups/20261323T041500Z/backup.json",
            "backups/../backup.json",
            "Walship.json",
        ] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }
}
