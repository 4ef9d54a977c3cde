//! `walship verify`: what it finds, what it costs, and what it must not take for damage.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::Value;
use walship::inside::Archive;
use walship::inside::Progress;
use walship::inside::keep::{self, Mark};
use walship::inside::last_verification;
use walship::inside::verify::{self, FindingKind, VerifyOptions, VerifyReport};
use walship_core::ErrorKind;
use walship_core::format::ledger::LedgerSummary;
use walship_store::{FaultKind, Faults, Location, Operation, Store};

use crate::damage::{Case, Damage, EVERY, Original};
use crate::recovery::History;
use crate::sample::Sample;
use crate::server::majors;
use crate::store_contract::{block_on, options};
use crate::support::sealed;
use crate::support::stores::Place;
use crate::support::trace::with_fault;
use crate::support::walship::Walship;

pub fn store_of(place: &Place) -> Store {
    let location: Location = place.url.parse().unwrap();
    block_on(Store::open(&location, &options(place))).unwrap()
}

/// How the last verification ended.
fn last_run(place: &Place) -> walship_core::Result<Option<LedgerSummary>> {
    let store = store_of(place);
    block_on(async { last_verification(&Archive::open(&store).await?).await })
}

fn defaults() -> VerifyOptions {
    VerifyOptions {
        full: false,
        since: None,
        recheck: Duration::from_hours(24 * 30),
        concurrency: 2,
        max_rate: None,
        second_look_after: Duration::ZERO,
    }
}

/// Verifies within this process, without the pause before the second look.
pub fn verify(place: &Place, change: impl FnOnce(&mut VerifyOptions)) -> VerifyReport {
    verify_at(place, Utc::now(), change)
}

pub fn verify_at(place: &Place, now: DateTime<Utc>, change: impl FnOnce(&mut VerifyOptions)) -> VerifyReport {
    verify_store(&store_of(place), now, change).unwrap()
}

fn verify_store(
    store: &Store,
    now: DateTime<Utc>,
    change: impl FnOnce(&mut VerifyOptions),
) -> walship_core::Result<VerifyReport> {
    let mut options = defaults();
    change(&mut options);
    block_on(verify::run(&options, store, now, &Arc::new(Progress::default())))
}

fn place_of(case: &Case) -> Place {
    Place::directory().with_url(&format!("file://{}", case.archive.display()))
}

