//! `walship.clone` in a data directory: this cluster was cloned from the archive of another, and must
//! never write there. A clone has its source's system identifier, so nothing else tells them apart.
//!
//! The archive is known by when it was created, whatever the URL that leads to it. Backups of the
//! clone carry the file, and so do its replicas.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::archive::identity::Identity;
use crate::error::{Error, Result};

/// Its name.
pub const FILE: &str = "walship.clone";

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneMark {
    /// The URL of the source's archive, for people.
    pub source: String,
    /// `created_at` of its `walship.json`.
    pub created_at: DateTime<Utc>,
}

/// Writes the mark, durably, with the permissions of the data directory's other files.
///
/// # Errors
/// `Internal` where it cannot be written.
pub fn write(data_directory: &Path, mark: &CloneMark) -> Result<()> {
    let path = data_directory.join(FILE);
    let failed = |error| Error::io(format!("write {}", path.display()), error);
    let group = data_directory.metadata().map_err(failed)?.mode() & 0o040;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600 | group)
        .open(&path)
        .map_err(failed)?;
    let mut text = serde_json::to_vec(mark).map_err(|error| Error::defect("write JSON", error))?;
    text.push(b'\n');
    file.write_all(&text)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(data_directory)?.sync_all())
        .map_err(failed)
}

/// Whether a server on this data directory may write to the archive with this identity, at `url`.
///
/// # Errors
/// `Conflict` where it was cloned from that archive; `Internal` where the mark cannot be read, which
/// then might forbid it.
pub fn check(data_directory: &Path, identity: &Identity, url: &str) -> Result<()> {
    let path = data_directory.join(FILE);
    let shown = path.display();
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| Error::io(format!("read {shown}"), error))?,
    };
    let mark: CloneMark = serde_json::from_slice(&text).map_err(|error| {
        Error::internal(format!(
            "{shown} says which archive this cluster was cloned from, and cannot be understood ({error}); \
             restore it, or remove it if this cluster may write to {url}"
        ))
    })?;
    if mark.created_at != identity.created_at {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "this cluster is a clone, made from the archive {url} of another, which it must not write to: give it an \
         archive of its own. If it takes its source's place for good, remove {shown}"
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::archive::identity::ClusterIdentity;
    use crate::pg::SegmentSize;

    fn identity(created_at: DateTime<Utc>) -> Identity {
        let cluster = ClusterIdentity {
            system_identifier: 1,
            postgres_major: 18,
            segment_size: SegmentSize::DEFAULT,
        };
        Identity::new(cluster, true, created_at)
    }

    #[test]
    fn a_clone_is_kept_from_its_sources_archive_alone() {
        let top = tempfile::tempdir().unwrap();
        let (source, other) = (identity(Utc::now()), identity(DateTime::UNIX_EPOCH));
        assert!(check(top.path(), &source, "u").is_ok());
        let mark = CloneMark {
            source: "s3://a/b".to_owned(),
            created_at: source.created_at,
        };
        write(top.path(), &mark).unwrap();
        let error = check(top.path(), &source, "s3://another/way").unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Conflict);
        assert!(check(top.path(), &other, "u").is_ok());
        // What cannot be understood might forbid it.
        std::fs::write(top.path().join(FILE), "{").unwrap();
        assert!(check(top.path(), &other, "u").is_err());
    }

    #[test]
    fn the_mark_has_the_permissions_of_the_data_directory() {
        for (directory, file) in [(0o700, 0o600), (0o750, 0o640)] {
            let top = tempfile::tempdir().unwrap();
            std::fs::set_permissions(top.path(), PermissionsExt::from_mode(directory)).unwrap();
            let mark = CloneMark {
                source: String::new(),
                created_at: Utc::now(),
            };
            write(top.path(), &mark).unwrap();
            let mode = top.path().join(FILE).metadata().unwrap().mode();
            assert_eq!(mode & 0o777, file);
        }
    }
}
