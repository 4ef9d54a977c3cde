//! The main job, end to end: archive, back up, lose the data directory, recover to a chosen moment.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use walship_core::pg::Major;

use crate::server::{archiving_primary, failing_place, majors, wait_archived};
use crate::support::postgres::{Cluster, Stop};
use crate::support::process::Output;
use crate::support::scratch;
use crate::support::stores::{self, Place};
use crate::support::walship::Walship;

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A primary with two tablespaces, a partitioned table, WAL compression and one base backup, then five
/// rows in `steps`, each a possible target, all archived.
pub(crate) struct History {
    pub(crate) place: Place,
    pub(crate) walship: Walship,
    pub(crate) primary: Cluster,
    pub(crate) tablespaces: [PathBuf; 2],
    pub(crate) backup: String,
    /// Just before the backup was begun.
    pub(crate) before_backup: String,
    pub(crate) time_after_1: String,
    pub(crate) lsn_after_2: String,
    pub(crate) xid_of_4: String,
    pub(crate) last_segment: String,
}

impl History {
    pub(crate) fn write(major: Major, place: Place) -> Self {
        let walship = Walship::at(&place);
        let primary = archiving_primary(major, &walship);
        primary.sql("alter system set wal_compression = on; select pg_reload_conf()");
        let tablespaces = ["ts one", "ts_two"].map(|name| {
            let dir = primary.make_dir(name);
            primary.sql(&format!(
                "create tablespace \"{name}\" location '{}'",
                dir.display()
            ));
            dir
        });
        primary.sql(
            "create table steps (n int);
             create table orders (id bigint, placed date) partition by range (placed);
             create table orders_2026_10 partition of orders for values from ('2026-10-01') to ('2026-11-01') tablespace \"ts one\";
             create table orders_2026_11 partition of orders for values from ('2026-11-01') to ('2026-12-01') tablespace ts_two;
             insert into orders select g, date '2026-10-01' + g % 61 from generate_series(1, 5000) g;
             create index on orders (id)",
        );
        let before_backup = primary.sql("select clock_timestamp()");
        let backup = take_backup(&walship, &primary);
        let mut history = Self {
            place,
            walship,
            primary,
            tablespaces,
            backup,
            before_backup,
            time_after_1: String::new(),
            lsn_after_2: String::new(),
            xid_of_4: String::new(),
            last_segment: String::new(),
        };
        history.five_steps();
        history
    }

    fn five_steps(&mut self) {
        let sql = |text: &str| self.primary.sql(text);
        // The backup's own end and the first target must not fall into one second.
        std::thread::sleep(Duration::from_millis(1100));
        sql("insert into steps values (1)");
        std::thread::sleep(Duration::from_millis(50));
        self.time_after_1 = sql("select clock_timestamp()");
        std::thread::sleep(Duration::from_millis(50));
        sql("insert into steps values (2)");
        self.lsn_after_2 = sql("select pg_current_wal_lsn()");
        sql("insert into steps values (3); select pg_create_restore_point('after three')");
        sql("insert into orders select g, date '2026-10-01' + g % 61 from generate_series(5001, 9000) g");
        self.xid_of_4 = sql("begin; insert into steps values (4); select txid_current(); commit");
        sql("insert into steps values (5)");
        self.last_segment = self.primary.switch_wal();
        wait_archived(&self.primary, &self.last_segment);
    }

    /// Recovers to a target and returns the started copy.
    pub(crate) fn recovered(&self, arguments: &[&str]) -> Recovered {
        let copy = self.recover(arguments);
        copy.output.clone().succeeded();
        copy.start(self.primary.major(), &self.walship)
    }

    pub(crate) fn recover(&self, arguments: &[&str]) -> Copy {
        self.recover_mapping(&self.tablespaces, arguments)
    }

    /// Recovers a backup whose tablespaces were in these places.
    pub(crate) fn recover_mapping(&self, tablespaces: &[PathBuf], arguments: &[&str]) -> Copy {
        let root = scratch();
        let data = root.path().join("data");
        let mut all: Vec<String> = vec!["recover".into(), "--pgdata".into(), data.to_str().unwrap().into()];
        for (i, tablespace) in tablespaces.iter().enumerate() {
            let new = root.path().join(format!("ts{i}"));
            all.extend([
                "--tablespace-mapping".into(),
                format!("{}={}", tablespace.display(), new.display()),
            ]);
        }
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        // A copy that archived would make timeline 2 the latest of this archive.
        if !arguments.contains(&"--archive-mode") {
            all.extend(["--archive-mode".into(), "off".into()]);
        }
        let output = self.walship.run(&all);
        Copy { output, data, root }
    }

