//! Several timelines in one archive: a forgotten rehearsal beside production, a recovery that took production's place,
//! a timeline that somebody retired, and a backup that went through a switchover.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use walship_core::pg::Major;

use crate::recovery::take_backup;
use crate::seed::{seeded, wait_streaming};
use crate::server::{archiving_primary, majors, wait_archived};
use crate::support::postgres::{Cluster, Stop};
use crate::support::process::Output;
use crate::support::stores::Place;
use crate::support::walship::Walship;
use crate::support::{scratch, wait_for};

const PATIENCE: Duration = Duration::from_mins(3);

/// A production with a backup, three rows before the restore point "early" and two after it.
struct Scene {
    place: Place,
    walship: Walship,
    production: Cluster,
    root: tempfile::TempDir,
}

impl Scene {
    fn new(major: Major) -> Self {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let production = archiving_primary(major, &walship);
        production.sql("create table t (i int)");
        take_backup(&walship, &production);
        let scene = Self {
            place,
            walship,
            production,
            root: scratch(),
        };
        write(&scene.production, 3);
        scene.production.sql("select pg_create_restore_point('early')");
        write(&scene.production, 2);
        scene
    }

    fn recover(&self, name: &str, arguments: &[&str]) -> (PathBuf, Output) {
        let data = self.root.path().join(name);
        let mut all = vec!["recover", "--pgdata", data.to_str().unwrap()];
        all.extend(arguments);
        let output = self.walship.run(&all);
        (data, output)
    }

    /// A server on a recovered directory, once it has opened for writing.
    fn open(&self, data: &Path) -> Cluster {
        self.walship.opened(self.production.major(), data)
    }

    /// A copy that was recovered to the restore point, and archives as if it were production.
    fn copy(&self) -> Cluster {
        let arguments = [
            "--target-name",
            "early",
            "--target-action",
            "promote",
            "--archive-mode",
            "keep",
        ];
        let (data, output) = self.recover("copy", &arguments);
        output.succeeded();
        let copy = self.open(&data);
        wait_for("the history to be archived", PATIENCE, || {
            (self.timelines()["timelines"].as_array().unwrap().len() == 2).then_some(())
        });
        copy
    }

    /// What a recovery with these arguments comes to: how many rows, on which timeline.
    fn recovered(&self, name: &str, arguments: &[&str]) -> String {
        let (data, output) = self.recover(name, &[arguments, &["--archive-mode", "off"]].concat());
        output.succeeded();
        let mut cluster = self.open(&data);
        let rows = cluster.sql("select count(*) from t");
        cluster.stop(Stop::Fast);
        std::fs::remove_dir_all(&data).unwrap();
        rows
    }

    fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let output = self.walship.run(arguments).exited(code);
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
    }

    fn timelines(&self) -> Value {
        self.json(0, &["timeline", "list", "--json"])
    }

    fn drill(&self) -> Output {
        let folder = self.root.path().join("drills");
        std::fs::create_dir_all(&folder).unwrap();
        crate::support::give_to_user(&folder);
        let bin = self.production.bin_dir();
        self.walship
            .clone()
            .env("WALSHIP_DRILL_DIRECTORY", folder)
            .env("LD_LIBRARY_PATH", bin.parent().unwrap().join("lib"))
            .env("WALSHIP_POSTGRES_BIN_DIR", bin)
            .run(&["drill"])
    }

    /// Which problems `walship status` shows of the timelines.
    fn said_by_status(&self) -> Vec<(String, String)> {
        let output = self.walship.run(&["status", "--json"]);
        let report: Value = serde_json::from_str(&output.stdout).unwrap();
        let warnings = report["warnings"].as_array().unwrap().iter();
        let branches = warnings.filter(|warning| warning["id"] == "wal.branches");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        branches
            .map(|warning| (text(&warning["level"]), text(&warning["message"])))
            .collect()
    }
}

/// Writes rows, each into a segment of its own, which are archived then.
fn write(cluster: &Cluster, rows: u32) {
    for _ in 0..rows {
        cluster.sql("insert into t values (1)");
        let segment = cluster.switch_wal();
        wait_archived(cluster, &segment);
    }
}

