//! A file of `pg_wal`: opened, checked against its name, and matched with its cluster and archive.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::{apart, remembered};
use crate::archive::stored_wal::SMALL_FILE_LIMIT;
use crate::archive::{Archive, stored_wal};
use crate::error::{Error, Result};
use crate::format::codec::Trailer;
use crate::format::keys::Key;
use crate::format::remembered::ServerPast;
use crate::format::segment_index::IndexBuilder;
use crate::pg::{
    BackupHistory, ClusterIdentity, LongPageHeader, SegmentSize, TimelineHistory, TimelineId, WalCheck,
    WalName,
};
use crate::server::data_directory::{cluster_identity, data_directory_of, has_archived};
use crate::store::Store;

/// Where a file with this content is stored.
pub(crate) fn key_of(name: WalName, trailer: &Trailer) -> Result<Key> {
    match name {
        WalName::Partial(segment) => Ok(Key::Partial {
            segment,
            xxh3_start: trailer.content_xxh3.first_eight(),
        }),
        _ => Key::of_wal(name),
    }
}

/// A file of `pg_wal`, opened and checked.
#[derive(Debug)]
pub(crate) struct WalFile {
    pub(crate) name: WalName,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    /// From `global/pg_control`; missing only for segments outside a data directory.
    pub(crate) cluster: Option<ClusterIdentity>,
    /// The system identifier that goes into the trailer.
    pub(crate) system_identifier: u64,
}

