//! The files that wait for PostgreSQL's archiver, in the order in which it asks for them.

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

/// The files with a `.ready` in `pg_wal/archive_status`, in the archiver's order.
///
/// # Errors
/// `Internal` where the directory cannot be read.
pub(crate) fn waiting(data_directory: &Path) -> Result<Vec<WalName>> {
    let path = data_directory.join("pg_wal/archive_status");
    let unreadable = |error| Error::io(format!("read the directory {}", path.display()), error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(unreadable)? {
        let file_name = entry.map_err(unreadable)?.file_name();
        let stem = file_name.to_str().and_then(|name| name.strip_suffix(".ready"));
        if let Some(Ok(name)) = stem.map(str::parse::<WalName>) {
            names.push(name);
        }
    }
    names.sort_by_cached_key(|name| ArchiverOrder::from(*name));
    Ok(names)
}

/// An agent is worth its start if more files than this wait.
const BACKLOG: usize = 3;

/// Whether PostgreSQL's archiver is behind, so that an agent would help it.
#[must_use]
pub fn is_behind(data_directory: &Path) -> bool {
    waiting(data_directory).is_ok_and(|names| names.len() > BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let names: Vec<_> = waiting(root.path())
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            names,
            [
                "00000005.history",
                "000000010000000000000050",
                "000000010000000000000050.00000028.backup",
                "000000010000000000000052.partial",
                "000000020000000000000040",
            ]
        );
    }
}
