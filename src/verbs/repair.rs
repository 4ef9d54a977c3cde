//! `walship repair`: replaces a damaged WAL object by a good local copy of the same file.
//!
//! What holds: an object that is good is never replaced, unless it is an earlier state of the same segment, which was
//! stored before it was whole; neither is one that may be the only trace of a
//! different history; what replaces it is whole, and passes what `walship verify` checks; the damaged bytes
//! are kept under `damaged/` before anything is replaced; and only the very object that was looked at is
//! replaced. A crash at any point leaves either the damaged object or the
//! good one, and repairing again is safe.

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
use crate::format::Sha256Sum;
use crate::format::codec::{Trailer, WalDecoder, trailer_in};
use crate::format::keys::Key;
use crate::pg::{Lsn, SegmentName, SegmentSize, WalCheck, WalName, WalReader};
use crate::store::{Body, BodyWriter, Store, Version};

/// An object that is not sound is fetched so often, at most.
const LOOKS: u32 = 3;

/// A trailer is in these last bytes of an object, if it is there at all.
const TRAILER_WITHIN: usize = 1 << 20;

/// What to repair, and with what.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// The file.
    pub name: WalName,
    /// A good copy of it.
    pub from: PathBuf,
    /// zstd level.
    pub compression_level: i32,
    /// Bytes of an object kept in memory; more goes to an unlinked temporary file.
    pub memory_bytes: usize,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// The file.
    pub name: String,
    /// The object.
    pub key: String,
    /// Whether it was replaced; if not, it was good already, with the content of the local copy.
    pub replaced: bool,
    /// What was wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// Whether that was an earlier state of the same segment, stored before it was whole.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub was_unfinished: bool,
    /// Where the damaged bytes are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_as: Option<String>,
    /// SHA-256 of the file.
    pub sha256: Sha256Sum,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// Repairs one object.
///
/// # Errors
/// As push for a local copy that does not belong; `Invalid` for a segment that is not complete. `NotFound` where there is no such object, `Conflict`
/// where the object is good and other than the local copy, where what is left of it tells of another content, or
/// where somebody else writes to it at the same time. Otherwise as the store.
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
            "{} does not pass, and nothing was changed",
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
        sha256: good.sha256,
        notes: Vec::new(),
    };
    let stored = Stored::fetch(&archive, &key, options.memory_bytes, &options.from).await?;
    let damage = match (context.look(&key).await?, stored.earlier_state()) {
        (Found::Good, _) if stored.content == Some(good.sha256) => return Ok(report),
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
            "{} ignores If-Match: had somebody else replaced the object at the same moment, it would not have been noticed",
            store.location()
        ));
    }
    replace(&archive, &key, &body, stored.version, &context, &options.from).await?;
    report.replaced = true;
    report.damage = Some(damage);
    report.kept_as = Some(kept_as);
    Ok(report)
}

/// A segment whose WAL ends early is still being written, or is a standby's that has not received the rest:
/// stored, it would end every recovery there. Only where a timeline branched off can it be whole.
async fn refuse_incomplete(segment: SegmentName, good: &Trailer, context: &mut WalContext) -> Result<()> {
    let Some(index) = &good.index else {
        return Err(Error::invalid(
            "whether the local copy is complete cannot be told, for its records cannot be read; nothing was changed. \
             Give another copy with --from",
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
         is of a server that has not received the rest. Nothing was changed; give a complete copy with --from (pg_wal \
         of the server that wrote it)"
    )))
}

