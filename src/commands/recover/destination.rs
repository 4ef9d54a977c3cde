//! The directories a backup is restored into: looked at before anything is written, made, and
//! removed again if the recovery fails.
//!
//! Nothing is ever written into a directory that is not empty. While a recovery runs, the data
//! directory holds [`SET_ASIDE_CONTROL`] and no `global/pg_control`, so that PostgreSQL refuses to
//! start on what a killed recovery left behind, and the next recovery can name it.

use std::fs::{DirBuilder, File, Permissions};
use std::io::ErrorKind::{AlreadyExists, NotADirectory, NotFound, PermissionDenied};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::layout::{Layout, Root, check_apart};
use crate::error::{Error, Result};

/// PostgreSQL's `pg_control`, without which no server starts.
pub const CONTROL: &str = "global/pg_control";
/// Where it waits until everything else is durable. Made first, as an empty file.
pub const SET_ASIDE_CONTROL: &str = "global/pg_control.walship";

/// Whether a cluster's group may read it; PostgreSQL knows these two kinds of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// 0700 and 0600.
    Owner,
    /// 0750 and 0640 (`initdb --allow-group-access`).
    Group,
}

impl Access {
    /// The mode of directories.
    #[must_use]
    pub fn directory_mode(self) -> u32 {
        match self {
            Self::Owner => 0o700,
            Self::Group => 0o750,
        }
    }

    /// The mode of files.
    #[must_use]
    pub fn file_mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o640,
        }
    }
}

/// The directories of a recovery, while it may still fail.
#[derive(Debug, Default)]
pub struct Destination {
    directories: Vec<Made>,
    /// Files made elsewhere.
    files: Vec<PathBuf>,
}

/// A directory as it was found.
#[derive(Debug)]
struct Made {
    directory: PathBuf,
    /// Its mode, if it existed.
    mode_before: Option<u32>,
}

/// Looks whether every directory is missing, or empty and our own. Changes nothing.
///
/// # Errors
/// `Conflict` for a directory that holds something, `Invalid` for one that cannot be used.
pub fn check(layout: &Layout) -> Result<()> {
    if holds(&layout.data.join(SET_ASIDE_CONTROL)) && !holds(&layout.data.join(CONTROL)) {
        return Err(interrupted(layout));
    }
    for root in layout.outside() {
        check_root(root)?;
    }
    let resolved = layout
        .outside()
        .map(|root| resolve(&root.directory))
        .collect::<Result<Vec<_>>>()?;
    check_apart(resolved.iter().map(PathBuf::as_path))
}

fn holds(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Says what a killed recovery left behind, and how to go on.
fn interrupted(layout: &Layout) -> Error {
    let mut message = format!(
        "{} holds what an interrupted walship recover left behind; PostgreSQL does not start on it. Remove \
         it and run the recovery again: rm -rf",
        layout.data.display()
    );
    for root in layout.outside() {
        message.push(' ');
        message.push_str(&shell_word(&root.directory.to_string_lossy()));
    }
    Error::conflict(message)
}

fn check_root(root: &Root) -> Result<()> {
    let directory = &root.directory;
    let shown = directory.display();
    let entries = match directory.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == NotFound => return check_parent(directory),
        Err(error) if error.kind() == NotADirectory => {
            return Err(Error::conflict(format!(
                "{shown} is there and is not a directory"
            )));
        }
        Err(error) => return Err(Error::io(format!("read the directory {shown}"), error)),
    };
    if let Some(entry) = entries.into_iter().next() {
        let entry = entry.map_err(|error| Error::io(format!("read the directory {shown}"), error))?;
        return Err(not_empty(root, &entry.file_name().to_string_lossy()));
    }
    let owner = directory
        .metadata()
        .map_err(|error| Error::io(format!("look at {shown}"), error))?
        .uid();
    let user = rustix::process::geteuid().as_raw();
    if owner != user {
        return Err(Error::invalid(format!(
            "{shown} belongs to the user with id {owner} and walship runs as {user}; run it as the user who \
             owns the cluster, or chown the directory"
        )));
    }
    Ok(())
}

fn check_parent(directory: &Path) -> Result<()> {
    let parent = directory.parent().unwrap_or(directory);
    if parent.is_dir() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{} cannot be made, for {} does not exist or is not a directory; make it first (mkdir -p)",
        directory.display(),
        parent.display()
    )))
}

