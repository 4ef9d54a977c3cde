//! Damage × place: every kind of stored object, spoiled in every way, and what `list`, `recover` and
//! `restore` say to it. Never success with wrong data, and never a directory that could be started.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use walship_core::pg::Major;

use crate::recovery::{History, take_backup};
use crate::server::wait_archived;
use crate::support::postgres::{Cluster, Stop};
use crate::support::process::Output;
use crate::support::stores::Place;
use crate::support::walship::Walship;
use crate::support::{command_as_user, make_dir, scratch, sealed};

/// One archive, undamaged: two backups on timeline 1, two promotions, and what recovery to its end
/// gives.
pub(crate) struct Original {
    archive: PathBuf,
    tablespaces: [PathBuf; 2],
    /// The first backup, of which the cases damage the objects.
    pub(crate) backup: String,
    pub(crate) other_backup: String,
    /// A segment that the first backup cannot be restored without.
    pub(crate) segment: String,
    /// Every file of the data directory and its tablespaces as restored from the first backup.
    restored: BTreeMap<PathBuf, Vec<u8>>,
}

impl Original {
    pub(crate) fn shared() -> &'static Self {
        static ORIGINAL: OnceLock<Original> = OnceLock::new();
        ORIGINAL.get_or_init(Self::make)
    }

    fn make() -> Self {
        let mut history = History::write(Major::V17, Place::directory());
        history.primary.sql(
            "insert into orders select g, date '2026-10-01' + g % 61 from generate_series(9001, 12000) g",
        );
        let other_backup = take_backup(&history.walship, &history.primary);
        history.primary.stop(Stop::Fast);
        let mut second = history.recovered(&[
            "--backup",
            &history.backup,
            "--target-lsn",
            &history.lsn_after_2,
            "--target-action",
            "promote",
            "--archive-mode",
            "keep",
        ]);
        let segment = second.cluster.switch_wal();
        wait_archived(&second.cluster, &segment);
        second.cluster.stop(Stop::Fast);
        second.cluster.append(
            "postgresql.auto.conf",
            "recovery_target_lsn = ''\nrecovery_target_timeline = 'latest'\n",
        );
        second.cluster.append("recovery.signal", "");
        second.cluster.start();
        second
            .cluster
            .wait_until("select not pg_is_in_recovery()", "t", crate::recovery::PATIENCE);
        let segment = second.cluster.switch_wal();
        assert_eq!(&segment[..8], "00000003");
        wait_archived(&second.cluster, &segment);
        second.cluster.stop(Stop::Fast);

        let archive = history.place.path().unwrap().to_owned();
        let record =
            json(&fs::read(archive.join(format!("backups/{}/backup.json", history.backup))).unwrap());
        let start: Vec<u64> = record["start_lsn"]
            .as_str()
            .unwrap()
            .split('/')
            .map(|half| u64::from_str_radix(half, 16).unwrap())
            .collect();
        let mut original = Self {
            archive,
            tablespaces: history.tablespaces.clone(),
            backup: history.backup.clone(),
            other_backup,
            segment: format!("00000001{:08X}{:08X}", start[0], start[1] >> 20),
            restored: BTreeMap::new(),
        };
        let whole = Case::of(&original);
        let attempt = whole.recover(&original);
        attempt.output.clone().succeeded();
        original.restored = attempt.files();
        assert!(original.restored.len() > 900, "{}", original.restored.len());
        // The folder outlives the servers that wrote it: every case copies it.
        std::mem::forget(history.place);
        original
    }

    /// The objects to damage: what they are, their keys, and another object of the same kind.
    pub(crate) fn objects(&self) -> Vec<(&'static str, String, String)> {
        let of = |name: &str| (Self::key(&self.backup, name), Self::key(&self.other_backup, name));
        let tablespace = fs::read_dir(self.archive.join(Self::key(&self.backup, "")))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .find(|name| name.bytes().all(|b| b.is_ascii_digit()))
            .unwrap();
        let wal = |name: &str| format!("wal/{}/{}/{name}.zst", &name[..8], &name[..16]);
        let next = format!("{:024X}", u128::from_str_radix(&self.segment, 16).unwrap() + 1);
        let objects: Vec<(&'static str, (String, String))> = vec![
            ("record", of("backup.json")),
            ("index", of("files.zst")),
            ("manifest", of("manifest.zst")),
            ("base part", of("base/000001.tar.zst")),
            ("tablespace part", of(&format!("{tablespace}/000001.tar.zst"))),
            ("segment", (wal(&self.segment), wal(&next))),
            (
                "history",
                (
                    "wal/00000003.history.zst".into(),
                    "wal/00000002.history.zst".into(),
                ),
            ),
            // Of this kind an archive has one: another is made up.
            ("identity", ("walship.json".into(), "walship.json".into())),
        ];
        objects
            .into_iter()
            .map(|(kind, (key, other))| (kind, key, other))
            .collect()
    }

    /// The object of one kind, and another one.
    fn object(&self, kind: &str) -> (String, String) {
        let mut objects = self.objects().into_iter();
        let (_, key, other) = objects.find(|(name, ..)| *name == kind).unwrap();
        (key, other)
    }

    fn key(backup: &str, name: &str) -> String {
        format!("backups/{backup}/{name}")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    BitFlip,
    Truncation,
    Emptiness,
    Deletion,
    Swap,
}

