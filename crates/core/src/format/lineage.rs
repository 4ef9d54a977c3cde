//! The part of `backup.json` that holds what a backup's server said of its own WAL. `judge/lineage.rs` compares it with
//! what is archived.

use serde::{Deserialize, Serialize};

use super::Sha256Sum;
use super::segment_index::HexBytes;
use crate::pg::{Lsn, WalPiece};

/// What a backup's server said of its own WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The position of the checkpoint that the backup recovers from (`CHECKPOINT LOCATION` in `backup_label`).
    pub checkpoint_lsn: Lsn,
    /// The position of the last checkpoint, by the backup's `pg_control`.
    pub control_lsn: Lsn,
    /// The content of that record, by the backup's `pg_control`.
    pub control_checkpoint: HexBytes,
    /// Some of the server's WAL, as it sent it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wal: Vec<WalSum>,
}

/// The hash of consecutive bytes of the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalSum {
    /// The position of the first one.
    pub(crate) lsn: Lsn,
    /// The position after the last one.
    pub(crate) end_lsn: Lsn,
    /// SHA-256 of the bytes, page headers included.
    pub(crate) sha256: Sha256Sum,
}

impl WalSum {
    /// The hash of a piece of WAL.
    #[must_use]
    pub fn of(piece: &WalPiece) -> Self {
        Self {
            lsn: piece.start,
            end_lsn: piece.end(),
            sha256: Sha256Sum::of(&piece.bytes),
        }
    }
}
