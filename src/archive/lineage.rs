//! Whether the archived WAL of a backup is its own: reads what [`crate::judge::lineage`] judges. Each segment is read
//! to its end, so that only verified content counts.

use std::io::Write;

use super::{Archive, stored_wal};
use crate::error::{Context, Error, Result};
use crate::format::backup::BackupRecord;
use crate::format::keys::Key;
use crate::format::lineage::Lineage;
use crate::judge::lineage::{Wanted, joined, judge, wanted};
use crate::pg::{LongPageHeader, Lsn, SegmentName, WalGeometry, WalPiece};

/// The segments that [`contradiction`] reads, in their order.
///
/// # Errors
/// `Corrupt` where the record contradicts itself.
pub(crate) fn segments(record: &BackupRecord, lineage: &Lineage) -> Result<Vec<SegmentName>> {
    let mut segments: Vec<_> = wanted(record, lineage)?
        .into_iter()
        .map(|wanted| wanted.segment)
        .collect();
    segments.dedup();
    Ok(segments)
}

/// Which archived WAL is not the backup's own; `None` where nothing shows that any of it is not.
///
/// # Errors
/// `NotFound` where a segment is not there, `Corrupt` where one is damaged or the record contradicts itself; otherwise
/// as the store.
pub(crate) async fn contradiction(
    record: &BackupRecord,
    lineage: &Lineage,
    archive: &Archive,
) -> Result<Option<String>> {
    let wanted = wanted(record, lineage)?;
    let mut pieces = Vec::new();
    let mut geometry = None;
    for group in wanted.chunk_by(|one, other| one.segment == other.segment) {
        let Some(segment) = group.first().map(|wanted| wanted.segment) else {
            continue;
        };
        let key = Key::Segment(segment);
        let mut capture = Capture::new(segment, group, record)?;
        let read = async {
            let trailer =
                stored_wal::decode(archive.store(), &key, record.segment_bytes.bytes(), &mut capture).await?;
            trailer.check(segment.into(), record.system_identifier)?;
            capture.header(segment, record)
        };
        let header = read.await.context(|| format!("read {}", archive.url_of(&key)))?;
        geometry = Some(WalGeometry {
            page_bytes: u64::from(header.page_size_bytes),
            segment_bytes: record.segment_bytes.bytes(),
        });
        pieces.extend(capture.pieces.into_iter().map(|piece| piece.captured));
    }
    let geometry = geometry.ok_or_else(|| Error::corrupt("the backup's record names no WAL"))?;
    Ok(judge(record, lineage, &joined(pieces), geometry))
}

/// Keeps parts of a segment while it is read, and its first page's header.
struct Capture {
    position: Lsn,
    first: Vec<u8>,
    pieces: Vec<Piece>,
}

struct Piece {
    until: Lsn,
    captured: WalPiece,
}

impl Capture {
    fn new(segment: SegmentName, wanted: &[Wanted], record: &BackupRecord) -> Result<Self> {
        let pieces = wanted.iter().map(|wanted| Piece {
            until: wanted.until,
            captured: WalPiece {
                start: wanted.from,
                bytes: Vec::new(),
            },
        });
        Ok(Self {
            position: segment.start(record.segment_bytes)?,
            first: Vec::with_capacity(LongPageHeader::SIZE_BYTES),
            pieces: pieces.collect(),
        })
    }

    fn header(&self, segment: SegmentName, record: &BackupRecord) -> Result<LongPageHeader> {
        let header = LongPageHeader::parse(&self.first)?;
        header.check(segment, record.segment_bytes, record.system_identifier)?;
        Ok(header)
    }
}

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let missing = LongPageHeader::SIZE_BYTES.saturating_sub(self.first.len());
        self.first
            .extend_from_slice(bytes.get(..missing.min(bytes.len())).unwrap_or_default());
        let passing = WalSlice {
            start: self.position,
            bytes,
        };
        for piece in &mut self.pieces {
            let end = piece.captured.end();
            piece
                .captured
                .bytes
                .extend_from_slice(passing.between(end, piece.until));
        }
        self.position = Lsn(self.position.0.saturating_add(bytes.len() as u64));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Some bytes of the WAL, and their position.
struct WalSlice<'a> {
    start: Lsn,
    bytes: &'a [u8],
}

impl WalSlice<'_> {
    /// The bytes between two positions.
    fn between(&self, from: Lsn, until: Lsn) -> &[u8] {
        let index = |lsn: Lsn| {
            let offset = lsn.0.saturating_sub(self.start.0);
            usize::try_from(offset).map_or(self.bytes.len(), |offset| offset.min(self.bytes.len()))
        };
        self.bytes.get(index(from)..index(until)).unwrap_or_default()
    }
}
