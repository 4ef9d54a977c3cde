//! The content of a base backup: every part is decompressed, and every file in it is compared with PostgreSQL's
//! manifest.
//!
//! Several parts are read at a time. Their files' checksums are put together in the order of the stream, which is also
//! the manifest's order. Memory holds the names of the files of the parts in flight, but never a part or the manifest.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

use crate::archive::Archive;
use crate::archive::parts::compare::compare;
use crate::archive::parts::decompress::Decompressor;
use crate::archive::parts::index::{Index, Spooled};
use crate::archive::parts::schedule::{PartJob, Schedule};
use crate::archive::wal_object::{Found, found, twice};
use crate::cluster::part_writer::PartCursor;
use crate::cluster::survey::survey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::backup::{BackupRecord, StoredObject};
use crate::format::keys::{BackupObject, Key};
use crate::pg::{ChecksumAlgorithm, FileHash, Manifest};
use crate::progress::Progress;

/// Files whose checksums wait to be compared.
const WAITING: usize = 1024;
/// At most this many files that differ are named.
const NAMED: usize = 5;

/// A backup whose content is to be checked.
#[derive(Debug, Clone)]
pub(super) struct Contents {
    pub(super) archive: Archive,
    pub(super) record: Arc<BackupRecord>,
    /// Parts in flight, at least 1.
    pub(super) concurrency: usize,
    pub(super) progress: Arc<Progress>,
}

#[derive(Debug, Default)]
pub(super) struct Judgement {
    /// Each object that was read.
    pub(super) objects: Vec<(BackupObject, Found)>,
    /// What is wrong although each object is as the record says.
    pub(super) contradiction: Option<String>,
}

/// A file's checksum; `None` where it is not known.
type Computed = Option<Vec<u8>>;

