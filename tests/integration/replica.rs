//! A primary and its replicas, from `initdb` to the promotion and beyond: streaming, the archive where streaming
//! ends, a second timeline, the old primary that goes on, cascades, and standbys that archive.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use walship_core::pg::Major;

use crate::recovery::take_backup;
use crate::seed::{Replica, seed, seed_at, seeded, wait_streaming};
use crate::server::{archiving_primary, majors, wait_archived};
use crate::setup::setup;
use crate::support::ports::Port;
use crate::support::postgres::{Cluster, Stop};
use crate::support::stores::Place;
use crate::support::walship::Walship;
use crate::support::{scratch, wait_for};

pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// Every object of a directory archive, with its bytes.
fn objects(place: &Place) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![place.path().unwrap().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                found.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

pub(crate) fn count(cluster: &Cluster, rows: &str) {
    cluster.wait_until("select count(*) from t", rows, PATIENCE);
}

/// Writes a row and ends its segment, so many times; the last segment is archived then.
pub(crate) fn write(cluster: &Cluster, rows: u32) -> String {
    let mut last = String::new();
    for _ in 0..rows {
        cluster.sql("insert into t values (1)");
        last = cluster.switch_wal();
    }
    wait_archived(cluster, &last);
    last
}

/// A standby that knows the archive alone.
pub(crate) fn follow_the_archive_alone(cluster: &Cluster) {
    cluster.append(
        "postgresql.auto.conf",
        "primary_conninfo = ''\nprimary_slot_name = ''\n",
    );
}

/// Writes WAL until the primary has no more of this segment.
pub(crate) fn recycle(primary: &Cluster, segment: &str) {
    wait_for("the segment to be recycled", PATIENCE, || {
        primary.sql("checkpoint");
        primary.switch_wal();
        (!primary.data_dir().join("pg_wal").join(segment).exists()).then_some(())
    });
}

/// `setup primary --apply` on a fresh cluster, in two runs with a restart between them.
fn set_up(primary: &mut Cluster, walship: &Walship) {
    setup(walship, primary, &["--apply"]).succeeded();
    primary.stop(Stop::Fast);
    primary.start();
    let done = setup(walship, primary, &["--apply"]).succeeded().stdout;
    assert!(done.contains("Archiving works"), "{done}");
}

/// The timelines that a list has, none of them with a gap.
fn timelines(listed: &Value) -> Vec<u64> {
    let wal = listed["wal"].as_array().unwrap();
    let gaps = |timeline: &Value| timeline["gaps"] != Value::Array(Vec::new());
    assert!(!wal.iter().any(gaps), "{listed}");
    let number = |timeline: &Value| timeline["timeline"].as_u64().unwrap();
    wal.iter().map(number).collect()
}

/// A replica of the new primary, although the old primary's version of the segment of the fork is in the archive.
fn one_that_knows_the_archive_alone_follows(walship: &Walship, replica: &Cluster) {
    let root = scratch();
    let data = root.path().join("data");
    seed(walship, replica, &data, &["--from", "archive", "--no-slot"]).succeeded();
    let last = replica.switch_wal();
    wait_archived(replica, &last);
    let mut alone = walship.adopt(replica.major(), &data);
    follow_the_archive_alone(&alone);
    alone.start();
    count(&alone, "11");
    assert_eq!(alone.sql("select count(*) from t where i >= 100"), "3");
}

// Seen to fail: `judge/branches.rs`: no branch; `list/text.rs`: the branch is not printed
#[test]
fn from_initdb_to_a_promotion_and_beyond() {
    for &major in majors() {
        let place = Place::directory();
        let home = scratch();
        let walship = Walship::at(&place).env("HOME", home.path());
        let mut primary = Cluster::builder(major).option("wal_keep_size", "0").initdb();
        primary.start();

        set_up(&mut primary, &walship);
        primary.sql("create table t (i int); insert into t values (1)");

        // A replica, as the role that setup made, with the password that it wrote down.
        let root = scratch();
        let data = root.path().join("data");
        let port = Port::take();
        let conninfo = format!("host=127.0.0.1 port={} user=replicator", primary.port());
        let started = walship.clone().env("PGPORT", port.number.to_string());
        let output = seed_at(
            &started,
            &primary,
            &conninfo,
            &data,
            &["--slot", "first", "--start"],
        );
        let report: Value = serde_json::from_str(&output.succeeded().stdout).unwrap();
        assert_eq!(report["started"]["streaming"], true, "{report}");
        assert_eq!(report["source"], "primary", "{report}");
        primary
            .run_program(
                "pg_ctl",
                &["-D", data.to_str().unwrap(), "-m", "fast", "-w", "stop"],
            )
            .succeeded();
        drop(port);
        let mut replica = walship.adopt(major, &data);

        // The primary no longer has what the replica needs, nor its slot.
        primary.sql("select pg_drop_replication_slot('first')");
        let needed = primary.sql("select pg_walfile_name(pg_current_wal_lsn())");
        write(&primary, 5);
        recycle(&primary, &needed);
        replica.start();
        count(&replica, "6");
        let restored = format!("restored log file \"{needed}\"");
        assert!(replica.log().contains(&restored), "{restored}: {}", replica.log());
        primary.sql("select from pg_create_physical_replication_slot('first')");
        wait_streaming(&replica);
        primary.sql("insert into t values (7)");
        count(&replica, "7");

        // A backup of the first timeline, the promotion, and both timelines in the archive.
        take_backup(&walship, &primary);
        primary.sql("insert into t values (8)");
        count(&replica, "8");
        replica.sql("select pg_promote()");
        replica.sql("insert into t values (100), (101)");
        let second_timeline = replica.switch_wal();
        assert!(second_timeline.starts_with("00000002"), "{second_timeline}");
        wait_archived(&replica, &second_timeline);
        let listed = walship.run(&["list", "--json"]).succeeded().stdout;
        assert_eq!(timelines(&serde_json::from_str(&listed).unwrap()), [1, 2]);
        let before = objects(&place);

        // The old primary goes on, on its own branch, and changes nothing.
        let own = write(&primary, 3);
        assert!(own.starts_with("00000001"), "{own}");
        let after = objects(&place);
        for (path, content) in &before {
            assert_eq!(after.get(path), Some(content), "{}", path.display());
        }
        let listed: Value =
            serde_json::from_str(&walship.run(&["list", "--json"]).succeeded().stdout).unwrap();
        assert_eq!(timelines(&listed), [1, 2]);
        assert!(
            after.keys().any(|path| path.ends_with(format!("{own}.zst"))),
            "{own}"
        );
        let branch = &listed["wal"][1]["branched_from"];
        assert_eq!(branch["timeline"], 1, "{listed}");
        assert_eq!(branch["goes_on"]["last"], own.as_str(), "{listed}");
        let text = walship.run(&["list"]).succeeded().stdout;
        assert!(text.contains("timeline 2 branched off timeline 1 at"), "{text}");
        assert!(text.contains("went on beyond it"), "{text}");

        // A second replica, from the archive, follows the new primary and not the old one.
        let arguments = ["--from", "archive", "--slot", "second"];
        let second = seeded(&walship, &replica, &arguments);
        assert_eq!(second.report["source"], "archive", "{}", second.report);
        wait_streaming(&second.cluster);
        count(&second.cluster, "10");
        replica.sql("insert into t values (102)");
        count(&second.cluster, "11");
        assert_eq!(
            second.cluster.sql("select count(*) from t where i >= 100"),
            "3",
            "{major}"
        );

        one_that_knows_the_archive_alone_follows(&walship, &replica);
    }
}

#[test]
fn a_cascaded_replica_streams_from_a_standby_and_can_be_backed_up() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let primary = archiving_primary(major, &walship);
        primary.sql("create table t (i int)");
        write(&primary, 1);
        let first = seeded(&walship, &primary, &["--from", "primary", "--slot", "first"]);
        wait_streaming(&first.cluster);
        let second = seeded(
            &walship,
            &first.cluster,
            &["--from", "primary", "--slot", "second"],
        );
        wait_streaming(&second.cluster);
        let notes = second.report["notes"].to_string();
        assert!(notes.contains("is a standby itself"), "{notes}");
        primary.sql("insert into t values (2)");
        count(&second.cluster, "2");
        assert_eq!(
            first
                .cluster
                .sql("select slot_name from pg_replication_slots where active"),
            "second"
        );

        let conninfo = second.cluster.conninfo();
        let mut running = walship.spawn(&["basebackup", "-d", &conninfo, "--json"]);
        wait_for("the backup to have its WAL", PATIENCE, || {
            primary.switch_wal();
            std::thread::sleep(Duration::from_millis(300));
            running.has_ended().then_some(())
        });
        let output = running.wait(PATIENCE).succeeded();
        let record: Value = serde_json::from_str(&output.stdout).unwrap();
        let listed = walship.run(&["list", "backups", "--json"]).succeeded().stdout;
        let listed: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed["backups"][0]["source"], "standby", "{listed}");
        // It can be restored, too: as the next replica.
        let third = seeded(&walship, &primary, &["--from", "archive", "--slot", "third"]);
        assert_eq!(third.report["backup"], record["id"]);
        wait_streaming(&third.cluster);
        count(&third.cluster, "2");
    }
}