    /// Recovery is refused, nothing is written, and the message says all of this.
    fn refuse(&self, arguments: &[&str], code: i32, says: &[&str]) {
        let copy = self.recover(arguments);
        let output = copy.output.clone().exited(code);
        for part in says {
            assert!(
                output.stderr.contains(part),
                "{arguments:?} should say {part:?}: {}",
                output.stderr
            );
        }
        assert!(!copy.data.exists(), "{arguments:?}: something was written");
    }
}

pub(crate) fn take_backup(walship: &Walship, cluster: &Cluster) -> String {
    let output = walship
        .run(&["basebackup", "-d", &cluster.conninfo(), "--json"])
        .succeeded();
    let report: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", output.stdout));
    report["id"].as_str().unwrap().to_owned()
}

pub(crate) struct Copy {
    pub(crate) output: Output,
    pub(crate) data: PathBuf,
    pub(crate) root: tempfile::TempDir,
}

impl Copy {
    fn start(self, major: Major, walship: &Walship) -> Recovered {
        let cluster = walship.opened(major, &self.data);
        Recovered {
            cluster,
            output: self.output,
            root: self.root,
        }
    }
}

pub(crate) struct Recovered {
    pub(crate) cluster: Cluster,
    pub(crate) output: Output,
    pub(crate) root: tempfile::TempDir,
}

impl Recovered {
    fn steps(&self) -> String {
        self.cluster
            .sql("select coalesce(string_agg(n::text, ' ' order by n), 'none') from steps")
    }
}

fn check_every_target(history: &History) {
    let major = history.primary.major();
    for (arguments, expected) in [
        (vec!["--target-time", &history.time_after_1], "1"),
        (vec!["--target-lsn", &history.lsn_after_2], "1 2"),
        (vec!["--target-name", "after three"], "1 2 3"),
        (vec!["--target-xid", &history.xid_of_4], "1 2 3 4"),
        (
            vec!["--target-xid", &history.xid_of_4, "--target-inclusive", "false"],
            "1 2 3",
        ),
        (vec!["--target-immediate"], "none"),
        (vec!["--backup", &history.backup], "1 2 3 4 5"),
    ] {
        let to_the_end = arguments[0] == "--backup";
        let mut arguments = arguments.clone();
        if !to_the_end {
            arguments.extend(["--target-action", "promote"]);
        }
        let copy = history.recovered(&arguments);
        assert_eq!(copy.steps(), expected, "PostgreSQL {major}, {arguments:?}");
        assert_eq!(copy.cluster.sql("select count(*) >= 5000 from orders"), "t");
    }
}

#[test]
fn every_kind_of_target_is_reached_with_tablespaces_and_partitions() {
    for &major in majors() {
        check_every_target(&History::write(major, Place::directory()));
    }
}

#[test]
fn every_kind_of_target_is_reached_from_a_backup_of_the_data_directory() {
    for &major in majors() {
        let place = Place::directory();
        let local = place.with_env("WALSHIP_BACKUP_METHOD", "local");
        check_every_target(&History::write(major, local));
    }
}

#[test]
fn the_main_job_works_on_every_store() {
    for store in stores::chosen() {
        let history = History::write(Major::V18, store.new_place());
        let copy = history.recovered(&[
            "--target-time",
            &history.time_after_1,
            "--target-action",
            "promote",
        ]);
        assert_eq!(copy.steps(), "1", "{}", store.name());
    }
}

#[test]
fn the_main_job_works_on_every_major_version() {
    for major in [Major::V15, Major::V16, Major::V17] {
        let history = History::write(major, Place::directory());
        let copy = history.recovered(&[
            "--target-time",
            &history.time_after_1,
            "--target-action",
            "promote",
        ]);
        assert_eq!(copy.steps(), "1", "PostgreSQL {major}");
    }
}

#[test]
fn a_target_that_cannot_be_reached_is_refused_before_a_byte_is_written() {
    let history = History::write(Major::V17, Place::directory());
    history.refuse(
        &["--target-time", &history.before_backup],
        2,
        &["before", &history.backup],
    );
    history.refuse(&["--target-time", "2040-01-01 00:00:00+00"], 2, &["future"]);
    history.refuse(&["--target-time", "yesterday-ish"], 2, &["yesterday-ish"]);
    history.refuse(&["--target-lsn", "FF/0"], 2, &["FF/0"]);
    history.refuse(&["--target-lsn", "0/1"], 2, &["0/1"]);
    history.refuse(&["--target-lsn", "x"], 2, &["LSN"]);
    history.refuse(&["--target-timeline", "7"], 2, &["7"]);
    history.refuse(&["--backup", "20200101T000000Z"], 3, &["20200101T000000Z"]);
    history.refuse(&["--backup", "latest"], 2, &["latest"]);
    history.refuse(&["--target-name", "no such point"], 2, &["no such point"]);
    history.refuse(&["--target-xid", "4000000000"], 2, &["4000000000"]);
    history.refuse(
        &["--target-time", &history.time_after_1, "--target-immediate"],
        2,
        &["--target-immediate"],
    );
    history.refuse(&["--tablespace-mapping", "/no/such=/place"], 2, &["/no/such"]);
}

