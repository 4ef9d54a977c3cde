//! Servers, and what else asks for WAL, beside a fork of the timelines: which of them get what an old primary, or the
//! true one beside a stray copy, archived after it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walship_core::pg::Major;

use crate::recovery::take_backup;
use crate::replica::{PATIENCE, count, follow_the_archive_alone, part, recycle, write};
use crate::seed::{Replica, beside, seeded, wait_streaming};
use crate::server::{archiving_primary, majors, wait_archived};
use crate::support::postgres::{Cluster, Stop};
use crate::support::process::{Output, Running};
use crate::support::stores::Place;
use crate::support::walship::{Walship, binary};
use crate::support::{give_to_user, scratch, wait_for};

/// A primary with a backup, and a standby of it that knows the archive alone.
fn pair(major: Major) -> (Place, Walship, Cluster, Replica) {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(major, &walship);
    primary.sql("create table t (i int)");
    write(&primary, 1);
    take_backup(&walship, &primary);
    write(&primary, 2);
    let mut alone = seeded(&walship, &primary, &["--from", "archive", "--no-slot"]);
    follow_the_archive_alone(&alone.cluster);
    alone.cluster.stop(Stop::Fast);
    alone.cluster.start();
    count(&alone.cluster, "3");
    (place, walship, primary, alone)
}

/// Recovers into a directory; archiving is off in what comes of it unless `arguments` say otherwise.
fn recovered(walship: &Walship, source: &Cluster, data: &Path, arguments: &[&str]) -> Cluster {
    let mut all = vec!["recover", "--pgdata", data.to_str().unwrap()];
    all.extend(arguments);
    beside(source, walship).run(&all).succeeded();
    walship.adopt(source.major(), data)
}

/// A copy that was recovered to its backup, opened, and archived the history of its timeline before it was forgotten.
fn stray(place: &Place, walship: &Walship, source: &Cluster) {
    let root = scratch();
    let arguments = [
        "--target-immediate",
        "--target-action",
        "promote",
        "--archive-mode",
        "keep",
    ];
    let mut copy = recovered(walship, source, &root.path().join("data"), &arguments);
    copy.start();
    copy.wait_until("select pg_is_in_recovery()", "f", PATIENCE);
    let history = place.path().unwrap().join("wal/00000002.history.zst");
    wait_for("the stray history", PATIENCE, || history.exists().then_some(()));
    copy.stop(Stop::Immediate);
}

// Seen to fail: `verbs/restore.rs`: no fork counts as passed
#[test]
fn a_stray_timeline_keeps_nothing_from_a_standby_that_is_past_its_fork() {
    for &major in majors() {
        let (place, walship, primary, alone) = pair(major);
        stray(&place, &walship, &primary);
        write(&primary, 3);
        count(&alone.cluster, "6");
        // PostgreSQL has seen it, and keeps a copy.
        let seen = "before current recovery point";
        wait_for("a look for new timelines", PATIENCE, || {
            alone.cluster.log().contains(seen).then_some(())
        });
        write(&primary, 1);
        count(&alone.cluster, "7");
        let log = alone.cluster.log();
        assert!(!log.contains("withheld"), "{log}");
    }
}

/// The settings name a timeline: in the file, in one that it includes, in what `ALTER SYSTEM` writes, or on the command
/// line.
// Seen to fail: `server/server_settings.rs`: every setting has its default
#[test]
fn a_standby_that_is_pinned_to_its_timeline_gets_all_of_it() {
    for &major in majors() {
        let (_place, walship, primary, alone) = pair(major);
        let heir = seeded(&walship, &primary, &["--from", "primary", "--no-slot"]);
        wait_streaming(&heir.cluster);
        // A promotion by accident. The standby that follows the latest timeline goes over to it.
        part(&primary, &heir.cluster);
        alone
            .cluster
            .wait_until("select count(*) from t where i >= 100", "2", PATIENCE);
        drop(heir);

        for (pinned_by, target) in [
            ("file", "1"),
            ("include_dir", "1"),
            ("command line", "1"),
            ("file", "current"),
        ] {
            let root = scratch();
            let arguments = ["--target-timeline", "1", "--archive-mode", "off"];
            let mut pinned = recovered(&walship, &primary, &root.path().join("data"), &arguments);
            let data = pinned.data_dir().to_owned();
            std::fs::rename(data.join("recovery.signal"), data.join("standby.signal")).unwrap();
            without(&data.join("postgresql.auto.conf"), "recovery_target");
            // As its forerunner had it, which followed the latest timeline.
            let history = alone.cluster.data_dir().join("pg_wal/00000002.history");
            pinned.append(
                "pg_wal/00000002.history",
                &std::fs::read_to_string(history).unwrap(),
            );
            let setting = format!("recovery_target_timeline={target}");
            match pinned_by {
                "file" => pinned.set("recovery_target_timeline", target),
                "include_dir" => {
                    pinned.append("postgresql.conf", "include_dir 'more'\n");
                    std::fs::create_dir(data.join("more")).unwrap();
                    give_to_user(&data.join("more"));
                    pinned.append("more/pinned.conf", &format!("{setting}\n"));
                }
                _ => {}
            }
            if pinned_by == "command line" {
                pinned.start_with(&["-c", &setting]);
            } else {
                pinned.start();
            }
            count(&pinned, &primary.sql("select count(*) from t"));
            write(&primary, 2);
            count(&pinned, &primary.sql("select count(*) from t"));
            assert!(!pinned.log().contains("withheld"), "{pinned_by}");
        }
    }
}