/// Every segment that both archive is the same on both, the first one that the standby receives too: nothing is
/// refused, and nothing is stored twice.
#[test]
fn a_standby_that_archives_always_shares_its_primarys_archive() {
    for &major in majors() {
        for from in ["primary", "archive"] {
            let place = Place::directory();
            let walship = Walship::at(&place);
            let primary = archiving_primary(major, &walship);
            primary.sql("create table t (i int)");
            write(&primary, 2);
            take_backup(&walship, &primary);
            primary.sql("insert into t values (1)");
            let root = scratch();
            let data = root.path().join("data");
            seed(&walship, &primary, &data, &["--from", from, "--slot", "always"]).succeeded();
            let mut standby = walship.adopt(major, &data);
            standby.set("archive_mode", "always");
            standby.start();
            wait_streaming(&standby);
            let last = write(&primary, 4);
            count(&standby, "7");
            standby.wait_until(
                &format!("select last_archived_wal >= '{last}' from pg_stat_archiver"),
                "t",
                PATIENCE,
            );
            let failed = "select failed_count || ' ' || coalesce(last_failed_wal, '') from pg_stat_archiver";
            assert_eq!(standby.sql(failed), "0 ", "{major}, {from}: {}", standby.log());
            assert_eq!(primary.sql(failed), "0 ", "{major}, {from}: {}", primary.log());
        }
    }
}

