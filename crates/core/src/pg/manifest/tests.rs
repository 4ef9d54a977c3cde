use std::fmt::Write as _;
use std::io;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::error::ErrorKind;

/// From real servers, with CRC-32C checksums; compressed with zstd.
const REAL: [(u32, &[u8]); 2] = [
    (
        1,
        include_bytes!("../../../../../tests/fixtures/backup_manifest/14.zst"),
    ),
    (
        2,
        include_bytes!("../../../../../tests/fixtures/backup_manifest/18.zst"),
    ),
];

/// Puts the checksum's line at the end of everything else, as PostgreSQL does.
fn signed(content: &str) -> String {
    let mut text = format!("{content}\"Manifest-Checksum\": \"");
    for byte in Sha256::digest(content) {
        write!(text, "{byte:02x}").unwrap();
    }
    text + "\"}\n"
}

fn with_files(lines: &[String]) -> String {
    let files = lines.join(",\n");
    signed(&format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7711352554232050139,\n\
         \"Files\": [\n{files}\n],\n\"WAL-Ranges\": [\n\
         {{ \"Timeline\": 1, \"Start-LSN\": \"0/800028\", \"End-LSN\": \"0/800120\" }}\n],\n"
    ))
}

fn one_file(fields: &str) -> String {
    with_files(&[format!("{{ {fields} }}")])
}

/// Hands out a few bytes at a time.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.1);
        self.0.read(&mut buffer[..length])
    }
}

/// Never ends, and has no newline.
struct Endless(u64);

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.fill(b'x');
        self.0 += buffer.len() as u64;
        Ok(buffer.len())
    }
}

/// Fails once, then ends.
struct Broken(Option<io::Error>);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

fn read(text: impl AsRef<[u8]>) -> Result<(Manifest, Vec<ManifestFile>)> {
    let mut files = Vec::new();
    let manifest = Manifest::read(text.as_ref(), |file| {
        files.push(file);
        Ok(())
    })?;
    Ok((manifest, files))
}

fn kind(text: impl AsRef<[u8]>) -> ErrorKind {
    read(text).unwrap_err().kind()
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(text: Vec<u8>) {
        prop_assert!(read(text).is_err());
    }

    #[test]
    fn every_manifest_postgresql_writes_is_read_in_order(
        files in prop::collection::vec(("[a-z0-9_]{1,9}(/[a-z0-9_é\"\\\\]{1,9}){0,3}", any::<u64>()), 0..20),
        step in 1_usize..200,
    ) {
        let line = |(path, size): &(String, u64)| {
            format!("{{ \"Path\": {}, \"Size\": {size} }}", serde_json::to_string(path).unwrap())
        };
        let text = with_files(&files.iter().map(line).collect::<Vec<_>>());
        let mut seen = Vec::new();
        let manifest = Manifest::read(Trickle(text.as_bytes(), step), |file| {
            seen.push((String::from_utf8(file.path.as_bytes().to_vec()).unwrap(), file.size_bytes));
            Ok(())
        }).unwrap();
        prop_assert_eq!(manifest.file_count, files.len() as u64);
        prop_assert_eq!(seen, files);
    }

    #[test]
    fn a_manifest_that_is_cut_short_is_corrupt(cut: prop::sample::Index) {
        let text = one_file("\"Path\": \"PG_VERSION\", \"Size\": 3");
        prop_assert_eq!(kind(&text.as_bytes()[..cut.index(text.len())]), ErrorKind::Corrupt);
    }

    #[test]
    fn a_manifest_with_a_changed_byte_is_refused(at: prop::sample::Index, flip in 1_u8..) {
        let mut bytes = one_file("\"Path\": \"PG_VERSION\", \"Size\": 3").into_bytes();
        // The checksum's own line is beyond the checksum: its digits may change their case, for one.
        let at = at.index(bytes.len() - 90);
        bytes[at] ^= flip;
        prop_assert!(read(bytes).is_err());
    }
}

