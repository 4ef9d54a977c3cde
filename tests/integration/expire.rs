//! Retention, end to end: a month of daily backups of a real server, an expiry that is killed at any
//! moment, and real recoveries of what must be left.
//!
//! A month does not pass in a test. The server, its archiver and `walship basebackup` run with a clock that
//! libfaketime sets back by as many days as are left of the month; WAL, backups and recoveries are
//! real. The archive's files are dated back in the end, as the store's clock would have dated them.
//!
//! Which backup is a week's or a month's last depends on the day on which the month ends, so no test here
//! expects that of a backup by its number, and months end on many days.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use chrono::{DateTime, Datelike, TimeDelta, Utc};
use serde_json::Value;
use walship_core::pg::Major;

use crate::recovery::{PATIENCE, take_backup};
use crate::server::{archiving_primary, wait_archived};
use crate::support::postgres::{Cluster, Stop};
use crate::support::stores::{self, Kind, Place, StoreServer, TestStore};
use crate::support::trace::with_fault;
use crate::support::walship::Walship;
use crate::support::{announce, command_as_user, give_to_user, scratch};

const DAYS: i64 = 30;
const DAY: i64 = 86_400;

/// A server whose clock is set by a file.
struct Month {
    place: Place,
    walship: Walship,
    primary: Cluster,
    _clock: tempfile::TempDir,
    _shared: SharedClock,
}

/// A process that does nothing and owns what libfaketime shares between processes. Otherwise the first process of a
/// server owns it: when that ends it is taken from the others, and whatever starts at that moment exits with an error.
struct SharedClock(Child);