/// What `docs/replicas.md` says of it: exit code 1 is the end of the WAL for a server that is being promoted.
#[test]
fn a_promotion_while_the_store_is_away_loses_what_only_the_archive_has() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place).env("WALSHIP_RESTORE_STANDBY_TIMEOUT", "1s");
        let mut primary = archiving_primary(major, &walship);
        primary.sql("create table t (i int)");
        write(&primary, 5);
        take_backup(&walship, &primary);
        let mut replica = seeded(&walship, &primary, &["--from", "archive", "--no-slot"]);
        let cluster = &mut replica.cluster;
        follow_the_archive_alone(cluster);
        cluster.stop(Stop::Fast);
        cluster.start();
        count(cluster, "5");
        cluster.stop(Stop::Fast);
        write(&primary, 5);
        primary.stop(Stop::Fast);

        let archive = place.path().unwrap();
        let away = archive.with_file_name("away");
        std::fs::rename(archive, &away).unwrap();
        // Checkpoints remove what tells of files that were archived, in time.
        let status = cluster.data_dir().join("pg_wal/archive_status");
        for entry in std::fs::read_dir(status).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        cluster.start();
        cluster.sql("select pg_promote()");
        // It begins no other archive in the place of the one that is away.
        let last = cluster.switch_wal();
        cluster.wait_until("select failed_count > 0 from pg_stat_archiver", "t", PATIENCE);
        assert!(
            cluster
                .log()
                .contains("this cluster writes to the archive that was begun at"),
            "{}",
            cluster.log()
        );
        std::fs::rename(&away, archive).unwrap();
        wait_archived(cluster, &last);
        assert_eq!(
            cluster.sql("select count(*) from t"),
            "5",
            "{major}: five rows of ten are lost"
        );
        assert!(cluster.log().contains("selected new timeline ID: 2"));
    }
}

