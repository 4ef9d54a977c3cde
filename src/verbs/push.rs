//! `walship push`: stores one file of `pg_wal`.
//!
//! What holds when it succeeds: the file is durable in the archive of its own cluster, under its
//! own name, and what stood there before, if anything, had the same content. A crash at any point
//! leaves either no object or the whole one; pushing again is safe.

mod compressor;
mod whole;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};

pub use self::compressor::Compressor;
pub use self::whole::{UnfinishedReport, run_unfinished};
use crate::archive::identity;
use crate::archive::stored_wal;
use crate::archive::stored_wal::SMALL_FILE_LIMIT;
use crate::archive::{Archive, Created, Same};
use crate::cluster::{apart, remembered};
use crate::error::{Context, Error, Result};
use crate::format::codec::Trailer;
use crate::format::identity::Identity;
use crate::format::keys::Key;
use crate::format::remembered::Past;
use crate::format::segment_index::IndexBuilder;
use crate::pg::ClusterIdentity;
use crate::pg::{BackupHistory, LongPageHeader, SegmentSize, TimelineHistory, TimelineId, WalCheck, WalName};
use crate::server::data_directory::{cluster_identity, data_directory_of, has_archived};
use crate::store::{Store, Turn};

/// Stores one file of `pg_wal`; `path` is as PostgreSQL gives it.
///
/// # Errors
/// `Invalid` for a file that does not belong: a foreign name, another cluster, a truncated segment.
/// `Conflict` where the archive holds different content under this name. `Corrupt` where what it
/// holds there cannot be read. Otherwise as the store.
pub async fn run(
    path: &Path,
    compressor: &Arc<Compressor>,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<Created> {
    let name = wal_name(path)?;
    let pushing = push(name, path, compressor, store, now, None, None);
    let pushed = async {
        let (report, identity) = pushing.await?;
        identity::confirm(store, &identity).await?;
        Ok(report)
    };
    Box::pin(pushed).await.context(|| format!("push {name}"))
}

/// As [`run`], for a process that stores many: it may know the archive's identity, and returns it, to be confirmed
/// before the file is called stored; and nothing is stored before `turn` has come, if there is one.
///
/// # Errors
/// As [`run`]; what `turn` fails with.
pub async fn run_in_turn(
    path: &Path,
    compressor: &Arc<Compressor>,
    store: &Store,
    now: DateTime<Utc>,
    known: Option<Identity>,
    turn: Option<Turn<'_>>,
) -> Result<Identity> {
    let name = wal_name(path)?;
    let pushing = push(name, path, compressor, store, now, known, turn);
    let (_, identity) = pushing.await.context(|| format!("push {name}"))?;
    Ok(identity)
}

async fn push(
    name: WalName,
    path: &Path,
    compressor: &Arc<Compressor>,
    store: &Store,
    now: DateTime<Utc>,
    known: Option<Identity>,
    mut turn: Option<Turn<'_>>,
) -> Result<(Created, Identity)> {
    let source = Arc::new(Source::open(name, path)?);
    source.refuse_unannounced()?;
    let (compressed, identity) = tokio::join!(
        compressor.compress(&source),
        source.archive_identity(store, now, known)
    );
    let identity = identity?;
    let (body, trailer) = compressed?;
    source.refuse_incomplete(&trailer)?;
    source.refuse_unknown_timeline(store, &identity).await?;
    let key = key_of(name, &trailer)?;
    // What is looked at in the archive first must be as the files before this one leave it.
    let looks_first = matches!(name, WalName::History(_)) || !identity.conditional_writes;
    if looks_first && let Some(turn) = turn.take() {
        turn.await?;
    }
    source.check_history(store, &identity).await?;
    identity::warn_if_unconditional(&identity, store);
    let archive = Archive::of(store, identity.clone());
    let created = archive
        .create(&key, &body, Same::Content(name, &trailer), turn)
        .await?;
    compressor.take_back(body);
    Ok((created, identity))
}

/// Stores a file that is known to be what it is opened as; under which key.
async fn push_source(
    source: &Arc<Source>,
    compressor: &Arc<Compressor>,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<(Created, String)> {
    let identity = source.archive_identity(store, now, None).await?;
    let (body, trailer) = compressor.compress(source).await?;
    source.refuse_unknown_timeline(store, &identity).await?;
    let key = key_of(source.name, &trailer)?;
    identity::warn_if_unconditional(&identity, store);
    let archive = Archive::of(store, identity);
    let created = archive
        .create(&key, &body, Same::Content(source.name, &trailer), None)
        .await?;
    identity::confirm(store, archive.identity()).await?;
    Ok((created, key.to_string()))
}

/// Where a file with this content is stored.
pub(super) fn key_of(name: WalName, trailer: &Trailer) -> Result<Key> {
    match name {
        WalName::Partial(segment) => Ok(Key::Partial {
            segment,
            sha256_start: trailer.sha256.first_eight(),
        }),
        _ => Key::of_wal(name),
    }
}

/// A file of `pg_wal`, opened and checked.
#[derive(Debug)]
pub(crate) struct Source {
    name: WalName,
    path: PathBuf,
    size: u64,
    /// From `global/pg_control`; missing only for segments outside a data directory.
    cluster: Option<ClusterIdentity>,
    /// The system identifier that goes into the trailer.
    system_identifier: u64,
}

impl Source {
    /// Opens a file that should be `name`.
    ///
    /// # Errors
    /// `Invalid` and `Corrupt` for a file that is not.
    pub(super) fn open(name: WalName, path: &Path) -> Result<Self> {
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
            // Not just ".", which tells nobody where PostgreSQL or a person stood.
            let directory = std::path::absolute(&directory).unwrap_or(directory);
            Error::invalid(format!(
                "{} is no data directory (it has no global/pg_control), so whose {} is cannot be known; \
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
    pub(super) async fn check_history(&self, store: &Store, identity: &Identity) -> Result<()> {
        let WalName::History(timeline) = self.name else {
            return Ok(());
        };
        let history = TimelineHistory::parse(timeline, &self.content()?)?;
        for ancestor in history.ancestors() {
            let stored =
                stored_wal::read_history(store, ancestor.timeline, identity.system_identifier).await?;
            if let Some(stored) = stored {
                history.extends(&stored)?;
            }
        }
        Ok(())
    }

    /// A server archives the history of its timeline before all WAL of it. Of a file that lies in no data directory nobody
    /// can tell whose it is: where its timeline is not known it may be a rehearsal's.
    ///
    /// # Errors
    /// `Conflict` for a segment of a timeline that the archive does not know; otherwise as the store.
    async fn refuse_unknown_timeline(&self, store: &Store, identity: &Identity) -> Result<()> {
        let (WalName::Segment(segment) | WalName::Partial(segment)) = self.name else {
            return Ok(());
        };
        let timeline = segment.timeline();
        if self.cluster.is_some() || timeline == TimelineId::FIRST {
            return Ok(());
        }
        let history = stored_wal::read_history(store, timeline, identity.system_identifier).await?;
        if history.is_some() {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "the archive knows no timeline {timeline}, and nobody could recover along it: if {} is of a server that was \
             promoted, push its {} first; a rehearsal's WAL does not belong here",
            self.path.display(),
            WalName::History(timeline)
        )))
    }

    async fn archive_identity(
        &self,
        store: &Store,
        now: DateTime<Utc>,
        known: Option<Identity>,
    ) -> Result<Identity> {
        let url = store.location().to_string();
        let Some(cluster) = self.cluster else {
            let identity = identity::require(store).await?;
            self.check_identity(&identity, store)?;
            return Ok(identity);
        };
        let data_directory = data_directory_of(&self.path);
        apart::check(store.location(), &data_directory)?;
        let identity = match known {
            Some(identity) => identity,
            None => match self.past(&data_directory)?.speaks_for_an_archive() {
                Some(why) => identity::require_of(store, cluster, &why).await?,
                None => identity::find_or_create(store, cluster, now).await?,
            },
        };
        identity.check(cluster, &url)?;
        remembered::join(&data_directory, &identity, &url)?;
        Ok(identity)
    }

    /// A server that was promoted may never have archived itself; those before it have, as a rule.
    fn past(&self, data_directory: &Path) -> Result<Past> {
        let done = has_archived(data_directory)?;
        Ok(Past {
            remembered: Ok(remembered::read(data_directory)?),
            archived: done.then(|| "pg_wal/archive_status has a .done file".to_owned()),
            timeline: self.name.timeline(),
        })
    }

    /// Whether the file is the archive's cluster's, and that writes to no other archive.
    ///
    /// # Errors
    /// `Invalid` where it is another's; else as [`apart::check`] and [`remembered::check`].
    pub(super) fn check_identity(&self, identity: &Identity, store: &Store) -> Result<()> {
        let url = store.location().to_string();
        let Some(cluster) = self.cluster else {
            return identity.check_system_identifier(self.system_identifier, &url);
        };
        identity.check(cluster, &url)?;
        let data_directory = data_directory_of(&self.path);
        apart::check(store.location(), &data_directory)?;
        remembered::check(&data_directory, identity, &url)
    }

    /// For a segment: where its WAL ends, if that is within it, the records' checksums tell.
    fn index_builder(&self) -> Result<Option<IndexBuilder>> {
        let segment = match self.name {
            WalName::Segment(segment) | WalName::Partial(segment) => segment,
            WalName::History(_) | WalName::Backup { .. } => return Ok(None),
        };
        // A whole segment's size was checked to be the cluster's.
        let start = segment.start(self.segment_size()?)?;
        Ok(Some(IndexBuilder::new(start, WalCheck::Crc)))
    }

    /// The size of a segment, which was checked to be whole.
    fn segment_size(&self) -> Result<SegmentSize> {
        let size = u32::try_from(self.size).map_err(|_| Error::internal("a segment of more than 4 GiB"))?;
        SegmentSize::new(size)
    }

    fn content(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.path).map_err(|error| Error::io(format!("read {}", self.path.display()), error))
    }

    fn file(&self) -> Result<File> {
        File::open(&self.path).map_err(|error| Error::io(format!("open {}", self.path.display()), error))
    }
}

fn not_there(path: &Path, error: std::io::Error) -> Error {
    let shown = path.display();
    match std::env::current_dir() {
        Ok(directory) if error.kind() == std::io::ErrorKind::NotFound => {
            let hint = if path.is_relative() {
                format!(
                    " in {}; a relative path counts from there, for PostgreSQL from the data directory",
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

fn wal_name(path: &Path) -> Result<WalName> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.parse()
        .map_err(|error: Error| error.context(format!("push {}", path.display())))
}
