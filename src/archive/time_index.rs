//! Reads when transactions ended in segments: from the trailer at the end of the object, or from the whole segment
//! where an older walship stored it.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::catalogue::gather;
use super::{Archive, stored_wal};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::codec::{TRAILER_LIMIT, Trailer, trailer_in};
use crate::format::keys::Key;
use crate::format::segment_index::{EndOfTransaction, IndexBuilder, SegmentIndex};
use crate::judge::catalogue::Catalogue;
use crate::judge::recovery_plan;
use crate::judge::timeline_chain::TimelineChain;
use crate::judge::window::{Last, LastEnds, Stretch, Window, last_ends, stretches};
use crate::pg::{Lsn, Major, SegmentName, SegmentNumber, SegmentSize, TimelineId, WalCheck};
use crate::store::read_again_if_damaged;

/// A trailer is rarely longer.
const USUAL_TRAILER_BYTES: usize = 4 << 10;
/// At most this many segments are looked at, backwards from the end of contiguous WAL. Loading data with one commit
/// fills many.
const LOOK_BACK: u64 = 4096;
/// Segments that are looked at first; then twice as many, and so on, up to [`LARGEST_LOOK`].
const FIRST_LOOK: u64 = 4;
const LARGEST_LOOK: u64 = 256;

/// Reads the indexes of segments. Clones share the number of segments that may still be read whole, and the notes.
#[derive(Debug, Clone)]
pub struct TimeIndex {
    archive: Archive,
    whole_reads: Arc<AtomicU64>,
    /// The segments that turned out to be damaged; `None` where that is only warned of.
    damage: Option<Arc<Mutex<BTreeMap<SegmentName, String>>>>,
}

impl TimeIndex {
    /// An index over an archive. At most `whole_reads` segments without an index are read whole.
    #[must_use]
    pub fn new(archive: &Archive, whole_reads: u64) -> Self {
        Self {
            archive: archive.clone(),
            whole_reads: Arc::new(AtomicU64::new(whole_reads)),
            damage: None,
        }
    }

    /// The same for whoever asks what is damaged, and tells it.
    pub(crate) fn noting_damage(self) -> Self {
        Self {
            damage: Some(Arc::default()),
            ..self
        }
    }

    /// The segments that turned out to be damaged, and what is wrong with each.
    pub(crate) fn damage(&self) -> BTreeMap<SegmentName, String> {
        let noted = self.damage.iter();
        noted
            .flat_map(|damage| damage.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .collect()
    }

    /// Notes a damaged segment, or warns of what is unknown because of it.
    pub(crate) fn note(&self, segment: SegmentName, error: &Error, unknown: &str) {
        match &self.damage {
            Some(damage) if error.kind() == ErrorKind::Corrupt => {
                let mut damage = damage.lock().unwrap_or_else(PoisonError::into_inner);
                damage.insert(segment, error.to_string());
            }
            _ => tracing::warn!("{unknown}: {error}"),
        }
    }

    pub(crate) fn archive(&self) -> &Archive {
        &self.archive
    }

    fn segment_size(&self) -> SegmentSize {
        self.archive.identity().segment_bytes
    }

    /// A segment's index; `None` where it cannot be known: the object is missing or damaged, or has no
    /// index and too many such were read already.
    ///
    /// # Errors
    /// As the store, without `NotFound` and `Corrupt`.
    pub async fn of(&self, segment: SegmentName) -> Result<Option<SegmentIndex>> {
        let key = Key::Segment(segment);
        let read = async {
            let trailer = read_trailer(&self.archive, &key).await?;
            trailer.check(segment.into(), self.archive.identity().system_identifier)?;
            match trailer.index {
                None if self.may_read_whole() => self.read_whole(segment, &key).await,
                index => Ok(index),
            }
        };
        match read.await {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                let url = self.archive.url_of(&key);
                let unknown = format!("it is unknown when transactions ended in {url}");
                self.note(segment, &error, &unknown);
                Ok(None)
            }
            read => read.context(|| format!("read when transactions ended in {}", self.archive.url_of(&key))),
        }
    }

    /// The indexes of many segments, in their order.
    pub async fn of_all(&self, segments: &[SegmentName]) -> Result<Vec<Option<SegmentIndex>>> {
        let reads = segments.iter().enumerate().map(|(place, segment)| {
            let (reader, segment) = (self.clone(), *segment);
            async move { Ok((place, reader.of(segment).await?)) }
        });
        let mut read = gather(reads).await?;
        read.sort_by_key(|(place, _)| *place);
        Ok(read.into_iter().map(|(_, index)| index).collect())
    }

    pub(crate) fn may_read_whole(&self) -> bool {
        let left = |left: u64| left.checked_sub(1);
        self.whole_reads
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
            .is_ok()
    }

    async fn read_whole(&self, segment: SegmentName, key: &Key) -> Result<Option<SegmentIndex>> {
        let start = segment.start(self.segment_size())?;
        let builder = || IndexBuilder::new(start, WalCheck::Structure);
        self.read_into(segment, key, builder).await
    }