/// The local copy replaces WAL that is sound as far as it goes: every record of it must be.
fn refuse_damaged_copy(key: &Key, local: &Path) -> Result<()> {
    let mut content = Content::beside(key, local)?;
    let copied = File::open(local).and_then(|mut file| std::io::copy(&mut file, &mut content));
    copied.map_err(|error| Error::io(format!("read {}", local.display()), error))?;
    match content.valid() {
        Some((_, end)) => Err(Error::invalid(format!(
            "the local copy's WAL ends at LSN {end}, for the record there does not match its checksum: {} is damaged. \
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
    /// SHA-256 of what it decompresses to, where that comes to an end.
    content: Option<Sha256Sum>,
    /// The first byte of the content, as far as it can be read, that is other than the local copy's.
    differs_at: Option<u64>,
    /// Of a segment: where it begins, and where its valid records end if that is within it.
    valid: Option<(Lsn, Lsn)>,
    trailer: Option<Trailer>,
}

impl Stored {
    /// An object that does not match its trailer is fetched again until two fetches in a row agree: it may have been
    /// changed on its way.
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
            "{} arrives with other bytes each time: it is changed on its way. Nothing was changed; try again",
            archive.url_of(key)
        )))
    }

    /// Whether the content is what the trailer says.
    fn is_sound(&self) -> bool {
        self.content.is_some() && self.content == self.trailer.as_ref().map(|trailer| trailer.sha256)
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
            // Its damage is told by the look; what counts here is whether the content is whole.
            if let Some(readable) = &mut decoder
                && readable.write(&piece, &mut content).is_err()
            {
                decoder = None;
            }
            tail.extend_from_slice(&piece);
            let excess = tail.len().saturating_sub(TRAILER_WITHIN);
            tail.drain(..excess);
        }
        let is_whole = decoder.is_some_and(|decoder| decoder.has_whole_content());
        Ok(Self {
            body: spool.finish(),
            version,
            differs_at: content.differs_at,
            valid: content.valid(),
            content: is_whole.then(|| content.sum()),
            trailer: trailer_in(&tail).ok().flatten(),
        })
    }

    /// Where the WAL of the object ends, if all of it is the local copy's beginning, which is whole: PostgreSQL only adds
    /// to a segment, so it was stored while the segment was still being written, and what replaces it holds all of it.
    /// The object must be what was stored once: of a damaged one its trailer tells, or nothing does.
    fn earlier_state(&self) -> Option<Lsn> {
        let (start, end) = self.valid.filter(|_| self.is_sound())?;
        let same_until = start.0.checked_add(self.differs_at?)?;
        (end > start && same_until >= end.0).then_some(end)
    }

    /// A damaged object whose trailer tells of another content than the local copy's is the trace of
    /// another history. Unless its content is whole and equal: then the trailer is what is damaged. Where
    /// there is no trailer, the content tells as far as it can be read.
    fn refuse_other_history(&self, good: &Trailer, url: &str) -> Result<()> {
        let Some(trailer) = &self.trailer else {
            return self.refuse_other_beginning(url);
        };
        let is_of_this_file =
            trailer.name == good.name && trailer.system_identifier == good.system_identifier;
        if !is_of_this_file || trailer.sha256 == good.sha256 || self.content == Some(good.sha256) {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "the damaged object's trailer says that its content had SHA-256 {}, and the local copy has {}: it is a \
             different history of the same name, and putting it there would fork the archive. Nothing was changed. \
             Look for a copy with that SHA-256 (pg_wal of every server that was primary)",
            trailer.sha256, good.sha256
        )))
    }

    fn refuse_other_beginning(&self, url: &str) -> Result<()> {
        let Some(at) = self.differs_at else {
            return Ok(());
        };
        Err(Error::conflict(format!(
            "what can still be read of the damaged object is other than the local copy from byte {at} on: it may be a \
             different history of the same name, and replacing it would fork the archive. Nothing was changed. Look for \
             another copy (pg_wal of every server that was primary); if this one is known to be right, move {url} \
             elsewhere and store the copy with walship push"
        )))
    }
}

fn is_good(archive: &Archive, key: &Key, content: Option<Sha256Sum>, good: &Trailer) -> Error {
    let stored = content.map_or_else(|| "another one".to_owned(), |sum| sum.to_string());
    Error::conflict(format!(
        "{} is good, and its content is other than the local copy's: SHA-256 {stored}, the local copy {}. A good object \
         is never replaced: find out which server's history is the right one",
        archive.url_of(key),
        good.sha256
    ))
}

fn vanished(archive: &Archive, key: &Key) -> Error {
    Error::not_found(format!(
        "there is no object {}; a file that is missing is stored with walship push",
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
        Err(error) if error.kind() == ErrorKind::Conflict => {
            Err(error.context("keep the damaged bytes (move what is there elsewhere, and repair again)"))
        }
        created => created
            .context(|| "keep the damaged bytes")
            .map(|_| kept.to_string()),
    }
}

/// Replaces the object that was looked at, and looks at what is there then.
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
        // By this very put, if its first answer got lost.
        Err(error)
            if error.kind() == ErrorKind::Conflict
                && Stored::fetch(archive, key, 0, local).await?.body.sha256 == body.sha256 => {}
        Err(error) if error.kind() == ErrorKind::Conflict => {
            return Err(error.context(
                "somebody else changed the object at the same time; see who writes to the archive, and repair again",
            ));
        }
        Err(error) => return Err(error),
    }
    match context.look(key).await? {
        Found::Good => Ok(()),
        Found::Gone | Found::Bad(_) => Err(Error::corrupt(format!(
            "{} was replaced and is not good; the store damages what it is given, see its own health",
            archive.url_of(key)
        ))),
    }
}

/// Sums up what it is given, and compares it with the local copy.
struct Content {
    /// Reads a segment's records, with their checksums.
    records: Option<(Lsn, WalReader)>,
    hash: sha2::Sha256,
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
            hash: sha2::Sha256::default(),
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

    fn sum(self) -> Sha256Sum {
        use sha2::Digest;
        Sha256Sum(self.hash.finalize().into())
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
        use sha2::Digest;
        self.hash.update(bytes);
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
