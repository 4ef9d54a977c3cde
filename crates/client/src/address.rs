//! Where an agent listens: a socket whose name follows from whom it serves.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use walship_core::text::hex;
use walship_core::{Error, Result};

/// Made by systemd for the unit in `deploy/systemd/` (`RuntimeDirectory=walship`).
const SYSTEM_DIRECTORY: &str = "/run/walship";

/// Where the agent of a data directory and an archive listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The socket.
    pub socket: PathBuf,
    /// Which agent it is: a hash of version, data directory, archive and the settings that lead to it.
    pub name: String,
    /// The data directory, and the archive's directory if it is in one.
    directories: Vec<PathBuf>,
}

/// The archive that an agent serves.
#[derive(Debug, Clone, Copy)]
pub struct Archive<'a> {
    /// Its URL.
    pub url: &'a str,
    /// The settings that also decide where the URL leads, in any form; empty where none does.
    pub route: &'a str,
    /// Its directory, if it is in one.
    pub directory: Option<&'a Path>,
}

impl Address {
    /// The address for this data directory and archive: `socket` if it is set; else a name in `/run/walship` if that
    /// belongs to this user; else a name in `/tmp/walship-<uid>`.
    ///
    /// # Errors
    /// `Internal` where the data directory cannot be found.
    pub fn new(archive: &Archive<'_>, data_directory: &Path, socket: Option<&Path>) -> Result<Self> {
        let data_directory = std::fs::canonicalize(data_directory)
            .map_err(|error| Error::io(format!("find {}", data_directory.display()), error))?;
        let mut hash = Sha256::new();
        for part in [
            env!("CARGO_PKG_VERSION"),
            &data_directory.to_string_lossy(),
            archive.url,
            archive.route,
        ] {
            hash.update(part);
            hash.update([0]);
        }
        let name = hex(&hash.finalize());
        let socket = socket.map_or_else(
            || runtime_directory().join(format!("agent-{}.sock", name.get(..16).unwrap_or_default())),
            Path::to_owned,
        );
        let mut directories = vec![data_directory];
        directories.extend(archive.directory.map(Path::to_owned));
        Ok(Self {
            socket,
            name,
            directories,
        })
    }

    /// What client and agent must agree on: the name, and the directories that the paths lead to, which may differ
    /// between two containers. `None` while one of the directories is missing.
    #[must_use]
    pub fn fingerprint(&self) -> Option<String> {
        let mut parts = vec![self.name.clone()];
        for directory in &self.directories {
            let found = std::fs::metadata(directory).ok()?;
            parts.push(format!("{:x}.{:x}", found.dev(), found.ino()));
        }
        Some(parts.join("-"))
    }
}

fn runtime_directory() -> PathBuf {
    let system = Path::new(SYSTEM_DIRECTORY);
    if is_ours(system) {
        return system.to_owned();
    }
    PathBuf::from(format!("/tmp/walship-{}", rustix::process::geteuid().as_raw()))
}

/// Makes the directory of a socket if it is missing. No other user may write there.
///
/// # Errors
/// `Denied` where another user can; `Internal` where it cannot be made.
pub fn make_folder(socket: &Path) -> Result<()> {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io(format!("create {}", folder.display()), error)),
    }
    if is_ours(folder) {
        return Ok(());
    }
    Err(Error::denied(format!(
        "{} is not a directory that only this user can write; remove it, or set agent.socket to a path in a \
         directory that is",
        folder.display()
    )))
}

/// Whether a directory is this user's, and no other user can make files in it.
#[must_use]
pub fn is_ours(directory: &Path) -> bool {
    std::fs::symlink_metadata(directory).is_ok_and(|metadata| {
        metadata.is_dir()
            && metadata.uid() == rustix::process::geteuid().as_raw()
            && metadata.mode() & 0o022 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(archive: &str, directory: &Path) -> Address {
        let archive = Archive {
            url: archive,
            route: "",
            directory: archive.strip_prefix("file://").map(Path::new),
        };
        Address::new(&archive, directory, None).unwrap()
    }

    #[test]
    fn each_archive_and_each_data_directory_has_an_agent_of_its_own() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = address("file:///a", one.path());
        assert_eq!(first, address("file:///a", one.path()));
        assert_ne!(first, address("file:///b", one.path()));
        assert_ne!(first, address("file:///a", other.path()));
        assert!(
            first.socket.to_string_lossy().len() < 100,
            "the kernel's limit is 107 bytes"
        );
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_another_archive() {
        let (data, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let archive = root.path().join("archive");
        let address = address(&format!("file://{}", archive.display()), data.path());
        assert_eq!(address.fingerprint(), None);
        std::fs::create_dir(&archive).unwrap();
        let first = address.fingerprint().unwrap();
        assert_eq!(address.fingerprint().unwrap(), first);
        std::fs::rename(&archive, root.path().join("other")).unwrap();
        std::fs::create_dir(&archive).unwrap();
        assert_ne!(address.fingerprint().unwrap(), first);
    }

    #[test]
    fn a_link_to_a_data_directory_leads_to_the_same_agent() {
        let root = tempfile::tempdir().unwrap();
        let (data, link) = (root.path().join("data"), root.path().join("link"));
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, &link).unwrap();
        assert_eq!(address("file:///a", &data), address("file:///a", &link));
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        assert!(is_ours(root.path()));
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!is_ours(root.path()));
        assert!(!is_ours(&root.path().join("missing")));
    }
}