/// Takes a setting out of a file.
fn without(file: &Path, setting: &str) {
    let settings = std::fs::read_to_string(file).unwrap();
    let others: Vec<_> = settings
        .lines()
        .filter(|line| !line.starts_with(setting))
        .collect();
    std::fs::write(file, others.join("\n") + "\n").unwrap();
}

/// A standby that waits says so in its log, once for each time that it asks.
#[test]
fn a_segment_that_is_withheld_is_a_warning_in_the_servers_log() {
    let major = *majors().last().unwrap();
    for agent in ["false", "true"] {
        let place = Place::directory();
        let walship = Walship::at(&place).env("WALSHIP_AGENT_AUTOSTART", agent);
        let primary = archiving_primary(major, &walship);
        primary.sql("create table t (i int)");
        write(&primary, 1);
        take_backup(&walship, &primary);
        let mut alone = seeded(&walship, &primary, &["--from", "archive", "--no-slot"]);
        follow_the_archive_alone(&alone.cluster);
        alone.cluster.stop(Stop::Fast);
        let heir = seeded(&walship, &primary, &["--from", "primary", "--no-slot"]);
        wait_streaming(&heir.cluster);
        write(&primary, 1);
        count(&heir.cluster, "2");
        // The new timeline's history is there, and its segment is not yet; the old primary's is.
        heir.cluster.sql("select pg_promote()");
        let history = place.path().unwrap().join("wal/00000002.history.zst");
        wait_for("the history", PATIENCE, || history.exists().then_some(()));
        write(&primary, 2);
        alone.cluster.start();
        let warning =
            "is in the archive and withheld: timeline 2, which this server follows, left timeline 1";
        wait_for("the warning", PATIENCE, || {
            alone.cluster.log().contains(warning).then_some(())
        });
        heir.cluster.sql("insert into t values (100)");
        let segment = heir.cluster.switch_wal();
        wait_archived(&heir.cluster, &segment);
        let rows = "select count(*) filter (where i >= 100) || ' ' || count(*) from t";
        alone.cluster.wait_until(rows, "1 3", PATIENCE);
    }
}

/// Recovery follows the latest timeline and pauses before it began; its operator then decides for timeline 1.
// Seen to fail: `restore/followed.rs`: a recovery's target is the latest timeline whatever is set
#[test]
fn second_thoughts_about_the_timeline_of_a_recovery_lose_nothing() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let mut primary = archiving_primary(major, &walship);
        primary.sql("create table t (i int)");
        take_backup(&walship, &primary);
        write(&primary, 2);
        primary.sql("select pg_create_restore_point('early')");
        write(&primary, 2);
        primary.sql("select pg_create_restore_point('fork')");
        write(&primary, 4);
        primary.stop(Stop::Fast);
        let root = scratch();
        let arguments = [
            "--target-name",
            "fork",
            "--target-timeline",
            "1",
            "--target-action",
            "promote",
        ];
        let arguments = [&arguments[..], &["--archive-mode", "keep"]].concat();
        let mut second = recovered(&walship, &primary, &root.path().join("second"), &arguments);
        second.start();
        second.wait_until("select pg_is_in_recovery()", "f", PATIENCE);
        write(&second, 1);
        second.stop(Stop::Fast);

        for decision in [
            "recovery_target_timeline = '1'\n",
            "recovery_target_timeline = 'current'\n",
        ] {
            let arguments = [
                "--target-name",
                "early",
                "--target-timeline",
                "2",
                "--archive-mode",
                "off",
            ];
            let data = scratch();
            let mut third = recovered(&walship, &primary, &data.path().join("third"), &arguments);
            third.start();
            third.wait_until("select pg_get_wal_replay_pause_state()", "paused", PATIENCE);
            assert_eq!(third.sql("select count(*) from t"), "2");
            assert!(third.data_dir().join("pg_wal/00000002.history").exists());
            third.stop(Stop::Fast);
            without(&third.data_dir().join("postgresql.auto.conf"), "recovery_target");
            third.append("postgresql.auto.conf", decision);
            third.start();
            third.wait_until("select pg_is_in_recovery()", "f", PATIENCE);
            assert_eq!(third.sql("select count(*) from t"), "8", "{major}, {decision}");
        }
    }
}

