//! Replacing one version of an object, in a directory: compare and swap.
//!
//! Walships that do so take turns by a lock on the object's directory. What takes no lock (a deletion, a
//! plain replace, another program) is met by swapping the two names in one step and looking at what came
//! out: if that is not the version that was to be replaced, they are swapped back. A file system that
//! cannot swap (NFS) has the lock and the look alone.

use std::fs::{self, File};
use std::io::ErrorKind as IoKind;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::super::object::Version;
use super::{failed, version_of};
use crate::error::{Error, Result};

/// Gives `fresh` the name `target`, if that is this version of the object. The directory is not synced yet.
pub(super) fn replace_if(version: &Version, fresh: NamedTempFile, target: &Path) -> Result<()> {
    let directory = target.parent().unwrap_or(Path::new("."));
    let lock =
        File::open(directory).map_err(|error| failed(format!("open {}", directory.display()), error))?;
    // Where there are no locks, what follows is all there is. It ends with the process, or with `lock`.
    let _ = flock(&lock, FlockOperation::LockExclusive);
    if !is(version, target)? {
        return Err(changed());
    }
    match swap(fresh.path(), target) {
        Ok(()) if is(version, fresh.path())? => Ok(()),
        Ok(()) => {
            swap(fresh.path(), target).map_err(|error| failed("put the object's file back", error.into()))?;
            Err(changed())
        }
        Err(Errno::NOENT) => Err(changed()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => fresh
            .persist(target)
            .map(drop)
            .map_err(|error| failed("give the object's file its name", error.error)),
        Err(error) => Err(failed("give the object's file its name", error.into())),
    }
}

fn swap(one: &Path, other: &Path) -> std::result::Result<(), Errno> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
}

fn is(version: &Version, path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(version_of(&metadata) == *version),
        Err(error) if error.kind() == IoKind::NotFound => Ok(false),
        Err(error) => Err(failed(format!("look at {}", path.display()), error)),
    }
}

fn changed() -> Error {
    Error::conflict("it is not the object any more that was to be replaced")
}