fn not_empty(root: &Root, entry: &str) -> Error {
    let shown = root.directory.display();
    Error::conflict(match &root.tablespace {
        Some(tablespace) => format!(
            "the tablespace's directory {shown} is not empty (it holds {entry:?}), and nothing is restored into \
             a directory that is not; put the tablespace elsewhere with --tablespace-mapping {}=NEW, or remove \
             what is there if no server needs it",
            tablespace.old.display()
        ),
        None if entry == "lost+found" => format!(
            "{shown} is the top of a file system (it holds \"lost+found\"), and nothing is restored into a \
             directory that is not empty; choose a directory below it"
        ),
        None => format!(
            "the data directory {shown} is not empty (it holds {entry:?}), and nothing is restored into a \
             directory that is not; choose another one, or move what is there away"
        ),
    })
}

/// The path with symbolic links resolved, as far as it exists.
fn resolve(path: &Path) -> Result<PathBuf> {
    let existing = nearest_existing(path);
    let resolved = existing
        .canonicalize()
        .map_err(|error| Error::io(format!("resolve {}", existing.display()), error))?;
    Ok(match path.strip_prefix(existing) {
        Ok(rest) if !rest.as_os_str().is_empty() => resolved.join(rest),
        _ => resolved,
    })
}

/// The path itself if it exists, else the nearest directory above it that does.
pub(super) fn nearest_existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
}

impl Destination {
    /// Makes the directories, the data directory first, with the cluster's permissions.
    ///
    /// # Errors
    /// As [`check`], which is made once more, and as the operating system says; what was made is
    /// removed again.
    pub fn create(layout: &Layout, access: Access) -> Result<Self> {
        check(layout)?;
        let mut destination = Self::default();
        match destination.make(layout, access) {
            Ok(()) => Ok(destination),
            Err(error) => Err(destination.undo(error)),
        }
    }

    fn make(&mut self, layout: &Layout, access: Access) -> Result<()> {
        self.make_directory(&layout.data, access)?;
        // The mark comes before anything else is made anywhere.
        let mark = layout.data.join(SET_ASIDE_CONTROL);
        make_directory_inside(&layout.data.join("global"), access)?;
        File::options()
            .write(true)
            .create_new(true)
            .mode(access.file_mode())
            .open(&mark)
            .map_err(|error| Error::io(format!("create {}", mark.display()), error))?;
        for (_, directory) in layout.tablespaces() {
            self.make_directory(directory, access)?;
        }
        Ok(())
    }

    fn make_directory(&mut self, directory: &Path, access: Access) -> Result<()> {
        let shown = directory.display();
        let mode_before = match DirBuilder::new().mode(access.directory_mode()).create(directory) {
            Ok(()) => None,
            Err(error) if error.kind() == AlreadyExists => {
                let found = directory
                    .metadata()
                    .map_err(|error| Error::io(format!("look at {shown}"), error))?;
                Some(found.mode() & 0o7777)
            }
            Err(error) if error.kind() == PermissionDenied => {
                return Err(Error::internal(format!(
                    "make the directory {shown}: permission denied; make it as root and give it to the user \
                     who runs walship: install -d -m 700 -o {} {}",
                    rustix::process::geteuid().as_raw(),
                    shell_word(&directory.to_string_lossy())
                )));
            }
            Err(error) => return Err(Error::io(format!("make the directory {shown}"), error)),
        };
        self.directories.push(Made {
            directory: directory.to_owned(),
            mode_before,
        });
        // The umask had its say above, and PostgreSQL refuses other modes.
        set_mode(directory, access.directory_mode())
    }

    /// Counts a file outside the directories among what a failure removes.
    pub fn add_file(&mut self, path: PathBuf) {
        self.files.push(path);
    }

    /// Removes everything this recovery made, and says so in the error that ended it.
    #[must_use]
    pub fn undo(self, reason: Error) -> Error {
        let mut left = Vec::new();
        for file in &self.files {
            if std::fs::remove_file(file).is_err_and(|error| error.kind() != NotFound) {
                left.push(file.display().to_string());
            }
        }
        for made in self.directories.iter().rev() {
            let removed = match made.mode_before {
                None => std::fs::remove_dir_all(&made.directory),
                Some(mode) => empty(&made.directory)
                    .and_then(|()| std::fs::set_permissions(&made.directory, Permissions::from_mode(mode))),
            };
            if removed.is_err() {
                left.push(made.directory.display().to_string());
            }
        }
        if left.is_empty() {
            return reason;
        }
        let kind = reason.kind();
        Error::new(
            kind,
            format!(
                "{reason} (and what was restored so far could not be removed: {})",
                left.join(", ")
            ),
        )
    }
}

