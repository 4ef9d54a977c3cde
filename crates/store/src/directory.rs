//! The directory store: one file for each object, below an absolute directory.
//!
//! - **Atomic and durable.** An object is written to a temporary file in its own directory, fsynced
//!   and published under its name in one step: `renameat2(RENAME_NOREPLACE)` (or `link(2)`) for a
//!   create, `rename(2)` for a replace; a replace of one version swaps the two files and looks at what
//!   came out (`directory/replacement.rs`). Every directory from there up to the archive's is fsynced
//!   before the put returns, and before it reports a conflict: the caller may take an equal object for stored, and the
//!   process that published it may have died before its own fsync.
//! - **A crash** leaves at most a file `.walship-…`, which no listing shows and a later deletion in
//!   the same directory removes once it is a day old.
//! - **The archive's directory is never created by a put**, so that an archive on a file system
//!   that is not mounted fails instead of starting anew below the mount point.
//! - **One directory, from the first look to the last.** It is found once by its path and held
//!   (`directory/root.rs`); nothing is acknowledged, and nothing called missing, unless the path still leads there.
//!   Everything is written to its file system: the mount point of another one below it could be empty.
//! - **Symbolic links are followed**; one that leads nowhere is an error and not a missing object,
//!   because its target may be on a disk that is not mounted.
//! - **A hanging file system** (NFS) ends in an error at the deadline. The thread stays behind, so a
//!   runtime that should end must not wait for it (`Runtime::shutdown_background`).
//!
//! Files are made with mode 0640 and directories with 0750, less the umask.

mod deletion;
mod publication;
mod replacement;
mod root;
mod walk;

use std::fs::File;
use std::io::{ErrorKind as IoKind, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, openat};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::deletion::{delete, probe_delete};
use self::publication::{Temporary, Unpublished};
use self::root::{Looked, Root};
use self::walk::Walk;
use crate::backend::{Backend, Depth, Incoming, Pages, Place, Turn};
use crate::object::Version;
use crate::options::StoreOptions;
use crate::properties::StoreProperties;
use crate::{Body, BodyContent, ObjectInfo, Page, PutMode, Refused, replaced};
use walship_core::{Error, ErrorKind, Result};

/// How the names of temporary files begin. No key may have a part that begins so.
pub(super) const TEMPORARY: &str = ".walship-";

/// How much is read, hashed or written at once.
const PIECE_BYTES: usize = 256 << 10;

#[derive(Debug, Clone)]
pub(super) struct Directory {
    root: Root,
    operation_timeout: Duration,
    request_timeout: Duration,
}

impl Directory {
    pub(super) fn new(root: PathBuf, options: &StoreOptions) -> Self {
        Self {
            root: Root::new(root),
            operation_timeout: options.operation_timeout,
            request_timeout: options.request_timeout,
        }
    }

    /// Writes the object to a file that does not have its name yet, durably.
    async fn write(&self, key: &str, body: &Body) -> Result<Unpublished> {
        let limit = StoreOptions::with_body(self.operation_timeout, body.length());
        let (root, key, sha256) = (self.root.clone(), key.to_owned(), body.sha256);
        let content = match &body.content {
            BodyContent::Memory(bytes) => BodyContent::Memory(bytes.clone()),
            BodyContent::File { file, length } => BodyContent::File {
                file: file
                    .try_clone()
                    .map_err(|error| Error::io("duplicate the spool's handle", error))?,
                length: *length,
            },
        };
        let body = Body { content, sha256 };
        blocking(limit, move || Unpublished::write(root, key, &body)).await
    }

    /// Opens an object at this many bytes before its end.
    async fn open(&self, key: &str, length: u64) -> Result<(ObjectInfo, FileBody)> {
        let (root, key, idle_limit) = (self.root.clone(), key.to_owned(), self.request_timeout);
        blocking(self.operation_timeout, move || {
            let (mut file, info) = open_object(&root, &key)?;
            let left = info.size.min(length);
            if left < info.size {
                file.seek(SeekFrom::Start(info.size - left))
                    .map_err(|error| failed("seek in the object's file", error))?;
            }
            Ok((
                info,
                FileBody {
                    file: Some(file),
                    left,
                    idle_limit,
                },
            ))
        })
        .await
    }
}

#[async_trait]
impl Backend for Directory {
    fn reopened(&self) -> Arc<dyn Backend> {
        Arc::new(Self {
            root: self.root.reopened(),
            ..*self
        })
    }

