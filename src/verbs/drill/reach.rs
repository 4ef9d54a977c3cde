//! Whether replay reached the end of the archived WAL. Without a target PostgreSQL takes the first record that it
//! cannot read for the end, and opens as if everything were well.

use crate::archive::Archive;
use crate::archive::time_index::TimeIndex;
use crate::error::Result;
use crate::pg::{Lsn, SegmentName, SegmentNumber};

/// What speaks against the archive, if its WAL leads to `last` but replay ended at `reached`.
pub async fn ended_early(archive: &Archive, last: SegmentName, reached: Lsn) -> Result<Option<String>> {
    let size = archive.identity().segment_bytes;
    let index = TimeIndex::new(archive, u64::MAX);
    let mut segment = last;
    loop {
        if reached > segment.start(size)? {
            return Ok(None);
        }
        // If one record fills the whole segment, no record ends in it.
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
        "replay ended at LSN {reached}, although the archived WAL leads to {last}: PostgreSQL found no valid record there \
         and took that for the end. Run walship verify --full, and look at the segment of {reached}"
    )))
}