#[test]
fn a_hole_is_refused_with_the_last_contiguous_position_and_accepted_on_request() {
    let history = History::write(Major::V17, Place::directory());
    let more: Vec<String> = (6..10)
        .map(|n| {
            history.primary.sql(&format!("insert into steps values ({n})"));
            history.primary.switch_wal()
        })
        .collect();
    wait_archived(&history.primary, more.last().unwrap());
    let missing = &more[1];
    let key = format!("wal/{}/{}/{missing}.zst", &missing[..8], &missing[..16]);
    std::fs::remove_file(history.place.path().unwrap().join(key)).unwrap();
    history.refuse(&[], 7, &[missing, "Without a break it leads to"]);
    let copy = history.recovered(&["--end-at-gap"]);
    assert_eq!(copy.steps(), "1 2 3 4 5 6");
    // A target before the gap needs no permission.
    let copy = history.recovered(&["--target-lsn", &history.lsn_after_2, "--target-action", "promote"]);
    assert_eq!(copy.steps(), "1 2");
    let list: Value =
        serde_json::from_str(&history.walship.run(&["list", "--json"]).succeeded().stdout).unwrap();
    assert_eq!(list["wal"][0]["gaps"][0]["first"], missing.as_str());
}

#[test]
fn recovery_goes_through_a_promotion_and_can_still_follow_the_old_timeline() {
    for &major in majors() {
        let mut history = History::write(major, Place::directory());
        history.primary.stop(Stop::Immediate);
        // The recovered copy takes over, on timeline 2 of the same archive.
        let mut second = history.recovered(&[
            "--target-lsn",
            &history.lsn_after_2,
            "--target-action",
            "promote",
            "--archive-mode",
            "keep",
        ]);
        second.cluster.sql("insert into steps values (22)");
        let segment = second.cluster.switch_wal();
        assert_eq!(&segment[..8], "00000002");
        wait_archived(&second.cluster, &segment);
        let latest = history.recovered(&[]);
        assert_eq!(latest.steps(), "1 2 22", "PostgreSQL {major}");
        let old = history.recovered(&["--target-timeline", "1"]);
        assert_eq!(old.steps(), "1 2 3 4 5", "PostgreSQL {major}");
        // A backup on the new timeline, and recovery from it.
        let backup = take_backup(&history.walship, &second.cluster);
        second.cluster.sql("insert into steps values (23)");
        let segment = second.cluster.switch_wal();
        wait_archived(&second.cluster, &segment);
        second.cluster.stop(Stop::Immediate);
        let tablespaces = [0, 1].map(|i| second.root.path().join(format!("ts{i}")));
        let copy = history.recover_mapping(&tablespaces, &[]);
        copy.output.clone().succeeded();
        let latest = copy.start(major, &history.walship);
        assert_eq!(latest.steps(), "1 2 22 23", "PostgreSQL {major}");
        assert!(latest.output.stdout.contains(&backup), "{}", latest.output.stdout);
    }
}