impl WalFile {
    /// Opens a file that should be `name`.
    ///
    /// # Errors
    /// `Invalid` and `Corrupt` for a file that is not.
    pub(crate) fn open(name: WalName, path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| not_there(path, error))?;
        if !metadata.is_file() {
            return Err(Error::invalid(format!(
                "{} is not a regular file",
                path.display()
            )));
        }
        let cluster = cluster_identity(&data_directory_of(path))?;
        let mut source = Self {
            name,
            path: path.to_owned(),
            size: metadata.len(),
            cluster,
            system_identifier: 0,
        };
        source.system_identifier = match name {
            WalName::Segment(_) | WalName::Partial(_) => source.check_segment()?,
            WalName::History(_) | WalName::Backup { .. } => source.check_small_file()?,
        };
        Ok(source)
    }

    /// Checks a segment's first page; returns the system identifier in it.
    fn check_segment(&self) -> Result<u64> {
        let (WalName::Segment(segment) | WalName::Partial(segment)) = self.name else {
            return Err(Error::internal("only segments have page headers"));
        };
        let mut first_page = Vec::new();
        self.file()?
            .take(512)
            .read_to_end(&mut first_page)
            .map_err(|error| Error::io(format!("read {}", self.path.display()), error))?;
        let header = LongPageHeader::parse(&first_page)?;
        let (system_identifier, size) = match self.cluster {
            Some(cluster) => (cluster.system_identifier, cluster.segment_size),
            None => (header.system_identifier, header.segment_size),
        };
        header.check(segment, size, system_identifier)?;
        if self.size != size.bytes() {
            return Err(Error::invalid(format!(
                "{} has {} bytes, a whole segment has {}; it is truncated or still being written",
                self.path.display(),
                self.size,
                size.bytes()
            )));
        }
        Ok(system_identifier)
    }

    /// Checks a `.history` or `.backup` file, which say nothing of their cluster themselves.
    fn check_small_file(&self) -> Result<u64> {
        let directory = data_directory_of(&self.path);
        let cluster = self.cluster.ok_or_else(|| {
            // Not just ".": the message must show the working directory.
            let directory = std::path::absolute(&directory).unwrap_or(directory);
            Error::invalid(format!(
                "{} is not a data directory (it has no global/pg_control), so nobody can know whose {} is; \
                 give the path as PostgreSQL does with %p",
                directory.display(),
                self.name
            ))
        })?;
        if self.size > SMALL_FILE_LIMIT {
            return Err(Error::invalid(format!(
                "{} has {} bytes, far too many",
                self.path.display(),
                self.size
            )));
        }
        let content = self.content()?;
        match self.name {
            WalName::History(timeline) => TimelineHistory::parse(timeline, &content).map(drop)?,
            _ => BackupHistory::parse(&content)?.check(self.name, cluster.segment_size)?,
        }
        Ok(cluster.system_identifier)
    }

    /// A timeline's history must begin with that of each timeline it came from, as far as the
    /// archive has them: timeline 1 has none, and an archive may have begun on a later one.
    pub(crate) async fn check_history(&self, archive: &Archive) -> Result<()> {
        let WalName::History(timeline) = self.name else {
            return Ok(());
        };
        let history = TimelineHistory::parse(timeline, &self.content()?)?;
        for ancestor in history.ancestors() {
            if let Some(stored) = stored_wal::read_history(archive, ancestor.timeline).await? {
                history.extends(&stored)?;
            }
        }
        Ok(())
    }

    /// A server archives the history of its timeline before any WAL of it. Nobody can tell whose a file is that lies
    /// outside a data directory: if the archive does not know its timeline, it may be a rehearsal's.
    ///
    /// # Errors
    /// `Conflict` for a segment of a timeline whose history the archive does not have; otherwise as the store.
    pub(crate) async fn refuse_unknown_timeline(&self, archive: &Archive) -> Result<()> {
        let (WalName::Segment(segment) | WalName::Partial(segment)) = self.name else {
            return Ok(());
        };
        let timeline = segment.timeline();
        if self.cluster.is_some() || timeline == TimelineId::FIRST {
            return Ok(());
        }
        if stored_wal::read_history(archive, timeline).await?.is_some() {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "the archive has no history of timeline {timeline}, so nobody could recover along it: if {} is of a server that \
             was promoted, push its {} first; a rehearsal's WAL does not belong here",
            self.path.display(),
            WalName::History(timeline)
        )))
    }

    /// The archive at this place, to which the file belongs. It is created if nothing shows that there was one before.
    ///
    /// # Errors
    /// As [`WalFile::check_archive`] and [`Archive::open_or_create`].
    pub(crate) async fn archive(
        &self,
        store: &Store,
        now: DateTime<Utc>,
        known: Option<Archive>,
    ) -> Result<Archive> {
        let Some(cluster) = self.cluster else {
            let archive = Archive::open(store).await?;
            self.check_archive(&archive)?;
            return Ok(archive);
        };
        let data_directory = data_directory_of(&self.path);
        apart::check(store.location(), &data_directory)?;
        let archive = match known {
            Some(archive) => archive,
            None => match self.past(&data_directory)?.sign_of_an_archive() {
                Some(why) => Archive::open_of(store, cluster, &why).await?,
                None => Archive::open_or_create(store, cluster, now).await?,
            },
        };
        archive.check(cluster)?;
        remembered::join(&data_directory, archive.identity(), &archive.url())?;
        Ok(archive)
    }

    /// A promoted server may never have archived itself, but the servers before it have, as a rule.
    fn past(&self, data_directory: &Path) -> Result<ServerPast> {
        let remembered = remembered::read(data_directory)?;
        // Where an archive is remembered, nobody asks for this. With a long backlog the search for the one file that tells
        // takes longer than the rest of a push.
        let done = remembered.archive.is_none() && has_archived(data_directory)?;
        Ok(ServerPast {
            remembered: Ok(remembered),
            archived: done.then(|| "pg_wal/archive_status has a .done file".to_owned()),
            timeline: self.name.timeline(),
        })
    }

    /// Checks that the file belongs to the archive's cluster, and that its server writes to no other archive.
    ///
    /// # Errors
    /// `Invalid` where it belongs to another cluster; else as [`apart::check`] and [`remembered::check`].
    pub(crate) fn check_archive(&self, archive: &Archive) -> Result<()> {
        let (identity, url) = (archive.identity(), archive.url());
        let Some(cluster) = self.cluster else {
            return identity.check_system_identifier(self.system_identifier, &url);
        };
        archive.check(cluster)?;
        let data_directory = data_directory_of(&self.path);
        apart::check(archive.store().location(), &data_directory)?;
        remembered::check(&data_directory, identity, &url)
    }

    /// For a segment: the records' checksums tell whether its WAL ends within it, and where.
    pub(crate) fn index_builder(&self) -> Result<Option<IndexBuilder>> {
        let segment = match self.name {
            WalName::Segment(segment) | WalName::Partial(segment) => segment,
            WalName::History(_) | WalName::Backup { .. } => return Ok(None),
        };
        // A whole segment's size was checked to be the cluster's.
        let start = segment.start(self.segment_size()?)?;
        Ok(Some(IndexBuilder::new(start, WalCheck::Crc)))
    }

    /// The size of a segment, which was checked to be whole.
    pub(crate) fn segment_size(&self) -> Result<SegmentSize> {
        let size = u32::try_from(self.size).map_err(|_| Error::internal("a segment of more than 4 GiB"))?;
        SegmentSize::new(size)
    }

    pub(crate) fn content(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.path).map_err(|error| Error::io(format!("read {}", self.path.display()), error))
    }

    pub(crate) fn file(&self) -> Result<File> {
        File::open(&self.path).map_err(|error| Error::io(format!("open {}", self.path.display()), error))
    }
}

