//! To which archive a cluster belongs: what its data directory remembers, what is begun and what is not, and what a
//! copy keeps off.

use std::path::{Path, PathBuf};
use std::time::Duration;

use walship_core::pg::Major;

use crate::basebackup::{keys, listed};
use crate::sample::Sample;
use crate::seed::beside;
use crate::server::{archiving_primary, majors, wait_archived};
use crate::support::postgres::Cluster;
use crate::support::stores::Place;
use crate::support::walship::Walship;
use crate::support::{give_to_user, make_dir, scratch, wait_for};

const PATIENCE: Duration = Duration::from_mins(2);

fn remembered(data: &Path) -> PathBuf {
    data.join("walship.archive")
}

/// The archive's file system is not mounted any more: an empty directory is in its place.
fn unmount(archive: &Path) -> PathBuf {
    let away = archive.with_extension("mounted");
    std::fs::rename(archive, &away).unwrap();
    std::fs::create_dir(archive).unwrap();
    give_to_user(archive);
    away
}

fn mount_again(archive: &Path, away: &Path) {
    std::fs::remove_dir_all(archive).unwrap();
    std::fs::rename(away, archive).unwrap();
}

/// What tells of archiving in `archive_status` goes with its segment at a checkpoint.
fn forget_what_was_archived(cluster: &Cluster) {
    for entry in std::fs::read_dir(cluster.data_dir().join("pg_wal/archive_status")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "done") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

fn refused_to_archive(cluster: &Cluster) {
    cluster.switch_wal();
    let failed = "select failed_count > 0 and last_failed_time > coalesce(last_archived_time, '-infinity') \
                  from pg_stat_archiver";
    cluster.wait_until(failed, "t", PATIENCE);
}

// Seen to fail: `format/remembered.rs`: what the data directory remembers does not speak for an archive
#[test]
fn an_archive_is_not_begun_anew_where_it_is_not_mounted_or_under_another_url() {
    for &major in majors() {
        let place = Place::directory();
        let archive = place.path().unwrap();
        let walship = Walship::at(&place);
        let primary = archiving_primary(major, &walship);
        primary.sql("create table t (i int)");
        wait_archived(&primary, &primary.switch_wal());
        let mode = std::os::unix::fs::MetadataExt::mode(&remembered(primary.data_dir()).metadata().unwrap());
        assert_eq!(mode & 0o777, 0o600);
        let away = unmount(archive);
        forget_what_was_archived(&primary);
        primary.sql("select pg_stat_reset_shared('archiver')");
        refused_to_archive(&primary);
        let elsewhere = Place::directory();
        for walship in [&walship, &Walship::at(&elsewhere)] {
            for method in ["stream", "local"] {
                let arguments = ["basebackup", "-d", &primary.conninfo(), "--method", method];
                let output = walship.run(&arguments).exited(2);
                for part in [
                    "this cluster writes to the archive that was begun at",
                    "--new-archive",
                ] {
                    assert!(output.stderr.contains(part), "{}", output.stderr);
                }
            }
        }
        assert_eq!(keys(&place, ""), Vec::<String>::new());
        assert_eq!(keys(&elsewhere, ""), Vec::<String>::new());
        let doctor = walship.run(&["doctor", "-d", &primary.conninfo()]).exited(2);
        assert!(
            doctor
                .stdout
                .contains("this cluster writes to the one that was begun at"),
            "{}",
            doctor.stdout
        );

        mount_again(archive, &away);
        let last = primary.switch_wal();
        wait_archived(&primary, &last);
        let wal = walship.run(&["list", "wal"]).succeeded();
        assert!(
            !wal.stdout.contains("missing"),
            "PostgreSQL {major}: {}",
            wal.stdout
        );
    }
}

/// What was begun in a mount point, by an older walship say, is another archive of the same cluster.
#[test]
fn every_command_that_writes_accepts_only_the_archive_that_is_remembered() {
    let (place, other) = (Place::directory(), Place::directory());
    let primary = archiving_primary(Major::V17, &Walship::at(&place));
    wait_archived(&primary, &primary.switch_wal());
    let mark = std::fs::read(remembered(primary.data_dir())).unwrap();
    let others = Walship::at(&other).in_dir(primary.data_dir());
    let conninfo = primary.conninfo();
    let begin = [
        "basebackup",
        "-d",
        &conninfo,
        "--new-archive",
        "--wal-timeout",
        "1s",
    ];
    others.run(&begin).exited(8);
    std::fs::write(remembered(primary.data_dir()), &mark).unwrap();
    give_to_user(&remembered(primary.data_dir()));
    // A backup's checkpoint took the one before away.
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);
    let path = format!("pg_wal/{segment}");

    let before = keys(&other, "");
    let from = primary.data_dir().to_str().unwrap();
    let setup = ["setup", "primary", "--apply", "-d", &conninfo];
    let commands: [(&[&str], i32); 5] = [
        (&["push", &path], 1),
        (&["repair", &segment, "--pgdata", from], 4),
        (&["basebackup", "-d", &conninfo], 4),
        (&["basebackup", "-d", &conninfo, "--method", "local"], 4),
        (&setup, 4),
    ];
    for (arguments, code) in commands {
        let output = others.run(arguments).exited(code);
        assert!(
            output.stderr.contains("is another one"),
            "{arguments:?}: {}",
            output.stderr
        );
    }
    assert_eq!(keys(&other, ""), before);
    let doctor = others.run(&["doctor", "-d", &conninfo]).exited(2);
    assert!(doctor.stdout.contains("is another one"), "{}", doctor.stdout);

    // The right one, wherever it is now.
    let moved = Place::directory();
    std::fs::remove_dir(moved.path().unwrap()).unwrap();
    std::fs::rename(place.path().unwrap(), moved.path().unwrap()).unwrap();
    let moved = Walship::at(&moved).in_dir(primary.data_dir());
    moved.run(&["push", &path]).succeeded();
}