// Seen to fail: `cluster/alive.rs`: no sign of life is looked for
#[test]
fn a_copy_of_a_living_source_does_not_archive_into_its_archive() {
    let (place, proxy) = failing_place();
    let history = History::write(Major::V17, place);
    let patient = ["WALSHIP_S3_REQUEST_TIMEOUT", "WALSHIP_S3_TIMEOUT"]
        .iter()
        .fold(history.walship.clone(), |walship, name| walship.env(name, "120s"));
    let root = scratch();
    let recover = |name: &str, mode: &str, before_the_end: &dyn Fn()| {
        let data = root.path().join(name);
        let mut arguments = vec![
            "recover".to_owned(),
            "--pgdata".into(),
            data.to_str().unwrap().into(),
        ];
        for (i, tablespace) in history.tablespaces.iter().enumerate() {
            let new = root.path().join(format!("{name}-ts{i}"));
            let mapping = format!("{}={}", tablespace.display(), new.display());
            arguments.extend(["--tablespace-mapping".into(), mapping]);
        }
        arguments.extend(["--target-immediate", "--target-action", "promote"].map(str::to_owned));
        arguments.extend(["--archive-mode".into(), mode.into()]);
        // By the time the backup's files are fetched it has seen which WAL is there.
        let held = proxy.hold("GET", "/base/000001.tar.zst");
        let running = patient.spawn(&arguments);
        held.wait();
        before_the_end();
        drop(held);
        (data, running.wait(PATIENCE).succeeded().stdout)
    };
    let archiving = |data: &Path| {
        let settings = std::fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
        settings
            .lines()
            .filter(|line| line.starts_with("archive_mode"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let one_more_segment = || {
        let segment = history.primary.switch_wal();
        wait_archived(&history.primary, &segment);
    };
    let (idle, said) = recover("idle", "auto", &|| {});
    for part in [
        "a server of this cluster runs on this machine",
        "--archive-mode on instead",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(archiving(&idle), ["archive_mode = 'off'"]);
    let (kept, said) = recover("kept", "keep", &one_more_segment);
    assert!(said.contains("stop it for good"), "{said}");
    assert_eq!(archiving(&kept), Vec::<String>::new());
    let (off, _) = recover("off", "off", &|| {});
    assert_eq!(archiving(&off), ["archive_mode = 'off'"]);
    let (living, said) = recover("living", "auto", &one_more_segment);
    assert_eq!(archiving(&living), ["archive_mode = 'off'"]);
    assert!(said.contains("archive_mode"), "{said}");
    let copy = history.walship.opened(Major::V17, &living);
    assert_eq!(copy.sql("show archive_mode"), "off");
}

#[test]
fn a_backup_of_a_standby_recovers() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let primary = archiving_primary(major, &walship);
        primary.sql("create table steps (n int); insert into steps values (1)");
        let root = scratch();
        let data = root.path().join("data");
        primary.copy_to(&data);
        let mut standby = Cluster::adopt(major, &data);
        standby.set("archive_mode", "off");
        standby.start();
        standby.wait_until("select count(*) from steps", "1", PATIENCE);
        let running = walship.spawn(&["basebackup", "-d", &standby.conninfo(), "--json"]);
        // An idle primary never ends its segment; here it is not idle.
        let mut running = running;
        while !running.has_ended() {
            primary.switch_wal();
            std::thread::sleep(Duration::from_millis(200));
        }
        running.wait(PATIENCE).succeeded();
        primary.sql("insert into steps values (2)");
        let segment = primary.switch_wal();
        wait_archived(&primary, &segment);
        let copy_root = scratch();
        let copy_data = copy_root.path().join("data");
        let output = walship.run(&[
            "recover",
            "--pgdata",
            copy_data.to_str().unwrap(),
            "--archive-mode",
            "off",
        ]);
        output.clone().succeeded();
        let copy = Copy {
            output,
            data: copy_data,
            root: copy_root,
        }
        .start(major, &walship);
        assert_eq!(copy.steps(), "1 2", "PostgreSQL {major}");
    }
}

#[test]
fn a_killed_recover_leaves_a_directory_that_postgresql_refuses_to_start() {
    let history = History::write(Major::V17, Place::directory());
    let mut killed = 0;
    for milliseconds in [5, 20, 40, 60, 80, 100, 130, 160, 200, 250] {
        let root = scratch();
        let data = root.path().join("data");
        let mut arguments = vec![
            "recover".to_owned(),
            "--pgdata".into(),
            data.to_str().unwrap().into(),
        ];
        for (i, tablespace) in history.tablespaces.iter().enumerate() {
            let new = root.path().join(format!("ts{i}"));
            arguments.extend([
                "--tablespace-mapping".into(),
                format!("{}={}", tablespace.display(), new.display()),
            ]);
        }
        let mut running = history.walship.spawn(&arguments);
        std::thread::sleep(Duration::from_millis(milliseconds));
        let ended = running.has_ended();
        running.kill9();
        drop(running);
        if ended || !data.exists() || is_complete(&data) {
            continue;
        }
        killed += 1;
        let mut copy = Cluster::adopt(Major::V17, &data);
        assert!(
            copy.try_start().is_err(),
            "a half-restored directory started after {milliseconds} ms"
        );
        // And walship does not write into what is not empty.
        if std::fs::read_dir(&data).unwrap().next().is_some() {
            history.walship.run(&arguments).exited(4);
        }
    }
    assert!(killed > 0, "no recover was caught in the middle");
}

fn is_complete(data: &Path) -> bool {
    data.join("global/pg_control").exists()
}