#[test]
fn at_the_end_of_a_recovery_an_outage_is_no_reason_to_stop_where_the_server_has_the_history_itself() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place).env("WALSHIP_RESTORE_TIMEOUT", "1s");
        let primary = archiving_primary(major, &walship);
        let data = primary.data_dir();
        let restore = |name: &str| {
            let walship = walship.clone().in_dir(data);
            walship.run(&["restore", name, "pg_wal/RECOVERYHISTORY"]).code
        };
        // The archive is not there at all: nothing was archived yet.
        assert_eq!(restore("00000001.history"), Some(1));
        assert_eq!(restore("00000002.history"), Some(200));
        primary.append(
            "pg_wal/00000002.history",
            "1\t0/100000\tno recovery target specified\n",
        );
        assert_eq!(restore("00000002.history"), Some(1));
        // In the middle of a recovery it is.
        primary.append("recovery.signal", "");
        assert_eq!(restore("00000002.history"), Some(200));
    }
}

/// A standby that knows the archive alone, an heir that streams, and a primary, with two rows and all caught up.
pub(crate) fn family(major: Major) -> (Place, Walship, Cluster, Replica, Replica) {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(major, &walship);
    primary.sql("create table t (i int)");
    write(&primary, 1);
    take_backup(&walship, &primary);
    let mut alone = seeded(&walship, &primary, &["--from", "archive", "--no-slot"]);
    follow_the_archive_alone(&alone.cluster);
    // Long between two questions: what happens meanwhile happens at once, for the standby.
    alone.cluster.set("wal_retrieve_retry_interval", "15s");
    alone.cluster.stop(Stop::Fast);
    alone.cluster.start();
    let heir = seeded(&walship, &primary, &["--from", "primary", "--slot", "heir"]);
    wait_streaming(&heir.cluster);
    write(&primary, 1);
    count(&alone.cluster, "2");
    count(&heir.cluster, "2");
    (place, walship, primary, alone, heir)
}

/// The heir is promoted in the middle of a segment, and the old primary fills that segment with something else.
pub(crate) fn part(primary: &Cluster, heir: &Cluster) {
    heir.sql("select pg_promote()");
    heir.sql("insert into t values (100), (101)");
    let segment = heir.switch_wal();
    wait_archived(heir, &segment);
    primary.sql("insert into t values (0), (0), (0)");
    write(primary, 2);
}

/// It went the heir's way, and goes on with it.
fn follows(alone: &Cluster, heir: &Cluster) {
    let is_heirs = "select count(*) filter (where i >= 100) || ' ' || count(*) from t";
    alone.wait_until(is_heirs, "2 4", PATIENCE);
    heir.sql("insert into t values (102)");
    let segment = heir.switch_wal();
    wait_archived(heir, &segment);
    alone.wait_until(is_heirs, "3 5", PATIENCE);
}

#[test]
fn a_standby_that_was_away_during_the_promotion_never_reads_the_old_primarys_segment() {
    for &major in majors() {
        let (_place, _walship, primary, mut alone, heir) = family(major);
        alone.cluster.stop(Stop::Fast);
        part(&primary, &heir.cluster);
        alone.cluster.start();
        follows(&alone.cluster, &heir.cluster);
    }
}

// Seen to fail: `restore/followed.rs`: later timelines are not looked for
#[test]
fn a_standby_that_runs_during_the_promotion_never_reads_the_old_primarys_segment() {
    for &major in majors() {
        let (_place, _walship, primary, alone, heir) = family(major);
        part(&primary, &heir.cluster);
        follows(&alone.cluster, &heir.cluster);
    }
}
