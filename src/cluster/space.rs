//! Whether the backup fits: the free space and free inodes of every file system it is restored into.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::destination::nearest_existing;
use crate::error::{Error, Result};
use crate::text::ByteSize;

/// What will be written below a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The directory; it may not exist yet.
    pub directory: PathBuf,
    /// Bytes of content.
    pub bytes: u64,
    /// Files and directories.
    pub files: u64,
}

/// What a file system has to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Free {
    bytes: u64,
    /// None where the file system makes inodes as it needs them.
    files: Option<u64>,
}

/// Refuses where the backup does not fit.
///
/// # Errors
/// `Internal`, with what is needed and what is there.
pub fn check(needs: &[Need]) -> Result<()> {
    let mut systems: Vec<(u64, Need)> = Vec::new();
    for need in needs {
        let existing = nearest_existing(&need.directory);
        let device = existing
            .metadata()
            .map_err(|error| Error::io(format!("look at {}", existing.display()), error))?
            .dev();
        match systems.iter_mut().find(|(known, _)| *known == device) {
            Some((_, total)) => {
                total.bytes += need.bytes;
                total.files += need.files;
            }
            None => systems.push((device, need.clone())),
        }
    }
    systems
        .iter()
        .try_for_each(|(_, need)| compare(need, free(nearest_existing(&need.directory))?))
}

/// Refuses where `bytes` do not fit into the file systems of these directories, taken together.
///
/// # Errors
/// `Internal`, with what is needed and what is there.
pub fn check_total(directories: &[&Path], bytes: u64) -> Result<()> {
    let mut systems = BTreeMap::new();
    for directory in directories {
        let existing = nearest_existing(directory);
        let device = existing
            .metadata()
            .map_err(|error| Error::io(format!("look at {}", existing.display()), error))?
            .dev();
        systems.insert(device, free(existing)?.bytes);
    }
    let all = Free {
        bytes: systems
            .values()
            .fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)),
        files: None,
    };
    let need = Need {
        directory: directories
            .first()
            .map(|directory| directory.to_path_buf())
            .unwrap_or_default(),
        bytes,
        files: 0,
    };
    compare(&need, all)
}

/// The bytes that are free for this user below a directory.
///
/// # Errors
/// `Internal`, as the operating system says.
pub fn free_bytes(directory: &Path) -> Result<u64> {
    free(nearest_existing(directory)).map(|free| free.bytes)
}

fn free(directory: &Path) -> Result<Free> {
    let found = rustix::fs::statvfs(directory).map_err(|error| {
        Error::io(
            format!("ask for the free space of {}", directory.display()),
            error.into(),
        )
    })?;
    Ok(Free {
        bytes: found.f_bavail.saturating_mul(found.f_frsize),
        files: (found.f_files > 0).then_some(found.f_favail),
    })
}

fn compare(need: &Need, free: Free) -> Result<()> {
    let shown = need.directory.display();
    if need.bytes > free.bytes {
        return Err(Error::internal(format!(
            "the file system of {shown} has {} free, and the backup needs {} there; make room, or \
             choose another place (--pgdata, --tablespace-mapping)",
            ByteSize(free.bytes),
            ByteSize(need.bytes)
        )));
    }
    match free.files {
        Some(files) if need.files > files => Err(Error::internal(format!(
            "the file system of {shown} has room for {files} more files, and this backup has {}; choose \
             another place (--pgdata, --tablespace-mapping)",
            need.files
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(bytes: u64, files: u64) -> Need {
        Need {
            directory: PathBuf::from("/"),
            bytes,
            files,
        }
    }

    #[test]
    fn a_backup_that_does_not_fit_is_refused_with_both_numbers() {
        let free = Free {
            bytes: 5 << 20,
            files: Some(10),
        };
        assert!(compare(&need(5 << 20, 10), free).is_ok());
        let error = compare(&need((5 << 20) + 1, 1), free).unwrap_err().to_string();
        assert!(error.contains("5.0 MiB free"), "{error}");
        assert!(compare(&need(1, 11), free).is_err());
        let unlimited = Free { files: None, ..free };
        assert!(compare(&need(1, u64::MAX), unlimited).is_ok());
    }

    #[test]
    fn what_goes_to_one_file_system_is_added_up() {
        let top = tempfile::tempdir().unwrap();
        let all = free(top.path()).unwrap().bytes;
        let half = |name: &str| Need {
            directory: top.path().join(name),
            bytes: all / 3 * 2,
            files: 0,
        };
        assert!(check(&[half("a")]).is_ok());
        assert!(check(&[half("a"), half("b/c")]).is_err());
    }
}
