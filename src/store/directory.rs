//! The directory store: one file for each object, below an absolute directory.
//!
//! - **Atomic and durable.** An object is written to a temporary file in its own directory, fsynced
//!   and published under its name in one step: `renameat2(RENAME_NOREPLACE)` (or `link(2)`) for a
//!   create, `rename(2)` for a replace; a replace of one version swaps the two files and looks at what
//!   came out (`directory/replacement.rs`). Every directory from there up to the archive's is fsynced
//!   before the put returns, and before it reports a conflict: the caller may take an equal object
//!   for stored, and whoever published it may have died before its own fsync.
//! - **A crash** leaves at most a file `.walship-…`, which no listing shows and a later deletion in
//!   the same directory removes once it is a day old.
//! - **The archive's directory is never created by a put**, so that an archive on a file system
//!   that is not mounted fails instead of starting anew below the mount point.
//! - **Symbolic links are followed**; one that leads nowhere is an error and not a missing object,
//!   for what it stood for may be on a disk that is not mounted.
//! - **A hanging file system** (NFS) ends in an error at the deadline. The thread stays behind, so a
//!   runtime that should end must not wait for it (`Runtime::shutdown_background`).
//!
//! Files are made with mode 0640 and directories with 0750, less the umask.

mod deletion;
mod replacement;
mod walk;

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{ErrorKind as IoKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::deletion::{delete, probe_delete};
use self::replacement::replace_if;
pub(super) use self::walk::Walk;
use super::object::Version;
use super::options::StoreOptions;
use super::{Body, BodyContent, ObjectInfo, PutMode, Refused};
use crate::error::{Error, ErrorKind, Result};

/// How the names of temporary files begin. No key may have a part that begins so.
pub(super) const TEMPORARY: &str = ".walship-";

/// How much is read, hashed or written at once.
const PIECE_BYTES: usize = 256 << 10;

/// A store in a directory.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    root: PathBuf,
    operation_timeout: Duration,
    request_timeout: Duration,
}

impl Directory {
    pub(super) fn new(root: PathBuf, options: &StoreOptions) -> Self {
        Self {
            root,
            operation_timeout: options.operation_timeout,
            request_timeout: options.request_timeout,
        }
    }

    pub(super) async fn create_root(&self) -> Result<()> {
        let root = self.root.clone();
        blocking(self.operation_timeout, move || create_root(&root)).await
    }

    pub(super) async fn put(&self, key: &str, body: &Body, mode: PutMode) -> Result<()> {
        let unpublished = self.write(key, body).await?;
        blocking(self.operation_timeout, move || unpublished.publish(mode)).await
    }

    pub(super) async fn create_in_turn(
        &self,
        key: &str,
        body: &Body,
        turn: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let unpublished = self.write(key, body).await?;
        turn.await?;
        blocking(self.operation_timeout, move || {
            unpublished.publish(PutMode::Create)
        })
        .await
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
        blocking(limit, move || Unpublished::write(root, &key, &body)).await
    }

    pub(super) async fn get(&self, key: &str) -> Result<(ObjectInfo, FileBody)> {
        self.get_tail(key, u64::MAX).await
    }

