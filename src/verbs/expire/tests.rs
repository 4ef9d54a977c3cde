//! What an expiry does to a directory store, whatever goes wrong. A day has four segments. The tests set the files'
//! times, so the store's clock is theirs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::report::Deleted;
use super::*;
use crate::archive::fixture;
use crate::error::ErrorKind;
use crate::format::backup::{BackupAlive, BackupRecord, WalFrom, WalRange};
use crate::format::identity::Identity;
use crate::format::keep::Keep;
use crate::format::keys::{BackupId, BackupObject, Key, LedgerObject, WAL_PREFIX, backup_prefix};
use crate::format::ledger::Shard;
use crate::format::{FORMAT_VERSION, Sha256Sum, codec};
use crate::judge::catalogue::needed_wal;
use crate::pg::{ClusterIdentity, Lsn, Major, SegmentName, SegmentNumber, SegmentSize, TimelineId, WalName};
use crate::store::{Body, FaultKind, Faults, Operation, PutMode};
use crate::verbs::keep::{self, Mark};
use crate::verbs::verify;

const SIZE: SegmentSize = SegmentSize::DEFAULT;
const SEGMENTS_A_DAY: u64 = 4;

fn day(number: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_788_220_800, 0).unwrap() + TimeDelta::days(number.cast_signed())
}

fn id(number: u64) -> BackupId {
    BackupId::at(day(number))
}

fn segment(timeline: u32, number: u64) -> SegmentName {
    SegmentName::new(TimelineId::new(timeline).unwrap(), SegmentNumber(number), SIZE).unwrap()
}

struct Archive {
    top: tempfile::TempDir,
    store: Store,
}

impl Archive {
    /// An archive of this many days, each with a backup in its first segment.
    async fn of_days(days: u64) -> Self {
        let top = fixture::scratch();
        let store = fixture::store(top.path()).await;
        let archive = Self { top, store };
        let cluster = ClusterIdentity {
            system_identifier: fixture::record(&[]).system_identifier,
            postgres_major: Major::V17,
            segment_size: SIZE,
        };
        let identity = Identity::new(cluster, true, day(0));
        archive
            .put("walship.json", identity.to_bytes().unwrap(), day(0))
            .await;
        for number in 0..days {
            archive.back_up(number).await;
        }
        for number in 0..days * SEGMENTS_A_DAY {
            let key = Key::Segment(segment(1, number)).to_string();
            archive.put(&key, vec![1], day(number / SEGMENTS_A_DAY)).await;
        }
        archive
    }

    /// A copy of the archive in another directory.
    async fn copy(&self) -> Self {
        let top = fixture::scratch();
        let store = fixture::store(top.path()).await;
        let (from, to) = (self.file("."), top.path().join("archive"));
        let mut copy = std::process::Command::new("cp");
        assert!(copy.arg("-a").args([from, to]).status().unwrap().success());
        Self { top, store }
    }

    async fn put(&self, key: &str, bytes: Vec<u8>, stored: DateTime<Utc>) {
        let body = Body::from_bytes(bytes);
        self.store.put(key, &body, PutMode::Replace).await.unwrap();
        let file = std::fs::File::options()
            .append(true)
            .open(self.file(key))
            .unwrap();
        file.set_modified(stored.into()).unwrap();
    }

    fn file(&self, key: &str) -> PathBuf {
        self.top.path().join("archive").join(key)
    }

    async fn back_up(&self, number: u64) {
        let record = record(number);
        for object in [BackupObject::Files, BackupObject::Manifest, BackupObject::Started] {
            self.put_object(number, object).await;
        }
        let (key, _) = record.objects().next().unwrap();
        self.put_object(number, key).await;
        let key = record.id.key(BackupObject::Record).to_string();
        self.put(&key, record.to_bytes().unwrap(), day(number)).await;
    }

    async fn put_object(&self, number: u64, object: BackupObject) {
        let key = id(number).key(object).to_string();
        self.put(&key, vec![1], day(number)).await;
    }

