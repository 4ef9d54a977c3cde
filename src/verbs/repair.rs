//! `walship repair`: replaces a damaged WAL object by a good local copy of the same file.
//!
//! What holds:
//! - A good object is never replaced, unless it is an earlier state of the same segment that was stored before the
//!   segment was whole.
//! - An object that may be the only trace of a different history is never replaced.
//! - The replacement is whole, and passes what `walship verify` checks.
//! - Before an object is replaced, the damaged bytes are kept under `damaged/`.
//! - Only the very object that was looked at is replaced.
//! - A crash at any point leaves either the damaged object or the good one, and repairing again is safe.

mod args;

pub use self::args::RepairArgs;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::archive::stored_wal::LARGEST_SEGMENT;
use crate::archive::wal_object::{Found, WalContext};
use crate::archive::{Archive, Same, catalogue};
use crate::cluster::compressor::Compressor;
use crate::cluster::wal_file::{WalFile, key_of};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::codec::{self, Trailer, WalDecoder, trailer_in};
use crate::format::keys::Key;
use crate::format::{Sha256Sum, Xxh3Sum};
use crate::pg::{Lsn, SegmentName, SegmentSize, WalCheck, WalName, WalReader};
use crate::store::{Body, BodyWriter, Store, Version};

/// An object that is not sound is fetched at most this often.
const LOOKS: u32 = 3;

/// If an object has a trailer, it is in these last bytes.
const TRAILER_WITHIN: usize = 1 << 20;

/// What to repair, and with what.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// The file of `pg_wal`.
    pub name: WalName,
    /// A good copy of the file.
    pub from: PathBuf,
    /// Of zstd.
    pub compression_level: i32,
    /// Bytes of an object kept in memory; more goes to an unlinked temporary file.
    pub memory_bytes: usize,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// The file of `pg_wal`.
    pub name: String,
    /// Its object.
    pub key: String,
    /// If it was not replaced, it was good already and has the content of the local copy.
    pub replaced: bool,
    /// What was wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// The object was an earlier state of the same segment, stored before the segment was whole.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub was_unfinished: bool,
    /// Where the damaged bytes are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_as: Option<String>,
    /// Of the file.
    pub xxh3: Xxh3Sum,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// Repairs one object.
///
/// # Errors
/// As push for a local copy that does not belong; `Invalid` for a segment that is not complete. `NotFound` where there
/// is no such object. `Conflict` where the object is good and differs from the local copy, where what is left of it
/// shows another content, or where somebody else writes it at the same time. Otherwise as the store.
pub async fn run(options: &RepairOptions, store: &Store) -> Result<RepairReport> {
    let name = options.name;
    repair(options, store).await.context(|| format!("repair {name}"))
}

async fn repair(options: &RepairOptions, store: &Store) -> Result<RepairReport> {
    let name = options.name;
    let source = Arc::new(WalFile::open(name, &options.from)?);
    let archive = Archive::open(store).await?;
    source.check_archive(&archive)?;
    if let WalName::History(_) = name {
        source.check_history(&archive).await?;
    }
    let compressor = Compressor::new(options.compression_level, options.memory_bytes, 1);
    let (body, good) = compressor.compress(&source).await?;
    let key = key_of(name, &good)?;
    let mut context = WalContext::new(&archive);
    if let WalName::Segment(segment) = name {
        refuse_incomplete(segment, &good, &mut context).await?;
    }
    context.check_body(&key, &body).context(|| {
        format!(
            "{} does not pass what verify checks, and nothing was changed",
            options.from.display()
        )
    })?;
    let mut report = RepairReport {
        name: name.to_string(),
        key: key.to_string(),
        replaced: false,
        damage: None,
        was_unfinished: false,
        kept_as: None,
        xxh3: good.content_xxh3,
        notes: Vec::new(),
    };
    let stored = Stored::fetch(&archive, &key, options.memory_bytes, &options.from).await?;
    let damage = match (context.look(&key).await?, stored.earlier_state()) {
        (Found::Good, _) if stored.content == Some(good.content_xxh3) => return Ok(report),
        (Found::Gone, _) => return Err(vanished(&archive, &key)),
        (_, Some(end)) => {
            refuse_damaged_copy(&key, &options.from)?;
            report.was_unfinished = true;
            format!("it was stored before the segment was whole: its WAL ends at LSN {end}")
        }
        (Found::Good, None) => return Err(is_good(&archive, &key, stored.content, &good)),
        (Found::Bad(damage), None) => {
            stored.refuse_other_history(&good, &archive.url_of(&key))?;
            damage
        }
    };
    let kept_as = keep(&archive, &key, &stored.body).await?;
    if !store.probe_conditional_replaces().await? {
        report.notes.push(format!(
            "{} ignores If-Match: if somebody else replaced the object at the same moment, walship did not notice it",
            store.location()
        ));
    }
    replace(&archive, &key, &body, stored.version, &context, &options.from).await?;
    report.replaced = true;
    report.damage = Some(damage);
    report.kept_as = Some(kept_as);
    Ok(report)
}

