//! The directories a backup is restored into, looked at before anything is written.
//!
//! Nothing is ever written into a directory that is not empty. While a recovery runs, the data
//! directory holds [`SET_ASIDE_CONTROL`] and no `global/pg_control`, so that PostgreSQL refuses to
//! start on what a killed recovery left behind, and the next recovery can name it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind::{NotADirectory, NotFound};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Pid;

use super::layout::{Layout, Root, check_apart};
use super::shell::shell_word;
use crate::error::{Error, Result};
use crate::server::data_directory::postmaster_pid;

/// PostgreSQL's `pg_control`, without which no server starts.
pub const CONTROL: &str = "global/pg_control";
/// Where `pg_control` waits until everything else is durable. Made first, as an empty file.
pub const SET_ASIDE_CONTROL: &str = "global/pg_control.walship";
/// The directory that is made first in the data directory, and locked while the recovery runs. It holds
/// [`SET_ASIDE_CONTROL`] until everything is restored, and `pg_control` from then on.
pub const DATA_CLAIM: &str = "global";
/// The file in a tablespace's directory until everything is restored; it holds the data directory's path.
pub const CLAIM: &str = "walship-recover";
/// The file in the data directory until then; it holds the tablespaces' directories, each ended by a NUL.
pub const CLAIMS: &str = "global/walship-recover";

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

/// Checks that every directory is missing, or empty and our own. Changes nothing.
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
    for directory in &resolved {
        refuse_inside_a_cluster(directory)?;
    }
    check_apart(resolved.iter().map(PathBuf::as_path))
}

fn holds(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// What has become of the recovery that claimed a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claimant {
    Runs,
    Ended,
    /// The file system has no locks.
    Unknown,
}

impl Claimant {
    fn of(data: &Path) -> Self {
        let Ok(directory) = File::open(data.join(DATA_CLAIM)) else {
            return Self::Unknown;
        };
        match flock(directory, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Self::Ended,
            Err(Errno::WOULDBLOCK) => Self::Runs,
            Err(_) => Self::Unknown,
        }
    }
}

/// Says what a killed recovery left behind, and how to go on. Names only directories that hold its own claims.
fn interrupted(layout: &Layout) -> Error {
    let data = &layout.data;
    let left = match Claimant::of(data) {
        Claimant::Runs => {
            return Error::conflict(format!(
                "another walship recover is restoring into {}; wait for it, or choose another directory",
                data.display()
            ));
        }
        Claimant::Ended => {
            "what an interrupted walship recover left behind; PostgreSQL does not start on it. Remove it"
        }
        Claimant::Unknown => {
            "what a walship recover made, which still runs or was interrupted. If none runs, remove it"
        }
    };
    let claims = std::fs::read(data.join(CLAIMS)).unwrap_or_default();
    let tablespaces = claims
        .split(|byte| *byte == 0)
        .filter(|path| !path.is_empty())
        .map(|path| Path::new(OsStr::from_bytes(path)))
        .filter(|directory| claimed_by(directory).is_some_and(|claimant| claimant == *data));
    let mut message = format!(
        "{} holds {left} and run the recovery again: rm -rf",
        data.display()
    );
    for directory in tablespaces.chain([data.as_path()]) {
        message.push(' ');
        message.push_str(&shell_word(&directory.to_string_lossy()));
    }
    Error::conflict(message)
}

/// The data directory of the recovery that a tablespace's directory is claimed by.
fn claimed_by(directory: &Path) -> Option<PathBuf> {
    let claim = std::fs::read(directory.join(CLAIM)).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(&claim)))
}

/// A directory inside another cluster's would be removed with that cluster's, and be in its backups.
fn refuse_inside_a_cluster(directory: &Path) -> Result<()> {
    for above in directory.ancestors().skip(1) {
        let what = if holds(&above.join("PG_VERSION")) {
            "a data directory, or part of one"
        } else if is_tablespace(above) {
            "a tablespace"
        } else {
            continue;
        };
        return Err(Error::conflict(format!(
            "{} lies in {}, which is {what}: it would be in the backups of that cluster, and be removed with it. Choose another place",
            directory.display(),
            above.display()
        )));
    }
    Ok(())
}