impl SharedClock {
    fn start(library: &Path) -> Self {
        let holder = command_as_user("/bin/cat")
            .env("LD_PRELOAD", library)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = holder.id();
        let clock = Self(holder);
        let made = [
            format!("/dev/shm/sem.faketime_sem_{pid}"),
            format!("/dev/shm/faketime_shm_{pid}"),
        ];
        let deadline = Instant::now() + PATIENCE;
        while !made.iter().all(|file| Path::new(file).exists()) {
            assert!(Instant::now() < deadline, "libfaketime made no {made:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        clock
    }

    /// The value of `FAKETIME_SHARED` for those who share it.
    fn value(&self) -> String {
        let pid = self.0.id();
        format!("/faketime_sem_{pid} /faketime_shm_{pid}")
    }
}

impl Drop for SharedClock {
    fn drop(&mut self) {
        // At the end of its input it ends, and removes what it owns.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn faketime() -> Option<PathBuf> {
    let paths = ["x86_64", "aarch64"]
        .map(|machine| PathBuf::from(format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1")));
    paths.into_iter().find(|path| path.exists())
}

impl Month {
    /// A backup each day, a row after it and another one twelve hours later, until today.
    fn pass(major: Major, library: &Path) -> Self {
        let mut month = Self::ending(Utc::now(), "UTC", major, library);
        month.walship = Walship::at(&month.place);
        month
    }

    /// A month that ended at that moment, where clocks are set by that time zone. What runs later in it runs
    /// at its end.
    fn ending(end: DateTime<Utc>, time_zone: &str, major: Major, library: &Path) -> Self {
        let clock = scratch();
        let file = clock.path().join("offset");
        let behind = (Utc::now() - end).num_seconds();
        // In one step: who reads it half written has today's time.
        let set_back = |seconds: i64| {
            let next = clock.path().join("next");
            std::fs::write(&next, format!("-{}\n", behind + seconds)).unwrap();
            give_to_user(&next);
            std::fs::rename(&next, &file).unwrap();
        };
        set_back(DAYS * DAY);
        let place = Place::directory();
        let shared = SharedClock::start(library);
        let in_the_past = Walship::at(&place)
            .env("TZ", time_zone)
            .env("LD_PRELOAD", library)
            .env("FAKETIME_SHARED", shared.value())
            .env("FAKETIME_TIMESTAMP_FILE", &file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
        let primary = archiving_primary(major, &in_the_past);
        primary.sql("create table rows (n int, at timestamptz default clock_timestamp())");
        let mut segment = String::new();
        for day in 0..DAYS {
            let left = (DAYS - day) * DAY;
            set_back(left);
            take_backup(&in_the_past, &primary);
            primary.sql(&format!("insert into rows values ({})", 2 * day));
            set_back(left - DAY / 2);
            primary.sql(&format!("insert into rows values ({})", 2 * day + 1));
            segment = primary.switch_wal();
        }
        wait_archived(&primary, &segment);
        assert_eq!(primary.sql("select failed_count from pg_stat_archiver"), "0");
        set_back(0);
        let archive = place.path().unwrap();
        let long_ago = format!("@{}", (end - TimeDelta::days(40)).timestamp());
        let mut touch = Command::new("find");
        touch
            .arg(archive)
            .args(["-type", "f", "-exec", "touch", "-d", &long_ago, "{}", "+"]);
        assert!(touch.status().unwrap().success());
        Self {
            place,
            walship: in_the_past,
            primary,
            _clock: clock,
            _shared: shared,
        }
    }

    /// How many rows there were at that moment.
    fn rows_at(&self, moment: &str) -> String {
        self.primary
            .sql(&format!("select count(*) from rows where at <= '{moment}'"))
    }

    /// The same archive elsewhere.
    fn copy(&self) -> (Walship, PathBuf, tempfile::TempDir) {
        let root = scratch();
        let archive = root.path().join("archive");
        let mut cp = Command::new("cp");
        cp.arg("-a").arg(self.place.path().unwrap()).arg(&archive);
        assert!(cp.status().unwrap().success());
        let walship = with_policy(&Walship::new(&format!("file://{}", archive.display())));
        (walship, archive, root)
    }

    /// Recovers, starts the server, and counts its rows.
    fn rows_recovered(&self, arguments: &[&str]) -> String {
        let root = scratch();
        let data = root.path().join("data");
        let mut all = vec![
            "recover",
            "--pgdata",
            data.to_str().unwrap(),
            "--archive-mode",
            "off",
        ];
        all.extend(["--target-action", "promote"]);
        all.extend(arguments);
        self.walship.run(&all).succeeded();
        let cluster = self.walship.opened(self.primary.major(), &data);
        cluster.sql("select count(*) from rows")
    }
}

fn with_policy(walship: &Walship) -> Walship {
    walship
        .clone()
        .env("WALSHIP_RETENTION_KEEP_WINDOW", "7d")
        .env("WALSHIP_RETENTION_KEEP_BACKUPS", "2")
        .env("WALSHIP_RETENTION_KEEP_WEEKLY", "3")
        .env("WALSHIP_RETENTION_KEEP_MONTHLY", "2")
}

fn json(walship: &Walship, arguments: &[&str]) -> Value {
    let output = walship.run(arguments).succeeded();
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

/// The ids of the backups that a plan keeps, or keeps standing alone, or deletes.
fn with_action<'a>(plan: &'a Value, action: &str) -> Vec<&'a str> {
    let backups = plan["backups"].as_array().unwrap().iter();
    let chosen = backups.filter(|fate| fate["action"] == action);
    chosen.map(|fate| fate["id"].as_str().unwrap()).collect()
}

/// The archive's files, but for what `verify` notes and for what a killed put leaves until it is a day old.
fn files(archive: &Path) -> BTreeSet<String> {
    let output = Command::new("find")
        .arg(archive)
        .args(["-type", "f", "-printf", "%P\\n"])
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let files = text
        .lines()
        .filter(|file| !file.starts_with("ledger/") && !file.contains(".walship-"));
    files.map(str::to_owned).collect()
}

/// `walship verify` finds nothing wrong, and these backups are there.
fn is_sound(walship: &Walship, kept: &[&str], when: &str) {
    let output = walship.run(&["verify", "--json"]);
    assert_eq!(output.code, Some(0), "{when}: {output:#?}");
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(report["is_clean"], true, "{when}: {report:#}");
    let backups = report["backups"].as_array().unwrap();
    for id in kept {
        assert!(
            backups.iter().any(|backup| backup["id"] == *id),
            "{when}: {id} is gone"
        );
    }
}

/// Killed at any point, it leaves an archive that verifies, and the next run finishes the work. The points
/// are the calls that change the archive: some of those that delete, and the one that publishes
/// `retention.json`.
fn kills(month: &Month, kept: &[&str]) {
    let (walship, archive, _root) = month.copy();
    let before = files(&archive);
    walship.run(&["expire"]).succeeded();
    let expected = files(&archive);
    let doomed: Vec<_> = before.difference(&expected).collect();
    let (backups, wal): (Vec<_>, Vec<_>) = doomed.iter().partition(|key| key.starts_with("backups/"));
    let deletions = [backups, wal].map(|keys| every_nth(&keys, 8));
    let points = deletions.iter().flatten().map(|key| ("unlink,unlinkat", *key));
    let retention = "retention.json".to_owned();
    for (calls, key) in points.chain([("link,linkat,rename,renameat,renameat2", &retention)]) {
        let (walship, archive, _root) = month.copy();
        let when = format!("killed at {calls} of {key}");
        let fault = format!("{calls}:signal=KILL");
        let killed = with_fault(&walship, &fault, &[&archive.join(key)], &["expire"]);
        assert_eq!(killed.signal, Some(9), "{when}: {killed:#?}");
        is_sound(&walship, kept, &when);
        walship.run(&["expire"]).succeeded();
        assert_eq!(files(&archive), expected, "{when}");
        is_sound(&walship, kept, &when);
    }
}

/// The first, the last, and so many in all that lie evenly between them.
fn every_nth<'a>(keys: &[&&'a String], count: usize) -> Vec<&'a String> {
    assert!(keys.len() >= count, "{keys:?}");
    let last = keys.len() - 1;
    (0..count).map(|n| *keys[n * last / (count - 1)]).collect()
}

// Seen to fail: `expire/mod.rs`: WAL goes first; released WAL is not noted; here: the mark goes to a backup by its
// number (fails on every 28th)
#[test]
fn a_month_of_backups_expires_and_what_is_promised_is_recovered() {
    let Some(library) = faketime() else {
        announce("NOT TESTED: a month of backups (libfaketime is missing: apt-get install faketime)");
        return;
    };
    let month = Month::pass(Major::V18, &library);
    let walship = with_policy(&month.walship);
    // A mark on a backup that nothing else keeps.
    let dry = json(&walship, &["expire", "--dry-run", "--json"]);
    let marked = with_action(&dry, "delete")[2].to_owned();
    walship
        .run(&["keep", &marked, "--until", "2099-01-01"])
        .succeeded();
    let archive = month.place.path().unwrap();
    let before = files(archive);
    let dry = json(&walship, &["expire", "--dry-run", "--json"]);
    assert_eq!(files(archive), before, "a dry run deletes nothing");
    let kept: Vec<_> = [with_action(&dry, "keep"), with_action(&dry, "keep_stand_alone")].concat();
    kills(&month, &kept);

    let report = json(&walship, &["expire", "--json"]);
    assert_eq!(report["backups"], dry["backups"]);
    assert_eq!(report["wal"], dry["wal"]);
    assert_eq!(report["deleted"]["backups"], with_action(&dry, "delete").len());
    assert_eq!(report["left_objects"], 0);
    is_sound(&walship, &kept, "after the expiry");
    // Six in the window and the one before it; of the rest, weeks, a month and the mark.
    assert!(
        (7..=8).contains(&with_action(&report, "keep").len()),
        "{report:#}"
    );
    let alone = with_action(&report, "keep_stand_alone");
    assert!((2..=4).contains(&alone.len()), "{report:#}");
    let list = walship.run(&["list"]).succeeded().stdout;
    assert!(list.contains("stands alone, kept until 2099-01-01"), "{list}");
    assert!(!list.contains("LACKS") && !list.contains("MISSING"), "{list}");

    // The oldest moment that is promised.
    let oldest = report["window_start"].as_str().unwrap();
    let rows = month.rows_recovered(&["--target-time", oldest]);
    assert_eq!(rows, month.rows_at(oldest), "{oldest}");
    // Each backup that stands alone, to its own end.
    for id in [alone[0], alone.last().unwrap()] {
        let fate = report["backups"]
            .as_array()
            .unwrap()
            .iter()
            .find(|fate| fate["id"] == id);
        let finished = fate.unwrap()["finished_at"].as_str().unwrap();
        let rows = month.rows_recovered(&["--backup", id]);
        assert_eq!(rows, month.rows_at(finished), "{id}");
    }
    // And nowhere else.
    let root = scratch();
    let data = root.path().join("data");
    let target = month.primary.sql("select at from rows where n = 9");
    let arguments = [
        "recover",
        "--pgdata",
        data.to_str().unwrap(),
        "--target-time",
        &target,
    ];
    let refused = walship.run(&arguments).exited(2);
    assert!(
        refused.stderr.contains("retention has released the WAL"),
        "{}",
        refused.stderr
    );
    assert!(refused.stderr.contains("every moment from"), "{}", refused.stderr);
    assert!(!data.exists());

    let again = json(&walship, &["expire", "--json"]);
    assert_eq!(again["deleted"]["objects"], 0);
}

/// What a policy of 7 days, 2 backups, 3 weeks and 2 months keeps at that moment, told from the calendar alone.
fn by_the_calendar(finished: &[DateTime<Utc>], now: DateTime<Utc>) -> BTreeSet<usize> {
    let count = finished.len();
    let window = now - TimeDelta::days(7);
    let before = finished.iter().rposition(|at| *at <= window);
    let mut kept: BTreeSet<usize> = (before.unwrap_or(0)..count).collect();
    kept.extend(count - 2..count);
    let monday =
        |at: &DateTime<Utc>| at.num_days_from_ce() - at.weekday().num_days_from_monday().cast_signed();
    let month = |at: &DateTime<Utc>| at.year() * 12 + at.month0().cast_signed();
    let lasts = |period: &dyn Fn(&DateTime<Utc>) -> i32, periods: usize| {
        let is_last = |n: &usize| {
            finished
                .get(n + 1)
                .is_none_or(|next| period(next) != period(&finished[*n]))
        };
        (0..count).rev().filter(is_last).take(periods).collect::<Vec<_>>()
    };
    kept.extend(lasts(&monday, 3));
    kept.extend(lasts(&month, 2));
    kept
}

// Seen to fail: `retention/periods.rs`: weeks begin on Sunday
#[test]
fn on_whatever_day_a_month_ends_what_the_calendar_says_is_kept() {
    let Some(library) = faketime() else {
        announce("NOT TESTED: the days of the year (libfaketime is missing: apt-get install faketime)");
        return;
    };
    // The 28th and the last of months, of years and of a leap February, the days after them, and the
    // hours in which clocks are put forward and back.
    for (end, time_zone) in [
        ("2026-02-28T23:59:30Z", "UTC"),
        ("2024-02-29T12:00:00Z", "America/New_York"),
        ("2024-03-01T00:00:05Z", "UTC"),
        ("2025-12-31T23:59:30Z", "Pacific/Kiritimati"),
        ("2026-01-01T00:00:05Z", "UTC"),
        ("2026-03-29T00:59:30Z", "Europe/Berlin"),
        ("2025-10-26T00:59:30Z", "Europe/Berlin"),
        ("2026-08-31T10:00:00Z", "Asia/Kathmandu"),
    ] {
        let now: DateTime<Utc> = end.parse().unwrap();
        let month = Month::ending(now, time_zone, Major::V18, &library);
        let walship = with_policy(&month.walship);
        let report = json(&walship, &["expire", "--json"]);
        let backups = report["backups"].as_array().unwrap();
        let finished: Vec<DateTime<Utc>> = backups
            .iter()
            .map(|fate| fate["finished_at"].as_str().unwrap().parse().unwrap())
            .collect();
        assert_eq!(finished.len() as i64, DAYS, "{end}");
        let now: DateTime<Utc> = report["now"].as_str().unwrap().parse().unwrap();
        let kept: BTreeSet<_> = (0..backups.len())
            .filter(|n| backups[*n]["action"] != "delete")
            .collect();
        assert_eq!(kept, by_the_calendar(&finished, now), "{end}: {report:#}");
        let ids: Vec<_> = kept.iter().map(|n| backups[*n]["id"].as_str().unwrap()).collect();
        is_sound(&walship, &ids, end);
        let oldest = report["window_start"].as_str().unwrap();
        let rows = month.rows_recovered(&["--target-time", oldest]);
        assert_eq!(rows, month.rows_at(oldest), "{end}: {oldest}");
    }
}

#[test]
fn a_policy_that_says_nothing_and_ids_that_do_not_exist_are_refused_in_one_line() {
    let place = Place::directory();
    let mut primary = archiving_primary(Major::V18, &Walship::at(&place));
    let walship = Walship::at(&place);
    take_backup(&walship, &primary);
    // Nothing is archived while the files are compared.
    primary.stop(Stop::Fast);
    let before = files(place.path().unwrap());
    let zero = walship.clone().env("WALSHIP_RETENTION_KEEP_BACKUPS", "0");
    let negative = walship.clone().env("WALSHIP_RETENTION_KEEP_WINDOW", "-3d");
    let absurd = walship.clone().env("WALSHIP_RETENTION_KEEP_WINDOW", "99999d");
    let cases: [(&Walship, &[&str], i32, &str); 9] = [
        (&walship, &["expire"], 2, "no retention policy is set"),
        (&zero, &["expire"], 2, "would keep nothing"),
        (&negative, &["expire"], 2, "not a duration that walship can use"),
        (
            &absurd,
            &["expire", "--dry-run"],
            2,
            "not a duration that walship can use",
        ),
        (&walship, &["keep", "20200101T000000Z"], 3, "is not in"),
        (
            &walship,
            &["keep", "20200101T000000Z", "--release"],
            3,
            "is not in",
        ),
        (&walship, &["keep", "yesterday"], 2, "is not a backup's id"),
        (
            &walship,
            &["keep", "20200101T000000Z", "--until", "2020-01-01"],
            2,
            "is over",
        ),
        (
            &walship,
            &["keep", "20200101T000000Z", "--until", "soon"],
            2,
            "is not a time with a time zone",
        ),
    ];
    for (walship, arguments, code, says) in cases {
        let output = walship.run(arguments).exited(code);
        assert!(output.stderr.contains(says), "{arguments:?}: {}", output.stderr);
        assert_eq!(
            output.stderr.lines().count(),
            1,
            "{arguments:?}: {}",
            output.stderr
        );
    }
    assert_eq!(files(place.path().unwrap()), before);
}

#[test]
fn every_store_lets_go_of_what_expires_and_keeps_the_rest() {
    for store in stores::chosen() {
        let place = store.new_place();
        let walship = Walship::at(&place);
        let primary = archiving_primary(Major::V18, &walship);
        let first = take_backup(&walship, &primary);
        primary.sql("create table t as select 1 as n");
        let segment = primary.switch_wal();
        std::thread::sleep(Duration::from_millis(1100));
        let second = take_backup(&walship, &primary);
        wait_archived(&primary, &segment);
        // What was stored in this very second is not the plan's to delete.
        std::thread::sleep(Duration::from_millis(2100));
        let expiring = walship.clone().env("WALSHIP_RETENTION_KEEP_BACKUPS", "1");
        let report = json(&expiring, &["expire", "--json"]);
        assert_eq!(
            with_action(&report, "delete"),
            [first.as_str()],
            "{}",
            store.name()
        );
        assert_eq!(report["deleted"]["backups"], 1);
        let deleted = report["wal"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|fate| fate["action"] == "delete");
        let segments: u64 = deleted.map(|fate| fate["segments"].as_u64().unwrap()).sum();
        assert!(segments >= 2, "{}: {report:#}", store.name());
        let list = json(&expiring, &["list", "--json"]);
        assert_eq!(list["backups"].as_array().unwrap().len(), 1);
        assert_eq!(list["backups"][0]["id"], second.as_str());
        assert_eq!(
            (&list["unrestorable"], &list["unfinished"]),
            (&serde_json::json!([]), &serde_json::json!([]))
        );
        let again = json(&expiring, &["expire", "--json"]);
        assert_eq!(again["deleted"]["objects"], 0, "{}", store.name());
    }
}

#[test]
fn a_folder_that_must_not_be_written_to_is_reported_and_its_backup_stays_whole() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V18, &walship);
    let first = take_backup(&walship, &primary);
    std::thread::sleep(Duration::from_millis(1100));
    take_backup(&walship, &primary);
    let expiring = walship.env("WALSHIP_RETENTION_KEEP_BACKUPS", "1");
    let folder = place.path().unwrap().join("backups").join(&first);
    let mode = |mode| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o550);
    let output = expiring.run(&["expire"]).exited(6);
    assert!(
        output.stdout.contains("COULD NOT BE DELETED: 1 objects"),
        "{}",
        output.stdout
    );
    assert!(output.stdout.contains("backup.json"), "{}", output.stdout);
    is_sound(&expiring, &[&first], "locked");
    mode(0o750);
    expiring.run(&["expire"]).succeeded();
    assert!(!folder.exists());
}

