//! Whether archived WAL is a backup's own. Names prove nothing: a clone, or a server that was set back to a storage
//! snapshot, writes other WAL under the same names. A backup that is recovered with the other server's WAL is lost.
//!
//! So a backup keeps what its server said of its own WAL: where the checkpoint lies from which it recovers, what its
//! `pg_control` repeats of the last checkpoint, and, where the server gave them, the sums of some of its WAL. [`judge`]
//! compares all of it with the archived WAL. A primary's WAL also has a record of the backup's end, which names the
//! backup's start; a standby writes none.

use super::catalogue::needed_wal;
use crate::error::{Error, Result};
use crate::format::Sha256Sum;
use crate::format::backup::{BackupRecord, BackupSource};
use crate::format::lineage::{Lineage, WalSum};
use crate::pg::{
    CheckpointCopy, Lsn, RECORD_REACH_BYTES, SegmentName, SegmentNumber, WAL_PIECE_BYTES, WalGeometry,
    WalPiece,
};
use crate::text::time_text;

/// A part of one archived segment that has to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The segment.
    pub segment: SegmentName,
    /// The first position.
    pub from: Lsn,
    /// The position after the last one.
    pub until: Lsn,
}

/// What has to be read of a backup's archived WAL, in the order of positions.
///
/// # Errors
/// `Corrupt` where the record names positions outside the WAL that it needs.
pub fn wanted(record: &BackupRecord, lineage: &Lineage) -> Result<Vec<Wanted>> {
    let size = record.segment_bytes;
    let needed = needed_wal(&record.wal_ranges, size);
    let end = size.start_of(size.segment_before(record.stop_lsn).next());
    let reach = |from: Lsn| (from, Lsn(from.0.saturating_add(RECORD_REACH_BYTES)).min(end));
    let before_stop = Lsn(record.stop_lsn.0.saturating_sub(RECORD_REACH_BYTES)).max(record.start_lsn);
    let mut pieces = vec![
        reach(lineage.checkpoint_lsn),
        reach(lineage.control_lsn),
        (before_stop, record.stop_lsn),
    ];
    let sums = lineage.wal.iter().map(|sum| (sum.lsn, sum.end_lsn));
    if let Some((from, until)) = sums
        .clone()
        .find(|(from, until)| until.0.saturating_sub(from.0) > WAL_PIECE_BYTES)
    {
        return Err(Error::corrupt(format!(
            "the record of backup {} has a sum of all WAL from {from} to {until}, which walship never makes",
            record.id
        )));
    }
    pieces.extend(sums);
    let mut all = Vec::new();
    for (from, until) in pieces {
        let mut at = from;
        while at < until {
            let number = size.segment_of(at);
            let next = size.start_of(number.next()).min(until);
            let segment = segment_of(&needed, number, record)?;
            all.push(Wanted {
                segment,
                from: at,
                until: next,
            });
            at = next;
        }
    }
    all.sort_by_key(|wanted| (wanted.from, wanted.until));
    all.dedup();
    Ok(all)
}

fn segment_of(
    needed: &[super::catalogue::NeededWal],
    number: SegmentNumber,
    record: &BackupRecord,
) -> Result<SegmentName> {
    let holder = needed
        .iter()
        .find(|range| range.first <= number && number < range.end);
    let Some(range) = holder else {
        return Err(Error::corrupt(format!(
            "the record of backup {} names a position outside the WAL that it needs",
            record.id
        )));
    };
    SegmentName::new(range.timeline, number, record.segment_bytes)
}

/// How the archived WAL contradicts what the backup's server said; `None` if it is this backup's own.
#[must_use]
pub fn judge(
    record: &BackupRecord,
    lineage: &Lineage,
    archived: &[WalPiece],
    geometry: WalGeometry,
) -> Option<String> {
    checkpoint(record, lineage, archived, geometry)
        .or_else(|| control(record, lineage, archived, geometry))
        .or_else(|| backup_end(record, archived, geometry))
        .or_else(|| lineage.wal.iter().find_map(|sum| other_bytes(sum, archived)))
}

