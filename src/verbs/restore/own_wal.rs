//! The WAL in a server's `pg_wal`: it has replayed it, or will replay it whatever it is told.
//!
//! PostgreSQL keeps restored and streamed segments there until a restartpoint has passed them, and takes a segment from
//! there where the archive has none (`XLogFileReadAnyTLI`, `KeepFileRestoredFromArchive`, 14 to 18). `pg_control` tells
//! what came before the last restartpoint. Together they tell all that a running standby has replayed.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::pg::{Lsn, SegmentName, SegmentSize, TimelineId, WalCheck, WalReader};

const PIECE_BYTES: usize = 64 << 10;

/// Whether `pg_wal` has a complete record of this timeline that begins at the position or after it.
///
/// # Errors
/// `Internal` where a segment is there and cannot be read.
pub(super) fn reaches_beyond(
    pg_wal: &Path,
    timeline: TimelineId,
    position: Lsn,
    size: SegmentSize,
) -> Result<bool> {
    let mut number = size.segment_of(position);
    let mut reader = WalReader::new(size.start_of(number), WalCheck::Crc);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let path = pg_wal.join(SegmentName::new(timeline, number, size)?.to_string());
        let failed = |error| Error::io(format!("read {}", path.display()), error);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        let mut read = 0;
        while read < size.bytes() {
            let length = file.read(&mut piece).map_err(failed)?;
            if length == 0 {
                return Ok(false);
            }
            read += length as u64;
            reader.feed(piece.get(..length).unwrap_or_default(), |_| {});
            if reader.valid_until() > position {
                return Ok(true);
            }
            if reader.has_ended() {
                return Ok(false);
            }
        }
        // A record may go on in the next one.
        number = number.next();
    }
}