/// A signed request that walship has no use for, and so no code.
fn curl(server: &StoreServer, service: &str, arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-s", "-S", "--fail-with-body", "--aws-sigv4"])
        .arg(format!("aws:amz:{}:{service}", server.region))
        .args(["--user", &format!("{}:{}", server.access_key, server.secret_key)])
        .args(arguments)
        .output()
        .expect("run curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text} {output:?}");
    text
}

fn put_xml(server: &StoreServer, path: &str, header: &str, body: &str) {
    use sha2::Digest;
    let sha256 = sha2::Sha256::digest(body);
    let hash = walship_core::text::hex(&sha256);
    let checksum = BASE64_STANDARD.encode(sha256);
    let url = format!("{}/{path}", server.endpoint);
    curl(
        server,
        "s3",
        &[
            "-X",
            "PUT",
            &url,
            "-H",
            header,
            "-H",
            &format!("x-amz-content-sha256: {hash}"),
            "-H",
            &format!("x-amz-checksum-sha256: {checksum}"),
            "-d",
            body,
        ],
    );
}

/// Two backups; the first one and the second.
fn two_backups(walship: &Walship) -> [String; 2] {
    let primary = archiving_primary(Major::V18, walship);
    let first = take_backup(walship, &primary);
    std::thread::sleep(Duration::from_millis(1100));
    let second = take_backup(walship, &primary);
    std::thread::sleep(Duration::from_millis(2100));
    [first, second]
}

