//! What a run has seen so far.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::format::keys::{BackupId, Key};
use crate::format::ledger::{Entry, Seen};
use crate::format::wal_inventory::WalInventory;
use crate::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId, WalName};
use crate::store::ObjectInfo;

/// At most this many findings are kept one by one; the others are only counted.
pub(super) const KEPT: usize = 10_000;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub key: String,
    pub kind: FindingKind,
    /// The file of `pg_wal` that the object should be, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is wrong, for people.
    pub what: String,
    /// The object that was read.
    #[serde(skip)]
    pub seen: Option<Seen>,
}

/// What sort of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The object is not what it should be.
    Damaged,
    /// It is not there.
    Missing,
    /// A backup's archived WAL is not its own.
    OtherHistory,
    /// Nothing is damaged, but no recovery crosses the WAL that was written there.
    Uncrossable,
}

impl Finding {
    pub(super) fn damaged(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            kind: FindingKind::Damaged,
            name: None,
            what: what.into(),
            seen: None,
        }
    }

    /// Notes which object it is about, if the store showed one.
    pub(super) fn seen(self, info: Option<&ObjectInfo>) -> Self {
        let seen = info.map(|info| Seen {
            size: info.size,
            modified: info.modified,
            version: info.version.as_str().to_owned(),
        });
        Self { seen, ..self }
    }

    pub(super) fn missing(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            kind: FindingKind::Missing,
            ..Self::damaged(key, what)
        }
    }

    /// A finding whose key is a position, because no object is wrong.
    pub(super) fn uncrossable(timeline: TimelineId, lsn: Lsn, what: impl Into<String>) -> Self {
        Self {
            kind: FindingKind::Uncrossable,
            ..Self::damaged(format!("timeline {timeline}, LSN {lsn}"), what)
        }
    }

    pub(super) fn named(self, name: WalName) -> Self {
        Self {
            name: Some(name.to_string()),
            ..self
        }
    }
}

/// Counts and findings of one run.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) objects: u64,
    pub(super) read_objects: u64,
    /// Objects that no run has read yet: they are older than `--since`.
    pub(super) unread: u64,
    /// When the object was read whose last reading is longest ago.
    pub(super) oldest_read: Option<DateTime<Utc>>,
    pub(super) findings: Vec<Finding>,
    pub(super) more_findings: u64,
    /// Segments that cannot be used.
    pub(super) bad_segments: WalInventory,
    /// The last segment of each timeline that earlier runs or damaged objects tell of.
    pub(super) known: BTreeMap<TimelineId, SegmentNumber>,
    /// What is wrong with backups.
    pub(super) bad_backups: BTreeMap<BackupId, String>,
    /// Something vanished after it was listed.
    pub(super) vanished: bool,
}

impl Tally {
    pub(super) fn new(size: SegmentSize) -> Self {
        Self {
            objects: 0,
            read_objects: 0,
            unread: 0,
            oldest_read: None,
            findings: Vec::new(),
            more_findings: 0,
            bad_segments: WalInventory::new(size),
            known: BTreeMap::new(),
            bad_backups: BTreeMap::new(),
            vanished: false,
        }
    }

    /// An object that is known to be good.
    pub(super) fn good(&mut self, entry: &Entry) {
        let read = entry.verified_at;
        self.oldest_read = Some(self.oldest_read.map_or(read, |oldest| oldest.min(read)));
    }

    pub(super) fn find(&mut self, finding: Finding) {
        if self.findings.len() < KEPT {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }

    /// A WAL object that is not what it should be. `existed`: not only its key tells that there was such a file.
    pub(super) fn bad_wal(
        &mut self,
        key: &Key,
        name: WalName,
        what: String,
        existed: bool,
        seen: Option<Seen>,
    ) {
        if let Key::Segment(segment) = key {
            self.bad_segments.add(&key.to_string(), 1);
            if existed {
                self.knows(*segment);
            }
        }
        self.find(Finding {
            seen,
            ..Finding::damaged(key.to_string(), what).named(name)
        });
    }

    /// A segment that is known to have existed.
    pub(super) fn knows(&mut self, segment: SegmentName) {
        if let Ok(number) = segment.number(self.bad_segments.segment_size()) {
            let known = self.known.entry(segment.timeline()).or_insert(number);
            *known = (*known).max(number);
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.findings.len() as u64 + self.more_findings
    }
}

/// The ledger's entry for an object that was just read.
pub(super) fn entry_of(info: &ObjectInfo, verified_at: DateTime<Utc>) -> Entry {
    Entry {
        size: info.size,
        modified: info.modified,
        version: info.version.as_str().to_owned(),
        verified_at,
    }
}

impl std::fmt::Display for FindingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Damaged => "damaged",
            Self::Missing => "missing",
            Self::OtherHistory => "on another history's WAL",
            Self::Uncrossable => "out of reach",
        })
    }
}