/// Refuses a segment whose WAL ends early: it is still being written, or a standby has not received the rest. Stored,
/// it would end every recovery there. Only where a timeline forked off can such a segment be whole.
async fn refuse_incomplete(segment: SegmentName, good: &Trailer, context: &mut WalContext) -> Result<()> {
    let Some(index) = &good.index else {
        return Err(Error::invalid(
            "it cannot be known whether the local copy is complete, because its records cannot be read; nothing was \
             changed. Give another copy with --from",
        ));
    };
    let Some(end) = index.valid_until else {
        return Ok(());
    };
    let wal = catalogue::wal(&context.archive).await?;
    (context.histories, _) = catalogue::histories(&context.archive, &wal).await?;
    if context.forks_in(segment)? {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the local copy is not complete: its WAL ends at LSN {end}, within the segment. It is still being written, or \
         its server has not received the rest. Nothing was changed; give a complete copy with --from (from pg_wal of the \
         server that wrote it)"
    )))
}

/// Refuses a local copy with a damaged record, because it replaces WAL that is sound as far as it goes.
fn refuse_damaged_copy(key: &Key, local: &Path) -> Result<()> {
    let mut content = Content::beside(key, local)?;
    let copied = File::open(local).and_then(|mut file| std::io::copy(&mut file, &mut content));
    copied.map_err(|error| Error::io(format!("read {}", local.display()), error))?;
    match content.valid() {
        Some((_, end)) => Err(Error::invalid(format!(
            "the local copy's WAL ends at LSN {end}, because the record there does not match its checksum: {} is damaged. \
             Nothing was changed; give another copy with --from",
            local.display()
        ))),
        None => Ok(()),
    }
}

/// An object as it is stored.
struct Stored {
    body: Body,
    version: Version,
    /// XXH3 of the content; `None` where it cannot be read to its end.
    content: Option<Xxh3Sum>,
    /// The first byte of the readable content that differs from the local copy.
    differs_at: Option<u64>,
    /// For a segment whose valid records end within it: where it begins, and where they end.
    valid: Option<(Lsn, Lsn)>,
    trailer: Option<Trailer>,
}

impl Stored {
    /// Fetches an object. If it does not match its trailer, it may have been changed on its way, so it is fetched again
    /// until two fetches in a row agree.
    async fn fetch(archive: &Archive, key: &Key, memory_bytes: usize, local: &Path) -> Result<Self> {
        let mut before = None;
        for _ in 0..LOOKS {
            let stored = Self::look(archive, key, memory_bytes, local).await?;
            if stored.is_sound() || before == Some(stored.body.sha256) {
                return Ok(stored);
            }
            before = Some(stored.body.sha256);
        }
        Err(Error::unavailable(format!(
            "{} arrives with different bytes each time, so something changes it on its way. Nothing was repaired; try again",
            archive.url_of(key)
        )))
    }

    /// Whether the content is what the trailer says.
    fn is_sound(&self) -> bool {
        self.content.is_some() && self.content == self.trailer.as_ref().map(|trailer| trailer.content_xxh3)
    }

