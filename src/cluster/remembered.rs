//! Reading and writing what a data directory remembers of its archive: `walship.archive` and `walship.clone`.
//!
//! What holds: nothing of a cluster is acknowledged in an archive before its data directory durably remembers that
//! archive. If two processes write the file at the same time, one wins, and the other checks against the winner's file.

use std::fs::File;
use std::io::{ErrorKind as IoKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::unnamed_file::UnnamedFile;
use crate::error::{Error, Result};
use crate::format::identity::Identity;
use crate::format::remembered::{ARCHIVE_FILE, ArchiveMark, CLONE_FILE, Remembered};

/// The prefix of the file's name while it is written. No base backup has files with this prefix
/// (`PG_TEMP_FILE_PREFIX`).
const TEMPORARY_PREFIX: &str = "pgsql_tmp.walship.";

/// What this data directory remembers.
///
/// # Errors
/// `Internal` where that cannot be read or understood.
pub fn read(data_directory: &Path) -> Result<Remembered> {
    let [archive, clone] = [ARCHIVE_FILE, CLONE_FILE].map(|name| read_file(&data_directory.join(name)));
    let place = data_directory.display().to_string();
    Remembered::parse(archive?.as_deref(), clone?.as_deref(), &place)
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == IoKind::NotFound => Ok(None),
        read => read
            .map(Some)
            .map_err(|error| Error::io(format!("read {}", path.display()), error)),
    }
}

/// Whether a server on this data directory may write to the archive with this identity, at `url`.
///
/// # Errors
/// As [`read`] and [`Remembered::check`].
pub fn check(data_directory: &Path, identity: &Identity, url: &str) -> Result<()> {
    read(data_directory)?.check(identity, url, &data_directory.display().to_string())
}

/// As [`check`]; and from now on the data directory remembers that archive.
///
/// # Errors
/// As [`check`]; `Internal` where the file cannot be written.
pub fn join(data_directory: &Path, identity: &Identity, url: &str) -> Result<()> {
    let remembered = read(data_directory)?;
    remembered.check(identity, url, &data_directory.display().to_string())?;
    if remembered.archive.is_some() {
        return Ok(());
    }
    let mark = ArchiveMark::of(url.to_owned(), identity);
    match write(data_directory, &mark) {
        // Another process was faster.
        Err(error) if error.kind() == IoKind::AlreadyExists => check(data_directory, identity, url),
        // Read-only: no server runs on it, and nothing else can be written there either.
        Err(error) if error.kind() == IoKind::ReadOnlyFilesystem => {
            let shown = data_directory.display();
            tracing::warn!("{shown} is read-only, so it does not remember that its archive is {url}");
            Ok(())
        }
        written => written.map_err(|error| not_written(data_directory, error)),
    }
}

/// From now on the data directory remembers this archive, whatever it remembered before.
///
/// # Errors
/// `Internal` where the file cannot be written.
pub fn rejoin(data_directory: &Path, mark: &ArchiveMark) -> Result<()> {
    replace(data_directory, mark).map_err(|error| not_written(data_directory, error))
}

fn not_written(data_directory: &Path, error: std::io::Error) -> Error {
    let path = data_directory.join(ARCHIVE_FILE);
    Error::io(
        format!(
            "write {}, in which the cluster remembers its archive (run this as the user who owns the data directory)",
            path.display()
        ),
        error,
    )
}

fn write(data_directory: &Path, mark: &ArchiveMark) -> std::io::Result<()> {
    let content = mark.to_bytes().map_err(std::io::Error::other)?;
    let owner = Owner::of(data_directory)?;
    let mut file = UnnamedFile::create_in(data_directory, owner.mode)?;
    owner.give(file.file())?;
    file.file().write_all(&content)?;
    file.file().sync_all()?;
    file.persist_noclobber(&data_directory.join(ARCHIVE_FILE))?;
    File::open(data_directory)?.sync_all()
}

fn replace(data_directory: &Path, mark: &ArchiveMark) -> std::io::Result<()> {
    let content = mark.to_bytes().map_err(std::io::Error::other)?;
    let owner = Owner::of(data_directory)?;
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(owner.mode))
        .tempfile_in(data_directory)?;
    owner.give(file.as_file())?;
    file.write_all(&content)?;
    file.as_file().sync_all()?;
    file.persist(data_directory.join(ARCHIVE_FILE))
        .map_err(|error| error.error)?;
    File::open(data_directory)?.sync_all()
}

/// The owner and mode that the file must have: a server does not start with a file that it cannot read, and sends no
/// base backup of it.
struct Owner {
    user: u32,
    group: u32,
    mode: u32,
}

impl Owner {
    fn of(data_directory: &Path) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(data_directory)?;
        let group_reads = metadata.mode() & 0o050 == 0o050;
        Ok(Self {
            user: metadata.uid(),
            group: metadata.gid(),
            mode: if group_reads { 0o640 } else { 0o600 },
        })
    }

    fn give(&self, file: &File) -> std::io::Result<()> {
        if file.metadata()?.uid() == self.user {
            return Ok(());
        }
        std::os::unix::fs::fchown(file, Some(self.user), Some(self.group))
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::ErrorKind;
    use crate::pg::{ClusterIdentity, Major, SegmentSize};

    fn identity(seconds: i64) -> Identity {
        let cluster = ClusterIdentity {
            system_identifier: 1,
            postgres_major: Major::V18,
            segment_size: SegmentSize::DEFAULT,
        };
        Identity::new(cluster, true, DateTime::from_timestamp(seconds, 0).unwrap())
    }

    #[test]
    fn the_first_archive_is_remembered_with_postgresqls_own_permissions() {
        for (directory_mode, mode) in [(0o700, 0o600), (0o750, 0o640)] {
            let top = tempfile::tempdir().unwrap();
            let data = top.path();
            let permissions: std::fs::Permissions =
                std::os::unix::fs::PermissionsExt::from_mode(directory_mode);
            std::fs::set_permissions(data, permissions).unwrap();
            join(data, &identity(1), "file:///a").unwrap();
            join(data, &identity(1), "file:///moved").unwrap();
            for refused in [join(data, &identity(2), "u"), check(data, &identity(2), "u")] {
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
            }
            rejoin(data, &ArchiveMark::of("u".to_owned(), &identity(2))).unwrap();
            join(data, &identity(2), "u").unwrap();
            let names: Vec<_> = data
                .read_dir()
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(names, [ARCHIVE_FILE]);
            let file = data.join(ARCHIVE_FILE).metadata().unwrap();
            assert_eq!(file.mode() & 0o777, mode);
        }
    }

    #[test]
    fn of_two_that_join_different_archives_at_once_one_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|racer| scope.spawn(move || (racer % 2, join(data, &identity(racer % 2), "u"))))
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let winner = read(top.path()).unwrap().archive.unwrap();
        for (archive, outcome) in outcomes {
            assert_eq!(outcome.is_ok(), winner.names(&identity(archive)));
        }
    }
}