fn not_there(path: &Path, error: std::io::Error) -> Error {
    let shown = path.display();
    match std::env::current_dir() {
        Ok(directory) if error.kind() == std::io::ErrorKind::NotFound => {
            let hint = if path.is_relative() {
                format!(
                    " in {}; a relative path begins there, and PostgreSQL's at its data directory",
                    directory.display()
                )
            } else {
                String::new()
            };
            Error::internal(format!("open {shown}: there is no such file{hint}"))
        }
        _ => Error::io(format!("open {shown}"), error),
    }
}

impl WalFile {
    /// In a `pg_wal`, PostgreSQL announces each segment that is whole: with `.ready` until the archiver is done with
    /// it, then with `.done`. Elsewhere nothing is announced, and only the content can tell:
    /// [`WalFile::refuse_incomplete`].
    ///
    /// # Errors
    /// `Invalid` for a segment that is not announced.
    pub(crate) fn refuse_unannounced(&self) -> Result<()> {
        let (WalName::Segment(segment), Some(status)) = (self.name, self.archive_status()?) else {
            return Ok(());
        };
        // In this order, because `.ready` is renamed to `.done`.
        for extension in ["ready", "done"] {
            if exists(&status.join(format!("{segment}.{extension}")))? {
                return Ok(());
            }
        }
        let data_directory = data_directory_of(&self.path);
        let remembered = remembered::read(&data_directory)?;
        if let (Some(mark), None) = (&remembered.clone, &remembered.archive) {
            return Err(Error::conflict(format!(
                "{} is a copy of another, made from the archive {}, and its WAL must not go into an archive of its source; nothing was stored",
                data_directory.display(),
                mark.source
            )));
        }
        Err(self.unfinished(&format!(
            "PostgreSQL has not announced it in {} (no .ready, no .done)",
            status.display()
        )))
    }

    /// A whole segment's WAL goes on to its end. If PostgreSQL has announced the segment as whole, it is stored as it
    /// is, with a warning, because otherwise the archiver would stop for ever.
    ///
    /// # Errors
    /// `Invalid` where its WAL ends earlier and it does not lie in a `pg_wal`.
    pub(crate) fn refuse_incomplete(&self, trailer: &Trailer) -> Result<()> {
        let WalName::Segment(segment) = self.name else {
            return Ok(());
        };
        let Some(end) = trailer.index.as_ref().and_then(|index| index.valid_until) else {
            return Ok(());
        };
        if self.archive_status()?.is_none() {
            return Err(self.unfinished(&format!("its WAL ends at LSN {end}, within the segment")));
        }
        tracing::warn!(
            "{segment} is archived as it is, and its WAL ends at LSN {end}: the records break off there, so every recovery \
             ends there. Take a base backup: walship basebackup"
        );
        Ok(())
    }

    fn archive_status(&self) -> Result<Option<std::path::PathBuf>> {
        let status = self.path.with_file_name("archive_status");
        Ok(exists(&status)?.then_some(status))
    }

    fn unfinished(&self, why: &str) -> Error {
        let path = self.path.display();
        Error::invalid(format!(
            "{path} is not known to be whole: {why}. Nothing was stored, because it would be in the way of the whole segment. \
             If its server runs, SELECT pg_switch_wal() makes it finish and archive the segment. If its server is gone for good, \
             walship push --unfinished {path} stores what there is. If the segment is whole and nobody archives it, copy it out \
             of pg_wal and push the copy"
        ))
    }
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists()
        .map_err(|error| Error::io(format!("look for {}", path.display()), error))
}