#[test]
fn a_bucket_with_object_lock_keeps_the_versions_and_the_archive_forgets_them() {
    if !stores::chosen().contains(&TestStore::Server(Kind::MinIo)) {
        return;
    }
    let server = StoreServer::shared(Kind::MinIo);
    let bucket = format!("locked-{}", std::process::id());
    put_xml(server, &bucket, "x-amz-bucket-object-lock-enabled: true", "");
    let lock = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
                <Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
    put_xml(
        server,
        &format!("{bucket}?object-lock="),
        "content-type: application/xml",
        lock,
    );
    let place = server.new_place().with_url(&format!("s3://{bucket}/archive"));
    let walship = Walship::at(&place).env("WALSHIP_RETENTION_KEEP_BACKUPS", "1");
    let [first, second] = two_backups(&walship);
    let report = json(&walship, &["expire", "--json"]);
    assert_eq!(
        (&report["deleted"]["backups"], &report["left_objects"]),
        (&1.into(), &0.into())
    );
    let list = json(&walship, &["list", "--json"]);
    assert_eq!(list["backups"].as_array().unwrap().len(), 1);
    assert_eq!(list["backups"][0]["id"], second.as_str());
    // Nothing was fought: every version is still there, under a delete marker.
    let query = format!("prefix=archive%2Fbackups%2F{first}%2Fbackup.json&versions=");
    let versions = curl(server, "s3", &[&format!("{}/{bucket}?{query}", server.endpoint)]);
    assert!(
        versions.contains("<Version>") && versions.contains("<DeleteMarker>"),
        "{versions}"
    );
    assert_eq!(json(&walship, &["expire", "--json"])["deleted"]["objects"], 0);
}

