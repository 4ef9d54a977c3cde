//! The path of a file within a data directory, as a manifest or a tar member names it. Both come
//! from outside, and what is built from them is written to disk.

use std::fmt;

use crate::error::{Error, Result};

/// A path that stays within the directory it is joined to: relative, without `..`, `.`, empty
/// components and NUL. Bytes, because PostgreSQL allows file names that are not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelativePath(Vec<u8>);

impl RelativePath {
    /// A path given by its bytes.
    ///
    /// # Errors
    /// `Corrupt` for a path that is absolute, could lead out of the directory, or is not in its only valid spelling.
    pub(crate) fn new(bytes: Vec<u8>) -> Result<Self> {
        let harmless = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
        if bytes.contains(&0) || !bytes.split(|byte| *byte == b'/').all(harmless) {
            return Err(Error::corrupt(format!(
                "\"{}\" is not the path of a file within a data directory; PostgreSQL did not write it, \
                 do not use the backup",
                bytes.escape_ascii()
            )));
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    /// The path, to be joined to a directory.
    fn as_path(path: &RelativePath) -> &Path {
        Path::new(OsStr::from_bytes(path.as_bytes()))
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_within_the_directory(bytes in "(/|\\.|\\.\\.|a|\0|é){0,8}") {
            if let Ok(path) = RelativePath::new(bytes.into_bytes()) {
                prop_assert!(as_path(&path).components().all(|part| matches!(part, Component::Normal(_))));
            }
        }
    }

    #[test]
    fn a_path_that_leads_out_is_refused() {
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "base/../../x",
            "base//1",
            "base/1/",
            ".",
            "./base",
            "a\0b",
        ] {
            assert!(RelativePath::new(path.into()).is_err(), "{path:?}");
        }
    }

    #[test]
    fn paths_of_a_data_directory_are_accepted() {
        for path in [
            "PG_VERSION",
            "base/1/1259",
            "base/5/INCREMENTAL.16384_fsm",
            "..a/b..",
            "\u{e9}",
        ] {
            assert_eq!(as_path(&RelativePath::new(path.into()).unwrap()), Path::new(path));
        }
        let latin1 = RelativePath::new(b"conf/\xe9t\xe9.conf".to_vec()).unwrap();
        assert_eq!(latin1.to_string(), "conf/\\xe9t\\xe9.conf");
    }
}