    async fn keys(&self) -> BTreeSet<String> {
        fixture::keys(&self.store).await
    }

    async fn expire(&self, store: &Store) -> Result<ExpireReport> {
        run(&options(), store, now(), &Progress::default()).await
    }

    /// Everything that is listed can be restored.
    async fn is_sound(&self, when: &str) {
        let catalogue = fixture::load(&self.store).await.unwrap();
        assert!(
            catalogue.unrestorable.is_empty(),
            "{when}: {:?}",
            catalogue.unrestorable
        );
        let listed: Vec<_> = catalogue.backups.iter().map(|backup| backup.id.clone()).collect();
        for needed in [id(3), id(5), id(8), id(9)] {
            assert!(listed.contains(&needed), "{when}: {listed:?}");
        }
        for number in 8 * SEGMENTS_A_DAY..10 * SEGMENTS_A_DAY {
            let held = catalogue.wal.contains(TimelineId::FIRST, SegmentNumber(number));
            assert!(held, "{when}: segment {number} is gone");
        }
    }
}

/// A backup that starts and ends in the first segment of its day.
fn record(number: u64) -> BackupRecord {
    let mut record = fixture::record(&[]);
    let start = number * SEGMENTS_A_DAY * SIZE.bytes();
    let one = crate::format::backup::StoredObject {
        stored_bytes: 1,
        sha256: crate::format::Sha256Sum::of(&[1]),
    };
    record.id = id(number);
    (record.started_at, record.finished_at) = (day(number), day(number) + TimeDelta::seconds(10));
    (record.start_lsn, record.stop_lsn) = (Lsn(start + 40), Lsn(start + 400));
    record.wal_ranges = vec![WalRange {
        timeline: TimelineId::FIRST,
        start_lsn: record.start_lsn,
        end_lsn: record.stop_lsn,
    }];
    (record.files, record.manifest, record.configuration) = (one, one, None);
    record.streams[0].tar_bytes = 1;
    record.streams[0].part_bytes = 1;
    record.streams[0].parts = vec![one];
    record.add_up();
    record
}

/// Backups 8 and 9 with all WAL after them, 3 by its mark, 5 by its week.
fn options() -> ExpireOptions {
    ExpireOptions {
        policy: RetentionPolicy {
            backups: Some(2),
            weekly: Some(2),
            ..RetentionPolicy::default()
        },
        dry_run: false,
    }
}

fn now() -> DateTime<Utc> {
    day(10)
}

async fn ten_days() -> Archive {
    let archive = Archive::of_days(10).await;
    let mark = Keep::new(&id(3), None, day(3)).to_bytes().unwrap();
    archive
        .put(&format!("{}keep.json", backup_prefix(&id(3))), mark, day(3))
        .await;
    archive
}

/// What must be left of [`ten_days`].
fn expected() -> BTreeSet<String> {
    let mut keys = BTreeSet::from(["retention.json".to_owned(), "walship.json".to_owned()]);
    for number in [3, 5, 8, 9] {
        for object in [
            "backup.json",
            "base/000001.tar.zst",
            "files.zst",
            "manifest.zst",
            "started.json",
        ] {
            keys.insert(format!("{}{object}", backup_prefix(&id(number))));
        }
    }
    keys.insert(format!("{}keep.json", backup_prefix(&id(3))));
    let stand_alone = [3 * SEGMENTS_A_DAY, 5 * SEGMENTS_A_DAY];
    for number in stand_alone
        .into_iter()
        .chain(8 * SEGMENTS_A_DAY..10 * SEGMENTS_A_DAY)
    {
        keys.insert(Key::Segment(segment(1, number)).to_string());
    }
    keys
}

#[tokio::test]
async fn what_no_rule_keeps_goes_and_nothing_else() {
    let archive = ten_days().await;
    let report = archive.expire(&archive.store).await.unwrap();
    assert_eq!(archive.keys().await, expected());
    assert_eq!((report.deleted.backups, report.left_objects), (6, 0));
    assert_eq!(report.deleted.objects, 6 * 5 + 40 - 10);
    archive.is_sound("after an expiry").await;
    let again = archive.expire(&archive.store).await.unwrap();
    assert_eq!(again.deleted, Deleted::default());
    assert_eq!(archive.keys().await, expected());
}