#[test]
fn a_new_archive_is_begun_by_who_says_so_and_remembered_from_then_on() {
    for &major in majors() {
        let (place, new) = (Place::directory(), Place::directory());
        let mut primary = archiving_primary(major, &Walship::at(&place));
        wait_archived(&primary, &primary.switch_wal());
        let walship = Walship::at(&new);
        // The one that is remembered is no new one.
        let again = ["basebackup", "-d", &primary.conninfo(), "--new-archive"];
        Walship::at(&place).run(&again).exited(4);
        primary.stop(crate::support::postgres::Stop::Fast);
        for (name, value) in walship.environment() {
            primary.set_env(name, value);
        }
        primary.start();
        refused_to_archive(&primary);
        let arguments = ["basebackup", "-d", &primary.conninfo(), "--new-archive", "--json"];
        walship.run(&arguments).succeeded();
        assert_eq!(listed(&new), 1, "PostgreSQL {major}");
        // A command that runs each night with it would begin another one wherever there is none.
        walship.run(&arguments).exited(4);
        let text = std::fs::read_to_string(remembered(primary.data_dir())).unwrap();
        assert!(text.contains(&new.url), "{text}");
    }
}

/// A role that may not see where the data directory is: as from another machine.
#[test]
fn a_server_that_cannot_be_asked_gets_no_archive_unless_somebody_says_so() {
    for &major in majors() {
        let (place, empty) = (Place::directory(), Place::directory());
        let primary = archiving_primary(major, &Walship::at(&place));
        primary.sql("create role remote login replication");
        wait_archived(&primary, &primary.switch_wal());
        let conninfo = primary.conninfo().replace("user=postgres", "user=remote");
        assert!(conninfo.contains("user=remote"), "{conninfo}");
        let backup = |place: &Place| {
            let arguments = [
                "basebackup",
                "-d",
                &format!("{conninfo} dbname=postgres"),
                "--wal-timeout",
                "5s",
            ];
            Walship::at(place).run(&arguments)
        };
        let output = backup(&empty).exited(2);
        assert!(output.stderr.contains("is not known"), "{}", output.stderr);
        backup(&place).succeeded();
        // One that may read its files is asked.
        primary.sql(
            "grant execute on function pg_read_file(text, bigint, bigint, boolean) to remote; grant pg_monitor to remote",
        );
        primary.sql("revoke pg_monitor from remote");
        let output = backup(&empty).exited(2);
        assert!(
            output.stderr.contains("writes to the archive"),
            "{}",
            output.stderr
        );
        assert_eq!(keys(&empty, ""), Vec::<String>::new());
        std::fs::write(remembered(primary.data_dir()), "{").unwrap();
        backup(&place).exited(1);
    }
}

