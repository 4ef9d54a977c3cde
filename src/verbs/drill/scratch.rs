//! The directory that a drill works in, and the directories that killed drills left.
//!
//! A scratch directory is a folder in `drill.directory`; its name is [`PREFIX`] and six random characters. While a
//! drill lives, it holds the lock on the file `lock` in its folder, and the kernel releases that lock however the drill
//! ends. So if the lock is free, a dead drill left the folder. A note in the folder tells whose it was. Nothing is
//! removed without both.

use std::fs::{File, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::processes;
use super::settings::PORT;
use crate::cluster::remove;
use crate::error::{Error, Result};
use crate::format::keys::BackupId;

/// What the names of scratch directories begin with.
const PREFIX: &str = "walship-drill-";
const LOCK: &str = "lock";
const NOTE: &str = "drill.json";
/// Bytes of a Unix socket's path, without the closing zero (`sun_path`).
const SOCKET_PATH_LIMIT: usize = 107;
/// When a drill is interrupted, its threads may still write for a moment.
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(200);

/// Whose scratch directory it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The machine: other machines may share the file system.
    pub host: String,
    /// The archive's URL.
    pub archive: String,
    pub backup: BackupId,
    pub started_at: DateTime<Utc>,
    /// Left by `--keep`: only `--clean` removes it.
    pub kept: bool,
}

/// A drill's directory. Dropped without [`Scratch::remove`], it stays until the next drill.
#[derive(Debug)]
pub struct Scratch {
    directory: PathBuf,
    note: Note,
    _lock: File,
}

impl Scratch {
    /// Makes a scratch directory below `base`, closed to others.
    ///
    /// # Errors
    /// `Invalid` where `base` is not a directory or its path is too long for a socket in it; `Internal` where nothing
    /// can be made in it.
    pub fn create(base: &Path, note: Note) -> Result<Self> {
        let base = resolve(base)?;
        let length = base.as_os_str().len() + format!("/{PREFIX}XXXXXX/socket/.s.PGSQL.{PORT}").len();
        if length > SOCKET_PATH_LIMIT {
            return Err(Error::invalid(format!(
                "the path {} is too long by {} bytes for a Unix socket below it; set drill.directory to a shorter path",
                base.display(),
                length - SOCKET_PATH_LIMIT
            )));
        }
        loop {
            // A drill that cleans up may take the new folder, which has no lock yet, for a dead drill's and remove it.
            if let Some(lock) = make_locked(&base)? {
                let (directory, lock) = lock;
                let scratch = Self {
                    directory,
                    note,
                    _lock: lock,
                };
                scratch.write_note()?;
                for folder in [scratch.socket_directory(), scratch.tablespaces()] {
                    make_folder(&folder)?;
                }
                return Ok(scratch);
            }
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// The data directory. It is not made here.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        data_in(&self.directory)
    }

    #[must_use]
    pub fn socket_directory(&self) -> PathBuf {
        self.directory.join("socket")
    }

    #[must_use]
    pub fn tablespaces(&self) -> PathBuf {
        self.directory.join("tablespaces")
    }

    /// Writes a file in the directory, and returns its path.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.directory.join(name);
        std::fs::write(&path, content)
            .map_err(|error| Error::io(format!("write {}", path.display()), error))?;
        Ok(path)
    }

    /// Leaves the directory for `--keep`.
    pub fn keep(mut self) -> Result<PathBuf> {
        self.note.kept = true;
        self.write_note()?;
        Ok(self.directory)
    }

    /// Ends the processes that still work in the directory, and removes it.
    pub async fn remove(self) -> Result<()> {
        end_and_remove(&self.directory).await
    }

    fn write_note(&self) -> Result<()> {
        let note =
            serde_json::to_vec_pretty(&self.note).map_err(|error| Error::defect("write JSON", error))?;
        self.write(NOTE, &note).map(drop)
    }
}

