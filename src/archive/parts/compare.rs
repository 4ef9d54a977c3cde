//! PostgreSQL's manifest against the index: is every file that the server says it sent in the tar
//! streams, with its size?
//!
//! PostgreSQL adds a file to its manifest when it has sent it (`AddFileToBackupManifest`, called from
//! `sendFile` and `sendFileWithContent` in `src/backend/backup/basebackup.c`, 14 to 18), so both list
//! the files in the same order, and one walk with bounded memory compares them.

use std::io::Read;

use crate::error::{Error, Result};
use crate::format::backup::{EntryKind, IndexEntry, TarStream};
use crate::format::file_index::FileIndexReader;
use crate::pg::{Manifest, ManifestFile};
use crate::store::Body;

/// The objects that must agree with each other.
pub(crate) struct Checked {
    pub(crate) streams: Vec<TarStream>,
    /// `files.zst`.
    pub(crate) index: Body,
    /// `manifest.zst`.
    pub(crate) manifest: Body,
}

/// Compares manifest and index, file by file.
///
/// # Errors
/// `Corrupt` where they differ, and where the manifest does not match its own checksum.
pub(crate) async fn every_file_is_indexed(checked: Checked) -> Result<(Checked, Manifest)> {
    let compare = move || {
        let index = FileIndexReader::new(checked.index.reader(), "the index just made")?;
        let manifest = zstd::stream::read::Decoder::new(checked.manifest.reader())
            .map_err(|error| Error::io("start decompression", error))?;
        let manifest = compare(manifest, index, &checked.streams, |_, _| Ok(()))
            .map_err(|error| mismatch_of_sender(&error))?;
        Ok((checked, manifest))
    };
    tokio::task::spawn_blocking(compare)
        .await
        .unwrap_or_else(|error| Err(Error::defect("compare the index with the manifest", error)))
}

/// Goes through manifest and index side by side; `each` sees the files that agree.
///
/// # Errors
/// `Corrupt` where they differ, and where the manifest does not match its own checksum; what `each`
/// returns.
pub(crate) fn compare(
    manifest: impl Read,
    index: impl Iterator<Item = Result<IndexEntry>>,
    streams: &[TarStream],
    mut each: impl FnMut(&ManifestFile, &IndexEntry) -> Result<()>,
) -> Result<Manifest> {
    let mut sent = index.filter(|entry| entry.as_ref().map_or(true, |entry| entry.kind == EntryKind::File));
    let manifest = Manifest::read(manifest, |listed| {
        let entry = sent.next().transpose()?;
        let entry = check(&listed, entry.as_ref(), streams)?;
        each(&listed, entry)
    })?;
    match sent.next().transpose()? {
        None => Ok(manifest),
        Some(entry) => Err(mismatch(&format!("{} was sent but is not listed", entry.path))),
    }
}

fn check<'a>(
    listed: &ManifestFile,
    entry: Option<&'a IndexEntry>,
    streams: &[TarStream],
) -> Result<&'a IndexEntry> {
    let path = &listed.path;
    let Some(entry) = entry else {
        return Err(mismatch(&format!("{path} is listed but was not sent")));
    };
    if path_in_manifest(entry, streams).as_bytes() != path.as_bytes() {
        return Err(mismatch(&format!(
            "it lists {path} where {} was sent",
            entry.path
        )));
    }
    if entry.size != listed.size_bytes {
        return Err(mismatch(&format!(
            "{path} has {} bytes in the manifest, {} were sent",
            listed.size_bytes, entry.size
        )));
    }
    Ok(entry)
}

fn path_in_manifest(entry: &IndexEntry, streams: &[TarStream]) -> String {
    let stream = streams.get(entry.stream as usize);
    match stream.and_then(|stream| stream.tablespace.as_ref()) {
        Some(tablespace) => format!("pg_tblspc/{}/{}", tablespace.oid, entry.path),
        None => entry.path.clone(),
    }
}

fn mismatch(what: &str) -> Error {
    Error::corrupt(format!(
        "PostgreSQL's manifest does not fit the files it sent: {what}"
    ))
}

fn mismatch_of_sender(error: &Error) -> Error {
    Error::new(error.kind(), format!("{error}; take the backup again"))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::ErrorKind;
    use crate::format::backup::Tablespace;
    use crate::text::hex;

    const LABEL: (&str, u64) = ("backup_label", 220);
    const VERSION: (&str, u64) = ("PG_VERSION", 3);
    const TABLE: (&str, u64) = ("pg_tblspc/16385/PG_17_202406281/5/16386", 8192);

    fn manifest(files: &[(&str, u64)]) -> Vec<u8> {
        use sha2::{Digest, Sha256};
        let mut text = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [".to_owned();
        for (index, (path, size)) in files.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(
                text,
                "{comma}\n{{ \"Path\": \"{path}\", \"Size\": {size}, \"Last-Modified\": \"2026-11-23 13:08:11 GMT\", \
                 \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00000000\" }}"
            )
            .unwrap();
        }
        text.push_str(
            "\n],\n\"WAL-Ranges\": [\n\
             { \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n",
        );
        let checksum = hex(&Sha256::digest(&text));
        writeln!(text, "\"Manifest-Checksum\": \"{checksum}\"}}").unwrap();
        text.into_bytes()
    }

    fn entry(stream: u32, kind: EntryKind, path: &str, size: u64) -> IndexEntry {
        IndexEntry {
            stream,
            path: path.to_owned(),
            kind,
            mode: 0o600,
            mtime: 0,
            size,
            offset: 0,
            target: None,
        }
    }

    /// A tablespace with one table, then the data directory.
    fn index() -> Vec<IndexEntry> {
        vec![
            entry(0, EntryKind::Directory, "PG_17_202406281", 0),
            entry(0, EntryKind::File, "PG_17_202406281/5/16386", 8192),
            entry(1, EntryKind::File, "backup_label", 220),
            entry(1, EntryKind::Directory, "pg_wal", 0),
            entry(1, EntryKind::File, "PG_VERSION", 3),
        ]
    }

    fn compare_with(files: &[(&str, u64)], index: Vec<IndexEntry>) -> Result<Manifest> {
        let stream = |tablespace| TarStream {
            tablespace,
            tar_bytes: 0,
            part_bytes: 1,
            parts: Vec::new(),
        };
        let tablespace = Tablespace {
            oid: 16385,
            location: "/srv/fast".to_owned(),
        };
        let streams = [stream(Some(tablespace)), stream(None)];
        compare(
            &manifest(files)[..],
            index.into_iter().map(Ok),
            &streams,
            |_, _| Ok(()),
        )
    }

    #[test]
    fn a_manifest_that_fits_the_files_is_accepted() {
        let manifest = compare_with(&[TABLE, LABEL, VERSION], index()).unwrap();
        assert_eq!(manifest.file_count, 3);
    }

    #[test]
    fn no_difference_between_manifest_and_files_goes_unnoticed() {
        let short = ("PG_VERSION", 2);
        let cases: [&[(&str, u64)]; 6] = [
            &[TABLE, LABEL],
            &[TABLE, VERSION],
            &[LABEL, TABLE, VERSION],
            &[TABLE, LABEL, VERSION, ("global/pg_control", 8192)],
            &[TABLE, LABEL, short],
            &[],
        ];
        for files in cases {
            let error = compare_with(files, index()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{files:?}: {error}");
        }
    }
}