// Seen to fail: `verify/contents.rs`: no difference counts; checksums of files in several parts are not combined
#[test]
fn a_real_archive_is_clean_and_every_file_is_compared_with_the_manifest() {
    for &major in majors() {
        // Parts so small that files span several of them.
        let place = Place::directory();
        let history = History::write(major, place);
        let walship = history.walship.clone().env("WALSHIP_BACKUP_PART_SIZE", "4MiB");
        let backup = crate::recovery::take_backup(&walship, &history.primary);
        let segment = history.primary.switch_wal();
        crate::server::wait_archived(&history.primary, &segment);
        let output = walship.run(&["verify", "--json"]).succeeded();
        let report: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(report["is_clean"], true, "{major}: {}", output.stdout);
        assert_eq!(report["objects"], report["read_objects"], "{major}");
        let ids: Vec<_> = report["backups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| &b["id"])
            .collect();
        assert_eq!(ids, [history.backup.as_str(), backup.as_str()]);
        for backup in report["backups"].as_array().unwrap() {
            assert_eq!(
                backup["leads_to"][0]["end"], "end_of_wal",
                "{major}: {}",
                output.stdout
            );
        }
        what_expire_gave_up_is_no_damage(&history);
        a_file_that_differs_from_the_manifest_is_found(&history, &backup);
    }
}

/// The first backup is kept, and the WAL between it and the second is not.
fn what_expire_gave_up_is_no_damage(history: &History) {
    let walship = &history.walship;
    walship.run(&["keep", &history.backup, "--forever"]).succeeded();
    let policy = walship.clone().env("WALSHIP_RETENTION_KEEP_BACKUPS", "1");
    policy.run(&["expire"]).succeeded();
    let output = walship.run(&["verify", "--json"]).succeeded();
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    let backups = report["backups"].as_array().unwrap().iter();
    let ends: Vec<_> = backups.map(|backup| &backup["leads_to"][0]["end"]).collect();
    assert_eq!(ends, ["released", "end_of_wal"], "{}", output.stdout);
}

/// Parts and record agree, and PostgreSQL's manifest says otherwise.
fn a_file_that_differs_from_the_manifest_is_found(history: &History, backup: &str) {
    let folder = history.place.path().unwrap().join(format!("backups/{backup}"));
    let part = folder.join("base/000003.tar.zst");
    let mut tar = zstd_of(&part, "-dc", &[]);
    // In the middle of a part lies a file's content; the header of the next is far away.
    let middle = tar.len() / 3 / 512 * 512 + 100;
    tar[middle] ^= 1;
    let stored = zstd_of(&part, "-c", &tar);
    fs::write(&part, &stored).unwrap();
    let mut record: Value = serde_json::from_slice(&fs::read(folder.join("backup.json")).unwrap()).unwrap();
    let streams = record["streams"].as_array_mut().unwrap();
    let base = streams
        .iter_mut()
        .find(|stream| stream["tablespace"].is_null())
        .unwrap();
    let before = base["parts"][2]["stored_bytes"].as_u64().unwrap();
    base["parts"][2]["stored_bytes"] = stored.len().into();
    base["parts"][2]["sha256"] = walship_core::format::Sha256Sum::of(&stored).to_string().into();
    let sum = record["stored_bytes"].as_u64().unwrap() - before + stored.len() as u64;
    record["stored_bytes"] = sum.into();
    fs::write(folder.join("backup.json"), sealed(record.to_string())).unwrap();
    let changed = verify(&history.place, |_| {});
    assert_eq!(changed.findings.len(), 2, "a record is written once: {changed}");
    let report = verify(&history.place, |options| options.full = true);
    assert_eq!(report.findings.len(), 1, "{report}");
    let finding = &report.findings[0];
    assert!(
        finding
            .what
            .contains("1 of its files differ from PostgreSQL's manifest"),
        "{report}"
    );
    let broken = report
        .backups
        .iter()
        .find(|worth| worth.id.to_string() == backup)
        .unwrap();
    assert!(broken.unrestorable.is_some(), "{report}");
}

fn zstd_of(file: &Path, flag: &str, input: &[u8]) -> Vec<u8> {
    match flag {
        "-dc" => zstd_run(&[flag, file.to_str().unwrap()], input),
        _ => zstd_run(&[flag], input),
    }
}

fn zstd_run(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("zstd")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

/// Every kind of object, spoiled in every way, one after another in one archive: the ledger knows the rest.
// Seen to fail: `archive/wal_object.rs`: the decoder's verdict does not count; no `trailer.check`;
// `verify/contents.rs`: no `decompressor.finish`; `verify/backups.rs`: a record is not compared with the ledger; a lost
// record is not looked for
#[test]
fn every_damage_to_every_kind_of_object_is_found() {
    let original = Original::shared();
    let case = Case::of(original);
    let place = place_of(&case);
    let clean = verify(&place, |_| {});
    assert!(clean.is_clean, "{clean}");
    let ways: Vec<_> = clean.backups.iter().map(|worth| worth.leads_to.len()).collect();
    // The second backup ended after timeline 2 had left the first.
    assert_eq!(ways, [3, 1], "{clean}");
    for (kind, key, other) in original.objects() {
        let path = case.archive.join(&key);
        let whole = fs::read(&path).unwrap();
        for damage in EVERY {
            let what = format!("{kind}, {damage:?}");
            case.damage(&key, &other, damage);
            match kind {
                "identity" => identity_is_noticed(&place, damage, &what),
                _ => object_is_noticed(&place, original, kind, &key, damage, &what),
            }
            fs::write(&path, &whole).unwrap();
            let mended = verify(&place, |_| {});
            assert!(mended.is_clean, "{what}, mended: {mended}");
            assert!(mended.read_objects < mended.objects / 2, "{what}: {mended}");
        }
    }
}

fn object_is_noticed(place: &Place, original: &Original, kind: &str, key: &str, damage: Damage, what: &str) {
    let report = verify(place, |_| {});
    assert!(!report.is_clean, "{what}: {report}");
    let finding = report.findings.iter().find(|finding| finding.key == key);
    let finding = finding.unwrap_or_else(|| panic!("{what}: no finding names {key}: {report}"));
    let expected = match damage {
        Damage::Deletion => FindingKind::Missing,
        _ => FindingKind::Damaged,
    };
    assert_eq!(finding.kind, expected, "{what}: {report}");
    let worth = |id: &str| {
        report
            .backups
            .iter()
            .find(|worth| worth.id.to_string() == id)
            .unwrap()
    };
    if kind != "history" {
        assert!(worth(&original.backup).unrestorable.is_some(), "{what}: {report}");
    }
    // The other one is sound, and needs nothing of what was damaged but the history.
    assert!(
        worth(&original.other_backup).unrestorable.is_none(),
        "{what}: {report}"
    );
}

#[test]
fn a_marked_backup_that_lost_its_record_is_missed_even_by_the_first_run() {
    let original = Original::shared();
    let case = Case::of(original);
    let place = place_of(&case);
    let id = original.backup.parse().unwrap();
    block_on(keep::run(&id, Mark::Set(None), &store_of(&place), Utc::now())).unwrap();
    let key = format!("backups/{}/backup.json", original.backup);
    let whole = fs::read(case.archive.join(&key)).unwrap();
    fs::remove_file(case.archive.join(&key)).unwrap();
    let report = verify(&place, |_| {});
    assert_eq!(report.findings[0].key, key, "{report}");
    assert_eq!(report.findings[0].kind, FindingKind::Missing);
    assert!(!report.is_clean);
    fs::write(case.archive.join(&key), whole).unwrap();
    let report = verify(&place, |_| {});
    assert!(report.is_clean, "{report}");
}

// Seen to fail: `archive/wal_object.rs`: no `judge_end`
#[test]
fn a_segment_whose_wal_ends_early_is_damage_where_another_follows() {
    let data = Sample::shared().copy();
    let place = Place::directory();
    let walship = data.walship(&place);
    let segments = &Sample::shared().segments;
    let second = data.segment(&segments[1]);
    let mut content = fs::read(&second).unwrap();
    content[8 * 8192..].fill(0);
    fs::write(&second, content).unwrap();
    for (number, segment) in segments[..3].iter().enumerate() {
        data.announce(segment);
        walship.run(&["push", &format!("pg_wal/{segment}")]).succeeded();
        let report = verify(&place, |options| options.full = true);
        let found: Vec<_> = report.findings.iter().map(|finding| &finding.name).collect();
        // As the last one it may be what a server left that was lost.
        let expected = [Some(segments[1].clone())];
        let expected: Vec<_> = expected.iter().filter(|_| number == 2).collect();
        assert_eq!(found, expected, "{report}");
    }
}

// Seen to fail: `verify/tally.rs`: any name counts
#[test]
fn a_damaged_object_with_a_wild_name_is_told_and_nothing_else_is_missed_for_it() {
    let original = Original::shared();
    let case = Case::of(original);
    let key = "wal/00000002/00000002FFFFFF00/00000002FFFFFF00000000F0.zst";
    fs::create_dir_all(case.archive.join(key).parent().unwrap()).unwrap();
    fs::write(case.archive.join(key), b"not zstd").unwrap();
    let report = verify(&place_of(&case), |_| {});
    let found: Vec<_> = report
        .findings
        .iter()
        .map(|finding| finding.key.as_str())
        .collect();
    assert_eq!(found, [key], "{report}");
    assert!(report.lost.is_empty(), "{report}");
}

/// Who owns the archive must be known before anything else.
fn identity_is_noticed(place: &Place, damage: Damage, what: &str) {
    match verify_store(&store_of(place), Utc::now(), |_| {}) {
        Ok(report) => assert!(!report.is_clean, "{what}: {report}"),
        Err(error) => {
            let expected = match damage {
                Damage::Deletion => ErrorKind::Invalid,
                _ => ErrorKind::Corrupt,
            };
            assert_eq!(error.kind(), expected, "{what}: {error}");
        }
    }
}

// Seen to fail: `verbs/verify/args.rs`: exit code 0
#[test]
fn damage_ends_with_7_and_both_outputs_name_it_and_what_it_costs() {
    let original = Original::shared();
    let case = Case::of(original);
    let (_, key, other) = original
        .objects()
        .into_iter()
        .find(|(kind, ..)| *kind == "segment")
        .unwrap();
    case.walship().run(&["verify"]).succeeded();
    case.damage(&key, &other, Damage::BitFlip);
    let text = case.walship().run(&["verify"]).exited(7);
    for said in [
        format!("DAMAGED {key}"),
        format!("walship repair {}", original.segment),
        format!("backup {} CANNOT BE RESTORED", original.backup),
        format!("backup {} can be restored", original.other_backup),
        "OUT OF REACH".to_owned(),
        format!("until backup {}", original.other_backup),
    ] {
        assert!(text.stdout.contains(&said), "{said}: {text:#?}");
    }
    let json = case.walship().run(&["verify", "--json"]).exited(7);
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(report["findings"][0]["key"], key.as_str());
    assert_eq!(report["findings"][0]["name"], original.segment.as_str());
    assert_eq!(report["lost"][0]["segments"]["first"], original.segment.as_str());
    let last = last_run(&place_of(&case)).unwrap().unwrap();
    assert_eq!(
        (last.last.findings_count, last.last.findings[0].key.as_str()),
        (1, key.as_str())
    );
    assert!(
        last.last_clean_at
            .is_some_and(|clean| clean < last.last.started_at)
    );
}

// Seen to fail: `archive/wal_object.rs`: one attempt
#[test]
fn an_outage_is_no_damage() {
    let original = Original::shared();
    let case = Case::of(original);
    let store = store_of(&place_of(&case));
    for (operation, key) in [
        (Operation::Get, ".zst"),
        (Operation::List, ""),
        (Operation::Put, "ledger/"),
    ] {
        let faults = Faults::default();
        for _ in 0..5 {
            faults.add(operation, key, FaultKind::Before(ErrorKind::Unavailable));
        }
        let error = verify_store(&store.with_faults(faults), Utc::now(), |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{operation:?}: {error}");
    }
    // A body that breaks off is read again.
    let faults = Faults::default();
    faults.add(
        Operation::Get,
        &format!("{}.zst", original.segment),
        FaultKind::Short,
    );
    let patient = store.with_faults(faults).with_retry_time(Duration::from_secs(30));
    let report = verify_store(&patient, Utc::now(), |options| {
        options.full = true;
    })
    .unwrap();
    assert!(report.is_clean, "{report}");
    // So is one that came damaged and is not.
    let faults = Faults::default();
    faults.add(
        Operation::Get,
        &format!("{}.zst", original.segment),
        FaultKind::Corrupt,
    );
    let report = verify_store(&store.with_faults(faults), Utc::now(), |options| {
        options.full = true;
    })
    .unwrap();
    assert!(report.is_clean, "{report}");
}

/// Something happens in the archive while an object is waited for.
fn meanwhile(case: &Case, held: &str, happens: impl FnOnce() + Send + 'static) -> VerifyReport {
    let faults = Faults::default();
    faults.add(Operation::Get, held, FaultKind::Delay(Duration::from_millis(700)));
    let store = store_of(&place_of(case)).with_faults(faults.clone());
    let waited_for = faults.clone();
    let other = thread::spawn(move || {
        while waited_for.left() > 0 {
            thread::sleep(Duration::from_millis(5));
        }
        happens();
    });
    let report = verify_store(&store, Utc::now(), |options| {
        options.full = true;
        options.second_look_after = Duration::from_millis(300);
        options.concurrency = 1;
    });
    assert_eq!(faults.left(), 0, "{held} was never read");
    other.join().unwrap();
    report.unwrap()
}

fn remove_below(folder: &Path, wanted: impl Fn(&str) -> bool + Copy) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            remove_below(&path, wanted);
        } else if wanted(path.file_name().unwrap().to_str().unwrap()) {
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn what_expire_deletes_meanwhile_is_no_damage() {
    let original = Original::shared();
    for held in [
        format!("{}.zst", original.segment),
        format!("{}/base/000001.tar.zst", original.backup),
        "walship.json".to_owned(),
    ] {
        let case = Case::of(original);
        let (archive, backup) = (case.archive.clone(), original.backup.clone());
        let first_kept = start_segment(&case, &original.other_backup);
        let report = meanwhile(&case, &held, move || {
            let folder = archive.join("backups").join(&backup);
            fs::remove_file(folder.join("backup.json")).unwrap();
            remove_below(&folder, |_| true);
            remove_below(&archive.join("wal/00000001"), |name| name < first_kept.as_str());
        });
        assert!(report.is_clean, "{held}: {report}");
        assert!(verify(&place_of(&case), |_| {}).is_clean, "{held}");
    }
}

fn start_segment(case: &Case, backup: &str) -> String {
    let record = fs::read(case.archive.join(format!("backups/{backup}/backup.json"))).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let start: walship_core::pg::Lsn = record["start_lsn"].as_str().unwrap().parse().unwrap();
    format!("0000000100000000{:08X}", start.0 >> 20)
}

#[test]
fn a_backup_that_ends_meanwhile_is_no_damage() {
    let original = Original::shared();
    let case = Case::of(original);
    let record = case
        .archive
        .join(format!("backups/{}/backup.json", original.backup));
    let hidden = case.archive.join("backup.json.hidden");
    fs::rename(&record, &hidden).unwrap();
    let report = meanwhile(&case, &format!("{}.zst", original.segment), move || {
        fs::rename(&hidden, &record).unwrap();
    });
    assert!(report.is_clean, "{report}");
}

// Seen to fail: `verify/mod.rs`: no second look
#[test]
fn a_segment_that_arrives_after_its_successor_is_no_gap() {
    let original = Original::shared();
    let case = Case::of(original);
    let path = case
        .archive
        .join(format!("wal/00000001/0000000100000000/{}.zst", original.segment));
    let hidden = case.archive.join("hidden");
    fs::rename(&path, &hidden).unwrap();
    let report = meanwhile(&case, "backup.json", move || fs::rename(&hidden, &path).unwrap());
    assert!(report.is_clean, "{report}");
}

// Seen to fail: `verify/mod.rs`: no `miss_histories`
#[test]
fn a_history_that_was_never_there_is_missed_too() {
    let case = Case::of(Original::shared());
    let path = case.archive.join("wal/00000003.history.zst");
    fs::remove_file(&path).unwrap();
    let report = verify(&place_of(&case), |_| {});
    assert_eq!(report.findings.len(), 1, "{report}");
    assert_eq!(report.findings[0].key, "wal/00000003.history.zst");
    assert_eq!(report.findings[0].kind, FindingKind::Missing);
}

#[test]
fn a_ledger_that_is_damaged_or_newer_is_not_believed() {
    let case = Case::of(Original::shared());
    let place = place_of(&case);
    let first = verify(&place, |_| {});
    let shard = case.archive.join("ledger/wal/00000001/0000000100000000.zst");
    let whole = fs::read(&shard).unwrap();
    let newer = zstd_run(&["-c"], br#"{"ledger_version":9}"#);
    let other = fs::read(case.archive.join("ledger/wal/00000002/0000000200000000.zst")).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for bytes in [flipped, whole[..20].to_vec(), Vec::new(), newer, other] {
        fs::write(&shard, bytes).unwrap();
        let report = verify(&place, |_| {});
        assert!(report.is_clean, "{report}");
        assert!(
            report
                .notes
                .iter()
                .any(|note| note.contains("0000000100000000.zst is not used")),
            "{report}"
        );
        assert!(report.read_objects > 3, "its folder is read again: {report}");
        let again = verify(&place, |_| {});
        assert!(
            again.notes.is_empty() && again.read_bytes < first.read_bytes / 20,
            "{again}"
        );
    }
    fs::write(case.archive.join("ledger/summary.json"), "{}").unwrap();
    assert_eq!(last_run(&place).unwrap(), None);
    assert!(verify(&place, |_| {}).is_clean);
}

// Seen to fail: `archive/ledger.rs`: a refused put is an error
#[test]
fn whoever_may_only_read_verifies_too() {
    let case = Case::of(Original::shared());
    let faults = Faults::default();
    faults.add(Operation::Put, "ledger/", FaultKind::Before(ErrorKind::Denied));
    let store = store_of(&place_of(&case)).with_faults(faults);
    let report = verify_store(&store, Utc::now(), |_| {}).unwrap();
    assert!(report.is_clean, "{report}");
    assert!(
        report.notes.iter().any(|note| note.contains("cannot be written")),
        "{report}"
    );
    assert!(!case.archive.join("ledger").exists());
}

// Seen to fail: `verify/mod.rs`: `--since` is ignored
#[test]
fn since_reads_only_what_is_younger() {
    let case = Case::of(Original::shared());
    let place = place_of(&case);
    let path = case.archive.join(format!(
        "wal/00000001/0000000100000000/{}.zst",
        Original::shared().segment
    ));
    let now = Utc::now();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(now.into())
        .unwrap();
    let report = verify(&place, |options| {
        options.since = Some(now - chrono::TimeDelta::seconds(1));
    });
    // The segment, and the two records, which are always read.
    assert_eq!(report.read_objects, 3, "{report}");
    assert!(
        report.is_clean && report.unread_objects > 10 && report.all_read_since.is_none(),
        "{report}"
    );
    // What this process wrote is not the test user's.
    fs::remove_dir_all(case.archive.join("ledger")).unwrap();
    case.walship()
        .run(&["verify", "--since", "1d", "--full"])
        .exited(2);
    case.walship().run(&["verify", "--since", "soon"]).exited(2);
    case.walship().run(&["verify", "--since", "1d"]).succeeded();
    case.walship()
        .run(&["verify", "--since", "2026-11-01 00:00:00+00"])
        .succeeded();
}

// Seen to fail: `verify/mod.rs`: `--full` is ignored; `archive/ledger.rs`: no part is written
#[test]
fn what_a_killed_run_has_read_is_read_again_only_when_asked_for() {
    let case = Case::of(Original::shared());
    let walship = case.walship();
    let summary = case.archive.join("ledger/summary.json");
    let killed = with_fault(
        &walship,
        "link,linkat,rename,renameat,renameat2:signal=KILL",
        &[&summary],
        &["verify"],
    );
    assert_eq!(killed.signal, Some(9), "{killed:#?}");
    assert!(!summary.exists());
    let output = walship.run(&["verify", "--json"]).succeeded();
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    // The two records are always read.
    assert_eq!(report["read_objects"], 2, "{report:#}");
    assert_eq!(report["unread_objects"], 0, "{report:#}");
    let output = walship.run(&["verify", "--full", "--json"]).succeeded();
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(report["read_objects"], report["objects"], "{report:#}");
}

// Seen to fail: `layers/meter.rs`: no pause
#[test]
fn the_rate_is_kept() {
    let case = Case::of(Original::shared());
    let place = place_of(&case);
    let bytes = verify(&place, |options| options.full = true).read_bytes;
    let begun = Instant::now();
    let report = verify(&place, |options| {
        options.full = true;
        options.max_rate = Some(bytes / 2);
    });
    assert!(
        report.is_clean && begun.elapsed() > Duration::from_millis(1500),
        "{report}"
    );
}

#[test]
fn an_archive_that_cannot_be_reached_is_an_outage() {
    let server = crate::support::stores::Kind::MinIo;
    let place = crate::support::stores::TestStore::Server(server);
    if !crate::support::stores::chosen().contains(&place) {
        return;
    }
    let place = place
        .new_place()
        .with_env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    let output = Walship::at(&place)
        .env("WALSHIP_S3_TIMEOUT", "2s")
        .run(&["verify"])
        .exited(5);
    assert_eq!(output.stdout, "", "no verdict: {output:#?}");
}