pub(crate) const EVERY: [Damage; 5] = [
    Damage::BitFlip,
    Damage::Truncation,
    Damage::Emptiness,
    Damage::Deletion,
    Damage::Swap,
];

/// A copy of the archive, to be damaged.
pub(crate) struct Case {
    root: tempfile::TempDir,
    pub(crate) archive: PathBuf,
}

impl Case {
    pub(crate) fn of(original: &Original) -> Self {
        let root = scratch();
        let archive = root.path().join("archive");
        let copied = command_as_user("/bin/cp")
            .args(["-a", "--reflink=auto"])
            .arg(&original.archive)
            .arg(&archive)
            .status()
            .unwrap();
        assert!(copied.success());
        Self { root, archive }
    }

    /// Spoils an object; `other` is another of its kind.
    pub(crate) fn damage(&self, key: &str, other: &str, damage: Damage) {
        let path = self.archive.join(key);
        let mut bytes = fs::read(&path).unwrap();
        match damage {
            // In a segment that is mostly empty, the trailer is the larger part.
            Damage::BitFlip => {
                let place = bytes.len() / 8;
                bytes[place] ^= 1;
            }
            Damage::Truncation => bytes.truncate(bytes.len() / 2),
            Damage::Emptiness => bytes.clear(),
            Damage::Deletion => return fs::remove_file(&path).unwrap(),
            Damage::Swap if key == other => bytes = another_identity(&bytes),
            Damage::Swap => bytes = fs::read(self.archive.join(other)).unwrap(),
        }
        self.write(key, &bytes);
    }

    fn write(&self, key: &str, bytes: &[u8]) {
        fs::write(self.archive.join(key), bytes).unwrap();
    }

    pub(crate) fn walship(&self) -> Walship {
        Walship::new(&format!("file://{}", self.archive.display())).env("WALSHIP_RESTORE_TIMEOUT", "2s")
    }

    fn recover(&self, original: &Original) -> Attempt {
        let root = scratch();
        let data = root.path().join("data");
        let mut arguments = vec![
            "recover".to_owned(),
            "--pgdata".into(),
            data.to_str().unwrap().into(),
            "--backup".into(),
            original.backup.clone(),
            // Production lives on timeline 1 too: which one is meant must be said.
            "--target-timeline".into(),
            "3".into(),
        ];
        for (i, tablespace) in original.tablespaces.iter().enumerate() {
            let new = root.path().join(format!("ts{i}"));
            arguments.push("--tablespace-mapping".into());
            arguments.push(format!("{}={}", tablespace.display(), new.display()));
        }
        let output = self.walship().run(&arguments);
        Attempt { output, root }
    }

