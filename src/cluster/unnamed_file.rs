//! A file that gets its name only when it is complete, so that a killed process leaves nothing behind.

use std::fs::{File, Permissions};
use std::io::Result;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tempfile::NamedTempFile;

/// The file, while it is written; dropping it removes it.
#[derive(Debug)]
pub enum UnnamedFile {
    /// Without a name (`O_TMPFILE`).
    Open(File),
    /// With a name that begins with `.walship-`, where the file system does not support that (NFS).
    Named(NamedTempFile),
}

impl UnnamedFile {
    /// A new file on the file system of this directory, with this mode whatever the umask.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn create_in(directory: &Path, mode: u32) -> Result<Self> {
        let permissions = Permissions::from_mode(mode);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(opened) = rustix::fs::open(directory, flags, Mode::from(mode)) {
            let file = File::from(opened);
            // Without /proc the file could never get a name.
            if handle(&file).exists() {
                file.set_permissions(permissions)?;
                return Ok(Self::Open(file));
            }
        }
        tempfile::Builder::new()
            .prefix(".walship-")
            .permissions(permissions)
            .tempfile_in(directory)
            .map(Self::Named)
    }

    /// The file, to be written and read.
    pub fn file(&mut self) -> &mut File {
        match self {
            Self::Open(file) => file,
            Self::Named(file) => file.as_file_mut(),
        }
    }

    /// Gives it its name, in the directory it was made in, unless there is a file of that name.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn persist_noclobber(self, path: &Path) -> Result<()> {
        match self {
            Self::Open(file) => {
                rustix::fs::linkat(CWD, handle(&file), CWD, path, AtFlags::SYMLINK_FOLLOW)?;
            }
            Self::Named(file) => drop(file.persist_noclobber(path).map_err(|error| error.error)?),
        }
        Ok(())
    }
}

fn handle(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn entries(directory: &Path) -> usize {
        directory.read_dir().unwrap().count()
    }

    fn named_in(directory: &Path) -> UnnamedFile {
        UnnamedFile::Named(tempfile::Builder::new().tempfile_in(directory).unwrap())
    }

    #[test]
    fn both_kinds_take_a_free_name_and_no_other() {
        let top = tempfile::tempdir().unwrap();
        let (path, directory) = (top.path().join("name"), top.path());
        for make in [
            |path: &Path| UnnamedFile::create_in(path, 0o640).unwrap(),
            named_in,
        ] {
            let mut file = make(directory);
            file.file().write_all(b"content").unwrap();
            file.persist_noclobber(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"content");
            let refused = make(directory).persist_noclobber(&path).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::AlreadyExists);
            assert_eq!(entries(directory), 1);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn it_cannot_be_seen_before_and_has_its_mode_after() {
        let top = tempfile::tempdir().unwrap();
        let file = UnnamedFile::create_in(top.path(), 0o666).unwrap();
        if matches!(file, UnnamedFile::Open(_)) {
            assert_eq!(entries(top.path()), 0);
        }
        file.persist_noclobber(&top.path().join("name")).unwrap();
        let mode = top.path().join("name").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        assert!(UnnamedFile::create_in(&top.path().join("missing"), 0o600).is_err());
    }
}
