//! Files that stand ready for recovery, beside `pg_wal`'s own, so that delivery is a rename.
//!
//! The folder is the agent's alone. It trusts nothing that it finds there: what was there before is
//! removed when the agent starts, and what is left when it ends. Nothing is fsynced, for what the
//! files are is known to the agent's memory only.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A folder in `pg_wal`, made when it is first needed.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    closed: AtomicBool,
}

impl Spool {
    /// The spool of the agent with this fingerprint, empty.
    ///
    /// # Errors
    /// `Internal` where an earlier one's files cannot be removed.
    pub(super) fn open(data_directory: &Path, fingerprint: &str) -> Result<Self> {
        let name = format!(".walship-spool-{}", fingerprint.get(..16).unwrap_or_default());
        let spool = Self {
            folder: data_directory.join("pg_wal").join(name),
            closed: AtomicBool::new(false),
        };
        spool.clear()?;
        Ok(spool)
    }

    /// The folder, which exists now, with `pg_wal`'s own permissions.
    ///
    /// # Errors
    /// `Internal` where it cannot be made, or the agent is about to end.
    pub(super) fn folder(&self) -> Result<&Path> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::internal("the agent ends"));
        }
        let group_access = self
            .folder
            .parent()
            .and_then(|pg_wal| std::fs::metadata(pg_wal).ok())
            .is_some_and(|metadata| metadata.mode() & 0o050 == 0o050);
        let mode = if group_access { 0o750 } else { 0o700 };
        match DirBuilder::new().mode(mode).create(&self.folder) {
            Ok(()) => Ok(&self.folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(&self.folder),
            Err(error) => Err(Error::io(format!("create {}", self.folder.display()), error)),
        }
    }

    /// Removes the folder for good.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Err(error) = self.clear() {
            tracing::warn!("{error}");
        }
    }

    /// Removes the folder and everything in it.
    fn clear(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(format!("remove {}", self.folder.display()), error)),
        }
    }
}