#[test]
fn a_forgotten_rehearsal_is_never_recovered_unasked_and_retiring_it_makes_all_clear() {
    for &major in majors() {
        let scene = Scene::new(major);
        let mut copy = scene.copy();
        write(&copy, 1);
        copy.stop(Stop::Fast);
        take_backup(&scene.walship, &scene.production);
        write(&scene.production, 2);

        // Refused before a byte is written, by all who would have followed it; the rest say why.
        let (data, refused) = scene.recover("refused", &[]);
        let said = refused.exited(4).stderr;
        for word in [
            "timelines 1 and 2",
            "newest commit",
            "newest backup",
            "--target-timeline 1 or",
            "timeline retire",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(!data.exists());
        let drill = scene.drill().exited(4);
        assert!(drill.stderr.contains("timelines 1 and 2"), "{}", drill.stderr);
        let [(level, message)] = &scene.said_by_status()[..] else {
            panic!("{:?}", scene.said_by_status())
        };
        assert!(
            level == "problem" && message.contains("timelines 1 and 2"),
            "{message}"
        );
        let listed = scene.json(0, &["list", "--json"]);
        assert_eq!(listed["ambiguous"]["contenders"][1]["timeline"], 2, "{listed}");
        assert!(
            listed["backups"][0]["proven"]["last_failure"].is_null(),
            "{listed}"
        );
        let timelines = scene.timelines();
        assert_eq!(timelines["followed"], Value::Null, "{timelines}");

        // What both have is no question; and whoever says which one gets it.
        assert_eq!(
            scene.recovered("early", &["--target-name", "early", "--target-action", "promote"]),
            "3"
        );
        assert_eq!(scene.recovered("one", &["--target-timeline", "1"]), "7");
        assert_eq!(scene.recovered("two", &["--target-timeline", "2"]), "4");

        let reason = "the rehearsal of last Tuesday";
        scene
            .walship
            .run(&["timeline", "retire", "2", "--reason", reason])
            .succeeded();
        assert_eq!(scene.recovered("clear", &[]), "7");
        scene.drill().succeeded();
        assert_eq!(scene.said_by_status(), []);
        let timelines = scene.timelines();
        assert_eq!(timelines["followed"], 1, "{timelines}");
        assert_eq!(
            timelines["timelines"][1]["retired"]["reason"], reason,
            "{timelines}"
        );
        scene.walship.run(&["verify"]).succeeded();
        let (_, named) = scene.recover("named", &["--target-timeline", "2"]);
        let said = named.exited(2).stderr;
        assert!(
            said.contains(reason) && said.contains("walship timeline reinstate 2"),
            "{said}"
        );

        scene.walship.run(&["timeline", "reinstate", "2"]).succeeded();
        scene.recover("again", &[]).1.exited(4);
    }
}

#[test]
fn after_a_recovery_was_opened_everybody_says_the_same() {
    for &major in majors() {
        let mut scene = Scene::new(major);
        scene.production.stop(Stop::Fast);
        let successor = scene.copy();

        // Nothing but its history is there: the old one is followed, and that is said.
        let (_, told) = scene.recover("told", &["--archive-mode", "off"]);
        let told = told.succeeded().stdout;
        assert!(told.contains("timeline 2 began at LSN"), "{told}");
        scene.drill().succeeded();
        let [(level, message)] = &scene.said_by_status()[..] else {
            panic!("{:?}", scene.said_by_status())
        };
        assert!(
            level == "warning" && message.contains("timeline 2 began at LSN"),
            "{message}"
        );
        scene.walship.run(&["verify"]).succeeded();

        // It could be a copy.
        write(&successor, 1);
        scene.recover("refused", &[]).1.exited(4);
        scene.drill().exited(4);
        assert_eq!(scene.said_by_status()[0].0, "problem");

        // Its first backup tells that it is not.
        take_backup(&scene.walship, &successor);
        assert_eq!(scene.said_by_status(), []);
        write(&successor, 1);
        assert_eq!(scene.recovered("clear", &[]), "5");
        scene.drill().succeeded();
        scene.walship.run(&["verify"]).succeeded();
    }
}

#[test]
fn after_an_ordinary_promotion_the_new_timeline_is_followed_without_a_question() {
    for &major in majors() {
        let mut scene = Scene::new(major);
        let heir = seeded(
            &scene.walship,
            &scene.production,
            &["--from", "primary", "--slot", "heir"],
        );
        wait_streaming(&heir.cluster);
        scene.production.stop(Stop::Fast);
        heir.cluster.sql("select pg_promote()");
        wait_for("the history to be archived", PATIENCE, || {
            (scene.timelines()["timelines"].as_array().unwrap().len() == 2).then_some(())
        });
        // No segment of it is there yet, and nothing is lost by that.
        assert_eq!(scene.recovered("first", &[]), "5");
        scene.drill().succeeded();
        assert_eq!(scene.said_by_status(), []);
        write(&heir.cluster, 1);
        assert_eq!(scene.recovered("second", &[]), "6");
        assert_eq!(scene.timelines()["followed"], 2);
        assert_eq!(scene.said_by_status(), []);
        scene.walship.run(&["verify"]).succeeded();
    }
}

#[test]
fn a_backup_of_a_cascaded_standby_that_went_through_a_switchover_is_sound_for_everybody() {
    for &major in majors() {
        let mut scene = Scene::new(major);
        scene
            .production
            .sql("create table filler as select repeat(md5(i::text), 30) from generate_series(1, 8000) i");
        let heir = seeded(
            &scene.walship,
            &scene.production,
            &["--from", "primary", "--slot", "heir"],
        );
        wait_streaming(&heir.cluster);
        let cascaded = seeded(
            &scene.walship,
            &heir.cluster,
            &["--from", "primary", "--slot", "cascaded"],
        );
        wait_streaming(&cascaded.cluster);
        let conninfo = cascaded.cluster.conninfo();
        let mut backup = scene
            .walship
            .spawn(&["basebackup", "-d", &conninfo, "--json", "--max-rate", "3MB"]);
        wait_for("the backup to be under way", PATIENCE, || {
            let running = cascaded
                .cluster
                .sql("select count(*) from pg_stat_progress_basebackup");
            (running == "1").then_some(())
        });
        scene.production.stop(Stop::Fast);
        heir.cluster.sql("select pg_promote()");
        wait_for("the backup to have its WAL", PATIENCE, || {
            heir.cluster.sql("insert into t values (1)");
            heir.cluster.sql("checkpoint");
            heir.cluster.switch_wal();
            // Its minimum recovery point goes on with it.
            cascaded.cluster.sql("checkpoint");
            std::thread::sleep(Duration::from_millis(500));
            backup.has_ended().then_some(())
        });
        let report = backup.wait(PATIENCE).succeeded().stdout;
        let report: Value = serde_json::from_str(&report).unwrap();
        let id = report["id"].as_str().unwrap();
        let segment = heir.cluster.switch_wal();
        wait_archived(&heir.cluster, &segment);
        let path = scene
            .place
            .path()
            .unwrap()
            .join("backups")
            .join(id)
            .join("backup.json");
        let record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let went_through = (&record["start_timeline"], &record["stop_timeline"]);
        assert_eq!(went_through, (&1.into(), &2.into()), "{record}");

        let verified = scene.json(0, &["verify", "--json"]);
        assert_eq!(verified["lost"], Value::Array(Vec::new()), "{verified}");
        let listed = scene.json(0, &["list", "--json"]);
        let windows = listed["window"].as_array().unwrap();
        assert!(
            windows.iter().all(|window| window.get("missing").is_none()),
            "{listed}"
        );
        assert_eq!(scene.said_by_status(), []);
        let rows = heir.cluster.sql("select count(*) from t");
        assert_eq!(scene.recovered("from-it", &["--backup", id]), rows);
        // And along the timeline that it left: all that was archived of it.
        assert_eq!(scene.recovered("old", &["--target-timeline", "1"]), "5");
    }
}

/// A standby that has come to the fork of a retired timeline neither goes over to it nor takes its number.
#[test]
fn a_standby_goes_on_beside_a_retired_timeline_and_its_promotion_takes_another_number() {
    for &major in majors() {
        let mut scene = Scene::new(major);
        let mut copy = scene.copy();
        write(&copy, 1);
        copy.stop(Stop::Fast);
        let retire = ["timeline", "retire", "2", "--reason", "a rehearsal"];
        scene.walship.run(&retire).succeeded();
        let mut replica = seeded(
            &scene.walship,
            &scene.production,
            &["--from", "archive", "--no-slot"],
        );
        let standby = &mut replica.cluster;
        let alone = "primary_conninfo = ''\nprimary_slot_name = ''\n";
        standby.append("postgresql.auto.conf", alone);
        standby.stop(Stop::Fast);
        standby.start();
        // From before the fork to beyond it, and on.
        write(&scene.production, 2);
        standby.wait_until("select count(*) from t", "7", PATIENCE);
        assert_eq!(
            standby.sql("select timeline_id from pg_control_checkpoint()"),
            "1"
        );
        // A restart finds out anew which timeline is the latest.
        scene.production.sql("checkpoint");
        write(&scene.production, 1);
        standby.wait_until("select count(*) from t", "8", PATIENCE);
        standby.sql("checkpoint");
        standby.stop(Stop::Fast);
        // Past the fork PostgreSQL ignores the history, and keeps a copy.
        let kept = standby.data_dir().join("pg_wal/00000002.history");
        if kept.is_file() {
            standby.launch();
            standby.wait_exit(PATIENCE);
            let said = standby.log();
            assert!(
                said.contains("remove pg_wal/00000002.history and start it again"),
                "{said}"
            );
            std::fs::remove_file(&kept).unwrap();
        }
        standby.start();
        write(&scene.production, 1);
        standby.wait_until("select count(*) from t", "9", PATIENCE);
        assert!(
            standby.log().contains("withheld because it was retired"),
            "{}",
            standby.log()
        );

        scene.production.stop(Stop::Fast);
        standby.sql("select pg_promote()");
        assert!(
            standby.log().contains("selected new timeline ID: 3"),
            "{}",
            standby.log()
        );
        write(standby, 1);
        assert_eq!(scene.timelines()["followed"], 3);
        assert_eq!(scene.recovered("followed", &[]), "10");
    }
}

/// A standby of a standby, both made before the first of two promotions.
fn standby_of(cluster: &Cluster, walship: &Walship, root: &Path, name: &str) -> Cluster {
    let data = root.join(name);
    cluster.copy_to(&data);
    let mut standby = walship.adopt(cluster.major(), &data);
    standby.start();
    standby
}

// Seen to fail: `verbs/restore.rs`: `is_on_the_way_to_a_known_timeline` is never true; `basebackup/wal_wait.rs`:
// `left_within` finds none
#[test]
fn two_promotions_within_one_segment_leave_nothing_lost_and_a_history_between_that_is_gone_stops_no_recovery()
{
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let mut primary = archiving_primary(major, &walship);
        primary.sql("create table t (i int)");
        take_backup(&walship, &primary);
        write(&primary, 1);
        let root = scratch();
        let mut second = standby_of(&primary, &walship, root.path(), "second");
        let third = standby_of(&second, &walship, root.path(), "third");
        primary.sql("insert into t values (2)");
        third.wait_until("select count(*) from t", "2", PATIENCE);
        let conninfo = third.conninfo();
        let backup = ["basebackup", "-d", &conninfo, "--wal-timeout", "1s"];
        let begun = walship.run(&backup).exited(8).stderr;
        primary.stop(Stop::Immediate);
        second.sql("select pg_promote()");
        second.sql("insert into t values (3)");
        third.wait_until("select count(*) from t", "3", PATIENCE);
        second.stop(Stop::Immediate);
        third.sql("select pg_promote()");
        write(&third, 1);
        // What the backup waits for nobody archives any more.
        let id = begun.split("backup ").nth(1).unwrap().split(' ').next().unwrap();
        let finish = ["basebackup", "--finish", id, "--wal-timeout", "1s"];
        let unfinished = walship.run(&finish).exited(8).stderr;
        assert!(
            unfinished.contains("forked off within that segment"),
            "{unfinished}"
        );
        // Timeline 2 never had a segment of its own.
        walship.run(&["verify"]).succeeded();
        let history = place.path().unwrap().join("wal/00000002.history.zst");
        // It may have been archived or not, by whoever had it last.
        let _ = std::fs::remove_file(history);
        let data = root.path().join("copy");
        walship
            .run(&[
                "recover",
                "--pgdata",
                data.to_str().unwrap(),
                "--archive-mode",
                "off",
            ])
            .succeeded();
        let copy = walship.opened(major, &data);
        assert_eq!(copy.sql("select count(*) from t"), "4", "PostgreSQL {major}");
    }
}
