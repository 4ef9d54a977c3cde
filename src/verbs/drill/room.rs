//! Whether a drill fits into its directory.

use std::path::Path;

use crate::cluster::free_bytes;
use crate::error::{Error, Result};
use crate::format::backup::BackupRecord;
use crate::judge::recovery_plan::Plan;
use crate::text::ByteSize;

/// Replayed WAL is removed at the next restartpoint, which comes after `max_wal_size` (1 GiB).
const WAL_KEPT: u64 = 1 << 30;
/// The part of the backup's size that is kept free beside it, for the file system's own records.
const RESERVED_SHARE: u64 = 32;
/// The WAL that the open server writes itself.
const OWN_SEGMENTS: u64 = 4;

/// Checks that the backup and the WAL to be replayed fit.
///
/// # Errors
/// `Internal`, with the needed and the free space.
pub fn check(directory: &Path, record: &BackupRecord, plan: &Plan) -> Result<()> {
    compare(directory, need(record, plan), free_bytes(directory)?)
}

fn need(record: &BackupRecord, plan: &Plan) -> u64 {
    let wal = plan
        .end_lsn
        .0
        .saturating_sub(plan.backup.start_lsn.0)
        .min(WAL_KEPT);
    record.size_bytes + record.size_bytes / RESERVED_SHARE + wal + OWN_SEGMENTS * record.segment_bytes.bytes()
}

fn compare(directory: &Path, need: u64, free: u64) -> Result<()> {
    if need <= free {
        return Ok(());
    }
    Err(Error::internal(format!(
        "the file system of {} has {} free, but a drill of this backup takes {}; make room, or set drill.directory to \
         another directory",
        directory.display(),
        ByteSize(free),
        ByteSize(need)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_that_does_not_fit_is_refused_with_both_numbers() {
        let directory = Path::new("/scratch");
        assert!(compare(directory, 5 << 20, 5 << 20).is_ok());
        let error = compare(directory, 6 << 20, 5 << 20).unwrap_err().to_string();
        for part in ["/scratch has 5.0 MiB free", "takes 6.0 MiB", "drill.directory"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
