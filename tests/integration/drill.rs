//! `walship drill`: what it proves, what makes it fail, and that it touches nothing but its own record.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use walship_core::format::codec::{self, WalDecoder};
use walship_core::pg::Major;

use crate::bad_input::SmallDisk;
use crate::recover::move_configuration_out;
use crate::recovery::{History, take_backup};
use crate::restore::digit_of;
use crate::server::{archiving_primary, majors, wait_archived};
use crate::support::postgres::{Cluster, Stop};
use crate::support::process::{Output, Running, descendants, start_time};
use crate::support::stores::{self, Place};
use crate::support::walship::Walship;
use crate::support::{announce, give_to_user, make_dir, scratch, wait_for};

const PATIENCE: Duration = Duration::from_mins(3);

/// A walship that drills in a folder of the test, with this cluster's programs.
struct Drills {
    walship: Walship,
    root: tempfile::TempDir,
}

impl Drills {
    fn beside(cluster: &Cluster, walship: &Walship) -> Self {
        let root = scratch();
        let directory = make_dir(root.path(), "drills", 0o700);
        let libraries = cluster.bin_dir().parent().unwrap().join("lib");
        let walship = walship
            .clone()
            .env("WALSHIP_DRILL_DIRECTORY", directory)
            .env("WALSHIP_POSTGRES_BIN_DIR", cluster.bin_dir())
            .env("LD_LIBRARY_PATH", libraries);
        Self { walship, root }
    }

    fn directory(&self) -> PathBuf {
        self.root.path().join("drills")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut all = vec!["drill", "--json"];
        all.extend(arguments);
        self.walship.run(&all)
    }