    /// Restores one file as in archive recovery.
    fn restore(&self, name: &str) -> (Output, Option<Vec<u8>>) {
        let data = tempfile::Builder::new()
            .prefix("data")
            .tempdir_in(self.root.path())
            .unwrap();
        crate::support::give_to_user(data.path());
        make_dir(data.path(), "pg_wal", 0o700);
        fs::write(data.path().join("recovery.signal"), "").unwrap();
        let output = self
            .walship()
            .in_dir(data.path())
            .run(&["restore", name, "pg_wal/RECOVERYXLOG"]);
        let delivered = fs::read(data.path().join("pg_wal/RECOVERYXLOG")).ok();
        let left = fs::read_dir(data.path().join("pg_wal")).unwrap().count();
        assert_eq!(
            left,
            usize::from(delivered.is_some()),
            "{name}: something was left behind"
        );
        (output, delivered)
    }

    fn list(&self) -> (Output, Option<Value>) {
        let output = self.walship().run(&["list", "--json"]);
        let value = serde_json::from_str(&output.stdout).ok();
        (output, value)
    }
}

struct Attempt {
    output: Output,
    root: tempfile::TempDir,
}

impl Attempt {
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(self.root.path(), self.root.path(), &mut files);
        // It names the archive, which is another folder in each case.
        files.remove(Path::new("data/postgresql.auto.conf"));
        // It names the archive's own place.
        files.remove(Path::new("data/walship.clone"));
        // It names where the tablespaces are now.
        let map = files.get_mut(Path::new("data/tablespace_map")).unwrap();
        let text = String::from_utf8(map.clone()).unwrap();
        *map = text
            .replace(self.root.path().to_str().unwrap(), "ROOT")
            .into_bytes();
        files
    }

    fn left(&self) -> Vec<PathBuf> {
        fs::read_dir(self.root.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            collect(root, &path, files);
        } else if kind.is_file() {
            files.insert(
                path.strip_prefix(root).unwrap().to_owned(),
                fs::read(&path).unwrap(),
            );
        }
    }
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn another_identity(bytes: &[u8]) -> Vec<u8> {
    let mut identity = json(bytes);
    identity["system_identifier"] = "7000000000000000001".into();
    sealed(identity.to_string())
}

/// What every case must keep to: `recover` restores exactly what the backup holds, or says one line
/// and leaves nothing at all.
fn recover_is_right_or_refuses(case: &Case, original: &Original, what: &str) -> Output {
    let attempt = case.recover(original);
    let output = attempt.output.clone();
    if output.code == Some(0) {
        let files = attempt.files();
        let differing: Vec<_> = original
            .restored
            .iter()
            .filter(|(path, content)| files.get(*path) != Some(content))
            .map(|(path, _)| path)
            .collect();
        assert!(
            differing.is_empty(),
            "{what}: success with wrong data in {differing:?}"
        );
        assert_eq!(
            files.len(),
            original.restored.len(),
            "{what}: success with other files"
        );
    } else {
        one_line(&output, what);
        assert!(
            output.code.is_some_and(|code| (2..=8).contains(&code)),
            "{what}: {output:#?}"
        );
        assert_eq!(
            attempt.left(),
            Vec::<PathBuf>::new(),
            "{what}: something was left: {output:#?}"
        );
    }
    output
}

#[track_caller]
fn one_line(output: &Output, what: &str) {
    assert_eq!(output.stderr.trim_end().lines().count(), 1, "{what}: {output:#?}");
}

#[track_caller]
fn refused(output: &Output, code: i32, name: &str, what: &str) {
    assert_eq!(output.code, Some(code), "{what}: {output:#?}");
    assert!(
        output.stderr.contains(name),
        "{what} should name {name}: {output:#?}"
    );
}

/// Whether `list` offers the backup; where it does not, it says why.
fn is_offered(case: &Case, original: &Original, what: &str) -> bool {
    let (output, report) = case.list();
    assert_eq!(output.code, Some(0), "{what}: {output:#?}");
    let report = report.unwrap();
    let has = |part: &str, id: &str| {
        report[part]
            .as_array()
            .is_some_and(|entries| entries.iter().any(|entry| entry["id"] == id))
    };
    assert!(
        has("backups", &original.other_backup),
        "{what}: the other backup is sound"
    );
    let offered = has("backups", &original.backup);
    let explained = has("unrestorable", &original.backup) || has("unfinished", &original.backup);
    assert_ne!(offered, explained, "{what}: {}", output.stdout);
    offered
}

