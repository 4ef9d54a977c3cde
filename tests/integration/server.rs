//! What PostgreSQL makes of walship's exit codes: outages in the middle of recovery and of archiving,
//! a standby, two primaries on one archive.

use std::process::ExitStatus;
use std::time::Duration;

use walship_core::pg::Major;

use crate::support::postgres::{Builder, Cluster, Stop};
use crate::support::proxy::{Fault, Proxy};
use crate::support::stores::{Kind, Place, StoreServer};
use crate::support::walship::{Walship, binary};
use crate::support::{command_as_user, scratch};

const PATIENCE: Duration = Duration::from_mins(2);

/// Versions that are tested in full: 14 and 18, or all of them.
pub fn majors() -> &'static [Major] {
    if std::env::var_os("WALSHIP_TEST_MATRIX").is_some_and(|matrix| matrix == "all") {
        &Major::ALL
    } else {
        &[Major::V14, Major::V18]
    }
}

/// A started primary that archives with walship, with the settings of `walship` in its environment.
pub fn archiving_primary(major: Major, walship: &Walship) -> Cluster {
    let mut cluster = archiving_builder(major, walship).initdb();
    cluster.start();
    cluster
}

/// What [`archiving_primary`] is made of.
pub fn archiving_builder(major: Major, walship: &Walship) -> Builder {
    let mut builder = Cluster::builder(major)
        .option("archive_mode", "on")
        .option("archive_command", &format!("{} push %p", binary().display()));
    for (name, value) in walship.environment() {
        builder = builder.env(name, value);
    }
    builder
}

/// Waits until this segment, and so everything before it, is in the archive.
pub fn wait_archived(cluster: &Cluster, segment: &str) {
    cluster.wait_until(
        &format!("select last_archived_wal >= '{segment}' from pg_stat_archiver"),
        "t",
        PATIENCE,
    );
}

/// An S3 server behind a proxy that can fail.
pub fn failing_place() -> (Place, Proxy) {
    let server = StoreServer::shared(Kind::SeaweedFs);
    let proxy = Proxy::start(&server.endpoint);
    let place = server.new_place().with_env("AWS_ENDPOINT_URL", &proxy.endpoint());
    (place, proxy)
}

/// A plain copy of a running server by `pg_basebackup`, without WAL, whose restore command is walship.
fn copy_of(cluster: &Cluster, signal: &str, walship: &Walship) -> (Cluster, tempfile::TempDir) {
    let root = scratch();
    let data = root.path().join("data");
    let data_text = data.to_str().unwrap();
    cluster
        .run_program("pg_basebackup", &["-D", data_text, "-X", "none", "-c", "fast"])
        .succeeded();
    let copy = walship.adopt(cluster.major(), &data);
    copy.set("archive_mode", "off");
    copy.set(
        "restore_command",
        &format!("{} restore %f %p", binary().display()),
    );
    copy.append(signal, "");
    (copy, root)
}

fn ten_rows_in_ten_segments(cluster: &Cluster) -> String {
    let mut last = String::new();
    for i in 0..10 {
        cluster.sql(&format!("insert into t values ({i})"));
        last = cluster.switch_wal();
    }
    last
}

fn archived_history(
    major: Major,
) -> (
    Place,
    Proxy,
    Walship,
    Cluster,
    (Cluster, tempfile::TempDir),
    (Cluster, tempfile::TempDir),
) {
    let (place, proxy) = failing_place();
    let walship = Walship::at(&place)
        .env("WALSHIP_RESTORE_TIMEOUT", "3s")
        .env("WALSHIP_RESTORE_STANDBY_TIMEOUT", "2s");
    let primary = archiving_primary(major, &walship);
    primary.sql("create table t (i int)");
    let recovering = copy_of(&primary, "recovery.signal", &walship);
    let standby = copy_of(&primary, "standby.signal", &walship);
    let last = ten_rows_in_ten_segments(&primary);
    wait_archived(&primary, &last);
    (place, proxy, walship, primary, recovering, standby)
}

