//! Base backups that are read from the data directory: the same files as over the replication protocol, and the same
//! refusals.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use walship_core::pg::Major;

use crate::basebackup::{decompress, json, keys, listed, unpack};
use crate::server::{archiving_builder, archiving_primary, majors, wait_archived};
use crate::support::postgres::Cluster;
use crate::support::stores::Place;
use crate::support::walship::Walship;
use crate::support::{command_as_user, give_to_user, make_dir, scratch, wait_for};

const PATIENCE: Duration = Duration::from_mins(2);
const PAGE: usize = 8192;

/// A primary with page checksums, whatever the version's default.
fn primary_with_checksums(major: Major, walship: &Walship) -> Cluster {
    let mut primary = archiving_builder(major, walship)
        .initdb_arg("--data-checksums")
        .initdb();
    primary.start();
    primary
}

fn back_up(walship: &Walship, primary: &Cluster, method: &str) -> String {
    let arguments = [
        "basebackup",
        "-d",
        &primary.conninfo(),
        "--method",
        method,
        "--json",
    ];
    let report = json(&walship.run(&arguments).succeeded());
    report["id"].as_str().unwrap().to_owned()
}

/// What a refused backup of the data directory says; nothing is listed after it.
fn refused(walship: &Walship, server: &Cluster, place: &Place) -> String {
    let arguments = ["basebackup", "-d", &server.conninfo(), "--method", "local"];
    let output = walship.run(&arguments).exited(2);
    assert_eq!(keys(place, "backups"), Vec::<String>::new());
    output.stderr
}

fn tablespace(primary: &Cluster, name: &str) -> PathBuf {
    let location = primary.make_dir(name);
    primary.sql(&format!(
        "create tablespace \"{name}\" location '{}'; create table \"in {name}\" tablespace \"{name}\" as \
         select g, md5(g::text) from generate_series(1, 20000) g",
        location.display()
    ));
    location
}

/// Where a table's file is.
fn file_of(primary: &Cluster, table: &str) -> PathBuf {
    primary
        .data_dir()
        .join(primary.sql(&format!("select pg_relation_filepath('{table}')")))
}

/// Makes a file, with what is above it.
fn plant(path: &Path, content: &[u8]) {
    let folder = path.parent().unwrap();
    if !folder.exists() {
        std::fs::create_dir_all(folder).unwrap();
        give_to_user(folder);
    }
    std::fs::write(path, content).unwrap();
    give_to_user(path);
}

/// Names that a backup leaves out, and others that look like them.
fn plant_odd_names(data: &Path, tablespace: &Path) {
    let page = [0; PAGE];
    let version = std::fs::read_dir(tablespace)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let database = std::fs::read_dir(&version)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    for folder in [data.join("base/5"), data.join("base/1"), database] {
        for name in [
            "t3_77777",
            "t3_77777_fsm",
            "t3_77777.1",
            "t3_77777_vm.2",
            "88888",
            "88888.1",
            "88888_fsm",
            "88888_init",
            "99999",
            "99999_init",
            "99999_vm",
            "pg_internal.init",
            "pg_internal.init.4711",
            "pgsql_tmp4711.0",
            ".DS_Store",
        ] {
            if folder.is_dir() {
                plant(&folder.join(name), &page);
            }
        }
    }
    for name in [
        "t3_77777",
        "current_logfiles",
        "current_logfiles.tmp",
        "postgresql.auto.conf.tmp",
        "postgresql.auto.conf.tmp2",
        "backup_label.old",
        "backup_manifest",
        "postmaster.pid.old",
        "log/postgresql.log",
        "pg_log/old.log",
        "deep/er/file",
        "pg_stat_tmp/x",
        "pg_replslot/x",
        "pg_dynshmem/x",
        "pg_notify/9999",
        "pg_serial/x",
        "pg_snapshots/x",
        "pg_subtrans/9999",
        "deep/pg_notify/x",
        "pg_stat/x",
        "base/pgsql_tmp/pgsql_tmp1.0",
        "base/t3_77777",
        "global/t3_77777",
        "global/pg_internal.init",
        "pg_wal/archive_status/x",
        "pg_logical/x",
    ] {
        plant(&data.join(name), b"x");
    }
    symlink("postgresql.conf", data.join("a link")).unwrap();
    std::fs::set_permissions(data.join("pg_logical/x"), PermissionsExt::from_mode(0o640)).unwrap();
}