struct Copy {
    cluster: Cluster,
    _root: tempfile::TempDir,
}

/// A recovery to the end of the archive, opened.
fn recovered(major: Major, walship: &Walship, archive_mode: &str) -> Copy {
    let root = scratch();
    let data = root.path().join("data");
    let pgdata = data.to_str().unwrap();
    let arguments = ["recover", "--pgdata", pgdata, "--archive-mode", archive_mode];
    walship.run(&arguments).succeeded();
    let cluster = walship.opened(major, &data);
    Copy { cluster, _root: root }
}

// Seen to fail: `cluster/archiving.rs`: `Auto` leaves archiving on
#[test]
fn a_copy_remembers_its_sources_archive_only_where_it_takes_its_place() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let primary = archiving_primary(major, &walship);
        wait_archived(&primary, &primary.switch_wal());
        let mark = std::fs::read(remembered(primary.data_dir())).unwrap();
        for method in ["stream", "local"] {
            let arguments = ["basebackup", "-d", &primary.conninfo(), "--method", method];
            walship.run(&arguments).succeeded();
            for (mode, remembers) in [("off", false), ("auto", false), ("on", true)] {
                let root = scratch();
                let data = root.path().join("data");
                let arguments = [
                    "recover",
                    "--pgdata",
                    data.to_str().unwrap(),
                    "--archive-mode",
                    mode,
                ];
                let output = walship.run(&arguments).succeeded();
                let found = std::fs::read(remembered(&data)).ok();
                assert_eq!(found, remembers.then(|| mark.clone()), "{major} {method} {mode}");
                assert_eq!(
                    data.join("walship.clone").exists(),
                    !remembers,
                    "{major} {method} {mode}"
                );
                let says_how = output.stdout.contains("recover with --archive-mode on instead");
                assert_eq!(says_how, !remembers, "{}", output.stdout);
            }
        }
        let seeded = scratch();
        for from in ["archive", "primary"] {
            let data = seeded.path().join(from);
            let pgdata = data.to_str().unwrap();
            let seed = [
                "basebackup",
                "--seed-replica",
                "--pgdata",
                pgdata,
                "--from",
                from,
                "--no-slot",
                "-d",
            ];
            let conninfo = primary.conninfo();
            let arguments: Vec<&str> = seed.into_iter().chain([conninfo.as_str()]).collect();
            beside(&primary, &walship).run(&arguments).succeeded();
            assert_eq!(std::fs::read(remembered(&data)).unwrap(), mark, "{major} {from}");
        }
    }
}