/// Damages one kind of object in every way and calls `check` with each.
fn every_damage(kind: &str, check: impl Fn(&Original, &Case, Damage, &str)) {
    let original = Original::shared();
    let (key, other) = original.object(kind);
    for damage in EVERY {
        let case = Case::of(original);
        case.damage(&key, &other, damage);
        check(original, &case, damage, &format!("{kind}, {damage:?}"));
    }
}

#[test]
fn a_damaged_record_is_no_backup() {
    every_damage("record", |original, case, damage, what| {
        let output = recover_is_right_or_refuses(case, original, what);
        let offered = is_offered(case, original, what);
        // One bit may leave a readable record; then it must describe what is there.
        if damage == Damage::BitFlip {
            assert!(offered || output.code != Some(0), "{what}: {output:#?}");
            return;
        }
        assert!(!offered, "{what}");
        refused(
            &output,
            if damage == Damage::Deletion { 8 } else { 7 },
            &original.backup,
            what,
        );
    });
}

#[test]
fn no_bit_of_a_record_leads_to_wrong_data() {
    let original = Original::shared();
    let key = Original::key(&original.backup, "backup.json");
    let record = fs::read(original.archive.join(&key)).unwrap();
    let case = Case::of(original);
    let mut refusals = 0;
    for (i, position) in (0..record.len()).step_by(record.len() / 40).enumerate() {
        let mut bytes = record.clone();
        bytes[position] ^= [1, 2, 4, 16][i % 4];
        case.write(&key, &bytes);
        let what = format!("bit of byte {position} of backup.json");
        let output = recover_is_right_or_refuses(&case, original, &what);
        refusals += usize::from(output.code != Some(0));
    }
    assert!(refusals >= 40, "{refusals}");
}

fn part_of_a_backup(kind: &str, name: &str) {
    every_damage(kind, |original, case, damage, what| {
        let output = recover_is_right_or_refuses(case, original, what);
        let (key, _) = original.object(kind);
        let size = |archive: &Path| fs::metadata(archive.join(&key)).ok().map(|object| object.len());
        // A listing shows sizes, not bits. Another backup's object may happen to have the same size.
        let same_size = size(&case.archive) == size(&original.archive);
        assert!(same_size || damage != Damage::BitFlip, "{what}");
        assert_eq!(is_offered(case, original, what), same_size, "{what}: {output:#?}");
        // Nothing is restored from the manifest: it is for pg_verifybackup.
        if kind == "manifest" && same_size {
            return;
        }
        refused(&output, 7, name, what);
    });
}

#[test]
fn a_damaged_index_is_named() {
    part_of_a_backup("index", "files.zst");
}

#[test]
fn a_damaged_manifest_harms_nothing_that_is_restored() {
    part_of_a_backup("manifest", "manifest.zst");
}

#[test]
fn a_damaged_part_of_the_data_directory_is_named() {
    part_of_a_backup("base part", "base/000001.tar.zst");
}

#[test]
fn a_damaged_part_of_a_tablespace_is_named() {
    part_of_a_backup("tablespace part", "/000001.tar.zst");
}