    async fn look(archive: &Archive, key: &Key, memory_bytes: usize, local: &Path) -> Result<Self> {
        let mut object = archive.get(key).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => vanished(archive, key),
            _ => error,
        })?;
        let version = object.info.version.clone();
        let mut spool = BodyWriter::new(memory_bytes);
        let mut content = Content::beside(key, local)?;
        let mut decoder = Some(WalDecoder::new(LARGEST_SEGMENT)?);
        let mut tail: Vec<u8> = Vec::new();
        while let Some(piece) = object.chunk().await? {
            spool
                .write_all(&piece)
                .map_err(|error| Error::io("write a temporary file (TMPDIR)", error))?;
            // `WalContext::look` tells the damage; what counts here is whether the content is whole.
            if let Some(readable) = &mut decoder
                && readable.write(&piece, &mut content).is_err()
            {
                decoder = None;
            }
            tail.extend_from_slice(&piece);
            let excess = tail.len().saturating_sub(TRAILER_WITHIN);
            tail.drain(..excess);
        }
        let is_whole = decoder.is_some_and(|decoder| decoder.has_whole_frames());
        Ok(Self {
            body: spool.finish(),
            version,
            differs_at: content.differs_at,
            valid: content.valid(),
            content: is_whole.then(|| content.sum.sum()),
            trailer: trailer_in(&tail).ok().flatten(),
        })
    }

    /// Where the object's WAL ends, if the local copy, which is whole, begins with all of it. PostgreSQL only adds to a
    /// segment, so the object was stored while the segment was still being written, and the local copy contains it.
    /// This is for objects that are not damaged.
    fn earlier_state(&self) -> Option<Lsn> {
        let (start, end) = self.valid.filter(|_| self.is_sound())?;
        let same_until = start.0.checked_add(self.differs_at?)?;
        (end > start && same_until >= end.0).then_some(end)
    }

    /// Refuses a damaged object that is the trace of another history: its trailer names a content that differs from the
    /// local copy. If the content is whole and equal, only the trailer is damaged. If there is no trailer, the content
    /// is compared as far as it can be read.
    fn refuse_other_history(&self, good: &Trailer, url: &str) -> Result<()> {
        let Some(trailer) = &self.trailer else {
            return self.refuse_other_beginning(url);
        };
        let is_of_this_file =
            trailer.name == good.name && trailer.system_identifier == good.system_identifier;
        if !is_of_this_file
            || trailer.content_xxh3 == good.content_xxh3
            || self.content == Some(good.content_xxh3)
        {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "the damaged object's trailer says that its content had XXH3 {}, but the local copy has {}: the copy is of a \
             different history with the same name, and to store it would fork the archive. Nothing was changed. \
             Look for a copy with the first XXH3 (xxh128sum; in pg_wal of every server that was primary)",
            trailer.content_xxh3, good.content_xxh3
        )))
    }

    fn refuse_other_beginning(&self, url: &str) -> Result<()> {
        let Some(at) = self.differs_at else {
            return Ok(());
        };
        Err(Error::conflict(format!(
            "the damaged object, as far as it can be read, differs from the local copy from byte {at} on: it may be of a \
             different history with the same name, and to replace it would fork the archive. Nothing was changed. Look for \
             another copy (in pg_wal of every server that was primary); if you know that this one is right, move {url} \
             elsewhere and store the copy with walship push"
        )))
    }
}

fn is_good(archive: &Archive, key: &Key, content: Option<Xxh3Sum>, good: &Trailer) -> Error {
    let stored = content.map_or_else(|| "another one".to_owned(), |sum| sum.to_string());
    Error::conflict(format!(
        "{} is good, and its content differs from the local copy: it has XXH3 {stored}, the local copy has {}. A good \
         object is never replaced; find out which server's history is the right one",
        archive.url_of(key),
        good.content_xxh3
    ))
}

fn vanished(archive: &Archive, key: &Key) -> Error {
    Error::not_found(format!(
        "there is no object {}; store a missing file with walship push",
        archive.url_of(key)
    ))
}