impl Contents {
    /// Reads everything of the backup except its configuration files.
    pub(super) async fn check(&self) -> Result<Judgement> {
        let mut judgement = Judgement::default();
        let index = spooled(Index::fetch(&self.archive, &self.record).await)?;
        let (id, expected) = (&self.record.id, self.record.manifest);
        let manifest = Spooled::fetch(&self.archive, id, BackupObject::Manifest, expected).await;
        let manifest = spooled(manifest)?;
        for (object, found) in [
            (BackupObject::Files, index.as_ref().err()),
            (BackupObject::Manifest, manifest.as_ref().err()),
        ] {
            let found = found.cloned().unwrap_or(Found::Good);
            judgement.objects.push((object, found));
        }
        let (Ok(index), Ok(manifest)) = (index, manifest) else {
            self.parts_alone(&mut judgement).await?;
            return Ok(judgement);
        };
        let described = Described {
            record: Arc::clone(&self.record),
            index: Arc::new(index),
            manifest: Arc::new(manifest),
        };
        match described.clone().blocking(Described::algorithm).await {
            Ok(algorithm) => self.with_files(described, algorithm, &mut judgement).await?,
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
                judgement.contradiction = Some(error.to_string());
                self.parts_alone(&mut judgement).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(judgement)
    }

    /// Checks the parts when it is not known which files they have.
    async fn parts_alone(&self, judgement: &mut Judgement) -> Result<()> {
        let parts = self
            .record
            .objects()
            .filter(|(object, _)| matches!(object, BackupObject::Part(..)));
        let mut running = VecDeque::new();
        for (object, expected) in parts {
            if running.len() == self.concurrency.max(1) {
                judgement.objects.extend(next(&mut running).await?);
            }
            let contents = self.clone();
            running.push_back(tokio::spawn(async move {
                let found = contents.check_object(&object, &expected).await?;
                Ok((object, found))
            }));
        }
        while let Some(checked) = next(&mut running).await? {
            judgement.objects.push(checked);
        }
        Ok(())
    }

    /// Reads an object and checks it against its record.
    pub(super) async fn check_object(&self, object: &BackupObject, expected: &StoredObject) -> Result<Found> {
        let key = self.record.id.key(object.clone());
        twice(|| found(self.stream(&key, expected, |_| Ok(())))).await
    }

    /// Decompresses an object and passes its content to `each`.
    async fn stream(
        &self,
        key: &Key,
        expected: &StoredObject,
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Result<()>> {
        let mut object = self.archive.get(key).await?;
        let mut decompressor = Decompressor::new()?;
        while let Some(stored) = object.chunk().await? {
            self.progress.advance(stored.len() as u64);
            if let Err(damage) = decompressor.feed(&stored, &mut each) {
                return Ok(Err(damage));
            }
        }
        Ok(decompressor.finish(expected))
    }

    /// Checks the parts and the files in them.
    async fn with_files(
        &self,
        described: Described,
        algorithm: Option<ChecksumAlgorithm>,
        judgement: &mut Judgement,
    ) -> Result<()> {
        let (sender, receiver) = channel(WAITING);
        let comparing = described
            .clone()
            .blocking(move |described| described.compare(receiver));
        let reading = async {
            let mut files = FilesInOrder {
                sender,
                current: None,
            };
            self.read_parts(&described, algorithm, &mut files, judgement)
                .await
        };
        let (compared, read) = tokio::join!(comparing, reading);
        read?;
        judgement.contradiction = compared?;
        Ok(())
    }

    async fn read_parts(
        &self,
        described: &Described,
        algorithm: Option<ChecksumAlgorithm>,
        files: &mut FilesInOrder,
        judgement: &mut Judgement,
    ) -> Result<()> {
        // Only CRC-32C can be put together from pieces; the other algorithms need the part before.
        let at_once = match algorithm {
            None | Some(ChecksumAlgorithm::Crc32c) => self.concurrency.max(1),
            Some(_) => 1,
        };
        let mut schedule = Schedule::new(&described.record, described.index.entries()?);
        let mut running: VecDeque<JoinHandle<Result<CheckedPart>>> = VecDeque::new();
        loop {
            while running.len() < at_once
                && let Some(job) = schedule.next_part(&mut |_| Ok(()))?
            {
                let carried = if at_once == 1 { files.state() } else { None };
                let contents = self.clone();
                running.push_back(tokio::spawn(async move {
                    contents.check_part(job, algorithm, carried).await
                }));
            }
            let Some(part) = next(&mut running).await? else {
                return Ok(());
            };
            files.take(&part).await;
            judgement.objects.push((part.object, part.found));
        }
    }

    async fn check_part(
        &self,
        job: PartJob,
        algorithm: Option<ChecksumAlgorithm>,
        carried: Option<FileHash>,
    ) -> Result<CheckedPart> {
        let stream = self
            .record
            .stream_key(job.stream)
            .ok_or_else(|| Error::defect("verify a backup", "a part of no stream"))?;
        let object = BackupObject::Part(stream, job.number);
        let key = self.record.id.key(object.clone());
        let look = || self.hash_part(&key, &job, algorithm, carried.clone());
        let (mut found, mut hashes) = look().await?;
        if matches!(found, Found::Bad(_)) {
            // If it was changed on the way, the second look shows it right.
            (found, hashes) = look().await?;
        }
        Ok(CheckedPart {
            object,
            found,
            job,
            hashes,
        })
    }

    /// Checks a part and sums up the bytes that it has of each file. `carried` is the sum of its first file so far.
    async fn hash_part(
        &self,
        key: &Key,
        job: &PartJob,
        algorithm: Option<ChecksumAlgorithm>,
        carried: Option<FileHash>,
    ) -> Result<(Found, Vec<Piece>)> {
        let mut hashes = vec![Piece::default(); job.files.len()];
        if let Some(first) = hashes.first_mut() {
            first.hash = carried;
        }
        let mut cursor = PartCursor::new(job);
        let mut file = 0;
        let checked = async {
            let streamed = self.stream(key, &job.object, |bytes| {
                cursor.feed(bytes, |content| {
                    if let (Some(piece), Some(algorithm)) = (hashes.get_mut(file), algorithm) {
                        piece
                            .hash
                            .get_or_insert_with(|| FileHash::new(algorithm))
                            .update(content.bytes);
                        piece.bytes += content.bytes.len() as u64;
                    }
                    file += usize::from(content.are_last());
                    Ok(())
                })
            });
            Ok(streamed.await?.and_then(|()| cursor.finish()))
        };
        let found = found(checked).await?;
        Ok((found, hashes))
    }
}

/// An object that describes other objects, or what is wrong with it.
fn spooled<T>(fetched: Result<T>) -> Result<Result<T, Found>> {
    match fetched {
        Ok(object) => Ok(Ok(object)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Err(Found::Gone)),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Err(Found::Bad(error.to_string()))),
        Err(error) => Err(error),
    }
}

/// Waits for the oldest of the running jobs.
async fn next<T: Send + 'static>(running: &mut VecDeque<JoinHandle<Result<T>>>) -> Result<Option<T>> {
    let Some(oldest) = running.pop_front() else {
        return Ok(None);
    };
    oldest
        .await
        .map_err(|error| Error::defect("verify a backup", error))?
        .map(Some)
}

/// A part that was read, and the checksums of the bytes that it has of each file.
#[derive(Debug)]
struct CheckedPart {
    object: BackupObject,
    found: Found,
    job: PartJob,
    hashes: Vec<Piece>,
}

/// The checksum of a file's bytes in one part.
#[derive(Debug, Clone, Default)]
struct Piece {
    hash: Option<FileHash>,
    bytes: u64,
}