/// The checkpoint from which the backup recovers.
fn checkpoint(
    record: &BackupRecord,
    lineage: &Lineage,
    archived: &[WalPiece],
    geometry: WalGeometry,
) -> Option<String> {
    let lsn = lineage.checkpoint_lsn;
    let Some(found) = checkpoint_at(lsn, archived, geometry) else {
        return Some(format!(
            "its checkpoint is at LSN {lsn}, and the archived WAL has none there"
        ));
    };
    let same = found.redo() == record.start_lsn && found.timeline() == record.start_timeline.get();
    (!same).then(|| {
        format!(
            "its checkpoint at LSN {lsn} begins replay at {} on timeline {}, the archived one at {} on timeline {}",
            record.start_lsn,
            record.start_timeline,
            found.redo(),
            found.timeline()
        )
    })
}

/// The last checkpoint that the backup's `pg_control` knows.
fn control(
    record: &BackupRecord,
    lineage: &Lineage,
    archived: &[WalPiece],
    geometry: WalGeometry,
) -> Option<String> {
    let lsn = lineage.control_lsn;
    let Some(control) = CheckpointCopy::new(&lineage.control_checkpoint.0) else {
        return Some("the copy of a checkpoint in its record is not one".to_owned());
    };
    let Some(found) = checkpoint_at(lsn, archived, geometry) else {
        return Some(format!(
            "its pg_control names the checkpoint at LSN {lsn}, and the archived WAL has none there"
        ));
    };
    let same = match record.source {
        BackupSource::Primary => found.is_repeated_by(&control) && control.is_repeated_by(&found),
        BackupSource::Standby => found.is_repeated_by(&control),
    };
    (!same).then(|| {
        format!(
            "its pg_control names the checkpoint at LSN {lsn} of {}, the archived WAL has another one there, of {}",
            moment(&control),
            moment(&found)
        )
    })
}

fn moment(checkpoint: &CheckpointCopy) -> String {
    chrono::DateTime::from_timestamp(checkpoint.time(), 0)
        .map_or_else(|| "an impossible time".to_owned(), time_text)
}

fn checkpoint_at(lsn: Lsn, archived: &[WalPiece], geometry: WalGeometry) -> Option<CheckpointCopy> {
    archived
        .iter()
        .find_map(|piece| piece.checkpoint_at(lsn, geometry))
}

/// The record at the end of a primary's backup, which names the backup's start.
fn backup_end(record: &BackupRecord, archived: &[WalPiece], geometry: WalGeometry) -> Option<String> {
    if record.source == BackupSource::Standby {
        return None;
    }
    let at = geometry.start_of_backup_end(record.stop_lsn);
    let found = at.and_then(|at| {
        archived
            .iter()
            .find_map(|piece| piece.backup_end_at(at, geometry))
    });
    match found {
        Some(start) if start == record.start_lsn => None,
        Some(other) => Some(format!(
            "it began at LSN {} and ended at {}; the backup that ends there in the archived WAL began at {other}",
            record.start_lsn, record.stop_lsn
        )),
        None => Some(format!(
            "it ended at LSN {}, and no backup ends there in the archived WAL",
            record.stop_lsn
        )),
    }
}

/// WAL that differs from the server's.
fn other_bytes(sum: &WalSum, archived: &[WalPiece]) -> Option<String> {
    let found = archived
        .iter()
        .find_map(|piece| piece.between(sum.lsn, sum.end_lsn));
    let same = found.is_some_and(|bytes| Sha256Sum::of(bytes) == sum.sha256);
    (!same).then(|| {
        format!(
            "the archived WAL from LSN {} to {} differs from the server's",
            sum.lsn, sum.end_lsn
        )
    })
}

/// Puts pieces together that adjoin or overlap.
#[must_use]
pub fn joined(mut pieces: Vec<WalPiece>) -> Vec<WalPiece> {
    pieces.sort_by_key(|piece| piece.start);
    let mut all: Vec<WalPiece> = Vec::new();
    for piece in pieces {
        match all.last_mut() {
            Some(last) if piece.start <= last.end() => {
                let end = last.end();
                if let Some(new) = piece.between(end.max(piece.start), piece.end().max(end)) {
                    last.bytes.extend_from_slice(new);
                }
            }
            _ => all.push(piece),
        }
    }
    all
}

#[cfg(test)]
mod tests;