// Seen to fail: `expire/wal.rs`: a request for each object
#[tokio::test]
async fn a_thousand_objects_are_deleted_with_one_request() {
    let archive = ten_days().await;
    let folder = "wal/00000001/0000000100000000";
    for offset in 0..1100 {
        let key = format!("{folder}/000000010000000000000002.{offset:08X}.backup.zst");
        archive.put(&key, vec![1], day(0)).await;
    }
    let faults = Faults::default();
    for _ in 0..5 {
        faults.add(Operation::Delete, WAL_PREFIX, FaultKind::Delay(Duration::ZERO));
    }
    archive
        .expire(&archive.store.with_faults(faults.clone()))
        .await
        .unwrap();
    assert_eq!(archive.keys().await, expected());
    assert_eq!(5 - faults.left(), 2, "requests for 1,130 objects");
}

// Seen to fail: `expire/wal.rs`: a dry run deletes
#[tokio::test]
async fn a_dry_run_shows_the_same_plan_and_deletes_nothing() {
    let archive = ten_days().await;
    let before = archive.keys().await;
    let dry = ExpireOptions {
        dry_run: true,
        ..options()
    };
    let shown = run(&dry, &archive.store, now(), &Progress::default())
        .await
        .unwrap();
    assert_eq!(archive.keys().await, before);
    assert_eq!(shown.deleted.objects, 30, "the WAL that would go");
    let done = archive.expire(&archive.store).await.unwrap();
    assert_eq!(shown.plan, done.plan);
}

// Seen to fail: `expire/mod.rs`: WAL goes only where a backup goes
#[tokio::test]
async fn whatever_call_fails_everything_listed_can_be_restored_and_the_next_run_finishes() {
    let operations = [
        Operation::Delete,
        Operation::Put,
        Operation::Get,
        Operation::Head,
        Operation::List,
    ];
    let whole = ten_days().await;
    for operation in operations {
        for kind in [FaultKind::Before(ErrorKind::Unavailable), FaultKind::After] {
            let reads = !matches!(operation, Operation::Delete | Operation::Put);
            if reads && kind == FaultKind::After {
                continue;
            }
            for calls in 0.. {
                let archive = whole.copy().await;
                let faults = Faults::default();
                for _ in 0..calls {
                    faults.add(operation, "", FaultKind::Delay(Duration::ZERO));
                }
                faults.add(operation, "", kind);
                let result = archive.expire(&archive.store.with_faults(faults.clone())).await;
                let when = format!("{operation:?} {calls} {kind:?}");
                // If looking shows that the object is missing, the failure of its deletion is not seen.
                assert!(result.is_ok() || faults.left() == 0, "{when}: {result:?}");
                archive.is_sound(&when).await;
                archive.expire(&archive.store).await.unwrap();
                assert_eq!(archive.keys().await, expected(), "{when}");
                if faults.left() > 0 {
                    break;
                }
            }
        }
    }
}

// Seen to fail: `expire/backups.rs`: the record goes last; `expire/mod.rs`: WAL goes first; released WAL is not noted
#[tokio::test]
async fn the_record_goes_first_and_wal_last() {
    for (part, left) in [("backup.json", 5), ("base/", 4)] {
        let archive = ten_days().await;
        let faults = Faults::default();
        faults.add(Operation::Delete, part, FaultKind::Before(ErrorKind::Denied));
        archive
            .expire(&archive.store.with_faults(faults))
            .await
            .unwrap_err();
        let keys = archive.keys().await;
        let of_first = keys.iter().filter(|key| key.starts_with(&backup_prefix(&id(0))));
        assert_eq!(of_first.count(), left, "{part}");
        assert!(keys.contains(&Key::Segment(segment(1, 0)).to_string()));
        assert!(!keys.contains("retention.json"));
    }
    let archive = ten_days().await;
    let faults = Faults::default();
    faults.add(Operation::Delete, "wal/", FaultKind::Before(ErrorKind::Denied));
    archive
        .expire(&archive.store.with_faults(faults))
        .await
        .unwrap_err();
    let keys = archive.keys().await;
    assert!(
        keys.contains("retention.json"),
        "released WAL is noted before it is deleted"
    );
    assert!(keys.contains(&Key::Segment(segment(1, 0)).to_string()));
    assert!(!keys.iter().any(|key| key.starts_with(&backup_prefix(&id(7)))));
}