fn resolve(base: &Path) -> Result<PathBuf> {
    let shown = base.display();
    match base.canonicalize() {
        Ok(resolved) if resolved.is_dir() => Ok(resolved),
        Ok(_) => Err(Error::invalid(format!(
            "{shown}, the drill.directory, is not a directory"
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::invalid(format!(
            "{shown}, the drill.directory, does not exist; make it, or set drill.directory to another"
        ))),
        Err(error) => Err(Error::io(format!("look at {shown}, the drill.directory"), error)),
    }
}

fn data_in(directory: &Path) -> PathBuf {
    directory.join("data")
}

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(folder)
        .map_err(|error| Error::io(format!("make {}", folder.display()), error))
}

/// A new directory and its lock; `None` where somebody removed it at once.
fn make_locked(base: &Path) -> Result<Option<(PathBuf, File)>> {
    let making = |error| {
        Error::io(
            format!("make a directory in {}, the drill.directory", base.display()),
            error,
        )
    };
    let directory = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(base)
        .map_err(making)?
        .keep();
    match lock(&directory) {
        Ok(Some(lock)) if lock.metadata().is_ok_and(|found| found.nlink() > 0) => Ok(Some((directory, lock))),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(making(error)),
    }
}

/// Takes the lock of a directory; `None` where a living drill has it.
fn lock(directory: &Path) -> std::io::Result<Option<File>> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes the directories that dead drills of this user left in `base`, and with `kept` those of `--keep` as well.
/// Returns those that were removed.
///
/// # Errors
/// `Internal` where a directory cannot be read or removed.
pub async fn clean(base: &Path, host: &str, kept: bool) -> Result<Vec<PathBuf>> {
    let base = resolve(base)?;
    let entries = base
        .read_dir()
        .map_err(|error| Error::io(format!("read {}", base.display()), error))?;
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let directory = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !is_ours(&directory) {
            continue;
        }
        let Ok(Some(_lock)) = lock(&directory) else {
            continue;
        };
        match owner(&directory) {
            Owner::Nobody => {}
            Owner::Drill(note) if note.host == host && (kept || !note.kept) => {}
            Owner::Drill(_) => continue,
            Owner::Unknown => {
                tracing::warn!(
                    "{} looks as if a walship drill has left it, but it has no readable {NOTE}; it is left alone",
                    directory.display()
                );
                continue;
            }
        }
        end_and_remove(&directory).await?;
        removed.push(directory);
    }
    Ok(removed)
}

/// Whether it is a directory of this user, and not a link.
fn is_ours(directory: &Path) -> bool {
    directory
        .symlink_metadata()
        .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw())
}

enum Owner {
    /// The drill was killed before it wrote its note, or after it had removed it.
    Nobody,
    Drill(Note),
    Unknown,
}

fn owner(directory: &Path) -> Owner {
    match std::fs::read(directory.join(NOTE)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_or(Owner::Unknown, Owner::Drill),
        Err(_) if only_lock(directory) => Owner::Nobody,
        Err(_) => Owner::Unknown,
    }
}

fn only_lock(directory: &Path) -> bool {
    directory
        .read_dir()
        .is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == LOCK))
}

/// Ends the processes that work in a directory and removes it. The note and the lock go last, so that the directory is
/// recognised again if this is killed in between.
async fn end_and_remove(directory: &Path) -> Result<()> {
    processes::end_all_in(directory, postmaster(&data_in(directory))).await?;
    let mut tries = 1;
    loop {
        let path = directory.to_owned();
        let removed = tokio::task::spawn_blocking(move || remove_all(&path)).await;
        match removed.map_err(std::io::Error::other).flatten() {
            Ok(()) => return Ok(()),
            Err(_) if tries < REMOVE_TRIES => tokio::time::sleep(REMOVE_PAUSE).await,
            Err(error) => {
                return Err(Error::io(
                    format!(
                        "remove {}, which the drill does not need any more (walship drill --clean tries again)",
                        directory.display()
                    ),
                    error,
                ));
            }
        }
        tries += 1;
    }
}