    fn place(&self) -> &dyn Place {
        self
    }

    async fn put(&self, key: &str, body: &Body, mode: PutMode) -> Result<()> {
        let unpublished = self.write(key, body).await?;
        blocking(self.operation_timeout, move || unpublished.publish(mode)).await
    }

    async fn create_in_turn(&self, key: &str, body: &Body, turn: Turn<'_>) -> Result<()> {
        let unpublished = self.write(key, body).await?;
        turn.await?;
        blocking(self.operation_timeout, move || {
            unpublished.publish(PutMode::Create)
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<(ObjectInfo, Box<dyn Incoming>)> {
        let (info, body) = self.open(key, u64::MAX).await?;
        Ok((info, Box::new(body)))
    }

    async fn get_rest(&self, object: &ObjectInfo, from: u64, _: Duration) -> Result<Box<dyn Incoming>> {
        let (now, body) = self.open(&object.key, object.size - from).await?;
        if now.version == object.version {
            return Ok(Box::new(body));
        }
        Err(replaced())
    }

    async fn get_tail(&self, key: &str, length: u64) -> Result<(ObjectInfo, u64, Box<dyn Incoming>)> {
        let (info, body) = self.open(key, length).await?;
        let sent = info.size.min(length);
        Ok((info, sent, Box::new(body)))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let (root, key) = (self.root.clone(), key.to_owned());
        let looked = blocking(self.operation_timeout, move || match root.look(&key)? {
            Ok(there) => object_info(key, &root, &there),
            Err(error) => Err(root.explain(error, &key)),
        });
        match looked.await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, depth: Depth) -> Box<dyn Pages> {
        Box::new(WalkPages {
            walk: Walk::new(self.root.clone(), prefix, start_after, depth),
            limit: self.operation_timeout,
        })
    }

    async fn delete(&self, keys: &[String]) -> Result<Vec<Refused>> {
        let (root, keys) = (self.root.clone(), keys.to_owned());
        blocking(self.operation_timeout, move || delete(&root, &keys)).await
    }
}

#[async_trait]
impl Place for Directory {
    async fn create(&self) -> Result<()> {
        let root = self.root.clone();
        blocking(self.operation_timeout, move || root.create()).await
    }

    async fn properties(&self) -> StoreProperties {
        StoreProperties {
            versioning: Ok(None),
            object_lock: Ok(None),
            clock: None,
        }
    }

    /// Whether files can be removed from the archive's directories.
    async fn probe_delete(&self, _: &str) -> Result<()> {
        let root = self.root.clone();
        blocking(self.operation_timeout, move || probe_delete(&root)).await
    }

    async fn clock(&self) -> Result<DateTime<Utc>> {
        let root = self.root.clone();
        blocking(self.operation_timeout, move || clock(&root)).await
    }
}

/// A walk through the directories, a page at a time.
#[derive(Debug)]
struct WalkPages {
    walk: Walk,
    limit: Duration,
}

#[async_trait]
impl Pages for WalkPages {
    async fn next(&mut self) -> Result<Page> {
        let mut walk = self.walk.clone();
        let (page, walk) = blocking(self.limit, move || walk.page().map(|page| (page, walk))).await?;
        self.walk = walk;
        Ok(page)
    }

    fn is_finished(&self) -> bool {
        self.walk.is_finished()
    }
}

/// Runs file work on a thread of its own and stops waiting for it at the limit.
async fn blocking<T, W>(limit: Duration, work: W) -> Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T> + Send + 'static,
{
    match timeout(limit, spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Error::internal(
            "walship's own file worker failed; please report it",
        )),
        Err(_) => Err(Error::unavailable(format!(
            "the file system did not answer within {} s; see whether a network mount hangs",
            limit.as_secs_f64()
        ))),
    }
}

/// The file system's time, taken from a file that is made for this and removed.
fn clock(root: &Root) -> Result<DateTime<Utc>> {
    let here = root.open_directory("")?;
    let file = here.and_then(Temporary::create);
    let written = file.and_then(|file| fstat(&file.file));
    let written =
        written.map_err(|error| failed(format!("create a file in {}", root.shown("")), error.into()))?;
    root.check_in_place()?;
    modified(&written)
}

/// Opens without waiting, because a FIFO's reader would wait for its writer.
fn open_object(root: &Root, key: &str) -> Result<(File, ObjectInfo)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file =
        openat(root.directory()?, key, flags, Mode::empty()).map_err(|error| root.explain(error, key))?;
    let there = fstat(&file).map_err(|error| failed("look at the object's file", error.into()))?;
    let info = object_info(key.to_owned(), root, &there)?;
    Ok((file.into(), info))
}

/// The names in a directory of the archive, in the file system's order. A name that exists during the whole reading is
/// given once; one that comes or goes meanwhile may be given or not.
fn entries(root: &Root, folder: &str) -> Result<Looked<Vec<(String, FileType)>>> {
    let directory = match root.open_directory(folder)? {
        Ok(directory) => directory,
        Err(error) => return Ok(Err(error)),
    };
    let reading = || -> Looked<_> {
        let mut names = Vec::new();
        let mut directory = Dir::new(directory)?;
        while let Some(entry) = directory.read() {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push((name, entry.file_type()));
            }
        }
        Ok(names)
    };
    reading()
        .map(Ok)
        .map_err(|error| failed(format!("list {}", root.shown(folder)), error.into()))
}