    /// An object from so many bytes before its end on.
    pub(super) async fn get_tail(&self, key: &str, length: u64) -> Result<(ObjectInfo, FileBody)> {
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

    pub(super) async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let (root, key) = (self.root.clone(), key.to_owned());
        let looked = blocking(self.operation_timeout, move || {
            let path = root.join(&key);
            match fs::metadata(&path) {
                Ok(metadata) => object_info(key, &path, &metadata),
                Err(error) => Err(explain(error, &root, &key)),
            }
        });
        match looked.await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// The next page of a walk, and the walk for the page after it.
    pub(super) async fn page(&self, mut walk: Walk) -> Result<(Vec<ObjectInfo>, Option<Walk>)> {
        blocking(self.operation_timeout, move || {
            let page = walk.page()?;
            let more = !walk.is_finished();
            Ok((page, more.then_some(walk)))
        })
        .await
    }

    pub(super) fn walk(&self, prefix: &str, start_after: Option<&str>) -> Walk {
        Walk::new(self.root.clone(), prefix, start_after)
    }

    /// Whether files can be removed from the archive's directories.
    pub(super) async fn probe_delete(&self) -> Result<()> {
        let root = self.root.clone();
        blocking(self.operation_timeout, move || probe_delete(&root)).await
    }

    pub(super) async fn delete(&self, keys: &[String]) -> Result<Vec<Refused>> {
        let (root, keys) = (self.root.clone(), keys.to_owned());
        blocking(self.operation_timeout, move || delete(&root, &keys)).await
    }

    pub(super) async fn clock(&self) -> Result<DateTime<Utc>> {
        let root = self.root.clone();
        blocking(self.operation_timeout, move || clock(&root)).await
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

/// The file system's time: that of a file which is there for this moment only.
fn clock(root: &Path) -> Result<DateTime<Utc>> {
    check_root_to_read(root)?;
    let file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(root);
    let modified = file.and_then(|file| file.as_file().metadata()?.modified());
    modified
        .map(DateTime::from)
        .map_err(|error| failed(format!("create a file in {}", root.display()), error))
}

fn create_root(root: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o750).create(root) {
        Ok(()) => sync_parent(root),
        Err(error) if error.kind() == IoKind::AlreadyExists => {
            check_root(root)?;
            // Whoever made it may have died before its own fsync; or it was made by hand, long ago, in a
            // directory that walship may not read.
            match sync_parent(root) {
                Err(error) if error.kind() == ErrorKind::Denied => Ok(()),
                other => other,
            }
        }
        Err(error) if error.kind() == IoKind::NotFound => Err(Error::invalid(format!(
            "the directory above {} does not exist; create it, or mount what it belongs to",
            root.display()
        ))),
        Err(error) => Err(failed(format!("create {}", root.display()), error)),
    }
}

fn sync_parent(root: &Path) -> Result<()> {
    root.parent().map_or(Ok(()), sync_directory)
}

/// That the archive's directory is there: without it nothing can be said about any key.
fn check_root(root: &Path) -> Result<()> {
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::invalid(format!(
            "{} is not a directory; give the archive's directory",
            root.display()
        ))),
        Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) => {
            Err(Error::invalid(format!(
                "the archive's directory {} does not exist; create it, or mount what it belongs to",
                root.display()
            )))
        }
        Err(error) => Err(failed(format!("look at {}", root.display()), error)),
    }
}

/// A written and fsynced object that does not have its name yet.
struct Unpublished {
    root: PathBuf,
    target: PathBuf,
    temporary: NamedTempFile,
}

impl Unpublished {
    fn write(root: PathBuf, key: &str, body: &Body) -> Result<Self> {
        let target = root.join(key);
        let directory = target.parent().unwrap_or(&root);
        let mut temporary = create_temporary(&root, directory, key)?;
        if write_hashed(temporary.as_file_mut(), body)? != body.sha256 {
            return Err(Error::corrupt(
                "the bytes changed on their way to the disk (their SHA-256 is another one); nothing was stored, try again",
            ));
        }
        temporary
            .as_file()
            .sync_all()
            .map_err(|error| failed("fsync the object's file", error))?;
        Ok(Self {
            root,
            target,
            temporary,
        })
    }

    fn publish(self, mode: PutMode) -> Result<()> {
        let Self {
            root,
            target,
            temporary,
        } = self;
        let directory = target.parent().unwrap_or(&root);
        let published = match mode {
            PutMode::Create => temporary.persist_noclobber(&target),
            PutMode::Replace => temporary.persist(&target),
            PutMode::ReplaceIf(version) => {
                replace_if(&version, temporary, &target)?;
                return sync_up_to(&root, directory);
            }
        };
        match published {
            Ok(_) => sync_up_to(&root, directory),
            Err(_) if fs::metadata(&target).is_ok_and(|there| there.is_dir()) => Err(is_a_directory(&target)),
            Err(lost) if lost.error.kind() == IoKind::AlreadyExists => {
                sync_up_to(&root, directory)?;
                Err(Error::conflict("an object of this name is there already"))
            }
            Err(lost) => Err(failed("give the object's file its name", lost.error)),
        }
    }
}

/// A temporary file in the object's directory, which is made if it is missing; tried again because
/// a concurrent deletion may remove an empty directory at any moment.
fn create_temporary(root: &Path, directory: &Path, key: &str) -> Result<NamedTempFile> {
    let mut attempts = 0..8;
    loop {
        let created = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .permissions(Permissions::from_mode(0o640))
            .tempfile_in(directory);
        match created {
            Ok(file) => return Ok(file),
            Err(error) if error.kind() == IoKind::NotFound && attempts.next().is_some() => {
                create_parents(root, key)?;
            }
            Err(error) if error.kind() == IoKind::NotADirectory => {
                check_root(root)?;
                return Err(Error::invalid(format!(
                    "{} is in the way: a file where the archive has a directory; move it elsewhere",
                    directory.display()
                )));
            }
            Err(error) => return Err(failed(format!("create a file in {}", directory.display()), error)),
        }
    }
}

