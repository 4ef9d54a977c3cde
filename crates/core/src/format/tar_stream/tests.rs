//! The scanner against tars that the crate `tar` makes, whole and damaged.

use proptest::prelude::*;

use super::*;
use crate::ErrorKind;

const WANTED: &[&str] = &["backup_label"];

#[derive(Debug, Clone)]
struct Made {
    path: String,
    kind: EntryKind,
    mode: u32,
    mtime: u64,
    content: Vec<u8>,
}

/// A tar as PostgreSQL 15 makes it, and the entries it should give.
fn build(members: &[Made]) -> (Vec<u8>, Vec<IndexEntry>) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut entries = Vec::new();
    for made in members {
        let mut header = tar::Header::new_ustar();
        header.set_mode(made.mode);
        header.set_mtime(made.mtime);
        let mut content = &made.content[..];
        match made.kind {
            EntryKind::File => header.set_entry_type(tar::EntryType::Regular),
            EntryKind::Directory => header.set_entry_type(tar::EntryType::Directory),
            EntryKind::Link => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_link_name("/somewhere/else").unwrap();
            }
        }
        if made.kind != EntryKind::File {
            content = &[];
        }
        let slash = if made.kind == EntryKind::File { "" } else { "/" };
        header.set_path(format!("{}{slash}", made.path)).unwrap();
        header.set_size(content.len() as u64);
        header.set_cksum();
        let offset = builder.get_ref().len() as u64 + 512;
        builder.append(&header, content).unwrap();
        entries.push(IndexEntry {
            stream: 3,
            path: made.path.clone(),
            kind: made.kind,
            mode: made.mode,
            mtime: made.mtime.cast_signed(),
            size: content.len() as u64,
            offset: if made.kind == EntryKind::File { offset } else { 0 },
            target: (made.kind == EntryKind::Link).then(|| "/somewhere/else".to_owned()),
        });
    }
    (builder.into_inner().unwrap(), entries)
}

fn scan(tar: &[u8], piece_bytes: usize) -> Result<(Vec<IndexEntry>, TarEnd)> {
    let mut scanner = TarScanner::new(3, WANTED);
    let mut entries = Vec::new();
    for piece in tar.chunks(piece_bytes) {
        entries.extend(scanner.feed(piece)?);
    }
    Ok((entries, scanner.finish()?))
}

fn file(path: &str, content: &[u8]) -> Made {
    Made {
        path: path.to_owned(),
        kind: EntryKind::File,
        mode: 0o600,
        mtime: 1_700_000_000,
        content: content.to_vec(),
    }
}

/// A tar of one file whose header is changed and signed anew.
fn with_header(change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path("file").unwrap();
    header.set_mode(0o600);
    header.set_mtime(0);
    header.set_size(0);
    change(&mut header);
    header.set_cksum();
    [&header.as_bytes()[..], &TAR_END].concat()
}

fn any_member() -> impl Strategy<Value = Made> {
    let kind = prop_oneof![
        4 => Just(EntryKind::File),
        1 => Just(EntryKind::Directory),
        1 => Just(EntryKind::Link)
    ];
    (
        "[a-z0-9_]{1,12}(/[a-zé0-9._]{3,40}){0,3}",
        kind,
        0..=0o7777u32,
        // Beyond 2^33 the field is in base 256.
        0..1u64 << 40,
        proptest::collection::vec(any::<u8>(), 0..1600),
    )
        .prop_map(|(path, kind, mode, mtime, content)| Made {
            path,
            kind,
            mode,
            mtime,
            content,
        })
}

proptest! {
    #[test]
    fn every_member_is_found_whatever_the_pieces(
        members in proptest::collection::vec(any_member(), 0..8),
        piece_bytes in 1..3000usize,
    ) {
        let (tar, entries) = build(&members);
        let (found, end) = scan(&tar, piece_bytes).unwrap();
        prop_assert_eq!(&found, &entries);
        prop_assert!(end.terminated);
        prop_assert_eq!(end.tar_bytes, tar.len() as u64);
        for (made, entry) in members.iter().zip(&found).filter(|(_, entry)| entry.kind == EntryKind::File) {
            let content = &tar[entry.offset as usize..(entry.offset + entry.size) as usize];
            prop_assert_eq!(content, &made.content[..]);
        }
    }

    #[test]
    fn no_bytes_make_the_scanner_panic(bytes: Vec<u8>, piece_bytes in 1..600usize) {
        let _ = scan(&bytes, piece_bytes);
    }

    #[test]
    fn a_stream_cut_anywhere_but_between_members_is_refused(cut in 1..5632usize) {
        let (mut tar, _) = build(&[file("one", &[1; 700]), file("two", &[2; 1024]), file("three", b"")]);
        // Behind a whole member is where PostgreSQL 14 ends its streams.
        let whole = [1536, 3072, 3584].contains(&cut) || cut >= 4608;
        tar.truncate(cut);
        prop_assert_eq!(scan(&tar, 512).is_ok(), whole);
    }

    #[test]
    fn a_flipped_bit_in_a_header_is_noticed(bit in 0..512 * 8usize) {
        let (mut tar, entries) = build(&[file("one", b"1")]);
        tar[bit / 8] ^= 1 << (bit % 8);
        // The checksum's own terminators carry nothing; elsewhere the sum no longer fits.
        prop_assert!(scan(&tar, 512).map_or(true, |(found, _)| found == entries));
    }
}