#[test]
fn an_outage_in_the_middle_of_recovery_stops_it_and_a_plain_restart_finishes() {
    for &major in majors() {
        let (_place, proxy, _, _primary, (mut copy, _root), _) = archived_history(major);
        for fault in [Fault::Answer(503), Fault::BlackHole, Fault::CutAfter(300)] {
            // Some requests still pass: the outage begins in the middle.
            for _ in 0..8 {
                proxy.next("GET", Fault::Pass);
            }
            proxy.set(fault);
            copy.launch();
            let status: ExitStatus = copy.wait_exit(PATIENCE);
            assert!(
                !status.success(),
                "{major}, {fault:?}: recovery went on through an outage"
            );
            let log = copy.log_since_start();
            assert!(
                log.contains("child process exited with exit code 200"),
                "{major}, {fault:?}: {log}"
            );
            assert!(
                !log.contains("archive recovery complete"),
                "{major}, {fault:?}: {log}"
            );
            assert!(
                copy.data_dir().join("recovery.signal").exists(),
                "{major}, {fault:?}"
            );
            proxy.set(Fault::Pass);
        }
        copy.start();
        copy.wait_until("select pg_is_in_recovery()", "f", PATIENCE);
        assert_eq!(copy.sql("select count(*) from t"), "10", "{major}");
    }
}

#[test]
fn a_standby_survives_the_same_outage_and_catches_up() {
    for &major in majors() {
        let (_place, proxy, _, _primary, _, (mut standby, _root)) = archived_history(major);
        for _ in 0..8 {
            proxy.next("GET", Fault::Pass);
        }
        proxy.set(Fault::Answer(503));
        standby.start();
        std::thread::sleep(Duration::from_secs(8));
        assert!(standby.is_running(), "{major}: {}", standby.log_since_start());
        proxy.set(Fault::Pass);
        standby.wait_until("select count(*) from t", "10", PATIENCE);
        assert_eq!(
            standby.sql("select pg_is_in_recovery()"),
            "t",
            "{major}: it must not promote itself"
        );
    }
}

#[test]
fn archiving_fails_visibly_in_an_outage_and_goes_on_by_itself() {
    let (place, proxy) = failing_place();
    let walship = Walship::at(&place).env("WALSHIP_PUSH_TIMEOUT", "2s");
    let primary = archiving_primary(Major::V18, &walship);
    primary.switch_wal();
    proxy.set(Fault::Answer(503));
    let segment = primary.switch_wal();
    primary.wait_until("select failed_count > 0 from pg_stat_archiver", "t", PATIENCE);
    assert!(
        !primary.log().contains("archiver process"),
        "the archiver must survive: {}",
        primary.log()
    );
    proxy.set(Fault::Pass);
    primary.switch_wal();
    wait_archived(&primary, &segment);
}

// Seen to fail: `archive/writing.rs`: a conflict is an error at once
#[test]
fn an_ambiguous_put_is_resolved_by_looking() {
    let (place, proxy) = failing_place();
    let primary = archiving_primary(Major::V18, &Walship::at(&place));
    // The archive's own objects are there, so that the next PUT is the segment's.
    let first = primary.switch_wal();
    wait_archived(&primary, &first);
    proxy.forget();
    proxy.next("PUT", Fault::DropResponse);
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);
    assert_eq!(
        primary.sql("select failed_count from pg_stat_archiver"),
        "0",
        "{}",
        primary.log()
    );
    let of_the_segment = |method: &str| {
        let requests = proxy.requests();
        let of = requests.iter().filter(|request| request.method == method);
        of.filter(|request| request.target.contains(&segment)).count()
    };
    assert_eq!((of_the_segment("PUT"), of_the_segment("GET")), (2, 1));
}

#[test]
fn of_two_primaries_with_one_history_only_one_can_archive() {
    let archive = Place::directory();
    let walship = Walship::at(&archive);
    let mut first = archiving_primary(Major::V17, &walship);
    first.sql("create table t (who text)");
    let common = first.switch_wal();
    wait_archived(&first, &common);
    first.stop(Stop::Fast);
    let root = scratch();
    let data = root.path().join("data");
    let copied = command_as_user("/bin/cp")
        .arg("-a")
        .arg(first.data_dir())
        .arg(&data)
        .status()
        .unwrap();
    assert!(copied.success());
    let mut second = walship.adopt(Major::V17, &data);
    first.start();
    second.start();
    first.sql("insert into t values ('first')");
    let segment = first.switch_wal();
    wait_archived(&first, &segment);
    second.sql("insert into t values ('second')");
    second.switch_wal();
    second.wait_until("select failed_count > 0 from pg_stat_archiver", "t", PATIENCE);
    assert!(second.log().contains("other content"), "{}", second.log());
    assert!(second.log().contains("another primary"), "{}", second.log());
    // The archive still holds the first one's history, whole.
    let stored = crate::support::scratch();
    let path = stored.path().join(&segment);
    walship
        .run(&["restore", &segment, path.to_str().unwrap()])
        .succeeded();
    assert_eq!(
        std::fs::read(&path).unwrap(),
        std::fs::read(first.data_dir().join("pg_wal").join(&segment)).unwrap()
    );
}