#[test]
fn real_manifests_of_both_versions_are_read() {
    for (version, compressed) in REAL {
        let text = zstd::decode_all(compressed).unwrap();
        let (manifest, files) = read(&text).unwrap();
        assert_eq!(manifest.version, version);
        assert_eq!(manifest.system_identifier.is_some(), version == 2);
        assert_eq!(manifest.file_count, files.len() as u64);
        assert_eq!(manifest.wal_ranges.len(), 1);
        assert!(files.len() > 900 && files[0].path.as_bytes() == b"backup_label");
        let odd = files
            .iter()
            .find(|file| file.path.as_bytes() == b"caf\xe9.conf")
            .unwrap();
        let checksum = FileChecksum {
            algorithm: ChecksumAlgorithm::Crc32c,
            bytes: vec![0; 4],
        };
        assert_eq!((odd.size_bytes, odd.checksum.as_ref()), (0, Some(&checksum)));
    }
}

#[test]
fn a_wrong_checksum_or_trailing_bytes_are_corrupt() {
    let good = one_file("\"Path\": \"PG_VERSION\", \"Size\": 3");
    read(&good).unwrap();
    assert_eq!(
        kind(good.replace("\"Size\": 3", "\"Size\": 4")),
        ErrorKind::Corrupt
    );
    for tail in ["x", "\n", " ", "\n\n", "{}\n"] {
        assert_eq!(kind(format!("{good}{tail}")), ErrorKind::Corrupt, "{tail:?}");
    }
    assert_eq!(kind(good.trim_end()), ErrorKind::Corrupt);
    assert_eq!(kind(good.replace('\n', " ")), ErrorKind::Corrupt);
}

#[test]
fn a_file_that_leads_out_of_the_data_directory_is_refused() {
    for path in [
        "\"Path\": \"/etc/passwd\"",
        "\"Path\": \"base/../../x\"",
        "\"Path\": \"\"",
        "\"Path\": \"a\\u0000b\"",
        "\"Encoded-Path\": \"2e2e2f78\"",
        "\"Encoded-Path\": \"2e2\"",
        "\"Encoded-Path\": \"zz\"",
        "\"Path\": \"a\", \"Encoded-Path\": \"61\"",
        "\"Last-Modified\": \"no path\"",
    ] {
        assert_eq!(
            kind(one_file(&format!("{path}, \"Size\": 1"))),
            ErrorKind::Corrupt,
            "{path}"
        );
    }
}

#[test]
fn an_unusable_checksum_is_corrupt() {
    for checksum in [
        "\"Checksum-Algorithm\": \"CRC32C\"",
        "\"Checksum\": \"00000000\"",
        "\"Checksum-Algorithm\": \"MD5\", \"Checksum\": \"00000000\"",
        "\"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"00000000\"",
    ] {
        let text = one_file(&format!("\"Path\": \"a\", \"Size\": 1, {checksum}"));
        assert_eq!(kind(text), ErrorKind::Corrupt, "{checksum}");
    }
}

#[test]
fn a_checksum_of_each_algorithm_is_read() {
    for (name, algorithm, length) in [
        ("CRC32C", ChecksumAlgorithm::Crc32c, 4),
        ("SHA224", ChecksumAlgorithm::Sha224, 28),
        ("SHA256", ChecksumAlgorithm::Sha256, 32),
        ("SHA384", ChecksumAlgorithm::Sha384, 48),
        ("SHA512", ChecksumAlgorithm::Sha512, 64),
    ] {
        let digits = "a5".repeat(length);
        let text = one_file(&format!(
            "\"Path\": \"a\", \"Size\": 1, \"Checksum-Algorithm\": \"{name}\", \"Checksum\": \"{digits}\""
        ));
        let (_, files) = read(text).unwrap();
        let expected = FileChecksum {
            algorithm,
            bytes: vec![0xa5; length],
        };
        assert_eq!(files[0].checksum, Some(expected), "{name}");
    }
}

