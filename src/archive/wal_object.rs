//! Reads a WAL object, and checks it in every way that its content allows.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use crate::archive::Archive;
use crate::archive::stored_wal::{LARGEST_SEGMENT, SMALL_FILE_LIMIT};
use crate::archive::time_index::read_trailer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::codec::{Trailer, WalDecoder};
use crate::format::identity::Identity;
use crate::format::keys::Key;
use crate::format::wal_inventory::WalInventory;
use crate::pg::{BackupHistory, PageCheck, SegmentName, TimelineHistory, TimelineId, WalName};
use crate::store::Body;

/// Bytes of an object that is not stored yet, read at a time.
const PIECE_BYTES: usize = 64 << 10;

/// The result of looking at an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is what it should be.
    Good,
    /// It is not there (any more).
    Gone,
    /// What is wrong with it.
    Bad(String),
}

/// What WAL objects are checked against.
#[derive(Debug)]
pub(crate) struct WalContext {
    pub(crate) archive: Archive,
    pub(crate) histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Which segments there are.
    pub(crate) wal: WalInventory,
}

impl WalContext {
    /// A context without histories and other segments: an object is not checked against them.
    pub(crate) fn new(archive: &Archive) -> Self {
        Self {
            archive: archive.clone(),
            wal: WalInventory::new(archive.identity().segment_bytes),
            histories: BTreeMap::new(),
        }
    }

    fn identity(&self) -> &Identity {
        self.archive.identity()
    }

    /// Reads an object and checks it.
    ///
    /// # Errors
    /// Only where the store cannot tell whether it has the object.
    pub(crate) async fn look(&self, key: &Key) -> Result<Found> {
        found(self.check(key)).await
    }

    async fn check(&self, key: &Key) -> Result<Result<()>> {
        let mut object = self.archive.get(key).await?;
        let mut reading = Reading::begin(key)?;
        while let Some(chunk) = object.chunk().await? {
            if let Err(damage) = reading.feed(&chunk) {
                return Ok(Err(damage));
            }
        }
        Ok(self.end(key, reading))
    }

    /// Checks an object that is not stored yet.
    ///
    /// # Errors
    /// What is wrong with it; `Internal` where it cannot be read.
    pub(crate) fn check_body(&self, key: &Key, body: &Body) -> Result<()> {
        let mut reading = Reading::begin(key)?;
        let mut reader = body.reader();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = reader.read(&mut piece);
            let length = read.map_err(|error| Error::io("read a temporary file (TMPDIR)", error))?;
            if length == 0 {
                return self.end(key, reading);
            }
            reading.feed(piece.get(..length).unwrap_or_default())?;
        }
    }

    /// Whether a damaged object's trailer, or the header of its first page, shows that it was the file of its key.
    ///
    /// # Errors
    /// As the store.
    pub(crate) async fn is_of_its_name(&self, key: &Key) -> Result<bool> {
        let Key::Segment(segment) = key else {
            return Ok(false);
        };
        let system_identifier = self.identity().system_identifier;
        let look = async {
            match read_trailer(&self.archive, key).await {
                Ok(trailer) => return Ok(trailer.check((*segment).into(), system_identifier).is_ok()),
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                Err(error) => return Err(error),
            }
            let mut object = self.archive.get(key).await?;
            let mut reading = Reading::begin(key)?;
            while let Some(chunk) = object.chunk().await? {
                let damage = reading.feed(&chunk);
                if let Content::Pages(pages) = &reading.content
                    && let Some(header) = pages.first()
                {
                    let size = self.identity().segment_bytes;
                    return Ok(header.check(*segment, size, system_identifier).is_ok());
                }
                if damage.is_err() {
                    break;
                }
            }
            Ok(false)
        };
        match look.await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            looked => looked,
        }
    }

    fn end(&self, key: &Key, reading: Reading) -> Result<()> {
        let trailer = reading.decoder.finish()?;
        self.judge(key, reading.name, &trailer, reading.content)
    }

    fn judge(&self, key: &Key, name: WalName, trailer: &Trailer, content: Content) -> Result<()> {
        trailer.check(name, self.identity().system_identifier)?;
        if let Key::Partial { xxh3_start, .. } = key
            && trailer.content_xxh3.first_eight() != *xxh3_start
        {
            return Err(Error::corrupt("its key names other content"));
        }
        match (name, content) {
            (WalName::Segment(segment), Content::Pages(pages)) => {
                self.judge_pages(segment, pages, true)?;
                self.judge_end(segment, trailer)
            }
            (WalName::Partial(segment), Content::Pages(pages)) => self.judge_pages(segment, pages, false),
            (WalName::History(timeline), Content::Small(content)) => self.judge_history(timeline, &content),
            (_, Content::Small(content)) => {
                BackupHistory::parse(&content)?.check(name, self.identity().segment_bytes)
            }
            (_, Content::Pages(_)) => Err(Error::internal("a small file has no pages")),
        }
    }

    fn judge_pages(&self, name: SegmentName, pages: PageCheck, is_whole: bool) -> Result<()> {
        let size = self.identity().segment_bytes;
        let pages = pages.finish(name, size, self.identity().system_identifier)?;
        let start = name.start(size)?;
        let timeline = name.timeline();
        let begins_at = self
            .histories
            .get(&timeline)
            .and_then(TimelineHistory::parent)
            .map(|parent| parent.end);
        // The WAL that a promotion copies to the new timeline ends in the segment of the fork.
        if begins_at.is_some_and(|fork| fork <= start) && pages.earliest_timeline < timeline {
            return Err(Error::corrupt(format!(
                "it has pages of timeline {}, but timeline {timeline} had begun before it",
                pages.earliest_timeline
            )));
        }
        match pages.stale_from {
            Some(from) if is_whole && !self.forks_in(name)? => Err(Error::corrupt(format!(
                "its WAL ends at {from}: what follows belongs elsewhere; PostgreSQL archived a segment that was not \
                 complete"
            ))),
            _ => Ok(()),
        }
    }

    /// A segment with a following segment holds WAL to its end, unless a timeline branched off in it.
    fn judge_end(&self, name: SegmentName, trailer: &Trailer) -> Result<()> {
        let Some(end) = trailer.index.as_ref().and_then(|index| index.valid_until) else {
            return Ok(());
        };
        let next = name.number(self.identity().segment_bytes)?.next();
        if !self.wal.contains(name.timeline(), next) || self.forks_in(name)? {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "its WAL ends at {end}, though the next segment is there: the records break off at LSN {end}, and a recovery ends \
             there. It was archived before it was complete, or damaged before it was archived"
        )))
    }

    /// Whether a timeline is known to have branched off within a segment, or at its end: then its own WAL may
    /// end there.
    ///
    /// # Errors
    /// `Invalid` for a name that no segment of this cluster has.
    pub(crate) fn forks_in(&self, segment: SegmentName) -> Result<bool> {
        let size = self.identity().segment_bytes;
        let start = segment.start(size)?;
        let mut forks = self
            .histories
            .values()
            .filter_map(|history| history.end_of(segment.timeline()));
        Ok(forks.any(|fork| fork >= start && fork.0 - start.0 <= size.bytes()))
    }

    fn judge_history(&self, timeline: TimelineId, content: &[u8]) -> Result<()> {
        let history = TimelineHistory::parse(timeline, content)?;
        let parents = history
            .ancestors()
            .iter()
            .filter_map(|ancestor| self.histories.get(&ancestor.timeline));
        for parent in parents {
            history.extends(parent)?;
        }
        Ok(())
    }
}