#[test]
fn what_a_policy_of_the_bucket_protects_is_reported_and_stays_whole() {
    if !stores::chosen().contains(&TestStore::Server(Kind::MinIo)) {
        return;
    }
    let server = StoreServer::shared(Kind::MinIo);
    let place = server.new_place();
    let walship = Walship::at(&place).env("WALSHIP_RETENTION_KEEP_BACKUPS", "1");
    let [first, second] = two_backups(&walship);
    let (bucket, prefix) = place.bucket_and_prefix().unwrap();
    let policy = format!(
        r#"{{"Version":"2012-10-17","Statement":[
            {{"Effect":"Allow","Action":["s3:*"],"Resource":["arn:aws:s3:::*"]}},
            {{"Effect":"Deny","Action":["s3:DeleteObject"],"Resource":["arn:aws:s3:::{bucket}/{prefix}/backups/{first}/*"]}}]}}"#
    );
    let answer = curl(
        server,
        "sts",
        &[
            "-X",
            "POST",
            &format!("{}/", server.endpoint),
            "--data-urlencode",
            "Action=AssumeRole",
            "--data-urlencode",
            "Version=2011-06-15",
            "--data-urlencode",
            "DurationSeconds=3600",
            "--data-urlencode",
            &format!("Policy={policy}"),
        ],
    );
    let field = |name: &str| {
        let (_, rest) = answer.split_once(&format!("<{name}>")).expect("credentials");
        rest.split_once('<').unwrap().0.to_owned()
    };
    let restricted = walship
        .clone()
        .env("AWS_ACCESS_KEY_ID", field("AccessKeyId"))
        .env("AWS_SECRET_ACCESS_KEY", field("SecretAccessKey"))
        .env("AWS_SESSION_TOKEN", field("SessionToken"));
    let output = restricted.run(&["expire"]).exited(6);
    assert!(
        output.stdout.contains("COULD NOT BE DELETED: 1 objects"),
        "{}",
        output.stdout
    );
    assert!(output.stdout.contains("s3:DeleteObject"), "{}", output.stdout);
    is_sound(&walship, &[&first, &second], "protected");
    walship.run(&["expire"]).succeeded();
    let list = json(&walship, &["list", "--json"]);
    assert_eq!(list["backups"].as_array().unwrap().len(), 1);
}
