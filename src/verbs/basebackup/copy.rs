//! Copies PostgreSQL's files, as they come, into the parts, the index and the manifest of a backup.

use std::io::Write;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::BasebackupOptions;
use super::clock::ServerClock;
use super::objects;
use super::parts::PartWriter;
use super::source::Source;
use crate::archive::Archive;
use crate::archive::parts::compare;
use crate::error::{Context, Error, Result};
use crate::format::backup::{StoredObject, Tablespace, TarStream};
use crate::format::file_index::FileIndexWriter;
use crate::format::keys::{BackupId, BackupObject};
use crate::format::tar_stream::{TAR_END, TarEnd, TarScanner};
use crate::pg::{BackupLabel, CheckpointCopy, ControlFile, Lsn, Manifest, TimelineId, WalPiece};
use crate::progress::Progress;
use crate::server::{Event, TablespaceHeader};
use crate::store::BodyWriter;

/// Bytes of the index, and of the manifest, that are kept in memory; more goes to unlinked
/// temporary files.
const MEMORY_BYTES: usize = 4 << 20;
/// As for the index: the manifest is the same kind of text.
const MANIFEST_LEVEL: i32 = 3;
/// Says where recovery starts. PostgreSQL writes it when it begins to send the data directory, so its time tells the
/// server's clock.
const BACKUP_LABEL: &str = "backup_label";
/// Repeats the last checkpoint. It is the last member of all.
const CONTROL_FILE: &str = "global/pg_control";
const WANTED: &[&str] = &[BACKUP_LABEL, CONTROL_FILE];

/// A complete copy.
pub(super) struct Copied {
    pub(super) streams: Vec<TarStream>,
    pub(super) files: StoredObject,
    pub(super) manifest_object: StoredObject,
    pub(super) manifest: Manifest,
    pub(super) label: BackupLabel,
    pub(super) control: ControlFile,
    pub(super) control_checkpoint: CheckpointCopy,
    pub(super) stop_lsn: Lsn,
    pub(super) stop_timeline: TimelineId,
    /// When PostgreSQL ended the backup, by this machine's clock.
    pub(super) ended_at: DateTime<Utc>,
    pub(super) clock: ServerClock,
    /// The server's own WAL, at the start and at the end; `None` where the server did not give it.
    pub(super) wal: [Option<WalPiece>; 2],
}

/// Copies the stream into the archive. When it returns, every object but the records is there, and
/// every file that PostgreSQL's manifest lists is in the index with its size.
pub(super) async fn copy(
    options: &BasebackupOptions,
    source: &mut Source,
    archive: &Archive,
    id: &BackupId,
    progress: &Progress,
) -> Result<Copied> {
    let mut parts = PartWriter::new(archive.clone(), id.clone(), options.parts);
    let mut copy = Copy::new(source, progress)?;
    let ended = copy.run(source, &mut parts).await;
    match ended {
        Ok(end) => {
            parts.finish().await?;
            copy.store(end, archive, id).await
        }
        Err(error) => {
            parts.abandon().await;
            Err(error)
        }
    }
}

/// The backup's end as the server tells it.
struct End {
    stop_lsn: Lsn,
    stop_timeline: TimelineId,
    at: DateTime<Utc>,
}

struct Copy<'a> {
    tablespaces: Vec<TablespaceHeader>,
    label_comes_first: bool,
    progress: &'a Progress,
    scanner: Option<TarScanner>,
    streams: Vec<TarStream>,
    index: FileIndexWriter<BodyWriter>,
    manifest: zstd::stream::write::Encoder<'static, BodyWriter>,
    label: Option<Vec<u8>>,
    control: Option<Vec<u8>>,
    clock: ServerClock,
}

impl<'a> Copy<'a> {
    fn new(source: &Source, progress: &'a Progress) -> Result<Self> {
        let manifest = || {
            let mut frame = zstd::stream::write::Encoder::new(BodyWriter::new(MEMORY_BYTES), MANIFEST_LEVEL)?;
            frame.include_checksum(true)?;
            Ok(frame)
        };
        Ok(Self {
            tablespaces: source.tablespaces().to_vec(),
            label_comes_first: matches!(source, Source::Stream(_)),
            progress,
            scanner: None,
            streams: Vec::new(),
            index: FileIndexWriter::new(BodyWriter::new(MEMORY_BYTES))?,
            manifest: manifest().map_err(|error| Error::io("start compression", error))?,
            label: None,
            control: None,
            clock: ServerClock::default(),
        })
    }

    async fn run(&mut self, source: &mut Source, parts: &mut PartWriter) -> Result<End> {
        loop {
            match source.next().await? {
                Event::ArchiveStart(index) => {
                    self.end_archive(parts).await?;
                    self.begin_archive(index, parts)?;
                }
                Event::Data(tar) => self.data(tar, parts).await?,
                Event::ManifestStart => self.end_archive(parts).await?,
                Event::Manifest(text) => self
                    .manifest
                    .write_all(&text)
                    .map_err(|error| Error::io("keep PostgreSQL's manifest", error))?,
                Event::Progress(_) => {}
                Event::End {
                    stop_lsn,
                    stop_timeline,
                } => {
                    return Ok(End {
                        stop_lsn,
                        stop_timeline,
                        at: Utc::now(),
                    });
                }
            }
        }
    }