/// What the index says of each file and directory, without what differs from backup to backup.
fn index(place: &Place, id: &str) -> BTreeSet<String> {
    let text = decompress(&place.path().unwrap().join(format!("backups/{id}/files.zst")));
    let text = String::from_utf8(text).unwrap();
    let entry = |line: &str| {
        let mut entry: Value = serde_json::from_str(line).ok()?;
        let fields = entry.as_object_mut()?;
        let path = fields.get("path")?.as_str()?.to_owned();
        fields.remove("offset");
        if path == "walship.archive" {
            return None;
        }
        // What a backup and its checkpoint write, and the proof of whose directory it is.
        let is_written = [
            "backup_label",
            "tablespace_map",
            "global/pg_control",
            "pg_logical",
            "pg_logical/replorigin_checkpoint",
            "pg_snapshots",
        ]
        .contains(&path.as_str());
        if is_written || path.starts_with("pg_wal") {
            fields.remove("mtime");
        }
        Some(entry.to_string())
    };
    text.lines().filter_map(entry).collect()
}

// Seen to fail: `base_backup/local/sender.rs`: unlogged and temporary relations stay; `names.rs`: no directory is
// emptied
#[test]
fn a_backup_of_the_data_directory_holds_what_the_server_would_send() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let mut primary = archiving_primary(major, &walship);
        let location = tablespace(&primary, "one");
        tablespace(&primary, "two words");
        primary.sql(
            "create unlogged table u as select g from generate_series(1, 1000) g; create index on u (g)",
        );
        plant_odd_names(primary.data_dir(), &location);
        // Nothing that runs changes a file any more.
        primary.set("autovacuum", "off");
        primary.stop(crate::support::postgres::Stop::Fast);
        primary.start();
        primary.sql("checkpoint");
        let [streamed, local] =
            ["stream", "local"].map(|method| index(&place, &back_up(&walship, &primary, method)));
        let only_in = |one: &BTreeSet<String>, other: &BTreeSet<String>| {
            one.difference(other).cloned().collect::<Vec<_>>().join("\n")
        };
        assert!(
            streamed == local,
            "PostgreSQL {major}, only streamed:\n{}\nonly local:\n{}",
            only_in(&streamed, &local),
            only_in(&local, &streamed)
        );
        assert!(local.len() > 900, "{} entries", local.len());
    }
}