// Seen to fail: `expire/backups.rs`: the WAL of a backup whose record is locked is not kept
#[tokio::test]
async fn objects_that_the_store_refuses_to_delete_are_reported_and_listed_backups_stay_restorable() {
    let archive = ten_days().await;
    let faults = Faults::default();
    let locked = format!("{}backup.json", backup_prefix(&id(1)));
    faults.add(Operation::Delete, &locked, FaultKind::Refuse);
    faults.add(
        Operation::Delete,
        &format!("{}base", backup_prefix(&id(2))),
        FaultKind::Refuse,
    );
    faults.add(Operation::Delete, "000000000000001D", FaultKind::Refuse);
    let report = archive.expire(&archive.store.with_faults(faults)).await.unwrap();
    assert!(report.left_something());
    let left: Vec<_> = report.left.iter().map(|left| left.key.as_str()).collect();
    let part = format!("{}base/000001.tar.zst", backup_prefix(&id(2)));
    let wal = Key::Segment(segment(1, 0x1D)).to_string();
    assert_eq!(left, [locked.as_str(), part.as_str(), wal.as_str()]);
    assert!(
        report.to_string().contains("COULD NOT BE DELETED: 3 objects"),
        "{report}"
    );
    archive.is_sound("with locked objects").await;
    let catalogue = fixture::load(&archive.store).await.unwrap();
    assert!(catalogue.backups.iter().any(|backup| backup.id == id(1)));
    // As soon as the store allows it, the next run finishes.
    archive.expire(&archive.store).await.unwrap();
    assert_eq!(archive.keys().await, expected());
}

// Seen to fail: `expire/backups.rs`: no mark is looked for after the record went
#[tokio::test]
async fn a_mark_that_is_set_during_the_deletion_counts() {
    let archive = ten_days().await;
    let faults = Faults::default();
    let record = format!("{}backup.json", backup_prefix(&id(4)));
    faults.add(
        Operation::Delete,
        &record,
        FaultKind::Delay(Duration::from_millis(500)),
    );
    let slow = archive.store.with_faults(faults);
    let marking = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        keep::run(&id(4), Mark::Set(None), &archive.store, now()).await
    };
    let (expired, marked) = tokio::join!(archive.expire(&slow), marking);
    assert!(marked.unwrap().kept);
    let error = expired.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    archive.is_sound("after the conflict").await;
    archive.expire(&archive.store).await.unwrap();
    let catalogue = fixture::load(&archive.store).await.unwrap();
    assert!(catalogue.unrestorable.is_empty(), "{:?}", catalogue.unrestorable);
    assert!(catalogue.backups.iter().any(|backup| backup.id == id(4)));
}

// Seen to fail: `expire/backups.rs`: one attempt
#[tokio::test]
async fn a_record_is_put_back_although_the_store_fails_once() {
    let archive = ten_days().await;
    let faults = Faults::default();
    let record = format!("{}backup.json", backup_prefix(&id(4)));
    let slow = FaultKind::Delay(Duration::from_millis(500));
    faults.add(Operation::Delete, &record, slow);
    faults.add(Operation::Put, &record, FaultKind::Before(ErrorKind::Unavailable));
    let failing = archive.store.with_faults(faults);
    let marking = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        keep::run(&id(4), Mark::Set(None), &archive.store, now()).await
    };
    let (expired, marked) = tokio::join!(archive.expire(&failing), marking);
    assert!(marked.unwrap().kept);
    assert_eq!(expired.unwrap_err().kind(), ErrorKind::Conflict);
    assert!(archive.keys().await.contains(&record));
    archive.is_sound("after the conflict").await;
}

