//! `tablespace_map`: where the links in `pg_tblspc` lead that PostgreSQL makes when it starts on a restored backup.
//!
//! One line for each tablespace: its OID, a blank, its directory, in which newline, carriage return
//! and backslash are escaped with a backslash (`do_pg_backup_start` and `read_tablespace_map`,
//! PostgreSQL 14 to 18).

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The file's content for these tablespaces.
#[must_use]
pub fn write<'a>(tablespaces: impl IntoIterator<Item = (u32, &'a Path)>) -> Vec<u8> {
    let mut map = Vec::new();
    for (oid, directory) in tablespaces {
        map.extend_from_slice(format!("{oid} ").as_bytes());
        for byte in directory.as_os_str().as_bytes() {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                map.push(b'\\');
            }
            map.push(*byte);
        }
        map.push(b'\n');
    }
    map
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `read_tablespace_map`, followed step by step.
    fn read(map: &[u8]) -> Vec<(u32, String)> {
        let mut found = Vec::new();
        let (mut line, mut escaped) = (Vec::new(), false);
        for byte in map {
            if !escaped && matches!(byte, b'\n' | b'\r') {
                let text = String::from_utf8(std::mem::take(&mut line)).unwrap();
                let (oid, path) = text.split_once(' ').unwrap();
                found.push((oid.parse().unwrap(), path.to_owned()));
            } else if !escaped && *byte == b'\\' {
                escaped = true;
            } else {
                line.push(*byte);
                escaped = false;
            }
        }
        assert!(line.is_empty() && !escaped);
        found
    }

    proptest! {
        #[test]
        fn postgresql_reads_every_directory_as_it_was_meant(
            tablespaces in proptest::collection::vec((any::<u32>(), "/[^\0]{1,40}"), 0..4)
        ) {
            let map = write(tablespaces.iter().map(|(oid, path)| (*oid, Path::new(path.as_str()))));
            prop_assert_eq!(read(&map), tablespaces);
        }
    }
}
