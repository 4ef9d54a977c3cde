//! Files that stand ready for recovery, beside `pg_wal`'s own, so that delivery is a rename.
//!
//! Each agent has a folder of its own, and holds a lock on it (`flock`). A starting agent removes folders without a
//! living agent's lock, and an ending agent removes its own. Nothing is fsynced, because only the agent's memory knows
//! what the files are.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// What the names of spools begin with.
const PREFIX: &str = ".walship-spool-";

/// A folder in `pg_wal`, made when it is first needed.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    NotMade,
    /// With the lock on it.
    Made(#[expect(dead_code, reason = "closing it lets go of the lock")] File),
    Closed,
}

impl Spool {
    /// The spool of the agent of this name. Removes the folders that ended agents left in `pg_wal`.
    ///
    /// # Errors
    /// `Internal` where one of them cannot be removed.
    pub(super) fn open(data_directory: &Path, agent: &str) -> Result<Self> {
        let pg_wal = data_directory.join("pg_wal");
        let listed = std::fs::read_dir(&pg_wal)
            .map_err(|error| Error::io(format!("read {}", pg_wal.display()), error))?;
        for entry in listed.flatten() {
            let is_spool = entry.file_name().to_string_lossy().starts_with(PREFIX);
            if is_spool && File::open(entry.path()).is_ok_and(|left| left.try_lock().is_ok()) {
                remove(&entry.path())?;
            }
        }
        let name = format!("{PREFIX}{}", agent.get(..16).unwrap_or_default());
        Ok(Self {
            folder: pg_wal.join(name),
            state: Mutex::new(State::NotMade),
        })
    }

    /// The folder, which exists now, with `pg_wal`'s own permissions.
    ///
    /// # Errors
    /// `Internal` where it cannot be made, or the agent is about to end.
    pub(super) fn folder(&self) -> Result<&Path> {
        let mut state = self.lock();
        match *state {
            State::Made(_) if self.folder.is_dir() => {}
            State::Made(_) | State::NotMade => {
                let made = make(&self.folder);
                *state = State::Made(
                    made.map_err(|error| Error::io(format!("create {}", self.folder.display()), error))?,
                );
            }
            State::Closed => return Err(Error::internal("the agent ends")),
        }
        Ok(&self.folder)
    }

    /// Removes the folder for good.
    pub(super) fn close(&self) {
        *self.lock() = State::Closed;
        if let Err(error) = remove(&self.folder) {
            tracing::warn!("{error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the folder, and locks it.
fn make(folder: &Path) -> std::io::Result<File> {
    let group_access = folder
        .parent()
        .and_then(|pg_wal| std::fs::metadata(pg_wal).ok())
        .is_some_and(|metadata| metadata.mode() & 0o050 == 0o050);
    let mode = if group_access { 0o750 } else { 0o700 };
    match DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != IoKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let opened = File::open(folder)?;
    opened.try_lock()?;
    Ok(opened)
}

/// Removes a folder and everything in it.
fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != IoKind::NotFound => {
            Err(Error::io(format!("remove {}", folder.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_agents_left_is_removed_and_a_living_ones_stays() {
        let data = tempfile::tempdir().unwrap();
        let folder = |name: &str| data.path().join("pg_wal").join(name);
        for name in ["", ".walship-spool-left", "archive_status"] {
            std::fs::create_dir(folder(name)).unwrap();
        }
        std::fs::write(folder(".walship-spool-left").join("0"), "").unwrap();
        let living = Spool::open(data.path(), "an_agent_of_a_name").unwrap();
        assert!(!folder(".walship-spool-left").exists() && folder("archive_status").exists());
        let file = living.folder().unwrap().join("1");
        std::fs::write(&file, "").unwrap();
        Spool::open(data.path(), "another_agent_of_a_name").unwrap();
        assert!(file.exists());
        living.close();
        assert!(!file.exists() && living.folder().is_err());
    }
}