    fn begin_archive(&mut self, index: usize, parts: &mut PartWriter) -> Result<()> {
        let header = self
            .tablespaces
            .get(index)
            .filter(|_| index == self.streams.len())
            .ok_or_else(|| Error::corrupt("PostgreSQL sends a tablespace that it did not announce"))?;
        let tablespace = header.oid.map(|oid| Tablespace {
            oid,
            location: header.location.clone().unwrap_or_default(),
        });
        let stream = TarStream {
            tablespace,
            tar_bytes: 0,
            part_bytes: parts.part_bytes(),
            parts: Vec::new(),
        };
        parts.begin(stream.key());
        self.streams.push(stream);
        self.scanner = Some(TarScanner::new(index as u32, WANTED));
        Ok(())
    }

    async fn data(&mut self, tar: Bytes, parts: &mut PartWriter) -> Result<()> {
        let scanner = self.scanner.as_mut().ok_or_else(|| {
            Error::corrupt("PostgreSQL sends data before it says which tablespace it is of")
        })?;
        for entry in scanner.feed(&tar)? {
            if entry.path == BACKUP_LABEL {
                // It comes first, unless tablespaces come before the data directory.
                let at_once = self.label_comes_first && self.streams.len() == 1;
                self.clock = ServerClock::observe(entry.mtime, Utc::now(), at_once);
            }
            self.index.push(&entry)?;
        }
        let bytes = tar.len() as u64;
        parts.write(tar).await?;
        self.progress.advance(bytes);
        Ok(())
    }

    /// Ends the archive that is under way, if one is.
    async fn end_archive(&mut self, parts: &mut PartWriter) -> Result<()> {
        let (Some(scanner), Some(stream)) = (self.scanner.take(), self.streams.last_mut()) else {
            return Ok(());
        };
        let TarEnd {
            mut tar_bytes,
            terminated,
            captured,
        } = scanner.finish()?;
        if !terminated {
            parts.write(Bytes::from_static(&TAR_END)).await?;
            tar_bytes += TAR_END.len() as u64;
        }
        stream.tar_bytes = tar_bytes;
        stream.parts = parts.end().await?;
        if stream.tablespace.is_none() {
            for member in captured {
                match member.path.as_str() {
                    BACKUP_LABEL => self.label = Some(member.content),
                    _ => self.control = Some(member.content),
                }
            }
        }
        Ok(())
    }

    /// Checks that the index and the manifest fit the parts, and stores them.
    async fn store(self, end: End, archive: &Archive, id: &BackupId) -> Result<Copied> {
        if self.streams.len() != self.tablespaces.len() {
            return Err(Error::corrupt(format!(
                "PostgreSQL announced {} tablespaces and sent {}; take the backup again",
                self.tablespaces.len(),
                self.streams.len()
            )));
        }
        let label = self
            .label
            .ok_or_else(|| Error::corrupt("PostgreSQL sent no backup_label; take the backup again"))?;
        let (control, control_checkpoint) = control(self.control.as_deref())?;
        let index = self.index.finish()?.finish();
        let manifest = self
            .manifest
            .finish()
            .map_err(|error| Error::io("keep PostgreSQL's manifest", error))?
            .finish();
        let checked = compare::Checked {
            streams: self.streams,
            index,
            manifest,
        };
        let (checked, manifest) = compare::every_file_is_indexed(checked).await?;
        objects::create(archive, id, BackupObject::Files, &checked.index).await?;
        objects::create(archive, id, BackupObject::Manifest, &checked.manifest).await?;
        Ok(Copied {
            files: objects::stored(&checked.index),
            manifest_object: objects::stored(&checked.manifest),
            streams: checked.streams,
            manifest,
            label: BackupLabel::parse(&label)?,
            control,
            control_checkpoint,
            stop_lsn: end.stop_lsn,
            stop_timeline: end.stop_timeline,
            ended_at: end.at,
            clock: self.clock,
            wal: [None, None],
        })
    }
}

/// What the backup's `pg_control` says. It may be torn, if PostgreSQL was writing it when it was read, and then no
/// server would start on it.
fn control(bytes: Option<&[u8]>) -> Result<(ControlFile, CheckpointCopy)> {
    let bytes =
        bytes.ok_or_else(|| Error::corrupt("PostgreSQL sent no global/pg_control; take the backup again"))?;
    let control =
        ControlFile::parse(bytes).context(|| "read the backup's pg_control; take the backup again")?;
    let copy = ControlFile::checkpoint_copy(bytes).ok_or_else(|| {
        Error::corrupt("the backup's global/pg_control is cut short; take the backup again")
    })?;
    Ok((control, copy))
}