#[test]
fn a_member_asked_for_is_captured_whole() {
    let members = [
        file("backup_label", &[7; 1000]),
        file("PG_VERSION", b"17\n"),
        file("base/backup_label", b"another"),
    ];
    let (tar, _) = build(&members);
    for piece_bytes in [1, 511, 512, 1 << 20] {
        let (_, end) = scan(&tar, piece_bytes).unwrap();
        let [captured] = &end.captured[..] else {
            panic!("{:?}", end.captured)
        };
        assert_eq!(captured.path, "backup_label");
        assert_eq!(captured.content, [7; 1000]);
    }
}

#[test]
fn a_stream_without_its_end_says_so_and_the_end_completes_it() {
    let (mut tar, entries) = build(&[file("one", b"content")]);
    tar.truncate(1024);
    let (_, end) = scan(&tar, 100).unwrap();
    assert!(!end.terminated);
    tar.extend_from_slice(&TAR_END);
    let (found, end) = scan(&tar, 100).unwrap();
    assert!(end.terminated && found == entries);
}

#[test]
fn a_path_that_leaves_its_directory_is_refused() {
    for path in [
        "/etc/passwd",
        "../up",
        "a/../../b",
        "a//b",
        "a/./b",
        "././a",
        "./",
        "./..",
        ".//a",
        ".",
        "",
        "/",
    ] {
        let tar = with_header(|header| {
            let name = &mut header.as_old_mut().name;
            name.fill(0);
            name[..path.len()].copy_from_slice(path.as_bytes());
        });
        let error = scan(&tar, 512).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{path:?}: {error}");
    }
}

#[test]
fn the_dot_before_some_of_postgresqls_paths_is_left_out() {
    let path = b"./pg_wal/archive_status";
    // The crate's `set_path` would leave it out as well.
    let tar = with_header(|header| header.as_old_mut().name[..path.len()].copy_from_slice(path));
    let (found, _) = scan(&tar, 512).unwrap();
    assert_eq!(found[0].path, "pg_wal/archive_status");
}

#[test]
fn what_postgresql_never_sends_is_refused() {
    for kind in *b"1346789gxLKSD" {
        let tar = with_header(|header| header.set_entry_type(tar::EntryType::new(kind)));
        assert_eq!(scan(&tar, 512).unwrap_err().kind(), ErrorKind::Corrupt, "{kind}");
    }
    for (kind, size) in [(tar::EntryType::Directory, 1), (tar::EntryType::Symlink, 0)] {
        let tar = with_header(|header| {
            header.set_entry_type(kind);
            header.set_size(size);
        });
        assert_eq!(
            scan(&tar, 512).unwrap_err().kind(),
            ErrorKind::Corrupt,
            "{kind:?}"
        );
    }
    let huge = with_header(|header| header.set_size(u64::MAX));
    assert_eq!(scan(&huge, 512).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_name_that_is_not_utf8_is_named_in_the_refusal() {
    let tar = with_header(|header| header.as_old_mut().name[..5].copy_from_slice(b"a\xff\xfe/b"));
    let error = scan(&tar, 512).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains(r"a\xff\xfe/b"), "{error}");
}

#[test]
fn a_member_behind_half_an_end_is_refused() {
    let (tar, _) = build(&[file("one", b"1"), file("two", b"2")]);
    let second = 2 * BLOCK_BYTES;
    let torn = [&tar[..second], &[0; BLOCK_BYTES], &tar[second..]].concat();
    let error = scan(&torn, 512).unwrap_err();
    assert!(error.to_string().contains("follows a zero block"), "{error}");
}

#[test]
fn no_more_is_captured_than_the_limit() {
    let limit = CAPTURE_LIMIT_BYTES as usize;
    for (size, fits) in [(limit, true), (limit + 1, false)] {
        let (tar, _) = build(&[file("backup_label", &vec![7; size])]);
        assert_eq!(scan(&tar, 1 << 20).is_ok(), fits, "{size}");
        // Others may be as large as they like.
        let (tar, _) = build(&[file("another", &vec![7; size])]);
        assert!(scan(&tar, 1 << 20).is_ok());
    }
}

#[test]
fn a_size_that_no_position_can_hold_is_refused() {
    let content_offset = 512;
    let largest = (u64::MAX >> 1) - content_offset;
    for (size, fits) in [(largest, true), (largest + 1, false)] {
        let tar = with_header(|header| header.set_size(size));
        let mut scanner = TarScanner::new(3, WANTED);
        assert_eq!(scanner.feed(&tar[..512]).is_ok(), fits, "{size}");
    }
}

#[test]
fn nothing_may_follow_the_end() {
    let (tar, _) = build(&[file("one", b"1")]);
    let twice = [&tar[..], &tar[..]].concat();
    assert!(scan(&twice, 700).is_err());
    let padded = [&tar[..], &[0; 10_240]].concat();
    assert!(scan(&padded, 700).is_ok());
}