// Seen to fail: `local/sender.rs`: a wrong checksum for large files
#[test]
fn a_backup_under_load_is_what_its_manifest_says_and_recovers_every_row() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place).env("WALSHIP_BACKUP_PART_SIZE", "4MiB");
        let primary = primary_with_checksums(major, &walship);
        let locations = ["one", "two"].map(|name| tablespace(&primary, name));
        primary.sql(
            "create table t (n int primary key, text text) tablespace one;
             insert into t select g, repeat(md5(g::text), 20) from generate_series(1, 20000) g;
             create unlogged table u as select 1 as n",
        );
        let over = AtomicBool::new(false);
        let id = std::thread::scope(|scope| {
            for worker in 0..2 {
                let (primary, over) = (&primary, &over);
                scope.spawn(move || {
                    let mut round = 0;
                    while !over.load(Ordering::Relaxed) {
                        round += 1;
                        primary.sql(&format!(
                            "update t set text = repeat(md5({round}::text), 20) where n % 97 = {round} % 97 and n % 2 = {worker};
                             insert into t select {worker} + 2 * g, 'new' from generate_series(20000 + 50 * {round}, 20049 + 50 * {round}) g;
                             create temp table s as select * from t limit 200;
                             create table d_{worker}_{round} as select * from t limit 200;
                             drop table if exists d_{worker}_{before};
                             checkpoint",
                            before = round - 1
                        ));
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(500));
            let slowly = [
                "basebackup",
                "-d",
                &primary.conninfo(),
                "--method",
                "local",
                "--max-rate",
                "32MB",
                "--json",
            ];
            let output = walship.run(&slowly);
            over.store(true, Ordering::Relaxed);
            json(&output.succeeded())["id"].as_str().unwrap().to_owned()
        });
        let content = "select count(*), sum(n), md5(string_agg(n || text, ',' order by n)) from t";
        let expected = primary.sql(content);
        let segment = primary.switch_wal();
        wait_archived(&primary, &segment);

        let entries = String::from_utf8(decompress(
            &place.path().unwrap().join(format!("backups/{id}/files.zst")),
        ))
        .unwrap();
        assert!(entries.lines().last().unwrap().contains("global/pg_control"));

        let root = scratch();
        let unpacked = make_dir(root.path(), "unpacked", 0o700);
        let backup = place.path().unwrap().join("backups").join(&id);
        let record: Value =
            serde_json::from_slice(&std::fs::read(backup.join("backup.json")).unwrap()).unwrap();
        unpack(&place, &id, &record["streams"], &unpacked);
        let manifest = root.path().join("manifest");
        std::fs::write(&manifest, decompress(&backup.join("manifest.zst"))).unwrap();
        let [path, unpacked] = [&manifest, &unpacked].map(|path| path.to_str().unwrap());
        primary
            .run_program("pg_verifybackup", &["-n", "-m", path, unpacked])
            .succeeded();
        walship.run(&["verify", "--full"]).succeeded();

        let data = root.path().join("data");
        let mut arguments = vec![
            "recover".to_owned(),
            "--pgdata".to_owned(),
            data.to_str().unwrap().to_owned(),
        ];
        for (number, location) in locations.iter().enumerate() {
            let new = root.path().join(format!("ts{number}"));
            arguments.push("--tablespace-mapping".to_owned());
            arguments.push(format!("{}={}", location.display(), new.display()));
        }
        arguments.extend(["--archive-mode", "off"].map(str::to_owned));
        walship.run(&arguments).succeeded();
        let copy = walship.opened(major, &data);
        assert_eq!(copy.sql(content), expected, "PostgreSQL {major}");
        assert_eq!(
            copy.sql("set enable_seqscan = off; select count(*) from t where n > 0"),
            expected.split('|').next().unwrap()
        );
        assert_eq!(copy.sql("select count(*) from u"), "0");
    }
}

// Seen to fail: `local/sender.rs`: pages are not verified; `local/page.rs`: checksum modulo 65536; the page's position
// is not looked at
#[test]
fn a_damaged_page_fails_the_backup_and_a_page_written_since_does_not() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let primary = primary_with_checksums(major, &walship);
        primary.sql("create table t as select g from generate_series(1, 20000) g; checkpoint");
        let path = file_of(&primary, "t");
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let at = (5 * PAGE + 4000) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
        for method in ["stream", "local"] {
            let arguments = ["basebackup", "-d", &primary.conninfo(), "--method", method];
            let output = walship.run(&arguments).exited(7);
            assert!(output.stderr.contains("nothing is listed"), "{}", output.stderr);
            if method == "local" {
                assert!(output.stderr.contains("block 5"), "{}", output.stderr);
            }
        }
        assert_eq!(keys(&place, "backups"), Vec::<String>::new());
        // As if the page were being written: its position is one that the backup's WAL repairs.
        let mut page = vec![0; PAGE];
        file.read_exact_at(&mut page, 5 * PAGE as u64).unwrap();
        page[..8].copy_from_slice(&[0x7F, 0, 0, 0, 0, 0, 0, 0]);
        file.write_all_at(&page, 5 * PAGE as u64).unwrap();
        back_up(&walship, &primary, "local");
    }
}

// Seen to fail: `local/mod.rs`: system identifiers are not compared; the exported snapshot is not looked for
#[test]
fn another_clusters_data_directory_or_none_is_refused() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V18, &walship);
    wait_archived(&primary, &primary.switch_wal());
    let other = Cluster::builder(Major::V18).initdb();
    let [from, data] = [other.data_dir(), primary.data_dir()].map(|path| path.to_str().unwrap());
    let away = format!("{data}.away");
    let run = |program: &str, arguments: &[&str]| {
        let status = command_as_user(program).args(arguments).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    };
    let refused = |says: &str| {
        let stderr = refused(&walship, &primary, &place);
        for part in [says, "--method stream"] {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
    };
    // The server goes on in the directory that it was started in, whatever its name.
    run("mv", &[data, &away]);
    refused("is not on this machine");
    run("cp", &["-a", from, data]);
    refused("belongs to the cluster with system identifier");
    run("rm", &["-r", data]);
    // Of a file that goes meanwhile cp tells with its status.
    let _ = command_as_user("cp").args(["-a", &away, data]).status().unwrap();
    refused("but a copy of it");
    run("rm", &["-r", data]);
    run("mv", &[&away, data]);
    back_up(&walship, &primary, "local");
}

