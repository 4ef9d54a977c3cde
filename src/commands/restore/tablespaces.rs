//! Tablespaces that the WAL makes: their records hold absolute paths, and replay makes links to them and writes there
//! (`create_tablespace_directories`, `tablespace.c`, PostgreSQL 14 to 18), whoever's files lie there.
//!
//! For a copy that may run beside its source the path is taken out of each such record before PostgreSQL sees it. An
//! empty path means: within the data directory, in `pg_tblspc`; a link that is there already stays and is used. The
//! record's length stays as it was, and its CRC is made anew. A server that takes its source's place gets the WAL as it
//! is, but not where a path holds files that are not its own.
//!
//! A record that two segments share is not rewritten: the answer is an error, and recovery stops before it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::pg::tablespace_record::{LONGEST_BYTES, empty_path, ends_with_cut_header, is_creation};
use crate::pg::{LongPageHeader, Lsn, WalChange, WalCheck, WalEvent, WalEventKind, WalName, WalReader};

/// What becomes of tablespaces that the WAL makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTablespaces {
    /// They lie within the data directory.
    Inside,
    /// They lie where the WAL says, where nothing is in the way.
    Checked,
}

/// Sees to the tablespaces that a delivered segment makes. `data` is the data directory.
///
/// # Errors
/// `Conflict` where replay would write into what is not the server's own, or a record cannot be rewritten; `Internal`
/// where the file cannot be read or written.
pub fn see_to(name: &str, delivered: &Path, data: &Path, what: NewTablespaces) -> Result<()> {
    let Ok(WalName::Segment(_)) = name.parse::<WalName>() else {
        return Ok(());
    };
    let doing = || format!("see to the tablespaces that {name} makes");
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(delivered)
        .map_err(|error| Error::io(doing(), error))?;
    let found = look(&mut file).context(doing)?;
    if let Some(at) = found.shared {
        return Err(Error::conflict(format!(
            "the record at {at} makes a tablespace, or may, and lies in two segments: this copy cannot be kept out of its \
             directory. Recover to a target before {at}, or from a backup that was taken after it"
        )));
    }
    for made in &found.made {
        match what {
            NewTablespaces::Checked => check(made, data)?,
            NewTablespaces::Inside => take_inside(&file, &found, made).context(doing)?,
        }
    }
    Ok(())
}

struct Made {
    at: Lsn,
    oid: u32,
    path: PathBuf,
}

struct Found {
    start: Lsn,
    page_bytes: u64,
    made: Vec<Made>,
    /// A record of this kind, or one that may be, that the segment before or after has the rest of.
    shared: Option<Lsn>,
}

fn look(file: &mut File) -> Result<Found> {
    let reading = |error| Error::io("read it", error);
    let mut first = [0; 512];
    file.read_exact_at(&mut first, 0).map_err(reading)?;
    let header = LongPageHeader::parse(&first)?;
    let start = header.page_address;
    let mut reader = WalReader::new(start, WalCheck::Structure);
    let mut found = Found {
        start,
        page_bytes: u64::from(header.page_size_bytes),
        made: Vec::new(),
        shared: None,
    };
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer).map_err(reading)?;
        if count == 0 {
            break;
        }
        reader.feed(buffer.get(..count).unwrap_or_default(), |event| found.add(event));
    }
    let tail = reader
        .continued()
        .map(|tail| (tail.remaining, tail.bytes.as_slice()));
    if tail.is_some_and(|(remaining, bytes)| remaining < LONGEST_BYTES && ends_with_cut_header(bytes)) {
        found.shared = Some(start);
    }
    if let Some(head) = reader.unfinished()
        && is_creation(&head.bytes)
    {
        found.shared = Some(head.start);
    }
    Ok(found)
}

impl Found {
    fn add(&mut self, event: WalEvent) {
        let at = event.start;
        match event.kind {
            WalEventKind::Change(WalChange::TablespaceCreated { oid, path })
                if !path.as_os_str().is_empty() =>
            {
                self.made.push(Made { at, oid, path });
            }
            WalEventKind::Change(WalChange::Unread) => self.shared = Some(at),
            _ => {}
        }
    }
}

/// Refuses a path that holds another's files, or is missing.
fn check(made: &Made, data: &Path) -> Result<()> {
    let shown = made.path.display();
    let link = std::fs::read_link(data.join("pg_tblspc").join(made.oid.to_string()));
    if link.is_ok_and(|link| link == made.path) {
        return Ok(());
    }
    let entries = match std::fs::read_dir(&made.path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::conflict(format!(
                "the WAL makes tablespace {} in {shown} at {}, and there is no such directory: make it, empty and owned by \
                 the server's user (mkdir -p -m 700 {shown}), and start the server again",
                made.oid, made.at
            )));
        }
        Err(error) => return Err(Error::io(format!("read {shown}"), error)),
    };
    let mut names = entries.flatten().map(|entry| entry.file_name());
    let Some(name) = names.find(|name| name.to_string_lossy().starts_with("PG_")) else {
        return Ok(());
    };
    Err(Error::conflict(format!(
        "the WAL makes tablespace {} in {shown} at {}, and {} is there already: replay would write over it. If its server \
         is gone, move it away and start this server again; if it lives, recover with --archive-mode off, which keeps the \
         tablespace inside the copy, or from a backup that was taken after {}",
        made.oid,
        made.at,
        name.display(),
        made.at
    )))
}

/// Takes the path out of a record.
fn take_inside(file: &File, found: &Found, made: &Made) -> Result<()> {
    let start = made.at.0.saturating_sub(found.start.0);
    let mut bytes = vec![0; 3 * found.page_bytes as usize];
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, start + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) => return Err(Error::io("read a record", error)),
        }
    }
    bytes.truncate(read);
    empty_path(&mut bytes, start, found.page_bytes).ok_or_else(|| {
        Error::conflict(format!(
            "the record at {} is not one that walship can rewrite",
            made.at
        ))
    })?;
    file.write_all_at(&bytes, start)
        .map_err(|error| Error::io("write a record", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_holds_another_servers_files_is_refused_and_a_missing_one_has_a_plan() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path().join("data");
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        let path = top.path().join("fast");
        let made = Made {
            at: Lsn(8),
            oid: 16400,
            path: path.clone(),
        };
        assert!(check(&made, &data).unwrap_err().to_string().contains("mkdir -p"));
        std::fs::create_dir(&path).unwrap();
        check(&made, &data).unwrap();
        std::fs::create_dir(path.join("PG_17_202406281")).unwrap();
        assert!(
            check(&made, &data)
                .unwrap_err()
                .to_string()
                .contains("move it away")
        );
        // The server's own, after a restart.
        std::os::unix::fs::symlink(&path, data.join("pg_tblspc/16400")).unwrap();
        check(&made, &data).unwrap();
    }
}