fn object_info(key: String, root: &Root, there: &Stat) -> Result<ObjectInfo> {
    if is_directory(there) {
        return Err(is_a_directory(&root.shown(&key)));
    }
    if !is_file(there) {
        return Err(Error::invalid(format!(
            "{} is not a regular file; move it out of the archive",
            root.shown(&key)
        )));
    }
    Ok(ObjectInfo {
        key,
        size: there.st_size.cast_unsigned(),
        modified: modified(there)?,
        version: version_of(there),
    })
}

fn modified(there: &Stat) -> Result<DateTime<Utc>> {
    let nanoseconds = u32::try_from(there.st_mtime_nsec).ok();
    nanoseconds
        .and_then(|nanoseconds| DateTime::from_timestamp(there.st_mtime, nanoseconds))
        .ok_or_else(|| Error::invalid("a file's time is out of range; set it with touch"))
}

/// A write gives the key another file, so another inode. An inode may be used again, but then the time differs.
fn version_of(there: &Stat) -> Version {
    Version(format!(
        "{:x}-{:x}.{:x}-{:x}",
        there.st_ino, there.st_mtime, there.st_mtime_nsec, there.st_size
    ))
}

fn is_directory(there: &Stat) -> bool {
    FileType::from_raw_mode(there.st_mode).is_dir()
}

fn is_file(there: &Stat) -> bool {
    FileType::from_raw_mode(there.st_mode).is_file()
}

fn is_a_directory(shown: &str) -> Error {
    Error::invalid(format!(
        "{shown} is a directory where the archive has an object; move it elsewhere"
    ))
}

/// The error of a file operation in the archive, with the kind that fits a store.
fn failed(doing: impl Into<String>, error: std::io::Error) -> Error {
    let doing = doing.into();
    match error.kind() {
        IoKind::PermissionDenied | IoKind::ReadOnlyFilesystem => Error::denied(format!(
            "{doing}: {error}; run every walship command as one and the same user (sudo -u postgres walship …), and let all of \
             the archive's directory belong to that user (chown -R)"
        )),
        IoKind::StaleNetworkFileHandle
        | IoKind::TimedOut
        | IoKind::NotConnected
        | IoKind::HostUnreachable => {
            Error::unavailable(format!("{doing}: {error}; see whether the network mount works"))
        }
        IoKind::QuotaExceeded => Error::internal(format!(
            "{doing}: the disk quota is used up; free some space and run it again"
        )),
        _ => Error::io(doing, error),
    }
}

/// A file that is being read, up to the size it had when it was opened.
#[derive(Debug)]
struct FileBody {
    /// Absent while a read that never returned holds it.
    file: Option<File>,
    left: u64,
    idle_limit: Duration,
}

#[async_trait]
impl Incoming for FileBody {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some(file) = self.file.take() else {
            return Err(Error::unavailable("reading failed before"));
        };
        let wanted = self.left.min(PIECE_BYTES as u64);
        let (file, piece) = blocking(self.idle_limit, move || {
            let mut piece = Vec::with_capacity(wanted as usize);
            (&file)
                .take(wanted)
                .read_to_end(&mut piece)
                .map_err(|error| failed("read the object's file", error))?;
            Ok((file, piece))
        })
        .await?;
        self.file = Some(file);
        self.left -= piece.len() as u64;
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}
