//! Deletion from a directory store: durable, and it leaves no empty directories behind.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Access, AtFlags, accessat, statat, unlinkat};
use rustix::io::Errno;

use super::root::{Root, folder_of, is_missing};
use super::{TEMPORARY, entries, failed, is_a_directory, is_directory, is_file};
use crate::Refused;
use walship_core::Result;

/// A temporary file of this age was left behind by a crash.
const STALE: Duration = Duration::from_hours(24);

pub(super) fn delete(root: &Root, keys: &[String]) -> Result<Vec<Refused>> {
    root.check_in_place()?;
    let mut refused = Vec::new();
    let mut touched = BTreeSet::new();
    for key in keys {
        let doing = || format!("delete {}", root.shown(key));
        match unlinkat(root.directory()?, key.as_str(), AtFlags::empty()) {
            Ok(()) => {}
            Err(error) if is_missing(error) => {}
            Err(Errno::ISDIR) => return Err(is_a_directory(&root.shown(key))),
            // A directory that must not be written to, or a file that must not be changed (chattr).
            Err(error @ (Errno::ACCESS | Errno::PERM)) => {
                refused.push(Refused {
                    key: key.clone(),
                    error: failed(doing(), error.into()),
                });
                continue;
            }
            Err(error) => return Err(failed(doing(), error.into())),
        }
        touched.insert(folder_of(key));
    }
    // Deepest first, so that a directory is empty when its turn comes.
    for folder in touched.iter().rev() {
        sync_deletion(root, folder)?;
    }
    root.check_in_place()?;
    Ok(refused)
}

/// Whether files can be removed from the archive's directory and those in it.
pub(super) fn probe_delete(root: &Root) -> Result<()> {
    root.check_in_place()?;
    let inside =
        entries(root, "")?.map_err(|error| failed(format!("read {}", root.shown("")), error.into()))?;
    let is_folder = |name: &String| matches!(root.look(name), Ok(Ok(there)) if is_directory(&there));
    let folders = inside.into_iter().map(|(name, _)| name).filter(is_folder);
    for folder in std::iter::once(".".to_owned()).chain(folders) {
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        accessat(root.directory()?, folder.as_str(), wanted, AtFlags::empty())
            .map_err(|error| failed(format!("remove files from {}", root.shown(&folder)), error.into()))?;
    }
    Ok(())
}

/// Makes deletions in a directory durable, and removes it and those above it where they are empty.
fn sync_deletion(root: &Root, folder: &str) -> Result<()> {
    let is_there = |folder: &str| folder.is_empty() || matches!(root.look(folder), Ok(Ok(_)));
    let mut folder = folder;
    loop {
        if is_there(folder) {
            remove_stale(root, folder);
            let removed = unlinkat(root.directory()?, folder, AtFlags::REMOVEDIR).is_ok();
            if !removed {
                match root.open_directory(folder)? {
                    // A concurrent deletion removed it a moment ago, and it may have been made again since.
                    Err(error) if is_missing(error) && !folder.is_empty() => {}
                    opened => return root.sync_opened(folder, opened),
                }
            }
        }
        folder = folder_of(folder);
    }
}

/// Removes what crashed puts left behind. Failures do not matter.
fn remove_stale(root: &Root, folder: &str) {
    let (Ok(Ok(directory)), Ok(Ok(names))) = (root.open_directory(folder), entries(root, folder)) else {
        return;
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let temporary = |(name, _): &&(String, _)| name.starts_with(TEMPORARY);
    for (name, _) in names.iter().filter(temporary) {
        let is_stale = statat(&directory, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|there| {
            let written = Duration::from_secs(there.st_mtime.try_into().unwrap_or(0));
            is_file(&there) && now.saturating_sub(written) > STALE
        });
        if is_stale {
            let _ = unlinkat(&directory, name.as_str(), AtFlags::empty());
        }
    }
}