async fn lose_record(archive: &Archive, number: u64) {
    let record = id(number).key(BackupObject::Record).to_string();
    archive.store.delete(&[record]).await.unwrap();
}

/// Writes what a verification leaves when it has found the backup good.
async fn note_as_good(archive: &Archive, number: u64) -> String {
    let object = LedgerObject::Backup(id(number));
    let key = Key::Ledger(object.clone()).to_string();
    let mut shard = Shard::new(object, fixture::record(&[]).system_identifier);
    shard.compared = Some(Sha256Sum([1; 32]));
    archive.put(&key, shard.to_bytes().unwrap(), day(9)).await;
    key
}

// Seen to fail: `retention/choose.rs`: a lost record is ignored
#[tokio::test]
async fn the_rest_of_a_backup_that_lost_its_record_stays_if_it_was_marked_or_found_good() {
    let archive = ten_days().await;
    keep::run(&id(1), Mark::Set(None), &archive.store, now())
        .await
        .unwrap();
    note_as_good(&archive, 2).await;
    for lost in [1, 2, 4] {
        lose_record(&archive, lost).await;
    }
    let part = |number| {
        let part = record(number).objects().next().unwrap().0;
        Key::Backup(id(number), part).to_string()
    };
    let report = archive.expire(&archive.store).await.unwrap();
    let text = report.to_string();
    assert!(text.contains("its backup.json is lost"), "{text}");
    let keys = archive.keys().await;
    assert!(keys.contains(&part(1)) && keys.contains(&part(2)), "{keys:?}");
    assert!(!keys.contains(&part(4)), "{keys:?}");
    // Nobody knows which WAL they need.
    for number in 0..10 * SEGMENTS_A_DAY {
        assert!(keys.contains(&Key::Segment(segment(1, number)).to_string()));
    }
    // A person who does not want the backup any more takes the mark away.
    keep::run(&id(1), Mark::Release, &archive.store, now())
        .await
        .unwrap();
    archive.expire(&archive.store).await.unwrap();
    assert!(!archive.keys().await.contains(&part(1)));
}

// Seen to fail: `expire/backups.rs`: the ledger forgets nothing
#[tokio::test]
async fn a_backup_that_an_expiry_began_to_delete_has_not_lost_its_record() {
    let archive = ten_days().await;
    let ledger = note_as_good(&archive, 0).await;
    let faults = Faults::default();
    let record = id(0).key(BackupObject::Record).to_string();
    faults.add(Operation::Delete, &record, FaultKind::After);
    let killed = archive.expire(&archive.store.with_faults(faults)).await;
    assert!(killed.is_err());
    let keys = archive.keys().await;
    assert!(!keys.contains(&record) && !keys.contains(&ledger), "{keys:?}");
    archive.expire(&archive.store).await.unwrap();
    assert_eq!(archive.keys().await, expected());
}

// Seen to fail: `verbs/keep.rs`: the backup is not looked for after the mark
#[tokio::test]
async fn a_mark_on_a_backup_that_is_being_deleted_is_refused() {
    let archive = ten_days().await;
    let faults = Faults::default();
    faults.add(
        Operation::Put,
        "keep.json",
        FaultKind::Delay(Duration::from_millis(1500)),
    );
    let slow = archive.store.with_faults(faults);
    let late = id(4);
    let (marked, expired) = tokio::join!(
        keep::run(&late, Mark::Set(None), &slow, now()),
        archive.expire(&archive.store)
    );
    assert!(expired.is_ok(), "{expired:?}");
    assert_eq!(marked.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(archive.keys().await, expected());
}

/// A backup begins while the expiry notes which WAL it releases.
async fn with_a_new_backup(archive: &Archive, id: BackupId, alive: Option<BackupAlive>) -> ExpireReport {
    let faults = Faults::default();
    let pause = FaultKind::Delay(Duration::from_millis(500));
    faults.add(Operation::Put, "retention.json", pause);
    let slow = archive.store.with_faults(faults);
    let beginning = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let started = id.key(BackupObject::Started).to_string();
        archive.put(&started, vec![1], day(10)).await;
        if let Some(alive) = alive {
            let key = id.key(BackupObject::Alive).to_string();
            archive.put(&key, alive.to_bytes().unwrap(), day(10)).await;
        }
    };
    let (report, ()) = tokio::join!(archive.expire(&slow), beginning);
    report.unwrap()
}