    async fn read_into(
        &self,
        segment: SegmentName,
        key: &Key,
        builder: impl Fn() -> IndexBuilder,
    ) -> Result<Option<SegmentIndex>> {
        let size = self.segment_size();
        let (feed, trailer) =
            stored_wal::read(self.archive.store(), key, size.bytes(), || Ok(Feed(builder()))).await?;
        trailer.check(segment.into(), self.archive.identity().system_identifier)?;
        Ok(feed.0.finish())
    }

    /// The last ends of transactions in the segments of a chain from `first` to `last`, as far as their records begin
    /// before `until`; `None` where that cannot be known.
    pub async fn last_ends(
        &self,
        chain: &TimelineChain<'_>,
        first: SegmentNumber,
        last: SegmentNumber,
        until: Lsn,
    ) -> Result<Option<Option<LastEnds>>> {
        let cut = self.cut_at(chain, last, until).await?;
        let major = self.major()?;
        let mut indexes: Vec<Option<SegmentIndex>> = Vec::new();
        let (mut from, mut step) = (last.next(), FIRST_LOOK);
        while from > first && indexes.len() < LOOK_BACK as usize {
            let begin = SegmentNumber(from.0.saturating_sub(step)).max(first);
            let names = (begin.0..from.0).map(|number| chain.segment(SegmentNumber(number)));
            let mut earlier = self.of_all(&names.collect::<Result<Vec<_>>>()?).await?;
            earlier.append(&mut indexes);
            indexes = earlier;
            if let (Some(cut), Some(at_the_end)) = (&cut, indexes.last_mut()) {
                at_the_end.clone_from(cut);
            }
            match last_ends(&indexes, begin == first, major) {
                Last::LookFurther => {}
                Last::Ends(ends) => return Ok(Some(ends)),
                Last::Unknown => return Ok(None),
            }
            (from, step) = (begin, (step * 2).min(LARGEST_LOOK));
        }
        Ok(None)
    }

    /// The last end of a transaction in consecutive segments of one timeline; `None` where that cannot be known.
    pub async fn newest_end(
        &self,
        timeline: TimelineId,
        first: SegmentNumber,
        last: SegmentNumber,
    ) -> Result<Option<Option<EndOfTransaction>>> {
        let size = self.segment_size();
        let mut step = FIRST_LOOK;
        loop {
            let from = SegmentNumber(last.0.saturating_sub(step - 1)).max(first);
            let names =
                (from.0..=last.0).map(|number| SegmentName::new(timeline, SegmentNumber(number), size));
            let indexes = self.of_all(&names.collect::<Result<Vec<_>>>()?).await?;
            match last_ends(&indexes, from == first, self.major()?) {
                Last::LookFurther => step *= 2,
                Last::Unknown => return Ok(None),
                Last::Ends(ends) => return Ok(Some(ends.map(|ends| ends.last))),
            }
        }
    }

    /// The index of a segment that counts only up to a position within it; `None` where the whole segment counts.
    async fn cut_at(
        &self,
        chain: &TimelineChain<'_>,
        last: SegmentNumber,
        until: Lsn,
    ) -> Result<Option<Option<SegmentIndex>>> {
        let size = self.segment_size();
        if until >= size.start_of(last.next()) {
            return Ok(None);
        }
        let segment = chain.segment(last)?;
        let key = Key::Segment(segment);
        let start = segment.start(size)?;
        let builder = || IndexBuilder::new(start, WalCheck::Structure).until(until);
        self.read_into(segment, &key, builder).await.map(Some)
    }

    /// The recoverable window of every timeline.
    pub async fn windows(&self, catalogue: &Catalogue) -> Result<Vec<Window>> {
        let mut windows = Vec::new();
        for stretch in stretches(catalogue)? {
            let last = self.end_of(catalogue, &stretch).await?;
            windows.extend(stretch.window(last));
        }
        Ok(windows)
    }

    async fn end_of(&self, catalogue: &Catalogue, stretch: &Stretch<'_>) -> Result<Option<Option<LastEnds>>> {
        let chain = recovery_plan::chain_of(catalogue, stretch.timeline)?;
        let last = stretch.last.number(catalogue.wal.segment_size())?;
        self.last_ends(&chain, stretch.first, last, stretch.end_lsn).await
    }

    /// The cluster's version.
    ///
    /// # Errors
    /// `Invalid` for one that walship does not know.
    pub fn major(&self) -> Result<Major> {
        self.archive.identity().postgres_major.supported()
    }
}

/// Reads the trailer at the end of an object, without verifying the content by it.
///
/// # Errors
/// `NotFound` where the key is proven missing, `Corrupt` where there is no trailer; otherwise as the store.
pub async fn read_trailer(archive: &Archive, key: &Key) -> Result<Trailer> {
    read_again_if_damaged(async || look_at_trailer(archive, key).await).await
}

async fn look_at_trailer(archive: &Archive, key: &Key) -> Result<Trailer> {
    for length in [USUAL_TRAILER_BYTES, TRAILER_LIMIT] {
        let (info, bytes) = archive.store().read_tail(&key.to_string(), length).await?;
        if let Some(trailer) = trailer_in(&bytes)? {
            return Ok(trailer);
        }
        if info.size <= bytes.len() as u64 {
            break;
        }
    }
    Err(Error::corrupt(format!(
        "{} has no trailer: it is damaged, or not an object of walship",
        archive.url_of(key)
    )))
}

/// Passes decompressed bytes on.
struct Feed(IndexBuilder);

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.feed(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