fn remove_all(directory: &Path) -> std::io::Result<()> {
    for entry in directory.read_dir()? {
        let entry = entry?;
        if entry.file_name() != LOCK && entry.file_name() != NOTE {
            remove(&entry.path())?;
        }
    }
    for name in [NOTE, LOCK] {
        match std::fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::remove_dir(directory)
}

/// The number in `postmaster.pid`.
pub(super) fn postmaster(data: &Path) -> Option<i32> {
    let file = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    file.lines().next()?.trim().parse().ok().filter(|pid| *pid > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(host: &str) -> Note {
        Note {
            host: host.to_owned(),
            archive: "file:///a".to_owned(),
            backup: "20261123T041500Z".parse().unwrap(),
            started_at: DateTime::UNIX_EPOCH,
            kept: false,
        }
    }

    async fn cleaned(base: &Path, kept: bool) -> usize {
        clean(base, "here", kept).await.unwrap().len()
    }

    // Seen to fail: `drill/scratch.rs`: the lock does not count; the directory has the mode that the umask leaves
    #[tokio::test]
    async fn a_living_drill_is_left_alone_and_a_dead_one_removed() {
        let base = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(base.path(), note("here")).unwrap();
        let path = scratch.path().to_owned();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        scratch.write("file", b"x").unwrap();
        assert_eq!(cleaned(base.path(), true).await, 0);
        // As the kernel does when a process is killed.
        drop(scratch);
        assert_eq!(cleaned(base.path(), false).await, 1);
        assert!(!path.exists());
    }

    // Seen to fail: `drill/scratch.rs`: `kept` does not count
    #[tokio::test]
    async fn a_kept_directory_stays_until_clean_is_asked_for() {
        let base = tempfile::tempdir().unwrap();
        let path = Scratch::create(base.path(), note("here"))
            .unwrap()
            .keep()
            .unwrap();
        assert_eq!(cleaned(base.path(), false).await, 0);
        assert!(path.exists());
        assert_eq!(cleaned(base.path(), true).await, 1);
    }

    // Seen to fail: `drill/scratch.rs`: no note is needed
    #[tokio::test]
    async fn directories_that_are_not_a_dead_drills_are_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let folder = base.path().join(format!("{PREFIX}{name}"));
            std::fs::create_dir(&folder).unwrap();
            folder
        };
        drop(Scratch::create(base.path(), note("elsewhere")).unwrap());
        std::fs::write(make("data").join("precious"), "x").unwrap();
        std::fs::write(base.path().join(format!("{PREFIX}file")), "x").unwrap();
        std::os::unix::fs::symlink("/", base.path().join(format!("{PREFIX}link"))).unwrap();
        std::fs::create_dir(base.path().join("other")).unwrap();
        let count = || base.path().read_dir().unwrap().count();
        let before = count();
        assert_eq!(cleaned(base.path(), true).await, 0);
        assert_eq!(count(), before);
        // Killed before its note was there.
        let young = make("young");
        assert_eq!(cleaned(base.path(), false).await, 1);
        assert!(!young.exists());
    }

    #[tokio::test]
    async fn a_folder_killed_while_it_was_removed_is_still_recognised() {
        let base = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(base.path(), note("here")).unwrap();
        let path = scratch.path().to_owned();
        drop(scratch);
        std::fs::remove_dir(path.join("socket")).unwrap();
        assert_eq!(cleaned(base.path(), false).await, 1);
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_before_anything_is_made() {
        let top = tempfile::tempdir().unwrap();
        let base = top.path().join("x".repeat(80));
        std::fs::create_dir(&base).unwrap();
        let error = Scratch::create(&base, note("here")).unwrap_err();
        assert!(error.to_string().contains("drill.directory"), "{error}");
        assert_eq!(base.read_dir().unwrap().count(), 0);
    }
}