// Seen to fail: `expire/wal.rs`: only ids after the newest known one are looked at; no new backup is looked for
#[tokio::test]
async fn no_wal_goes_while_a_backup_that_began_meanwhile_may_need_any() {
    // The clock of its machine may be behind those of the others.
    for new_backup in [id(20), BackupId::at(day(9) - TimeDelta::hours(7))] {
        let archive = ten_days().await;
        let report = with_a_new_backup(&archive, new_backup, None).await;
        assert!(report.to_string().contains("began meanwhile"), "{report}");
        for number in 0..40 {
            let key = Key::Segment(segment(1, number)).to_string();
            assert!(archive.keys().await.contains(&key), "{number}");
        }
    }
}

#[tokio::test]
async fn the_wal_of_a_backup_that_began_meanwhile_stays() {
    let archive = ten_days().await;
    let alive = BackupAlive {
        format_version: FORMAT_VERSION,
        at: day(10),
        wal_from: Some(WalFrom {
            timeline: TimelineId::FIRST,
            lsn: Lsn(20 * SIZE.bytes() + 1),
        }),
    };
    with_a_new_backup(&archive, id(20), Some(alive)).await;
    let keys = archive.keys().await;
    for number in 0..40 {
        let key = Key::Segment(segment(1, number)).to_string();
        assert_eq!(keys.contains(&key), number >= 20 || number == 12, "{number}");
    }
}

// Seen to fail: `expire/backups.rs`: `keep_wal_of_unfinished` is not called; no look after `pending.json` went
#[tokio::test]
async fn a_backup_that_is_being_finished_is_left_alone() {
    let archive = ten_days().await;
    archive.put_object(0, BackupObject::Started).await;
    let pending = id(0).key(BackupObject::Pending).to_string();
    let record_key = id(0).key(BackupObject::Record).to_string();
    archive.put(&pending, record(0).to_bytes().unwrap(), day(0)).await;
    archive.store.delete(&[record_key]).await.unwrap();
    let faults = Faults::default();
    let pause = FaultKind::Delay(Duration::from_millis(500));
    faults.add(Operation::Delete, "pending.json", pause);
    let slow = archive.store.with_faults(faults);
    let finishing = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let key = id(0).key(BackupObject::Alive).to_string();
        let first = record(0).wal_ranges[0];
        let alive = BackupAlive {
            format_version: FORMAT_VERSION,
            at: day(10),
            wal_from: Some(WalFrom {
                timeline: first.timeline,
                lsn: first.start_lsn,
            }),
        };
        archive.put(&key, alive.to_bytes().unwrap(), day(10)).await;
    };
    let before = archive.keys().await;
    let (report, ()) = tokio::join!(archive.expire(&slow), finishing);
    let report = report.unwrap();
    assert!(report.to_string().contains("worked on backup"), "{report}");
    let needed = needed_wal(&record(0).wal_ranges, SIZE);
    for number in needed[0].first.0..needed[0].end.0 {
        let key = Key::Segment(segment(1, number)).to_string();
        assert!(
            before.contains(&key) && archive.keys().await.contains(&key),
            "{key}"
        );
    }
    let part = Key::Backup(id(0), record(0).objects().next().unwrap().0).to_string();
    assert!(archive.keys().await.contains(&part));
}

