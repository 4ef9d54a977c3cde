//! Compares the archived WAL with the server's own. Names, positions and even lengths are often the same in two
//! histories of one cluster.
//!
//! The server is asked over another connection, for a moment and a few kilobytes. If it does not give its WAL (there is
//! no free WAL sender, or the WAL is removed already), the backup is taken all the same, and only what the records say
//! is compared.

use std::time::Duration;

use crate::archive::{Archive, stored_wal};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::backup::WalFrom;
use crate::format::keys::{Key, timeline_prefix};
use crate::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId, WAL_PIECE_BYTES, WalPiece};
use crate::server::{ConnInfo, Connection};

use super::server::Server;

const PATIENCE: Duration = Duration::from_secs(15);
/// The newest segment in the archive is looked for from this many segments before the server's own position on.
const LOOK_BACK: u64 = 64;

/// The server's newest WAL, but none before the backup's start.
pub(super) async fn newest(info: &ConnInfo, start: WalFrom) -> Option<WalPiece> {
    ask(async {
        let mut connection = Connection::connect(info).await?;
        let system = connection.identify_system().await?;
        if system.timeline != start.timeline {
            return Ok(None);
        }
        last_before(connection, system.timeline, start.lsn, system.flush_lsn).await
    })
    .await
}

/// The server's WAL before `end`, but none before the backup's start.
pub(super) async fn before(info: &ConnInfo, timeline: TimelineId, start: Lsn, end: Lsn) -> Option<WalPiece> {
    ask(async {
        let connection = Connection::connect(info).await?;
        last_before(connection, timeline, start, end).await
    })
    .await
}

async fn last_before(
    connection: Connection,
    timeline: TimelineId,
    start: Lsn,
    end: Lsn,
) -> Result<Option<WalPiece>> {
    let from = Lsn(end.0.saturating_sub(WAL_PIECE_BYTES)).max(start);
    if from >= end {
        return Ok(None);
    }
    connection.read_wal(timeline, from, end).await.map(Some)
}

/// Asks within [`PATIENCE`]; `None` where that failed.
async fn ask(asking: impl Future<Output = Result<Option<WalPiece>>>) -> Option<WalPiece> {
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(piece)) => piece,
        Ok(Err(error)) => {
            tracing::debug!("the server's own WAL is not compared with the archived one: {error}");
            None
        }
        Err(_) => {
            tracing::debug!(
                "the server's own WAL is not compared with the archived one: it did not come in time"
            );
            None
        }
    }
}

/// Refuses a server if the archive has another history of its timeline: more WAL than the server has written, or other
/// WAL.
///
/// # Errors
/// `Conflict` in these cases; otherwise as the store and the connection.
pub(super) async fn refuse_other_history(
    info: &ConnInfo,
    server: &mut Server,
    archive: &Archive,
) -> Result<()> {
    let (timeline, size) = (server.timeline, server.cluster.segment_size);
    let now = size.segment_of(server.flush_lsn);
    let archived = archived_after(
        archive,
        timeline,
        SegmentNumber(now.0.saturating_sub(LOOK_BACK)),
        size,
    )
    .await?;
    // Asked after the listing, so that the server has written everything that was listed.
    let system = server.connection.identify_system().await?;
    if system.timeline != timeline {
        return Ok(());
    }
    let written = |number: &SegmentNumber| size.start_of(number.next()) <= system.flush_lsn;
    if let Some(newest) = archived.iter().max()
        && !server.is_standby
        && !written(newest)
    {
        return Err(other_history(
            archive,
            &format!(
                "the archive has timeline {timeline} up to LSN {}, but the server has written only up to {}",
                size.start_of(newest.next()),
                system.flush_lsn
            ),
        ));
    }
    let Some(newest) = archived.iter().copied().filter(written).max() else {
        return Ok(());
    };
    let segment = SegmentName::new(timeline, newest, size)?;
    let start = size.start_of(newest);
    let end = Lsn(start.0.saturating_add(WAL_PIECE_BYTES));
    let Some(ours) = before(info, timeline, start, end).await else {
        return Ok(());
    };
    let Some(theirs) = beginning(archive, segment, size).await? else {
        return Ok(());
    };
    if theirs.get(..ours.bytes.len()) == Some(&ours.bytes) {
        return Ok(());
    }
    let what = format!("segment {segment} in the archive differs from the server's own");
    Err(other_history(archive, &what))
}

pub(super) fn other_history(archive: &Archive, what: &str) -> Error {
    Error::conflict(format!(
        "the WAL in {} is not this server's: {what}. Another server of this cluster has archived there: a clone, or this \
         server before it was set back to an earlier state. Find out which history is the right one. Then give this server \
         an archive of its own (another URL, for its archive_command too), or stop it and recover the archived history \
         with walship recover",
        archive.url()
    ))
}

/// The archived segments of a timeline after `first`.
async fn archived_after(
    archive: &Archive,
    timeline: TimelineId,
    first: SegmentNumber,
    size: SegmentSize,
) -> Result<Vec<SegmentNumber>> {
    let mut archived = Vec::new();
    let before = Key::Segment(SegmentName::new(timeline, first, size)?).to_string();
    let mut listing = archive.store().list(&timeline_prefix(timeline), Some(&before));
    while let Some(page) = listing.next().await.context(|| "list the archived WAL")? {
        for object in page.iter().filter(|object| object.size > 0) {
            if let Ok(Key::Segment(segment)) = object.key.parse()
                && segment.timeline() == timeline
            {
                archived.push(segment.number(size)?);
            }
        }
    }
    Ok(archived)
}

/// The first bytes of an archived segment; `None` where it is gone, or damaged, which others report.
async fn beginning(archive: &Archive, segment: SegmentName, size: SegmentSize) -> Result<Option<Vec<u8>>> {
    let key = Key::Segment(segment);
    match stored_wal::read(archive.store(), &key, size.bytes(), || Ok(First::default())).await {
        Ok((First(content), _)) => Ok(Some(content)),
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error).context(|| format!("read {}", archive.url_of(&key))),
    }
}

#[derive(Default)]
struct First(Vec<u8>);

impl std::io::Write for First {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = (WAL_PIECE_BYTES as usize).saturating_sub(self.0.len());
        self.0
            .extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::fixture;
    use crate::store::{FaultKind, Faults, Operation};

    #[tokio::test]
    async fn histories_are_compared_even_if_a_bit_flips_on_the_way() {
        let top = tempfile::tempdir().unwrap();
        let store = fixture::format_1(top.path()).await;
        let segment: SegmentName = "000000010000000000000005".parse().unwrap();
        let size = SegmentSize::new(1 << 20).unwrap();
        let faults = Faults::default();
        faults.add(Operation::Get, &segment.to_string(), FaultKind::Corrupt);
        let struck = store.with_faults(faults.clone());
        let content = std::fs::read(fixture::unpack(top.path(), &segment.to_string())).unwrap();
        let found = beginning(&fixture::archive(&struck), segment, size)
            .await
            .unwrap();
        assert!(found.unwrap() == content[..WAL_PIECE_BYTES as usize]);
        assert_eq!(faults.left(), 0);
    }
}
