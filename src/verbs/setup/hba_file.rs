//! Editing `pg_hba.conf`: by one rename. The old file is kept beside it, and put back if the server does not understand
//! the new one.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use crate::error::{Error, Result};
use crate::pg::hba::with_lines_first;

/// A file that was changed.
#[derive(Debug)]
pub(super) struct Edited {
    path: PathBuf,
    /// The old file.
    pub(super) kept: PathBuf,
}

/// Puts lines before all others.
///
/// # Errors
/// `Internal` where the file is not this user's, or cannot be read or written. Nothing is changed then.
pub(super) fn edit(path: &Path, lines: &[String], now: DateTime<Utc>) -> Result<Edited> {
    let doing = || format!("change {}", path.display());
    let io = |error| Error::io(doing(), error);
    // If it is a link, the file that it points to is changed.
    let path = path.canonicalize().map_err(io)?;
    let before = std::fs::read_to_string(&path).map_err(io)?;
    let metadata = path.metadata().map_err(io)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::denied(format!(
            "{}: it belongs to the user with id {}; run this as that user, or add the lines by hand",
            doing(),
            metadata.uid()
        )));
    }
    let kept = path.with_file_name(format!(
        "{}.before-walship-{}",
        path.file_name().unwrap_or_default().to_string_lossy(),
        now.format("%Y%m%dT%H%M%SZ")
    ));
    replace(&kept, &before, metadata.permissions().mode())?;
    let after = with_lines_first(&before, lines);
    replace(&path, &after, metadata.permissions().mode())?;
    Ok(Edited { path, kept })
}

impl Edited {
    /// Puts the old file back.
    ///
    /// # Errors
    /// `Internal` where that cannot be done.
    pub(super) fn undo(&self) -> Result<()> {
        std::fs::rename(&self.kept, &self.path)
            .map_err(|error| Error::io(format!("put {} back", self.kept.display()), error))
    }
}

/// Writes a file under a temporary name, and gives it its own name once it is durable.
///
/// # Errors
/// `Internal`, naming the file.
pub(super) fn replace(path: &Path, content: &str, mode: u32) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".walship-")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(directory)?;
        file.write_all(content.as_bytes())?;
        file.as_file()
            .set_permissions(Permissions::from_mode(mode & 0o7777))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| Error::io(format!("write {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_keeps_its_mode_and_the_old_one_stays_and_can_come_back() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("pg_hba.conf");
        let link = top.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        std::fs::write(&path, "# top\nlocal all all peer\n").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let edited = edit(&link, &["new".to_owned()], DateTime::UNIX_EPOCH).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "# top\nnew\nlocal all all peer\n"
        );
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(link.symlink_metadata().unwrap().is_symlink());
        let kept = top.path().join("pg_hba.conf.before-walship-19700101T000000Z");
        assert_eq!(edited.kept, kept.canonicalize().unwrap());
        edited.undo().unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "# top\nlocal all all peer\n"
        );
        assert_eq!(top.path().read_dir().unwrap().count(), 2);
    }
}