// Seen to fail: `basebackup/source.rs`: any error of the proof ends the backup; `local/mod.rs`: `may_back_up` is not asked
#[test]
fn without_a_method_the_data_directory_is_read_where_it_is_proven_and_else_the_server_sends_it() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V18, &walship);
    let chosen = |conninfo: &str| {
        let report = json(&walship.run(&["basebackup", "-d", conninfo, "--json"]).succeeded());
        let text = |field: &str| report["files"][field].as_str().unwrap().to_owned();
        (text("method"), text("reason"))
    };
    let is = |(method, reason): (String, String), expected: &str, says: &str| {
        assert!(method == expected && reason.contains(says), "{method}: {reason}");
    };
    let superuser = primary.conninfo();
    is(chosen(&superuser), "local", "it is proven to be the server's own");

    primary.sql("create role keeper login replication");
    let role = superuser.replace("user=postgres", "user=keeper");
    assert_ne!(role, superuser);
    is(chosen(&role), "stream", "data_directory");
    primary.sql("grant pg_read_all_settings to keeper");
    is(chosen(&role), "stream", "may not execute pg_backup_start");
    primary.sql("grant execute on function pg_backup_start to keeper");
    is(chosen(&role), "stream", "may not execute pg_backup_stop");
    primary.sql("grant execute on function pg_backup_stop to keeper");
    is(chosen(&role), "local", "it is proven");
}

// Seen to fail: `local/mod.rs`: the server's tablespaces, or its databases, are not looked for
#[test]
fn a_tablespace_or_a_database_that_is_not_mounted_here_is_not_taken_for_dropped() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V18, &walship);
    let location = tablespace(&primary, "elsewhere");
    let moved = tablespace(&primary, "moved");
    primary.sql("create database inside");
    primary.sql("create database outside tablespace moved");
    let oid = |name: &str| primary.sql(&format!("select oid from pg_database where datname = '{name}'"));
    let version = std::fs::read_dir(&moved).unwrap().next().unwrap().unwrap().path();
    let hidden = [
        location,
        primary.data_dir().join("base").join(oid("inside")),
        version.join(oid("outside")),
    ];
    let checkpoint = || primary.sql("select checkpoint_lsn from pg_control_checkpoint()");
    let before = checkpoint();
    for path in &hidden {
        let away = path.with_extension("away");
        std::fs::rename(path, &away).unwrap();
        let stderr = refused(&walship, &primary, &place);
        std::fs::rename(&away, path).unwrap();
        assert!(
            stderr.contains("which is not here") && stderr.contains("--method stream"),
            "{}: {stderr}",
            path.display()
        );
    }
    assert_eq!(
        checkpoint(),
        before,
        "it is refused before the server does anything"
    );
    back_up(&walship, &primary, "local");
}

// Seen to fail: `local/mod.rs`: a standby is not looked for; `local/sender.rs`: an unreadable file is skipped
#[test]
fn a_file_that_this_user_may_not_read_and_a_standby_are_refused() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V18, &walship);
    let secret = primary.data_dir().join("secret");
    plant(&secret, b"x");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o000)).unwrap();
    let stderr = refused(&walship, &primary, &place);
    assert!(stderr.contains("as the user who runs the server"), "{stderr}");
    std::fs::remove_file(&secret).unwrap();

    let root = scratch();
    let data = root.path().join("standby");
    primary.copy_to(&data);
    let mut standby = Cluster::adopt(Major::V18, &data);
    standby.start();
    let stderr = refused(&walship, &standby, &place);
    assert!(stderr.contains("is a standby"), "{stderr}");
}

// Seen to fail: `basebackup/mod.rs`: nothing is discarded
#[test]
fn a_backup_whose_session_ends_fails_and_leaves_nothing() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place).env("WALSHIP_BACKUP_PART_SIZE", "4MiB");
        let primary = archiving_primary(major, &walship);
        let conninfo = primary.conninfo();
        let arguments = [
            "basebackup",
            "-d",
            &conninfo,
            "--method",
            "local",
            "--max-rate",
            "8MB",
        ];
        let running = walship.spawn(&arguments);
        wait_for("the first part", PATIENCE, || {
            keys(&place, "backups")
                .into_iter()
                .find(|key| key.ends_with("1.tar.zst"))
        });
        let ended = primary.sql("select count(pg_terminate_backend(pid)) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()");
        assert_eq!(ended, "1");
        let output = running.wait(PATIENCE).exited(5);
        assert!(output.stderr.contains("nothing is listed"), "{}", output.stderr);
        assert_eq!(keys(&place, "backups"), Vec::<String>::new());
        assert_eq!(listed(&place), 0);
    }
}
