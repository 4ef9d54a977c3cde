//! `walship recover` on this machine: who may run it, what it prints, and that what it prints works.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use walship_core::pg::Major;

use crate::server::{archiving_primary, majors, wait_archived};
use crate::support::postgres::{Cluster, Stop};
use crate::support::process::{Output, Running, signal};
use crate::support::stores::Place;
use crate::support::walship::{Walship, binary};
use crate::support::{command_as_user, give_to_user, make_dir, scratch, wait_for};

const PATIENCE: Duration = Duration::from_mins(2);

/// What `walship recover --json` prints.
fn recover(walship: &Walship, data: &Path, arguments: &[&str]) -> Value {
    let mut all = vec!["recover", "--json", "--pgdata", data.to_str().unwrap()];
    all.extend(arguments);
    let output = walship.run(&all).succeeded();
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

/// Runs a printed command as its reader would: in a shell.
fn shell(cluster: &Cluster, walship: &Walship, command: &str) -> Output {
    let mut psql = cluster.program("psql");
    let mut shell = command_as_user("/bin/sh");
    shell.args(["-c", command]).envs(walship.environment());
    // With the environment that cluster gives to PostgreSQL's programs.
    let environment: Vec<_> = psql
        .arg("-X")
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    Running::start(shell.envs(environment)).wait(PATIENCE)
}

/// The archive's walship, which finds this cluster's programs in `PATH`.
fn walship_beside(cluster: &Cluster, place: &Place) -> Walship {
    let path = format!("{}:/usr/bin:/bin", cluster.bin_dir().display());
    Walship::at(place).env("PATH", path)
}

/// A server that a printed command started; ends with the test, however that ends.
struct Started(PathBuf);

impl Started {
    fn by(command: &str, cluster: &Cluster, walship: &Walship, data: &Path) -> Self {
        let started = Self(data.to_owned());
        shell(cluster, walship, command).succeeded();
        started
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let file = std::fs::read_to_string(self.0.join("postmaster.pid")).unwrap_or_default();
        if let Some(pid) = file.lines().next().and_then(|line| line.parse().ok()) {
            signal(pid, Signal::QUIT);
        }
    }
}

fn back_up(cluster: &Cluster, walship: &Walship) {
    walship
        .run(&["basebackup", "-d", &cluster.conninfo()])
        .succeeded();
}

/// Settings without which a server started by a printed command cannot be reached by the test.
fn settle_in(cluster: &Cluster) {
    cluster.set("port", &cluster.port().to_string());
    cluster.set("unix_socket_directories", cluster.socket_dir().to_str().unwrap());
    cluster.set("listen_addresses", "");
}

fn lose_data_directory(cluster: &mut Cluster) {
    cluster.stop(Stop::Immediate);
    std::fs::remove_dir_all(cluster.data_dir()).unwrap();
}

#[test]
fn the_printed_command_starts_the_server_and_the_printed_sql_ends_the_pause() {
    for &major in majors() {
        let place = Place::directory();
        let mut primary = archiving_primary(major, &Walship::at(&place));
        settle_in(&primary);
        let walship = walship_beside(&primary, &place);
        back_up(&primary, &walship);
        primary.sql("create table kept (n int); insert into kept values (1)");
        let lsn = primary.sql("select pg_current_wal_lsn()");
        primary.sql("drop table kept");
        let segment = primary.switch_wal();
        wait_archived(&primary, &segment);
        lose_data_directory(&mut primary);

        let data = primary.data_dir().to_owned();
        // The record at the position is the lock that DROP TABLE takes: replayed, it would keep
        // every reader of the table waiting.
        let before = ["--target-lsn", &lsn, "--target-inclusive", "false"];
        let report = recover(&walship, &data, &before);
        assert_eq!(report["action"], "pause");
        let start = report["start_command"].as_str().unwrap();
        let _started = Started::by(start, &primary, &walship, &data);
        primary.wait_until("select pg_get_wal_replay_pause_state()", "paused", PATIENCE);
        assert_eq!(primary.sql("select n from kept"), "1", "PostgreSQL {major}");
        assert!(
            report["next"]
                .as_str()
                .unwrap()
                .contains("SELECT pg_wal_replay_resume()")
        );
        primary.sql("SELECT pg_wal_replay_resume()");
        primary.wait_until("select pg_is_in_recovery()", "f", PATIENCE);
    }
}

/// Moves a stopped cluster's configuration into a folder of its own, as Debian has it.
pub(crate) fn move_configuration_out(cluster: &Cluster) -> PathBuf {
    let etc = cluster.make_dir("etc");
    for (name, setting) in [
        ("postgresql.conf", "data_directory"),
        ("pg_hba.conf", "hba_file"),
        ("pg_ident.conf", "ident_file"),
    ] {
        let (old, new) = (cluster.data_dir().join(name), etc.join(name));
        let target = if setting == "data_directory" {
            cluster.data_dir()
        } else {
            &new
        };
        cluster.set(setting, target.to_str().unwrap());
        if setting != "data_directory" {
            std::fs::rename(&old, &new).unwrap();
        }
    }
    let new = etc.join("postgresql.conf");
    std::fs::rename(cluster.data_dir().join("postgresql.conf"), &new).unwrap();
    etc
}

/// A cluster, ended, of which the archive has a backup; the folder of its configuration, in which
/// `pg_hba.conf` is missing meanwhile.
pub(crate) fn lost_its_configuration(place: &Place) -> (Cluster, Walship, PathBuf) {
    let mut primary = archiving_primary(Major::V17, &Walship::at(place));
    settle_in(&primary);
    primary.stop(Stop::Fast);
    let etc = move_configuration_out(&primary);
    let walship = walship_beside(&primary, place);
    let start = format!(
        "pg_ctl -w -D {} -l {}/log -o '-c config_file={}' start",
        primary.data_dir().display(),
        etc.display(),
        etc.join("postgresql.conf").display()
    );
    let source = Started::by(&start, &primary, &walship, primary.data_dir());
    back_up(&primary, &walship);
    primary.sql("create table kept (n int)");
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);
    drop(source);
    wait_for("the source to end", PATIENCE, || {
        (!primary.data_dir().join("postmaster.pid").exists()).then_some(())
    });
    std::fs::remove_file(etc.join("pg_hba.conf")).unwrap();
    (primary, walship, etc)
}