/// Keeps the damaged bytes; the same bytes may be kept already.
async fn keep(archive: &Archive, key: &Key, body: &Body) -> Result<String> {
    let kept = Key::Damaged {
        original: Box::new(key.clone()),
        sha256_start: Sha256Sum(body.sha256).first_eight(),
    };
    let created = archive.create(&kept, body, Same::Bytes, None).await;
    match created {
        Err(error) if error.kind() == ErrorKind::Conflict => Err(error
            .context("keep the damaged bytes (move the object that is there elsewhere, and repair again)")),
        created => created
            .context(|| "keep the damaged bytes")
            .map(|_| kept.to_string()),
    }
}

/// Replaces the object that was looked at, and checks the result.
async fn replace(
    archive: &Archive,
    key: &Key,
    body: &Body,
    version: Version,
    context: &WalContext,
    local: &Path,
) -> Result<()> {
    match archive.replace_if(key, body, Some(version)).await {
        Ok(()) => {}
        // It was this put, if its first answer got lost.
        Err(error)
            if error.kind() == ErrorKind::Conflict
                && Stored::fetch(archive, key, 0, local).await?.body.sha256 == body.sha256 => {}
        Err(error) if error.kind() == ErrorKind::Conflict => {
            return Err(error.context(
                "somebody else changed the object at the same time; find out who writes to the archive, and repair again",
            ));
        }
        Err(error) => return Err(error),
    }
    match context.look(key).await? {
        Found::Good => Ok(()),
        Found::Gone | Found::Bad(_) => Err(Error::corrupt(format!(
            "{} was replaced and is still not good, so the store damages what it is given; check the store itself",
            archive.url_of(key)
        ))),
    }
}

/// Sums up what it is given, and compares it with the local copy.
struct Content {
    /// Reads a segment's records, with their checksums.
    records: Option<(Lsn, WalReader)>,
    sum: codec::Content,
    local: File,
    position: u64,
    differs_at: Option<u64>,
}

impl Content {
    fn beside(key: &Key, local: &Path) -> Result<Self> {
        let size = std::fs::metadata(local).map_or(0, |metadata| metadata.len());
        let size = u32::try_from(size)
            .ok()
            .and_then(|size| SegmentSize::new(size).ok());
        let start = match (key, size) {
            (Key::Segment(segment), Some(size)) => Some(segment.start(size)?),
            _ => None,
        };
        Ok(Self {
            records: start.map(|start| (start, WalReader::new(start, WalCheck::Crc))),
            sum: codec::Content::default(),
            local: File::open(local)
                .map_err(|error| Error::io(format!("open {}", local.display()), error))?,
            position: 0,
            differs_at: None,
        })
    }

    fn valid(&self) -> Option<(Lsn, Lsn)> {
        let (start, records) = self.records.as_ref()?;
        records.has_ended().then(|| (*start, records.valid_until()))
    }

    fn compare(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut expected = Vec::with_capacity(bytes.len());
        let mut local = Read::by_ref(&mut self.local).take(bytes.len() as u64);
        local.read_to_end(&mut expected)?;
        if expected != bytes {
            let same = bytes
                .iter()
                .zip(&expected)
                .take_while(|(one, other)| one == other);
            self.differs_at = Some(self.position + same.count() as u64);
        }
        Ok(())
    }
}

impl Write for Content {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.sum.update(bytes);
        if let Some((_, records)) = &mut self.records {
            records.feed(bytes, |_| {});
        }
        if self.differs_at.is_none() {
            self.compare(bytes)?;
        }
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.damage, &self.kept_as) {
            (Some(damage), Some(kept)) => {
                let why = if self.was_unfinished {
                    ""
                } else {
                    "it was damaged: "
                };
                writeln!(f, "{} is replaced; {why}{damage}", self.key)?;
                writeln!(f, "the damaged bytes are kept as {kept}")?;
            }
            _ => writeln!(
                f,
                "{} is good and has the content of the local copy; nothing was changed",
                self.key
            )?,
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}