fn empty(directory: &Path) -> std::io::Result<()> {
    for entry in directory.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn make_directory_inside(directory: &Path, access: Access) -> Result<()> {
    DirBuilder::new()
        .mode(access.directory_mode())
        .create(directory)
        .map_err(|error| Error::io(format!("make the directory {}", directory.display()), error))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| Error::io(format!("set the permissions of {}", path.display()), error))
}

/// A word as a shell reads it back.
#[must_use]
pub fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@%,".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::ErrorKind;

    fn layout(pgdata: &Path, tablespace: Option<&Path>) -> Layout {
        let locations: Vec<&str> = tablespace.iter().map(|path| path.to_str().unwrap()).collect();
        Layout::new(pgdata, &fixture::record(&locations), &[]).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    fn failure() -> Error {
        Error::corrupt("the reason")
    }

    #[test]
    fn a_directory_that_is_not_empty_is_left_alone_and_the_way_out_is_named() {
        let top = tempfile::tempdir().unwrap();
        let (data, space) = (top.path().join("data"), top.path().join("space"));
        std::fs::create_dir(&data).unwrap();
        std::fs::create_dir(&space).unwrap();
        std::fs::write(space.join("file"), "x").unwrap();
        let error = check(&layout(&data, Some(&space))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let mapping = format!("--tablespace-mapping {}=NEW", space.display());
        assert!(error.to_string().contains(&mapping), "{error}");
        std::fs::write(data.join("file"), "x").unwrap();
        assert_eq!(
            check(&layout(&data, None)).unwrap_err().kind(),
            ErrorKind::Conflict
        );
        assert_eq!(
            check(&layout(&data.join("file"), None)).unwrap_err().kind(),
            ErrorKind::Conflict
        );
    }

    #[test]
    fn a_missing_parent_is_named() {
        let top = tempfile::tempdir().unwrap();
        let error = check(&layout(&top.path().join("a/b"), None)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("mkdir -p"), "{error}");
    }

    #[test]
    fn directories_that_a_link_makes_one_are_refused() {
        let top = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(top.path(), top.path().join("link")).unwrap();
        let (data, space) = (top.path().join("data"), top.path().join("link/data/space"));
        assert_eq!(
            check(&layout(&data, Some(&space))).unwrap_err().kind(),
            ErrorKind::Invalid
        );
    }

    #[test]
    fn a_failure_leaves_everything_as_it_was() {
        let top = tempfile::tempdir().unwrap();
        let (data, space) = (top.path().join("data"), top.path().join("space"));
        std::fs::create_dir(&space).unwrap();
        set_mode(&space, 0o711).unwrap();
        let layout = layout(&data, Some(&space));
        check(&layout).unwrap();
        let mut destination = Destination::create(&layout, Access::Group).unwrap();
        assert_eq!((mode(&data), mode(&space)), (0o750, 0o750));
        std::fs::create_dir(space.join("PG_17")).unwrap();
        std::fs::write(space.join("PG_17/1"), "x").unwrap();
        let elsewhere = top.path().join("postgresql.conf");
        std::fs::write(&elsewhere, "x").unwrap();
        destination.add_file(elsewhere.clone());

        let error = destination.undo(failure());
        assert_eq!(error.to_string(), "the reason");
        assert!(!data.exists() && !elsewhere.exists());
        assert_eq!((space.read_dir().unwrap().count(), mode(&space)), (0, 0o711));
    }

    #[test]
    fn what_a_killed_recovery_left_behind_is_recognised() {
        let top = tempfile::tempdir().unwrap();
        let (data, space) = (top.path().join("data"), top.path().join("a space"));
        let layout = layout(&data, Some(&space));
        let _killed = Destination::create(&layout, Access::Owner).unwrap();
        assert_eq!((mode(&data), mode(&space)), (0o700, 0o700));
        let error = check(&layout).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let command = format!("rm -rf '{}' {}", space.display(), data.display());
        assert!(error.to_string().ends_with(&command), "{error}");
    }

    #[test]
    fn a_recovered_cluster_is_not_taken_for_an_interrupted_recovery() {
        let top = tempfile::tempdir().unwrap();
        let layout = layout(&top.path().join("data"), None);
        let _done = Destination::create(&layout, Access::Owner).unwrap();
        std::fs::write(layout.data.join(CONTROL), "x").unwrap();
        assert!(!check(&layout).unwrap_err().to_string().contains("interrupted"));
    }

    #[test]
    fn a_word_survives_the_shell() {
        for (text, word) in [
            ("/a/b-1.c", "/a/b-1.c"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$x", "'$x'"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }
}