#[test]
fn configuration_outside_the_data_directory_comes_back_and_serves_a_copy_elsewhere() {
    let place = Place::directory();
    let (primary, walship, etc) = lost_its_configuration(&place);
    let config_file = etc.join("postgresql.conf");
    let root = scratch();
    let copy = root.path().join("a copy");
    let report = recover(&walship, &copy, &[]);
    let configuration = &report["configuration"];
    assert_eq!(
        configuration["restored"][0],
        etc.join("pg_hba.conf").to_str().unwrap()
    );
    assert!(
        configuration["kept"]
            .as_array()
            .unwrap()
            .contains(&config_file.to_str().unwrap().into()),
        "{configuration}"
    );
    let start = report["start_command"].as_str().unwrap();
    let _started = Started::by(start, &primary, &walship, &copy);
    primary.wait_until("select pg_is_in_recovery()", "f", PATIENCE);
    assert_eq!(primary.sql("show data_directory"), copy.to_str().unwrap());
    assert_eq!(primary.sql("select count(*) from kept"), "0");
}

// Seen to fail: `basebackup/configuration.rs`: what a link in the data directory leads to counts as in the backup
#[test]
fn configuration_behind_links_and_includes_comes_back_on_a_new_machine() {
    for &major in majors() {
        for method in ["stream", "local"] {
            links_and_includes_come_back(major, method);
        }
    }
}

fn links_and_includes_come_back(major: Major, method: &str) {
    let place = Place::directory();
    let mut primary = archiving_primary(major, &Walship::at(&place));
    settle_in(&primary);
    primary.stop(Stop::Fast);
    let etc = primary.make_dir("etc");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        let (link, file) = (primary.data_dir().join(name), etc.join(name));
        std::fs::rename(&link, &file).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
    }
    let write = |path: &Path, text: &str| {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(0o644))
            .unwrap();
    };
    let (more, lists) = (make_dir(&etc, "more", 0o755), make_dir(&etc, "lists", 0o755));
    write(&more.join("10.conf"), "work_mem = '5MB'\n");
    write(&etc.join("must"), "max_connections = 77\n");
    write(&lists.join("everybody"), "all\n");
    let includes = format!(
        "include_dir '{}'\ninclude '{}'\n",
        more.display(),
        etc.join("must").display()
    );
    write(&etc.join("postgresql.conf"), &includes);
    // Only this line lets anybody in.
    let rule = format!(
        "local all @{} trust\nlocal replication @{0} trust\n",
        lists.join("everybody").display()
    );
    std::fs::remove_file(etc.join("pg_hba.conf")).unwrap();
    write(&etc.join("pg_hba.conf"), &rule);

    let walship = walship_beside(&primary, &place);
    primary.start();
    let output = walship.run(&["basebackup", "-d", &primary.conninfo(), "--method", method]);
    assert!(
        !output.succeeded().stderr.contains("configuration"),
        "PostgreSQL {major}, {method}"
    );
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);
    lose_data_directory(&mut primary);
    std::fs::remove_dir_all(&etc).unwrap();

    let data = primary.data_dir().to_owned();
    let report = recover(&walship, &data, &["--archive-mode", "off"]);
    let start = report["start_command"].as_str().unwrap();
    let _started = Started::by(start, &primary, &walship, &data);
    primary.wait_until("select pg_is_in_recovery()", "f", PATIENCE);
    for (setting, value) in [("work_mem", "5MB"), ("max_connections", "77")] {
        assert_eq!(
            primary.sql(&format!("show {setting}")),
            value,
            "PostgreSQL {major}, {method}"
        );
    }
    assert!(!data.join("pg_hba.conf").is_symlink());
}

