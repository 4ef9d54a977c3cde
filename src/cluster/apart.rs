//! An archive and the clusters lie apart. A directory archive inside a data directory, its `pg_wal` or a tablespace
//! would be lost with what it protects, be part of every base backup, and be removed before a recovery begins anew.
//!
//! Directories are compared by device and inode, so that links and mounts hide nothing.

use std::io::ErrorKind as IoKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::store::Location;

/// Refuses where the archive lies within this data directory or one of its directories elsewhere, or one of them within
/// the archive.
///
/// # Errors
/// `Invalid`, naming both.
pub fn check(archive: &Location, data_directory: &Path) -> Result<()> {
    match archive {
        Location::Directory(_) => {}
        Location::S3 { .. } => return Ok(()),
    }
    let tablespaces = std::fs::read_dir(data_directory.join("pg_tblspc"));
    let tablespaces = tablespaces.into_iter().flatten().flatten();
    let places = [data_directory.to_owned(), data_directory.join("pg_wal")];
    let places: Vec<PathBuf> = places
        .into_iter()
        .chain(tablespaces.map(|entry| entry.path()))
        .collect();
    check_places(archive, places.iter().map(PathBuf::as_path))
}

/// As [`check`], for directories of a cluster that is yet to be made.
///
/// # Errors
/// `Invalid`, naming both.
pub fn check_places<'a>(archive: &Location, places: impl Iterator<Item = &'a Path>) -> Result<()> {
    let root = match archive {
        Location::Directory(root) => root,
        Location::S3 { .. } => return Ok(()),
    };
    for place in places {
        let (inner, outer) = if is_within(root, place) {
            (format!("the archive {}", root.display()), place)
        } else if is_within(place, root) {
            (place.display().to_string(), root.as_path())
        } else {
            continue;
        };
        return Err(Error::invalid(format!(
            "{inner} lies within {}: archive and cluster would be lost together, and each would treat the other's files as \
             its own. Put the archive elsewhere, best on another machine",
            outer.display()
        )));
    }
    Ok(())
}

/// Whether `inner`, which need not be there yet, is `outer` or lies in it.
fn is_within(inner: &Path, outer: &Path) -> bool {
    let what = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let Some(outer) = what(outer) else { return false };
    let inner = real(inner);
    inner.ancestors().any(|ancestor| what(ancestor) == Some(outer))
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        match ancestor.canonicalize() {
            Err(error) if error.kind() == IoKind::NotFound => {}
            found => return found.unwrap_or_else(|_| ancestor.to_owned()),
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn archive(path: &Path) -> Location {
        Location::Directory(path.to_owned())
    }

    #[test]
    fn neither_may_lie_in_the_other_whatever_links_lead_there() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        for directory in ["data/pg_tblspc", "wal", "space", "elsewhere", "archives/one"] {
            std::fs::create_dir_all(at(directory)).unwrap();
        }
        symlink(at("wal"), at("data/pg_wal")).unwrap();
        symlink(at("space"), at("data/pg_tblspc/16384")).unwrap();
        symlink(at("data"), at("elsewhere/link")).unwrap();
        let data = at("data");
        for bad in [
            "data",
            "data/archive",
            "data/base/new/archive",
            "data/pg_wal",
            "wal/archive",
            "space/archive",
            "elsewhere/link/archive",
            "",
        ] {
            let error = check(&archive(&at(bad)), &data).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Invalid, "{bad}");
        }
        for good in [
            "archives/one",
            "archives/new",
            "database",
            "data2/archive",
            "elsewhere",
        ] {
            check(&archive(&at(good)), &data).unwrap();
        }
        // Through a link, because the server works below it.
        check(&archive(&at("data/archive")), &at("elsewhere/link")).unwrap_err();
        let s3 = "s3://bucket/data".parse().unwrap();
        check(&s3, &data).unwrap();
    }

    #[test]
    fn a_cluster_is_not_made_inside_an_archive() {
        let top = tempfile::tempdir().unwrap();
        let inside = top.path().join("copies/new");
        let root = archive(top.path());
        assert!(check_places(&root, [inside.as_path()].into_iter()).is_err());
        let root = archive(&top.path().join("archive"));
        assert!(check_places(&root, [inside.as_path()].into_iter()).is_ok());
    }
}