/// `pg_rewind` in the surroundings that it is started in.
struct Rewind {
    /// The former primary was started as a standby before: the new timeline's history is in its `pg_wal`.
    history: bool,
    signal: Option<&'static str>,
    /// Within the data directory of the standby that it rewinds to.
    in_a_standby: bool,
    agent: bool,
}

fn rewind(old: &Cluster, heir: &Cluster, walship: &Walship, directory: &Path) -> Output {
    let source = format!("{} dbname=postgres", heir.conninfo());
    let target = old.data_dir().to_str().unwrap().to_owned();
    let mut command: Command = old.program("pg_rewind");
    command.current_dir(directory).envs(walship.environment()).args([
        "--target-pgdata",
        &target,
        "--source-server",
        &source,
        "--restore-target-wal",
    ]);
    Running::start(&mut command).wait(Duration::from_mins(2))
}

/// As `deploy/patroni/README.md` says: WAL that a former primary needs and no longer has comes from the archive.
// Seen to fail: `verbs/restore.rs`: `asker` goes by the signal file alone, and no fork counts as passed
#[test]
fn pg_rewind_gets_the_old_primarys_wal_beyond_the_fork_from_the_archive() {
    let modes = [
        Rewind {
            history: false,
            signal: None,
            in_a_standby: false,
            agent: false,
        },
        Rewind {
            history: true,
            signal: None,
            in_a_standby: false,
            agent: true,
        },
        Rewind {
            history: true,
            signal: Some("standby.signal"),
            in_a_standby: true,
            agent: false,
        },
        Rewind {
            history: true,
            signal: Some("recovery.signal"),
            in_a_standby: true,
            agent: false,
        },
    ];
    for &major in majors() {
        for mode in &modes {
            let place = Place::directory();
            let walship = Walship::at(&place).env("WALSHIP_AGENT_AUTOSTART", mode.agent.to_string());
            let mut old = archiving_primary(major, &walship);
            old.set("wal_log_hints", "on");
            old.set("wal_keep_size", "0");
            old.set(
                "restore_command",
                &format!("{} restore %f %p", binary().display()),
            );
            old.stop(Stop::Fast);
            old.start();
            old.sql("create table t (i int)");
            let heir = seeded(&walship, &old, &["--from", "primary", "--no-slot"]);
            wait_streaming(&heir.cluster);
            write(&old, 1);
            count(&heir.cluster, "1");
            let fork = old.sql("select pg_walfile_name(pg_current_wal_lsn())");
            heir.cluster.sql("select pg_promote()");
            heir.cluster.sql("insert into t values (100)");
            let segment = heir.cluster.switch_wal();
            wait_archived(&heir.cluster, &segment);
            write(&old, 3);
            recycle(&old, &fork);
            old.stop(Stop::Fast);
            if mode.history {
                let history = heir.cluster.data_dir().join("pg_wal/00000002.history");
                old.append(
                    "pg_wal/00000002.history",
                    &std::fs::read_to_string(history).unwrap(),
                );
            }
            if let Some(signal) = mode.signal {
                old.append(signal, "");
            }
            let third = seeded(&walship, &heir.cluster, &["--from", "primary", "--no-slot"]);
            let directory = if mode.in_a_standby {
                third.cluster.data_dir()
            } else {
                Path::new("/")
            };
            let output = rewind(&old, &heir.cluster, &walship, directory).succeeded();
            assert!(output.stderr.contains("Done!"), "{}", output.stderr);

            // It then follows the new primary.
            old.append("standby.signal", "");
            let upstream = format!("primary_conninfo = '{}'\n", heir.cluster.conninfo());
            old.append("postgresql.auto.conf", &upstream);
            old.start();
            old.wait_until(
                "select string_agg(i::text, ' ' order by i) from t",
                "1 100",
                PATIENCE,
            );
        }
    }
}
