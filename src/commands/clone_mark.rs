//! `walship.clone` in a data directory: this cluster was cloned from the archive of another, and must
//! never write there. A clone has its source's system identifier, so nothing else tells them apart.
//!
//! The archive is known by when it was created, whatever the URL that leads to it. Backups of the
//! clone carry the file, and so do its replicas.

use std::io::ErrorKind;
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
    /// The marks that the source had, as a clone itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<CloneMark>,
}

impl CloneMark {
    /// The mark of a clone of the archive with this URL and identity.
    #[must_use]
    pub fn of(source: String, identity: &Identity) -> Self {
        Self {
            source,
            created_at: identity.created_at,
            earlier: Vec::new(),
        }
    }

    /// The file of a data directory that may be a clone's already: what that must not write to, this must not either.
    ///
    /// # Errors
    /// `Internal` where the mark that is there cannot be read.
    pub fn content_for(&self, data_directory: &Path) -> Result<Vec<u8>> {
        let mut mark = self.clone();
        mark.earlier.extend(read(data_directory)?);
        let mut text = serde_json::to_vec(&mark).map_err(|error| Error::defect("write JSON", error))?;
        text.push(b'\n');
        Ok(text)
    }

    fn names(&self, archive: &Identity) -> bool {
        self.created_at == archive.created_at || self.earlier.iter().any(|mark| mark.names(archive))
    }
}

/// The mark in a data directory, if there is one.
fn read(data_directory: &Path) -> Result<Option<CloneMark>> {
    let path = data_directory.join(FILE);
    let shown = path.display();
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| Error::io(format!("read {shown}"), error))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::internal(format!(
            "{shown} says which archive this cluster was cloned from, and cannot be understood ({error}); restore \
             it, or remove it if this cluster may write to that archive"
        ))
    })
}

/// Whether a server on this data directory may write to the archive with this identity, at `url`.
///
/// # Errors
/// `Conflict` where it was cloned from that archive; `Internal` where the mark cannot be read, which
/// then might forbid it.
pub fn check(data_directory: &Path, identity: &Identity, url: &str) -> Result<()> {
    let shown = data_directory.join(FILE);
    let shown = shown.display();
    if !read(data_directory)?.is_some_and(|mark| mark.names(identity)) {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "this cluster is a clone, made from the archive {url} of another, which it must not write to: give it an \
         archive of its own. If it takes its source's place for good, remove {shown}"
    )))
}

#[cfg(test)]
mod tests {
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
    fn a_clone_is_kept_from_its_sources_archive_and_from_those_its_source_is_kept_from_and_from_no_other() {
        let top = tempfile::tempdir().unwrap();
        let at = |seconds| identity(DateTime::from_timestamp(seconds, 0).unwrap());
        let (source, other) = (identity(Utc::now()), at(0));
        assert!(check(top.path(), &source, "u").is_ok());
        let write = |mark: CloneMark| {
            let content = mark.content_for(top.path()).unwrap();
            std::fs::write(top.path().join(FILE), content).unwrap();
        };
        write(CloneMark::of("s3://a/b".to_owned(), &source));
        let error = check(top.path(), &source, "s3://another/way").unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Conflict);
        assert!(check(top.path(), &other, "u").is_ok());
        // A clone of that clone, and one of that.
        let (own, third) = (at(1), at(2));
        write(CloneMark::of("s3://c/d".to_owned(), &own));
        write(CloneMark::of("s3://e/f".to_owned(), &third));
        for archive in [&source, &own, &third] {
            assert!(check(top.path(), archive, "u").is_err(), "{archive:?}");
        }
        assert!(check(top.path(), &other, "u").is_ok());
        // What cannot be understood might forbid it.
        std::fs::write(top.path().join(FILE), "{").unwrap();
        assert!(check(top.path(), &other, "u").is_err());
    }
}