#[test]
fn configuration_that_no_backup_has_is_named_by_recover() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V18, &walship);
    let etc = primary.make_dir("etc");
    primary.set("ssl_key_file", etc.join("server.key").to_str().unwrap());
    primary.sql("alter system set ssl = on");
    let (unreadable, data) = (etc.join("secret"), primary.data_dir().join("postgresql.conf"));
    std::fs::write(&unreadable, "").unwrap();
    let mut conf = std::fs::OpenOptions::new().append(true).open(&data).unwrap();
    std::io::Write::write_all(
        &mut conf,
        format!("include '{}'\n", unreadable.display()).as_bytes(),
    )
    .unwrap();
    std::fs::remove_file(&unreadable).unwrap();
    let output = walship
        .run(&["basebackup", "-d", &primary.conninfo()])
        .succeeded();
    let named = unreadable.to_str().unwrap();
    assert!(output.stderr.contains(named), "{}", output.stderr);
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);
    let root = scratch();
    let report = recover(&walship, &root.path().join("copy"), &["--archive-mode", "off"]);
    let notes = report["notes"].to_string();
    for name in [named, "etc/server.key", "copy/server.crt"] {
        assert!(notes.contains(name), "{name}: {notes}");
    }
}

#[test]
fn root_is_refused_with_the_command_that_works() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::directory();
    let root = scratch();
    let output = Command::new(binary())
        .args(["--archive", &place.url, "recover", "--pgdata"])
        .arg(root.path().join("data"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(6));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("sudo -u postgres walship recover"), "{text}");
    assert!(!root.path().join("data").exists());
}

#[test]
fn a_recovered_copy_reads_nothing_of_what_its_source_followed() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V18, &walship);
    primary.sql(
        "alter system set primary_conninfo = 'host=elsewhere password=secret';
         alter system set recovery_target_xid = '77';
         alter system set restore_command = 'false'",
    );
    for (name, value) in [
        ("primary_slot_name", "a_slot"),
        ("recovery_end_command", "false"),
        ("recovery_target_name", "nowhere"),
        ("recovery_min_apply_delay", "1d"),
    ] {
        primary.set(name, value);
    }
    back_up(&primary, &walship);
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);
    let root = scratch();
    let data = root.path().join("data");
    recover(
        &walship,
        &data,
        &[
            "--target-immediate",
            "--target-action",
            "promote",
            "--archive-mode",
            "off",
        ],
    );
    let settings = std::fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(!settings.contains("secret"), "{settings}");
    let copy = walship.opened(Major::V18, &data);
    for name in ["primary_conninfo", "primary_slot_name", "recovery_end_command"] {
        assert_eq!(copy.sql(&format!("show {name}")), "", "{name}");
    }
}

#[test]
fn what_a_killed_recover_left_is_removed_with_the_printed_command() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V17, &walship);
    back_up(&primary, &walship);
    let root = scratch();
    let data = root.path().join("data");
    // As a kill leaves it.
    std::fs::create_dir_all(data.join("global")).unwrap();
    std::fs::write(data.join("global/pg_control.walship"), "").unwrap();
    for path in [
        &data,
        &data.join("global"),
        &data.join("global/pg_control.walship"),
    ] {
        give_to_user(path);
    }
    let arguments = ["recover", "--pgdata", data.to_str().unwrap()];
    let output = walship.run(&arguments).exited(4);
    let (_, command) = output.stderr.split_once("run the recovery again: ").unwrap();
    shell(&primary, &walship, command).succeeded();
    walship.run(&arguments).succeeded();
}

#[test]
fn an_in_place_tablespace_comes_back_inside_the_data_directory() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V18, &walship);
    primary.sql("alter system set allow_in_place_tablespaces = on");
    primary.sql("select pg_reload_conf()");
    primary.wait_until("show allow_in_place_tablespaces", "on", PATIENCE);
    primary.sql("create tablespace inside location ''");
    primary.sql("create table kept tablespace inside as select 1 as n");
    back_up(&primary, &walship);
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);
    let root = scratch();
    let data = root.path().join("data");
    recover(&walship, &data, &["--archive-mode", "off"]);
    let copy = walship.opened(Major::V18, &data);
    assert_eq!(copy.sql("select n from kept"), "1");
}

#[test]
fn a_cluster_that_its_group_may_read_comes_back_as_one() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let mut builder = Cluster::builder(Major::V14)
        .initdb_arg("--allow-group-access")
        .option("archive_mode", "on")
        .option("archive_command", &format!("{} push %p", binary().display()));
    for (name, value) in walship.environment() {
        builder = builder.env(name, value);
    }
    let mut primary = builder.initdb();
    primary.start();
    back_up(&primary, &walship);
    let root = scratch();
    let data = root.path().join("data");
    recover(&walship, &data, &["--archive-mode", "off"]);
    let mode = |name: &str| data.join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(""), mode("base")), (0o750, 0o750));
    for file in ["global/pg_control", "postgresql.auto.conf", "recovery.signal"] {
        assert_eq!(mode(file), 0o640, "{file}");
    }
    let mut copy = walship.adopt(Major::V14, &data);
    copy.start();
}