/// Puts the pieces of files together and passes the checksums on, in order.
struct FilesInOrder {
    sender: Sender<Computed>,
    /// The sum of the file that goes on in the next part.
    current: Option<Sum>,
}

/// What is known of a file's checksum.
enum Sum {
    Of(Box<FileHash>),
    /// A part of the file is damaged, or nobody asked.
    Unknown,
}

impl Sum {
    fn known(self) -> Option<FileHash> {
        match self {
            Self::Of(hash) => Some(*hash),
            Self::Unknown => None,
        }
    }
}

impl FilesInOrder {
    fn state(&self) -> Option<FileHash> {
        match &self.current {
            Some(Sum::Of(hash)) => Some((**hash).clone()),
            Some(Sum::Unknown) | None => None,
        }
    }

    async fn take(&mut self, part: &CheckedPart) {
        let is_good = part.found == Found::Good;
        for (file, piece) in part.job.files.iter().zip(&part.hashes) {
            let hash = piece.hash.clone().filter(|_| is_good);
            let hash = match self.current.take() {
                None => hash,
                Some(before) => before
                    .known()
                    .zip(hash)
                    .map(|(before, hash)| join(&before, hash, piece.bytes)),
            };
            if file.end() <= part.job.end {
                // The receiver may have ended already.
                let _ = self.sender.send(hash.map(FileHash::finish)).await;
            } else {
                self.current = Some(hash.map_or(Sum::Unknown, |hash| Sum::Of(Box::new(hash))));
            }
        }
    }
}

/// The checksum of two pieces of a file. If it is not CRC-32C, the second hash already contains the first piece.
fn join(before: &FileHash, hash: FileHash, bytes: u64) -> FileHash {
    match (before, hash) {
        (FileHash::Crc32c(before), FileHash::Crc32c(crc)) => {
            FileHash::Crc32c(crc32c::crc32c_combine(*before, crc, bytes as usize))
        }
        (_, hash) => hash,
    }
}

/// What describes a backup's files.
#[derive(Debug, Clone)]
struct Described {
    record: Arc<BackupRecord>,
    index: Arc<Index>,
    manifest: Arc<Spooled>,
}

impl Described {
    async fn blocking<T: Send + 'static>(
        self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        tokio::task::spawn_blocking(move || work(&self))
            .await
            .unwrap_or_else(|error| Err(Error::defect("verify a backup", error)))
    }

    /// Checks that record, index and manifest agree, and returns the algorithm of the files' checksums.
    fn algorithm(&self) -> Result<Option<ChecksumAlgorithm>> {
        survey(&self.record, self.index.url(), self.index.entries()?)?;
        let mut algorithm = None;
        let manifest = self.walk(|listed| {
            let checksum = listed.checksum.as_ref().map(|checksum| checksum.algorithm);
            algorithm = algorithm.or(checksum);
            Ok(())
        })?;
        let ranges = manifest
            .wal_ranges
            .iter()
            .map(|range| (range.timeline, range.start, range.end));
        let recorded = self
            .record
            .wal_ranges
            .iter()
            .map(|range| (range.timeline, range.start_lsn, range.end_lsn));
        if !ranges.eq(recorded) {
            return Err(Error::corrupt(
                "backup.json and PostgreSQL's manifest name different WAL",
            ));
        }
        Ok(algorithm)
    }

    fn walk(&self, mut each: impl FnMut(&crate::pg::ManifestFile) -> Result<()>) -> Result<Manifest> {
        let manifest = zstd::stream::read::Decoder::new(self.manifest.reader())
            .map_err(|error| Error::io("start decompression", error))?;
        compare(
            manifest,
            self.index.entries()?,
            &self.record.streams,
            |listed, _| each(listed),
        )
    }

    /// Compares the files' checksums with the manifest as they come. Returns what is wrong, if anything.
    fn compare(&self, mut computed: Receiver<Computed>) -> Result<Option<String>> {
        let mut wrong = Vec::new();
        let mut count = 0_u64;
        self.walk(|listed| {
            let found = if listed.size_bytes == 0 {
                let empty = listed.checksum.as_ref().map(|sum| FileHash::new(sum.algorithm));
                empty.map(FileHash::finish)
            } else {
                // If the reading ended early, its own error says more.
                computed.blocking_recv().flatten()
            };
            if let (Some(expected), Some(found)) = (&listed.checksum, found)
                && expected.bytes != found
            {
                count += 1;
                if wrong.len() < NAMED {
                    wrong.push(listed.path.to_string());
                }
            }
            Ok(())
        })?;
        Ok((count > 0).then(|| {
            format!(
                "{count} of its files differ from PostgreSQL's manifest: {}{}",
                wrong.join(", "),
                if count as usize > wrong.len() { ", …" } else { "" }
            )
        }))
    }
}