/// Whether a server has made its own directory there, such as `PG_17_202406281`.
fn is_tablespace(directory: &Path) -> bool {
    let is_own = |name: &str| {
        let mut parts = name.strip_prefix("PG_").unwrap_or_default().split('_');
        let is_number = |part: Option<&str>| {
            part.is_some_and(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
        };
        is_number(parts.next()) && is_number(parts.next()) && parts.next().is_none()
    };
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name());
    names.any(|name| name.to_str().is_some_and(is_own))
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
    if root.tablespace.is_some()
        && let Some(data) = claimed_by(directory)
    {
        let remove = shell_word(&directory.to_string_lossy());
        let claimant = if data.as_os_str().is_empty() {
            Claimant::Unknown
        } else {
            Claimant::of(&data)
        };
        let data = data.display();
        return Err(Error::conflict(match claimant {
            Claimant::Runs => format!(
                "the tablespace's directory {shown} belongs to a walship recover into {data}, which still runs; wait for it, or \
                 choose another directory with --tablespace-mapping"
            ),
            Claimant::Ended => format!(
                "the tablespace's directory {shown} belongs to a walship recover into {data} that was interrupted. Remove it \
                 and run the recovery again: rm -rf {remove}"
            ),
            Claimant::Unknown => format!(
                "the tablespace's directory {shown} belongs to a walship recover into another data directory, which still runs \
                 or was interrupted. If none runs, remove it and run the recovery again: rm -rf {remove}"
            ),
        }));
    }
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
        "{} cannot be made, because {} does not exist or is not a directory; make it first (mkdir -p)",
        directory.display(),
        parent.display()
    )))
}

fn not_empty(root: &Root, entry: &str) -> Error {
    let shown = root.directory.display();
    Error::conflict(match &root.tablespace {
        Some(tablespace) => format!(
            "the tablespace's directory {shown} is not empty (it holds {entry:?}), and walship restores only into \
             an empty one; put the tablespace elsewhere with --tablespace-mapping {}=NEW, or remove \
             its files if no server needs them",
            tablespace.old.display()
        ),
        None if let Some(process) = running_server(&root.directory) => format!(
            "a PostgreSQL server runs on the data directory {shown} (process {process}); choose another directory to \
             recover beside it, or stop it and move the directory away to replace it"
        ),
        None if entry == "lost+found" => format!(
            "{shown} is the top of a file system (it holds \"lost+found\"), and walship restores only into an \
             empty directory; choose a directory below it"
        ),
        None => format!(
            "the data directory {shown} is not empty (it holds {entry:?}), and walship restores only into an \
             empty one; choose another directory, or move the files away"
        ),
    })
}

/// The server whose `postmaster.pid` is there, if that process lives.
fn running_server(data_directory: &Path) -> Option<i32> {
    // A server in single-user mode writes its number with a minus (`CreateLockFile`, `miscinit.c`).
    let process = postmaster_pid(data_directory)?.checked_abs()?;
    match rustix::process::test_kill_process(Pid::from_raw(process)?) {
        Err(rustix::io::Errno::SRCH) => None,
        // EPERM: the process lives and is another user's.
        Ok(()) | Err(_) => Some(process),
    }
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
pub(crate) fn nearest_existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::archive::fixture;

    fn layout(pgdata: &Path, tablespace: Option<&Path>) -> Layout {
        let locations: Vec<&str> = tablespace.iter().map(|path| path.to_str().unwrap()).collect();
        Layout::new(pgdata, &fixture::record(&locations), &[]).unwrap()
    }

    // Seen to fail: `cluster/destination.rs`: the directory's entries are not looked at
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

    // Seen to fail: `cluster/destination.rs`: a running server is not looked for
    #[test]
    fn a_server_that_runs_on_the_directory_is_named() {
        let top = tempfile::tempdir().unwrap();
        let says = |pid: i64| {
            std::fs::write(top.path().join("postmaster.pid"), format!("{pid}\n/data\n")).unwrap();
            check(&layout(top.path(), None)).unwrap_err().to_string()
        };
        let own = std::process::id();
        for line in [i64::from(own), -i64::from(own)] {
            assert!(says(line).contains(&format!("process {own}")), "{}", says(line));
        }
        // Left behind by a crash: no process has a number beyond the kernel's limit.
        assert!(says(1 << 30).contains("not empty"), "{}", says(1 << 30));
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
}