    /// A drill that passes, or, with 9, is made and fails; nothing is left of it.
    #[track_caller]
    fn made(&self, code: i32, arguments: &[&str]) -> Value {
        let output = self.run(arguments).exited(code);
        self.nothing_is_left();
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        let left: Vec<_> = fs::read_dir(self.directory()).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// A file of the test's own statements.
    fn sql(&self, text: &str) -> PathBuf {
        let path = self.root.path().join("check.sql");
        fs::write(&path, text).unwrap();
        give_to_user(&path);
        path
    }
}

/// Every file of a directory archive and its content.
fn content(archive: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![archive.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                files.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

fn lose(archive: &Path, segment: &str) {
    let key = format!("wal/{}/{}/{segment}.zst", &segment[..8], &segment[..16]);
    fs::remove_file(archive.join(key)).unwrap();
}

fn outcomes(report: &Value) -> BTreeMap<&str, &str> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .map(|check| {
            (
                check["kind"].as_str().unwrap(),
                check["outcome"].as_str().unwrap(),
            )
        })
        .collect()
}

// Seen to fail: `drill/mod.rs`: no mappings; replay takes no time; `archive/drills.rs`: nothing is written;
// `status/mod.rs`: the last drill is left out
#[test]
fn a_healthy_archive_passes_with_figures_and_the_archive_keeps_them() {
    for &major in majors() {
        let history = History::write(major, Place::directory());
        let drills = Drills::beside(&history.primary, &history.walship);
        let sql = drills.sql(
            "select count(*) = 5 from steps; set work_mem = '8MB'; \
             select bool_and(pg_tablespace_location(oid) like '%/walship-drill-%/tablespaces/%') \
             from pg_tablespace where oid >= 16384",
        );
        let archive = history.place.path().unwrap();
        let before = content(archive);
        let report = drills.made(0, &["--sql", sql.to_str().unwrap()]);
        assert_eq!(report["passed"], true, "{report}");
        assert_eq!(report["backup"], history.backup.as_str());
        for figure in [
            "/restore/bytes",
            "/restore/ms",
            "/replay/bytes",
            "/replay/ms",
            "/recovery_ms",
        ] {
            assert!(
                report.pointer(figure).unwrap().as_u64().unwrap() > 0,
                "{figure}: {report}"
            );
        }
        assert!(report["data_loss_ms"].as_u64().unwrap() < 3_600_000, "{report}");
        let expected = if major >= Major::V18 { "passed" } else { "skipped" };
        assert_eq!(
            outcomes(&report),
            BTreeMap::from([("sql", "passed"), ("amcheck", "passed"), ("checksums", expected)]),
            "PostgreSQL {major}: {report}"
        );
        // Nothing but the record is new, and nothing else has changed.
        let mut after = content(archive);
        let proof = archive.join(format!("backups/{}/proof.json", history.backup));
        let proof: Value = serde_json::from_slice(&after.remove(&proof).unwrap()).unwrap();
        assert_eq!(proof["last_success"]["reached_lsn"], report["reached_lsn"]);
        assert_eq!(proof["last_success"]["newest_commit"], report["newest_commit"]);
        let drills = after.remove(&archive.join("ledger/drills.json")).unwrap();
        let drills: Value = serde_json::from_slice(&drills).unwrap();
        assert_eq!(drills["last_success"]["drill"], proof["last_success"]);
        assert_eq!(drills["last_success"]["backup"], history.backup.as_str());
        assert!(before == after, "PostgreSQL {major}: the archive has changed");
        let list = history.walship.run(&["list", "backups", "--json"]).succeeded();
        let list: Value = serde_json::from_str(&list.stdout).unwrap();
        assert_eq!(list["backups"][0]["proven"]["last_success"], report["started_at"]);
        let status = history.walship.run(&["status", "--json"]).succeeded();
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        assert_eq!(status["drill"]["started_at"], report["started_at"]);
        assert_eq!(status["drill"]["recovery_ms"], report["recovery_ms"]);
    }
}

// Seen to fail: `drill/checks.rs`: walship's own empty `search_path`; `drill/mod.rs`: the target is the end of the WAL;
// the newest commit is not told
#[test]
fn a_target_is_reached_and_no_later_commit_is_told() {
    let history = History::write(Major::V17, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    let sql = drills.sql("select array_agg(n order by n) = '{1}' from steps");
    let arguments = [
        "--target-time",
        &history.time_after_1,
        "--sql",
        sql.to_str().unwrap(),
    ];
    let report = drills.made(0, &arguments);
    // A moment is a position for PostgreSQL, and it stops there before it notes when that transaction ended.
    if let Some(newest) = report["newest_commit"].as_str() {
        let age = format!(
            "select timestamptz '{newest}' <= timestamptz '{0}'",
            history.time_after_1
        );
        assert_eq!(history.primary.sql(&age), "t", "{report}");
    }
}

// Seen to fail: `drill/mod.rs`: an error that speaks against the archive is like any other
#[test]
fn a_lost_segment_fails_the_drill_and_is_named() {
    for &major in majors() {
        let history = History::write(major, Place::directory());
        let drills = Drills::beside(&history.primary, &history.walship);
        let missing = history.primary.switch_wal();
        let after = history.primary.switch_wal();
        wait_archived(&history.primary, &after);
        lose(history.place.path().unwrap(), &missing);
        let report = drills.made(9, &[]);
        assert_eq!(report["passed"], false);
        assert!(report["failure"].as_str().unwrap().contains(&missing), "{report}");
        let list = history.walship.run(&["list", "backups"]).succeeded();
        assert!(list.stdout.contains("FAILED"), "{}", list.stdout);
    }
}

// Seen to fail: `format/codec.rs`: no hash of the trailer's is compared
#[test]
fn a_flipped_bit_in_a_segment_fails_verify_and_the_drill_and_the_segment_is_named() {
    let history = History::write(Major::V18, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    history.primary.sql("insert into steps values (6)");
    let segment = history.primary.switch_wal();
    wait_archived(&history.primary, &segment);
    let key = format!("wal/{}/{}/{segment}.zst", &segment[..8], &segment[..16]);
    let path = history.place.path().unwrap().join(key);
    let good = fs::read(&path).unwrap();
    let field = |name: &str| digit_of(&good, name);
    let places = [
        ("a frame", good.len() / 2),
        ("the frames' hash", field("frames_sha256")),
        ("the content's hash", field("content_xxh3")),
        ("the trailer", field("name")),
    ];
    for (what, at) in places {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        fs::write(&path, flipped).unwrap();
        let verified = history.walship.run(&["verify", "--full"]).exited(7);
        assert!(verified.stdout.contains(&segment), "{what}: {verified:#?}");
        let report = drills.made(9, &[]);
        let failure = report["failure"].as_str().unwrap();
        assert!(failure.contains(&segment), "{what}: {report}");
    }
    fs::write(&path, good).unwrap();
    drills.made(0, &[]);
}

/// The content of an archived segment, zeroed from here on and archived as if that were all of it.
fn cut_short(archive: &Path, segment: &str, from: usize) {
    let key = format!("wal/{}/{}/{segment}.zst", &segment[..8], &segment[..16]);
    let path = archive.join(key);
    let mut content = Vec::new();
    let mut decoder = WalDecoder::new(1 << 30).unwrap();
    decoder.write(&fs::read(&path).unwrap(), &mut content).unwrap();
    let trailer = decoder.finish().unwrap();
    content[from..].fill(0);
    // Without an index, as an older walship stored it.
    let name = segment.parse().unwrap();
    let object = codec::encode(&content, 1, name, trailer.system_identifier, None).unwrap();
    fs::write(&path, object).unwrap();
    give_to_user(&path);
}

// Seen to fail: `drill/reach.rs`: every replay has reached the end
#[test]
fn a_drill_whose_replay_ends_before_the_archived_wal_does_fails() {
    let history = History::write(Major::V17, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    history.primary.sql("insert into steps values (6)");
    let last = history.primary.switch_wal();
    wait_archived(&history.primary, &last);
    drills.made(0, &[]);
    cut_short(history.place.path().unwrap(), &history.last_segment, 8192);
    let report = drills.made(9, &[]);
    let failure = report["failure"].as_str().unwrap();
    assert!(failure.contains("the records break off at LSN"), "{report}");
}

/// Runs drills with programs of which one is a script, which gets `$REAL`, the folder of the real ones.
fn replacing(drills: &Drills, cluster: &Cluster, program: &str, script: &str) -> Walship {
    let folder = make_dir(drills.root.path(), &format!("with-{program}"), 0o755);
    for entry in fs::read_dir(cluster.bin_dir()).unwrap().flatten() {
        if entry.file_name() != program {
            std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    let path = folder.join(program);
    let real = cluster.bin_dir();
    let text = format!(
        "#!/bin/sh\nREAL={0}\n[ \"$1\" = --version ] && exec $REAL/{program} --version\n{script}\nexec $REAL/{program} \"$@\"\n",
        real.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    drills.walship.clone().env("WALSHIP_POSTGRES_BIN_DIR", folder)
}

#[test]
fn the_users_own_checks_decide_and_a_failure_keeps_the_success_before_it() {
    let history = History::write(Major::V18, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    let first = drills.made(0, &[]);
    for (text, says) in [
        (
            "select 1; select count(*) > 5 from steps",
            "statement 2 (SELECT 1) has false",
        ),
        ("select n from steps where n > 5", "returned no row"),
        ("select 1; select n from no_such_table", "statement 2"),
        ("copy steps to stdout", "COPY"),
    ] {
        let sql = drills.sql(text);
        let report = drills.made(9, &["--sql", sql.to_str().unwrap()]);
        assert!(
            report["failure"].as_str().unwrap().contains(says),
            "{text}: {report}"
        );
        assert_eq!(outcomes(&report)["amcheck"], "passed", "{report}");
    }
    let proof = history
        .place
        .path()
        .unwrap()
        .join(format!("backups/{}/proof.json", history.backup));
    let proof: Value = serde_json::from_slice(&fs::read(proof).unwrap()).unwrap();
    assert_eq!(proof["last_success"]["started_at"], first["started_at"]);
    assert!(
        proof["last_failure"]["failure"]
            .as_str()
            .unwrap()
            .contains("COPY")
    );
    drills.walship.run(&["drill", "--sql", "/no/such.sql"]).exited(2);
}

/// A drill whose SQL does not come to an end, and its server's process id.
fn stuck(drills: &Drills) -> (Running, u32) {
    let sql = drills.sql("select pg_sleep(600)");
    let before: Vec<_> = folders(drills);
    let running = drills.walship.spawn(&["drill", "--sql", sql.to_str().unwrap()]);
    let pid = wait_for("the drill's server to open", PATIENCE, || {
        let folder = folders(drills)
            .into_iter()
            .find(|folder| !before.contains(folder))?;
        let file = fs::read_to_string(folder.join("data/postmaster.pid")).ok()?;
        let open = file.lines().nth(7).is_some_and(|status| status.trim() == "ready");
        open.then(|| file.lines().next()?.trim().parse().ok()).flatten()
    });
    (running, pid)
}

fn folders(drills: &Drills) -> Vec<PathBuf> {
    let entries = fs::read_dir(drills.directory()).unwrap().flatten();
    entries.map(|entry| entry.path()).collect()
}

// Seen to fail: `drill/mod.rs`: no cleaning
#[test]
fn what_a_killed_drill_leaves_the_next_one_removes_and_a_living_ones_stays() {
    let history = History::write(Major::V17, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    let (mut killed, server) = stuck(&drills);
    // Beside a living one.
    let report: Value = serde_json::from_str(&drills.run(&[]).succeeded().stdout).unwrap();
    assert_eq!(report["notes"], Value::Array(Vec::new()), "{report}");
    assert_eq!(folders(&drills).len(), 1);
    assert!(start_time(server).is_some());
    killed.kill9();
    killed.wait(PATIENCE);
    let report = drills.made(0, &[]);
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.contains("a killed drill had left"), "{report}");
    assert_eq!(start_time(server), None);
}

// Seen to fail: `drill/mod.rs`: signals are ignored; a thousand times `drill.timeout`
#[test]
fn a_drill_that_is_told_to_end_leaves_nothing_behind_and_records_nothing() {
    let history = History::write(Major::V17, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    let before = content(history.place.path().unwrap());
    let (running, server) = stuck(&drills);
    running.terminate();
    let output = running.wait(PATIENCE).exited(1);
    assert!(output.stderr.contains("SIGTERM"), "{output:?}");
    drills.nothing_is_left();
    assert_eq!(start_time(server), None);
    let output = drills
        .walship
        .clone()
        .env("WALSHIP_DRILL_TIMEOUT", "1s")
        .run(&[
            "drill",
            "--sql",
            drills.sql("select pg_sleep(600)").to_str().unwrap(),
        ])
        .exited(5);
    assert!(output.stderr.contains("drill.timeout"), "{output:?}");
    drills.nothing_is_left();
    assert!(before == content(history.place.path().unwrap()));
}

/// Settings with which the source reaches out, archives, listens and loads, as the drill must not.
fn outgoing_primary(major: Major, walship: &Walship, publisher: u16) -> Cluster {
    let mut primary = archiving_primary(major, walship);
    for (name, value) in [
        ("wal_level", "logical"),
        ("shared_preload_libraries", "auto_explain"),
        ("session_preload_libraries", "auto_explain"),
        // The source itself shall not reach the test's publisher.
        ("max_logical_replication_workers", "0"),
        ("synchronous_standby_names", "nobody"),
        ("synchronous_commit", "local"),
        ("cluster_name", "production"),
    ] {
        primary.set(name, value);
    }
    primary.stop(Stop::Fast);
    primary.start();
    primary.sql(&format!(
        "alter system set primary_conninfo = 'host=127.0.0.1 port={publisher}';
         alter system set listen_addresses = '*';
         create table kept (n int);
         create subscription s connection 'host=127.0.0.1 port={publisher}' publication p with (connect = false);
         alter subscription s enable"
    ));
    if major >= Major::V17 {
        primary.sql(
            "create function meddle() returns event_trigger language plpgsql as
                 $$ begin raise exception 'a login trigger ran'; end $$;
             create event trigger t on login execute function meddle();
             alter event trigger t disable; alter event trigger t enable",
        );
    }
    primary
}

const NOTHING_GOES_OUT: &str = "
    select current_setting('archive_mode') = 'off' and current_setting('archive_command') in ('', '(disabled)');
    select current_setting('listen_addresses') = '' and current_setting('primary_conninfo') = '';
    select current_setting('shared_preload_libraries') = '' and current_setting('session_preload_libraries') = '';
    select current_setting('max_wal_senders') = '0' and current_setting('synchronous_standby_names') = '';
    select current_setting('restore_command') like '%walship%restore %f %p';
    select count(*) = 1 from pg_subscription where subenabled;
    select count(*) = 0 from pg_stat_activity where backend_type ~ 'logical|archiver|walsender|autovacuum';
    select pg_sleep(2)";

// Seen to fail: `drill/settings.rs`: `max_worker_processes = 8`
#[test]
fn no_background_worker_of_a_library_that_was_asked_for_starts() {
    let history = History::write(Major::V17, Place::directory());
    let mut drills = Drills::beside(&history.primary, &history.walship);
    drills.walship = drills
        .walship
        .env("WALSHIP_DRILL_PRELOAD_LIBRARIES", "pg_prewarm");
    let (running, server) = stuck(&drills);
    // The leader of autoprewarm is in no view.
    let titles: String = descendants(server)
        .into_iter()
        .map(|(pid, _)| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default())
        .collect();
    assert!(
        titles.contains("checkpointer") && !titles.contains("autoprewarm"),
        "{titles}"
    );
    running.terminate();
    running.wait(PATIENCE).exited(1);
    drills.nothing_is_left();
}

// Seen to fail: `drill/mod.rs`: `SourceConfiguration::Kept`; `drill/settings.rs`: no `max_worker_processes` and no
// `max_logical_replication_workers`; `event_triggers = on` (on 18)
#[test]
fn nothing_of_a_drill_reaches_out_archives_listens_or_runs_the_sources_jobs() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let publisher = TcpListener::bind("127.0.0.1:0").unwrap();
        publisher.set_nonblocking(true).unwrap();
        let port = publisher.local_addr().unwrap().port();
        let mut primary = outgoing_primary(major, &walship, port);
        if major >= Major::V17 {
            // Its own trigger keeps everybody out.
            primary.set("event_triggers", "off");
            primary.reload();
            primary.wait_until("show event_triggers", "off", PATIENCE);
        }
        take_backup(&walship, &primary);
        let segment = primary.switch_wal();
        wait_archived(&primary, &segment);
        let drills = Drills::beside(&primary, &walship);
        let sql = drills.sql(NOTHING_GOES_OUT);
        let before = content(place.path().unwrap());
        let settings = primary.sql("select string_agg(name || setting, ' ' order by name) from pg_settings");
        drills.made(0, &["--sql", sql.to_str().unwrap()]);
        assert!(
            publisher.accept().is_err(),
            "PostgreSQL {major}: the subscription was followed"
        );
        let mut after = content(place.path().unwrap());
        after.retain(|path, _| !path.ends_with("proof.json") && !path.ends_with("ledger/drills.json"));
        assert!(before == after, "PostgreSQL {major}: the archive has changed");
        let now = primary.sql("select string_agg(name || setting, ' ' order by name) from pg_settings");
        assert_eq!(settings, now);
        assert!(primary.is_running());
    }
}

#[test]
fn configuration_outside_the_data_directory_is_neither_needed_nor_put_back() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let mut primary = archiving_primary(Major::V17, &walship);
    primary.stop(Stop::Fast);
    let etc = move_configuration_out(&primary);
    let config = format!("config_file={}", etc.join("postgresql.conf").display());
    primary.start_with(&["-c", &config]);
    take_backup(&walship, &primary);
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);
    fs::remove_dir_all(&etc).unwrap();
    Drills::beside(&primary, &walship).made(0, &[]);
    assert!(!etc.exists());
}

// Seen to fail: `drill/replay.rs`: one start only
#[test]
fn prepared_transactions_come_back_though_their_setting_was_raised_after_the_backup() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let mut primary = archiving_primary(major, &walship);
        primary.sql("create table kept (n int)");
        take_backup(&walship, &primary);
        primary.set("max_prepared_transactions", "7");
        primary.stop(Stop::Fast);
        primary.start();
        primary.sql("begin; insert into kept values (1); prepare transaction 'later'");
        let segment = primary.switch_wal();
        wait_archived(&primary, &segment);
        let drills = Drills::beside(&primary, &walship);
        let sql = drills.sql("select count(*) = 1 from pg_prepared_xacts");
        drills.made(0, &["--sql", sql.to_str().unwrap()]);
    }
}

// Seen to fail: `drill/checks.rs`: every exit code of `pg_amcheck` passes
#[test]
fn damage_that_was_backed_up_with_the_data_is_found() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let mut primary = archiving_primary(Major::V17, &walship);
    primary.sql("create table t as select g as n from generate_series(1, 2000) g; create index i on t (n)");
    let index = primary
        .data_dir()
        .join(primary.sql("select pg_relation_filepath('i')"));
    primary.stop(Stop::Fast);
    let mut bytes = fs::read(&index).unwrap();
    // Of the first leaf: two line pointers change places, so that keys are out of order.
    let pointers = 8192 + 24 + 40;
    bytes[pointers..pointers + 8].rotate_left(4);
    fs::write(&index, bytes).unwrap();
    primary.start();
    take_backup(&walship, &primary);
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);
    let drills = Drills::beside(&primary, &walship);
    let report = drills.made(9, &[]);
    assert_eq!(outcomes(&report)["amcheck"], "failed", "{report}");
    assert!(report["failure"].as_str().unwrap().contains("\"i\""), "{report}");
    // Who does not want it need not have it.
    let without = drills.walship.clone().env("WALSHIP_DRILL_AMCHECK", "false");
    without.run(&["drill"]).succeeded();
}

// Seen to fail: `drill/checks.rs`: no setting is given; the limit on transactions is left out
#[test]
fn settings_of_a_role_or_a_database_make_no_sound_backup_fail() {
    for major in [Major::V14, Major::V18] {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let primary = archiving_primary(major, &walship);
        primary.sql("create database shop");
        primary
            .sql("create table t as select 1 as n; create role nobody; create role checker superuser login");
        let mut settings = vec![
            ("default_transaction_read_only", "on"),
            ("statement_timeout", "1"),
            ("idle_session_timeout", "1"),
            ("session_preload_libraries", "'nowhere'"),
            ("role", "nobody"),
        ];
        if major >= Major::V17 {
            settings.push(("transaction_timeout", "1"));
        }
        for (name, value) in &settings {
            for whose in ["database shop", "role checker"] {
                primary.sql(&format!("alter {whose} set {name} = {value}"));
            }
        }
        take_backup(&walship, &primary);
        let segment = primary.switch_wal();
        wait_archived(&primary, &segment);
        let drills = Drills::beside(&primary, &walship);
        let sql =
            drills.sql("select pg_sleep(0.1); create temp table mine as select n from t; select n from mine");
        let checker = drills.walship.clone().env("WALSHIP_DRILL_USER", "checker");
        let output = checker.run(&["drill", "--json", "--sql", sql.to_str().unwrap()]);
        let report: Value = serde_json::from_str(&output.succeeded().stdout).unwrap();
        assert_eq!(outcomes(&report)["amcheck"], "passed", "{report}");
    }
}

// Seen to fail: `drill/checks.rs`: every exit code of `pg_checksums` passes
#[test]
fn a_page_that_does_not_match_its_checksum_fails_the_drill() {
    let history = History::write(Major::V18, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    // A bit of a table flips between the shutdown and the check.
    let script = "for last in \"$@\"; do :; done
        f=$(find \"$last/base\" -type f -name '[0-9]*' -size +63k | head -1)
        printf '\\377' | dd of=\"$f\" bs=1 seek=5000 conv=notrunc 2>/dev/null";
    let walship = replacing(&drills, &history.primary, "pg_checksums", script);
    let output = walship.run(&["drill", "--json"]).exited(9);
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(outcomes(&report)["checksums"], "failed", "{report}");
    drills.nothing_is_left();
}

// Seen to fail: `drill/mod.rs`: the archive is not asked again
#[test]
fn what_is_lost_during_the_drill_fails_it_and_an_outage_is_no_verdict() {
    let history = History::write(Major::V17, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    let archive = history.place.path().unwrap();
    let segment = &history.last_segment;
    // Beyond it, so that its absence is a gap.
    let last = history.primary.switch_wal();
    wait_archived(&history.primary, &last);
    let key = archive.join(format!("wal/{}/{}/{segment}.zst", &segment[..8], &segment[..16]));
    let away = archive.with_extension("away");
    let script = format!(
        "mv {0} {1} && trap 'exit 1' INT",
        archive.display(),
        away.display()
    );
    let walship =
        replacing(&drills, &history.primary, "postgres", &script).env("WALSHIP_RESTORE_TIMEOUT", "2s");
    let output = walship.run(&["drill"]).exited(2);
    assert!(output.stderr.contains("proves nothing"), "{output:?}");
    drills.nothing_is_left();
    fs::rename(&away, archive).unwrap();
    let proof = archive.join(format!("backups/{}/proof.json", history.backup));
    assert!(!proof.exists());

    fs::remove_dir_all(drills.root.path().join("with-postgres")).unwrap();
    let script = format!("rm {}", key.display());
    let walship =
        replacing(&drills, &history.primary, "postgres", &script).env("WALSHIP_RESTORE_TIMEOUT", "2s");
    let output = walship.run(&["drill"]).exited(9);
    assert!(
        output.stdout.contains(segment) && output.stdout.contains("missing"),
        "{output:?}"
    );
    drills.nothing_is_left();
    assert!(proof.exists());
}

#[test]
fn a_backup_that_lost_a_part_fails_the_drill_and_the_part_is_named() {
    let history = History::write(Major::V17, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    let part = format!("backups/{}/base/000001.tar.zst", history.backup);
    fs::remove_file(history.place.path().unwrap().join(part)).unwrap();
    let report = drills.made(9, &[]);
    assert!(
        report["failure"]
            .as_str()
            .unwrap()
            .contains("base/000001.tar.zst"),
        "{report}"
    );
}

// Seen to fail: `drill/mod.rs`: no `room::check`
#[test]
fn missing_programs_and_a_small_disk_are_said_before_anything_is_restored() {
    let history = History::write(Major::V17, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    let before = content(history.place.path().unwrap());
    let empty = make_dir(drills.root.path(), "empty", 0o755);
    let old = Cluster::builder(Major::V14).initdb().bin_dir();
    if Path::new("/usr/lib/postgresql/17/bin/postgres").exists() {
        announce("NOT TESTED: no programs of that version (this machine has PostgreSQL 17 installed)");
        return;
    }
    for (folder, says) in [(&empty, "looked in"), (&old, "has 14")] {
        let walship = drills
            .walship
            .clone()
            .env("WALSHIP_POSTGRES_BIN_DIR", folder)
            .env("PATH", &empty);
        let output = walship.run(&["drill"]).exited(3);
        assert!(
            output.stderr.contains(folder.to_str().unwrap()) && output.stderr.contains(says),
            "{output:?}"
        );
    }
    let walship = drills
        .walship
        .clone()
        .env("WALSHIP_DRILL_DIRECTORY", "/no/such/place");
    let output = walship.run(&["drill"]).exited(2);
    assert!(output.stderr.contains("drill.directory"), "{output:?}");
    drills.nothing_is_left();
    if let Some(disk) = SmallDisk::mount(drills.root.path(), "size=16m,mode=0755") {
        let walship = drills.walship.clone().env("WALSHIP_DRILL_DIRECTORY", &disk.0);
        let output = walship.run(&["drill"]).exited(1);
        let disk_text = disk.0.to_str().unwrap();
        for says in ["free", "drill.directory", disk_text] {
            assert!(output.stderr.contains(says), "{output:?}");
        }
        assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0);
    }
    assert!(before == content(history.place.path().unwrap()));
}

#[test]
fn what_is_kept_starts_as_it_is_printed_and_is_removed_when_asked_for() {
    let history = History::write(Major::V17, Place::directory());
    let drills = Drills::beside(&history.primary, &history.walship);
    let report: Value = serde_json::from_str(&drills.run(&["--keep"]).succeeded().stdout).unwrap();
    let kept = PathBuf::from(report["kept"]["directory"].as_str().unwrap());
    // Another drill leaves it alone.
    drills.run(&[]).succeeded();
    assert_eq!(folders(&drills), std::slice::from_ref(&kept));
    let mut server = crate::support::command_as_user("/bin/sh");
    let libraries = history.primary.bin_dir().parent().unwrap().join("lib");
    server
        .args([
            "-c",
            &format!("exec {}", report["kept"]["start"].as_str().unwrap()),
        ])
        .env("LD_LIBRARY_PATH", &libraries);
    let mut server = Running::start(&mut server);
    let connect = report["kept"]["connect"].as_str().unwrap();
    let psql = format!(
        "{}/{connect} -XAtc 'select count(*) from steps'",
        history.primary.bin_dir().display()
    );
    wait_for("the kept server to answer", PATIENCE, || {
        assert!(!server.has_ended());
        let mut shell = crate::support::command_as_user("/bin/sh");
        shell.args(["-c", &psql]).env("LD_LIBRARY_PATH", &libraries);
        let output = Running::start(&mut shell).wait(PATIENCE);
        (output.stdout == "5\n").then_some(())
    });
    let output = drills.walship.run(&["drill", "--clean"]).succeeded();
    assert!(output.stdout.contains(kept.to_str().unwrap()), "{output:?}");
    drills.nothing_is_left();
    server.wait(PATIENCE);
}

#[test]
fn a_drill_needs_no_more_than_the_store_on_s3() {
    let Some(store) = stores::chosen().iter().find(|store| store.name() != "directory") else {
        return;
    };
    let history = History::write(Major::V18, store.new_place());
    let drills = Drills::beside(&history.primary, &history.walship);
    let report = drills.made(0, &[]);
    assert_eq!(report["not_recorded"], Value::Null, "{report}");
    let list = history.walship.run(&["list", "backups", "--json"]).succeeded();
    let list: Value = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!(list["backups"][0]["proven"]["last_success"], report["started_at"]);
}