/// Turns the results of a check into a finding: the inner one is about the object, the outer one about the store.
pub(crate) async fn found(check: impl Future<Output = Result<Result<()>>>) -> Result<Found> {
    match check.await {
        Ok(Ok(())) => Ok(Found::Good),
        Ok(Err(damage)) if damage.kind() == ErrorKind::Internal => Err(damage),
        Ok(Err(damage)) => Ok(Found::Bad(damage.to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Found::Gone),
        Err(error) => Err(error),
    }
}

/// Looks again at an object that seems wrong: if it was changed on the way, it is right the second time, and only an
/// object that is wrong twice is damaged where it lies. A second look that fails is the store's error, not a finding.
pub(crate) async fn twice<F>(mut look: impl FnMut() -> F) -> Result<Found>
where
    F: Future<Output = Result<Found>>,
{
    match look().await? {
        Found::Bad(what) => {
            tracing::debug!("an object seems wrong ({what}) and is read again");
            look().await
        }
        seen => Ok(seen),
    }
}

/// The file that a WAL object holds.
pub(crate) fn wal_name(key: &Key) -> Option<WalName> {
    match key {
        Key::Segment(segment) => Some(WalName::Segment(*segment)),
        Key::Partial { segment, .. } => Some(WalName::Partial(*segment)),
        Key::History(timeline) => Some(WalName::History(*timeline)),
        Key::BackupHistory { segment, offset } => Some(WalName::Backup {
            segment: *segment,
            offset: *offset,
        }),
        Key::Identity
        | Key::Retention
        | Key::Retired(_)
        | Key::Backup(..)
        | Key::Ledger(_)
        | Key::Damaged { .. } => None,
    }
}

/// An object that is being taken apart.
struct Reading {
    name: WalName,
    decoder: WalDecoder,
    content: Content,
}

impl Reading {
    fn begin(key: &Key) -> Result<Self> {
        let Some(name) = wal_name(key) else {
            return Err(Error::defect("verify the WAL", "no WAL object"));
        };
        let (limit, content) = match name {
            WalName::Segment(_) | WalName::Partial(_) => {
                (LARGEST_SEGMENT, Content::Pages(PageCheck::default()))
            }
            WalName::History(_) | WalName::Backup { .. } => (SMALL_FILE_LIMIT, Content::Small(Vec::new())),
        };
        Ok(Self {
            name,
            decoder: WalDecoder::new(limit)?,
            content,
        })
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.decoder.write(bytes, &mut self.content)
    }
}

/// Where the decoded bytes go.
enum Content {
    Pages(PageCheck),
    Small(Vec<u8>),
}

impl Write for Content {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Pages(check) => check.feed(bytes),
            Self::Small(content) => content.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