/// Makes the directories between the archive's and the object. They are fsynced with the object.
fn create_parents(root: &Path, key: &str) -> Result<()> {
    check_root(root)?;
    let mut path = root.to_owned();
    let (parents, _) = key.rsplit_once('/').unwrap_or(("", key));
    for part in parents.split('/') {
        path.push(part);
        match DirBuilder::new().mode(0o750).create(&path) {
            Ok(()) => {}
            // NotFound: a deletion took the directory above away again; the caller starts over.
            Err(error) if matches!(error.kind(), IoKind::AlreadyExists | IoKind::NotFound) => {}
            Err(error) => return Err(failed(format!("create {}", path.display()), error)),
        }
    }
    Ok(())
}

fn write_hashed(target: &mut File, body: &Body) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut reader = body.reader();
    let mut buffer = vec![0; PIECE_BYTES.min(body.length() as usize)];
    let mut left = body.length();
    while left > 0 {
        let read = reader
            .read(&mut buffer)
            .map_err(|error| Error::io("read the spooled object", error))?;
        let piece = buffer.get(..read).unwrap_or_default();
        if piece.is_empty() {
            break; // shorter than it was: the hash tells
        }
        hash.update(piece);
        target
            .write_all(piece)
            .map_err(|error| failed("write the object's file", error))?;
        left -= read as u64;
    }
    Ok(hash.finalize().into())
}

/// Fsyncs a directory and all above it up to the archive's. Always all of them: another process
/// may have made one and not have fsynced it yet.
fn sync_up_to(root: &Path, directory: &Path) -> Result<()> {
    directory
        .ancestors()
        .take_while(|above| above.starts_with(root))
        .try_for_each(sync_directory)
}

fn sync_directory(path: &Path) -> Result<()> {
    match File::open(path).and_then(|directory| directory.sync_all()) {
        // Some file systems cannot fsync a directory; PostgreSQL ignores that too (fsync_fname_ext, fd.c).
        Err(error) if error.kind() == IoKind::InvalidInput => Ok(()),
        other => other.map_err(|error| failed(format!("fsync {}", path.display()), error)),
    }
}

/// Opens without waiting, for a FIFO's reader would wait for its writer.
fn open_object(root: &Path, key: &str) -> Result<(File, ObjectInfo)> {
    let path = root.join(key);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(&path)
        .map_err(|error| explain(error, root, key))?;
    let metadata = file
        .metadata()
        .map_err(|error| failed("look at the object's file", error))?;
    let info = object_info(key.to_owned(), &path, &metadata)?;
    Ok((file, info))
}

fn object_info(key: String, path: &Path, metadata: &Metadata) -> Result<ObjectInfo> {
    if metadata.is_dir() {
        return Err(is_a_directory(path));
    }
    if !metadata.is_file() {
        return Err(Error::invalid(format!(
            "{} is not a regular file; move it out of the archive",
            path.display()
        )));
    }
    let modified = metadata
        .modified()
        .map_err(|error| failed("read a file's time", error))?;
    Ok(ObjectInfo {
        key,
        size: metadata.len(),
        modified: modified.into(),
        version: version_of(metadata),
    })
}

/// A write gives the key another file, and so another inode; an inode may be used again, but then at
/// another time.
fn version_of(metadata: &Metadata) -> Version {
    Version(format!(
        "{:x}-{:x}.{:x}-{:x}",
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.len()
    ))
}

fn is_a_directory(path: &Path) -> Error {
    Error::invalid(format!(
        "{} is a directory where the archive has an object; move it elsewhere",
        path.display()
    ))
}

/// As [`check_root`], for who only reads.
fn check_root_to_read(root: &Path) -> Result<()> {
    match fs::metadata(root) {
        Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) => {
            Err(Error::invalid(format!(
                "the archive's directory {} does not exist: nothing was archived there yet, or it is not mounted; \
                 check the URL",
                root.display()
            )))
        }
        _ => check_root(root),
    }
}

/// Why an object could not be opened: `NotFound` only if each part of its path was looked at and
/// the first missing one is truly missing.
fn explain(error: std::io::Error, root: &Path, key: &str) -> Error {
    if !matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) {
        return failed("open the object's file", error);
    }
    if let Err(no_root) = check_root_to_read(root) {
        return no_root;
    }
    let mut path = root.to_owned();
    for part in key.split('/') {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(there) if there.is_symlink() && fs::metadata(&path).is_err() => {
                return Error::invalid(format!(
                    "{} is a symbolic link that leads nowhere; mount or restore what it points to",
                    path.display()
                ));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) => break,
            Err(error) => return failed("look for the object's file", error),
        }
    }
    Error::not_found("there is no such object")
}

/// A file operation in the archive that failed, with the kind that fits a store.
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
pub(super) struct FileBody {
    /// Absent while a read that never returned holds it.
    file: Option<File>,
    left: u64,
    idle_limit: Duration,
}

impl FileBody {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
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
