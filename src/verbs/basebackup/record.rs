//! Makes a backup's record from what is known of the backup.

use chrono::{DateTime, Utc};

use super::copy::Copied;
use crate::error::{Error, Result};
use crate::format::FORMAT_VERSION;
use crate::format::backup::{BackupKind, BackupRecord, BackupSource, Configuration, WalFrom, WalRange};
use crate::format::keys::BackupId;
use crate::format::lineage::{Lineage, WalSum};
use crate::format::segment_index::HexBytes;
use crate::pg::{self, ClusterIdentity, TimelineId, WalPiece};

/// What is known before the copy.
pub(super) struct Basics {
    pub(super) id: BackupId,
    pub(super) label: String,
    pub(super) cluster: ClusterIdentity,
    pub(super) version: String,
    pub(super) began_at: DateTime<Utc>,
    pub(super) configuration: Option<Configuration>,
    /// The timeline that the server was on, and its history.
    pub(super) history: (TimelineId, Option<String>),
}

/// The record of a backup that is stored.
///
/// # Errors
/// `Corrupt` where its pieces contradict each other.
pub(super) fn record(basics: Basics, start: WalFrom, copied: Copied) -> Result<BackupRecord> {
    copied.label.check(basics.cluster.segment_size)?;
    let labelled = (copied.label.start_timeline(), copied.label.start);
    if labelled != (start.timeline, start.lsn) {
        return Err(Error::corrupt(format!(
            "backup_label begins at {} on timeline {}, but the backup at {} on timeline {}: the label is another backup's; \
             take the backup again",
            labelled.1, labelled.0, start.lsn, start.timeline
        )));
    }
    if let Some(other) = copied.manifest.system_identifier
        && other != basics.cluster.system_identifier
    {
        return Err(Error::corrupt(format!(
            "PostgreSQL's manifest belongs to the cluster with system identifier {other}, the server to {}",
            basics.cluster.system_identifier
        )));
    }
    if copied.control.system_identifier != basics.cluster.system_identifier {
        return Err(Error::corrupt(format!(
            "the backup's pg_control belongs to the cluster with system identifier {}, the server to {}",
            copied.control.system_identifier, basics.cluster.system_identifier
        )));
    }
    let lineage = lineage(&copied);
    let wal_range = |range: &pg::ManifestWalRange| WalRange {
        timeline: range.timeline,
        start_lsn: range.start,
        end_lsn: range.end,
    };
    let mut record = BackupRecord {
        format_version: FORMAT_VERSION,
        walship: env!("CARGO_PKG_VERSION").to_owned(),
        id: basics.id,
        label: basics.label,
        kind: BackupKind::Full,
        source: match copied.label.source {
            pg::LabelSource::Primary => BackupSource::Primary,
            pg::LabelSource::Standby => BackupSource::Standby,
        },
        system_identifier: basics.cluster.system_identifier,
        postgres_version: basics.version,
        postgres_major: basics.cluster.postgres_major,
        segment_bytes: basics.cluster.segment_size,
        started_at: copied.clock.time_of(basics.began_at),
        finished_at: copied.clock.time_of(copied.ended_at),
        start_lsn: start.lsn,
        stop_lsn: copied.stop_lsn,
        start_timeline: start.timeline,
        stop_timeline: copied.stop_timeline,
        wal_ranges: copied.manifest.wal_ranges.iter().map(wal_range).collect(),
        size_bytes: 0,
        stored_bytes: 0,
        streams: copied.streams,
        files: copied.files,
        manifest: copied.manifest_object,
        configuration: basics.configuration,
        lineage: Some(lineage),
        // A standby may have followed its primary to another timeline meanwhile. It archives that timeline's history.
        timeline_history: basics
            .history
            .1
            .filter(|_| basics.history.0 == copied.stop_timeline),
    };
    record.add_up();
    Ok(record)
}

/// What the server said of its WAL.
fn lineage(copied: &Copied) -> Lineage {
    let mut wal = Vec::new();
    for piece in copied.wal.iter().flatten() {
        // A standby may have received more than its backup needs.
        if let Some(bytes) = piece.between(piece.start, piece.end().min(copied.stop_lsn))
            && !bytes.is_empty()
        {
            let sum = WalSum::of(&WalPiece {
                start: piece.start,
                bytes: bytes.to_vec(),
            });
            if !wal.contains(&sum) {
                wal.push(sum);
            }
        }
    }
    Lineage {
        checkpoint_lsn: copied.label.checkpoint,
        control_lsn: copied.control.checkpoint,
        control_checkpoint: HexBytes(copied.control_checkpoint.bytes().to_vec()),
        wal,
    }
}