// Seen to fail: `basebackup/wal_wait.rs`: the history is stored before the segments are there
#[test]
fn a_backup_of_a_copy_leaves_no_trace_in_its_sources_archive() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let primary = archiving_primary(major, &walship);
        wait_archived(&primary, &primary.switch_wal());
        walship
            .run(&["basebackup", "-d", &primary.conninfo()])
            .succeeded();
        let mut copy = recovered(major, &walship, "off");
        let before = keys(&place, "");
        let conninfo = copy.cluster.conninfo();
        let data = copy.cluster.data_dir().to_owned();
        for method in ["stream", "local"] {
            let arguments = ["basebackup", "-d", &conninfo, "--method", method];
            let output = walship.run(&arguments).exited(4);
            assert!(output.stderr.contains("walship.clone"), "{}", output.stderr);
        }
        copy.cluster.switch_wal();
        let segment = wait_for("a segment of the copy", PATIENCE, || {
            let entries = std::fs::read_dir(data.join("pg_wal")).unwrap();
            let mut names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.find(|name| name.starts_with("00000002") && name.len() == 24)
        });
        let at_copy = walship.clone().in_dir(&data);
        at_copy.run(&["push", &format!("pg_wal/{segment}")]).exited(1);
        // One that an older walship made, or pg_basebackup, has no mark.
        std::fs::remove_file(data.join("walship.clone")).unwrap();
        let output = walship.run(&["basebackup", "-d", &conninfo]).exited(4);
        assert!(output.stderr.contains("archive_mode is off"), "{}", output.stderr);
        assert_eq!(keys(&place, ""), before, "PostgreSQL {major}");

        // One that means to archive, and does not.
        copy.cluster.sql("alter system set archive_mode = on");
        copy.cluster
            .sql("alter system set archive_command = '/bin/false'");
        copy.cluster.stop(crate::support::postgres::Stop::Fast);
        copy.cluster.start();
        let arguments = ["basebackup", "-d", &conninfo, "--wal-timeout", "3s"];
        let output = walship.run(&arguments).exited(8);
        assert_eq!(keys(&place, "wal/00000002"), Vec::<String>::new());
        assert!(!place.path().unwrap().join("wal/00000002.history.zst").exists());
        // Once it archives, the backup is completed, with the history.
        let id = output
            .stderr
            .split_whitespace()
            .find(|word| word.ends_with('Z'))
            .unwrap()
            .to_owned();
        let command = format!("{} push %p", crate::support::walship::binary().display());
        copy.cluster
            .sql(&format!("alter system set archive_command = '{command}'"));
        copy.cluster.reload();
        wait_archived(&copy.cluster, &copy.cluster.switch_wal());
        let _ = std::fs::remove_file(place.path().unwrap().join("wal/00000002.history.zst"));
        walship.run(&["basebackup", "--finish", &id]).succeeded();
        assert!(place.path().unwrap().join("wal/00000002.history.zst").exists());
    }
}

// Seen to fail: `cluster/apart.rs`: an archive within a data directory is accepted
#[test]
fn an_archive_within_a_data_directory_is_refused_by_every_command_that_would_write() {
    let data = Sample::shared().copy();
    let segment = format!("pg_wal/{}", Sample::shared().segments[0]);
    for inside in ["archive", "pg_wal/archive", "base/new/archive"] {
        let place = Place::directory().with_url(&format!("file://{}", data.file(inside).display()));
        let output = data.walship(&place).run(&["push", &segment]).exited(1);
        assert!(output.stderr.contains("lies within"), "{}", output.stderr);
        assert!(!data.file(inside).exists());
    }
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V17, &walship);
    wait_archived(&primary, &primary.switch_wal());
    walship
        .run(&["basebackup", "-d", &primary.conninfo()])
        .succeeded();
    // By way of a link, in a tablespace.
    let root = scratch();
    let space = make_dir(root.path(), "space", 0o700);
    primary.sql(&format!("create tablespace s location '{}'", space.display()));
    let links = make_dir(root.path(), "links", 0o700);
    std::os::unix::fs::symlink(&space, links.join("archive")).unwrap();
    let inside = place.with_url(&format!("file://{}", links.join("archive/main").display()));
    for method in ["stream", "local"] {
        let arguments = [
            "basebackup",
            "-d",
            &primary.conninfo(),
            "--method",
            method,
            "--new-archive",
        ];
        let output = Walship::at(&inside).run(&arguments).exited(2);
        assert!(output.stderr.contains("lies within"), "{}", output.stderr);
    }
    // And the other way around.
    let copies = place.path().unwrap().join("copies");
    let arguments = ["recover", "--pgdata", copies.to_str().unwrap()];
    let output = walship.run(&arguments).exited(2);
    assert!(output.stderr.contains("lies within"), "{}", output.stderr);
    let seed = [
        "basebackup",
        "--seed-replica",
        "--no-slot",
        "--pgdata",
        copies.to_str().unwrap(),
        "-d",
    ];
    let conninfo = primary.conninfo();
    let arguments: Vec<&str> = seed.into_iter().chain([conninfo.as_str()]).collect();
    let output = walship.run(&arguments).exited(2);
    assert!(output.stderr.contains("lies within"), "{}", output.stderr);
    assert!(!copies.exists());
}
