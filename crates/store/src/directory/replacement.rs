//! Replacing one version of an object, in a directory: compare and swap.
//!
//! Processes of walship that do so take turns by a lock on the object's directory. A deletion, a plain replace and
//! other programs take no lock. So the two names are swapped in one step, and if what comes out is not the version that
//! was to be replaced, they are swapped back. On a file system that cannot swap (NFS), the version is only looked at
//! under the lock.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags, flock, openat, renameat_with, statat};
use rustix::io::Errno;

use super::super::object::Version;
use super::publication::Temporary;
use super::root::Looked;
use super::{failed, version_of};
use walship_core::{Error, Result};

/// Gives `fresh` the name `target` in its directory, if that is this version of the object. The directory is not
/// synced yet.
pub(super) fn replace_if(version: &Version, fresh: &Temporary, target: &str) -> Result<()> {
    let directory = fresh.directory();
    // A lock belongs to what was opened, and each writer needs one of its own.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = openat(&directory, ".", flags, Mode::empty())
        .map_err(|error| failed("open the object's directory", error.into()))?;
    // A file system without locks has only the swap below. The lock ends with the process, or with `lock`.
    let _ = flock(&lock, FlockOperation::LockExclusive);
    if !is(version, &directory, target)? {
        return Err(changed());
    }
    match swap(&directory, fresh.name(), target) {
        Ok(()) if is(version, &directory, fresh.name())? => Ok(()),
        Ok(()) => {
            swap(&directory, fresh.name(), target)
                .map_err(|error| failed("put the object's file back", error.into()))?;
            Err(changed())
        }
        Err(Errno::NOENT) => Err(changed()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => fresh
            .rename_over(target)
            .map_err(|error| failed("give the object's file its name", error.into())),
        Err(error) => Err(failed("give the object's file its name", error.into())),
    }
}

fn swap(directory: &impl AsFd, one: &str, other: &str) -> Looked<()> {
    renameat_with(directory, one, directory, other, RenameFlags::EXCHANGE)
}

fn is(version: &Version, directory: &impl AsFd, name: &str) -> Result<bool> {
    match statat(directory, name, AtFlags::empty()) {
        Ok(there) => Ok(version_of(&there) == *version),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(failed("look at the object's file", error.into())),
    }
}

fn changed() -> Error {
    Error::conflict("it is no longer the object that was to be replaced")
}
