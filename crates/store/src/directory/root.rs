//! The archive's directory: found once by its path, and held from then on.
//!
//! Everything in the archive is reached from one descriptor. So what was read (`walship.json`) and what is written lie
//! in the same directory, whatever is mounted, unmounted or moved in between. But the descriptor proves nothing about
//! the path: an unmounted file system lives on behind it. So before anything is acknowledged or called missing, it is
//! checked that the path still leads there.

use std::fs::{DirBuilder, File};
use std::io::{Error as IoError, ErrorKind as IoKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, mkdirat, open, openat, stat, statat};
use rustix::io::Errno;

use super::failed;
use walship_core::{Error, ErrorKind, Result};

/// The operating system's answer; the caller decides what an error means.
pub(super) type Looked<T> = std::result::Result<T, Errno>;

/// The directory of an archive; clones share the descriptor.
#[derive(Debug, Clone)]
pub(super) struct Root {
    path: Arc<Path>,
    held: Arc<OnceLock<Held>>,
}

#[derive(Debug)]
struct Held {
    directory: OwnedFd,
    device: u64,
    inode: u64,
}

impl Root {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path: path.into(),
            held: Arc::default(),
        }
    }

    /// The same path, to be looked up again.
    pub(super) fn reopened(&self) -> Self {
        Self {
            path: Arc::clone(&self.path),
            held: Arc::default(),
        }
    }

    /// Where something in the archive is, for messages only.
    pub(super) fn shown(&self, relative: &str) -> String {
        if relative.is_empty() {
            return self.path.display().to_string();
        }
        self.path.join(relative).display().to_string()
    }

    /// The directory, opened at the first call.
    pub(super) fn directory(&self) -> Result<BorrowedFd<'_>> {
        self.held().map(|held| held.directory.as_fd())
    }

    fn held(&self) -> Result<&Held> {
        if let Some(held) = self.held.get() {
            return Ok(held);
        }
        let directory =
            open(&*self.path, DIRECTORY, Mode::empty()).map_err(|error| self.not_opened(error.into()))?;
        let seen = fstat(&directory).map_err(|error| self.not_opened(error.into()))?;
        // If two threads open it at the same time, both use what the first one found.
        Ok(self.held.get_or_init(|| Held {
            directory,
            device: seen.st_dev,
            inode: seen.st_ino,
        }))
    }

    fn not_opened(&self, error: IoError) -> Error {
        let path = self.path.display();
        match error.kind() {
            IoKind::NotFound => Error::invalid(format!(
                "the archive's directory {path} does not exist: nothing was archived there yet, or it is not mounted; \
                 check the URL"
            )),
            IoKind::NotADirectory => Error::invalid(format!(
                "{path} is not a directory, or something above it is not; give the archive's directory"
            )),
            _ => failed(format!("open {path}"), error),
        }
    }

    /// Checks that the archive's path still leads to the directory that is held. Otherwise nothing can be said about
    /// any key, and nothing may be acknowledged.
    ///
    /// # Errors
    /// `Invalid` where it does not.
    pub(super) fn check_in_place(&self) -> Result<()> {
        let held = self.held()?;
        let path = self.path.display();
        // The dot makes an automounter mount the file system.
        match stat(self.path.join(".")) {
            Ok(there) if there.st_dev == held.device && there.st_ino == held.inode => Ok(()),
            Ok(_) => Err(Error::invalid(format!(
                "{path} is another directory than a moment ago: something was mounted or unmounted there, or it was \
                 moved or made anew; see where the archive is, and run it again"
            ))),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Error::invalid(format!(
                "the archive's directory {path} does not exist any more; see whether it was moved or unmounted, and run \
                 it again"
            ))),
            Err(error) => Err(failed(format!("look at {path}"), error.into())),
        }
    }

    /// Makes the directory if only the last part of its path is missing.
    pub(super) fn create(&self) -> Result<()> {
        match DirBuilder::new().mode(0o750).create(&self.path) {
            Ok(()) => self.sync_parent(),
            Err(error) if error.kind() == IoKind::AlreadyExists => {
                self.directory()?;
                // The process that made it may have died before its own fsync. Or it was made by hand, long ago, in
                // a directory that walship may not read.
                match self.sync_parent() {
                    Err(error) if error.kind() == ErrorKind::Denied => Ok(()),
                    other => other,
                }
            }
            Err(error) if error.kind() == IoKind::NotFound => Err(Error::invalid(format!(
                "the directory above {} does not exist; create it, or mount what it belongs to",
                self.path.display()
            ))),
            Err(error) => Err(failed(format!("create {}", self.path.display()), error)),
        }
    }

    fn sync_parent(&self) -> Result<()> {
        let Some(parent) = self.path.parent() else {
            return Ok(());
        };
        let synced = File::open(parent).and_then(|directory| directory.sync_all());
        not_synced(parent, synced)
    }

    /// Opens a directory of the archive; `""` is the archive's own.
    pub(super) fn open_directory(&self, relative: &str) -> Result<Looked<OwnedFd>> {
        let relative = if relative.is_empty() { "." } else { relative };
        Ok(openat(self.directory()?, relative, DIRECTORY, Mode::empty()))
    }

    /// Opens the directory that an object is written to. It must lie on the file system of the archive's own
    /// directory: if another one below it is not mounted, its empty mount point looks like any directory.
    pub(super) fn open_for_writing(&self, relative: &str) -> Result<Looked<OwnedFd>> {
        let directory = match self.open_directory(relative)? {
            Ok(directory) => directory,
            Err(error) => return Ok(Err(error)),
        };
        let seen = match fstat(&directory) {
            Ok(seen) => seen,
            Err(error) => return Ok(Err(error)),
        };
        if seen.st_dev != self.held()?.device {
            return Err(Error::invalid(format!(
                "{} lies on another file system than the archive's directory {}; walship could not tell its empty mount \
                 point from it when it is not mounted, so all of an archive must be on one file system",
                self.shown(relative),
                self.path.display()
            )));
        }
        Ok(Ok(directory))
    }

    /// Makes the directories between the archive's and the object. They are fsynced with the object.
    pub(super) fn create_parents(&self, folder: &str) -> Result<()> {
        let root = self.directory()?;
        for (end, _) in folder.match_indices('/').chain([(folder.len(), "")]) {
            let part = folder.get(..end).unwrap_or(folder);
            match mkdirat(root, part, Mode::from(0o750)) {
                // NOENT: a deletion removed the directory above again; the caller starts over.
                Ok(()) | Err(Errno::EXIST | Errno::NOENT) => {}
                Err(error) => return Err(failed(format!("create {}", self.shown(part)), error.into())),
            }
        }
        Ok(())
    }

    /// What this path leads to, links followed.
    pub(super) fn look(&self, relative: &str) -> Result<Looked<Stat>> {
        Ok(statat(self.directory()?, relative, AtFlags::empty()))
    }

    /// Fsyncs a directory and all above it up to the archive's. Always all of them, because another process may have
    /// made one and not have fsynced it yet.
    pub(super) fn sync_up_to(&self, folder: &str) -> Result<()> {
        let mut folder = folder;
        while !folder.is_empty() {
            self.sync(folder)?;
            folder = folder_of(folder);
        }
        self.sync("")
    }

    pub(super) fn sync(&self, folder: &str) -> Result<()> {
        self.sync_opened(folder, self.open_directory(folder)?)
    }

    pub(super) fn sync_opened(&self, folder: &str, opened: Looked<OwnedFd>) -> Result<()> {
        let synced = opened
            .map_err(std::io::Error::from)
            .and_then(|directory| File::from(directory).sync_all());
        not_synced(Path::new(&self.shown(folder)), synced)
    }

    /// Why an object could not be opened: `NotFound` only if the archive is in its place, each part of the object's
    /// path was looked at, and the first missing one is truly missing.
    pub(super) fn explain(&self, error: Errno, key: &str) -> Error {
        if !is_missing(error) {
            return failed("open the object's file", error.into());
        }
        match self.first_missing(key).and_then(|()| self.check_in_place()) {
            Ok(()) => Error::not_found("there is no such object"),
            Err(error) => error,
        }
    }

    fn first_missing(&self, key: &str) -> Result<()> {
        let root = self.directory()?;
        for (end, _) in key.match_indices('/').chain([(key.len(), "")]) {
            let part = key.get(..end).unwrap_or(key);
            match statat(root, part, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(there) if is_link(&there) && statat(root, part, AtFlags::empty()).is_err() => {
                    return Err(Error::invalid(format!(
                        "{} is a symbolic link that leads nowhere; mount or restore what it points to",
                        self.shown(part)
                    )));
                }
                Ok(_) => {}
                Err(error) if is_missing(error) => return Ok(()),
                Err(error) => return Err(failed("look for the object's file", error.into())),
            }
        }
        Ok(())
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The folder that a key, or a folder, is in; `""` is the archive's own.
pub(super) fn folder_of(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(folder, _)| folder)
}

pub(super) fn is_missing(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR)
}

fn is_link(there: &Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(there.st_mode).is_symlink()
}

fn not_synced(path: &Path, synced: std::io::Result<()>) -> Result<()> {
    match synced {
        // Some file systems cannot fsync a directory; PostgreSQL ignores that too (fsync_fname_ext, fd.c).
        Err(error) if error.kind() == IoKind::InvalidInput => Ok(()),
        other => other.map_err(|error| failed(format!("fsync {}", path.display()), error)),
    }
}
