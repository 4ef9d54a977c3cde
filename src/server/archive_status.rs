//! The files that wait for PostgreSQL's archiver, in the order in which it asks for them.
//!
//! After an outage they may be hundreds of thousands, and the directory is in no order. So nobody reads it to its end for
//! each file, and no more names are kept than are asked for.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::pg::WalName;

/// A file's place in the archiver's order: timeline histories first, then by name
/// (`ready_file_comparator`, `src/backend/postmaster/pgarch.c`, PostgreSQL 15 to 18; 14 chooses alike).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ArchiverOrder(bool, String);

impl From<WalName> for ArchiverOrder {
    fn from(name: WalName) -> Self {
        Self(!matches!(name, WalName::History(_)), name.to_string())
    }
}

/// The first files with a `.ready` in `pg_wal/archive_status` in the archiver's order, `at_most` of them. Reads the whole
/// directory.
///
/// # Errors
/// `Internal` where the directory cannot be read.
pub(crate) fn waiting(data_directory: &Path, at_most: usize) -> Result<Vec<WalName>> {
    let mut first = BTreeMap::new();
    for name in ready(data_directory)? {
        let name = name?;
        first.insert(ArchiverOrder::from(name), name);
        if first.len() > at_most {
            first.pop_last();
        }
    }
    Ok(first.into_values().collect())
}

/// The files with a `.ready`, in the directory's order.
fn ready(data_directory: &Path) -> Result<impl Iterator<Item = Result<WalName>>> {
    let path = data_directory.join("pg_wal/archive_status");
    let entries = std::fs::read_dir(&path);
    let unreadable = move |error| Error::io(format!("read the directory {}", path.display()), error);
    let entries = entries.map_err(&unreadable)?;
    Ok(entries.filter_map(move |entry| match entry {
        Ok(entry) => {
            let file_name = entry.file_name();
            let stem = file_name.to_str()?.strip_suffix(".ready")?;
            stem.parse().ok().map(Ok)
        }
        Err(error) => Some(Err(unreadable(error))),
    }))
}

/// An agent is worth its start if more files than this wait.
const BACKLOG: usize = 3;

/// Whether PostgreSQL's archiver is behind, so that an agent would help it. Reads no further than it must to know.
#[must_use]
pub fn is_behind(data_directory: &Path) -> bool {
    ready(data_directory).is_ok_and(|names| names.filter_map(Result::ok).nth(BACKLOG).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::fixture;

    #[test]
    fn files_wait_in_the_archivers_order_and_others_are_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let status = root.path().join("pg_wal/archive_status");
        std::fs::create_dir_all(&status).unwrap();
        for name in [
            "000000020000000000000040.ready",
            "000000010000000000000052.partial.ready",
            "000000010000000000000050.00000028.backup.ready",
            "000000010000000000000050.ready",
            "00000005.history.ready",
            "000000010000000000000051.done",
            "nonsense.ready",
        ] {
            std::fs::write(status.join(name), "").unwrap();
        }
        let names = |at_most| -> Vec<String> {
            let names = waiting(root.path(), at_most).unwrap();
            names.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            names(100),
            [
                "00000005.history",
                "000000010000000000000050",
                "000000010000000000000050.00000028.backup",
                "000000010000000000000052.partial",
                "000000020000000000000040",
            ]
        );
        assert_eq!(names(2), ["00000005.history", "000000010000000000000050"]);
    }

    // Seen to fail: `archive_status.rs`: `is_behind` counts all of `waiting`
    #[test]
    fn whether_the_archiver_is_behind_costs_the_same_with_any_backlog() {
        let roots = [1_000, 100_000].map(|files| {
            let root = fixture::scratch();
            let status = root.path().join("pg_wal/archive_status");
            std::fs::create_dir_all(&status).unwrap();
            for number in 0..files {
                let name = format!("00000001{:08X}{:08X}.ready", number / 256, number % 256);
                std::fs::write(status.join(name), "").unwrap();
            }
            root
        });
        let [few, many] = [0, 1].map(|backlog| {
            let root: &tempfile::TempDir = &roots[backlog];
            let looks = (0..20).map(|_| {
                let begun = std::time::Instant::now();
                assert!(is_behind(root.path()));
                begun.elapsed()
            });
            looks.min().unwrap()
        });
        assert!(many < few * 5, "{few:?} with 1,000 files, {many:?} with 100,000");
    }
}