#[tokio::test]
async fn two_expiries_at_once_do_what_one_does() {
    let archive = ten_days().await;
    let (one, other) = tokio::join!(archive.expire(&archive.store), archive.expire(&archive.store));
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    assert_eq!(archive.keys().await, expected());
}

// Seen to fail: `expire/mod.rs`: `released` is replaced whatever its version
#[tokio::test]
async fn of_two_expiries_with_different_plans_neither_takes_back_what_the_other_released() {
    let archive = ten_days().await;
    let faults = Faults::default();
    let pause = FaultKind::Delay(Duration::from_millis(1500));
    faults.add(Operation::Put, "retention.json", pause);
    let slow = archive.store.with_faults(faults);
    let strict = ExpireOptions {
        policy: RetentionPolicy {
            backups: Some(1),
            ..RetentionPolicy::default()
        },
        dry_run: false,
    };
    let meanwhile = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        run(&strict, &archive.store, now(), &Progress::default()).await
    };
    let (one, other) = tokio::join!(archive.expire(&slow), meanwhile);
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    let catalogue = fixture::load(&archive.store).await.unwrap();
    for number in 0..36 {
        let is_released = catalogue
            .released
            .contains(TimelineId::FIRST, SegmentNumber(number));
        // Both keep the segment of the marked backup, on day 3.
        assert_eq!(is_released, number != 12, "segment {number}");
    }
}

// Seen to fail: `expire/wal.rs`: times are not compared; `expire/backups.rs`: all objects below a backup go
#[tokio::test]
async fn foreign_objects_and_histories_stay_and_companions_go_with_their_segment() {
    let archive = ten_days().await;
    let foreign = [
        "wal/notes.txt".to_owned(),
        "elsewhere/backup.json".to_owned(),
        format!("{}notes.txt", backup_prefix(&id(0))),
        "wal/00000001/0000000100000000/000000010000000000000001.zst.bak".to_owned(),
    ];
    for key in &foreign {
        archive.put(key, vec![1], day(0)).await;
    }
    let history = "wal/00000002.history.zst";
    archive.put(history, history_of_2(), day(0)).await;
    let folder = "wal/00000001/0000000100000000/0000000100000000000000";
    let companions = |number: &str| {
        [
            format!("{folder}{number}.00000028.backup.zst"),
            format!("{folder}{number}.00000000000000ab.partial.zst"),
        ]
    };
    for key in companions("02").iter().chain(&companions("21")) {
        archive.put(key, vec![1], day(0)).await;
    }
    // The plan does not delete what was stored after it was made.
    let fresh = Key::Segment(segment(1, 1)).to_string();
    archive.put(&fresh, vec![1], day(11)).await;
    archive.expire(&archive.store).await.unwrap();
    let mut left = expected();
    left.extend(foreign);
    left.extend(companions("21"));
    left.extend([history.to_owned(), fresh]);
    assert_eq!(archive.keys().await, left);
}

/// Timeline 2 left timeline 1 in segment 38.
fn history_of_2() -> Vec<u8> {
    let content = format!("1\t{}\treason\n", Lsn(38 * SIZE.bytes() + 100));
    let name = WalName::History(TimelineId::new(2).unwrap());
    let system_identifier = fixture::record(&[]).system_identifier;
    codec::encode(content.as_bytes(), 1, name, system_identifier, None).unwrap()
}

#[tokio::test]
async fn on_doubt_nothing_is_deleted() {
    let of_backup = |object: &str| format!("{}{object}", backup_prefix(&id(3)));
    for key in [
        of_backup("backup.json"),
        of_backup("keep.json"),
        "retention.json".to_owned(),
    ] {
        let archive = ten_days().await;
        archive.put(&key, b"{".to_vec(), day(3)).await;
        let before = archive.keys().await;
        let error = archive.expire(&archive.store).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(archive.keys().await, before, "{key}");
        assert!(error.to_string().contains("nothing was deleted"), "{error}");
    }
}

