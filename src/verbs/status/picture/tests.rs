mod made;

use std::collections::BTreeSet;
use std::time::Instant;

use self::made::{Made, all, damaged, large, many_gaps, no_archive, no_backup, one_backup};
use super::super::StatusReport;
use super::*;
use crate::format::keys::BackupId;

const PHONE: f64 = 390.0;

/// Checks that tags close in their order and that attributes are quoted; the values of one.
fn values<'a>(svg: &'a str, attribute: &str) -> Vec<&'a str> {
    let mut open = Vec::new();
    let mut found = Vec::new();
    let mut rest = svg;
    while let Some(begin) = rest.find('<') {
        let end = begin + rest[begin..].find('>').expect("a tag ends");
        let tag = &rest[begin + 1..end];
        assert!(!tag.contains('<'), "{tag}");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap());
        }
        if let Some((_, value)) = tag.split_once(&format!(" {attribute}=\"")) {
            found.push(value.split('"').next().unwrap());
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
    found
}

// Seen to fail: `status/picture/scale.rs`: the pieces take the room of the folds too
#[test]
fn every_picture_is_well_formed_and_within_its_width() {
    for (name, report) in all() {
        for width in [WIDE, PHONE] {
            let svg = svg(&report, width);
            let ways = values(&svg, "d");
            let places = ways.iter().flat_map(|way| way.split(['M', 'H']).skip(1));
            let places = places.filter_map(|place| place.split([' ', 'V', 'L', 'l', 'h', 'Z', 'M']).next());
            let places = places.chain(["x", "cx"].into_iter().flat_map(|x| values(&svg, x)));
            for x in places.filter(|x| !x.is_empty()) {
                let x: f64 = x.parse().unwrap();
                assert!((0.0..=width).contains(&x), "{name}: {x} of {width}");
            }
            assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{name}");
        }
    }
}

// Seen to fail: `status/picture.rs`: a `<use>`
#[test]
fn a_picture_runs_nothing_and_loads_nothing_from_elsewhere() {
    for (name, report) in all() {
        let svg = svg(&report, WIDE).replace("http://www.w3.org/2000/svg", "");
        for forbidden in [
            "<script", "href", "http:", "https:", "@import", "<image", "<use", "onload",
        ] {
            assert!(!svg.contains(forbidden), "{name}: {forbidden}");
        }
        let urls = svg.matches("url(").count();
        assert_eq!(urls, svg.matches("url(#wh1200-").count(), "{name}");
    }
}

// Seen to fail: `status/picture/words.rs`: `<` passes
#[test]
fn text_of_the_archive_is_escaped() {
    let evil = "</title><script>alert(1)</script>\"'&";
    let mut made = Made::new(60).wal(1, 1..=30).unrestorable(1, 6, evil);
    made = made.backup_with(1, 4, |backup| backup.label = evil.to_owned());
    let report = StatusReport {
        archive: format!("file:///{evil}"),
        ..made.report(31)
    };
    let svg = svg(&report, WIDE);
    assert!(!svg.contains("<script") && !svg.contains("'&"), "{svg}");
    assert_eq!(svg.matches("&lt;script&gt;alert(1)").count(), 4, "{svg}");
    values(&svg, "x");
}

// Seen to fail: `status/picture/tips.rs`: without the proof
#[test]
fn a_mark_says_id_time_size_keep_and_proof() {
    let svg = svg(&large(), WIDE);
    let titles: Vec<_> = svg
        .split("<title>")
        .skip(1)
        .filter_map(|rest| rest.split("</title>").next())
        .collect();
    let marks: Vec<_> = titles
        .iter()
        .filter(|title| title.starts_with("backup "))
        .collect();
    assert_eq!(marks.len(), 40);
    assert!(
        marks.iter().all(|mark| mark.contains("24.0 GiB stored")),
        "{marks:?}"
    );
    let of = |segment| {
        let id = BackupId::at(Made::new(5).time(segment)).to_string();
        **marks.iter().find(|mark| mark.contains(&id)).unwrap()
    };
    assert_eq!(
        of(1210),
        "backup 20261024T125000Z: can be restored\n2026-10-24 12:50:00 to 13:02:00Z\nlabel nightly\n24.0 GiB stored\nno \
         drill yet\nkept for ever"
    );
    let proof = of(1210 + 3 * 252);
    assert!(
        proof.contains("proven by a drill on 2026-10-29 04:02:00Z"),
        "{proof}"
    );
}

