//! Deletion from a directory store: durable, and it leaves no empty directories behind.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::ErrorKind as IoKind;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::Access;

use super::{TEMPORARY, check_root, failed, is_a_directory, sync_directory};
use crate::error::Result;
use crate::store::Refused;

/// When a temporary file was left behind by a crash and is not being written.
const STALE: Duration = Duration::from_hours(24);

pub(super) fn delete(root: &Path, keys: &[String]) -> Result<Vec<Refused>> {
    check_root(root)?;
    let mut refused = Vec::new();
    let mut touched = BTreeSet::new();
    for key in keys {
        let path = root.join(key);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) => {}
            Err(error) if error.kind() == IoKind::IsADirectory => return Err(is_a_directory(&path)),
            // A directory that must not be written to, or a file that must not be changed (chattr).
            Err(error) if error.kind() == IoKind::PermissionDenied => {
                refused.push(Refused {
                    key: key.clone(),
                    error: failed(format!("delete {}", path.display()), error),
                });
                continue;
            }
            Err(error) => return Err(failed(format!("delete {}", path.display()), error)),
        }
        touched.extend(path.parent().map(Path::to_owned));
    }
    // Deepest first, so that a directory is empty when its turn comes.
    for directory in touched.iter().rev() {
        settle_deletion(root, directory)?;
    }
    Ok(refused)
}

/// Whether files can be removed from the archive's directory and those in it.
pub(super) fn probe_delete(root: &Path) -> Result<()> {
    check_root(root)?;
    let inside = fs::read_dir(root).map_err(|error| failed(format!("read {}", root.display()), error))?;
    let folders = inside
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    for folder in std::iter::once(root.to_owned()).chain(folders) {
        rustix::fs::access(&folder, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| failed(format!("remove files from {}", folder.display()), error.into()))?;
    }
    Ok(())
}

/// Makes deletions in a directory durable, and removes it and those above it where they are empty.
fn settle_deletion(root: &Path, directory: &Path) -> Result<()> {
    for above in directory.ancestors().take_while(|above| above.starts_with(root)) {
        if !above.exists() {
            continue;
        }
        remove_stale(above);
        if above == root || fs::remove_dir(above).is_err() {
            return match sync_directory(above) {
                // A concurrent deletion emptied and removed it in this very moment.
                Err(_) if !above.exists() => Ok(()),
                other => other,
            };
        }
    }
    Ok(())
}

/// Removes what crashed puts left behind. Tidiness only: failures do not matter.
fn remove_stale(directory: &Path) {
    let now = SystemTime::now();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let old = |metadata: Metadata| {
            let age = metadata
                .modified()
                .ok()
                .and_then(|then| now.duration_since(then).ok());
            metadata.is_file() && age.is_some_and(|age| age > STALE)
        };
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) && entry.metadata().is_ok_and(old) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
