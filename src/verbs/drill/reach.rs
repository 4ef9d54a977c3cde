//! Whether replay came to the end of the archived WAL. Without a target PostgreSQL takes the first record
//! that it cannot read for the end, and opens as if all were well.

use crate::archive::Archive;
use crate::archive::time_index::TimeIndex;
use crate::error::Result;
use crate::pg::{Lsn, SegmentName, SegmentNumber};

/// What speaks against an archive whose replay ended at `reached`, where it holds WAL up to `last`.
///
/// # Errors
/// As the store.
pub async fn ended_early(archive: &Archive, last: SegmentName, reached: Lsn) -> Result<Option<String>> {
    let size = archive.identity().segment_bytes;
    let index = TimeIndex::new(archive, u64::MAX);
    let mut segment = last;
    loop {
        if reached > segment.start(size)? {
            return Ok(None);
        }
        // No record ends in a segment that one fills from end to end.
        let tail = index.of(segment).await?.and_then(|index| index.continued);
        let before = segment.number(size)?.0.checked_sub(1);
        match (tail, before) {
            (Some(tail), Some(before)) if tail.end.is_none() => {
                segment = SegmentName::new(segment.timeline(), SegmentNumber(before), size)?;
            }
            _ => break,
        }
    }
    Ok(Some(format!(
        "replay ended at LSN {reached}, though the archived WAL leads to {last}: PostgreSQL found no valid record there and \
         took that for the end. See what walship verify --full says, and the segment that holds {reached}"
    )))
}
