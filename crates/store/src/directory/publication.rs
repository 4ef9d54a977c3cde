//! Writing an object: a file under a temporary name, fsynced, and given its own name in one step.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, linkat, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::replacement::replace_if;
use super::root::{Looked, Root, folder_of, is_missing};
use super::{PIECE_BYTES, TEMPORARY, failed, is_a_directory, is_directory};
use crate::{Body, BodyContent, PutMode};
use walship_core::{Error, Result};

/// How often a directory that a concurrent deletion removed is made again, or another temporary name is tried.
const ATTEMPTS: u32 = 8;

/// A file without its final name; dropping it removes it.
#[derive(Debug)]
pub(super) struct Temporary {
    directory: OwnedFd,
    name: String,
    pub(super) file: File,
}

impl Temporary {
    /// A new file in this directory.
    pub(super) fn create(directory: OwnedFd) -> Looked<Self> {
        let mut attempts = 1;
        loop {
            let name = temporary_name();
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
            match openat(&directory, name.as_str(), flags, Mode::from(0o640)) {
                Ok(file) => {
                    return Ok(Self {
                        directory,
                        name,
                        file: file.into(),
                    });
                }
                Err(Errno::EXIST) if attempts < ATTEMPTS => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn directory(&self) -> impl AsFd {
        self.directory.as_fd()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Gives the file this name in its directory, unless there is one of that name.
    fn rename_to_free(&self, name: &str) -> Looked<()> {
        let (directory, own) = (&self.directory, self.name.as_str());
        match renameat_with(directory, own, directory, name, RenameFlags::NOREPLACE) {
            // The file system does not know the flag (NFS). The temporary name is removed when this is dropped.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                linkat(directory, own, directory, name, AtFlags::empty())
            }
            other => other,
        }
    }

    pub(super) fn rename_over(&self, name: &str) -> Looked<()> {
        renameat(&self.directory, self.name.as_str(), &self.directory, name)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Fails where the file got its final name.
        let _ = unlinkat(&self.directory, self.name.as_str(), AtFlags::empty());
    }
}

/// A name that no other file has: this process's clock and a number.
fn temporary_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("{TEMPORARY}{:x}-{process:x}-{number:x}", now.as_nanos())
}

/// A written and fsynced object that does not have its name yet.
pub(super) struct Unpublished {
    root: Root,
    key: String,
    temporary: Temporary,
}

impl Unpublished {
    pub(super) fn write(root: Root, key: String, body: &Body) -> Result<Self> {
        let mut temporary = create_temporary(&root, &key)?;
        write(&mut temporary.file, body)?;
        temporary
            .file
            .sync_all()
            .map_err(|error| failed("fsync the object's file", error))?;
        Ok(Self { root, key, temporary })
    }

    /// Gives the object its name. It is acknowledged only if the archive's path still leads to its directory.
    pub(super) fn publish(self, mode: PutMode) -> Result<()> {
        let Self { root, key, temporary } = self;
        let name = key.rsplit('/').next().unwrap_or(&key);
        let published = match mode {
            PutMode::Create => temporary.rename_to_free(name),
            PutMode::Replace => temporary.rename_over(name),
            PutMode::ReplaceIf(version) => Ok(replace_if(&version, &temporary, name)?),
        };
        // The replaced file is removed before the directory is fsynced.
        drop(temporary);
        let settle = || {
            root.sync_up_to(folder_of(&key))?;
            root.check_in_place()
        };
        match published {
            Ok(()) => settle(),
            Err(_) if matches!(root.look(&key), Ok(Ok(there)) if is_directory(&there)) => {
                Err(is_a_directory(&root.shown(&key)))
            }
            Err(Errno::EXIST) => {
                settle()?;
                Err(Error::conflict("an object of this name is there already"))
            }
            Err(error) => Err(failed("give the object's file its name", error.into())),
        }
    }
}

/// A temporary file in the object's directory, which is made if it is missing; tried again because
/// a concurrent deletion may remove an empty directory at any moment.
fn create_temporary(root: &Root, key: &str) -> Result<Temporary> {
    let folder = folder_of(key);
    let mut attempts = 0..ATTEMPTS;
    loop {
        let created = root.open_for_writing(folder)?.and_then(Temporary::create);
        match created {
            Ok(file) => return Ok(file),
            Err(error) if is_missing(error) => {
                // Where the archive itself is gone, so is everything in it.
                root.check_in_place()?;
                if error == Errno::NOTDIR {
                    return Err(Error::invalid(format!(
                        "{} is in the way: a file where the archive has a directory; move it elsewhere",
                        root.shown(folder)
                    )));
                }
                if attempts.next().is_none() {
                    return Err(failed(
                        format!("create a file in {}", root.shown(folder)),
                        error.into(),
                    ));
                }
                root.create_parents(folder)?;
            }
            Err(error) => {
                return Err(failed(
                    format!("create a file in {}", root.shown(folder)),
                    error.into(),
                ));
            }
        }
    }
}

/// Bytes in memory were hashed there. Those of a temporary file were on a disk meanwhile, and are hashed again.
fn write(target: &mut File, body: &Body) -> Result<()> {
    let written = match &body.content {
        BodyContent::Memory(bytes) => target
            .write_all(bytes)
            .map(|()| body.sha256)
            .map_err(|error| failed("write the object's file", error)),
        BodyContent::File { .. } => write_hashed(target, body),
    };
    if written? != body.sha256 {
        return Err(Error::corrupt(
            "the bytes changed in the temporary file (TMPDIR): their SHA-256 differs. Nothing was stored, try again",
        ));
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
