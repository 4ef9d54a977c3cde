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
use crate::pg::{LongPageHeader, Lsn, WalChange, WalCheck, WalEvent, WalEventKind, WalName, WalReader};

/// What becomes of tablespaces that the WAL makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTablespaces {
    /// They lie within the data directory.
    Inside,
    /// They lie where the WAL says, where nothing is in the way.
    Checked,
}

const RECORD_HEADER: usize = 24;
const CRC_AT: usize = 20;
/// `SizeOfXLogShortPHD`, padding included.
const PAGE_HEADER: u64 = 24;
/// `RM_TBLSPC_ID`.
const TABLESPACES: u8 = 5;
/// A record with the longest path (`MAXPGPATH`), in bytes.
const LONGEST: u32 = 1200;
/// The identifiers of what stands before a record's main data (`xlogrecord.h`).
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOPLEVEL_XID: u8 = 252;

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
    if tail.is_some_and(|(remaining, bytes)| remaining < LONGEST && ends_a_cut_header(bytes)) {
        found.shared = Some(start);
    }
    if let Some(head) = reader.unfinished()
        && makes_tablespace(&head.bytes)
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

/// Whether a record that begins with these bytes makes a tablespace; a header that is cut does not tell.
fn makes_tablespace(record: &[u8]) -> bool {
    matches!((record.get(16), record.get(17)), (Some(info), Some(&TABLESPACES)) if info & 0xF0 == 0)
}

/// Whether these bytes, with which a segment begins, end a record that makes a tablespace and whose header is cut: 8 or
/// 16 of its bytes lie in the segment before. One that is cut later was told of there.
fn ends_a_cut_header(bytes: &[u8]) -> bool {
    [8_usize, 16].into_iter().any(|before| {
        let at = |offset: usize| bytes.get(offset - before).copied();
        let kind = at(16).is_some_and(|info| info & 0xF0 == 0) && at(17) == Some(TABLESPACES);
        kind && at(RECORD_HEADER).is_some_and(|id| id >= TOPLEVEL_XID)
    })
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

/// Empties the path in the record that these bytes begin with; `start` is where they lie in their segment.
fn empty_path(bytes: &mut [u8], start: u64, page_bytes: u64) -> Option<()> {
    let total = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    let places = places(start, total, page_bytes);
    let mut record = places
        .iter()
        .map(|place| bytes.get(*place).copied())
        .collect::<Option<Vec<u8>>>()?;
    if crc_of(&record)? != record.get(CRC_AT..RECORD_HEADER)? || !makes_tablespace(&record) {
        return None;
    }
    let path = path_at(&record)?;
    record.get_mut(path..)?.fill(0);
    let crc = crc_of(&record)?;
    record.get_mut(CRC_AT..RECORD_HEADER)?.copy_from_slice(&crc);
    for (place, byte) in places.iter().zip(&record) {
        *bytes.get_mut(*place)? = *byte;
    }
    Some(())
}

/// Where each byte of a record lies, counted from its first one: page headers stand between.
fn places(start: u64, total: usize, page_bytes: u64) -> Vec<usize> {
    let mut at = start;
    let mut places = Vec::with_capacity(total.min(LONGEST as usize));
    while places.len() < total.min(LONGEST as usize) {
        if at.is_multiple_of(page_bytes) {
            at += PAGE_HEADER;
        }
        places.push((at - start) as usize);
        at += 1;
    }
    places
}

fn crc_of(record: &[u8]) -> Option<[u8; 4]> {
    let body = crc32c::crc32c(record.get(RECORD_HEADER..)?);
    Some(crc32c::crc32c_append(body, record.get(..CRC_AT)?).to_le_bytes())
}

/// Where the path begins: after the OID with which the main data begin.
fn path_at(record: &[u8]) -> Option<usize> {
    let mut at = RECORD_HEADER;
    loop {
        match *record.get(at)? {
            ORIGIN => at += 3,
            TOPLEVEL_XID => at += 5,
            DATA_SHORT => return Some(at + 2 + 4),
            DATA_LONG => return Some(at + 5 + 4),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as PostgreSQL writes it.
    fn record(path: &str) -> Vec<u8> {
        let data_bytes = 4 + path.len() + 1;
        let mut record = vec![0; RECORD_HEADER];
        record[17] = TABLESPACES;
        record.extend([DATA_SHORT, data_bytes as u8]);
        record.extend(16400_u32.to_le_bytes());
        record.extend(path.as_bytes());
        record.push(0);
        let total = record.len() as u32;
        record[..4].copy_from_slice(&total.to_le_bytes());
        let crc = crc_of(&record).unwrap();
        record[CRC_AT..RECORD_HEADER].copy_from_slice(&crc);
        record
    }

    #[test]
    fn a_path_is_taken_out_wherever_a_page_cuts_the_record() {
        const PAGE: u64 = 8192;
        let plain = record("/srv/fast/tablespace");
        for start in (PAGE - 64..PAGE).step_by(8) {
            let places = places(start, plain.len(), PAGE);
            let mut bytes = vec![0xAA; places.last().unwrap() + 20];
            for (place, byte) in places.iter().zip(&plain) {
                bytes[*place] = *byte;
            }
            let before = bytes.clone();
            empty_path(&mut bytes, start, PAGE).unwrap();
            let after: Vec<u8> = places.iter().map(|place| bytes[*place]).collect();
            assert_eq!(after[CRC_AT..RECORD_HEADER], crc_of(&after).unwrap(), "{start}");
            assert_eq!(after[..CRC_AT], plain[..CRC_AT]);
            assert!(after[30..].iter().all(|byte| *byte == 0), "{start}");
            // Nothing else changed.
            for (place, (one, other)) in before.iter().zip(&bytes).enumerate() {
                assert!(one == other || places.contains(&place), "{start} {place}");
            }
        }
    }

    #[test]
    fn a_record_that_does_not_match_its_crc_is_left_alone() {
        let mut bytes = record("/srv/fast");
        bytes[32] ^= 1;
        let before = bytes.clone();
        assert_eq!(empty_path(&mut bytes, 8, 8192), None);
        assert_eq!(bytes, before);
    }

    #[test]
    fn a_record_that_two_segments_share_is_recognised_in_one_of_them() {
        let record = record("/srv/fast");
        for cut in (8..record.len()).step_by(8) {
            let told = makes_tablespace(&record[..cut]) || ends_a_cut_header(&record[cut..]);
            assert!(told, "cut at {cut}");
        }
    }

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