#[test]
fn a_refusal_says_what_was_expected() {
    let good = one_file("\"Path\": \"a\", \"Size\": 1");
    let content = good.split("\"Manifest-Checksum\"").next().unwrap();
    let files = content.find("\"Files\": [").unwrap()..content.find(",\n\"WAL-Ranges\"").unwrap();
    let mut no_files = content.to_owned();
    no_files.replace_range(files, "\"Files\": 1");
    let ranges = content.find("\"WAL-Ranges\": [").unwrap()..content.rfind(",\n").unwrap();
    let mut no_ranges = content.to_owned();
    no_ranges.replace_range(ranges, "\"WAL-Ranges\": 1");
    for (text, says) in [
        ("[]\n".to_owned(), "expected a backup manifest"),
        (signed(&no_files), "expected an array of files"),
        (signed(&no_ranges), "expected an array of WAL ranges"),
        (content.to_owned(), "it was cut short"),
    ] {
        let error = read(&text).unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
}

#[test]
fn wal_that_ends_where_it_starts_is_a_range() {
    let good = one_file("\"Path\": \"a\", \"Size\": 1");
    let content = good.split("\"Manifest-Checksum\"").next().unwrap();
    let (manifest, _) = read(signed(&content.replace("0/800120", "0/800028"))).unwrap();
    assert_eq!(manifest.wal_ranges[0].start, manifest.wal_ranges[0].end);
}

#[test]
fn an_outer_object_that_postgresql_never_writes_is_refused() {
    let good = one_file("\"Path\": \"a\", \"Size\": 1");
    let content = good.split("\"Manifest-Checksum\"").next().unwrap();
    for (from, to, expected) in [
        ("Version\": 2", "Version\": 3", ErrorKind::Invalid),
        ("Version\": 2", "Version\": \"2\"", ErrorKind::Corrupt),
        ("\"Files\"", "\"Filez\"", ErrorKind::Corrupt),
        (
            "\"System-Identifier\": 7711352554232050139,",
            "",
            ErrorKind::Corrupt,
        ),
        ("\"Files\": [", "\"Files\": [],\n\"Files\": [", ErrorKind::Corrupt),
        ("\"Timeline\": 1", "\"Timeline\": 0", ErrorKind::Corrupt),
        ("0/800120", "0/800020", ErrorKind::Corrupt),
    ] {
        assert_eq!(kind(signed(&content.replace(from, to))), expected, "{to}");
    }
    let late_version = content.replace(
        "\"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7711352554232050139,",
        "\"System-Identifier\": 7711352554232050139,\n\"PostgreSQL-Backup-Manifest-Version\": 2,",
    );
    assert_ne!(late_version, content);
    assert_eq!(kind(signed(&late_version)), ErrorKind::Corrupt);
    let version_1 = content
        .replace("Version\": 2", "Version\": 1")
        .replace("\"System-Identifier\": 7711352554232050139,\n", "");
    let signed_1 = signed(&version_1);
    assert_eq!(read(&signed_1).unwrap().0.system_identifier, None);
    let unsigned_key = signed_1.replace("\"}\n", "\", \"System-Identifier\": 1}\n");
    assert_eq!(kind(unsigned_key), ErrorKind::Corrupt);
}

#[test]
fn a_line_without_end_is_refused_before_it_fills_memory() {
    let mut endless = Endless(0);
    let start = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"Files\": [\n{ \"Path\": \"";
    let error = Manifest::read(start.as_bytes().chain(&mut endless), |_| Ok(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        endless.0 < 8 * MAX_LINE_BYTES as u64,
        "{} bytes were read",
        endless.0
    );
}

#[test]
fn a_line_may_be_as_long_as_the_limit() {
    for (more, fits) in [(0, true), (1, false)] {
        let around = "{ \"Path\": \"\", \"Size\": 1 }\n".len();
        let path = "x".repeat(MAX_LINE_BYTES - around + more);
        let read = read(one_file(&format!("\"Path\": \"{path}\", \"Size\": 1")));
        assert_eq!(read.is_ok(), fits, "{more} more");
    }
}

#[test]
fn the_callers_and_the_readers_errors_keep_their_kind() {
    let text = one_file("\"Path\": \"a\", \"Size\": 1");
    let error = Manifest::read(text.as_bytes(), |_| Err(Error::conflict("stop"))).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Conflict, "stop")
    );

    let kind_of = |error| {
        Manifest::read(Broken(Some(error)), |_| Ok(()))
            .unwrap_err()
            .kind()
    };
    assert_eq!(
        kind_of(io::Error::other(Error::unavailable("gone"))),
        ErrorKind::Unavailable
    );
    assert_eq!(kind_of(io::ErrorKind::BrokenPipe.into()), ErrorKind::Internal);
}