// Seen to fail: `expire/mod.rs`: this machine's clock counts
#[tokio::test]
async fn the_earlier_of_two_clocks_counts() {
    let archive = ten_days().await;
    let far_ahead = archive.store.clock().await.unwrap() + TimeDelta::days(365);
    let report = run(&options(), &archive.store, far_ahead, &Progress::default())
        .await
        .unwrap();
    assert!(report.plan.now <= archive.store.clock().await.unwrap());
    assert!(report.to_string().contains("clock is"), "{report}");
}

#[tokio::test]
async fn a_mark_is_set_listed_and_taken_away() {
    let archive = ten_days().await;
    let until = day(20);
    keep::run(&id(4), Mark::Set(Some(until)), &archive.store, now())
        .await
        .unwrap();
    let opened = crate::archive::Archive::open(&archive.store).await.unwrap();
    let marked: Keep = opened.read(&id(4)).await.unwrap();
    assert_eq!(marked.until, Some(until));
    let released = keep::run(&id(4), Mark::Release, &archive.store, now())
        .await
        .unwrap();
    assert!(!released.kept);
    assert_eq!(opened.find::<Keep>(&id(4)).await.unwrap(), None);
    for (unknown, mark, kind) in [
        (id(77), Mark::Set(None), ErrorKind::NotFound),
        (id(77), Mark::Release, ErrorKind::NotFound),
        (id(4), Mark::Set(Some(now())), ErrorKind::Invalid),
    ] {
        let error = keep::run(&unknown, mark, &archive.store, now())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

// Seen to fail: `format/keep.rs`: the backup that a mark names is not compared
#[tokio::test]
async fn records_of_two_backups_that_were_exchanged_are_not_believed() {
    for object in [BackupObject::Record, BackupObject::Keep] {
        let archive = ten_days().await;
        let until = Keep::new(&id(4), Some(day(5)), day(4));
        let keys = [3, 4].map(|number| Key::Backup(id(number), object.clone()).to_string());
        let of_four = format!("{}keep.json", backup_prefix(&id(4)));
        archive.put(&of_four, until.to_bytes().unwrap(), day(4)).await;
        let [one, other] = keys
            .each_ref()
            .map(|key| std::fs::read(archive.file(key)).unwrap());
        archive.put(&keys[0], other, day(4)).await;
        archive.put(&keys[1], one, day(4)).await;
        let before = archive.keys().await;
        let error = archive.expire(&archive.store).await.unwrap_err().to_string();
        assert!(keys.iter().any(|key| error.contains(key)), "{object:?}: {error}");
        assert_eq!(archive.keys().await, before, "{object:?}");
    }
}

// Seen to fail: `verbs/expire/mod.rs`: goes on although the record of damaged backups is unusable
#[tokio::test]
async fn nothing_is_deleted_while_it_is_not_known_which_backups_are_damaged() {
    let archive = ten_days().await;
    let key = Key::Ledger(LedgerObject::Summary).to_string();
    archive.put(&key, b"{}".to_vec(), day(9)).await;
    let before = archive.keys().await;
    let error = archive.expire(&archive.store).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains(&key), "{error}");
    assert_eq!(archive.keys().await, before);
    // It counts even if this role may not read it.
    let faults = Faults::default();
    faults.add(Operation::Get, &key, FaultKind::Before(ErrorKind::Denied));
    let denied = archive.store.with_faults(faults);
    assert!(archive.expire(&denied).await.is_err());
    assert_eq!(archive.keys().await, before);
    // A verification that leaves out older objects does not make them known.
    let since = verify::VerifyOptions {
        full: false,
        since: Some(day(9)),
        recheck: Duration::from_hours(24),
        concurrency: 2,
        max_rate: None,
        second_look_after: Duration::ZERO,
    };
    let progress = Arc::new(Progress::default());
    verify::run(&since, &archive.store, now(), &progress)
        .await
        .unwrap();
    assert!(archive.expire(&archive.store).await.is_err());
}