// Seen to fail: `status/picture/lane.rs`: two rows above the marks
#[test]
fn whatever_is_wrong_stands_there_in_words() {
    for width in [WIDE, PHONE] {
        let svg = svg(&damaged(), width);
        for words in [
            "Missing WAL, which no recovery crosses",
            "Damaged WAL, which no recovery crosses",
            ">gap: 29 segments<",
            ">damaged: 2 segments<",
            ">cannot be restored<",
            ">drill failed<",
            ">waits for its WAL<",
            ">released<",
            ">recoverable<",
            "CANNOT BE RESTORED: part base/00002 is missing in the store",
        ] {
            assert!(
                svg.contains(words),
                "{words} is not in the picture of {width} pixels"
            );
        }
    }
}

// Seen to fail: `status/picture.rs`: there always is WAL
#[test]
fn a_picture_of_nothing_says_what_to_do() {
    for (report, says) in [
        (no_archive(), "the archive is empty; set archive_command"),
        (
            no_backup(),
            "there is WAL, but no base backup; take one with walship basebackup",
        ),
    ] {
        let svg = svg(&report, WIDE);
        assert!(svg.contains(says), "{svg}");
        assert!(svg.contains("Nothing can be recovered"), "{svg}");
    }
}

// Seen to fail: `status/picture.rs`: the description has no forks
#[test]
fn those_who_do_not_see_it_are_told_what_it_shows() {
    let svg = svg(&large(), WIDE);
    assert!(svg.contains(r#"role="img" aria-labelledby="wh1200-title wh1200-desc""#));
    let told = svg.split("</desc>").next().unwrap();
    for words in [
        "What can be recovered from s3://backups/main",
        "Recoverable: 2026-",
        "Missing WAL, which no recovery crosses: 000000020000001100000031 to",
        "Timelines: 6. Backups: 40, of which 0 cannot be restored",
        "timeline 2 left timeline 1 at LSN",
    ] {
        assert!(told.contains(words), "{words} is not in {told}");
    }
}

// Seen to fail: `status/picture/lane.rs`: each gap is drawn for itself
#[test]
fn a_large_archive_is_drawn_in_a_moment_and_stays_small() {
    for (name, report) in [("large", large()), ("many-gaps", many_gaps())] {
        let begin = Instant::now();
        let svg = svg(&report, WIDE);
        let took = begin.elapsed();
        assert!(took < Duration::from_millis(200), "{name}: {took:?}");
        assert!(svg.len() < 200_000, "{name}: {} bytes", svg.len());
    }
}

// Seen to fail: `status/picture.rs`: `write` copies into the file
#[test]
fn the_file_is_replaced_as_a_whole() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.svg");
    write(&one_backup(), &path).unwrap();
    let first = path.metadata().unwrap().ino();
    let reader = std::fs::File::open(&path).unwrap();
    write(&large(), &path).unwrap();
    assert_ne!(
        path.metadata().unwrap().ino(),
        first,
        "a reader of the old one keeps it"
    );
    assert_eq!(reader.metadata().unwrap().ino(), first);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), svg(&large(), WIDE));
    assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    let error = write(&large(), &directory.path().join("no/history.svg")).unwrap_err();
    assert!(error.to_string().contains("no/history.svg"), "{error}");
}

/// The names of all fields within a value, with the way to each.
fn fields(value: &serde_json::Value, way: &str, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(members) => {
            for (name, member) in members {
                let way = if way.is_empty() {
                    name.clone()
                } else {
                    format!("{way}.{name}")
                };
                fields(member, &way, found);
            }
        }
        serde_json::Value::Array(entries) => {
            let way = format!("{way}[]");
            for entry in entries {
                fields(entry, &way, found);
            }
        }
        _ => {
            found.insert(way.trim_end_matches("[]").to_owned());
        }
    }
}

// Seen to fail: `docs/json.md`: a field has another name
#[test]
fn every_field_of_the_json_is_in_the_documentation() {
    let page = include_str!("../../../../docs/json.md");
    let mut found = BTreeSet::new();
    for (_, report) in all() {
        fields(&serde_json::to_value(report).unwrap(), "", &mut found);
    }
    assert!(found.len() > 60, "{found:?}");
    found.retain(|way| !way.starts_with("window[].missing."));
    for way in found {
        assert!(page.contains(&format!("`{way}`")), "{way} is not in docs/json.md");
    }
}

#[test]
#[ignore = "writes the pictures into WALSHIP_PICTURES, for people to look at"]
fn pictures_to_look_at() {
    let directory = std::path::PathBuf::from(std::env::var_os("WALSHIP_PICTURES").unwrap());
    for (name, report) in all() {
        for (suffix, width) in [("wide", WIDE), ("phone", PHONE)] {
            std::fs::write(
                directory.join(format!("{name}-{suffix}.svg")),
                svg(&report, width),
            )
            .unwrap();
        }
    }
}