/// The record's hash decides, not the checksum inside the object, which anybody can make anew.
#[test]
fn a_sound_part_with_other_content_is_refused() {
    let original = Original::shared();
    let case = Case::of(original);
    let part = case
        .archive
        .join(Original::key(&original.backup, "base/000001.tar.zst"));
    let script = format!(
        "zstd -dc '{part}' | sed 's/max_connections = 100/max_connections = 999/' | zstd -1 --check -c >'{part}.new' \
         && mv '{part}.new' '{part}'",
        part = part.display()
    );
    assert!(
        command_as_user("/bin/sh")
            .args(["-c", &script])
            .status()
            .unwrap()
            .success()
    );
    // Even where the record states the new size.
    let key = Original::key(&original.backup, "backup.json");
    let mut record = json(&fs::read(case.archive.join(&key)).unwrap());
    let streams = record["streams"].as_array_mut().unwrap();
    let base = streams
        .iter_mut()
        .find(|stream| stream["tablespace"].is_null())
        .unwrap();
    let (before, now) = (
        base["parts"][0]["stored_bytes"].as_u64().unwrap(),
        fs::metadata(&part).unwrap().len(),
    );
    base["parts"][0]["stored_bytes"] = now.into();
    record["stored_bytes"] = (record["stored_bytes"].as_u64().unwrap() - before + now).into();
    case.write(&key, &sealed(record.to_string()));
    let what = "other content in base/000001.tar.zst";
    let output = recover_is_right_or_refuses(&case, original, what);
    refused(&output, 7, "base/000001.tar.zst", what);
}

#[test]
fn a_damaged_segment_is_never_delivered() {
    every_damage("segment", |original, case, damage, what| {
        let (output, delivered) = case.restore(&original.segment);
        assert!(delivered.is_none(), "{what}");
        refused(&output, 200, &original.segment, what);
        one_line(&output, what);
        let recovered = recover_is_right_or_refuses(case, original, what);
        let is_gone = matches!(damage, Damage::Emptiness | Damage::Deletion);
        assert_eq!(is_offered(case, original, what), !is_gone, "{what}");
        if is_gone {
            refused(&recovered, 7, &original.segment, what);
        }
    });
}

/// `recover` does not read all WAL beforehand: where it is damaged, the started server must stop.
#[test]
fn postgresql_stops_at_a_damaged_segment() {
    let original = Original::shared();
    let case = Case::of(original);
    let (_, key, other) = original
        .objects()
        .into_iter()
        .find(|(kind, ..)| *kind == "segment")
        .unwrap();
    case.damage(&key, &other, Damage::BitFlip);
    let attempt = case.recover(original);
    attempt.output.clone().succeeded();
    let mut copy = Cluster::adopt(Major::V17, attempt.root.path().join("data"));
    let log = copy
        .try_start()
        .expect_err("started without the WAL that makes it consistent");
    assert!(
        log.contains("exit code 200") && log.contains(&original.segment),
        "{log}"
    );
}

#[test]
fn a_damaged_history_is_never_taken_for_absence() {
    every_damage("history", |original, case, damage, what| {
        let (output, delivered) = case.restore("00000003.history");
        assert!(delivered.is_none(), "{what}");
        refused(&output, 200, "00000003.history", what);
        one_line(&output, what);
        // The backup can be restored, to another timeline.
        assert!(is_offered(case, original, what), "{what}");
        let recovered = recover_is_right_or_refuses(case, original, what);
        let is_gone = matches!(damage, Damage::Emptiness | Damage::Deletion);
        refused(&recovered, if is_gone { 2 } else { 7 }, "00000003.history", what);
    });
}

#[test]
fn without_a_sound_identity_nothing_is_said_to_be_there_or_absent() {
    every_damage("identity", |original, case, damage, what| {
        let recovered = recover_is_right_or_refuses(case, original, what);
        let missing = format!(
            "{:024X}",
            u128::from_str_radix(&original.segment, 16).unwrap() + 99
        );
        for name in [&original.segment, &missing] {
            let (output, delivered) = case.restore(name);
            assert!(delivered.is_none(), "{what}, {name}");
            if damage == Damage::Swap && *name == missing {
                continue; // its own cluster's archive may well have no such segment
            }
            refused(&output, 200, "archive", &format!("{what}, {name}"));
            one_line(&output, what);
        }
        let (output, report) = case.list();
        if damage == Damage::Swap {
            refused(&recovered, 7, "system identifier", what);
            assert_eq!(report.unwrap()["backups"], Value::Array(Vec::new()), "{what}");
            return;
        }
        let code = if damage == Damage::Deletion { 2 } else { 7 };
        refused(&recovered, code, "walship.json", what);
        refused(&output, code, "walship.json", what);
        one_line(&output, what);
    });
}
